"""Kills: processes that create a session, feed it and save it are killed at random moments."""

import os
import random
import signal
import time
import warnings
from pathlib import Path

import streamlm
from memory_store import DirectoryStore, places
from streamlm.checkpoints.checkpoint import Checkpoint
from tests.soak.commands import TEXT, Tally, limited

ROUNDS = 400  # feeds that a process makes unless it is killed before


def kills(folder: Path, model: Checkpoint, count: int, seed: int, *, most: float = 1.0) -> Tally:
    """Kill `count` processes, each within `most` seconds of its start; half of them at creation.

    What was acknowledged is there afterwards; the name is free, or the session goes on.
    """
    tally, chance = Tally(), random.Random(seed)
    whole = model.tokenizer.encode(TEXT * (ROUNDS + 1)).tolist()
    for number in range(count):
        path = folder / f"{number}.zarr"
        delay = chance.uniform(0, 0.03 if number % 2 else most)
        acknowledged = _killed(path, model, delay)
        tally.counts["killed before a commit" if acknowledged < 0 else "killed after a commit"] += 1
        what = f"kill {number} after {delay:.3f} s"
        if not places.occupied(path):
            tally.counts["the name is free"] += 1
            tally.check(acknowledged < 0, f"{what}: the session is lost")
        try:
            with warnings.catch_warnings(record=True) as said, limited():
                warnings.simplefilter("always")
                session = streamlm.open(path, model, save_every=16)
                position = session.position
                session.feed(TEXT)
                session.close()
        except Exception as error:
            tally.faults.append(f"{what}: {error!r}")
            continue
        tally.counts["took up a commit"] += len(said)
        tally.check(position >= acknowledged, f"{what}: at {position}, not {acknowledged}")
        store = DirectoryStore.open(path)
        head = store.head("main")
        log = [] if head is None else store.tokens(head, 0, head.position).tolist()
        tally.check(log == whole[: len(log)], f"{what}: another text")
        found = store.verify()
        tally.check(not found.unreferenced, f"{what}: {found.unreferenced}")
        store.delete()
    return tally


def _killed(path: Path, model: Checkpoint, delay: float) -> int:
    """The last position that a process acknowledged before it was killed; −1 for none."""
    read, write = os.pipe()
    child = os.fork()
    if child == 0:
        os.close(read)
        try:
            session = streamlm.open(path, model, save_every=16)
            for _ in range(ROUNDS):
                session.feed(TEXT)
                saved = session.save()
                os.write(write, b"%d\n" % saved.position)
        finally:
            os._exit(0)
    os.close(write)
    time.sleep(delay)
    os.kill(child, signal.SIGKILL)
    os.waitpid(child, 0)
    with open(read, "rb") as pipe:
        lines = pipe.read().split(b"\n")[:-1]  # the last one may be cut off
    return int(lines[-1]) if lines else -1
