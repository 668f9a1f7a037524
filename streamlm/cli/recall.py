"""`streamlm sessions recall` and `index`, and what other commands show of what was recalled."""

import json
from collections.abc import Mapping, Sequence
from typing import TYPE_CHECKING, Annotated, Any

import typer

from memory_store import Ref, StoreError
from memory_store.store import Store as OpenStore
from streamlm.cli.display import bar, interruptible, note, output
from streamlm.cli.options import (
    Device,
    Json,
    Name,
    SessionModel,
    Settings,
    Store,
    parsed_settings,
)
from streamlm.sessions.shelf import open_named
from streamlm.units import time_text

if TYPE_CHECKING:
    from streamlm.sessions.recall import Recalled
    from streamlm.sessions.session import Session

WORDS = 12  # of a passage in a note
KEYS = "keys-"  # how the names of logs of keys begin; see `sessions.archive`

Facts = dict[str, Any]


def recall(
    name: Name,
    text: Annotated[str, typer.Argument(metavar="TEXT", help="A question, or a beginning.")],
    k: Annotated[int, typer.Option("-k", min=1, help="Passages to show.")] = 3,
    store: Store = "sessions",
    model: SessionModel = None,
    setting: Settings = None,
    device: Device = "auto",
    as_json: Json = False,
) -> None:
    """Find the passages that answer TEXT, among all that has left memory.

    Needs the model, unlike search. The session is not modified.
    """
    settings = parsed_settings(setting)
    with open_named(store, name, model, device=device, settings=settings, readonly=True) as session:
        found = [facts_of(each) | {"sure": each.sure} for each in session.recall(text, k=k)]
        position = session.position
    if as_json:
        print(json.dumps({"name": name, "position": position, "recalled": found}))
        return
    if not any(each["sure"] for each in found):
        output.print("recalled: none" + ("; nearest:" if found else ""), style="bold")
    for each in found:
        doubt = "" if each["sure"] else ", not sure"
        output.print(f"{where(each)}{doubt}", style="bold" if each["sure"] else "dim")
        output.print(f"  {' '.join(each['text'].split())}")


def index(
    name: Name,
    store: Store = "sessions",
    model: SessionModel = None,
    setting: Settings = None,
    device: Device = "auto",
    as_json: Json = False,
) -> None:
    """Read again what the archive has no keys of, so that recall finds it by meaning.

    After an interruption, the same command goes on.
    """
    with (
        interruptible(lambda: "what was indexed is kept; the same command goes on"),
        open_named(store, name, model, device=device, settings=parsed_settings(setting)) as session,
        bar(f"indexing {name}", total=None, fields="{task.fields[note]}") as (progress, task),
    ):

        def show(done: int, total: int) -> None:
            progress.update(task, completed=done, total=total, note=f"{done:,} of {total:,} tokens")

        indexed, position = session.index(progress=show), session.position
    if as_json:
        print(json.dumps({"name": name, "indexed": indexed, "position": position}))
    elif indexed:
        output.print(f"{name}: indexed {indexed:,} of {position:,} tokens")
    else:
        output.print(f"{name}: nothing to index in {position:,} tokens")


# -- what was recalled ----------------------------------------------------------------------------


def facts_of(found: "Recalled") -> Facts:
    """A passage for JSON, without whether it is sure."""
    saved = found.saved and found.saved.timestamp()
    return {
        "start": found.start,
        "stop": found.stop,
        "score": found.score,
        "saved": saved,
        "text": found.text,
    }


def recalled_facts(session: "Session") -> list[Facts]:
    """The passages that were put before the newest prompt, best first."""
    from streamlm.sessions.recall import passages_of

    return list(map(facts_of, passages_of(session.recalled, session.text, session.history())))


def with_recalled(session: "Session", prompt: str, *, k: int) -> tuple[str, list[Facts]]:
    """What a fork without a store reads instead of a prompt, as `generate(recall=k)` would."""
    from streamlm.sessions.recall import quoted

    found = [each for each in session.recall(prompt, k=k) if each.sure]
    if not found:
        return prompt, []
    texts = [each.text for each in sorted(found, key=lambda each: each.start)]
    return f"\n\n{quoted(texts, prompt)}", [facts_of(each) for each in found]


def note_recalled(found: Sequence[Facts], *, none: bool = True) -> None:
    """A dim line for each passage on standard error.

    Args:
        none: whether to say that there is none.
    """
    for each in found:
        words = each["text"].split()
        text = " ".join(words[:WORDS]) + ("…" if len(words) > WORDS else "")
        note("", word=f"recalled: {where(each)}: {text}", style="dim")
    if none and not found:
        note("", word="recalled: none", style="dim")


def where(found: Mapping[str, Any]) -> str:
    """Position, date and score of a passage."""
    saved = found["saved"]
    when = "" if saved is None else f", saved {time_text(saved)}"
    return f"token {found['start']:,}{when}, score {found['score']:.2f}"


# -- what a store holds ---------------------------------------------------------------------------


def archives_of(opened: OpenStore, ref: Ref) -> list[Facts]:
    """The archives of a stream: name, tokens that have keys, and bytes a token."""
    try:
        sizes = {each: size for each, size in opened.logs(ref).items() if each.startswith(KEYS)}
        spans = {each: opened.log_spans(ref, each) for each in sizes}
    except StoreError:  # damaged; `sessions verify` says where
        return []
    return [
        {
            "name": each,
            "tokens": sum(stop - start for start, stop in spans[each]),
            "bytes_per_token": size,
        }
        for each, size in sorted(sizes.items())
    ]


def stored_recalled(opened: OpenStore, ref: Ref, history: Sequence[Ref]) -> list[Facts]:
    """`recalled_facts` of a snapshot, without texts."""
    try:
        spans: Any = opened.attributes_of(ref).get("recalled", ())
    except StoreError:
        return []
    from streamlm.sessions.search import first_after

    found = []
    for start, stop, score in spans:
        saved = first_after(history, stop)
        facts = {"start": start, "stop": stop, "score": score}
        found.append(facts | {"saved": saved and saved.timestamp()})
    return found
