"""`streamlm sessions show`: a session's branches, snapshots and memory."""

import json
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import numpy as np
import typer

from memory_store import Corrupt, Ref
from memory_store.store import Store as OpenStore
from streamlm.cli.display import output, show_table
from streamlm.cli.options import Device, Json, Name, SessionModel, Store
from streamlm.cli.recall import archives_of, stored_recalled, where
from streamlm.sessions.shelf import find, full_path, locate, missing_branch, open_named
from streamlm.units import size_text, time_text

if TYPE_CHECKING:
    from streamlm.runtime.memory_report import MemoryReport

NEWEST = 20  # snapshots listed without --all
ROWS = 24
BLOCKS = " ▁▂▃▄▅▆▇█"
KINDS = ("memory", "compressed")


def show(
    name: Name,
    memory: Annotated[
        bool, typer.Option("--memory", help="Also show what the model remembers, slot by slot.")
    ] = False,
    plot: Annotated[
        Path | None,
        typer.Option(dir_okay=False, help="Save a plot of the memory, as .png or .svg."),
    ] = None,
    every: Annotated[
        bool, typer.Option("--all", help=f"List all snapshots instead of the newest {NEWEST}.")
    ] = False,
    store: Store = "sessions",
    model: SessionModel = None,
    device: Device = "auto",
    as_json: Json = False,
) -> None:
    """Show a session: its branches, and the snapshots of one."""
    opened, branch = find(store, name)
    refs = opened.refs(branch)
    if not refs:
        raise missing_branch(opened, name)
    path, _ = locate(store, name)
    listed = refs if every or as_json else refs[-NEWEST:]
    sizes = [_size_of(opened, ref) for ref in listed]
    snapshots = [
        {
            "snapshot": r.seq,
            "position": r.position,
            "saved": r.created,
            "commit": r.commit.id,
            "bytes": size,
            "kept": whole,
        }
        for r, size, whole in zip(listed, sizes, opened.loadable(listed), strict=True)
    ]
    facts: dict[str, Any] = {
        "name": name,
        "path": full_path(path),
        "bytes": opened.size(),
        "branches": opened.branches(),
        "pins": {pin: commit.position for pin, commit in opened.pins().items()},
        "retention": opened.attributes.get("retention"),
        "position": refs[-1].position,
        "snapshots": snapshots,
        "archives": archives_of(opened, refs[-1]),
        "recalled": stored_recalled(opened, refs[-1], refs),
    }
    report = None
    if memory or plot is not None:
        with open_named(store, name, model, device=device, readonly=True) as session:
            report = session.memory_report()
            decode = session.checkpoint.tokenizer.decode
    if plot is not None and report is not None:
        from streamlm.plots.memory import draw_memory

        draw_memory(report, plot, name=name)
    if as_json:
        print(json.dumps(facts | ({"memory": report.to_dict()} if memory and report else {})))
        return
    output.print(f"{full_path(path)}  {size_text(opened.size())}")
    output.print(f"branches: {', '.join(opened.branches())}; showing {branch}")
    if facts["pins"]:
        pins = (f"{pin} at token {at:,}" for pin, at in facts["pins"].items())
        output.print(f"pins: {', '.join(pins)}")
    output.print(f"retention: {_policy_text(facts['retention'])}")
    for archive in facts["archives"]:
        output.print(
            f"archive: {archive['tokens']:,} of {refs[-1].position:,} tokens are indexed, "
            f"{archive['bytes_per_token']} bytes a token ({archive['name']})"
        )
    for found in facts["recalled"]:
        output.print(f"recalled for the newest prompt: {where(found)}")
    if len(listed) < len(refs):
        output.print(f"showing the newest {len(listed)} of {len(refs)} snapshots; --all shows all")
    cells = [
        (
            str(ref.seq),
            f"{ref.position:,}",
            time_text(ref.created),
            "damaged" if size is None else size_text(size),
            "" if entry["kept"] else "tokens only",
        )
        for ref, size, entry in zip(listed, sizes, snapshots, strict=True)
    ]
    columns = ("snapshot", "position", "saved at", "size", "kept")
    show_table(columns, cells, right=(*columns[:2], "size"))
    if memory and report is not None:
        output.print()
        show_memory(report, decode)
    if plot is not None:
        output.print(str(plot))


def _policy_text(retention: dict[str, Any] | None) -> str:
    if not retention or not retention.get("last"):
        return "all snapshots"
    older = ", older ones thinned by age" if retention.get("thin") else ""
    tokens = "all tokens" if retention.get("log", True) else "the tokens since the oldest"
    return f"the newest {retention['last']} snapshots{older}; {tokens}"


def _size_of(opened: OpenStore, ref: Ref) -> int | None:
    """Bytes that a snapshot adds to those it shares with others; None if it is damaged."""
    try:
        return opened.size(ref)
    except Corrupt:
        return None


def show_memory(report: "MemoryReport", decode: Callable[[np.ndarray], str]) -> None:
    """Print what the model remembers, oldest first, in rows of consecutive slots.

    Args:
        decode: maps tokens to text.
    """
    rows = list(_rows(report))
    received = np.array([report.attention[:, :, row].mean(axis=1).sum(axis=1) for row in rows])
    most = np.maximum(received.max(axis=0), 1e-30)  # [L]
    columns = ("tokens ago", "kind", "slots", "bytes/token", "error", "attention")
    cells, texts = [], []
    for row, attention in zip(rows, received, strict=True):
        start, stop = int(report.start[:, row].min()), int(report.stop[:, row].max())
        covered = (report.stop[:, row] - report.start[:, row]).sum(axis=1).mean()
        kind = int(report.compressions[row[0]])
        levels = np.ceil(attention / most * (len(BLOCKS) - 1)).astype(int)
        ids = report.ids[max(0, start - report.first) : max(0, stop - report.first)]
        texts.append(" ".join(decode(ids).split()))
        cells.append(
            (
                f"{report.position - start:,} – {report.position - stop:,}",
                KINDS[kind],
                str(len(row)),
                f"{len(row) * report.slot_bytes / max(covered, 1):,.0f}",
                f"{report.error[:, row].mean():.0%}" if kind else "",
                "".join(BLOCKS[level] for level in levels),
            )
        )
    used = sum(max(map(len, column)) + 2 for column in zip(columns, *cells, strict=True))
    left = max(12, output.width - used)
    show_table(
        (*columns, "text"),
        [(*row, _shortened(text, left)) for row, text in zip(cells, texts, strict=True)],
        right=("tokens ago", "slots", "bytes/token", "error"),
    )
    output.print(
        f"{len(report):,} slots, {size_text(len(report) * report.slot_bytes)}. Attention: for each "
        "layer, first to last, relative to the row that receives the most."
    )


def _shortened(text: str, width: int) -> str:
    return text if len(text) <= width else text[: width - 1] + "…"


def _rows(report: "MemoryReport") -> Iterator[list[int]]:
    """Groups of consecutive slots of one kind, about ROWS in all."""
    size = -(-len(report) // ROWS)
    for kind in (1, 0):
        slots = np.flatnonzero(report.compressions == kind).tolist()
        for at in range(0, len(slots), size):
            yield slots[at : at + size]
