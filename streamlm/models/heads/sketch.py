"""Sketch head: local attention to tokens, global attention to runs of tokens of one type.

An original design. Local attention over memory and the open segment is that of Transformer-XL. When
a segment leaves memory, each run of tokens of equal type is merged into one global slot, the mean
of the run's layer inputs. A gate per query and head mixes in a second softmax over global slots:

    g = σ(W_g h + b),    out = g · local + (1 - g) · global

A run ends where the type changes, after c tokens, and at the end of its segment. Its slot becomes
visible when all of its tokens have left memory, so there is neither overlap nor gap.
"""

from collections.abc import Mapping
from dataclasses import replace
from typing import cast

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from streamlm.config import ModelConfig, require
from streamlm.memory.eviction import Eviction
from streamlm.models.base import Observer, Windows
from streamlm.models.cache import Cache, Pair, newest, project_blocks
from streamlm.models.call import Attended, Call, PositionKeys
from streamlm.models.layers.attention import (
    attention_mask,
    biased_attention,
    by_head,
    relative_shift,
)
from streamlm.models.layers.block import Layer
from streamlm.models.layers.positions import buckets, sinusoid
from streamlm.models.segmented import SegmentedModel
from streamlm.state import State
from tokenizer import Tokenizer
from tokenizer.kinds import token_types

# Carried tensors with global slots: token types of [memory | open segment] [1, B, M+T], run lengths
# of global slots [1, B, C], 0 for empty ones, and the total number of global slots made [1, B].
TYPES, LENGTHS, MADE = "types", "lengths", "made"
# With a coverage loss: attention received by each key of [global | memory | open segment]
# [L, B, C+M+T], and the summed loss of the open segment, before λ [L, B].
COVERAGE, COVERED = "coverage", "covered"
PER_OCTAVE = 4  # distance buckets


class SketchModel(SegmentedModel):
    """A Transformer-XL with global slots for runs that have left memory.

    Attributes:
        token_types: [V] int64, type of each token; all 0 by default. Saved with the weights.
    """

    token_types: Tensor
    position_table: Tensor
    bucket_of: Tensor

    def __init__(self, config: ModelConfig) -> None:
        super().__init__(config)
        self.layers = nn.ModuleList(Layer(config) for _ in range(config.n_layers))
        self._add_biases()
        self._add_output()
        self.register_buffer("token_types", torch.zeros(config.vocab_size, dtype=torch.int64))
        near = config.memory_len + config.segment_len
        table = sinusoid(near + 1, config.d_model, clamp=config.clamp_len)
        self.register_buffer("position_table", table, persistent=False)
        if config.compressed_len:
            n = near + config.compression_rate * config.compressed_len  # number of distances
            bucket_of = buckets(n, begin=config.memory_len, per_octave=PER_OCTAVE)
            self.register_buffer("bucket_of", bucket_of, persistent=False)
            lengths = (config.n_layers, config.compression_rate, config.d_model)
            self.bucket_table = nn.Parameter(torch.empty(int(bucket_of[-1]) + 1, config.d_model))
            self.length_table = nn.Parameter(torch.empty(lengths))  # E_len
            self.gates = nn.ModuleList(
                nn.Linear(config.d_model, config.n_heads) for _ in range(config.n_layers)
            )
        self.reset_parameters()

    def reset_parameters(self) -> None:
        """As `Model.reset_parameters`; initial gates are about 1/2."""
        super().reset_parameters()
        if self.config.compressed_len:
            for table in (self.bucket_table, self.length_table):
                nn.init.normal_(table, std=self.config.init_std)

    @classmethod
    def beside(cls, base: ModelConfig, slots: int) -> ModelConfig:
        """Whole segments of memory, and global slots for the rest; see `Model.beside`."""
        t = base.segment_len
        recent = min(max(base.memory_len, t), slots) // t * t
        plain = super().beside(base, recent)
        return replace(plain, compressed_len=slots - recent if recent else 0)

    @classmethod
    def check(cls, config: ModelConfig) -> None:
        """Memory consists of whole segments, at least one if there are global slots.

        Global slots are runs of up to `compression_rate` tokens; compression_loss must be "none".
        `coverage` is λ, the weight of the coverage loss; 0 disables it. See `Model.check`.
        """
        multiple = f"a multiple of segment_len = {config.segment_len}"
        good = config.memory_len % config.segment_len == 0
        require(good, f"memory_len with head {config.head!r}", config.memory_len, multiple)
        if config.compressed_len:
            least = f"at least segment_len = {config.segment_len}"
            good = config.memory_len >= config.segment_len
            require(good, "memory_len with head 'sketch'", config.memory_len, least)
            name, loss = "compression_loss with head 'sketch'", config.compression_loss
            require(loss == "none", name, loss, "'none'")
        require(config.coverage >= 0, "coverage", config.coverage, "a number of at least 0")

    def prepare(self, tokenizer: Tokenizer) -> None:
        """Set the token types of this tokenizer."""
        self.set_token_types(torch.from_numpy(token_types(tokenizer)))

    def windows(self, position: int, carried: Mapping[str, Tensor]) -> Windows:
        """The number of runs depends on the text, so it is carried; see `Model.windows`."""
        windows = super().windows(position, carried)
        if MADE not in carried:
            return windows
        made = int(carried[MADE])
        return replace(
            windows, compressed_end=made, compressed=min(made, self.config.compressed_len)
        )

    def set_token_types(self, types: Tensor) -> None:
        """Set the types of the first n tokens, [n] integers.

        Raises:
            ValueError: more types than tokens.
        """
        if len(types) > len(self.token_types):
            raise ValueError(f"{len(types)} types; allowed: up to {len(self.token_types)}")
        self.token_types[: len(types)] = types.to(self.token_types.device)

    def init_state(self, batch_size: int = 1) -> State:
        """The state of new streams."""
        config, weight = self.config, self.output_bias
        near = config.memory_len + config.segment_len
        carried: dict[str, Tensor] = {}
        if config.compressed_len:
            counts = torch.zeros(1, batch_size, dtype=torch.int64, device=weight.device)
            carried[TYPES] = counts[..., None].repeat(1, 1, near)
            carried[LENGTHS] = counts[..., None].repeat(1, 1, config.compressed_len)
            carried[MADE] = counts
        if config.coverage:
            dtype = torch.promote_types(weight.dtype, torch.float32)  # sums over many weights
            lead = (config.n_layers, batch_size)
            shape = (*lead, config.compressed_len + near)
            carried[COVERAGE] = torch.zeros(shape, dtype=dtype, device=weight.device)
            carried[COVERED] = torch.zeros(lead, dtype=dtype, device=weight.device)
        return self.empty_state(batch_size, past_len=config.past_len, carried=carried)

    def hidden(
        self,
        tokens: Tensor,
        state: State,
        cache: Cache | None = None,
        *,
        observe: Observer | None = None,
    ) -> tuple[Tensor, State]:
        """As `Model.hidden`; also records the token types in the state."""
        hidden, after = super().hidden(tokens, state, cache, observe=observe)
        # The rows of each phase record their own.
        return hidden, self._typed(tokens, state, after) if state.aligned else after

    def prefill(self, tokens: Tensor, state: State, cache: Cache | None = None) -> State:
        """As `SegmentedModel.prefill`; also records the token types in the state."""
        if not state.aligned:
            return self.hidden(tokens, state, cache)[1]
        return self._typed(tokens, state, super().prefill(tokens, state, cache))

    def _typed(self, tokens: Tensor, state: State, after: State) -> State:
        """The state after tokens, with their types."""
        if not self.config.compressed_len:
            return after
        types, start = after.carried[TYPES], self.config.memory_len + state.phase
        new, stop = self.token_types[tokens][None], start + tokens.shape[1]
        types = torch.cat([types[:, :, :start], new, types[:, :, stop:]], dim=2)
        return replace(after, carried={**after.carried, TYPES: types})

    def segment_loss(self, state: State) -> Tensor | None:
        """λ times the mean over layers, rows and tokens of Σ_i min(a_ti, c_ti).

        a_t is the attention of token t, averaged over heads; c_ti = Σ_{t'<t} a_t'i (See et al.,
        2017, eq. 12), without gradients to earlier segments.
        """
        if not self.config.coverage:
            return None
        return self.config.coverage * state.carried[COVERED].mean() / state.phase

    # -- reading ----------------------------------------------------------------------------------

    def project_past(self, index: int, state: State) -> Pair:
        """Keys and values of all global slots at once, and of memory in whole segments."""
        parts, c_len = [super().project_past(index, state)], self.config.compressed_len
        if c_len:
            parts.append(self._sketched(index, state))
        if self.config.memory_len:
            memory, t = state.past[index, :, c_len:], self.config.segment_len
            parts.append(project_blocks(cast(Layer, self.blocks[index]).project, memory, t))
        key, value = (torch.cat(halves, dim=2) for halves in zip(*parts, strict=True))
        return key, value

    def past_after(
        self, index: int, past: Pair, segment: Pair, state: State, eviction: Eviction | None
    ) -> list[Pair]:
        """Append the segment to memory; global slots are projected again in one fixed shape."""
        c_len = self.config.compressed_len
        key, value = past
        far = [self._sketched(index, state)] if c_len else []
        if not self.config.memory_len:
            return [*far, past]
        return [*far, *newest((key[:, :, c_len:], value[:, :, c_len:]), segment)]

    def call_context(self, call: Call) -> Tensor:
        """Attention mask of memory and the open segment: [B, 1, t, M + n]."""
        state, m_len = call.state, self.config.memory_len
        filled = state.filled.clamp(max=m_len)
        return attention_mask(filled, m_len, state.phase, call.n_queries)

    def attend(self, index: int, inputs: Tensor, pair: Pair, call: Call) -> Attended:
        """Local and global attention, mixed by the gate; see `SegmentedModel.attend`."""
        config, attention = self.config, cast(Layer, self.blocks[index]).attention
        (key, value), (near, *far), state = pair, call.position_keys[index], call.state
        c_len, m_len, t = config.compressed_len, config.memory_len, inputs.shape[1]
        n_near = key.shape[2] - c_len  # [memory | open segment]
        length = n_near - m_len - t
        u, w = (bias[:, None] * config.head_dim**-0.5 for bias in self.biases(index))
        query = attention.queries(inputs)
        scores = relative_shift(by_head(query + w, near[:, -(n_near + 1) :]))
        dropout = attention.dropout if self.training else 0.0
        heads, weights = biased_attention(
            query + u,
            key[:, :, c_len:],
            value[:, :, c_len:],
            scores.masked_fill(~call.context, -torch.inf),
            dropout=dropout,
            want_weights=config.coverage > 0,
        )
        if far:
            real = state.carried[LENGTHS][0] > 0  # [B, C]
            some = real.any(dim=1)[:, None, None, None]
            # In rows without global slots, unmasked empty ones keep the softmax finite.
            mask = real[:, None, None] | ~some
            bucket = self.bucket_of[self._distances(state, length, t)][:, None]  # [B, 1, t, C]
            by_bucket = by_head(query + w, far[0])  # [B, H, t, buckets]
            scores = by_bucket.gather(3, bucket.expand(-1, config.n_heads, -1, -1))
            distant, far_weights = biased_attention(
                query + u,
                key[:, :, :c_len],
                value[:, :, :c_len],
                scores.masked_fill(~mask, -torch.inf),
                dropout=dropout,
                want_weights=config.coverage > 0,
            )
            gate = self.gates[index](inputs).sigmoid().mT[..., None]  # [B, H, t, 1]
            gate = torch.where(some, gate, 1.0)
            heads = gate * heads + (1 - gate) * distant
            if weights is not None and far_weights is not None:
                weights = torch.cat([(1 - gate) * far_weights, gate * weights], dim=3)
        out: Tensor = attention.output(heads.transpose(1, 2).flatten(2))
        if weights is None:
            return Attended(out)
        return Attended(out, carried=self._covered(index, weights.mean(dim=1), state))

    def attention_changes(self, state: State) -> bool:
        """Coverage is a sum of attention weights; see `SegmentedModel.attention_changes`."""
        return self.config.coverage > 0

    def _distances(self, state: State, length: int, t: int) -> Tensor:
        """Distance in tokens from each query to the start of each run: [B, t, C].

        Runs are contiguous, and the last one ends where memory begins.
        """
        back = state.carried[LENGTHS][0].flip(1).cumsum(dim=1).flip(1)  # [B, C]
        at = torch.arange(length, length + t, device=back.device) + self.config.memory_len
        return at[None, :, None] + back[:, None]

    def _covered(self, index: int, weights: Tensor, state: State) -> Mapping[str, Tensor]:
        """Coverage and coverage loss after attention weights [B, t, K]."""
        before, n_keys = state.carried[COVERAGE][index], weights.shape[2]
        weights = weights.to(before.dtype)
        received = torch.cat([before[:, None, :n_keys], weights], dim=1).cumsum(dim=1)
        repeated = torch.minimum(weights, received[:, :-1]).sum(dim=(1, 2))
        return {
            COVERAGE: torch.cat([received[:, -1], before[:, n_keys:]], dim=1),
            COVERED: state.carried[COVERED][index] + repeated,
        }

    # -- closing a segment ------------------------------------------------------------------------

    def closed(self, state: State, keys: list[Tensor], values: list[Tensor]) -> tuple[State, None]:
        """Move the segment into memory, and merge the evicted segment into global slots."""
        config, carried = self.config, dict(state.carried)
        t, c_len, m_len = config.segment_len, config.compressed_len, config.memory_len
        near = torch.cat([state.past[:, :, c_len:], state.segment], dim=2)
        n_memory = state.filled.clamp(max=m_len)
        filled, past = (n_memory + t).clamp(max=m_len), near[:, :, t:]
        if config.coverage:
            coverage = carried[COVERAGE].detach()
            far, local = coverage[:, :, :c_len], coverage[:, :, c_len + t :]
            carried[COVERED] = torch.zeros_like(carried[COVERED])
        if c_len:
            types = carried[TYPES]
            member = runs(types[0, :, :t], longest=config.compression_rate)
            # Memory consists of whole segments: the oldest one is either occupied or empty.
            member = member & (n_memory == m_len)[:, None, None]
            sizes = member.sum(dim=2)  # [B, T]
            n_new = (sizes > 0).sum(dim=1)
            with torch.autocast(near.device.type, enabled=False):  # keep the precision of slots
                made = member.to(near.dtype) @ near[:, :, :t] / sizes.clamp(min=1)[..., None]
            past = torch.cat([pushed(state.past[:, :, :c_len], made, n_new), past], dim=2)
            filled = filled + (state.filled - n_memory + n_new).clamp(max=c_len)
            carried[TYPES] = F.pad(types[:, :, t:], (0, t))
            carried[LENGTHS] = pushed(carried[LENGTHS], sizes[None], n_new)
            carried[MADE] = carried[MADE] + n_new
            if config.coverage:
                far = pushed(far, torch.zeros_like(coverage[:, :, :t]), n_new)
        if config.coverage:
            carried[COVERAGE] = F.pad(torch.cat([far, local], dim=2), (0, t))
        committed = replace(
            state,
            past=past,
            segment=torch.zeros_like(state.segment),
            filled=filled,
            length=(0,) * state.batch_size,
            carried=carried,
        )
        return committed, None

    # -- projections ------------------------------------------------------------------------------

    def _sketched(self, index: int, state: State) -> Pair:
        """Keys and values of global slots, with the embeddings of their lengths."""
        lengths = state.carried[LENGTHS][0]
        slots = state.past[index, :, : self.config.compressed_len]
        slots = slots + F.embedding((lengths - 1).clamp(min=0), self.length_table[index])
        return cast(Layer, self.blocks[index]).project(slots)

    def project_positions(self, index: int) -> PositionKeys:
        """W_R R of local distances [H, M+T+1, E] and of distance buckets [H, n, E]."""
        attention, dtype = cast(Layer, self.layers[index]).attention, self.output_bias.dtype
        tables = [self.position_table.to(dtype)]
        if self.config.compressed_len:
            tables.append(self.bucket_table)
        return tuple(attention.project_positions(self.dropout(table)) for table in tables)


def runs(types: Tensor, *, longest: int) -> Tensor:
    """Membership of tokens in runs: [B, T] → [B, T runs, T tokens] bool, in time order.

    A run ends where the type changes, and after `longest` tokens. With fewer runs than tokens, the
    last runs are empty.
    """
    at = torch.arange(types.shape[1], device=types.device)
    changes = types != types.roll(1, dims=1)  # column 0 may have either value
    since = at - (at * changes).cummax(dim=1).values  # tokens since the last change
    begins = changes | (since % longest == 0)
    of_token = begins.cumsum(dim=1) - 1  # [B, T]
    return of_token[:, None] == at[:, None]


def pushed(old: Tensor, new: Tensor, counts: Tensor) -> Tensor:
    """Append the first few new columns of each row, dropping as many of the oldest.

    Args:
        old: [N, B, C, ...], right-aligned.
        new: [N, B, T, ...]; row b appends the first counts[b]. counts: [B], 0 to T.

    Returns:
        [N, B, C, ...].
    """
    row = torch.arange(old.shape[1], device=old.device)[:, None]
    column = counts[:, None] + torch.arange(old.shape[2], device=old.device)
    return torch.cat([old, new], dim=2)[:, row, column]
