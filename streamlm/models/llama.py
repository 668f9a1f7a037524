"""LlamaModel: Llama-family models that read without end.

Key columns are [pinned S | compressed C | memory M | open segment T]. A slot holds the keys, before
rotation, and the values of a token, so nothing is projected twice. Keys are rotated to *compact*
positions: the slots that are visible are numbered without gaps, however much of the stream was
forgotten between them. Positions thus never exceed those that the model was trained on.

Pinned slots are the first tokens of the stream (Xiao et al. 2024); they become visible when they
have left memory. The file is long because one class is all that differs from other models.
"""

from dataclasses import replace
from typing import Any, NamedTuple, cast

import numpy as np
import torch
from torch import Tensor, nn
from torch.nn import functional as F

from streamlm.config import JOINT
from streamlm.memory.compression import Mean, MostUsed
from streamlm.memory.eviction import Eviction
from streamlm.memory.selection import HeadSelect
from streamlm.models.base import Observer
from streamlm.models.cache import Cache, CacheWriter, Pair, joined
from streamlm.models.call import Attended, Call, Projected
from streamlm.models.compressed import CompressedModel
from streamlm.models.layers.attention import attention_mask
from streamlm.models.layers.int8_rows import Int8Rows
from streamlm.models.layers.int8_step import Int8Step
from streamlm.models.layers.llama_block import LlamaBlock
from streamlm.models.layers.rotary import inverse_frequencies, rotate, rotation
from streamlm.models.llama_config import LlamaConfig
from streamlm.models.selection_loss import SelectionEviction, selection_loss
from streamlm.models.slot_grid import pack, snap, unpack
from streamlm.state import State

# Carried tensors: slots of the first tokens, [L, B, S, W] float32; and, while gates are trained,
# rotated queries of the open segment, [L, B, H, T, E].
PINNED, QUERIES = "pinned", "queries"


class _Context(NamedTuple):
    """What all layers of one call share.

    Attributes:
        bias: [B or 1, 1, t · H / H_kv, K], 0 where attention is allowed and -inf elsewhere.
        cos, sin: of the new tokens' positions, [t, E] or [B, 1, t, E].
    """

    bias: Tensor
    cos: Tensor
    sin: Tensor


class LlamaModel(CompressedModel):
    """A Llama, SmolLM, Qwen or Mistral with bounded memory."""

    reads_any_phase = True
    orders_weights = False  # too many for a second copy
    settings = LlamaConfig
    config: LlamaConfig
    frequencies: Tensor

    def __init__(self, config: LlamaConfig) -> None:
        super().__init__(config)
        self.layers = nn.ModuleList(LlamaBlock(config) for _ in range(config.n_layers))
        self.final_norm = nn.RMSNorm(config.d_model, eps=config.norm_eps)
        if not config.tied:
            self.output = nn.Linear(config.d_model, config.vocab_size, bias=False)
        self.dropout = nn.Dropout(0.0)
        self._attention_dtype: torch.dtype | None = None  # that of activations
        self.step: Int8Step | None = None
        n_compressors = config.n_layers if config.compressed_len else 0
        self.compressors = nn.ModuleList(_compressor(config) for _ in range(n_compressors))
        frequencies, self.rotation_factor = inverse_frequencies(
            config.head_dim, config.rope_theta, config.rope_scaling
        )
        # The error of pooling would need queries, which a state of keys and values does not have.
        self.reports_memory = not (config.compressed_len and config.compression == "mean")
        self.register_buffer("frequencies", frequencies, persistent=False)
        self.reset_parameters()

    def reset_parameters(self) -> None:
        """N(0, init_std); norms are 1, biases 0."""
        std = self.config.init_std
        for module in self.modules():
            if isinstance(module, (nn.Linear, nn.Embedding)):
                nn.init.normal_(module.weight, std=std)
            if isinstance(module, nn.Linear) and module.bias is not None:
                nn.init.zeros_(module.bias)
            if isinstance(module, HeadSelect):
                module.reset(std)

    def compression_parameters(self) -> list[nn.Parameter]:
        """Gates of `select`."""
        return list(self.compressors.parameters())

    def auxiliary_loss(self, eviction: Eviction) -> tuple[Tensor, Tensor]:
        """The loss of the gates; see `Model.auxiliary_loss`."""
        if not isinstance(eviction, SelectionEviction):
            return super().auxiliary_loss(eviction)
        return selection_loss(self, eviction), eviction.rows.sum()

    # -- precision --------------------------------------------------------------------------------

    @property
    def device(self) -> torch.device:
        return cast(Tensor, self.final_norm.weight).device

    @property
    def dtype(self) -> torch.dtype:
        """Precision of activations."""
        return cast(Tensor, self.final_norm.weight).dtype

    @property
    def attention_dtype(self) -> torch.dtype:
        """Precision of queries, and of keys and values in a cache."""
        return self._attention_dtype or self.dtype

    def attend_in(self, dtype: torch.dtype) -> None:
        """Use another precision than that of activations; caches of the model become invalid.

        A `step` is of one precision, so it is dropped.
        """
        self._attention_dtype, self.step = dtype, None
        if self.frozen is not None:
            self.freeze()

    @property
    def slot_dtype(self) -> torch.dtype:
        """See `LlamaConfig.slots`."""
        kinds = {"float32": torch.float32, "bfloat16": torch.bfloat16, "int8": torch.bfloat16}
        return kinds.get(self.config.slots, self.dtype)

    def as_slots(self, projected: Tensor) -> Tensor:
        """Round keys and values to the precision of slots."""
        slots = projected.to(self.slot_dtype)
        return snap(slots, self.config.head_dim) if self.config.slots == "int8" else slots

    def pack_slots(self, slots: Tensor) -> tuple[np.ndarray, str]:
        """As bytes with exponents where `LlamaConfig.slots` is "int8"; see `Model.pack_slots`."""
        if self.config.slots != "int8":
            return super().pack_slots(slots)
        return pack(slots, self.config.head_dim), "int8"

    def unpack_slots(self, packed: np.ndarray, format: str) -> Tensor:
        """See `Model.unpack_slots`."""
        if format != "int8" or self.config.slots != "int8":
            return super().unpack_slots(packed, format)
        width = self.config.slot_width + 2 * self.config.n_kv_heads
        if packed.dtype != np.int8 or packed.shape[-1] != width:
            given = f"{packed.dtype} {packed.shape}"
            raise ValueError(f"slots of {given}; allowed: int8 with {width} numbers a slot")
        return unpack(packed, self.config.head_dim, self.slot_dtype)

    # -- reading ----------------------------------------------------------------------------------

    def embed(self, tokens: Tensor) -> Tensor:
        """[B, t] ids → [B, t, D], unscaled."""
        out: Tensor = self.embedding(tokens)
        return out.to(self.dtype)

    def logits(self, hidden: Tensor) -> Tensor:
        """Output layer: [..., D] → [..., V]."""
        if self.output is not None:
            out: Tensor = self.output(hidden)
            return out
        return F.linear(hidden, *self.output_weights())

    def output_weights(self) -> tuple[Tensor, Tensor | None]:
        """See `Model.output_weights`; a tied output has no bias."""
        if self.output is None:
            return cast(nn.Embedding, self.embedding).weight, None
        return super().output_weights()

    def init_state(self, batch_size: int = 1) -> State:
        """The state of new streams."""
        state, config = super().init_state(batch_size), self.config
        lead, carried = (config.n_layers, batch_size), {}
        if config.pinned_len:
            wide = torch.promote_types(self.slot_dtype, torch.float32)
            shape: tuple[int, ...] = (*lead, config.pinned_len, config.slot_width)
            carried[PINNED] = torch.zeros(shape, device=self.device, dtype=wide)
        if self.training and config.compression_loss == JOINT:
            shape = (*lead, config.n_heads, config.segment_len, config.head_dim)
            carried[QUERIES] = torch.zeros(shape, device=self.device, dtype=self.attention_dtype)
        return replace(state, carried=carried)

    def past_columns(self, state: State) -> int:
        """Pinned, compressed and memory slots."""
        return self.config.pinned_len + self.config.past_len

    def derive(self) -> Any:
        """cos and sin of all compact positions, two [columns, E], at least in float32."""
        positions = torch.arange(self.config.columns, device=self.device)
        cos, sin = rotation(self.frequencies, self.rotation_factor, positions)
        wide = torch.promote_types(self.dtype, torch.float32)
        return cos.to(wide), sin.to(wide)

    def call_context(self, call: Call) -> "_Context":
        """Mask, and rotation of the new tokens."""
        config, state, t = self.config, call.state, call.n_queries
        cos, sin = call.position_keys
        first = config.pinned_len + config.past_len
        n_near = call.n_keys - config.pinned_len
        if state.aligned:
            at: Any = slice(first + state.phase, first + state.phase + t)
            near = attention_mask(state.filled, config.past_len, state.phase, t, n_keys=n_near)
        else:
            device = state.filled.device
            query = state.lengths()[:, None] + config.past_len
            query = query + torch.arange(t, device=device)  # [B, t]
            at = (query + config.pinned_len)[:, None]
            key = torch.arange(n_near, device=device)
            real = key >= config.past_len - state.filled[:, None]
            near = ((key <= query[..., None]) & real[:, None])[:, None]
        return _Context(self._bias(state, near), cos[at], sin[at])

    def segment_bias(self, state: State) -> Tensor:
        """Bias of a whole segment's queries, [B, 1, T · H / H_kv, S + P + T]; see `_Context`.

        Args:
            state: with a full segment.
        """
        config = self.config
        return self._bias(
            state, attention_mask(state.filled, config.past_len, 0, config.segment_len)
        )

    def _bias(self, state: State, near: Tensor) -> Tensor:
        """From a mask without pinned slots, [B, 1, t, K - S]."""
        mask = torch.cat([self._pinned_mask(state).expand(-1, -1, near.shape[2], -1), near], dim=3)
        bias = torch.zeros(mask.shape, device=mask.device, dtype=self.attention_dtype)
        bias = bias.masked_fill(~mask, -torch.inf)
        return bias.repeat(1, 1, self.config.n_heads // self.config.n_kv_heads, 1)

    def fixes_columns(self, state: State, t: int) -> bool:
        """Also where each shape of a product is compiled: see `llama_block.padding`."""
        compiled = self.attention_dtype == torch.bfloat16 and self.device.type == "cpu"
        return compiled or super().fixes_columns(state, t)

    def project_new(self, index: int, x: Tensor, call: Call) -> Projected:
        """Rotated queries, slots, and rotated keys and values."""
        block, context = cast(LlamaBlock, self.layers[index]), call.context
        query, projected = block.attention.project(block.read(x))
        slots = self.as_slots(projected)
        query = rotate(query, context.cos, context.sin).to(self.attention_dtype)
        return Projected(query, slots, self._pair(index, slots, context.cos, context.sin))

    def project_training(self, index: int, x: Tensor, call: Call) -> Projected:
        """As `project_new`, with all keys and values; older slots are constants."""
        query, slots, pair = self.project_new(index, x, call)
        seen = joined(self.project_past(index, call.state), self.project_open(index, call.state))
        return Projected(query, slots, joined(seen, pair))

    def attend(self, index: int, inputs: Tensor, pair: Pair, call: Call) -> Attended:
        """Attention of rotated queries; see `SegmentedModel.attend`."""
        out, weights = cast(LlamaBlock, self.layers[index]).attention.attend(
            inputs, *pair, bias=call.context.bias, want_weights=call.want_weights
        )
        if QUERIES not in call.state.carried:
            return Attended(out, weights)
        start, before = call.state.phase, call.state.carried[QUERIES][index]
        stop = start + call.n_queries
        parts = [before[:, :, :start], inputs.detach(), before[:, :, stop:]]
        return Attended(out, weights, {QUERIES: torch.cat(parts, dim=2)})

    def read(
        self,
        x: Tensor,
        state: State,
        *,
        cache: Cache | None = None,
        observe: Observer | None = None,
        finish: bool = True,
    ) -> tuple[Tensor, State]:
        """All layers; see `Model.read`.

        Single tokens take `Int8Step` if the model has one, and those of rows the cache's step.
        """
        step, config = self.step, self.config
        slow = torch.is_grad_enabled() or config.wants_usage or observe is not None
        slow = slow or QUERIES in state.carried  # which the step does not record
        if not slow and cache is not None and isinstance(cache.step, Int8Rows) and x.shape[1] == 1:
            return self._read_rows(x, state, cache)
        if step is None or slow or x.shape[:2] != (1, 1):
            return super().read(x, state, cache=cache, observe=observe, finish=finish)
        writer = CacheWriter(self._cache_of(state, cache), state, 1)
        at = config.columns - config.segment_len + state.phase
        context = self.call_context(Call(state, 1, config.columns, self.derived()))
        hidden, slots = step(
            x[0],
            rotation=(context.cos, context.sin),
            bias=context.bias[0],
            pairs=writer.cache.row(),
            column=at,
        )
        writer.segment[:, 0, state.phase] = slots
        length = (state.phase + 1,)
        after = replace(state, segment=writer.segment, position=state.position + 1, length=length)
        writer.cache.follow(after, self.frozen)
        return hidden[None].clone(), after

    def attention_changes(self, state: State) -> bool:
        """Also where queries are recorded; see `SegmentedModel.attention_changes`."""
        return super().attention_changes(state) or QUERIES in state.carried

    def reads_alike(self, state: State) -> bool:
        """Not where queries are recorded."""
        return super().reads_alike(state) and QUERIES not in state.carried

    def rows_step(self, rows: int) -> "Int8Rows | None":
        """`Int8Rows` if the model has a `step`; see `SegmentedModel.rows_step`."""
        if self.step is None or rows == 1:
            return None
        return Int8Rows(
            self.layers,
            rows=rows,
            eps=self.config.norm_eps,
            columns=self.config.columns,
            dtype=self.attention_dtype,
            as_slots=self.as_slots,
        )

    def _read_rows(self, x: Tensor, state: State, cache: Cache) -> tuple[Tensor, State]:
        config = self.config
        writer = CacheWriter(self._cache_of(state, cache), state, 1)
        context = self.call_context(Call(state, 1, config.columns, self.derived()))
        length = torch.tensor(state.length)
        hidden, slots = cache.step(
            x[:, 0],
            rotation=(context.cos[:, 0], context.sin[:, 0]),
            bias=context.bias,
            pairs=list(zip(cache.keys, cache.values, strict=True)),
            columns=length + config.columns - config.segment_len,
        )
        writer.segment[:, torch.arange(len(length)), length] = slots
        after = replace(
            state,
            segment=writer.segment,
            position=state.position + 1,
            length=tuple(n + 1 for n in state.length),
        )
        cache.follow(after, self.frozen)
        return hidden[:, None].clone(), after

    # -- closing a segment ------------------------------------------------------------------------

    def closed(
        self, state: State, keys: list[Tensor], values: list[Tensor]
    ) -> tuple[State, Eviction | None]:
        """As `CompressedModel.closed`; the first segment also sets the pinned slots."""
        committed, eviction = super().closed(state, keys, values)
        if self.config.compression == "mean":  # a mean of slots is not on their grid
            committed = replace(committed, past=self.as_slots(committed.past))
        if eviction is not None and QUERIES in state.carried:
            rows = eviction.real.any(dim=1)
            barred = self.barred(state)
            if barred is not None:
                rows = rows & ~barred.any(dim=1)
            heads = state.carried[QUERIES]
            eviction = SelectionEviction(**vars(eviction), before=state, heads=heads, rows=rows)
        if not self.config.pinned_len:
            return committed, eviction
        first = (state.position == self.config.segment_len)[None, :, None, None]
        pinned = state.carried[PINNED]
        begun = state.segment[:, :, : self.config.pinned_len].to(pinned.dtype)
        carried = {**state.carried, PINNED: torch.where(first, begun, pinned)}
        return replace(committed, carried=carried), eviction

    def barred(self, state: State) -> Tensor | None:
        """Pinned slots, when they leave memory: they stay visible anyway."""
        config = self.config
        if not config.pinned_len:
            return None
        oldest = (self._n_closed(state) - config.memory_len)[:, None]  # first evicted token
        token = oldest + torch.arange(config.segment_len, device=oldest.device)
        return (token >= 0) & (token < config.pinned_len)

    # -- keys and values --------------------------------------------------------------------------

    def project_past(self, index: int, state: State) -> Pair:
        """Rotated keys and values of pinned, compressed and memory slots, including empty ones."""
        config = self.config
        cos, sin = self.derived()
        n, stop = config.pinned_len, config.pinned_len + config.past_len
        past = self._pair(index, state.past[index], cos[n:stop], sin[n:stop])
        if not n:
            return past
        at = self._pinned_positions(state)[:, None]  # [B, 1, S]
        return joined(self._pair(index, state.carried[PINNED][index], cos[at], sin[at]), past)

    def past_after(
        self, index: int, past: Pair, segment: Pair, state: State, eviction: Eviction | None
    ) -> list[Pair]:
        """All columns move, so all keys are rotated again."""
        return [self.project_past(index, state)]

    def project_open(self, index: int, state: State) -> Pair:
        """Keys and values of the open segment so far."""
        cos, sin = self.derived()
        n, first = max(state.length), self.config.pinned_len + self.config.past_len
        slots = state.segment[index, :, :n]
        at = slice(first, first + n)
        return self._pair(index, slots, cos[at], sin[at])

    def _pair(self, index: int, slots: Tensor, cos: Tensor, sin: Tensor) -> Pair:
        block = cast(LlamaBlock, self.layers[index])
        return block.pair(slots, cos, sin, dtype=self.attention_dtype)

    def _settle(self, state: State, cache: Any) -> None:
        """Keys and values depend on each slot alone, so there is nothing to recompute."""

    def _n_closed(self, state: State) -> Tensor:
        """[B] tokens in closed segments."""
        if state.aligned:
            return state.position - state.phase
        return state.position - state.lengths()

    def _n_pinned(self, state: State) -> Tensor:
        """[B] visible pinned slots."""
        evicted = self._n_closed(state) - self.config.memory_len
        return evicted.clamp(0, self.config.pinned_len)

    def _pinned_mask(self, state: State) -> Tensor:
        """[B, 1, 1, S]."""
        slot = torch.arange(self.config.pinned_len, device=state.filled.device)
        return (slot < self._n_pinned(state)[:, None])[:, None, None]

    def _pinned_positions(self, state: State) -> Tensor:
        """[B, S] compact positions: directly before the oldest occupied slot of the past."""
        config = self.config
        slot = torch.arange(config.pinned_len, device=state.filled.device)
        first = config.pinned_len + config.past_len - state.filled
        return ((first - self._n_pinned(state))[:, None] + slot).clamp(min=0)


def _compressor(config: LlamaConfig) -> nn.Module:
    width, rate = config.slot_width, config.compression_rate
    if config.compression == "select":
        return HeadSelect(config.n_kv_heads, config.head_dim, rate)
    return MostUsed(width, rate) if config.compression == "most-used" else Mean(width, rate)
