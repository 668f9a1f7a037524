"""What every test shares: one thread, CUDA tests only where there is a CUDA device, tiny models."""

import os
import random
import shutil
import signal
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from hypothesis import settings

import streamlm
from streamlm.checkpoints.checkpoint import Checkpoint, load_checkpoint, save_checkpoint
from streamlm.models.build import MODELS, build_model
from streamlm.sessions.session import Session
from tests.support.command_line import CommandLine, known_tokenizer, log
from tests.support.sessions import End
from tokenizer import Tokenizer, load_tokenizer

ROOT = Path(__file__).resolve().parents[1]

# A busy machine is not a failing test. Examples are others in every run.
settings.register_profile("streamlm", deadline=None, max_examples=50)
settings.load_profile("streamlm")
# Tiny models: a second thread costs more than it computes, here and in what tests start.
THREADS = os.environ.setdefault("STREAMLM_TEST_THREADS", "1")
torch.set_num_threads(int(THREADS))
os.environ["OMP_NUM_THREADS"] = THREADS


def pytest_collection_modifyitems(items: list[pytest.Item]) -> None:
    if torch.cuda.is_available():
        return
    skip = pytest.mark.skip(reason="needs a CUDA device")
    for item in items:
        if item.get_closest_marker("cuda"):
            item.add_marker(skip)


@pytest.fixture(autouse=True)
def seeds_of_sessions(monkeypatch: pytest.MonkeyPatch) -> None:
    """Sessions that are given no seed draw the same ones in each run of a test."""
    monkeypatch.setattr("streamlm.sessions.live.draw_seed", random.Random(0).getrandbits)


@pytest.fixture(scope="session")
def books_tokenizer() -> Tokenizer:
    """The tokenizer of the bundled checkpoint."""
    return load_tokenizer(ROOT / "streamlm" / "assets" / "books" / "tokenizer.model")


@pytest.fixture(scope="session")
def tiny_folder(
    tmp_path_factory: pytest.TempPathFactory, books_tokenizer: Tokenizer
) -> Callable[..., Path]:
    """Makes checkpoint directories: a random model of two layers with the bundled tokenizer.

    `seed` chooses the weights; the characters of `likes` are written more often than others, which
    are bytes where the vocabulary lacks the character; anything else is a setting of the model.
    """

    def make(*, seed: int = 1, likes: str = "", **options: object) -> Path:
        shape: dict[str, object] = {
            **{"vocab_size": books_tokenizer.vocab_size, "n_layers": 2, "d_model": 32},
            **{"n_heads": 2, "head_dim": 16, "d_ff": 64, "segment_len": 16, "memory_len": 16},
            **{"compressed_len": 8, "compression_rate": 4, "compression_loss": "none"},
            **{"norm": "pre", "final_norm": True, "init_std": 0.2},
        }
        if options.get("head") == "llama":
            shape |= {"n_kv_heads": 1, "compression": "select", "pinned_len": 3}
        torch.manual_seed(seed)
        head = MODELS[str(options.get("head", "relative"))]
        model = build_model(head.settings.from_dict({**shape, **options}))
        with torch.no_grad():
            for id in set(books_tokenizer.encode(likes).tolist()):
                model.output_bias[id] += 14.0
        folder = tmp_path_factory.mktemp("checkpoint")
        save_checkpoint(folder, model, books_tokenizer)
        return folder

    return make


@pytest.fixture(scope="session")
def tiny(tiny_folder: Callable[..., Path]) -> Checkpoint:
    """A tiny random checkpoint: T = 16, M = 16, C = 8, c = 4."""
    return load_checkpoint(tiny_folder(), device="cpu")


@pytest.fixture
def open_(tmp_path: Path, tiny: Checkpoint) -> Iterator[Callable[..., Session]]:
    """Opens the session of a name; all are closed at the end."""
    opened: list[Session] = []

    def open_(name: str = "s", **options: Any) -> Session:
        opened.append(streamlm.open(tmp_path / f"{name}.zarr", tiny, **options))
        return opened[-1]

    yield open_
    for session in opened:
        session.close()


@pytest.fixture
def small_blocks(monkeypatch: pytest.MonkeyPatch) -> int:
    """Read sources in blocks of so many bytes, so that a short text has many."""
    size = 256
    monkeypatch.setattr("streamlm.sessions.sources.BLOCK", size)
    return size


@pytest.fixture(scope="session")
def prose() -> Callable[..., str]:
    """Makes reproducible text of some words, with newlines and characters of two to four bytes."""
    words = [
        *("the", "of", "and", "whale", "sea", "captain", "said", "old", "white", "morning", "upon"),
        *("without", "into", "—", "naïve", "“Ishmael”", "漢字", "1851", "🐋", "never", "again."),
        *("Why?", "circumnavigation,", "harpoon;", "a", "I", "it", "was", "not"),
    ]

    def make(n_words: int, *, seed: int = 0) -> str:
        random = np.random.default_rng(seed)
        chosen = (words[i] for i in random.integers(0, len(words), n_words))
        ends = (" \n"[int(end)] for end in random.random(n_words) < 0.1)
        return "".join(word + end for word, end in zip(chosen, ends, strict=True))

    return make


@pytest.fixture(scope="session")
def token_log() -> Callable[..., list[int]]:
    """Reads the ids of a whole saved session from its store."""
    return log


@pytest.fixture(scope="session")
def text(prose: Callable[..., str]) -> str:
    return prose(120)


@pytest.fixture(scope="session")
def whole(
    text: str,
    tiny: Checkpoint,
    token_log: Callable[..., list[int]],
    tmp_path_factory: pytest.TempPathFactory,
) -> End:
    """The end of a session that read all the text at once."""
    path = tmp_path_factory.mktemp("whole") / "s.zarr"
    with streamlm.open(path, tiny) as session:
        report = session.feed([text])
        assert report.position == report.tokens == session.position
        end = End.of(session, path, token_log)
    ids = tiny.tokenizer.encode(text).tolist()
    assert end.log == ids[: len(end.log)] and len(ids) - len(end.log) < 5
    assert tiny.tokenizer.decode(ids[len(end.log) :]) == end.tail
    return end


# -- the command line ----------------------------------------------------------------------------


@pytest.fixture(scope="module")
def model(tiny_folder: Callable[..., Path]) -> Path:
    return tiny_folder()


@pytest.fixture
def cli(
    tmp_path: Path,
    model: Path,
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
) -> Iterator[CommandLine]:
    """The command line in an empty folder, with a plain environment."""
    monkeypatch.chdir(tmp_path)
    for name in ("FORCE_COLOR", "NO_COLOR", "TTY_COMPATIBLE", "TTY_INTERACTIVE"):
        monkeypatch.delenv(name, raising=False)
    monkeypatch.setenv("COLUMNS", "80")
    monkeypatch.setattr("streamlm.checkpoints.own.load_tokenizer", known_tokenizer)
    handled = (signal.SIGINT, signal.SIGTERM, signal.SIGHUP)
    before = {number: signal.getsignal(number) for number in handled}
    yield CommandLine(monkeypatch, capsys, model)
    for number, handler in before.items():
        signal.signal(number, handler)


@pytest.fixture(scope="module")
def prepared(
    tmp_path_factory: pytest.TempPathFactory, model: Path, prose: Callable[..., str]
) -> Path:
    """A folder with a session `s`, its branch `s@side`, and a text.txt that it has not read."""
    folder = tmp_path_factory.mktemp("prepared")
    with streamlm.open(folder / "sessions" / "s.zarr", streamlm.load(model, device="cpu")) as s:
        s.feed([prose(300)])
        s.fork("side").close()
    (folder / "text.txt").write_text(prose(200, seed=1), encoding="utf-8")
    return folder


@pytest.fixture
def kept(cli: CommandLine, prepared: Path, tmp_path: Path) -> CommandLine:
    """The command line in a copy of the prepared folder."""
    shutil.copytree(prepared, tmp_path, dirs_exist_ok=True)
    return cli
