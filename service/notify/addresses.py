"""What the service may call: the form of a URL, and the addresses its name leads to. Pure; used by `outgoing`.

Whoever registers a webhook chooses where this process connects to, so everything is refused that is not plainly a
public host. The table of networks is our own: the flags of Python's `ipaddress` are wrong for some forms on 3.11, and
change between its versions. Source: IANA's special-purpose address registries, and WHATWG URL for hosts that end in a
number.
"""

import ipaddress
import re
from collections.abc import Iterator, Sequence
from ipaddress import IPv4Address, IPv4Network, IPv6Address, IPv6Network
from urllib.parse import urlsplit

import msgspec

from jobs.errors import AddressNotAllowed, Misconfigured

Address = IPv4Address | IPv6Address
Network = IPv4Network | IPv6Network

URL_MAX_CHARACTERS = 2048
_HOST_MAX_CHARACTERS = 253

_CHARACTERS = re.compile(r"[!#-;=?-\[\]_a-z~]+")  # printable ASCII without blank " < > \ ^ ` { | }
_NAME = re.compile(r"(?:[a-z0-9_](?:[a-z0-9_-]{0,61}[a-z0-9_])?\.)*[a-z0-9_](?:[a-z0-9_-]{0,61}[a-z0-9_])?")
_NUMBER = re.compile(r"\d+|0x[0-9a-f]*")

_PRIVATE_V4 = tuple(
    IPv4Network(text)
    for text in (
        "0.0.0.0/8", "10.0.0.0/8", "100.64.0.0/10", "127.0.0.0/8", "169.254.0.0/16", "172.16.0.0/12", "192.0.0.0/24",
        "192.0.2.0/24", "192.88.99.0/24", "192.168.0.0/16", "198.18.0.0/15", "198.51.100.0/24", "203.0.113.0/24",
        "224.0.0.0/4", "240.0.0.0/4",
    )
)  # fmt: skip
_PUBLIC_V6 = IPv6Network("2000::/3")  # whatever lies outside is loopback, local, multicast, or a wrapped IPv4 address
_SPECIAL_V6 = tuple(IPv6Network(text) for text in ("2001::/23", "2001:db8::/32", "2002::/16", "3fff::/20"))
_WRAPS_V4 = (IPv6Network("::ffff:0:0/96"), IPv6Network("64:ff9b::/96"))  # mapped, and NAT64's well-known prefix

_METADATA = frozenset(
    ipaddress.ip_address(text)
    for text in (
        "169.254.169.254", "169.254.169.253", "169.254.169.123", "169.254.170.2", "169.254.170.23", "168.63.129.16",
        "100.100.100.200", "192.0.0.192", "fd00:ec2::254", "fd00:ec2::253", "fd00:ec2::123", "fd00:ec2::23",
        "fd20:ce::254", "fe80::a9fe:a9fe",
    )
)  # fmt: skip
"""Where clouds hand out credentials: never called, whatever networks the operator lists."""
_METADATA_NAMES = frozenset({"metadata", "metadata.google.internal", "metadata.goog", "instance-data"})

_WELL_KNOWN_PORTS = 1024
_HTTP_PORTS = frozenset({80, 443})
_PORTS_OF_OTHERS = frozenset(
    {
        1433, 1521, 2049, 2181, 2375, 2376, 2379, 2380, 3306, 3389, 4369, 5432, 5672, 5900, 5984, 6000, 6379, 6380,
        6443, 6667, 7001, 9042, 9092, 9200, 9300, 10250, 10255, 11211, 15672, 16379, 26379, 27017, 27018,
    }
)  # fmt: skip
"""Databases, queues and consoles, some of which take commands out of what they think is HTTP."""


class Target(msgspec.Struct, frozen=True, kw_only=True):
    """A URL taken apart. `host` is a name or an address without brackets; `path` has the query, too."""

    scheme: str
    host: str
    port: int
    path: str

    @property
    def is_encrypted(self) -> bool:
        return self.scheme == "https"

    @property
    def authority(self) -> str:
        """The Host header."""
        host = f"[{self.host}]" if ":" in self.host else self.host
        return host if self.port == (443 if self.is_encrypted else 80) else f"{host}:{self.port}"


def parse(url: str) -> Target:
    """A URL that may be called, as far as its form tells.

    Raises:
        AddressNotAllowed: the message says why it may not.
    """
    if len(url) > URL_MAX_CHARACTERS:
        raise _refused(f"The URL has more than {URL_MAX_CHARACTERS:,} characters.")
    if not _CHARACTERS.fullmatch(url):
        raise _refused("The URL has characters that belong in none: encode them, and give a host in its xn-- form.")
    try:
        parts = urlsplit(url)
        port = parts.port
    except ValueError:
        raise _refused("This is no URL.") from None
    if parts.scheme not in ("https", "http"):
        raise _refused("The URL must begin with https://.")
    if "@" in parts.netloc or "#" in url:
        raise _refused("The URL may have neither a user nor a fragment: #, @.")
    host = _host(parts.hostname or "", is_bracketed="[" in parts.netloc)
    path = (parts.path or "/") + (f"?{parts.query}" if parts.query else "")
    return Target(scheme=parts.scheme, host=host, port=_port(port, parts.netloc, parts.scheme), path=path)


def networks(listed: Sequence[str]) -> tuple[Network, ...]:
    """The networks of the setting `outgoing_networks`.

    Raises:
        Misconfigured: one of them is none.
    """
    try:
        return tuple(ipaddress.ip_network(text) for text in listed)
    except ValueError as error:
        raise Misconfigured(
            f"TRAINING_OUTGOING_NETWORKS: {error}; a network is written like 192.168.0.0/16 or fd00::/8."
        ) from None


def check(target: Target, found: Sequence[Address], allowed: Sequence[Network]) -> None:
    """Whether every address of a target may be called; one that may not stands for all, or DNS could choose.

    Raises:
        AddressNotAllowed: the message says which rule it breaks, and not where the name leads.
    """
    addresses = [_unwrapped(address) for address in found]
    if any(meant in _METADATA for address in addresses for meant in _meant(address)):
        raise _refused(f"{target.host} leads to a metadata service, which is never called.")
    listed = [any(address in network for network in allowed) for address in addresses]
    if not all(is_listed or _is_public(address) for is_listed, address in zip(listed, addresses, strict=True)):
        raise _refused(
            f"{target.host} leads to a private or reserved address: "
            "to allow it, list its network in TRAINING_OUTGOING_NETWORKS."
        )
    if not target.is_encrypted and not all(listed):
        raise _refused("Plain http is for networks listed in TRAINING_OUTGOING_NETWORKS: use https://.")


def _host(host: str, *, is_bracketed: bool) -> str:
    if is_bracketed:
        try:
            if "%" in host:
                raise ValueError
            return str(IPv6Address(host))
        except ValueError:
            raise _refused("What stands in the brackets is no IPv6 address.") from None
    if len(host) > _HOST_MAX_CHARACTERS or not _NAME.fullmatch(host):
        raise _refused("The URL has no proper host name.")
    if host in _METADATA_NAMES:
        raise _refused(f"{host} leads to a metadata service, which is never called.")
    if _NUMBER.fullmatch(host.rpartition(".")[2]):
        try:
            return str(IPv4Address(host))  # what is octal, hexadecimal or short is none to it
        except ValueError:
            raise _refused("Write an IPv4 address as four decimal numbers.") from None
    return host


def _port(port: int | None, netloc: str, scheme: str) -> int:
    if port is None and netloc.endswith(":"):
        raise _refused("The URL has a colon and no port.")
    if port is None:
        return 443 if scheme == "https" else 80
    if port not in _HTTP_PORTS and (port < _WELL_KNOWN_PORTS or port in _PORTS_OF_OTHERS):
        raise _refused(f"Port {port} belongs to another protocol: use 443, 80, or a port from 1024 on.")
    return port


def _unwrapped(address: Address) -> Address:
    """The IPv4 address that is called in the end, where an IPv6 address stands for one."""
    if isinstance(address, IPv6Address) and any(address in network for network in _WRAPS_V4):
        return IPv4Address(int(address) & 0xFFFFFFFF)
    return address


def _meant(address: Address) -> Iterator[Address]:
    """An address, and those that older ways of wrapping IPv4 may mean by it."""
    yield address
    if isinstance(address, IPv6Address) and not _is_public(address):
        yield IPv4Address(int(address) & 0xFFFFFFFF)  # compatible, translated, local NAT64
        yield IPv4Address(int(address) >> 80 & 0xFFFFFFFF)  # 6to4


def _is_public(address: Address) -> bool:
    if isinstance(address, IPv4Address):
        return not any(address in network for network in _PRIVATE_V4)
    return address in _PUBLIC_V6 and not any(address in network for network in _SPECIAL_V6)


def _refused(message: str) -> AddressNotAllowed:
    return AddressNotAllowed(message, path="url")
