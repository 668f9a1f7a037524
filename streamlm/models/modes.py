"""A context manager for training and evaluation mode."""

from collections.abc import Iterator
from contextlib import contextmanager

from torch import nn


@contextmanager
def in_mode(module: nn.Module, *, training: bool) -> Iterator[None]:
    """Set the mode of a module and its submodules, and restore each one's own mode on exit.

    Modes are also restored after an exception or Ctrl-C.

    Args:
        training: True for `module.train()`, False for `module.eval()`.
    """
    before = [(each, each.training) for each in module.modules()]
    try:
        module.train(training)
        yield
    finally:
        # The module first, because `Model.train(True)` unfreezes; then each submodule.
        module.train(before[0][1])
        for each, was_training in before:
            each.training = was_training
