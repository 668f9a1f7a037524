"""Races: several processes begin one session at the same moment."""

import os
from pathlib import Path

import streamlm
from memory_store import DirectoryStore, StoreError
from streamlm.checkpoints.checkpoint import Checkpoint
from tests.soak.commands import Tally

TEXTS = ("The first of them tells of a whale. ", "Another one tells of a lighthouse. ")


def races(folder: Path, model: Checkpoint, count: int) -> Tally:
    """Let two processes begin a session, `count` times: who is told ok has its text in it."""
    tally = Tally()
    for number in range(count):
        path = folder / f"{number}.zarr"
        begin, go = os.pipe()
        racers = [_racer(path, model, text * 2, begin) for text in TEXTS]
        os.close(begin)
        os.write(go, b"..")
        os.close(go)
        ended = [_ended(*racer) for racer in racers]
        what = f"race {number}"
        for said in ended:
            tally.counts[said.partition(":")[0]] += 1
            tally.check(said.startswith(("ok", "refused")), f"{what}: {said}")
        tally.check("ok" in ended, f"{what}: none was told ok: {ended}")
        try:
            store = DirectoryStore.open(path)
            tally.check(not store.verify().unreferenced, f"{what}: commits without refs")
            head = store.head("main")
            ids = [] if head is None else store.tokens(head, 0, head.position)
        except StoreError as error:
            tally.faults.append(f"{what}: {error}")
            continue
        text = model.tokenizer.decode(ids)
        for said, own in zip(ended, TEXTS, strict=True):
            tally.check(said != "ok" or own.strip() in text, f"{what}: {own!r} is not in {text!r}")
    return tally


def _racer(path: Path, model: Checkpoint, text: str, begin: int) -> tuple[int, int]:
    """A process that waits for a byte, begins the session, and says how it ended."""
    read, write = os.pipe()
    child = os.fork()
    if child == 0:
        os.close(read)
        said = "ok"
        try:
            os.read(begin, 1)
            with streamlm.open(path, model) as session:
                session.feed(text)
        except StoreError as error:
            said = f"refused: {error}"
        except BaseException as error:
            said = f"fault: {error!r}"
        finally:
            os.write(write, said.encode())
            os._exit(0)
    os.close(write)
    return child, read


def _ended(child: int, read: int) -> str:
    os.waitpid(child, 0)
    with open(read, "rb") as pipe:
        return pipe.read().decode()
