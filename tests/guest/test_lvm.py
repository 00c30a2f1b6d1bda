"""LVM snapshots on a kernel that has the device-mapper."""

import pytest
from guest.test_stock_kernel import passed

pytestmark = [pytest.mark.root, pytest.mark.slow]
MODULES = "crc32c_generic", "loop", "dm_mod", "dm_snapshot", "dm_thin_pool", "ext4"  # libcrc32c asks for crc32c by name, so no dependency shows it


def test_thin_and_classic_snapshots_pass_the_suite_and_are_given_up_before_they_overflow(guest):
    assert passed(guest.pytest("tests/guest/lvm_cases.py", modules=MODULES, seconds=1800)) > 30
