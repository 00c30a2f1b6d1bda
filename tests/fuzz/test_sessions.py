"""Sessions with a peer that says what it likes, against both machines; what was found before, again; and each kind of defect is noticed."""

import random

import pytest
from fuzz.parsers import Broken
from fuzz.sourcesession import SourceSession
from fuzz.targetsession import TargetSession

from qrep.errors import ProtocolError
from qrep.protocol import actions as do
from qrep.protocol import messages as say
from qrep.protocol.source_machine import SourceMachine
from qrep.protocol.target_machine import TargetMachine

SESSIONS, CANARY_SESSIONS = 700, 6000
SIDES = {"target": TargetSession, "source": SourceSession}


def one(side, seed, number):
    """Raises Broken, or whatever came out of the machine."""
    try:
        SIDES[side](random.Random(f"{seed}:{side}:{number}")).run()
    except Broken as err:
        raise Broken(f"{side}, seed {seed}, session {number}: {err}") from err
    except Exception as err:
        raise Broken(f"{side}, seed {seed}, session {number}: {type(err).__name__}: {err}, which no machine may raise") from err


@pytest.mark.parametrize("side", SIDES)
def test_whatever_a_peer_says_the_other_end_does_what_it_may(side, seed):
    for number in range(SESSIONS):
        one(side, seed, number)


def test_a_target_that_names_the_last_number_is_not_believed():
    """A run record with that epoch would have been the end of the job: there is no number for another connection."""
    source = SourceMachine(
        job_id=bytes(16), volume_id=bytes(16), shape=(1 << 20, 4096, 16384, 512), map_tag=say.NO_ID, pending_new=None, record=None, epoch=0, draw=bytes
    )
    source.connected()
    [fail] = source.message(say.Stale((1 << 64) - 2))
    assert isinstance(fail, do.Fail) and isinstance(fail.error, ProtocolError)
    [hello] = source.connected()
    assert hello.message.epoch == 2


def without(cls, name):
    return lambda patch: patch.setattr(cls, name, lambda self, *arguments, **options: [])


def _greeting(patch):
    """Whoever connects is admitted."""
    connected = TargetMachine.connected

    def admitted(self, handle):
        done = connected(self, handle)
        if self.session is None:
            self._greeting.discard(handle)
            self.session = handle
        return done

    patch.setattr(TargetMachine, "connected", admitted)


def _base(patch):
    """BEGIN is no compare-and-swap."""
    begin = TargetMachine._on_begin

    def any_base(self, handle, message):
        return begin(self, handle, say.Begin(self.record.committed_id, message.new, message.attempt, message.connections, message.frame_limit))

    patch.setattr(TargetMachine, "_on_begin", any_base)


def _dropping(cls, name, kind):
    """The actions of one kind are left out of what a method returns."""

    def seed_it(patch):
        method = getattr(cls, name)
        patch.setattr(cls, name, lambda self, *arguments: [action for action in method(self, *arguments) if not isinstance(action, kind)])

    return seed_it


def _manifest(patch):
    """What was applied is what was announced, whatever it is."""
    collected = TargetMachine.manifest_collected

    def whatever(self, count, manifest, partial, unwritten=()):
        asked = self._prepare
        return collected(self, getattr(asked, "count", count), getattr(asked, "manifest", manifest), 0, unwritten)

    patch.setattr(TargetMachine, "manifest_collected", whatever)


def _granules(patch):
    """Granules that are asked for are there."""

    def on_read(self, handle, message):
        if self.phase != "idle":
            return self._reply(handle, say.Nak(0, "busy", ""))
        if isinstance(message, say.GetLeaves):
            return [do.SendLeaves(handle, tuple(message.granules))]
        return [do.Scan(handle, message.first, message.count)] if isinstance(message, say.ScanTarget) else []

    patch.setattr(TargetMachine, "_on_read", on_read)


def _commit_first(patch):
    prepared = SourceMachine._on_prepared
    patch.setattr(SourceMachine, "_on_prepared", lambda self, message: prepared(self, message)[::-1])


def _any_generation(patch):
    """COMMITTED of any generation is this run's."""
    committed = SourceMachine._on_committed
    patch.setattr(SourceMachine, "_on_committed", lambda self, message: committed(self, say.Committed(self.record.new, message.counter)))

    def on_state(self, state):
        self._pending_new = state.committed if self._pending_new is not None else None
        return of_state(self, state)

    of_state = SourceMachine._on_state
    patch.setattr(SourceMachine, "_on_state", on_state)


def _pages(patch):
    def on_leaves(self, message):
        self._asked = self._asked[1:]
        store = do.StoreLeaves(message.granule, message.page)
        return [store] if self._asked else [store, *self._fetch()]

    patch.setattr(SourceMachine, "_on_leaves", on_leaves)


# What is left out: (side, seed_it(monkeypatch)).
CANARIES = {
    "hello before anything else": ("target", _greeting),
    "the base of BEGIN": ("target", _base),
    "draining before the before-images": ("target", without(TargetMachine, "_stop_lanes")),
    "the flush before the commit": ("target", _dropping(TargetMachine, "manifest_collected", do.FlushDevice)),
    "the undo file": ("target", _dropping(TargetMachine, "_open", do.CreateUndo)),
    "the manifest": ("target", _manifest),
    "the end of the volume": ("target", _granules),
    "digests before COMMIT": ("source", _commit_first),
    "which generation was committed": ("source", _any_generation),
    "how many tokens were asked for": ("source", without(SourceMachine, "_check_lanes")),
    "which pages were asked for": ("source", _pages),
    "stopping the lanes": ("source", without(SourceMachine, "_stop_lanes")),
}


def caught(seed, side, seed_it):
    with pytest.MonkeyPatch.context() as patch:
        seed_it(patch)
        for number in range(CANARY_SESSIONS):
            try:
                one(side, seed, number)
            except Broken as broken:
                print(str(broken)[:300])
                return True
    return False


@pytest.mark.parametrize("canary", CANARIES)
def test_a_defect_is_noticed(canary, seed):
    assert caught(seed, *CANARIES[canary]), f"{CANARY_SESSIONS} sessions did not notice"
