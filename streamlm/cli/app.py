"""The command line, assembled from the other files, each of which has a command or a group."""

import io
import os
import signal
import sys
import time
import warnings
from typing import Annotated, NoReturn

import typer

from memory_store import Corrupt, StoreError
from streamlm.cli.allocator import keep_few_kernels, return_freed_memory
from streamlm.cli.chat import chat
from streamlm.cli.demo import demo
from streamlm.cli.display import note
from streamlm.cli.evaluate import evaluate
from streamlm.cli.feed import feed
from streamlm.cli.generate import generate
from streamlm.cli.lazy import LazyGroup
from streamlm.cli.score import score
from streamlm.cli.serve import serve
from streamlm.cli.sessions import app as sessions_app
from streamlm.cli.train import train

app = typer.Typer(
    cls=LazyGroup,
    no_args_is_help=True,
    add_completion=False,
    pretty_exceptions_enable=False,
    rich_markup_mode=None,
    context_settings={"help_option_names": ["-h", "--help"]},
    help="Language models that read without end in bounded memory.",
)
for command in (feed, generate, score, chat, demo, serve, train):
    app.command()(command)
app.command("eval")(evaluate)
app.add_typer(sessions_app, name="sessions")


def _version(wanted: bool) -> None:
    if wanted:
        from importlib.metadata import version

        print(f"streamlm {version('streamlm')}")
        raise typer.Exit()


@app.callback()
def _top(
    version: Annotated[
        bool,
        typer.Option(
            "--version", callback=_version, is_eager=True, help="Show the version and exit."
        ),
    ] = False,
) -> None:
    return_freed_memory()
    keep_few_kernels()


REPAIR = (
    " `streamlm sessions recover NAME` goes back to the newest intact snapshot; `streamlm sessions "
    "import FILE NAME` begins a session from an exported copy."
)
BURST = 0.5  # seconds; further signals within them are part of the first


class _Interrupts:
    """The handler of signals: the first of a burst is a KeyboardInterrupt, so that `feed` saves."""

    def __init__(self) -> None:
        self._newest = -BURST
        self._ending = False

    def __call__(self, *_: object) -> None:
        now = time.monotonic()
        if not self._ending and now - self._newest >= BURST:
            self._newest = now
            raise KeyboardInterrupt

    def install(self) -> None:
        """Handle the signals that nobody handles or ignores."""
        unhandled = (signal.SIG_DFL, signal.default_int_handler)
        for number in (signal.SIGINT, signal.SIGTERM, signal.SIGHUP):
            if signal.getsignal(number) in unhandled:
                signal.signal(number, self)

    def end(self) -> None:
        """Ignore signals while the process ends: everything is saved."""
        self._ending = True


def _warn(message: Warning | str, *_: object, **__: object) -> None:
    note(_one_line(message), word="warning: ", style="yellow")


def main() -> None:
    """Run the command line. An error is one line on standard error and a non-zero exit status."""
    warnings.showwarning = _warn
    _fill_descriptors()
    interrupts = _Interrupts()
    interrupts.install()
    if isinstance(sys.stdout, io.TextIOWrapper):
        sys.stdout.reconfigure(errors="replace")  # the terminal may lack characters
    try:
        try:
            app()
        finally:
            interrupts.end()
            if sys.stdout:  # report a full disk or a closed pipe now, not as Python exits
                sys.stdout.flush()
    except KeyboardInterrupt:
        sys.exit(130)
    except BrokenPipeError:  # the reader closed the pipe, as `… | head` does
        _drop_output()
        sys.exit(1)
    except Corrupt as error:
        _fail(f"{_one_line(error)}{'' if 'recover' in sys.argv else REPAIR}")
    except (StoreError, ValueError, TypeError, OSError, FloatingPointError) as error:
        _fail(_one_line(error))
    except MemoryError:
        _fail("not enough memory")
    except RuntimeError as error:  # of torch, which has no type for it on a CPU
        if "allocate memory" not in str(error) and "out of memory" not in str(error):
            raise
        _fail("not enough memory for the model or its windows")


def _fail(message: str) -> NoReturn:
    note(message, word="error: ", style="bold red")
    _drop_output()
    sys.exit(1)


def _fill_descriptors() -> None:
    """Open closed standard streams on nothing: a file of a session must not take their numbers."""
    for number in (0, 1, 2):
        try:
            os.fstat(number)
        except OSError:
            os.open(os.devnull, os.O_RDWR)  # takes the lowest free number, which is this one
    if sys.stdout is None:  # commands do their work although nobody reads what they print
        sys.stdout = open(os.devnull, "w", encoding="utf-8")  # noqa: SIM115 - as long as we run


def _drop_output() -> None:
    """Discard output that cannot be written, so that Python does not report it on exit."""
    try:
        sys.stdout.flush()
    except OSError:
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())


def _one_line(error: Exception | str) -> str:
    if isinstance(error, OSError) and error.strerror and error.filename:
        return f"{error.filename}: {error.strerror}"
    text = " ".join(str(error).split()) or type(error).__name__
    return text if len(text) <= 600 else f"{text[:600]}…"
