"""Precisions of frozen weights: errors, independence of rows, invariants, and what is refused."""

from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

import pytest
import torch
from torch import Tensor
from torch.overrides import TorchFunctionMode

from streamlm.models.cache import Cache
from streamlm.models.layers.llama_block import BLOCK, padding
from streamlm.models.layers.packed import Digits, Int8Embedding, Int8Linear, has_int8_kernels
from streamlm.models.llama import LlamaModel
from streamlm.models.precision import add_step, choose_precision, is_packed, set_precision
from streamlm.models.transformer_xl import TransformerXL
from streamlm.state import State
from tests.support import invariants
from tests.support.invariants import (
    assert_same_state,
    largest_difference,
    random_tokens,
    read,
    tiny_model,
)
from tests.support.threads import check_threads

needs_int8 = pytest.mark.skipif(
    not has_int8_kernels(), reason="this processor or this torch has no FBGEMM kernels"
)
# Seven bits work on every processor that has the kernels, eight only on those with VNNI.
KINDS = {"8-bits": Digits(False, 127, 255), "7-bits": Digits(True, 63, 127)}
either_kind = pytest.mark.parametrize(
    "digits",
    [
        pytest.param(
            kind,
            id=name,
            marks=pytest.mark.skipif(
                not (kind.narrow or torch.cpu._is_vnni_supported()), reason="no VNNI here"
            ),
        )
        for name, kind in KINDS.items()
    ],
)
GROUPS: dict[str, Any] = {"head": "llama", "pinned_len": 2, "n_heads": 4, "n_kv_heads": 2}
LLAMAS: dict[str, dict[str, Any]] = {
    "mean": {**GROUPS, "head_dim": 4, "compression": "mean"},
    "select": {**GROUPS, "head_dim": 4, "compression": "select"},
    "int8-slots": {**GROUPS, "head_dim": 4, "compression": "mean", "slots": "int8"},
    "most-used": {**GROUPS, "head_dim": 4, "compression": "most-used"},
    "qwen": {**GROUPS, "head_dim": 4, "qk_norm": True, "qkv_bias": True, "tied": False,
             "compression": "mean"},
}  # fmt: skip
each_llama = pytest.mark.parametrize("name", LLAMAS)
# Slots that are nearly as good as others are chosen by the last bits of a product, which are those
# of a processor. Results that are only close are compared where nothing is chosen.
smooth = pytest.mark.parametrize("name", ["mean", "qwen"])
# Inputs of products have two digits of 8 bits.
TOLERANCE = 0.01


def int8_model(name: str) -> LlamaModel:
    model: LlamaModel = tiny_model(dtype=torch.float32, **LLAMAS[name])
    assert set_precision(model, "int8") == "int8"
    return model


def in_float32(model: LlamaModel) -> LlamaModel:
    """The model with attention in float32."""
    model.attend_in(torch.float32)
    assert model.step is None  # it was of another precision
    add_step(model)
    return model


@contextmanager
def engine(name: str) -> Iterator[None]:
    """Another quantized engine of torch."""
    if name not in torch.backends.quantized.supported_engines:
        pytest.skip(f"torch has no quantized engine {name!r} here")
    before = torch.backends.quantized.engine
    torch.backends.quantized.engine = name
    try:
        yield
    finally:
        torch.backends.quantized.engine = before


def random_rows(n: int, k: int) -> Tensor:
    """Rows of very different sizes, each with a few numbers far larger than the others."""
    random = torch.Generator().manual_seed(4)
    rows = torch.randn(n, k, generator=random) * torch.logspace(-3, 3, n)[:, None]
    rows[:, 5] *= 100
    return rows


@needs_int8
@either_kind
def test_a_product_loses_the_precision_of_weights_alone(digits: Digits) -> None:
    random = torch.Generator().manual_seed(3)
    weight, bias = torch.randn(40, 96, generator=random), torch.randn(40, generator=random)
    layer, x = Int8Linear(weight, bias, digits=digits), random_rows(9, 96)
    found = layer(x) - bias
    wanted = x.double() @ weight.double().mT
    steps = weight.abs().amax(dim=1) / 127  # of each output's weights
    # Half a step of each weight, and half a step of each input.
    bound = x.abs().sum(dim=1, keepdim=True) * steps / 2
    inputs = x.norm(dim=1, keepdim=True) / (2 * digits.half * digits.base)
    bound = bound + inputs * weight.abs().sum(dim=1)
    assert bool(((found - wanted).abs() <= 1.01 * bound + 1e-3 * bias.abs()).all())
    # As good as float32 weights on the same grid.
    exact = (weight / steps[:, None]).round() * steps[:, None]
    ideal = x.double() @ exact.double().mT
    size = x.norm(dim=1, keepdim=True) * exact.norm(dim=1)
    largest = (4 if digits.narrow else 1) * 1e-4
    assert float(((found - ideal).abs() / size).max()) < largest


@needs_int8
@either_kind
def test_a_row_does_not_depend_on_its_neighbours(digits: Digits) -> None:
    random = torch.Generator().manual_seed(3)
    layer = Int8Linear(torch.randn(33, 70, generator=random), digits=digits)
    rows = random_rows(6, 70)
    wanted = layer(rows)
    others = (torch.zeros(70), rows[1] * 1e6, torch.full((70,), torch.nan), rows[1] + torch.inf)
    for other in others:
        changed = rows.clone()
        changed[1], changed[4] = other, other
        found = layer(changed)
        for row in (0, 2, 3, 5):
            assert torch.equal(found[row], wanted[row]), f"row {row} beside {other[:3]}"
    alone = torch.cat([layer(row[None]) for row in rows])
    assert torch.allclose(alone, wanted, rtol=1e-3, atol=0.0)


@needs_int8
def test_zero_rows_and_leading_dimensions() -> None:
    layer = Int8Linear(torch.randn(5, 8), torch.arange(5.0))
    assert torch.equal(layer(torch.zeros(2, 3, 8)), torch.arange(5.0).expand(2, 3, 5))
    assert layer(torch.zeros(8)).shape == (5,)


def test_embedding_has_a_scale_for_each_row() -> None:
    weight = random_rows(7, 12)
    found = Int8Embedding(weight)(torch.tensor([[3, 0], [6, 6]]))
    wanted = weight[torch.tensor([[3, 0], [6, 6]])]
    assert bool(((found - wanted).abs() <= wanted.abs().amax(dim=2, keepdim=True) / 253).all())


@needs_int8
@smooth
def test_int8_results_are_close_in_any_calls_and_rows(name: str) -> None:
    """With attention in float32: in bfloat16 so small a model blows up its rounding."""
    model = in_float32(int8_model(name))
    invariants.check_chunking(model, tolerance=TOLERANCE)
    invariants.check_rows(model, tolerance=TOLERANCE)
    invariants.check_reset(model, tolerance=TOLERANCE)


@needs_int8
@each_llama
def test_int8_invariants(name: str) -> None:
    model = int8_model(name)
    invariants.check_causality(model)
    invariants.check_purity(model)
    invariants.check_resume(model)
    check_threads(model)
    invariants.check_bounded(model, n_segments=20)


@needs_int8
@smooth
def test_int8_logits_are_near_those_of_float32(name: str) -> None:
    model = tiny_model(dtype=torch.float32, **LLAMAS[name])
    tokens = random_tokens(model, 40)
    sizes = [4, 4, *[1] * 20, 12]
    with torch.no_grad():
        wanted, _ = read(model, tokens, model.init_state(1), sizes=sizes)
        set_precision(model, "int8")
        found, _ = read(model, tokens, model.init_state(1), sizes=sizes)
    assert 0 < largest_difference(found, wanted) < 0.25 * float(wanted.std())


@needs_int8
@pytest.mark.parametrize("name", ["mean", "select", "int8-slots"])
def test_single_tokens_match_the_blocks(name: str) -> None:
    model = in_float32(int8_model(name))
    tokens = random_tokens(model, 30)
    assert model.step is not None
    steps = []
    for step in (model.step, None):
        model.step = step
        with torch.no_grad():
            logits, state = read(model, tokens, model.init_state(1), sizes=[1] * 30)
        steps.append((logits, state))
    (logits, state), (wanted, end) = steps
    assert not torch.equal(logits, wanted)  # so there were two ways
    # A slot may round up in one way and down in the other.
    assert largest_difference(logits, wanted) < 0.02
    assert largest_difference(state.segment.float(), end.segment.float()) < 0.05


def ragged_rows(model: LlamaModel, step: Any, *, seed: int = 5) -> tuple[Tensor, State]:
    """Three rows in different phases that read two tokens: logits [3, 2, V], and the state.

    Args:
        step: of the rows' cache.
        seed: of what the second row reads.
    """
    starts = []
    for row, n in enumerate((9, 12, 22)):
        tokens = random_tokens(model, n, seed=seed if row == 1 else row)
        starts.append(read(model, tokens, model.init_state(1))[1])
    state, cache = State.stack(starts), Cache()
    assert not state.aligned
    cache.step = step
    with torch.no_grad():
        first, state = model.hidden(torch.tensor([[1], [seed], [3]]), state, cache)
        second, state = model.hidden(torch.tensor([[4], [5], [6]]), state, cache)
    return model.logits(torch.cat([first, second], dim=1)), state


@needs_int8
@pytest.mark.parametrize("name", ["mean", "select", "int8-slots"])
def test_rows_of_single_tokens_match_the_blocks(name: str) -> None:
    model = in_float32(int8_model(name))
    model.freeze()
    with torch.no_grad():
        logits, state = ragged_rows(model, model.rows_step(3))
        wanted, end = ragged_rows(model, None)
    assert not torch.equal(logits, wanted)  # so there were two ways
    assert largest_difference(logits, wanted) < 0.02
    assert_same_state(state, end, tolerance=0.05)


@needs_int8
@pytest.mark.parametrize("name", ["mean", "select", "int8-slots"])
def test_a_row_of_single_tokens_does_not_depend_on_its_neighbours(name: str) -> None:
    model = int8_model(name)
    model.freeze()
    step = model.rows_step(3)
    with torch.no_grad():
        (one, state), (other, end) = (ragged_rows(model, step, seed=seed) for seed in (5, 6))
    assert not torch.equal(one[1], other[1])
    for row in (0, 2):
        assert torch.equal(one[row], other[row])
        assert state.rows(row).digest() == end.rows(row).digest()


@needs_int8
def test_blocks_with_biases_have_no_step() -> None:
    model = int8_model("qwen")
    assert model.step is None and model.rows_step(3) is None


def test_bfloat16_and_float32_convert_in_place() -> None:
    model = tiny_model(dtype=torch.float32, **LLAMAS["mean"])
    tokens = random_tokens(model, 20)
    with torch.no_grad():
        wanted, _ = read(model, tokens, model.init_state(1))
        assert set_precision(model, "bfloat16") == "bfloat16"
        found, _ = read(model, tokens, model.init_state(1))
    assert found.dtype == torch.bfloat16 and model.frozen is not None
    assert 0 < largest_difference(found.float(), wanted) < 0.25 * float(wanted.std())
    assert set_precision(model, "float32") == "float32"
    assert {weight.dtype for weight in model.parameters()} == {torch.float32}


def test_attention_in_bfloat16_has_few_shapes() -> None:
    """oneDNN keeps a kernel for each: pieces of all lengths must not add up to hundreds."""
    assert len({n + padding(n) for n in range(1, BLOCK + 1)}) <= 26
    assert all(0 <= 4 * padding(n) <= n for n in range(1, BLOCK + 1))
    shape = {**LLAMAS["mean"], "segment_len": 32, "memory_len": 32, "compressed_len": 8}
    model: LlamaModel = tiny_model(dtype=torch.float32, **shape)
    set_precision(model, "bfloat16")
    shapes: set[tuple[torch.Size, ...]] = set()

    class Record(TorchFunctionMode):
        def __torch_function__(
            self, func: Any, types: Any, args: Any = (), kwargs: Any = None
        ) -> Any:
            if getattr(func, "__name__", "") in ("baddbmm", "bmm"):
                shapes.add(tuple(each.shape for each in args if isinstance(each, Tensor)))
            return func(*args, **(kwargs or {}))

    with torch.no_grad(), Record():
        for n in range(1, 32):
            state = model.init_state(1)
            for piece in (n, 32 - n):
                _, state = model(random_tokens(model, piece), state)
    pairs = 2 * len({2 * n + padding(2 * n) for n in range(1, 33)})
    assert shapes and len(shapes) <= pairs < 2 * 31


def test_auto_is_a_precision_of_this_processor() -> None:
    model = tiny_model(dtype=torch.float32, **LLAMAS["mean"])
    chosen = set_precision(model, "auto")
    assert chosen in ("float32", "bfloat16", "int8") and is_packed(model) == (chosen == "int8")
    assert set_precision(model, "auto") == chosen
    other = tiny_model(dtype=torch.float64)
    assert choose_precision(other) == set_precision(other, "auto") == "float64"


def relative(compression: str, norm: str, *, precision: str = "float32") -> TransformerXL:
    options: dict[str, Any] = {"compression": compression, "norm": norm}
    model: TransformerXL = tiny_model(dtype=torch.float32, **options)
    assert set_precision(model, precision) == precision
    return model


each_relative = pytest.mark.parametrize(
    ("compression", "norm"), [("conv", "post"), ("mean", "pre"), ("most-used", "post")]
)


@needs_int8
@each_relative
def test_a_transformer_xl_with_8_bit_weights(compression: str, norm: str) -> None:
    model = relative(compression, norm, precision="int8")
    assert is_packed(model) and (model.step is None) == (compression == "most-used")
    invariants.check_causality(model)
    invariants.check_purity(model)
    invariants.check_resume(model)
    invariants.check_chunking(model, tolerance=TOLERANCE)
    invariants.check_rows(model, tolerance=TOLERANCE)
    check_threads(model)
    invariants.check_bounded(model, n_segments=20)


@needs_int8
@each_relative
def test_its_logits_are_near_those_of_float32(compression: str, norm: str) -> None:
    model = relative(compression, norm)
    tokens = random_tokens(model, 40)
    sizes = [4, 4, *[1] * 20, 12]
    with torch.no_grad():
        wanted, _ = read(model, tokens, model.init_state(1), sizes=sizes)
        set_precision(model, "int8")
        found, _ = read(model, tokens, model.init_state(1), sizes=sizes)
    assert 0 < largest_difference(found, wanted) < 0.25 * float(wanted.std())


@pytest.mark.parametrize("precision", ["float32", pytest.param("int8", marks=needs_int8)])
@pytest.mark.parametrize("norm", ["post", "pre"])
def test_single_tokens_of_a_transformer_xl_match_its_blocks(precision: str, norm: str) -> None:
    model = relative("conv", norm, precision=precision)
    tokens, steps = random_tokens(model, 30), []
    assert model.step is not None
    for step in (model.step, None):
        model.step = step
        with torch.no_grad():
            steps.append(read(model, tokens, model.init_state(1), sizes=[1] * 30))
    (logits, state), (wanted, end) = steps
    tolerance = TOLERANCE if precision == "int8" else 1e-4
    assert largest_difference(logits, wanted) <= tolerance
    assert largest_difference(state.past, end.past) <= tolerance


def test_refusals() -> None:
    model = tiny_model(dtype=torch.float32, **LLAMAS["mean"])
    with pytest.raises(ValueError, match=r"precision 'int4'; allowed: 'auto' or .* or 'int8'"):
        set_precision(model, "int4")
    sinks = tiny_model(head="sinks", memory_len=5, compressed_len=0, pinned_len=2)
    with pytest.raises(ValueError, match="head 'sinks'; allowed: float32, bfloat16"):
        set_precision(sinks, "int8")
    model.train()
    with pytest.raises(ValueError, match="in training; allowed: a frozen model"):
        set_precision(model, "bfloat16")


def test_int8_needs_its_kernels() -> None:
    model = tiny_model(dtype=torch.float32, **LLAMAS["mean"])
    with engine("qnnpack"):
        assert choose_precision(model) in ("bfloat16", "float32")
        with pytest.raises(ValueError, match="here is 'qnnpack'; allowed: float32, bfloat16"):
            set_precision(model, "int8")
    assert not is_packed(model)


@needs_int8
def test_int8_weights_stay_as_they_are() -> None:
    model = int8_model("mean")
    with pytest.raises(ValueError, match="cannot be trained; allowed: float32 or bfloat16"):
        model.train()
    with pytest.raises(ValueError, match="cannot be saved; allowed: float32 or bfloat16"):
        model.state_dict()
    with pytest.raises(ValueError, match="allowed: the CPU and float32"):
        model.to(torch.bfloat16)
    with pytest.raises(ValueError, match="'bfloat16' of int8 weights; allowed: load the model"):
        set_precision(model, "bfloat16")
    assert set_precision(model, "int8") == "int8"
