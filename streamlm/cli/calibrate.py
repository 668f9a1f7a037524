"""`streamlm calibrate`: find a model's retrieval heads, and write them beside it."""

import json
from importlib import resources
from pathlib import Path
from typing import Annotated

import typer

from streamlm.checkpoints.checkpoint import load_checkpoint
from streamlm.checkpoints.retrieval import RETRIEVAL_FILE, write_retrieval
from streamlm.cli.display import bar, interruptible, output, show_rows, show_table
from streamlm.cli.options import MODEL_HELP, Device, Json, check_text
from streamlm.lab.calibration import Calibration, steps
from streamlm.lab.calibration import calibrate as measure
from streamlm.models.llama_config import LlamaConfig

# What facts are asked for by; see `lab.tasks.facts`.
FORMS = {"cue": "their beginning", "question": "a question", "told": "other words"}


def calibrate(
    model: Annotated[str, typer.Argument(metavar="MODEL", help=MODEL_HELP)],
    out: Annotated[
        Path | None,
        typer.Option(
            dir_okay=False, metavar="FILE", help="The file to write; default: in MODEL's directory."
        ),
    ] = None,
    text: Annotated[
        Path | None,
        typer.Option(
            dir_okay=False, metavar="FILE", help="Text to plant facts in; default: a book."
        ),
    ] = None,
    tokens: Annotated[int, typer.Option(min=1, help="Tokens of it to read.")] = 12_000,
    facts: Annotated[int, typer.Option(min=1, help="Facts to plant and to ask about.")] = 48,
    device: Device = "auto",
    as_json: Json = False,
) -> None:
    """Find the attention heads with which a model recalls.

    Invented facts are planted in a text, and every head is measured: does it attend from a question
    to its answer? The best heads are written to retrieval.json. A model loads those of its
    directory; --setting retrieval=FILE names others. Sessions then keep the keys of these heads.
    """
    target = _target(model) if out is None else out
    if text is None:
        book = resources.files("streamlm") / "assets" / "books" / "beyond-the-city.txt"
        content = book.read_text(encoding="utf-8")
    else:
        check_text(text)
        content = text.read_text(encoding="utf-8")
    with interruptible(lambda: "nothing was written"):
        # The heads that the model may have already play no part, even if their file is damaged.
        checkpoint = load_checkpoint(model, device=device, settings={"retrieval": False})
        total = steps(checkpoint, tokens=tokens, n_facts=facts)
        with bar(f"calibrating {checkpoint.name}", total=total) as (progress, task):
            found = measure(
                checkpoint,
                content,
                tokens=tokens,
                n_facts=facts,
                progress=lambda n: progress.advance(task, n),
            )
        write_retrieval(target, found.heads, measured=found.to_json())
    config = checkpoint.model.config
    assert isinstance(config, LlamaConfig)
    n_bytes = found.heads.bytes_per_token(config)
    if as_json:
        heads = [list(pair) for pair in found.heads.heads]
        said = {**found.to_json(), "heads": heads, "bytes_per_token": n_bytes, "path": str(target)}
        print(json.dumps(said))
        return
    _show(found)
    show_rows({"archive": f"{n_bytes} bytes a token", "written": str(target)})


def _target(model: str) -> Path:
    """The file in a model's directory.

    Raises:
        ValueError: the model is a name or a file.
    """
    if not Path(model).is_dir():
        raise ValueError(
            f"calibrate {model!r} without --out; allowed: a model's directory, or with --out FILE, "
            "which --setting retrieval=FILE then names"
        )
    return Path(model) / RETRIEVAL_FILE


def _show(found: Calibration) -> None:
    alone = {(layer, head): share for layer, head, share in found.alone}
    cells = [
        (str(layer), str(head), f"{alone[layer, head]:.0%}") for layer, head in found.heads.heads
    ]
    columns = ("layer", "head", "found alone")
    show_table(columns, cells, right=columns)
    together = ", ".join(f"{share:.0%} by {FORMS[form]}" for form, share in found.found.items())
    output.print(f"found together: {together}; {found.facts} facts in {found.tokens:,} tokens")
