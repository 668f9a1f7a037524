"""The loss whose logits exist a chunk at a time: the same value and gradients in less memory."""

import math
from typing import Any

import pytest
import torch
from torch import Tensor
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils._pytree import tree_leaves

from streamlm.models.base import Model
from streamlm.training import losses
from streamlm.training.losses import chunked_loss, language_model_loss, target_loss
from tests.support.invariants import tiny_model

MODELS: dict[str, dict[str, Any]] = {
    "tied": {},
    "llama": {"head": "llama"},
    "llama-untied": {"head": "llama", "tied": False},
}
ROWS, N = 3, 10  # of a chunk, and of all; the last chunk has one row


def tensors(model: Model, dtype: torch.dtype) -> tuple[Tensor, Tensor]:
    """Hidden states of two rows [2, 5, D] and their targets, some of which are not scored."""
    random = torch.Generator().manual_seed(3)
    hidden = torch.randn(2, N // 2, model.config.d_model, generator=random).to(dtype)
    targets = torch.randint(model.config.vocab_size, (2, N // 2), generator=random)
    targets[0, 1] = targets[1, 3:] = -100
    return hidden.requires_grad_(), targets


def gradients(model: Model, loss: Tensor, hidden: Tensor) -> list[Tensor]:
    weights = [each for each in model.output_weights() if each is not None]
    return list(torch.autograd.grad(loss, [hidden, *weights]))


@pytest.mark.parametrize("dtype", [torch.float32, torch.float64, torch.bfloat16])
@pytest.mark.parametrize("kind", MODELS)
def test_chunks_add_up(kind: str, dtype: torch.dtype) -> None:
    """In bfloat16 by autocast: products are rounded, sums of the weight's gradient are not."""
    wide = torch.float32 if dtype == torch.bfloat16 else dtype
    model = tiny_model(dtype=wide, **MODELS[kind])
    hidden, targets = tensors(model, wide)
    with torch.autocast("cpu", dtype=torch.bfloat16, enabled=dtype == torch.bfloat16):
        whole = language_model_loss(model.logits(hidden), targets)
        found = chunked_loss(model, hidden, targets, rows=ROWS)
    assert found.dtype == whole.dtype == wide
    tolerance = {torch.float32: 1e-6, torch.float64: 1e-14, torch.bfloat16: 0.02}[dtype]
    assert float(found.detach()) == pytest.approx(float(whole.detach()), rel=tolerance)
    pairs = zip(
        gradients(model, 3 * found, hidden), gradients(model, 3 * whole, hidden), strict=True
    )
    for one, other in pairs:
        assert one.dtype == other.dtype == wide
        torch.testing.assert_close(one, other, rtol=0, atol=tolerance * float(other.abs().max()))


@pytest.mark.parametrize("kind", MODELS)
def test_gradients_are_those_of_the_function(kind: str) -> None:
    model = tiny_model(**MODELS[kind])
    hidden, targets = tensors(model, torch.float64)
    inputs = [hidden, *(each for each in model.output_weights() if each is not None)]

    def loss(*_: Tensor) -> Tensor:
        return chunked_loss(model, hidden, targets, rows=ROWS)

    assert torch.autograd.gradcheck(loss, inputs)


def test_no_targets_no_loss() -> None:
    model = tiny_model()
    hidden, targets = tensors(model, torch.float64)
    loss = chunked_loss(model, hidden, torch.full_like(targets, -100), rows=ROWS)
    assert float(loss.detach()) == 0.0
    for gradient in gradients(model, loss, hidden):
        assert not gradient.any()


class Made(TorchDispatchMode):
    """The shapes of all tensors that operators make, apart from views."""

    def __init__(self) -> None:
        super().__init__()
        self.shapes: list[tuple[int, ...]] = []

    def __torch_dispatch__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        result = func(*args, **(kwargs or {}))
        self.shapes += [tuple(x.shape) for x in tree_leaves(result) if isinstance(x, Tensor)]
        return result


def test_no_more_than_a_chunk_of_logits_exists() -> None:
    model = tiny_model(vocab_size=400, d_model=2, head_dim=1)
    hidden, targets = tensors(model, torch.float64)
    with Made() as made:
        chunked_loss(model, hidden, targets, rows=ROWS).backward()
    assert max(map(math.prod, made.shapes)) == ROWS * 400
    assert made.shapes.count((400, 2)) >= 1  # the weight's gradient


@pytest.mark.parametrize("of_hidden", [False, True])
def test_frozen_weights_get_no_gradient(of_hidden: bool) -> None:
    model = tiny_model()
    model.requires_grad_(False)
    hidden, targets = tensors(model, torch.float64)
    hidden.requires_grad_(of_hidden)
    with Made() as made:
        loss = chunked_loss(model, hidden, targets, rows=ROWS)
        if of_hidden:
            loss.backward()
    assert loss.requires_grad == of_hidden == (hidden.grad is not None)
    vocab, width = model.config.vocab_size, model.config.d_model
    assert not {(vocab, width), (vocab,)} & set(made.shapes)
    wanted = language_model_loss(model.logits(hidden), targets)
    assert float(loss.detach()) == pytest.approx(float(wanted.detach()), rel=1e-12)


def test_casts_are_not_kept_without_a_gradient() -> None:
    """A later product in the same context still reaches the weight."""
    model = tiny_model(dtype=torch.float32)
    hidden, targets = tensors(model, torch.float32)
    with torch.autocast("cpu", dtype=torch.bfloat16):
        chunked_loss(model, hidden, targets, rows=ROWS)
        model.logits(hidden).sum().backward()
    assert model.embedding.weight.grad is not None


@pytest.mark.parametrize("large", [True, False])
@pytest.mark.parametrize("compiled", [False, True])
def test_where_logits_exist_in_chunks(
    monkeypatch: pytest.MonkeyPatch, compiled: bool, large: bool
) -> None:
    """Where they are large, but not in compiled code, nor without gradients."""
    model = tiny_model()
    hidden, targets = tensors(model, torch.float64)
    wanted = language_model_loss(model.logits(hidden), targets)
    chunks: list[int] = []

    def recorded(*args: Any, rows: int) -> Tensor:
        chunks.append(rows)
        return chunked_loss(*args, rows=rows)

    monkeypatch.setattr(losses, "chunked_loss", recorded)
    monkeypatch.setattr(torch.compiler, "is_compiling", lambda: compiled)
    monkeypatch.setattr(losses, "CHUNK_BYTES", (ROWS if large else N) * 8 * model.config.vocab_size)
    torch.testing.assert_close(target_loss(model, hidden, targets), wanted)
    assert chunks == ([ROWS] if large and not compiled else [])
    with torch.no_grad():
        torch.testing.assert_close(target_loss(model, hidden, targets), wanted.detach())
    assert len(chunks) == (large and not compiled)
