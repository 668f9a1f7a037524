"""The losses of the compressors, for one layer and one stream (Compressive Transformer, §3.2)."""

import math
from collections.abc import Callable, Sequence

import torch
from torch import Tensor

from tests.reference.attention import content_attention, sinusoid, softmax

Group = Callable[[int], tuple[Tensor, Tensor, Tensor | float]]


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


def joint_attention_reconstruction(
    queries: Sequence[Tensor],
    before: Sequence[Tensor],
    evicted: Sequence[Tensor],
    after: Sequence[Tensor],
    groups: Sequence[Group],
    *,
    w_q: Tensor,
    w_kv: Tensor,
    w_r: Tensor,
    u: Tensor,
    w: Tensor,
) -> Tensor:
    """Mean of (att(all as it was) - att(all, groups instead of the evicted))².

    The context is before, evicted, after, queries; query i sees the first i + 1 queries.

    Args:
        groups: for each what stands instead of its c slots, a function of the head: the key, the
            value, and what is added to the score.
    """
    n_heads, head_dim = u.shape
    context = [slot.detach() for slot in (*before, *evicted, *after, *queries)]
    first, rate = len(before), len(evicted) // len(groups)
    w_q, w_kv, w_r, u, w = (weight.detach() for weight in (w_q, w_kv, w_r, u, w))
    errors = []
    for i, query in enumerate(queries):
        at = len(context) - len(queries) + i
        for h in range(n_heads):
            rows = slice(h * head_dim, (h + 1) * head_dim)
            q = w_q[rows] @ query.detach()
            by_place = [
                (q + w[h]) @ (w_r[rows] @ sinusoid(at - j, len(query))) for j in range(at + 1)
            ]
            keys = [w_kv[: len(w_q)][rows] @ slot for slot in context[: at + 1]]
            values = [w_kv[len(w_q) :][rows] @ slot for slot in context[: at + 1]]
            scores = [(q + u[h]) @ key + place for key, place in zip(keys, by_place, strict=True)]
            wanted = _mix(scores, values, head_dim)
            for g, group in enumerate(groups):
                key, value, more = group(h)
                places = by_place[first + g * rate : first + (g + 1) * rate]
                keys.append(key)
                values.append(value)
                content = (q + u[h]) @ key + sum(places, torch.zeros(())) / rate
                scores.append(content + more * math.sqrt(head_dim))
            others = [j for j in range(len(scores)) if not first <= j < first + len(evicted)]
            got = _mix([scores[j] for j in others], [values[j] for j in others], head_dim)
            errors += [(a - b) ** 2 for a, b in zip(got, wanted, strict=True)]
    return sum(errors[1:], errors[0]) / len(errors)


def _mix(scores: Sequence[Tensor], values: Sequence[Tensor], head_dim: int) -> Tensor:
    p = softmax([score / math.sqrt(head_dim) for score in scores])
    return sum((p_j * v for p_j, v in zip(p, values, strict=True)), 0 * values[0])


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
