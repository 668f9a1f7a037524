"""Model: what all heads share, from token ids to logits, and what each must do with the past.

`Model.forward` extends the open segment, `Model.commit` closes it; a state goes in and a state
comes out. How attention sees the past, and what becomes of it, is the head's: see `heads`.
"""

from abc import ABC, abstractmethod
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Any, Self

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from streamlm.config import ModelConfig
from streamlm.memory.eviction import Eviction
from streamlm.models.cache import Cache
from streamlm.models.layers.adaptive import AdaptiveEmbedding
from streamlm.models.modes import in_mode
from streamlm.state import State
from streamlm.transfer import send
from tokenizer import Tokenizer

Observer = Callable[[int, Tensor], None]


class Model(nn.Module, ABC):
    """A language model with bounded memory; see the module's text.

    Nothing about a stream lives here: one model serves any number of states, and any number of
    threads once it is frozen.

    Attributes:
        reads_any_phase: rows in different phases are read at once; else phase by phase.
        reports_memory: `streamlm.runtime.memory_report` can look at its slots.
    """

    reads_any_phase = False
    reports_memory = False

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
        self._frozen: Any = None

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
        """u and w of a layer, each [H, E], of heads with relative positions."""
        index = 0 if self.config.shared_bias else index
        return self.content_bias[index], self.position_bias[index]

    def reset_parameters(self) -> None:
        """Initial weights as in the authors' Transformer-XL: N(0, std) and LayerNorm N(1, std)."""
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
    def check(cls, config: ModelConfig) -> None:
        """Refuse settings that this model cannot do anything with.

        Raises:
            ValueError: names what was given and what is allowed.
        """

    def prepare(self, tokenizer: Tokenizer) -> None:
        """Take from a tokenizer what the model has to know of it, before training."""

    def segment_loss(self, state: State) -> Tensor | None:
        """What a head adds to the mean loss of the open segment, a scalar; None where nothing."""
        return None

    def auxiliary_loss(self, eviction: Eviction) -> tuple[Tensor, Tensor]:
        """What a commit adds to the loss, and its weight: the mean over commits is weighted."""
        nothing = eviction.compressed.new_zeros(())
        return nothing, nothing

    @property
    def device(self) -> torch.device:
        return self.output_bias.device

    # -- what a head does -------------------------------------------------------------------------

    @abstractmethod
    def init_state(self, batch_size: int = 1) -> State:
        """Streams that have read nothing."""

    @abstractmethod
    def read(
        self,
        x: Tensor,
        state: State,
        *,
        cache: Cache | None = None,
        observe: Observer | None = None,
    ) -> tuple[Tensor, State]:
        """Embedded tokens [B, t, D] through all layers, and the state after them.

        Args:
            cache, observe: see `hidden`.
        """

    @abstractmethod
    def commit(self, state: State, cache: Cache | None = None) -> tuple[State, Eviction | None]:
        """Close the open segment of every row where it is full.

        Args:
            cache: see `hidden`; it moves on with the state.

        Returns:
            The state with these segments empty, and what was evicted and compressed; None where
            nothing was, or where only some of the rows were closed.

        Raises:
            ValueError: no open segment is full.
        """

    @abstractmethod
    def settle(self, state: State, cache: Cache) -> None:
        """Make a cache what it would be had the state just been loaded.

        The last bits of a matrix product depend on how many rows are multiplied at once, so a
        session that read its open segment in pieces differs in them from one that was loaded from a
        snapshot. After this, both compute the same from here on, bit for bit.
        """

    def derive(self) -> Any:
        """What inference needs of the weights alone; kept while the model is frozen."""
        return ()

    # -- inference --------------------------------------------------------------------------------

    def freeze(self) -> Self:
        """Evaluation mode, with what depends on the weights alone derived once.

        Until `train()`, the weights must not change; moving or loading them derives anew. Caches
        are reused from call to call only while the model is frozen.
        """
        self.eval()
        with torch.no_grad():
            self._frozen = _Frozen(self.derive())
        return self

    @contextmanager
    def inference(self) -> Iterator[Self]:
        """Freeze for as long as a piece of work takes; however it ends, all is as it was before."""
        before = self._frozen
        with in_mode(self, training=False):
            if before is None:
                self.freeze()
            try:
                yield self
            finally:
                if before is None:
                    self._frozen = None
                elif self._frozen is not before:  # moved, loaded or trained meanwhile
                    self.freeze()

    @property
    def frozen(self) -> Any:
        """What identifies the frozen weights; None unless frozen."""
        return self._frozen

    def derived(self) -> Any:
        """`derive`, computed once while the model is frozen."""
        if self._frozen is not None and not torch.is_grad_enabled():
            return self._frozen.values
        return self.derive()

    def train(self, mode: bool = True) -> Self:
        """As in torch; training thaws."""
        if mode:
            self._frozen = None
        return super().train(mode)

    def load_state_dict(
        self, state_dict: Mapping[str, Any], strict: bool = True, assign: bool = False
    ) -> Any:
        """As in torch; a frozen model derives anew."""
        found = super().load_state_dict(state_dict, strict, assign)
        if self._frozen is not None:
            self.freeze()
        return found

    def _apply(self, fn: Callable[[Tensor], Tensor], recurse: bool = True) -> Self:
        super()._apply(fn, recurse)
        if self._frozen is not None:
            self.freeze()
        return self

    @abstractmethod
    def windows(self, position: int, carried: Mapping[str, Tensor]) -> "Windows":
        """How many slots a state of one row holds, and has ever held, after `position` tokens.

        Args:
            carried: `State.carried`.
        """

    # -- reading ----------------------------------------------------------------------------------

    def forward(
        self, tokens: Tensor, state: State, cache: Cache | None = None
    ) -> tuple[Tensor, State]:
        """Read tokens into the open segment.

        Args:
            tokens: [B, t] ids, t from 1 to what is left of the fullest segment.
            state: of the same batch size; it stays as it is.
            cache: see `hidden`.

        Returns:
            Logits [B, t, V] for the token after each (see `logits`), and the state after the last.

        Raises:
            ValueError: wrong shape, or more tokens than the open segment has room for.
        """
        # The output layer shares the embedding's weights; see Transformer-XL, tied adaptive inputs.
        hidden, state = self.hidden(tokens, state, cache)
        return self.logits(hidden), state

    def logits(self, hidden: Tensor) -> Tensor:
        """Output layer: [..., D] → [..., V]; with cutoffs, these are log-probabilities already."""
        if isinstance(self.embedding, AdaptiveEmbedding):
            return self.embedding.log_probs(hidden, self.output_bias)
        return F.linear(hidden, self.embedding.weight, self.output_bias)

    def log_prob(self, hidden: Tensor, targets: Tensor) -> Tensor:
        """Log-probabilities of known tokens, in nats; with cutoffs, without computing all others.

        Args:
            hidden: [..., D] from `hidden`.
            targets: [...] ids, of which -100 counts as certain; on the device of `hidden` or on the
                host, which avoids synchronizing where the model has cutoffs.

        Returns:
            [...] float32.
        """
        rows, wanted = hidden.flatten(0, -2), targets.flatten()
        if isinstance(self.embedding, AdaptiveEmbedding):
            found = self.embedding.log_prob(rows, wanted.clamp(min=0), self.output_bias)
            found = found.float().masked_fill(send(wanted < 0, hidden.device), 0)
        else:
            logits, wanted = self.logits(rows).float(), send(wanted, hidden.device)
            found = -F.cross_entropy(logits, wanted, ignore_index=-100, reduction="none")
        return found.view(targets.shape)

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
            cache: the caller's workspace for this stream (see `streamlm.models.cache`), which moves
                on with the state. Without one, keys and values of the past are derived for this
                call alone. Not used with gradients on.
            observe: without gradients only, called with the index of each layer and its attention
                weights [B, H, t, P + length + t], at the price of the fused kernel.
        """
        self._check(tokens, state)
        if not state.aligned and (torch.is_grad_enabled() or not self.reads_any_phase):
            return self._by_phase(tokens, state, observe)
        x = self.dropout(self.embedding(tokens) * self.config.d_model**0.5)
        x, state = self.read(x, state, cache=cache, observe=observe)
        return self.dropout(self.final_norm(x)), state

    def _by_phase(
        self, tokens: Tensor, state: State, observe: Observer | None
    ) -> tuple[Tensor, State]:
        """Rows of each phase by themselves."""
        groups = [
            [row for row, n in enumerate(state.length) if n == phase]
            for phase in sorted(set(state.length))
        ]
        found: list[Tensor] = []
        for rows in groups:
            at = torch.tensor(rows, device=tokens.device)
            hidden, after = self.hidden(tokens[at], state.rows(rows), observe=observe)
            found.append(hidden)
            state = state.put(rows, after)
        order = torch.tensor(_inverse([row for rows in groups for row in rows]))
        return torch.cat(found).index_select(0, order.to(tokens.device)), state

    @torch.no_grad()
    def truncate(
        self, before: State, tokens: Tensor, after: State, n: int, cache: Cache | None = None
    ) -> State:
        """The state after the first n of the tokens that led from `before` to `after`.

        Nothing is left of the others, and both states stay good.

        Args:
            before: the state that read them, in one call; tokens: [B, t] all of them.
            n: 1 to t.
            cache: see `hidden`.
        """
        return after if n == tokens.shape[1] else self.hidden(tokens[:, :n], before, cache)[1]

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
    """The windows of slots in a state's past: how many there are now, were ever, and may be."""

    memory: int
    memory_end: int
    memory_capacity: int
    compressed: int
    compressed_end: int
    compressed_capacity: int


class _Frozen:
    """What was derived from weights that stand still. Its identity tells them from any others."""

    def __init__(self, values: Any) -> None:
        self.values = values


def _inverse(order: Sequence[int]) -> list[int]:
    places = [0] * len(order)
    for place, row in enumerate(order):
        places[row] = place
    return places
