"""Costs and recall of heads, the peak of tensors beside sums by hand, and the report."""

import re
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch

from streamlm.checkpoints.checkpoint import Checkpoint
from streamlm.config import ModelConfig
from streamlm.lab.compare import Run
from streamlm.lab.costs import DISTANCES, LENGTHS, mean_of, measure, peak_tensor_bytes
from streamlm.lab.report import write_report
from streamlm.lab.statistics import summary
from streamlm.models.build import build_model
from streamlm.training.data import Corpus
from tokenizer import Tokenizer

BOOK = Path(__file__).parents[2] / "streamlm" / "assets" / "books" / "beyond-the-city.txt"
HEADS: dict[str, dict[str, Any]] = {
    "compressed": {"memory_len": 32, "compressed_len": 32},
    "full": {"head": "full", "memory_len": 0, "compressed_len": 0},
}


@pytest.fixture(scope="module")
def measured(books_tokenizer: Tokenizer) -> dict[str, dict[str, Any]]:
    text = BOOK.read_text(encoding="utf-8")[:80_000]
    ids = books_tokenizer.encode(text)
    corpus = Corpus(ids, np.array([0, len(ids)]), len(text.encode()), len(text.split()))
    found = {}
    for name, options in HEADS.items():
        torch.manual_seed(0)
        config = ModelConfig(
            **{"vocab_size": books_tokenizer.vocab_size, "n_layers": 1, "d_model": 16},
            **{"n_heads": 2, "head_dim": 8, "d_ff": 16, "segment_len": 32},
            **options,
        )
        model = build_model(config).eval().requires_grad_(False)
        found[name] = measure(Checkpoint(model, books_tokenizer), corpus, sequences=8)
    return found


def test_measures(measured: dict[str, dict[str, Any]]) -> None:
    for name, found in measured.items():
        assert {row["distance"] for row in found["recall"]} == set(DISTANCES)
        assert all(0 <= row["accuracy"] <= 1 and "gain" in row for row in found["recall"])
        stream = found["stream"]
        assert [row["tokens"] for row in stream] == [32 * n for n in LENGTHS]
        for row in stream:
            assert min(row["reading"], row["writing"], row["save_ms"], row["resume_ms"]) > 0
        sizes = [row["state_bytes"] for row in stream]
        grows = sizes[2] - sizes[0]
        assert grows == (0 if name == "compressed" else (64 - 4) * 32 * 16 * 4)
        peaks = [row["peak_bytes"] for row in stream]
        assert peaks == sorted(peaks)
        assert all(row["peak_bytes"] > row["state_bytes"] + row["derived_bytes"] for row in stream)
        assert (peaks[2] == peaks[1]) == (name == "compressed")


def test_the_mean_of_seeds(measured: dict[str, dict[str, Any]]) -> None:
    one = measured["full"]
    other = {
        **one,
        "stream": [{**row, "reading": row["reading"] + 2.0} for row in one["stream"]],
    }
    mean = mean_of([one, other])
    assert mean["stream"][1]["reading"] == pytest.approx(one["stream"][1]["reading"] + 1.0)
    assert mean["recall"] == one["recall"]


def test_the_report_is_one_file(measured: dict[str, dict[str, Any]], tmp_path: Path) -> None:
    places = {"loss_by_position": [{"place": 2**i, "nats": 5.0 - i} for i in range(3)]}
    runs = [
        Run(name, seed, 2.0 + seed / 10, 2.0, 100, 1000, 1.0, {**found, **places})
        for name, found in measured.items()
        for seed in (1, 2)
    ]
    settings = {
        "recipe": "recipes/<small>.toml",
        "train": {"steps": 10, "batch_size": 2},
        "model": {"segment_len": 32},
    }
    path = tmp_path / "report.html"
    rows = summary(runs, reference="full")
    refused = {"oracle": "in training, tokens from 5 on change what is predicted after 3"}
    missing = tmp_path / "missing.png"
    write_report(path, rows, runs, settings, reference="full", picture=missing, refused=refused)
    text = path.read_text(encoding="utf-8")
    assert text.count("data:image/png;base64,") == 1 and "&lt;small&gt;" in text
    assert not re.search(r'(?:src|href)="(?!data:)', text)  # nothing is fetched
    assert "640 tokens" in text
    # Both seeds of a head measure the same here, so every difference is sure.
    full, *others = (re.search(f"<tr><td>{name}</td>(.*?)</tr>", text) for name in ("full", *HEADS))
    assert full is not None and "class=" not in full[1]  # the reference
    assert all(other is not None for other in others) and 'class="better"' in text
    assert 'class="worse"' in text
    assert "oracle looks ahead and was not measured: in training, tokens from 5 on" in text
    for name in HEADS:
        assert f"<td>{name}</td>" in text


# -- bytes of tensors, beside sums by hand ----------------------------------------


def test_freed_tensors_do_not_count() -> None:
    def work() -> None:
        a = torch.zeros(1000)
        b = a + 1  # 8,000 bytes now
        del a
        c = b * 2  # 8,000 again
        del b, c

    assert peak_tensor_bytes(work) == 8000


def test_views_keep_their_memory_and_add_none() -> None:
    weights = torch.ones(50, 50)

    def work() -> torch.Tensor:
        a = torch.zeros(1000)
        view = a[:10]
        del a
        other = torch.zeros(500)
        return weights.t()[0] + view[0] + other[0]

    # 4,000 bytes kept by the view, 2,000, and two sums of 50 numbers.
    assert peak_tensor_bytes(work) == 4000 + 2000 + 400


def test_in_place_operations_add_none() -> None:
    given = torch.zeros(1000)

    def work() -> None:
        given.add_(1).mul_(2)

    assert peak_tensor_bytes(work) == 0
    assert given[0] == 2
