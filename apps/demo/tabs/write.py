"""The Write tab: generated text with alternatives for each token, undo, and two forks."""

import time
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, replace
from typing import TYPE_CHECKING, Any

import gradio as gr

from apps.demo import writing
from apps.demo.app_state import LONG, QUICK, AppState, visitor_id
from apps.demo.jobs import Job
from apps.demo.render.recall_html import Recollection, recalled_html
from apps.demo.render.text_html import generated_html, message
from apps.demo.shelf import Shelf
from apps.demo.tabs.frame import (
    Chosen,
    Frame,
    cancels_jobs,
    collect_errors,
    cumulative,
    model_choice,
    optional_integer,
    parse_optional_integer,
    position_html,
    recall_choice,
    saved_position_html,
    session_choices,
    then_memory,
    while_chosen,
)
from apps.demo.tabs.side_by_side import side_by_side
from streamlm.runtime.reports import TokenLogprob

if TYPE_CHECKING:  # it needs torch
    from streamlm.runtime.sampling import Sampling

UPDATE_INTERVAL = 0.15  # seconds between two updates of the page
LEAST_AFTER = 20  # tokens generated at least after an alternative was taken


@dataclass(frozen=True)
class Written:
    """The generated text that is shown.

    Attributes:
        before: the text that precedes it; prompt: what the visitor typed.
        name: the session; start: the position of its first token, None if it is not known.
    """

    before: str = ""
    prompt: str = ""
    tokens: Sequence[TokenLogprob] = ()
    name: str = ""
    start: int | None = None

    def html(self) -> str:
        return generated_html(self.tokens, before=self.before, prompt=self.prompt)

    def with_alternative(self, index: int, rank: int) -> tuple["Written", TokenLogprob]:
        """The text up to a token, with another in its place, and that other token.

        Raises:
            IndexError: there is no such token or alternative.
        """
        if index < 0 or rank < 0:
            raise IndexError(f"token {index}, alternative {rank}")
        here = self.tokens[index]
        text, logprob = here.top[rank]
        other = replace(here, id=here.top_ids[rank], text=text, logprob=logprob)
        return replace(self, tokens=[*self.tokens[:index], other]), other


NOTHING_WRITTEN = Written()


def write_tab(app: AppState, frame: Frame) -> None:
    """Build the tab."""
    prompt = gr.Textbox(
        label="Prompt",
        lines=2,
        placeholder="Empty: continue from what the session has read",
    )
    with gr.Row():
        start = gr.Button("Generate", variant="primary", elem_id="write")
        stop = gr.Button("Stop", interactive=False, elem_id="stop-writing")
        undo = gr.Button("Undo", interactive=False, elem_id="undo")
    recall = recall_choice(0, "prompt", "write-recall")
    with gr.Accordion("Sampling", open=False):
        with gr.Row():
            length = _slider("Tokens", 1, writing.MAX_TOKENS, value=120, step=1)
            temperature = _slider("Temperature (0: greedy)", 0, 2, value=0.8)
            top_p = _slider("Top-p (1: off)", 0.05, 1, value=0.95)
        with gr.Row():
            top_k = _slider("Top-k (0: off)", 0, 200, value=0, step=1)
            min_p = _slider("Min-p (0: off)", 0, 0.5, value=writing.MIN_P, step=0.01)
            penalty = _slider("Repetition penalty (1: off)", 1, 2, value=1)
        seed = optional_integer("Seed", "the session's own")
        stops = gr.Textbox(
            label="Stop strings",
            info=r"One per line; \n stands for a line break.",
            lines=2,
            placeholder="None: generate the full number of tokens",
        )
    status = gr.HTML(elem_id="write-status")
    page = gr.HTML(elem_id="write-page")
    recalled = gr.HTML(elem_id="write-recalled")
    # Filled by the page's script: which token is to be replaced, and by which alternative.
    pick = gr.Textbox(label="Alternative", elem_id="pick", elem_classes="unseen", container=False)
    history = gr.State([])  # (session, snapshot) before each generation, for undo
    written = gr.State(NOTHING_WRITTEN)  # the text that is shown
    drawn = gr.State("")  # the session that is shown
    outputs = [status, page, frame.position, frame.model]
    outputs += [frame.session, start, stop, undo, history, recalled, written, drawn]

    def generating(
        name: str,
        prepare: Callable[[Shelf], tuple[Callable[[Job], object], int]],
        text: Written,
        snapshots: list[tuple[str, int]],
        request: gr.Request,
    ) -> Iterator[Any]:
        """Updates of `outputs` while a job generates.

        Args:
            prepare: makes the job, and says how many tokens it is to generate.
            text: what stands before the first token to come.
        """
        busy = [gr.update(interactive=on) for on in (False, True, False)]
        skipped = [gr.skip()] * 3
        yield (
            message("Opening the session…"), text.html() if text.tokens else "", *skipped, *busy,
            gr.skip(), "", gr.skip(), name,
        )  # fmt: skip
        kept, started, panel = len(text.tokens), False, ""
        finished = writing.WriteFinished(None, whole=False)
        branch, updated, max_tokens = "", 0.0, 0
        position_update: Any = gr.skip()
        with collect_errors() as messages:
            shelf = app.shelf(request)
            work, max_tokens = prepare(shelf)
            for events in app.jobs.stream(work, visitor=visitor_id(request)):
                for event in events:
                    if isinstance(event, TokenLogprob):
                        text = replace(text, tokens=[*text.tokens, event])
                    elif isinstance(event, Recollection):
                        panel = recalled_html(event)
                        if event.passages:  # they stand between the text and the prompt
                            text = replace(text, before=f"{text.before}\n\n…\n\n")
                    elif isinstance(event, writing.WriteStarted):
                        started, branch = True, event.branch
                        text = text if branch else replace(text, before=event.before)
                        snapshots = [*snapshots, (name, event.snapshot)]
                    else:
                        finished = event
                        start = event.start if not kept else text.start
                        text = replace(text, name=name, start=start)
                if finished.whole or time.monotonic() - updated > UPDATE_INTERVAL:
                    updated = time.monotonic()
                    yield "", text.html(), *skipped, *busy, snapshots, panel, text, gr.skip()
            n = len(text.tokens) - kept
            summary = _summary(n, max_tokens, finished)
            if branch:
                summary = f"{summary} What was there before is the branch {branch}."
            messages.append(message(summary))
            position_update = saved_position_html(shelf, name)
        idle = [gr.update(interactive=on) for on in (True, False, bool(snapshots))]
        yield (
            messages[0],
            text.html() if text.tokens else gr.skip(),
            position_update,
            model_choice(app, shelf, name) if started else gr.skip(),
            session_choices(shelf, name) if started else gr.skip(),
            *idle,
            snapshots,
            panel,
            text,
            gr.skip(),
        )

    @while_chosen
    @cumulative
    def write(
        _: Chosen,
        name: str,
        prompt: str,
        max_tokens: float,
        temperature: float,
        top_p: float,
        top_k: float,
        min_p: float,
        penalty: float,
        stops: str | None,
        seed: str | None,
        recall: int,
        snapshots: list[tuple[str, int]],
        request: gr.Request,
    ) -> Iterator[Any]:
        def prepare(shelf: Shelf) -> tuple[Callable[[Job], object], int]:
            engine, n = app.engine_of(shelf, name), min(int(max_tokens), writing.MAX_TOKENS)
            fixed_seed = parse_optional_integer(seed, "Seed")
            stop_strings = writing.parse_stops(stops or "")  # None while its section is closed
            sampling = _sampling(temperature, top_p, top_k, min_p, penalty)

            def work(job: Job) -> None:
                writing.write(
                    job,
                    shelf,
                    name,
                    prompt=prompt or "",
                    sampling=sampling,
                    max_tokens=n,
                    stops=stop_strings,
                    seed=fixed_seed,
                    engine=engine,
                    recall=recall,
                )

            return work, n

        text = Written(prompt=prompt or "")
        yield from generating(name, prepare, text, snapshots, request)

    @while_chosen
    @cumulative
    def take(
        _: Chosen,
        name: str,
        picked: str,
        text: Written,
        max_tokens: float,
        temperature: float,
        top_p: float,
        top_k: float,
        min_p: float,
        penalty: float,
        stops: str | None,
        snapshots: list[tuple[str, int]],
        request: gr.Request,
    ) -> Iterator[Any]:
        try:
            index, rank = (int(number) for number in picked.split(",")[:2])
            shown, other = text.with_alternative(index, rank)
        except (ValueError, IndexError):  # the page shows another text by now
            return

        def prepare(shelf: Shelf) -> tuple[Callable[[Job], object], int]:
            if text.name != name or text.start is None:
                raise ValueError("This text can no longer be changed here: generate again.")
            engine = app.engine_of(shelf, name)
            alternative = writing.Alternative(text.start + index, other.id)
            stop_strings = writing.parse_stops(stops or "")
            sampling = _sampling(temperature, top_p, top_k, min_p, penalty)
            wanted = min(int(max_tokens), writing.MAX_TOKENS)
            left = max(wanted - len(shown.tokens), LEAST_AFTER)

            def work(job: Job) -> None:
                writing.take(
                    job,
                    shelf,
                    name,
                    alternative,
                    sampling=sampling,
                    max_tokens=left,
                    stops=stop_strings,
                    engine=engine,
                )

            return work, left

        yield from generating(name, prepare, shown, snapshots, request)

    sampled = [length, temperature, top_p, top_k, min_p, penalty, stops]
    options: dict[str, Any] = {"show_progress": "hidden", "api_visibility": "private"}
    generated = gr.on(
        [start.click, prompt.submit],
        write,
        [frame.chosen, frame.session, prompt, *sampled, seed, recall, history],
        outputs,
        **LONG,
        **options,
    )
    then_memory(app, frame, generated)
    taken = pick.submit(
        take,
        [frame.chosen, frame.session, pick, written, *sampled, history],
        outputs,
        **LONG,
        **options,
    )
    then_memory(app, frame, taken)

    cancels_jobs(app, stop, status)

    def undo_last(snapshots: list[tuple[str, int]], request: gr.Request) -> Any:
        if not snapshots:
            return message("There is nothing to undo."), *[gr.skip()] * 7, [], *[gr.skip()] * 3
        *earlier, (name, snapshot) = snapshots
        with collect_errors() as errors:
            shelf = app.shelf(request)
            engine = app.engine_of(shelf, name)
            position, text = writing.undo(shelf, name, snapshot=snapshot, engine=engine)
            return (
                message(f"Undone: {name} is back at token {position:,}."),
                generated_html([], before=text),
                position_html(name, position),
                gr.skip(),
                gr.Dropdown(value=name),
                gr.skip(),
                gr.skip(),
                gr.update(interactive=bool(earlier)),
                earlier,
                "",
                NOTHING_WRITTEN,
                name,
            )
        return errors[0], *[gr.skip()] * 11

    undone = undo.click(undo_last, history, outputs, **QUICK, **options)
    then_memory(app, frame, undone)

    def change_session(chosen: Chosen, name: str, shown: str) -> tuple[Any, ...]:
        chosen.session = name
        # Generating updates the list of sessions too, and shows this session's text.
        if name == shown:
            return (gr.skip(),) * 9
        buttons = [gr.update(interactive=on) for on in (True, False, False)]
        return "", "", "", *buttons, [], NOTHING_WRITTEN, name

    frame.session.change(
        change_session,
        [frame.chosen, frame.session, drawn],
        [status, page, recalled, start, stop, undo, history, written, drawn],
        queue=False,
        **options,
    )
    side_by_side(app, frame)


def _slider(label: str, low: float, high: float, *, value: float, step: float = 0.05) -> gr.Slider:
    """A slider wide enough for its label and its number."""
    return gr.Slider(low, high, value=value, step=step, label=label, min_width=240)


def _sampling(
    temperature: float, top_p: float, top_k: float, min_p: float, penalty: float
) -> "Sampling":
    from streamlm.runtime.sampling import Sampling  # needs torch

    return Sampling(
        repetition_penalty=penalty,
        temperature=temperature,
        top_k=int(top_k),
        top_p=top_p,
        min_p=min_p,
    )


def _summary(n: int, max_tokens: int, finished: writing.WriteFinished) -> str:
    """A sentence on a generation of `n` tokens."""
    if not finished.whole:
        if not n:
            return "Stopped. The session keeps what was read of the prompt."
        return f"Stopped. The session keeps the {n} tokens generated so far."
    if n < max_tokens:
        return f"Generated {n} tokens, up to a stop string."
    return f"Generated {n} tokens. Touch one to see its alternatives, and to go on with another."
