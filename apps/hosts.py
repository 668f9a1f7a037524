"""Which requests come from where they should: the host they name, and the page that sent them.

A browser sends requests for every page that it shows. Two headers, which pages cannot forge, tell
them apart: Host is the name that the browser was given for this server, Origin the page's own
address. A page whose name was pointed at this computer (DNS rebinding) sends its own name in both.
"""

import ipaddress
import socket
from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from typing import Self
from urllib.parse import urlsplit

LOOPBACK = ("127.0.0.1", "localhost", "::1")
ANYWHERE = ("0.0.0.0", "::", "")  # listens at every address of this computer
FOREIGN = ("cross-site", "same-site")  # Sec-Fetch-Site of other pages
HTTP_PORTS = {"http": 80, "https": 443}


@dataclass(frozen=True)
class Hosts:
    """The names by which a server may be called.

    Attributes:
        names: hosts without a port, in lower case.
        given: those of them that a person has named; pages from there may send requests.
        addresses: whether IP addresses are allowed too: nobody can point a name at those.
    """

    names: frozenset[str]
    given: frozenset[str] = frozenset()
    addresses: bool = False

    @classmethod
    def of(cls, host: str, allowed: Iterable[str] = ()) -> Self:
        """The names of a server that listens at `host`.

        Args:
            allowed: further names, of a proxy for instance.

        Raises:
            ValueError: one of `allowed` is no name of a host.
        """
        given = frozenset(name.lower() for name in allowed)
        for name in given:
            if name != hostname(f"//[{name}]" if ":" in name else f"//{name}"):
                raise ValueError(
                    f"--allow-host {name!r}; allowed: a name or an address, without http:// and "
                    "without a port"
                )
        everywhere = host in ANYWHERE
        own = {socket.gethostname().lower()} if everywhere else {host.lower()}
        return cls(frozenset(LOOPBACK) | own | given, given, everywhere)

    def allows(self, value: str) -> bool:
        """Whether a URL's host is one of this server's."""
        name = hostname(value)
        return name is not None and (name in self.names or (self.addresses and _is_address(name)))

    def refusal(self, headers: Mapping[str, str], *, method: str) -> str | None:
        """Why a request is refused; None if it is allowed.

        Args:
            headers: by name in lower case.
        """
        host, origin = headers.get("host", ""), headers.get("origin")
        if not self.allows(f"//{host}"):
            return f"Host {host!r:.100} is not this server; allowed: {self.described()}"
        site, mode = headers.get("sec-fetch-site"), headers.get("sec-fetch-mode")
        if origin is not None:
            own = site == "same-origin" or _place(origin) == _place(f"//{host}", like=origin)
            if not (self.allows(origin) and (own or hostname(origin) in self.given)):
                return f"Origin {origin!r:.100} is not this server's page"
        elif site in FOREIGN and not (method in ("GET", "HEAD") and mode == "navigate"):
            return "a page of another server sent this request; allowed: this server's pages"
        return None

    def described(self) -> str:
        """The allowed hosts, for messages."""
        names = sorted(self.names)
        return ", ".join(
            [*names, *["IP addresses"] * self.addresses, "further ones by --allow-host"]
        )


def hostname(value: str) -> str | None:
    """The host of a URL in lower case, without its port; None if it has none."""
    try:
        return urlsplit(value).hostname
    except ValueError:
        return None


def _place(value: str, *, like: str = "") -> tuple[str | None, int | None]:
    """The host and the port of a URL; the port that its scheme, or that of `like`, implies."""
    try:
        parts = urlsplit(value)
        scheme = parts.scheme or urlsplit(like).scheme
        return parts.hostname, parts.port or HTTP_PORTS.get(scheme)
    except ValueError:
        return None, None


def _is_address(name: str) -> bool:
    try:
        ipaddress.ip_address(name)
    except ValueError:
        return False
    return True
