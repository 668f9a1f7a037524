"""The Linformer's own task: masked tokens of books, and time and memory beside fused attention.

    python -m benchmarks.linformer --threads 1          # goes on from what --runs holds
    python -m benchmarks.linformer --steps 50 --lengths 512 1024       # a quick look

Encoders that differ in their attention alone begin with the same weights where they share them, and
read the same windows. The table has the lengths of the paper's, but beside attention in one fused
kernel, not beside one that writes all its n² weights to memory.
"""

import argparse
import hashlib
import json
import time
from collections.abc import Callable
from dataclasses import asdict, replace
from functools import partial
from itertools import islice
from pathlib import Path
from typing import Any

import numpy as np
import torch
from rich.table import Table

from benchmarks.tools.timing import median_interval, ratio
from streamlm.checkpoints.checkpoint import choose_device
from streamlm.cli.allocator import return_freed_memory
from streamlm.cli.display import bar, output
from streamlm.lab.results import (
    describe,
    peak_memory,
    reset_peak_memory,
    usable_cores,
    write_results,
)
from streamlm.models.encoder import Encoder, EncoderConfig, masked_windows
from streamlm.models.heads.linformer import SelfAttention, projections
from streamlm.plots.style import BLUE, GREEN, GREY, ORANGE, panels, save, tokens_text
from streamlm.training.data import Corpus
from streamlm.training.recipe import Recipe

ENCODER: dict[str, Any] = {"n_layers": 2, "d_model": 128, "d_ff": 512, "window": 256}
PROJECTED, BATCH, RATE, WARMUP = 64, 8, 2e-3, 50
TESTED = 32  # batches that the loss is measured on
VARIANTS: dict[str, dict[str, Any]] = {
    "full attention": {"projected_len": 0},
    "linear, none shared": {"sharing": "none"},
    "linear, headwise": {"sharing": "headwise"},
    "linear, key-value": {"sharing": "key-value"},
    "linear, layerwise": {"sharing": "layerwise"},
    "mean pooling": {"projection": "pool"},
    "convolution": {"projection": "conv"},
}
WIDTH, HEADS = 256, 4  # of the attention that is timed
LENGTHS = [512, 1024, 2048, 4096, 8192, 16384, 32768, 65536]
KS = (128, 256)
# Times as fast, with k = 128 and 256 (the paper's table 3; against attention that is not fused).
PAPER = {512: (1.5, 1.3), 4096: (3.4, 3.2), 16384: (8.6, 7.8), 65536: (20, 18)}


def begin(config: EncoderConfig, seed: int) -> Encoder:
    """Weights that the seed says, whatever the attention; its own matrices come last."""
    torch.manual_seed(seed)
    full = Encoder(replace(config, projected_len=0))
    encoder = Encoder(config)
    encoder.load_state_dict({**encoder.state_dict(), **full.state_dict()})
    return encoder


def guess(
    config: EncoderConfig,
    train: Corpus,
    valid: Corpus,
    *,
    steps: int,
    seed: int,
    device: torch.device,
    runs: Path,
    progress: Callable[[], object],
) -> dict[str, Any]:
    """The loss of a trained encoder on windows it never saw, from `runs` where it is there."""
    facts = {**asdict(config), "steps": steps, "seed": seed, "batch": BATCH}
    file, found = _kept(runs, facts)
    if found is not None:
        for _ in range(steps):
            progress()
        return found
    encoder = begin(config, seed).to(device)
    optimizer = torch.optim.AdamW(encoder.parameters(), lr=RATE, weight_decay=0.01)
    options = {"window": config.window, "batch_size": BATCH, "vocab_size": config.vocab_size}
    started = time.perf_counter()
    windows = masked_windows(train.tokens, seed=seed, **options)
    for step, batch in enumerate(islice(windows, steps)):
        share = min(1, (step + 1) / WARMUP) * (1 - step / steps)
        for group in optimizer.param_groups:
            group["lr"] = RATE * share
        loss = encoder.loss(batch.to(device))
        optimizer.zero_grad()
        loss.backward()
        torch.nn.utils.clip_grad_norm_(encoder.parameters(), 1.0)
        optimizer.step()
        progress()
    seconds = time.perf_counter() - started
    tested = islice(masked_windows(valid.tokens, seed=1 << 20, **options), TESTED)
    with torch.no_grad():
        losses = [float(encoder.loss(batch.to(device))) for batch in tested]
    found = {
        "loss": float(np.mean(losses)),
        "parameters": sum(weight.numel() for weight in encoder.parameters()),
        "seconds": seconds,
    }
    file.write_text(json.dumps(found), encoding="utf-8")
    return found


def _kept(runs: Path, facts: dict[str, Any]) -> tuple[Path, dict[str, Any] | None]:
    """Where figures that these facts lead to are kept, and the figures where they are there."""
    runs.mkdir(parents=True, exist_ok=True)
    file = runs / f"{hashlib.sha256(json.dumps(facts).encode()).hexdigest()[:16]}.json"
    return file, json.loads(file.read_text(encoding="utf-8")) if file.exists() else None


def speed(
    n: int,
    k: int,
    *,
    device: torch.device,
    repeats: int,
    runs: Path,
    progress: Callable[[], object],
) -> dict[str, Any]:
    """One layer of attention over n tokens: full and shortened to k, in turns."""
    facts = {
        "n": n,
        "k": k,
        "width": [WIDTH, HEADS],
        "repeats": repeats,
        "machine": describe(str(device)),
    }
    file, found = _kept(runs, facts)
    if found is not None:
        for _ in range(repeats + 1):
            progress()
        return found
    lengths = projections(1, HEADS, WIDTH // HEADS, n=n, k=k, kind="linear", sharing="layerwise")[0]
    layers = {
        "full": SelfAttention(WIDTH, HEADS, None).to(device),
        "short": SelfAttention(WIDTH, HEADS, lengths).to(device),
    }
    x = torch.randn(1, n, WIDTH, device=device)
    times: dict[str, list[float]] = {name: [] for name in layers}
    peaks = {}
    with torch.no_grad():
        for index in range(repeats + 1):
            for name, layer in layers.items():
                before = _begin_peak(device)
                started = time.perf_counter()
                layer(x)
                if device.type == "cuda":
                    torch.cuda.synchronize(device)
                spent = time.perf_counter() - started
                if index or n >= 1 << 14:  # where a call takes long, none is needed to warm up
                    times[name].append(spent)
                peaks[name] = max(peaks.get(name, 0), _peak(device) - before)
            progress()
    full, short = times["full"], times["short"]
    found = {
        "n": n,
        "k": k,
        "full_ms": median_interval([s * 1000 for s in full]),
        "short_ms": median_interval([s * 1000 for s in short]),
        "times_as_fast": ratio(full, short),
        "peak_bytes": peaks,
        "times_less_memory": peaks["full"] / max(1, peaks["short"]),
    }
    file.write_text(json.dumps(found), encoding="utf-8")
    return found


def _begin_peak(device: torch.device) -> int:
    if device.type == "cuda":
        torch.cuda.reset_peak_memory_stats(device)
        return torch.cuda.memory_allocated(device)
    reset_peak_memory()
    return peak_memory()


def _peak(device: torch.device) -> int:
    return torch.cuda.max_memory_allocated(device) if device.type == "cuda" else peak_memory()


def show(figures: dict[str, Any]) -> None:
    """Both tables."""
    table = Table(title=f"masked tokens of books: nats a token, windows of {ENCODER['window']}")
    for column in ("attention", "loss", "lowest – highest seed", "parameters", "seconds"):
        table.add_column(column, justify="left" if column == "attention" else "right")
    for name, found in figures["guessing"].items():
        losses = [each["loss"] for each in found]
        table.add_row(
            name,
            f"{np.mean(losses):.4f}",
            f"{min(losses):.4f} – {max(losses):.4f}",
            f"{found[0]['parameters']:,}",
            f"{np.mean([each['seconds'] for each in found]):.0f}",
        )
    output.print(table)
    table = Table(title="one layer beside fused full attention")
    for column in ("tokens", "k", "full, ms", "short, ms", "times as fast", "less memory", "paper"):
        table.add_column(column, justify="right")
    for row in figures["speed"]:
        paper = PAPER.get(row["n"])
        table.add_row(
            f"{row['n']:,}",
            str(row["k"]),
            f"{row['full_ms']['median']:.1f}",
            f"{row['short_ms']['median']:.1f}",
            f"{row['times_as_fast']['median']:.1f}",
            f"{row['times_less_memory']:.1f}",
            f"{paper[KS.index(row['k'])]}" if paper and row["k"] in KS else "",
        )
    output.print(table)


def draw(figures: dict[str, Any], path: Path) -> None:
    """Losses, and times as fast along the length."""
    figure, (losses, times) = panels(2, size=(9, 3.2), widths=[1.1, 1])
    names = list(figures["guessing"])
    for place, name in enumerate(names):
        each = [found["loss"] for found in figures["guessing"][name]]
        colour = ORANGE if name == names[0] else BLUE
        losses.plot([min(each), max(each)], [place, place], color=colour)
        losses.plot(np.mean(each), place, "o", color=colour)
    losses.set_yticks(range(len(names)), names)
    losses.set_ylim(len(names) - 0.5, -0.5)
    losses.set_xlabel("nats a masked token")
    losses.set_title("Masked tokens of books")
    for k, colour in zip(KS, (BLUE, GREEN), strict=True):
        rows = [row for row in figures["speed"] if row["k"] == k]
        if not rows:
            continue
        x = [row["n"] for row in rows]
        times.plot(x, [row["times_as_fast"]["median"] for row in rows], "o-", color=colour)
        above = k == KS[0]
        times.annotate(
            f"k = {k}",
            (x[-2], rows[-2]["times_as_fast"]["median"]) if len(rows) > 1 else (x[0], 1),
            xytext=(-8, 6) if above else (8, -6),
            textcoords="offset points",
            color=colour,
            ha="right" if above else "left",
            va="bottom" if above else "top",
        )
    times.axhline(1, color=GREY, linewidth=1)
    times.set_xscale("log", base=2)
    times.set_yscale("log")
    times.xaxis.set_major_formatter(lambda value, _: tokens_text(value))
    times.yaxis.set_major_formatter(lambda value, _: f"{value:g}")
    times.set_xlabel("tokens")
    times.set_title("Times as fast as fused attention")
    save(figure, path)


def main(arguments: list[str] | None = None) -> None:
    parser = argparse.ArgumentParser(
        prog="python -m benchmarks.linformer",
        description=__doc__,
        formatter_class=argparse.RawDescriptionHelpFormatter,
    )
    parser.add_argument("--recipe", type=Path, default=Path("recipes/compare-small.toml"))
    parser.add_argument("--steps", type=int, default=500, help="of each encoder")
    parser.add_argument("--seeds", type=int, default=2)
    parser.add_argument("--lengths", type=int, nargs="*", default=LENGTHS)
    parser.add_argument("--repeats", type=int, default=5, help="of each time, once from 16,384 on")
    parser.add_argument("--threads", type=int)
    parser.add_argument("--device", default="auto")
    parser.add_argument("--runs", type=Path, default=Path("runs/linformer"))
    parser.add_argument("--out", type=Path, default=Path("benchmarks/results"))
    options = parser.parse_args(arguments)
    torch.set_num_threads(options.threads or usable_cores())
    return_freed_memory()  # or peaks would hide in what was freed before
    device = choose_device(options.device)
    recipe = Recipe.load(options.recipe)
    tokenizer = recipe.own_tokenizer()
    train, valid = recipe.corpora(tokenizer, cache=options.runs.parent / "cache")
    figures: dict[str, Any] = {"guessing": {}, "speed": []}
    n_times = sum(_repeats(n, options.repeats) + 1 for n in options.lengths) * len(KS)
    total = options.steps * options.seeds * len(VARIANTS) + n_times
    with bar("encoders and times", total=total) as (progress, task):
        step = partial(progress.advance, task)
        for n in options.lengths:
            for k in KS:
                repeats = _repeats(n, options.repeats)
                figures["speed"].append(
                    speed(n, k, device=device, repeats=repeats, runs=options.runs, progress=step)
                )
        for name, variant in VARIANTS.items():
            config = EncoderConfig(
                **{
                    **ENCODER,
                    "vocab_size": tokenizer.vocab_size,
                    "projected_len": PROJECTED,
                    **variant,
                }
            )
            figures["guessing"][name] = [
                guess(
                    config,
                    train,
                    valid,
                    steps=options.steps,
                    seed=seed,
                    device=device,
                    runs=options.runs,
                    progress=step,
                )
                for seed in range(1, options.seeds + 1)
            ]
    settings = {
        "steps": options.steps,
        "seeds": options.seeds,
        "batch_size": BATCH,
        "encoder": ENCODER,
        "projected_len": PROJECTED,
        "threads": torch.get_num_threads(),
        "timed": {"d_model": WIDTH, "n_heads": HEADS},
    }
    write_results(options.out / "linformer.json", device=device, settings=settings, figures=figures)
    draw(figures, options.out / "linformer.png")
    show(figures)


def _repeats(n: int, repeats: int) -> int:
    return repeats if n < 1 << 14 else 1


if __name__ == "__main__":
    main()
