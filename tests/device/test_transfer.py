"""Copies that let host and device go on: `send` and `Fetch`, on a pretended CUDA device."""

import pytest
import torch

from streamlm.models.build import build_model
from streamlm.runtime.stream import score
from streamlm.transfer import Fetch, send
from tests.device.cases import config_of
from tests.support.pretended_cuda import Log, counting

CPU, CUDA = torch.device("cpu"), torch.device("cuda")


def test_on_the_cpu_nothing_is_copied() -> None:
    values = torch.arange(3)
    assert send(values, CPU) is values
    fetch = Fetch(values)
    assert fetch.arrived and fetch.get() is fetch.get()
    assert fetch.get().tolist() == [0, 1, 2]


def test_what_is_sent_is_there_without_a_wait(cuda: Log) -> None:
    values = torch.arange(3)
    there = send(values, CUDA)
    assert there.device.type == "cuda" and send(there, CUDA) is there
    assert not cuda.n_waits, cuda.offenders()
    assert torch.equal(there.cpu(), values)
    assert torch.equal(send(there, CPU), values)


def test_what_is_fetched_is_waited_for_once(cuda: Log) -> None:
    fetch = Fetch(torch.arange(3, device="cuda") * 2)
    assert not cuda.n_waits
    assert [fetch.arrived, fetch.get().tolist(), fetch.arrived] == [False, [0, 2, 4], True]
    assert fetch.get().tolist() == [0, 2, 4]
    assert cuda.n_waits == 1, cuda.offenders()


def test_fetching_waits_for_no_later_work(cuda: Log) -> None:
    first, second = (Fetch(torch.full((1,), n, device="cuda")) for n in (1, 2))
    assert first.get().tolist() == [1]
    with pytest.raises(RuntimeError, match="has not arrived"):
        second._values.tolist()
    assert second.get().tolist() == [2]


def test_targets_on_the_host_save_an_adaptive_softmax_its_waits(cuda: Log) -> None:
    torch.manual_seed(0)
    model = build_model(config_of("adaptive")).eval().to("cuda")
    tokens = torch.randint(96, (2, 33))
    inputs, targets = send(tokens[:, :-1].contiguous(), CUDA), tokens[:, 1:].contiguous()
    with counting() as free:
        found, _ = score(model, inputs, targets, model.init_state(2))
    assert not free.n_waits, free.offenders()
    with counting() as waited:
        wanted, _ = score(model, inputs, send(targets, CUDA), model.init_state(2))
    assert waited.n_waits == 2 * 2, waited.offenders()  # of each segment, two bins of rarer tokens
    assert torch.equal(found.cpu(), wanted.cpu())
