"""ForecastConfig: the settings of a forecaster and its training; frozen, checked, JSON."""

import json
from collections.abc import Mapping
from dataclasses import asdict, dataclass, fields
from pathlib import Path
from typing import Any

from streamlm.config import require

MODELS = ("nlinear", "dlinear", "informer", "transformer")
LAZY = ("sum", "mean")
RATES = {"informer": 1e-4, "transformer": 1e-4, "dlinear": 5e-3, "nlinear": 5e-3}


@dataclass(frozen=True)
class ForecastConfig:
    """Settings of a forecaster and its training.

    Sizes and rates of the Transformers are by default those of the authors' code.

    Attributes:
        model: "nlinear", "dlinear", "informer" or "transformer" (full attention, no distilling).
        columns: names of the columns to read and forecast.
        step: the `spec` of the series' step; n_marks: the number of date features, see
            `series.time_marks`. `train` fills in both.
        input_len: rows of the input; label_len: its last rows, which start the decoder; horizon:
            rows to forecast.
        d_model, n_heads, d_ff, dropout: as in a Transformer.
        encoder_layers: layers of each encoder replica.
        decoder_layers: layers of the decoder.
        factor: c of ProbSparse attention.
        distil: halve the length between encoder layers.
        lazy: output of the decoder's lazy queries; see `attention.prob_sparse`.
        batch_size, learning_rate, epochs, patience: training with Adam; the learning rate halves
            every epoch, and training stops after `patience` epochs in a row without improvement.
            The default of the learning rate is the model's in `RATES`.
        passes: times that an epoch goes through the train part.
        seed: of weights, order, dropout and sampled keys.

    Raises:
        ValueError: says what was given and what is allowed.
    """

    model: str = "nlinear"
    columns: tuple[str, ...] = ("OT",)
    step: str = ""
    n_marks: int = 4
    input_len: int = 96
    label_len: int = 48
    horizon: int = 24
    d_model: int = 512
    n_heads: int = 8
    d_ff: int = 2048
    dropout: float = 0.05
    encoder_layers: tuple[int, ...] = (2,)
    decoder_layers: int = 1
    factor: int = 5
    distil: bool = True
    lazy: str = "sum"
    batch_size: int = 32
    learning_rate: float | None = None
    epochs: int = 6
    passes: int = 1
    patience: int = 3
    seed: int = 0

    def __post_init__(self) -> None:
        object.__setattr__(self, "columns", tuple(self.columns))
        object.__setattr__(self, "encoder_layers", tuple(self.encoder_layers))
        require(self.model in MODELS, "model", self.model, " or ".join(MODELS))
        require(self.lazy in LAZY, "lazy", self.lazy, " or ".join(LAZY))
        require(bool(self.columns), "columns", self.columns, "at least one name")
        for name in (
            *("n_marks", "input_len", "horizon", "d_model", "n_heads", "d_ff", "decoder_layers"),
            *("factor", "batch_size", "epochs", "passes", "patience"),
        ):
            value = getattr(self, name)
            require(type(value) is int and value > 0, name, value, "an integer of at least 1")
        good = 0 <= self.label_len <= self.input_len
        allowed = f"0 to input_len = {self.input_len}"
        require(good, "label_len", self.label_len, allowed)
        good = self.d_model % (2 * self.n_heads) == 0
        require(good, "d_model", self.d_model, f"a multiple of 2 · n_heads = {2 * self.n_heads}")
        good = bool(self.encoder_layers) and all(n > 0 for n in self.encoder_layers)
        require(good, "encoder_layers", self.encoder_layers, "integers of at least 1")
        shortest = self.input_len // 2 ** (len(self.encoder_layers) - 1)
        name = "encoder_layers"
        require(shortest > 0, name, self.encoder_layers, f"fewer for input_len = {self.input_len}")
        require(0 <= self.dropout < 1, "dropout", self.dropout, "a number in [0, 1)")
        if self.learning_rate is None:
            object.__setattr__(self, "learning_rate", RATES[self.model])
        good = self.learning_rate is not None and self.learning_rate > 0
        require(good, "learning_rate", self.learning_rate, "a number above 0")
        if self.model == "transformer":
            object.__setattr__(self, "distil", False)

    @property
    def n_columns(self) -> int:
        return len(self.columns)

    @property
    def factor_or_none(self) -> int | None:
        """c of ProbSparse attention, None where attention is full."""
        return self.factor if self.model == "informer" else None

    @classmethod
    def from_dict(cls, values: Mapping[str, Any]) -> "ForecastConfig":
        """Build from the values of `to_dict`; unknown keys are refused."""
        unknown = values.keys() - {field.name for field in fields(cls)}
        if unknown:
            raise ValueError(f"unknown settings of a forecaster: {', '.join(sorted(unknown))}")
        return cls(**values)

    def to_dict(self) -> dict[str, Any]:
        return {
            name: list(value) if isinstance(value, tuple) else value
            for name, value in asdict(self).items()
        }

    def save(self, path: Path) -> None:
        path.write_text(json.dumps(self.to_dict(), indent=2) + "\n", encoding="utf-8")
