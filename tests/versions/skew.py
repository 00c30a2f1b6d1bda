"""All cases of version skew, each from a state of its own, and defects that they must report.

    with Skew(directory) as skew:
        for name, problem in skew.play():
"""

import contextlib
import functools
import io
import logging
import sys
import threading
import warnings
from pathlib import Path

import oracle
import pytest
from fault.rot import Tree
from flow.harness import JOB
from versions import disk, frames, wire
from versions.relay import LEAF, Site

from qrep import devicesafety, deviceusers, digestmap
from qrep._native import disk as native
from qrep.errors import QrepError
from qrep.protocol import features
from qrep.protocol import messages as say
from qrep.target import superblock, undostore, volume


@contextlib.contextmanager
def told():
    """All that qrep logs meanwhile and that Python says of its threads and of what was not closed, kept and not shown."""
    text, logger = io.StringIO(), logging.getLogger("qrep")
    handler = logging.StreamHandler(text)
    with pytest.MonkeyPatch.context() as patch, contextlib.redirect_stderr(text), warnings.catch_warnings():
        patch.setattr(threading, "excepthook", threading.__excepthook__)
        patch.setattr(sys, "unraisablehook", sys.__unraisablehook__)
        patch.setattr(logger, "propagate", False)
        warnings.simplefilter("always", ResourceWarning)
        warnings.showwarning = lambda message, category, *_place: text.write(f"{category.__name__}: {message}\n")
        logger.addHandler(handler)
        try:
            yield text
        finally:
            logger.removeHandler(handler)


class Skew:
    """act: run, three generations are there and the fourth waits at the source; compare, the same without the source's map; verify, none waits, and a
    leaf of the target is damaged."""

    def __init__(self, directory):
        self._patches = pytest.MonkeyPatch()
        self._patches.setattr(devicesafety, "check_target", lambda *arguments, **options: [])  # files of its own: nobody else has them
        self._patches.setattr(deviceusers, "users", lambda info: [])
        try:
            with told() as text:
                self._make(directory)
            oracle.nothing_forbidden(text.getvalue())
        except BaseException:
            self.close()
            raise

    def _make(self, directory):
        self.site = Site(directory)
        self._trees = {}
        site = self.site
        site.damaged = None
        for counter in range(1, 4):
            site.write(counter)
            site.run()
        data = site.content[3]
        self._damaged = data[: 3 * LEAF] + b"\xaa" * LEAF + data[4 * LEAF :]
        Path(site.target_path).write_bytes(self._damaged)
        self._trees["verify"] = Tree(directory)
        Path(site.target_path).write_bytes(data)
        site.write(4)
        site.waiting = site.content[4]
        self._trees["run"] = Tree(directory)
        for path in (site.directory / "sources" / JOB.hex() / "map").iterdir():
            path.unlink()
        self._trees["compare"] = Tree(directory)
        site.source_map_directory = site.directory / "sources" / JOB.hex() / "map"

    def close(self):
        self._patches.undo()

    def __enter__(self):
        return self

    def __exit__(self, *_exception):
        self.close()

    @contextlib.contextmanager
    def _site(self, act):
        self._trees[act].restore()
        for path in sorted(self.site.directory.rglob("*"), reverse=True):
            if path.is_dir() and path.name in ("records", "config", "volumes", "jobs"):
                path.rmdir()
        self.site.damaged = self._damaged if act == "verify" else None
        yield self.site

    @functools.cached_property
    def cases(self):
        """[(name, act, case)]."""
        return list(self._all())

    def _all(self):
        for name, case in wire.cases(self._site):
            act, _, rest = name.partition("|")
            yield f"wire: {name}", act if rest else "run", case
        for name, case in frames.cases():
            yield f"frames: {name}", "run", case
        for name, case in disk.cases():
            yield f"disk: {name}", "run", case

    def play(self, wanted=lambda name: True):
        """(name, None or what must not be), of each case that is wanted."""
        for name, act, case in self.cases:
            if wanted(name):
                yield name, self.attempt(act, case)

    def attempt(self, act, case):
        """None, or what must not be."""
        with self._site(act) as site:
            return self._problem(site, case)

    def canary(self, name):
        """What a defect is reported as, None if it is not."""
        defect, wanted = CANARIES[name]
        chosen = [(act, case) for each, act, case in self.cases if each.startswith(wanted)]
        with pytest.MonkeyPatch.context() as patch:
            defect(patch)
            return next(filter(None, (self.attempt(*each) for each in chosen)), None)

    @staticmethod
    def _problem(site, case):
        try:
            with told() as text:
                case(site)
            oracle.nothing_forbidden(text.getvalue())
        except (AssertionError, QrepError, OSError, ValueError, TypeError, KeyError, AttributeError) as error:
            return f"{type(error).__name__}: {error}"[:600]
        return None


# ---- defects ----


def _any_version(patch):
    patch.setattr(say, "common_version", lambda low, high: min(high, say.VERSION_MAX))


def _any_answer(patch):
    patch.setattr(features, "agreed", lambda offered, answered: tuple(answered))


def _features_taken_blindly(patch):
    patch.setattr(features, "common", lambda offered: tuple(name for name in features.KNOWN))


def _unknown_fields_dropped(patch):
    import msgspec

    real, known = say.decode, {cls.__struct_config__.tag: cls for cls in (*say.SOURCE_SAYS, *say.TARGET_SAYS)}

    def decode(body, sender):
        fields = msgspec.msgpack.decode(body)
        cls = known.get(fields.get("t"))
        if cls is not None:
            body = msgspec.msgpack.encode({name: value for name, value in fields.items() if name == "t" or name in cls.__struct_fields__})
        return real(body, sender)

    patch.setattr(say, "decode", decode)


def _newer_superblock_opened(patch):
    real = native.choose_superblock
    patch.setattr(superblock.disk, "choose_superblock", lambda *slots: real(*(_blind(slot) for slot in slots)))


def _blind(data):
    body = bytearray(data[:-32])
    body[8:10], body[12:16] = b"\1\0", bytes(4)
    return bytes(body) + disk.blake3.blake3(body).digest() if any(data) else bytes(data)


def _newer_undo_opened(patch):
    real = native.UndoHeader.unpack
    patch.setattr(undostore.disk.UndoHeader, "unpack", staticmethod(lambda data: real(_blind(bytes(data)))))


def _newer_map_opened(patch):
    real = digestmap.DigestMap._read

    def read(self, name):
        with contextlib.suppress(QrepError):
            return real(self, name)
        return "it cannot be read"

    patch.setattr(digestmap.DigestMap, "_read", read)


def _newer_state_db_opened(patch):
    patch.setattr(disk.statedbfile, "OtherFormat", disk.statedbfile.Damaged)


def _reason_kept(patch):
    from qrep.protocol import skew

    patch.setattr(skew, "told", lambda body, low, high: None)


def _as_a_volume_is_closed(act):
    def defect(patch):
        close = volume.TargetVolume.close

        def acted(self):
            act()
            close(self)

        patch.setattr(volume.TargetVolume, "close", acted)

    return defect


def _a_thread_fails():
    thread = threading.Thread(target=lambda: 1 // 0)
    thread.start()
    thread.join()


def _an_error_is_logged():
    logging.getLogger("qrep.target").error("out of service: internal error: a bug")


def _a_file_is_left_open():
    open("/dev/null")


CANARIES = {
    "a target that takes any version": (_any_version, "wire: versions (2, 2) here, (1, 1) there"),
    "a source that takes any features": (_any_answer, "wire: features ['from-tomorrow'] chosen"),
    "a target that answers with features that were not offered": (_features_taken_blindly, "wire: features ('copies',) offered"),
    "unknown fields are dropped": (_unknown_fields_dropped, "wire: run|run: begin with a field more"),
    "a superblock of a later version is opened": (_newer_superblock_opened, "disk: superblock (0, 4096) {'version': 2}"),
    "an undo file of a later version is opened": (_newer_undo_opened, "disk: undo file 0 {'version': 2}"),
    "a map of a later version is replaced": (_newer_map_opened, "disk: source's map root {'version': 2}"),
    "a state database of a later version is opened": (_newer_state_db_opened, "disk: state.db 99 True"),
    "a source of a later version is not told why": (_reason_kept, "wire: an unknown hello of (2, 2)"),
    "a thread ends in a traceback": (_as_a_volume_is_closed(_a_thread_fails), "wire: versions (1, 1) here, (1, 1) there"),
    "an internal error is logged": (_as_a_volume_is_closed(_an_error_is_logged), "wire: versions (1, 1) here, (1, 1) there"),
    "a file is not closed": (_as_a_volume_is_closed(_a_file_is_left_open), "wire: versions (1, 1) here, (1, 1) there"),
}
