"""The sketch head: tokens near by one at a time, those far away in runs of one type.

Our own; no paper has it. Attention over memory and the open segment is the Transformer-XL's. A
segment that leaves memory is merged: each of its runs of tokens of equal type becomes one global
slot, the mean of the run's layer inputs. A second softmax over the global slots is mixed in by a
gate for each query and head:

    g = σ(W_g h + b),    out = g · local + (1 - g) · global

A run ends where the type changes, after c tokens, and with its segment. It is read only when none
of it is in memory any more, so nothing is seen twice, and nothing falls in a gap.
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
from streamlm.models.cache import Cache, Pair, project_blocks
from streamlm.models.layers.attention import attention_mask, by_head, look_up, relative_shift
from streamlm.models.layers.block import Layer
from streamlm.models.layers.positions import buckets, sinusoid
from streamlm.models.segmented import Attended, Call, PositionKeys, SegmentedModel, newest
from streamlm.state import State
from tokenizer import Tokenizer
from tokenizer.kinds import token_types

# What is carried with global slots: types of the tokens in [memory | open segment] [1, B, M+T],
# tokens in each global slot [1, B, C], 0 where it is empty, and slots ever made [1, B].
TYPES, LENGTHS, MADE = "types", "lengths", "made"
# With a coverage loss: attention that each key of [global | memory | open segment] received
# [L, B, C+M+T], and the loss of the open segment's tokens so far, before λ [L, B].
COVERAGE, COVERED = "coverage", "covered"
PER_OCTAVE = 4  # buckets of distances


class SketchModel(SegmentedModel):
    """A Transformer-XL that sees what left its memory as a sketch of runs.

    Attributes:
        token_types: [V] int64, the type of each token; one type for all unless it is set. A part
            of the weights.
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
            n = near + config.compression_rate * config.compressed_len  # distances there are
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
        """As `Model.reset_parameters`; gates begin half open."""
        super().reset_parameters()
        if self.config.compressed_len:
            for table in (self.bucket_table, self.length_table):
                nn.init.normal_(table, std=self.config.init_std)

    @classmethod
    def check(cls, config: ModelConfig) -> None:
        """Memory holds whole segments, at least one where there are global slots.

        Those are runs of up to `compression_rate` tokens; any lengths go with it, and no
        compression_loss. `coverage` is λ, the weight of the coverage loss; 0 computes none.
        See `Model.check`.
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
        """Learn what kind of text each token stands for."""
        self.set_token_types(torch.from_numpy(token_types(tokenizer)))

    def windows(self, position: int, carried: Mapping[str, Tensor]) -> Windows:
        """How many runs there were depends on the text, so the state counts them."""
        found = super().windows(position, carried)
        if MADE not in carried:
            return found
        made = int(carried[MADE])
        return replace(found, compressed_end=made, compressed=min(made, self.config.compressed_len))

    def set_token_types(self, types: Tensor) -> None:
        """Give the first n tokens their types, [n] of any integers; the others keep theirs.

        Raises:
            ValueError: more types than tokens.
        """
        if len(types) > len(self.token_types):
            raise ValueError(f"{len(types)} types; allowed: up to {len(self.token_types)}")
        self.token_types[: len(types)] = types.to(self.token_types.device)

    def init_state(self, batch_size: int = 1) -> State:
        """Streams that have read nothing."""
        config, weight = self.config, self.output_bias
        near = config.memory_len + config.segment_len
        carried: dict[str, Tensor] = {}
        if config.compressed_len:
            counts = torch.zeros(1, batch_size, dtype=torch.int64, device=weight.device)
            carried[TYPES] = counts[..., None].repeat(1, 1, near)
            carried[LENGTHS] = counts[..., None].repeat(1, 1, config.compressed_len)
            carried[MADE] = counts
        if config.coverage:
            dtype = torch.promote_types(weight.dtype, torch.float32)  # sums of many weights
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
        """As `Model.hidden`; the state learns the types of the tokens."""
        hidden, after = super().hidden(tokens, state, cache, observe=observe)
        if not self.config.compressed_len or not state.aligned:  # each phase has done it for itself
            return hidden, after
        types, start = after.carried[TYPES], self.config.memory_len + state.phase
        new, stop = self.token_types[tokens][None], start + tokens.shape[1]
        types = torch.cat([types[:, :, :start], new, types[:, :, stop:]], dim=2)
        return hidden, replace(after, carried={**after.carried, TYPES: types})

    def segment_loss(self, state: State) -> Tensor | None:
        """λ times the mean over layers, rows and tokens of Σ_i min(a_ti, c_ti).

        a_t is what token t attends to, mean over heads; c_ti = Σ_{t'<t} a_t'i (See et al., 2017,
        eq. 12), without gradient through segments before.
        """
        if not self.config.coverage:
            return None
        return self.config.coverage * state.carried[COVERED].mean() / state.phase

    # -- reading ----------------------------------------------------------------------------------

    def project_past(self, index: int, state: State) -> Pair:
        """Keys and values of all global slots at once, and of memory by segments."""
        parts, c_len = [super().project_past(index, state)], self.config.compressed_len
        if c_len:
            parts.append(self._sketched(index, state))
        if self.config.memory_len:
            memory, t = state.past[index, :, c_len:], self.config.segment_len
            parts.append(project_blocks(cast(Layer, self.layers[index]).project, memory, t))
        key, value = (torch.cat(halves, dim=2) for halves in zip(*parts, strict=True))
        return key, value

    def past_after(
        self, index: int, past: Pair, segment: Pair, state: State, eviction: Eviction | None
    ) -> Pair:
        """Memory moves on; global slots are projected anew, in the shape they always are."""
        c_len = self.config.compressed_len
        key, value = past
        if self.config.memory_len:
            key, value = newest((key[:, :, c_len:], value[:, :, c_len:]), segment)
        if c_len:
            far_key, far_value = self._sketched(index, state)
            key, value = torch.cat([far_key, key], dim=2), torch.cat([far_value, value], dim=2)
        return key, value

    def look(self, call: Call) -> Tensor:
        """Where queries may look among memory and the open segment: [B, 1, t, M + n]."""
        state, m_len = call.state, self.config.memory_len
        filled = state.filled.clamp(max=m_len)
        return attention_mask(filled, m_len, state.phase, call.n_queries)

    def attend(self, index: int, seen: Tensor, pair: Pair, call: Call) -> Attended:
        """Local and global attention, mixed by the gate; see `SegmentedModel.attend`."""
        config, attention = self.config, cast(Layer, self.layers[index]).attention
        (key, value), (near, *far), state = pair, call.keys_of_positions[index], call.state
        c_len, m_len, t = config.compressed_len, config.memory_len, seen.shape[1]
        n_near = key.shape[2] - c_len  # [memory | open segment]
        length = n_near - m_len - t
        u, w = (bias[:, None] * config.head_dim**-0.5 for bias in self.biases(index))
        query = attention.queries(seen)
        scores = relative_shift(by_head(query + w, near[:, -(n_near + 1) :]))
        dropout = attention.dropout if self.training else 0.0
        heads, weights = look_up(
            query + u,
            key[:, :, c_len:],
            value[:, :, c_len:],
            scores.masked_fill(~call.look, -torch.inf),
            dropout=dropout,
            want_weights=config.coverage > 0,
        )
        if far:
            real = state.carried[LENGTHS][0] > 0  # [B, C]
            some = real.any(dim=1)[:, None, None, None]
            # Rows without a global slot look at empty ones, only to stay finite.
            mask = real[:, None, None] | ~some
            bucket = self.bucket_of[self._distances(state, length, t)][:, None]  # [B, 1, t, C]
            by_bucket = by_head(query + w, far[0])  # [B, H, t, buckets]
            scores = by_bucket.gather(3, bucket.expand(-1, config.n_heads, -1, -1))
            distant, far_weights = look_up(
                query + u,
                key[:, :, :c_len],
                value[:, :, :c_len],
                scores.masked_fill(~mask, -torch.inf),
                dropout=dropout,
                want_weights=config.coverage > 0,
            )
            gate = self.gates[index](seen).sigmoid().mT[..., None]  # [B, H, t, 1]
            gate = torch.where(some, gate, 1.0)
            heads = gate * heads + (1 - gate) * distant
            if weights is not None and far_weights is not None:
                weights = torch.cat([(1 - gate) * far_weights, gate * weights], dim=3)
        out: Tensor = attention.output(heads.transpose(1, 2).flatten(2))
        if weights is None:
            return Attended(out)
        return Attended(out, carried=self._covered(index, weights.mean(dim=1), state))

    def _distances(self, state: State, length: int, t: int) -> Tensor:
        """Tokens from each query back to the first of each run: [B, t, C].

        Runs follow each other without a gap, and the last one ends where memory begins.
        """
        back = state.carried[LENGTHS][0].flip(1).cumsum(dim=1).flip(1)  # [B, C]
        at = torch.arange(length, length + t, device=back.device) + self.config.memory_len
        return at[None, :, None] + back[:, None]

    def _covered(self, index: int, weights: Tensor, state: State) -> Mapping[str, Tensor]:
        """Attention received, and what of it was there before, after weights [B, t, K]."""
        before, n_keys = state.carried[COVERAGE][index], weights.shape[2]
        weights = weights.to(before.dtype)
        received = torch.cat([before[:, None, :n_keys], weights], dim=1).cumsum(dim=1)
        again = torch.minimum(weights, received[:, :-1]).sum(dim=(1, 2))
        return {
            COVERAGE: torch.cat([received[:, -1], before[:, n_keys:]], dim=1),
            COVERED: state.carried[COVERED][index] + again,
        }

    # -- closing a segment ------------------------------------------------------------------------

    def closed(self, state: State, keys: list[Tensor], values: list[Tensor]) -> tuple[State, None]:
        """The segment put into memory, and the runs of the one that leaves into global slots."""
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
            # Memory holds whole segments: the oldest is real or empty.
            member = member & (n_memory == m_len)[:, None, None]
            sizes = member.sum(dim=2)  # [B, T]
            n_new = (sizes > 0).sum(dim=1)
            with torch.autocast(near.device.type, enabled=False):  # slots keep their precision
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

    # -- what is derived --------------------------------------------------------------------------

    def _sketched(self, index: int, state: State) -> Pair:
        """Keys and values of the global slots, each with the embedding of its length."""
        lengths = state.carried[LENGTHS][0]
        slots = state.past[index, :, : self.config.compressed_len]
        slots = slots + F.embedding((lengths - 1).clamp(min=0), self.length_table[index])
        return cast(Layer, self.layers[index]).project(slots)

    def project_positions(self, index: int) -> PositionKeys:
        """W_R R of near distances [H, M+T+1, E], and of the buckets of far ones [H, n, E]."""
        attention, dtype = cast(Layer, self.layers[index]).attention, self.output_bias.dtype
        tables = [self.position_table.to(dtype)]
        if self.config.compressed_len:
            tables.append(self.bucket_table)
        return tuple(attention.project_positions(self.dropout(table)) for table in tables)


def runs(types: Tensor, *, longest: int) -> Tensor:
    """Which tokens make up which run: [B, T] → [B, T runs, T tokens] bool, the first run first.

    A run ends where the type changes, and after `longest` tokens. There may be fewer runs than
    tokens: the last ones are then empty.
    """
    at = torch.arange(types.shape[1], device=types.device)
    changes = types != types.roll(1, dims=1)  # of the first, either will do
    since = at - (at * changes).cummax(dim=1).values  # tokens of this type before, in a row
    begins = changes | (since % longest == 0)
    of_token = begins.cumsum(dim=1) - 1  # [B, T]
    return of_token[:, None] == at[:, None]


def pushed(old: Tensor, new: Tensor, counts: Tensor) -> Tensor:
    """Old columns with the first few new ones behind, as many columns as there were.

    Args:
        old: [N, B, C, ...], right-aligned.
        new: [N, B, T, ...], of which row b takes the first counts[b]; counts: [B], 0 to T.

    Returns:
        [N, B, C, ...]; the oldest columns go.
    """
    row = torch.arange(old.shape[1], device=old.device)[:, None]
    column = counts[:, None] + torch.arange(old.shape[2], device=old.device)
    return torch.cat([old, new], dim=2)[:, row, column]
