"""Defects that a process of fault/ends.py begins with, so that a harness can show that it notices them: ends.py defect NAME target ..."""

import os


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


DEFECTS = {
    each.__name__: each
    for each in (no_claim, no_device_flush, failed_flush_is_passed_over, superblock_not_flushed, open_is_cleared_before_the_restored_device_is_flushed, lanes_not_drained)
}
