"""Drafter: proposes the next N tokens of a stream in one call, from what the backbone has read.

It is the Informer's generative decoder (Zhou et al., AAAI 2021, §3.3) on a language model. Its
input is the newest known tokens and N placeholders. It attends to itself (masked) and to the
backbone's slots (fully). The N tokens are conditionally independent given the context, so their
likelihood is of use for drafts only; see `speculation`.
"""

import json
from collections.abc import Mapping
from dataclasses import asdict, dataclass, fields
from pathlib import Path
from typing import Any

import torch
from safetensors import SafetensorError
from safetensors.torch import load_file, save_file
from torch import Tensor, nn
from torch.nn import functional as F

from streamlm.checkpoints.checkpoint import Checkpoint
from streamlm.models.base import Model
from streamlm.models.layers.positions import absolute
from streamlm.state import State

WEIGHTS, CONFIG = "model.safetensors", "config.json"
LONGEST = 64  # largest label_len; a stream keeps its newest 256 tokens


@dataclass(frozen=True, kw_only=True)
class DrafterConfig:
    """The shape of a drafter, and the checkpoint that it belongs to.

    Attributes:
        n_tokens: N, tokens proposed in one call.
        label_len: newest known tokens that the decoder reads.
        context_len: newest slots of the backbone's top layer that it attends to.
        n_layers, d_model, n_heads, d_ff: of the decoder.
        slot_width: W of the backbone, which is also D of its embeddings.
        backbone: name of the checkpoint that it was trained for.
        weights: digest of that checkpoint's weights.
    """

    n_tokens: int = 3
    label_len: int = 8
    context_len: int = 16
    n_layers: int = 1
    d_model: int = 256
    n_heads: int = 4
    d_ff: int = 1024
    slot_width: int
    backbone: str
    weights: str

    def __post_init__(self) -> None:
        for field in fields(self):
            value = getattr(self, field.name)
            if field.type is int:
                good, allowed = type(value) is int and value > 0, "an integer of at least 1"
            else:
                good, allowed = isinstance(value, str), "a string"
            _require(good, field.name, value, allowed)
        _require(self.label_len <= LONGEST, "label_len", self.label_len, f"1 to {LONGEST}")
        good = self.d_model % (2 * self.n_heads) == 0
        _require(good, "d_model", self.d_model, f"a multiple of 2 · n_heads = {2 * self.n_heads}")

    @classmethod
    def of(cls, checkpoint: Checkpoint, values: Mapping[str, Any]) -> "DrafterConfig":
        """The configuration for a checkpoint.

        Raises:
            ValueError: unknown settings, or a model whose slots are not inputs of layers.
        """
        config = checkpoint.model.config
        if not hasattr(checkpoint.model, "output_bias"):
            raise ValueError(
                f"a drafter for head {config.head!r}; allowed: heads whose slots are layer inputs, "
                "all but 'llama'"
            )
        bound = {
            "slot_width": config.d_model,
            "backbone": checkpoint.name,
            "weights": checkpoint.fingerprints["weights"],
        }
        known = {field.name for field in fields(cls)} - set(bound)
        if unknown := sorted(set(values) - known):
            raise ValueError(
                f"a drafter has no {', '.join(unknown)}; allowed: {', '.join(sorted(known))}"
            )
        return cls(**{**values, **bound})

    @classmethod
    def load(cls, path: Path) -> "DrafterConfig":
        """Read a JSON file. Raises ValueError, with its path, if it is not of a drafter."""
        try:
            return cls(**json.loads(path.read_text(encoding="utf-8")))
        except (ValueError, TypeError) as error:
            raise ValueError(f"{path} is not of a drafter: {error}") from None


def _require(condition: bool, name: str, given: object, allowed: str) -> None:
    if not condition:
        raise ValueError(f"{name} = {given!r}; allowed: {allowed}")


@dataclass(frozen=True)
class DraftContext:
    """The input of a drafter, for R positions in streams.

    Attributes:
        tokens: [R, label_len] the newest known ids; -1 before the stream's beginning.
        slots: [R, context_len, W] inputs of the backbone's top layer for the newest tokens it read.
        real: [R, context_len] False for empty slots.
        hidden: [R, D] the backbone's last output; see `Model.hidden`.
    """

    tokens: Tensor
    slots: Tensor
    real: Tensor
    hidden: Tensor


class DecoderLayer(nn.Module):
    """Masked attention to itself, full attention to the context, a feed-forward network."""

    def __init__(self, config: DrafterConfig) -> None:
        super().__init__()
        width = config.d_model
        self.n_heads = config.n_heads
        self.norms = nn.ModuleList(nn.LayerNorm(width) for _ in range(3))
        self.queries = nn.ModuleList(nn.Linear(width, width, bias=False) for _ in range(2))
        self.key_values = nn.ModuleList(nn.Linear(width, 2 * width, bias=False) for _ in range(2))
        self.outputs = nn.ModuleList(nn.Linear(width, width, bias=False) for _ in range(2))
        self.feed_forward = nn.Sequential(
            nn.Linear(width, config.d_ff), nn.GELU(), nn.Linear(config.d_ff, width)
        )

    def forward(
        self, x: Tensor, mask: Tensor, context: Tensor, real: Tensor, *, n_queries: int
    ) -> Tensor:
        """[R, n, d] → [R, n_queries, d], for the last queries.

        Args:
            mask: [R, 1, n, n] True where a query may attend.
            context: [R, K, d].
            real: [R, 1, 1, K] False for empty slots.
        """
        own = self.norms[0](x)
        x = x[:, -n_queries:]
        x = x + self._attend(0, own[:, -n_queries:], own, mask[:, :, -n_queries:])
        x = x + self._attend(1, self.norms[1](x), context, real)
        out: Tensor = x + self.feed_forward(self.norms[2](x))
        return out

    def _attend(self, which: int, x: Tensor, context: Tensor, mask: Tensor) -> Tensor:
        query = self.queries[which](x).unflatten(2, (self.n_heads, -1)).transpose(1, 2)
        both = self.key_values[which](context).unflatten(2, (2, self.n_heads, -1))
        key, value = both.permute(2, 0, 3, 1, 4)  # [R, K, 2, H, E] → two [R, H, K, E]
        heads = F.scaled_dot_product_attention(query, key, value, attn_mask=mask)
        out: Tensor = self.outputs[which](heads.transpose(1, 2).flatten(2))
        return out


class Drafter(nn.Module):
    """Proposes the next tokens. It shares the embedding and output layers of the backbone."""

    places: Tensor
    ages: Tensor
    causal: Tensor
    own: Tensor

    def __init__(self, config: DrafterConfig) -> None:
        super().__init__()
        self.config = config
        width, slot_width = config.d_model, config.slot_width
        self.token = nn.Linear(slot_width, width)
        self.slot = nn.Linear(slot_width, width)
        self.said = nn.Linear(slot_width, width)
        self.placeholders = nn.Parameter(torch.randn(config.n_tokens, width) * 0.02)
        self.layers = nn.ModuleList(DecoderLayer(config) for _ in range(config.n_layers))
        self.norm = nn.LayerNorm(width)
        self.output = nn.Linear(width, slot_width)
        at = torch.arange(config.label_len + config.n_tokens)
        age = torch.arange(config.context_len - 1, -1, -1)  # of slots; the last is the newest
        buffers = {
            "places": absolute(at, width).float(),
            "ages": absolute(age, width).float(),
            "causal": at <= at[:, None],
            "own": at == at[:, None],  # every query attends to itself at least
        }
        for name, buffer in buffers.items():
            self.register_buffer(name, buffer, persistent=False)

    def forward(self, model: Model, context: DraftContext) -> Tensor:
        """Inputs of the backbone's output layer for the next N tokens: [R, N, D]."""
        config = self.config
        size = (config.slot_width,)
        with torch.no_grad():
            embedded = model.embedding(context.tokens.clamp(min=0))
        tokens = self.token(F.layer_norm(embedded, size))  # [R, label_len, d]
        said = self.said(F.layer_norm(context.hidden, size))[:, None]  # [R, 1, d]
        # The Informer's placeholders are zeros; these hold the last output and the last token.
        empty = self.placeholders + said + tokens[:, -1:]
        x = torch.cat([tokens, empty], dim=1) + self.places
        begun = F.pad(context.tokens >= 0, (0, config.n_tokens), value=True)  # [R, n]
        mask = ((self.causal & begun[:, None]) | self.own)[:, None]
        slots = self.slot(F.layer_norm(context.slots, size)) + self.ages
        memory = torch.cat([slots, said], dim=1)
        real = F.pad(context.real, (0, 1), value=True)[:, None, None]
        for index, layer in enumerate(self.layers):
            last = index == config.n_layers - 1
            n_queries = config.n_tokens if last else x.shape[1]
            x = layer(x, mask, memory, real, n_queries=n_queries)
        out: Tensor = self.output(self.norm(x))
        return out

    def context(self, tokens: Tensor, hidden: Tensor, state: State) -> DraftContext:
        """The context at the end of streams.

        Args:
            tokens: [B, n] the newest known ids; the model has read all but the last.
            hidden: [B, D] the model's output before the last token.
            state: before the last token.
        """
        label, n = self.config.label_len, self.config.context_len
        tokens = F.pad(tokens, (max(0, label - tokens.shape[1]), 0), value=-1)[:, -label:]
        slots, real = newest_slots(state, n)
        return DraftContext(tokens, slots[:, -n:], real[:, -n:], hidden)

    def shortened(self, n: int) -> "Drafter":
        """A drafter that proposes only the first n tokens, with the same values.

        Raises:
            ValueError: n is not between 1 and N.
        """
        config = self.config
        _require(1 <= n <= config.n_tokens, "n", n, f"1 to {config.n_tokens}")
        shorter = Drafter(DrafterConfig(**{**asdict(config), "n_tokens": n}))
        weights = self.state_dict()
        weights["placeholders"] = weights["placeholders"][:n].clone()
        shorter.load_state_dict(weights)
        return shorter.to(self.placeholders.device).train(self.training).requires_grad_(False)

    def check(self, checkpoint: Checkpoint) -> None:
        """Raises ValueError, with both names, if it was trained for another checkpoint."""
        given = checkpoint.fingerprints["weights"]
        if given != self.config.weights:
            raise ValueError(
                f"the drafter was trained for {self.config.backbone!r} "
                f"({self.config.weights[:12]}), not for {checkpoint.name!r} ({given[:12]}); "
                "allowed: a drafter trained for this model"
            )


def newest_slots(state: State, n: int) -> tuple[Tensor, Tensor]:
    """Inputs of the top layer: at least the newest n of the past, and all of the open segment.

    Returns:
        Slots [B, ≥ n, W], and [B, ≥ n] True for the real ones.
    """
    past = state.past[-1, :, max(0, state.past.shape[2] - n) :]
    past = F.pad(past, (0, 0, n - past.shape[1], 0))
    slots = torch.cat([past, state.segment[-1, :, : state.phase]], dim=1)
    age = torch.arange(n - 1, -1, -1, device=slots.device)
    real = F.pad(age < state.filled[:, None], (0, state.phase), value=True)
    return slots, real


def save_drafter(folder: str | Path, drafter: Drafter, *, dtype: torch.dtype | None = None) -> None:
    """Write a drafter to a directory; `dtype` converts its weights."""
    folder = Path(folder)
    folder.mkdir(parents=True, exist_ok=True)
    weights = {
        name: tensor.detach().to("cpu", dtype or tensor.dtype).contiguous()
        for name, tensor in drafter.state_dict().items()
    }
    save_file(weights, folder / WEIGHTS)
    text = json.dumps(asdict(drafter.config), indent=2) + "\n"
    (folder / CONFIG).write_text(text, encoding="utf-8")


def load_drafter(folder: str | Path, checkpoint: Checkpoint) -> Drafter:
    """Load a drafter for a checkpoint, onto its device. Nothing is unpickled.

    Raises:
        FileNotFoundError: a file is missing; names it.
        ValueError: the drafter is damaged, or was trained for another checkpoint.
    """
    folder = Path(folder)
    for name in (WEIGHTS, CONFIG):
        if not (folder / name).is_file():
            raise FileNotFoundError(f"{folder} holds no drafter: {name} is missing")
    drafter = Drafter(DrafterConfig.load(folder / CONFIG))
    drafter.check(checkpoint)
    try:
        weights = {name: each.float() for name, each in load_file(folder / WEIGHTS).items()}
        drafter.load_state_dict(weights)
    except (SafetensorError, RuntimeError) as error:
        raise ValueError(f"{folder / WEIGHTS} does not belong to {CONFIG}: {error}") from None
    return drafter.to(checkpoint.model.device).eval().requires_grad_(False)
