"""What a machine wants done. Plain values: the driver executes them in order, synchronously, one at a time.

The contract of every driver (target/volume.py, source/flow.py, and the simulator):

* A machine method takes one event and returns a list of actions. Execute them strictly in order.
* Actions marked RESULT are always the last of their list; when done, call the event named there and execute what it returns.
* When an action raises, drop the rest of the list, call `failed(action, error)` and execute what that returns.
* A flush that fails never reaches the machine: the process ends there (R2).
* While a list is executed no other event may enter the machine; what arrives meanwhile waits.
* After DrainLanes, WaitLanes or StopSending an event of those lanes must not enter the machine any more: drop it.
"""

from typing import NamedTuple

# ---- target ----


class WriteSuperblock(NamedTuple):
    """Write the other slot of the superblock and flush it. Durable when it returns. Failure: see TargetMachine.failed()."""

    record: object  # records.TargetRecord


class ConfirmSuperblock(NamedTuple):
    """Flush the superblock as it was read, without writing: from here on a power cut cannot take it back.

    A predecessor that was killed may have written it without flushing: it reads well, and a power cut would bring the older one back after
    the undo that belongs to that was removed. The slots must have been read past the page cache (O_DIRECT), which after a failed flush shows
    what the device does not hold (R2). Writing instead would be wrong: either slot may be all there is, and a sector can be lost in a write.
    """


class Reshape(NamedTuple):
    """Nothing was ever committed and the source's volume has this shape: from now on the target has it too. Forget the map."""

    size: int
    leaf_size: int
    granule_size: int


class SettleGroup(NamedTuple):
    """This volume's superblock is as the record of a group commit says, or ahead of it: take the volume out of the record, durably; after the last
    one there is no record. Before anything else may happen to the volume."""

    new: bytes


class CreateUndo(NamedTuple):
    """A new, empty undo file for base <- new, its header flushed, its directory entry flushed."""

    base: bytes
    new: bytes
    attempt: int


class StartLanes(NamedTuple):
    """Start receiving. fresh: marks, states and values start from the map; else they go on (memory, or the checkpoint).

    The driver makes key and tokens first and puts them into the Began or Resumed that follows in the list.
    base: the committed id, NO_ID: there is no undo file.
    """

    attempt: int
    session: int
    connections: int
    frame_limit: int
    fresh: bool
    base: bytes


class AddLanes(NamedTuple):
    """Start `count` more lanes beside those that run, for connections numbered from `first` on; make their tokens."""

    first: int
    count: int


class SendAdded(NamedTuple):
    """Send Added with the tokens of the lanes just added."""

    handle: object
    attempt: int


class SendBegan(NamedTuple):
    """Send Began with the key and tokens of the lanes just started."""

    handle: object
    attempt: int
    session: int


class SendResumed(NamedTuple):
    """Send Resumed with key, tokens and the number of chunks, then the Applied chunks of every granule marked at all."""

    handle: object
    attempt: int
    session: int


class WaitLanes(NamedTuple):
    """Join the lanes: every one has answered the END of its connection and all its writes are complete. Raises LanesFailed if one has not.

    A lane whose token nobody has brought has applied nothing; its token is withdrawn, and it has not failed (R7 tells whether all is there).
    Never waits for the network: a source says Prepare only after every END was answered, so another lane without one has failed.
    """


class DrainLanes(NamedTuple):
    """Stop the lanes and wait for the completion of everything they submitted (R12). Revokes unused tokens. Cannot fail."""


class CollectManifest(NamedTuple):
    """RESULT manifest_collected(count, manifest, partial, unwritten): R7, over what was applied; partial: granules of which parts were;
    unwritten: (offset, size) of what the device did not take in this session."""

    attempt: int


class HoldOpen(NamedTuple):
    """The attempt stays open without a session that works on it. unreadable, unwritten: of messages.Extent, for people."""

    attempt: int
    unreadable: tuple
    unwritten: tuple


class Abandoned(NamedTuple):
    """For people: a generation that was open was given up, and the device is back at the committed one. why: by what, in words."""

    why: str


class FlushDevice(NamedTuple):
    """Flush the target device. R2: a failure ends the process."""


class TakeCheckpoint(NamedTuple):
    """Copy marks, states and values in memory. What completes after this is not in the checkpoint."""


class SaveCheckpoint(NamedTuple):
    """Make the copy durable: it was taken before the flush that precedes this. A failure is the driver's warning, it does not raise."""

    attempt: int


class ForgetCheckpoint(NamedTuple):
    """Remove the checkpoint durably, if there is one. A checkpoint carries its attempt, so one that stayed is never believed for another."""


class SealUndo(NamedTuple):
    """Note durably in the undo file of `new` how many batches were flushed for it: its lanes have ended, and from here on one that rots is missed,
    the last one included. Nothing to do for a first generation, which has no undo."""

    new: bytes


class RestoreUndo(NamedTuple):
    """RESULT undo_restored(): put the before-images of this attempt back, newest batch first, so that the first logged of each place wins.

    First flush the undo file (R3 holds here, too): a batch that a dead lane wrote but did not flush would be put back, and a power cut that
    tears that write would take the batch with it.

    Raises DamagedError if the undo file does not have this identity, or a batch below its flushed mark is damaged.
    """

    base: bytes
    new: bytes
    attempt: int


class WritePendingMap(NamedTuple):
    """The target's own digest map of what is about to be committed, durable, beside the committed one."""

    new: bytes
    base: bytes
    counter: int


class SettleMap(NamedTuple):
    """Make the map describe `committed`: pending.tag == committed: fold it; map.tag == committed: drop pending; else forget both.

    If folding fails, forget both; raise only if that fails, too.
    """

    committed: bytes


class ForgetMap(NamedTuple):
    """Every granule is UNKNOWN from here on; durable."""


class RecordPoint(NamedTuple):
    """Decoration of a sync point for people. Losing it loses nothing else; does not raise."""

    new: bytes
    counter: int
    fuzzy: bool | None  # None: of a sync point that was put back, and of which it is not known
    frozen_at_ns: int
    consistency: str = ""
    label: str = ""  # as a source said it: nobody has checked it yet


class PruneUndo(NamedTuple):
    """Remove the undo files that do not lead back from `committed`: of attempts that were given up, and what an interrupted Retain left. NO_ID:
    all of them. Where a header on the way cannot be believed, what lies behind it stays. A file that stays is the driver's warning; does not raise."""

    committed: bytes


class Retain(NamedTuple):
    """A generation was committed: give up the oldest sync points, as far as nobody wants them any more (retention.py), and tell set_chain() what
    is left. Which are wanted is the target's own business; no message decides it. Does not raise."""


class ApplyPoint(NamedTuple):
    """RESULT point_applied(): write the content of sync point `point` over the device through the open generation's undo.

    Before-images as in a run: read, log, flush the undo, write (R3). The way there: the undo files of `way`, in order.
    """

    point: bytes
    way: tuple  # ids of the undo files to apply, newest first
    attempt: int


class MapDevice(NamedTuple):
    """RESULT device_mapped(): make the map of what the device holds pending under `new`, from a fresh read of all of it; or, where `equal` is
    not NO_ID, from a map that is tagged `equal` and describes a volume of this very content."""

    new: bytes
    equal: bytes


class GivenUp(NamedTuple):
    """The volume is a replica now, at generation `new`; or new is NO_ID: it could not be, and `why` says what failed."""

    new: bytes
    why: str


class Scan(NamedTuple):
    """Read and hash granules freshly from the device (never from a map) and send Digests."""

    handle: object
    first: int
    count: int


class SendLeaves(NamedTuple):
    """Read and hash these granules freshly and send one Leaves each."""

    handle: object
    granules: tuple


class StartCheck(NamedTuple):
    """Read the granules of `again`, then the device from granule `first` on, beside everything else and without holding anything up, and compare
    it with the own map: after each piece machine.checked(handle, mark, message). What ran before on behalf of anybody ends. rate: bytes per second, 0: as fast as it goes."""

    handle: object
    first: int
    rate: int
    again: tuple
    mark: tuple


class StartRoot(NamedTuple):
    """Read the whole device with the packaged blake3 beside everything else, with Progress meanwhile; then machine.checked(handle, mark, Root)."""

    handle: object
    rate: int
    mark: tuple


class SendNodes(NamedTuple):
    """Send Nodes: of the map, or of what was read since for granules of which it knows nothing."""

    handle: object
    level: int
    indexes: tuple
    mark: tuple


class RepairLeaf(NamedTuple):
    """Write a leaf of the committed generation over a damaged one, and send Repaired. Only if its value is the one in the own map; then
    written, flushed and read back before anything else happens. Nothing is open, so nothing is logged: what it overwrites belongs to no
    generation."""

    handle: object
    leaf: int
    data: bytes


class Reply(NamedTuple):
    """Send a message on one control session. A send that fails is not an error: the driver reports disconnected() instead."""

    handle: object
    message: object


class CloseSession(NamedTuple):
    """Close a control session; it is gone, disconnected() is not called for it. reason: for the log."""

    handle: object
    reason: str


class RolledBack(NamedTuple):
    """The rollback somebody asked for is committed."""

    new: bytes
    point: bytes


class RollbackFailed(NamedTuple):
    """The rollback somebody asked for was itself rolled back: the volume is as before. hint: the way out, as of a QrepError, or ""."""

    reason: str
    hint: str = ""


class Faulted(NamedTuple):
    """The volume is out of service until it is opened anew. All lanes are drained."""

    reason: str


class LanesFailed(Exception):
    """Raised by a driver's WaitLanes. kind: a name of enum qrep_failure_kind in lower case."""

    def __init__(self, kind, text):
        super().__init__(text)
        self.kind = kind


# ---- source ----


class Send(NamedTuple):
    """Send a message on the control connection. A send that fails: disconnected() instead of failed()."""

    message: object


class FoldPending(NamedTuple):
    """The pending digests become the map; durable when it returns."""


class DropPending(NamedTuple):
    """Remove the pending digests durably; the map stays as it is."""


class ForgetSourceMap(NamedTuple):
    """Every granule is UNKNOWN from here on, and there is no pending; durable."""


class StoreDigests(NamedTuple):
    """Fresh digests of the target: the base to compare these granules with, in this session only; never made durable."""

    first: int
    states: bytes
    values: bytes


class FindDifferences(NamedTuple):
    """Look through the frozen image with lanes that send nothing; later differences_found(granules) or lanes_failed(...).

    Of the granules whose digest is stored without a leaf page, those that hold other data than the target and are not all zero there or here.
    No attempt is open, and no page of a map that counts may be overwritten. StopSending ends it, too.
    """


class StoreLeaves(NamedTuple):
    """The target's leaf page of a granule, for this session's base. R8: believed only if it merges to the digest stored for it; a page that
    does not is left out, which costs bandwidth and is no error. Never made durable."""

    granule: int
    page: bytes


class Freeze(NamedTuple):
    """RESULT frozen(token, fuzzy, frozen_at_ns): reopen the snapshot `token` if it is still there, else take a new one."""

    token: str


class SaveRun(NamedTuple):
    """Make the run record durable."""

    record: object  # records.RunRecord


class ClearRun(NamedTuple):
    """Remove the run record."""


class ReleaseSnapshot(NamedTuple):
    token: str


class StartSending(NamedTuple):
    """Start the source lanes; later lanes_finished(...) or lanes_failed(...).

    resumed False: all granules against the base. resumed True: the Applied chunks overlay the base first, and count as sent; then
    same_image True: only granules that are not applied whole are read. same_image False: all are read, and those listed by `unknown`
    are sent whole: "parts": granules applied in part; "incomplete": all that are not applied whole.
    """

    attempt: int
    session: int
    key: bytes
    tokens: tuple
    resumed: bool
    same_image: bool
    unknown: str  # "", "parts" or "incomplete"
    applied: tuple  # of messages.Applied


class AddSending(NamedTuple):
    """Start source lanes for these tokens beside those that run. If all work is done already: drop the tokens, the target forgets them."""

    tokens: tuple


class StopSending(NamedTuple):
    """Stop the source lanes and join them. Afterwards no lanes_finished, differences_found or lanes_failed of them arrives."""


class WritePending(NamedTuple):
    """The digests of what was sent, durable, beside the map: {new, base, counter}."""

    new: bytes
    base: bytes
    counter: int


class Agree(NamedTuple):
    """This member of a group is prepared and its digests are pending: instead of Commit. From now on the others may commit it (jobs/groups.py)."""

    epoch: int
    attempt: int
    new: bytes


class Finish(NamedTuple):
    """The run is over and the generation committed."""

    generation: bytes
    counter: int
    fuzzy: bool
    resumed: bool


class Fail(NamedTuple):
    """The run is over, or this connection is. Close it. keep_open: connect again, or start again later, and it resumes."""

    error: Exception
    keep_open: bool
