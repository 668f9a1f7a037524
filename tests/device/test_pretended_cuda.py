"""The pretended device itself: what it refuses, what it logs, and that its values are real."""

import copy
import threading
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from torch import Tensor, nn

from tests.support.pretended_cuda import Log, PretendedTensor, Refused, counting, pretended_cuda


def there(*shape: int) -> Tensor:
    return torch.arange(1.0, 1 + int(np.prod(shape))).view(shape).to("cuda")


REFUSED: dict[str, Callable[[], Any]] = {
    "an operand of the CPU": lambda: there(3) + torch.ones(3),
    "a matrix of the CPU": lambda: there(2, 2) @ torch.ones(2, 2),
    "a mask of the CPU": lambda: there(3).masked_fill(torch.tensor([True, False, True]), 0),
    "an index of the CPU": lambda: there(3).gather(0, torch.tensor([1])),
    "values of the CPU, put by an index": lambda: there(3).index_put_(
        (torch.tensor([1, 2]).to("cuda"),), torch.ones(2)
    ),
    "an index from there into the CPU's": lambda: torch.ones(3)[there(2).long()],
    "an embedding of ids of the CPU": lambda: nn.functional.embedding(
        torch.tensor([1]), there(3, 2)
    ),
    "a scalar of the CPU to be joined": lambda: torch.stack([there(1)[0], torch.ones(())]),
    "a generator of the CPU": lambda: torch.rand(3, device="cuda", generator=torch.Generator()),
    "noise by a generator of the CPU": lambda: there(3).normal_(generator=torch.Generator()),
    "an array": lambda: there(3).numpy(),
    "an array, by numpy": lambda: np.asarray(there(3)),
    "pickling": lambda: copy.copy(there(3)).__reduce_ex__(2),
}


@pytest.mark.parametrize("what", REFUSED)
def test_it_refuses(cuda: Log, what: str) -> None:
    with pytest.raises(Refused, match=r"cuda.* at tests/device/test_pretended_cuda.py:\d+"):
        REFUSED[what]()


WAITS: dict[str, tuple[str, Callable[[], Any]]] = {
    "item": ("item", lambda: there(3).sum().item()),
    "int": ("item", lambda: int(there(1))),
    "truth": ("item", lambda: bool((there(3) > 1).any())),
    "comparison": ("item", lambda: max(there(3))),
    "a list": ("tolist", lambda: there(3).tolist()),
    "to the CPU": ("copy to the host", lambda: there(3).cpu()),
    "into the CPU's memory": ("copy to the host", lambda: torch.zeros(3).copy_(there(3))),
    "from pageable memory": ("copy to the device", lambda: torch.ones(3).to("cuda")),
    "not asked to go on": ("copy to the device", lambda: torch.ones(3).pin_memory().to("cuda")),
    "unpinned": ("copy to the device", lambda: torch.ones(3).to("cuda", non_blocking=True)),
    "a new tensor": ("copy to the device", lambda: torch.tensor([1, 2], device="cuda")),
    "a part filled from the CPU": ("copy to the device", lambda: there(3)[1:].copy_(torch.ones(2))),
    "where": ("nonzero", lambda: (there(3) > 1).nonzero()),
    "a mask as an index": ("index by mask", lambda: there(3)[there(3) > 1]),
    "an index of the CPU": ("index from the CPU", lambda: there(3)[torch.tensor([0, 2])]),
    "unique": ("_unique2", lambda: there(3).unique()),
    "equal": ("equal", lambda: torch.equal(there(3), there(3))),
    "synchronize": ("synchronize", torch.cuda.synchronize),
}


@pytest.mark.parametrize("what", WAITS)
def test_it_notes_a_wait_and_its_line(cuda: Log, what: str) -> None:
    reason, wait = WAITS[what]
    if reason == "synchronize":
        wait = lambda: torch.cuda.synchronize()  # noqa: E731 - looked up within the context
    with counting() as log:
        wait()
    found = {line for each, line in log.waits if each == reason}
    assert found, log.offenders()
    assert all(line.startswith("tests/device/test_pretended_cuda.py:") for line in found)
    assert f"{reason} at tests/device/" in log.offenders()


FREE: dict[str, Callable[[], Any]] = {
    "sending from pinned memory": lambda: torch.ones(3).pin_memory().to("cuda", non_blocking=True),
    "a row of pinned memory": lambda: (
        torch.ones(2, 3).pin_memory()[None].to("cuda", non_blocking=True)
    ),
    "filling": lambda: torch.full((3,), 2.0, device="cuda"),
    "a scalar of the CPU": lambda: torch.zeros(3, device="cuda") + torch.ones(()),
    "indexing": lambda: torch.zeros(3, device="cuda")[torch.arange(2, device="cuda")],
    "choosing by a mask": lambda: torch.where(torch.zeros(3, device="cuda") > 0, 1.0, 2.0),
    "asking for its values later": lambda: torch.zeros(3, device="cuda").to(
        "cpu", non_blocking=True
    ),
}


@pytest.mark.parametrize("what", FREE)
def test_it_lets_pass_without_a_wait(cuda: Log, what: str) -> None:
    FREE[what]()
    assert not cuda.n_waits, cuda.offenders()


READINGS: dict[str, Callable[[Tensor], Any]] = {
    "tolist": lambda tensor: tensor.tolist(),
    "numpy": lambda tensor: tensor.numpy(),
    "an operator": lambda tensor: tensor + 1,
    "a part": lambda tensor: tensor[1:].sum(),
    "item": lambda tensor: tensor.sum().item(),
}


@pytest.mark.parametrize("how", READINGS)
def test_a_copy_is_not_to_be_read_before_it_was_waited_for(cuda: Log, how: str) -> None:
    read, earlier = READINGS[how], torch.cuda.Event()
    earlier.record()
    values = there(3).to("cpu", non_blocking=True)
    later = torch.cuda.Event()
    later.record()
    earlier.synchronize()
    with pytest.raises(Refused, match="has not arrived"):
        read(values)
    later.synchronize()
    read(values)
    assert values.tolist() == [1, 2, 3]


def test_what_the_host_waits_for_anyway_brings_earlier_copies(cuda: Log) -> None:
    values = there(3).to("cpu", non_blocking=True)
    assert there(1).item() == 1
    assert values.tolist() == [1, 2, 3]


def test_values_gradients_and_optimisers_are_real(cuda: Log) -> None:
    torch.manual_seed(0)
    here = nn.Sequential(nn.Linear(4, 8), nn.GELU(), nn.LayerNorm(8), nn.Linear(8, 2))
    other = copy.deepcopy(here).to("cuda")
    assert all(p.device == torch.device("cuda", 0) for p in other.parameters())
    assert all(isinstance(p, nn.Parameter) for p in other.parameters())
    x = torch.randn(3, 4)
    for model, given in ((here, x), (other, x.to("cuda"))):
        optimizer = torch.optim.AdamW(model.parameters(), fused=True)
        for _ in range(2):
            model(given).square().sum().backward()
            nn.utils.clip_grad_norm_(model.parameters(), 0.1)
            optimizer.step()
    for one, two in zip(here.parameters(), other.parameters(), strict=True):
        assert isinstance(two, PretendedTensor)
        assert torch.equal(one, two.cpu())


def test_kernels_are_counted_and_views_are_not(cuda: Log) -> None:
    x = there(4, 4)
    with counting() as log:
        y = (x + x).mT[1:].flatten()
        y.add_(1)
    # The sum, the copy that flattening a transposed view needs, and the addition.
    assert log.n_kernels == 3, log.kernels
    assert log.busiest().startswith("2 kernels at tests/device/test_pretended_cuda.py:")


def test_saving_and_loading(cuda: Log, tmp_path: Path) -> None:
    torch.save({"x": there(3)}, tmp_path / "x.pt")
    back = torch.load(tmp_path / "x.pt", weights_only=True, map_location="cuda")
    assert back["x"].device.type == "cuda" and back["x"].tolist() == [1, 2, 3]
    assert torch.load(tmp_path / "x.pt", weights_only=True)["x"].device.type == "cpu"


def test_threads_that_begin_there_have_the_device(cuda: Log) -> None:
    found: list[Tensor] = []
    thread = threading.Thread(target=lambda: found.append(torch.zeros(3, device="cuda") + 1))
    thread.start()
    thread.join()
    assert found[0].device.type == "cuda" and found[0].tolist() == [1, 1, 1]


def test_nothing_is_left_when_it_is_gone() -> None:
    names = ("to", "cuda", "pin_memory", "is_pinned", "numpy", "tolist")
    before = [getattr(torch.Tensor, name) for name in names]
    own = set(vars(torch.Tensor))
    is_available, event = torch.cuda.is_available, torch.cuda.Event
    with pretended_cuda():
        assert torch.cuda.is_available() and torch.cuda.is_available is not is_available
        assert torch.cuda.Event is not event
    assert [getattr(torch.Tensor, name) for name in names] == before
    assert set(vars(torch.Tensor)) == own
    assert torch.cuda.is_available is is_available and torch.cuda.Event is event
    assert torch.zeros(3).add(1).tolist() == [1, 1, 1]
