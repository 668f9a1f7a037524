"""`streamlm convert`: convert pretrained weights to checkpoints."""

from pathlib import Path
from typing import Annotated

import typer

from streamlm.checkpoints.transfo_xl import convert_transfo_xl
from streamlm.cli.display import note, output

app = typer.Typer(
    no_args_is_help=True,
    rich_markup_mode=None,
    help="Convert pretrained weights to a checkpoint.",
)


@app.callback()
def _top() -> None:
    pass


@app.command("transfo-xl")
def transfo_xl(
    folder: Annotated[
        Path, typer.Argument(metavar="DIR", help="Folder with config.json and the weights.")
    ],
    out: Annotated[Path, typer.Argument(metavar="OUT", help="Folder to create.")],
) -> None:
    """Convert a Transformer-XL.

    DIR is a Hugging Face directory, or has a state dict of the authors' code.
    """
    for sentence in convert_transfo_xl(folder, out):
        note(sentence)
    output.print(str(out))
