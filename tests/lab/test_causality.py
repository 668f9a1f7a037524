"""The causality test rejects the leaks of published code and accepts every head."""

from typing import Any

import pytest
import torch
from torch import Tensor
from torch.nn import functional as F

from streamlm.config import ModelConfig
from streamlm.lab import causality
from streamlm.lab.causality import check_causal, find_leak
from streamlm.lab.variants import Variant, causal_variants
from streamlm.models.build import HEADS
from streamlm.models.cache import Pair
from streamlm.models.call import Attended, Call
from streamlm.models.heads.informer import InformerModel
from streamlm.models.heads.linformer import LinformerModel
from streamlm.models.transformer_xl import TransformerXL
from streamlm.state import State

SHAPE: dict[str, Any] = {
    **{"vocab_size": 40, "n_layers": 2, "d_model": 16, "n_heads": 2, "head_dim": 8, "d_ff": 16},
    **{"segment_len": 16, "memory_len": 32, "compressed_len": 0, "projected_len": 4, "factor": 1},
}


def config(head: str, **options: Any) -> ModelConfig:
    none_kept = {"memory_len": 0} if head in ("recurrent", "full") else {}
    return ModelConfig(**{**SHAPE, "head": head, **none_kept, **options})


@pytest.mark.parametrize("head", HEADS)
def test_every_head_is_causal(head: str) -> None:
    assert check_causal(config(head)) is None


def test_a_compressive_transformer_is_causal() -> None:
    assert check_causal(config("relative", compressed_len=8)) is None


class Shortened(LinformerModel):
    """Linformer attention as published: the open segment is projected, too."""

    def attend(self, index: int, seen: Tensor, pair: Pair, call: Call) -> Attended:
        attention = self.blocks[index].attention
        key, value = (self.lengths[0](half[:, :, -seen.shape[1] :]) for half in pair)
        heads = F.scaled_dot_product_attention(attention.queries(seen), key, value, scale=1.0)
        return Attended(attention.output(heads.transpose(1, 2).flatten(2)))


class AllKeys(InformerModel):
    """The Informer's measure as published: over all keys of the call."""

    def _measured(self, scores: Tensor, state: State, length: int) -> Tensor:
        finite = scores.masked_fill(scores.isinf(), 0)
        return finite.amax(dim=3) - finite.mean(dim=3).cumsum(dim=2)[..., -1:]


class BestQueries(InformerModel):
    """The Informer's choice as published: the best of all queries of the call attend."""

    def _measured(self, scores: Tensor, state: State, length: int) -> Tensor:
        found = super()._measured(scores, state, length)
        chosen = found >= found.topk(min(3, found.shape[2]), dim=2).values[..., -1:]
        return chosen.to(found.dtype)


class OneAhead(TransformerXL):
    """A causal mask that is off by one."""

    def logits(self, hidden: Tensor) -> Tensor:
        return super().logits(hidden + 1e-3 * hidden.roll(-1, dims=1))


class OnlyInTraining(OneAhead):
    """A leak only where gradients are recorded."""

    def logits(self, hidden: Tensor) -> Tensor:
        if torch.is_grad_enabled():
            return super().logits(hidden)
        return TransformerXL.logits(self, hidden)


@pytest.mark.parametrize(
    ("planted", "head"),
    [
        (Shortened, "linformer"),
        (AllKeys, "informer"),
        (BestQueries, "informer"),
        (OneAhead, "relative"),
        (OnlyInTraining, "relative"),
    ],
)
def test_planted_leaks_are_caught(planted: type, head: str) -> None:
    torch.manual_seed(0)
    model = planted(config(head, init_std=0.2)).eval()
    found = find_leak(model)
    assert found is not None and "change what is predicted after" in found
    assert found.startswith("in training" if planted is OnlyInTraining else "in evaluation")


def test_variants_that_look_ahead_are_excluded(monkeypatch: pytest.MonkeyPatch) -> None:
    honest = Variant("honest", config("relative"))
    leaky = Variant("leaky", config("linformer"))

    def build(settings: ModelConfig) -> Any:
        return (Shortened if settings.head == "linformer" else TransformerXL)(settings)

    monkeypatch.setattr(causality, "build_model", build)
    kept, refused = causal_variants([honest, leaky])
    assert kept == [honest] and list(refused) == ["leaky"]
    assert causal_variants([leaky])[0] == []
