"""The README tells the truth: its Python runs, and its commands can be given as they stand."""

import re
import shlex
import subprocess
import sys
from collections.abc import Callable, Iterator
from itertools import chain
from pathlib import Path
from typing import Any

import pytest
import typer

from streamlm.cli.app import app

ROOT = Path(__file__).resolve().parents[1]
README = ROOT / "README.md"
DEMO = ROOT / "apps" / "README.md"  # its Python needs a server: see test_demo_api


def blocks(*languages: str, file: Path = README) -> list[str]:
    """The fenced blocks of a README in these languages."""
    assert file.is_file(), f"{file.relative_to(ROOT)} is missing from the repository"
    text = file.read_text(encoding="utf-8")
    found = re.findall(r"(?ms)^```(\S*)[^\n]*\n(.*?)^```$", text)
    return [block for language, block in found if language in languages]


def commands(program: str) -> Iterator[list[str]]:
    """The words behind `program` of each line that calls it, `$ ` in front or not."""
    shown = [blocks("console", "bash", "sh", file=file) for file in (README, DEMO)]
    for block in chain.from_iterable(shown):
        for line in block.replace("\\\n", " ").splitlines():
            words = shlex.split(line.removeprefix("$ "), comments=True)
            if words[:1] == [program]:
                yield words[1:]


def test_python_runs(tmp_path: Path, prose: Callable[..., str]) -> None:
    """All blocks as one script, as a reader would type them, where there is a moby.txt."""
    script = "\n".join(blocks("python"))
    assert "import streamlm" in script
    (tmp_path / "moby.txt").write_text(prose(400), encoding="utf-8")
    (tmp_path / "other.txt").write_text(prose(50, seed=1), encoding="utf-8")
    (tmp_path / "readme.py").write_text(script, encoding="utf-8")
    ended = subprocess.run(
        [sys.executable, "-W", "error", "readme.py"],
        cwd=tmp_path,
        env={"PYTHONPATH": str(ROOT), "OMP_NUM_THREADS": "1", "PYTHONUTF8": "1"},
        capture_output=True,
        text=True,
        encoding="utf-8",
    )
    assert ended.returncode == 0, ended.stderr
    assert ended.stderr == "" and ended.stdout.strip()


def parse(words: list[str]) -> set[str]:
    """Parse a command as `streamlm` would, without running it; returns the help's options.

    Raises:
        SystemExit, or an error of the parser: it would be refused.
    """
    command: Any = typer.main.get_command(app)
    context, name = None, "streamlm"
    while getattr(command, "commands", None):
        assert words and words[0] in command.commands, f"{name} has no command {words[:1]}"
        context = command.make_context(name, [words[0]], parent=context)
        name, *words = words
        command = command.commands[name]
    meant = command.make_context(name, list(words), parent=context)
    return set(re.findall(r"--[\w-]+", meant.command.get_help(meant)))


def test_commands_are_understood() -> None:
    given = list(commands("streamlm"))
    assert {words[0] for words in given} >= {"feed", "generate", "score", "sessions", "train"}
    for words in given:
        options = {word.partition("=")[0] for word in words if word.startswith("--")}
        unknown = options - parse(words)
        assert not unknown, f"streamlm {shlex.join(words)}: no {unknown} in --help"


@pytest.mark.parametrize(
    ("wrong", "message"),
    [
        ("feed x --sesion y", "--sesion"),
        ("feed x", "(?i)missing.*session"),
        ("sessions lst", "no command.*lst"),
        ("generate --top-k x", "integer"),
    ],
)
def test_wrong_commands_would_be_noticed(wrong: str, message: str) -> None:
    with pytest.raises(Exception, match=message):
        parse(wrong.split())


def test_make_targets_exist() -> None:
    targets = set(re.findall(r"(?m)^([\w.-]+):", (ROOT / "Makefile").read_text(encoding="utf-8")))
    named = {words[0] for words in commands("make")}
    assert named and named <= targets
