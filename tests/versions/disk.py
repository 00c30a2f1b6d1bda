"""What a newer qrep left on disk: it is told from damage, named in one line, and neither used nor changed. A case: (name, function of a Site)."""

import functools
import sqlite3
import struct

import blake3
from flow.harness import JOB
from versions.relay import SIZE
from versions.wire import Skewed, committed

from qrep import config, sealed
from qrep.daemon import grants, standing, statedb, statedbfile
from qrep.errors import DamagedError, QrepError
from qrep.store import Directory

VERSION, FEATURES = 8, 12  # offsets in every structure that has them
NEWER = "newer"
SECTOR = 512


def resealed(data, version=None, feature=None):
    """A structure of a later version, or with a feature that is unknown here; its checksum is right, as it would be."""
    body = bytearray(data[:-32])
    if version is not None:
        struct.pack_into("<H", body, VERSION, version)
    if feature is not None:
        struct.pack_into("<I", body, FEATURES, 1 << feature)
    return bytes(body) + blake3.blake3(body).digest()


def _put(path, offset, size, **changes):
    with open(path, "r+b") as file:
        file.seek(offset)
        data = file.read(size)
        file.seek(offset)
        file.write(resealed(data, **changes))


def _refused(site, what, words, where, held=()):
    """`what` raises one clear line that names the file, and nothing has changed."""
    before = site.fingerprint()
    try:
        what()
    except QrepError as error:
        text = f"{error.message} {error.hint}"
    else:
        raise Skewed(f"{where} of a newer qrep was taken")
    finally:
        left = set(site.is_held_open()) - set(held)
    if left:
        raise Skewed(f"left open: {left}")
    if words not in text or "\n" in text or where not in text:
        raise Skewed(f"{where}: it says {text}")
    if site.fingerprint() != before:
        raise Skewed(f"{where} of a newer qrep: something was written")


def _out_of_service(site):
    """As a run of that volume is told: it cannot be opened, or is open and out of service."""
    try:
        site.open()
        if site.volume.damaged:
            raise DamagedError(site.volume.damaged)
    finally:
        site.close()


SUPERBLOCK_SLOTS = (0, 4096)
CHANGES = [{"version": 2}, {"version": 40_000}, {"feature": 0}, {"feature": 31}]


def superblock(site, slots, changes):
    for slot in slots:
        _put(site.directory / "target/superblock", slot, SECTOR, **changes)
    _refused(site, lambda: _out_of_service(site), "version of qrep that wrote it", "superblock")


def undo(site, which, changes):
    files = sorted((site.directory / "target/undo").glob("*.undo"), key=lambda path: path.stat().st_mtime_ns)
    _put(files[which], 0, 128, **changes)
    _refused(site, lambda: _out_of_service(site), "version of qrep that wrote it", ".undo")


def target_map(site, name, changes):
    path = site.directory / "target/map"
    if name != "root":
        (path / name).write_bytes((path / "root").read_bytes())
    _put(path / name, 0, 256, **changes)
    _refused(site, lambda: _out_of_service(site), "version of qrep that wrote it", f"map/{name}")


def source_map(site, name, changes):
    path = site.source_map_directory
    if name != "root":
        (path / name).write_bytes((path / "root").read_bytes())
    _put(path / name, 0, 256, **changes)
    _refused(site, site.run, "version of qrep that wrote it", f"map/{name}")


def state_db(site, version, sealed_so):
    """sealed_so: its seal is as today's and says that version, too; else it has another one."""
    path = site.directory / "records" / "state.db"
    path.parent.mkdir(mode=0o700)
    statedb.StateDb(str(path)).close()
    with sqlite3.connect(path) as db:
        if sealed_so:
            seal = db.execute("SELECT sequence, event, digest FROM seal").fetchone()
            db.execute("UPDATE seal SET format=?, sum=?", (version, statedbfile._sum_of_seal(version, *seal)))
        else:
            db.execute("ALTER TABLE seal RENAME TO seal_of_tomorrow")
        db.execute(f"PRAGMA user_version={version}")
    db.close()
    _refused(site, lambda: statedb.StateDb(str(path)).close(), "version of qrep that wrote it", "state.db")


def pairs(site, names):
    with Directory(site.directory / "records") as directory:
        grants.Grants(directory)
        for name in names:
            content = {"format": grants.FORMAT + 1, "sequence": 1, "pairs": [], "once": [], "grants": ["of tomorrow"]}
            sealed.write(directory, name, content)
            _refused(site, lambda: grants.Grants(directory), "version of qrep that wrote it", "pairs.", [str(site.directory / "records")])


JOB_FILE = f'id = "{"0" * 32}"\nsource = "a"\ntarget = "b"\ntarget_volume = "{"0" * 32}"\nsize = {SIZE}\nleaf = 4096\ngranule = 32768'
STANDING = {
    "id": "00" * 16, "role": "replica", "job_id": "00" * 16, "job": "j", "peer": "", "other": "o", "other_id": "", "why": "w", "at": 0.0, "size": SIZE,
    "leaf": 4096, "granule": 32768, "sync_points": 1,
}  # fmt: skip


def standing_file(site, more):
    with Directory(site.directory / "records") as directory:
        sealed.write(directory, standing.NAME, STANDING | more)
    _refused(site, lambda: standing.load(site.directory / "records"), "unknown field", standing.NAME)


def settings(site, kind, text):
    path = site.directory / "config" / kind
    path.mkdir(parents=True, mode=0o700)
    (path / "one.toml").write_text(text + '\nof_tomorrow = "x"\n')
    _refused(site, lambda: config.Config(site.directory / "config").load(kind, "one"), "of_tomorrow", "one.toml")


def node_file(site):
    path = site.directory / "config"
    path.mkdir(mode=0o700)
    (path / "qrep.toml").write_text("of_tomorrow = 1\n")
    _refused(site, lambda: config.Config(path).node(), "of_tomorrow", "qrep.toml")


def lost_record(site, name):
    """Small records that cost nothing but bandwidth or a name: a form of tomorrow is as none, and the run commits all the same."""
    place = site.directory / ("target" if name == "points.json" else f"sources/{JOB.hex()}")
    with Directory(place) as directory:
        sealed.write(directory, name, {"of tomorrow": [1, 2, 3], "version": 2})
    site.run()
    if committed(site) != 4 or site.device() != site.waiting:
        raise Skewed(f"{name}: generation {committed(site)}, and the device holds something else")


def cases():
    for changes in CHANGES:
        for slots in (SUPERBLOCK_SLOTS, SUPERBLOCK_SLOTS[:1], SUPERBLOCK_SLOTS[1:]):
            yield f"superblock {slots} {changes}", functools.partial(superblock, slots=slots, changes=changes)
        for which in (0, -1):
            yield f"undo file {which} {changes}", functools.partial(undo, which=which, changes=changes)
        for name in ("root", "pending"):
            yield f"target's map {name} {changes}", functools.partial(target_map, name=name, changes=changes)
            yield f"source's map {name} {changes}", functools.partial(source_map, name=name, changes=changes)
    for version in (statedbfile.FORMAT + 1, 99):
        for sealed_so in (True, False):
            yield f"state.db {version} {sealed_so}", functools.partial(state_db, version=version, sealed_so=sealed_so)
    for names in (grants.NAMES, grants.NAMES[:1], grants.NAMES[1:]):
        yield f"{names}", functools.partial(pairs, names=names)
    yield "standing.json", functools.partial(standing_file, more={"of_tomorrow": 1})
    yield "volumes", functools.partial(settings, kind="volumes", text=f'id = "{"0" * 32}"\ndevice = "/dev/x"')
    yield "jobs", functools.partial(settings, kind="jobs", text=JOB_FILE)
    yield "qrep.toml", node_file
    for name in ("points.json", "run.json", "kept.json"):
        yield name, functools.partial(lost_record, name=name)
