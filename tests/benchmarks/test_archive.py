"""The archive's benchmark: what is planted stands where it says, is asked about, and is counted."""

import json
import math
from collections.abc import Callable, Iterator
from dataclasses import asdict, replace
from pathlib import Path

import pytest
import torch

import streamlm
from benchmarks import archive
from benchmarks.archive_parts import stream as planting
from benchmarks.archive_parts import writing
from benchmarks.archive_parts.asking import ask, holds
from benchmarks.archive_parts.costs import repeated
from benchmarks.archive_parts.levels import WAYS as WAYS_OF_LEVELS
from benchmarks.archive_parts.levels import _of_bounds, _of_keys, _of_spread, _reads, summaries
from benchmarks.archive_parts.prompts_report import ANOTHER, answer_nats
from benchmarks.archive_parts.report import figures_of, shares
from benchmarks.archive_parts.segments import BY_WORDS, NOTHING, PASSAGE, RANDOM, WAYS, Places
from benchmarks.archive_parts.segments_report import COMPARED, differences
from benchmarks.archive_parts.stream import BANDS, TASKS, Asked, Planted, build, things
from benchmarks.archive_parts.writing import AGAIN, ONE, Case, figures_of_writing, write
from benchmarks.archive_parts.writing import WAYS as WAYS_OF_WRITING
from streamlm.checkpoints.checkpoint import Checkpoint, load_checkpoint
from streamlm.memory.recall import GROUP
from streamlm.models.retrieval import RetrievalHeads
from streamlm.runtime.reports import ReadReport
from tokenizer import Tokenizer


@pytest.fixture
def book(tmp_path: Path, prose: Callable[..., str]) -> Path:
    path = tmp_path / "book.txt"
    path.write_text("\n\n".join(prose(40) for _ in range(150)), encoding="utf-8")
    return path


@pytest.fixture
def near(monkeypatch: pytest.MonkeyPatch) -> None:
    """Bands within a short text."""
    monkeypatch.setattr(planting, "BANDS", {"2k": (400, 1500), "8k": (2000, 3000)})


def test_nothing_is_planted_twice() -> None:
    every = [thing for some in things(20) for thing in some]
    assert len(every) == 20 * len(TASKS) * len(BANDS)
    assert len({thing.cue for thing in every}) == len(every)
    for band in things(20):
        assert sorted(thing.task for thing in band) == sorted(TASKS * 20)


@pytest.mark.usefixtures("near")
def test_things_stand_at_their_distances(book: Path, books_tokenizer: Tokenizer) -> None:
    text, asked = build(book, books_tokenizer, tokens=4000, n=3)
    again, _ = build(book, books_tokenizer, tokens=4000, n=3)
    assert text == again and len(asked) == 2 * 3 * len(TASKS)
    for each in asked:
        low, high = planting.BANDS[each.band]
        for paragraph, distance in zip(each.thing.paragraphs, each.distances, strict=True):
            assert text.count(paragraph) == 1
            rest = text[text.index(paragraph) :]
            # Paragraphs are counted with the line breaks before them.
            assert abs(len(books_tokenizer.encode(rest)) - distance) <= 3
            assert low <= distance <= high + 200


@pytest.fixture
def llama(tiny_folder: Callable[..., Path]) -> Checkpoint:
    checkpoint = load_checkpoint(tiny_folder(head="llama", n_heads=4), device="cpu")
    return replace(checkpoint, retrieval=RetrievalHeads(((0, 1), (1, 2))))


@pytest.mark.usefixtures("near")
def test_a_session_is_asked_and_stays_as_it_is(
    book: Path, llama: Checkpoint, tmp_path: Path
) -> None:
    text, asked = build(book, llama.tokenizer, tokens=4000, n=1)
    with streamlm.open(tmp_path / "s.zarr", llama) as session:
        session.feed(text)
        session.save()
        digest = session.state.digest()
        found = [
            ask(session, each, "cue", way, k=1, answer=way in ("recall", "in plain sight"))
            for each in asked
            for way in ("no recall", "recall", "heads alone", "without heads", "BM25")
        ]
        sight = [ask(session, each, "cue", "in plain sight", k=1, answer=True) for each in asked]
        assert session.state.digest() == digest
    assert all(each.found for each in sight)
    assert not any(each.found for each in found if each.way == "no recall")
    assert all(each.nats is not None and each.nats > 0 for each in sight)
    by_runs = [each for each in found if each.way == "without heads" and each.task != "tracking"]
    assert sum(each.found for each in by_runs) >= 0.7 * len(by_runs)
    assert {each.answered is None for each in found if each.way == "BM25"} == {True}


@pytest.mark.usefixtures("near")
def test_a_like_question_is_another_of_its_task(
    book: Path, llama: Checkpoint, tmp_path: Path
) -> None:
    text, asked = build(book, llama.tokenizer, tokens=4000, n=2)
    others = [archive.like(each, asked) for each in asked]
    assert [archive.like(each, asked) for each in others if each is not None] == asked
    for each, other in zip(asked, others, strict=True):
        assert other is not None and other != each
        assert (other.band, other.thing.task) == (each.band, each.thing.task)
    assert archive.like(asked[0], asked[:1]) is None
    with streamlm.open(tmp_path / "s.zarr", llama) as session:
        session.feed(text)
        first, size = asked[0], {"k": 1, "answer": True}
        found = ask(session, first, "cue", "another's passage", other=others[0], **size)
        own = ask(session, first, "cue", "in plain sight", **size)
        # What is said is the answer's, in both; only what comes before it differs.
        fork = session.fork()
        list(fork.generate(f"\n\n{first.thing.cue}", max_tokens=0))
        plain = ask(session, first, "cue", "no recall", **size)
    assert not found.found and own.found and found.nats != own.nats
    assert plain.nats == pytest.approx(fork.score(f" {first.thing.answer}").nats)


def test_a_thing_is_found_when_all_of_it_is_there() -> None:
    thing = next(thing for some in things(1) for thing in some if thing.task == "tracking")
    one, other = thing.paragraphs
    assert holds(thing, [f"so {one}\n\n{other} and"]) and holds(thing, [other, one])
    assert not holds(thing, [one]) and not holds(thing, [])


def test_shares_have_intervals() -> None:
    one = {"form": "cue", "way": "recall", "found": True, "answered": None, "sure": False}
    rows = [{**one, "found": n < 9, "seconds": float(n)} for n in range(10)]
    (row,) = shares(rows, "form", "way")
    assert row["cases"] == 10 and row["found"]["n"] == 9 and "answered" not in row
    assert row["found"]["low"] < 0.9 < row["found"]["high"] and row["seconds"] == 5.0


@pytest.mark.usefixtures("near")
def test_the_command_asks_and_reports(
    book: Path, llama: Checkpoint, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(streamlm, "load", lambda *_, **__: llama)
    monkeypatch.setattr("sys.argv", ["benchmarks/archive.py"])
    size = ["--data", str(book), "--tokens", "4000", "--n", "2"]
    text = tmp_path / "planted.txt"
    archive.main(["text", *size, "--out", str(text)])
    with streamlm.open(tmp_path / "s.zarr", llama, save_every=1000) as session:
        session.feed(text)
    outcomes = tmp_path / "asked.jsonl"
    session_of = ["--session", str(tmp_path / "s.zarr")]
    few = ["--cases", "1", "--part", "1/2"]
    archive.main(["ask", *size, *session_of, "--out", str(outcomes), *few])
    prompts = str(tmp_path / "prompts.jsonl")
    archive.main(["ask", *size, *session_of, "--plan", "prompts", *few, "--out", prompts])
    archive.main(["prompts-report", prompts, "--out", str(tmp_path)])
    found = json.loads((tmp_path / "archive-prompts.json").read_text())["figures"]["answers"]
    assert {row["way"] for row in found} == {"recall", "in plain sight", "another's passage"}
    pairs = tmp_path / "pairs.jsonl"
    some = ["--plan", "cues", "--tasks", "pairs", "--cases", "1", "--k", "2"]
    archive.main(["ask", *size, *session_of, *some, "--out", str(pairs)])
    lines = [json.loads(line) for line in pairs.read_text().splitlines()]
    assert {(each["task"], each["form"]) for each in lines} == {("pairs", "cue")}
    assert len(lines) == 2 * 2  # of each band, one pair, in two ways
    costs, folder = str(tmp_path / "costs.json"), str(tmp_path)
    once = ["--rounds", "1", "--folder", folder]
    archive.main(["costs", *size, *session_of, *once, "--out", costs])
    levels = ["--out", str(tmp_path / "levels.jsonl"), "--results", folder]
    archive.main(["levels", *size, *session_of, *levels, "--cases", "1"])
    found = json.loads((tmp_path / "archive-levels.json").read_text())["figures"]["levels"]
    assert [row["summary"] for row in found] == ["exact", *WAYS_OF_LEVELS]
    assert all(row["questions"] == 2 * 2 * len(TASKS) for row in found)
    for row in found:  # random heads attend to everything a little
        by_share = list(row["best"].values())
        assert by_share == sorted(by_share) and 0 < row["needed for 0.99 of the best"] <= 1
    wrote = str(tmp_path / "writing.jsonl")
    for _ in range(2):  # what is done is not done again
        archive.main(
            ["writing", *size, *session_of, "--cases", "2", "--out", wrote, "--results", folder]
        )
    found = json.loads((tmp_path / "archive-writing.json").read_text())["figures"]["writing"]
    assert [(row["kind"], row["way"]) for row in found] == [
        (kind, way) for kind, ways in WAYS_OF_WRITING.items() for way in ways
    ]
    assert {row["cases"] for row in found} == {2}
    archive.main(["report", str(outcomes), "--costs", costs, "--out", folder])
    scored = str(tmp_path / "segments.jsonl")
    few = ["--places", "2", "--question", "16", "--ahead", "32", "--each", "3", "--stride", "96"]
    archive.main(["segments", *session_of, *few, "--out", scored])
    once_more = Path(scored).read_text()
    archive.main(["segments", *session_of, *few, "--out", scored])
    assert Path(scored).read_text() == once_more
    archive.main(["segments-report", scored, "--out", folder])
    rows = json.loads((tmp_path / "archive-segments.json").read_text())["figures"]["differences"]
    assert {row["places"] for row in rows} == {2}
    found = json.loads((tmp_path / "archive.json").read_text())["figures"]
    lines = [json.loads(line) for line in outcomes.read_text().splitlines()]
    assert found == {**figures_of(lines), "costs": found["costs"]}
    assert found["costs"]["reading"]["bytes_per_token"] > 0
    one, ten = map(int, found["costs"]["question"]["key_search_cpu_seconds"])
    assert ten == 10 * one > 0
    assert (tmp_path / "archive.png").stat().st_size > 10_000


@pytest.mark.parametrize("heads", [True, False], ids=["heads", "rare words"])
def test_what_follows_a_place_is_scored_with_passages_and_without(
    heads: bool, book: Path, llama: Checkpoint, tmp_path: Path
) -> None:
    checkpoint = llama if heads else replace(llama, retrieval=None)
    with streamlm.open(tmp_path / "s.zarr", checkpoint, save_every=400) as session:
        session.feed(book)
        places = Places(session, each=2, stride=150, question=32, ahead=48)
        place = places.positions()[5]
        digest = session.state.digest()
        rows = {each.way: each for each in places.score(place)}
        assert session.state.digest() == digest
        bound = session._live.require_store("test")
        ids = bound.tokens(place, place + 48)
        stop = place - place % llama.model.config.segment_len
        for each in rows.values():
            assert each.passage in session.text(0, stop) and (each.read > 0) == bool(each.passage)
        tail = bound.tokens(place - 16, place)  # a question has at least so many tokens
        text = checkpoint.tokenizer.encode(f"\n\n{rows['passage'].passage}\n\n")
        # A session that was fed so far knows what the others are compared to.
        fork = session.fork(tokens=place)._live.stream
    report = ReadReport()
    fork.read_ids(checkpoint, ids, report=report)
    assert list(rows) == [NOTHING, *WAYS]
    assert rows[NOTHING].nats == pytest.approx(report.nats, rel=1e-4)
    assert rows[NOTHING].n_bytes == report.n_bytes
    assert rows["passage alone"].read == len(text)
    assert len(text) + len(tail) <= rows["passage"].read <= len(text) + 32
    assert rows["passage"].nats != rows[NOTHING].nats


def test_differences_of_places_are_paired() -> None:
    one = {"model": "m", "n_bytes": 100, "sure": False}
    rows = []
    for place in range(40):
        rows.append({**one, "place": place, "way": NOTHING, "nats": 50.0 + place, "read": 0})
        for at, way in enumerate(WAYS):
            nats = 50.0 + place + (-1) ** at * (2 + place % 2)
            how = {"way": way, "nats": nats, "sure": place < 10, "read": 80}
            rows.append({**one, "place": place, **how})
    found = differences(rows)
    by = {(each["way"], each["than"], each["only sure"]): each for each in found}
    assert list(by) == list(COMPARED)
    first, second = by[PASSAGE, NOTHING, False], by[WAYS[1], NOTHING, False]
    assert first["difference"] == pytest.approx(2.5 / 100 / math.log(2))
    assert first["low"] <= first["difference"] <= first["high"] and first["better"] == 0
    assert second["difference"] == pytest.approx(-first["difference"]) and second["better"] == 40
    if_sure = by[PASSAGE, NOTHING, True]
    assert (if_sure["put back"], if_sure["places"]) == (10, 40)
    assert if_sure["difference"] == pytest.approx(first["difference"] / 4)
    assert by[BY_WORDS, RANDOM, False]["difference"] == pytest.approx(2 * first["difference"])


def test_answers_are_compared_thing_by_thing() -> None:
    nats = {"no recall": 20.0, "recall": 15.0, "in plain sight": 14.0, ANOTHER: 16.0}
    rows = []
    for thing in range(30):
        for way, mean in nats.items():
            row = {"task": "pairs", "band": "2k", "distance": thing, "way": way, "answered": False}
            found = way != ANOTHER or thing < 10  # a neighbour's passage may hold it too
            # Less for all, and far less where another's passage holds it.
            value = mean + thing / 10 - (30.0 if way == ANOTHER and found else 0.0)
            rows.append({**row, "found": found, "nats": value})
    by = {(each["task"], each["way"], each["than"]): each for each in answer_nats(rows)}
    assert {task for task, *_ in by} == {"pairs", "all"}
    assert by["all", "recall", "no recall"]["things"] == 30
    assert by["all", "recall", "no recall"]["difference"] == pytest.approx(-5.0)
    another = by["pairs", "recall", ANOTHER]
    assert another["things"] == 20 and another["difference"] == pytest.approx(-1.0)
    assert another["low"] == pytest.approx(-1.0) == another["high"]


def test_keys_are_read_several_times_over() -> None:
    keys = torch.arange(10.0)[:, None, None]

    def read(start: int, stop: int) -> Iterator[tuple[int, torch.Tensor]]:
        for first in range(start, stop, 4):
            yield first, keys[first : min(first + 4, stop)]

    pieces = list(repeated(read, 10, 3)(7, 25))
    positions = [first + n for first, some in pieces for n in range(len(some))]
    assert positions == list(range(7, 25))
    found = torch.cat([some for _, some in pieces]).flatten().tolist()
    assert found == [position % 10 for position in positions]


def test_summaries_estimate_the_mass_of_groups() -> None:
    torch.manual_seed(0)
    keys = torch.randn(5, GROUP, 2, 8) * 0.3 + torch.randn(5, 1, 2, 8)
    queries = torch.randn(2, 3, 8)
    scores = torch.einsum("hwe,gnhe->hwgn", queries, keys)
    exact, kept = scores.logsumexp(dim=3), summaries(keys)
    bounds = _of_bounds(queries, kept["lowest and highest"])
    assert (bounds >= scores.amax(dim=3) - 1e-5).all()
    spread = _of_spread(queries, kept["mean and variance"]) + math.log(GROUP)
    means = _of_keys(queries, kept["mean"]) + math.log(GROUP)
    quarters = _of_keys(queries, kept["means of 16"]) + math.log(GROUP / 4)
    # The mean of an exponential is above the exponential of the mean.
    assert (means < quarters).all() and (quarters < exact).all()
    assert (spread - exact).abs().max() < (means - exact).abs().max() / 2
    four = _of_spread(queries, kept["4 means and variances"]) + math.log(GROUP / 4)
    assert (four - exact).abs().mean() < (spread - exact).abs().mean()
    largest = kept["4 largest"][0].norm(dim=3).amin(dim=2)
    assert torch.allclose(largest, keys.norm(dim=3).permute(2, 0, 1).sort(dim=2).values[..., -4])


def test_groups_are_read_in_the_order_of_their_pairs() -> None:
    mass = torch.tensor([[0.0, 0.1, 0.0, 0.0, 0.7, 0.2, 0.0, 0.0]])
    # Pairs by their mass: (4, 5), (3, 4), (5, 6), then (0, 1) or (1, 2).
    assert _reads(mass, [4]) == [2 / 8] and _reads(mass, [3]) == [3 / 8]
    assert _reads(mass, [5, 4]) == [4 / 8, 2 / 8]
    assert _reads(mass, [1])[0] >= 6 / 8 and _reads(mass, [7]) <= [1.0]


def test_a_passage_that_what_was_written_asks_for_is_put_back_once(
    book: Path, llama: Checkpoint, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """What is written is not changed by it up to there, and passages are no part of it."""
    monkeypatch.setattr(writing, "EVERY", 8)
    fact = "The parrot Esmeralda knows the number 7319."
    thing = Planted("numbers", (fact,), "The parrot Esmeralda knows the number", "", "", "7319")
    case = Case("variables", "Then they went home and", (Asked("2k", (0,), thing),), False)
    with streamlm.open(tmp_path / "s.zarr", llama) as session:
        session.feed(f"{book.read_text()[:2000]}\n\n{fact}\n\n{book.read_text()[2000:8000]}")
        without = write(session, case, ONE, 0)
        monkeypatch.setattr(writing._Writer, "newest", lambda writer: "The parrot Esmeralda")
        found = write(session, case, AGAIN, 0)
    assert (without.put_back, without.tokens) == (0, 0)
    assert found.put_back == 1 and found.tokens >= 20
    assert fact not in found.text
    assert found.text[:12] == without.text[:12] and found.text != without.text
    (row,) = figures_of_writing([asdict(found)])
    assert (row["answers"], row["put_back"], row["cases"]) == (1, 1, 1)
