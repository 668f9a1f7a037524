"""Settings: what one running server was told."""

from dataclasses import dataclass

from apps.server.keys import Keys

LOOPBACK = ("127.0.0.1", "localhost", "::1")
MIB = 1 << 20


@dataclass(frozen=True, kw_only=True)
class Settings:
    """Settings of a server.

    Attributes:
        store: the folder of sessions, or a URL of object storage.
        spool: a folder for bodies and exports while they are in transit.
        keys: API keys; None serves without.
        hosts: the names that a Host header may have, without a port; empty allows any.
        rows: sessions that write at once; max_waiting: requests that may wait.
        session_bytes: memory for open sessions, beyond those in use.
        save_every: tokens between automatic saves.
        max_json: bytes of a JSON body; max_body: bytes of a text or an exported session.
        max_tokens: the most tokens that a request may ask for.
        grace: seconds that running requests have left when the server is told to end.
    """

    store: str
    spool: str
    keys: Keys | None = None
    hosts: frozenset[str] = frozenset()
    rows: int = 16
    max_waiting: int = 64
    session_bytes: int = 1024 * MIB
    save_every: int = 1 << 14
    max_json: int = 16 * MIB
    max_body: int = 4096 * MIB
    max_tokens: int = 1 << 16
    grace: float = 30.0


def loopback_hosts(host: str) -> frozenset[str]:
    """The names by which a server on a loopback address may be called; any for other addresses.

    A page from elsewhere whose name was pointed at this computer sends its own name.
    """
    return frozenset(LOOPBACK) if host in LOOPBACK else frozenset()
