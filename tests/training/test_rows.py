"""Rows that are read at once: the same step in parts, and the search for as many as fit."""

import math
from collections.abc import Callable
from itertools import islice
from typing import Any

import pytest
import torch

from streamlm.training.rows import SHARE, DeviceMemory, most_rows, parts
from tests.support.training import VARIANTS, MakeTrainer, gradients


def test_parts_are_few_and_alike() -> None:
    assert parts(64, 64) == parts(64, 100) == [slice(0, 64)]
    assert [part.stop - part.start for part in parts(64, 24)] == [22, 22, 20]
    for n in range(1, 30):
        for at_once in range(1, 35):
            found = parts(n, at_once)
            assert [row for part in found for row in range(n)[part]] == list(range(n))
            assert len(found) == math.ceil(n / at_once)
            first, *others = (part.stop - part.start for part in found)
            assert first <= at_once and all(size == first for size in others[:-1])


COVERED: dict[str, object] = {**VARIANTS["sketch"], "coverage": 0.5}


@pytest.mark.parametrize(
    ("variant", "unroll"),
    [
        *((name, 1) for name in VARIANTS if name not in ("bfloat16", "bptt", "parts")),
        *((name, 3) for name in ("conv", "dilated", "select", "most-used", "bptt", "full")),
        ("covered", 2),
    ],
)
def test_parts_add_up(make: MakeTrainer, variant: str, unroll: int) -> None:
    """Gradients and reports of steps, with commits, are those of all rows at once."""
    options = {**VARIANTS, "covered": COVERED}[variant] | {"unroll": unroll, "batch_size": 4}
    options |= {"dropout": 0.0, "attention_dropout": 0.0, "clip": 1e9, "steps": 9}
    options |= {"learning_rate": 1e-6, "min_learning_rate": 0.0}
    trainers = [
        make("whole", **options),
        make("single", **options, rows_at_once=1),
        make("parts", **options, rows_at_once=3),
    ]
    reports = []
    for trainer in trainers:
        trainer.model.double()
        trainer.states = [trainer.model.init_state(4) for _ in trainer.states]
        reports.append(list(islice(trainer.run(), 3)))
    for wanted, *others in zip(*reports, strict=True):
        for found in others:
            assert found.loss == pytest.approx(wanted.loss, rel=1e-6)
            assert found.gradient_norm == pytest.approx(wanted.gradient_norm, rel=1e-5)
            assert found.compression_loss == pytest.approx(wanted.compression_loss, rel=1e-5)
            assert found.tokens == wanted.tokens
    if variant in ("conv", "dilated", "select", "covered"):
        assert wanted.compression_loss > 0
    wanted_gradients, *found_gradients = map(gradients, trainers)
    for found in found_gradients:
        assert wanted_gradients.keys() == found.keys()
        for name, gradient in wanted_gradients.items():
            tolerance = 1e-5 * float(gradient.abs().max())
            torch.testing.assert_close(found[name], gradient, rtol=0, atol=tolerance, msg=name)


def test_all_rows_on_a_cpu(make: MakeTrainer) -> None:
    for given, rows in ((0, 3), (-1, 3), (2, 2), (7, 3)):
        assert make(rows_at_once=given).rows_at_once() == rows


class PretendedMemory(DeviceMemory):
    """Of a device of 1,000 bytes, which holds 100 by itself; others have taken 50."""

    def __init__(self) -> None:
        self.cleared, self.taken, self.most = 0, 0, 0

    def total(self) -> int:
        return 1000

    def free(self) -> int:
        return 1000 - 50 - self.held()

    def held(self) -> int:
        return 100

    def peak(self) -> int:
        return self.most

    def clear(self) -> None:
        self.cleared, self.most = self.cleared + 1, 0


def steps_of(
    memory: PretendedMemory, per_row: int, *, error: Callable[[], RuntimeError]
) -> tuple[Callable[[int], None], list[int]]:
    """A step whose rows take so many bytes each, beside 100, and the rows that were tried."""
    tried: list[int] = []

    def step(rows: int) -> None:
        tried.append(rows)
        if 100 + per_row * rows > 950:
            raise error()
        memory.most = 100 + per_row * rows

    return step, tried


ERRORS: list[Callable[[], RuntimeError]] = [
    lambda: torch.OutOfMemoryError("CUDA out of memory."),
    lambda: RuntimeError("CUDA error: CUBLAS_STATUS_ALLOC_FAILED when calling `cublasCreate`"),
]


@pytest.mark.parametrize("error", ERRORS)
@pytest.mark.parametrize("per_row", [1, 7, 12, 30, 99, 130, 750])
def test_the_search_finds_the_largest_part_that_fits(
    per_row: int, error: Callable[[], RuntimeError]
) -> None:
    for n in (*range(1, 20), 37, 64, 100, 1000):
        memory = PretendedMemory()
        step, tried = steps_of(memory, per_row, error=error)
        fits = (SHARE * 1000 - 50 - 100) // per_row
        assert most_rows(n, step, memory) == max(
            size for k in range(1, n + 1) if (size := math.ceil(n / k)) <= fits
        )
        # Twice the logarithm of the number of sizes, of which there are about 2 √n.
        assert len(tried) == len(set(tried)) <= 2 * math.log2(2 * math.sqrt(n) + 1) + 2
        assert tried[0] == n
        assert memory.cleared == len(tried) + 1  # also after the last one


@pytest.mark.parametrize("n", [1, 2, 64])
@pytest.mark.parametrize("per_row", [751, 900])  # within the memory, but not within 90 % of it
def test_not_even_one_row(n: int, per_row: int) -> None:
    memory = PretendedMemory()
    step, tried = steps_of(memory, per_row, error=ERRORS[0])
    with pytest.raises(ValueError, match="step with one row takes more than 90% of the device's"):
        most_rows(n, step, memory)
    assert tried[-1] == 1


def test_other_errors_end_the_search() -> None:
    memory = PretendedMemory()
    step, tried = steps_of(memory, 100, error=lambda: RuntimeError("shapes differ"))
    with pytest.raises(RuntimeError, match="shapes differ"):
        most_rows(64, step, memory)
    assert tried == [64]


def test_memory_of_a_device(monkeypatch: pytest.MonkeyPatch) -> None:
    """What is asked of torch, of this device."""
    device, asked = torch.device("cuda", 3), []

    def answer(name: str, result: Any) -> None:
        def called(*args: Any) -> Any:
            asked.append((name, *args))
            return result

        monkeypatch.setattr(torch.cuda, name, called)

    answer("mem_get_info", (30, 80))
    answer("memory_reserved", 20)
    answer("max_memory_allocated", 15)
    answer("empty_cache", None)
    answer("reset_peak_memory_stats", None)
    memory = DeviceMemory(device)
    assert (memory.total(), memory.free(), memory.held(), memory.peak()) == (80, 30, 20, 15)
    memory.clear()
    assert asked == [
        *[("mem_get_info", device)] * 2,
        *(("memory_reserved", device), ("max_memory_allocated", device)),
        *(("empty_cache",), ("reset_peak_memory_stats", device)),
    ]
