"""Jobs in threads: fair turns, stopping, and errors."""

import threading
import time
from collections.abc import Callable
from pathlib import Path

import pytest

pytest.importorskip("gradio", reason="needs gradio: pip install 'streamlm[demo]'")

from apps.demo import reading, writing
from apps.demo.jobs import Job, Jobs, Turns
from apps.demo.shelf import Shelf
from streamlm.checkpoints.checkpoint import Checkpoint
from streamlm.runtime.stream import Sampling


def test_turns_are_given_in_the_order_of_asking() -> None:
    turns, order = Turns(), list[int]()
    turns.take()

    def ask(n: int) -> None:
        turns.take()
        order.append(n)
        turns.give()

    threads = []
    for n in range(5):
        threads.append(threading.Thread(target=ask, args=(n,)))
        threads[-1].start()
        while turns._asked < n + 2:
            time.sleep(0.001)
    turns.give()
    for thread in threads:
        thread.join(10)
    assert order == [0, 1, 2, 3, 4]


def count(job: Job) -> None:
    with job.turn():
        for n in range(10_000):
            job.tell(n)
            time.sleep(0.01)
            job.pass_turn()


def test_work_is_told_as_it_goes_and_ends_when_it_is_dropped() -> None:
    jobs = Jobs()
    running = jobs.run(count, visitor="a")
    assert next(running)[0] == 0 and jobs.running == 1
    running.close()  # the page is gone
    until = time.monotonic() + 10
    while jobs.running and time.monotonic() < until:
        time.sleep(0.01)
    assert jobs.running == 0


def test_a_visitor_stops_only_their_own() -> None:
    jobs, told = Jobs(), list[int]()
    one, two = jobs.run(count, visitor="a"), jobs.run(count, visitor="b")
    next(one), next(two)
    assert jobs.stop("a") and not jobs.stop("c")
    for items in one:  # ends quietly
        told += items
    assert jobs.running == 1 and len(told) < 1000
    jobs.end()
    assert jobs.running == 0 and not jobs.stop("b")


def test_a_page_that_does_not_listen_holds_nobody_up() -> None:
    jobs, done = Jobs(), threading.Event()

    def work(job: Job) -> None:
        with job.turn():
            for n in range(100_000):
                job.tell(n)
                job.pass_turn()
        done.set()

    deaf = jobs.run(work, visitor="a")
    next(deaf)
    assert done.wait(30)
    assert jobs.do(lambda job: "mine", visitor="b") == "mine"
    assert sum(map(len, deaf)) > 0


def test_what_work_raises_is_told() -> None:
    def fail(job: Job) -> None:
        job.tell("begun")
        raise ValueError("no")

    running = Jobs().run(fail, visitor="a")
    with pytest.raises(ValueError, match="no"):
        list(running)


def test_visitors_share_the_time(tmp_path: Path, tiny: Checkpoint, prose: Callable) -> None:
    """Somebody who writes a little is done long before somebody who reads a lot."""
    jobs, shelf = Jobs(), Shelf(str(tmp_path))

    def read(job: Job) -> None:
        reading.read(job, shelf, "long", text=prose(20_000), checkpoint=tiny)

    def write(job: Job) -> None:
        writing.write(
            job, shelf, "short", prompt="And", sampling=Sampling(), max_tokens=5, seed=1,
            checkpoint=tiny,
        )  # fmt: skip

    long = jobs.run(read, visitor="a")
    next(long)
    assert isinstance([item for items in jobs.run(write, visitor="b") for item in items][-1],
                      writing.Written)  # fmt: skip
    assert jobs.running == 1
    jobs.end()
    assert {row.name: row.position > 0 for row in shelf.rows()} == {"long": True, "short": True}
