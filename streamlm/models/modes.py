"""Training and evaluation mode of a module, for as long as a piece of work takes."""

from collections.abc import Iterator
from contextlib import contextmanager

from torch import nn


@contextmanager
def in_mode(module: nn.Module, *, training: bool) -> Iterator[None]:
    """Put a module and its submodules into one mode, and give each its own back at the end.

    The mode comes back however the work ends: an exception and Ctrl-C leave the module as it was.

    Args:
        training: True for `module.train()`, False for `module.eval()`.
    """
    before = [(each, each.training) for each in module.modules()]
    try:
        module.train(training)
        yield
    finally:
        # As a whole first, because training thaws a model; see `Model.train`.
        module.train(before[0][1])
        for each, was_training in before:
            each.training = was_training
