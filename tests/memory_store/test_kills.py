"""kill -9 at random moments, repeatedly: no acknowledged commit is lost."""

import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest

from memory_store import Commit, DirectoryStore, LogRows, Snapshot, Window
from tests.support.stores import ROOT, assert_equal, described, new_store, rows_of


def snapshot(position: int, writer: int, tokens: list[int]) -> Snapshot:
    """The snapshot of `writer` at a position; a function of its arguments only."""
    slots = np.arange(position * 40, dtype=np.int64).reshape(1, -1)[:, -2000:]
    rows = {"keys": LogRows(position - 1, row(position - 1)[None])} if position else {}
    return Snapshot(
        position,
        {"w": Window(slots, 1, position * 40, 2000)},
        {"by": np.array([writer, position])},
        np.array(tokens, np.int32),
        {"writer": writer},
        rows,
    )


def row(position: int) -> np.ndarray:
    """The row of a log at a position."""
    return np.arange(position, position + 100, dtype=np.int16)


WRITERS = """
import os, random, signal, sys, time
from memory_store import Conflict, DirectoryStore
from tests.memory_store.test_kills import snapshot
path, wanted = sys.argv[1], int(sys.argv[2])
chance, acknowledged, rounds = random.Random(0), 0, 0

def work(writer, pipe):
    store, chance = DirectoryStore.open(path), random.Random(writer)
    while True:
        branch = chance.choice(["main", f"own-{writer % 3}"])
        head = store.head(branch)
        if head is None and branch != "main" and store.head("main"):
            store.publish(store.head("main"), branch=branch)
            continue
        position = head.position + 1 if head else 0
        tokens = [position] if head else []
        try:
            ref = store.commit(snapshot(position, writer, tokens), branch=branch, parent=head)
        except Conflict:
            continue
        line = f"{branch} {ref.seq} {ref.commit.name} {ref.commit.id} {position} {writer}"
        os.write(pipe, line.encode() + b"\\n")

while acknowledged < wanted or rounds < 5:
    children = []
    for i in range(3):
        read, write = os.pipe()
        child = os.fork()
        if child == 0:
            work(rounds * 3 + i, write)
        os.close(write)
        children.append((child, read))
    for child, read in chance.sample(children, 3):
        time.sleep(chance.uniform(0.002, 0.06))
        os.kill(child, signal.SIGKILL)
    for child, read in children:
        os.waitpid(child, 0)
        lines = open(read).read().splitlines()
        acknowledged += len(lines)
        print(*lines, sep="\\n", flush=True)
    rounds += 1
print("rounds", rounds)
"""


def test_no_acknowledged_commit_is_lost(tmp_path: Path) -> None:
    """Several short-lived writers at once, on a common branch and on their own branches."""
    path = tmp_path / "s.zarr"
    new_store(path, durability="full")
    command = [sys.executable, "-c", WRITERS, str(path), "100"]
    out = subprocess.run(command, cwd=ROOT, capture_output=True, text=True, check=True).stdout
    *lines, last = [line for line in out.splitlines() if line]
    rounds = int(last.removeprefix("rounds "))
    assert len(lines) >= 100 and rounds >= 5
    store = DirectoryStore.open(path)
    refs = {(ref.branch, ref.seq): ref for name in store.branches() for ref in store.refs(name)}
    for line in lines:
        branch, seq, name, id, position, writer = line.split()
        ref = refs[branch, int(seq)]
        assert ref.commit == Commit(name, id, int(position))
        tokens = [int(position)] if int(position) else []
        assert_equal(store.load(ref), snapshot(int(position), int(writer), tokens))
    # Each killed writer may have made one more commit before its acknowledgement.
    assert len(lines) <= len(refs) <= len(lines) + 2 * 3 * rounds
    for name in store.branches():
        head = store.head(name)
        assert head is not None
        log = store.tokens(head, 0, head.position).tolist()
        assert log == list(range(1, head.position + 1))
        assert rows_of(store, head, "keys") == {
            at: described(row(at)) for at in range(head.position)
        }
        resumed = store.load(head)
        following = snapshot(head.position + 1, -1, [head.position + 1])
        assert resumed.position == head.position
        assert_equal(store.load(store.commit(following, branch=name, parent=head)), following)
    store.verify()


NO_LINKS = """
import errno, os, sys
from memory_store import Conflict, DirectoryStore
from tests.memory_store.test_kills import snapshot
path, me, links = sys.argv[1], int(sys.argv[2]), sys.argv[3] == "links"

def refuse(*_):
    raise OSError(errno.EPERM, "Operation not permitted")

if not links:
    os.link = refuse
store, made, conflicts = DirectoryStore.open(path), 0, 0
sys.stdin.readline()
while made < 20:
    head = store.head("main")
    position = head.position + 1 if head else 0
    try:
        store.commit(snapshot(position, me, [position] if head else []), parent=head)
        made += 1
    except Conflict:
        conflicts += 1
print(conflicts)
"""


@pytest.mark.parametrize("links", ["links", "no links"])
def test_two_writers_race_from_the_first_commit_on(tmp_path: Path, links: str) -> None:
    path = tmp_path / "s.zarr"
    store = new_store(path)
    racers = [
        subprocess.Popen(
            [sys.executable, "-c", NO_LINKS, str(path), str(i), links],
            cwd=ROOT,
            text=True,
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
        )
        for i in range(2)
    ]
    for racer in racers:
        assert racer.stdin is not None
        racer.stdin.write("go\n")
        racer.stdin.flush()
    for racer in racers:
        racer.communicate(timeout=120)
        assert racer.returncode == 0
    refs = store.refs("main")
    assert [ref.position for ref in refs] == list(range(40))
    writers = [int(store.load(ref).arrays["by"][0]) for ref in refs]
    assert sorted(writers) == [0] * 20 + [1] * 20
    for ref, writer in zip(refs, writers, strict=True):
        tokens = [ref.position] if ref.position else []
        assert_equal(store.load(ref), snapshot(ref.position, writer, tokens))
    assert len(list((path / "commits").iterdir())) == 40  # losers leave nothing
    store.verify()
