"""State: numpy arrays, digests, resets, devices, rows and dictionaries."""

import json
from dataclasses import fields, replace
from pathlib import Path

import numpy as np
import pytest
import torch

from streamlm.models.transformer_xl import TransformerXL
from streamlm.state import State, from_numpy
from tests.support.invariants import random_tokens, read, reload, tiny_model


@pytest.fixture(scope="module")
def model() -> TransformerXL:
    return tiny_model(compression="most-used", dtype=torch.float32)


@pytest.fixture
def state(model: TransformerXL) -> State:
    """One row after six tokens: some slots empty, two columns of the segment undefined."""
    with torch.no_grad():
        return read(model, random_tokens(model, 6), model.init_state(1))[1]


def test_a_new_state_is_empty(model: TransformerXL) -> None:
    state = model.init_state(3)
    assert state.batch_size == 3 and state.length == (0, 0, 0) and state.phase == 0
    assert state.filled.tolist() == state.position.tolist() == [0, 0, 0]
    assert state.past.shape == (2, 3, 11, 8) and state.segment.shape == (2, 3, 4, 8)
    assert state.usage.shape == (2, 3, 6)
    assert not state.past.requires_grad and not state.segment.requires_grad
    assert tiny_model(compression="mean").init_state(1).usage.shape == (2, 1, 0)
    assert tiny_model(compressed_len=0).init_state(1).usage.shape == (2, 1, 0)


def test_nbytes(model: TransformerXL, state: State) -> None:
    slots = 2 * (11 + 4) * 8 * 4  # L · (P + T) · W, float32
    assert state.nbytes == slots + 2 * 6 * 4 + 2 * 8  # usage, two counters
    assert state.nbytes == model.init_state(1).nbytes


def test_to_numpy_returns_the_occupied_part(state: State) -> None:
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
def test_numpy_round_trip_is_exact(dtype: torch.dtype) -> None:
    model = tiny_model(dtype=dtype)
    with torch.no_grad():
        _, state = read(model, random_tokens(model, 23), model.init_state(1))
    arrays = state.to_numpy()
    if dtype == torch.bfloat16:
        assert arrays["past"].dtype == np.uint16
    back = from_numpy(arrays["past"], dtype)
    assert back.dtype == dtype and torch.equal(back, state.past[:, 0])
    assert reload(model, state).digest() == state.digest()


def test_digest_covers_the_occupied_part(state: State) -> None:
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
    assert replace(state, length=(1,)).digest() != digest
    assert replace(state, filled=state.filled - 1).digest() != digest
    for name, at in {"past": (1, 0, 6, 0), "segment": (0, 0, 2, 0)}.items():
        assert changed(name, at).digest() == digest, f"undefined part of {name}"
    tiny = state.past.clone()
    tiny[0, 0, 8, 3] = torch.nextafter(tiny[0, 0, 8, 3], torch.tensor(9.0))
    assert replace(state, past=tiny).digest() != digest, "a single bit must change the digest"


def test_reset_rows(model: TransformerXL) -> None:
    with torch.no_grad():
        _, state = read(model, random_tokens(model, 24, rows=3), model.init_state(3))
    before = {name: getattr(state, name).clone() for name in ("past", "usage", "filled")}
    reset = state.reset_rows(torch.tensor([False, True, False]))
    assert reset.filled.tolist() == [11, 0, 11] and reset.position.tolist() == [24, 0, 24]
    assert not reset.past[:, 1].any() and not reset.usage[:, 1].any()
    for row in (0, 2):
        assert reset.rows(row).digest() == state.rows(row).digest()
    assert all(torch.equal(getattr(state, name), value) for name, value in before.items())
    assert state.filled.tolist() == [11, 11, 11]
    same = state.reset_rows(torch.tensor([False, False, False]))
    assert same.digest() == state.digest()


def test_rows_reset_within_segments(model: TransformerXL) -> None:
    with torch.no_grad():
        _, state = read(model, random_tokens(model, 22, rows=3), model.init_state(3))
    reset = state.reset_rows(torch.tensor([False, True, False]))
    assert reset.length == (2, 0, 2) and state.length == (2, 2, 2)
    assert reset.rows(1).digest() == model.init_state(1).digest()
    assert reset.rows(2).digest() == state.rows(2).digest()


@pytest.mark.parametrize("value", [torch.nan, torch.inf, -torch.inf])
def test_a_reset_row_is_zero_even_after_nan(model: TransformerXL, value: float) -> None:
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
    assert moved.past.device.type == moved.position.device.type == device
    assert moved.digest() == state.digest() and moved.length == state.length


@pytest.mark.parametrize("name", [field.name for field in fields(State)])
def test_a_state_is_frozen(state: State, name: str) -> None:
    with pytest.raises(AttributeError):
        setattr(state, name, None)


# -- rows -----------------------------------------------------------------------------------------

# Heads that cover usage, carried tensors per layer and shared by layers, and a growing past.
HEADS: dict[str, dict[str, object]] = {
    "relative": {"compression": "most-used"},
    "sketch": {"head": "sketch", "memory_len": 8, "compression_rate": 3, "coverage": 0.5},
    "sinks": {"head": "sinks", "memory_len": 5, "compressed_len": 0, "pinned_len": 2},
    "informer": {"head": "informer", "memory_len": 8, "compressed_len": 0, "factor": 1},
    "full": {"head": "full", "memory_len": 0, "compressed_len": 0},
}
AGES = (22, 3, 12)
everywhere = pytest.mark.parametrize("head", HEADS)


def streams(head: str) -> tuple[TransformerXL, list[State]]:
    """Three states of one row and different ages."""
    model = tiny_model(**HEADS[head])
    with torch.no_grad():
        tokens = (random_tokens(model, age, seed=age) for age in AGES)
        return model, [read(model, each, model.init_state(1))[1] for each in tokens]


def digests(state: State) -> list[str]:
    assert state.filled_known in (None, tuple(state.filled.tolist()))
    return [state.rows(row).digest() for row in range(state.batch_size)]


@everywhere
def test_stack_concatenates_rows(head: str) -> None:
    _, states = streams(head)
    wanted = [state.digest() for state in states]
    both = State.stack(states)
    assert both.batch_size == 3 and both.length == (2, 3, 0) and both.position.tolist() == [*AGES]
    assert digests(both) == wanted
    assert [state.digest() for state in states] == wanted
    assert digests(State.stack([both, states[1], both])) == [*wanted, wanted[1], *wanted]
    assert State.stack([states[0]]).digest() == wanted[0]


@everywhere
def test_rows_are_selected_in_any_order(head: str) -> None:
    _, states = streams(head)
    both, wanted = State.stack(states), [state.digest() for state in states]
    some = both.rows([2, 0])
    assert some.length == (0, 2) and digests(some) == [wanted[2], wanted[0]]
    assert digests(both.rows([1, 1])) == [wanted[1]] * 2
    assert both.rows(range(3)).digest() == both.digest()
    for tensor in (some.past, some.segment, some.usage, *some.carried.values()):
        tensor.zero_()  # a copy
    assert digests(both) == wanted


@everywhere
def test_rows_are_replaced(head: str) -> None:
    model, states = streams(head)
    both, wanted = State.stack(states), [state.digest() for state in states]
    new = model.init_state(1)
    put = both.put(1, new)
    assert put.length == (2, 0, 0)
    assert digests(put) == [wanted[0], new.digest(), wanted[2]]
    assert digests(both) == wanted, "`put` must not modify the state"
    swapped = both.put([2, 0], both.rows([0, 2]))
    assert digests(swapped) == [wanted[2], wanted[1], wanted[0]]
    assert swapped.put([2, 0], swapped.rows([0, 2])).digest() == both.digest()


def test_a_growing_past_is_as_wide_as_its_longest_row() -> None:
    _, (old, young, middle) = streams("full")
    assert [each.past.shape[2] for each in (old, young, middle)] == [20, 0, 12]
    for both in (State.stack([young, old]), young.put(0, old)):
        assert both.past.shape[2] == 20
        assert both.rows(both.batch_size - 1).digest() == old.digest()
    put = State.stack([young, middle]).put(0, old)
    assert put.past.shape[2] == 20 and put.filled.tolist() == [20, 12]
    assert digests(put) == [old.digest(), middle.digest()]
    assert not put.past[:, 1, :8].any(), "empty columns are to the left"
    # A narrow row into a wide state.
    put = State.stack([old, middle]).put(0, young)
    assert digests(put) == [young.digest(), middle.digest()]
    assert put.filled.tolist() == [0, 12] and put.filled_known == (0, 12)
    asked = put.put(1, replace(old, filled_known=None))
    assert asked.filled_known is None and asked.filled.tolist() == [0, 20]


def test_row_counts_must_match(model: TransformerXL) -> None:
    with pytest.raises(ValueError, match="2 rows for 1 places; allowed: as many"):
        model.init_state(3).put(0, model.init_state(2))
    with pytest.raises(ValueError, match="no states to stack; allowed: at least one"):
        State.stack([])


def test_phase_requires_aligned_rows() -> None:
    _, states = streams("relative")
    both = State.stack(states)
    assert not both.aligned and both.rows([0, 0]).aligned and both.rows([0, 0]).phase == 2
    with pytest.raises(ValueError, match=r"rows in phases \(2, 3, 0\); allowed: all in the same"):
        _ = both.phase


def test_the_digest_of_a_batch_covers_the_occupied_part() -> None:
    _, states = streams("relative")
    both = State.stack(states)
    void = both.segment.clone()
    void[:, 0, 2:], void[:, 1, 3:], void[:, 2] = 7.0, torch.nan, torch.inf
    assert replace(both, segment=void).digest() == both.digest()
    void[0, 1, 2, 0] += 1
    assert replace(both, segment=void).digest() != both.digest()
    assert both.rows([1, 0, 2]).digest() != both.digest()


def test_reset_clears_the_open_segment_of_reset_rows_only() -> None:
    model, states = streams("sketch")
    both = State.stack(states)
    reset = both.reset_rows(torch.tensor([True, False, True]))
    assert reset.length == (0, 3, 0)
    new = model.init_state(1).digest()
    assert digests(reset) == [new, states[1].digest(), new]


# -- dictionaries ---------------------------------------------------------------------------------


@everywhere
def test_dictionary_round_trip(head: str) -> None:
    _, states = streams(head)
    for state in (*states, State.stack(states)):
        values = state.to_dict()
        assert set(values) == {field.name for field in fields(State)}
        assert json.loads(json.dumps(values["length"])) == list(state.length)
        assert type(values["carried"]) is dict
        assert values["past"] is state.past, "tensors are not copied"
        again = State.from_dict(values)
        assert again.digest() == state.digest() and again.length == state.length
        assert all(again.carried[name] is each for name, each in state.carried.items())
        values["carried"].clear()
        assert len(again.carried) == len(state.carried)


def test_dictionaries_can_be_saved_by_torch(tmp_path: Path) -> None:
    _, states = streams("sketch")
    torch.save(states[0].to_dict(), tmp_path / "state.pt")
    loaded = State.from_dict(torch.load(tmp_path / "state.pt", weights_only=True))
    assert loaded.digest() == states[0].digest()


def test_an_unknown_field_is_refused(model: TransformerXL) -> None:
    values = model.init_state(1).to_dict()
    with pytest.raises(TypeError, match="cache"):
        State.from_dict({**values, "cache": None})
