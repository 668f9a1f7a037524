"""Rendering: text never becomes markup, and the memory is drawn slot by slot."""

import json
import re
from collections.abc import Callable
from itertools import pairwise

import pytest

pytest.importorskip("gradio", reason="needs gradio: pip install 'streamlm[demo]'")

from apps.demo.example import CHARACTERS, FILE, book, example, example_html
from apps.demo.render import text_html
from apps.demo.render.claim_html import axis_end, claim_html
from apps.demo.render.memory_svg import MemoryView, Zones
from apps.demo.render.retention_svg import retention_curve
from apps.demo.render.text_html import ScoredToken
from streamlm.checkpoints.checkpoint import Checkpoint
from streamlm.engine import Engine
from streamlm.runtime.reports import TokenLogprob
from streamlm.sessions.session import Session
from tests.support.html_tags import Tags

NASTY = "<script>alert(1)</script>\" onload='x' {{this}} ${value} `a` \\ & \x1f ]]>"


@pytest.fixture(scope="module")
def engine(tiny: Checkpoint) -> Engine:
    return Engine(tiny, rows=1)


def test_text_never_becomes_markup(tiny: Checkpoint, engine: Engine) -> None:
    choice = TokenLogprob(1, NASTY, -0.7, ((NASTY, -0.7),))
    session = Session(tiny)
    session.feed([NASTY * 30])
    view = MemoryView.of(engine, session)
    assert view is not None
    for source, shows_text in (
        (text_html.surprise_html([ScoredToken(NASTY, 3.0)], before=NASTY), True),
        (text_html.generated_html([choice], before=NASTY, prompt=NASTY), True),
        (text_html.comparison_html([(NASTY, 1.0, 2.0)]), True),
        (text_html.message(NASTY), True),
        (view.svg(), False),
        (view.svg(layers=False), False),
    ):
        parsed = Tags(source)
        assert parsed.tags <= {"div", "span", "b", "p", "figure", "figcaption", "svg", "rect",
                              "small", "g", "path", "i"}  # fmt: skip
        assert "onload" not in parsed.names and "{{" not in source and "${" not in source
        assert (NASTY in parsed.text) == shows_text


def test_every_slot_is_drawn(tiny: Checkpoint, engine: Engine, prose: Callable) -> None:
    session = Session(tiny)
    assert MemoryView.of(engine, session) is None
    session.feed([prose(100)])
    view = MemoryView.of(engine, session)
    assert view is not None and "".join(view.pieces) in prose(100)
    n, layers = len(view.report), tiny.model.config.n_layers
    assert view.svg().count('width="1" height=') - 1 == n * layers  # one is the marker
    strip = view.svg(layers=False)
    assert strip.count("h1v") == n
    curve = retention_curve(view.report)
    oldest = view.report.position - int(view.report.start.min())
    assert f"more than {oldest:,} tokens ago" in curve and "still has a slot" in curve


def test_zones_keep_their_widths(tiny: Checkpoint, engine: Engine, prose: Callable) -> None:
    """A zone is as wide as what it can hold, from the first token on."""
    config, drawn = tiny.model.config, []
    for words in (2, 20, 120):
        session = Session(tiny)
        session.feed([prose(words)])
        view = MemoryView.of(engine, session)
        assert view is not None and view.zones == Zones.of(config)
        for layers in (True, False):
            source = view.svg(layers=layers)
            drawn.append((re.findall(r'class="background (\w+)" x="(\d+)".*?width="(\d+)"', source),
                          re.findall(r"flex:(\d+)", source)))  # fmt: skip
        filled = dict(zip(("compressed", "memory", "segment"), view._groups(), strict=True))
        assert filled["segment"][1].stop == len(view.report)
    assert all(each == drawn[0] for each in drawn)
    widths = [int(width) for *_, width in drawn[0][0]]
    assert widths == [config.compressed_len, config.memory_len, config.segment_len]


def test_the_claim() -> None:
    """The line of the bundled model after the bundled book."""
    text = Tags(claim_html(59_956, slots=384, slot_bytes=4096)).text
    assert text.startswith(
        "59,956 tokens read · memory 1.6 MB, constant · keeping every token would need 246 MB"
    )
    for position in (0, 1, 900, 1_000, 59_956, 10**7):
        drawn = claim_html(position, slots=384, slot_bytes=4096)
        ends = [float(x) for x in re.findall(r" ([\d.]+),[\d.]+\"", drawn)]
        assert len(ends) == 2 and ends[0] == ends[1] <= 100
        assert position * 1.1 <= axis_end(position) <= max(1000, 2.5 * position)


def test_the_example_is_a_memory_of_the_bundled_book() -> None:
    made, kept = example(book()[:2000]), json.loads(FILE.read_text(encoding="utf-8"))
    assert made["zones"] == kept["zones"] and made["report"].keys() == kept["report"].keys()
    assert made["report"]["slot_bytes"] == kept["report"]["slot_bytes"]
    read = book()[:CHARACTERS]
    text, report = "".join(kept["pieces"]), kept["report"]
    assert text in read[-5000:] and report["position"] - report["first"] == len(kept["pieces"])
    spans = list(zip(report["start"][0], report["stop"][0], strict=True))
    assert all(stop == start for (_, stop), (start, _) in pairwise(spans))  # without a gap
    assert "An example" in example_html() and "1.6 MB" in example_html()
