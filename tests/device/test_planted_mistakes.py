"""Deliberate mistakes in the project are caught: refused, or logged with file and line.

Each is easily made and invisible to tests on the CPU.
"""

from collections.abc import Callable
from pathlib import Path
from typing import Any, cast

import pytest
import torch
from torch import Tensor

from streamlm.models.base import Model
from streamlm.models.build import build_model
from streamlm.models.cache import Cache
from streamlm.models.heads.full import FullModel
from streamlm.models.heads.recurrent import Retention
from streamlm.models.layers.attention import attention_mask
from streamlm.runtime.stream import advance
from streamlm.sessions.session import Session
from streamlm.state import State
from streamlm.training.losses import target_loss
from streamlm.transfer import Fetch
from tests.device.cases import BOOK, config_of, loaded, trainer_of
from tests.support.pretended_cuda import Log, PretendedTensor, Refused, counting

Patch = pytest.MonkeyPatch


def read(variant: str) -> Log:
    """The log of `advance` over two segments, once the memory is full."""
    torch.manual_seed(0)
    model, cache = build_model(config_of(variant)).to("cuda").freeze(), Cache()
    tokens = torch.randint(96, (1, 8 * 16)).to("cuda")
    _, state = advance(model, tokens, model.init_state(1), cache)
    with counting() as log:
        advance(model, tokens[:, :32], state, cache)
    return log


def lines(log: Log) -> set[str]:
    return {line.rsplit(":", 1)[0] for _, line in log.waits}


HERE = "tests/device/test_planted_mistakes.py"


def test_without_a_mistake_nothing_is_noted(cuda: Log) -> None:
    for variant in ("relative", "recurrent", "full"):
        assert not read(variant).n_waits


def test_a_mask_that_is_made_on_the_cpu(cuda: Log, monkeypatch: Patch) -> None:
    def planted(filled: Tensor, *args: Any, **kwargs: Any) -> Tensor:
        return attention_mask(filled.cpu(), *args, **kwargs)

    monkeypatch.setattr("streamlm.models.transformer_xl.attention_mask", planted)
    with pytest.raises(Refused, match=r"same device.*streamlm/[\w/]+\.py:\d+"):
        read("relative")


def test_positions_that_stay_on_the_cpu(cuda: Log, monkeypatch: Patch) -> None:
    to = Model.to

    def planted(self: Model, *args: Any, **kwargs: Any) -> Model:
        table = cast(Tensor, self.position_table)
        moved = to(self, *args, **kwargs)
        moved.register_buffer("position_table", table, persistent=False)
        return moved

    monkeypatch.setattr(Model, "to", planted)
    with pytest.raises(
        Refused, match=r"mm: expected all tensors.*streamlm/models/layers/attention\.py:\d+"
    ):
        read("relative")


def test_noise_by_a_generator_of_the_cpu(cuda: Log, monkeypatch: Patch) -> None:
    hidden, random = Model.hidden, torch.Generator().manual_seed(0)

    def planted(self: Model, *args: Any, **kwargs: Any) -> Any:
        x, state = hidden(self, *args, **kwargs)
        return x + torch.rand(x.shape, generator=random, device=x.device), state

    monkeypatch.setattr(Model, "hidden", planted)
    with pytest.raises(Refused, match=rf"generator.*{HERE}:\d+"):
        read("relative")


def item(self: Model, tokens: Tensor, state: Any) -> None:
    int(state.position.max().item())


def mask_index(self: Model, tokens: Tensor, state: Any) -> None:
    _ = tokens[tokens > 3]


def small_tensor(self: Model, tokens: Tensor, state: Any) -> None:
    _ = tokens + torch.tensor([0], device=tokens.device)


@pytest.mark.parametrize("planted", [item, mask_index, small_tensor])
def test_a_wait_in_every_call(
    cuda: Log, monkeypatch: Patch, planted: Callable[[Model, Tensor, Any], None]
) -> None:
    monkeypatch.setattr(Model, "_check", planted)
    log = read("relative")
    assert log.n_waits == 2 and lines(log) == {HERE}, log.offenders()
    assert f"at {HERE}:{planted.__code__.co_firstlineno + 1}" in log.offenders()


def test_a_count_that_the_device_is_asked_for(cuda: Log, monkeypatch: Patch) -> None:
    """The length of the past of a head that keeps all of it."""
    closed = FullModel.closed

    def planted(self: FullModel, state: Any, *args: Any) -> Any:
        object.__setattr__(state, "filled_known", None)
        return closed(self, state, *args)

    monkeypatch.setattr(FullModel, "closed", planted)
    log = read("full")
    assert log.n_waits == 2 and lines(log) == {"streamlm/models/heads/full.py"}, log.offenders()


def test_a_small_tensor_at_every_commit(cuda: Log, monkeypatch: Patch) -> None:
    powers = Retention._powers

    def planted(self: Retention, exponents: Tensor) -> Tensor:
        if exponents.numel() == 1:
            exponents = torch.tensor([16], device=exponents.device)
        return powers(self, exponents)

    monkeypatch.setattr(Retention, "_powers", planted)
    log = read("recurrent")
    assert log.n_waits == 4 and lines(log) == {HERE}, log.offenders()  # 2 layers, 2 segments


def test_a_report_that_hands_tensors_to_numpy(
    cuda: Log, monkeypatch: Patch, tmp_path: Path
) -> None:
    """A mistake that only shows in sessions with this compression."""
    session = Session(loaded(tmp_path, "most-used", "cuda"))
    session.feed(BOOK)
    assert len(session.memory_report())
    cpu = PretendedTensor.cpu

    def planted(self: PretendedTensor) -> Tensor:
        return self if self.dtype == torch.int64 else cpu(self)  # the columns kept

    monkeypatch.setattr(PretendedTensor, "cpu", planted)
    with pytest.raises(Refused, match=r"numpy, at streamlm/runtime/memory_report\.py:\d+"):
        session.memory_report()


def test_text_that_is_sent_from_pageable_memory(
    cuda: Log, monkeypatch: Patch, tmp_path: Path
) -> None:
    blocking = "streamlm.runtime.text_stream.send"
    monkeypatch.setattr(blocking, lambda values, device: values.to(device))
    session = Session(loaded(tmp_path, "relative", "cuda"))
    with counting() as log:
        session.feed(BOOK)
    assert log.n_waits == 1 and lines(log) == {HERE}, log.offenders()


def test_phases_of_rows_that_are_sent_from_pageable_memory(cuda: Log, monkeypatch: Patch) -> None:
    """A mistake that only shows where rows are in different phases."""
    monkeypatch.setattr("streamlm.state.send", lambda values, device: values.to(device))
    assert not read("relative").n_waits
    model, cache = build_model(config_of("relative")).to("cuda").freeze(), Cache()
    tokens = torch.randint(96, (2, 64)).to("cuda")
    alone = [advance(model, tokens[:1, :n], model.init_state(1))[1] for n in (35, 58)]
    with counting() as log:
        advance(model, tokens[:, :5], State.stack(alone), cache)
    assert log.n_waits == 2 and lines(log) == {HERE}, log.offenders()


def trained(folder: Path) -> Log:
    run: Any = trainer_of(folder, "cuda", "relative", checkpoint_steps=99, eval_steps=99).run()
    next(run)
    with counting() as log:
        next(run)
    run.close()
    return log


def test_batches_that_are_sent_from_pageable_memory(
    cuda: Log, monkeypatch: Patch, tmp_path: Path
) -> None:
    monkeypatch.setattr(
        "streamlm.training.group_step.send", lambda values, device: values.to(device)
    )
    log = trained(tmp_path)
    assert log.n_waits == 3 and HERE in lines(log), log.offenders()


def test_a_loss_that_is_asked_for_at_once(cuda: Log, monkeypatch: Patch, tmp_path: Path) -> None:
    def planted(*args: Any) -> Tensor:
        nats = target_loss(*args)
        assert float(nats.detach()) > 0
        return nats

    monkeypatch.setattr("streamlm.training.group_step.target_loss", planted)
    log = trained(tmp_path)
    assert ("item", f"{HERE}:{planted.__code__.co_firstlineno + 2}") in log.waits, log.offenders()


def test_figures_that_are_read_before_they_have_arrived(
    cuda: Log, monkeypatch: Patch, tmp_path: Path
) -> None:
    monkeypatch.setattr(Fetch, "get", lambda self: self._values)
    with pytest.raises(Refused, match=r"has not arrived.*streamlm/training/step\.py:\d+"):
        trained(tmp_path)
