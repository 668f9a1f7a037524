"""Captured work: called, then replayed, with results that belong to the caller."""

import warnings
from collections.abc import Callable
from typing import Any

import pytest
import torch
from torch import Tensor

from streamlm.models import captured
from streamlm.models.captured import Captured
from tests.support.graphs import pretended_graphs


def added(x: Tensor, total: Tensor) -> tuple[Tensor, ...]:
    """Write to a buffer, and read from it."""
    total[0] = x
    return total.sum()[None], 2 * x


def test_replays_after_some_calls() -> None:
    total = torch.tensor([0.0, 10.0])
    with pretended_graphs(warm=2) as log:
        work = Captured(added, None)
        found = [work((torch.tensor(float(i)),), [total]) for i in range(5)]
        assert log == ["capture", "replay", "replay", "replay"]
    # Results of earlier calls are not overwritten by later ones.
    assert [(float(a), float(b)) for a, b in found] == [(10.0 + i, 2.0 * i) for i in range(5)]
    assert total.tolist() == [4.0, 10.0]


def test_other_buffers_are_captured_anew() -> None:
    one, other = torch.zeros(2), torch.tensor([0.0, 100.0])
    with pretended_graphs(warm=1) as log:
        work = Captured(added, None)
        for _ in range(3):
            work((torch.tensor(1.0),), [one])
        for _ in range(3):
            total, _ = work((torch.tensor(2.0),), [other])
    assert log == ["capture", "replay", "replay"] * 2
    assert float(total) == 102.0 and one.tolist() == [1.0, 0.0]


def test_forgets() -> None:
    with pretended_graphs(warm=1) as log:
        work = Captured(added, None)
        for _ in range(2):
            work((torch.tensor(1.0),), [torch.zeros(2)])
        kept = torch.zeros(2)
        for _ in range(2):
            work((torch.tensor(1.0),), [kept])
        assert log == ["capture", "replay"]
        work.forget()
        work((torch.tensor(1.0),), [kept])
        assert log == ["capture", "replay"]


def test_what_cannot_be_captured_is_called(monkeypatch: pytest.MonkeyPatch) -> None:
    def refuse(work: Callable[[], Any], device: torch.device) -> Any:
        raise RuntimeError("operation not permitted when stream is capturing\nmore")

    total = torch.zeros(2)
    with pretended_graphs(warm=0):
        work = Captured(added, None)
        monkeypatch.setattr(captured, "capture", refuse)
        with pytest.warns(RuntimeWarning, match="not permitted when stream is capturing$"):
            assert float(work((torch.tensor(3.0),), [total])[0]) == 3.0
        with warnings.catch_warnings():
            warnings.simplefilter("error")
            assert float(work((torch.tensor(4.0),), [total])[0]) == 4.0


def test_a_cpu_has_no_graphs() -> None:
    assert not captured.can_capture(torch.device("cpu"))
