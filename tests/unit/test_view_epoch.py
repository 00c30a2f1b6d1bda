"""The counter that views of a volume look at: what is left of it when the volume goes out of service. Found by the fds that agents held after H8 and H12."""

import os

from qrep._native import undo_view
from qrep.target.view import Epoch


def mappings():
    """Descriptors of epochs that this process holds."""
    found = 0
    for name in os.listdir("/proc/self/fd"):
        try:
            found += "qrep-undo-epoch" in os.readlink(f"/proc/self/fd/{name}")
        except FileNotFoundError:  # of the listing itself
            continue
    return found


def test_an_epoch_that_is_over_holds_no_descriptor_and_has_changed_for_good():
    before, epoch = mappings(), Epoch()
    began = epoch.read()
    epoch.change()
    assert epoch.read() == began + 1 and mappings() > before
    epoch.end()
    epoch.end()
    epoch.change()
    assert mappings() == before and epoch.over and epoch.read() == began + 2


def test_who_looks_at_it_still_sees_that_it_is_over():
    epoch = Epoch()
    with memoryview(epoch.memory) as seen:
        began = undo_view.read_counter(seen)
        epoch.end()
        assert undo_view.read_counter(seen) == began + 1 == epoch.read()
