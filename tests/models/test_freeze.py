"""Freezing: derived tensors are computed once, and are never stale."""

import copy
from collections.abc import Callable

import pytest
import torch

from streamlm.models.cache import Cache
from streamlm.models.layers import ordered, products
from streamlm.models.transformer_xl import TransformerXL
from tests.support.invariants import largest_difference, random_tokens, read, tiny_model
from tests.support.projections import count_projections

HEADS: dict[str, dict[str, object]] = {
    "relative": {"norm": "pre"},
    "linformer": {"head": "linformer", "memory_len": 8, "compressed_len": 0, "projected_len": 2},
    "informer": {"head": "informer", "memory_len": 8, "compressed_len": 0, "factor": 1},
    "sinks": {"head": "sinks", "memory_len": 5, "compressed_len": 0, "pinned_len": 2},
    "sketch": {"head": "sketch", "memory_len": 8, "compressed_len": 5, "compression_rate": 3},
}
everywhere = pytest.mark.parametrize("head", HEADS)


def derivations(model: TransformerXL) -> list[int]:
    """Counts position projections of all layers."""
    calls: list[int] = []
    for layer in model.layers:
        layer.attention.position.register_forward_hook(lambda *_: calls.append(1))
    return calls


def thawed(**options: object) -> TransformerXL:
    """A model in evaluation mode that is not frozen."""
    model = tiny_model(**options).train()
    return model.eval()


@everywhere
@torch.no_grad()
def test_positions_are_projected_once(head: str) -> None:
    model = thawed(**HEADS[head])
    assert model.frozen is None
    calls, tokens = derivations(model), random_tokens(model, 21)
    wanted, _ = read(model, tokens[:, :4], model.init_state(1), sizes=[4])
    of_one_call = len(calls)
    assert of_one_call >= 2, "each call projects positions"
    model.freeze()
    assert len(calls) == 2 * of_one_call
    logits, state = read(model, tokens[:, :4], model.init_state(1), sizes=[4])
    assert torch.equal(logits, wanted)
    read(model, tokens[:, 4:], state, sizes=[1] * 17)
    assert len(calls) == 2 * of_one_call


@everywhere
@torch.no_grad()
def test_a_cache_is_reused_only_while_the_model_is_frozen(head: str) -> None:
    model = thawed(**HEADS[head])
    slots = count_projections(model)[0]
    cache, tokens = Cache(), random_tokens(model, 23)
    _, state = read(model, tokens[:, :21], model.init_state(1), cache=cache)
    assert not cache.follows(state, model.frozen)
    slots.clear()
    _, after = model(tokens[:, 21:22], state, cache)
    assert sum(slots) > 1, "the past is projected again"
    model.freeze()
    slots = count_projections(model)[0]
    _, after = model(tokens[:, 21:22], state, cache)
    slots.clear()
    model(tokens[:, 22:], after, cache)
    assert slots == [1]


def test_freeze_sets_evaluation_mode() -> None:
    model = tiny_model(dropout=0.5).train()
    assert model.frozen is None
    assert model.freeze() is model
    assert model.frozen is not None and not any(each.training for each in model.modules())


def test_train_unfreezes_and_eval_does_not_freeze() -> None:
    model = tiny_model()
    frozen = model.frozen
    assert model.eval().frozen is frozen and model.train(False).frozen is frozen
    assert model.train().frozen is None
    assert model.eval().frozen is None


def test_a_frozen_model_still_has_gradients() -> None:
    """Derived tensors have no graph, so they are recomputed with gradients enabled."""
    model = tiny_model()
    logits, _ = read(model, random_tokens(model, 22), model.init_state(1))
    logits.square().sum().backward()
    for name, weight in model.named_parameters():
        if not name.startswith("compressors"):
            assert weight.grad is not None and bool(weight.grad.any()), name
    assert not any(part.requires_grad for parts in model.frozen.values for part in parts)


# -- temporary freezing ---------------------------------------------------------------------------


class Interrupted(BaseException):
    """Raised in place of Ctrl-C."""


def test_inference_freezes_within_the_block() -> None:
    model = tiny_model().train()
    model.layers[0].eval()
    before = [each.training for each in model.modules()]
    with model.inference() as frozen:
        assert frozen is model and model.frozen is not None and not model.training
        token = model.frozen
        with model.inference():
            assert model.frozen is token
        assert model.frozen is token
    assert model.frozen is None and [each.training for each in model.modules()] == before
    with pytest.raises(Interrupted), model.inference():
        raise Interrupted
    assert model.frozen is None and [each.training for each in model.modules()] == before


def test_inference_keeps_a_frozen_model_frozen() -> None:
    model = tiny_model()
    frozen = model.frozen
    with model.inference():
        assert model.frozen is frozen
    assert model.frozen is frozen


def trained_for_a_step(model: TransformerXL, **options: object) -> None:
    """One training step in training mode, then the previous mode."""
    model.train()
    optimizer = torch.optim.AdamW(model.parameters(), lr=0.1, **options)
    logits, _ = model(random_tokens(model, 4), model.init_state(1))
    logits.square().sum().backward()
    optimizer.step()
    model.eval()


def load(model: TransformerXL, **options: bool) -> None:
    other = tiny_model(**{**model.config.to_dict(), "seed": 50})
    model.load_state_dict(other.state_dict(), **options)


@pytest.mark.parametrize("change", [trained_for_a_step, load])
@torch.no_grad()
def test_weights_may_change_during_inference(change: Callable[[TransformerXL], None]) -> None:
    model = tiny_model()
    tokens = random_tokens(model, 9)
    with model.inference(), torch.enable_grad():
        change(model)
    assert model.frozen is not None
    logits, _ = read(model, tokens, model.init_state(1))
    with torch.enable_grad():
        wanted, _ = read(model, tokens, model.init_state(1))
    assert largest_difference(logits, wanted) <= 1e-10


# -- never stale ----------------------------------------------------------------------------------


def nudge(name: str) -> Callable[[TransformerXL], None]:
    def change(model: TransformerXL) -> None:
        model.train()
        with torch.no_grad():
            model.get_parameter(name).mul_(1.5)
        model.eval()

    return change


CHANGES: dict[str, Callable[[TransformerXL], None]] = {
    "one optimiser step": trained_for_a_step,
    "one foreach step": lambda model: trained_for_a_step(model, foreach=True),
    "one fused step": lambda model: trained_for_a_step(model, fused=True),
    "loading weights": load,
    "loading weights by assignment": lambda model: load(model, assign=True),
    "keys and values": nudge("layers.1.attention.key_value.weight"),
    "positions": nudge("layers.0.attention.position.weight"),
    "the norm that memory is read through": nudge("layers.1.attention_norm.weight"),
}


@pytest.mark.parametrize("change", CHANGES.values(), ids=CHANGES)
def test_derived_tensors_are_never_stale(change: Callable[[TransformerXL], None]) -> None:
    model, cache = tiny_model(norm="pre"), Cache()
    tokens = random_tokens(model, 26)
    with torch.no_grad():
        before, state = read(model, tokens[:, :22], model.init_state(1), cache=cache)
    assert cache.follows(state, model.frozen)
    change(model)
    assert not cache.follows(state, model.frozen)
    wanted, _ = model(tokens[:, 22:24], state)  # with gradients, everything is recomputed
    for workspace in (cache, None):
        with torch.no_grad():
            logits, _ = model(tokens[:, 22:24], state, workspace)
            assert largest_difference(logits, wanted) <= 1e-10
            model.freeze()
            logits, _ = model(tokens[:, 22:24], state, workspace)
            assert largest_difference(logits, wanted) <= 1e-10
    with torch.no_grad():
        after, _ = read(model, tokens[:, :22], model.init_state(1))
    assert largest_difference(after, before) > 1e-3, "the change matters"


def test_loading_weights_refreezes() -> None:
    model = tiny_model()
    frozen = model.frozen
    load(model)
    assert model.frozen is not None and model.frozen is not frozen
    model.train().eval()
    load(model)
    assert model.frozen is None


@everywhere
@torch.no_grad()
def test_a_copied_model_has_its_own_derived_tensors(head: str) -> None:
    model, cache = tiny_model(**HEADS[head]), Cache()
    tokens = random_tokens(model, 22)
    before, state = read(model, tokens, model.init_state(1), cache=cache)
    other = copy.deepcopy(model)
    assert not cache.follows(state, other.frozen)
    other.train()
    other.layers[0].attention.position.weight.mul_(0.5)
    other.layers[1].attention.key_value.weight.mul_(0.5)
    other.freeze()
    changed, _ = read(other, tokens, other.init_state(1))
    with torch.enable_grad():
        wanted, _ = read(other, tokens, other.init_state(1))
    assert largest_difference(changed, wanted) <= 1e-10
    assert cache.follows(state, model.frozen)
    assert torch.equal(read(model, tokens, model.init_state(1))[0], before)
    assert largest_difference(changed, before) > 1e-3


@everywhere
@torch.no_grad()
def test_changing_precision_after_use(head: str) -> None:
    model = tiny_model(dtype=torch.float32, **HEADS[head])
    tokens = random_tokens(model, 4)
    before, _ = model(tokens, model.init_state(1))
    frozen = model.frozen
    model.double()
    assert model.frozen is not None and model.frozen is not frozen
    logits, _ = model(tokens, model.init_state(1))
    assert logits.dtype == torch.float64
    assert largest_difference(logits.float(), before) < 1e-4


@everywhere
@torch.no_grad()
def test_weights_in_another_order_give_the_same(head: str, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(ordered, "NARROWEST", 0)
    monkeypatch.setattr(products, "FASTER", products.AVAILABLE)
    model = tiny_model(dtype=torch.float32, **HEADS[head])
    assert (model.frozen.layers is not None) == products.AVAILABLE
    tokens = random_tokens(model, 22)
    logits, _ = read(model, tokens, model.init_state(1))
    with torch.enable_grad():  # not with them
        wanted, _ = read(model, tokens, model.init_state(1))
    assert largest_difference(logits, wanted.detach()) < 1e-4
    model.layers[0].attention.query.weight.mul_(2)
    changed, _ = read(model.train().freeze(), tokens, model.init_state(1))
    with torch.enable_grad():
        wanted, _ = read(model, tokens, model.init_state(1))
    assert largest_difference(changed, wanted.detach()) < 1e-4
    assert largest_difference(changed, logits) > 1e-3


@pytest.mark.parametrize("dtype", [torch.float64, torch.float32])
def test_a_copy_keeps_its_weights_when_the_model_is_trained(dtype: torch.dtype) -> None:
    """Also for single tokens, which take a step that holds the weights by itself."""
    model = tiny_model(dtype=dtype)
    other, token = copy.deepcopy(model), random_tokens(model, 1)
    with torch.no_grad():
        wanted, _ = model(token, model.init_state(1))
        model.train()
        for weight in model.parameters():
            weight.mul_(2)
        assert torch.equal(other(token, other.init_state(1))[0], wanted)
        changed, _ = model.freeze()(token, model.init_state(1))
    assert largest_difference(changed, wanted) > 1e-3
