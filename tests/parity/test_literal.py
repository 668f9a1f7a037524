"""Our own literal formulas in float64, as a row beside the others; see `tests/test_model.py`."""

import pytest
import torch

from tests.parity.peers import Compare
from tests.reference.losses import negative_log_likelihood
from tests.reference.transformer import Reference
from tests.support.invariants import random_tokens, read, tiny_model


@pytest.mark.parametrize("norm", ["post", "pre"])
@pytest.mark.parametrize("compressed_len", [0, 5])
def test_forward_and_gradients(norm: str, compressed_len: int, compare: Compare) -> None:
    model = tiny_model(norm=norm, compressed_len=compressed_len)
    config = model.config
    literal = Reference(
        dict(model.named_parameters()),
        n_layers=config.n_layers,
        segment_len=config.segment_len,
        memory_len=config.memory_len,
        compressed_len=compressed_len,
        rate=config.compression_rate,
        kind=config.compression,
        norm=norm,
    )
    tokens = random_tokens(model, 17)
    logits, _ = read(model, tokens[:, :16], model.init_state(1))
    pieces = tokens[0, :16].split(config.segment_len)
    wanted = torch.stack([row for piece in pieces for row in literal.read(piece.tolist())[0]])
    compare("float64, logits", logits[0], wanted, tolerance=1e-10)
    targets = tokens[0, 1:]
    ours = torch.nn.functional.cross_entropy(logits[0], targets, reduction="sum")
    theirs = sum(
        (negative_log_likelihood(row, int(t)) for row, t in zip(wanted, targets, strict=True)),
        torch.zeros(()),
    )
    names = [name for name, _ in model.named_parameters() if not name.startswith("compressors")]
    weights = [model.get_parameter(name) for name in names]
    found = torch.autograd.grad(ours, weights)
    right = torch.autograd.grad(theirs, weights)
    for gradient, other in zip(found, right, strict=True):
        compare("float64, gradients", gradient, other, tolerance=1e-10)
