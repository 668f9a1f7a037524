"""The whole page: accessible names, and narrow screens."""

import re
from typing import Any

import pytest

from tests.support.demo_server import Visit

pytest.importorskip("gradio", reason="needs gradio: pip install 'streamlm[demo]'")

pytestmark = pytest.mark.browser

# Names that are not wholly visible: of tabs, zones, sessions, and buttons.
CUT_OFF = """() => [...document.querySelectorAll(
        "[role=tab], .zones span, .legend span, #shelf td, #timeline td, button[id]")]
    .filter((e) => e.offsetParent !== null && e.innerText)
    .filter((e) => e.scrollWidth > e.clientWidth + 1
        || e.getBoundingClientRect().right > innerWidth)
    .map((e) => e.innerText)"""


def test_every_control_has_an_accessible_name(visit: Visit) -> None:
    visitor = visit()
    names = visitor.page.get_by_role("combobox", name="Session")
    for close in (lambda: names.click(), lambda: visitor.page.keyboard.press("Escape")):
        names.click()
        visitor.page.get_by_role("option").first.wait_for()
        close()
        visitor.page.get_by_role("option").first.wait_for(state="detached")
    assert re.fullmatch(r"session-[0-9a-f]{6}", visitor.session)
    for name in ("Read", "Chat", "Remember", "Write", "Sessions", "Compare"):
        visitor.tab(name)
        assert visitor.page.get_by_role("tab").count() == 6
        unnamed = visitor.page.evaluate(
            """() => [...document.querySelectorAll("button, input, textarea, [tabindex='0']")]
                .filter((e) => e.offsetParent !== null && e.type !== "file")
                .filter((e) => !(e.innerText || e.ariaLabel || e.title || e.labels?.length
                    || e.getAttribute("aria-labelledby") || e.placeholder))
                .map((e) => e.outerHTML.slice(0, 200))"""
        )
        assert unnamed == []


@pytest.mark.parametrize("scheme", ["light", "dark"])
def test_the_page_fits_a_narrow_screen(visit: Visit, prose: Any, scheme: str) -> None:
    visitor = visit("a-session-whose-name-is-rather-long-2026", width=375, scheme=scheme)
    visitor.read(prose(100))
    for name in ("Read", "Chat", "Remember", "Write", "Sessions", "Compare"):
        visitor.tab(name)
        visitor.page.wait_for_timeout(300)
        width = visitor.page.evaluate("document.documentElement.scrollWidth")
        assert width <= 375, name
        assert visitor.page.evaluate(CUT_OFF) == [], name
    ink, background = visitor.page.evaluate(
        """() => [getComputedStyle(document.querySelector("#position b")).color,
                  getComputedStyle(document.body).backgroundColor]
            .map((c) => c.match(/\\d+/g).slice(0, 3).reduce((sum, n) => sum + +n, 0))"""
    )
    assert (ink > background + 300) if scheme == "dark" else (ink + 300 < background)
