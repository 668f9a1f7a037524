"""The suite: text measures against plain loops, the command, training on tasks, the benchmark."""

import json
import math
import sys
from collections import Counter
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from typer.testing import CliRunner

from benchmarks import recall as benchmark
from benchmarks.tools.foresight import area
from benchmarks.tools.recall_models import (
    FAMILY,
    ORACLE,
    SEGMENT,
    VOCAB,
    WINDOW,
    Entry,
    entries,
    heads_entries,
)
from streamlm.checkpoints.checkpoint import Checkpoint
from streamlm.cli.app import app
from streamlm.config import COMPRESSIONS, ModelConfig
from streamlm.lab.tasks import REGIONS, Alphabet, Questions, answer, recall
from streamlm.lab.tasks.context import effective_context, relative_gains
from streamlm.lab.tasks.frequency import count_words, loss_by_frequency
from streamlm.lab.tasks.suite import NAMES, SuiteConfig, distances, run_suite
from streamlm.lab.tasks.training import trainer_on
from streamlm.models.transformer_xl import TransformerXL
from streamlm.training.config import TrainConfig
from streamlm.training.data import Corpus, SegmentBatches
from streamlm.training.evaluate import evaluate
from tests.support.invariants import tiny_model
from tokenizer import Tokenizer

FAMILIES = Alphabet.plain(96, family=4)


@pytest.fixture(scope="module")
def words(prose: Callable[..., str], books_tokenizer: Tokenizer) -> str:
    """Prose with enough different words of one token."""
    single = [books_tokenizer.decode_bytes([i]).decode(errors="ignore") for i in range(2000, 3000)]
    return prose(600) + "".join(word for word in single if word[:1] == " ") + prose(600, seed=1)


def corpus_of(texts: list[str], tokenizer: Tokenizer) -> Corpus:
    parts = [tokenizer.encode(text) for text in texts]
    offsets = np.concatenate([[0], np.cumsum([len(part) for part in parts])])
    n_words = sum(len(text.split()) for text in texts)
    return Corpus(np.concatenate(parts), offsets, sum(len(t.encode()) for t in texts), n_words)


# -- loss by word frequency -----------------------------------------------------------------------


def test_words() -> None:
    assert count_words("The whale; the WHALE's tail — don’t_x 12.") == Counter(
        {"the": 2, "whale": 1, "whale's": 1, "tail": 1, "don’t": 1, "x": 1, "12": 1}
    )


def test_loss_by_frequency(books_tokenizer: Tokenizer) -> None:
    """Every token costs one nat, so a word costs its number of tokens."""
    texts = ["the the the naïve the, the\n", "the the the 漢字 — the the the zyxgloop\n"]
    corpus = corpus_of(texts, books_tokenizer)
    ones = [np.ones(n, np.float32) for n in np.diff(corpus.offsets)]
    twice = [2 * loss for loss in ones]
    rows = loss_by_frequency(corpus, {"a": ones, "b": twice}, books_tokenizer)
    assert [(row["from"], row["to"]) for row in rows] == [(1, 10), (10, 100), (None, None)]
    assert [row["words"] for row in rows[:2]] == [3, 11]
    assert rows[1]["nats"] == {"a": 1.0, "b": 2.0}  # " the" is one token
    rare = sum(len(books_tokenizer.encode(w)) for w in (" naïve", " 漢字", " zyxgloop"))
    assert rows[0]["nats"]["a"] == pytest.approx(rare / 3, rel=0.2)  # spaces may stand alone
    total = sum(row["words"] * row["nats"]["a"] for row in rows)
    assert total == pytest.approx(len(corpus.tokens))
    counts = Counter({"the": 5000, "zyxgloop": 3})
    rows = loss_by_frequency(corpus, {"a": ones}, books_tokenizer, counts=counts)
    assert [(row["from"], row["words"]) for row in rows[:-1]] == [(0, 2), (1, 1), (1000, 11)]


def test_loss_by_frequency_of_a_part(books_tokenizer: Tokenizer) -> None:
    corpus = corpus_of(["the the the the the the"], books_tokenizer)
    loss = np.full(len(corpus.tokens), np.nan, np.float32)
    loss[:4] = 1.0
    (row,) = loss_by_frequency(corpus, {"a": [loss]}, books_tokenizer)
    assert (row["words"], row["nats"]) == (4, {"a": 1.0})


# -- effective context ----------------------------------------------------------------------------


def test_relative_gains() -> None:
    short = np.array([[1.0, 4.0, 2.0, 3.0], [2.0, 3.0, 2.0, 4.0]])  # best: 1, 3, 2, 3
    longer = np.array([[0.5, 3.5, 1.0, 2.0], [2.0, 3.0, 2.0, 4.0]])
    gain = relative_gains(short, longer, 1.0)
    before, after = math.exp(9 / 4), math.exp((0.5 + 3.0 + 1.0 + 2.0) / 4)
    assert gain == pytest.approx([(before - after) / before, 0.0])
    gain = relative_gains(short, longer, 0.5)  # the two of 3 nats
    assert gain[0] == pytest.approx(1 - math.exp(2.5 - 3.0))


def test_effective_context_losses_equal_plain_reading() -> None:
    model = tiny_model(memory_len=8, compressed_len=4, dtype=torch.float64)
    random = np.random.default_rng(0)
    tokens = random.integers(1, 11, 400).astype(np.uint16)
    corpus = Corpus(tokens, np.array([0, 150, 400]), 400, 80)
    read: list[int] = []
    found = effective_context(model, corpus, bos=0, runs=5, run=2, most=4, progress=read.append)
    contexts = [2, 6, 10, 14]
    # With random weights, more context helps by chance, but every step must be reported.
    for share, row in found["recl"].items():
        assert row["no memory"] == 2 and row["memory"] in contexts
        mine = [gain for gain in found["gains"] if gain["r"] == share]
        assert [gain["c"] for gain in mine] == contexts[: len(mine)]
        assert all(gain["gain"] >= 0.01 for gain in mine[: len(mine) - row["ended"]])
        assert not row["ended"] or mine[-1]["gain"] < 0.01
    assert found["tokens"] == 10
    assert read == [5 * (c + 2) for c in list(found["losses"])]
    # The mean loss with c tokens, read token by token.
    from streamlm.lab.tasks.context import _ends

    ends, c = _ends(corpus, 5, need=16, seed=0), contexts[1]
    nats = []
    for end in ends:
        assert not (end - 16 < 150 < end)  # never across two documents
        window = tokens[end - c - 2 : end].astype(int)
        report = evaluate(
            model,
            Corpus(window, np.array([0, len(window)]), 1, 1),
            bos=0,
            token_lengths=np.ones(11, int),
            token_losses=True,
        )
        assert report.losses is not None
        nats.append(report.losses[0][-2:])
    assert found["losses"][c] == pytest.approx(np.mean(nats), rel=1e-5)
    with pytest.raises(ValueError, match="the longest document has 250 tokens; effective context"):
        effective_context(model, corpus, bos=0, most=80)
    with pytest.raises(ValueError, match="run = 4; allowed: 1 to 3"):
        effective_context(model, corpus, bos=0, run=4)


# -- targets --------------------------------------------------------------------------------------


def test_only_answers_are_targets() -> None:
    questions = recall(FAMILIES, n=5, segment_len=8, distances=[0, 1], pairs=1)
    corpus = questions.corpus()
    whole = Corpus(corpus.tokens, corpus.offsets, corpus.n_bytes, corpus.n_words)
    options: dict[str, Any] = {"segment_len": 8, "bos": 0}
    scored = 0
    pairs = zip(SegmentBatches(corpus, 2, **options), SegmentBatches(whole, 2, **options))  # noqa: B905
    for some, every in pairs:
        assert torch.equal(some.inputs, every.inputs)
        kept = some.targets != -100
        assert torch.equal(some.targets[kept], every.targets[kept])
        scored += int(kept.sum())
    assert scored == len(questions)
    model = tiny_model(vocab_size=96, segment_len=8)
    report = evaluate(
        model, corpus, bos=0, token_lengths=np.ones(96, int), batch_size=2, token_losses=True
    )
    assert report.tokens == len(questions) and report.losses is not None
    for row in range(5):
        places = np.sort(questions.query[questions.row == row].ravel())
        assert (~np.isnan(report.losses[row])).nonzero()[0].tolist() == places.tolist()


def test_a_model_learns_the_task_and_resumes(tmp_path: Path) -> None:
    """One pair per segment, queried within it: enough to see the loss fall."""
    shape: dict[str, Any] = {"segment_len": 8, "segments": 3, "pairs": 1}
    seen = recall(FAMILIES, n=400, distances=[0], **shape)
    config = ModelConfig(
        **{"vocab_size": 96, "n_layers": 1, "d_model": 16, "n_heads": 1, "head_dim": 16},
        **{"d_ff": 16, "segment_len": 8, "memory_len": 8, "compressed_len": 0, "init_std": 0.2},
        compression_loss="none",
    )
    train = TrainConfig(
        steps=120, batch_size=16, learning_rate=1e-2, warmup_steps=5, checkpoint_steps=60
    )
    options: dict[str, Any] = {"model": config, "bos": 0, "device": "cpu"}
    first = trainer_on(seen, seen, train=train, folder=tmp_path / "a", **options)
    losses = [step.loss for step in first.run()]
    assert np.mean(losses[:5]) > 3 and np.mean(losses[-5:]) < 2
    found = answer(first.model, seen, bos=0)
    assert found.right.mean() > 0.25
    stopped = trainer_on(seen, seen, train=train, folder=tmp_path / "b", **options)
    for step in stopped.run():
        if step.step == 60:
            break
    again = trainer_on(seen, seen, train=train, folder=tmp_path / "b", **options)
    again.resume()
    assert [step.loss for step in again.run()] == losses[60:]


@pytest.mark.parametrize("entry", heads_entries(), ids=lambda entry: entry.name)
def test_every_head_is_trained_on_ids(entry: Entry, tmp_path: Path) -> None:
    alphabet = Alphabet.plain(VOCAB, family=FAMILY)
    seen = recall(alphabet, n=2, segment_len=SEGMENT, segments=3, distances=[1], pairs=2)
    train = TrainConfig(steps=2, batch_size=2, warmup_steps=0, checkpoint_steps=2)
    folder, bos = tmp_path / "run", alphabet.bos
    trainer = trainer_on(
        seen, seen, model=entry.config, train=train, bos=bos, folder=folder, device="cpu"
    )
    first, second = trainer.run()
    assert first.tokens == 0  # the first segment has no query
    assert second.loss > 0


# -- the suite ------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("shape", "wanted"),
    [
        ((128, 128, 128), [0, 1, 2, 3, 5, 6, 21]),
        ((32, 32, 32), [0, 1, 2, 3, 5, 6, 21]),
        ((32, 64, 0), [0, 2, 3, 9]),
        ((32, 0, 0), [0, 1]),
        ((32, 40, 4), [0, 1, 2, 9]),
        ((32, 16, 0), [0, 1, 5]),
    ],
)
def test_distances(shape: tuple[int, int, int], wanted: list[int]) -> None:
    segment, memory, compressed = shape
    config = ModelConfig(
        vocab_size=9,
        n_layers=4,
        segment_len=segment,
        memory_len=memory,
        compressed_len=compressed,
    )
    found = distances(config)
    assert set(wanted) <= set(found) and found == sorted(set(found)) and len(found) <= 8
    for distance, beyond in ((found[-1], True), (found[-1] - 1, False)):
        # The last input of a segment can be in reach if the first is not.
        cue = np.array([[10 * segment - 1 + segment - 1]])
        query = cue + 1 + distance * segment - segment + 1
        zero = np.zeros(1, dtype=int)
        question = Questions(np.zeros((1, 1)), zero, query, cue, zero[None], zero)
        assert question.distance(segment) == distance
        assert (REGIONS[int(question.regions(config)[0])] == "beyond reach") == beyond


@pytest.fixture(scope="module")
def reader(tiny_folder: Callable[..., Path]) -> Path:
    """A random model whose segments fit a passkey and its query."""
    return tiny_folder(segment_len=48, memory_len=48, compressed_len=24, n_layers=1)


def test_the_suite(reader: Path, words: str) -> None:
    import streamlm

    checkpoint: Checkpoint = streamlm.load(reader, device="cpu")
    corpus = corpus_of([words, words[:2000]], checkpoint.tokenizer)
    reported: Counter[str] = Counter()

    def progress(name: str, tokens: int) -> None:
        reported[name] += tokens

    config = SuiteConfig(sequences=2, tokens=500, runs=2, batch_size=3)
    figures = run_suite(checkpoint, corpus, config=config, progress=progress)
    assert set(NAMES) <= set(figures) and set(reported) == set(NAMES) - {"frequency"}
    for name in ("passkey", "recall", "copy", "tracking"):
        rows = figures[name]["distance"]
        assert {row["region"] for row in rows} >= {"memory", "compressed memory", "beyond reach"}
        assert [row["compressions"] for row in figures[name]["compressions"]] == [0, 1, None]
        assert all(0 < row["chance"] <= 0.5 for row in rows)
        if name != "recall":
            assert all(abs(r["gain"]) < 1e-5 for r in rows if r["region"] == "beyond reach")
    assert (
        len(figures["tracking"]["left_out"]) == 0 or "takes" in figures["tracking"]["left_out"][0]
    )
    assert set(figures["position"]) == {"memory", "no memory"}
    assert json.loads(json.dumps(figures))["ends"] == figures["ends"]
    some = run_suite(checkpoint, corpus, ["copy"], config=config)
    assert some["copy"] == figures["copy"] and "recall" not in some


def run(*words: object) -> Any:
    return CliRunner().invoke(app, [str(word) for word in words])


def test_the_command(reader: Path, words: str, tmp_path: Path) -> None:
    data, picture = tmp_path / "text.txt", tmp_path / "out" / "recall.png"
    data.write_text(words, encoding="utf-8")
    options = ["--data", data, "--suite", "--sequences", 2, "--max-tokens", 300]
    done = run("eval", reader, *options, "copy", "passkey", "--json", "--plot", picture)
    assert done.exit_code == 0, done.output
    line = next(line for line in done.output.splitlines() if line.startswith("{"))
    found = json.loads(line)
    assert set(found) == {"model", "segment_len", "ends", "copy", "passkey"}
    assert picture.stat().st_size > 10_000
    done = run("eval", reader, *options)
    assert done.exit_code == 0, done.output
    for text in ("passkey, by segments", "beyond reach", "nats per word", "hardest 10 %"):
        assert text in done.output


@pytest.mark.parametrize(
    ("words", "message"),
    [
        (["--suite", "pasky"], "--suite pasky; allowed: passkey, recall, copy"),
        (["passkey"], "--data passkey for further files, or --suite with parts"),
        (["--plot", "x.png"], "--plot without --suite"),
        (["--suite", "--no-memory"], "--no-memory with --suite"),
        (["--suite", "--plot", "x.pdf"], "allowed: a file that ends in .png"),
        (["--suite", "position", "--plot", "x.png"], "allowed: at least one of passkey"),
        (["--suite", "--sequences", "0"], "sequences = 0; allowed: at least 1"),
    ],
)
def test_the_command_refuses(words: list[str], message: str, tmp_path: Path) -> None:
    (tmp_path / "text.txt").write_text("a")
    done = run("eval", "books", "--data", tmp_path / "text.txt", *words)
    assert isinstance(done.exception, ValueError) and message in str(done.exception)


# -- the benchmark --------------------------------------------------------------------------------


def test_the_benchmark_covers_every_compression_and_loss() -> None:
    found = entries()
    assert [entry.name for entry in found[:2]] == [ORACLE, WINDOW]
    assert {entry.config.compression for entry in found[2:]} == set(COMPRESSIONS)
    conv = [entry.config.compression_loss for entry in entries(["conv"])[2:]]
    assert {"attention-reconstruction", "auto-encoding", "bptt"} <= set(conv)
    assert [entry.config.compression_loss for entry in entries(["mean"])[2:]] == ["none"]
    assert {entry.slots for entry in found[1:]} == {64} and found[0].slots == 32 + 4 * 32
    for entry in found:
        TransformerXL(entry.config)
    with pytest.raises(ValueError, match="--compressions men; allowed: max, mean"):
        entries(["men"])


def test_the_benchmark(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(sys, "argv", ["recall"])
    monkeypatch.setattr(benchmark, "BATCH", 4)
    out, runs = tmp_path / "out", tmp_path / "runs"
    options = ["--steps", "2", "--seeds", "2", "--compressions", "mean", "--sequences", "4"]
    options += ["--threads", "1", "--out", str(out), "--runs", str(runs)]
    benchmark.main(options)
    results = json.loads((out / "recall.json").read_text())
    assert list(results["figures"]) == [ORACLE, WINDOW, "mean"]
    assert (out / "recall.png").stat().st_size > 10_000
    for model in results["figures"].values():
        assert len(model["seconds"]) == 2 and model["distance"][0]["distance"] == 0
        assert all(len(row["seeds"]) == 2 for row in model["distance"])
    # A second run trains nothing and gives the same figures.
    monkeypatch.setattr(benchmark, "trainer_on", None)
    benchmark.main(options)
    assert json.loads((out / "recall.json").read_text())["figures"] == results["figures"]


def test_the_area_under_the_curve() -> None:
    right = np.array([True, True, False, False])
    assert area(np.array([3.0, 2.0, 1.0, 0.0]), right) == 1.0
    assert area(np.array([3.0, 0.5, 1.0, 0.0]), right) == 0.75
    assert area(np.array([1.0, 1.0, 1.0, 1.0]), right) == 0.5
    assert area(np.ones(2), np.array([True, True])) is None
