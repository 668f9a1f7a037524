"""Jinja as Hugging Face sets it up, and the bounds of the sandbox."""

import re
from typing import Any

import pytest

from tokenizer.templates import LONGEST_OUTPUT, Template

FEW_STEPS = 10_000


@pytest.fixture
def few_steps(monkeypatch: pytest.MonkeyPatch) -> None:
    """Fewer steps than in use, where a rendering of all of them takes seconds."""
    monkeypatch.setattr("tokenizer.templates.MOST_STEPS", FEW_STEPS)


@pytest.mark.parametrize(
    ("source", "text"),
    [
        ("{% for i in [1, 2] %}\n  {{ i }}\n{% endfor %}", "  1\n  2\n"),  # blocks are trimmed
        ("{% for i in range(9) %}{{ i }}{% if i == 2 %}{% break %}{% endif %}{% endfor %}", "012"),
        ("{% generation %}a{{ 1 }}{% endgeneration %}b", "a1b"),
        ("{{ {'b': '<é>', 'a': none} | tojson }}", '{"b": "<é>", "a": null}'),
        ("{{ [1] | tojson(indent=1) }}", "[\n 1\n]"),
        ("{% set ns = namespace(n=1) %}{% set ns.n = ns.n + 1 %}{{ ns.n }}", "2"),
        ("{{ '-' * 3 }}{{ 3 * '-' }}{{ 3 * 4 }}{{ 2 * 1.5 }}", "------123.0"),
        ("{% macro f(x) %}<{{ x }}>{% endmacro %}{{ f(1) }}{{ f('b') }}", "<1><b>"),
        ("{{ dict(a=1)['a'] }}{{ messages[0].content | trim }}{{ absent }}", "1hi"),
    ],
)
def test_rendering(source: str, text: str) -> None:
    assert Template(source).render({"messages": [{"content": " hi "}]}) == text


def test_the_date() -> None:
    assert re.fullmatch(r"\d{4}-\d\d", Template("{{ strftime_now('%Y-%m') }}").render({}))


@pytest.mark.parametrize(
    ("source", "words"),
    [
        ("{{ raise_exception('only users') }}", "only users"),
        ("{{ ''.__class__.__mro__ }}", "unsafe"),
        ("{{ messages.append(1) }}", "unsafe"),
        ("{% set ns = namespace(__class__=1) %}", "'__class__' is not allowed in a namespace"),
        ("{% set ns = namespace() %}{% set ns._a = 1 %}", "'_a' is not allowed in a namespace"),
        ("{{ absent.name }}", "'absent' is undefined"),
        ("{{ 1 / 0 }}", "division by zero"),
        ("{{ 'x' * 100000000 }}", "is not allowed"),
        ("{{ 100000000 * [1] }}", "is not allowed"),
        ("{{ 9 ** 9 }}", "is not allowed"),
        ("{{ range(1000000) }}", "Range too big"),
        (
            "{% for i in range(100000) %}{% for j in range(100000) %}{% endfor %}{% endfor %}",
            f"takes more than {FEW_STEPS:,} steps",
        ),
        (
            "{% for i in range(100000) %}{{ '" + "x" * 10_000 + "' }}{% endfor %}",
            f"writes more than {LONGEST_OUTPUT:,} characters",
        ),
        ("{% macro f() %}{{ f() }}{% endmacro %}{{ f() }}", "recursion"),
        (
            "{% macro f(n) %}{% if n %}{{ f(n - 1) }}{{ f(n - 1) }}{% endif %}{% endmacro %}"
            "{{ f(60) }}",
            f"takes more than {FEW_STEPS:,} steps",
        ),
    ],
)
def test_what_a_template_cannot_do(source: str, words: str, few_steps: None) -> None:
    template = Template(source)
    given: dict[str, Any] = {"messages": []}
    with pytest.raises(ValueError, match=f"cannot render this chat: .*{re.escape(words)}"):
        template.render(given)
    assert given == {"messages": []}


def test_the_count_of_steps_begins_anew(few_steps: None) -> None:
    template = Template("{% for i in range(900) %}{% endfor %}{{ i }}")
    for _ in range(12):
        assert template.render({}) == ""


def test_no_template() -> None:
    with pytest.raises(ValueError, match="is no Jinja template"):
        Template("{% for %}")
