"""Relative attention in one kernel: the score of a distance is read where it lies, not shifted.

    out_i = Σ_j softmax_j(q_i·k_j + S[i, T - i + j]) v_j,    j ≥ P - filled,  j ≤ i + N - T

q is (q + u)/√E. S [B, H, T, N+1] holds the scores by distance, (q + w)/√E · r, with column m for
the distance N - m, as `RelativeAttention.position_scores` has them before `relative_shift`: the
product of one matrix multiplication. Neither the shifted nor the masked scores are ever in memory.
The algorithm is FlashAttention's (Dao, 2023): softmax by blocks of keys, and its weights computed
again in the backward pass, once by rows for dq and dS and once by columns for dk and dv.

Shapes: B batch, H heads, T queries, P past, N = P + T keys, E head_dim, a power of two of at least
16. Imports Triton, so import it only where that is installed. TRITON_INTERPRET=1 runs it on a CPU.
"""

from typing import Any

import torch
import triton
import triton.language as tl
from torch import Tensor


@triton.jit
def _rows(base, b, h, index, e, sb, sh, sr, size):  # type: ignore[no-untyped-def]
    """Rows `index` of one head of [B, H, size, E]; 0 where there are none."""
    at = base + b * sb + h * sh + index[:, None] * sr + e[None, :]
    return tl.load(at, mask=(index < size)[:, None], other=0.0)


@triton.jit
def _seen(i, j, first, T, N):  # type: ignore[no-untyped-def]
    """Which queries i may look at which keys j: [BT, BN]."""
    causal = j[None, :] <= i[:, None] + N - T
    return (i < T)[:, None] & (j < N)[None, :] & (j[None, :] >= first) & causal


@triton.jit
def _forward(  # type: ignore[no-untyped-def]
    Q, K, V, S, F, OUT, L,
    sqb, sqh, sqt, skb, skh, skt, svb, svh, svt, ssb, ssh, sst, sob, soh, sot,
    H, T, N, P, E: tl.constexpr, BT: tl.constexpr, BN: tl.constexpr,
):  # fmt: skip
    block, row = tl.program_id(0), tl.program_id(1)
    b, h = row // H, row % H
    i, e = block * BT + tl.arange(0, BT), tl.arange(0, E)
    q = _rows(Q, b, h, i, e, sqb, sqh, sqt, T)
    first = P - tl.load(F + b).to(tl.int32)  # empty slots stand to the left of it
    stop = tl.minimum(N, block * BT + BT + N - T)  # behind it no query of the block looks
    start = (tl.maximum(first, 0) // BN) * BN
    best = tl.full([BT], -float("inf"), tl.float32)
    total = tl.zeros([BT], tl.float32)
    out = tl.zeros([BT, E], tl.float32)
    for begin in range(start, stop, BN):
        j = begin + tl.arange(0, BN)
        k = _rows(K, b, h, j, e, skb, skh, skt, N)
        v = _rows(V, b, h, j, e, svb, svh, svt, N)
        seen = _seen(i, j, first, T, N)
        s = tl.dot(q, tl.trans(k), input_precision="ieee")
        at = S + b * ssb + h * ssh + i[:, None] * sst + (T - i[:, None] + j[None, :])
        s += tl.load(at, mask=seen, other=0.0).to(tl.float32)
        s = tl.where(seen, s, -float("inf"))
        new = tl.maximum(best, tl.max(s, 1))
        shift = tl.where(new == -float("inf"), 0.0, new)  # nothing seen yet: no inf - inf
        weights = tl.exp(s - shift[:, None])
        scale = tl.exp(best - shift)
        total = total * scale + tl.sum(weights, 1)
        out = out * scale[:, None] + tl.dot(weights.to(v.dtype), v, input_precision="ieee")
        best = new
    out = out / total[:, None]
    at = OUT + b * sob + h * soh + i[:, None] * sot + e[None, :]
    tl.store(at, out.to(OUT.dtype.element_ty), mask=(i < T)[:, None])
    tl.store(L + row * T + i, best + tl.log(total), mask=i < T)


@triton.jit
def _scores_back(  # type: ignore[no-untyped-def]
    q, k, v, do, lse, delta, scores, seen
):
    """Weights of a block, and the gradient of its scores, from what the forward pass kept."""
    s = tl.dot(q, tl.trans(k), input_precision="ieee")
    s += tl.load(scores, mask=seen, other=0.0).to(tl.float32)
    weights = tl.where(seen, tl.exp(s - lse[:, None]), 0.0)
    back = tl.dot(do, tl.trans(v), input_precision="ieee")
    return weights, weights * (back - delta[:, None])


@triton.jit
def _backward_rows(  # type: ignore[no-untyped-def]
    Q, K, V, S, F, DO, L, D, DQ, DS,
    sqb, sqh, sqt, skb, skh, skt, svb, svh, svt, ssb, ssh, sst, sdb, sdh, sdt, sgb, sgh, sgt,
    H, T, N, P, E: tl.constexpr, BT: tl.constexpr, BN: tl.constexpr,
):  # fmt: skip
    block, row = tl.program_id(0), tl.program_id(1)
    b, h = row // H, row % H
    i, e = block * BT + tl.arange(0, BT), tl.arange(0, E)
    q = _rows(Q, b, h, i, e, sqb, sqh, sqt, T)
    do = _rows(DO, b, h, i, e, sdb, sdh, sdt, T)
    lse = tl.load(L + row * T + i, mask=i < T, other=0.0)
    delta = tl.load(D + row * T + i, mask=i < T, other=0.0)
    first = P - tl.load(F + b).to(tl.int32)
    stop = tl.minimum(N, block * BT + BT + N - T)
    start = (tl.maximum(first, 0) // BN) * BN
    dq = tl.zeros([BT, E], tl.float32)
    for begin in range(start, stop, BN):
        j = begin + tl.arange(0, BN)
        k = _rows(K, b, h, j, e, skb, skh, skt, N)
        v = _rows(V, b, h, j, e, svb, svh, svt, N)
        seen = _seen(i, j, first, T, N)
        at = b * ssb + h * ssh + i[:, None] * sst + (T - i[:, None] + j[None, :])
        _, ds = _scores_back(q, k, v, do, lse, delta, S + at, seen)
        tl.store(DS + at, ds.to(DS.dtype.element_ty), mask=seen)
        dq += tl.dot(ds.to(k.dtype), k, input_precision="ieee")
    at = DQ + b * sgb + h * sgh + i[:, None] * sgt + e[None, :]
    tl.store(at, dq.to(DQ.dtype.element_ty), mask=(i < T)[:, None])


@triton.jit
def _backward_columns(  # type: ignore[no-untyped-def]
    Q, K, V, S, F, DO, L, D, DK, DV,
    sqb, sqh, sqt, skb, skh, skt, svb, svh, svt, ssb, ssh, sst, sdb, sdh, sdt, sgb, sgh, sgt,
    H, T, N, P, E: tl.constexpr, BT: tl.constexpr, BN: tl.constexpr,
):  # fmt: skip
    block, row = tl.program_id(0), tl.program_id(1)
    b, h = row // H, row % H
    j, e = block * BN + tl.arange(0, BN), tl.arange(0, E)
    k = _rows(K, b, h, j, e, skb, skh, skt, N)
    v = _rows(V, b, h, j, e, svb, svh, svt, N)
    first = P - tl.load(F + b).to(tl.int32)
    dk = tl.zeros([BN, E], tl.float32)
    dv = tl.zeros([BN, E], tl.float32)
    low = tl.maximum(block * BN - (N - T), 0)  # the first query that looks at the block
    for begin in range((low // BT) * BT, T, BT):
        i = begin + tl.arange(0, BT)
        q = _rows(Q, b, h, i, e, sqb, sqh, sqt, T)
        do = _rows(DO, b, h, i, e, sdb, sdh, sdt, T)
        lse = tl.load(L + row * T + i, mask=i < T, other=0.0)
        delta = tl.load(D + row * T + i, mask=i < T, other=0.0)
        at = S + b * ssb + h * ssh + i[:, None] * sst + (T - i[:, None] + j[None, :])
        weights, ds = _scores_back(q, k, v, do, lse, delta, at, _seen(i, j, first, T, N))
        dv += tl.dot(tl.trans(weights.to(do.dtype)), do, input_precision="ieee")
        dk += tl.dot(tl.trans(ds.to(q.dtype)), q, input_precision="ieee")
    at = b * sgb + h * sgh + j[:, None] * sgt + e[None, :]
    tl.store(DK + at, dk.to(DK.dtype.element_ty), mask=(j < N)[:, None])
    tl.store(DV + at, dv.to(DV.dtype.element_ty), mask=(j < N)[:, None])


def _strides(*tensors: Tensor) -> list[int]:
    for tensor in tensors:
        if tensor.stride(3) != 1:
            raise ValueError(f"strides {tensor.stride()}; allowed: 1 in the last dimension")
    return [tensor.stride(index) for tensor in tensors for index in range(3)]


class _Relative(torch.autograd.Function):
    @staticmethod
    def forward(
        ctx: Any, q: Tensor, k: Tensor, v: Tensor, scores: Tensor, filled: Tensor,
        past_len: int, bt: int, bn: int,
    ) -> Tensor:  # fmt: skip
        b, h, t, e = q.shape
        out = torch.empty_like(q)
        lse = torch.empty(b * h, t, dtype=torch.float32, device=q.device)
        _forward[(triton.cdiv(t, bt), b * h)](
            q, k, v, scores, filled, out, lse, *_strides(q, k, v, scores, out),
            h, t, k.shape[2], past_len, E=e, BT=bt, BN=bn,
        )  # fmt: skip
        ctx.save_for_backward(q, k, v, scores, filled, out, lse)
        ctx.sizes = past_len, bt, bn
        return out

    @staticmethod
    def backward(ctx: Any, *gradients: Tensor) -> tuple[Tensor | None, ...]:
        q, k, v, scores, filled, out, lse = ctx.saved_tensors
        past_len, bt, bn = ctx.sizes
        do = gradients[0].contiguous()
        (b, h, t, e), n = q.shape, k.shape[2]
        delta = (do.float() * out.float()).sum(-1).reshape(b * h, t).contiguous()
        dq, dk, dv = (torch.empty(x.shape, dtype=x.dtype, device=x.device) for x in (q, k, v))
        ds = torch.zeros_like(scores)  # cells that no query sees are not written
        given = (q, k, v, scores, filled, do, lse, delta)
        strides = _strides(q, k, v, scores, do)
        sizes = {"E": e, "BT": bt, "BN": bn}
        _backward_rows[(triton.cdiv(t, bt), b * h)](
            *given, dq, ds, *strides, *_strides(dq), h, t, n, past_len, **sizes
        )
        _backward_columns[(triton.cdiv(n, bn), b * h)](
            *given, dk, dv, *strides, *_strides(dk), h, t, n, past_len, **sizes
        )
        return dq, dk, dv, ds, None, None, None, None


def relative_attention(
    q: Tensor, k: Tensor, v: Tensor, scores: Tensor, filled: Tensor, past_len: int,
    *, block: tuple[int, int] = (64, 64),
) -> Tensor:  # fmt: skip
    """Attention of the T newest columns over all N: [B, H, T, E].

    Args:
        q: [B, H, T, E], scaled and with u; k, v: [B, H, N, E].
        scores: [B, H, T, N+1] by distance; see the module's text.
        filled: [B] real slots of the past; past_len: P.
        block: queries and keys that a program takes at a time, powers of two of at least 16.
    """
    out: Tensor = _Relative.apply(q, k, v, scores, filled, past_len, *block)
    return out
