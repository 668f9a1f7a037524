"""`streamlm feed-all` and `score-all`: many documents, in a pool of processes or on Ray."""

import json
from functools import partial
from pathlib import Path
from typing import Annotated, Any

import typer

from streamlm.cli.display import bar, interruptible, note, output, show_rows
from streamlm.cli.options import (
    Device,
    Errors,
    Json,
    OnError,
    SessionModel,
    Settings,
    Store,
    parsed_settings,
    save_intervals,
)

Sources = Annotated[
    list[str] | None,
    typer.Argument(
        metavar="SOURCE",
        help="Files, folders, globs, and s3://, gs:// and az:// URLs of objects and prefixes.",
    ),
]
Manifests = Annotated[
    list[Path] | None,
    typer.Option(
        "--manifest",
        metavar="FILE",
        help="Lines of SOURCE, or NAME, a tab, and sources of one session. Repeatable.",
    ),
]
Workers = Annotated[int, typer.Option(min=1, help="Documents at once.")]
Report = Annotated[
    Path | None,
    typer.Option(metavar="FILE", dir_okay=False, help="JSON lines; default: feed-all.jsonl."),
]
Resume = Annotated[bool, typer.Option("--resume", help="Leave out what the report has as done.")]
Retries = Annotated[int, typer.Option(min=0, help="How often a document that fails is retried.")]
Ray = Annotated[
    str | None,
    typer.Option(metavar="ADDRESS", help="A Ray cluster; local begins one on this machine."),
]


def feed_all(
    sources: Sources = None,
    manifest: Manifests = None,
    store: Store = "sessions",
    workers: Workers = 2,
    report: Report = None,
    resume: Resume = False,
    retries: Retries = 2,
    ray: Ray = None,
    score: Annotated[
        bool, typer.Option("--score", help="Also compute bits per byte, which is slower.")
    ] = False,
    save_every: Annotated[
        list[str] | None,
        typer.Option(metavar="N|TIME", help="As for feed."),
    ] = None,
    model: SessionModel = None,
    setting: Settings = None,
    device: Device = "auto",
    errors: OnError = Errors.STRICT,
    as_json: Json = False,
) -> None:
    """Feed many documents, each into a session of its own.

    A document that was read is not read again, so the same command goes on after any interruption.
    """
    plan = {"action": "feed", "score": score, "saving": save_intervals(save_every)}
    plan |= {"store": store, "model": model, "device": device, "errors": errors.value}
    plan["settings"] = parsed_settings(setting)
    _run(
        sources or [],
        manifest or [],
        plan,
        report=report or Path("feed-all.jsonl"),
        workers=workers,
        resume=resume,
        retries=retries,
        ray=ray,
        as_json=as_json,
    )


def score_all(
    sources: Sources = None,
    manifest: Manifests = None,
    session: Annotated[
        str | None,
        typer.Option(
            "--session",
            metavar="NAME[@BRANCH]",
            help="Score in the light of what this session has read; default: of nothing.",
        ),
    ] = None,
    store: Store = "sessions",
    workers: Workers = 2,
    report: Annotated[
        Path | None,
        typer.Option(metavar="FILE", dir_okay=False, help="JSON lines; default: score-all.jsonl."),
    ] = None,
    resume: Resume = False,
    retries: Retries = 2,
    ray: Ray = None,
    model: SessionModel = None,
    setting: Settings = None,
    device: Device = "auto",
    errors: OnError = Errors.STRICT,
    as_json: Json = False,
) -> None:
    """Score many documents, each by itself.

    No session is modified.
    """
    plan = {"action": "score", "session": session, "settings": parsed_settings(setting)}
    plan |= {"store": store, "model": model, "device": device, "errors": errors.value}
    _run(
        sources or [],
        manifest or [],
        plan,
        report=report or Path("score-all.jsonl"),
        workers=workers,
        resume=resume,
        retries=retries,
        ray=ray,
        as_json=as_json,
    )


def _run(
    sources: list[str],
    manifests: list[Path],
    given: dict[str, Any],
    *,
    report: Path,
    workers: int,
    resume: bool,
    retries: int,
    ray: str | None,
    as_json: bool,
) -> None:
    from streamlm.jobs.job import Job, Plan
    from streamlm.jobs.listing import jobs_of
    from streamlm.jobs.pool import local_rows
    from streamlm.jobs.report import done_before, run_all

    plan, jobs = Plan(**given), jobs_of(sources, manifests)
    if ray is None:
        run = partial(local_rows, plan=plan, workers=workers)
    else:
        from streamlm.jobs.ray_pool import ray_rows

        run = partial(ray_rows, plan=plan, address=ray, workers=workers)
    before = done_before(report) if resume else {}
    skipped = sum(job.name in before for job in jobs)
    totals = {"documents": len(jobs), "done": skipped, "tokens": 0, "bytes": 0}
    failures: dict[str, str] = {}
    with (
        interruptible(lambda: f"{report} has what is done; --resume goes on"),
        bar(plan.action, total=len(jobs), fields="{task.fields[note]}") as (progress, task),
    ):
        progress.update(task, completed=skipped)
        for row in run_all(jobs, run, report, retries=retries, resume=resume):
            job = Job.from_json(row)
            if row["status"] == "done":
                failures.pop(job.name, None)
                totals["done"] += 1
                totals["tokens"] += row["tokens"]
                totals["bytes"] += row["bytes"]
            else:
                failures[job.name] = row["error"]
            said = f"{totals['tokens']:,} tokens" + (f", {len(failures)} failed" * bool(failures))
            progress.update(task, completed=totals["done"], note=said)
    if as_json:
        print(json.dumps({**totals, "failed": failures, "report": str(report)}))
    else:
        show_rows({name: f"{n:,}" for name, n in totals.items()} | {"report": str(report)})
        if failures:
            output.print(f"{len(failures)} failed")
    for name, error in failures.items():
        note(f"{name}: {error}", word="error: ", style="bold red")
    if failures:
        raise typer.Exit(1)
