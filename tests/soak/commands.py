"""Commands of `streamlm` in this process, and a small session to try them on."""

import io
import shutil
import signal
import sys
import traceback
from collections import Counter
from collections.abc import Iterator
from contextlib import contextmanager, redirect_stderr, redirect_stdout
from dataclasses import dataclass, field
from pathlib import Path
from types import FrameType
from typing import Any
from unittest.mock import patch

import torch

import streamlm
from memory_store import DirectoryStore, Retention
from streamlm.checkpoints.checkpoint import Checkpoint, save_checkpoint
from streamlm.cli.app import main
from streamlm.models.build import MODELS, build_model
from tokenizer import load_tokenizer

ROOT = Path(__file__).resolve().parents[2]
TEXT = "Call me Ishmael. Some years ago, never mind how long precisely, I went to sea. "
SIGNALS = (signal.SIGINT, signal.SIGTERM, signal.SIGHUP)
LIMIT = 60  # seconds that a command may take on a busy machine


class Endless(BaseException):
    """A command took longer than `LIMIT`."""


@dataclass
class Tally:
    """What was tried, and what went wrong.

    Attributes:
        counts: how often each outcome was seen.
        faults: one message for each lost, wrong, unnoticed or endless case, and each traceback.
    """

    counts: Counter[str] = field(default_factory=Counter)
    faults: list[str] = field(default_factory=list)

    def check(self, holds: bool, message: str) -> None:
        """Count a fault unless `holds`."""
        if not holds:
            self.faults.append(message)


@dataclass(frozen=True)
class Outcome:
    """How a command ended: its exit status, what it printed, and a traceback that it should not."""

    status: int
    out: str
    err: str
    fault: str | None


@contextmanager
def limited(seconds: int = LIMIT) -> Iterator[None]:
    """Raise `Endless` if the block takes longer."""

    def ring(_number: int, _frame: FrameType | None) -> None:
        raise Endless

    before = signal.signal(signal.SIGALRM, ring)
    signal.alarm(seconds)
    try:
        yield
    finally:
        signal.alarm(0)
        signal.signal(signal.SIGALRM, before)


def command(*arguments: object, stdin: bytes = b"") -> Outcome:
    """Run `streamlm` with arguments, as a shell would."""
    out, err, fault, status = io.StringIO(), io.StringIO(), None, 0
    given = io.TextIOWrapper(io.BytesIO(stdin), encoding="utf-8")
    handled = {number: signal.getsignal(number) for number in SIGNALS}
    with (
        patch.object(sys, "argv", ["streamlm", *map(str, arguments)]),
        patch.object(sys, "stdin", given),
        redirect_stdout(out),
        redirect_stderr(err),
    ):
        try:
            with limited():
                main()
        except SystemExit as ended:
            status = ended.code if isinstance(ended.code, int) else 0
        except Endless:
            fault = f"endless after {LIMIT} s"
        except BaseException:
            fault = traceback.format_exc()
    for number, handler in handled.items():
        signal.signal(number, handler)
    if fault is None and "Traceback" in err.getvalue():
        fault = err.getvalue()
    return Outcome(status, out.getvalue(), err.getvalue(), fault)


def tiny_model(folder: Path) -> Path:
    """A random model of two layers with the bundled tokenizer, saved in a folder."""
    tokenizer = load_tokenizer(ROOT / "streamlm" / "assets" / "books" / "tokenizer.model")
    shape: dict[str, Any] = {
        **{"vocab_size": tokenizer.vocab_size, "n_layers": 2, "d_model": 32},
        **{"n_heads": 2, "head_dim": 16, "d_ff": 64, "segment_len": 16, "memory_len": 16},
        **{"compressed_len": 8, "compression_rate": 4, "compression_loss": "none"},
        **{"norm": "pre", "final_norm": True, "init_std": 0.2},
    }
    torch.manual_seed(1)
    save_checkpoint(folder, build_model(MODELS["relative"].settings.from_dict(shape)), tokenizer)
    return folder


def grown_session(path: Path, model: Checkpoint) -> DirectoryStore:
    """A session with two branches, a rewind, deleted snapshots and a pin."""
    with streamlm.open(path, model, save_every=32) as session:
        session.feed(TEXT * 6)
        kept = session.save()
        session.feed("It was the whiteness of the whale. " * 3)
        session.rewind(to=kept.position - 40)
        session.feed("There she blows! " * 3)
    store = DirectoryStore.open(path)
    head = store.head("main")
    assert head is not None
    store.pin(kept, "kept")
    store.publish(head, branch="side")
    with streamlm.open(path, model, branch="side") as side:
        side.feed("Another voyage. " * 4)
    store.gc(Retention(last=4), grace=0)
    store.verify()
    return store


def fresh_copy(source: Path, target: Path) -> Path:
    """A copy of a session in place of what is at `target`."""
    shutil.rmtree(target, ignore_errors=True)
    shutil.copytree(source, target)
    return target
