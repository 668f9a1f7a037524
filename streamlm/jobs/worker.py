"""A worker: does one job after another. The same code runs in a local pool and on Ray.

    python -m streamlm.jobs.worker

reads lines of JSON from standard input, a plan and then jobs, and answers each job with a row.
"""

import json
import os
import signal
import sys
import time
from functools import lru_cache
from pathlib import Path, PurePosixPath
from pkgutil import resolve_name
from tempfile import TemporaryDirectory
from typing import Any

from memory_store.backends.object_client import connect, is_url, split
from memory_store.errors import StoreError
from streamlm.checkpoints.checkpoint import Checkpoint, load_checkpoint
from streamlm.jobs.job import Job, Plan, Row, failed
from streamlm.sessions.session import Session
from streamlm.sessions.shelf import full_path, locate, open_named
from streamlm.sessions.windows import DEFAULT_MODEL

FAILURES = (OSError, ValueError, TypeError, StoreError, FloatingPointError, MemoryError)


def run_job(job: Job, plan: Plan) -> Row:
    """Do a job. A failure is a row too; what was read before it stays read.

    Feeding the same job again reads nothing that is read already: see `Session.feed(once=True)`.
    """
    started = time.perf_counter()
    try:
        with TemporaryDirectory(prefix="streamlm-") as folder:
            files = _files(job, plan, Path(folder))
            done = _fed(job, plan, files) if plan.action == "feed" else _scored(plan, files)
    except FAILURES as error:
        return failed(job, " ".join(str(error).split()) or type(error).__name__)
    seconds = time.perf_counter() - started
    return {**job.to_json(), "status": "done", **done, "seconds": seconds}


def _fed(job: Job, plan: Plan, files: list[Path]) -> Row:
    model = _checkpoint(plan.model, plan.device, json.dumps(plan.settings))
    options: Any = {"errors": plan.errors, "score": plan.score, "once": True}
    with open_named(plan.store, job.name, model, create=True, **plan.saving) as session:
        report = session.feed(*files, **options)
    return {
        "session": full_path(locate(plan.store, job.name)[0]),
        "position": session.position,
        "digest": session.state.digest(),
        "tokens": report.tokens,
        "bytes": report.n_bytes,
        "skipped_bytes": report.skipped_bytes,
        "bits_per_byte": report.bits_per_byte,
    }


def _scored(plan: Plan, files: list[Path]) -> Row:
    model = _checkpoint(plan.model, plan.device, json.dumps(plan.settings))
    options: Any = {"errors": plan.errors}
    if plan.session is None:
        report = Session(model).score(*files, **options)
    else:
        with open_named(plan.store, plan.session, model, readonly=True) as session:
            report = session.score(*files, **options)
    return {
        "tokens": report.tokens,
        "bytes": report.n_bytes,
        "nats": report.nats,
        "bits_per_byte": report.bits_per_byte,
    }


@lru_cache(maxsize=1)
def _checkpoint(model: str | None, device: str, settings: str) -> Checkpoint:
    """The model, which a worker keeps from one job to the next."""
    return load_checkpoint(model or DEFAULT_MODEL, device=device, settings=json.loads(settings))


def _files(job: Job, plan: Plan, folder: Path) -> list[Path]:
    """The files of text of a job: objects are fetched, and what is packed is unpacked."""
    unpack = resolve_name(plan.unpack)
    found: list[Path] = []
    for n, source in enumerate(job.sources):
        place = Path(source)
        if is_url(source):
            (folder / f"{n}-fetched").mkdir()
            place = _fetched(source, folder / f"{n}-fetched")
        unpacked = folder / f"{n}"
        unpacked.mkdir()
        found += unpack(place, unpacked)
    return found


def _fetched(url: str, folder: Path) -> Path:
    scheme, bucket, key = split(url)
    client, _ = connect(f"{scheme}://{bucket}")
    target = folder / PurePosixPath(key).name
    with open(target, "wb") as file:
        for block in client.get(key).stream():
            file.write(block)
    return target


def main() -> None:
    """Answer jobs until standard input ends."""
    answers = os.fdopen(os.dup(1), "w", encoding="utf-8")
    os.dup2(2, 1)  # what a library prints is no answer
    signal.signal(signal.SIGTERM, signal.default_int_handler)  # a session saves before it ends
    lines = iter(sys.stdin.readline, "")
    try:
        plan = Plan(**json.loads(next(lines)))
        for line in lines:
            print(
                json.dumps(run_job(Job.from_json(json.loads(line)), plan)), file=answers, flush=True
            )
    except (KeyboardInterrupt, BrokenPipeError, StopIteration):
        sys.exit(130)


if __name__ == "__main__":
    main()
