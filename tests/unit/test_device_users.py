"""Who uses a device, by a sysfs that is made up: what this machine may not have."""

from types import SimpleNamespace

import pytest

from qrep import blocktree, deviceusers
from qrep.blocktree import Place, Storage

DISK = Storage(Place(("dev", 8, 0), 0, 1 << 30), frozenset([(8, 0)]), ())


def node_of(number, name, size, below):
    return SimpleNamespace(
        number=number, name=name, is_partition=False, is_loop=False, device_path=f"/dev/{name}", size=lambda: size, slaves=lambda: below,
        read=lambda attribute: "",
    )  # fmt: skip


@pytest.mark.parametrize("size", [0, 1 << 29])
def test_an_array_that_is_not_started_holds_its_disk_although_it_has_no_bytes(monkeypatch, size):
    array, unused = node_of((9, 127), "md127", size, ["the disk"]), node_of((7, 3), "loop3", 0, [])
    storages = {array.number: Storage(Place(("dev", 9, 127), 0, size), frozenset([array.number]), (DISK.place,))}
    monkeypatch.setattr(blocktree, "all_nodes", lambda: [unused, array])
    monkeypatch.setattr(blocktree, "storage_of_node", lambda node: storages[node.number])  # of the unused one nobody asks
    info = SimpleNamespace(path="/dev/sda")
    assert list(deviceusers._stacked(DISK, info)) == [deviceusers.User("md", "/dev/md127", "/dev/sda")]
