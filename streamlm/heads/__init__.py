"""Heads: the ways to treat what is far away, one file each."""

from collections.abc import Callable

from streamlm.config import ModelConfig
from streamlm.heads.full import FullModel
from streamlm.heads.informer import InformerModel
from streamlm.heads.linformer import LinformerModel
from streamlm.heads.recurrent import RecurrentModel
from streamlm.heads.relative import RelativeModel
from streamlm.heads.sinks import SinksModel
from streamlm.heads.sketch import SketchModel
from streamlm.model import Model

HEADS: dict[str, Callable[[ModelConfig], Model]] = {
    "relative": RelativeModel,
    "recurrent": RecurrentModel,
    "full": FullModel,
    "linformer": LinformerModel,
    "informer": InformerModel,
    "sinks": SinksModel,
    "sketch": SketchModel,
}


def build_model(config: ModelConfig) -> Model:
    """A model with fresh weights, of the head that its configuration names."""
    return HEADS[config.head](config)
