"""`streamlm generate`: continue a session, or a prompt."""

import json
import secrets
import sys
import time
from itertools import chain
from pathlib import Path
from typing import Annotated, Any

import typer

from streamlm.cli.display import interruptible, note
from streamlm.cli.options import (
    Device,
    Json,
    SessionModel,
    SessionName,
    Settings,
    Store,
    check_text,
    open_optional,
)
from streamlm.cli.recall import Facts, note_recalled, recalled_facts, with_recalled


def generate(
    session: SessionName = None,
    prompt: Annotated[
        str, typer.Option(help="Text to read first; - reads it from standard input.")
    ] = "",
    prompt_file: Annotated[
        Path | None,
        typer.Option(metavar="FILE", dir_okay=False, help="A file with the text to read first."),
    ] = None,
    max_tokens: Annotated[int, typer.Option(help="Maximum number of tokens.")] = 256,
    temperature: Annotated[float, typer.Option(help="Divides the logits; 0 is greedy.")] = 0.8,
    top_k: Annotated[int, typer.Option(help="Sample from the k likeliest tokens; 0 is off.")] = 0,
    top_p: Annotated[
        float, typer.Option(help="Sample from the top tokens with this total probability.")
    ] = 0.95,
    min_p: Annotated[
        float, typer.Option(help="Drop tokens below this fraction of the top probability.")
    ] = 0.0,
    repetition_penalty: Annotated[
        float, typer.Option(help="Above 1 penalizes recent tokens.")
    ] = 1.0,
    stop: Annotated[
        list[str] | None,
        typer.Option(metavar="TEXT", help=r"Stop at this text; \n and \t are escapes. Repeatable."),
    ] = None,
    seed: Annotated[
        int | None,
        typer.Option(help="Seed of the random generator; default: a random one, which is printed."),
    ] = None,
    keep: Annotated[
        bool, typer.Option("--keep/--no-keep", help="Whether to save the text to the session.")
    ] = True,
    draft: Annotated[
        Path | None,
        typer.Option(metavar="DIR", help="A drafter: faster, with the same distribution."),
    ] = None,
    recall: Annotated[
        int,
        typer.Option(min=0, help="Passages that left memory to read again before the prompt."),
    ] = 0,
    store: Store = "sessions",
    model: SessionModel = None,
    setting: Settings = None,
    device: Device = "auto",
    as_json: Json = False,
) -> None:
    """Continue a session: generate text from its current state.

    Without --session, continue the prompt alone.
    """
    from streamlm.runtime.sampling import unescaped

    prompt = _prompt(prompt, prompt_file)
    drawn = seed is None and temperature > 0
    if drawn:
        seed = secrets.randbits(32)
    if recall and session is None:
        raise ValueError("--recall without --session; allowed: with a session that has read a text")
    kept = session is not None and keep
    left_behind = f"session {session} includes the text so far" if kept else "nothing was saved"
    with (
        interruptible(lambda: left_behind),
        open_optional(store, session, model, device, settings=setting, readonly=not keep) as opened,
    ):
        writer = opened if keep else opened.fork()
        drafter = None
        if draft is not None:
            from streamlm.runtime.drafter import load_drafter

            drafter = load_drafter(draft, opened.checkpoint)
        before, started = writer.position, time.perf_counter()
        read, recalled = prompt, list[Facts]()
        if recall and not keep:
            read, recalled = with_recalled(opened, prompt, k=recall)
        pieces = writer.generate(
            read,
            max_tokens=max_tokens,
            temperature=temperature,
            top_k=top_k,
            top_p=top_p,
            min_p=min_p,
            repetition_penalty=repetition_penalty,
            stop=[unescaped(text) for text in stop or ()],
            seed=seed,
            drafter=drafter,
            recall=recall if keep else 0,
        )
        if recall:
            pieces = chain([next(pieces, "")], pieces)  # the prompt is read before the first piece
            recalled = recalled_facts(opened) if keep else recalled
        if as_json:
            text = "".join(pieces)
            seconds = time.perf_counter() - started
            written_from = before if writer.written_from is None else writer.written_from
            n, n_read = writer.position - written_from, written_from - before
            facts: dict[str, Any] = {"text": text, "tokens": n, "prompt_tokens": n_read}
            facts |= {"position": writer.position, "seed": seed}
            facts |= {"recalled": recalled} if recall else {}
            print(json.dumps(facts | {"seconds": seconds, "tokens_per_second": n / seconds}))
            return
        if recall:
            note_recalled(recalled)
        if drawn:
            note(f"--seed {seed} repeats this")
        try:
            for piece in chain([prompt], pieces):
                sys.stdout.write(piece)
                sys.stdout.flush()
        except KeyboardInterrupt:  # the message about it gets a line of its own
            sys.stdout.write("\n")
            sys.stdout.flush()
            raise
        sys.stdout.write("\n")


def _prompt(prompt: str, file: Path | None) -> str:
    """The text to read first: given itself, as a file, or as standard input."""
    if file is None and prompt != "-":
        return prompt
    if file is not None:
        if prompt:
            raise ValueError("--prompt and --prompt-file; allowed: one of them")
        if not file.exists():
            raise FileNotFoundError(f"no file {str(file)!r}")
        check_text(file)
        return file.read_bytes().decode("utf-8").removesuffix("\n")
    if sys.stdin is None:
        raise ValueError("--prompt -: standard input is closed; allowed: a text, or --prompt-file")
    try:
        text = sys.stdin.buffer.read().decode("utf-8")
    except UnicodeDecodeError as error:
        raise ValueError(
            f"standard input is not UTF-8 text: {error.reason} at byte {error.start:,}"
        ) from None
    return text.removesuffix("\n")
