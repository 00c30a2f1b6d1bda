"""Named crash points of the control plane; the native layer has its own twin (`_native/crashpoint.c`).

`QREP_CRASH=name:n` kills this process with SIGKILL at the n-th passage of `name`; `name:n:stop` stops it there, for who kills it together with
another. Inert otherwise.
"""

import os
import signal
import threading

# Every name, in Python and in C, and what is about to happen or has just happened there. A test holds this against the sources.
POINTS = {
    "store-write-unflushed": "a state file is written beside the old one, not flushed",
    "store-rename-before": "and flushed, not renamed",
    "store-rename-unflushed": "renamed, the directory not flushed",
    "store-remove-unflushed": "a state file is removed, the directory not flushed",
    "pairs-copy-durable": "who may write where is noted in one of its two files, or in both",
    "superblock-create-before": "a volume has no superblock yet",
    "superblock-write-before": "the superblock is about to change; with an open generation prepared: just before the commit point",
    "superblock-write-durable": "and has changed; at a commit: just after the commit point",
    "map-pending-before": "the digests of the next generation are about to be noted",
    "map-pending-durable": "and are",
    "map-fold-before": "the next generation is committed, its digests still pending",
    "map-fold-durable": "they are the map",
    "map-drop-before": "pending digests of a generation that was not committed are about to go",
    "map-forget-before": "a map that does not describe the target is about to go",
    "map-replace-before": "a verify found the target to hold something else; the map is about to say so",
    "map-replace-durable": "and does",
    "map-values-before": "the root was told; the values of zeroes computed for it are about to be noted in the map",
    "map-values-durable": "and are",
    "map-checkpoint-before": "what an initial run has applied is about to be noted",
    "map-checkpoint-durable": "and is",
    "undo-create-before": "an undo file is about to be made",
    "undo-create-durable": "and is, with its header",
    "undo-prune-before": "an undo file that is not needed any more is about to go",
    "undo-cut-before": "the undo file of a sync point that nobody wants any more is about to go, the oldest first",
    "undo-merge-written": "undo files were merged into another one beside them, not flushed",
    "undo-merge-durable": "and flushed, not read back",
    "undo-merge-rename-before": "and read back; it is about to take the place of the newest",
    "undo-merge-renamed": "and has; the files of the sync points between are still there",
    "undo-merge-done": "and are gone",
    "undo-sealed": "the undo file says how many batches it holds, the generation is not prepared",
    "undo-restore-before": "before-images are about to be put back",
    "undo-restore-batch": "in the middle of that",
    "rollback-undo-durable": "what a rollback will overwrite is logged",
    "rollback-applied": "and overwritten",
    "group-record-before": "every member of a group is prepared, the record that commits them all is about to be written",
    "group-record-durable": "and is: all are committed, no superblock says so",
    "group-member-committed": "the superblock of one member says so, others may not",
    "group-settle-before": "a member's superblock is written, and it is about to be taken out of the record",
    "group-settled": "and is, or the record is gone with the last",
    "target-claimed": "the device is claimed, recovery begins",
    "target-lanes-started": "lanes were started, nobody was told",
    "target-lanes-added": "lanes were added to those that run, the source was not told",
    "target-frame-received": "a frame is in memory",
    "target-undo-written": "before-images are written, not flushed",
    "target-undo-flushed": "and flushed",
    "target-write-submitted": "writes to the device are under way",
    "target-write-done": "and complete, not flushed",
    "target-end": "a connection was ended in order",
    "target-drained": "the lanes were drained",
    "target-flush-before": "the device is about to be flushed",
    "target-flush-done": "and is",
    "target-repair-before": "a damaged leaf is about to be written over",
    "target-repair-written": "and is, not flushed",
    "target-repair-durable": "and flushed, nobody was told",
    "target-reply": "an answer is about to be sent",
    "role-take-over-before": "what a change of role is about is noted, the superblock says replica",
    "role-taken-over": "it says primary; the device is not released, the job not written",
    "role-give-up-before": "what a change of role is about is noted, the device is claimed, the superblock says primary",
    "role-mapped": "the map of what a host has written is pending, the superblock says primary",
    "role-given-up": "it says replica; pair and job are not written",
    "role-pair-written": "who may write to the volume was noted, or that nobody may",
    "role-job-written": "the job file says where its source is",
    "role-done-before": "everything follows the role, and it is about to be noted that it does",
    "copy-committed": "a volume that is written once holds its generation, and is about to be given back",
    "copy-given-back": "that it is nobody's replica any more is noted; its superblock is still there",
    "clone-convert-before": "a finished clone is about to become a job that waits for its disk",
    "clone-convert-durable": "and has; its device is still held",
    "clone-let-go": "the superblock of the clone's volume is gone, its pair is not",
    "rebuild-map-durable": "the map of what a moved clone holds is there; its host was not told",
    "rebuild-pair-durable": "the pair is there, the superblock is not",
    "rebuild-adopt-before": "a moved clone is about to become a replica",
    "rebuild-adopted": "and is one; its source was not told",
    "rebuild-told": "its source was told; the job's file does not say so",
    "rebuild-noted": "and does; older maps are still there",
    "snapshot-frozen": "the source's filesystem is frozen",
    "snapshot-cloned": "the snapshot has no name yet",
    "snapshot-named": "and has one",
    "volume-created": "its storage is there, the volume is not known",
    "source-frozen": "the snapshot is there, not noted",
    "source-run-saved": "the run record is durable, the target knows nothing",
    "source-kept-remembered": "the snapshot of what is about to be committed is noted as the one to keep",
    "source-kept-old-released": "it was committed, and the snapshot of the generation before it was given back",
    "source-kept-settled": "and that is noted",
    "source-kept-let-go": "no snapshot is to be kept any more, and the last one was given back",
    "source-searched": "what differs from the target is known, its leaves are not asked for",
    "source-send": "a message is about to be sent",
    "source-lanes-before": "the attempt is open, the lanes not started",
    "source-lanes-added": "more connections were granted, their lanes not started",
    "source-lane-leaves": "a lane was told to finish what it has taken and to end its connection",
    "source-leaf-page": "a leaf page was written",
    "source-frame-sent": "a frame was sent",
    "source-end": "a connection was ended in order",
    "source-lanes-done": "all is sent and written",
    "source-agreed": "a member of a group is prepared and its digests are pending, the others were not told",
    "shared-frozen": "a snapshot for several jobs is there, who holds it is not noted",
    "shared-token-held": "and is, no run has noted it",
    "shared-token-released": "one job has let go of a shared snapshot, which is not noted",
    "together-frozen": "one of several volumes that are frozen together has its snapshot",
    "source-release-before": "the snapshot is about to go",
}

_name, _left, _stops = "", 0, False


def arm(text):
    """Die, or stop, at the point and passage that `text` (name:n, name:n:stop) says; anything else: nowhere."""
    global _name, _left, _stops
    _name, _, count = text.partition(":")
    count, _, how = count.partition(":")
    _left, _stops = int(count) if _name and count.isdigit() else 0, how == "stop"


def crashpoint(name):
    """Die here as by kill -9, or stop, if the environment asks for it."""
    global _left
    if _left and name == _name:
        _left -= 1
        if not _left and _stops:
            signal.pthread_kill(threading.get_ident(), signal.SIGSTOP)  # sent to the process another thread may take it, and this one goes on
        elif not _left:
            os.kill(os.getpid(), signal.SIGKILL)


arm(os.environ.get("QREP_CRASH", ""))
