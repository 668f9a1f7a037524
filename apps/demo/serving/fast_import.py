"""Import Gradio in half the time.

On import, Gradio parses the source of every component twice to update type stubs for editors. A
server does not need them, and should not write to its libraries. Gradio also imports the MCP
library wherever it is installed. And garbage collection is wasted on modules, which all stay.
"""

import gc
import sys
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from importlib.machinery import ModuleSpec, PathFinder, SourceFileLoader
from types import ModuleType

MODULE, FUNCTION = "gradio.component_meta", "create_or_modify_pyi"


@contextmanager
def fast_gradio_import(*, mcp: bool = False) -> Iterator[None]:
    """Within this context, importing Gradio updates no stubs; no effect once it is imported.

    Args:
        mcp: let Gradio import the MCP library, to serve tools with it.
    """
    collecting, hidden = gc.isenabled(), not mcp and "mcp" not in sys.modules
    sys.meta_path.insert(0, _Finder)
    gc.disable()
    if hidden:
        sys.modules["mcp"] = None  # type: ignore[assignment]  # as if it were not installed
    try:
        yield
    finally:
        sys.meta_path.remove(_Finder)
        if collecting:
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
        if hasattr(module, FUNCTION):  # later versions of Gradio may not have it
            setattr(module, FUNCTION, lambda *_: None)
