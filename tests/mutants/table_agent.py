"""Mutants of what is around the protocol: sources, hints, verify, clones, paths, peers, streams, views over NBD, freezing."""

from mutants.mutant import BOUNDS, DURABILITY, IDENTITY, LIVENESS, SECURITY, Mutant

KEPT, REBUILD, PATHS, TRANSPORT, NBD = (
    "unit/test_kept.py", "unit/test_rebuild_judge.py", "unit/test_paths.py", "unit/test_transport.py", "nbd/test_server.py",
)  # fmt: skip
SHARED = "flow/test_shared.py"
HINTS, POINTS, GRANTS, VERIFY = "flow/test_hints.py", "flow/test_points_given_up.py", "unit/test_grants.py", "flow/test_verify.py"
COPY = "system/test_copy.py"
LVM, FIEMAP = "unit/test_lvm.py", "system/test_fiemap.py"
GOLDEN = "test_what_a_thin_volume_with_an_external_origin_has_no_blocks_of_is_not_taken_for_zeroes"

MUTANTS = (
    # ---- starts ----
    Mutant(
        "start answered before it is noted", LIVENESS, "daemon/starting.py", "a start that was answered is lost when the agent is killed at once",
        "                runner.enqueue()\n", "", ("unit/test_starting.py",),
    ),
    Mutant(
        "start that came to nothing left in the notes", LIVENESS, "jobs/run.py", "the agent's next start takes up a run that was refused",
        "        self.db.set_job(self.settings.id, **kept)\n        self.release()\n", "        self.release()\n",
        ("unit/test_job_runner.py::test_a_run_that_is_taken_back_leaves_the_job_as_it_was_and_wakes_nobody",),
    ),
    # ---- hints ----
    Mutant(
        "hint believed without a sample", DURABILITY, "source/hints.py", "a filesystem that forgets a change makes a replica that differs",
        "        if trying:\n            self._try_sample(", "        if False:\n            self._try_sample(",
        (f"{HINTS}::test_a_change_that_a_hint_leaves_out_is_found_by_the_sample_and_the_same_run_reads_everything",),
    ),
    Mutant(
        "wrong hint forgiven at once", DURABILITY, "source/hints.py", "hints that were wrong are believed by the next run",
        "        if not entry.trusted:\n", "        if False:\n", (f"{HINTS}::test_after_a_wrong_hint_everything_is_read_until_a_hint_was_right",),
    ),
    Mutant(
        "hint used over a map that was corrected", DURABILITY, "source/hints.py", "a leaf that a verify found damaged is left as it is",
        "        if entry.map != self._map.digest:\n", "        if False:\n", (f"{HINTS}::test_a_leaf_that_a_verify_found_damaged_is_sent_though_the_source_has_not_changed",),
    ),
    Mutant(
        "distrust of hints not durable", DURABILITY, "source/kept.py", "after a restart wrong hints are believed again",
        "            self._save(self.kept._replace(trusted=False), self.next)\n", "            self.kept = self.kept._replace(trusted=False)\n", (KEPT,),
    ),
    Mutant(
        "kept snapshot of whatever generation", IDENTITY, "source/kept.py", "R5: the hint is about another generation than the map",
        "return self.kept if self.kept is not None and self.kept.tag == tag else None", "return self.kept", (KEPT, HINTS),
    ),
    Mutant(
        "snapshot of a run that was not committed kept", IDENTITY, "source/kept.py", "R5: hints on top of what the target does not hold",
        "            if self.next.tag == map_tag:\n                self._promote()\n                return\n", "            self._promote()\n            return\n", (KEPT,),
    ),
    Mutant(
        "hint of one map used over another", IDENTITY, "source/hints.py", "R5: after a rollback what the older generation holds stays",
        "        about = (frozen.token, self._map.tag)\n", "        about = (frozen.token,)\n",
        (f"{SHARED}::test_a_hint_is_not_used_over_another_map_than_it_was_made_for_though_the_image_is_the_same",),
    ),
    # ---- a snapshot of several jobs ----
    Mutant(
        "shared snapshot read after it was given back", LIVENESS, "source/shared.py", "a run reads what the last of the others may remove, or has removed",
        "        frozen = None if self._taken else self._shared", "        frozen = self._shared",
        (f"{SHARED}::test_a_target_that_is_rolled_back_while_its_source_is_frozen_is_compared_without_the_hint_of_before",),
    ),
    Mutant(
        "name given to the moment of an attempt before", DURABILITY, "source/image.py", "writes of before the command are missing in what bears its name",
        'known = "" if request.label and token != self._last else token', "known = token",
        (f"{SHARED}::test_a_sync_point_with_a_name_shows_what_was_written_before_it_was_asked_for",),
    ),
    # ---- roots ----
    Mutant(
        "root noted only after the session", DURABILITY, "target/driver.py", "of a generation on which the next run begins at once nothing vouches for what is copied out",
        "        self.on_commit(self)\n", "", ("system/test_agent_sync_points.py::test_the_root_of_a_sync_point_is_known_before_its_session_has_ended",),
    ),
    # ---- one-shot copies ----
    Mutant(
        "state of a copy that was killed believed", IDENTITY, "oneshot/target.py", "success is told over bytes that nobody looked at; undo goes into another's device",
        "        self.compare = known and seen != stamp.SAME\n", "        self.compare = known and record[\"stamp\"] is not None and seen != stamp.SAME\n",
        (f"{COPY}::test_what_someone_wrote_after_a_kill_is_found_by_comparing",),
    ),
    Mutant(
        "filesystem made after a kill not asked for", IDENTITY, "oneshot/target.py", "another's filesystem is overwritten without a word",
        "        if found and not ours:\n", "        if False:\n", (f"{COPY}::test_a_filesystem_that_someone_made_after_a_kill_is_overwritten_only_when_said",),
    ),
    Mutant(
        "state of a removed file kept for a new one", IDENTITY, "oneshot/target.py", "a file that was just made is taken for the one that had its inode",
        "            self._drop()  # of a file that is gone", "            pass  # of a file that is gone",
        (f"{COPY}::test_a_file_that_is_made_anew_after_a_copy_is_not_asked_for",),
    ),
    Mutant(
        "state without its record believed", IDENTITY, "oneshot/target.py", "what a kill left of a state that was being dropped is put back",
        "            if self.compare or not self.known:\n", "            if self.compare:\n",
        (f"{COPY}::test_what_was_left_of_a_state_that_was_being_forgotten_is_not_believed",),
    ),
    # ---- verify and repair ----
    Mutant(
        "repair not compared with the own map", IDENTITY, "target/verify.py", "a source that lies writes what it likes into a committed generation",
        "        if refusal:\n            return refusal\n        buffer", "        if refusal == 'unknown':\n            return refusal\n        buffer", (f"{VERIFY}::test_a_target_writes_nothing_but_what_its_own_map_says",),
    ),
    Mutant(
        "repair told before it is durable", DURABILITY, "target/verify.py", "a power cut takes back what was told to be healed",
        "        flush(self.device_fd, self.device.path)\n        crashpoint(\"target-repair-durable\")\n", "        crashpoint(\"target-repair-durable\")\n",
        ("unit/test_durable_steps.py::test_a_repair_is_flushed_before_it_is_told",),
    ),
    # ---- clones ----
    Mutant(
        "another volume taken for the clone", IDENTITY, "protocol/rebuild.py", "INV-P: a volume that has nothing to do with it is overwritten",
        "        if share < SAMPLE_REFUSES:\n", "        if share < 0:\n", (REBUILD,),
    ),
    Mutant(
        "zero leaves count for a clone", IDENTITY, "protocol/rebuild.py", "every empty disk has them, so every empty disk is the clone",
        "            same, counts = value == theirs[at : at + DIGEST_SIZE], value != zeroes[at : at + DIGEST_SIZE]\n",
        "            same, counts = value == theirs[at : at + DIGEST_SIZE], True\n", (REBUILD,),
    ),
    Mutant(
        "page of a clone believed without its value", DURABILITY, "protocol/rebuild.py", "R8: a page that does not merge hides changes",
        "        if hasher.merge(message.page) == bytes(self.values[granule * DIGEST_SIZE : (granule + 1) * DIGEST_SIZE]):  # R8\n", "        if True:\n", (REBUILD,),
    ),
    Mutant(
        "digests of a clone that were not asked for", BOUNDS, "protocol/rebuild.py", "an answer reaches past the end of the volume",
        "if message.first != self._first or len(message.states) != count:", "if message.first != self._first:", (REBUILD,),
    ),
    # ---- who may write ----
    Mutant(
        "a step of a peer that is refused by now", SECURITY, "target/volume.py", "who is not accepted any more commits generation after generation",
        "refused = refusal() if isinstance(message, STEPS) else None", "refused = None", ("flow/test_peer_refused.py",),
    ),
    # ---- sync points ----
    Mutant(
        "pinned sync point deleted", DURABILITY, "target/thinning.py", "what is attached or read goes away under its reader",
        "            self._find(point)\n            self._check_not_pinned(point)\n            chain, before", "            self._find(point)\n            chain, before", (POINTS,),
    ),
    Mutant(
        "merge finished over points that changed", DURABILITY, "target/thinning.py", "a file takes the place of one that leads elsewhere",
        "                    self._check_unchanged(ids)\n", "", (POINTS,),
    ),
    # ---- peers ----
    Mutant(
        "one of two copies of the pairs left out", DURABILITY, "daemon/grants.py", "rot of one file takes every grant",
        "            for name in NAMES:\n                self.directory.write(name, data)\n", "            for name in NAMES[:1]:\n                self.directory.write(name, data)\n", (GRANTS,),
    ),
    Mutant(
        "older copy of the pairs believed", IDENTITY, "daemon/grants.py", "a pair that was deleted is back",
        'newest = max(copies.values(), key=lambda content: content["sequence"],', 'newest = min(copies.values(), key=lambda content: content["sequence"],', (GRANTS,),
    ),
    Mutant(
        "record believed without its digest", DURABILITY, "sealed.py", "INV-C: a flipped bit of a record is taken for what was written",
        'if len(digest) != DIGEST_LINE or digest != b"\\n%s\\n" % hasher.hash(body).hex().encode():', "if len(digest) != DIGEST_LINE:", (GRANTS, KEPT),
    ),
    Mutant(
        "token used twice", SECURITY, "protocol/transport.py", "a second connection takes the place of the one that was let in",
        "if token not in self._offered or token in self._used or not fits(self._offered[token][1]):", "if token not in self._offered or not fits(self._offered[token][1]):", (TRANSPORT,),
    ),
    Mutant(
        "token of another peer taken", SECURITY, "protocol/transport.py", "a peer brings the data of another one's session",
        "token in self._used or not fits(self._offered[token][1]):", "token in self._used:", (TRANSPORT, "unit/test_plain.py"),
    ),
    Mutant("first message of whatever size", BOUNDS, "protocol/transport.py", "INV-B: who has proved nothing makes us take memory", "        if size > limit:\n", "        if False:\n", (TRANSPORT,)),
    Mutant(
        "message of whatever size", BOUNDS, "protocol/messages.py", "INV-B: a peer announces what nobody can hold",
        "    if not 0 < size <= MESSAGE_MAX:\n", "    if not 0 < size:\n", (TRANSPORT, "unit/test_messages.py"),
    ),
    # ---- paths ----
    Mutant(
        "dead path tried first", LIVENESS, "jobs/paths.py", "INV-L: a run waits for a path that is known to be down",
        "return index != first, self.paths[index].state == DOWN, self._is_held(index, now), self._rank(index)", "return index != first, self._is_held(index, now), self._rank(index)", (PATHS,),
    ),
    Mutant(
        "lost path that answers taken again at once", LIVENESS, "jobs/paths.py", "a path that loses data and answers probes is never left",
        "        if first is None and not self._lost and self.paths[self.active].state != DOWN:\n", "        if first is None and self.paths[self.active].state != DOWN:\n", (PATHS,),
    ),
    Mutant(
        "flapping path returned to without a pause", LIVENESS, "jobs/paths.py", "runs are moved to and fro for ever",
        "if self.paths[index].state == UP and not self._is_held(index, now):", "if self.paths[index].state == UP:", (PATHS,),
    ),
    Mutant(
        "failures of a path never forgiven", LIVENESS, "jobs/paths.py", "the preferred path is not returned to for twenty minutes after a bad night",
        "            if now - path.since >= FORGIVEN_S:\n                path.failures = 0\n            return []\n", "            return []\n", (PATHS,),
    ),
    # ---- views over NBD ----
    Mutant(
        "read-only export written", DURABILITY, "nbd/transmission.py", "a client of a sync point changes what it shows",
        "if self.export.read_only and command in (wire.WRITE, wire.TRIM, wire.WRITE_ZEROES):", "if self.export.read_only and command in (wire.TRIM, wire.WRITE_ZEROES):", (f"{NBD}::test_a_read_only_export_takes_no_change",),
    ),
    Mutant(
        "request past the end of an export", BOUNDS, "nbd/transmission.py", "a client reads or writes what is not there",
        "offset > self.export.size or length > self.export.size - offset:", "offset > self.export.size:", (f"{NBD}::test_a_request_that_is_wrong_is_answered_with_an_error_and_the_next_one_is_served",),
    ),
    Mutant(
        "request of whatever length", BOUNDS, "nbd/transmission.py", "INV-B: a client makes us take what it likes",
        "        if command in (wire.READ, wire.WRITE) and length > wire.REQUEST_MAX:\n", "        if False:\n", (f"{NBD}::test_requests_that_cannot_be_followed_end_the_connection",),
    ),
    Mutant(
        "clients without end", BOUNDS, "nbd/server.py", "INV-B: threads and descriptors without end",
        "            if len(self._going) >= self._limit and not trusted:\n", "            if False:\n", (f"{NBD}::test_a_client_too_many_is_turned_away_and_one_that_leaves_makes_room",),
    ),
    # ---- freezing ----
    Mutant(
        "snapshot that took too long kept", DURABILITY, "volumes/quiet.py", "an image that was written to meanwhile passes for one at rest",
        "        if late:\n", "        if False:\n", ("system/test_snapshot_backends.py::test_a_clone_that_takes_too_long_is_thrown_away_and_the_filesystem_is_thawed_meanwhile",),
    ),
    Mutant(
        "freeze of somebody else guarded as ours", DURABILITY, "volumes/quiet.py", "another tool's snapshot is taken of a filesystem that is written to",
        "                if fd not in frozen and fd not in owed:\n", "                if False:\n",
        ("system/test_snapshot_backends.py::test_a_freeze_of_theirs_outlasts_an_agent_that_is_killed",),
    ),
    Mutant(
        "another file read as the snapshot", SECURITY, "volumes/reflink.py", "a user has root replicate what he may not read",
        "            if (status.st_dev, status.st_ino) != frozen.file:\n", "            if False:\n",
        ("system/test_snapshot_backends.py::test_what_somebody_puts_in_the_place_of_a_snapshot_is_not_read_mapped_or_removed",),
    ),
    Mutant(
        "directory of somebody else searched for snapshots", SECURITY, "volumes/reflink.py", "a user says what is found, compared and removed as a snapshot",
        "    if status.st_uid != os.geteuid() or status.st_mode & 0o077:\n", "    if False:\n",
        ("system/test_snapshot_backends.py::test_what_somebody_puts_in_the_place_of_a_snapshot_is_not_read_mapped_or_removed",),
    ),
    Mutant(
        "force waits for whoever waits", LIVENESS, "daemon/roles.py", "a source that hangs bars the takeover that it is the reason of",
        "if going is not None and not (force and going.gives_way):", "if going is not None:",
        ("unit/test_role_waits.py::test_force_takes_over_from_a_planned_promote_that_waits_for_its_source_which_does_nothing_any_more",),
    ),
    Mutant(
        "promote that was ended decides", IDENTITY, "daemon/roles.py", "two commands change the role of one volume",
        "            turn.check()\n            turn.gives_way = False\n", "            turn.gives_way = False\n",
        ("unit/test_role_waits.py::test_what_has_decided_and_what_never_gives_way_is_not_ended_and_the_turn_of_one_is_not_freed_by_another",),
    ),
    Mutant(
        "silent source waited for", LIVENESS, "daemon/rolesides.py", "a planned promote never ends",
        "            if now - heard > SILENT_S:\n", "            if False:\n",
        ("unit/test_role_waits.py::test_a_source_that_falls_silent_is_not_waited_for_longer_than_is_said",),
    ),
    # ---- what peers ask, and changes of role that cannot be finished ----
    Mutant(
        "any text an id of a question", SECURITY, "daemon/asks.py", "one question of a peer leaves a volume whose agent cannot start",
        'Generation = Annotated[str, msgspec.Meta(pattern=r"^(?!0{32})[0-9a-f]{32}\\Z")]', "Generation = Annotated[str, msgspec.Meta(max_length=32)]",
        ("unit/test_asks.py::test_no_field_of_a_question_gets_through_in_another_form",),
    ),
    Mutant(
        "one volume keeps the agent from starting", LIVENESS, "daemon/rolesteps.py", "a state disk that is full, or a bug, takes all pairs down",
        "        except Exception as error:  # whatever it is, it is of this volume alone\n", "        except DamagedError as error:\n",
        ("unit/test_role_recovery.py::test_whatever_keeps_one_volume_from_being_finished_the_start_goes_on_and_it_is_finished_later",),
    ),
    Mutant(
        "map that is not needed waited for", LIVENESS, "daemon/rolesteps.py", "a volume that is primary already stays claimed for want of room for a map",
        "            self._copy_map(volume, file, _free(self.node.state.path) - ROOM)\n        except (QrepError, OSError) as error:\n",
        "            self._copy_map(volume, file, _free(self.node.state.path) - ROOM)\n        except NotImplementedError as error:\n",
        ("unit/test_role_recovery.py::test_a_map_that_cannot_be_made_is_left_out_and_said_and_the_change_is_finished",),
    ),
    Mutant(
        "standing taken back after the sector", IDENTITY, "daemon/rolesteps.py", "a volume is primary and nothing says of which pair: its job is never made",
        "            if self._was_written(volume, file):\n                raise", "            if False:\n                raise",
        ("unit/test_role_recovery.py::test_what_a_standing_says_is_taken_back_only_where_the_sector_was_not_written",),
    ),
    # ---- what a snapshot says of its content ----
    Mutant(
        "external origin taken for zeroes", IDENTITY, "volumes/lvm.py", "a clone of a golden image is replicated as zeroes",
        "            if origin := lvmtools.external_origin(volume.path):\n", "            if origin := None:\n", (f"{LVM}::{GOLDEN}",),
    ),
    Mutant(
        "clone of an external origin called never written", IDENTITY, "volumes/lvm.py", "a job says that a volume full of data was never written",
        ' and not lvmtools.external_origin(volume.path)\n', "\n", (f"{LVM}::{GOLDEN}",),
    ),
    Mutant(
        "difference of snapshots of two external origins believed", IDENTITY, "volumes/lvm.py", "what the pool has no blocks of is not sent though it differs",
        "        if lvmtools.external_origin(old.path) != lvmtools.external_origin(new.path):", "        if False:",
        (f"{LVM}::test_snapshots_of_one_external_origin_have_their_difference_in_the_pool_and_those_of_two_have_not",),
    ),
    Mutant(
        "table of another target read as that of a thin volume", BOUNDS, "volumes/lvmtools.py", "a layer over a thin volume passes for one without an external origin",
        "    if len(words) < 4 or words[2] != kind:\n", "    if len(words) < 4:\n",
        (f"{LVM}::test_what_a_volume_of_another_table_has_no_blocks_of_is_not_taken_for_zeroes",),
    ),
    Mutant(
        "dump without the volume's mappings believed", IDENTITY, "volumes/thinmeta.py", "a volume that thin_dump does not know is replicated as zeroes",
        "    if thin_id is not None and devices != [(thin_id, blocks)]:\n", "    if False:\n",
        (f"{LVM}::test_a_dump_that_does_not_hold_all_of_the_volumes_mappings_is_no_answer",),
    ),
    Mutant(
        "place of a compressed or inline extent believed", IDENTITY, "volumes/fiemap.py", "a changed part of an image is not sent",
        "            if flags & UNCLEAR:\n", "            if flags & UNKNOWN:\n", (f"{FIEMAP}::test_a_place_that_says_nothing_differs_from_itself",),
    ),
    Mutant(
        "place of an extent that is not shared believed", IDENTITY, "volumes/fiemap.py", "a block that was written in place is not sent",
        "physical + start - logical, not flags & SHARED)", "physical + start - logical, False)", (f"{FIEMAP}::test_a_place_that_says_nothing_differs_from_itself",),
    ),
    Mutant(
        "data without a place taken for a hole", IDENTITY, "volumes/fiemap.py", "what was not yet written down is not sent",
        "            if flags & DELALLOC:\n", "            if False:\n", (f"{FIEMAP}::test_data_that_waits_for_a_place_is_no_answer",),
    ),
    Mutant(
        "map that does not go on is a hole from there", IDENTITY, "volumes/fiemap.py", "the rest of an image is called unchanged",
        "            if count:\n", "            if False:\n",
        (f"{FIEMAP}::test_a_map_that_ends_without_a_last_extent_is_a_hole_from_there_and_one_that_does_not_go_on_is_no_answer",),
    ),
)  # fmt: skip
