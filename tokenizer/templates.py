"""Chat templates as Jinja, in a sandbox, with the settings and functions of Hugging Face.

A template comes with a model file, so it is not trusted: it sees immutable values alone, and its
output and its loops are bounded.

Source of the settings: chat_template_utils.py of transformers.
"""

from __future__ import annotations

import json
from collections.abc import Callable, Iterable, Iterator, Mapping
from datetime import datetime
from threading import Lock
from typing import Any

LONGEST_OUTPUT = 16_000_000  # characters
MOST_STEPS = 1_000_000  # passes through loops and macros in one rendering


class Template:
    """A compiled chat template.

    Raises:
        ValueError: the source is no Jinja template; says where.
        ModuleNotFoundError: Jinja is missing; says how to install it.
    """

    def __init__(self, source: str) -> None:
        try:
            import jinja2
        except ModuleNotFoundError:
            raise ModuleNotFoundError(
                "chat templates need Jinja: pip install 'streamlm[pretrained]'"
            ) from None
        self.source = source
        self._steps = 0
        self._one_at_a_time = Lock()
        try:
            self._compiled = _environment(self._step).from_string(source)
        except jinja2.TemplateError as error:
            raise ValueError(f"the chat template is no Jinja template: {error}") from None

    def render(self, variables: Mapping[str, Any]) -> str:
        """The text that the template makes of `variables`.

        Raises:
            ValueError: the template refuses them (raise_exception), fails, or exceeds a bound.
        """
        with self._one_at_a_time:
            self._steps = 0
            try:
                return "".join(self._bounded(self._compiled.generate(**variables)))
            except Exception as error:  # whatever the template's expressions raise
                raise ValueError(f"the chat template cannot render this chat: {error}") from error

    def _bounded(self, pieces: Iterable[str]) -> Iterator[str]:
        length = 0
        for piece in pieces:
            length += len(piece)
            if length > LONGEST_OUTPUT:
                raise ValueError(f"it writes more than {LONGEST_OUTPUT:,} characters")
            yield piece

    def _step(self) -> str:
        self._steps += 1
        if self._steps > MOST_STEPS:
            raise ValueError(f"it takes more than {MOST_STEPS:,} steps")
        return ""


def _environment(step: Callable[[], str]) -> Any:
    import jinja2
    from jinja2 import nodes
    from jinja2.exceptions import SecurityError
    from jinja2.ext import Extension, loopcontrols
    from jinja2.parser import Parser
    from jinja2.sandbox import ImmutableSandboxedEnvironment
    from jinja2.utils import Namespace

    class Generation(Extension):
        """{% generation %} marks what the model writes, for training; here it is its content."""

        tags = {"generation"}  # noqa: RUF012 - Jinja's own type

        def parse(self, parser: Parser) -> list[nodes.Node]:
            next(parser.stream)
            return parser.parse_statements(("name:endgeneration",), drop_needle=True)

    class Bounded(ImmutableSandboxedEnvironment):
        """Counts passes through loops and macros, and bounds what `*` makes."""

        intercepted_binops = frozenset(["*", "**"])

        def call_binop(self, context: Any, operator: str, left: Any, right: Any) -> Any:
            repeated = [value for value in (left, right) if hasattr(value, "__len__")]
            size = len(repeated[0]) if repeated else 0
            times = right if repeated and repeated[0] is left else left
            if operator == "**" or (repeated and size * times > LONGEST_OUTPUT):
                raise SecurityError(f"{left!r:.40} {operator} {right!r:.40} is not allowed")
            return left * right

        def _parse(self, source: str, name: str | None, filename: str | None) -> nodes.Template:
            tree = super()._parse(source, name, filename)
            found: list[nodes.For | nodes.Macro] = list(tree.find_all(nodes.For))
            found += tree.find_all(nodes.Macro)
            for node in found:
                call = nodes.Call(nodes.EnvironmentAttribute("step"), [], [], None, None)
                node.body.insert(0, nodes.Output([call]).set_lineno(node.lineno))
            return tree.set_environment(self)  # type: ignore[return-value]

    class PlainNamespace(Namespace):
        """A namespace whose names are no private attributes."""

        def __init__(*args: Any, **named: Any) -> None:
            self, *pairs = args  # as in Jinja's, a template may name an attribute self
            Namespace.__init__(self)
            for name, value in dict(*pairs, **named).items():
                self[name] = value

        def __setitem__(self, name: str, value: Any) -> None:
            if name.startswith("_"):
                raise SecurityError(f"{name!r} is not allowed in a namespace")
            super().__setitem__(name, value)

    environment = Bounded(
        trim_blocks=True, lstrip_blocks=True, extensions=[Generation, loopcontrols]
    )
    environment.extend(step=step)
    environment.filters["tojson"] = _to_json

    def raise_exception(message: str) -> None:
        raise jinja2.TemplateError(message)

    def strftime_now(format: str) -> str:
        return datetime.now().strftime(format)

    environment.globals.update(
        dict=lambda *pairs, **named: dict(*pairs, **named),
        namespace=PlainNamespace,
        raise_exception=raise_exception,
        strftime_now=strftime_now,
    )
    return environment


def _to_json(
    value: Any,
    ensure_ascii: bool = False,
    indent: int | None = None,
    separators: tuple[str, str] | None = None,
    sort_keys: bool = False,
) -> str:
    """JSON without the escapes for HTML that Jinja's own filter makes."""
    return json.dumps(
        value, ensure_ascii=ensure_ascii, indent=indent, separators=separators, sort_keys=sort_keys
    )
