"""A plugin for the `llm` command: the models of streamlm that are on this computer."""

from pathlib import Path
from typing import Any

import click
import llm

from llm_streamlm.model import StreamlmModel
from streamlm.checkpoints.catalogue import present


def folder() -> Path:
    """Where the sessions of conversations are stored: a folder for each model."""
    return Path(llm.user_dir()) / "streamlm"


@llm.hookimpl
def register_models(register: Any) -> None:
    """`streamlm/NAME` for each model that is here; `streamlm` is the best of them."""
    for number, name in enumerate(present()):
        model = StreamlmModel(name, folder=folder() / name)
        register(model, aliases=() if number else ("streamlm",))


@llm.hookimpl
def register_commands(cli: click.Group) -> None:
    """`llm streamlm path`, as `llm logs path`."""

    @cli.group(name="streamlm")
    def group() -> None:
        """Sessions of the models of streamlm."""

    @group.command(name="path")
    def path() -> None:
        """Print the folder with the sessions of conversations."""
        click.echo(folder())
