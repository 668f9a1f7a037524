"""How fast text is read: tokens a second of one row and of many."""

from functools import partial

import torch

from benchmarks.gpu_parts.run import Part
from benchmarks.tools.timing import milliseconds
from benchmarks.tools.training import recipe_configs
from streamlm.models.base import Model
from streamlm.models.build import build_model
from streamlm.runtime.stream import score

SEGMENTS = 8  # read in a call: they fill the past


def measure(part: Part) -> None:
    """How fast text is read: tokens a second of one row and of many."""
    options = part.options
    _, config, _ = recipe_configs(options.recipe, tiny=options.tiny)
    torch.manual_seed(0)
    model = build_model(config).to(options.device).eval().requires_grad_(False)
    repeats = 1 if options.tiny else 5
    for rows in (1, 2) if options.tiny else (1, 32, 128):
        for precision in ("float32", "bfloat16"):
            name = f"{rows} rows, {precision}"
            part.attempt(name, partial(reading, model, rows, precision, repeats=repeats))


def reading(model: Model, rows: int, precision: str, *, repeats: int) -> dict[str, float]:
    """Tokens a second of `score`, in a stream whose past is full; bfloat16 is autocast."""
    device, t = model.device.type, model.config.segment_len
    generator = torch.Generator().manual_seed(0)
    ids = torch.randint(model.config.vocab_size, (rows, SEGMENTS * t + 1), generator=generator)
    ids = ids.to(device)
    inputs, targets = ids[:, :-1], ids[:, 1:]
    with torch.autocast(device, dtype=torch.bfloat16, enabled=precision == "bfloat16"):
        _, state = score(model, inputs, targets, model.init_state(rows))
        spent = milliseconds(lambda: score(model, inputs, targets, state), device, repeats=repeats)
    tokens = rows * SEGMENTS * t
    return {"tokens/s": 1e3 * tokens / spent, "ms a segment": spent / SEGMENTS}
