"""Sessions on a full disk, and their memory over a long stream."""

import gc
import subprocess
import sys
from collections.abc import Callable, Iterator
from pathlib import Path
from types import FunctionType, ModuleType

import pytest
import torch

import streamlm
from memory_store import (
    StoreFull,
)
from streamlm.checkpoints.checkpoint import Checkpoint
from streamlm.sessions.session import Session
from tests.support.sessions import (
    Open,
    Prose,
    TokenLog,
)


@pytest.fixture
def small_disk(tmp_path: Path) -> Iterator[Callable[[str], Path]]:
    """Mounts and remounts a file system in memory of a given size."""
    folder = tmp_path / "disk"
    folder.mkdir()
    mounted = False

    def mount(size: str) -> Path:
        nonlocal mounted
        options = f"remount,size={size}" if mounted else f"size={size}"
        command = ["mount", "-t", "tmpfs", "-o", options, "tmpfs", str(folder)]
        try:
            subprocess.run(command, check=True, capture_output=True)
        except (OSError, subprocess.CalledProcessError):
            pytest.skip("needs the right to mount a small file system")
        mounted = True
        return folder

    yield mount
    if mounted:
        subprocess.run(["umount", str(folder)], check=True)


def test_a_full_disk_loses_nothing(
    small_disk: Callable[[str], Path], tiny: Checkpoint, text: str, token_log: TokenLog
) -> None:
    path = small_disk("300k") / "s.zarr"
    session = streamlm.open(path, tiny)
    n_fed = 0
    with pytest.raises(StoreFull, match="no space left"):
        for _ in range(60):
            session.feed([text[:100]])
            n_fed += 1
    assert 1 < n_fed < 60
    # The session stays usable, the last commit readable, and saving can be repeated.
    assert session.score(["the sea"]).tokens
    list(session.generate(max_tokens=3))
    with streamlm.open(path, tiny, readonly=True) as reader:
        assert session.saved is not None and reader.position == session.saved.position
        assert (
            token_log(path) == tiny.tokenizer.encode(text[:100] * n_fed).tolist()[: reader.position]
        )
    with pytest.raises(StoreFull):
        session.save()
    written = token_log(path)
    small_disk("3m")
    session.close()
    assert token_log(path)[: len(written)] == written
    with streamlm.open(path, tiny) as again:
        assert again.state.digest() == session.state.digest()
        assert again.position == session.position == len(token_log(path))


def bytes_held(*roots: object) -> int:
    """Bytes of all reachable objects except classes, functions and modules."""
    seen: dict[int, object] = {}
    storages: dict[int, int] = {}
    todo = list(roots)
    while todo:
        item = todo.pop()
        if id(item) in seen or isinstance(item, (type, FunctionType, ModuleType)):
            continue
        seen[id(item)] = item
        if isinstance(item, torch.Tensor) and item.is_mkldnn:  # weights, without a storage
            storages[id(item)] = item.nbytes
        elif isinstance(item, torch.Tensor):
            storages[item.untyped_storage().data_ptr()] = item.untyped_storage().nbytes()
        else:
            todo += gc.get_referents(item)
    return sum(map(sys.getsizeof, seen.values())) + sum(storages.values())


def test_a_session_takes_constant_memory(tiny: Checkpoint, prose: Prose) -> None:
    session = Session(tiny)
    held, positions = [], []
    for seed in range(5):
        session.feed([prose(320, seed=seed) + "\n\n"])
        list(session.generate(max_tokens=0))
        list(session.generate(max_tokens=-session.position % 16))
        assert session.position % 16 == 0
        mine = {name: part for name, part in vars(session._live).items() if name != "checkpoint"}
        held.append((session.state.nbytes, bytes_held(mine)))
        positions.append(session.position)
    assert positions[-1] > 200 * 16
    sizes = [size for _, size in held[1:]]  # all buffers are full after the first
    assert len({nbytes for nbytes, _ in held}) == 1
    # The lengths of the held-back text and of the token log vary.
    assert max(sizes) - min(sizes) < 8000
    assert sizes[0] > session.state.nbytes
    assert bytes_held([torch.zeros(1000), "x" * 1000]) > 5000  # the measure counts tensors and text


def test_saved_tokens_leave_memory(open_: Open, prose: Prose) -> None:
    session = open_(save_every=64)
    sizes = []
    for seed in range(3):
        session.feed([prose(200, seed=seed)])
        session.save()
        sizes.append(bytes_held(session._live.store.log, session._live.stream.recent))
    assert sizes[1] == sizes[2]
