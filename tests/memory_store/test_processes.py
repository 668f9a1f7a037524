"""Several processes write to one session: they race, and they are killed."""

import subprocess
import sys
from pathlib import Path

import numpy as np

from memory_store import Snapshot, Window
from tests.support.stores import ROOT, new_store


def run(code: str, *arguments: object) -> subprocess.Popen[str]:
    command = [sys.executable, "-c", code, *map(str, arguments)]
    return subprocess.Popen(command, cwd=ROOT, stdout=subprocess.PIPE, text=True)


RACE = """
import sys
import numpy as np
from memory_store import Conflict, DirectoryStore, Snapshot, Window
path, me = sys.argv[1], int(sys.argv[2])
store, made = DirectoryStore.open(path), 0
while made < 12:
    head = store.head("main")
    past = store.load(head)
    window = past.windows["w"]
    data = np.append(window.data, np.int64(me * 1000 + made))[-8:]
    position = past.position + 1
    snapshot = Snapshot(
        position, {"w": Window(data, 0, window.end + 1, 8)}, tokens=np.array([me * 1000 + made])
    )
    try:
        ref = store.commit(snapshot, parent=head)
    except Conflict:
        continue
    made += 1
    print(ref.seq, ref.commit.name, me * 1000 + made - 1, flush=True)
"""


def test_racing_writers_lose_nothing(tmp_path: Path) -> None:
    path = tmp_path / "s.zarr"
    store = new_store(path)
    empty = Window(np.zeros(0, np.int64), 0, 0, 8)
    store.commit(Snapshot(0, {"w": empty}), parent=None)
    writers = [run(RACE, path, i) for i in range(4)]
    acknowledged = {}
    for writer in writers:
        out, _ = writer.communicate(timeout=120)
        assert writer.returncode == 0
        for line in out.splitlines():
            seq, name, token = line.split()
            acknowledged[int(seq)] = (name, int(token))
    refs = store.refs("main")
    assert [ref.seq for ref in refs] == list(range(49))
    assert acknowledged.keys() == set(range(1, 49))
    assert {ref.seq: ref.commit.name for ref in refs[1:]} == {
        seq: name for seq, (name, _) in acknowledged.items()
    }
    # Each commit continues the one before: the log holds all tokens in the order of the refs.
    log = [acknowledged[seq][1] for seq in range(1, 49)]
    assert store.tokens(refs[-1], 0, 48).tolist() == log
    assert store.load(refs[-1]).windows["w"].data.tolist() == log[-8:]
    assert len(list((path / "commits").iterdir())) == 49  # losers leave nothing
    store.verify()


KILLED = """
import os, random, signal, sys, time
import numpy as np
from memory_store import DirectoryStore, Snapshot, Window
path, times = sys.argv[1], int(sys.argv[2])
rng = random.Random(0)

def snapshot(position):
    slots = np.arange(position * 500).reshape(1, -1)[:, -20_000:]
    return Snapshot(
        position,
        {"w": Window(slots, 1, position * 500, 20_000)},
        tokens=np.array([position] if position else [], int),
    )

def work(pipe):
    store = DirectoryStore.open(path)
    head = store.head("main")
    while True:
        head = store.commit(snapshot(head.position + 1 if head else 0), parent=head)
        os.write(pipe, b"%d\\n" % head.position)

for _ in range(times):
    read, write = os.pipe()
    child = os.fork()
    if child == 0:
        work(write)
    os.close(write)
    time.sleep(rng.uniform(0.002, 0.15))
    os.kill(child, signal.SIGKILL)
    os.waitpid(child, 0)
    acknowledged = open(read).read().split()
    store = DirectoryStore.open(path)
    head = store.head("main")
    last = int(acknowledged[-1]) if acknowledged else -1
    reached = head.position if head else -1
    assert last <= reached, (last, reached)
    if head:
        found, expected = store.load(head), snapshot(head.position)
        assert np.array_equal(found.windows["w"].data, expected.windows["w"].data)
        assert store.tokens(head, 0, reached).tolist() == list(range(1, reached + 1))
    print(last, reached, flush=True)
store.verify()
"""


def test_killed_writers_lose_nothing(tmp_path: Path) -> None:
    path = tmp_path / "s.zarr"
    new_store(path, durability="full")
    process = run(KILLED, path, 20)
    out, _ = process.communicate(timeout=120)
    assert process.returncode == 0
    rounds = [tuple(map(int, line.split())) for line in out.splitlines()]
    assert len(rounds) == 20
    assert rounds[-1][1] >= 5  # commits were made, and each round continued the one before
