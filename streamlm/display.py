"""What the command line shows: progress bars, tables and short reports, drawn with rich."""

import sys
from collections.abc import Iterator
from contextlib import contextmanager
from datetime import datetime

from rich.console import Console
from rich.progress import (
    BarColumn,
    Progress,
    TaskID,
    TaskProgressColumn,
    TextColumn,
    TimeElapsedColumn,
    TimeRemainingColumn,
)
from rich.table import Table

from memory_store import Ref
from streamlm.reports import Progress as ReadProgress
from streamlm.reports import ProgressCallback, ReadReport

# Data goes to standard output, everything about it to standard error.
console = Console(stderr=True, highlight=False)
output = Console(highlight=False, soft_wrap=True)


def size_text(n: float) -> str:
    """Bytes for people: 1.2 MB."""
    for unit in ("bytes", "kB", "MB", "GB"):
        if n < 1000:
            return f"{n:.0f} {unit}" if unit == "bytes" else f"{n:.1f} {unit}"
        n /= 1000
    return f"{n:.1f} TB"


def time_text(seconds: float) -> str:
    """A time since 1970 for people, in the local time zone."""
    return datetime.fromtimestamp(seconds).astimezone().strftime("%Y-%m-%d %H:%M:%S")


@contextmanager
def bar(
    description: str, *, total: float | None, fields: str = ""
) -> Iterator[tuple[Progress, TaskID]]:
    """A progress bar on standard error, shown only in a terminal; `fields` is a rich template."""
    progress = Progress(
        TextColumn("{task.description}"),
        BarColumn(),
        TaskProgressColumn(),
        TextColumn(fields),
        TimeElapsedColumn(),
        TextColumn("left"),
        TimeRemainingColumn(),
        console=console,
        disable=not sys.stderr.isatty(),
    )
    with progress:
        task = progress.add_task(description, total=total, note="")
        yield progress, task


@contextmanager
def reading_bar(description: str) -> Iterator[ProgressCallback]:
    """A bar that follows `Session.feed` and `Session.score`."""
    with bar(description, total=None, fields="{task.fields[note]}") as (progress, task):

        def show(done: ReadProgress) -> None:
            report = done.report
            bits = report.bits_per_byte
            note = f"{report.tokens_per_second:,.0f} tokens/s"
            if bits is not None:
                note += f"  {bits:.3f} bits per byte"
            progress.update(
                task,
                description=f"{description} {done.name}",
                total=done.size,
                completed=done.read,
                note=note,
            )

        yield show


def show_report(report: ReadReport, rows: dict[str, str]) -> None:
    """A short two-column report of a reading, with further rows at its end."""
    table = Table.grid(padding=(0, 2))
    bits = report.bits_per_byte
    table.add_row("tokens", f"{report.tokens:,}")
    table.add_row("bytes", f"{report.n_bytes:,}")
    if report.skipped_bytes:
        table.add_row("read before", f"{report.skipped_bytes:,} bytes")
    table.add_row("bits per byte", "-" if bits is None else f"{bits:.4f}")
    table.add_row("tokens/s", f"{report.tokens_per_second:,.0f}")
    for name, value in rows.items():
        table.add_row(name, value)
    output.print(table)


def history_table(refs: list[Ref]) -> Table:
    """The snapshots of a branch, oldest first."""
    table = Table(box=None, header_style="bold")
    for column in ("snapshot", "position", "saved at", "commit"):
        table.add_column(column, justify="right" if column == "position" else "left")
    for ref in refs:
        table.add_row(str(ref.seq), f"{ref.position:,}", time_text(ref.created), ref.commit.id[:12])
    return table
