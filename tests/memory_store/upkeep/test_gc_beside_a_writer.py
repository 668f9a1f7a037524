"""`gc` with no grace while another process commits: neither fails, and nothing is lost."""

import subprocess
import sys
from pathlib import Path

from tests.memory_store.test_kills import snapshot
from tests.support.stores import ROOT, assert_equal, new_store

WRITER = """
import sys
from memory_store import DirectoryStore
from tests.memory_store.test_kills import snapshot
store, head = DirectoryStore.open(sys.argv[1]), None
for position in range(60):
    head = store.commit(snapshot(position, 0, [position] if head else []), parent=head)
print(head.position)
"""


def test_gc_without_grace(tmp_path: Path) -> None:
    path = tmp_path / "s.zarr"
    store = new_store(path)
    writer = subprocess.Popen(
        [sys.executable, "-c", WRITER, str(path)], cwd=ROOT, stdout=subprocess.PIPE, text=True
    )
    collections = 0
    while writer.poll() is None:
        assert store.gc(grace=0).leftovers == 0
        collections += 1
    out, _ = writer.communicate()
    assert writer.returncode == 0 and out == "59\n" and collections
    assert store.verify().commits == 60
    head = store.head("main")
    assert head is not None
    assert_equal(store.load(head), snapshot(59, 0, [59]))


def test_a_killed_draft_is_a_leftover_all_the_same(tmp_path: Path) -> None:
    store = new_store(tmp_path / "s.zarr")
    head = store.commit(snapshot(0, 0, []), parent=None)
    whole = (store.path / "commits" / head.commit.name).read_bytes()
    draft = store.path / "commits" / f"000000000001-{'0' * 32}.zip"
    draft.write_bytes(whole[: len(whole) // 2])
    assert store.gc().leftovers == 0 and draft.exists()
    assert not store.verify().unreferenced
    assert store.gc(grace=0).leftovers == 1 and not draft.exists()
