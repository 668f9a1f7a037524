"""Commands whose modules are imported when they are called: torch takes longer than most help."""

from importlib import import_module
from typing import Any

import typer
from typer.core import TyperCommand, TyperGroup

# Where each is, and what `streamlm --help` says of it: the first sentence of its own help.
LATER = {
    "convert": ("streamlm.cli.convert:app", "Turn pretrained weights into a checkpoint."),
    "forecast": (
        "streamlm.cli.forecast:app",
        "Forecast series: the Informer, and what it is compared with.",
    ),
    "draft": (
        "streamlm.cli.draft:app",
        "Drafters, which guess what a model will write: generate --draft.",
    ),
    "compare": (
        "streamlm.cli.compare:compare",
        "Train variants of one model, each with several seeds, and show the table.",
    ),
}


class Later(TyperCommand):
    """Stands for a command, or a group of them, until it is called."""

    def __init__(self, name: str) -> None:
        self._place, told = LATER[name]
        super().__init__(name, help=told)

    @property
    def real(self) -> Any:
        """The command itself."""
        module, _, attribute = self._place.partition(":")
        found = getattr(import_module(module), attribute)
        if isinstance(found, typer.Typer):
            return typer.main.get_group(found)
        app = typer.Typer(add_completion=False, rich_markup_mode=None)
        app.command(self.name)(found)
        return typer.main.get_command(app)

    @property
    def commands(self) -> dict[str, Any]:
        """Its subcommands."""
        return getattr(self.real, "commands", {})

    def make_context(self, *args: Any, **options: Any) -> Any:
        return self.real.make_context(*args, **options)


class WithLater(TyperGroup):
    """The top group: what is there, and what is imported when it is called."""

    def __init__(self, **options: Any) -> None:
        super().__init__(**options)
        for name in LATER:
            self.add_command(Later(name))
