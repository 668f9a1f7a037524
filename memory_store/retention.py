"""Retention: whose state is kept when a session runs for ever."""

from collections.abc import Sequence
from dataclasses import dataclass
from itertools import pairwise

from memory_store.protocol import Ref


@dataclass(frozen=True)
class Retention:
    """Which snapshots of a branch stay loadable; heads and pinned ones always do.

    Attributes:
        last: the newest so many of each branch; None keeps all.
        thin: and of the older ones about `last` for each doubling of their age in tokens, instead
            of none. From the nearest one, any position is reached by reading `last`ths of its age
            in tokens again.
        log: keep the token ids of the others, 4 bytes a token, and the first snapshot, so that all
            positions stay within reach. Without, what is older than the oldest snapshot that is
            kept is forgotten.

    Raises:
        ValueError: `last` below 1, or thin without `last`.
    """

    last: int | None = None
    thin: bool = False
    log: bool = True

    def __post_init__(self) -> None:
        if self.last is not None and (type(self.last) is not int or self.last < 1):
            raise ValueError(f"last = {self.last!r}; allowed: an integer of at least 1, or None")
        if self.last is None and (self.thin or not self.log):
            raise ValueError("thin and log = False say what happens to others than the `last`")

    def kept(self, refs: Sequence[Ref]) -> list[Ref]:
        """Those of a branch's refs, oldest first, that stay loadable.

        Applied again and again while the branch grows, it keeps the same ones as at once at the
        end.
        """
        if self.last is None or len(refs) <= self.last:
            return list(refs)
        thinned: list[Ref] = []
        if self.thin:
            now = refs[-1].position
            # A block is half of a larger one, and of each the newest stays: what goes early would
            # also go late.
            for ref, following in pairwise(refs[: len(refs) - self.last + 1]):
                age = max(0, now - ref.position)
                size = 1 << max(0, (age // self.last).bit_length() - 1)
                if ref.position // size != following.position // size:
                    thinned.append(ref)
        return [*thinned, *refs[-self.last :]]
