"""The suite: every memory task at the distances of a model, and its memory on a text."""

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any

from streamlm.checkpoints.checkpoint import Checkpoint
from streamlm.config import ModelConfig
from streamlm.lab.tasks.alphabet import Alphabet
from streamlm.lab.tasks.context import effective_context
from streamlm.lab.tasks.copying import copying
from streamlm.lab.tasks.frequency import loss_by_frequency
from streamlm.lab.tasks.passkey import passkey
from streamlm.lab.tasks.questions import Questions, spans
from streamlm.lab.tasks.recall import recall
from streamlm.lab.tasks.scoring import Answers, answer, by_compressions, by_distance
from streamlm.lab.tasks.tracking import tracking
from streamlm.models.base import Model
from streamlm.training.data import Corpus
from streamlm.training.evaluate import EvalReport, evaluate

BY_DISTANCE: dict[str, Callable[..., Questions]] = {
    "passkey": passkey,
    "copy": copying,
    "tracking": tracking,
}
TASKS = ("passkey", "recall", "copy", "tracking")
READINGS = ("position", "frequency", "context")
NAMES = (*TASKS, *READINGS)


@dataclass(frozen=True, kw_only=True)
class SuiteConfig:
    """The size of the suite.

    Attributes:
        sequences: per task and distance (and per number of hops in tracking).
        tokens: of the text, for loss by position and by frequency.
        runs: scored positions of the text, for the effective context.
        batch_size: sequences or documents read in parallel.
        seed: of all random draws.
    """

    sequences: int = 16
    tokens: int = 200_000
    runs: int = 64
    batch_size: int = 16
    seed: int = 0

    def __post_init__(self) -> None:
        for name in ("sequences", "tokens", "runs", "batch_size"):
            if getattr(self, name) < 1:
                raise ValueError(f"{name} = {getattr(self, name)}; allowed: at least 1")


def check_names(names: Sequence[str]) -> list[str]:
    """The given names in the order of NAMES, each once; all if none are given.

    Raises:
        ValueError: a name is unknown; lists the allowed ones.
    """
    if wrong := sorted(set(names) - set(NAMES)):
        raise ValueError(f"--suite {' '.join(wrong)}; allowed: {', '.join(NAMES)}")
    return [name for name in NAMES if name in names or not names]


def reach_in_segments(config: ModelConfig) -> dict[str, int]:
    """The largest distance at which a cue is in memory, in compressed memory, within reach."""
    length, (span, reach) = config.segment_len, spans(config)
    return {
        "memory": config.memory_len // length,
        "compressed memory": span // length,
        "reach": -(-reach // length),
    }


def distances(config: ModelConfig) -> list[int]:
    """The distances to test, in segments: both sides of every border, and a middle."""
    ends = reach_in_segments(config)
    memory, compressed, reach = ends.values()
    chosen = {0, 1, memory, memory + 1, (memory + compressed + 1) // 2, compressed, compressed + 1}
    # Long sequences take most of the time, so there is only one distance beyond reach.
    return sorted(chosen | {reach + 1})


def ask(
    name: str,
    model: Model,
    alphabet: Alphabet,
    *,
    config: SuiteConfig,
    progress: Callable[[int], None] = lambda tokens: None,
) -> dict[str, Any]:
    """One task at every distance: rows by distance and by compressions; JSON.

    "left_out" names the distances at which the task does not fit in a segment.
    """
    length = model.config.segment_len
    options: dict[str, Any] = {"n": config.sequences, "segment_len": length, "seed": config.seed}
    parts: list[Questions] = []
    left_out: list[str] = []
    if name == "recall":
        parts.append(recall(alphabet, distances=distances(model.config), **options))
    else:
        for distance in distances(model.config):
            try:
                parts.append(BY_DISTANCE[name](alphabet, distance=distance, **options))
            except ValueError as error:
                left_out.append(f"distance {distance}: {error}")
    reading: dict[str, Any] = {"bos": alphabet.bos, "batch_size": config.batch_size}
    reading["control"] = True
    answered = [answer(model, part, progress=progress, **reading) for part in parts]
    if not answered:
        raise ValueError(f"{name}: {left_out[-1]}")
    answers = Answers.joined(answered)
    return {
        "distance": by_distance(answers),
        "compressions": by_compressions(answers),
        "left_out": left_out,
    }


def size_of(name: str, model: ModelConfig, config: SuiteConfig) -> int:
    """The approximate number of tokens that a part of the suite reads, for a progress bar."""
    length, apart = model.segment_len, distances(model)
    if name == "recall":
        return 2 * config.sequences * length * (max(apart) + 2)
    if name in TASKS:
        kinds = 4 if name == "tracking" else 1
        return 2 * kinds * config.sequences * length * sum(d + 1 for d in apart)
    if name == "context":
        return config.runs * length * sum(range(1, model.reach // length + 2))
    return 2 * config.tokens


def run_suite(
    checkpoint: Checkpoint,
    corpus: Corpus,
    names: Sequence[str] = (),
    *,
    config: SuiteConfig | None = None,
    progress: Callable[[str, int], None] = lambda name, tokens: None,
) -> dict[str, Any]:
    """Measure the memory of a language model.

    Args:
        corpus: the text for filler, for loss and for effective context.
        names: parts of the suite, from NAMES; empty for all.
        progress: called with a part's name and the tokens it has read since the last call.

    Returns:
        JSON: "ends" (see `reach_in_segments`), "segment_len", and a part for each name.

    Raises:
        ValueError: a name is unknown, or the text is too short.
    """
    config = SuiteConfig() if config is None else config
    names = check_names(names)
    model, tokenizer = checkpoint.model, checkpoint.tokenizer
    figures: dict[str, Any] = {
        "segment_len": model.config.segment_len,
        "ends": reach_in_segments(model.config),
    }
    alphabet = Alphabet.of_text(tokenizer, corpus.tokens) if set(names) & set(TASKS) else None
    readings: dict[str, EvalReport] = {}
    for name in names:

        def report(tokens: int, name: str = name) -> None:
            progress(name, tokens)

        if alphabet is not None and name in TASKS:
            figures[name] = ask(name, model, alphabet, config=config, progress=report)
        elif name == "context":
            figures[name] = effective_context(
                model,
                corpus,
                bos=tokenizer.bos_id,
                runs=config.runs,
                batch_size=config.batch_size,
                seed=config.seed,
                progress=report,
            )
        else:
            readings = readings or _read(checkpoint, corpus, config, report)
            if name == "position":
                figures[name] = {kind: r.loss_by_position for kind, r in readings.items()}
            else:
                losses = {kind: r.losses or [] for kind, r in readings.items()}
                figures[name] = loss_by_frequency(corpus, losses, tokenizer)
    return figures


def _read(
    checkpoint: Checkpoint, corpus: Corpus, config: SuiteConfig, report: Callable[[int], None]
) -> dict[str, EvalReport]:
    """Evaluations of the same tokens with memory and without."""
    return {
        kind: evaluate(
            checkpoint.model,
            corpus,
            bos=checkpoint.tokenizer.bos_id,
            token_lengths=checkpoint.tokenizer.token_lengths,
            batch_size=config.batch_size,
            max_tokens=config.tokens,
            memory=kind == "memory",
            token_losses=True,
            progress=report,
        )
        for kind in ("memory", "no memory")
    }
