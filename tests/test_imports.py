"""What the source may import, what it may name, and that its version is one."""

import ast
import functools
import json
import os
import re
import subprocess
import sys
import tomllib
from collections.abc import Iterator
from graphlib import CycleError, TopologicalSorter
from importlib.util import find_spec
from pathlib import Path

import pytest

ROOT = Path(__file__).resolve().parents[1]

# The rooms of each package, lowest first. A room is a folder of the package, or a module beside
# them; it imports from rooms of rows before its own, and from itself. The package's own name is
# what its `__init__` offers.
ROOMS: dict[str, tuple[set[str], ...]] = {
    "streamlm": (
        {"config", "documents", "transfer", "units"},
        {"state"},
        {"memory"},
        {"models"},
        {"checkpoints"},
        {"runtime"},
        {"sessions", "training"},
        {"plots"},
        {"engine", "lab", "forecast", "jobs"},
        {"streamlm"},
        {"cli"},
        {"__main__", "quickstart"},
    ),
    "memory_store": (
        {"errors", "types"},
        {"backend", "protocol"},
        {"format"},
        {"backends", "history"},
        {"upkeep"},
        {"store"},
        {"media"},
        {"places"},
        {"memory_store"},
    ),
    "apps.demo": (
        {"arguments", "jobs", "models", "room", "uploads"},
        {"shelf"},
        {"render"},
        {"example", "quotes", "recalling"},
        {"chatting", "expiry", "reading", "unfinished"},
        {"app_state", "writing"},
        {"endpoints", "tabs"},
        {"page"},
        {"serving"},
        {"demo"},
    ),
    "apps.server": (
        {"errors", "keys", "logs", "metrics"},
        {"settings"},
        {"shelves"},
        {"service"},
        {"fields", "guard", "middleware", "sse"},
        {"bodies"},
        {"asked", "choices", "logprobs", "messages", "status"},
        {"answering", "response_shapes"},
        {"chat", "completions", "sessions", "texts"},
        {"responses", "transfer"},
        {"app"},
        {"lifecycle"},
        {"launch"},
        {"server"},
    ),
}

# What the packages must not import: the others above them, and the libraries below them.
FORBIDDEN = {
    "tokenizer": {"torch", "streamlm", "memory_store", "apps", "tests", "benchmarks"},
    "memory_store": {"torch", "streamlm", "tokenizer", "apps", "tests", "benchmarks"},
    "streamlm": {"apps", "tests", "benchmarks"},
    "apps": {"torch", "tests", "benchmarks"},  # no model logic
}

# Loaded when used, never by `import streamlm`.
HEAVY = {
    *("zarr", "google_crc32c", "obstore", "gradio", "matplotlib"),
    *("sentencepiece", "typer", "rich", "pandas", "pypdf"),
    *("ray", "zstandard"),
    *("tokenizers", "jinja2", "starlette", "uvicorn", "prometheus_client", "anyio"),
    "tensorboard",
}

# Home folders and work folders of one machine; written so that this line does not match itself.
MACHINE_PATH = re.compile(r"(?<![\w.~-])/(?:work|root|farm|(?:home|Users)/\w+)/|[A-Z]:\\Users\\")


def imported(source: str) -> Iterator[str]:
    """Every dotted name that `source` imports, in functions and for type checking too."""
    for node in ast.walk(ast.parse(source)):
        if isinstance(node, ast.Import):
            yield from (alias.name for alias in node.names)
        elif isinstance(node, ast.ImportFrom):
            assert node.level == 0, f"relative import in line {node.lineno}"
            yield from (f"{node.module}.{alias.name}" for alias in node.names)


def folder_of(package: str) -> Path:
    return ROOT.joinpath(*package.split("."))


def own(package: str) -> str:
    """The room of a package's `__init__`: the last part of its name."""
    return package.rpartition(".")[2]


@functools.cache
def rooms(package: str) -> set[str]:
    """The folders with code in them and the modules of a package, by name."""
    folder = folder_of(package)
    names = {path.relative_to(folder).parts[0] for path in folder.rglob("*.py")}
    return {own(package) if name == "__init__.py" else name.removesuffix(".py") for name in names}


def room_of(package: str, dotted: str) -> str:
    """The room that a dotted name within a package leads to."""
    name = dotted.removeprefix(f"{package}.").partition(".")[0]
    return name if name in rooms(package) else own(package)


def violations(package: str, room: str, source: str) -> list[str]:
    """The imports in `source` that the rules refuse for a room of `package`."""
    level = {name: at for at, row in enumerate(ROOMS.get(package, ())) for name in row}
    found = []
    for dotted in imported(source):
        if dotted.split(".")[0] in FORBIDDEN[package.split(".")[0]]:
            found.append(f"{package}.{room} imports {dotted}")
        elif level and f"{dotted}.".startswith(f"{package}."):
            target = room_of(package, dotted)
            if target != room and level[target] >= level[room]:
                found.append(f"{package}.{room} imports {dotted}, which is not below it")
    return found


@pytest.mark.parametrize("package", sorted({*FORBIDDEN, *ROOMS}))
def test_imports_run_one_way(package: str) -> None:
    folder = folder_of(package)
    paths = sorted(folder.rglob("*.py"))
    assert paths, f"{package} has no modules"
    found = []
    for path in paths:
        room = path.relative_to(folder).parts[0].removesuffix(".py")
        room = own(package) if room == "__init__" else room
        found += violations(package, room, path.read_text(encoding="utf-8"))
    assert not found, "\n".join(found)


@pytest.mark.parametrize("package", ROOMS)
def test_every_room_has_a_row(package: str) -> None:
    assert rooms(package) - {own(package)} <= set().union(*ROOMS[package])


def modules(package: str) -> dict[str, str]:
    """The source of each module of a package, by its dotted name."""
    found = {}
    for path in sorted((ROOT / package).rglob("*.py")):
        name = ".".join(path.relative_to(ROOT).with_suffix("").parts)
        found[name.removesuffix(".__init__")] = path.read_text(encoding="utf-8")
    return found


def circle(sources: dict[str, str]) -> list[str]:
    """Modules that import each other in a circle, the first one twice; empty if there are none."""
    graph: dict[str, set[str]] = {name: set() for name in sources}
    for name, source in sources.items():
        for dotted in imported(source):
            while dotted and dotted not in sources:  # the module that defines the name
                dotted = dotted.rpartition(".")[0]
            if dotted and dotted != name:
                graph[name].add(dotted)
    try:
        TopologicalSorter(graph).prepare()
    except CycleError as error:
        return list(error.args[1])
    return []


@pytest.mark.parametrize("package", FORBIDDEN)
def test_no_module_imports_itself_by_way_of_others(package: str) -> None:
    assert not (found := circle(modules(package))), " -> ".join(found)


def test_circles_are_seen() -> None:
    around = {"p": "", "p.a": "from p.b import x", "p.b": "import p.c", "p.c": "from p import a"}
    assert set(circle(around)) == {"p.a", "p.b", "p.c"}
    assert not circle({**around, "p.c": "import q.a"})


@pytest.mark.parametrize(
    ("package", "room", "source", "refused"),
    [
        ("streamlm", "models", "from streamlm.state import State", False),
        ("streamlm", "models", "from streamlm.models.heads.linformer import Linformer", False),
        ("streamlm", "models", "from streamlm.sessions.session import Session", True),
        ("streamlm", "models", "from streamlm import sessions", True),
        ("streamlm", "models", "def f():\n    import streamlm.sessions.session", True),
        ("streamlm", "sessions", "import streamlm.training.trainer", True),
        ("streamlm", "models", "from streamlm import __version__", True),
        ("streamlm", "cli", "from streamlm import Session", False),
        ("streamlm", "config", "from streamlm.models.layers.positions import sinusoid", True),
        ("streamlm", "cli", "def demo():\n    from apps.demo.serving.launch import run", True),
        ("streamlm", "sessions", "import apps", True),
        ("tokenizer", "stream", "import torch.nn", True),
        ("memory_store", "format", "from streamlm.state import State", True),
        ("memory_store", "format", "import zarr", False),
        ("memory_store", "format", "from memory_store.history.refs import Refs", True),
        ("memory_store", "errors", "from memory_store.types import Ref", True),
        ("memory_store", "store", "from memory_store import Ref", True),
        ("apps.demo", "tabs", "from apps.demo import reading", False),
        ("apps.demo", "tabs", "from apps.demo.page import build", True),
        ("apps.demo", "tabs", "from apps.demo import page", True),
        ("apps.demo", "page", "def f():\n    import apps.demo.serving.server", True),
        ("apps.demo", "page", "import torch", True),
    ],
)
def test_the_rules_refuse(package: str, room: str, source: str, refused: bool) -> None:
    assert bool(violations(package, room, source)) == refused


def test_import_streamlm_is_light() -> None:
    code = "import json, sys, streamlm; print(json.dumps(sorted(sys.modules)))"
    result = subprocess.run(
        [sys.executable, "-c", code], cwd=ROOT, capture_output=True, text=True, check=True
    )
    loaded = {name.split(".")[0] for name in json.loads(result.stdout)}
    assert "streamlm" in loaded
    assert not loaded & HEAVY


# What is there at once; torch alone takes longer than the rest of it.
LIGHT = (
    "import streamlm",
    "from streamlm import __version__",
    "import tokenizer, memory_store",
    "from streamlm.cli.app import main; sys.argv[1:] = ['--help']; main()",
    "from streamlm.cli.app import main; sys.argv[1:] = ['generate', '--help']; main()",
    "from streamlm.cli.app import main; sys.argv[1:] = ['sessions', 'list']; main()",
    "from streamlm.cli.app import main; sys.argv[1:] = ['serve', '--host', '0.0.0.0']; main()",
)
WITH_GRADIO = (
    "from apps.demo.serving import server",
    "from streamlm.cli.app import main; sys.argv[1:] = ['demo', '--mcp', '--auth', 'a:b']; main()",
)
# One process runs them all: what the first of them needs, it loads itself.
ONE_BY_ONE = """
import contextlib, json, sys
for code in json.load(sys.stdin):
    with contextlib.suppress(SystemExit):
        exec(code)
    print(f"torch after {code}: {'torch' in sys.modules}")
"""


def test_torch_is_loaded_when_it_is_used(tmp_path: Path) -> None:
    codes = [*LIGHT, *(WITH_GRADIO if find_spec("gradio") else ())]
    ended = subprocess.run(
        [sys.executable, "-c", ONE_BY_ONE],
        cwd=tmp_path,
        env=os.environ | {"PYTHONPATH": str(ROOT)},
        input=json.dumps(codes),
        capture_output=True,
        text=True,
    )
    told = [line for line in ended.stdout.splitlines() if line.startswith("torch after ")]
    wanted = [f"torch after {code}: False" for code in codes]
    assert told == wanted, ended.stdout + ended.stderr


def test_the_public_names_are_there() -> None:
    import streamlm
    from streamlm import Checkpoint, Session, load
    from streamlm import open as open_session
    from streamlm.sessions.opening import open_session as same

    assert set(streamlm.__all__) <= set(dir(streamlm))
    assert open_session is same and Checkpoint.__name__ == "Checkpoint"
    assert Session.__name__ == "Session" and load.__name__ == "load_checkpoint"
    with pytest.raises(AttributeError, match="no attribute 'lode'"):
        _ = streamlm.lode  # type: ignore[attr-defined]


def test_version_is_one() -> None:
    import streamlm

    project = tomllib.loads((ROOT / "pyproject.toml").read_text(encoding="utf-8"))["project"]
    assert streamlm.__version__ == project["version"]


def project_files() -> list[Path]:
    """The files git tracks or would add; without git, every file outside hidden folders."""
    command = ["git", "ls-files", "-z", "--cached", "--others", "--exclude-standard"]
    try:
        listed = subprocess.run(command, cwd=ROOT, capture_output=True, text=True, check=True)
        paths = [ROOT / name for name in listed.stdout.split("\0") if name]
    except (OSError, subprocess.CalledProcessError):
        top = [path for path in ROOT.iterdir() if not path.name.startswith(".")]
        paths = [path for entry in top for path in (entry, *entry.rglob("*"))]
    return [path for path in paths if path.is_file() and not path.is_symlink()]


def test_no_file_names_a_machine_path() -> None:
    paths = project_files()
    assert Path(__file__).resolve() in paths
    found = []
    for path in paths:
        try:
            text = path.read_text(encoding="utf-8")
        except UnicodeDecodeError:
            continue  # a binary file
        for number, line in enumerate(text.splitlines(), start=1):
            if match := MACHINE_PATH.search(line):
                found.append(f"{path.relative_to(ROOT)}:{number}: {match.group()}")
    assert not found, "\n".join(found)


def test_machine_paths_are_seen() -> None:
    for folder in ("work", "root", "home/ada", "Users/ada"):
        assert MACHINE_PATH.search(f"see /{folder}/main") and MACHINE_PATH.search(f"'/{folder}/x'")
    for harmless in ("https://example.org/{}/main", "~/{}/main", "./{}/x", "/tmp/{}.x"):
        assert not MACHINE_PATH.search(harmless.format("work"))
