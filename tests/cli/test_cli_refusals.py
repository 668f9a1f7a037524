"""Errors of the command line: their messages, and that nothing is lost."""

import json
import lzma
import os
import re
import shutil
import socket
import subprocess
import sys
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest
import torch

import streamlm
from memory_store import DirectoryStore
from streamlm.checkpoints.checkpoint import save_checkpoint
from tests.support.command_line import (
    ROOT,
    CommandLine,
    left,
    log,
    refuses,
    write_recipe,
)
from tokenizer import load_tokenizer, train

BAD_FILES = {
    "nope[1].txt": r"no file 'nope\[1\]\.txt'",
    "folder": "folder holds no files",
    "empty.txt": "empty.txt is empty",
    "binary.txt": "binary.txt looks binary: NUL at byte 20,004",
    "random.bin": "random.bin is not UTF-8 text: invalid start byte at byte 0",
    "latin.txt": "latin.txt is not UTF-8 text: invalid continuation byte at byte 20,003",
    "cut.txt": "cut.txt is not UTF-8 text: unexpected end of data at byte 4",
    "packed.txt.xz": "packed.txt.xz is damaged or encrypted",
    "socket": "socket: No such device",
    "locked.txt": "locked.txt: Permission denied",
}


@pytest.fixture
def bad_files(kept: CommandLine) -> Iterator[CommandLine]:
    Path("folder").mkdir()
    Path("empty.txt").touch()
    Path("binary.txt").write_bytes(b"text " * 4000 + b"see \0 there")
    Path("random.bin").write_bytes(bytes(reversed(range(1, 256))))
    Path("latin.txt").write_bytes(b"text " * 4000 + b"caf\xe9 noir")
    Path("cut.txt").write_bytes(b"caf" + b" \xe9\xa1")
    Path("packed.txt.xz").write_bytes(lzma.compress(b"text")[:-8])
    Path("locked.txt").write_text("text")
    Path("locked.txt").chmod(0)
    with socket.socket(socket.AF_UNIX) as server:
        server.bind("socket")
        yield kept


@pytest.mark.parametrize("name", BAD_FILES)
def test_files_that_are_not_text(bad_files: CommandLine, name: str) -> None:
    if name == "locked.txt" and os.getuid() == 0:
        pytest.skip("root may read everything")
    for command in ("feed --session new", "feed --session s", "score", "score --session s"):
        for given in ([name], ["text.txt", name]):
            if given[1:] == ["empty.txt"]:
                continue  # an empty file is allowed next to another
            refuses(bad_files, BAD_FILES[name], *command.split(), *given)


def test_standard_input_that_is_not_text(kept: CommandLine) -> None:
    for command in ("feed --session new", "feed --session s", "score"):
        words = command.split()
        refuses(kept, "nothing to (read|score): .* is empty", *words, "-")
        refuses(kept, "invalid UTF-8: byte 0xFF", *words, "-", stdin=b"text \xff text")
        refuses(kept, r"\(-\) given twice", *words, "-", "text.txt", "-")
        refuses(kept, r"\(-\) is closed", *words, "-", stdin=None)


def test_text_before_bad_text_is_saved(
    kept: CommandLine, small_blocks: int, prose: Callable[..., str]
) -> None:
    good = prose(400).encode()[: 6 * small_blocks] + b" \xff"
    failed = kept("feed", "-", "--session", "new", stdin=good)
    position = DirectoryStore.open("sessions/new.zarr").head("main").position  # type: ignore[union-attr]
    assert failed.status == 1 and failed.out == "" and position > 100
    assert f"; saved up to token {position:,}; --stdin-skip " in failed.err


@pytest.mark.parametrize(
    ("command", "message"),
    [
        ("generate --session nope", "no session 'nope' in sessions; there are: s$"),
        ("score text.txt --session nope", "no session 'nope'"),
        ("sessions show nope", "no session 'nope'"),
        ("sessions fork nope b", "no session 'nope'"),
        ("sessions rewind nope --to 0", "no session 'nope'"),
        ("sessions delete nope --yes", "no session 'nope'"),
        ("feed text.txt --session new@side", "no session 'new'"),
        ("sessions show s --store elsewhere", "no session 's' in elsewhere; there are: none yet$"),
        ("feed text.txt --session s@nope", "'s' has no branch 'nope'; it has main, side; "),
        ("generate --session s@nope", "no branch 'nope'"),
        ("score text.txt --session s@nope", "no branch 'nope'"),
        ("sessions show s@nope", "no branch 'nope'"),
        ("sessions fork s@nope b", "no branch 'nope'"),
        ("sessions rewind s@nope --to 0", "no branch 'nope'"),
        ("sessions fork s side", "branch 'side' exists already; allowed: a new name"),
        ("sessions fork s main", "branch 'main' exists already"),
        ("sessions delete s@none --yes", "session 's' has no branch 'none'"),
        ("sessions rewind s", "allowed: one of --to, --by, --snapshot and --time"),
        (
            "sessions rewind s --to 1 --snapshot 1",
            "allowed: one of --to, --by, --snapshot and --time",
        ),
        ("sessions rewind s --to 99999", "position 99999; allowed: 0 to "),
        ("sessions rewind s --to -1", "position -1; allowed: 0 to "),
        ("sessions rewind s --snapshot 99", "snapshot = 99; allowed: 0 to 1"),
        ("generate --session s --temperature -1", "temperature = -1.0; allowed: 0 .* to 100"),
        ("generate --session s --temperature 1e9", "temperature = 1000000000.0; allowed"),
        ("generate --session s --temperature nan", "temperature = nan; allowed"),
        ("generate --session s --top-k -1", r"top_k = -1; allowed: .*0 \(off\) or more"),
        ("generate --session s --top-p 0", "top_p = 0.0; allowed: above 0, at most 1"),
        ("generate --session s --top-p 1.5", "top_p = 1.5; allowed"),
        ("generate --session s --min-p 2", r"min_p = 2.0; allowed: 0 \(off\) to 1"),
        ("generate --session s --min-p nan", "min_p = nan; allowed"),
        ("generate --session s --repetition-penalty 0", "repetition_penalty = 0.0; allowed: above"),
        ("generate --session s --repetition-penalty inf", "repetition_penalty = inf; allowed"),
        ("generate --session s --max-tokens -1", "max_tokens = -1; allowed: 0 or more"),
        ("generate --session s --seed -1", "seed = -1; allowed: 0 or more"),
        ("generate --session s --stop=", "stop = .*; allowed: strings that are not empty"),
        ("feed text.txt --session new --device tpu", "device 'tpu'; allowed: auto, cpu, cuda"),
        ("feed text.txt --session new --model nope", "no checkpoint at 'nope'; allowed: "),
        ("eval nope --data text.txt", "no checkpoint at 'nope'; allowed: "),
        ("eval MODEL --data nope.txt", "no file or split 'nope.txt'; splits: valid, test"),
        ("eval MODEL --data sessions", "sessions is a directory; allowed: files, or valid"),
        ("eval MODEL --data valid --data-dir x", "'valid' is not at x/books/valid.txt.xz"),
        (
            "eval MODEL --data valid --data-dir x",
            "Project Gutenberg books of the PG-19",
        ),
        ("eval MODEL --data text.txt --batch-size 0", "--batch-size 0; allowed: at least 1"),
        ("eval MODEL --data text.txt --max-tokens -5", "--max-tokens -5; allowed: at least 1"),
    ],
)
def test_commands_refuse(kept: CommandLine, command: str, message: str) -> None:
    words = [str(kept.model) if word == "MODEL" else word for word in command.split()]
    refuses(kept, message, *words)


@pytest.mark.parametrize(
    ("command", "message"),
    [
        ("", "Usage: "),
        ("nope", "No such command 'nope'"),
        ("feed --session new", "Missing argument 'FILE'"),
        ("feed text.txt", "Missing option '--session'"),
        ("feed text.txt --session new --errors ignore", "'ignore' is not one of 'strict', 'repl"),
        ("feed text.txt --session new --store text.txt", "'--store': .*text.txt' is a file"),
        ("sessions list --store text.txt", "'--store': .*text.txt' is a file"),
        ("generate --top-k 2.5", "Invalid value for '--top-k'"),
        ("generate --temperature warm", "Invalid value for '--temperature'"),
        ("generate --seed x", "Invalid value for '--seed'"),
        ("generate --beams 4", "No such option: --beams"),
        ("sessions rewind s --to ten", "Invalid value for '--to'"),
        ("sessions fork s", "Missing argument 'BRANCH'"),
        ("train", "Missing option '--recipe'"),
        ("train --recipe sessions", "'--recipe': .*sessions' is a directory"),
        ("train --recipe text.txt --out text.txt", "'--out': .*text.txt' is a file"),
        ("eval MODEL", "Missing option '--data'"),
    ],
)
def test_usage_errors(kept: CommandLine, command: str, message: str) -> None:
    before = left()
    result = kept(*command.split())
    assert result.status == 2
    assert re.search(message, result.out + result.err), result
    assert "Traceback" not in result.err and left() == before


NAMES = ("", "../x", "x/y", "/x", ".x", "-x", "x y", "x\n", "naïve", "x@../y", "x@y@z", "x" * 101)


@pytest.mark.parametrize("name", NAMES)
def test_names_do_not_lead_out_of_the_store(kept: CommandLine, name: str) -> None:
    above = set(Path("..").iterdir())
    message = "allowed: NAME or NAME@BRANCH, each of at most 100 letters, digits"
    refuses(kept, message, "feed", "text.txt", f"--session={name}")
    for command in (["show"], ["delete", "--yes"], ["rewind", "--to", "0"]):
        words = ["sessions", *command, "--", name]
        if command[0] == "rewind":
            words = ["sessions", *command, "--model", str(kept.model), "--", name]
        refuses(kept, message, *words)
    if "@" not in name:
        refuses(kept, message, "sessions", "fork", "--", "s", name or "@")
    assert set(Path("..").iterdir()) == above


def test_another_model_is_refused(
    kept: CommandLine, tiny_folder: Callable[..., Path], prose: Callable[..., str]
) -> None:
    tokenizer = load_tokenizer(train([prose(500)], Path("t.model"), vocab_size=400))
    checkpoint = streamlm.load(kept.model, device="cpu")
    save_checkpoint("other-tokenizer", checkpoint.model, tokenizer)
    for model, differing in (
        (tiny_folder(seed=2), ["weights"]),
        (tiny_folder(memory_len=32), ["architecture"]),
        ("other-tokenizer", ["tokenizer"]),
    ):
        for command in (
            "feed text.txt --session s",
            "generate --session s",
            "generate --session s --no-keep",
            "score text.txt --session s@side",
            "sessions rewind s --to 1",
        ):
            refuses(kept, "written with another model", *command.split(), "--model", model)
        error = kept("generate", "--session", "s", "--model", model).err
        found = re.findall(r"(\w+) [0-9a-f]{12} there and [0-9a-f]{12} here", error)
        assert found == differing
        assert f"another model than {model} (" in error
        assert "allow_mismatch" not in error and not re.search(r"[0-9a-f]{13}", error)


def test_invalid_checkpoints(kept: CommandLine) -> None:
    def changed(name: str, data: bytes | None) -> None:
        shutil.rmtree("changed", ignore_errors=True)
        shutil.copytree(kept.model, "changed")
        Path("changed", name).unlink()
        if data is not None:
            Path("changed", name).write_bytes(data)

    config = json.loads((kept.model / "config.json").read_text())
    for name, data, message in (
        ("config.json", None, "changed is no checkpoint: config.json is missing"),
        ("config.json", b"{", "config.json is damaged"),
        ("config.json", json.dumps(config | {"d_ff": 32}).encode(), "do not agree"),
        ("config.json", json.dumps(config | {"heads": 3}).encode(), "has no heads; allowed:"),
        ("model.safetensors", b"x" * 100, "model.safetensors is damaged"),
        ("tokenizer.model", b"x" * 100, "no SentencePiece model"),
    ):
        changed(name, data)
        refuses(kept, message, "feed", "text.txt", "--session", "new", "--model", "changed")


@pytest.mark.parametrize(
    ("replaced", "message"),
    [
        ({"steps": "steps = 0"}, "steps = 0; allowed: an integer of at least 1"),
        ({"steps": 'steps = "many"'}, "steps = 'many'; allowed: a value of type int"),
        ({"steps": "stepz = 1"}, "TrainConfig has no stepz; allowed: .*steps"),
        ({"d_model": "d_model = 15"}, "d_model = 15; allowed: an even number"),
        ({"d_model": "width = 16"}, "ModelConfig has no width; allowed: .*d_model"),
        ({"train": 'train = "text.txt"'}, "train = 'text.txt'; allowed: a list"),
        ({"train": 'train = ["nope-*.txt"]'}, r"no data file matches 'nope-\*.txt'"),
        ({"train": 'train = ["bad.txt"]'}, "bad.txt is not UTF-8 text: invalid .* at byte 5"),
        ({"train": 'train = ["bad.xz"]'}, "bad.xz is damaged: "),
        ({"valid": 'valid = ["cut.xz"]'}, "cut.xz is damaged: "),
        ({"valid": 'valid = ["empty.txt"]'}, "no text in empty.txt"),
        ({"valid": ""}, r"allowed are \[data\] with tokenizer, train, valid or valid_share"),
        ({"tokenizer": 'tokenizer = "nope.model"'}, "nope.model"),
        ({"tokenizer": "tokenizer = "}, "recipe.toml is no TOML: .*line"),
    ],
)
def test_bad_recipes(kept: CommandLine, replaced: dict[str, str], message: str) -> None:
    bad_data()
    write_recipe(**replaced)
    refuses(kept, message, "train", "--recipe", "recipe.toml", "--out", "run")
    assert not Path("run").exists()


def test_invalid_runs(kept: CommandLine) -> None:
    write_recipe()
    recipe = ("train", "--recipe", "recipe.toml")
    refuses(kept, "nope.toml: No such file", "train", "--recipe", "nope.toml")
    refuses(kept, "nothing to resume in run: it has no last", *recipe, "--out", "run", "--resume")
    refuses(kept, "steps = -1; allowed: an integer of at least 1", *recipe, "--steps", "-1")


@pytest.mark.parametrize(
    ("name", "message"),
    [
        ("bad.txt", "bad.txt is not UTF-8 text: .* at byte 5"),
        ("bad.xz", "bad.xz is damaged: "),
        ("cut.xz", "cut.xz is damaged: "),
        ("empty.txt", "no text in empty.txt"),
    ],
)
def test_bad_data_to_evaluate(kept: CommandLine, name: str, message: str) -> None:
    bad_data()
    refuses(kept, message, "eval", kept.model, "--data", name)
    if name != "empty.txt":
        refuses(kept, message, "eval", kept.model, "--data", "text.txt", "--data", name)


def bad_data() -> None:
    Path("bad.txt").write_bytes(b"text \xff")
    Path("bad.xz").write_bytes(b"text")
    Path("cut.xz").write_bytes(lzma.compress(b"text " * 100)[:-20])
    Path("empty.txt").write_bytes(b"\f\n")


@pytest.mark.skipif(torch.cuda.is_available(), reason="there is a CUDA device")
def test_cuda_without_a_device(kept: CommandLine) -> None:
    message = "CUDA is not usable here; allowed: auto, cpu"
    refuses(kept, message, "feed", "text.txt", "--session", "new", "--device", "cuda")


HOLD = """
import sys
from memory_store import DirectoryStore
with DirectoryStore.open("sessions/s.zarr").writer("main"):
    print("held", flush=True)
    sys.stdin.read()
"""


def test_a_second_writer(kept: CommandLine) -> None:
    command, pipe = [sys.executable, "-c", HOLD], subprocess.PIPE
    environment = {**os.environ, "PYTHONPATH": str(ROOT)}
    with subprocess.Popen(command, stdin=pipe, stdout=pipe, env=environment) as holder:
        assert holder.stdout and holder.stdout.readline() == b"held\n"
        for words in (
            "feed text.txt --session s",
            "generate --session s",
            "sessions rewind s --to 1",
            "sessions delete s --yes",
        ):
            refuses(kept, f"being written by process {holder.pid} ", *words.split())
        kept.works("generate", "--session", "s", "--no-keep", "--max-tokens", 2)
        kept.works("score", "text.txt", "--session", "s")
        kept.works("feed", "text.txt", "--session", "s@side")
    kept.works("feed", "text.txt", "--session", "s")


def test_a_full_disk(kept: CommandLine, tmp_path: Path) -> None:
    disk = tmp_path / "disk"
    disk.mkdir()
    mount = ["mount", "-t", "tmpfs", "-o", "size=1m", "tmpfs", str(disk)]
    if os.getuid() != 0 or subprocess.run(mount, capture_output=True).returncode != 0:
        pytest.skip("mounting a small disk takes root")
    try:
        feed = ("feed", "text.txt", "--session", "full", "--store", "disk")
        first = kept.works(*feed, "--json").json["position"]
        with open("disk/rest", "wb", buffering=0) as rest, pytest.raises(OSError, match="space"):
            while True:
                rest.write(bytes(4096))
        failed = kept(*feed)
        assert failed.status == 1 and failed.out == ""
        assert re.search(r"full.zarr: no space left .*the last commit is intact", failed.err)
        store = DirectoryStore.open("disk/full.zarr")
        assert store.verify().commits == 2  # the empty beginning, and the first feed
        assert kept.works("score", "text.txt", *feed[2:], "--json").json["position"] == first
        Path("disk/rest").unlink()
        kept.works(*feed)
        kept.works("feed", "text.txt", "--session", "twice")
        kept.works("feed", "text.txt", "--session", "twice")
        assert log(store.path) == log(Path("sessions/twice.zarr"))
    finally:
        subprocess.run(["umount", str(disk)], check=True)
