"""Work in turns, shelves of sessions, and text that never becomes markup; without a browser."""

import html.parser
import threading
import time
from collections.abc import Callable
from pathlib import Path

import pytest

pytest.importorskip("gradio", reason="needs gradio: pip install 'streamlm[demo]'")

import gradio as gr

from apps.demo import reading, words, writing
from apps.demo.compare_tab import reports, show_report
from apps.demo.desk import VISITOR, Desk
from apps.demo.frame import number
from apps.demo.launch import run, whose_shelves
from apps.demo.pictures import Seen, recall_curve
from apps.demo.shelf import Refused, Shelf
from apps.demo.words import Word
from apps.demo.work import Job, Jobs, Turns
from streamlm.checkpoints.checkpoint import Checkpoint
from streamlm.runtime.reports import TokenLogprob
from streamlm.runtime.sampling import Sampling
from streamlm.sessions.session import Session


def test_turns_are_given_in_the_order_of_asking() -> None:
    turns, order = Turns(), list[int]()
    turns.take()

    def ask(n: int) -> None:
        turns.take()
        order.append(n)
        turns.give()

    threads = []
    for n in range(5):
        threads.append(threading.Thread(target=ask, args=(n,)))
        threads[-1].start()
        while turns._asked < n + 2:
            time.sleep(0.001)
    turns.give()
    for thread in threads:
        thread.join(10)
    assert order == [0, 1, 2, 3, 4]


def count(job: Job) -> None:
    with job.turn():
        for n in range(10_000):
            job.tell(n)
            time.sleep(0.01)
            job.pass_turn()


def test_work_is_told_as_it_goes_and_ends_when_it_is_dropped() -> None:
    jobs = Jobs()
    running = jobs.run(count, visitor="a")
    assert next(running)[0] == 0 and jobs.running == 1
    running.close()  # the page is gone
    until = time.monotonic() + 10
    while jobs.running and time.monotonic() < until:
        time.sleep(0.01)
    assert jobs.running == 0


def test_a_visitor_stops_only_their_own() -> None:
    jobs, told = Jobs(), list[int]()
    one, two = jobs.run(count, visitor="a"), jobs.run(count, visitor="b")
    next(one), next(two)
    assert jobs.stop("a") and not jobs.stop("c")
    for items in one:  # ends quietly
        told += items
    assert jobs.running == 1 and len(told) < 1000
    jobs.end()
    assert jobs.running == 0 and not jobs.stop("b")


def test_a_page_that_does_not_listen_holds_nobody_up() -> None:
    jobs, done = Jobs(), threading.Event()

    def work(job: Job) -> None:
        with job.turn():
            for n in range(100_000):
                job.tell(n)
                job.pass_turn()
        done.set()

    deaf = jobs.run(work, visitor="a")
    next(deaf)
    assert done.wait(30)
    assert jobs.do(lambda job: "mine", visitor="b") == "mine"
    assert sum(map(len, deaf)) > 0


def test_what_work_raises_is_told() -> None:
    def fail(job: Job) -> None:
        job.tell("begun")
        raise ValueError("no")

    running = Jobs().run(fail, visitor="a")
    with pytest.raises(ValueError, match="no"):
        list(running)


def test_visitors_share_the_time(tmp_path: Path, tiny: Checkpoint, prose: Callable) -> None:
    """Somebody who writes a little is done long before somebody who reads a lot."""
    jobs, shelf = Jobs(), Shelf(str(tmp_path))

    def read(job: Job) -> None:
        reading.read(job, shelf, "long", text=prose(20_000), checkpoint=tiny)

    def write(job: Job) -> None:
        writing.write(
            job, shelf, "short", prompt="And", sampling=Sampling(), max_tokens=5, seed=1,
            checkpoint=tiny,
        )  # fmt: skip

    long = jobs.run(read, visitor="a")
    next(long)
    assert isinstance([item for items in jobs.run(write, visitor="b") for item in items][-1],
                      writing.Written)  # fmt: skip
    assert jobs.running == 1
    jobs.end()
    assert {row.name: row.position > 0 for row in shelf.rows()} == {"long": True, "short": True}


def test_a_shelf_refuses_in_words(tmp_path: Path, tiny: Checkpoint, tiny_folder: Callable) -> None:
    from streamlm.checkpoints.checkpoint import load_checkpoint

    shelf = Shelf(str(tmp_path), limit=2)
    with shelf.open("a", tiny, create=True) as session:
        session.feed(["one two three "])
        for forbidden in (
            lambda: shelf.open("a", tiny).__enter__(),
            lambda: shelf.rename("a", "b"),
            lambda: shelf.delete("a"),
        ):
            with pytest.raises(Refused, match="a is in use: something else is reading or writing"):
                forbidden()
    refused = {
        "../b": "allowed: NAME or NAME@BRANCH",
        "b/c": "allowed: NAME or NAME@BRANCH",
        "": "Choose a session first",
        "nobody": r"no session 'nobody' in the sessions; there are: a",
        "a@side": "session 'a' has no branch 'side'",
    }
    for name, said in refused.items():
        with pytest.raises(Refused, match=said) as caught:
            shelf.open(name, tiny).__enter__()
        assert str(tmp_path) not in str(caught.value)
    with pytest.raises(Refused, match="another model"):
        shelf.open("a", load_checkpoint(tiny_folder(seed=2), device="cpu")).__enter__()
    assert shelf.fork("a", "side", tiny, tokens=2) == "a@side"
    assert [(row.name, row.position) for row in shelf.rows()][1] == ("a@side", 2)
    file = shelf.export("a@side", tmp_path)
    assert shelf.import_(file, "b") == "b" and shelf.names() == ["a", "a@side", "b", "b@side"]
    for other in (
        lambda: shelf.import_(file, "c"),
        lambda: shelf.open("c", tiny, create=True).__enter__(),
    ):
        with pytest.raises(Refused, match="You have 2 sessions; delete one"):
            other()
    (tmp_path / "b.zarr" / "session.json").write_text("{")
    assert "b" in shelf.names()  # damaged, and still in sight
    with pytest.raises(Refused) as caught:
        shelf.history("b")
    assert str(tmp_path) not in str(caught.value)


class _Asks:
    """A request, as far as shelves look at it."""

    def __init__(self, username: str | None = None, key: str = "") -> None:
        self.username, self.cookies = username, {VISITOR: key}


def test_who_has_which_shelf(tmp_path: Path) -> None:
    def folder(whose: str, **who: str) -> str:
        desk = Desk(str(tmp_path), files="", whose=whose)  # type: ignore[arg-type]
        return desk.shelf(_Asks(**who)).folder  # type: ignore[arg-type]

    assert folder("one") == folder("one", username="ada") == str(tmp_path)
    names = ["ada", "Ada", "../ada", "ada/..", "ä", "", "~", "x" * 300]
    folders = [folder("user", username=name) for name in names if name]
    assert len(set(folders)) == len(folders)
    assert all(Path(path).parent == tmp_path / "users" for path in folders)
    assert folders[0].endswith("users/ada")
    one, two = folder("browser", key="0" * 32), folder("browser", key="1" * 32)
    assert one != two and "0" * 32 not in one
    for whose, who in (("user", {}), ("browser", {}), ("browser", {"key": "../.."})):
        with pytest.raises(gr.Error):
            folder(whose, **who)  # type: ignore[arg-type]
    assert whose_shelves("127.0.0.1", auth=False, shared=None) == "one"
    assert whose_shelves("0.0.0.0", auth=False, shared=None) == "browser"
    assert whose_shelves("0.0.0.0", auth=False, shared=True) == "one"
    assert whose_shelves("127.0.0.1", auth=True, shared=None) == "user"


NASTY = "<script>alert(1)</script>\" onload='x' {{this}} ${value} `a` \\ & \x1f ]]>"


class Tags(html.parser.HTMLParser):
    """The tags of some HTML, its text, and its attributes."""

    def __init__(self, source: str) -> None:
        super().__init__()
        self.tags, self.text, self.names = set[str](), "", set[str]()
        self.feed(source)

    def handle_starttag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        self.tags.add(tag)
        self.names |= {name for name, _ in attrs}

    def handle_data(self, data: str) -> None:
        self.text += data


def test_text_never_becomes_markup(tiny: Checkpoint) -> None:
    choice = TokenLogprob(1, NASTY, -0.7, ((NASTY, -0.7),))
    session = Session(tiny)
    session.feed([NASTY * 30])
    seen = Seen.of(session)
    assert seen is not None
    for source, shows in (
        (words.by_surprise([Word(NASTY, 3.0)], before=NASTY), True),
        (words.with_choices([choice], before=NASTY, prompt=NASTY), True),
        (words.beside([(NASTY, 1.0, 2.0)]), True),
        (words.message(NASTY), True),
        (seen.picture(), False),
        (seen.picture(layers=False), False),
    ):
        found = Tags(source)
        assert found.tags <= {"div", "span", "b", "p", "figure", "figcaption", "svg", "rect",
                              "small"}  # fmt: skip
        assert "onload" not in found.names and "{{" not in source and "${" not in source
        assert (NASTY in found.text) == shows


def test_a_picture_has_every_slot(tiny: Checkpoint, prose: Callable) -> None:
    session = Session(tiny)
    assert Seen.of(session) is None
    session.feed([prose(100)])
    seen = Seen.of(session)
    assert seen is not None and "".join(seen.pieces) in prose(100)
    n, layers = len(seen.report), tiny.model.config.n_layers
    assert seen.picture().count('width="1" height=') - 1 == n * layers  # and the mark
    assert seen.picture(layers=False).count('width="1" height=') - 1 == n
    curve = recall_curve(seen.report)
    oldest = seen.report.position - int(seen.report.start.min())
    assert f"more than {oldest:,} tokens ago" in curve


def test_reports_of_the_laboratory_run_nothing(tmp_path: Path) -> None:
    for name in ("heads.html", "heads.json", "heads.png", "other.png", "ablation.json", ".x.png"):
        (tmp_path / name).write_text(f"<script>alert(1)</script> {{{{name}}}} {name}")
    (tmp_path / "ablation.png").write_bytes(b"png")
    assert set(reports(str(tmp_path))) == {"heads", "ablation"}
    found = show_report(str(tmp_path), "heads")
    assert Tags(found).tags == {"iframe"} and 'sandbox=""' in found and "{{" not in found
    assert Tags(show_report(str(tmp_path), "ablation")).tags == {"img"}
    for name in (None, "nothing", "../heads", "heads.html"):
        assert show_report(str(tmp_path), name) == ""
    assert reports(str(tmp_path / "nowhere")) == {}


@pytest.mark.parametrize(
    ("text", "value"), [("", None), (" ", None), ("12", 12), (" 1,024 ", 1024), ("0", 0)]
)
def test_optional_numbers(text: str, value: int | None) -> None:
    assert number(text, "Seed") == value


@pytest.mark.parametrize("text", ["-1", "1.5", "x", "9" * 5000, "１e3"])
def test_no_numbers(text: str) -> None:
    with pytest.raises(ValueError, match=r"Seed .*; allowed: a whole number, or nothing"):
        number(text, "Seed")


def test_tools_that_nobody_could_call_are_refused(tmp_path: Path) -> None:
    with pytest.raises(ValueError, match="--mcp with --auth; allowed: one of them"):
        run(str(tmp_path), mcp=True, auth=[("ada", "one")])
