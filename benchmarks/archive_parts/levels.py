"""Two levels of search: do summaries of 64 keys tell which of them a question attends to?

The attention of each question is computed exactly; then each summary's estimate orders the groups
of keys. What counts is how many groups have to be read until the exact best places are among them.
"""

import json
from collections.abc import Callable, Iterable, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import torch
from rich.table import Table
from torch import Tensor
from torch.nn import functional as F

from benchmarks.archive_parts.stream import Asked
from streamlm.cli.display import output
from streamlm.memory.recall import GROUP, WIDTH
from streamlm.sessions.recall import PROPOSED
from streamlm.sessions.session import Session

SHARES = (0.02, 0.05, 0.1, 0.2, 0.4)
# Queries [H, w, E], and a summary for each head [H, G, …] → estimates of log mass, [H, w, G].
Estimate = Callable[[Tensor, Sequence[Tensor]], Tensor]


def _of_keys(queries: Tensor, kept: Sequence[Tensor]) -> Tensor:
    """As if a group had only the keys that are kept of it."""
    return torch.einsum("hwe,hgme->hwgm", queries, kept[0]).logsumexp(dim=3)


def _of_spread(queries: Tensor, kept: Sequence[Tensor]) -> Tensor:
    """As if a group's numbers were independent and normal (a cumulant expansion of the sum)."""
    mean, variance = kept
    scores = torch.einsum("hwe,hgme->hwgm", queries, mean)
    return (scores + torch.einsum("hwe,hgme->hwgm", queries**2, variance) / 2).logsumexp(dim=3)


def _of_bounds(queries: Tensor, kept: Sequence[Tensor]) -> Tensor:
    """The most that a key within the bounds of each number can have (Quest, Tang et al. 2024)."""
    low, high = kept
    return queries.clamp(min=0) @ high.mT + queries.clamp(max=0) @ low.mT


def summaries(keys: Tensor) -> dict[str, tuple[Tensor, ...]]:
    """What is kept of groups of keys [g, GROUP, K, E]: each summary, [K, g, …]."""
    keys = keys.permute(2, 0, 1, 3)  # [K, g, GROUP, E]
    largest = keys.norm(dim=3).topk(4, dim=2).indices[..., None].expand(-1, -1, -1, keys.shape[3])
    return {
        "mean": (keys.mean(dim=2)[:, :, None],),
        "means of 16": (keys.unflatten(2, (4, -1)).mean(dim=3),),
        "4 largest": (keys.gather(2, largest),),
        "every 16th": (keys[:, :, 8::16],),
        "mean and variance": _spread(keys, 1),
        "2 means and variances": _spread(keys, 2),
        "4 means and variances": _spread(keys, 4),
        "lowest and highest": (keys.amin(dim=2), keys.amax(dim=2)),
    }


def _spread(keys: Tensor, n: int) -> tuple[Tensor, Tensor]:
    """Means and variances of n parts of each group [K, g, GROUP, E]: twice [K, g, n, E]."""
    parts = keys.unflatten(2, (n, -1))
    return parts.mean(dim=3), parts.var(dim=3, correction=0)


# How each summary is used, and the vectors that it has for each GROUP keys.
WAYS: dict[str, tuple[Estimate, int]] = {
    "mean": (_of_keys, 1),
    "means of 16": (_of_keys, 4),
    "4 largest": (_of_keys, 4),
    "every 16th": (_of_keys, 4),
    "mean and variance": (_of_spread, 2),
    "2 means and variances": (_of_spread, 4),
    "4 means and variances": (_of_spread, 8),
    "lowest and highest": (_of_bounds, 2),
}


class Levels:
    """Summaries of a session's archive, which has no gaps."""

    def __init__(self, session: Session) -> None:
        self._session, self._stop = session, session._live.recall_stop
        parts: dict[str, list[tuple[Tensor, ...]]] = {name: [] for name in WAYS}
        search = session._live.ask("?", self._stop)
        for _, keys in search._blocks(search._start, self._stop):
            if len(keys) % GROUP:
                continue  # the last group, which is always read
            for name, kept in summaries(keys.unflatten(0, (-1, GROUP))).items():
                parts[name].append(kept)
        self._kept = {
            name: [torch.cat(each, dim=1) for each in zip(*some, strict=True)]
            for name, some in parts.items()
        }

    def needed(self, text: str) -> dict[str, Any]:
        """For each summary, the share of all groups to read until each of the best is found."""
        search = self._session._live.ask(text, self._stop)
        places = search.best(PROPOSED)
        # The group in which a place begins; it ends in this one or the next.
        groups = [max(0, each.position - WIDTH // 2 - search._start) // GROUP for each in places]
        n = self._kept["mean"][0].shape[1]
        shares = {"exact": _reads((search._mass - search._total).exp()[:, :n], groups)}
        for name, (estimate, _) in WAYS.items():
            of_head = [
                estimate(queries[None], [each[head, None] for each in self._kept[name]])[0]
                for head, queries in search._queries.items()
            ]
            shares[name] = _reads(torch.cat(of_head).softmax(dim=1), groups)
        return {"score": places[0].score, "shares": shares}


def _reads(mass: Tensor, groups: Iterable[int]) -> list[float]:
    """The share of groups that are read, two at a time, until each of `groups` is.

    Args:
        mass: [queries, G], sums to 1.
    """
    n = mass.shape[1]
    bound = (mass + F.pad(mass[:, 1:], (0, 1))).sqrt().mean(dim=0)
    rank = torch.empty(n, dtype=torch.long)
    rank[bound.argsort(descending=True)] = torch.arange(n)
    # A group is read with its own pair or with the one before it.
    read_at = torch.minimum(rank, F.pad(rank[:-1], (1, 0), value=n))
    read = torch.bincount(read_at, minlength=n).cumsum(0)
    return [int(read[rank[min(group, n - 1)]]) / n for group in groups]


def measure_levels(
    session: Session, asked: Sequence[Asked], path: Path, *, advance: Callable[[int], object]
) -> None:
    """Write what each cue and question needs, a line each."""
    levels = Levels(session)
    with path.open("w", encoding="utf-8") as file:
        for each in asked:
            for form in ("cue", "question"):
                row = levels.needed(getattr(each.thing, form))
                row |= {"task": each.thing.task, "band": each.band, "form": form}
                file.write(json.dumps(row) + "\n")
            file.flush()
            advance(1)


def figures_of_levels(rows: Sequence[dict[str, Any]]) -> list[dict[str, Any]]:
    """For each summary and share of groups that are read, the share of best places found."""
    found = []
    for name in rows[0]["shares"]:
        first = np.array([row["shares"][name][0] for row in rows])
        every = np.array([share for row in rows for share in row["shares"][name]])
        vectors = 0 if name == "exact" else WAYS[name][1]
        found.append(
            {
                "summary": name,
                "vectors": vectors,
                "questions": len(rows),
                "best": {str(share): float((first <= share).mean()) for share in SHARES},
                "eight best": {str(share): float((every <= share).mean()) for share in SHARES},
                "needed for 0.99 of the best": float(np.quantile(first, 0.99)),
                "needed for 0.99 of the eight best": float(np.quantile(every, 0.99)),
            }
        )
    return found


def show_levels(rows: Sequence[dict[str, Any]]) -> None:
    """A table of the shares found."""
    table = Table(title="best places found, by share of the groups that are read")
    table.add_column("summary")
    for column in ("vectors", *(f"{share:.0%}" for share in SHARES), "0.99 need", "eight need"):
        table.add_column(column, justify="right")
    for row in rows:
        table.add_row(
            row["summary"],
            str(row["vectors"]),
            *(f"{row['best'][str(share)]:.3f}" for share in SHARES),
            f"{row['needed for 0.99 of the best']:.1%}",
            f"{row['needed for 0.99 of the eight best']:.1%}",
        )
    output.print(table)
