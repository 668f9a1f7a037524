"""A pool of local processes. One that dies fails its job, and another takes its place."""

import json
import os
import queue
import signal
import subprocess
import sys
import threading
from collections import deque
from collections.abc import Iterable, Iterator
from contextlib import suppress
from typing import IO

from streamlm.jobs.job import Job, Plan, Row, failed

COMMAND = [sys.executable, "-m", "streamlm.jobs.worker"]
ENDING = 60.0  # seconds that a worker has to save and to end

_Answer = tuple["_Worker", str | None]


class _Worker:
    """A worker process, and the job that it does."""

    def __init__(self, plan: Plan, threads: int, answers: "queue.Queue[_Answer]") -> None:
        environment = {**os.environ, "OMP_NUM_THREADS": str(threads)}
        self.process = subprocess.Popen(
            COMMAND,
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            env=environment,
            text=True,
            encoding="utf-8",
            start_new_session=True,  # Ctrl-C is for the pool, which passes it on
        )
        self.job: Job | None = None
        self._send(plan.to_json())
        assert self.process.stdout is not None
        listening = (self.process.stdout, answers)
        threading.Thread(target=self._listen, args=listening, daemon=True).start()

    def _listen(self, stdout: IO[str], answers: "queue.Queue[_Answer]") -> None:
        with stdout:
            for line in stdout:
                answers.put((self, line))
        answers.put((self, None))

    def _send(self, value: object) -> None:
        assert self.process.stdin is not None
        with suppress(BrokenPipeError):  # its end is noticed by who listens
            self.process.stdin.write(json.dumps(value) + "\n")
            self.process.stdin.flush()

    def give(self, job: Job) -> None:
        self.job = job
        self._send(job.to_json())

    def ended(self) -> str:
        """Wait for its end; says why it has ended."""
        self.close()
        code = self.process.wait()
        return (
            f"its worker was ended by signal {-code}" if code < 0 else f"its worker ended ({code})"
        )

    def close(self) -> None:
        """Let it end once it has answered."""
        assert self.process.stdin is not None
        with suppress(BrokenPipeError):
            self.process.stdin.close()


def local_rows(
    jobs: Iterable[Job], plan: Plan, *, workers: int, threads: int | None = None
) -> Iterator[Row]:
    """A row for each job, as they end. A worker whose job is interrupted saves it first.

    Args:
        workers: processes at once.
        threads: of each; None is OMP_NUM_THREADS where it is set, or else its share of the cores.
    """
    left = deque(jobs)
    answers: queue.Queue[_Answer] = queue.Queue()
    if threads is None:
        cores = len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count()
        threads = int(os.environ.get("OMP_NUM_THREADS") or max(1, (cores or 1) // workers))
    pool: set[_Worker] = set()

    def start() -> None:
        worker = _Worker(plan, threads, answers)
        pool.add(worker)
        worker.give(left.popleft())

    try:
        for _ in range(min(workers, len(left))):
            start()
        while pool:
            worker, line = answers.get()
            job = worker.job
            if line is None:
                pool.discard(worker)
                why = worker.ended()
                if job is not None:
                    yield failed(job, why)
                    if left:
                        start()
                continue
            worker.job = None
            if left:
                worker.give(left.popleft())
            else:
                worker.close()
            yield json.loads(line)
    finally:
        _end(pool)


def _end(pool: set[_Worker]) -> None:
    for worker in pool:
        with suppress(ProcessLookupError):
            worker.process.send_signal(signal.SIGINT)
    for worker in pool:
        worker.close()
        try:
            worker.process.wait(ENDING)
        except subprocess.TimeoutExpired:
            worker.process.kill()
            worker.process.wait()
