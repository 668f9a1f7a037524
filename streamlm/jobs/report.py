"""Running all jobs: retries of failures, and a report that an interrupted call goes on with."""

import json
from collections.abc import Callable, Iterable, Iterator, Sequence
from pathlib import Path

from streamlm.jobs.job import Job, Row

Runs = Callable[[Iterable[Job]], Iterator[Row]]


def done_before(report: Path) -> dict[str, Row]:
    """The rows of a report whose jobs are done, by name; a last line that was cut is left out."""
    rows: dict[str, Row] = {}
    if report.exists():
        for line in report.read_text(encoding="utf-8").splitlines():
            try:
                row = json.loads(line)
            except ValueError:
                continue
            rows[row["name"]] = row
    return {name: row for name, row in rows.items() if row["status"] == "done"}


def run_all(
    jobs: Sequence[Job], run: Runs, report: Path, *, retries: int, resume: bool
) -> Iterator[Row]:
    """Run the jobs, and those that fail again, once the others have had their turn.

    Each row is appended to the report, with the number of its attempt, before it is yielded. So the
    last row of a name tells how its job has ended.

    Args:
        jobs: with names that differ.
        run: runs some jobs: `local_rows` or `ray_rows`.
        report: a file of JSON lines.
        retries: how often a job that fails is run again.
        resume: leave out the jobs that the report has as done, with the same sources.

    Raises:
        ValueError: the report exists, and `resume` is false.
    """
    if report.exists() and not resume:
        raise ValueError(
            f"{report} exists; allowed: --resume to go on with what it has, or another --report"
        )
    done = done_before(report)
    pending = [
        job
        for job in jobs
        if job.name not in done or done[job.name]["sources"] != list(job.sources)
    ]
    report.parent.mkdir(parents=True, exist_ok=True)
    whole = not report.exists() or report.read_bytes()[-1:] in (b"", b"\n")
    with report.open("a", encoding="utf-8") as file:
        if not whole:
            file.write("\n")
        for attempt in range(1, retries + 2):
            again: list[Job] = []
            for row in run(pending):
                file.write(json.dumps({**row, "attempt": attempt}) + "\n")
                file.flush()
                if row["status"] != "done":
                    again.append(Job.from_json(row))
                yield {**row, "attempt": attempt, "last": attempt == retries + 1}
            pending = again
            if not pending:
                return
