"""Runs of several ranks for tests: small trainers of every kind, on one rank or under torchrun.

    torchrun --nproc-per-node 2 -m tests.support.ranks FOLDER

trains every case on two ranks, into FOLDER/ranks/CASE; `train` on one rank is what they equal.
"""

import json
import os
import sys
from dataclasses import replace
from itertools import islice
from pathlib import Path
from typing import Any

import numpy as np
import torch

from streamlm.config import ModelConfig
from streamlm.models.build import MODELS
from streamlm.training.config import TrainConfig
from streamlm.training.data import Corpus
from streamlm.training.ranks import Ranks, joined
from streamlm.training.run_folder import ONE
from streamlm.training.trainer import Trainer
from tests.support import shape_rounding
from tests.support.training import MODEL, TRAIN
from tokenizer import load_tokenizer

ROOT = Path(__file__).resolve().parents[2]
WORDS = ("the", "of", "whale", "sea", "captain", "old", "never", "again", "a", "it", "was", "1851")
RUN = {"steps": 10, "checkpoint_steps": 5, "eval_steps": 10}

LLAMA = {"head": "llama", "n_kv_heads": 1, "pinned_len": 3, "slots": "float32"}
SELECT = {"compression": "select", "compression_loss": "joint-attention-reconstruction"}
# What takes different paths through a step; the first has the default loss of compression.
CASES: dict[str, dict[str, Any]] = {
    "conv": {},
    "bptt": {"compression_loss": "bptt", "unroll": 2},
    "llama": {**LLAMA, **SELECT},
    "cutoffs": {"cutoffs": [500, 3000], "div_val": 2, "compression_loss": "none"},
    "bfloat16": {"precision": "bfloat16"},
}
# The same weights, divided among the ranks.
SHARDED: dict[str, dict[str, Any]] = {
    "step": {"shard": "step"},
    "layers": {**SELECT, "shard": "layers"},
    "layers-bptt": {"compression_loss": "bptt", "unroll": 2, "shard": "layers"},
    "layers-parts": {"unroll": 2, "rows_at_once": 2, "shard": "layers"},
    "layers-bfloat16": {"precision": "bfloat16", "unroll": 2, "shard": "layers"},
}
# Sums have another order.
PARTS: dict[str, dict[str, Any]] = {"parts": {"rows_at_once": 2}}


def corpus() -> Corpus:
    """Documents of different lengths and words, so that no two groups have the same gradients."""
    tokenizer = load_tokenizer(ROOT / "streamlm" / "assets" / "books" / "tokenizer.model")
    random = np.random.default_rng(1)
    texts = [" ".join(random.choice(WORDS, n)) for n in random.integers(30, 120, 20)]
    ids = [tokenizer.encode(text).astype(np.uint16) for text in texts]
    offsets = np.cumsum([0, *map(len, ids)])
    return Corpus(np.concatenate(ids), offsets, sum(map(len, texts)), 100)


def trainer(folder: Path, *, ranks: Ranks = ONE, **options: Any) -> Trainer:
    """A trainer for ten steps, which saves after five."""
    tokenizer = load_tokenizer(ROOT / "streamlm" / "assets" / "books" / "tokenizer.model")
    names = ModelConfig(vocab_size=1).to_dict() | MODELS["llama"].settings(vocab_size=1).to_dict()
    model = {"vocab_size": tokenizer.vocab_size, **MODEL}
    model |= {name: value for name, value in options.items() if name in names}
    training = {name: value for name, value in options.items() if name not in names}
    texts = corpus()
    return Trainer(
        MODELS[model.get("head", "relative")].settings.from_dict(model),  # type: ignore[arg-type]
        TrainConfig.from_dict({**TRAIN, **RUN, **training}),
        tokenizer=tokenizer,
        train=texts,
        valid=texts,
        folder=folder,
        device="cpu",
        ranks=ranks,
    )


def reports(run: Trainer, steps: int | None = None) -> list[dict[str, Any]]:
    """What a run reports of its steps, apart from its pace."""
    done = (replace(step, tokens_per_second=0.0, seconds_left=0.0) for step in run.run())
    return [step.__dict__ for step in islice(done, steps)]


def train(folder: Path, *, ranks: Ranks = ONE, **options: Any) -> list[dict[str, Any]]:
    """Train to the end and return the reports."""
    return reports(trainer(folder, ranks=ranks, **options))


def main(out: Path, ranks: Ranks) -> None:
    """Train all cases on these ranks, and resume a run, which another number of ranks began too."""
    results: dict[str, Any] = {"least": ranks.least(7 - ranks.rank)}
    for name, options in {**CASES, **SHARDED, **PARTS}.items():
        results[name] = train(out / "ranks" / name, ranks=ranks, **options)
    reports(trainer(out / "ranks" / "divided", ranks=ranks, **SHARDED["layers"]), 5)
    divided = trainer(out / "ranks" / "divided", ranks=ranks, **SHARDED["layers"])
    divided.resume()
    results["divided"] = reports(divided)
    begun = trainer(out / "ranks" / "stopped", ranks=ranks, dropout=0.1)
    first = reports(begun, 5)
    torch.manual_seed(99)  # other draws of the process must not matter
    again = trainer(out / "ranks" / "stopped", ranks=ranks, dropout=0.1)
    again.resume()
    results["stopped"] = [*first, *reports(again)]
    results["dropout"] = train(out / "ranks" / "dropout", ranks=ranks, dropout=0.1)
    reports(trainer(out / "ranks" / "left", ranks=ranks), 5)
    other = trainer(out / "one" / "left", ranks=ranks, accumulate=2)  # begun by one rank
    other.resume()
    results["taken over"] = reports(other)
    try:
        ranks.check_shared(out / f"of rank {ranks.rank}")
    except ValueError as error:
        results["apart"] = str(error)
    if ranks.leads:
        (out / "ranks" / "reports.json").write_text(json.dumps(results))


if __name__ == "__main__":
    torch.set_num_threads(int(os.environ.get("STREAMLM_TEST_THREADS", "1")))
    shape_rounding.inherit()
    with joined("cpu") as all_ranks:
        main(Path(sys.argv[1]), all_ranks)
