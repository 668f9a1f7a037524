"""Recall from the command line: calibrate, sessions recall and index, generate and chat."""

import json
import re
import shutil
from collections.abc import Callable
from pathlib import Path

import pytest

import streamlm
from memory_store import DirectoryStore
from streamlm.checkpoints.retrieval import RETRIEVAL_FILE, write_retrieval
from streamlm.checkpoints.sources import find_model
from streamlm.models.retrieval import RetrievalHeads
from tests.support.chats import CHAT_WINDOWS, chat_folder
from tests.support.command_line import CommandLine, interrupt_after, left, refuses

HEADS = RetrievalHeads(((0, 1), (1, 0)))
FACT = "The pass key for gate 317 is 48213."
CUE = "The pass key for gate 317 is"
UNKNOWN = "Who has seen Xanthippe's zither?"
PASSAGE = {"start", "stop", "score", "saved", "text"}
WHERE = r"token [\d,]+, saved \d{4}-\d\d-\d\d [\d:]{8}, score 0\.\d\d"
WINDOWS = [f"--setting={name}={value}" for name, value in CHAT_WINDOWS.items()]


@pytest.fixture(scope="module")
def model(tiny_folder: Callable[..., Path]) -> Path:
    folder = tiny_folder(head="llama")
    write_retrieval(folder / RETRIEVAL_FILE, HEADS, measured={})
    return folder


@pytest.fixture(scope="module")
def told(prose: Callable[..., str]) -> str:
    """A text with a fact at its beginning."""
    return f"{prose(60, seed=1)}\n\n{FACT}\n\n{prose(300)}"


@pytest.fixture(scope="module")
def prepared(tmp_path_factory: pytest.TempPathFactory, model: Path, told: str) -> Path:
    """A folder with a session `s` that was told a fact, and its text."""
    folder = tmp_path_factory.mktemp("prepared")
    (folder / "text.txt").write_text(told, encoding="utf-8")
    with streamlm.open(folder / "sessions" / "s.zarr", model, device="cpu") as session:
        session.feed(told)
    return folder


def text_of(model: Path, start: int, stop: int, name: str = "s") -> str:
    with streamlm.open(f"sessions/{name}.zarr", model, device="cpu", readonly=True) as session:
        return session.text(start, stop).strip()


def test_recall_shows_passages(kept: CommandLine) -> None:
    before, model = left(), ("--model", kept.model)
    found = kept.works("sessions", "recall", "s", CUE, *model, "--json").json
    assert found.keys() == {"name", "position", "recalled"} and found["name"] == "s"
    best = found["recalled"][0]
    assert best.keys() == PASSAGE | {"sure"} and best["sure"] is True
    assert FACT in best["text"] == text_of(kept.model, best["start"], best["stop"])
    head = DirectoryStore.open("sessions/s.zarr").refs("main")[-1]
    assert best["saved"] == head.created and 0 < best["score"] <= 1

    shown = kept.works("sessions", "recall", "s", CUE, "-k", 1, *model)
    assert re.fullmatch(rf"{WHERE}\n  .*{FACT}.*\n", shown.out) and shown.err == ""
    none = kept.works("sessions", "recall", "s", UNKNOWN, "-k", 2, *model).out
    assert re.match(rf"recalled: none; nearest:\n{WHERE}, not sure\n  .*\n", none)
    assert left() == before


def test_nothing_has_left_memory(kept: CommandLine) -> None:
    Path("short.txt").write_text("Call me Ishmael. ", encoding="utf-8")
    kept.works("feed", "short.txt", "--session", "short")
    shown = kept.works("sessions", "recall", "short", "Ishmael", "--model", kept.model).out
    assert shown == "recalled: none\n"


def test_generate_reads_a_passage_again(kept: CommandLine) -> None:
    options = ("generate", "--session", "s", "--max-tokens", 3, "--temperature", 0)
    before = left()
    told = kept.works(*options, "--prompt", CUE, "--recall", 1, "--no-keep")
    assert re.fullmatch(rf"recalled: {WHERE}: .*\n", told.err)
    assert told.out.startswith(CUE) and left() == before
    aside = kept.works(*options, "--prompt", CUE, "--recall", 1, "--no-keep", "--json").json
    none = kept.works(*options, "--prompt", UNKNOWN, "--recall", 2, "--no-keep")
    assert none.err == "recalled: none\n"

    found = kept.works(*options, "--prompt", CUE, "--recall", 1, "--json").json
    assert [passage.keys() for passage in found["recalled"]] == [PASSAGE]
    (passage,) = found["recalled"]
    assert FACT in passage["text"] == text_of(kept.model, passage["start"], passage["stop"])
    assert (aside["recalled"][0]["start"], aside["recalled"][0]["text"]) == (
        passage["start"],
        passage["text"],
    )
    tail = text_of(kept.model, found["position"] - 80, found["position"])
    assert FACT in tail and tail.index(FACT) < tail.rindex(CUE)

    shown = kept.works("sessions", "show", "s").out
    assert re.search(rf"(?m)^recalled for the newest prompt: {WHERE}$", shown)
    without = kept.works(*options, "--prompt", CUE, "--json").json
    assert "recalled" not in without
    assert "recalled" not in kept.works("sessions", "show", "s").out
    assert kept.works("sessions", "show", "s", "--json").json["recalled"] == []


def test_generate_refuses(kept: CommandLine) -> None:
    some = ("--recall", 1, "--prompt", "a")
    refuses(kept, "--recall without --session; allowed: with a session", "generate", *some)
    alone = ("generate", "--session", "s", "--recall", 1)
    refuses(kept, "recall without a prompt; allowed: with a prompt that asks", *alone)
    refuses(kept, "nothing to recall; allowed: a text", *alone, "--no-keep")
    refuses(kept, "nothing to recall", "sessions", "recall", "s", " ", "--model", kept.model)
    refuses(kept, "no session 'new' in", "sessions", "recall", "new", "a")
    refuses(kept, "no session 'new' in", "sessions", "index", "new")


def test_index_later(kept: CommandLine) -> None:
    model = ("--model", kept.model)
    kept.works("feed", "text.txt", "--session", "t", "--setting", "retrieval=false")
    plain = kept.works("sessions", "show", "t", "--json").json
    assert plain["archives"] == []
    assert "indexed" not in kept.works("sessions", "show", "t").out
    position = plain["position"]
    found = kept.works("sessions", "index", "t", *model, "--json").json
    assert found == {"name": "t", "indexed": position, "position": position}
    again = kept.works("sessions", "index", "t", *model)
    assert again.out == f"t: nothing to index in {position:,} tokens\n" and again.err == ""
    (archive,) = kept.works("sessions", "show", "t", "--json").json["archives"]
    assert archive == {
        "name": f"keys-{HEADS.digest}",
        "tokens": position,
        "bytes_per_token": 2 * (16 + 1),
    }
    line = f"archive: {position:,} of {position:,} tokens are indexed, 34 bytes a token"
    assert line in kept.works("sessions", "show", "t").out
    read, later = (
        [(at, rows.tolist()) for at, rows in store.log(head, archive["name"], 0, head.position)]
        for store in (DirectoryStore.open(f"sessions/{name}.zarr") for name in "st")
        if (head := store.head("main")) is not None
    )
    assert read == later
    kept.works("sessions", "verify", "t")


def test_other_heads_are_indexed_beside(kept: CommandLine, monkeypatch: pytest.MonkeyPatch) -> None:
    write_retrieval(Path("other.json"), RetrievalHeads(((1, 1),)), measured={})
    options = ("--model", kept.model, "--setting", "retrieval=other.json")
    monkeypatch.setattr("streamlm.sessions.indexing.ROWS", 64)
    with monkeypatch.context() as patch:
        interrupt_after(patch, "streamlm.runtime.text_stream.TextStream.read_ids", 9)
        stopped = kept("sessions", "index", "s", *options)
    assert stopped.status == 130
    assert stopped.err == "interrupted; what was indexed is kept; the same command goes on\n"
    tokens = {
        each["tokens"] for each in kept.works("sessions", "show", "s", "--json").json["archives"]
    }
    position = kept.works("sessions", "show", "s", "--json").json["position"]
    assert tokens == {128, position}
    rest = kept.works("sessions", "index", "s", *options).out
    assert rest == f"s: indexed {position - 128:,} of {position:,} tokens\n"
    found = kept.works("sessions", "recall", "s", CUE, *options, "-k", 1).out
    assert FACT in found


def test_a_model_without_heads(kept: CommandLine, tiny_folder: Callable[..., Path]) -> None:
    plain = tiny_folder(head="llama", seed=4)
    kept.works("feed", "text.txt", "--session", "t", "--model", plain)
    message = "has no retrieval heads; streamlm calibrate MODEL finds those of a Llama-family model"
    refuses(kept, message, "sessions", "index", "t", "--model", plain)
    found = kept.works("sessions", "recall", "t", CUE, "--model", plain, "--json").json
    assert FACT in found["recalled"][0]["text"]  # by its rare words


SMALL = ("--tokens", 1200, "--facts", 4)


def test_calibrate_writes_beside_the_model(
    cli: CommandLine, tiny_folder: Callable[..., Path]
) -> None:
    folder = Path("plain")
    shutil.copytree(tiny_folder(head="llama", seed=2), folder)
    (folder / RETRIEVAL_FILE).write_text("{", encoding="utf-8")  # damaged
    shown = cli.works("calibrate", folder, *SMALL)
    heads = find_model(folder).retrieval
    assert heads is not None and shown.err == ""
    lines = shown.out.splitlines()
    assert lines[0].split() == ["layer", "head", "found", "alone"]
    rows = [tuple(map(int, line.split()[:2])) for line in lines[1 : 1 + len(heads.heads)]]
    assert tuple(rows) == heads.heads
    assert re.fullmatch(
        r"found together: \d+% by their beginning, \d+% by a question, \d+% by other words; "
        "4 facts in 1,200 tokens",
        lines[-3],
    )
    kept = len({layer for layer, _ in heads.heads})  # the model has one key head a layer
    assert lines[-2] == f"archive  {17 * kept} bytes a token"
    assert lines[-1] == f"written  {folder / RETRIEVAL_FILE}"
    with streamlm.open("s.zarr", folder, device="cpu") as session:
        session.feed("Call me Ishmael. " * 20)
        assert session.saved is not None
        store = DirectoryStore.open("s.zarr")
        assert store.logs(session.saved) == {f"keys-{heads.digest}": 17 * kept}


def test_calibrate_with_a_text_and_a_file_of_its_own(cli: CommandLine, prepared: Path) -> None:
    options = ("--text", prepared / "text.txt", "--out", "out/heads.json")
    few = ("--tokens", 640, "--facts", 2)
    before = (cli.model / RETRIEVAL_FILE).read_bytes()
    found = cli.works("calibrate", cli.model, *options, *few, "--json").json
    assert found.keys() == {
        *(
            "heads",
            "found",
            "reciprocal_rank",
            "alone",
            "facts",
            "tokens",
            "bytes_per_token",
            "path",
        )
    }
    assert found["path"] == "out/heads.json" and found["facts"] == 2 and found["tokens"] == 640
    written = json.loads(Path("out/heads.json").read_text(encoding="utf-8"))
    assert written["heads"] == found["heads"] and written["measured"]["found"] == found["found"]
    assert (cli.model / RETRIEVAL_FILE).read_bytes() == before


def test_calibrate_refuses(kept: CommandLine, tiny_folder: Callable[..., Path]) -> None:
    message = "without --out; allowed: a model's directory, or with --out FILE"
    refuses(kept, f"calibrate 'smollm2' {message}", "calibrate", "smollm2")
    Path("model.gguf").write_bytes(b"GGUF")
    refuses(kept, f"calibrate 'model.gguf' {message}", "calibrate", "model.gguf")
    out = ("--out", "heads.json")
    refuses(kept, "has head 'relative'; allowed: Llama", "calibrate", tiny_folder(), *out)
    short = ("--text", "text.txt", "--tokens", 9000)
    refuses(kept, "a text of .* tokens; allowed: at least", "calibrate", kept.model, *out, *short)
    many = ("--facts", 180, "--tokens", 3000)
    refuses(kept, "allowed: at least", "calibrate", kept.model, *out, *many)
    Path("latin.txt").write_bytes(b"caf\xe9")
    latin = ("--text", "latin.txt")
    refuses(kept, "latin.txt is not UTF-8 text", "calibrate", kept.model, *out, *latin)
    assert not Path("heads.json").exists()


# -- chat -----------------------------------------------------------------------------------------


@pytest.fixture
def talker(cli: CommandLine, tmp_path: Path, told: str) -> Path:
    """A model that chats, and a session `t` that was told a fact."""
    folder = chat_folder(tmp_path / "talker")
    write_retrieval(folder / RETRIEVAL_FILE, RetrievalHeads(((0, 3), (1, 0))), measured={})
    Path("text.txt").write_text(told, encoding="utf-8")
    cli.works("feed", "text.txt", "--session", "t", "--model", folder, *WINDOWS)
    return folder


def test_chat_recalls_where_there_is_a_session(cli: CommandLine, talker: Path) -> None:
    options = ("chat", "--model", talker, "--max-tokens", 2, "--seed", 1)
    first = cli.works(*options, "--session", "t", "--prompt", CUE)
    assert re.fullmatch(rf"recalled: {WHERE}: .*pass key.*\n", first.err)
    silent = cli.works(*options, "--session", "t", "--prompt", UNKNOWN)
    assert silent.err == ""  # nothing is said of what was not asked for
    asked = cli.works(*options, "--session", "t", "--prompt", UNKNOWN, "--recall", 1)
    assert asked.err == "recalled: none\n"
    found = cli.works(*options, "--session", "t", "--prompt", CUE, "--json").json
    assert [passage.keys() for passage in found["recalled"]] == [PASSAGE]
    off = cli.works(*options, "--session", "t", "--prompt", CUE, "--recall", 0, "--json")
    assert "recalled" not in off.json and off.err == ""
    alone = cli.works(*options, "--prompt", CUE, "--json")
    assert "recalled" not in alone.json
    refuses(cli, "--recall without --session", *options, "--prompt", CUE, "--recall", 1)


def test_chat_in_a_session_whose_old_tokens_were_deleted(
    cli: CommandLine, talker: Path, prose: Callable[..., str]
) -> None:
    for seed in (2, 3):
        Path("more.txt").write_text(prose(200, seed=seed), encoding="utf-8")
        cli.works("feed", "more.txt", "--session", "t", "--model", talker)
    cli.works("sessions", "gc", "t", "--last", 1, "--forget")
    options = ("chat", "--model", talker, "--max-tokens", 2, "--session", "t", "--prompt", CUE)
    assert cli.works(*options).err == ""
    result = cli(*options, "--recall", 1)
    assert result.status == 1 and "were deleted" in result.err
