"""What recall at each segment changes: bits per byte with it and without, paired by place."""

import math
from collections.abc import Sequence
from typing import Any

import numpy as np
from rich.table import Table

from benchmarks.archive_parts.segments import BY_WORDS, NOTHING, PASSAGE, RANDOM, WAYS
from benchmarks.tools.positions import interval
from streamlm.cli.display import output

# What is read again, what it is compared to, and whether passages that are not sure count as that.
COMPARED = (
    *((way, NOTHING, False) for way in WAYS),
    *((way, NOTHING, True) for way in (PASSAGE, BY_WORDS)),
    *((way, RANDOM, False) for way in (PASSAGE, BY_WORDS)),
)


def differences(rows: Sequence[dict[str, Any]]) -> list[dict[str, Any]]:
    """Bits per byte of each way less those of another, with 95 % intervals over places.

    Args:
        rows: as `segments.measure` wrote them.
    """
    found = []
    for model in dict.fromkeys(row["model"] for row in rows):
        ways: dict[str, dict[int, dict[str, Any]]] = {}
        for row in rows:
            if row["model"] == model:
                ways.setdefault(row["way"], {})[row["place"]] = row
        sizes = np.array([[float(each["n_bytes"])] for _, each in sorted(ways[NOTHING].items())])
        for way, than, only_sure in COMPARED:
            pairs = [(ways[way][place], ways[than][place]) for place in sorted(ways[NOTHING])]
            counted = [one["sure"] or not only_sure for one, _ in pairs]
            nats = [
                one["nats"] - other["nats"] if counts else 0.0
                for (one, other), counts in zip(pairs, counted, strict=True)
            ]
            top = np.array(nats)[:, None] / math.log(2)
            low, high = interval(top, sizes)[:, 0]
            without = sum(other["nats"] for _, other in pairs) / math.log(2)
            found.append(
                {
                    "model": model,
                    "way": way,
                    "than": than,
                    "only sure": only_sure,
                    "places": len(pairs),
                    "put back": sum(counted),
                    "better": int((top < 0).sum()),
                    "tokens": sum(one["read"] for one, _ in pairs) / len(pairs),
                    "bits_per_byte": without / float(sizes.sum()),
                    "difference": float(top.sum() / sizes.sum()),
                    "low": float(low),
                    "high": float(high),
                }
            )
    return found


def show_differences(rows: Sequence[dict[str, Any]]) -> None:
    """The differences as a table."""
    table = Table(title="bits per byte of the next tokens, by what was read again before them")
    words = ("model", "read again", "than")
    for column in (*words, "put back", "difference", "95 % interval", "better"):
        table.add_column(column, justify="left" if column in words else "right")
    for row in rows:
        table.add_row(
            row["model"],
            f"{row['way']}{', if sure' if row['only sure'] else ''}",
            f"{row['than']} ({row['bits_per_byte']:.3f})",
            f"{row['put back']} of {row['places']}",
            f"{row['difference']:+.4f}",
            f"{row['low']:+.4f} to {row['high']:+.4f}",
            str(row["better"]),
        )
    output.print(table)
