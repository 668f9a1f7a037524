"""What compressed memory remembers that a window of as many slots cannot.

    python -m benchmarks.recall --threads 1             # every model, minutes each on a CPU
    python -m benchmarks.recall --compressions conv mean --seeds 1 --steps 400      # a quick look
    python -m benchmarks.recall --heads --threads 1     # every head instead of every compression

Small models are trained on associative recall: pairs of a name and a value, each asked for once
more after a known number of segments. A name's values are its own, so what must be remembered is
which of them was told. All models have two layers and differ in their memory alone:

    window       M + C slots, what leaves them is lost
    compressed   M slots and C compressed ones, with c older slots in each
    uncompressed M + c·C slots: as much context, without compression

Models that are finished are kept in --runs and not trained again, and one that was stopped goes on
from its last save; so the same command goes on where it was.
"""

import argparse
import hashlib
import json
import time
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import torch

from benchmarks.tools.foresight import foresight
from benchmarks.tools.recall_models import (
    FAMILY,
    SEGMENT,
    VOCAB,
    Entry,
    entries,
    heads_entries,
)
from benchmarks.tools.recall_report import draw, show
from streamlm.cli.allocator import keep_freed_memory
from streamlm.cli.display import bar, note
from streamlm.config import COMPRESSIONS
from streamlm.lab.results import usable_cores, write_results
from streamlm.lab.tasks import Alphabet, answer, by_compressions, by_distance, recall
from streamlm.lab.tasks.suite import reach_in_segments
from streamlm.lab.tasks.training import trainer_on
from streamlm.training.config import TrainConfig

BATCH, UNROLL, PAIRS = 32, 2, 3
SEGMENTS = 14  # of a sequence
TRAINED = range(6)  # distances that are trained: as far as the compressed memory holds
ASKED = range(13)  # distances that are asked: beyond the reach of every compressed model
TEST_SEED = 1 << 20
NOTES = [
    "Every model is trained on the same sequences, and asked the same new ones.",
    "Chance is 1 / family: who forgot the value still knows which ones the name can have.",
    "Foresight: how well session.memory_report, just before a question, foretells its answer.",
    "Accuracy: the mean over seeds; low and high: the lowest and the highest seed.",
]


def training(steps: int, seed: int) -> TrainConfig:
    return TrainConfig(
        steps=steps,
        batch_size=BATCH,
        unroll=UNROLL,
        learning_rate=3e-3,
        min_learning_rate=1.5e-4,
        warmup_steps=min(100, steps // 5),
        seed=seed,
        checkpoint_steps=200,
        eval_steps=10**9,
        log_steps=50,
        eval_tokens=2000,
    )


def train_and_ask(
    entry: Entry,
    config: TrainConfig,
    *,
    runs: Path,
    sequences: int,
    progress: Callable[[], object] = lambda: None,
) -> dict[str, Any]:
    """The figures of one model with one seed, from `runs` where it is finished."""
    facts = {"model": entry.config.to_dict(), "train": config.to_dict(), "sequences": sequences}
    facts["task"] = [VOCAB, FAMILY, PAIRS, SEGMENTS, *TRAINED, *ASKED]
    digest = hashlib.sha256(json.dumps(facts, sort_keys=True).encode()).hexdigest()[:16]
    folder = runs / digest
    if (folder / "result.json").exists():
        result: dict[str, Any] = json.loads((folder / "result.json").read_text(encoding="utf-8"))
        for _ in range(config.steps):
            progress()
        return result
    alphabet = Alphabet.plain(VOCAB, family=FAMILY)
    size: dict[str, Any] = {"segment_len": SEGMENT, "segments": SEGMENTS, "pairs": PAIRS}
    needed = BATCH * (1 + config.steps * UNROLL // SEGMENTS)  # no sequence is read twice
    seen = recall(alphabet, n=needed, distances=TRAINED, seed=config.seed, **size)
    asked = recall(alphabet, n=sequences, distances=ASKED, seed=TEST_SEED, **size)
    trainer = trainer_on(
        seen, asked, model=entry.config, train=config, bos=alphabet.bos, folder=folder, device="cpu"
    )
    if (folder / "last").exists():
        trainer.resume()
        for _ in range(trainer.step):
            progress()
    started = time.perf_counter()
    for _ in trainer.run():
        progress()
    lines = (folder / "log.jsonl").read_text(encoding="utf-8").splitlines()
    losses = {line["step"]: line["loss"] for line in map(json.loads, lines)}
    answers = answer(trainer.model, asked, bos=alphabet.bos, batch_size=BATCH)
    seen_by_slot = entry.config.head == "relative"  # what session.memory_report can look at
    result = {
        "parameters": sum(p.numel() for p in trainer.model.parameters()),
        "seconds": time.perf_counter() - started,
        "loss": sorted(losses.items()),  # by step; one stopped has logged some steps twice
        "distance": by_distance(answers),
        "compressions": by_compressions(answers),
        "foresight": foresight(trainer.model, asked, answers, bos=alphabet.bos, most=2 * sequences)
        if seen_by_slot
        else {"auc": None, "compressed": {"auc": None}},
    }
    (folder / "result.json").write_text(json.dumps(result), encoding="utf-8")
    return result


def figures_of(entry: Entry, results: Sequence[dict[str, Any]]) -> dict[str, Any]:
    """One model over its seeds: accuracy by distance, and by how often a slot was compressed."""
    found: dict[str, Any] = {
        "slots": entry.slots,
        "compressed": entry.compressed,
        "config": entry.config.to_dict(),
        "ends": reach_in_segments(entry.config),
        "parameters": results[0]["parameters"],
        "seconds": [result["seconds"] for result in results],
        "loss": [result["loss"] for result in results],
        "foresight": [result["foresight"] for result in results],
    }
    for view, key in (("distance", "distance"), ("compressions", "compressions")):
        rows = []
        for same in zip(*(result[view] for result in results), strict=True):
            accuracy = [row["accuracy"] for row in same]
            first = {k: same[0][k] for k in (key, "region", "chance", "questions") if k in same[0]}
            numbers = {
                "accuracy": float(np.mean(accuracy)),
                "low": min(accuracy),
                "high": max(accuracy),
                "margin": float(np.mean([row["margin"] for row in same])),
                "seeds": accuracy,
                "intervals": [[row["low"], row["high"]] for row in same],
            }
            rows.append(first | numbers)
        found[view] = rows
    return found


def main(arguments: list[str] | None = None) -> None:
    parser = argparse.ArgumentParser(
        prog="python -m benchmarks.recall",
        description=__doc__,
        formatter_class=argparse.RawDescriptionHelpFormatter,
    )
    parser.add_argument("--steps", type=int, default=800)
    parser.add_argument("--seeds", type=int, default=3)
    parser.add_argument("--compressions", nargs="*", default=list(COMPRESSIONS))
    parser.add_argument("--heads", action="store_true", help="instead of the compressions")
    parser.add_argument("--threads", type=int, default=usable_cores())
    parser.add_argument("--sequences", type=int, default=128, help="that each model is asked")
    parser.add_argument("--runs", type=Path, default=Path("runs/recall"))
    parser.add_argument("--out", type=Path, default=Path("benchmarks/results"))
    options = parser.parse_args(arguments)
    torch.set_num_threads(options.threads)
    keep_freed_memory()
    models = heads_entries() if options.heads else entries(options.compressions)
    name = "recall-heads" if options.heads else "recall"
    total = len(models) * options.seeds * options.steps
    results: dict[str, list[dict[str, Any]]] = {entry.name: [] for entry in models}
    with bar("training", total=total, fields="{task.fields[note]}") as (progress, task):
        for seed in range(1, options.seeds + 1):
            for entry in models:
                progress.update(task, note=f"{entry.name}, seed {seed}")
                result = train_and_ask(
                    entry,
                    training(options.steps, seed),
                    runs=options.runs,
                    sequences=options.sequences,
                    progress=lambda: progress.advance(task),
                )
                results[entry.name].append(result)
                loss = result["loss"][-1][1]
                note(f"{entry.name}, seed {seed}: {loss:.3f} nats, {result['seconds']:.0f} s")
    figures = {entry.name: figures_of(entry, results[entry.name]) for entry in models}
    settings = {
        "task": "recall",
        "segment_len": SEGMENT,
        "trained_distances": list(TRAINED),
        "asked_distances": list(ASKED),
        "pairs_of_a_segment": PAIRS,
        "vocabulary": VOCAB,
        "family": FAMILY,
        "sequences": options.sequences,
        "seeds": options.seeds,
        "train": training(options.steps, 1).to_dict(),
        "notes": NOTES,
    }
    write_results(options.out / f"{name}.json", settings=settings, figures=figures)
    draw(figures, settings, options.out / f"{name}.png")
    show(figures)


if __name__ == "__main__":
    main()
