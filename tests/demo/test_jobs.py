"""Jobs: fair turns, cancellation, and errors."""

import threading
import time
from collections.abc import Callable
from pathlib import Path

import pytest

pytest.importorskip("gradio", reason="needs gradio: pip install 'streamlm[demo]'")

from apps.demo import reading, writing
from apps.demo.jobs import FairLock, Job, Jobs
from apps.demo.shelf import Shelf
from streamlm.checkpoints.checkpoint import Checkpoint
from streamlm.runtime.sampling import Sampling


def test_the_lock_is_granted_in_order() -> None:
    lock, order = FairLock(), list[int]()
    lock.acquire()

    def wait(n: int) -> None:
        lock.acquire()
        order.append(n)
        lock.release()

    threads = []
    for n in range(5):
        threads.append(threading.Thread(target=wait, args=(n,)))
        threads[-1].start()
        while lock._requested < n + 2:
            time.sleep(0.001)
    lock.release()
    for thread in threads:
        thread.join(10)
    assert order == [0, 1, 2, 3, 4]


def count(job: Job) -> None:
    with job.turn():
        for n in range(10_000):
            job.emit(n)
            time.sleep(0.01)
            job.yield_turn()


def test_events_stream_and_dropping_the_iterator_cancels() -> None:
    jobs = Jobs()
    running = jobs.stream(count, visitor="a")
    assert next(running)[0] == 0 and jobs.running == 1
    running.close()  # the page was closed
    deadline = time.monotonic() + 10
    while jobs.running and time.monotonic() < deadline:
        time.sleep(0.01)
    assert jobs.running == 0


def test_a_visitor_cancels_only_their_own_jobs() -> None:
    jobs, seen = Jobs(), list[int]()
    one, two = jobs.stream(count, visitor="a"), jobs.stream(count, visitor="b")
    next(one), next(two)
    assert jobs.cancel("a") and not jobs.cancel("c")
    for events in one:  # ends without an error
        seen += events
    assert jobs.running == 1 and len(seen) < 1000
    jobs.shut_down()
    assert jobs.running == 0 and not jobs.cancel("b")


def test_a_slow_page_blocks_nobody() -> None:
    jobs, done = Jobs(), threading.Event()

    def work(job: Job) -> None:
        with job.turn():
            for n in range(100_000):
                job.emit(n)
                job.yield_turn()
        done.set()

    slow = jobs.stream(work, visitor="a")
    next(slow)
    assert done.wait(30)
    assert jobs.run(lambda job: "mine", visitor="b") == "mine"
    assert sum(map(len, slow)) > 0


def test_errors_of_a_job_are_raised() -> None:
    def fail(job: Job) -> None:
        job.emit("begun")
        raise ValueError("no")

    running = Jobs().stream(fail, visitor="a")
    with pytest.raises(ValueError, match="no"):
        list(running)


def test_jobs_share_the_model(tmp_path: Path, tiny: Checkpoint, prose: Callable) -> None:
    """A short generation finishes while a long read is still running."""
    jobs, shelf = Jobs(), Shelf(str(tmp_path))

    def read(job: Job) -> None:
        reading.read(job, shelf, "long", text=prose(20_000), checkpoint=tiny)

    def write(job: Job) -> None:
        writing.write(
            job, shelf, "short", prompt="And", sampling=Sampling(), max_tokens=5, seed=1,
            checkpoint=tiny,
        )  # fmt: skip

    long = jobs.stream(read, visitor="a")
    next(long)
    assert isinstance([event for events in jobs.stream(write, visitor="b") for event in events][-1],
                      writing.WriteFinished)  # fmt: skip
    assert jobs.running == 1
    jobs.shut_down()
    assert {row.name: row.position > 0 for row in shelf.rows()} == {"long": True, "short": True}
