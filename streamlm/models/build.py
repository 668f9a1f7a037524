"""Heads: the ways to treat what is far away, one file each."""

import torch

from streamlm.config import ModelConfig, any_of, require
from streamlm.models.base import Model
from streamlm.models.heads.full import FullModel
from streamlm.models.heads.informer import InformerModel
from streamlm.models.heads.linformer import LinformerModel
from streamlm.models.heads.recurrent import RecurrentModel
from streamlm.models.heads.sinks import SinksModel
from streamlm.models.heads.sketch import SketchModel
from streamlm.models.transformer_xl import TransformerXL

HEADS: dict[str, type[Model]] = {
    "relative": TransformerXL,
    "recurrent": RecurrentModel,
    "full": FullModel,
    "linformer": LinformerModel,
    "informer": InformerModel,
    "sinks": SinksModel,
    "sketch": SketchModel,
}


def check_config(config: ModelConfig) -> None:
    """Refuse settings that do not go together.

    Raises:
        ValueError: names what was given and what is allowed.
    """
    require(config.head in HEADS, "head", config.head, any_of(list(HEADS)))
    HEADS[config.head].check(config)
    good = config.coverage == 0 or config.head == "sketch"
    require(good, f"coverage with head {config.head!r}", config.coverage, "0")


def build_model(config: ModelConfig) -> Model:
    """A model with fresh weights, of the head that its configuration names.

    Raises:
        ValueError: see `check_config`.
    """
    check_config(config)
    return HEADS[config.head](config)


def build_empty(config: ModelConfig) -> Model:
    """A model whose weights take no memory: for `load_state_dict(…, assign=True)`.

    Tables that follow from the configuration are there.
    """
    with torch.device("meta"):  # tables name their device, so they are made all the same
        return build_model(config)
