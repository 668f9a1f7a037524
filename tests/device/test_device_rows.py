"""As many rows as fit into the memory of a device: found without a trace, and gone on with."""

from itertools import islice
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor

from streamlm.training import group_step, trainer
from streamlm.training.losses import target_loss
from streamlm.training.rows import DeviceMemory
from streamlm.training.trainer import Trainer
from tests.device.cases import trainer_of
from tests.support.pretended_cuda import Log, counting
from tests.support.training import assert_identical, everything

SETUPS: dict[str, tuple[str, dict[str, Any]]] = {
    "relative": ("relative", {}),
    "compiled": ("relative", {"compile": True}),
    "bfloat16": ("select", {"precision": "bfloat16", "accumulate": 2}),
    "bptt": ("relative", {"unroll": 2, "model": {"compression_loss": "bptt"}}),
    "adaptive": ("adaptive", {}),
    "sketch": ("sketch", {"unroll": 2}),
}


class Memory(DeviceMemory):
    """Holds so many rows, less a tenth; reading more of them fails.

    Attributes:
        tried: rows of each segment that was read.
    """

    def __init__(self, rows: int, patch: pytest.MonkeyPatch) -> None:
        self.rows, self.tried, self._most = rows, list[int](), 0
        patch.setattr(trainer, "DeviceMemory", lambda device: self)
        patch.setattr(group_step, "target_loss", self._loss)

    def _loss(self, model: Any, hidden: Tensor, targets: Tensor) -> Tensor:
        self.tried.append(len(hidden))
        if len(hidden) > self.rows:
            raise torch.OutOfMemoryError("CUDA out of memory.")
        self._most = max(self._most, len(hidden))
        return target_loss(model, hidden, targets)

    def total(self) -> int:
        return 1000 * self.rows

    def free(self) -> int:
        return self.total()

    def held(self) -> int:
        return 0

    def peak(self) -> int:
        return 899 * self._most

    def clear(self) -> None:
        self._most = 0


def made(folder: Path, variant: str = "relative", **options: Any) -> Trainer:
    return trainer_of(
        folder,
        "cuda",
        variant,
        **{"batch_size": 7, "rows_at_once": -1, "eval_steps": 99, **options},
    )


@pytest.mark.parametrize("setup", SETUPS)
def test_a_search_leaves_no_trace(
    cuda: Log, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, setup: str
) -> None:
    """Of a new run, and of one in its middle, which has moments."""
    variant, options = SETUPS[setup]
    memory = Memory(3, monkeypatch)
    # The search must not use what is compiled.
    monkeypatch.setattr(torch, "compile", lambda *_, **__: pytest.fail)
    run = made(tmp_path, variant, **options)
    for _ in range(2 if setup == "relative" else 1):
        run._fitting = run._found = None
        before = everything(run)
        kept = [each.clone() for each in run.model.state_dict().values()]
        modes = [each.training for each in run.model.modules()]
        assert run.rows_at_once() == 3 and max(memory.tried) == 7
        assert_identical(everything(run), before)
        assert_identical(list(run.model.state_dict().values()), kept)
        assert modes == [each.training for each in run.model.modules()]
        assert all(weight.grad is None for weight in run.model.parameters())
        tried = len(memory.tried)
        assert run.rows_at_once() == 3 and len(memory.tried) == tried  # once
        if "compile" not in options:
            next(run.run())
            assert set(memory.tried[tried:]) == {3, 1}  # 3, 3 and 1 of 7


def test_what_is_found_is_as_if_it_was_given(
    cuda: Log, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    Memory(4, monkeypatch)
    found = made(tmp_path / "found")
    steps = list(map(figures, found.run()))
    given = made(tmp_path / "given", rows_at_once=4)
    assert steps == list(map(figures, given.run()))
    assert_identical(everything(found), everything(given))


def test_a_resumed_run_goes_on_with_what_was_found(
    cuda: Log, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    memory = Memory(3, monkeypatch)
    whole = list(map(figures, made(tmp_path / "whole").run()))
    list(islice(made(tmp_path / "parts").run(), 3))
    memory.tried.clear()
    resumed = made(tmp_path / "parts")
    resumed.resume()
    assert list(map(figures, resumed.run())) == whole[3:]
    assert max(memory.tried) == 3  # nothing was tried
    other = made(tmp_path / "parts", steps=7)
    other.resume()
    memory.rows = 5  # another device
    assert other.rows_at_once() == 4
    fixed = made(tmp_path / "parts", steps=7, rows_at_once=2)
    fixed.resume()
    assert fixed.rows_at_once() == 2


def test_not_even_one_row_fits(cuda: Log, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    Memory(0, monkeypatch)
    run = made(tmp_path)
    before = everything(run)
    with pytest.raises(ValueError, match="rows_at_once = -1, but a step with one row"):
        next(run.run())
    assert_identical(everything(run), before)


def test_parts_wait_for_nothing(cuda: Log, tmp_path: Path) -> None:
    run: Any = made(tmp_path, rows_at_once=3, checkpoint_steps=99, eval_steps=99).run()
    next(run)
    with counting() as log:
        next(run)
    run.close()
    assert log.n_waits == 1 and {reason for reason, _ in log.waits} == {"event"}, log.offenders()


def figures(step: Any) -> tuple[Any, ...]:
    return step.step, step.loss, step.gradient_norm, step.compression_loss, step.tokens
