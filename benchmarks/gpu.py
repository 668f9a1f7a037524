"""Every check and figure that needs a GPU, in one call.

    python -m benchmarks.gpu                            # needs CUDA; else as below
    python -m benchmarks.gpu --device cpu               # the same code with tiny sizes
    python -m benchmarks.gpu --parts parity training    # some parts only

It needs torch, numpy, safetensors and sentencepiece, and pytest for the tests; neither Zarr nor
Gradio nor any data: tokens are made up, weights are random. Parts run one after another; one that
fails is reported, and the others go on. The result file is written anew after each part.
"""

import argparse
import re
import subprocess
import sys
import time
import traceback
from collections.abc import Callable
from functools import partial
from pathlib import Path
from typing import Any

import torch

import benchmarks.tools.without_store  # noqa: F401  must come before streamlm
from benchmarks.tools import parity
from benchmarks.tools.streaming import stream_figures
from benchmarks.tools.training import recipe_configs, train_steps, ways_of_training
from streamlm.config import COMPRESSIONS
from streamlm.lab.results import describe, write_results
from streamlm.models.build import build_model

ROOT = Path(__file__).resolve().parents[1]
LIMIT = 1e-4  # relative difference of float32 results that counts as agreement


def run_tests(options: argparse.Namespace) -> dict[str, Any]:
    """`pytest -m cuda`, one test file after another; a file whose imports fail is skipped."""
    found: dict[str, Any] = {}
    for path in sorted((ROOT / "tests").glob("test_*.py")):
        if "mark.cuda" not in path.read_text(encoding="utf-8"):
            continue
        command = [sys.executable, "-m", "pytest", "-q", "-m", "cuda", "-W", "default"]
        command += ["-p", "benchmarks.tools.without_store", "-p", "no:cacheprovider", str(path)]
        result = subprocess.run(command, cwd=ROOT, capture_output=True, text=True)
        text = result.stdout + result.stderr
        missing = re.search(r"(?:ModuleNotFoundError: )?No module named '?([\w.]+)'?", text)
        lines = text.strip().splitlines()
        if result.returncode and missing:
            found[path.name] = f"skipped: no module named {missing[1]}"
        elif result.returncode in (0, 5):  # 5: no test was selected
            found[path.name] = lines[-1]
        else:
            found[path.name] = "FAILED\n" + "\n".join(lines[-60:])
    found["agrees"] = not any(str(text).startswith("FAILED") for text in found.values())
    return found


def run_parity(options: argparse.Namespace) -> dict[str, Any]:
    """Largest differences between the device and the CPU, float32, for every compression."""
    found: dict[str, Any] = {
        f"training, {kind}, {loss}": parity.between_devices(kind, loss, options.device)
        for kind, loss in parity.CASES
    }
    for kind in COMPRESSIONS:
        found[f"token by token, {kind}"] = parity.streaming(kind, options.device)
        found[f"state moved, {kind}"] = parity.moved(kind, options.device)
    worst = max(value for case in found.values() for value in case.values())
    return {"largest": worst, "agrees": worst < LIMIT, "cases": found}


def run_bfloat16(options: argparse.Namespace) -> dict[str, Any]:
    """A training step under bfloat16 autocast beside float32, both on the device."""
    cases = {
        f"{kind}, {loss}": parity.between_precisions(kind, loss, options.device)
        for kind, loss in parity.CASES
    }
    return {"largest_loss_difference": max(c["language_loss"] for c in cases.values()), **cases}


def run_compile(options: argparse.Namespace) -> dict[str, Any]:
    """The recipe's steps, compiled and not, in float32 and bfloat16."""
    tokenizer, model, config = recipe_configs(options.recipe, tiny=options.tiny)
    return ways_of_training(
        tokenizer,
        model,
        config,
        device=options.device,
        warm_up=4 if options.tiny else 12,
        steps=options.steps,
        seconds=options.seconds,
    )


def run_training(options: argparse.Namespace) -> dict[str, Any]:
    """The recipe as it stands: tokens per second, and how long the whole run would take."""
    tokenizer, model, config = recipe_configs(options.recipe, tiny=options.tiny)
    found = train_steps(
        tokenizer,
        model,
        config,
        device=options.device,
        warm_up=4 if options.tiny else 12,
        steps=4 * options.steps,
        seconds=options.seconds,
    )
    if not options.tiny:
        hours = config.steps * found["tokens_per_step"] / found["tokens_per_second"] / 3600
        found["whole_run_hours"] = hours
    return found


def run_streaming(options: argparse.Namespace) -> dict[str, Any]:
    """One stream: reading and writing speed, time and memory after 1,000 and 200,000 tokens."""
    _, config, _ = recipe_configs(options.recipe, tiny=options.tiny)
    torch.manual_seed(0)
    model = build_model(config).to(options.device).requires_grad_(False).freeze()
    sizes = {"short": 256, "long": 2048, "rows": 4} if options.tiny else {}
    return stream_figures(
        model, **{"short": 1000, "long": 200_000, "rows": 32, "repeats": options.steps, **sizes}
    )


PARTS: dict[str, Callable[[argparse.Namespace], dict[str, Any]]] = {
    "tests": run_tests,
    "parity": run_parity,
    "bfloat16": run_bfloat16,
    "compile": run_compile,
    "training": run_training,
    "streaming": run_streaming,
}


def attempt(part: Callable[[], dict[str, Any]]) -> dict[str, Any]:
    """What a part found, or how it failed."""
    started = time.perf_counter()
    try:
        found = part()
    except Exception as error:
        found = {"error": f"{type(error).__name__}: {error}", "trace": traceback.format_exc()}
    return {"seconds": round(time.perf_counter() - started, 1), **found}


def main(arguments: list[str] | None = None) -> None:
    parser = argparse.ArgumentParser(
        prog="python -m benchmarks.gpu",
        description=__doc__,
        formatter_class=argparse.RawDescriptionHelpFormatter,
    )
    parser.add_argument("--device", default="cuda")
    parser.add_argument("--parts", nargs="+", choices=list(PARTS), default=list(PARTS))
    parser.add_argument("--recipe", type=Path, default=ROOT / "recipes" / "books-gpu.toml")
    parser.add_argument("--steps", type=int, help="training steps timed")
    parser.add_argument("--seconds", type=float, default=60, help="limit for each way of training")
    parser.add_argument("--out", type=Path, default=Path("benchmarks/results/gpu.json"))
    options = parser.parse_args(arguments)
    if torch.device(options.device).type == "cuda" and not torch.cuda.is_available():
        print("no CUDA device here: the same checks on the CPU, with tiny sizes", flush=True)
        options.device = "cpu"
    options.tiny = torch.device(options.device).type == "cpu"
    options.steps = options.steps or (3 if options.tiny else 20)
    print(describe(options.device), flush=True)
    figures: dict[str, Any] = {}
    for name in options.parts:
        print(f"\n{name}: {(PARTS[name].__doc__ or '').strip()}", flush=True)
        figures[name] = attempt(partial(PARTS[name], options))
        for key, value in figures[name].items():
            print(f"  {key}: {value}", flush=True)
        settings = {"tiny": options.tiny, "recipe": options.recipe.name, "parts": options.parts}
        write_results(options.out, settings=settings, figures=figures, device=options.device)
    failed = [n for n, found in figures.items() if "error" in found or found.get("agrees") is False]
    outcome = f"FAILED: {', '.join(failed)}" if failed else "all ran"
    print(f"\nwritten to {options.out}; {outcome}")
    sys.exit(bool(failed))


if __name__ == "__main__":
    main()
