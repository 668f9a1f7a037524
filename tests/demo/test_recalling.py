"""Recall: what is found, what is put before a message, and how both are shown."""

import re
import shutil
from collections.abc import Callable
from datetime import datetime
from pathlib import Path
from typing import Any

import pytest

pytest.importorskip("gradio", reason="needs gradio: pip install 'streamlm[demo]'")

from apps.demo import chatting, recalling, writing
from apps.demo.jobs import Job, Jobs
from apps.demo.quotes import Quotes, Talk
from apps.demo.render.chat_html import chat_html
from apps.demo.render.recall_html import Recollection, found_html, recalled_html
from apps.demo.shelf import Shelf
from streamlm.engine import Engine
from streamlm.runtime.reports import TokenLogprob
from streamlm.runtime.sampling import Sampling
from streamlm.sessions.recall import Recalled
from tests.support.chats import chat_folder, load_chat
from tests.support.html_tags import Tags
from tests.support.recalls import COMMON, FACT, QUESTION, session_with_fact

GREEDY = Sampling(temperature=0)


@pytest.fixture(scope="module")
def chatty(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return chat_folder(tmp_path_factory.mktemp("chat") / "chatty")


@pytest.fixture(scope="module")
def engine(chatty: Path) -> Engine:
    return Engine(load_chat(chatty), rows=2)


@pytest.fixture(scope="module")
def log(tmp_path_factory: pytest.TempPathFactory, chatty: Path) -> Path:
    path = tmp_path_factory.mktemp("log") / "log.zarr"
    session_with_fact(path, chatty)
    return path


@pytest.fixture
def shelf(tmp_path: Path, log: Path) -> Shelf:
    """Holds the session "log"."""
    shutil.copytree(log, tmp_path / "log.zarr")
    return Shelf(str(tmp_path))


def find(shelf: Shelf, name: str, text: str, engine: Engine, **options: Any) -> Recollection:
    return recalling.find(shelf, name, text, engine=engine, **options)


def events(work: Callable[[Job], None]) -> list[Any]:
    return [event for batch in Jobs().stream(work, visitor="v") for event in batch]


def say(shelf: Shelf, text: str, quotes: Quotes, engine: Engine, *, recall: int = 1) -> list[Any]:
    def work(job: Job) -> None:
        chatting.reply(
            job,
            shelf,
            "log",
            message=text,
            system=None,
            sampling=GREEDY,
            max_tokens=3,
            engine=engine,
            quotes=quotes,
            recall=recall,
        )

    return events(work)


def test_a_question_finds_what_left_memory(shelf: Shelf, engine: Engine) -> None:
    found = find(shelf, "log", QUESTION, engine)
    (best,) = found.passages  # no other has a word of the question
    assert FACT in best.text and best.sure and best.saved is not None
    assert 0 < best.start < best.stop < found.position
    common = find(shelf, "log", COMMON, engine).passages
    assert len(common) == 3 and not any(each.sure for each in common)
    assert {"zebulon", "quayle", "ledger"} <= found.rare
    assert not {"the", "whale"} & find(shelf, "log", COMMON, engine).rare
    assert found.lexical and "by rare words alone" in found_html(found)
    assert len(find(shelf, "log", QUESTION, engine, k=1).passages) == 1


@pytest.mark.parametrize(
    ("name", "text", "options", "problem"),
    [
        ("log", " \n", {}, "Type a question first"),
        ("log", "x" * 2001, {}, "The question has 2,001 characters; allowed: at most 2,000"),
        ("new", "Who?", {}, "new has read nothing yet"),
        ("log", "Who?", {"k": 4}, "k = 4; allowed: 1 to 3"),
    ],
)
def test_what_cannot_be_asked(
    shelf: Shelf, engine: Engine, name: str, text: str, options: Any, problem: str
) -> None:
    with pytest.raises(ValueError, match=re.escape(problem)):
        find(shelf, name, text, engine, **options)


def test_a_message_is_shown_as_typed(shelf: Shelf, engine: Engine) -> None:
    quotes = Quotes()

    def talk(quotes: Quotes) -> Talk:
        return chatting.talk_of(shelf, "log", checkpoint=engine.checkpoint, quotes=quotes)

    started, recalled, *_ = say(shelf, QUESTION, quotes, engine)
    assert isinstance(started, chatting.ReplyStarted) and isinstance(recalled, Recollection)
    (passage,) = recalled.passages
    assert FACT in passage.text and passage.sure and "zebulon" in recalled.rare
    with shelf.open("log", engine.checkpoint, readonly=True) as session:
        (turn,) = (each for each in session.transcript() if each["role"] == "user")
        assert turn["content"] == f"{passage.text}\n\n{QUESTION}"
        assert [tuple(span)[:2] for span in session.recalled] == [(passage.start, passage.stop)]
    nothing = say(shelf, COMMON, quotes, engine)[1]
    assert nothing == Recollection([], nothing.position, lexical=True)
    assert recalled_html(nothing).startswith('<p class="message note" role="status">Recalled: none')
    assert not any(isinstance(one, Recollection) for one in say(shelf, "a", quotes, engine,
                                                                recall=0))  # fmt: skip
    users = [each for each in talk(quotes) if each["role"] == "user"]
    assert [each["content"] for each in users] == [QUESTION, COMMON, "a"]
    assert [each.get("recalled") for each in users] == [passage.text, None, None]
    assert FACT in next(each for each in talk(Quotes()) if each["role"] == "user")["content"]
    html = chat_html(users)
    assert html.count("<details>") == 1 and FACT in Tags(html).text and "<b>ledger" not in html

    before = chatting.undo(shelf, "log", snapshot=started.snapshot, engine=engine, quotes=quotes)
    assert not any(each["role"] == "user" for each in before)


def test_another_server_knows_the_newest_quote(shelf: Shelf, engine: Engine) -> None:
    say(shelf, QUESTION, Quotes(), engine)
    talk = chatting.talk_of(shelf, "log", checkpoint=engine.checkpoint, quotes=Quotes())
    (turn,) = (each for each in talk if each["role"] == "user")
    assert turn["content"] == QUESTION and FACT in turn["recalled"]


def test_writing_recalls(shelf: Shelf, engine: Engine) -> None:
    def write(prompt: str, recall: int) -> list[Any]:
        def work(job: Job) -> None:
            writing.write(
                job,
                shelf,
                "log",
                prompt=prompt,
                sampling=GREEDY,
                max_tokens=2,
                seed=None,
                engine=engine,
                recall=recall,
            )

        return events(work)

    started, recalled, first, *_ = write(QUESTION, 3)
    assert isinstance(started, writing.WriteStarted) and isinstance(first, TokenLogprob)
    assert [FACT in passage.text for passage in recalled.passages] == [True]
    assert not any(isinstance(event, Recollection) for event in write(QUESTION, 0))
    for prompt, recall, problem in (
        (" ", 1, "Recall needs a prompt: type one, or set Recall to 0"),
        ("a", 4, "recall = 4; allowed: 0 to 3"),
    ):
        with pytest.raises(ValueError, match=problem):
            write(prompt, recall)


def test_passages_are_no_markup() -> None:
    nasty = "<script>x</script> ${a} {{b}} `Straße` Quayle's ledger"
    passages = [
        Recalled(start, start + 50, 0.876, sure, nasty, saved)
        for start, sure, saved in (
            (0, True, datetime(2026, 7, 30, 12, 4)),
            (4_000, False, None),
            (9_990, True, None),
        )
    ]
    found = Recollection(passages, 10_000, frozenset({"script", "quayle", "ledger", "x"}))
    for source in (recalled_html(found), found_html(found)):
        parsed = Tags(source)
        assert parsed.tags == {"section", "b", "figure", "p", "mark", "svg", "rect", "figcaption"}
        assert parsed.text.count(nasty) == 3 and "${" not in source and "{{" not in source
        assert "&lt;<mark>script</mark>&gt;<mark>x</mark>&lt;" in source
        assert "<mark>Quayle</mark>&#x27;s <mark>ledger</mark>" in source
        assert "token 4,000 of 10,000 · not saved yet · score 0.88" in source
        assert "saved 30 Jul 2026, 12:04" in source
        marks = re.findall(r'<rect x="([\d.]+)" y="0" width="([\d.]+)"', source)
        assert [float(x) for x, _ in marks] == [0, 160, 397]
        assert all(float(x) + float(width) <= 400 for x, width in marks)
    assert found_html(found).count("· sure<") == 2 and found_html(found).count("· not sure<") == 1
    assert "· sure" not in recalled_html(found)
    assert "Nothing was found" in found_html(Recollection([], 10))
    two = Recalled(0, 5, 0.5, True, "the Zebulon Quayle", None)
    together = recalled_html(Recollection([two], 9, frozenset({"zebulon", "quayle"})))
    assert "the <mark>Zebulon Quayle</mark></p>" in together
