"""The benchmarks run, and write what they promise; on tiny models and a few tokens."""

import json
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from benchmarks import (
    books,
    compressors,
    drift,
    feed_all,
    forecast,
    forecast_defaults,
    linformer,
    speculative,
    store,
    stream,
    turns,
)
from benchmarks.tools import compressors as tools
from benchmarks.tools.compressors import ppmd_size, primed_ppmd
from benchmarks.tools.positions import Bins, compared, curve, linear_edges, log_edges
from benchmarks.tools.reading import endless_text
from benchmarks.tools.reads import NONE, RECENT, WHOLE, encode_books, read_books
from benchmarks.tools.timing import median_interval, ratio, side_by_side
from streamlm.checkpoints.checkpoint import Checkpoint, load_checkpoint
from streamlm.forecast.config import ForecastConfig
from streamlm.forecast.reading import load
from streamlm.runtime.drafter import Drafter, DrafterConfig, save_drafter
from streamlm.sessions.session import Session


@pytest.fixture
def shelf(tmp_path: Path, prose: Callable[..., str]) -> Path:
    """Six short books in a file."""
    path = tmp_path / "shelf.txt"
    path.write_text("\f\n".join(prose(150 + 40 * i, seed=i) for i in range(6)), encoding="utf-8")
    return path


@pytest.fixture(autouse=True)
def called_by_name(monkeypatch: pytest.MonkeyPatch) -> None:
    """Result files record the command, which is pytest's here."""
    monkeypatch.setattr(sys, "argv", ["benchmark"])


def results(path: Path) -> dict[str, object]:
    found = json.loads(path.read_text())
    assert found["machine"]["cpu"] and found["machine"]["torch"] and found["made"]
    figures: dict[str, object] = found["figures"]
    return figures


def test_stream(tiny_folder: Callable[..., Path], shelf: Path, tmp_path: Path) -> None:
    out = tmp_path / "out"
    options = ["--tokens", "1100", "--repeats", "2", "--data", str(shelf), "--out", str(out)]
    options += ["--folder", str(tmp_path)]
    stream.main(["--model", str(tiny_folder()), "--threads", "1", *options])
    figures = results(out / "stream.json")
    assert {"cost", "memory", "state", "commits", "resume", "curve"} <= set(figures)
    assert (out / "stream.png").stat().st_size > 10_000
    assert sorted(path.name for path in out.iterdir()) == ["stream.json", "stream.png"]


def test_books(tiny_folder: Callable[..., Path], shelf: Path, tmp_path: Path) -> None:
    pytest.importorskip("pyppmd")
    out = tmp_path / "out"
    options = ["--tuning", str(shelf), "--orders", "5", "6", "--prime"]
    compressors.main(["--data", str(shelf), "--out", str(out), *options])
    options = ["--model", str(tiny_folder()), "--threads", "1", "--out", str(out)]
    books.main(["--data", str(shelf), *options])
    figures: Any = results(out / "books.json")
    assert {"models", "compressors", "curves", "differences", "books"} <= set(figures)
    assert len(figures["compressors"]) == 4
    assert (out / "books.png").stat().st_size > 10_000
    books.main(["--data", str(shelf), "--max-tokens", "300", *options])
    figures = results(out / "books.json")
    assert not figures["compressors"], "they coded other bytes"


def test_drift(tiny_folder: Callable[..., Path], shelf: Path, tmp_path: Path) -> None:
    out = tmp_path / "out"
    options = ["--data", str(shelf), "--tokens", "900", "--threads", "1", "--out", str(out)]
    drift.main(["--model", str(tiny_folder()), *options])
    figures: Any = results(out / "drift.json")
    assert len(figures["bits_per_byte_by_tenth"]) == 10
    assert len(set(figures["state_bytes_by_tenth"])) == 1 and 800 < figures["tokens"] <= 900
    change = figures["last_minus_second"]
    assert change["low"] < change["difference"] < change["high"]
    assert (out / "drift.png").stat().st_size > 5_000


def test_speculative(tiny_folder: Callable[..., Path], shelf: Path, tmp_path: Path) -> None:
    out, folder = tmp_path / "out", tiny_folder()
    checkpoint = load_checkpoint(folder, device="cpu")
    shape = {"d_model": 8, "n_heads": 2, "d_ff": 16, "n_tokens": 2}
    save_drafter(tmp_path / "drafter", Drafter(DrafterConfig.of(checkpoint, shape)))
    options = ["--draft", str(tmp_path / "drafter"), "--data", str(shelf), "--threads", "1"]
    options += ["--repeats", "2", "--tokens", "9", "--read", "30", "--eval-tokens", "200"]
    speculative.main(["--model", str(folder), "--out", str(out), *options])
    figures: Any = results(out / "speculative.json")
    assert [(run["temperature"], run["drafted"]) for run in figures["runs"]] == [
        (0.0, 2), (0.8, 2), (1.0, 2), (0.8, 1)
    ]  # fmt: skip
    for run in figures["runs"]:
        assert 1 <= run["tokens_per_pass"] <= 1 + run["drafted"]
        assert len(run["accepted_by_offset"]) == run["drafted"] and run["speedup"]["pairs"] == 2
    assert len(figures["conditionally_independent_nats_by_offset"]) == 2
    assert (out / "speculative.png").stat().st_size > 10_000


def test_drift_reads_a_piece_of_every_book_in_every_tenth(tiny: Checkpoint) -> None:
    texts = ["Call me Ishmael. " * n for n in (60, 90)]
    pieces = drift.pieces_of(tiny, texts, tokens=300)
    lengths = [len(tiny.tokenizer.encode(text)) for text in texts]
    for of_book in zip(*pieces, strict=True):
        assert len({len(piece) for piece in of_book}) == 1
    sizes = [len(piece) for piece in pieces[0]]
    assert sizes == [int(n * 300 / sum(lengths)) // 10 for n in lengths]


def test_ways_of_reading(tiny: Checkpoint, shelf: Path) -> None:
    texts = shelf.read_text(encoding="utf-8").split("\f\n")
    shelf_books = encode_books(texts, tiny)
    assert [book.data.decode() for book in shelf_books] == texts
    reports = read_books(tiny, shelf_books, batch_size=2)
    assert list(reports) == [WHOLE, RECENT, NONE]
    for i, text in enumerate(texts):
        read = Session(tiny).score([text], logprobs=True)
        for name, report in reports.items():
            assert report.losses is not None
            assert report.documents[i].n_bytes == len(text.encode())
            kept, found = -np.array(read.logprobs), report.losses[i]
            first = tiny.model.config.segment_len  # where all ways have read the same
            np.testing.assert_allclose(found[:first], kept[:first], rtol=1e-4)
            if name == WHOLE:
                np.testing.assert_allclose(found, kept, rtol=1e-4)
                assert report.documents[i].nats == pytest.approx(read.nats, rel=1e-5)
            else:
                assert not np.allclose(found, kept, rtol=1e-4)


def test_primed_ppmd_is_the_difference_of_two_streams(
    tmp_path: Path, prose: Callable[..., str], monkeypatch: pytest.MonkeyPatch
) -> None:
    pytest.importorskip("pyppmd")
    monkeypatch.setattr(tools, "MEMORY", 1 << 24)
    training, book = tmp_path / "training.txt", prose(300, seed=1).encode()
    training.write_text(prose(2000, seed=2), encoding="utf-8")
    found = primed_ppmd([book], [book], training=[training], orders=[6])
    read = training.read_bytes()
    settings: Any = {"order": 6, "variant": "I", "memory": 1 << 24}
    assert found.sizes == [ppmd_size(read + book, **settings) - ppmd_size(read, **settings)]
    assert found.sizes[0] < ppmd_size(book, **settings)


def test_bins_by_position() -> None:
    losses = [np.arange(5.0), np.ones(3)]
    bins = Bins.of(losses, [0, 1, 2, 4, 8])
    assert bins.tokens.tolist() == [[1, 1, 2, 1], [1, 1, 1, 0]]
    assert bins.mean.tolist() == [0.5, 1.0, 2.0, 4.0]
    assert curve(bins)["books"] == [2, 2, 2, 1]
    assert log_edges(5) == [0, 1, 2, 4, 8]
    assert linear_edges(5, 2, 8) == [0, 2, 4]


def test_differences_are_paired() -> None:
    random = np.random.default_rng(0)
    books_ = [random.normal(5, 3, 40) for _ in range(12)]  # books differ more than readings do
    worse = [book + random.normal(0.1, 0.05, 40) for book in books_]
    edges = [0, 40]
    (row,) = compared("better", Bins.of(books_, edges), Bins.of(worse, edges))
    assert row["low"] < -0.1 + 0.02 and row["high"] < 0 and row["books_better"] == 12


def test_side_by_side_takes_turns() -> None:
    calls: list[str] = []

    def work(name: str, seconds: float) -> Callable[[], float]:
        return lambda: calls.append(name) or seconds  # type: ignore[func-returns-value]

    first, second = side_by_side(work("a", 1.0), work("b", 2.0), repeats=2)
    assert "".join(calls) == "ab" + "ab" + "ba"
    assert ratio(second, first)["median"] == 2 and median_interval(first)["high"] == 1


def test_endless_text_goes_round_and_stops(tmp_path: Path) -> None:
    file = tmp_path / "a.txt"
    file.write_text("abc" * 50)
    read: list[str] = []
    for block in endless_text(file, lambda: sum(map(len, read)), [100, 400]):
        read.append(block)
    text = "".join(read)
    assert text.startswith("abc" * 50) and set(text) == set("abc") and 400 <= len(text) < 600


def test_store_measures_what_it_says(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, tiny: Checkpoint, prose: Callable[..., str]
) -> None:
    book = tmp_path / "book.txt"
    book.write_text(prose(900), encoding="utf-8")
    monkeypatch.setattr(store, "models", lambda: {"tiny": tiny})
    monkeypatch.setattr(store, "READ", {"tiny": (3000, 1)})
    monkeypatch.setattr(store, "STATES", {"12.6 MB": (2, 160, 8)})
    monkeypatch.setattr(store, "SMALL", (1, 160, 2))
    monkeypatch.setattr(store, "POINTS", 4)
    monkeypatch.setattr(store, "TOKENS", 64)
    options = ["--repeats", "2", "--commits", "80", "--folder", str(tmp_path / "runs")]
    options += ["--data", str(book), "--threads", "1"]
    for parts in (["years", "forks"], ["costs", "feeding"]):
        assert not (tmp_path / "store.png").exists()
        store.main([*options, "--out", str(tmp_path), "--parts", *parts])
    figures = json.loads((tmp_path / "store.json").read_text())["figures"]
    found = figures["costs"]["12.6 MB"]
    assert found["state_bytes"] == 2 * (2 * 160 + 1) * 8 * 2
    assert found["added_bytes"] == 2 * (128 + 32 + 1) * 8 * 2 + 128 * 4
    reading = figures["feeding"]["tiny"]
    assert reading["commits"] >= reading["segments"] > 10 and reading["to_none"]["median"] > 0
    assert figures["forks"]["share"] > 0
    ends = [policy["curve"][-1] for policy in figures["years"].values()]
    assert [index for index, _ in ends] == [80] * 4
    sizes = [size for _, size in ends]
    assert sizes == sorted(sizes, reverse=True) and sizes[0] > sizes[2] > sizes[3]
    assert (tmp_path / "store.png").stat().st_size > 10_000
    assert not list((tmp_path / "runs").iterdir())


def test_forecast_compares_what_it_trained(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(forecast, "LENGTHS", {key: (16, 8) for key in forecast.LENGTHS})
    monkeypatch.setattr(forecast, "WIDTHS", {False: (16, 16)})
    data = tmp_path / "series.csv"
    dates = np.datetime64("2016-07-01T00", "s") + np.arange(900) * np.timedelta64(3600, "s")
    rows = (f"{date},{n % 7},{n % 5}" for n, date in enumerate(dates))
    data.write_text("\n".join(["date,x,OT", *rows]), encoding="utf-8")
    options = ["--data", str(data), "--epochs", "1", "--seeds", "2", "--threads", "1"]
    options += ["--horizons", "24", "--models", "informer", "nlinear", "--device", "cpu"]
    options += ["--runs", str(tmp_path / "runs"), "--out", str(tmp_path)]
    forecast.main(options)
    found = json.loads((tmp_path / "forecast.json").read_text())["figures"]["rows"]
    models = ["informer", "nlinear", "unchanged"]
    assert [row["model"] for row in found] == models * 2
    for row in found[:2]:
        errors = row["mse"]
        assert errors["low"] <= errors["mean"] <= errors["high"] and len(errors["seeds"]) == 2
    config = ForecastConfig(input_len=16, label_len=8, horizon=24)
    one = forecast.unchanged(load(data), config)
    assert one["mse"] == pytest.approx(found[2]["mse"]["mean"]) and one["mse"] > 0.5
    assert (tmp_path / "forecast.png").stat().st_size > 5000
    trained = list((tmp_path / "runs").iterdir())
    forecast.main(options)  # nothing is trained twice
    assert len(trained) == 8 and trained == list((tmp_path / "runs").iterdir())


def test_forecast_defaults_compares_with_the_baseline(tmp_path: Path) -> None:
    options = ["--ett", "--models", "nlinear", "--epochs", "1", "--threads", "1"]
    forecast_defaults.main([*options, "--device", "cpu", "--out", str(tmp_path)])
    found = json.loads((tmp_path / "forecast-defaults.json").read_text())["figures"]["rows"]
    assert [row["season"] for row in found] == [12, 1, 7, 168]
    assert all(0.5 < row["coverage"] <= 1 and row["mae"] < 1 for row in found)
    assert found[0]["mae"] < found[0]["naive_mae"]  # it follows the trend


def test_linformer_trains_twins(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, tiny: Checkpoint, prose: Callable[..., str]
) -> None:
    for name, value in (("PROJECTED", 4), ("TESTED", 2), ("KS", (8, 16))):
        monkeypatch.setattr(linformer, name, value)
    monkeypatch.setitem(linformer.ENCODER, "window", 16)
    (tmp_path / "t.model").write_bytes(tiny.tokenizer.model_bytes)
    (tmp_path / "text.txt").write_text(prose(400), encoding="utf-8")
    recipe = tmp_path / "recipe.toml"
    files = f'["{tmp_path}/text.txt"]'
    recipe.write_text(
        f'[data]\ntokenizer = "{tmp_path}/t.model"\ntrain = {files}\nvalid = {files}\n'
    )
    options = ["--recipe", str(recipe), "--steps", "3", "--seeds", "2", "--lengths", "32"]
    options += ["--threads", "1", "--device", "cpu", "--repeats", "2"]
    linformer.main([*options, "--runs", str(tmp_path / "runs"), "--out", str(tmp_path)])
    figures = json.loads((tmp_path / "linformer.json").read_text())["figures"]
    assert list(figures["guessing"]) == list(linformer.VARIANTS)
    losses = {name: [run["loss"] for run in runs] for name, runs in figures["guessing"].items()}
    assert all(3 < loss < 12 for both in losses.values() for loss in both)
    assert len({tuple(both) for both in losses.values()}) == len(losses)
    assert [row["n"] for row in figures["speed"]] == [32, 32]
    assert (tmp_path / "linformer.png").stat().st_size > 5000
    config = linformer.EncoderConfig(vocab_size=9, n_layers=1, d_model=8, n_heads=2, window=8)
    full, short = (
        linformer.begin(linformer.replace(config, projected_len=n), seed=3).state_dict()
        for n in (0, 4)
    )
    assert all(bool((short[name] == weight).all()) for name, weight in full.items())


def test_turns(tiny_folder: Callable[..., Path], shelf: Path, tmp_path: Path) -> None:
    options = ["--turns", "20", "--bytes", "40", "--model", str(tiny_folder())]
    turns.main([*options, "--out", str(tmp_path / "out")])
    figures: Any = results(tmp_path / "out" / "turns.json")
    assert figures["turns"]["tokens"] == figures["one"]["tokens"] > 100
    assert [row["turns"] for row in figures["turns"]["by_turns"]] == [5, 10, 15, 20]
    assert figures["factor"] == figures["turns"]["bytes"] / figures["one"]["bytes"]
    for name in ("turns", "one"):
        assert 0 <= figures["gc"][name]["said"] <= figures["gc"][name]["freed"] + 1e5


def test_feed_all(tiny_folder: Callable[..., Path], tmp_path: Path) -> None:
    options = ["--documents", "2", "--bytes", "100", "--rounds", "1", "--workers", "1"]
    feed_all.main([*options, "--model", str(tiny_folder()), "--out", str(tmp_path)])
    figures: Any = results(tmp_path / "feed-all.json")
    (row,) = figures["rounds"]
    assert row["tokens"] > 20 and 0 < row["begun_after"] < row["seconds"]
    assert figures["tokens_per_second"]["1"] == row["tokens"] / row["seconds"]
