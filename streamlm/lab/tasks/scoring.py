"""Scores of answers: exact matches, margins and counterfactual gains, by distance."""

import math
from collections.abc import Callable, Sequence
from dataclasses import dataclass, fields
from typing import Any

import numpy as np
import torch

from streamlm.lab.tasks.questions import REGIONS, Questions
from streamlm.models.base import Model
from streamlm.models.cache import Cache
from streamlm.runtime.stream import close


@dataclass(frozen=True, eq=False)
class Answers:
    """A model's scores on questions, with the attributes that group them; all [Q].

    Attributes:
        right: bool, greedy decoding gives the answer: each of its tokens is the most likely one,
            given those before it.
        margin: log-probability of the right token minus the mean over its other choices, in nats,
            mean over the answer's tokens; 0 on average for a model that knows nothing of the cue.
        gain: the counterfactual gain in nats: the margin minus that of the control
            (`Questions.counterfactual`); NaN without a control. It is 0 on average if the cue is
            forgotten, and exactly 0 beyond reach, except for recall, whose control changes other
            pairs too. It varies less than the margin, which includes the prior of each word.
        chance: the probability that a model that knows nothing of the cue is right.
        label, distance, region, compressions: see `Questions`.
    """

    right: np.ndarray
    margin: np.ndarray
    gain: np.ndarray
    chance: np.ndarray
    label: np.ndarray
    distance: np.ndarray
    region: np.ndarray
    compressions: np.ndarray

    @classmethod
    def joined(cls, parts: Sequence["Answers"]) -> "Answers":
        """The concatenation of the parts."""
        columns = [[getattr(part, field.name) for part in parts] for field in fields(cls)]
        return cls(*map(np.concatenate, columns))


@torch.no_grad()
def answer(
    model: Model,
    questions: Questions,
    *,
    bos: int,
    batch_size: int = 16,
    control: bool = False,
    progress: Callable[[int], None] = lambda tokens: None,
) -> Answers:
    """Read each sequence from an empty memory and score the answers at the queries.

    Args:
        control: also read the counterfactual sequences, for the gain.
        progress: called with the number of tokens read.
    """
    reading: Any = {"bos": bos, "batch_size": batch_size, "progress": progress}
    right, margin = _read(model, questions, questions.tokens, **reading)
    other = np.full_like(margin, np.nan)
    if control:
        _, other = _read(model, questions, questions.counterfactual().tokens, **reading)
    return Answers(
        right=np.asarray(right.all(axis=1)),
        margin=margin.mean(axis=1),
        gain=(margin - other).mean(axis=1),
        chance=np.full(len(questions), questions.chance),
        label=questions.label,
        distance=questions.distance(model.config.segment_len),
        region=questions.regions(model.config),
        compressions=questions.compressions(model.config),
    )


def _read(
    model: Model,
    questions: Questions,
    tokens: np.ndarray,
    *,
    bos: int,
    batch_size: int,
    progress: Callable[[int], None],
) -> tuple[np.ndarray, np.ndarray]:
    """Whether each token of the answers is the most likely, and its margin, reading `tokens`."""
    n, length = tokens.shape
    right = np.zeros(questions.query.shape, dtype=bool)
    margin = np.zeros(questions.query.shape)
    segment_len = model.config.segment_len
    with model.inference():
        for begin in range(0, n, batch_size):
            rows = tokens[begin : begin + batch_size].astype(np.int64)
            inputs = np.concatenate([np.full((len(rows), 1), bos), rows[:, :-1]], axis=1)
            state, cache = model.init_state(len(rows)), Cache()
            of_rows = (questions.row >= begin) & (questions.row < begin + len(rows))
            for start in range(0, length, segment_len):
                piece = torch.from_numpy(inputs[:, start : start + segment_len]).to(model.device)
                hidden, state = model.hidden(piece, state, cache)
                state = close(model, state, cache)
                here = (questions.query >= start) & (questions.query < start + segment_len)
                which, token = np.nonzero(here & of_rows[:, None])
                if len(which):
                    at = questions.query[which, token] - start
                    outputs = hidden[
                        _tensor(questions.row[which] - begin, model), _tensor(at, model)
                    ]
                    logits = model.logits(outputs).float()
                    wanted, choices = questions.answers[which, token], questions.choices[which]
                    right[which, token], margin[which, token] = _judge(logits, wanted, choices)
                progress(piece.numel())
    return right, margin


def _tensor(array: np.ndarray, model: Model) -> torch.Tensor:
    return torch.from_numpy(np.ascontiguousarray(array)).to(model.device)


def _judge(
    logits: torch.Tensor, wanted: np.ndarray, choices: np.ndarray
) -> tuple[np.ndarray, np.ndarray]:
    """Logits [N, V], right ids [N], choices [N, c] → most likely or not, and margin: [N]."""
    target = torch.from_numpy(np.ascontiguousarray(wanted).astype(np.int64)).to(logits.device)
    ids = torch.from_numpy(np.ascontiguousarray(choices).astype(np.int64)).to(logits.device)
    chosen = logits.gather(1, target[:, None])[:, 0]
    others = (logits.gather(1, ids).sum(dim=1) - chosen) / (ids.shape[1] - 1)
    right = (logits.argmax(dim=1) == target).cpu().numpy()
    return right, (chosen - others).double().cpu().numpy()


def binomial_interval(right: int, n: int, *, z: float = 1.959964) -> tuple[float, float]:
    """The 95 % interval of a proportion, right of n (Wilson 1927), valid near 0 and 1 too.

    Raises:
        ValueError: n is 0, or right is not from 0 to n.
    """
    if not 0 <= right <= n or not n:
        raise ValueError(f"{right} right of {n}; allowed: 0 to n, of at least 1")
    share, spread = right / n, z * z / n
    middle = (share + spread / 2) / (1 + spread)
    half = z / (1 + spread) * math.sqrt(share * (1 - share) / n + spread / (4 * n))
    # At the ends it is closed there; rounding must not say otherwise.
    return middle - half if right else 0.0, middle + half if right < n else 1.0


def tally(answers: Answers, which: np.ndarray) -> dict[str, Any]:
    """Accuracy, margin and gain of some questions, with 95 % intervals; JSON.

    Questions count as independent, although those of one sequence share its filler.

    Args:
        which: [Q] bool, at least one True.
    """
    n, right = int(which.sum()), int(answers.right[which].sum())
    low, high = binomial_interval(right, n)
    row: dict[str, Any] = {
        "questions": n,
        "right": right,
        "accuracy": right / n,
        "low": low,
        "high": high,
        "chance": float(answers.chance[which].mean()),
    }
    for name, values in (("margin", answers.margin[which]), ("gain", answers.gain[which])):
        if np.isnan(values).any():
            continue
        mean = float(values.mean())
        error = 1.959964 * float(values.std(ddof=1)) / math.sqrt(n) if n > 1 else None
        row[name] = mean
        row[f"{name}_low"] = None if error is None else mean - error
        row[f"{name}_high"] = None if error is None else mean + error
    return row


def by_distance(answers: Answers) -> list[dict[str, Any]]:
    """A row for each label and distance in segments, with the `region` that held the cues."""
    rows = []
    for label in np.unique(answers.label):
        for distance in np.unique(answers.distance[answers.label == label]):
            which = (answers.label == label) & (answers.distance == distance)
            region = REGIONS[int(answers.region[which].max())]
            row = {"label": int(label), "distance": int(distance), "region": region}
            rows.append(row | tally(answers, which))
    return rows


def by_compressions(answers: Answers) -> list[dict[str, Any]]:
    """A row for each number of compressions of the cue's slot; None if no slot holds it."""
    times = answers.compressions
    return [
        {"compressions": int(n) if n >= 0 else None} | tally(answers, times == n)
        for n in sorted(set(times.tolist()), key=lambda n: (n < 0, n))
    ]
