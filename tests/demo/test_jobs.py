"""Jobs: cancellation, errors, and visitors who go on beside each other."""

import threading
import time
from collections.abc import Callable, Iterator
from itertools import pairwise
from pathlib import Path
from typing import Any

import pytest

pytest.importorskip("gradio", reason="needs gradio: pip install 'streamlm[demo]'")

import streamlm
from apps.demo import reading, writing
from apps.demo.jobs import Job, Jobs
from apps.demo.shelf import Shelf
from streamlm.checkpoints.checkpoint import Checkpoint
from streamlm.engine import Cancelled, Engine
from streamlm.runtime.sampling import Sampling
from streamlm.sessions.session import Session

ENDLESS = 10**6  # tokens


@pytest.fixture
def engine(tiny: Checkpoint) -> Iterator[Engine]:
    with Engine(tiny, rows=3) as engine:
        yield engine


def endless(engine: Engine) -> Callable[[Job], None]:
    def work(job: Job) -> None:
        session = Session(engine.checkpoint)
        with job.request(engine.generate(session, "Call me", max_tokens=ENDLESS)) as pieces:
            for piece in pieces:
                job.emit(piece)

    return work


def wait_until(condition: Callable[[], bool]) -> None:
    deadline = time.monotonic() + 60
    while not condition():
        assert time.monotonic() < deadline
        time.sleep(0.005)


def test_events_stream_and_dropping_the_iterator_cancels(engine: Engine) -> None:
    jobs = Jobs()
    running = jobs.stream(endless(engine), visitor="a")
    assert next(running)[0] and jobs.running == 1
    running.close()  # the page was closed
    wait_until(lambda: jobs.running == 0 and engine.load == (0, 0))


def test_a_visitor_cancels_only_their_own_jobs(engine: Engine) -> None:
    jobs = Jobs()
    one, two = (jobs.stream(endless(engine), visitor=visitor) for visitor in "ab")
    next(one), next(two)
    assert jobs.runs("a") and jobs.cancel("a") and not jobs.cancel("c")
    assert all(one)  # ends without an error
    assert jobs.running == 1 and not jobs.runs("a") and next(two)
    jobs.shut_down()
    assert jobs.running == 0 and not jobs.cancel("b") and engine.load == (0, 0)


def test_a_cancelled_job_begins_nothing(engine: Engine) -> None:
    """Requests that it makes afterwards are cancelled; whatever happens, its sessions are free."""
    jobs, begun, go_on, told = Jobs(), threading.Event(), threading.Event(), list[str]()
    session = Session(engine.checkpoint)

    def work(job: Job) -> None:
        begun.set()
        go_on.wait(60)
        with pytest.raises(Cancelled):
            job.result(engine.generate(session, max_tokens=ENDLESS))
        session.feed("It was free. ")
        with pytest.raises(ZeroDivisionError), job.request(
            engine.generate(session, max_tokens=ENDLESS)
        ):  # fmt: skip
            1 // 0  # noqa: B018
        session.feed("And again. ")
        told.append("all of it")

    running = jobs.stream(work, visitor="a")
    thread = threading.Thread(target=list, args=(running,))
    thread.start()
    assert begun.wait(60) and jobs.cancel("a")
    go_on.set()
    thread.join(60)
    assert told == ["all of it"] and session.position


def test_a_slow_page_blocks_nobody(engine: Engine) -> None:
    """Its events wait for it, while others go on."""
    jobs = Jobs()
    slow = jobs.stream(endless(engine), visitor="a")
    next(slow)
    assert engine.generate(Session(engine.checkpoint), max_tokens=30).result(60) == 30
    assert jobs.running == 1 and jobs.cancel("a")
    assert sum(map(len, slow)) > 20


def test_errors_of_a_job_are_raised() -> None:
    def fail(job: Job) -> None:
        job.emit("begun")
        raise ValueError("no")

    running = Jobs().stream(fail, visitor="a")
    with pytest.raises(ValueError, match="no"):
        list(running)


def test_jobs_share_the_model(tmp_path: Path, engine: Engine, prose: Callable) -> None:
    """A short generation finishes while a long read is still running."""
    jobs, shelf = Jobs(), Shelf(str(tmp_path))

    def read(job: Job) -> None:
        reading.read(job, shelf, "long", text=prose(20_000), engine=engine)

    def write(job: Job) -> None:
        writing.write(
            job, shelf, "short", prompt="And", sampling=Sampling(), max_tokens=5, seed=1,
            engine=engine,
        )  # fmt: skip

    long = jobs.stream(read, visitor="a")
    next(long)
    assert isinstance([event for events in jobs.stream(write, visitor="b") for event in events][-1],
                      writing.WriteFinished)  # fmt: skip
    assert jobs.running == 1
    jobs.shut_down()
    assert {row.name: row.position > 0 for row in shelf.rows()} == {"long": True, "short": True}


@pytest.mark.parametrize("how", ["score", "prompt"])
def test_a_long_text_holds_nobody_up(
    tmp_path: Path, engine: Engine, monkeypatch: pytest.MonkeyPatch, how: str
) -> None:
    """Between two tokens of a visitor, about a segment of another one's text is read."""
    shelf, jobs, tiny = Shelf(str(tmp_path)), Jobs(), engine.checkpoint
    text = "It was the whale. " * 4000
    with shelf.open("long", tiny, create=True) as session:
        session.feed("Once. ")
    read, steps, layers = 0, list[int](), type(tiny.model).read

    def count(model: Any, x: Any, *arguments: Any, **options: Any) -> Any:
        nonlocal read
        if x.shape[0] == 1:  # not the batch
            read += x.shape[1]
        return layers(model, x, *arguments, **options)

    real = engine.batch.step  # type: ignore[union-attr]

    def step(tokens: Any) -> Any:
        steps.append(read)
        return real(tokens)

    def score(job: Job) -> None:
        with shelf.open("long", tiny, readonly=True) as session:
            job.result(engine.score(session, text))

    def prompt(job: Job) -> None:
        writing.write(
            job, shelf, "long", prompt=text, sampling=Sampling(), max_tokens=1, seed=1,
            engine=engine,
        )  # fmt: skip

    monkeypatch.setattr(type(tiny.model), "read", count)
    monkeypatch.setattr(engine.batch, "step", step)
    long = jobs.stream({"score": score, "prompt": prompt}[how], visitor="a")
    threading.Thread(target=list, args=(long,), daemon=True).start()
    wait_until(lambda: read > 1000)
    steps.clear()
    assert engine.generate(Session(tiny), max_tokens=60).result(60) == 60
    segment = tiny.model.config.segment_len
    read_between = [after - before for before, after in pairwise(steps)]
    assert jobs.running == 1 and max(read_between) <= 2 * segment
    assert 0.5 < sum(read_between) / (59 * segment) < 1.5
    jobs.shut_down()
    with streamlm.open(tmp_path / "long.zarr", tiny) as session:  # what was read is saved
        assert (session.position > 1000) == (how == "prompt")
