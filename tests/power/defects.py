"""Defects that a process of fault/ends.py begins with, so that a harness can show that it notices them: ends.py defect NAME target ..."""

import os
import threading


def seed(name):
    """Make this process defective."""
    DEFECTS[name]()


def no_claim():
    """Recovery begins without the claim (R1): a dead process's writes may still land."""
    from qrep import device, devicesafety

    devicesafety._try_claim = lambda info: device.open_direct(info, os.O_RDWR)


def no_device_flush():
    """Neither a commit nor a recovery flushes the device (R4, R10)."""
    from qrep.protocol import actions as do
    from qrep.target.driver import TargetDriver

    TargetDriver._handlers[do.FlushDevice] = lambda self, action: None


def failed_flush_is_passed_over():
    """Who meets a failed flush goes on (R2)."""
    from qrep import store

    store.die = lambda what, err: None


def failed_flush_is_tried_again():
    """Who meets a failed flush asks for another one, which succeeds (R2)."""
    flush = os.fsync

    def twice(descriptor):
        try:
            flush(descriptor)
        except OSError:
            flush(descriptor)

    os.fsync = twice


def superblock_not_flushed():
    """The commit point is written and not flushed (R4)."""
    from qrep.target.superblock import SuperblockFile

    plain = os.O_DSYNC
    write = SuperblockFile._open

    def opened(self):
        os.O_DSYNC = 0
        try:
            write(self)
        finally:
            os.O_DSYNC = plain

    SuperblockFile._open = opened


def open_is_cleared_before_the_restored_device_is_flushed():
    """R10, its order: the superblock says that nothing is open while what was put back is in a cache."""
    from qrep.protocol import actions as do
    from qrep.protocol.target_machine import TargetMachine

    restored = TargetMachine.undo_restored

    def hasty(self):
        actions = restored(self)
        flush = next(action for action in actions if isinstance(action, do.FlushDevice))
        actions.remove(flush)
        return [*actions, flush]

    TargetMachine.undo_restored = hasty


def lanes_not_drained():
    """A session begins while writes of the one before it are under way (R12)."""
    from qrep.target.lanes import TargetLanes

    def drain(self):
        self._await()
        self.stop()

    TargetLanes.drain = drain


def nothing_is_put_back():
    """A recovery says that it has restored what it has not touched."""
    from qrep.protocol import actions as do
    from qrep.target.driver import TargetDriver

    def idle(self, action):
        self._end_attempt()
        return self.machine.undo_restored()

    TargetDriver._handlers[do.RestoreUndo] = idle


def the_last_batch_is_not_put_back():
    """A recovery passes over what was logged last."""
    from qrep._native import undo

    order = undo.restore_order
    undo.restore_order = lambda places: order(places)[1:]


def something_is_written_after_the_recovery():
    """As a write of a dead process would be that lands late."""
    from qrep.protocol import actions as do
    from qrep.target.driver import TargetDriver

    restore = TargetDriver._restore_undo

    def and_more(self, action):
        actions = restore(self, action)
        with open(self.device.path, "r+b") as file:
            file.write(b"late" * 128)
        return actions

    TargetDriver._handlers[do.RestoreUndo] = and_more


def the_map_tells_of_another_content():
    """The value of the last granule that is known is another one than the device's."""
    from qrep._native import disk
    from qrep.digestmap import DigestMap

    following = DigestMap.following

    def wrong(self, new, base, counter, states, values, **options):
        values = bytearray(bytes(values))
        granule = max(granule for granule, state in enumerate(states) if state & disk.STATE_MASK == disk.STATE_HASHED)
        values[32 * granule] ^= 1
        return following(self, new, base, counter, states, values, **options | {"zeroes": None, "marked": None})

    DigestMap.following = wrong


def a_thread_dies_of_an_exception():
    """Of which nobody is told but who reads the log."""

    def die():
        raise RuntimeError("a bug")

    def start(driver):
        thread = threading.Thread(target=die)
        thread.start()
        thread.join()

    _before_pruning(start)


def a_file_is_left_open():
    """For the garbage collector to close."""
    _before_pruning(lambda self: open(os.devnull))


def a_descriptor_is_left_open():
    """For good."""
    _before_pruning(lambda self: os.open(self.device.path, os.O_RDONLY))


def _before_pruning(act):
    from qrep.protocol import actions as do
    from qrep.target.driver import TargetDriver

    prune = TargetDriver._handlers[do.PruneUndo]

    def and_more(self, action):
        act(self)
        return prune(self, action)

    TargetDriver._handlers[do.PruneUndo] = and_more


DEFECTS = {
    each.__name__: each
    for each in (
        no_claim, no_device_flush, failed_flush_is_passed_over, failed_flush_is_tried_again, superblock_not_flushed,
        open_is_cleared_before_the_restored_device_is_flushed, lanes_not_drained, nothing_is_put_back, the_last_batch_is_not_put_back,
        something_is_written_after_the_recovery, the_map_tells_of_another_content, a_thread_dies_of_an_exception, a_file_is_left_open,
        a_descriptor_is_left_open,
    )
}  # fmt: skip
