"""Host names become addresses in a short-lived process without rights: what a name server answers is not parsed by the engine."""

import ipaddress
import os
import re
import socket
import subprocess

from qrep.errors import Unreachable

HOSTS_MAX = 8  # addresses of one name that are tried
OUTPUT_MAX = 1 << 16


def addresses_of(name, timeout):
    """Addresses of a host, in the order to try them, without a name in any. Raises Unreachable."""
    literal = _literal(name)
    if literal is not None:
        return [literal]
    try:
        found = subprocess.run(
            ["getent", "ahosts", "--", name], capture_output=True, timeout=max(timeout, 1.0), check=False, stdin=subprocess.DEVNULL,
            env={"PATH": "/usr/sbin:/usr/bin:/sbin:/bin"}, cwd="/", **_nobody(),
        )  # fmt: skip
    except subprocess.TimeoutExpired:
        raise Unreachable(f"{name}: no name server answers", hint="give an address, or put the name into /etc/hosts") from None
    except OSError as err:
        raise Unreachable(f"{name}: names cannot be looked up: {err.strerror}", hint="give an address") from err
    hosts = []
    for line in found.stdout[:OUTPUT_MAX].decode("ascii", "replace").splitlines():
        address = _literal(line.split(" ", 1)[0])
        if address is not None and address not in hosts:
            hosts.append(address)
    if not hosts:
        raise Unreachable(f"{name}: Name or service not known", hint="give an address, or put the name into /etc/hosts")
    return hosts[:HOSTS_MAX]


def _literal(text):
    """The address that text is, None if it is a name. An interface becomes its number: the front may not ask for it."""
    address, _, zone = text.partition("%")
    try:
        ipaddress.ip_address(address)
        if zone and not re.fullmatch("[0-9]+", zone):
            return f"{address}%{socket.if_nametoindex(zone)}"
    except ValueError:
        return None
    except OSError as err:
        raise Unreachable(f"{text}: there is no interface {zone} here") from err
    return text


def _nobody():
    return {"user": 65534, "group": 65534, "extra_groups": []} if os.geteuid() == 0 else {}
