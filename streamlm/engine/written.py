"""Written: what came of a request that wrote."""

from typing import Literal, Self

from memory_store import Ref

Reason = Literal["stop", "length"]


class Written(int):
    """The number of tokens that were generated.

    Attributes:
        n_read: tokens that were read before them, recalled passages included.
        position: of the session after them.
        reason: "stop" if a stop string was found or the model ended its turn, "length" if
            `max_tokens` were generated.
        saved: the snapshot that holds them; None for a session without a store.
    """

    n_read: int
    position: int
    reason: Reason
    saved: Ref | None = None

    def __new__(cls, n_tokens: int, *, n_read: int, position: int, reason: Reason) -> Self:
        written = super().__new__(cls, n_tokens)
        written.n_read, written.position, written.reason = n_read, position, reason
        return written
