"""Settings: what one running server was told."""

from dataclasses import dataclass, field

from apps.hosts import LOOPBACK, Hosts
from apps.server.keys import Keys

MIB = 1 << 20


@dataclass(frozen=True, kw_only=True)
class Settings:
    """Settings of a server.

    Attributes:
        store: the folder of sessions, or a URL of object storage.
        spool: a folder for bodies and exports while they are in transit.
        keys: API keys; None serves without.
        hosts: the names by which a server without keys may be called.
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
    hosts: Hosts = field(default_factory=lambda: Hosts(frozenset(LOOPBACK)))
    rows: int = 16
    max_waiting: int = 64
    session_bytes: int = 1024 * MIB
    save_every: int = 1 << 14
    max_json: int = 16 * MIB
    max_body: int = 4096 * MIB
    max_tokens: int = 1 << 16
    grace: float = 30.0
