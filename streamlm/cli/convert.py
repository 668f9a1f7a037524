"""`streamlm convert`: pretrained weights as checkpoints."""

from pathlib import Path
from typing import Annotated

import typer

from streamlm.checkpoints.transfo_xl import convert_transfo_xl
from streamlm.cli.display import note, output

app = typer.Typer(
    no_args_is_help=True,
    rich_markup_mode=None,
    help="Turn pretrained weights into a checkpoint.",
)


@app.callback()
def _top() -> None:
    pass


@app.command("transfo-xl")
def transfo_xl(
    folder: Annotated[
        Path, typer.Argument(metavar="DIR", help="Holds config.json and the weights.")
    ],
    out: Annotated[Path, typer.Argument(metavar="OUT", help="A new folder.")],
) -> None:
    """Convert a Transformer-XL: a Hugging Face directory, or a state dict of the authors' code."""
    for sentence in convert_transfo_xl(folder, out):
        note(sentence)
    output.print(str(out))
