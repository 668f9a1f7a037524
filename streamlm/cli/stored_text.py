"""`streamlm sessions text`: what a session has read and generated, as text."""

import json
import sys
from typing import Annotated

import typer

from streamlm.cli.options import Json, Name, SessionModel, Store
from streamlm.sessions.shelf import find, missing_branch

READ_AT_ONCE = 1 << 16  # tokens


def text(
    name: Name,
    start: Annotated[int, typer.Option("--from", min=0, help="First token to print.")] = 0,
    stop: Annotated[
        int | None, typer.Option("--to", min=0, help="Token to stop before; default: the newest.")
    ] = None,
    store: Store = "sessions",
    model: SessionModel = None,
    as_json: Json = False,
) -> None:
    """Print the text that a session has read and generated.

    Only the tokenizer of MODEL is loaded.
    """
    opened, branch = find(store, name)
    ref = opened.head(branch)
    if ref is None:
        raise missing_branch(opened, name)
    last = ref.position if stop is None else stop
    if not 0 <= start <= last <= ref.position:
        raise ValueError(f"--from {start} --to {last}; allowed: a part of 0 to {ref.position}")
    from streamlm.checkpoints.sources import find_model
    from streamlm.sessions.search import check_tokenizer
    from streamlm.sessions.windows import recorded_model
    from tokenizer import StreamDecoder

    source = recorded_model(opened) if model is None else model
    tokenizer = find_model(source).read_tokenizer()
    check_tokenizer(opened, tokenizer)
    if as_json:
        found = tokenizer.decode(opened.tokens(ref, start, last))
        print(json.dumps({"name": name, "from": start, "to": last, "text": found}))
        return
    decoder = StreamDecoder(tokenizer)
    for at in range(start, last, READ_AT_ONCE):
        ids = opened.tokens(ref, at, min(at + READ_AT_ONCE, last))
        sys.stdout.write(decoder.decode(ids.tolist()))
    sys.stdout.write(decoder.flush() + "\n")
