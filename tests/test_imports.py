"""What the source may import, what it may name, and that its version is one."""

import ast
import json
import os
import re
import subprocess
import sys
import tomllib
from collections.abc import Iterator
from pathlib import Path

import pytest

ROOT = Path(__file__).resolve().parents[1]

# The modules of streamlm, lowest first. A module imports only from rows below its own; modules of
# one row do not import each other. "streamlm" stands for the public names in `streamlm/__init__`.
LAYERS: tuple[set[str], ...] = (
    {
        *("allocator", "config", "machine", "plots", "positions", "reports", "runs", "sources"),
        *("stops", "tensor_memory", "token_types", "transfer"),
    },
    {"state"},
    {"adaptive", "attention", "cache", "compression"},
    {"eviction", "layer", "train_step"},
    {"model"},
    {"heads"},
    {"checkpoint", "data", "losses", "snapshots", "stream"},
    {"drafter"},
    {"speculation"},
    {"memory_report", "text"},
    {"saving", "trail"},
    {"convert", "evaluate", "recipe", "session"},
    {"opening", "train"},
    {"draft_reading"},
    {"draft_training", "encoder", "forecast", "tasks"},
    {"laboratory", "leaks"},
    {"compare"},
    {"streamlm"},
    {"display"},
    {"compare_plot", "memory_view"},
    {"compare_report"},
    {"cli_common", "cli_later"},
    {"cli_convert", "cli_demo", "cli_draft", "cli_forecast", "cli_sessions", "cli_suite"},
    {"cli_upkeep"},
    {"cli_compare"},
    {"cli"},
    {"__main__", "quickstart"},
)
LEVEL = {module: level for level, row in enumerate(LAYERS) for module in row}

# Packages that a part of the project must not import. `cli_demo` alone may reach up: it starts the
# app.
FORBIDDEN = {
    "tokenizer": {"torch", "streamlm", "memory_store", "apps", "tests", "benchmarks"},
    "memory_store": {"torch", "streamlm", "tokenizer", "apps", "tests", "benchmarks"},
    "streamlm": {"apps", "tests", "benchmarks"},
    "apps": {"torch", "tests", "benchmarks"},  # no model logic
}
MAY_REACH_UP = {("cli_demo", "apps")}

# Loaded when used, never by `import streamlm`.
HEAVY = {
    *("zarr", "google_crc32c", "obstore", "gradio", "matplotlib"),
    *("sentencepiece", "typer", "rich", "pandas", "bs4", "pypdf"),
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


def streamlm_module(dotted: str) -> str:
    """The row entry that a dotted name belongs to: "heads" for `streamlm.heads.linformer.Head`."""
    parts = dotted.split(".")
    if len(parts) > 1 and (parts[1] in LEVEL or ".".join(parts[:2]) in submodules()):
        return parts[1]
    return "streamlm"


def submodules() -> set[str]:
    """`streamlm.x` for each module and each package with code in it, except `streamlm` itself."""
    folder = ROOT / "streamlm"
    names = {path.relative_to(folder).parts[0] for path in folder.rglob("*.py")}
    return {f"streamlm.{name.removesuffix('.py')}" for name in names - {"__init__.py"}}


def violations(package: str, module: str, source: str) -> list[str]:
    """The imports in `source` that the rules above refuse for `module` of `package`."""
    found = []
    for dotted in imported(source):
        top = dotted.split(".")[0]
        if top in FORBIDDEN[package] and (module, top) not in MAY_REACH_UP:
            found.append(f"{package}.{module} imports {dotted}")
        elif package == top == "streamlm":
            target = streamlm_module(dotted)
            # A name that the table lacks counts as above everything; see test_every_module_…
            if target != module and LEVEL.get(target, len(LAYERS)) >= LEVEL[module]:
                found.append(f"streamlm.{module} imports {dotted}, which is not below it")
    return found


@pytest.mark.parametrize("package", FORBIDDEN)
def test_imports_run_one_way(package: str) -> None:
    folder = ROOT / package
    paths = sorted(folder.rglob("*.py"))
    assert paths, f"{package} has no modules"
    found = []
    for path in paths:
        module = path.relative_to(folder).parts[0].removesuffix(".py")
        module = package if module == "__init__" else module
        found += violations(package, module, path.read_text(encoding="utf-8"))
    assert not found, "\n".join(found)


def test_every_module_has_a_row() -> None:
    missing = {name.removeprefix("streamlm.") for name in submodules()} - set(LEVEL)
    assert not missing, f"give {sorted(missing)} a row in LAYERS"


@pytest.mark.parametrize(
    ("package", "module", "source", "refused"),
    [
        ("streamlm", "model", "from streamlm.state import State", False),
        ("streamlm", "heads", "from streamlm.heads.linformer import Linformer", False),
        ("streamlm", "model", "from streamlm.session import Session", True),
        ("streamlm", "model", "from streamlm import session", True),
        ("streamlm", "model", "def f():\n    import streamlm.session", True),
        ("streamlm", "model", "from streamlm import __version__", True),
        ("streamlm", "cli", "from streamlm import Session", False),
        ("streamlm", "config", "from streamlm.positions import sinusoid", True),
        ("streamlm", "cli_demo", "def demo():\n    from apps.demo.launch import run", False),
        ("streamlm", "session", "import apps", True),
        ("tokenizer", "stream", "import torch.nn", True),
        ("memory_store", "zarr", "from streamlm.state import State", True),
        ("memory_store", "zarr", "import zarr", False),
    ],
)
def test_the_rules_refuse(package: str, module: str, source: str, refused: bool) -> None:
    assert bool(violations(package, module, source)) == refused


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
    "from streamlm.cli import main; sys.argv[1:] = ['--help']; main()",
    "from streamlm.cli import main; sys.argv[1:] = ['generate', '--help']; main()",
    "from streamlm.cli import main; sys.argv[1:] = ['sessions', 'list']; main()",
    "from streamlm.cli import main; sys.argv[1:] = ['demo', '--mcp', '--auth', 'a:b']; main()",
    "from apps.demo import server",
)


@pytest.mark.parametrize("code", LIGHT)
def test_torch_is_loaded_when_it_is_used(code: str, tmp_path: Path) -> None:
    if "server" in code:
        pytest.importorskip("gradio")
    said = f"import atexit, sys; atexit.register(lambda: print('torch' in sys.modules)); {code}"
    ended = subprocess.run(
        [sys.executable, "-c", said],
        cwd=tmp_path,
        env=os.environ | {"PYTHONPATH": str(ROOT)},
        capture_output=True,
        text=True,
    )
    assert ended.stdout.splitlines()[-1] == "False", ended.stdout + ended.stderr


def test_the_public_names_are_there() -> None:
    import streamlm
    from streamlm import Checkpoint, Session, load
    from streamlm import open as open_session
    from streamlm.opening import open_session as same

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
