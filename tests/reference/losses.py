"""The losses of the compressors, for one layer and one stream (Compressive Transformer, §3.2)."""

from collections.abc import Sequence

import torch
from torch import Tensor

from tests.reference.attention import content_attention


def attention_reconstruction(
    queries: Sequence[Tensor],
    evicted: Sequence[Tensor],
    compressed: Sequence[Tensor],
    *,
    w_q: Tensor,
    w_kv: Tensor,
    n_heads: int,
) -> Tensor:
    """Mean of (att(h, evicted) - att(h, compressed))²; only `compressed` carries gradient."""
    errors = []
    for query in queries:
        options = {"w_q": w_q.detach(), "w_kv": w_kv.detach(), "n_heads": n_heads}
        wanted = content_attention(query.detach(), [slot.detach() for slot in evicted], **options)
        got = content_attention(query.detach(), compressed, **options)
        errors += [(a - b) ** 2 for a, b in zip(got, wanted, strict=True)]
    return sum(errors[1:], errors[0]) / len(errors)


def auto_encoding(
    evicted: Sequence[Tensor], compressed: Sequence[Tensor], *, decoder: Tensor
) -> Tensor:
    """Mean of (evicted - g(compressed))², g a transposed convolution with kernel = stride = c.

    Args:
        decoder: [c, W out, W in]: slot k of a group is decoder[k] times what the group became.
    """
    errors = []
    rate = len(decoder)
    for i, slot in enumerate(evicted):
        rebuilt = decoder[i % rate] @ compressed[i // rate]
        errors += [(a - b) ** 2 for a, b in zip(rebuilt, slot.detach(), strict=True)]
    return sum(errors[1:], errors[0]) / len(errors)


def negative_log_likelihood(logits: Tensor, target: int) -> Tensor:
    """-log softmax(logits)[target], in nats."""
    return torch.log(sum(((x - logits.max()).exp() for x in logits), torch.zeros(()))) - (
        logits[target] - logits.max()
    )
