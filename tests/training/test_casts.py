"""With bfloat16, a weight is cast once a step, however many segments the step reads."""

from collections import Counter
from typing import Any

import pytest
import torch
from torch.utils._python_dispatch import TorchDispatchMode

from tests.support.training import VARIANTS, MakeTrainer, gradients

LINEAR = ("query.weight", "output.weight", "feed_forward.0.weight", "feed_forward.3.weight")


class Casts(TorchDispatchMode):
    """Counts casts of parameters."""

    def __init__(self, model: torch.nn.Module) -> None:
        super().__init__()
        self._names = {id(weight): name for name, weight in model.named_parameters()}
        self.counts: Counter[str] = Counter()

    def __torch_dispatch__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        if func.overloadpacket is torch.ops.aten._to_copy and id(args[0]) in self._names:
            self.counts[self._names[id(args[0])]] += 1
        return func(*args, **(kwargs or {}))


UNROLLED = [name for name in VARIANTS if name not in ("bfloat16", "parts")]


@pytest.mark.parametrize("norm", ["post", "pre"])
@pytest.mark.parametrize("variant", UNROLLED)
def test_a_weight_is_cast_once(make: MakeTrainer, variant: str, norm: str) -> None:
    options = VARIANTS[variant] | {"precision": "bfloat16", "unroll": 2, "norm": norm}
    trainer = make(**options)
    segments = [next(trainer.batches[0]) for _ in range(2)]
    with Casts(trainer.model) as casts:
        trainer._group_step(segments, trainer.states[0], 10, 0.5)
    linear = {name for name in trainer.model.state_dict() if name.endswith(LINEAR)}
    assert len(linear) == 4 * trainer.model.config.n_layers
    assert casts.counts.keys() >= {*linear, "embedding.weight", "output_bias"}
    assert set(casts.counts.values()) == {1}, casts.counts


@pytest.mark.parametrize("variant", UNROLLED)
def test_casts_that_are_shared_have_all_gradients(
    make: MakeTrainer, variant: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    options = VARIANTS[variant] | {"precision": "bfloat16", "unroll": 3, "clip": 1e9}
    options |= {"dropout": 0.0, "attention_dropout": 0.0}
    shared = gradients(make("shared", **options))
    torch.set_autocast_cache_enabled(False)
    try:
        apart = gradients(make("apart", **options))
    finally:
        torch.set_autocast_cache_enabled(True)
    assert shared.keys() == apart.keys()
    for name, wanted in apart.items():
        difference = float((shared[name] - wanted).norm())
        assert difference <= 0.02 * float(wanted.norm()) + 1e-7, name
