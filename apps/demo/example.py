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
TOKENS = 20_000  # read of the bundled book
ABOUT = (
    "An example, until this session has read something: the bundled model's memory after "
    f"{TOKENS:,} tokens of the bundled book."
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
    shape = (1, 0, len(report["compressions"]))
    arrays = {name: np.array(report[name]) for name in ("start", "stop", "compressions", "error")}
    known = (report[name] for name in ("position", "slot_bytes", "first"))
    return {
        "report": _Report(*known, **arrays, attention=np.zeros(shape)),
        "pieces": values["pieces"],
        "zones": Zones(**values["zones"]),
    }


def example(tokens: int = TOKENS) -> dict[str, Any]:
    """The example's values, computed."""
    import torch

    import streamlm
    from streamlm.runtime.memory_report import observe, window
    from streamlm.runtime.stream import advance
    from tokenizer import StreamDecoder

    checkpoint = streamlm.load("books", device="cpu")
    model, tokenizer = checkpoint.model, checkpoint.tokenizer
    ids = tokenizer.encode(book())[:tokens]
    inputs = torch.from_numpy(np.concatenate([[tokenizer.bos_id], ids[:-1]]).astype(np.int64))[None]
    first = tokens - window(model.config)
    with torch.no_grad():
        _, state = advance(model, inputs[:, :first], model.init_state(1))
        report = observe(model, inputs[:, first:], state)
    decoder = StreamDecoder(tokenizer)
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
        "pieces": [decoder.decode([id]) for id in ids[first:]],
        "zones": asdict(Zones.of(model.config)),
    }


if __name__ == "__main__":
    FILE.write_text(json.dumps(example(), ensure_ascii=False) + "\n", encoding="utf-8")
