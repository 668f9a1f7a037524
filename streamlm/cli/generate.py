"""`streamlm generate`: continue a session, or a prompt alone."""

import json
import sys
import time
from itertools import chain
from pathlib import Path
from typing import Annotated, Any

import typer

from streamlm.cli.display import interruptible
from streamlm.cli.options import Device, Json, Model, SessionName, Store, open_optional


def generate(
    session: SessionName = None,
    prompt: Annotated[str, typer.Option(help="Text to read before writing.")] = "",
    max_tokens: Annotated[int, typer.Option(help="Tokens to write at most.")] = 256,
    temperature: Annotated[float, typer.Option(help="0 always takes the likeliest token.")] = 0.8,
    top_k: Annotated[int, typer.Option(help="Keep the k likeliest tokens; 0 is off.")] = 0,
    top_p: Annotated[float, typer.Option(help="Keep the likeliest up to this sum.")] = 0.95,
    min_p: Annotated[float, typer.Option(help="Least share of the likeliest one's odds.")] = 0.0,
    repetition_penalty: Annotated[float, typer.Option(help="Above 1 avoids recent tokens.")] = 1.0,
    stop: Annotated[
        list[str] | None, typer.Option(help=r"End at this text; \n and \t are understood.")
    ] = None,
    seed: Annotated[int | None, typer.Option(help="Begin the random numbers anew.")] = None,
    keep: Annotated[
        bool, typer.Option("--keep/--no-keep", help="Make what is written part of the session.")
    ] = True,
    draft: Annotated[
        Path | None, typer.Option(metavar="DIR", help="A drafter: faster, and as likely.")
    ] = None,
    store: Store = "sessions",
    model: Model = "books",
    device: Device = "auto",
    as_json: Json = False,
) -> None:
    """Write on where a session stands. With no session, continue the prompt alone."""
    from streamlm.runtime.sampling import unescaped

    kept = session is not None and keep
    left_behind = f"session {session} has what was written" if kept else "nothing is kept"
    with (
        interruptible(lambda: left_behind),
        open_optional(store, session, model, device, readonly=not keep) as opened,
    ):
        writer = opened if keep else opened.fork()
        drafter = None
        if draft is not None:
            from streamlm.runtime.drafter import load_drafter

            drafter = load_drafter(draft, opened.checkpoint)
        before, started = writer.position, time.perf_counter()
        pieces = writer.generate(
            prompt,
            max_tokens=max_tokens,
            temperature=temperature,
            top_k=top_k,
            top_p=top_p,
            min_p=min_p,
            repetition_penalty=repetition_penalty,
            stop=[unescaped(text) for text in stop or ()],
            seed=seed,
            drafter=drafter,
        )
        if as_json:
            text = "".join(pieces)
            seconds, n = time.perf_counter() - started, writer.position - before
            facts: dict[str, Any] = {"text": text, "tokens": n, "position": writer.position}
            print(json.dumps(facts | {"seconds": seconds, "tokens_per_second": n / seconds}))
            return
        try:
            for piece in chain([prompt], pieces):
                sys.stdout.write(piece)
                sys.stdout.flush()
        except KeyboardInterrupt:  # what is said of it stands on a line of its own
            sys.stdout.write("\n")
            sys.stdout.flush()
            raise
        sys.stdout.write("\n")
