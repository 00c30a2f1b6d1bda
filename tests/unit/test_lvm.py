"""What is asked of the LVM tools and made of their answers; that they really do so is shown in the guest (tests/guest/test_lvm.py)."""

import dataclasses
import io
import json
import os
import sys
import time

import pytest
from machine import MIB, image

from qrep import device
from qrep.errors import QrepError, Refused, UsageError
from qrep.extents import Extent
from qrep.volumes import lvmtools, registry, thinmeta
from qrep.volumes.base import FreezeOptions, SnapshotError
from qrep.volumes.lvm import LvmThin
from qrep.volumes.lvm_cow import LvmCow
from qrep.volumes.spacewatch import SpaceWatch

VG, LV, POOL = "A" * 32, "B" * 32, "pooluu-id"
ROW = {
    "vg_name": "vg0", "lv_name": "db", "vg_uuid": lvmtools._dashed(VG), "lv_uuid": lvmtools._dashed(LV), "lv_size": str(16 * MIB), "lv_layout": "linear",
    "lv_role": "public", "lv_attr": "-wi-a-----", "lv_tags": "", "lv_dm_path": "/dev/mapper/vg0-db", "lv_active": "active", "origin_uuid": "",
    "pool_lv": "", "pool_lv_uuid": "", "vg_free": str(64 * MIB), "vg_extent_size": str(4 * MIB), "thin_id": "", "origin_size": "",
}  # fmt: skip
THIN = ROW | {"lv_layout": "thin,sparse", "pool_lv": "pool", "pool_lv_uuid": POOL, "thin_id": "1"}
POOL_ROW = ROW | {"lv_name": "pool", "lv_uuid": POOL, "lv_layout": "thin,pool", "lv_dm_path": "/dev/mapper/vg0-pool", "lv_size": str(64 * MIB)}

# A volume group of JSON rows in a file: lvs selects by the pairs key="value", lvcreate adds a row, lvremove takes one away.
FAKE = f"#!{sys.executable} -IS\n" + '''\
import json, os, re, sys, time
place = os.path.dirname(os.path.abspath(sys.argv[0])); name = os.path.basename(sys.argv[0]); words = sys.argv[1:]
with open(f"{place}/asked", "a") as log: log.write(json.dumps([name, *words]) + "\\n")
assert os.environ["LC_ALL"] == "C"
if os.path.exists(f"{place}/{name}.hangs"): time.sleep(1000)
if os.path.exists(f"{place}/{name}.fails"): sys.exit("  WARNING: nothing\\n  " + open(f"{place}/{name}.fails").read())
rows = json.load(open(f"{place}/rows"))
def save(): json.dump(rows, open(f"{place}/rows", "w"))
if name == "lvs":
    wanted = re.findall(r'(\\w+)="([^"]*)"', words[words.index("--select") + 1])
    found = [row for row in rows if all(value in row[key].split(",") if key == "lv_tags" else row[key] == value for key, value in wanted)]
    print(json.dumps({"report": [{"lv": found}]}))
elif name == "lvcreate":
    vg, origin = words[-1].split("/"); made = words[words.index("--name") + 1]
    tags = [words[at + 1] for at, word in enumerate(words) if word == "--addtag"]
    base = next(row for row in rows if row["lv_name"] == origin)
    rows.append({**base, "lv_name": made, "lv_uuid": made, "origin_uuid": base["lv_uuid"], "origin_size": "" if base["thin_id"] else base["lv_size"], "lv_tags": ",".join(tags), "lv_role": "public,snapshot", "lv_size": base["lv_size"] if base["thin_id"] else "4194304",
                 "thin_id": "2" if base["thin_id"] else "", "lv_dm_path": "/dev/mapper/vg0-" + made})
    save()
elif name == "lvremove":
    rows = [row for row in rows if f"{row['vg_name']}/{row['lv_name']}" != words[-1]]; save()
elif name == "dmsetup":
    if words[0] != "message": print(open(f"{place}/{words[0]}").read())
elif name == "thin_dump":
    print(open(f"{place}/dump").read())
elif name == "thin_delta":
    print(open(f"{place}/delta").read())
'''


class FakeLvm:
    def __init__(self, directory):
        self.directory = directory
        for name in ("lvs", "lvcreate", "lvremove", "lvchange", "dmsetup", "thin_dump", "thin_delta"):
            (directory / name).write_text(FAKE)
            (directory / name).chmod(0o755)
        self.has(ROW)
        self.says("0 32768 snapshot 16/8192 8")

    def has(self, *rows):
        (self.directory / "rows").write_text(json.dumps(rows))

    def says(self, status, what="status"):
        (self.directory / what).write_text(status)

    def asked(self, name):
        lines = [json.loads(line) for line in (self.directory / "asked").read_text().splitlines()]
        return [words[1:] for words in lines if words[0] == name]

    def names(self):
        return [row["lv_name"] for row in json.loads((self.directory / "rows").read_text())]


@pytest.fixture
def lvm(memory_dir, monkeypatch):
    directory = memory_dir / "bin"
    directory.mkdir()
    monkeypatch.setenv("PATH", f"{directory}:{os.environ['PATH']}")
    return FakeLvm(directory)


@pytest.fixture
def volume(memory_dir):
    """A DeviceInfo as of a logical volume; its bytes are those of an image, which nobody freezes here."""
    return dataclasses.replace(device.inspect(image(memory_dir, size=16 * MIB)), dm_uuid=f"LVM-{VG}{LV}", dm_name="vg0-db")


def test_a_classic_snapshot_is_made_known_as_ours_found_and_removed(lvm, volume):
    backend = LvmCow(FreezeOptions(space="25%"))
    assert backend.probe(volume).ok
    before_ns = time.time_ns()
    frozen = backend.freeze(volume, "job-x")
    (words,) = lvm.asked("lvcreate")
    assert {"--yes", "--snapshot"} <= set(words) and words[words.index("--size") + 1] == f"{4 * MIB}b" and words[-1] == "vg0/db"
    assert words[words.index("--permission") + 1] == "r" and words[words.index("--config") + 1] == "backup{backup=0 archive=0}"
    assert before_ns <= frozen.time_ns <= time.time_ns() and frozen.consistency == "crash" and not frozen.fuzzy and "@job-x~c" in frozen.token
    assert backend.find(frozen.token) == frozen and backend.stale(volume) == [frozen.token] and backend.stale(volume, [frozen.token]) == []
    backend.check(frozen.token)
    assert type(registry.by_token(frozen.token)) is LvmCow
    backend.release(frozen.token)
    backend.release(frozen.token)
    assert lvm.names() == ["db"] and len(lvm.asked("lvremove")) == 1 and backend.find(frozen.token) is None
    with pytest.raises(SnapshotError, match="was removed"):
        backend.check(frozen.token)


def test_a_thin_snapshot_is_watched_by_the_space_of_its_pool(lvm, volume):
    lvm.has(THIN, POOL_ROW)
    lvm.says("0 131072 thin-pool 1 200/1024 512/1024 - rw discard_passdown queue_if_no_space - 1024")
    backend = LvmThin()
    assert backend.probe(volume).reason == "pool vg0/pool, 32 MiB free"
    assert registry.choose("auto", volume).backend.name == registry.choose("lvm", volume).backend.name == "lvm-thin"
    frozen = backend.freeze(volume, "x", quieted="application")
    assert frozen.consistency == "application" and backend.find(frozen.token) == frozen
    for status, text in (
        ("200/1024 1000/1024", "pool vg0/pool is 98 %"), ("1000/1024 512/1024", "metadata of pool vg0/pool is 98 %"),
    ):  # fmt: skip
        lvm.says(f"0 131072 thin-pool 1 {status} - rw discard_passdown queue_if_no_space - 1024")
        with pytest.raises(SnapshotError, match=text.replace(" %", "%")) as caught:
            backend.check(frozen.token)
        assert caught.value.code == "snapshot-full" and "unharmed" in caught.value.message and "lvextend" in caught.value.hint
        assert not backend.probe(volume).ok
    lvm.says("0 131072 thin-pool Fail")
    assert backend.find(frozen.token) is None


@pytest.mark.parametrize("status", ["Invalid", "Overflow", "Merge failed"])
def test_a_classic_snapshot_that_overflowed_is_lost(lvm, volume, status):
    backend = LvmCow()
    frozen = backend.freeze(volume, "x")
    lvm.says(f"0 32768 snapshot {status}")
    assert backend.find(frozen.token) is None
    with pytest.raises(SnapshotError, match="is lost"):
        backend.check(frozen.token)
    backend.release(frozen.token)
    assert lvm.names() == ["db"]


def test_what_cannot_be_frozen_says_why(lvm, volume, memory_dir):
    def why(backend, info=volume):
        capability = backend.probe(info)
        assert not capability.ok
        return capability.reason

    assert "is not a thin volume" in why(LvmThin())
    assert "is not a logical volume" in why(LvmCow(), device.inspect(volume.path))
    lvm.has(ROW | {"vg_free": str(16 * MIB)})
    assert "16 MiB free, a snapshot of db is to have 20 MiB" in why(LvmCow(FreezeOptions(space="20M")))
    lvm.has(ROW | {"lv_layout": "cache"})
    assert "makes no snapshot of (cache)" in why(LvmCow())
    lvm.has()
    assert "LVM does not know" in why(LvmCow())
    (lvm.directory / "lvs.fails").write_text("Volume group is exported.")
    assert why(LvmCow()) == "lvs: Volume group is exported."
    (lvm.directory / "lvs.fails").unlink()
    (lvm.directory / "rows").write_text('[{"lv_name": 3}]')
    with pytest.raises(UsageError, match="cannot be frozen by lvm"):
        registry.choose("lvm", device.inspect(volume.path))


def test_a_snapshot_that_cannot_be_made_leaves_nothing_and_says_what_lvm_said(lvm, volume):
    (lvm.directory / "lvcreate.fails").write_text("device-mapper: suspend ioctl on (253:0) failed: Device or resource busy\n  Run `lvcreate --help' for more information.")
    with pytest.raises(SnapshotError, match="suspend ioctl") as caught:
        LvmCow().freeze(volume, "x")
    assert volume.path in caught.value.message and "frozen by somebody else" in caught.value.hint and lvm.names() == ["db"]


def test_a_tool_that_hangs_is_left_after_its_time(lvm, volume, monkeypatch):
    monkeypatch.setattr(lvmtools, "REPORT_S", 0.3)
    (lvm.directory / "lvs.hangs").touch()
    with pytest.raises(SnapshotError, match="took more than 0.3 s") as caught:
        lvmtools.report('lv_name="db"')
    assert caught.value.code == "lvm-timeout"


@pytest.mark.parametrize("token", ["lvm-cow:vg0/db@x~a01234567", "lvm-cow:vg0/db.qrep.a01234567@x~c01234567", "lvm-cow:../x", "none:vg0/db", "lvm-cow:"])
def test_a_token_that_names_something_else_removes_nothing(lvm, token):
    with pytest.raises(SnapshotError, match="is not a"):
        LvmCow().release(token)
    assert lvm.names() == ["db"]


def test_a_volume_that_only_looks_like_ours_is_left_alone(lvm):
    lvm.has(ROW, ROW | {"lv_name": "db.qrep.a01234567"}, ROW | {"lv_name": "db.qrep.a01234568", "lv_tags": "qrep,qrep.name=other,qrep.time=1"})
    for token in ("lvm-cow:vg0/db.qrep.a01234567@x~a01234567", "lvm-cow:vg0/db.qrep.a01234568@x~a01234568"):
        with pytest.raises(Refused, match="is not a snapshot of qrep's"):
            LvmCow().release(token)
    assert len(lvm.names()) == 3


def test_a_space_is_given_up_when_it_is_nearly_full_or_soon_will_be():
    now = [0.0]
    watch = SpaceWatch(clock=lambda: now[0])
    watch.look("s", [("space", 100, 1000)], "")
    now[0] = 1.0
    watch.look("s", [("space", 200, 1000)], "")  # 8 s to go
    now[0] = 2.0
    with pytest.raises(QrepError, match="would be full in 2 s"):
        watch.look("s", [("space", 500, 1000)], "")  # 300 a second, 500 left: 1.7 s
    with pytest.raises(QrepError, match="95% full"):
        watch.look("t", [("space", 950, 1000)], "")
    watch.look("u", [("space", 99 << 40, 100 << 40)], "")  # 1 TiB is enough


XML = """<superblock uuid="" time="3" transaction="7" data_block_size="128" nr_data_blocks="0">
<diff left="1" right="2"><same begin="0" length="4"/><different begin="4" length="2"/><right_only begin="6" length="1"/>
<left_only begin="9" length="1"/><same begin="10" length="5"/><right_only begin="254" length="9"/></diff></superblock>"""
CLASSES = {name: ("begin", "length") for name in ("different", "left_only", "right_only")}


def test_the_differences_of_two_thin_volumes_are_read_from_their_metadata():
    chunk = 64 << 10
    found = thinmeta.extents_of(io.BytesIO(XML.encode()), 256 * chunk, CLASSES)
    assert found == [Extent(4 * chunk, 3 * chunk), Extent(9 * chunk, chunk), Extent(254 * chunk, 2 * chunk)]


@pytest.mark.parametrize("broken", [
    XML[:-20], XML.replace("128", "0"), XML.replace('begin="9"', 'begin="5"'), XML.replace('length="2"', 'length="-2"'), XML.replace('begin="4" ', ""), "", "no",
])  # fmt: skip
def test_metadata_that_make_no_sense_are_no_hint(broken):
    with pytest.raises(SnapshotError):
        thinmeta.extents_of(io.BytesIO(broken.encode()), 256 << 16, CLASSES)


# A pool in blocks of 64 KiB; thin_id 2 is the snapshot that FAKE makes.
DUMP = """<superblock uuid="" time="0" transaction="1" version="2" data_block_size="128" nr_data_blocks="1024">
<device dev_id="2" mapped_blocks="3" transaction="0" creation_time="0" snap_time="0">
<range_mapping origin_begin="2" data_begin="0" length="2" time="0"/><single_mapping origin_block="9" data_block="5" time="0"/>
</device></superblock>"""
CHUNK = 64 << 10
PLAIN_TABLE, CLONE_TABLE = "0 32768 thin 253:2 2", "0 32768 thin 253:2 2 253:7"


@pytest.fixture
def thin(lvm, volume, memory_dir, monkeypatch):
    """A thin volume whose pool can be asked, with two snapshots of it: (backend, volume, tokens)."""
    monkeypatch.setenv("LC_ALL", "C")  # the readers of the metadata inherit it
    (memory_dir / "vg0-pool_tmeta").touch()
    lvm.has(THIN, POOL_ROW | {"lv_dm_path": str(memory_dir / "vg0-pool")})
    backend = LvmThin()
    tokens = [backend.freeze(volume, "x", quieted="crash").token for _ in range(2)]
    lvm.says(PLAIN_TABLE, "table")
    lvm.says(DUMP, "dump")
    lvm.says(XML, "delta")
    return backend, volume, tokens


def test_a_thin_volume_tells_which_blocks_it_has(thin, lvm):
    backend, volume, (token, _) = thin
    assert backend.allocated(token) == [Extent(2 * CHUNK, 2 * CHUNK), Extent(9 * CHUNK, CHUNK)]
    lvm.says("0 32768 thin 0 -")
    assert backend.never_written(volume)
    lvm.says("0 32768 thin 384 655359")
    assert not backend.never_written(volume)


def test_what_a_thin_volume_with_an_external_origin_has_no_blocks_of_is_not_taken_for_zeroes(thin, lvm):
    backend, volume, (token, _) = thin
    lvm.says(CLONE_TABLE, "table")
    assert backend.allocated(token) is None
    lvm.says("0 32768 thin 0 -")
    assert not backend.never_written(volume)


@pytest.mark.parametrize("table", ["0 32768 linear 253:9 0", f"{PLAIN_TABLE}\n32768 8 error", "", "0 32768 thin"])
def test_what_a_volume_of_another_table_has_no_blocks_of_is_not_taken_for_zeroes(thin, lvm, table):
    """One that is an external origin itself, or an origin of a classic snapshot, is a layer over the thin device."""
    backend, volume, (token, _) = thin
    lvm.says(table, "table")
    assert backend.allocated(token) is None
    lvm.says("0 32768 thin 0 -")
    assert not backend.never_written(volume)
    (lvm.directory / "dmsetup.fails").write_text("Device does not exist.")
    assert backend.allocated(token) is None and not backend.never_written(volume)


def test_snapshots_of_one_external_origin_have_their_difference_in_the_pool_and_those_of_two_have_not(thin, lvm, monkeypatch):
    backend, volume, (old, new) = thin
    expected = [Extent(4 * CHUNK, 3 * CHUNK), Extent(9 * CHUNK, CHUNK), Extent(254 * CHUNK, 2 * CHUNK)]
    for origins, found in ((("", ""), expected), (("253:7", "253:7"), expected), (("253:7", ""), None), (("", "253:7"), None), (("253:7", "253:8"), None)):
        answers = iter(origins)
        monkeypatch.setattr(lvmtools, "external_origin", lambda path, answers=answers: next(answers))
        assert backend.changes(volume, old, new) == found


@pytest.mark.parametrize("dump", [
    DUMP.replace('dev_id="2"', 'dev_id="3"'), DUMP.replace('mapped_blocks="3"', 'mapped_blocks="4"'), DUMP.replace('mapped_blocks="3" ', ""),
    DUMP[: DUMP.index("<device")] + "</superblock>", DUMP.replace("<single_mapping", '<ref name="7"/><single_mapping').replace('="3"', '="9"'),
    DUMP.replace("</superblock>", '<device dev_id="4" mapped_blocks="0"></device></superblock>'),
])  # fmt: skip
def test_a_dump_that_does_not_hold_all_of_the_volumes_mappings_is_no_answer(thin, lvm, dump):
    """thin_dump of an unknown id succeeds with none; of shared parts of a tree some versions write references."""
    lvm.says(dump, "dump")
    assert thin[0].allocated(thin[2][0]) is None
