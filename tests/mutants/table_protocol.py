"""Mutants of the protocol's machines: what is said, and when."""

from mutants.mutant import BOUNDS, DURABILITY, IDENTITY, LIVENESS, SECURITY, Mutant

TARGET, GROUP, ROLES = "unit/test_target_machine.py", "unit/test_group_machines.py", "unit/test_target_roles.py"
SOURCE, CONNECTIONS = "unit/test_source_machine.py", "unit/test_connections_machines.py"

MUTANTS = (
    # ---- the target ----
    Mutant(
        "commit before the device is flushed", DURABILITY, "protocol/target_machine.py", "R4: what the superblock vouches for may be lost",
        "            do.SealUndo(new),\n            do.FlushDevice(),\n", "            do.SealUndo(new),\n", (TARGET,),
    ),
    Mutant(
        "undo not sealed before prepared", DURABILITY, "protocol/target_machine.py", "nobody knows how many batches of before-images there must be",
        "            do.SealUndo(new),\n            do.FlushDevice(),\n", "            do.FlushDevice(),\n", (TARGET,),
    ),
    Mutant(
        "open cleared before the restored device is flushed", DURABILITY, "protocol/target_machine.py", "R10: the before-images go while they are needed",
        "return [do.FlushDevice(), do.WriteSuperblock(self.record), *self._tidy(), *then()]",
        "return [do.WriteSuperblock(self.record), do.FlushDevice(), *self._tidy(), *then()]", (TARGET,),
    ),
    Mutant(
        "undo dropped before the superblock", DURABILITY, "protocol/target_machine.py", "R10: the before-images go while the superblock still says open",
        "return [do.FlushDevice(), do.WriteSuperblock(self.record), *self._tidy(), *then()]",
        "return [do.FlushDevice(), *self._tidy(), do.WriteSuperblock(self.record), *then()]", (TARGET,),
    ),
    Mutant(
        "rollback committed without a flush", DURABILITY, "protocol/target_machine.py", "R4, of a rollback to a sync point",
        "return [do.SealUndo(self.record.committed_id), do.FlushDevice(), do.WriteSuperblock(self.record),",
        "return [do.SealUndo(self.record.committed_id), do.WriteSuperblock(self.record), do.FlushDevice(),", (TARGET,),
    ),
    Mutant(
        "checkpoint saved before the flush", DURABILITY, "protocol/target_machine.py", "an interrupted first run claims granules that may be lost",
        "[do.TakeCheckpoint(), do.FlushDevice(), do.SaveCheckpoint(self.record.open_attempt)]",
        "[do.TakeCheckpoint(), do.SaveCheckpoint(self.record.open_attempt), do.FlushDevice()]", (TARGET,),
    ),
    Mutant(
        "superblock believed that was not flushed", DURABILITY, "protocol/target_machine.py", "recovery acts on what a power cut may take back",
        "done = [do.ConfirmSuperblock()]  #", "done = []  #", (TARGET,),
    ),
    Mutant(
        "lanes not drained", DURABILITY, "protocol/target_machine.py", "R12: writes of the old session land after what followed it",
        "        done = [do.DrainLanes()]\n", "        done = []\n", (TARGET,),
    ),
    Mutant(
        "checkpoint kept when the image changes", DURABILITY, "protocol/target_requests.py", "a resume over another image leaves a checkpoint that lies",
        "            done.append(do.ForgetCheckpoint())\n", "", (TARGET,),
    ),
    Mutant(
        "open written before the undo file is there", DURABILITY, "protocol/target_requests.py", "a crash finds `open` and no way back",
        "            *undo,\n            do.WriteSuperblock(self.record),\n", "            do.WriteSuperblock(self.record),\n            *undo,\n", (TARGET,),
    ),
    Mutant(
        "manifest not compared", DURABILITY, "protocol/target_machine.py", "R7: what was announced is believed, not what was applied",
        "if partial or count != asked.count or manifest != asked.manifest:", "if partial or count != asked.count:", (TARGET,),
    ),
    Mutant(
        "partial granules committed", DURABILITY, "protocol/target_machine.py", "R7: granules of which leaves are missing count",
        "if partial or count != asked.count or manifest != asked.manifest:", "if count != asked.count or manifest != asked.manifest:", (TARGET,),
    ),
    Mutant(
        "unwritten blocks committed", DURABILITY, "protocol/target_machine.py", "INV-Z: blocks that the device did not take",
        "if unwritten or isinstance(asked, say.Hold):", "if isinstance(asked, say.Hold):", (TARGET,),
    ),
    Mutant(
        "commit before prepared", DURABILITY, "protocol/target_requests.py", "a Commit counts while data is still coming in",
        'if self.phase != "prepared" or commit.attempt != self.record.open_attempt:',
        'if self.phase not in ("open", "prepared") or commit.attempt != self.record.open_attempt:', (TARGET,),
    ),
    Mutant(
        "commit of whatever attempt", IDENTITY, "protocol/target_requests.py", "R6: a late Commit of an earlier attempt commits another",
        'if self.phase != "prepared" or commit.attempt != self.record.open_attempt:', 'if self.phase != "prepared":', (TARGET,),
    ),
    Mutant(
        "base not compared", IDENTITY, "protocol/target_requests.py", "R5: no compare-and-swap, two controllers write over each other",
        "if begin.base != record.committed_id:  # R5", "if False:", (TARGET,),
    ),
    Mutant(
        "generation id may be used again", IDENTITY, "protocol/target_requests.py", "R5: an id that is within reach names something else",
        "if begin.new in self.used_ids() or begin.attempt in (0, record.open_attempt):", "if begin.attempt in (0, record.open_attempt):", (TARGET,),
    ),
    Mutant(
        "attempt may be used again", IDENTITY, "protocol/target_requests.py", "R6: frames of the attempt before pass for this one's",
        "begin.attempt in (0, record.open_attempt):", "begin.attempt == 0:", (TARGET,),
    ),
    Mutant(
        "resume of whatever attempt", IDENTITY, "protocol/target_requests.py", "what another attempt applied counts for this one",
        "if not self._can_resume() or resume.attempt != self.record.open_attempt:", "if not self._can_resume():", (TARGET,),
    ),
    Mutant(
        "session number replayed", IDENTITY, "protocol/target_requests.py", "INV-F: an epoch may come twice, so frames of the older session are not stale",
        "if hello.epoch <= record.max_epoch:", "if hello.epoch < record.max_epoch:", (TARGET,),
    ),
    Mutant(
        "epoch told before it is durable", DURABILITY, "protocol/target_requests.py", "INV-F: after a crash the older session is as good as the newer",
        "done = [do.WriteSuperblock(self.record), *reshape, *self._stop_lanes(checkpoint=False)]",
        "done = [*reshape, *self._stop_lanes(checkpoint=False)]", (TARGET,),
    ),
    Mutant(
        "volume id of a hello not compared", IDENTITY, "protocol/target_requests.py", "INV-P: a source of another volume writes here",
        "if hello.volume_id != record.volume_id:", "if not hello.volume_id:", (TARGET,),
    ),
    Mutant(
        "frame limit of a begin not checked", BOUNDS, "protocol/target_requests.py", "frames that hold no leaf, or no power of two",
        "if begin.frame_limit < record.leaf_size or begin.frame_limit & (begin.frame_limit - 1):", "if begin.frame_limit < record.leaf_size:",
        (TARGET,),
    ),
    Mutant(
        "connections of a session not counted", BOUNDS, "protocol/target_requests.py", "INV-B: more connections than may be there at a time",
        "if going + message.count > say.CONNECTIONS_MAX:", "if message.count > say.CONNECTIONS_MAX:", (CONNECTIONS,),
    ),
    Mutant(
        "one granule beyond the end scanned", BOUNDS, "protocol/target_requests.py", "a question reaches past the end of the volume",
        "if message.first + message.count > granules:", "if message.first + message.count > granules + 1:", (TARGET,),
    ),
    Mutant(
        "one granule beyond the end asked for leaves", BOUNDS, "protocol/target_requests.py", "a question reaches past the end of the volume",
        "if max(message.granules) >= granules:", "if max(message.granules) > granules:", (TARGET,),
    ),
    Mutant(
        "size of a repair not compared", BOUNDS, "protocol/target_checks.py", "half a leaf is written, or more than the last one",
        "if len(message.data) != size:", "if not message.data:", (TARGET,),
    ),
    Mutant(
        "repair of whatever generation", IDENTITY, "protocol/target_checks.py", "leaves of one generation are written into another",
        'if self.phase != "idle" or generation != self.record.committed_id or generation == NO_ID:', 'if self.phase != "idle":', (TARGET,),
    ),
    Mutant(
        "check of a device that moved on", IDENTITY, "protocol/target_checks.py", "differences are told that a run made meanwhile",
        "if mark[1] is None or mark != self.mark():", "if mark[1] is None:", (TARGET,),
    ),
    Mutant(
        "run admitted by a primary volume", DURABILITY, "protocol/target_requests.py", "what the host of a primary volume wrote is overwritten",
        "if record.role != say.REPLICA:", "if False:", ("unit/test_target_machine.py",),
    ),
    Mutant(
        "hello admitted by a primary volume", DURABILITY, "protocol/target_requests.py", "split brain goes unnoticed",
        "if self._is_primary():", "if False:", (ROLES,),
    ),
    Mutant(
        "role without a fresh id", IDENTITY, "protocol/target_roles.py", "R5: the old map still describes the volume after its host wrote",
        "if new in self.used_ids():", "if False:", (ROLES,),
    ),
    Mutant(
        "given up without a flush", DURABILITY, "protocol/target_roles.py", "what the host wrote is vouched for before it is durable",
        "return [do.FlushDevice(), do.WriteSuperblock(self.record), point,", "return [do.WriteSuperblock(self.record), point,", (ROLES,),
    ),
    Mutant(
        "group decided for another session", IDENTITY, "protocol/target_group.py", "a group commits what a later session changed",
        "(record.open_attempt, record.open_new_id, record.max_epoch) != (attempt, new, epoch)",
        "(record.open_attempt, record.open_new_id) != (attempt, new)", (GROUP,),
    ),
    Mutant(
        "group record settled before the superblock", DURABILITY, "protocol/target_group.py", "after a crash a member was neither recorded nor committed",
        "            do.WriteSuperblock(self.record),  # R4: the commit point, or that of a group has been passed\n"
        "            *([do.SettleGroup(new)] if in_group else []),\n",
        "            *([do.SettleGroup(new)] if in_group else []),\n            do.WriteSuperblock(self.record),\n", (GROUP,),
    ),
    Mutant(
        "group record rolls forward whatever is open", IDENTITY, "protocol/target_group.py", "an attempt that the record does not name is committed",
        "(record.open_new_id, record.open_attempt) == (decided.new, decided.attempt):", "record.open_new_id == decided.new:", (GROUP,),
    ),
    Mutant(
        "connection lost for good", LIVENESS, "protocol/target_machine.py", "INV-L: a lane that lost its connection takes the whole attempt back",
        'RESUMABLE_FAILURES = ("connection", "frame", "digest")', 'RESUMABLE_FAILURES = ("frame", "digest")', (TARGET,),
    ),
    Mutant(
        "superseded session goes on", SECURITY, "protocol/target_requests.py", "INV-F: what an older session says still counts",
        "            if handle != self.session:\n                return [do.CloseSession(handle, \"it was superseded\")]\n", "", (TARGET,),
    ),
    Mutant(
        "word before hello", SECURITY, "protocol/target_requests.py", "a peer that did not name its volume and version is served",
        "                if not isinstance(message, say.Hello):\n                    raise ProtocolError(f\"a {_kind(message)} before hello\")\n",
        "                if not isinstance(message, say.Hello):\n                    return getattr(self, self._handlers[type(message)])(handle, message)\n", (TARGET,),
    ),
    # ---- the source ----
    Mutant(
        "map believed under another tag", IDENTITY, "protocol/source_replies.py", "R5: leaves are left out by a map of another generation",
        "        if self._map_tag == self._committed and self._committed != NO_ID:\n            return [do.DropPending()]",
        "        if self._committed != NO_ID:\n            return [do.DropPending()]", (SOURCE,),
    ),
    Mutant(
        "unknown taken for known", IDENTITY, "protocol/source_replies.py", "R9: a map of nothing counts for a target of nothing",
        "        if self._map_tag == self._committed and self._committed != NO_ID:\n            return [do.DropPending()]",
        "        if self._map_tag == self._committed:\n            return [do.DropPending()]", (SOURCE,),
    ),
    Mutant(
        "pending folded for whatever was committed", IDENTITY, "protocol/source_replies.py", "digests of a generation that was not committed become the map",
        "if self._pending_new is not None and self._pending_new == state.committed:", "if self._pending_new is not None:", (SOURCE,),
    ),
    Mutant(
        "commit said before the digests are durable", DURABILITY, "protocol/source_replies.py", "after a crash nobody can say what the target holds",
        "return [do.WritePending(record.new, record.base, self._counter + 1), commit]",
        "return [commit, do.WritePending(record.new, record.base, self._counter + 1)]", (SOURCE,),
    ),
    Mutant(
        "answer for another attempt believed", IDENTITY, "protocol/source_replies.py", "R6: a late Prepared of an earlier attempt counts",
        "if message.attempt != self.record.attempt:\n            raise ProtocolError(\"the target answered for another attempt\")",
        "if not message.attempt:\n            raise ProtocolError(\"the target answered for another attempt\")", (SOURCE,),
    ),
    Mutant(
        "generation id of a commit not compared", IDENTITY, "protocol/source_replies.py", "INV-X: in sync is said of another generation",
        "if message.new != self.record.new:", "if not message.new:", (SOURCE,),
    ),
    Mutant(
        "another image taken for the same", DURABILITY, "protocol/source_machine.py", "a resume leaves out what changed since the first image",
        "self._same_image = bool(token) and not fuzzy and token == record.snapshot and not record.mixed",
        "self._same_image = bool(token) and not fuzzy and not record.mixed", (SOURCE,),
    ),
    Mutant(
        "mixed images forgotten", DURABILITY, "protocol/source_machine.py", "a third session trusts what was applied of two images",
        "token == record.snapshot and not record.mixed", "token == record.snapshot", (SOURCE,),
    ),
    Mutant(
        "unreadable blocks not told", DURABILITY, "protocol/source_machine.py", "INV-Z: what could not be read is committed as if it had been",
        "        if unreadable:  # INV-Z: nothing is invented, so nothing is committed", "        if False:", (SOURCE,),
    ),
    Mutant(
        "run record not durable before begin", DURABILITY, "protocol/source_machine.py", "a restarted source does not know its open attempt",
        "        return [do.SaveRun(self.record), self._begin()]\n", "        return [self._begin(), do.SaveRun(self.record)]\n", (SOURCE,),
    ),
    Mutant(
        "base of an attempt not compared", IDENTITY, "protocol/source_replies.py", "an attempt on top of another generation is resumed",
        "            and state.committed == record.base\n", "", (SOURCE,),
    ),
    Mutant(
        "epoch answered for another session", IDENTITY, "protocol/source_replies.py", "what the target told another session counts",
        "if state.max_epoch != self._epoch:", "if state.max_epoch < self._epoch:", (SOURCE,),
    ),
    Mutant(
        "higher epochs followed for ever", LIVENESS, "protocol/source_replies.py", "a lying target keeps the source busy",
        "if self._stale_answers > STALE_ANSWERS_MAX:", "if False:", (SOURCE,),
    ),
    Mutant(
        "applied list of whatever length", BOUNDS, "protocol/source_replies.py", "a list leaves granules out, or reaches past the last one",
        "if len(message.marked) != min(GRANULES_PER_CHUNK, self._granules - message.first) or max(message.marked) > 2:", "if max(message.marked) > 2:", (SOURCE,),
    ),
    Mutant(
        "leaves not compared with what was asked", BOUNDS, "protocol/source_compare.py", "a page of another granule or size is stored",
        "if message.granule != self._asked[0] or len(message.page) != self._page_size(message.granule):", "if message.granule != self._asked[0]:",
        ("unit/test_source_compare.py",),
    ),
    Mutant(
        "busy target not tried again", LIVENESS, "protocol/source_replies.py", "INV-L: a run over a volume that was busy for a moment ends for good",
        'RETRY_NAKS = ("connection", "frame", "attempt-gone", "base", "busy")', 'RETRY_NAKS = ("connection", "frame", "attempt-gone", "base")', (SOURCE,),
    ),
)  # fmt: skip
