"""Adaptive embedding and softmax against literal references, and skipped computation."""

from collections.abc import Callable
from pathlib import Path

import pytest
import torch
from torch import Tensor

from streamlm.checkpoints.checkpoint import load_checkpoint
from streamlm.models.layers.adaptive import AdaptiveEmbedding
from streamlm.models.transformer_xl import TransformerXL
from streamlm.runtime.stream import score
from streamlm.sessions.session import Session
from streamlm.training.losses import language_model_loss, target_loss
from tests.reference import adaptive as literal
from tests.support.invariants import largest_difference, random_tokens, read, tiny_model

SHAPES: dict[str, dict[str, object]] = {
    "one table": {"div_val": 1},
    "one narrower table": {"div_val": 1, "embed_dim": 6},
    "halves": {"div_val": 2},
    "quarters": {"div_val": 4, "embed_dim": 16},
    "one cutoff": {"div_val": 3, "cutoffs": (9,)},
    "bins of one": {"div_val": 1, "cutoffs": (1, 2, 10)},
}
everywhere = pytest.mark.parametrize("options", SHAPES.values(), ids=SHAPES)


def adaptive(**options: object) -> TransformerXL:
    return tiny_model(**{"cutoffs": (4, 7), **options})


def some_hidden(n: int = 40, dtype: torch.dtype = torch.float64) -> tuple[Tensor, Tensor]:
    """Inputs of the output layer, and targets from all bins."""
    random = torch.Generator().manual_seed(3)
    hidden = torch.randn(n, 8, generator=random, dtype=torch.float64).to(dtype)
    return hidden, torch.arange(n) % 11


@everywhere
def test_model_matches_the_reference(options: dict[str, object]) -> None:
    """Input and output, which cover all widths and tied weights."""
    model = adaptive(**options)
    weights = {name: weight.detach() for name, weight in model.named_parameters()}
    shape = {"cutoffs": model.config.cutoffs, "vocab_size": 11}
    embedded = model.embedding(torch.arange(11))
    wanted = torch.stack([literal.embed(token, weights, **shape) for token in range(11)])
    assert largest_difference(embedded, wanted) <= 1e-12
    hidden, _ = some_hidden(3)
    found = model.logits(hidden)
    wanted = torch.stack([literal.log_probs(row, weights, **shape) for row in hidden])
    assert largest_difference(found, wanted) <= 1e-12
    assert torch.allclose(found.exp().sum(-1), torch.ones(3, dtype=torch.float64))


def test_shapes_of_the_weights() -> None:
    """Widths shrink by div_val; P_0 exists twice; div_val 1 at full width has no projections."""

    def shapes(model: TransformerXL) -> dict[str, tuple[int, ...]]:
        named = model.embedding.named_parameters()
        return {name: tuple(weight.shape) for name, weight in named}

    clusters = {"cluster_weight": (2, 8), "cluster_bias": (2,)}
    assert shapes(adaptive()) == {"tables.0": (11, 8), **clusters}
    assert shapes(adaptive(div_val=2)) == {
        **{"tables.0": (4, 8), "tables.1": (3, 4), "tables.2": (4, 2)},
        **{"projections.0": (8, 8), "projections.1": (8, 4), "projections.2": (8, 2)},
        **{"head_projection": (8, 8), **clusters},
    }
    assert shapes(adaptive(embed_dim=6)) == {
        **{"tables.0": (11, 6), "projections.0": (8, 6), "head_projection": (8, 6)},
        **{"cluster_weight": (2, 6), "cluster_bias": (2,)},
    }


@everywhere
def test_log_prob_matches_log_probs_with_gradients(
    options: dict[str, object],
) -> None:
    model = adaptive(**options)
    hidden, targets = some_hidden()
    found = model.log_prob(hidden[None], targets[None])
    wanted = model.logits(hidden).gather(1, targets[:, None])[:, 0]
    assert found.shape == (1, 40) and found.dtype == torch.float32
    assert largest_difference(found[0].double(), wanted) <= 1e-6
    for weight in model.parameters():
        weight.grad = None
    targets[5] = -100
    loss = target_loss(model, hidden, targets)
    assert model.log_prob(hidden, targets)[5] == 0
    loss.backward()
    gradients = {name: weight.grad for name, weight in model.named_parameters()}
    model.zero_grad(set_to_none=True)
    language_model_loss(model.logits(hidden), targets).backward()
    reached = [name for name, weight in model.named_parameters() if weight.grad is not None]
    assert "output_bias" in reached and "embedding.cluster_weight" in reached
    for name, weight in model.named_parameters():
        if weight.grad is not None:
            assert gradients[name] is not None, name
            # The other way round rounds its logits to float32.
            assert largest_difference(gradients[name], weight.grad) <= 1e-5, name


def test_only_needed_clusters_are_computed(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    model = adaptive(div_val=2)
    computed: list[tuple[int, int]] = []
    tail = AdaptiveEmbedding._tail

    def watched(self: AdaptiveEmbedding, i: int, hidden: Tensor, bias: Tensor) -> Tensor:
        computed.append((i, len(hidden)))
        return tail(self, i, hidden, bias)

    monkeypatch.setattr(AdaptiveEmbedding, "_tail", watched)
    hidden, _ = some_hidden(6)
    for targets, wanted in (
        ([0, 1, 2, 3, 3, 0], []),
        ([0, 1, 2, 3, 3, 10], [(2, 1)]),
        ([4, 6, 2, 7, 3, 5], [(1, 3), (2, 1)]),
        ([-100, -100, 4, -100, -100, -100], [(1, 1)]),
    ):
        computed.clear()
        model.log_prob(hidden, torch.tensor(targets))
        assert computed == wanted
    with torch.no_grad():
        tokens = random_tokens(model, 10) % 4
        computed.clear()
        score(model, tokens[:, :-1], tokens[:, 1:], model.init_state(1))
    assert not computed


@pytest.mark.parametrize("options", [{"div_val": 1}, {"div_val": 2}])
def test_ids_outside_the_vocabulary_are_refused(options: dict[str, object]) -> None:
    model = adaptive(**options)
    for wrong in (11, -1):
        with pytest.raises(IndexError):
            model.embedding(torch.tensor([3, wrong]))


@everywhere
@torch.no_grad()
def test_scores_match_predictions(options: dict[str, object]) -> None:
    model = adaptive(**options)
    tokens = random_tokens(model, 30, rows=2)
    logits, _ = read(model, tokens[:, :-1], model.init_state(2))
    wanted = logits.gather(2, tokens[:, 1:, None])[..., 0]
    found, _ = score(model, tokens[:, :-1], tokens[:, 1:], model.init_state(2))
    assert largest_difference(found.double(), wanted) <= 1e-6


def test_initial_weights() -> None:
    options = {"vocab_size": 3000, "cutoffs": (1000, 2000), "d_model": 64, "init_std": 0.05}
    model = TransformerXL(adaptive(div_val=2, **options).config)
    model.reset_parameters()
    for name, weight in model.embedding.named_parameters():
        if name == "cluster_bias":
            assert not weight.any()
            continue
        wanted = 0.01 if "projection" in name else 0.05
        assert float(weight.detach().std()) == pytest.approx(wanted, rel=0.25), name


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float32])
def test_log_probabilities_are_at_least_float32(dtype: torch.dtype) -> None:
    model = adaptive(div_val=2, dtype=dtype)
    hidden, targets = some_hidden(dtype=dtype)
    assert model.logits(hidden).dtype == model.log_prob(hidden, targets).dtype == torch.float32


def test_a_session_reads_and_generates(
    tiny_folder: Callable[..., Path], prose: Callable[..., str]
) -> None:
    folder = tiny_folder(cutoffs=[300, 2000], div_val=2, clamp_len=20)
    session = Session(load_checkpoint(folder, device="cpu"))
    fed = session.feed([prose(60)])
    assert session.score([prose(40)]).bits_per_byte > 0 and fed.tokens > 60
    twin = session.fork()
    written = ["".join(one.generate("And so", max_tokens=8, seed=1)) for one in (session, twin)]
    assert written[0] and written[0] == written[1]
