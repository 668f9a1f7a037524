"""Rendering: text never becomes markup, and the memory is drawn slot by slot."""

from collections.abc import Callable

import pytest

pytest.importorskip("gradio", reason="needs gradio: pip install 'streamlm[demo]'")

from apps.demo.render import text_html
from apps.demo.render.memory_svg import MemoryView, retention_curve
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
                              "small"}  # fmt: skip
        assert "onload" not in parsed.names and "{{" not in source and "${" not in source
        assert (NASTY in parsed.text) == shows_text


def test_every_slot_is_drawn(tiny: Checkpoint, engine: Engine, prose: Callable) -> None:
    session = Session(tiny)
    assert MemoryView.of(engine, session) is None
    session.feed([prose(100)])
    view = MemoryView.of(engine, session)
    assert view is not None and "".join(view.pieces) in prose(100)
    assert view.segment == session.state.phase > 0
    n, layers = len(view.report), tiny.model.config.n_layers
    assert view.svg().count('width="1" height=') - 1 == n * layers  # one is the marker
    assert view.svg(layers=False).count('width="1" height=') - 1 == n
    curve = retention_curve(view.report)
    oldest = view.report.position - int(view.report.start.min())
    assert f"more than {oldest:,} tokens ago" in curve
