"""Registries of heads and of models, and construction of models from their configuration."""

from typing import Any

import torch
from torch import Tensor
from torch.overrides import TorchFunctionMode

from streamlm.config import ModelConfig, any_of, require
from streamlm.models.base import Model
from streamlm.models.heads.full import FullModel
from streamlm.models.heads.informer import InformerModel
from streamlm.models.heads.linformer import LinformerModel
from streamlm.models.heads.recurrent import RecurrentModel
from streamlm.models.heads.sinks import SinksModel
from streamlm.models.heads.sketch import SketchModel
from streamlm.models.llama import LlamaModel
from streamlm.models.transformer_xl import TransformerXL

# Treatments of the past on one backbone.
HEADS: dict[str, type[Model]] = {
    "relative": TransformerXL,
    "recurrent": RecurrentModel,
    "full": FullModel,
    "linformer": LinformerModel,
    "informer": InformerModel,
    "sinks": SinksModel,
    "sketch": SketchModel,
}
MODELS: dict[str, type[Model]] = {**HEADS, "llama": LlamaModel}


def check_config(config: ModelConfig) -> None:
    """Validate a configuration, with the checks of its head.

    Raises:
        ValueError: names the given and the allowed value.
    """
    require(config.head in MODELS, "head", config.head, any_of(list(MODELS)))
    MODELS[config.head].check(config)
    good = config.coverage == 0 or config.head == "sketch"
    require(good, f"coverage with head {config.head!r}", config.coverage, "0")


def build_model(config: ModelConfig) -> Model:
    """Build the configured model with initial weights.

    Raises:
        ValueError: see `check_config`.
    """
    check_config(config)
    return MODELS[config.head](config)


class _NoInitialValues(TorchFunctionMode):
    """Leaves parameters as they are: torch loads its compiler to fill those of the meta device."""

    def __torch_function__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        kwargs = kwargs or {}
        fills = func in (Tensor.normal_, Tensor.uniform_)
        if fills or getattr(func, "__module__", None) == "torch.nn.init":
            return args[0] if args else kwargs["tensor"]
        return func(*args, **kwargs)


def build_empty(config: ModelConfig) -> Model:
    """Build a model with weights on the meta device, for `load_state_dict(…, assign=True)`.

    Non-persistent tables are real tensors.
    """
    with torch.device("meta"), _NoInitialValues():  # tables name their device explicitly
        return build_model(config)
