"""A run of several parts under a time limit, every figure on disk as soon as it is known."""

import contextlib
import os
import signal
import threading
import time
import traceback
from collections.abc import Callable, Iterator, Mapping
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

import torch

from streamlm.lab.results import write_results

ROOT = Path(__file__).resolve().parents[2]
RESULTS = "results.json"
AGAIN = 1.0  # seconds after which a block that goes on is interrupted again
GRACE = 2.0  # seconds in which a part may still write down that its last case was stopped


@dataclass(frozen=True, kw_only=True)
class Options:
    """What the parts are to measure, and on what.

    Attributes:
        device: "cuda" or "cpu"; tiny: with sizes that a CPU can do.
        recipe: of the model that is timed and trained; packs: folder of its data as token ids.
        out: folder of the results.
        train_seconds: what training may take, its compilation included.
        compile: False trains without torch.compile, which takes minutes on a CPU.
        store: whether checksums can be computed here, so that sessions can be kept on disk.
    """

    device: str
    tiny: bool
    recipe: Path
    packs: Path
    out: Path
    train_seconds: float
    compile: bool
    store: bool

    @property
    def has_cuda_build(self) -> bool:
        """Whether torch was built with CUDA, as its graphs and Triton's kernels need it."""
        return self.device == "cuda" and torch.version.cuda is not None


class OutOfTime(Exception):
    """Something took longer than it was given."""


@contextlib.contextmanager
def at_most(seconds: float) -> Iterator[None]:
    """Interrupt the block with OutOfTime after so many seconds.

    Only in the main thread, and not within a call that never comes back to Python. Python drops an
    exception that is raised in a destructor or in the callback of a weak reference, so the block is
    interrupted again every `AGAIN` seconds until it ends.
    """
    if threading.current_thread() is not threading.main_thread() or seconds == float("inf"):
        yield
        return

    def stop(*_: object) -> None:
        raise OutOfTime(f"stopped after {seconds:.1f} s")

    began = time.monotonic()
    before = signal.signal(signal.SIGALRM, stop)
    outer, _ = signal.setitimer(signal.ITIMER_REAL, max(seconds, 0.001), AGAIN)
    try:
        yield
    finally:
        signal.setitimer(signal.ITIMER_REAL, 0)
        signal.signal(signal.SIGALRM, before)
        if outer:  # the block that this one is in has a limit of its own
            left = max(0.001, outer - (time.monotonic() - began))
            signal.setitimer(signal.ITIMER_REAL, left, AGAIN)


class Run:
    """The parts that were asked for, one after another.

    Args:
        expected: by name, in order, the seconds that each part is expected to take.
        until: `time.monotonic()` at which everything is to be over.
    """

    def __init__(self, options: Options, expected: Mapping[str, float], *, until: float) -> None:
        self.options, self.expected, self.until = options, dict(expected), until
        self.figures: dict[str, dict[str, Any]] = {}

    def left(self) -> float:
        """Seconds until everything is to be over."""
        return self.until - time.monotonic()

    def spare(self) -> float:
        """Seconds left that the parts which are still to come do not need."""
        return self.left() - sum(s for name, s in self.expected.items() if name not in self.figures)

    def write(self) -> None:
        """Replace the result file by what is known now; a reader never sees half of it."""
        path = self.options.out / RESULTS
        fresh = path.with_suffix(".new")
        settings = {**asdict(self.options), "parts": list(self.expected)}
        settings = {k: v.name if isinstance(v, Path) else v for k, v in settings.items()}
        device = self.options.device
        write_results(fresh, settings=settings, figures=self.figures, device=device)
        text = fresh.read_text(encoding="utf-8")
        # Paths of one machine mean nothing on another.
        for place, name in ((self.options.out.resolve(), "OUT"), (ROOT, ".")):
            text = text.replace(str(place), name)
        fresh.write_text(text, encoding="utf-8")
        os.replace(fresh, path)

    def do(self, name: str, measure: Callable[["Part"], None]) -> None:
        """Run a part, unless its time does not fit; a failure is written down like any result."""
        began, found = time.monotonic(), self.figures.setdefault(name, {})
        print(f"\n{name}, with {self.left():.0f} s left", flush=True)
        needs = self.expected.get(name, 0.0)
        if needs > self.left():
            found["skipped"] = f"{self.left():.0f} s were left, it takes about {needs:.0f}"
            print(f"  skipped: {found['skipped']}", flush=True)
        else:
            try:
                with at_most(self.left() + GRACE):
                    measure(Part(name, self))
            except Exception as error:
                found |= failure(error)
                print(f"  FAILED: {found['error']}", flush=True)
        found["seconds"] = round(time.monotonic() - began, 1)
        self.write()

    def failed(self) -> list[str]:
        """Parts, and cases of parts, that failed or did not agree."""
        names = []
        for name, found in self.figures.items():
            names += [name] if "error" in found else []
            names += [f"{name}: {case}" for case in found.get("wrong", [])]
            names += [
                f"{name}: {case}"
                for case, result in found.items()
                if isinstance(result, dict) and "error" in result
            ]
        return names


class Part:
    """One part of a run while it is measured: where its cases leave their figures."""

    def __init__(self, name: str, run: Run) -> None:
        self.name, self._run, self.options = name, run, run.options

    @property
    def found(self) -> dict[str, Any]:
        return self._run.figures[self.name]

    def left(self) -> float:
        """Seconds until the whole run is to be over."""
        return self._run.left()

    def note(self, **figures: Any) -> None:
        """Write figures down, at once."""
        self.found.update(figures)
        self._run.write()

    def attempt(
        self, name: str, work: Callable[[], Any], *, seconds: float = 3.0, spare: bool = False
    ) -> Any:
        """Do a case and write down what it finds, how it failed, or that there was no time.

        Args:
            work: returns figures by name, or one figure.
            seconds: it is expected to take.
            spare: only if the parts that are still to come do not need the time.

        Returns:
            What `work` returned; None if it did not.
        """
        left = self._run.spare() if spare else self._run.left()
        if self.options.tiny:
            seconds = min(seconds, 1.0)
        result, began = None, time.monotonic()
        told: dict[str, Any]
        if seconds > left:
            told = {"skipped": f"{left:.0f} s left, it takes about {seconds:.0f}"}
        else:
            try:
                with at_most(left):
                    result = work()
                told = result if isinstance(result, dict) else {"found": result}
            except Exception as error:
                told = failure(error)
            told = {**told, "seconds": round(time.monotonic() - began, 2)}
        print(f"  {name}: { ({k: v for k, v in told.items() if k != 'trace'}) }", flush=True)
        self.note(**{name: told})
        return result

    def disagrees(self, name: str) -> None:
        """Write down that a case's results are not what they ought to be."""
        self.note(wrong=sorted({*self.found.get("wrong", []), name}))

    def skip(self, name: str, why: str) -> None:
        """Write down why a case is not done."""
        print(f"  {name}: skipped, {why}", flush=True)
        self.note(**{name: {"skipped": why}})


def failure(error: Exception) -> dict[str, str]:
    """An exception, as results name it."""
    text = f"{type(error).__name__}: {str(error)[:2000]}"
    return {"error": text, "trace": "".join(traceback.format_exception(error))[-4000:]}
