"""README and docs are true: their Python runs, their commands exist, their links resolve."""

import json
import re
import shlex
import subprocess
import sys
from collections.abc import Callable, Iterator
from importlib.util import find_spec
from pathlib import Path
from typing import Any

import pytest
import typer

from streamlm.cli.app import app
from tests.support.chats import chat_folder

ROOT = Path(__file__).resolve().parents[1]
README = ROOT / "README.md"
DOCS = sorted((ROOT / "docs").glob("*.md"))
DEMO = ROOT / "apps" / "README.md"  # its Python needs a server: see test_demo_api
CARD = ROOT / "streamlm" / "assets" / "books" / "README.md"
PAGES = [README, *DOCS, DEMO]
MOST_LINES = 140  # of the README
DOWNLOADED = '("smollm2")'  # an argument of streamlm.load


def text_of(page: Path) -> str:
    assert page.is_file(), f"{page.relative_to(ROOT)} is missing from the repository"
    return page.read_text(encoding="utf-8")


def blocks(*languages: str, page: Path = README) -> list[str]:
    """The fenced blocks of a page in these languages."""
    fenced = re.findall(r"(?ms)^```(\S*)[^\n]*\n(.*?)^```$", text_of(page))
    return [block for language, block in fenced if language in languages]


def commands(*program: str) -> Iterator[list[str]]:
    """The words behind `program` of each line on any page that calls it."""
    for page in PAGES:
        for block in blocks("console", "bash", "sh", page=page):
            for line in block.replace("\\\n", " ").splitlines():
                words = shlex.split(line.removeprefix("$ "), comments=True)
                if words[: len(program)] == list(program):
                    yield words[len(program) :]


# -- Python -------------------------------------------------------------------------------------

SERVER = ROOT / "docs" / "server.md"  # its Python needs a server: see tests/server/test_docs.py
WITH_PYTHON = [page for page in (README, *DOCS) if blocks("python", page=page) and page != SERVER]


def test_the_main_pages_have_python() -> None:
    names = {page.stem for page in WITH_PYTHON}
    assert names >= {"README", "chat", "sessions", "models", "memory", "evaluation", "architecture"}


# Runs the scripts named in its arguments, each in a process of its own and in its own folder, and
# prints their exit statuses. The processes are forks of one that has imported torch, because
# importing it is most of what each would do.
RUN = """
import os, runpy, sys
import streamlm.sessions.opening
from pathlib import Path
for script in map(Path, sys.argv[1:]):
    child = os.fork()
    if not child:
        os.chdir(script.parent)
        os.dup2(os.open(script.with_suffix(".err"), os.O_CREAT | os.O_WRONLY), 2)
        os.dup2(os.open(os.devnull, os.O_WRONLY), 1)
        sys.argv, sys.path[0] = [str(script)], str(script.parent)
        try:
            runpy.run_path(str(script), run_name="__main__")
        except BaseException:
            sys.excepthook(*sys.exc_info())
            os._exit(1)
        sys.stdout.flush()
        os._exit(0)
    print(os.waitpid(child, 0)[1], flush=True)
"""


@pytest.fixture(scope="module")
def python_ran(
    tmp_path_factory: pytest.TempPathFactory, prose: Callable[..., str]
) -> dict[Path, tuple[str, str]]:
    """By page: the exit status and the standard error of all its blocks as one script.

    The script runs where there are a moby.txt and an other.txt.
    """
    scripts = []
    for page in WITH_PYTHON:
        script = "\n".join(blocks("python", page=page))
        assert "import streamlm" in script
        folder = tmp_path_factory.mktemp(page.stem)
        if DOWNLOADED in script:  # a tiny model that chats stands for it
            script = script.replace(DOWNLOADED, f"({str(chat_folder(folder / 'model'))!r})")
        (folder / "moby.txt").write_text(prose(400), encoding="utf-8")
        (folder / "other.txt").write_text(prose(50, seed=1), encoding="utf-8")
        (folder / "page.py").write_text(script, encoding="utf-8")
        scripts.append(folder / "page.py")
    ended = subprocess.run(
        [sys.executable, "-W", "error", "-c", RUN, *map(str, scripts)],
        env={"PYTHONPATH": str(ROOT), "OMP_NUM_THREADS": "1", "PYTHONUTF8": "1"},
        capture_output=True,
        text=True,
        encoding="utf-8",
    )
    assert ended.returncode == 0 and ended.stderr == "", ended.stderr
    errors = [script.with_suffix(".err").read_text(encoding="utf-8") for script in scripts]
    statuses = ended.stdout.split()
    return dict(zip(WITH_PYTHON, zip(statuses, errors, strict=True), strict=True))


@pytest.mark.parametrize("page", WITH_PYTHON, ids=lambda page: page.stem)
def test_python_runs(page: Path, python_ran: dict[Path, tuple[str, str]]) -> None:
    assert python_ran[page] == ("0", "")


# -- commands -----------------------------------------------------------------------------------


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
    return options_in(meant.command.get_help(meant))


def options_in(text: str) -> set[str]:
    return set(re.findall(r"(?<![\w-])--[\w-]+", text))


def options_of(words: list[str]) -> set[str]:
    return {word.partition("=")[0] for word in words if word.startswith("--")}


def test_commands_are_understood() -> None:
    given = list(commands("streamlm"))
    assert {words[0] for words in given} >= {"feed", "generate", "score", "sessions", "train"}
    for words in given:
        unknown = options_of(words) - parse(words)
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


def test_modules_exist() -> None:
    modules = {words[0] for python in ("python", "python3") for words in commands(python, "-m")}
    assert "pytest" in modules and "benchmarks.stream" in modules
    for module in modules:
        assert find_spec(module) is not None, f"python -m {module}: no such module"


HELP = """
import contextlib, io, json, runpy, sys
shown = []
for module, *words in json.load(sys.stdin):
    sys.argv, text = [module, *words, "--help"], io.StringIO()
    with contextlib.redirect_stdout(text), contextlib.suppress(SystemExit):
        runpy.run_module(module, run_name="__main__", alter_sys=True)
    shown.append(text.getvalue())
print(json.dumps(shown))
"""


def test_benchmarks_have_the_options() -> None:
    """One process asks every benchmark for its help, because importing torch takes time."""
    given = [
        words
        for python in ("python", "python3")
        for words in commands(python, "-m")
        if words[0].startswith("benchmarks.")
    ]
    # A word before all options is a subcommand, such as `join`.
    asked = [words[: 2 if words[1:] and not words[1].startswith("-") else 1] for words in given]
    ended = subprocess.run(
        [sys.executable, "-c", HELP],
        cwd=ROOT,
        input=json.dumps(asked),
        capture_output=True,
        text=True,
    )
    assert ended.returncode == 0, ended.stderr
    for words, text in zip(given, json.loads(ended.stdout), strict=True):
        assert "usage" in text.lower(), f"python -m {shlex.join(words)} has no --help"
        unknown = options_of(words) - options_in(text)
        assert not unknown, f"python -m {shlex.join(words)}: no {unknown} in --help"


# -- links --------------------------------------------------------------------------------------


def links(page: Path) -> list[str]:
    """The targets of links and images outside code."""
    text = re.sub(r"(?ms)^```.*?^```$", "", text_of(page))
    return re.findall(r"\]\(([^)\s]+)\)", re.sub(r"`[^`\n]*`", "", text))


def anchors(page: Path) -> set[str]:
    """The anchors of a page's headings, as GitHub makes them."""
    text = re.sub(r"(?ms)^```.*?^```$", "", text_of(page))
    titles = re.findall(r"(?m)^#+ +(.*)$", text)
    return {re.sub(r"[^\w\- ]", "", title.lower()).replace(" ", "-") for title in titles}


def broken(page: Path) -> list[str]:
    """The links of a page to files or headings that do not exist."""
    missing = []
    for link in links(page):
        if re.match(r"[a-z]+:", link):
            continue
        name, _, anchor = link.partition("#")
        target = (page.parent / name).resolve() if name else page
        inside = target.is_relative_to(ROOT) and target.exists()
        if not inside or (anchor and anchor not in anchors(target)):
            missing.append(link)
    return missing


@pytest.mark.parametrize("page", [*PAGES, CARD], ids=lambda page: str(page.relative_to(ROOT)))
def test_links_resolve(page: Path) -> None:
    assert not broken(page)


def test_broken_links_would_be_noticed(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(sys.modules[__name__], "ROOT", tmp_path)
    page = tmp_path / "page.md"
    page.write_text("# A b: c\n[1](#a-b-c) [2](#a) [3](gone.md) [4](https://x.org) [5](../x)\n")
    assert broken(page) == ["#a", "gone.md", "../x"]


def test_every_page_is_linked_from_the_readme() -> None:
    linked = {(ROOT / link.partition("#")[0]).resolve() for link in links(README)}
    assert set(DOCS) <= linked


def test_the_readme_is_short() -> None:
    assert len(text_of(README).splitlines()) <= MOST_LINES
