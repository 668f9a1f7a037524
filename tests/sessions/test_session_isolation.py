"""Many sessions in one folder, used at random by several processes: none ever sees another.

Each visit is noted; afterwards every session is lived again on its own, in one process, and must
come out the same to the last bit.
"""

import json
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import streamlm
from memory_store import DirectoryStore
from streamlm.checkpoints.checkpoint import Checkpoint, load_checkpoint
from streamlm.sessions.session import Session

ROOT = Path(__file__).resolve().parents[2]
SECRETS = {name: f" {name} hides a {thing}." for name, thing in zip("ABC", "🐋漢é", strict=True)}


def visit(folder: Path, checkpoint: Checkpoint, note: dict[str, Any]) -> list[Any]:
    """Open a session, perform the recorded actions, and record the results."""
    path = folder / f"{note['name']}.zarr"
    with streamlm.open(path, checkpoint, branch=note["branch"], save_every=24, seed=5) as session:
        found = [do(session, action, value) for action, value in note["todo"]]
        refs = [(ref.seq, ref.position) for ref in session.history()]
        found += [session.state.digest(), session.position, session.tail, refs]
        # Before the lock is released, so that records follow the order of visits to a branch.
        with (folder / f"{note['name']}.jsonl").open("a") as file:
            file.write(json.dumps({**note, "found": found}) + "\n")
    return found


def do(session: Session, action: str, value: Any) -> Any:
    if action == "feed":
        report = session.feed([value])
        return report.tokens, report.nats
    if action == "score":
        return session.score(value, logprobs=True).logprobs
    if action == "generate":
        return "".join(session.generate(value, max_tokens=4, temperature=1.5))
    if action == "rewind":
        session.rewind(to=int(session.position * value))
    elif action == "back":
        session.rewind(snapshot=int((len(session.history()) - 1) * value))
    else:
        assert action == "fork"
        with session.fork(value) as other:
            other.feed([f" And so to {value}."])
    return session.state.digest()


def notes(folder: Path, name: str) -> list[dict[str, Any]]:
    lines = (folder / f"{name}.jsonl").read_text().splitlines()
    return [json.loads(line) for line in lines]


LIVES = """
import os, random, sys
from pathlib import Path
import torch
torch.set_num_threads(1)
import streamlm
from memory_store import Locked
from tests.sessions.test_session_isolation import SECRETS, notes, visit
folder, checkpoint, words = Path(sys.argv[1]), streamlm.load(sys.argv[2], device="cpu"), sys.argv[3]

def some_todo(chance, secret, new):
    start = chance.randrange(len(words) - 200)
    text = words[start : start + chance.randrange(20, 200)]
    return chance.choice([
        ["feed", text + secret], ["feed", secret + text], ["feed", text],
        ["score", text + secret], ["generate", secret], ["generate", ""],
        ["rewind", chance.random()], ["back", chance.random()], ["fork", new],
    ])

def live(me, visits):
    chance, done, locked = random.Random(me), 0, 0
    while done < visits:
        name, forks = chance.choice(sorted(SECRETS)), set()
        for note in notes(folder, name):
            forks |= {value for action, value in note["todo"] if action == "fork"}
        branch = chance.choice(["main", "main", *sorted(forks)])
        todo = [
            some_todo(chance, SECRETS[name], f"b{me}-{done}-{i}")
            for i in range(chance.randrange(1, 4))
        ]
        try:
            visit(folder, checkpoint, {"name": name, "branch": branch, "todo": todo})
        except Locked:
            locked += 1
            continue
        done += 1
    print(locked, flush=True)

children = []
for me in range(3):
    child = os.fork()
    if child == 0:
        live(me, int(sys.argv[4]))
        os._exit(0)
    children.append(child)
assert [os.waitpid(child, 0)[1] for child in children] == [0, 0, 0]
"""


def test_sessions_are_isolated(
    tmp_path: Path, tiny_folder: Callable[..., Path], prose: Callable[..., str]
) -> None:
    together, alone, model = tmp_path / "together", tmp_path / "alone", tiny_folder()
    together.mkdir(), alone.mkdir()
    checkpoint, words = load_checkpoint(model, device="cpu"), prose(2000)
    for name, secret in SECRETS.items():
        todo = [["feed", secret + words[:300]]]
        visit(together, checkpoint, {"name": name, "branch": "main", "todo": todo})
    command = [sys.executable, "-c", LIVES, str(together), str(model), words, "6"]
    subprocess.run(command, cwd=ROOT, check=True, stdout=subprocess.DEVNULL)

    visited = forked = 0
    for name in SECRETS:
        for note in notes(together, name):
            found = note.pop("found")
            assert json.loads(json.dumps(visit(alone, checkpoint, note))) == found
            visited += 1
        lived = DirectoryStore.open(together / f"{name}.zarr")
        again = DirectoryStore.open(alone / f"{name}.zarr")
        lived.verify()
        assert lived.branches() == again.branches()
        for branch in lived.branches():
            forked += branch != "main"
            one, other = (
                streamlm.open(folder / f"{name}.zarr", checkpoint, branch=branch, readonly=True)
                for folder in (together, alone)
            )
            assert one.state.digest() == other.state.digest() and one.tail == other.tail
            for secret in SECRETS.values():
                found, wanted = (each.score(secret, logprobs=True) for each in (one, other))
                assert found.logprobs == wanted.logprobs
            heads = [store.head(branch) for store in (lived, again)]
            logs = [
                store.tokens(head, 0, head.position).tolist()
                for store, head in zip((lived, again), heads, strict=True)
                if head is not None
            ]
            assert len(logs) == 2 and logs[0] == logs[1]
            text = checkpoint.tokenizer.decode(logs[0])
            assert not [who for who, secret in SECRETS.items() if secret in text and who != name]
        assert SECRETS[name].strip() in words_of(lived, checkpoint)
    assert visited >= 3 + 3 * 6 and forked >= 1


def words_of(store: DirectoryStore, checkpoint: Checkpoint) -> str:
    """Everything the main branch ever read, including what was rewound."""
    last = max(store.refs("main"), key=lambda ref: ref.position)
    return checkpoint.tokenizer.decode(store.tokens(last, 0, last.position).tolist())
