"""Transformer-XL beside `TransfoXLLMHeadModel`, through the converter.

Traps of the peer, all met here: the memory it makes by itself is of zeros that are attended, so it
is given an empty one; with labels it shifts them, dropping a target of every segment, and returns
losses in another order, so its log-probabilities of all words are taken instead.
"""

from collections.abc import Sequence
from dataclasses import replace
from itertools import product
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor

from streamlm.checkpoints.checkpoint import load_model
from streamlm.checkpoints.transfo_xl import convert_transfo_xl, convert_weights, transfo_xl_config
from streamlm.models.transformer_xl import TransformerXL
from streamlm.runtime.stream import score
from tests.parity.peers import Compare, peer
from tests.support.invariants import read

transfo_xl = peer("transformers.models.transfo_xl.modeling_transfo_xl", "transformers 4.35.2")
pytestmark = pytest.mark.filterwarnings("ignore")

TOLERANCE = 5e-5
SMALL: dict[str, Any] = {
    **{"vocab_size": 40, "cutoffs": [10, 18, 30], "div_val": 2, "d_model": 32, "d_embed": 32},
    **{"n_layer": 3, "n_head": 4, "d_head": 6, "d_inner": 48, "mem_len": 40, "clamp_len": -1},
    **{"same_length": False, "dropout": 0.0, "dropatt": 0.0},
}
VOCABULARIES: dict[str, dict[str, Any]] = {
    "div 1": {"div_val": 1},
    "div 1, narrow": {"div_val": 1, "d_embed": 24},
    "div 2": {},
    "div 2, narrow": {"d_embed": 24},
    "div 4": {"div_val": 4, "d_model": 64, "d_embed": 64},
    "no cutoffs": {"cutoffs": [], "div_val": 1},
}
CASES = {
    f"{name}, {'untied' if untied else 'tied'}, {'pre' if pre else 'post'}": {
        **{"untie_r": untied, "pre_lnorm": pre, **vocabulary}
    }
    for (name, vocabulary), untied, pre in product(
        VOCABULARIES.items(), (True, False), (False, True)
    )
}
SLIDING = {name: options for name, options in CASES.items() if name.startswith("div 2, n")}
SEGMENTATIONS = {"segments of 1": [1] * 33, "of 7": [7] * 4 + [5], "irregular": [3, 11, 1, 9, 2, 7]}


def peer_model(**options: Any) -> Any:
    """A random model of theirs, with log-probabilities above -30: float32 steps by 2e-6 there."""
    model = transfo_xl.TransfoXLLMHeadModel(
        transfo_xl.TransfoXLConfig(**{**SMALL, **options})
    ).eval()
    random = torch.Generator().manual_seed(7)
    with torch.no_grad():
        for name, weight in model.named_parameters():
            noise = torch.randn(weight.shape, generator=random)
            if name.endswith("layer_norm.weight"):
                weight.copy_(1 + 0.2 * noise)
            elif weight.ndim == 1:
                weight.copy_(0.3 * noise)
            else:
                weight.copy_(noise / max(weight.shape) ** 0.5)
    return model


def converted(theirs: Any, **lengths: int) -> TransformerXL:
    config = replace(transfo_xl_config(theirs.config.to_dict()), **lengths)
    model = TransformerXL(config)
    model.load_state_dict(convert_weights(theirs.state_dict(), config))
    return model.freeze()


def tokens_of(theirs: Any, n: int) -> Tensor:
    random = torch.Generator().manual_seed(8)
    return torch.randint(0, theirs.config.vocab_size, (2, n), generator=random)


@torch.no_grad()
def peer_log_probs(theirs: Any, tokens: Tensor, sizes: Sequence[int]) -> Tensor:
    """[B, n, V], read in segments of these sizes from an empty memory."""
    mems, found = [torch.zeros(0, 2, theirs.config.d_model)] * theirs.config.n_layer, []
    for piece in tokens.split(list(sizes), dim=1):
        out = theirs(piece, mems=mems)
        mems = out.mems
        found.append(out.prediction_scores)
    return torch.cat(found, dim=1)


@pytest.mark.parametrize("options", CASES.values(), ids=CASES)
def test_all_of_the_stream_in_memory(options: dict[str, Any], compare: Compare) -> None:
    """The past fits into memory, so that no segmentation of either side matters."""
    theirs = peer_model(**options)
    tokens = tokens_of(theirs, 33)
    model = converted(theirs, segment_len=7)
    single = converted(theirs, segment_len=1)
    for sizes in SEGMENTATIONS.values():
        wanted = peer_log_probs(theirs, tokens, sizes)
        training, _ = read(model, tokens, model.init_state(2))
        compare("XL, training pass", _log(training), wanted, tolerance=TOLERANCE)
        with torch.no_grad():
            for ours, steps in ((model, sizes), (model, [33]), (single, [33])):
                cached, _ = read(ours, tokens, ours.init_state(2), sizes=steps)
                compare("XL, cached pass", _log(cached), wanted, tolerance=TOLERANCE)
            decoded, _ = read(model, tokens, model.init_state(2), sizes=[1] * 33)
            compare("XL, token by token", _log(decoded), wanted, tolerance=TOLERANCE)
        found, _ = score(model, tokens[:, :-1], tokens[:, 1:], model.init_state(2))
        known = wanted[:, :-1].gather(2, tokens[:, 1:, None])[..., 0]
        compare("XL, known targets alone", found, known, tolerance=TOLERANCE)


def _log(logits: Tensor) -> Tensor:
    return logits.log_softmax(dim=-1)


@pytest.mark.parametrize("options", SLIDING.values(), ids=SLIDING)
@pytest.mark.parametrize(("segment", "memory"), [(7, 14), (7, 5), (1, 9)])
def test_memory_that_slides(
    options: dict[str, Any], segment: int, memory: int, compare: Compare
) -> None:
    """Three times as long as memory and more: with a plain mask, segments must be equal."""
    theirs = peer_model(**options, mem_len=memory)
    n = 8 * segment if segment > 1 else 40
    tokens = tokens_of(theirs, n)
    model = converted(theirs, segment_len=segment)
    assert model.config.memory_len == memory
    wanted = peer_log_probs(theirs, tokens, [segment] * (n // segment))
    with torch.no_grad():
        for sizes in ([n], [1] * n):
            found, _ = read(model, tokens, model.init_state(2), sizes=sizes)
            compare("XL, sliding memory", _log(found), wanted, tolerance=TOLERANCE)


@pytest.mark.parametrize("pre", [False, True])
def test_clamped_distances(pre: bool, compare: Compare) -> None:
    theirs = peer_model(pre_lnorm=pre, clamp_len=6)
    tokens = tokens_of(theirs, 33)
    model = converted(theirs, segment_len=7)
    with torch.no_grad():
        found, _ = read(model, tokens, model.init_state(2))
        unclamped = converted(peer_model(pre_lnorm=pre), segment_len=7)
        free, _ = read(unclamped, tokens, unclamped.init_state(2))
    for sizes in SEGMENTATIONS.values():
        wanted = peer_log_probs(theirs, tokens, sizes)
        compare("XL, clamped distances", _log(found), wanted, tolerance=TOLERANCE)
    assert float((found - free).abs().max()) > 1e-2, "clamping matters"


@pytest.mark.parametrize("safe", [True, False])
def test_the_directory_they_write(safe: bool, tmp_path: Path, compare: Compare) -> None:
    theirs = peer_model()
    theirs.save_pretrained(tmp_path / "in", safe_serialization=safe)
    convert_transfo_xl(tmp_path / "in", tmp_path / "out")
    model = load_model(tmp_path / "out", device="cpu")
    tokens = tokens_of(theirs, 33)
    with torch.no_grad():
        found, _ = read(model, tokens, model.init_state(2))
    wanted = peer_log_probs(theirs, tokens, [33])
    compare("XL, from their directory", _log(found), wanted, tolerance=TOLERANCE)
