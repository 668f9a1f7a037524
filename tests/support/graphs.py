"""CUDA graphs without CUDA: what was captured is done again, to the same addresses."""

from collections.abc import Callable, Iterator
from contextlib import contextmanager
from unittest.mock import patch

from torch import Tensor

from streamlm.models import captured

Results = tuple[Tensor, ...]


@contextmanager
def pretended_graphs(*, warm: int = 2) -> Iterator[list[str]]:
    """Every device has graphs meanwhile; yields a list of captures and replays, in order."""
    log: list[str] = []

    def capture(work: Callable[[], Results], _: object) -> tuple[Callable[[], None], Results]:
        log.append("capture")
        results = work()

        def replay() -> None:
            log.append("replay")
            for mine, new in zip(results, work(), strict=True):
                mine.copy_(new)

        return replay, results

    with (
        patch.object(captured, "capture", capture),
        patch.object(captured, "can_capture", lambda device: True),
        patch.object(captured, "WARM", warm),
    ):
        yield log
