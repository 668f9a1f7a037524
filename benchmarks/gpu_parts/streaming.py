"""One stream of the trained model: speed and memory after a thousand tokens, and after many."""

import tempfile
from pathlib import Path

import torch

from benchmarks.gpu_parts.run import Part
from benchmarks.gpu_parts.train import WEIGHTS
from benchmarks.gpu_parts.weights import LIST, join
from benchmarks.tools.streaming import stream_figures
from benchmarks.tools.training import recipe_configs
from streamlm.checkpoints.checkpoint import load_checkpoint
from streamlm.models.base import Model
from streamlm.models.build import build_model


def measure(part: Part) -> None:
    """One stream: speed and memory after 1,000 tokens, and after 200,000."""
    tiny = part.options.tiny
    sizes = (128, 512, 2, 1) if tiny else (1000, 200_000, 32, 5)
    short, long, rows, repeats = sizes
    model = trained(part)
    part.attempt(
        "figures",
        lambda: stream_figures(model, short=short, long=long, rows=rows, repeats=repeats),
        seconds=20,
    )


def trained(part: Part) -> Model:
    """What `train` has exported; without it, a model with random weights."""
    options = part.options
    tokenizer, config, _ = recipe_configs(options.recipe, tiny=options.tiny)
    pieces = options.out / WEIGHTS
    if (pieces / LIST).exists():
        part.note(weights="trained")
        with tempfile.TemporaryDirectory() as folder:
            join(pieces, Path(folder) / "joined", tokenizer)
            return load_checkpoint(Path(folder) / "joined", device=options.device).model
    part.note(weights="random")
    torch.manual_seed(0)
    return build_model(config).to(options.device).eval().requires_grad_(False)
