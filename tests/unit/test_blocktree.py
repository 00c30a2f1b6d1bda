"""Block devices as sysfs shows them, also while they come and go."""

import threading

import pytest

from qrep import blocktree
from qrep.errors import QrepError


@pytest.fixture
def links(tmp_path):
    """A directory as /sys/class/block, with one device that has no number."""
    (tmp_path / "devices" / "loop9").mkdir(parents=True)
    (tmp_path / "links").mkdir()
    (tmp_path / "links" / "loop9").symlink_to("../devices/loop9")
    return tmp_path / "links"


def test_a_device_that_is_there_has_its_number(links):
    (links / "loop9" / "dev").write_text("7:9\n")
    found = blocktree.linked(links, "loop9")
    assert (found.name, found.number, found.is_partition) == ("loop9", (7, 9), False)
    assert blocktree.linked(links, "loop8") is None


@pytest.mark.parametrize("comes", [True, False])
def test_a_device_that_comes_or_goes_has_no_number_for_a_moment(links, comes):
    change = (lambda: (links / "loop9" / "dev").write_text("7:9\n")) if comes else (links / "loop9").unlink
    timer = threading.Timer(0.05, change)
    timer.start()
    found = blocktree.linked(links, "loop9")
    timer.join()
    assert found.number == (7, 9) if comes else found is None


def test_a_device_that_stays_without_a_number_is_told_and_not_left_out(links, monkeypatch):
    monkeypatch.setattr(blocktree, "NUMBERLESS_S", 0.05)
    with pytest.raises(QrepError, match="loop9 has no device number"):
        blocktree.linked(links, "loop9")
