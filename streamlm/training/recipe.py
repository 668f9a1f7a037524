"""Recipes: the settings of a training run in a TOML file."""

import tomllib
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from streamlm.training.config import TrainConfig
from streamlm.training.data import Corpus, load_corpus
from streamlm.training.data_sources import missing_data
from tokenizer import Tokenizer, load_tokenizer


@dataclass(frozen=True)
class Recipe:
    """[data], [model] and [train] of a TOML file. Paths are relative to the current directory.

    Attributes:
        tokenizer: [data] tokenizer, a model file; None with `base`, which has its own.
        train_files, valid_files: [data] train and valid, lists of files or glob patterns.
        cut_bytes: [data] cut documents into pieces of about this many bytes, so that rows can read
            parts of a large file in parallel; 0, the default, keeps documents whole.
        valid_share: [data] instead of `valid`, the share at the end of `train` that is held out.
        base: [model] from, a model whose training continues: an argument of `streamlm.load`.
        model: [model], settings of `ModelConfig`, or those that `streamlm.load` takes with `base`.
        train: [train].
        backbone: [backbone], for `streamlm compare` only: the training of the weights that all
            variants start from; segment_len, memory_len and settings of [train].
    """

    tokenizer: Path | None
    train_files: list[Path]
    valid_files: list[Path]
    cut_bytes: int
    valid_share: float
    model: dict[str, Any]
    train: TrainConfig
    backbone: dict[str, Any] | None = None
    base: str | None = None

    @classmethod
    def load(cls, path: str | Path) -> "Recipe":
        """Read and check a recipe; ValueError or FileNotFoundError names what is wrong."""
        try:
            values = tomllib.loads(Path(path).read_text(encoding="utf-8"))
        except ValueError as error:
            raise ValueError(f"{path} is no TOML: {error}") from None
        data, model = values.get("data", {}), dict(values.get("model", {}))
        base = model.pop("from", None)
        if base is not None and not isinstance(base, str):
            raise ValueError(f"from = {base!r}; allowed: a name or path as of --model")
        own = set() if base is not None else {"tokenizer"}
        wanted = [{*own, "train", last} for last in ("valid", "valid_share")]
        tables = {"data", "model", "train", "backbone"}
        if set(values) - tables or set(data) - {"cut_bytes"} not in wanted:
            raise ValueError(
                f"{path}: allowed are [data] with {''.join(f'{name}, ' for name in own)}train, "
                "valid or valid_share, and cut_bytes; [model], [train] and [backbone]"
            )
        cut, share = data.get("cut_bytes", 0), data.get("valid_share", 0.0)
        if not isinstance(cut, int) or cut < 0:
            raise ValueError(f"cut_bytes = {cut!r}; allowed: an integer of at least 0")
        if not isinstance(share, float) or not 0 <= share < 1:
            raise ValueError(f"valid_share = {share!r}; allowed: a number above 0 and below 1")
        return cls(
            tokenizer=Path(data["tokenizer"]) if own else None,
            train_files=_expand("train", data["train"]),
            valid_files=_expand("valid", data["valid"]) if "valid" in data else [],
            cut_bytes=cut,
            valid_share=share,
            model=model,
            train=TrainConfig.from_dict(values.get("train", {})),
            backbone=values.get("backbone"),
            base=base,
        )

    def own_tokenizer(self) -> Tokenizer:
        """The tokenizer of [data].

        Raises:
            ValueError: the recipe continues the training of a model instead.
        """
        if self.tokenizer is None:
            raise ValueError("a recipe with [model] from; allowed here: one with [data] tokenizer")
        return load_tokenizer(self.tokenizer)

    def corpora(
        self,
        tokenizer: Tokenizer,
        *,
        cache: str | Path | None = None,
        progress: Callable[[str], None] = lambda message: None,
    ) -> tuple[Corpus, Corpus]:
        """The training and the validation data; see `load_corpus`."""
        parts = [(self.train_files, (0.0, 1.0 - self.valid_share))]
        if self.valid_files:
            parts += [(self.valid_files, (0.0, 1.0))]
        else:
            parts += [(self.train_files, (1.0 - self.valid_share, 1.0))]
        train, valid = (
            load_corpus(
                files, tokenizer, cut_bytes=self.cut_bytes, part=part, cache=cache,
                progress=progress,
            )
            for files, part in parts
        )  # fmt: skip
        return train, valid


def _expand(name: str, patterns: Any) -> list[Path]:
    if not isinstance(patterns, list) or not all(isinstance(item, str) for item in patterns):
        raise ValueError(f"{name} = {patterns!r}; allowed: a list of files or glob patterns")
    files: list[Path] = []
    for pattern in patterns:
        one = Path(pattern)
        matches = [one] if one.is_absolute() else sorted(Path().glob(pattern))
        if not matches:
            raise FileNotFoundError(f"no data file matches {pattern!r}{missing_data(one)}")
        files += matches
    return files
