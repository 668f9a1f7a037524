"""Output of the command line: progress bars, tables and short reports, drawn with rich."""

import sys
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from pathlib import Path

from rich.console import Console
from rich.progress import (
    BarColumn,
    Progress,
    Task,
    TaskID,
    TaskProgressColumn,
    TextColumn,
    TimeElapsedColumn,
    TimeRemainingColumn,
)
from rich.text import Text

from streamlm.runtime.reports import Progress as ReadProgress
from streamlm.runtime.reports import ProgressCallback, ReadReport

# Results go to standard output, messages to standard error. File names are printed literally:
# [brackets] and :colons: in them are not markup.
console = Console(stderr=True, highlight=False, markup=False, emoji=False)
output = Console(highlight=False, markup=False, emoji=False, soft_wrap=True)


def note(message: str, *, style: str = "", word: str = "") -> None:
    """Print one line on standard error, after `word` in `style`."""
    text = Text.assemble((word, style), message)
    console.print(text, soft_wrap=not console.is_terminal)


class _Left(TimeRemainingColumn):
    """The remaining time, once it is known."""

    def render(self, task: Task) -> Text:
        known = task.time_remaining is not None and not task.finished
        return Text(f"{super().render(task)} left" if known else "")


@contextmanager
def bar(
    description: str, *, total: float | None, fields: str = "", hidden: bool = False
) -> Iterator[tuple[Progress, TaskID]]:
    """A progress bar on standard error, shown only in a terminal; `fields` is a rich template."""
    shown = sys.stderr is not None and sys.stderr.isatty() and not console.is_dumb_terminal
    progress = Progress(
        TextColumn("{task.description}", markup=False),
        BarColumn(bar_width=20),
        TaskProgressColumn(),
        TextColumn(fields, markup=False),
        TimeElapsedColumn(),
        _Left(),
        console=console,
        disable=hidden or not shown,
    )
    with progress:
        task = progress.add_task(description, total=total, note="")
        yield progress, task


@contextmanager
def reading_bar(description: str, files: Sequence[str]) -> Iterator[ProgressCallback]:
    """A progress bar for `Session.feed` and `Session.score` over `files`."""
    typed = "-" in files and sys.stdin.isatty()  # a bar would overwrite the typed text
    if typed:
        note(f"{description} from the terminal; end with Ctrl-D on an empty line")
    first = f"{description} {_short(files[0])}"
    with bar(first, total=None, fields="{task.fields[note]}", hidden=typed) as (progress, task):

        def show(done: ReadProgress) -> None:
            report = done.report
            bits = report.bits_per_byte
            said = f"{report.tokens_per_second:,.0f} tokens/s"
            if bits is not None:
                said += f"  {bits:.3f} bits per byte"
            progress.update(
                task,
                description=f"{description} {_short(done.name)}",
                total=done.size,
                completed=done.read,
                note=said,
            )

        yield show


def _short(name: str) -> str:
    return "standard input" if name in ("-", "<stdin>") else Path(name).name


@contextmanager
def interruptible(left_behind: Callable[[], str]) -> Iterator[None]:
    """On an interruption, show a message after everything within has been closed."""
    try:
        yield
    except KeyboardInterrupt:
        note(f"interrupted; {left_behind()}")
        raise


def show_rows(rows: Mapping[str, str]) -> None:
    """Print names and values in two columns."""
    width = max(map(len, rows))
    for name, value in rows.items():
        output.print(f"{name:<{width}}  {value}")


def note_unknown(report: ReadReport, model: str) -> None:
    """Warn on standard error if a text that was read is nothing that the model knows."""
    if report.unknown is not None:
        message = f"this text is nothing that the model {model} knows: {report.unknown}"
        note(message, word="warning: ", style="yellow")


def show_report(report: ReadReport, rows: Mapping[str, str]) -> None:
    """Print a report of reading, followed by further rows."""
    bits = report.bits_per_byte
    facts = {"tokens": f"{report.tokens:,}", "bytes": f"{report.n_bytes:,}"}
    if report.skipped_bytes:
        facts["skipped"] = f"{report.skipped_bytes:,} bytes"
    if bits is not None:
        facts["bits per byte"] = f"{bits:.4f}"
    facts["tokens/s"] = f"{report.tokens_per_second:,.0f}"
    show_rows({**facts, **rows})


def show_table(
    columns: Sequence[str], rows: Sequence[Sequence[str]], *, right: Sequence[str] = ()
) -> None:
    """Print a table with bold headings; the columns in `right` are right-aligned."""
    widths = [max(map(len, column)) for column in zip(columns, *rows, strict=True)]
    for index, row in enumerate((columns, *rows)):
        cells = [
            cell.rjust(width) if name in right else cell.ljust(width)
            for cell, width, name in zip(row, widths, columns, strict=True)
        ]
        output.print(Text("  ".join(cells).rstrip(), style="" if index else "bold"))
