"""What must travel to a GPU that is borrowed bare: data as packs, and the wheels it lacks."""

import shutil
import subprocess
import sys
import tempfile
import zipfile
from collections.abc import Callable, Collection
from importlib.metadata import version
from pathlib import Path

from benchmarks.gpu_parts.packs import data_files, pack_name, write_packs
from tokenizer import Tokenizer

LIMIT = 64 << 20  # bytes that can travel, the tree included
# The store imports it; Zarr it imports only for looking around, and Zarr's own needs are too large.
WHEELS = ("google-crc32c",)
PACKS, SITE = "packs", "wheels"

COMMANDS = """
First command, 200 s at most, and what it is for: is it right, how fast is it?

    {python} -m benchmarks.gpu --parts card right decode feed attention tests --limit 190 {rest}

Second command, 570 s at most: training, and what came of it.

    {python} -m benchmarks.gpu --parts card train streaming --train-seconds 430 --limit 545 {rest}

Both run in the root of the tree, with {folder} in it. What they leave in $OUT comes back.
"""


def carry(
    root: Path,
    recipe: Path,
    data: Path,
    folder: Path,
    tokenizer: Tokenizer,
    *,
    without: Collection[str] = (),
    python: str = "3.12",
    tell: Callable[[str], None] = print,
) -> int:
    """Assemble `folder`, and say how large all is that must travel, in bytes.

    Args:
        root: of the working tree.
        without: packs to leave out, by name.
        python: version on the other machine, for the wheels; "" takes none along.

    Raises:
        FileNotFoundError: no data.
        ValueError: it is more than can travel; says what is large.
    """
    files = [path for path in data_files(recipe, data) if pack_name(path) not in without]
    write_packs(files, tokenizer, folder / PACKS, tell=tell)
    wanted = {pack_name(path) for path in files}
    for path in (folder / PACKS).iterdir():
        if pack_name(path) not in wanted:
            path.unlink()
    if python:
        try:
            fetch_wheels(folder / SITE, python)
        except subprocess.CalledProcessError as error:
            tell(f"no wheels, so no sessions on disk there: {error.stderr.strip()[-300:]}")
    sizes = {
        "the tree": tree_bytes(root, folder),
        **{path.name: folder_bytes(path) for path in sorted(folder.iterdir())},
    }
    for name, size in sizes.items():
        tell(f"{name}: {size / 2**20:.1f} MiB")
    total = sum(sizes.values())
    if total > LIMIT:
        largest = sorted(folder.glob(f"{PACKS}/*.xz"), key=lambda path: path.stat().st_size)
        names = ", ".join(pack_name(path) for path in reversed(largest))
        raise ValueError(
            f"{total / 2**20:.1f} MiB would travel; allowed: {LIMIT / 2**20:.0f}. Leave packs out "
            f"with --without, largest first: {names}"
        )
    tell(f"together: {total / 2**20:.1f} MiB of {LIMIT / 2**20:.0f}")
    return total


def commands(folder: str, *, python: str = "python3", out: str = '"$OUT"') -> str:
    """What is to be run on the borrowed machine."""
    return COMMANDS.format(python=python, rest=f"--carried {folder} --out {out}", folder=folder)


def fetch_wheels(site: Path, python: str) -> None:
    """Unpack the wheels of WHEELS for another Python on x86-64 Linux, in the versions of here.

    Raises:
        subprocess.CalledProcessError: pip did not find them.
    """
    with tempfile.TemporaryDirectory() as downloads:
        command = [sys.executable, "-m", "pip", "download", "-q", "--no-deps", "-d", downloads]
        command += ["--only-binary=:all:", "--implementation", "cp", "--python-version", python]
        for platform in ("manylinux2014_x86_64", "manylinux_2_17_x86_64", "manylinux_2_28_x86_64"):
            command += ["--platform", platform]
        command += [f"{name}=={version(name)}" for name in WHEELS]
        subprocess.run(command, check=True, capture_output=True, text=True)
        shutil.rmtree(site, ignore_errors=True)
        for wheel in Path(downloads).glob("*.whl"):
            with zipfile.ZipFile(wheel) as archive:
                archive.extractall(site)


def tree_bytes(root: Path, folder: Path) -> int:
    """Bytes of all files of the working tree that git does not ignore, except those of `folder`."""
    command = ["git", "ls-files", "-z", "--cached", "--others", "--exclude-standard"]
    listed = subprocess.run(command, cwd=root, check=True, capture_output=True, text=True).stdout
    paths = {root / name for name in listed.split("\0") if name}
    apart = folder.resolve()
    return sum(
        path.stat().st_size
        for path in paths
        if path.is_file() and apart not in path.resolve().parents
    )


def folder_bytes(folder: Path) -> int:
    return sum(path.stat().st_size for path in folder.rglob("*") if path.is_file())
