"""Text and memories as HTML: text never becomes markup, and pictures have every slot."""

from collections.abc import Callable

import pytest

pytest.importorskip("gradio", reason="needs gradio: pip install 'streamlm[demo]'")

from apps.demo.render import text_html
from apps.demo.render.memory_svg import Seen, recall_curve
from apps.demo.render.text_html import Word
from streamlm.checkpoints.checkpoint import Checkpoint
from streamlm.runtime.reports import Choice
from streamlm.sessions.session import Session
from tests.support.html_tags import Tags

NASTY = "<script>alert(1)</script>\" onload='x' {{this}} ${value} `a` \\ & \x1f ]]>"


def test_text_never_becomes_markup(tiny: Checkpoint) -> None:
    choice = Choice(1, NASTY, 0.5, ((NASTY, 0.5),))
    session = Session(tiny)
    session.feed([NASTY * 30])
    seen = Seen.of(session)
    assert seen is not None
    for source, shows in (
        (text_html.by_surprise([Word(NASTY, 3.0)], before=NASTY), True),
        (text_html.with_choices([choice], before=NASTY, prompt=NASTY), True),
        (text_html.beside([(NASTY, 1.0, 2.0)]), True),
        (text_html.message(NASTY), True),
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
