"""The recipe's training steps, compiled and not, in float32 and bfloat16."""

from benchmarks.gpu_parts.run import Part
from benchmarks.tools.training import recipe_configs, ways_of_training


def measure(part: Part) -> None:
    """The recipe's training steps, compiled and not, in float32 and bfloat16."""
    options = part.options
    tokenizer, model, config = recipe_configs(options.recipe, tiny=options.tiny)
    if not options.compile:
        part.skip("compiled", "not asked for, or a dry run")
    ways = ways_of_training(
        tokenizer,
        model,
        config,
        device=options.device,
        warm_up=2 if options.tiny else 12,
        steps=3 if options.tiny else 20,
        seconds=20,
        compiled=(False, True) if options.compile else (False,),
    )
    part.note(**ways)
