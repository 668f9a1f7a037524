"""ModelConfig, and the base of all configurations: frozen, validated, serialised as JSON."""

import dataclasses
import json
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Self, get_origin

COMPRESSIONS = ("max", "mean", "conv", "dilated", "most-used", "select")
COMPRESSION_LOSSES = (
    "none",
    "auto-encoding",
    "attention-reconstruction",
    "joint-attention-reconstruction",
    "bptt",
)
JOINT = "joint-attention-reconstruction"
# Allowed losses of each trainable compression; compressions not listed have no parameters.
TRAINED_BY = {"conv": COMPRESSION_LOSSES, "dilated": COMPRESSION_LOSSES, "select": ("none", JOINT)}
NORMS = ("post", "pre")
# Settings added after the first checkpoints; see ModelConfig.architecture.
NEWER = {
    *("cutoffs", "div_val", "embed_dim", "clamp_len"),
    *("head", "projected_len", "projection", "sharing", "factor", "pinned_len", "coverage"),
}


LENGTHS = ("segment_len", "memory_len", "compressed_len", "pinned_len", "projected_len", "factor")
MOST_SLOTS = 2**20  # tokens of a window; the tables of positions are as long
MOST_SIZE = 2**31 - 1  # of any other size; products of two fit 64 bits
MOST_BINS = 64  # of an adaptive vocabulary
MOST = 2**53 - 1  # of what is counted: tokens, passages; JSON holds no larger whole number


def require(condition: bool, name: str, given: object, allowed: str) -> None:
    """Raise a ValueError with the given and the allowed value unless `condition` is true."""
    if not condition:
        raise ValueError(f"{name} = {given!r}; allowed: {allowed}")


def is_whole(value: object) -> bool:
    """Whether a value is an integer, of Python or numpy; 1.0 and True are not."""
    return hasattr(value, "__index__") and not isinstance(value, bool)


def check_whole(name: str, value: Any, *, least: int = 0, most: int = MOST) -> None:
    """Raise a ValueError unless a value is a whole number within limits.

    A fraction, NaN or infinity would pass a comparison, and count down past 0 without end.
    """
    if not is_whole(value) or not least <= value <= most:
        lowest = "at least 1" if least == 1 else f"{least} or more"
        raise ValueError(f"{name} = {value!r}; allowed: {lowest}, a whole number up to {most:,}")


class Config:
    """Base of frozen dataclasses of settings: type checks, JSON input and output."""

    def to_dict(self) -> dict[str, Any]:
        return dataclasses.asdict(self)  # type: ignore[call-overload]

    def to_json(self) -> str:
        return json.dumps(self.to_dict(), indent=2) + "\n"

    @classmethod
    def from_dict(cls, values: Mapping[str, Any]) -> Self:
        """Build from a mapping; a ValueError lists unknown or missing keys."""
        known = {field.name: field for field in dataclasses.fields(cls)}  # type: ignore[arg-type]
        unknown = sorted(set(values) - set(known))
        if unknown:
            raise ValueError(
                f"{cls.__name__} has no {', '.join(unknown)}; allowed: {', '.join(sorted(known))}"
            )
        missing = [
            name
            for name, field in known.items()
            if field.default is dataclasses.MISSING
            and field.default_factory is dataclasses.MISSING
            and name not in values
        ]
        if missing:
            raise ValueError(f"{cls.__name__} needs {', '.join(missing)}")
        return cls(**values)

    def _check_types(self) -> None:
        for field in dataclasses.fields(self):  # type: ignore[arg-type]
            name, value = field.name, getattr(self, field.name)
            wanted = get_origin(field.type) or field.type
            assert isinstance(wanted, type)
            kinds = (int, float) if wanted is float else wanted
            good = isinstance(value, kinds) and isinstance(value, bool) == (wanted is bool)
            require(good, name, value, f"a value of type {wanted.__name__}")

    @classmethod
    def load(cls, path: str | Path) -> Self:
        """Read a JSON file; a ValueError names the file if it is damaged."""
        try:
            values = json.loads(Path(path).read_text(encoding="utf-8"))
        except ValueError as error:
            raise ValueError(f"{path} is damaged: {error}") from None
        if not isinstance(values, dict):
            raise ValueError(f"{path} is damaged: it holds no JSON object")
        return cls.from_dict(values)


@dataclass(frozen=True, kw_only=True)
class ModelConfig(Config):
    """Shape of a model. Letters follow the shape legend: L layers, T segment length, …

    Attributes:
        vocab_size: V, number of token ids.
        n_layers, d_model, n_heads, head_dim, d_ff: L, D, H, E and the feed-forward width.
        segment_len: T, tokens per segment, that is, between two commits.
        memory_len: M, uncompressed slots per layer.
        compressed_len: C, compressed slots per layer; 0 gives a plain Transformer-XL.
        compression_rate: c, slots merged into one. T and M must be multiples of c, so that every
            commit compresses whole groups.
        compression: one of COMPRESSIONS (Compressive Transformer, §3.2; "select" is original).
        compression_loss: one of COMPRESSION_LOSSES; TRAINED_BY lists the valid combinations.
        norm: "post" as in the papers, or "pre" (slots are normalised before attention).
        final_norm: adds a LayerNorm before the output layer, usual with "pre".
        shared_bias: one pair of attention biases u and w for all layers instead of one per layer.
        dropout, attention_dropout: probabilities in [0, 1), used in training only.
        init_std: standard deviation of the initial weights.
        cutoffs: first id of each further bin of rarer tokens. With cutoffs, input embedding and
            softmax are adaptive (Transformer-XL; `streamlm.models.layers.adaptive`).
        div_val: with cutoffs, bin i's embeddings are div_val**i times narrower than bin 0's.
        embed_dim: with cutoffs, width of bin 0's embeddings; 0 means d_model.
        clamp_len: largest relative distance; larger ones are clamped to it. 0: no clamping.
        head: treatment of the past, one of `streamlm.models.build.MODELS`. Each model class
            documents its constraints on these settings and validates them in `check`.
        projected_len, projection, sharing: see `streamlm.models.heads.linformer`.
        factor: see `streamlm.models.heads.informer`.
        pinned_len: see `streamlm.models.heads.sinks`.
        coverage: see `streamlm.models.heads.sketch`.
    """

    vocab_size: int
    n_layers: int = 6
    d_model: int = 256
    n_heads: int = 4
    head_dim: int = 64
    d_ff: int = 1024
    segment_len: int = 128
    memory_len: int = 128
    compressed_len: int = 128
    compression_rate: int = 4
    compression: str = "conv"
    compression_loss: str = "attention-reconstruction"
    norm: str = "post"
    final_norm: bool = False
    shared_bias: bool = False
    dropout: float = 0.0
    attention_dropout: float = 0.0
    init_std: float = 0.02
    cutoffs: tuple[int, ...] = ()
    div_val: int = 1
    embed_dim: int = 0
    clamp_len: int = 0
    head: str = "relative"
    projected_len: int = 32
    projection: str = "linear"
    sharing: str = "layerwise"
    factor: int = 5
    pinned_len: int = 4
    coverage: float = 0.0

    def __post_init__(self) -> None:
        cutoffs: object = self.cutoffs
        if isinstance(cutoffs, list):  # from JSON or TOML
            object.__setattr__(self, "cutoffs", tuple(cutoffs))
        self._check_types()
        for field in dataclasses.fields(self):  # before anything is computed or allocated
            value = getattr(self, field.name)
            if type(value) is int:
                most = MOST_SLOTS if field.name in LENGTHS else MOST_SIZE
                require(value <= most, field.name, value, f"an integer of at most {most:,}")
        require(len(self.cutoffs) <= MOST_BINS, "cutoffs", "…", f"at most {MOST_BINS} of them")
        for name in ("vocab_size", "n_layers", "d_model", "n_heads", "head_dim", "d_ff"):
            value = getattr(self, name)
            require(value >= 1, name, value, "an integer of at least 1")
        for name in ("segment_len", "compression_rate"):
            value = getattr(self, name)
            require(value >= 1, name, value, "an integer of at least 1")
        for name in ("memory_len", "compressed_len"):
            value = getattr(self, name)
            require(value >= 0, name, value, "an integer of at least 0")
        require(self.d_model % 2 == 0, "d_model", self.d_model, "an even number")
        require(
            self.compression in COMPRESSIONS, "compression", self.compression, any_of(COMPRESSIONS)
        )
        require(
            self.compression_loss in COMPRESSION_LOSSES,
            "compression_loss",
            self.compression_loss,
            any_of(COMPRESSION_LOSSES),
        )
        require(self.norm in NORMS, "norm", self.norm, any_of(NORMS))
        for name in ("dropout", "attention_dropout"):
            value = getattr(self, name)
            require(0 <= value < 1, name, value, "a number in [0, 1)")
        require(self.init_std > 0, "init_std", self.init_std, "a number above 0")
        require(self.clamp_len >= 0, "clamp_len", self.clamp_len, "an integer of at least 0")
        self._check_adaptive()

    def _check_adaptive(self) -> None:
        cutoffs, last = self.cutoffs, self.vocab_size - 1
        good = all(type(cutoff) is int and 1 <= cutoff <= last for cutoff in cutoffs)
        good = good and list(cutoffs) == sorted(set(cutoffs))
        require(good, "cutoffs", cutoffs, f"rising integers from 1 to vocab_size - 1 = {last}")
        if not cutoffs:
            require(self.div_val == 1, "div_val", self.div_val, "1 where there are no cutoffs")
            allowed = "0 where there are no cutoffs"
            require(self.embed_dim == 0, "embed_dim", self.embed_dim, allowed)
        require(self.div_val >= 1, "div_val", self.div_val, "an integer of at least 1")
        require(self.embed_dim >= 0, "embed_dim", self.embed_dim, "an integer of at least 0")
        narrowest = self.div_val ** len(cutoffs)
        allowed = f"at least div_val ** {len(cutoffs)} = {narrowest}, so that every bin has a width"
        require(self.embed_width >= narrowest, "embed_dim", self.embed_width, allowed)

    def to_dict(self) -> dict[str, Any]:
        return {**super().to_dict(), "cutoffs": list(self.cutoffs)}

    @property
    def architecture(self) -> dict[str, Any]:
        """The settings that fingerprints cover; newer ones only if they differ from the default.

        Checkpoints and their sessions thus keep their fingerprints when settings are added.
        """
        default = {field.name: field.default for field in dataclasses.fields(self)}
        return {
            name: value
            for name, value in self.to_dict().items()
            if name not in NEWER or getattr(self, name) != default[name]
        }

    @property
    def embed_width(self) -> int:
        """Width of the embeddings of bin 0."""
        return self.embed_dim or self.d_model

    @property
    def slot_width(self) -> int:
        """W, numbers per slot and layer."""
        return self.d_model

    @property
    def past_len(self) -> int:
        """P = C + M, past slots per layer."""
        return self.compressed_len + self.memory_len

    @property
    def wants_usage(self) -> bool:
        """Whether the compression uses the attention that slots received."""
        return self.compressed_len > 0 and self.compression == "most-used"

    @property
    def evicted_len(self) -> int:
        """Compressed slots that one commit adds: T / c."""
        return self.segment_len // self.compression_rate if self.compressed_len else 0

    @property
    def reach(self) -> int:
        """L · (M + c·C), the longest distance over which a token can have influence, in tokens."""
        return self.n_layers * (self.memory_len + self.compression_rate * self.compressed_len)


def check_compression(config: ModelConfig) -> None:
    """Validate segment and memory lengths for the compression.

    Raises:
        ValueError: names the given and the allowed value.
    """
    if not config.compressed_len:
        return
    for name in ("segment_len", "memory_len"):
        value = getattr(config, name)
        multiple = f"a multiple of compression_rate = {config.compression_rate}"
        require(value % config.compression_rate == 0, name, value, multiple)
    # These need slots that were in memory for a whole segment.
    for used in (config.compression, config.compression_loss):
        if used in ("most-used", JOINT):
            good = config.memory_len >= config.segment_len
            allowed = f"at least segment_len = {config.segment_len} with {used!r}"
            require(good, "memory_len", config.memory_len, allowed)


def any_of(choices: Sequence[str]) -> str:
    """'a' or 'b' or 'c'."""
    return " or ".join(repr(choice) for choice in choices)
