"""State: what is saved, compared, reset and moved."""

from collections.abc import Callable
from dataclasses import fields, replace

import numpy as np
import pytest
import torch

from streamlm.models.transformer_xl import TransformerXL
from streamlm.state import State, from_numpy
from tests.support.invariants import random_tokens, read, reload, row_of, tiny_model


@pytest.fixture(scope="module")
def model() -> TransformerXL:
    return tiny_model(compression="most-used", dtype=torch.float32)


@pytest.fixture
def state(model: TransformerXL) -> State:
    """One row, six tokens into its second segment: some slots empty, two columns void."""
    with torch.no_grad():
        return read(model, random_tokens(model, 6), model.init_state(1))[1]


def test_a_new_state_is_empty(model: TransformerXL) -> None:
    state = model.init_state(3)
    assert state.batch_size == 3 and state.length == 0
    assert state.filled.tolist() == state.position.tolist() == [0, 0, 0]
    assert state.past.shape == (2, 3, 11, 8) and state.segment.shape == (2, 3, 4, 8)
    assert state.usage.shape == (2, 3, 6)
    assert not state.past.requires_grad and not state.segment.requires_grad
    assert tiny_model(compression="mean").init_state(1).usage.shape == (2, 1, 0)
    assert tiny_model(compressed_len=0).init_state(1).usage.shape == (2, 1, 0)


def test_bytes_are_those_of_the_tensors(model: TransformerXL, state: State) -> None:
    slots = 2 * (11 + 4) * 8 * 4  # L · (P + T) · W, float32
    assert state.nbytes == slots + 2 * 6 * 4 + 2 * 8  # usage, two counters
    assert state.nbytes == model.init_state(1).nbytes == replace(state, cache=None).nbytes


def test_to_numpy_is_the_real_part(state: State) -> None:
    arrays = state.to_numpy()
    assert {name: array.shape for name, array in arrays.items()} == {
        "past": (2, 4, 8),
        "segment": (2, 2, 8),
        "usage": (2, 6),
    }
    assert np.array_equal(arrays["past"], state.past[:, 0, 7:].numpy())
    assert np.array_equal(arrays["segment"], state.segment[:, 0, :2].numpy())
    assert np.array_equal(arrays["usage"], state.usage[:, 0].numpy())


def test_to_numpy_needs_a_single_row(model: TransformerXL) -> None:
    with pytest.raises(ValueError, match="only a state of one row can be saved; this one has 2"):
        model.init_state(2).to_numpy()


@pytest.mark.parametrize("dtype", [torch.float64, torch.float32, torch.bfloat16])
def test_arrays_come_back_bit_for_bit(dtype: torch.dtype) -> None:
    model = tiny_model(dtype=dtype)
    with torch.no_grad():
        _, state = read(model, random_tokens(model, 23), model.init_state(1))
    arrays = state.to_numpy()
    if dtype == torch.bfloat16:
        assert arrays["past"].dtype == np.uint16
    back = from_numpy(arrays["past"], dtype)
    assert back.dtype == dtype and torch.equal(back, state.past[:, 0])
    assert reload(model, state).digest() == state.digest()


def test_digest_is_that_of_the_real_part(state: State) -> None:
    def changed(name: str, at: tuple[int, ...]) -> State:
        tensor = getattr(state, name).clone()
        tensor[at] += 1
        return replace(state, **{name: tensor})

    digest = state.digest()
    real: dict[str, tuple[int, ...]] = {
        "past": (1, 0, 7, 0),
        "segment": (0, 0, 1, 7),
        "usage": (1, 0, 5),
        "position": (0,),
    }
    for name, at in real.items():
        assert changed(name, at).digest() != digest, name
    assert replace(state, length=1).digest() != digest
    assert replace(state, filled=state.filled - 1).digest() != digest
    for name, at in {"past": (1, 0, 6, 0), "segment": (0, 0, 2, 0)}.items():
        assert changed(name, at).digest() == digest, f"void part of {name}"
    assert replace(state, cache=None).digest() == digest
    tiny = state.past.clone()
    tiny[0, 0, 8, 3] = torch.nextafter(tiny[0, 0, 8, 3], torch.tensor(9.0))
    assert replace(state, past=tiny).digest() != digest, "one bit is a difference"


def test_rows_reset_between_segments_only(model: TransformerXL, state: State) -> None:
    with pytest.raises(ValueError, match="rows reset between segments only; 2 tokens are open"):
        state.reset_rows(torch.tensor([True]))


def test_reset_rows(model: TransformerXL) -> None:
    with torch.no_grad():
        _, state = read(model, random_tokens(model, 24, rows=3), model.init_state(3))
    before = {name: getattr(state, name).clone() for name in ("past", "usage", "filled")}
    reset = state.reset_rows(torch.tensor([False, True, False]))
    assert reset.filled.tolist() == [11, 0, 11] and reset.position.tolist() == [24, 0, 24]
    assert not reset.past[:, 1].any() and not reset.usage[:, 1].any()
    for row in (0, 2):
        assert row_of(reset, row).digest() == row_of(state, row).digest()
    assert all(torch.equal(getattr(state, name), value) for name, value in before.items())
    assert state.filled.tolist() == [11, 11, 11]
    same = state.reset_rows(torch.tensor([False, False, False]))
    assert same.digest() == state.digest()


@pytest.mark.parametrize("value", [torch.nan, torch.inf, -torch.inf])
def test_a_reset_row_is_zero_whatever_it_held(model: TransformerXL, value: float) -> None:
    empty = model.init_state(2)
    carried = {"slots": torch.zeros(2, 2, 3, 8), "shared": torch.zeros(1, 2, 5)}
    state = replace(empty, carried=carried)
    tensors = {"past": state.past, "segment": state.segment, "usage": state.usage, **carried}
    for tensor in tensors.values():
        tensor.fill_(value)
    reset = state.reset_rows(torch.tensor([True, False]))
    after = {"past": reset.past, "segment": reset.segment, "usage": reset.usage, **reset.carried}
    for name, tensor in after.items():
        assert tensor[:, 0].eq(0).all(), name
        assert torch.equal(tensor[:, 1], tensors[name][:, 1]) or value != value, name
        assert not tensor[:, 1].isfinite().any(), name


def test_detach() -> None:
    model = tiny_model(compression_loss="bptt")
    _, state = read(model, random_tokens(model, 14), model.init_state(1))
    assert state.past.requires_grad
    detached = state.detach()
    assert not detached.past.requires_grad and not detached.segment.requires_grad
    assert detached.digest() == state.digest()


@pytest.mark.parametrize(
    "device", ["cpu", pytest.param("cuda", marks=pytest.mark.cuda)], ids=["cpu", "cuda"]
)
def test_to_another_device(state: State, device: str) -> None:
    moved = state.to(device)
    assert moved.cache is None and state.cache is not None
    assert moved.past.device.type == moved.position.device.type == device
    assert moved.digest() == state.digest() and moved.length == state.length


@pytest.mark.parametrize("name", [field.name for field in fields(State)])
def test_a_state_is_frozen(state: State, name: str) -> None:
    with pytest.raises(AttributeError):
        setattr(state, name, None)


@pytest.mark.parametrize(
    "change",
    [
        lambda cache: cache.keys[0].add_(1),
        lambda cache: cache.values[1].add_(1),
        lambda cache: cache.segment.add_(1),
    ],
    ids=["keys", "values", "segment"],
)
def test_a_copied_cache_has_nothing_in_common(
    state: State, change: Callable[[object], object]
) -> None:
    cache = state.cache
    assert cache is not None
    before = [tensor.clone() for tensor in (*cache.keys, *cache.values, cache.segment)]
    copied = cache.copy()
    assert (copied.used, copied.calls) == (cache.used, cache.calls)
    with torch.no_grad():
        change(copied)
    after = (*cache.keys, *cache.values, cache.segment)
    assert all(torch.equal(a, b) for a, b in zip(after, before, strict=True))
