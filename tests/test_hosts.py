"""Which hosts and origins a server answers."""

from collections.abc import Mapping

import pytest

from apps.hosts import Hosts

LOCAL = Hosts.of("127.0.0.1")
NAMED = Hosts.of("127.0.0.1", ["Demo.Example.org"])
EVERYWHERE = Hosts.of("0.0.0.0")


@pytest.mark.parametrize(
    ("hosts", "headers", "method", "allowed"),
    [
        (LOCAL, {"host": "localhost:7860"}, "GET", True),
        (LOCAL, {"host": "LOCALHOST"}, "GET", True),
        (LOCAL, {"host": "[::1]:7860"}, "POST", True),
        (LOCAL, {"host": "evil.example"}, "GET", False),  # a name that leads here
        (LOCAL, {"host": "127.0.0.1.evil.example"}, "GET", False),
        (LOCAL, {"host": "evil@localhost"}, "GET", True),
        (LOCAL, {"host": ""}, "GET", False),
        (LOCAL, {}, "GET", False),
        (LOCAL, {"host": "[::1"}, "GET", False),
        (LOCAL, {"host": "192.168.0.5"}, "GET", False),
        (LOCAL, {"host": "localhost:1", "origin": "http://localhost:1"}, "POST", True),
        (LOCAL, {"host": "localhost:1", "origin": "http://localhost:2"}, "POST", False),
        (LOCAL, {"host": "localhost", "origin": "http://localhost:80"}, "POST", True),
        (LOCAL, {"host": "localhost:1", "origin": "https://evil.example"}, "POST", False),
        (LOCAL, {"host": "localhost:1", "origin": "null"}, "POST", False),
        (LOCAL, {"host": "localhost:1", "origin": ""}, "POST", False),
        # Behind a proxy on this computer that does not pass Host on, as browsers see it.
        (LOCAL, {"host": "localhost:1", "origin": "http://localhost:2",
                 "sec-fetch-site": "same-origin"}, "POST", True),
        (LOCAL, {"host": "localhost:1", "origin": "http://evil.example",
                 "sec-fetch-site": "same-origin"}, "POST", False),
        (LOCAL, {"host": "localhost", "sec-fetch-site": "cross-site"}, "GET", False),
        (LOCAL, {"host": "localhost", "sec-fetch-site": "same-site"}, "GET", False),
        (LOCAL, {"host": "localhost", "sec-fetch-site": "cross-site",
                 "sec-fetch-mode": "navigate"}, "GET", True),  # a link
        (LOCAL, {"host": "localhost", "sec-fetch-site": "cross-site",
                 "sec-fetch-mode": "navigate"}, "POST", False),
        (LOCAL, {"host": "localhost", "sec-fetch-site": "none"}, "GET", True),
        (NAMED, {"host": "demo.example.org"}, "GET", True),
        (NAMED, {"host": "localhost:1", "origin": "https://demo.example.org"}, "POST", True),
        (NAMED, {"host": "other.example.org"}, "GET", False),
        (EVERYWHERE, {"host": "192.168.0.5:7860"}, "GET", True),
        (EVERYWHERE, {"host": "[fe80::1]:7860"}, "GET", True),
        (EVERYWHERE, {"host": "evil.example"}, "GET", False),
        (EVERYWHERE, {"host": "192.168.0.5", "origin": "http://192.168.0.6"}, "POST", False),
    ],
)  # fmt: skip
def test_who_is_answered(
    hosts: Hosts, headers: Mapping[str, str], method: str, allowed: bool
) -> None:
    refusal = hosts.refusal(headers, method=method)
    assert (refusal is None) == allowed, refusal


def test_a_host_by_its_own_name() -> None:
    assert Hosts.of("demo.local").refusal({"host": "demo.local:80"}, method="GET") is None


@pytest.mark.parametrize("name", ["http://demo.example", "demo.example:80", "a/b", "", "*/"])
def test_names_are_names(name: str) -> None:
    with pytest.raises(ValueError, match=r"--allow-host '.*'; allowed: a name or an address"):
        Hosts.of("127.0.0.1", [name])


def test_an_address_may_be_allowed() -> None:
    hosts = Hosts.of("127.0.0.1", ["fe80::1", "10.0.0.7"])
    for host in ("[fe80::1]:80", "10.0.0.7:80"):
        assert hosts.refusal({"host": host}, method="GET") is None
