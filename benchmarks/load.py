"""A server under load that is killed again and again: what was answered is saved, as if done alone.

    python -m benchmarks.load                                   # 200 sessions, 3 kills
    python -m benchmarks.load --sessions 12 --steps 4 --kills 1

Clients call `streamlm serve` on loopback: each step of a session feeds, generates, forks, or hangs
up in the middle. The server is killed with SIGKILL meanwhile and started again. What a client did
not get an answer for is undone by rewinding to the newest snapshot that was answered. In the end
each session is done again alone, by an engine of as many rows, and compared: texts, positions,
states and token ids.
"""

import argparse
import json
import os
import random
import statistics
import tempfile
import threading
import time
from collections.abc import Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import torch

import streamlm
from benchmarks.tools.load_server import DOWN, Client, LoadServer
from streamlm.cli.display import output
from streamlm.engine import Engine
from streamlm.lab.results import write_results
from streamlm.sessions.session import Session

BOOK = Path(streamlm.__file__).parent / "assets" / "books" / "beyond-the-city.txt"
OWNERS = ("ann", "bob", "cid", "dee")
KINDS = ("feed", "generate", "generate", "fork", "hang-up")
FED, WRITTEN = 600, 24  # characters of a feed, tokens of a text
SAVE_EVERY = 1 << 14  # as the server's


@dataclass
class Load:
    """One session, its client, and what was acknowledged.

    Attributes:
        done: (kind, argument, answer) of each step that was answered, but for those hung up.
        repeated: steps whose answer was lost; undone: rewinds for them.
    """

    index: int
    client: Client
    steps: list[tuple[str, int]]
    done: list[tuple[str, int, str]] = field(default_factory=list)
    seconds: list[float] = field(default_factory=list)
    snapshot: int | None = None
    position: int = 0
    lost: int = 0
    repeated: int = 0
    undone: int = 0

    @property
    def name(self) -> str:
        return f"s{self.index}"

    @property
    def canary(self) -> str:
        """A word that no other session has read."""
        return f"canary{self.index:06d}"

    def text(self, at: int) -> str:
        """What a feed reads: a part of the book, and the session's own word."""
        book = BOOK.read_text(encoding="utf-8")
        start = (7919 * self.index + 611 * at) % (len(book) - FED)
        return f"{book[start : start + FED]} {self.canary}. "

    def run(self) -> None:
        """All steps, each until it is answered."""
        for number, (kind, argument) in enumerate(self.steps):
            while True:
                began = time.perf_counter()
                try:
                    self._step(kind, argument, number)
                    self.seconds.append(time.perf_counter() - began)
                    break
                except DOWN:
                    self.repeated += 1
                    self.client.wait()
                    self._undo()

    def _step(self, kind: str, argument: int, number: int) -> None:
        ask, path = self.client.ask, f"/sessions/{self.name}"
        fields = {"session": self.name, "max_tokens": WRITTEN, "seed": argument}
        if kind == "hang-up":
            self.client.hang_up({**fields, "max_tokens": 4000, "stream": True})
            self._undo()
            return
        if kind == "feed":
            answer = ask(f"{path}/feed", self.text(argument).encode())
            found = str(answer["position"])
        elif kind == "generate":
            answer = ask("/v1/completions", fields)
            found = answer["choices"][0]["text"]
        else:
            branch = f"b{number}-{random.randrange(1 << 30)}"
            ask(f"{path}/fork", {"branch": branch})
            fork = {**fields, "session": f"{self.name}@{branch}"}
            answer = ask("/v1/completions", fork)
            found = answer["choices"][0]["text"]
        saved = ask(path)["saved"]  # it may be down by now: then the step is undone and repeated
        self.snapshot, self.position = saved["snapshot"], saved["position"]
        self.done.append((kind, argument, found))

    def _undo(self) -> None:
        """Return to what was acknowledged; count it as lost if it is not there."""
        path = f"/sessions/{self.name}"
        while True:
            try:
                if self.snapshot is None:  # the first answer was lost: all of it is to be read
                    self.client.delete(path)
                    return
                now = self.client.ask(path)["saved"]
                if now["snapshot"] < self.snapshot:
                    self.lost += 1
                # Also where nothing has happened yet: what was hung up may still be saved.
                found = self.client.ask(f"{path}/rewind", {"snapshot": self.snapshot})["saved"]
                self.lost += found["position"] != self.position
                self.undone += found["snapshot"] != self.snapshot
                self.snapshot = found["snapshot"]
                return
            except DOWN:
                self.client.wait()


def planned(index: int, steps: int, seed: int) -> list[tuple[str, int]]:
    """The steps of a session, which begins with a feed."""
    draw = random.Random(f"{seed} {index}")
    kinds = ["feed", *(draw.choice(KINDS) for _ in range(steps - 1))]
    return [(kind, draw.randrange(1 << 20)) for kind in kinds]


def differences(load: Load, engine: Engine, folder: Path, store: Path) -> Iterator[str]:
    """Do a session's steps alone, and name what differs from the server's answers and store."""
    checkpoint = engine.checkpoint
    path = folder / f"{load.name}.zarr"
    with streamlm.open(path, checkpoint, save_every=SAVE_EVERY) as session:
        for number, (kind, argument, answer) in enumerate(load.done):
            if kind == "feed":
                text = folder / f"{load.name}.txt"
                text.write_text(load.text(argument), encoding="utf-8")
                found = str(engine.feed(session, text).result().position)
            else:
                one: Session = session.fork(f"b{number}") if kind == "fork" else session
                handle = engine.generate(one, max_tokens=WRITTEN, seed=argument)
                found = "".join(handle)
                if kind == "fork":
                    one.close()
            if found != answer:
                yield f"{load.name}, step {number}, {kind}: {answer!r} there, {found!r} alone"
        place = store / "keys" / load.client.owner / f"{load.name}.zarr"
        with streamlm.open(place, checkpoint, readonly=True) as saved:
            if saved.text() != session.text():
                yield f"{load.name}: another text is saved than alone"
            elif saved.state.digest() != session.state.digest():
                yield f"{load.name}: another state is saved than alone"


def crossed(loads: Sequence[Load], model: Any, store: Path) -> int:
    """Sessions and branches in which the word of another session stands."""
    found = 0
    for load in loads:
        place = store / "keys" / load.client.owner / f"{load.name}.zarr"
        with streamlm.open(place, model, readonly=True) as session:
            branches = session.live.require_store("read").store.branches()
        for branch in branches:
            with streamlm.open(place, model, branch=branch, readonly=True) as session:
                words = session.text().split("canary")[1:]
            found += any(word[:6] != load.canary[6:] for word in words if word[:6].isdecimal())
    return found


def measure(options: argparse.Namespace) -> dict[str, Any]:
    """Load a server, kill it, and compare."""
    with tempfile.TemporaryDirectory() as work:
        folder = Path(work)
        store = folder / "sessions"
        with LoadServer(store, options.model, rows=options.rows, owners=OWNERS) as server:
            loads = [
                Load(
                    index,
                    server.client(OWNERS[index % len(OWNERS)]),
                    planned(index, options.steps, options.seed),
                )
                for index in range(options.sessions)
            ]
            began, finished = time.perf_counter(), threading.Event()
            killer = threading.Thread(
                target=_kill, args=(server, loads, options.kills, options.steps, finished)
            )
            killer.start()
            with ThreadPoolExecutor(options.clients) as pool:
                list(pool.map(Load.run, loads))
            finished.set()
            killer.join()
            seconds = time.perf_counter() - began
            status = server.end()
        model = streamlm.load(options.model, device="cpu")
        (folder / "alone").mkdir()
        with Engine(model, rows=options.rows) as engine:
            unequal = [
                each
                for load in loads
                for each in differences(load, engine, folder / "alone", store)
            ]
        times = sorted(second for load in loads for second in load.seconds)
        return {
            "sessions": len(loads),
            "steps": sum(len(load.steps) for load in loads),
            "kills": server.kills,
            "seconds": seconds,
            "answered": sum(len(load.done) for load in loads),
            "repeated": sum(load.repeated for load in loads),
            "undone": sum(load.undone for load in loads),
            "lost_commits": sum(load.lost for load in loads),
            "crossed": crossed(loads, model, store),
            "unequal": unequal,
            "exit_status": status,
            "median_seconds": statistics.median(times),
            "p99_seconds": times[int(0.99 * (len(times) - 1))],
        }


def _kill(
    server: LoadServer, loads: Sequence[Load], kills: int, steps: int, finished: threading.Event
) -> None:
    """Kill the server each time that another part of the steps is done."""
    total = len(loads) * steps
    for kill in range(1, kills + 1):
        while sum(len(load.seconds) for load in loads) < kill * total / (kills + 1):
            if finished.wait(0.01):
                return
        server.kill()


def parser() -> argparse.ArgumentParser:
    summary, _, rest = (__doc__ or "").partition("\n\n")
    made = argparse.ArgumentParser(
        description=summary, epilog=rest, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    made.add_argument("--model", default="books", help="what streamlm.load takes")
    made.add_argument("--sessions", type=int, default=200)
    made.add_argument("--steps", type=int, default=6, help="steps of each session")
    made.add_argument("--clients", type=int, default=32, help="clients at once")
    made.add_argument("--rows", type=int, default=16)
    made.add_argument("--kills", type=int, default=3)
    made.add_argument("--seed", type=int, default=1)
    made.add_argument("--out", type=Path, help="a JSON file for the results")
    return made


def main(arguments: Sequence[str] | None = None) -> None:
    options = parser().parse_args(arguments)
    # With several threads MKL rounds in other ways from call to call.
    os.environ["OMP_NUM_THREADS"] = "1"
    torch.set_num_threads(1)
    results = measure(options)
    output.print(json.dumps(results, indent=1))
    if options.out is not None:
        settings = {name: value for name, value in vars(options).items() if name != "out"}
        write_results(options.out, settings=settings, figures=results)
    if results["lost_commits"] or results["crossed"] or results["unequal"]:
        raise SystemExit(1)


if __name__ == "__main__":
    main()
