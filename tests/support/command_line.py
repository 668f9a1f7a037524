"""What the tests of the command line share."""

import io
import json
import re
import sys
from dataclasses import dataclass
from functools import cache
from pathlib import Path
from pkgutil import resolve_name
from typing import Any

import pytest
from typer.main import get_command

from memory_store import DirectoryStore
from streamlm.cli.app import app, main
from tests.support.stores import files
from tokenizer import Tokenizer, load_tokenizer

ROOT = Path(__file__).resolve().parents[2]
BOOKS = ROOT / "streamlm" / "assets" / "books"
COMMAND = [sys.executable, "-m", "streamlm"]
_tokenizers: dict[bytes, Tokenizer] = {}
NEEDS_MODEL = {"feed", "generate", "score", "rewind"}
READ_KEYS = {
    *("tokens", "bytes", "nats", "bits_per_byte", "seconds", "tokens_per_second", "position"),
    "skipped_bytes",
}


@dataclass(frozen=True)
class Result:
    """The exit status, standard output and standard error of a command."""

    status: int
    out: str
    err: str

    @property
    def json(self) -> Any:
        assert self.out.count("\n") == 1 and self.out.endswith("\n"), self.out
        return json.loads(self.out)


@cache
def assembled() -> Any:
    """The commands, which typer would assemble anew for each that is run."""
    return get_command(app)


class CommandLine:
    """Runs commands in this process, with the test's model for those that need one."""

    def __init__(
        self, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str], model: Path
    ) -> None:
        self._monkeypatch, self._capsys, self.model = monkeypatch, capsys, model

    def __call__(self, *arguments: object, stdin: bytes | None = b"") -> Result:
        argv = list(map(str, arguments))
        if NEEDS_MODEL & set(argv[:2]) and "--model" not in argv:
            argv += ["--model", str(self.model)]
        given = None if stdin is None else io.TextIOWrapper(io.BytesIO(stdin), encoding="utf-8")
        with self._monkeypatch.context() as patch:
            patch.setattr(sys, "argv", ["streamlm", *argv])
            patch.setattr(sys, "stdin", given)
            patch.setattr("streamlm.cli.app.app", assembled())
            with pytest.raises(SystemExit) as ended:
                main()
        code = ended.value.code
        captured = self._capsys.readouterr()
        return Result(code if isinstance(code, int) else 0, captured.out, captured.err)

    def works(self, *arguments: object, stdin: bytes | None = b"") -> Result:
        result = self(*arguments, stdin=stdin)
        assert result.status == 0, result.err
        return result


def known_tokenizer(path: Path) -> Tokenizer:
    """The tokenizer of a file; a command that loads one again would read its model for so long."""
    data = path.read_bytes()
    if data not in _tokenizers:
        _tokenizers[data] = load_tokenizer(path)
    return _tokenizers[data]


def left(folder: Path = Path("sessions")) -> dict[str, bytes]:
    """The contents of a store folder without locks, which every writer writes to."""
    return {name: data for name, data in files(folder).items() if not name.endswith("/.lock")}


def refuses(
    cli: CommandLine, message: str, *arguments: object, stdin: bytes | None = b"", status: int = 1
) -> None:
    """Assert that a command fails with a message and `status`, and changes no session."""
    before = left()
    result = cli(*arguments, stdin=stdin)
    assert result.status == status, result
    assert result.out == ""
    assert re.search(message, result.err), result.err
    if status == 1:
        assert re.fullmatch(r"(encoding .*\n)*error: .*\n", result.err), result.err
    assert left() == before
    assert not Path("sessions/new.zarr").exists()


def log(path: Path, branch: str = "main") -> list[int]:
    """The token ids of a session, from its beginning to its head."""
    store = DirectoryStore.open(path)
    head = store.head(branch)
    return [] if head is None else store.tokens(head, 0, head.position).tolist()


RECIPE = """
[data]
tokenizer = "{tokenizer}"
train = ["text.txt"]
valid = ["text.txt"]

[model]
n_layers = 1
d_model = 16
n_heads = 2
head_dim = 8
d_ff = 16
segment_len = 16
memory_len = 16
compressed_len = 8

[train]
steps = 4
batch_size = 2
checkpoint_steps = 2
eval_steps = 2
eval_tokens = 100
"""


def write_recipe(name: str = "recipe.toml", **replaced: str) -> None:
    """A small recipe, with some of its lines replaced: `steps="steps = 0"`."""
    text = RECIPE.format(tokenizer=BOOKS / "tokenizer.model")
    for key, line in replaced.items():
        text, found = re.subn(rf"(?m)^{key} = .*$", line, text)
        assert found == 1
    Path(name).write_text(text, encoding="utf-8")


def interrupt_after(monkeypatch: pytest.MonkeyPatch, name: str, calls: int) -> None:
    """Raise KeyboardInterrupt in the call of `name` after this many calls."""
    owner, _, attribute = name.rpartition(".")
    target = resolve_name(owner)
    original, made = getattr(target, attribute), 0

    def wrapped(*args: Any, **options: Any) -> Any:
        nonlocal made
        made += 1
        if made > calls:
            raise KeyboardInterrupt
        return original(*args, **options)

    monkeypatch.setattr(target, attribute, wrapped)
