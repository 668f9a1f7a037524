"""The command line: what commands print, and what they leave in the store.

The file is long because each command has a test or two.
"""

import json
import math
import re
import shutil
from collections.abc import Callable
from datetime import datetime
from importlib.metadata import version
from pathlib import Path

import pytest

from memory_store import DirectoryStore
from tests.support.command_line import (
    READ_KEYS,
    CommandLine,
    interrupt_after,
    left,
    log,
    refuses,
    write_recipe,
)
from tests.support.stores import members, where


def test_from_a_recipe_to_generated_text(kept: CommandLine) -> None:
    write_recipe()
    trained = kept.works("train", "--recipe", "recipe.toml", "--out", "run")
    assert trained.out == "run/model\n"
    assert re.search(r"(?m)^step 4: .*valid \d\.\d{4} bits per byte", trained.err)
    assert "\x1b" not in trained.err and "━" not in trained.err
    assert (
        "left" in trained.err.split("step 4:")[0] and "left" not in trained.err.split("step 4:")[1]
    )

    found = kept.works("eval", "run/model", "--data", "text.txt", "--json").json
    assert found.keys() == {
        *("bits_per_byte", "word_perplexity", "nats", "tokens", "bytes", "words"),
        "loss_by_position",
    }
    assert found["bytes"] == Path("text.txt").stat().st_size
    assert sum(n for _, _, n in found["loss_by_position"]) == found["tokens"]
    shown = kept.works("eval", "run/model", "--data", "text.txt").out
    assert f"bits per byte    {found['bits_per_byte']:.4f}\n" in shown

    model = ("--model", "run/model")
    read = kept.works("feed", "text.txt", "--session", "x", *model, "--json").json
    # A session reads the same text as `eval`, except for the held-back words.
    assert read["bytes"] + read["held_bytes"] == found["bytes"]
    scored = kept.works("score", "text.txt", "--session", "x", *model, "--json").json
    assert scored["tokens"] == found["tokens"] and scored["position"] >= read["position"]
    written = kept.works("generate", "--session", "x", *model, "--max-tokens", 5, "--json").json
    assert written["position"] > read["position"]


def test_rows_that_are_read_at_once_are_reported(kept: CommandLine) -> None:
    write_recipe(steps="steps = 1\nrows_at_once = 1")
    assert "\n1 of 2 rows at once\n" in kept.works("train", "--recipe", "recipe.toml").err


def test_resumed_training_ends_with_the_same_weights(
    kept: CommandLine, monkeypatch: pytest.MonkeyPatch
) -> None:
    write_recipe()
    kept.works("train", "--recipe", "recipe.toml", "--out", "whole")
    with monkeypatch.context() as patch:
        interrupt_after(patch, "streamlm.training.trainer.Trainer._optimise", 3)
        stopped = kept("train", "--recipe", "recipe.toml", "--out", "parts")
    assert stopped.status == 130
    assert stopped.err.endswith("--resume continues from the last save, in parts/last\n")
    again = kept("train", "--recipe", "recipe.toml", "--out", "parts")
    assert again.status == 1
    assert again.err == "error: parts holds a run already; allowed: --resume, or another --out\n"
    resumed = kept.works("train", "--recipe", "recipe.toml", "--out", "parts", "--resume")
    assert "from step 2 to 4" in resumed.err
    weights = [Path(run, "model", "model.safetensors").read_bytes() for run in ("whole", "parts")]
    assert weights[0] == weights[1]


def test_feed_and_score_report(kept: CommandLine) -> None:
    Path("moby[dick] :whale:.txt").write_bytes(Path("text.txt").read_bytes())
    shutil.copytree("sessions", "[bold] :whale:")
    store = ("--store", "[bold] :whale:")
    fed = kept.works("feed", "moby[dick] :whale:.txt", "text.txt", "--session", "new", *store)
    rows = dict(re.split(r"  +", line) for line in fed.out.splitlines())
    assert fed.err == ""
    assert list(rows)[:3] == ["tokens", "bytes", "tokens/s"]
    size = 2 * Path("text.txt").stat().st_size
    held = int(rows.get("held back", "0").split()[0])
    assert int(rows["bytes"].replace(",", "")) + held == size
    assert rows["position"] == f"{rows['tokens']} tokens"
    assert rows["session"] == str(Path("[bold] :whale:/new.zarr").resolve())
    before = left(Path("[bold] :whale:"))
    scored = kept.works("score", "text.txt", "--session", "new", *store)
    assert "bits per byte" in scored.out and "bits per byte" not in fed.out
    assert re.search(r"(?m)^context +[\d,]+ tokens$", scored.out)
    for line in (fed.out + scored.out).splitlines():
        assert line == line.rstrip()
    assert left(Path("[bold] :whale:")) == before
    alone = kept.works("score", "text.txt", "--json").json
    assert alone.keys() == READ_KEYS and alone["position"] == 0


def test_lines_are_scored(kept: CommandLine) -> None:
    Path("a.log").write_bytes("one two\n\nthrée four\r\nlast".encode())
    Path("b.log").write_bytes(b"five six\n")
    out = kept.works("score", "a.log", "b.log", "--session", "s", "--lines").out
    found = [json.loads(line) for line in out.splitlines()]
    assert [(row["file"], row["line"]) for row in found] == [
        *(("a.log", n) for n in (1, 2, 3, 4)),
        ("b.log", 1),
    ]
    assert [row["text"] for row in found] == ["one two", "", "thrée four", "last", "five six"]
    whole = kept.works("score", "a.log", "b.log", "--session", "s", "--json").json
    for name in ("tokens", "bytes"):
        assert sum(row[name] for row in found) == whole[name]
    assert sum(row["nats"] or 0 for row in found) == pytest.approx(whole["nats"])
    first = found[0]
    assert first["bits_per_byte"] == pytest.approx(first["nats"] / math.log(2) / first["bytes"])
    piped = kept.works("score", "-", "--lines", stdin=b"one two\n").out
    assert json.loads(piped)["line"] == 1 and piped.count("\n") == 1
    wrong = kept("score", "-", "--lines", stdin=b"one\n\xff\n")
    assert wrong.status == 1 and "is not UTF-8 text: invalid start byte in line" in wrong.err
    assert kept.works("score", "-", "--lines", "--errors", "replace", stdin=b"one\n\xff\n").out
    assert kept("score", "a.log", "--lines", "--json").status == 2


def test_standard_input_and_replaced_bytes(kept: CommandLine) -> None:
    text = Path("text.txt").read_bytes()
    kept.works("feed", "text.txt", "--session", "file")
    kept.works("feed", "-", "--session", "stdin", stdin=text)
    Path("a.txt").write_bytes(text[:501])
    kept.works("feed", "a.txt", "-", "--session", "both", "--errors", "replace", stdin=text[501:])
    logs = [log(Path(f"sessions/{name}.zarr")) for name in ("file", "stdin", "both")]
    assert logs[0] == logs[1] == logs[2]
    Path("latin.txt").write_bytes(b"caf\xe9 \0 noir " * 20)
    read = kept.works("feed", "latin.txt", "--session", "latin", "--errors", "replace", "--json")
    assert read.json["tokens"] > 0


def test_generate_continues_a_session(kept: CommandLine) -> None:
    before = left()
    options = ("--max-tokens", 12, "--seed", 3)
    first = kept.works("generate", "--session", "s", "--prompt", "Ahoy ", "--no-keep", *options)
    assert first.err == "" and first.out.startswith("Ahoy ") and first.out.endswith("\n")
    again = kept.works("generate", "--session", "s", "--prompt", "Ahoy ", "--no-keep", *options)
    assert again.out == first.out
    assert left() == before
    held = kept.works("generate", "--session", "s", "--prompt", "Ahoy ", *options, "--json").json
    facts = {"text", "tokens", "position", "seconds", "tokens_per_second"}
    assert held.keys() == facts | {"prompt_tokens", "seed"} and held["seed"] == 3
    assert f"Ahoy {held['text']}\n" == first.out
    assert left() != before
    shown = kept.works("sessions", "show", "s", "--json").json
    assert shown["position"] == held["position"]
    shutil.rmtree("sessions")
    kept.works("generate", *options)  # a new session in memory
    assert not Path("sessions").exists()


def test_generate_stops_at_a_stop_string(
    cli: CommandLine, tiny_folder: Callable[..., Path]
) -> None:
    likes_newlines = tiny_folder(likes="\n")
    options = ("--model", likes_newlines, "--temperature", 0, "--max-tokens", 9, "--json")
    assert "\n" in cli.works("generate", *options).json["text"]
    assert "\n" not in cli.works("generate", *options, "--stop", r"\n").json["text"]


def test_sessions(kept: CommandLine) -> None:
    empty = kept.works("sessions", "list", "--store", "elsewhere").out
    assert empty == "no sessions in elsewhere; begin one: streamlm feed FILE --session NAME\n"
    both = kept.works("sessions", "list", "--json").json
    assert both.keys() == {"sessions", "unreadable"} and both["unreadable"] == {}
    assert [row["name"] for row in both["sessions"]] == ["s", "s@side"]
    for row in both["sessions"]:
        assert row.keys() == {"name", "position", "saved", "bytes"}
    shown = kept.works("sessions", "show", "s", "--json").json
    assert shown.keys() == {
        *("name", "path", "bytes", "branches", "pins", "retention", "position", "snapshots"),
        *("archives", "recalled"),
    }
    for snapshot in shown["snapshots"]:
        assert snapshot.keys() == {
            *("snapshot", "position", "saved", "commit", "bytes", "kept"),
        }
    start = shown["position"]

    forked = kept.works("sessions", "fork", "s", "draft", "--json").json
    assert forked == {"name": "s@draft", "position": start}
    assert kept.works("sessions", "fork", "s@draft", "b").out == f"s@b begins at token {start}\n"
    kept.works("feed", "text.txt", "--session", "s@draft")
    assert kept.works("sessions", "show", "s", "--json").json == {
        **shown,
        "branches": ["b", "draft", "main", "side"],
        "bytes": DirectoryStore.open("sessions/s.zarr").size(),
    }

    back = kept.works("sessions", "rewind", "s", "--to", 7, "--json").json
    assert back == {"name": "s", "from": start, "position": 7}
    undone = kept.works("sessions", "rewind", "s", "--snapshot", shown["snapshots"][-1]["snapshot"])
    assert undone.out == f"s: rewound from token 7 to {start}\n"

    for arguments in (["list"], ["show", "s@draft"]):
        text = kept.works("sessions", *arguments)
        assert text.err == "" and "\x1b" not in text.out
        assert all(line == line.rstrip() for line in text.out.splitlines())
    assert re.search(rf"(?m)^s +{start} +\S+ \w+ +\d{{4}}-", kept.works("sessions", "list").out)


def test_rewind_to_a_time(kept: CommandLine) -> None:
    snapshots = kept.works("sessions", "show", "s", "--json").json["snapshots"]
    end = snapshots[-1]["position"]
    begin = datetime.fromtimestamp(snapshots[0]["saved"] + 0.0005)  # of the empty beginning
    for then in (begin.isoformat(), begin.isoformat(sep=" "), f"{begin.astimezone()}"):
        back = kept.works("sessions", "rewind", "s", "--time", then, "--json").json
        assert back == {"name": "s", "from": end, "position": 0}
        kept.works("sessions", "rewind", "s", "--snapshot", snapshots[-1]["snapshot"])
    assert kept.works("sessions", "rewind", "s", "--time", "0s ago", "--json").json["from"] == end
    for then, message in (
        ("99999999d", "time '99999999d'; allowed: 2026-03-01, "),
        ("soon", "time 'soon'; allowed: 2026-03-01, "),
        ("2h", r"allowed: \d{4}-\d\d-\d\dT.* or later"),
    ):
        refuses(kept, message, "sessions", "rewind", "s", "--time", then)


def test_show_a_long_history(kept: CommandLine, tmp_path: Path) -> None:
    for _ in range(11):
        for seq in (0, 1):
            kept.works("sessions", "rewind", "s", "--snapshot", seq)
    facts = kept.works("sessions", "show", "s", "--json").json
    n, sizes = len(facts["snapshots"]), [each["bytes"] for each in facts["snapshots"]]
    assert n > 20 and sizes[0] < 1000 < sizes[1] and facts["retention"]["last"] == 32
    shown = kept.works("sessions", "show", "s").out
    assert f"showing the newest 20 of {n} snapshots; --all shows all" in shown
    assert "retention: the newest 32 snapshots, older ones thinned by age; all tokens" in shown
    every = kept.works("sessions", "show", "s", "--all").out
    assert len(every.splitlines()) == len(shown.splitlines()) + n - 21
    kept.works("feed", "text.txt", "--session", "new", "--keep-all")
    assert "retention: all snapshots" in kept.works("sessions", "show", "new").out
    kept.works("sessions", "gc", "s", "--last", 1)
    text = kept.works("sessions", "show", "s").out
    assert "tokens only" not in text  # the beginning, the head and a branch are kept
    name = DirectoryStore.open("sessions/s.zarr").refs("main")[1].commit.name
    (tmp_path / "sessions" / "s.zarr" / "commits" / name).write_bytes(b"{}")
    assert "damaged" in kept.works("sessions", "show", "s").out


def test_show_memory(kept: CommandLine, model: Path, tmp_path: Path) -> None:
    options = ["--model", model, "--plot", "memory.png"]
    text = kept.works("sessions", "show", "s", "--memory", *options).out
    lines = text.splitlines()
    assert re.search(r"tokens ago +kind +slots +bytes/token +error +attention +text", text)
    assert "compressed" in text and all(len(line) <= 80 for line in lines[-10:-2])
    slots = [line.split() for line in lines if re.match(r" *[\d,]+ – ", line)]
    assert sum(int(words[4]) for words in slots) == int(re.findall(r"([\d,]+) slots", text)[0])
    assert slots[-1][2] == "1"  # the newest token has no slot, as the model has not read it
    assert (tmp_path / "memory.png").stat().st_size > 10_000
    facts = kept.works("sessions", "show", "s", "--memory", "--json", "--model", model).json
    assert facts["memory"]["position"] == facts["position"]
    assert len(facts["memory"]["slots"]) == sum(int(words[4]) for words in slots)


def test_pins_gc_and_verify(kept: CommandLine) -> None:
    for _ in range(6):
        kept.works("feed", "-", "--session", "s", stdin=b"Call me Ishmael. Some years ago.\n" * 3)
    before = kept.works("sessions", "show", "s", "--json").json
    seqs = [row["snapshot"] for row in before["snapshots"]]
    assert all(row["kept"] for row in before["snapshots"])
    pinned = kept.works("sessions", "pin", "s", "start", "--snapshot", 2, "--json").json
    assert pinned["position"] == before["snapshots"][2]["position"]
    told = kept.works("sessions", "gc", "s", "--last", 2, "--dry-run", "--json").json
    done = kept.works("sessions", "gc", "s", "--last", 2, "--json").json
    assert told == {**done, "dry_run": True} and done["deleted"] > 0
    after = kept.works("sessions", "show", "s", "--json").json
    assert after["pins"] == {"start": pinned["position"]} and after["bytes"] < before["bytes"]
    whole = [row["snapshot"] for row in after["snapshots"] if row["kept"]]
    assert {2, *seqs[-2:]} <= set(whole) and len(whole) < len(seqs)
    text = kept.works("sessions", "show", "s").out
    assert "pins: start at token" in text and text.count("tokens only") == len(seqs) - len(whole)
    # A deleted snapshot is restored by replaying its tokens.
    gone = next(row for row in after["snapshots"] if not row["kept"] and row["snapshot"] > 2)
    back = kept.works("sessions", "rewind", "s", "--snapshot", gone["snapshot"], "--json").json
    assert back["position"] == gone["position"]
    assert "s: verified " in kept.works("sessions", "verify", "s").out
    assert kept.works("sessions", "unpin", "s", "start").out == "s: removed pin start\n"
    assert kept("sessions", "unpin", "s", "start").status == 1
    kept.works("sessions", "pin", "s", "again")
    unpinned = kept.works("sessions", "unpin", "s", "again", "--json").json
    assert unpinned == {"name": "s", "unpinned": "again"}
    refused = kept("sessions", "gc", "s", "--thin")
    assert refused.status == 1 and "--last" in refused.err


def test_recover_a_damaged_session(kept: CommandLine) -> None:
    kept.works("feed", "text.txt", "--session", "s")
    assert "s: intact, at token" in kept.works("sessions", "recover", "s").out
    newest = kept.works("sessions", "show", "s", "--json").json["snapshots"][-1]
    commit = next(Path("sessions/s.zarr/commits").glob(f"{newest['position']:012d}-*"))
    data = bytearray(commit.read_bytes())
    chunk = next(name for name in members(bytes(data)) if name.startswith("memory/c."))
    data[where(bytes(data), chunk)] ^= 1
    commit.write_bytes(data)
    for command in (["verify", "s"], ["rewind", "s", "--to", 3]):
        damaged = kept("sessions", *command)
        assert damaged.status == 1 and f"{commit}: {chunk}" in damaged.err
    recovered = kept.works("sessions", "recover", "s")
    assert f"lost: {commit.resolve()}" in recovered.err.replace("\n", "")
    assert "s: restored to token" in recovered.out
    kept.works("feed", "-", "--session", "s", stdin=b"And so on.\n")


def test_export_import_copy_and_rename(kept: CommandLine) -> None:
    shown = kept.works("sessions", "show", "s", "--json").json
    kept.works("sessions", "export", "s", "s.zip")
    assert "exists already" in kept("sessions", "export", "s", "s.zip").err
    at = shown["position"]
    arrived = kept.works("sessions", "import", "s.zip", "t", "--store", "far", "--json").json
    assert arrived == {"name": "t", "branches": {"main": at, "side": at}}
    assert kept.works("sessions", "copy", "s", "u").out == (
        f"u: main at token {at}, side at token {at}\n"
    )
    kept.works("sessions", "copy", "t", "v", "--store", "far", "--to", "further")
    for name, store in (("t", "far"), ("u", "sessions"), ("v", "further")):
        found = kept.works("sessions", "show", name, "--store", store, "--json").json
        assert found["snapshots"] == shown["snapshots"]
        kept.works("feed", "text.txt", "--session", name, "--store", store)
    assert kept.works("sessions", "show", "s", "--json").json == shown
    kept.works("sessions", "rename", "u", "w")
    assert kept.works("sessions", "show", "w", "--json").json["position"] > at
    assert "no session 'u'" in kept("sessions", "show", "u").err
    kept.works("sessions", "rename", "w", "u")
    for arguments, message in (
        (["import", "s.zip", "u"], "exists already"),
        (["rename", "s", "u"], "exists already"),
        (["rename", "s@side", "w"], "is a branch"),
        (["copy", "s@side", "w"], "is a branch"),
        (["import", "text.txt", "w"], "not an exported session"),
        (["copy", "nobody", "w"], "no session 'nobody'"),
    ):
        refused = kept("sessions", *arguments)
        assert refused.status == 1 and message in refused.err
    assert not Path("sessions/w.zarr").exists()


def test_delete_asks_for_confirmation(kept: CommandLine) -> None:
    before = left()
    for answer in (b"n\n", b"\n", b"", b"yess\n", None):
        refused = kept("sessions", "delete", "s", stdin=answer)
        assert refused.status == 1 and refused.out == ""
        assert re.fullmatch(
            r"Delete s \(.*\)\? This cannot be undone\. \[y/N\] nothing was deleted\n", refused.err
        )
        assert left() == before
    assert kept.works("sessions", "delete", "s", stdin=b"y\n").out == "s: deleted\n"
    assert not Path("sessions/s.zarr").exists()
    kept.works("feed", "text.txt", "--session", "t")
    deleted = kept.works("sessions", "delete", "t", "--yes", "--json")
    assert deleted.err == "" and deleted.json == {"name": "t", "deleted": True}
    assert list(Path("sessions").iterdir()) == []


def test_damaged_sessions_do_not_hide_others(kept: CommandLine) -> None:
    shutil.copytree("sessions/s.zarr", "sessions/broken.zarr")
    Path("sessions/broken.zarr/session.json").write_text("{")
    shown = kept("sessions", "list")
    assert shown.status == 1 and re.search(r"(?m)^s@side", shown.out)
    assert shown.err.startswith("error: session 'broken': ") and shown.err.count("\n") == 1
    found = kept("sessions", "list", "--json")
    assert found.status == 1 and list(found.json["unreadable"]) == ["broken"]
    assert len(found.json["sessions"]) == 2


def test_a_session_without_commits_is_listed(kept: CommandLine) -> None:
    fingerprints = dict(DirectoryStore.open("sessions/s.zarr").fingerprints)
    DirectoryStore.create("sessions/early.zarr", fingerprints=fingerprints)  # no commit
    rows = kept.works("sessions", "list", "--json").json["sessions"]
    assert rows[0]["name"] == "early" and rows[0]["position"] == 0 and rows[0]["saved"] is None
    assert re.search(r"(?m)^early +0 .* never$", kept.works("sessions", "list").out)
    refuses(kept, "session 'early' has nothing saved", "sessions", "show", "early")
    refuses(kept, "session 'early' has nothing saved", "generate", "--session", "early")
    kept.works("feed", "text.txt", "--session", "early")
    kept.works("feed", "text.txt", "--session", "other")
    assert log(Path("sessions/early.zarr")) == log(Path("sessions/other.zarr"))


COMMANDS = (
    *("feed", "generate", "score", "train", "eval", "sessions", "sessions list", "sessions show"),
    *("sessions fork", "sessions rewind", "sessions delete"),
)


@pytest.mark.parametrize("columns", ["40", "80"])
def test_help_fits(cli: CommandLine, monkeypatch: pytest.MonkeyPatch, columns: str) -> None:
    monkeypatch.setenv("COLUMNS", columns)
    top = cli.works("--help").out
    for command in COMMANDS:
        text = cli.works(*command.split(), "--help").out
        assert command.split()[0] in top
        assert not re.search(r"--[\w-]*…", text)  # no option is truncated
        assert all(len(line) <= 80 for line in text.splitlines())
    recipe = " ".join(cli.works("train", "-h").out.split())
    assert "A TOML file: [data], [model], [train]." in recipe
    assert cli.works("--version").out == f"streamlm {version('streamlm')}\n"


def test_help_lines_of_late_imports_match() -> None:
    from streamlm.cli.evaluate import SUITE
    from streamlm.cli.lazy import LAZY, LazyCommand
    from streamlm.lab.tasks.suite import NAMES

    for name, (_, line) in LAZY.items():
        real = LazyCommand(name).real
        assert real.help.split("\n\n")[0].strip() == line
    assert SUITE.split(", ") == list(NAMES)
