"""The guest tier: tests on a stock Debian kernel (guest_machine.py). Its packages are kept between runs in the user's cache."""

import os
from pathlib import Path

import pytest
from guest_machine import Guest, Unavailable
from machine import need_tool


@pytest.fixture(scope="session")
def guest():
    if "QREP_GUEST" in os.environ:
        pytest.skip("this is the guest")
    for tool in ("qemu-system-x86_64", "depmod", "xz", "apt-get", "dpkg-deb"):
        need_tool(tool)
    try:
        return Guest(Path(os.environ.get("XDG_CACHE_HOME", Path.home() / ".cache")) / "qrep-guest")
    except Unavailable as err:
        pytest.skip(f"the guest's packages cannot be had: {err}")
