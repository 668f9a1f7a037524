"""Model: the base class of all models, from token ids to logits, and the contract of heads.

`Model.forward` extends the open segment and `Model.commit` closes it; both map a state to a new
state. Heads define how attention accesses the past and how much of it is kept; see `heads`.
The file is long because the contract is one: shape, states, freezing, reading and saving.
"""

from abc import ABC, abstractmethod
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, replace
from typing import Any, ClassVar, Self, cast

import numpy as np
import torch
from torch import Tensor, nn
from torch.nn import functional as F

from streamlm.config import ModelConfig, any_of
from streamlm.memory.eviction import Eviction
from streamlm.models.cache import Cache
from streamlm.models.layers.adaptive import AdaptiveEmbedding
from streamlm.models.layers.packed import Frozen
from streamlm.models.layers.products import infers_on_cpu
from streamlm.models.modes import in_mode
from streamlm.state import State, from_numpy, to_numpy
from streamlm.transfer import send
from tokenizer import Tokenizer

Observer = Callable[[int, Tensor], None]
STORED = ("float64", "float32", "bfloat16", "float16")


class Model(nn.Module, ABC):
    """A language model with bounded memory.

    A model holds no stream state: one model serves any number of states and, once frozen, any
    number of threads.

    Attributes:
        reads_any_phase: rows in different phases are read in one batch; otherwise, the rows of
            each phase are read separately.
        reports_memory: `streamlm.runtime.memory_report` supports this model.
        settings: class of its configuration.
    """

    reads_any_phase = False
    reports_memory = False
    settings: ClassVar[type[ModelConfig]] = ModelConfig

    output_bias: nn.Parameter
    final_norm: nn.Module
    dropout: nn.Dropout

    def __init__(self, config: ModelConfig) -> None:
        super().__init__()
        self.config = config
        self.embedding: nn.Embedding | AdaptiveEmbedding = (
            AdaptiveEmbedding(config)
            if config.cutoffs
            else nn.Embedding(config.vocab_size, config.d_model)
        )
        self.output: nn.Module | None = None  # if it is not tied to the embedding
        self._frozen: Any = None

    def embed(self, tokens: Tensor) -> Tensor:
        """Input of the first layer: [B, t] ids → [B, t, D]."""
        return self.dropout(self.embedding(tokens) * self.config.d_model**0.5)

    def _add_output(self) -> None:
        config = self.config
        self.final_norm = nn.LayerNorm(config.d_model) if config.final_norm else nn.Identity()
        self.output_bias = nn.Parameter(torch.empty(config.vocab_size))
        self.dropout = nn.Dropout(config.dropout)

    def _add_biases(self) -> None:
        config = self.config
        n_biases = 1 if config.shared_bias else config.n_layers
        self.content_bias = nn.Parameter(torch.empty(n_biases, config.n_heads, config.head_dim))
        self.position_bias = nn.Parameter(torch.empty(n_biases, config.n_heads, config.head_dim))

    def biases(self, index: int) -> tuple[Tensor, Tensor]:
        """Attention biases u and w of a layer, each [H, E]; relative positions only."""
        index = 0 if self.config.shared_bias else index
        return self.content_bias[index], self.position_bias[index]

    def reset_parameters(self) -> None:
        """Initialise as in the Transformer-XL code: N(0, std), LayerNorm weights N(1, std)."""
        std = self.config.init_std
        for module in self.modules():
            if isinstance(module, nn.Linear):
                nn.init.normal_(module.weight, std=std)
                if module.bias is not None:
                    nn.init.zeros_(module.bias)
            elif isinstance(module, nn.LayerNorm):
                nn.init.normal_(module.weight, mean=1.0, std=std)
                nn.init.zeros_(module.bias)
        if isinstance(self.embedding, AdaptiveEmbedding):
            self.embedding.reset(std)
        else:
            nn.init.normal_(self.embedding.weight, std=std)
        nn.init.zeros_(self.output_bias)
        for name in ("content_bias", "position_bias"):
            if name in self._parameters:
                nn.init.normal_(getattr(self, name), std=std)

    def compression_parameters(self) -> list[nn.Parameter]:
        """Parameters that the compression loss (or, with BPTT, the language model) trains."""
        return []

    @classmethod
    def beside(cls, base: ModelConfig, slots: int) -> ModelConfig:
        """Settings for a comparison at equal bytes of state, apart from `head`.

        Args:
            base: of the model to compare with; its other settings are kept.
            slots: past slots per layer whose bytes the state has. They are not compressed unless
                the head overrides this.
        """
        return replace(base, memory_len=slots, compressed_len=0, compression_loss="none")

    @classmethod
    def check(cls, config: ModelConfig) -> None:
        """Validate the settings of this model.

        Raises:
            ValueError: a setting is not supported; names the given and the allowed value.
        """

    def prepare(self, tokenizer: Tokenizer) -> None:
        """Derive tokenizer-dependent buffers before training."""

    def segment_loss(self, state: State) -> Tensor | None:
        """Additional loss term of the open segment, a scalar; None if the head has none."""
        return None

    def auxiliary_loss(self, eviction: Eviction) -> tuple[Tensor, Tensor]:
        """Auxiliary loss of a commit and its weight in the mean over commits."""
        nothing = eviction.compressed.new_zeros(())
        return nothing, nothing

    @property
    def device(self) -> torch.device:
        return self.output_bias.device

    @property
    def slot_dtype(self) -> torch.dtype:
        """Precision of slots in a state."""
        return self.output_bias.dtype

    def pack_slots(self, slots: Tensor) -> tuple[np.ndarray, str]:
        """Slots [..., W] as a store keeps them, without loss, and the name of this format.

        The format is a type of torch, whose bits are kept, or "int8" (`models.slot_grid`).
        """
        return to_numpy(slots), str(slots.dtype).removeprefix("torch.")

    def unpack_slots(self, packed: np.ndarray, format: str) -> Tensor:
        """The inverse of `pack_slots`.

        Raises:
            ValueError: this model's slots are never stored in this format.
        """
        if format not in STORED:
            raise ValueError(f"stored_dtype = {format!r}; allowed: {any_of(list(STORED))}")
        dtype: torch.dtype = getattr(torch, format)
        if packed.dtype != (np.uint16 if dtype == torch.bfloat16 else np.dtype(format)):
            raise ValueError(f"slots of {packed.dtype}; {format} is what they are stored as")
        return from_numpy(packed, dtype)

    # -- implemented by heads ---------------------------------------------------------------------

    @abstractmethod
    def init_state(self, batch_size: int = 1) -> State:
        """The state of new streams."""

    @abstractmethod
    def read(
        self,
        x: Tensor,
        state: State,
        *,
        cache: Cache | None = None,
        observe: Observer | None = None,
        finish: bool = True,
    ) -> tuple[Tensor, State]:
        """Run embedded tokens [B, t, D] through all layers; returns hidden states and new state.

        Args:
            cache, observe: see `hidden`.
            finish: False leaves out what only the hidden states depend on; they are void then.
        """

    @abstractmethod
    def commit(self, state: State, cache: Cache | None = None) -> tuple[State, Eviction | None]:
        """Close the open segment of every row whose segment is full.

        Args:
            cache: see `hidden`; updated to the returned state.

        Returns:
            The new state with these segments empty, and the eviction; None if nothing was evicted
            or if only some of the rows were closed.

        Raises:
            ValueError: no open segment is full.
        """

    @abstractmethod
    def settle(self, state: State, cache: Cache) -> None:
        """Recompute the cache as if the state had just been loaded from a snapshot.

        The low-order bits of a matrix product depend on the number of rows multiplied at once, so a
        cache built from several calls can differ in them from the cache of a loaded state. After
        `settle`, both produce bitwise equal results.
        """

    def derive(self) -> Any:
        """Tensors for inference that depend on the weights alone; kept while weights are frozen."""
        return ()

    # -- inference --------------------------------------------------------------------------------

    def freeze(self) -> Self:
        """Switch to evaluation mode and compute `derive` once.

        The weights must not change until `train()`; moving or loading them freezes the model again.
        Caches are reused between calls only while the model is frozen.
        """
        self.eval()
        with torch.no_grad():
            self._frozen = _Frozen(self.derive())
        return self

    @contextmanager
    def inference(self) -> Iterator[Self]:
        """Freeze within a `with` block; the previous state is restored, also after exceptions."""
        before = self._frozen
        with in_mode(self, training=False):
            if before is None:
                self.freeze()
            try:
                yield self
            finally:
                if before is None:
                    self._frozen = None
                elif self._frozen is not before:  # moved, loaded or trained inside the block
                    self.freeze()

    @property
    def frozen(self) -> Any:
        """Identity token of the frozen weights; None unless frozen."""
        return self._frozen

    def derived(self) -> Any:
        """`derive`, computed once while the model is frozen."""
        if self._frozen is not None and not torch.is_grad_enabled():
            return self._frozen.values
        return self.derive()

    def train(self, mode: bool = True) -> Self:
        """As in torch; training mode unfreezes the model.

        Raises:
            ValueError: the weights are packed.
        """
        if mode and any(isinstance(module, Frozen) for module in self.modules()):
            raise ValueError("int8 weights cannot be trained; allowed: float32 or bfloat16")
        if mode:
            self._frozen = None
        return super().train(mode)

    def load_state_dict(
        self, state_dict: Mapping[str, Any], strict: bool = True, assign: bool = False
    ) -> Any:
        """As in torch; a frozen model is frozen again with the new weights."""
        result = super().load_state_dict(state_dict, strict, assign)
        if self._frozen is not None:
            self.freeze()
        return result

    def _apply(self, fn: Callable[[Tensor], Tensor], recurse: bool = True) -> Self:
        super()._apply(fn, recurse)
        if self._frozen is not None:
            self.freeze()
        return self

    @abstractmethod
    def windows(self, position: int, carried: Mapping[str, Tensor]) -> "Windows":
        """Current and total slot counts of a one-row state after `position` tokens.

        Args:
            carried: `State.carried`.
        """

    # -- reading ----------------------------------------------------------------------------------

    def forward(
        self, tokens: Tensor, state: State, cache: Cache | None = None
    ) -> tuple[Tensor, State]:
        """Read tokens into the open segment.

        Args:
            tokens: [B, t] ids; t is from 1 to the room left in the fullest segment.
            state: of the same batch size; not modified.
            cache: see `hidden`.

        Returns:
            Next-token logits [B, t, V] (see `logits`), and the new state.

        Raises:
            ValueError: wrong shape, or more tokens than the open segment has room for.
        """
        # The output layer is tied to the embedding, as in Transformer-XL.
        hidden, state = self.hidden(tokens, state, cache)
        return self.logits(hidden), state

    def logits(self, hidden: Tensor) -> Tensor:
        """Output layer: [..., D] → [..., V]; with cutoffs, log-probabilities."""
        if isinstance(self.embedding, AdaptiveEmbedding):
            return self.embedding.log_probs(hidden, self.output_bias)
        output = self.output
        several = hidden.numel() > hidden.shape[-1]  # one row takes longer in another order
        if self._frozen is not None and several and infers_on_cpu(hidden.device):
            output = self._frozen.output or output
        if output is not None:
            out: Tensor = output(hidden)
            return out
        return F.linear(hidden, *self.output_weights())

    def output_weights(self) -> tuple[Tensor, Tensor | None]:
        """Weight [V, D] and bias [V], if any, of the output layer of a model without cutoffs."""
        if isinstance(self.output, nn.Linear):
            return self.output.weight, self.output.bias
        return cast(nn.Embedding, self.embedding).weight, self.output_bias

    def log_prob(self, hidden: Tensor, targets: Tensor) -> Tensor:
        """Log-probabilities of targets in nats; with cutoffs, only the needed bins are computed.

        Args:
            hidden: [..., D] from `hidden`.
            targets: [...] ids, on the device of `hidden` or on the host; the latter avoids a
                synchronization with cutoffs. -100 is ignored: its log-probability is 0.

        Returns:
            [...] float32.
        """
        rows, wanted = hidden.flatten(0, -2), targets.flatten()
        if isinstance(self.embedding, AdaptiveEmbedding):
            result = self.embedding.log_prob(rows, wanted.clamp(min=0), self.output_bias)
            result = result.float().masked_fill(send(wanted < 0, hidden.device), 0)
        else:
            logits, wanted = self.logits(rows).float(), send(wanted, hidden.device)
            if torch.is_grad_enabled():
                result = -F.cross_entropy(logits, wanted, ignore_index=-100, reduction="none")
            else:
                result = _log_softmax_at(wanted, logits)
        return result.view(targets.shape)

    def hidden(
        self,
        tokens: Tensor,
        state: State,
        cache: Cache | None = None,
        *,
        observe: Observer | None = None,
    ) -> tuple[Tensor, State]:
        """`forward` without the output layer: [B, t, D] and the new state.

        Args:
            cache: the caller's key/value cache of this stream, updated to the new state; see
                `streamlm.models.cache`. Without one, past keys and values are computed for this
                call only. Ignored with gradients enabled.
            observe: called with each layer's index and attention weights
                [B, H, t, P + length + t]; without gradients only. Disables the fused kernel.
        """
        self._check(tokens, state)
        if not state.aligned and (torch.is_grad_enabled() or not self.reads_any_phase):
            return self._by_phase(tokens, state, observe)
        x, state = self.read(self.embed(tokens), state, cache=cache, observe=observe)
        return self.dropout(self.final_norm(x)), state

    def prefill(self, tokens: Tensor, state: State, cache: Cache | None = None) -> State:
        """The state after tokens: that of `hidden`, bit for bit, in less time.

        Args:
            tokens, state, cache: see `hidden`.
        """
        self._check(tokens, state)
        if torch.is_grad_enabled() or not (state.aligned or self.reads_any_phase):
            return self.hidden(tokens, state, cache)[1]
        return self.read(self.embed(tokens), state, cache=cache, finish=False)[1]

    def _by_phase(
        self, tokens: Tensor, state: State, observe: Observer | None
    ) -> tuple[Tensor, State]:
        """Read the rows of each phase separately."""
        groups = [
            [row for row, n in enumerate(state.length) if n == phase]
            for phase in sorted(set(state.length))
        ]
        outputs: list[Tensor] = []
        for rows in groups:
            at = send(torch.tensor(rows), tokens.device)
            hidden, after = self.hidden(tokens[at], state.rows(rows), observe=observe)
            outputs.append(hidden)
            state = state.put(rows, after)
        order = torch.tensor(_inverse([row for rows in groups for row in rows]))
        return torch.cat(outputs).index_select(0, send(order, tokens.device)), state

    @torch.no_grad()
    def truncate(
        self, before: State, tokens: Tensor, after: State, n: int, cache: Cache | None = None
    ) -> State:
        """The state after only the first n of the tokens read between `before` and `after`.

        Neither state is modified.

        Args:
            before: the state before the call; tokens: [B, t], all tokens of that call.
            n: 1 to t.
            cache: see `hidden`.
        """
        return after if n == tokens.shape[1] else self.prefill(tokens[:, :n], before, cache)

    def _check(self, tokens: Tensor, state: State) -> None:
        config = self.config
        if tokens.ndim != 2 or tokens.shape[0] != state.batch_size:
            raise ValueError(
                f"tokens of shape {tuple(tokens.shape)}; allowed: [{state.batch_size}, t], "
                "as many rows as the state has"
            )
        room = config.segment_len - max(state.length)
        if not 1 <= tokens.shape[1] <= room:
            raise ValueError(
                f"{tokens.shape[1]} tokens; allowed: 1 to {room}, the room of the open segment"
            )


@dataclass(frozen=True, kw_only=True)
class Windows:
    """Slot counts of a state's past: current, total so far (`_end`), and capacity."""

    memory: int
    memory_end: int
    memory_capacity: int
    compressed: int
    compressed_end: int
    compressed_capacity: int


class _Frozen:
    """Derived tensors of frozen weights; the identity of this object identifies the weights."""

    def __init__(self, values: Any) -> None:
        self.values = values
        self.layers: list[Any] | None = None  # for inference, if they are others
        self.output: nn.Module | None = None


def _inverse(order: Sequence[int]) -> list[int]:
    places = [0] * len(order)
    for place, row in enumerate(order):
        places[row] = place
    return places


def _log_softmax_at(ids: Tensor, logits: Tensor) -> Tensor:
    """Log-softmax of `logits` [N, V] at `ids` [N], 0 at -100: [N]. Overwrites `logits`.

    Without a second [N, V], which is the largest tensor of scoring: allocated and freed for every
    segment, it makes the heap grow and shrink, and each page of it is zeroed anew.
    """
    logits -= logits.amax(dim=-1, keepdim=True)
    chosen = logits.gather(1, ids.clamp(min=0)[:, None])[:, 0]
    return (chosen - logits.exp_().sum(dim=-1).log_()).masked_fill_(ids < 0, 0)
