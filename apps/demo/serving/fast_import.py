"""Importing Gradio in half the time.

At each import Gradio parses the source of every component twice, to bring its type stubs up to date
for editors. A program that serves has no use for them, and had better not write to its libraries.
Gradio also imports the MCP library, one of its extras, where it is installed, whether it is used or
not. And what is imported stays: there is no garbage to look for meanwhile.
"""

import gc
import sys
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from importlib.machinery import ModuleSpec, PathFinder, SourceFileLoader
from types import ModuleType

MODULE, FUNCTION = "gradio.component_meta", "create_or_modify_pyi"


@contextmanager
def quickly(*, mcp: bool = False) -> Iterator[None]:
    """While this lasts, importing Gradio writes no stubs; nothing happens if it is imported.

    Args:
        mcp: Gradio shall find the MCP library, to serve tools with it.
    """
    collects, hidden = gc.isenabled(), not mcp and "mcp" not in sys.modules
    sys.meta_path.insert(0, _Finder)
    gc.disable()
    if hidden:
        sys.modules["mcp"] = None  # type: ignore[assignment]  # as if it were not installed
    try:
        yield
    finally:
        sys.meta_path.remove(_Finder)
        if collects:
            gc.enable()
        if hidden:
            del sys.modules["mcp"]


class _Finder:
    @staticmethod
    def find_spec(
        name: str, path: Sequence[str] | None = None, target: ModuleType | None = None
    ) -> ModuleSpec | None:
        if name != MODULE:
            return None
        spec = PathFinder.find_spec(name, path, target)
        if spec is not None and isinstance(spec.loader, SourceFileLoader):
            spec.loader = _Loader(spec.loader.name, spec.loader.path)
        return spec


class _Loader(SourceFileLoader):
    def exec_module(self, module: ModuleType) -> None:
        super().exec_module(module)
        if hasattr(module, FUNCTION):  # of no concern where a later Gradio has none
            setattr(module, FUNCTION, lambda *_: None)
