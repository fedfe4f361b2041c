# Copyright 2026 The InternVL-X for Transformers authors. Licensed under the Apache License, Version 2.0.
"""Finding a public address of a host, so that a download cannot reach this machine or its network."""

import asyncio
import socket
from ipaddress import IPv4Address, IPv6Address, ip_address, ip_network

_TRANSLATED = ip_network("64:ff9b::/96")  # NAT64: the last 32 bits are an IPv4 address


async def public_address(host: str, port: int) -> str:
    """An address of the host, to connect to instead of its name: a second lookup of the name could return another
    address.

    Raises:
        ValueError: if the host has no address, or one that is not public. The message does not reveal which.
    """
    try:
        found = await asyncio.get_running_loop().getaddrinfo(host, port, type=socket.SOCK_STREAM)
    except (OSError, UnicodeError):
        found = []
    addresses = [ip_address(str(address[0]).partition("%")[0]) for *_, address in found]
    if not addresses or not all(map(is_public, addresses)):
        raise ValueError(f"the host {host!r} is not allowed, expected one with public addresses only")
    return str(min(addresses, key=lambda address: address.version))


def is_public(address: IPv4Address | IPv6Address) -> bool:
    """Whether the address is public. An IPv6 address that stands for an IPv4 address is judged by the latter."""
    if isinstance(address, IPv6Address):
        if address in _TRANSLATED:
            return is_public(IPv4Address(int(address) & 0xFFFFFFFF))
        inner = address.ipv4_mapped or address.sixtofour
        if inner is not None:
            return is_public(inner)
        if address.is_site_local:
            return False
    return address.is_global and not (address.is_multicast or address.is_reserved)
