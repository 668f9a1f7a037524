"""How fast the trainer trains, with and without torch.compile and bfloat16, on made-up tokens."""

import tempfile
import time
import tomllib
from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import torch

from benchmarks.tools.timing import median_interval
from streamlm.config import ModelConfig
from streamlm.training.config import TrainConfig
from streamlm.training.data import Corpus
from streamlm.training.trainer import Trainer
from tokenizer import Tokenizer, load_tokenizer

NEVER = 1 << 30


def recipe_configs(path: Path, *, tiny: bool = False) -> tuple[Tokenizer, ModelConfig, TrainConfig]:
    """A recipe without its data; `tiny` shrinks it so that a CPU can run every part of it."""
    values = tomllib.loads(path.read_text(encoding="utf-8"))
    tokenizer = load_tokenizer(Path(values["data"]["tokenizer"]))
    model = ModelConfig.from_dict({"vocab_size": tokenizer.vocab_size, **values["model"]})
    train = TrainConfig.from_dict(values["train"])
    if tiny:
        shape: dict[str, Any] = {
            "n_layers": 1,
            "d_model": 32,
            "n_heads": 2,
            "head_dim": 16,
            "d_ff": 64,
        }
        lengths: dict[str, Any] = {"segment_len": 32, "memory_len": 32, "compressed_len": 32}
        model = replace(model, **shape, **lengths)
        train = replace(train, batch_size=4, warmup_steps=5)
    return tokenizer, model, train


def made_up(tokenizer: Tokenizer, *, documents: int, tokens: int) -> Corpus:
    """Documents of random tokens: a step costs the same whatever they say."""
    random = np.random.default_rng(0)
    ids = random.integers(0, tokenizer.vocab_size, documents * tokens).astype(np.uint16)
    offsets = np.arange(documents + 1) * tokens
    n_bytes = int(tokenizer.token_lengths[ids].sum())
    return Corpus(ids, offsets, n_bytes, documents * tokens)


def train_steps(
    tokenizer: Tokenizer,
    model: ModelConfig,
    config: TrainConfig,
    *,
    device: str,
    warm_up: int,
    steps: int,
    seconds: float = 60.0,
) -> dict[str, Any]:
    """Time optimiser steps, after as many segments as fill the memory.

    Args:
        warm_up: steps that are not timed (compilation, filling the memory); their losses count.
        seconds: stop after so many, with at least three steps timed.
    """
    corpus = made_up(tokenizer, documents=config.batch_size, tokens=64 * model.segment_len)
    never: dict[str, Any] = {"checkpoint_steps": NEVER, "eval_steps": NEVER, "log_steps": NEVER}
    config = replace(config, steps=NEVER, **never)
    cuda = torch.device(device).type == "cuda"
    if cuda:
        torch.cuda.empty_cache()
        torch.cuda.reset_peak_memory_stats()
    torch.compiler.reset()
    with tempfile.TemporaryDirectory() as folder:
        trainer = Trainer(
            model,
            config,
            tokenizer=tokenizer,
            train=corpus,
            valid=corpus,
            folder=folder,
            device=device,
        )
        losses: list[float] = []
        spent: list[float] = []
        last = began = time.perf_counter()
        warm_up_seconds = 0.0
        for step in trainer.run():  # a step ends with a transfer to the CPU, so it is complete
            now = time.perf_counter()
            losses.append(step.loss)
            if step.step > warm_up:
                spent.append(now - last)
            else:
                warm_up_seconds = now - began
            last = now
            if len(spent) >= steps or (len(spent) >= 3 and now - began > seconds):
                break
    per_step = config.batch_size * config.accumulate * config.unroll * model.segment_len
    median = float(np.median(spent))
    return {
        "parameters": sum(p.numel() for p in trainer.model.parameters()),
        "precision": config.precision,
        "compiled": config.compile,
        "tokens_per_step": per_step,
        "warm_up_seconds": warm_up_seconds,
        "step_ms": median_interval([s * 1000 for s in spent]),
        "tokens_per_second": per_step / median,
        "losses": losses,
        "peak_cuda_bytes": torch.cuda.max_memory_allocated() if cuda else None,
    }


def ways_of_training(
    tokenizer: Tokenizer,
    model: ModelConfig,
    config: TrainConfig,
    *,
    device: str,
    steps: int,
    warm_up: int,
    seconds: float,
    compiled: Sequence[bool] = (False, True),
) -> dict[str, Any]:
    """The same steps in float32 and bfloat16, compiled and not: time, and how losses agree.

    Args:
        compiled: whether to compile; both by default.
    """
    # Dropout draws other numbers in compiled code, so losses are compared without it.
    model = replace(model, dropout=0.0, attention_dropout=0.0)
    found: dict[str, Any] = {}
    for precision in ("float32", "bfloat16"):
        for compile_ in compiled:
            name = f"{precision}, {'compiled' if compile_ else 'eager'}"
            way = replace(config, precision=precision, compile=compile_)
            try:
                found[name] = train_steps(
                    tokenizer,
                    model,
                    way,
                    device=device,
                    warm_up=warm_up,
                    steps=steps,
                    seconds=seconds,
                )
            except Exception as error:  # one way that fails must not hide the others
                found[name] = {"error": f"{type(error).__name__}: {str(error)[:2000]}"}
    base = found["float32, eager"]
    for name, way_ in found.items():
        if "error" in way_ or "error" in base:
            continue
        pairs = list(zip(way_["losses"], base["losses"], strict=False))
        way_["largest_loss_difference"] = max(abs(a - b) for a, b in pairs)
        way_["first_loss_difference"] = abs(pairs[0][0] - pairs[0][1])
        way_["speed_up"] = base["step_ms"]["median"] / way_["step_ms"]["median"]
        found[name] = way_
    return found
