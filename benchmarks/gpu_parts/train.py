"""Training against the clock, with the weights brought to safety every minute."""

import math
import shutil
import tempfile
import time
from collections.abc import Iterator
from dataclasses import asdict, replace
from pathlib import Path
from typing import Any

import torch

from benchmarks.gpu_parts.clock import NEVER, ClockTrainer
from benchmarks.gpu_parts.packs import read_packs
from benchmarks.gpu_parts.right import bundled_book
from benchmarks.gpu_parts.run import Part, at_most, failure
from benchmarks.gpu_parts.weights import export, join
from benchmarks.tools.training import recipe_configs
from streamlm.checkpoints.checkpoint import load_checkpoint
from streamlm.config import ModelConfig
from streamlm.training.config import TrainConfig
from streamlm.training.data import Corpus
from streamlm.training.evaluate import evaluate
from streamlm.training.step import Step
from tokenizer import Tokenizer

WEIGHTS = "weights"  # folder of the pieces, in the results' folder
COMPILING = 150.0  # seconds after which training begins without the compiler
AFTERWARDS = 25.0  # seconds kept for the last export and the evaluation
EXPORT_EVERY, TELL_EVERY = 60.0, 5.0  # seconds
PROBED = 2  # steps after which a way of training is taken to work


def measure(part: Part) -> None:
    """Training against the clock; weights are exported every minute, and evaluated."""
    options = part.options
    tokenizer, model, config = recipe_configs(options.recipe, tiny=options.tiny)
    began = time.monotonic()
    train, valid = corpora(part, tokenizer)
    part.note(train_tokens=len(train.tokens), data_seconds=round(time.monotonic() - began, 1))
    seconds = min(options.train_seconds, part.left() - (1 if options.tiny else AFTERWARDS))
    until = time.monotonic() + seconds
    folder = Path(tempfile.mkdtemp(prefix="streamlm-run-"))
    try:
        config = replace(
            config, steps=NEVER, checkpoint_steps=NEVER, eval_steps=NEVER, log_steps=NEVER
        )
        trainer, run, step = begin(part, model, config, (tokenizer, train, valid, folder), until)
        trainer.start_clock(until - time.monotonic())
        go_on(part, trainer, run, step, until)
        pieces = part.options.out / WEIGHTS
        part.attempt("exported", lambda: export(trainer.model, tokenizer, pieces, **marks(part)))
        joined = folder / "joined"
        part.attempt("valid", lambda: validate(pieces, joined, tokenizer, valid, part), seconds=10)
    finally:
        shutil.rmtree(folder, ignore_errors=True)


def corpora(part: Part, tokenizer: Tokenizer) -> tuple[Corpus, Corpus]:
    """The packs of the recipe's data; of a dry run, the bundled book."""
    options = part.options
    if options.tiny:
        book = bundled_book(load_checkpoint("books", device="cpu"), 20_000)
        part.note(data="the bundled book")
        return book, book
    part.note(data=options.packs.name)
    return tuple(  # type: ignore[return-value]
        read_packs(options.packs, pattern, tokenizer) for pattern in ("train-*", "valid")
    )


def begin(
    part: Part, model: ModelConfig, config: TrainConfig, data: tuple[Any, ...], until: float
) -> tuple[ClockTrainer, Iterator[Step], Step]:
    """A trainer that has done its first steps: compiled if that works, else without."""
    tokenizer, train, valid, folder = data

    def first(compiled: bool, seconds: float) -> tuple[ClockTrainer, Iterator[Step], Step]:
        began = time.monotonic()
        trainer = ClockTrainer(
            model, replace(config, compile=compiled), tokenizer=tokenizer, train=train,
            valid=valid, folder=folder / f"compiled-{compiled}", device=part.options.device,
        )  # fmt: skip
        run = trainer.run()
        with at_most(seconds):
            for _ in range(PROBED):
                step = next(run)
        spent = round(time.monotonic() - began, 1)
        part.note(compiled=compiled, first_steps_seconds=spent)
        return trainer, run, step

    if config.compile and part.options.compile:
        try:
            return first(True, min(COMPILING, 0.6 * (until - time.monotonic())))
        except Exception as error:
            part.note(**{"compilation": failure(error)})
            print(f"  without the compiler: {type(error).__name__}: {error}"[:500], flush=True)
        torch.compiler.reset()
        if part.options.device == "cuda":
            torch.cuda.empty_cache()
    return first(False, math.inf)


def go_on(part: Part, trainer: ClockTrainer, run: Iterator[Step], step: Step, until: float) -> None:
    """Train until the time is over. A failure is written down; what was learnt until then stays."""
    began = told = saved = time.monotonic()
    first, before, log = step.tokens, step.tokens, []
    pieces = part.options.out / WEIGHTS
    every = 1.0 if part.options.tiny else EXPORT_EVERY
    try:
        with at_most(max(0.0, until - began) + (60 if part.options.tiny else 5)):
            for step in run:
                now = time.monotonic()
                if now - told > TELL_EVERY or now >= until:
                    row = asdict(step) | {
                        "seconds": round(now - began, 1),
                        "tokens_per_second": (step.tokens - before) / (now - told),
                    }
                    del row["seconds_left"], row["valid_bits_per_byte"]
                    log.append(row)
                    print(f"  {row}", flush=True)
                    told, before = now, step.tokens
                    part.note(steps=step.step, tokens=step.tokens, log=log)
                if now >= until:
                    break
                if now - saved > every:
                    export(trainer.model, trainer.tokenizer, pieces, **marks(part))
                    saved = now
    except Exception as error:
        part.note(training=failure(error))
    spent = time.monotonic() - began
    part.note(steps=step.step, tokens=step.tokens, tokens_per_second=(step.tokens - first) / spent)
    if part.options.device == "cuda":
        part.note(peak_bytes=torch.cuda.max_memory_allocated())


def marks(part: Part) -> dict[str, Any]:
    """What tells one export from another."""
    return {name: part.found.get(name) for name in ("steps", "tokens")}


def validate(
    pieces: Path, joined: Path, tokenizer: Tokenizer, valid: Corpus, part: Part
) -> dict[str, float]:
    """Join the pieces, as they will be joined, and evaluate what comes out."""
    join(pieces, joined, tokenizer)
    checkpoint = load_checkpoint(joined, device=part.options.device)
    report = evaluate(
        checkpoint.model,
        valid,
        bos=tokenizer.bos_id,
        token_lengths=tokenizer.token_lengths,
        batch_size=len(valid),
        max_tokens=500 if part.options.tiny else None,
    )
    return {
        "bits_per_byte": report.bits_per_byte,
        "word_perplexity": report.word_perplexity,
        "tokens": report.tokens,
    }
