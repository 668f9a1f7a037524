"""Compressed memory beside `SelfAttention` of compressive-transformer-pytorch.

Its positions and gates are others, so one layer is compared without positions, which here are
W_R = u = w = 0. It wants n_m = n_s and c | n_s, and its auxiliary loss freezes W_k and W_v for
good: they are unfrozen after each step.
"""

import pytest
import torch
from torch import Tensor

from streamlm.config import ModelConfig
from streamlm.memory.eviction import Eviction
from streamlm.models.compression_losses import attention_reconstruction
from streamlm.models.transformer_xl import TransformerXL
from streamlm.state import State
from tests.parity.peers import Compare, peer

compressive = peer(
    "compressive_transformer_pytorch.compressive_transformer_pytorch",
    "compressive-transformer-pytorch 0.4.0",
)
pytestmark = pytest.mark.filterwarnings("ignore")

TOLERANCE = 1e-5
STEPS, ROWS, WIDTH, HEADS = 6, 2, 24, 3


def pair(segment: int, compressed: int, rate: int) -> tuple[TransformerXL, "torch.nn.Module"]:
    """One layer of ours, and theirs with the same weights."""
    config = ModelConfig(
        vocab_size=STEPS * ROWS * segment,
        n_layers=1,
        d_model=WIDTH,
        n_heads=HEADS,
        head_dim=WIDTH // HEADS,
        d_ff=8,
        segment_len=segment,
        memory_len=segment,
        compressed_len=compressed,
        compression_rate=rate,
        init_std=0.2,
    )
    torch.manual_seed(3)
    model = TransformerXL(config)
    theirs = compressive.SelfAttention(
        WIDTH, segment, segment, compressed, cmem_ratio=rate, heads=HEADS
    ).train()
    attention = model.layers[0].attention
    with torch.no_grad():
        for weight in (attention.position.weight, model.content_bias, model.position_bias):
            weight.zero_()
        theirs.to_q.weight.copy_(attention.query.weight)
        theirs.to_kv.weight.copy_(attention.key_value.weight)
        theirs.to_out.weight.copy_(attention.output.weight)
        kernel = theirs.compress_mem_fn.conv
        # Ours is a matrix over c slots in a row: [W, c·W] → their kernel [W, W, c].
        flat = model.compressors[0].weight.unflatten(1, (rate, WIDTH))
        kernel.weight.copy_(flat.transpose(1, 2))
        kernel.bias.zero_()
        theirs.to_out.bias.zero_()
    return model, theirs


def step(model: TransformerXL, tokens: Tensor, state: State) -> tuple[Tensor, State, Eviction]:
    """Ours: what attention adds, the state after the commit, and what that compressed."""
    found: list[Tensor] = []
    hook = model.layers[0].attention.output.register_forward_hook(
        lambda module, inputs, output: found.append(output)
    )
    _, state = model(tokens, state)
    hook.remove()
    state, eviction = model.commit(state)
    assert eviction is not None
    return found[0], state, eviction


@pytest.mark.parametrize(("segment", "compressed", "rate"), [(8, 6, 4), (6, 9, 2), (4, 3, 1)])
def test_steps_of_one_layer(segment: int, compressed: int, rate: int, compare: Compare) -> None:
    model, theirs = pair(segment, compressed, rate)
    # A token of its own for every place, so that the embedding is what they are given.
    tokens = torch.arange(STEPS * ROWS * segment).view(ROWS, -1)
    state, memories = model.init_state(ROWS), None
    for at, piece in enumerate(tokens.split(segment, dim=1)):
        inputs = (model.embedding(piece) * WIDTH**0.5).detach()
        wanted, (memory, kept), loss = theirs(inputs, memories=memories)
        found, state, eviction = step(model, piece, state.detach())
        compare("CT, attention output", found, wanted, tolerance=TOLERANCE)
        past = state.past[0]
        compare("CT, memory", past[:, compressed:], memory, tolerance=TOLERANCE)
        n = min(compressed, at * (segment // rate))
        assert kept.shape[1] == n and int(state.filled[0]) == n + segment
        ours = past[:, compressed - n : compressed]
        if n:
            compare("CT, compressed memory", ours, kept, tolerance=TOLERANCE)
        auxiliary = attention_reconstruction(model, eviction)
        compare("CT, auxiliary loss", auxiliary, loss.squeeze(), tolerance=TOLERANCE)
        if at:
            kernel = theirs.compress_mem_fn.conv.weight
            (right,) = torch.autograd.grad(loss, kernel)
            (gradient,) = torch.autograd.grad(auxiliary, model.compressors[0].weight)
            flat = right.transpose(1, 2).flatten(1)  # [W, W, c] → [W, c·W]
            compare("CT, auxiliary gradient", gradient, flat, tolerance=TOLERANCE)
            assert float(loss) > 1e-3 and float(right.abs().max()) > 1e-3
        theirs.to_kv.weight.requires_grad_(True)
        memories = (memory.detach(), kept.detach())
