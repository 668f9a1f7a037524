"""Streams and gradients on a pretended CUDA device equal those on the CPU."""

import copy
from itertools import pairwise

import pytest
import torch
from torch import Tensor

from benchmarks.tools import parity
from streamlm.config import COMPRESSIONS
from streamlm.models.base import Model
from streamlm.models.build import MODELS, build_model
from streamlm.models.cache import Cache
from streamlm.runtime.stream import advance, score
from streamlm.state import State
from streamlm.training.losses import target_loss
from streamlm.transfer import send
from tests.device.cases import VARIANTS, config_of
from tests.support.pretended_cuda import counting, pretended_cuda

SAME = 1e-5  # the same kernels run in the same shapes; only rounding may differ
ROWS = 3


def test_every_head_has_a_variant() -> None:
    assert {config_of(variant).head for variant in VARIANTS} == set(MODELS)


def model_of(variant: str) -> Model:
    torch.manual_seed(0)
    return build_model(config_of(variant)).eval()


@pytest.mark.parametrize("variant", VARIANTS)
def test_a_stream_is_the_same(variant: str) -> None:
    """Read at once and, with a cache, token by token; the state has the same bits on the CPU."""
    model = model_of(variant).freeze()
    tokens = parity.some_tokens(model.config, 6 * 16 - 3, rows=ROWS)
    inputs, targets = tokens[:, :-1], tokens[:, 1:]
    wanted, end = score(model, inputs, targets, model.init_state(ROWS))
    with pretended_cuda():
        other = copy.deepcopy(model).to("cuda")
        ids, following = inputs.to("cuda"), targets.to("cuda")
        found, state = score(other, ids, following, other.init_state(ROWS))
        assert found.device.type == state.past.device.type == "cuda"
        assert parity.distance(found, wanted) < SAME
        for name in ("past", "segment", "usage"):
            assert parity.distance(getattr(state, name), getattr(end, name)) < SAME, name
        for name, carried in end.carried.items():
            assert parity.distance(state.carried[name], carried) < SAME, name
        assert state.to("cpu").digest() == state.digest()

        pieces, cache = [], Cache()
        # The memory is full by then.
        _, state = score(
            other, ids[:, : 16 * 4], following[:, : 16 * 4], other.init_state(ROWS), cache
        )
        for i in range(16 * 4, ids.shape[1]):
            found, state = score(other, ids[:, i : i + 1], following[:, i : i + 1], state, cache)
            assert cache.follows(state, other.frozen)  # else it was derived anew every time
            pieces.append(found)
        assert parity.distance(torch.cat(pieces, dim=1), wanted[:, 16 * 4 :]) < 1e-4
        assert parity.distance(state.past, end.past) < 1e-4


def staggered(model: Model, tokens: Tensor, cache: Cache) -> tuple[Tensor, State]:
    """Two streams of 35 and 90 tokens, read on as rows of one batch: log-probabilities, state.

    Their next segments end after 13 and 6 tokens; 24 are read at once, and 18 one by one.

    Args:
        tokens: [2, n] on the host, n at least 133.
    """
    starts = (35, 90)
    alone = [
        advance(model, send(tokens[row : row + 1, :n], model.device), model.init_state(1))[1]
        for row, n in enumerate(starts)
    ]
    state = State.stack(alone)
    ahead = torch.stack([tokens[row, n : n + 43] for row, n in enumerate(starts)])
    ids, found = send(ahead, model.device), []
    for start, stop in pairwise([0, 24, *range(25, 43)]):
        targets = ahead[:, start + 1 : stop + 1]  # on the host, for the adaptive softmax
        each, state = score(model, ids[:, start:stop], targets, state, cache)
        found.append(each)
    return torch.cat(found, dim=1), state


@pytest.mark.parametrize("variant", VARIANTS)
def test_rows_in_different_phases_are_the_same_and_wait_for_nothing(variant: str) -> None:
    model = model_of(variant).freeze()
    tokens = parity.some_tokens(model.config, 133, rows=2)
    wanted, end = staggered(model, tokens, Cache())
    assert len(set(end.length)) == 2
    with pretended_cuda():
        other = copy.deepcopy(model).to("cuda")
        with counting() as log:
            found, state = staggered(other, tokens, Cache())
        assert not log.n_waits, log.offenders()
        assert state.length == end.length
        assert parity.distance(found, wanted) < SAME
        for name in ("past", "segment", "usage"):
            assert parity.distance(getattr(state, name), getattr(end, name)) < SAME, name
        for name, carried in end.carried.items():
            assert parity.distance(state.carried[name], carried) < SAME, name
        assert state.filled.tolist() == end.filled.tolist()


def trained(model: Model, device: str) -> tuple[State, Tensor]:
    """State and gradient after four segments; one row starts a new document halfway."""
    tokens = parity.some_tokens(model.config, 4 * 16 + 1, rows=ROWS).to(device)
    state, total = model.init_state(ROWS), torch.zeros((), device=device)
    for start in range(0, 4 * 16, 16):
        if start == 32:
            state = state.reset_rows(torch.tensor([False, True, False]))
        hidden, state = model.hidden(tokens[:, start : start + 16], state)
        total = total + target_loss(model, hidden, tokens[:, start + 1 : start + 17])
        added = model.segment_loss(state)
        if added is not None:
            total = total + added
        state, eviction = model.commit(state)
        if eviction is not None:
            total = total + model.auxiliary_loss(eviction)[0]
    total.backward()
    grads = [p.grad.flatten() for p in model.parameters() if p.grad is not None]
    return state, torch.cat(grads)


@pytest.mark.parametrize("variant", VARIANTS)
def test_gradients_are_the_same(variant: str) -> None:
    model = model_of(variant)
    with pretended_cuda():
        state, found = trained(copy.deepcopy(model).to("cuda"), "cuda")
        assert state.past.device.type == found.device.type == "cuda"
    end, wanted = trained(model, "cpu")
    assert parity.distance(found, wanted) < SAME
    assert parity.distance(state.past, end.past) < SAME
    assert state.filled.tolist() == end.filled.tolist()


@pytest.mark.parametrize(("compression", "loss"), parity.CASES)
def test_compressions_train_the_same(compression: str, loss: str) -> None:
    with pretended_cuda():
        for name, difference in parity.between_devices(compression, loss, "cuda").items():
            assert difference < SAME, name


@pytest.mark.parametrize(("compression", "loss"), parity.CASES)
def test_bfloat16_trains_close_to_float32(compression: str, loss: str) -> None:
    with pretended_cuda():
        found = parity.between_precisions(compression, loss, "cuda")
    assert found["language_loss"] < 0.02
    assert found["compression_loss"] < 0.1


@pytest.mark.parametrize("compression", COMPRESSIONS)
def test_a_state_saved_on_the_cpu_goes_on_there(compression: str) -> None:
    with pretended_cuda():
        found = parity.moved(compression, "cuda")
    assert found.pop("loaded_differently") == 0
    for name, difference in found.items():
        assert difference < SAME, name
