"""An example of a memory, which the page shows until a session has read something.

`python -m apps.demo.example` writes `example.json` anew: the bundled model's memory of the
bundled book.
"""

import json
from dataclasses import asdict, dataclass
from functools import cache
from importlib import resources
from pathlib import Path
from typing import Any

import numpy as np

from apps.demo.render.memory_svg import MemoryView, Zones

FILE = Path(__file__).parent / "example.json"
CHARACTERS = 100_000  # of the bundled book that it has read
MARGIN = 30  # tokens before the oldest slot, whose texts are kept
ABOUT = (
    "An example, until this session has read something: the bundled model's memory within the "
    "bundled book."
)


def book() -> str:
    """The text of the bundled book."""
    file = resources.files("streamlm") / "assets" / "books" / "beyond-the-city.txt"
    return file.read_text(encoding="utf-8")


@cache
def example_html() -> str:
    """The example as a strip."""
    view = MemoryView(**_parts(json.loads(FILE.read_text(encoding="utf-8"))))
    return f'<p class="example">{ABOUT}</p>{view.strip_html()}'


@dataclass(frozen=True)
class _Report:
    """The attributes of a MemoryReport that a strip shows, without importing torch."""

    position: int
    slot_bytes: int
    first: int
    start: np.ndarray
    stop: np.ndarray
    compressions: np.ndarray
    error: np.ndarray
    attention: np.ndarray

    def __len__(self) -> int:
        return len(self.compressions)


def _parts(values: dict[str, Any]) -> dict[str, Any]:
    report = values["report"]
    return {
        "report": _Report(
            position=report["position"],
            slot_bytes=report["slot_bytes"],
            first=report["first"],
            start=np.array(report["start"]),
            stop=np.array(report["stop"]),
            compressions=np.array(report["compressions"]),
            error=np.array(report["error"]),
            attention=np.zeros((1, 0, len(report["compressions"]))),
        ),
        "pieces": values["pieces"],
        "zones": Zones(**values["zones"]),
    }


def example(text: str) -> dict[str, Any]:
    """The values of an example: the bundled model's memory after a text."""
    import streamlm
    from streamlm.engine import Engine
    from streamlm.sessions.session import Session

    checkpoint = streamlm.load("books", device="cpu")
    session = Session(checkpoint)
    session.feed(text)
    with Engine(checkpoint, rows=1) as engine:
        view = MemoryView.of(engine, session)
    assert view is not None
    report = view.report
    first = int(report.start.min()) - MARGIN
    return {
        "report": {
            "position": report.position,
            "slot_bytes": report.slot_bytes,
            "first": first,
            "start": report.start[:1].tolist(),
            "stop": report.stop[:1].tolist(),
            "compressions": report.compressions.tolist(),
            "error": [report.error.mean(axis=0).round(2).tolist()],
        },
        "pieces": list(view.pieces[first - report.first :]),
        "zones": asdict(view.zones),
    }


if __name__ == "__main__":
    values = json.dumps(example(book()[:CHARACTERS]), ensure_ascii=False)
    FILE.write_text(values + "\n", encoding="utf-8")
