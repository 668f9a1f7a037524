"""The forecaster beside the authors' code, with its weights and its sampled keys.

That code is no package: INFORMER2020 names a checkout of github.com/zhouhaoyi/Informer2020.
"""

import os
import sys
from collections.abc import Iterator
from importlib import import_module
from typing import Any

import pytest
import torch
from torch import Tensor

from streamlm.forecast.config import ForecastConfig
from streamlm.forecast.informer import Informer
from streamlm.forecast.series import Batch
from tests.parity.peers import Compare

CHECKOUT = os.environ.get("INFORMER2020", "")
TOLERANCE = 1e-5

pytestmark = pytest.mark.skipif(not CHECKOUT, reason="INFORMER2020 names no checkout")


@pytest.fixture(scope="module")
def peer() -> Iterator[Any]:
    """Their module of models."""
    sys.path.insert(0, CHECKOUT)
    try:
        yield import_module("models.model")
    finally:
        sys.path.remove(CHECKOUT)


LAYER = {
    **{f"attention.{part}": f"attention.{part}_projection" for part in ("query", "key", "value")},
    "attention.output": "attention.out_projection",
    "feed_forward.0": "conv1",
    "feed_forward.3": "conv2",
}


def their_name(name: str, *, stacked: bool) -> str:
    """The name that they give to one of our weights."""
    module, _, kind = name.rpartition(".")
    parts = module.split(".")
    if parts[0] in ("past", "future"):
        side = {"past": "enc", "future": "dec"}[parts[0]]
        inner = {
            "values": "value_embedding.tokenConv",
            "marks": "temporal_embedding.embed",
        }[parts[1]]
        return f"{side}_embedding.{inner}.{kind}"
    if parts[0] == "output":
        return f"projection.{kind}"
    if parts[0] == "norm":
        return f"decoder.norm.{kind}"
    if parts[0] == "encoders":
        head = f"encoder.encoders.{parts[1]}" if stacked else "encoder"
        if parts[2] == "norm":
            return f"{head}.norm.{kind}"
        if parts[2] == "distils":
            part = {"convolution": "downConv", "norm": "norm"}[parts[4]]
            return f"{head}.conv_layers.{parts[3]}.{part}.{kind}"
        return f"{head}.attn_layers.{parts[3]}.{_inner(parts[4:])}.{kind}"
    inner = _inner(parts[2:])
    if parts[2] == "attention":
        inner = f"self_{inner}"
    return f"decoder.layers.{parts[1]}.{inner}.{kind}"


def _inner(parts: list[str]) -> str:
    if parts[0] == "norms":
        return f"norm{int(parts[1]) + 1}"
    name = ".".join(parts)
    cross = name.startswith("cross_")
    return "cross_" * cross + LAYER[name.removeprefix("cross_")]


def with_our_weights(theirs: torch.nn.Module, ours: Informer, *, stacked: bool) -> None:
    state = theirs.state_dict()
    given = set()
    for name, weight in ours.state_dict().items():
        other = their_name(name, stacked=stacked)
        given.add(other)
        assert state[other].numel() == weight.numel(), (name, other)
        state[other] = weight.reshape(state[other].shape)
    assert {name for name in state if not name.endswith(".pe")} == given
    theirs.load_state_dict(state)


@pytest.mark.parametrize("layers", [(2,), (3,), (3, 2, 1)], ids=str)
@pytest.mark.parametrize("model", ["informer", "transformer"])
@pytest.mark.parametrize("n_decoder", [1, 2])
def test_forecasts_and_gradients(
    layers: tuple[int, ...], model: str, n_decoder: int, peer: Any, compare: Compare
) -> None:
    config = ForecastConfig(
        model=model,
        columns=tuple("abcdefg"),
        d_model=32,
        n_heads=4,
        d_ff=48,
        input_len=96,
        label_len=48,
        horizon=24,
        encoder_layers=layers,
        decoder_layers=n_decoder,
        dropout=0.0,
    )
    stacked = len(layers) > 1
    torch.manual_seed(1)
    ours = Informer(config).double()
    options = {
        "factor": config.factor,
        "d_model": config.d_model,
        "n_heads": config.n_heads,
        "e_layers": list(layers) if stacked else layers[0],
        "d_layers": n_decoder,
        "d_ff": config.d_ff,
        "dropout": 0.0,
        "attn": "prob" if model == "informer" else "full",
        "embed": "timeF",
        "freq": "h",
        "activation": "gelu",
        "distil": config.distil,
        "mix": False,  # which scrambles heads and time
    }
    if model == "transformer":
        options["distil"] = False
    kind = peer.InformerStack if stacked else peer.Informer
    if stacked:  # their stack always distils
        if model == "transformer":
            pytest.skip("their stack of replicas always distils")
        options.pop("distil")
    theirs = kind(7, 7, 7, config.input_len, config.label_len, config.horizon, **options).double()
    with_our_weights(theirs, ours, stacked=stacked)
    generator = torch.Generator().manual_seed(2)

    def made(rows: int, columns: int) -> Tensor:
        return torch.randn(2, rows, columns, generator=generator, dtype=torch.float64)

    batch = Batch(made(96, 7), made(96, 4), made(24, 7), made(24, 4))
    values = torch.cat([batch.past[:, -48:], torch.zeros(2, 24, 7, dtype=torch.float64)], dim=1)
    marks = torch.cat([batch.past_marks[:, -48:], batch.future_marks], dim=1)
    for training in (False, True):
        ours.train(training)
        theirs.train(training)
        torch.manual_seed(3)  # both draw the same keys, in the same order
        found = ours(batch)
        torch.manual_seed(3)
        wanted = theirs(batch.past, batch.past_marks, values, marks)
        name = f"Informer2020, {model}{', stack' * stacked}"
        compare(f"{name}: forecast", found, wanted, tolerance=TOLERANCE)
    found.square().mean().backward()
    wanted.square().mean().backward()
    grads = dict(theirs.named_parameters())
    for weight_name, weight in ours.named_parameters():
        other = grads[their_name(weight_name, stacked=stacked)].grad
        assert weight.grad is not None and other is not None
        theirs_grad = other.reshape(weight.shape)
        compare(f"{name}: gradients", weight.grad, theirs_grad, tolerance=TOLERANCE)
