"""Does a session recall what it read a million tokens ago? Facts in books, asked at the end.

python -m benchmarks.archive text --out runs/planted.txt        # books with things in them
streamlm feed runs/planted.txt --session planted --model smollm2    # an hour of one core
python -m benchmarks.archive ask --session sessions/planted.zarr --out runs/asked.jsonl
python -m benchmarks.archive segments --session sessions/planted.zarr --out runs/segments.jsonl
python -m benchmarks.archive writing --session sessions/planted.zarr --out runs/writing.jsonl
"""

import argparse
import json
import tempfile
from collections import Counter
from collections.abc import Sequence
from dataclasses import asdict
from pathlib import Path

import torch

import streamlm
from benchmarks.archive_parts.asking import PLANS, ask
from benchmarks.archive_parts.books import book_questions
from benchmarks.archive_parts.costs import question_costs, reading_costs, search_costs
from benchmarks.archive_parts.levels import figures_of_levels, measure_levels, show_levels
from benchmarks.archive_parts.prompts_report import answer_nats, show_answer_nats
from benchmarks.archive_parts.report import draw, figures_of, read_outcomes, show
from benchmarks.archive_parts.segments import Places, read_scored
from benchmarks.archive_parts.segments import measure as measure_segments
from benchmarks.archive_parts.segments_report import differences, show_differences
from benchmarks.archive_parts.stream import TASKS, Asked, build
from benchmarks.archive_parts.writing import (
    cases,
    figures_of_writing,
    measure_writing,
    read_rows,
    show_writing,
)
from streamlm.checkpoints.checkpoint import Checkpoint
from streamlm.cli.display import bar, output
from streamlm.lab.results import write_results


def first_cases(asked: Sequence[Asked], n: int) -> list[Asked]:
    """The first n things of each task in each band."""
    taken: Counter[tuple[str, str]] = Counter()
    chosen = []
    for each in asked:
        taken[each.band, each.thing.task] += 1
        if taken[each.band, each.thing.task] <= n:
            chosen.append(each)
    return chosen


def measure(options: argparse.Namespace, checkpoint: Checkpoint, asked: Sequence[Asked]) -> None:
    """Ask, and write each outcome to a file as it comes; see `report`."""
    torch.set_num_threads(options.threads)
    part, parts = map(int, options.part.split("/"))
    chosen = list(asked)
    if options.plan != "books":
        wanted = [each for each in asked if each.thing.task in options.tasks]
        chosen = first_cases(wanted, options.cases)
    chosen = chosen[part - 1 :: parts]
    options.out.parent.mkdir(parents=True, exist_ok=True)
    with (
        streamlm.open(options.session, checkpoint, readonly=True) as session,
        options.out.open("w", encoding="utf-8") as file,
        bar("asking", total=len(chosen)) as (progress, task),
    ):
        for each in chosen:
            for form, way, answer in PLANS[options.plan]:
                if getattr(each.thing, form):
                    size = {"k": options.k, "answer": answer}
                    found = ask(session, each, form, way, other=like(each, asked), **size)
                    file.write(json.dumps(asdict(found)) + "\n")
            file.flush()
            progress.advance(task)


def like(each: Asked, asked: Sequence[Asked]) -> Asked | None:
    """Another thing of the same task in the same band, the next one; None if there is none."""
    same = [one for one in asked if (one.band, one.thing.task) == (each.band, each.thing.task)]
    following = same[(same.index(each) + 1) % len(same)]
    return None if following == each else following


def measure_costs(options: argparse.Namespace, checkpoint: Checkpoint, text: str) -> None:
    """Write what the archive costs."""
    torch.set_num_threads(options.threads)
    options.folder.mkdir(parents=True, exist_ok=True)
    with streamlm.open(options.session, checkpoint, readonly=True) as session:
        question = question_costs(session, rounds=options.rounds)
        question["key_search_cpu_seconds"] = search_costs(session, times=10, rounds=options.rounds)
    with tempfile.TemporaryDirectory(prefix="archive-", dir=options.folder) as folder:
        few = text[:40_000]
        reading = reading_costs(checkpoint, few, Path(folder), rounds=options.rounds)
    found = {"question": question, "reading": reading}
    write_results(options.out, settings={"model": checkpoint.name}, figures=found)
    output.print_json(json.dumps(found))


def recall_at_segments(options: argparse.Namespace, checkpoint: Checkpoint) -> None:
    """Score what follows places of a session, with what is recalled there and without."""
    torch.set_num_threads(options.threads)
    size = {"each": options.each, "stride": options.stride}
    with (
        streamlm.open(options.session, checkpoint, readonly=True) as session,
        bar("scoring", total=options.places) as (progress, task),
    ):
        places = Places(session, question=options.question, ahead=options.ahead, **size)
        measure_segments(
            places, options.out, n=options.places, advance=lambda n: progress.advance(task, n)
        )


def recall_while_writing(
    options: argparse.Namespace, checkpoint: Checkpoint, asked: Sequence[Asked]
) -> None:
    """Let a model write with recall before the prompt and while it writes; report the answers."""
    torch.set_num_threads(options.threads)
    chosen = cases(asked, options.cases)
    with (
        streamlm.open(options.session, checkpoint, readonly=True) as session,
        bar("writing", total=len(chosen)) as (progress, task),
    ):
        measure_writing(session, chosen, options.out, advance=lambda n: progress.advance(task, n))
    found = figures_of_writing(read_rows([options.out]))
    settings = {"model": checkpoint.name, "cases": options.cases}
    write_results(
        options.results / "archive-writing.json", settings=settings, figures={"writing": found}
    )
    show_writing(found)


def two_levels(options: argparse.Namespace, checkpoint: Checkpoint, asked: Sequence[Asked]) -> None:
    """Measure what summaries of groups of keys find, and write it to the results."""
    torch.set_num_threads(options.threads)
    chosen = first_cases(asked, options.cases)
    with (
        streamlm.open(options.session, checkpoint, readonly=True) as session,
        bar("asking", total=len(chosen)) as (progress, task),
    ):
        measure_levels(session, chosen, options.out, advance=lambda n: progress.advance(task, n))
    found = figures_of_levels(read_scored([options.out]))
    settings = {"model": checkpoint.name, "cases": len(chosen)}
    write_results(
        options.results / "archive-levels.json", settings=settings, figures={"levels": found}
    )
    show_levels(found)


def report_segments(options: argparse.Namespace) -> None:
    """Show what recall at each segment changes, and write it to the results."""
    found = differences(read_scored(options.outcomes))
    figures = {"differences": found}
    write_results(options.out / "archive-segments.json", settings={}, figures=figures)
    show_differences(found)


def report_prompts(options: argparse.Namespace) -> None:
    """Show what recall before prompts changes, and write it to the results."""
    found = answer_nats(read_outcomes(options.outcomes))
    write_results(options.out / "archive-prompts.json", settings={}, figures={"answers": found})
    show_answer_nats(found)


def report(options: argparse.Namespace) -> None:
    """Show the outcomes, and write them with their costs to the results."""
    outcomes = read_outcomes(options.outcomes)
    figures = figures_of(outcomes)
    if options.costs is not None:
        figures["costs"] = json.loads(options.costs.read_text(encoding="utf-8"))["figures"]
    write_results(options.out / "archive.json", settings={"cases": len(outcomes)}, figures=figures)
    draw(figures, options.out / "archive.png")
    show(figures)


def main(arguments: list[str] | None = None) -> None:
    parser = argparse.ArgumentParser(
        prog="python -m benchmarks.archive",
        description=__doc__,
        formatter_class=argparse.RawDescriptionHelpFormatter,
    )
    commands = parser.add_subparsers(dest="command", required=True)
    text = commands.add_parser("text", help="write the text that is to be fed")
    text.add_argument("--out", type=Path, required=True)
    asking = commands.add_parser("ask", help="ask a session that was fed the text")
    asking.add_argument("--session", type=Path, required=True, help="its store")
    for name, default, about in (
        ("--threads", 1, "of torch"),
        ("--k", 1, "passages to recall"),
        ("--cases", 20, "of each task in each band"),
    ):
        asking.add_argument(name, type=int, default=default, help=about)
    asking.add_argument("--plan", choices=PLANS, default="recall", help="what is asked, and how")
    asking.add_argument(
        "--tasks", nargs="+", choices=TASKS, default=TASKS, help="what is asked for"
    )
    asking.add_argument("--part", default="1/1", help="i/n asks every n-th thing from the i-th")
    asking.add_argument("--out", type=Path, required=True)
    costs = commands.add_parser("costs", help="what the archive costs")
    costs.add_argument("--session", type=Path, required=True)
    costs.add_argument("--threads", type=int, default=1)
    costs.add_argument("--rounds", type=int, default=6)
    costs.add_argument("--folder", type=Path, default=Path("runs"))
    costs.add_argument("--out", type=Path, required=True)
    reporting = commands.add_parser("report", help="tables and a picture of the outcomes")
    reporting.add_argument("outcomes", type=Path, nargs="+")
    reporting.add_argument("--costs", type=Path)
    reporting.add_argument("--out", type=Path, default=Path("benchmarks/results"))
    segments = commands.add_parser("segments", help="recall at each segment while reading")
    segments.add_argument("--session", type=Path, required=True, help="its store")
    for name, default, about in (
        ("--threads", 1, "of torch"),
        ("--places", 60, "spread over the session"),
        ("--each", 1, "places behind each snapshot"),
        ("--stride", 1024, "tokens between them"),
        ("--question", 64, "tokens that ask"),
        ("--ahead", 256, "tokens that are scored"),
    ):
        segments.add_argument(name, type=int, default=default, help=about)
    segments.add_argument("--out", type=Path, required=True, help="places in it are left out")
    levels = commands.add_parser("levels", help="what summaries of keys find")
    levels.add_argument("--session", type=Path, required=True, help="its store")
    levels.add_argument("--threads", type=int, default=1)
    levels.add_argument("--cases", type=int, default=5, help="of each task in each band")
    levels.add_argument("--out", type=Path, required=True)
    levels.add_argument("--results", type=Path, default=Path("benchmarks/results"))
    writing = commands.add_parser("writing", help="recall while writing")
    writing.add_argument("--session", type=Path, required=True, help="its store")
    writing.add_argument("--threads", type=int, default=1)
    writing.add_argument("--cases", type=int, default=10, help="of each kind")
    writing.add_argument("--out", type=Path, required=True, help="cases in it are left out")
    writing.add_argument("--results", type=Path, default=Path("benchmarks/results"))
    for name, about in (
        ("segments-report", "what recall at each segment changes"),
        ("prompts-report", "what recall before prompts changes, of `ask --plan prompts`"),
    ):
        each = commands.add_parser(name, help=about)
        each.add_argument("outcomes", type=Path, nargs="+")
        each.add_argument("--out", type=Path, default=Path("benchmarks/results"))
    for each in (text, asking, costs, segments, levels, writing):
        each.add_argument("--data", type=Path, default=Path("data/books/test.txt.xz"))
        each.add_argument("--model", default="smollm2")
        each.add_argument("--tokens", type=int, default=1_000_000, help="of books")
        each.add_argument("--n", type=int, default=20, help="things of each task in each band")
    options = parser.parse_args(arguments)
    if options.command == "report":
        report(options)
        return
    if options.command in ("segments-report", "prompts-report"):
        (report_segments if options.command == "segments-report" else report_prompts)(options)
        return
    checkpoint = streamlm.load(options.model)
    if options.command == "segments":
        recall_at_segments(options, checkpoint)
        return
    size = {"tokens": options.tokens, "n": options.n}
    planted, asked = build(options.data, checkpoint.tokenizer, **size)
    if options.command == "text":
        options.out.parent.mkdir(parents=True, exist_ok=True)
        options.out.write_text(planted, encoding="utf-8")
    elif options.command == "ask":
        if options.plan == "books":
            asked = book_questions(planted, checkpoint.tokenizer)
        measure(options, checkpoint, asked)
    elif options.command == "writing":
        recall_while_writing(options, checkpoint, asked)
    elif options.command == "levels":
        two_levels(options, checkpoint, asked)
    else:
        measure_costs(options, checkpoint, planted)


if __name__ == "__main__":
    main()
