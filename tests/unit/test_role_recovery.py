"""What follows the superblock's sector of a change of role, where it cannot be written: told of that volume, tried again, and no obstacle to the others."""

import contextlib
import errno
import os
from types import SimpleNamespace

import pytest

from qrep import mapcopy, sealed
from qrep._native.wire import Geometry
from qrep.daemon import rolesteps
from qrep.daemon import standing as standings
from qrep.daemon.grants import Grants
from qrep.daemon.rolesteps import Part, RoleSteps
from qrep.daemon.standing import StandingFile
from qrep.digestmap import DigestMap
from qrep.errors import NotFound, QrepError, Refused
from qrep.store import Directory

SIZE, LEAF, GRANULE = 1 << 20, 4096, 8192
IDS = {"db": "1" * 32, "web": "2" * 32}
FULL = OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))


def undone(name, **fields):
    return StandingFile(
        **{"id": IDS[name], "role": "primary", "job_id": IDS[name], "job": name, "peer": "site-b", "other": name, "other_id": "c" * 32, "why": "forced", "at": 1.0,
           "size": SIZE, "leaf": LEAF, "granule": GRANULE, "sync_points": 7, "common": "d" * 32} | fields
    )  # fmt: skip


class Volume:
    def __init__(self, name, path):
        self.name, self.directory = name, str(path / "targets" / name)
        self.unsettled, self.closed = None, 0
        self.settings = SimpleNamespace(id=IDS[name], accept=[])

    def inspect(self):
        return SimpleNamespace(size=SIZE)

    def close_target(self):
        self.closed += 1


@pytest.fixture
def node(tmp_path, monkeypatch):
    """Volumes db and web: of each the superblock says that it is primary by its standing.json, which is not done."""
    tmp_path.chmod(0o700)
    volumes = {name: Volume(name, tmp_path) for name in IDS}
    monkeypatch.setattr(rolesteps, "durable_role", lambda directory: ("primary", bytes.fromhex(IDS[os.path.basename(directory)])))
    for name, volume in volumes.items():
        standings.save(volume.directory, undone(name))
    events, jobs = [], {}
    place = Directory(tmp_path)
    yield SimpleNamespace(
        volumes=SimpleNamespace(all=lambda: list(volumes.values()), get=volumes.__getitem__), state=place, config=SimpleNamespace(directory=str(tmp_path)),
        events=SimpleNamespace(add=lambda code, text, **data: events.append((code, data.get("volume") or data.get("job")))), told=events, made=jobs,
        jobs=SimpleNamespace(by_id=lambda job_id: (None, None), put=jobs.__setitem__, all=list, all_by_name=dict),
        grants=Grants(place), volume=volumes, peers=SimpleNamespace(fingerprint=lambda peer: ""),
    )  # fmt: skip
    place.close()


def done(node, name):
    return standings.load(node.volume[name].directory).done


def now(steps):
    """A look of housekeeping, to its end."""
    steps.settle(lambda file: contextlib.nullcontext())
    with steps._settling:
        pass


def test_what_a_peer_once_made_of_a_standing_is_told_of_that_volume_and_the_others_are_served(node):
    with Directory(node.volume["db"].directory) as place:
        sealed.write(place, standings.NAME, {name: getattr(undone("db"), name) for name in StandingFile.__struct_fields__} | {"same_as": "zz"})
    RoleSteps(node).recover()
    assert ("volume-damaged", "db") in node.told and ("role-finished", "web") in node.told
    told = node.volume["db"].unsettled
    assert told.code == "damaged" and "qrep volume remove" in told.hint and node.volume["web"].unsettled is None and done(node, "web")


@pytest.mark.parametrize("error", [FULL, NotFound("the device is away"), ValueError("non-hexadecimal"), KeyError("of a bug")], ids=repr)
def test_whatever_keeps_one_volume_from_being_finished_the_start_goes_on_and_it_is_finished_later(node, error):
    put, steps = node.jobs.put, RoleSteps(node)

    def fails(name, job):
        if name == "db":
            raise error
        put(name, job)

    node.jobs.put = fails
    steps.recover()
    assert not done(node, "db") and done(node, "web") and node.volume["web"].unsettled is None
    told = node.volume["db"].unsettled
    assert told is not None and told.hint and node.told.count(("role-unfinished", "db")) == 1
    assert node.volume["db"].closed, "its host may mount it"
    now(steps)
    assert not done(node, "db") and node.told.count(("role-unfinished", "db")) == 1, "the same is not told twice"
    node.jobs.put = put
    now(steps)
    assert done(node, "db") and node.volume["db"].unsettled is None and ("role-finished", "db") in node.told and set(node.made) == set(IDS)


def test_a_job_whose_role_cannot_be_written_down_is_told_and_the_start_goes_on(node):
    runner = SimpleNamespace(settings=SimpleNamespace(target=None))
    node.jobs.all = lambda: [("broken", runner)]
    RoleSteps(node).recover()
    assert ("role-unfinished", "broken") in node.told


def test_a_map_that_cannot_be_made_is_left_out_and_said_and_the_change_is_finished(node, monkeypatch):
    standings.save(node.volume["db"].directory, undone("db", same_as="e" * 32))
    geometry = Geometry(SIZE, LEAF, GRANULE)
    own = DigestMap(f"{node.volume['db'].directory}/map", geometry, bytes.fromhex(IDS["db"]))
    own.write_pending(bytes.fromhex("d" * 32), bytes(16), 1, bytearray(own.granules), bytearray(32 * own.granules))
    own.fold(bytes.fromhex("d" * 32))
    own.close()

    def fails(*_arguments):
        raise FULL

    with monkeypatch.context() as patch:
        patch.setattr(mapcopy, "become", fails)
        RoleSteps(node).recover()
    assert done(node, "db") and node.volume["db"].unsettled is None and ("role-map-left-out", "db") in node.told and "db" in node.made
    theirs = DigestMap(f"{node.state.path}/sources/{IDS['db']}/map", geometry, bytes.fromhex("c" * 32))
    assert theirs.tag == bytes(16)
    theirs.close()

    node.told.clear()
    standings.save(node.volume["db"].directory, undone("db", same_as="e" * 32))
    with monkeypatch.context() as patch:
        patch.setattr(rolesteps, "_free", lambda path: rolesteps.ROOM)
        RoleSteps(node).recover()
    assert done(node, "db") and ("role-map-left-out", "db") in node.told, "there is not the room, so it is not begun"
    standings.save(node.volume["db"].directory, undone("db", same_as="e" * 32))
    RoleSteps(node).recover()
    theirs = DigestMap(f"{node.state.path}/sources/{IDS['db']}/map", geometry, bytes.fromhex("c" * 32))
    assert theirs.tag == bytes.fromhex("e" * 32)
    theirs.close()


def test_a_copy_of_leaves_that_finds_no_room_gives_back_what_it_took(tmp_path, monkeypatch):
    tmp_path.chmod(0o700)
    geometry = Geometry(64 << 20, LEAF, 1 << 20)
    source, target = (DigestMap(tmp_path / name, geometry, b"v" * 16) for name in ("a", "b"))
    os.pwrite(source.leaves_fd, b"x" * 65536, 0)
    os.pwrite(source.leaves_fd, b"y" * 65536, 524288)
    write_all, calls = mapcopy.write_all, []

    def second_fails(descriptor, data, offset):
        calls.append(offset)
        if len(calls) == 2:
            raise FULL
        write_all(descriptor, data, offset)

    monkeypatch.setattr(mapcopy, "write_all", second_fails)
    with pytest.raises(OSError, match="No space"):
        mapcopy.copy_leaves(source, target)
    found = os.fstat(target.leaves_fd)
    assert (found.st_blocks, found.st_size) == (0, os.fstat(source.leaves_fd).st_size) and len(calls) == 2
    source.close()
    target.close()


def part_of(node, volume):
    return Part(IDS["db"], "db", "site-b", volume, "db", "c" * 32, SIZE, LEAF, GRANULE, 7)


def test_without_room_for_what_follows_the_sector_nothing_begins(node, monkeypatch):
    node.volume["db"].replica = lambda: pytest.fail("it was asked for")
    monkeypatch.setattr(rolesteps, "_free", lambda path: rolesteps.ROOM - 1)
    with pytest.raises(Refused) as raised:
        RoleSteps(node).take_over(part_of(node, node.volume["db"]), why="forced")
    assert raised.value.code == "no-room" and "df" in raised.value.hint
    with pytest.raises(Refused, match="free on the filesystem"), RoleSteps(node).held(part_of(node, node.volume["db"])):
        pytest.fail("it was held")


@pytest.mark.parametrize("written", [True, False])
def test_what_a_standing_says_is_taken_back_only_where_the_sector_was_not_written(node, monkeypatch, written):
    volume, before = node.volume["db"], undone("db", done=True)
    standings.save(volume.directory, before)
    role = ["replica", b"r" * 16]
    monkeypatch.setattr(rolesteps, "durable_role", lambda directory: tuple(role))

    def take_over(new):
        role[:] = ["primary", new] if written else role
        raise QrepError("what follows it failed")

    record = SimpleNamespace(size=SIZE, leaf_size=LEAF, granule_size=GRANULE, committed_id=b"r" * 16)
    volume.replica = lambda: SimpleNamespace(has_open_generation=lambda: False, machine=SimpleNamespace(record=record), take_over=take_over)
    with pytest.raises(QrepError, match="what follows it failed"):
        RoleSteps(node).take_over(part_of(node, volume), why="forced")
    found = standings.load(volume.directory)
    assert (found.id == role[1].hex() and not found.done and volume.unsettled is not None) if written else (found == before and volume.unsettled is None)
