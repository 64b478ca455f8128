"""The hosts that a request may name, and the pages that it may come from.

Without API keys, whoever reaches the server may use it, and a page of any site reaches it through the browser of
somebody near it: with a form, or under a name of its own that it lets point to this server's address (DNS rebinding). A
browser says the truth about both, in ``Origin`` and in ``Host``. An address cannot be rebound, a name can.

With API keys no page can do anything, since it has no key, so there only hosts that the operator lists are enforced.
"""

import re
from collections.abc import Sequence
from dataclasses import dataclass
from ipaddress import IPv4Address, IPv6Address, ip_address

from adacache_serve.settings import Settings

SAFE = (
    "GET",
    "HEAD",
    "OPTIONS",
)  # methods that change nothing; a page cannot read the answer to another site's request
PROBED = ("/healthz", "/readyz", "/metrics")  # probes name the address of a container, which nobody can list
FOREIGN = (b"cross-site", b"same-site")  # values of Sec-Fetch-Site
AUTHORITY = re.compile(r"(\[[0-9a-f:.]+\]|[a-z0-9_-][a-z0-9._-]*)(?::([0-9]{1,5})?)?", re.ASCII | re.IGNORECASE)
ORIGIN = re.compile(r"(https?)://(.+)", re.ASCII | re.IGNORECASE)
PORTS = {"http": 80, "https": 443}
LONGEST_SHOWN = 100  # characters of a client's header that an answer repeats

Name = str | IPv4Address | IPv6Address


@dataclass(frozen=True)
class Hosts:
    """The hosts that requests may name, each with any port, since a tunnel or a container may have another one.

    Attributes:
        own: the names and addresses on which the server listens, beside localhost and its addresses.
        listed: the names and addresses that the operator lists, which a proxy in front of the server has.
        any_address: whether every address may be named, because the server listens on all that its machine has.
    """

    own: frozenset[Name]
    listed: frozenset[Name] = frozenset()
    any_address: bool = False

    def __contains__(self, name: object) -> bool:
        """Return whether requests may name this host."""
        if isinstance(name, IPv4Address | IPv6Address) and (self.any_address or name.is_loopback):
            return True
        return name == "localhost" or name in self.own or name in self.listed


def hosts_of(address: str, settings: Settings, keys: bool) -> Hosts | None:
    """Return the hosts of a server; None = requests may name any, since a key is needed and no host is listed.

    Args:
        address: the address on which the server listens.
        settings: the server's settings.
        keys: whether clients need an API key.
    """
    if keys and not settings.allowed_hosts:
        return None
    own, listed = (
        frozenset(found for each in texts if (found := host_of(each)))
        for texts in ((address, settings.host), settings.allowed_hosts)
    )
    return Hosts(own, listed, any_address=ip_address(address).is_unspecified)


def host_of(text: str) -> Name | None:
    """Parse a host name or an address without a port; None, if the text is neither."""
    found = authority(f"[{text}]" if ":" in text and not text.startswith("[") else text)
    return None if found is None or found[1] is not None else found[0]


def authority(text: str) -> tuple[Name, int | None] | None:
    """Parse a host with or without a port, as in ``Host``.

    Returns:
        The host, as an address if it is one, else as a name in small letters without the root's dot at its end; and the
        port, if there is one. None, if the text is not a host.
    """
    found = AUTHORITY.fullmatch(text)
    if found is None:
        return None
    name, port = found[1].lower(), int(found[2]) if found[2] else None
    if port is not None and port > 65535:
        return None
    try:
        if name.startswith("["):
            address = IPv6Address(name[1:-1])
            return address.ipv4_mapped or address, port
        plain = name.removesuffix(".")
        return (IPv4Address(plain) if plain.replace(".", "").isdigit() else plain), port
    except ValueError:
        return None


def wrong_host(path: str, headers: Sequence[tuple[bytes, bytes]], hosts: Hosts) -> str | None:
    """Return why a request is refused for the host that it names; None = it is not."""
    if path in PROBED:
        return None
    named = [value.decode("latin-1") for name, value in headers if name == b"host"]
    found = authority(named[0]) if len(named) == 1 else None
    if found is None:
        return "the request must name its host in one Host header"
    if found[0] in hosts:
        return None
    return (
        f"the host {named[0][:LONGEST_SHOWN]!r} is not one of this server's; use its address, "
        "or start the server with --allowed-host to allow a name"
    )


def wrong_page(method: str, headers: Sequence[tuple[bytes, bytes]], hosts: Hosts | None) -> str | None:
    """Return why a request is refused for the page that it comes from; None = it is not.

    Args:
        method: the HTTP method.
        headers: the request's headers.
        hosts: the hosts that requests may name; None = any, since a key is needed.
    """
    if method in SAFE:
        return None
    if any(name == b"sec-fetch-site" and value.lower() in FOREIGN for name, value in headers):
        return "requests from pages of other sites are refused"
    if hosts is None:
        return None
    origins = [value.decode("latin-1") for name, value in headers if name == b"origin"]
    if not origins or (len(origins) == 1 and _own(origins[0], headers, hosts)):
        return None
    return f"requests from pages of other sites are refused, and this one comes from {origins[0][:LONGEST_SHOWN]!r}"


def _own(origin: str, headers: Sequence[tuple[bytes, bytes]], hosts: Hosts) -> bool:
    """Return whether an origin is this server: what the request names, or a listed host, whose proxy names another."""
    match = ORIGIN.fullmatch(origin)
    found = authority(match[2]) if match else None
    host = authority(dict(headers).get(b"host", b"").decode("latin-1"))
    if match is None or found is None or host is None:
        return False
    if found[0] != host[0]:
        return found[0] in hosts.listed
    usual = PORTS[match[1].lower()]
    return (found[1] or usual) == (host[1] or usual)
