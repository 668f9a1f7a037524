"""A simulated disk that loses power: records every change to a folder, and replays crashes.

`Recorder` wraps the functions of `os` that change files, and records every call as a step. `Disk`
replays steps and computes the states that a crash may leave. The rules are those of POSIX, not of
one filesystem: fsync of a file makes its bytes durable but not its name; fsync of a folder makes
its entries durable. Any other change may survive or not, in any order.
"""

import os
import random
import shutil
import threading
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import pytest

PIECE = 128  # bytes per recorded write
SECTOR = 512  # bytes that a disk writes atomically
write_really = os.write
ROOT = 0  # the node of the recorded folder; its own name is assumed to be durable


@dataclass(frozen=True)
class Make:
    """A new file or folder, not yet named."""

    node: int
    is_folder: bool


@dataclass(frozen=True)
class Write:
    """A write to a file; data of None truncates it at `offset`."""

    node: int
    offset: int
    data: bytes | None


@dataclass(frozen=True)
class Names:
    """An atomic change of entries in a folder; a node of None removes a name."""

    folder: int
    changes: tuple[tuple[str, int | None], ...]


@dataclass(frozen=True)
class Sync:
    """A completed fsync of a file or folder, at `path`."""

    node: int
    path: str


Step = Make | Write | Names | Sync
Image = dict[str, bytes | None]  # path → content; None is a folder


class Killed(BaseException):
    """The program was killed: its further calls have no effect."""


class Recorder:
    """Records the changes to the files in a folder.

    Attributes:
        steps: the recorded steps, in order.
        kill_at: the number of steps after which the program is killed; None for never.
    """

    def __init__(self, root: Path) -> None:
        self.root = os.path.realpath(root)
        self.steps: list[Step] = []
        self.kill_at: int | None = None
        self._tree: dict[int, dict[str, int]] = {ROOT: {}}
        self._paths = {ROOT: "."}
        self._opened: dict[int, tuple[int, int]] = {}  # descriptor → node, offset
        self._lock = threading.RLock()  # makes a call and its record atomic

    @contextmanager
    def recording(self) -> Iterator[None]:
        notes: dict[str, Callable[..., None]] = {
            **{"open": self._open, "close": self._close, "write": self._write},
            **{"writev": self._writev, "pwrite": self._pwrite},
            **{"ftruncate": self._ftruncate, "fsync": self._fsync},
            **{"mkdir": self._mkdir, "link": self._link, "rename": self._rename},
            **dict.fromkeys(("unlink", "rmdir", "remove"), self._unlink),
        }
        others = ("truncate", "symlink", "mkfifo", "mknod", "pwritev", "fdatasync")
        with pytest.MonkeyPatch.context() as patch:
            for name, note in notes.items():
                patch.setattr(os, name, self._noting(name, note))
            for name in (*others, "replace", "sendfile", "copy_file_range"):
                patch.setattr(os, name, lambda *_, name=name, **__: pytest.fail(f"{name}: unknown"))
            yield

    def _noting(self, name: str, note: Callable[..., None]) -> Callable[..., Any]:
        instead: dict[str, Callable[..., Any]] = {
            # Power is not lost while recording, so no real fsync is needed.
            "fsync": lambda fd: None,
            # Short writes are allowed, and allow crashes in between.
            "writev": lambda fd, buffers: write_really(fd, b"".join(buffers)[:PIECE]),
        }
        real = instead.get(name) or getattr(os, name)

        def call(*arguments: Any, **options: Any) -> Any:
            with self._lock:
                dead = self.kill_at is not None and len(self.steps) >= self.kill_at
                if dead and name != "close":  # the system closes the files of a killed process
                    raise Killed
                result = real(*arguments, **options)
                note(result, *arguments, **options)
                return result

        return call

    def _find(self, path: Any, dir_fd: int | None = None) -> tuple[int, str] | None:
        """A folder's node and a name in it; None outside of the recorded folder."""
        path = os.fspath(path)
        if dir_fd is not None:
            found = self._opened.get(dir_fd)
            return (found[0], path) if found else None
        folder = os.path.relpath(os.path.realpath(os.path.dirname(path)), self.root)
        node = ROOT
        for part in folder.split(os.sep) if folder != "." else ():
            if part not in self._tree[node]:
                return None
            node = self._tree[node][part]
        return node, os.path.basename(path)

    def _node(self, path: Any, dir_fd: int | None = None) -> int | None:
        if dir_fd is None and os.path.realpath(path) == self.root:
            return ROOT
        found = self._find(path, dir_fd)
        return None if found is None else self._tree[found[0]].get(found[1])

    def _make(self, place: tuple[int, str], *, is_folder: bool) -> int:
        node = len(self._paths)
        if is_folder:
            self._tree[node] = {}
        self.steps.append(Make(node, is_folder))
        self._change(place[0], (place[1], node))
        return node

    def _change(self, folder: int, *changes: tuple[str, int | None]) -> None:
        self.steps.append(Names(folder, changes))
        for name, node in changes:
            if node is None:
                del self._tree[folder][name]
            else:
                self._tree[folder][name] = node
                self._paths[node] = f"{self._paths[folder]}/{name}"

    def _open(
        self, fd: int, path: Any, flags: int, mode: int = 0o777, *, dir_fd: int | None = None
    ) -> None:
        node = self._node(path, dir_fd)
        if node is None and flags & os.O_CREAT and (place := self._find(path, dir_fd)):
            node = self._make(place, is_folder=False)
        if node is not None:
            assert not flags & (os.O_APPEND | os.O_TRUNC), "not modelled"
            self._opened[fd] = node, 0

    def _close(self, _: None, fd: int) -> None:
        self._opened.pop(fd, None)

    def _write(self, count: int, fd: int, data: Any) -> None:
        if fd in self._opened:
            node, offset = self._opened[fd]
            self.steps.append(Write(node, offset, bytes(data[:count])))
            self._opened[fd] = node, offset + count

    def _writev(self, count: int, fd: int, buffers: Any) -> None:
        self._write(count, fd, b"".join(buffers))

    def _pwrite(self, count: int, fd: int, data: Any, offset: int) -> None:
        if fd in self._opened:
            self.steps.append(Write(self._opened[fd][0], offset, bytes(data[:count])))

    def _ftruncate(self, _: None, fd: int, length: int) -> None:
        if fd in self._opened:
            self.steps.append(Write(self._opened[fd][0], length, None))

    def _fsync(self, _: None, fd: int) -> None:
        if fd in self._opened:
            node = self._opened[fd][0]
            self.steps.append(Sync(node, self._paths[node]))

    def _mkdir(self, _: None, path: Any, mode: int = 0o777, *, dir_fd: int | None = None) -> None:
        if place := self._find(path, dir_fd):
            self._make(place, is_folder=True)

    def _unlink(self, _: None, path: Any, *, dir_fd: int | None = None) -> None:
        if place := self._find(path, dir_fd):
            self._change(place[0], (place[1], None))

    def _link(self, _: None, source: Any, target: Any) -> None:
        node, place = self._node(source), self._find(target)
        if node is not None and place:
            self._change(place[0], (place[1], node))

    def _rename(self, _: None, source: Any, target: Any) -> None:
        node, old, new = self._node(source), self._find(source), self._find(target)
        if node is not None and old and new:
            assert old[0] == new[0], "not modelled: a rename to another folder"
            self._change(old[0], (old[1], None), (new[1], node))


@dataclass
class File:
    """A file of a `Disk`: its durable bytes, and the current ones."""

    durable: bytes = b""
    now: bytes = b""


@dataclass
class Folder:
    """A folder of a `Disk`: its durable entries, the current ones, and the changes between them."""

    durable: dict[str, int] = field(default_factory=dict)
    now: dict[str, int] = field(default_factory=dict)
    pending: list[Names] = field(default_factory=list)


class Disk:
    """The durable content of a disk and the content of the system's caches, after some steps."""

    def __init__(self) -> None:
        self.nodes: dict[int, File | Folder] = {ROOT: Folder()}

    def do(self, step: Step) -> None:
        """Apply one step."""
        if isinstance(step, Make):
            self.nodes[step.node] = Folder() if step.is_folder else File()
        elif isinstance(step, Write):
            file = self.nodes[step.node]
            assert isinstance(file, File)
            if step.data is None:
                file.now = file.now[: step.offset].ljust(step.offset, b"\0")
            else:
                before = file.now[: step.offset].ljust(step.offset, b"\0")
                file.now = before + step.data + file.now[step.offset + len(step.data) :]
        elif isinstance(step, Names):
            folder = self.nodes[step.folder]
            assert isinstance(folder, Folder)
            _rename(folder.now, step)
            folder.pending.append(step)
        else:
            node = self.nodes[step.node]
            node.durable = node.now if isinstance(node, File) else dict(node.now)
            if isinstance(node, Folder):
                node.pending = []

    def left(self, names: "ChooseNames", data: "ChooseData") -> Image:
        """The files after a crash; `names` and `data` choose which volatile changes survive."""
        image: Image = {}

        def visit(number: int, path: str) -> None:
            node = self.nodes[number]
            if isinstance(node, File):
                image[path] = node.now if node.now == node.durable else data(node)
                return
            if path:
                image[path] = None
            kept = node.now
            if node.pending:
                kept = dict(node.durable)
                for change in names(node.pending):
                    _rename(kept, change)
            for name, child in kept.items():
                visit(child, f"{path}/{name}" if path else name)

        visit(ROOT, "")
        return image


ChooseNames = Callable[[list[Names]], list[Names]]
ChooseData = Callable[[File], bytes]


def _rename(names: dict[str, int], step: Names) -> None:
    for name, node in step.changes:
        if node is None:
            names.pop(name, None)
        else:
            names[name] = node


def crashes(chance: random.Random) -> dict[str, tuple[ChooseNames, ChooseData]]:
    """Choices of the volatile changes that the system wrote to the disk without an fsync."""

    def torn(file: File) -> bytes:
        size = chance.randrange(len(file.now) + 1)
        sectors = [file.now[i : i + SECTOR] for i in range(0, len(file.now), SECTOR)]
        return chance.choice(
            [
                b"".join(chance.choice([part, bytes(len(part))]) for part in sectors),
                file.now[:size],
                bytes(len(file.now)),
                file.now[:size] + bytes(len(file.now) - size),
                bytes(size) + file.now[size:],
                file.durable,
            ]
        )

    def some(pending: list[Names]) -> list[Names]:
        return [change for change in pending if chance.random() < 0.5]

    def any_data(file: File) -> bytes:
        return file.now if chance.random() < 0.5 else torn(file)

    def newest(pending: list[Names]) -> list[Names]:
        return pending[-1:]

    return {
        "killed": (list, lambda file: file.now),  # no crash: every change survives
        "nothing": (lambda pending: [], lambda file: file.durable),
        "names only": (list, lambda file: file.durable),
        "torn": (list, torn),
        "newest names": (newest, lambda file: file.now),
        "some": (some, any_data),
    }


class Site:
    """A folder that is set to images in turn; only differences to the last image are written."""

    def __init__(self, path: Path) -> None:
        self.path = path
        self._image: Image = {}

    def lay(self, image: Image) -> None:
        """Set the folder's content to `image`."""
        for path in sorted(self._image, reverse=True):  # the content of a folder before the folder
            if path not in image or image[path] != self._image[path]:
                at = self.path / path
                if self._image[path] is not None:
                    at.unlink()
                elif path not in image or image[path] is not None:
                    shutil.rmtree(at)
        for path in sorted(image):
            if path not in self._image or image[path] != self._image[path]:
                content, at = image[path], self.path / path
                if content is None:
                    at.mkdir()
                else:
                    at.write_bytes(content)
        self._image = image

    def clear(self) -> None:
        """Empty the folder, after other writes to it."""
        shutil.rmtree(self.path)
        self.path.mkdir()
        self._image = {}
