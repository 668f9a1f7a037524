"""What recall before prompts changes for a model that may answer nothing: nats of the answers."""

from collections.abc import Sequence
from typing import Any

import numpy as np
from rich.table import Table

from benchmarks.archive_parts.stream import TASKS
from benchmarks.tools.positions import interval
from streamlm.cli.display import output

ANOTHER = "another's passage"
COMPARED = (
    *(("recall", "no recall"), ("in plain sight", "no recall"), (ANOTHER, "no recall")),
    *(("recall", ANOTHER), ("in plain sight", ANOTHER)),
)


def answer_nats(outcomes: Sequence[dict[str, Any]]) -> list[dict[str, Any]]:
    """Nats of an answer with one thing before the cue less those with another, paired by thing.

    Another's passage counts only where the answer is not in it, too.

    Args:
        outcomes: of the plan "prompts".
    """
    things: dict[tuple[str, str, int], dict[str, dict[str, Any]]] = {}
    for each in outcomes:
        things.setdefault((each["task"], each["band"], each["distance"]), {})[each["way"]] = each
    rows = []
    for task in (*TASKS, "all"):
        some = [ways for key, ways in things.items() if task in (key[0], "all")]
        for way, than in COMPARED:
            pairs = [
                (ways[way], ways[than])
                for ways in some
                if not (ANOTHER in (way, than) and ways[ANOTHER]["found"])
            ]
            if not pairs:
                continue
            change = np.array([[one["nats"] - other["nats"]] for one, other in pairs])
            low, high = interval(change, np.ones_like(change))[:, 0]
            rows.append(
                {
                    "task": task,
                    "way": way,
                    "than": than,
                    "things": len(pairs),
                    "found": sum(one["found"] for one, _ in pairs),
                    "answered": sum(one["answered"] for one, _ in pairs),
                    "nats": float(np.mean([one["nats"] for one, _ in pairs])),
                    "difference": float(change.mean()),
                    "low": float(low),
                    "high": float(high),
                }
            )
    return rows


def show_answer_nats(rows: Sequence[dict[str, Any]]) -> None:
    """The differences as a table."""
    table = Table(title="nats of the answer behind its cue, by what stands before the cue")
    words = ("task", "before it", "less")
    for column in (*words, "things", "found", "answered", "nats", "difference", "95 % interval"):
        table.add_column(column, justify="left" if column in words else "right")
    for row in rows:
        table.add_row(
            *(row["task"], row["way"], row["than"]),
            *(str(row["things"]), str(row["found"]), str(row["answered"]), f"{row['nats']:.2f}"),
            f"{row['difference']:+.2f}",
            f"{row['low']:+.2f} to {row['high']:+.2f}",
        )
    output.print(table)
