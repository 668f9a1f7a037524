"""The demo as visitors meet it, in a browser: what each tab does, and who is in whose way."""

import re
import signal
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest

import streamlm
from streamlm.checkpoints.checkpoint import Checkpoint
from tests.support.archives import bomb
from tests.support.demo_proxy import proxy
from tests.support.demo_server import DemoServer, Visitor, browser

pytest.importorskip("gradio", reason="needs gradio: pip install 'streamlm[demo]'")

pytestmark = pytest.mark.browser

ROOT = Path(__file__).resolve().parents[2]
BOOK = (ROOT / "streamlm/assets/books/beyond-the-city.txt").read_text(encoding="utf-8")
LONG = BOOK * 10
Visit = Callable[..., Visitor]


@pytest.fixture(scope="module")
def chromium() -> Iterator[Any]:
    with browser() as chromium:
        yield chromium


@pytest.fixture(scope="module")
def model(tiny_folder: Callable[..., Path]) -> Path:
    return tiny_folder()


@pytest.fixture(scope="module")
def server(
    chromium: Any, model: Path, tmp_path_factory: pytest.TempPathFactory
) -> Iterator[DemoServer]:
    with DemoServer(tmp_path_factory.mktemp("demo") / "sessions", model) as server:
        yield server


@pytest.fixture(scope="module")
def long(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A file that takes the tiny model a while."""
    file = tmp_path_factory.mktemp("texts") / "long.txt"
    file.write_text(LONG, encoding="utf-8")
    return file


@pytest.fixture
def visit(chromium: Any, server: DemoServer) -> Iterator[Visit]:
    """Opens the page as a new visitor; at the end, none has had an error or asked elsewhere."""
    visitors: list[Visitor] = []

    def visit(session: str = "", **options: Any) -> Visitor:
        visitors.append(Visitor(chromium, server, **options))
        return visitors[-1].visit(session)

    yield visit
    for visitor in visitors:
        visitor.close()
    for visitor in visitors:
        assert visitor.outside == [] and visitor.errors == []


def test_every_control_has_a_name(visit: Visit) -> None:
    visitor = visit()
    assert re.fullmatch(r"session-[0-9a-f]{6}", visitor.session)
    for name in ("Read", "Remember", "Write", "Sessions", "Compare"):
        visitor.tab(name)
        assert visitor.page.get_by_role("tab").count() == 5
        unnamed = visitor.page.evaluate(
            """() => [...document.querySelectorAll("button, input, textarea, [tabindex='0']")]
                .filter((e) => e.offsetParent !== null && e.type !== "file")
                .filter((e) => !(e.innerText || e.ariaLabel || e.title || e.labels?.length
                    || e.getAttribute("aria-labelledby") || e.placeholder))
                .map((e) => e.outerHTML.slice(0, 200))"""
        )
        assert unnamed == []


def test_reading_shows_surprise_and_shows_markup_as_text(visit: Visit, prose: Any) -> None:
    visitor = visit()
    text = "<img src=x onerror=alert(1)> {{this}} ${value} <script>alert(2)</script> &amp; "
    told = visitor.read(prose(60) + text)
    assert re.search(r"Read \d+ tokens at \d+\.\d\d bits per byte; .* is saved at token", told)
    shown = visitor.page.locator("#read-page .page")
    assert "<img src=x onerror=alert(1)> {{this}} ${value} <script>" in shown.inner_text()
    assert shown.locator("img, script").count() == 0
    marks = shown.locator("span[title$=bits]")
    assert marks.count() > 60 and "--s:" in marks.first.get_attribute("style")
    assert "100%" in visitor.page.locator("#read-bar").inner_text()
    assert visitor.position > 60
    assert visitor.page.locator("#strip svg rect").count() > 10


def test_stopped_and_gone_on_with(visit: Visit, long: Path) -> None:
    visitor = visit()
    visitor.read_file(long)
    visitor.said("read-bar", r"tokens/s · .* left · \d+\.\d\d bits per byte")
    visitor.page.locator("#stop-reading").click()
    visitor.said("read-said", "Stopped. What was read is saved")
    stopped = visitor.position
    assert 0 < stopped < 400_000
    visitor.page.locator("#read").click()
    visitor.said("read-bar", "tokens/s")
    visitor.reload()  # in the middle: the work ends, what it has done stays
    visitor.said("standing", "has read [0-9,]+ tokens")
    assert visitor.position >= stopped
    name = visitor.session
    again = visit(name)
    again.read_file(long)  # the work of the page that is gone has ended
    assert re.search(r"went on at byte [\d,]+", again.said("read-bar", "tokens/s"))


def test_a_slot_tells_its_passage(visit: Visit, prose: Any) -> None:
    visitor = visit()
    visitor.read(prose(200))
    visitor.tab("Remember")
    assert "100%" in visitor.said("curve", "has no slot any more")
    picture = visitor.page.locator("#memory figure.memory")
    picture.locator("svg").click(position={"x": 5, "y": 8})
    assert re.search(
        r"Compressed slot · layer 1 · 4 tokens · \d+ tokens ago · .* % of attention · \d+ % lost",
        picture.locator("figcaption").inner_text(),
    )
    assert picture.locator("figcaption mark").inner_text().strip() in prose(200)
    first = picture.locator("mark.x, rect.mark").get_attribute("x")
    picture.focus()
    visitor.page.keyboard.press("ArrowRight")
    visitor.page.keyboard.press("ArrowDown")
    assert "layer 2" in picture.locator("figcaption").inner_text()
    assert picture.locator("rect.mark").get_attribute("x") != first


def test_the_memory_is_redrawn_while_reading(visit: Visit, long: Path) -> None:
    visitor = visit()
    visitor.read_file(long)
    visitor.said("read-bar", "tokens/s")
    visitor.tab("Remember")
    at = "JSON.parse(document.querySelector('#memory figure')?.dataset.memory ?? '{}').position"
    newest, columns = 0, list[int]()
    for _ in range(3):  # opening the tab draws it once
        visitor.page.wait_for_function(f"(newest) => {at} > newest", arg=newest)
        newest = visitor.page.evaluate(at)
        if not columns:
            visitor.page.locator("#memory figure").focus()
        visitor.page.keyboard.press("ArrowLeft")
        columns.append(int(visitor.page.locator("#memory rect.mark").get_attribute("x")))
    # Who walks along the slots walks on in the new picture.
    assert columns[0] > columns[1] > columns[2]
    visitor.tab("Read")
    visitor.page.locator("#stop-reading").click()
    visitor.said("read-said", "Stopped. What was read is saved")


def test_writing_tells_what_else_was_likely_and_is_undone(visit: Visit, prose: Any) -> None:
    visitor = visit()
    visitor.read(prose(40))
    before = visitor.position
    visitor.tab("Write")
    visitor.page.get_by_label("Begin with").fill("And <b>then</b>")
    visitor.page.locator("#write").click()
    visitor.said("write-said", "Wrote 120 tokens")
    page = visitor.page.locator("#write-page .page")
    assert "And <b>then</b>" in page.inner_text() and page.locator("b b").count() == 0
    assert page.locator(".token").count() == 120
    page.locator(".token").nth(3).hover()
    odds = visitor.page.locator("#odds")
    assert len(re.findall(r"[\d.]+ %", odds.inner_text())) >= 8
    page.focus()
    visitor.page.keyboard.press("ArrowRight")
    assert odds.locator("tr.taken").count() >= 1
    visitor.page.keyboard.press("Escape")
    assert not odds.is_visible()
    assert visitor.position > before + 120
    visitor.page.locator("#undo").click()
    visitor.said("write-said", "as if it had not been written")
    assert visitor.position == before
    assert visitor.page.locator("#write-page .token").count() == 0
    assert visitor.page.locator("#undo").is_disabled()


def test_writing_stops_before_a_text(visit: Visit, prose: Any) -> None:
    visitor = visit()
    visitor.read(prose(40))
    visitor.tab("Write")
    page = visitor.page
    page.get_by_text("Sampling", exact=True).click()
    page.get_by_label("Temperature (0: greedy)").first.fill("0")
    page.locator("#write").click()
    visitor.said("write-said", "Wrote 120 tokens")
    tokens = page.locator("#write-page .token")
    whole = "".join(tokens.all_text_contents())
    stop = whole[60:64]
    page.locator("#undo").click()
    visitor.said("write-said", "as if it had not been written")
    page.get_by_label("Stop before any of these texts").fill(
        "never written\n" + stop.replace("\\", r"\\").replace("\n", r"\n")
    )
    page.locator("#write").click()
    visitor.said("write-said", r"Wrote \d+ tokens, up to a text to stop at")
    assert "".join(tokens.all_text_contents()) == whole[: whole.find(stop)]


def test_two_forks_side_by_side(visit: Visit, prose: Any) -> None:
    visitor = visit()
    visitor.read(prose(80))
    before = visitor.position
    visitor.tab("Write")
    visitor.page.get_by_text("Side by side").click()
    visitor.page.get_by_label("B: seed").fill("1")
    for at, alike in (("", True), ("20", False)):
        visitor.page.get_by_label("B: from token").fill(at)
        visitor.page.locator("#write-both").click()
        visitor.page.wait_for_function(
            """(alike) => {
                const [a, b] = [..."ab"].map((side) => document.querySelector(`#side-${side}`));
                const whole = [a, b].every((side) => side.querySelectorAll(".token").length === 60);
                return whole && (a.innerText === b.innerText) === alike;
            }""",
            arg=alike,
        )
        assert "And then" in visitor.page.locator("#side-a .page").inner_text()
    visitor.said("both-said", "Neither is part of the session")
    visitor.page.get_by_label("B: from token").fill("soon")
    visitor.page.locator("#write-both").click()
    visitor.said("both-said", "Token 'soon'; allowed: a whole number, or nothing")
    visitor.reload()
    visitor.said("standing", f"has read {before} tokens")


def test_the_life_of_a_session(
    visit: Visit, server: DemoServer, tiny: Checkpoint, prose: Any, tmp_path: Path
) -> None:
    visitor = visit("whale")
    visitor.read(prose(120))
    end, page = visitor.position, visitor.page
    visitor.tab("Sessions")
    assert "whale" in visitor.said("shelf", "whale")
    page.wait_for_function(  # until the tab is drawn, no token is there to choose
        "end => document.querySelector('#point input[type=range]').max === String(end)", arg=end
    )
    page.locator("#point input[type=number]").fill("30")
    page.locator("#point input[type=number]").press("Enter")
    page.get_by_label("Name of the fork").fill("draft")
    page.locator("#fork").click()
    visitor.said("sessions-said", "whale@draft begins at token 30")
    visitor.said("standing", "whale@draft has read 30 tokens")
    page.locator("#point input[type=number]").fill("10")
    page.locator("#point input[type=number]").press("Enter")
    page.locator("#rewind").click()
    visitor.said("sessions-said", "whale@draft is back at token 10")
    page.get_by_text("Rename, export").click()
    page.get_by_label("New name").fill("../../moby")
    page.locator("#rename").click()
    visitor.said("sessions-said", "allowed: NAME or NAME@BRANCH")
    page.get_by_label("New name").fill("moby")
    page.locator("#rename").click()
    visitor.said("sessions-said", "is now moby@draft")
    with streamlm.open(server.store / "moby.zarr", tiny, branch="draft") as session:
        assert session.position == 10  # the command line's sessions are the same ones
        session.feed([prose(30)])
        grown = session.position
    page.locator("#export").click()
    with page.expect_download() as download:
        page.locator("a[download]").first.click()
    file = tmp_path / "moby.zip"
    download.value.save_as(file)
    page.locator("input[type=file]").last.set_input_files(file)
    page.get_by_label("Name for it").fill("copy")
    page.locator("#import").click()
    visitor.said("sessions-said", "copy is here")
    visitor.said("standing", f"copy has read {end} tokens")
    page.locator("#delete").click()
    page.locator("#delete-no").click()
    assert (server.store / "copy.zarr").exists()
    page.locator("#delete").click()
    page.locator("#delete-yes").click()
    visitor.said("sessions-said", "copy is deleted")
    assert not (server.store / "copy.zarr").exists()
    visit("moby@draft").said("standing", f"moby@draft has read {grown} tokens")
    with streamlm.open(server.store / "moby.zarr", tiny, readonly=True) as session:
        assert session.position == end


def test_compare(visit: Visit, prose: Any) -> None:
    visitor = visit()
    visitor.read(prose(80))
    visitor.tab("Compare")
    for side in "ab":  # both sides begin with this session, a moment after the tab is opened
        visitor.page.wait_for_function(
            "([side, name]) => document.querySelector(`#compare-${side} input`).value === name",
            arg=[side, visitor.session],
        )
    visitor.page.get_by_label("Text", exact=True).last.fill("<i>whale</i> and the sea")
    visitor.page.get_by_label("B: at token").fill("5")
    visitor.page.locator("button#compare").click()
    said = visitor.said("compare-said", "bits per byte")
    assert re.search(r"A: \d+\.\d{3} and B: \d+\.\d{3} bits per byte", said)
    page = visitor.page.locator("#compare-page .page")
    assert page.inner_text() == "<i>whale</i> and the sea" and page.locator("i").count() == 0
    assert page.locator("span.first, span.second").count() > 4
    visitor.page.get_by_label("B: at token").fill("999999")
    visitor.page.locator("button#compare").click()
    visitor.said("compare-said", "tokens = 999999; allowed: 0 to")


def test_curves_of_a_comparison(visit: Visit, server: DemoServer) -> None:
    results = Path("benchmarks/results")
    (server.store.parent / results).mkdir(parents=True)
    for kind in ("html", "json"):
        name = results / f"heads-compare-small.{kind}"
        (server.store.parent / name).write_bytes((ROOT / name).read_bytes())
    page = visit().page
    page.get_by_role("tab", name="Compare").click()
    page.get_by_text("The laboratory").click()
    page.get_by_label("Comparison").click()
    page.get_by_role("option", name="heads-compare-small").click()
    figure = page.locator("figure.curves").nth(1)
    figure.locator("svg").hover(position={"x": 60, "y": 60})
    assert "segments between telling and asking: " in figure.locator("figcaption").inner_text()
    figure.focus()
    told = []
    for key in ("ArrowDown", "ArrowRight", "ArrowRight", "ArrowUp"):
        page.keyboard.press(key)
        told.append(figure.locator("figcaption").inner_text())
        assert figure.locator(".names .on").inner_text() == told[-1].split(" · ")[0]
    assert len(set(told)) == 4
    assert page.locator("iframe.report").count() == 1


def test_a_slow_network(
    visit: Visit, server: DemoServer, tiny: Checkpoint, prose: Any, tmp_path: Path
) -> None:
    """400 ms away, with 50 kB/s: the page is late, but right, and nobody waits for it."""
    slow, text = visit(), prose(8000)
    devtools = slow.page.context.new_cdp_session(slow.page)
    devtools.send("Network.enable")
    limits = {"latency": 400, "downloadThroughput": 50_000, "uploadThroughput": 50_000}
    devtools.send("Network.emulateNetworkConditions", {"offline": False, **limits})
    other = visit()
    file = tmp_path / "text.txt"
    file.write_text(text, encoding="utf-8")
    slow.read_file(file)
    slow.said("read-bar", "tokens/s")
    began = time.monotonic()
    other.read(prose(30))  # has its turn
    assert time.monotonic() - began < 20
    told = slow.said("read-said", r"Read [\d,]+ tokens")
    name, position = slow.session, slow.position
    assert f"is saved at token {position:,}" in told
    shown = slow.page.locator("#read-page .page span[title]").all_text_contents()
    with streamlm.open(server.store / f"{name}.zarr", tiny, readonly=True) as session:
        assert session.position == position and session.text() + session.tail == text
        assert session.text().endswith("".join(shown)) and len(shown) == 400
    slow.tab("Write")
    slow.page.locator("#write").click()
    slow.said("write-said", "Wrote 120 tokens")
    written = slow.page.locator("#write-page .token").all_text_contents()
    with streamlm.open(server.store / f"{name}.zarr", tiny, readonly=True) as session:
        assert session.position == slow.position and len(written) == 120
        assert session.text() == text + "".join(written)


def test_two_visitors_at_once(visit: Visit, long: Path, prose: Any) -> None:
    one, two = visit(), visit()
    assert one.session != two.session
    one.read_file(long)
    one.said("read-bar", "tokens/s")
    began = time.monotonic()
    two.read(prose(60))  # has its turn, long before the book is read
    assert one.page.locator("#read").is_disabled() and time.monotonic() - began < 30
    third = visit(one.session)
    third.read("Me too.", until="is in use: something else is reading or writing in it")
    third.visit(two.session).read("A word more. ")
    one.page.locator("#stop-reading").click()
    one.said("read-said", "Stopped")
    third.visit(one.session).read("Now me. ")


def test_a_closed_tab_frees_its_session(visit: Visit, long: Path) -> None:
    one, two = visit(), visit()
    one.read_file(long)
    one.said("read-bar", "tokens/s")
    name = one.session
    one.close()
    two.visit(name)
    for _ in range(20):
        if "in use" not in two.read("And me. ", until="in use|Read"):
            return
        time.sleep(0.5)
    raise AssertionError("still in use")


@pytest.mark.parametrize("scheme", ["light", "dark"])
def test_a_narrow_page(visit: Visit, prose: Any, scheme: str) -> None:
    visitor = visit(width=375, scheme=scheme)
    visitor.read(prose(100))
    for name in ("Read", "Remember", "Write", "Sessions", "Compare"):
        visitor.tab(name)
        visitor.page.wait_for_timeout(300)
        width = visitor.page.evaluate("document.documentElement.scrollWidth")
        assert width <= 375, name
    ink, ground = visitor.page.evaluate(
        """() => [getComputedStyle(document.querySelector("#standing b")).color,
                  getComputedStyle(document.body).backgroundColor]
            .map((c) => c.match(/\\d+/g).slice(0, 3).reduce((sum, n) => sum + +n, 0))"""
    )
    assert (ink > ground + 300) if scheme == "dark" else (ink + 300 < ground)


def test_hostile_files(visit: Visit) -> None:
    visitor = visit()
    visitor.page.get_by_label("A file", exact=True).check()
    for name, data, message in (
        ("<img src=x onerror=alert(1)>.txt", b"\x00\x01binary", "looks binary"),
        ("half.txt", "é".encode()[:1] + b" x", "is no UTF-8 text: invalid continuation byte"),
        ("bomb.epub", bomb(), "unfolds to more than 40 MB"),
        ("broken.pdf", b"%PDF-1.7", "is no PDF, or a damaged one"),
    ):
        upload = {"name": name, "mimeType": "text/plain", "buffer": data}
        visitor.page.locator("#file input[type=file]").set_input_files(upload)
        visitor.page.locator("#file .file-preview").first.wait_for()
        visitor.page.locator("#read").click()
        visitor.said("read-said", message)
        assert visitor.page.locator("#read-said img, #file img[onerror]").count() == 0
        assert visitor.position == 0 and visitor.page.locator("#read").is_enabled()
        visitor.page.get_by_label("Clear").first.click()


def test_files_too_large_and_of_other_kinds(visit: Visit, tmp_path: Path) -> None:
    visitor = visit()
    visitor.page.get_by_label("A file", exact=True).check()
    (tmp_path / "large.txt").write_bytes(b"a" * 11_000_000)
    visitor.read_file(tmp_path / "large.txt")
    visitor.said("read-said", r"large\.txt has 11\.0 MB; allowed: at most 10 MB")
    visitor.page.get_by_label("Clear").first.click()
    (tmp_path / "run.exe").write_bytes(b"MZ")
    visitor.page.locator("#file input[type=file]").set_input_files(tmp_path / "run.exe")
    visitor.page.get_by_text(re.compile("Invalid file type")).first.wait_for()
    visitor.read("Still here. ")
    visitor.errors.clear()  # the page writes refusals to the console, too


def test_each_browser_has_its_own_sessions(
    chromium: Any, model: Path, tmp_path: Path, prose: Any
) -> None:
    store = tmp_path / "sessions"
    with DemoServer(store, model, "--private") as server:
        one = Visitor(chromium, server).visit("diary")
        one.read(prose(40))
        other = chromium.browser.new_context()
        two = Visitor(other, server).visit("diary")
        assert two.position == 0
        two.tab("Sessions")
        two.said("shelf", "There are no sessions yet")
        again = Visitor(chromium, server).visit("diary")
        assert again.position == one.position > 0
        other.close()
        one.close()
        again.close()
    assert len(list((store / "browsers").iterdir())) == 1


def test_who_logs_in_has_their_own_sessions(
    chromium: Any, model: Path, tiny: Checkpoint, tmp_path: Path, prose: Any
) -> None:
    store = tmp_path / "sessions"
    with DemoServer(store, model, "--auth", "ada:one", "--auth", "bob:two") as server:
        for name, password in (("ada", "two"), ("ada", "one"), ("bob", "two")):
            window = chromium.browser.new_context()
            visitor = Visitor(window, server)
            visitor.page.goto(server.address)
            assert visitor.page.locator("#read").count() == 0
            visitor.page.get_by_label("username").fill(name)
            visitor.page.get_by_label("password").fill(password)
            visitor.page.get_by_role("button", name="Login").click()
            if (name, password) == ("ada", "two"):
                visitor.page.get_by_text(re.compile("incorrect", re.IGNORECASE)).first.wait_for()
            else:
                visitor.page.locator("#standing p").wait_for()
                visitor.visit("diary")
                assert visitor.position == 0
                visitor.read(prose(30))
            assert visitor.outside == []
            window.close()
    for name in ("ada", "bob"):
        with streamlm.open(store / "users" / name / "diary.zarr", tiny, create=False) as session:
            assert session.position > 30


def test_behind_a_proxy(
    chromium: Any, model: Path, tiny: Checkpoint, tmp_path: Path, prose: Any
) -> None:
    """Under a path of another server it reads and writes, and asks for nothing outside of it."""
    store = tmp_path / "sessions"
    with (
        DemoServer(store, model, "--root-path", "/streamlm") as server,
        proxy(server.address, "/streamlm") as address,
    ):
        visitor = Visitor(chromium, server, address=address).visit("far")
        visitor.read(prose(40))
        visitor.tab("Write")
        visitor.page.locator("#write").click()
        visitor.said("write-said", r"Wrote \d+ tokens")
        # A browser looks for an icon at the root, which is another server's.
        errors = [error for error in visitor.errors if "/favicon.ico" not in error]
        assert visitor.outside == errors == []
        visitor.close()
    with streamlm.open(store / "far.zarr", tiny, create=False) as session:
        assert session.position > 40 + 100


def test_a_restart_loses_nothing(
    chromium: Any, model: Path, tiny: Checkpoint, long: Path, tmp_path: Path
) -> None:
    store = tmp_path / "sessions"
    with DemoServer(store, model) as server:
        visitor = Visitor(chromium, server).visit("kept")
        visitor.read_file(long)
        visitor.said("read-bar", "tokens/s")
        port = server.port
        assert server.end() == 130  # in the middle
    with streamlm.open(store / "kept.zarr", tiny, readonly=True) as session:
        kept = session.position
        assert kept > 0 and LONG.startswith(session.text())
    with DemoServer(store, model, port=port) as server:
        visitor.visit("kept")
        assert visitor.position == kept
        visitor.read_file(long)
        visitor.said("read-bar", "tokens/s")
        server.end(signal.SIGKILL)
    with streamlm.open(store / "kept.zarr", tiny) as session:
        assert session.position >= kept and LONG.startswith(session.text())
    visitor.close()
