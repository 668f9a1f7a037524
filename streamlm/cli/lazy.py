"""Commands whose modules are imported only when called, since importing torch is slow."""

from importlib import import_module
from typing import Any

import typer
from typer.core import TyperCommand, TyperGroup

# The module and attribute of each, and its line in `streamlm --help`: that of its own help.
LAZY = {
    "feed-all": (
        "streamlm.cli.many:feed_all",
        "Feed many documents, each into a session of its own.",
    ),
    "score-all": ("streamlm.cli.many:score_all", "Score many documents, each by itself."),
    "convert": ("streamlm.cli.convert:app", "Convert pretrained weights to a checkpoint."),
    "models": (
        "streamlm.cli.models:app",
        "List models, get one, and show what one is.",
    ),
    "forecast": (
        "streamlm.cli.forecast:app",
        "Forecast time series with linear maps, the Informer or a Transformer.",
    ),
    "calibrate": (
        "streamlm.cli.calibrate:calibrate",
        "Find the attention heads with which a model recalls.",
    ),
    "draft": (
        "streamlm.cli.draft:app",
        "Train and evaluate drafters for generate --draft.",
    ),
    "compare": (
        "streamlm.cli.compare:compare",
        "Train variants of one model, and compare them.",
    ),
}


class LazyCommand(TyperCommand):
    """A placeholder for a command or a group, which is imported when called."""

    def __init__(self, name: str) -> None:
        self._target, line = LAZY[name]
        super().__init__(name, help=line)

    @property
    def real(self) -> Any:
        """The command itself."""
        module, _, attribute = self._target.partition(":")
        found = getattr(import_module(module), attribute)
        if isinstance(found, typer.Typer):
            return typer.main.get_group(found)
        app = typer.Typer(add_completion=False, rich_markup_mode=None)
        app.command(self.name)(found)
        return typer.main.get_command(app)

    @property
    def commands(self) -> dict[str, Any]:
        """The subcommands of a group."""
        return getattr(self.real, "commands", {})

    def make_context(self, *args: Any, **options: Any) -> Any:
        return self.real.make_context(*args, **options)


class LazyGroup(TyperGroup):
    """The top group, with the commands that are imported when called."""

    def __init__(self, **options: Any) -> None:
        super().__init__(**options)
        for name in LAZY:
            self.add_command(LazyCommand(name))
