"""Whether the device computes what the CPU computes: every head, compression, loss and command."""

import math
import tempfile
from pathlib import Path
from typing import Any

import numpy as np

import streamlm
from benchmarks.gpu_parts.run import Part
from benchmarks.tools import parity, parity_parts
from benchmarks.tools.parity_parts import OF_HEADS
from streamlm.checkpoints.checkpoint import Checkpoint, load_checkpoint
from streamlm.config import COMPRESSIONS, ModelConfig
from streamlm.sessions.session import Session
from streamlm.training.data import Corpus

LIMIT = 1e-4  # relative difference of float32 results that counts as agreement
# The same between bfloat16 and float32; what is not named here is written down and not judged.
BFLOAT16 = {"language_loss": 0.02, "compression_loss": 0.1}
# bfloat16 rounds otherwise in other kernels, and a gradient's largest difference is one of many.
BFLOAT16_GRADIENT = {"gradient": 0.1}


def measure(part: Part) -> None:
    """Whether the device computes what the CPU computes."""
    device = part.options.device
    judge = Judge(part)
    at_once = 5 if part.options.tiny else 1
    part.note(tokens_at_once=at_once)

    def stream(config: ModelConfig) -> dict[str, float]:
        return parity.streaming(config, device, at_once=at_once)

    for head in OF_HEADS:
        judge(f"head {head}, token by token", stream, parity_parts.head_config(head))
        judge(f"head {head}, gradient", parity_parts.head_gradient, head, device)
    checkpoint = load_checkpoint("books", device="cpu")
    tokenizer, corpus = checkpoint.tokenizer, bundled_book(checkpoint, 4000)
    judge("trainer", parity_parts.trainer, tokenizer, corpus, device)
    judge("session", session, checkpoint, part)
    if part.options.store:
        judge("session in a store", stored_session, checkpoint, part)
    else:
        part.skip("session in a store", "google_crc32c is not installed: see `carry`")
    judge("encoder", parity_parts.encoder, device)
    judge("forecast", parity_parts.forecast, device)
    judge("drafter", parity_parts.drafter, tokenizer, corpus, device)
    cases = parity.CASES[::3] if part.options.tiny else parity.CASES
    for kind, loss in cases:
        judge(f"training, {kind}, {loss}", parity.between_devices, kind, loss, device)
    for kind in COMPRESSIONS:
        judge(f"token by token, {kind}", stream, parity.small_config(kind))
        judge(f"state moved, {kind}", parity.moved, kind, device)
    for kind, loss in cases:
        name = f"bfloat16 beside float32, {kind}, {loss}"
        judge(name, parity.between_precisions, kind, loss, device, limits=BFLOAT16)
    for head in ("relative", "sketch") if part.options.tiny else OF_HEADS:
        judge(
            f"head {head}, gradient in bfloat16",
            lambda head: parity_parts.head_gradient(head, device, precision="bfloat16"),
            head,
            limits=BFLOAT16_GRADIENT,
        )


class Judge:
    """Does cases, and notes the names of those that do not agree under `wrong`."""

    def __init__(self, part: Part) -> None:
        self.part = part
        part.note(wrong=[], largest=0.0)

    def __call__(
        self, name: str, work: Any, *arguments: Any, limits: dict[str, float] | None = None
    ) -> None:
        """Args: limits: of the differences that are judged; None judges all, by LIMIT."""
        differences = self.part.attempt(name, lambda: work(*arguments))
        if differences is None:
            return
        found = self.part.found
        for key, value in differences.items():
            allowed = LIMIT if limits is None else limits.get(key, math.inf)
            if not value <= allowed:  # nan is wrong, too
                self.part.disagrees(name)
        if limits is None:
            found["largest"] = max(found["largest"], *differences.values())


def bundled_book(checkpoint: Checkpoint, n_bytes: int, *, documents: int = 4) -> Corpus:
    """The book that comes with streamlm, or its beginning, cut into documents."""
    path = Path(streamlm.__file__).parent / "assets" / "books" / "beyond-the-city.txt"
    text = path.read_text(encoding="utf-8")[:n_bytes]
    ids = checkpoint.tokenizer.encode(text).astype(np.uint16)
    offsets = np.linspace(0, len(ids), documents + 1).astype(np.int64)
    return Corpus(ids, offsets, len(text.encode()), len(text.split()))


def book_text(part: Part) -> str:
    path = Path(streamlm.__file__).parent / "assets" / "books" / "beyond-the-city.txt"
    return path.read_text(encoding="utf-8")[: 1000 if part.options.tiny else 30_000]


def session(here: Checkpoint, part: Part) -> dict[str, float]:
    """A session with the bundled checkpoint: state, score, memory report and greedy text."""
    text, sessions = book_text(part), []
    there = load_checkpoint("books", device=part.options.device)
    with parity.exact():
        for checkpoint in (here, there):
            made = Session(checkpoint)
            made.feed([text])
            sessions.append(made)
        nats = [s.score(["The whale was white."]).nats for s in sessions]
        errors = [s.memory_report().error for s in sessions]
        found = {
            "past": parity.distance(sessions[1].state.past, sessions[0].state.past),
            "score": abs(nats[1] / nats[0] - 1),
            "memory_report": float(np.abs(errors[1] - errors[0]).max()),
        }
        n = 16 if part.options.tiny else 64
        written = ["".join(s.generate("And so", max_tokens=n, temperature=0)) for s in sessions]
    part.note(**{"session, greedy text is the same": written[0] == written[1]})
    return found


def stored_session(here: Checkpoint, part: Part) -> dict[str, float]:
    """Begun on the CPU, saved, gone on with on the device, saved, and on the CPU again."""
    there = load_checkpoint("books", device=part.options.device)
    text = book_text(part)
    third = len(text) // 3
    pieces = [text[:third], text[third : 2 * third], text[2 * third :]]
    with tempfile.TemporaryDirectory() as folder, parity.exact():
        whole = Session(here)
        for piece, checkpoint in zip(pieces, (here, there, here), strict=True):
            with streamlm.open(Path(folder) / "book.zarr", checkpoint) as kept:
                kept.feed([piece])
                kept.save()
            whole.feed([piece])
        with streamlm.open(Path(folder) / "book.zarr", there) as kept:
            return {
                "past": parity.distance(kept.state.past, whole.state.past),
                "positions_differ": float(kept.position != whole.position),
                "text_differs": float(kept.text() + kept.tail != text),
            }
