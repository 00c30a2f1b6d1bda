"""The engine on the kernel that Debian ships, with what it has and this machine's kernel may not have."""

import re

import pytest
from guest_machine import KERNEL_TLS

pytestmark = [pytest.mark.root, pytest.mark.slow]


def passed(output):
    """How many tests passed in the guest; none may have been skipped."""
    print(output)  # with what they measured
    summary = re.search(r"(\d+) passed[^\n]* in ", output)
    assert summary and "skipped" not in summary[0], output
    return int(summary[1])


def test_rings_send_and_receive_on_the_stock_kernel(guest):
    assert passed(guest.pytest("tests/native/test_ring_refusals.py")) > 0


def test_data_connections_are_encrypted_by_the_kernel_that_has_tls(guest):
    assert passed(guest.pytest("tests/system/test_agent_kernel_tls.py", modules=KERNEL_TLS)) > 0


def test_sync_points_are_devices_of_the_kernels_own_nbd_client(guest):
    assert passed(guest.pytest("tests/system/test_agent_attach_kernel.py", modules=["loop", "nbd", "ext4", "crc32c_generic"])) == 1
