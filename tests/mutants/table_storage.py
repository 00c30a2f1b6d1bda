"""Mutants of what is kept on disk: state files, superblock, undo files, maps, sync points; and of who may write a device."""

from mutants.mutant import BOUNDS, DURABILITY, IDENTITY, LIVENESS, SECURITY, Mutant

STORE, SUPERBLOCK, MAP, MERGE, RETENTION = (
    "unit/test_store.py", "unit/test_superblock_file.py", "unit/test_digestmap.py", "unit/test_undo_merge.py", "unit/test_retention.py",
)  # fmt: skip
COPY_OUT, AGES = "flow/test_copy_out.py", "unit/test_point_ages.py"
STEPS, GROUP, SAFETY, CLAIM = "unit/test_durable_steps.py", "unit/test_group_machines.py", "system/test_device_safety.py", "system/test_device_claim.py"

MUTANTS = (
    # ---- state files ----
    Mutant(
        "state file renamed before it is flushed", DURABILITY, "store.py", "after a power cut the new name leads to an empty file",
        '            flush(descriptor, f"{self.path}/{name}")\n        except OSError:', "        except OSError:", (STEPS,),
    ),
    Mutant(
        "directory not flushed after a rename", DURABILITY, "store.py", "after a power cut the old file is back",
        '        crashpoint("store-rename-unflushed")\n        self.flush()\n', '        crashpoint("store-rename-unflushed")\n', (STEPS,),
    ),
    Mutant(
        "directory not flushed after a removal", DURABILITY, "store.py", "after a power cut a removed file is back",
        '            crashpoint("store-remove-unflushed")\n            self.flush()\n', '            crashpoint("store-remove-unflushed")\n', (STEPS,),
    ),
    Mutant(
        "failed flush of a state file ignored", DURABILITY, "store.py", "R2: the kernel reports it once",
        "    except OSError as err:\n        die(what, err)\n\n\ndef die", "    except OSError:\n        return\n\n\ndef die", (STORE,),
    ),
    Mutant(
        "failed flush asked for again", DURABILITY, "store.py", "R2: the second time it says success",
        "    except OSError as err:\n        die(what, err)\n\n\ndef die", "    except OSError:\n        os.fsync(descriptor)\n\n\ndef die", (STORE,),
    ),
    Mutant(
        "short write of a state file taken for whole", DURABILITY, "store.py", "the rest of a file is not there",
        "    while view:\n        written = os.write(", "    if view:\n        written = os.write(", (STORE,),
    ),
    Mutant(
        "state file written in place", DURABILITY, "store.py", "a crash in the middle leaves neither the old nor the new one",
        'temporary = f"{_component(name)}.{secrets.token_hex(4)}{TEMPORARY}"', "temporary = _component(name)", (STORE, STEPS),
    ),
    Mutant("state file larger than it can be is read", BOUNDS, "store.py", "INV-B: memory", "            if size > limit:\n", "            if False:\n", (STORE,)),
    Mutant(
        "symbolic link followed", SECURITY, "store.py", "what lies elsewhere is read, or written over", "flags |= os.O_NOFOLLOW | os.O_CLOEXEC", "flags |= os.O_CLOEXEC", (STORE,)
    ),
    Mutant("state directory of others used", SECURITY, "store.py", "others can put files there", "status.st_uid != os.geteuid() or stat.S_IMODE(status.st_mode) & 0o022", "status.st_uid != os.geteuid()", (STORE,)),
    # ---- superblock ----
    Mutant(
        "superblock written without a flush", DURABILITY, "target/superblock.py", "R4: the commit point may be lost after it was told",
        "flags = os.O_RDWR | os.O_DSYNC", "flags = os.O_RDWR", (STEPS,),
    ),
    Mutant(
        "superblock written over the valid slot", DURABILITY, "target/superblock.py", "R4: a torn sector leaves no superblock",
        "self._write_slot(sequence % 2)", "self._write_slot(0)", (SUPERBLOCK,),
    ),
    Mutant(
        "failed superblock write survived", DURABILITY, "target/superblock.py", "R2: what the slot holds is not known",
        "            except OSError as err:\n                die(self.path, err)\n        self.block = block", "            except OSError:\n                pass\n        self.block = block", (SUPERBLOCK,),
    ),
    Mutant(
        "superblock not confirmed", DURABILITY, "target/superblock.py", "recovery acts on what a power cut may take back",
        "        try:\n            os.fsync(self._descriptor)\n        except OSError as err:\n            die(self.path, err)\n", "        return\n", (SUPERBLOCK,),
    ),
    Mutant(
        "half of a superblock slot taken for whole", DURABILITY, "target/superblock.py", "a short write is a commit",
        "            if written != self._unit:\n", "            if False:\n", (STEPS,),
    ),
    # ---- undo files ----
    Mutant(
        "undo file made without a flush", DURABILITY, "target/undostore.py", "a crash finds `open` and an undo file without a header",
        '            flush(descriptor, f"{self.directory.path}/{name}")\n            os.close(descriptor)\n            descriptor = -1\n', "            os.close(descriptor)\n            descriptor = -1\n", (STEPS,),
    ),
    Mutant(
        "directory of a new undo file not flushed", DURABILITY, "target/undostore.py", "a crash finds `open` and no undo file",
        '            self.directory.flush()\n            crashpoint("undo-create-durable")\n', '            crashpoint("undo-create-durable")\n', (STEPS,),
    ),
    Mutant(
        "number of batches not flushed", DURABILITY, "target/undostore.py", "nobody misses a lost batch of a retained sync point",
        '            write_all(descriptor, header.replace(batches=batches).pack(), COPY_OFFSET)\n            flush(descriptor, f"{self.directory.path}/{self.name(new)}")\n',
        "            write_all(descriptor, header.replace(batches=batches).pack(), COPY_OFFSET)\n", (STEPS,),
    ),
    Mutant(
        "unflushed batch put back", DURABILITY, "target/undostore.py", "R3: the power cut that tears the restore takes its before-image with it",
        '            flush(descriptor, f"{self.directory.path}/{self.name(new)}")\n            crashpoint("undo-restore-before")\n', '            crashpoint("undo-restore-before")\n', (STEPS,),
    ),
    Mutant(
        "undo of whatever attempt put back", IDENTITY, "target/undostore.py", "before-images of another attempt",
        "if header.base_id != base or (attempt is not None and header.attempt != attempt):", "if header.base_id != base:", (STEPS,),
    ),
    Mutant(
        "undo of whatever base put back", IDENTITY, "target/undostore.py", "before-images of another generation",
        "if header.base_id != base or (attempt is not None and header.attempt != attempt):", "if attempt is not None and header.attempt != attempt:", (STEPS,),
    ),
    Mutant(
        "undo of another volume put back", IDENTITY, "target/undostore.py", "INV-P: before-images of another volume",
        "if header.volume_id != self.volume_id or header.new_id != new:", "if header.new_id != new:", (STEPS,),
    ),
    Mutant(
        "number of batches not told to views", DURABILITY, "target/view.py", "INV-K: a view shows what came after the sync point where a before-image is gone",
        "header.replace(batches=told or 0)", "header", ("flow/test_view.py::test_a_damaged_undo_file_is_an_error_of_the_older_point_only",),
    ),
    Mutant(
        "number of batches not told to attachments", DURABILITY, "nbd/process.py", "INV-K: an attachment shows what came after the sync point",
        "size=file.size, batches=file.batches)", "size=file.size)", ("flow/test_attach_server.py",),
    ),
    Mutant(
        "lost last batch not missed", DURABILITY, "target/undostore.py", "a sync point is shown of which a before-image is gone",
        "            if len(found) < (told or 0):\n", "            if False:\n", (MERGE,),
    ),
    Mutant(
        "before-images put back segment by segment", DURABILITY, "target/undoplaces.py", "of a leaf that two lanes logged a later content stays",
        "while waiting and (not taken or sign * due[waiting[-1]] < taken[0][0]):", "while waiting and not taken:", ("unit/test_undo_places.py",),
    ),
    Mutant(
        "batches missing from a segment that is read again", DURABILITY, "target/undoplaces.py", "a take-back leaves out what rotted meanwhile",
        "            if len(places) != self._counts[number]:\n                raise undo.RestoreError(errno.EBADMSG, start)\n", "",
        ("unit/test_undo_places.py::test_what_rots_between_two_looks_at_a_segment_is_missed",),
    ),
    # ---- merging ----
    Mutant(
        "merged undo not flushed before it takes the place", DURABILITY, "target/undomerge.py", "a power cut leaves no way back to a retained sync point",
        '            flush(descriptor, f"{self.store.directory.path}/{self._temporary}")\n', "", (STEPS,),
    ),
    Mutant(
        "newest before-image wins in a merge", DURABILITY, "target/undomerge.py", "an older sync point shows what came after it",
        "for new, base in reversed(list(zip(self.ids, self.ids[1:], strict=False))):", "for new, base in list(zip(self.ids, self.ids[1:], strict=False)):", (MERGE,),
    ),
    Mutant(
        "merge beyond the room there is", BOUNDS, "target/undomerge.py", "the undo limit is passed",
        "        if room < self.needed:\n", "        if False:\n", (MERGE,),
    ),
    # ---- rolling back ----
    Mutant(
        "rollback overwrites before its undo is flushed", DURABILITY, "target/rollback.py", "R3: a crash in a rollback finds no way back",
        '        flush(self._undo_fd, "undo file of the rollback")\n', "", (STEPS,),
    ),
    Mutant(
        "rollback logs after it overwrote", DURABILITY, "target/rollback.py", "R3: what is logged is what was put back",
        "                log.flush()\n                done += undo.restore(device_fd, descriptor, group, header.size, punch=True, is_file=is_file)\n",
        "                done += undo.restore(device_fd, descriptor, group, header.size, punch=True, is_file=is_file)\n                log.flush()\n", (STEPS,),
    ),
    Mutant(
        "copy of a sync point leaves what lay in its holes", IDENTITY, "target/rollback.py", "a device that was used holds old bytes between those of the sync point",
        "        for view, at in () if to_file else pieces(position, offset):\n", "        for view, at in ():\n", (COPY_OUT,),
    ),
    Mutant(
        "copy of a sync point leaves what lay behind its last data", IDENTITY, "target/rollback.py", "a device that was used holds old bytes at its end",
        "    for extent in (*data_extents(device_fd, size), Extent(size, 0)):\n", "    for extent in data_extents(device_fd, size):\n", (COPY_OUT,),
    ),
    Mutant(
        "copy of a sync point takes a device for a fresh file", IDENTITY, "target/rollback.py", "a device that was used holds old bytes where the sync point has zeroes",
        "            if not to_file or not is_zero(view):\n", "            if not is_zero(view):\n", (COPY_OUT,),
    ),
    # ---- groups ----
    Mutant(
        "group record dropped before all members", DURABILITY, "target/groupcommit.py", "after a crash some members are committed and others are not",
        "                if left:\n                    self.directory.write(", "                if not left:\n                    self.directory.write(", (GROUP,),
    ),
    Mutant(
        "group committed before its record", DURABILITY, "target/groupcommit.py", "after a crash some members are committed and others are not",
        "                    self.directory.write(name, _pack(group, decisions))  # the commit point of all\n", "                    pass\n", (GROUP,),
    ),
    Mutant(
        "damaged group record guessed from", DURABILITY, "target/groupcommit.py", "an attempt that may be committed is put back",
        "        if self.damaged is not None and is_open:\n", "        if False:\n", (GROUP,),
    ),
    Mutant(
        "group record believed without its digest", DURABILITY, "target/groupcommit.py", "INV-C: a flip in a record commits another attempt",
        '    if head != f"{MAGIC} {hasher.hash(body).hex()}".encode():\n', "    if not head.startswith(MAGIC.encode()):\n", (GROUP,),
    ),
    # ---- maps ----
    Mutant(
        "map believed without its digest", DURABILITY, "digestmap.py", "INV-C: a flip in a map hides changes",
        "if row.digest != header.digest or not digesttree.are_states(states):", "if not digesttree.are_states(states):", (MAP,),
    ),
    Mutant(
        "map of another volume believed", IDENTITY, "digestmap.py", "INV-P: leaves are left out by the map of another volume",
        "if (header.volume_id, header.size, header.leaf_size, header.granule_size) != ours:", "if (header.size, header.leaf_size, header.granule_size) != ours[1:]:", (MAP,),
    ),
    Mutant(
        "whatever is pending folded", IDENTITY, "digestmap.py", "a map of a generation that was not committed",
        "if self.pending is None or self.pending.tag != bytes(new):", "if self.pending is None:", (MAP,),
    ),
    Mutant(
        "checkpoint of another generation believed", IDENTITY, "digestmap.py", "a first run claims what an earlier one applied",
        "return content if isinstance(content, Content) and content.tag == bytes(new) else None", "return content if isinstance(content, Content) else None", (MAP,),
    ),
    # ---- sync points ----
    Mutant(
        "floor of the target ignored", DURABILITY, "retention.py", "a source takes away what the target's administrator keeps",
        "wanted = fixed | floor | set(", "wanted = fixed | set(", (RETENTION,),
    ),
    Mutant(
        "floor by the clock on the wall", DURABILITY, "target/ages.py", "a clock that is set ahead once ends what keep_for protects",
        "        self._ages[name] = Age(self._kept_ns, time_ns, sure)", "        self._ages[name] = Age(wall_ns, time_ns, sure)", (AGES,),
    ),
    Mutant(
        "time of day believed though it jumped", DURABILITY, "target/ages.py", "a clock that is wrong at one commit takes a point of the grid away",
        "            sure = went_ns - slack_ns <= said_ns and (was_off or said_ns <= went_ns + slack_ns)\n", "", (AGES,),
    ),
    Mutant(
        "time that a host was off counts as what its clock says", DURABILITY, "target/ages.py", "a wrong clock at the start of a host ends what keep_for protects",
        "        if boot == self._boot:\n", "        self._kept_ns += max(0, time.time_ns() - self._last.wall_ns) if boot != self._boot and self._last else 0\n        if boot == self._boot:\n", (AGES,),
    ),
    Mutant(
        "points of unknown age thinned by the grid", DURABILITY, "retention.py", "the loss of points.json deletes what it told the ages of",
        "        wanted |= {i for i in unsure if ages[i] < rule.periods * rule.seconds * 1e9}\n", "", (AGES,),
    ),
    Mutant(
        "pinned sync point given up", DURABILITY, "retention.py", "what is attached or read goes away under its reader",
        "if point.id in pinned}", "if False}", (RETENTION,),
    ),
    Mutant(
        "more sync points than there may be", BOUNDS, "retention.py", "INV-B: undo files without end",
        "    while len(kept) > POINTS_MAX + 1:\n", "    while False:\n", (RETENTION,),
    ),
    # ---- devices ----
    Mutant(
        "device not held exclusively", DURABILITY, "devicesafety.py", "R1: somebody else writes it, or a dead predecessor still does",
        "return device.open_direct(info, os.O_RDWR | os.O_EXCL)", "return device.open_direct(info, os.O_RDWR)", (CLAIM,),
    ),
    Mutant(
        "image file not locked", DURABILITY, "devicesafety.py", "R1: two agents write one image",
        "        fcntl.flock(fd, fcntl.LOCK_EX | fcntl.LOCK_NB)\n", "        fcntl.flock(fd, fcntl.LOCK_SH | fcntl.LOCK_NB)\n", (CLAIM,),
    ),
    Mutant(
        "device that was exchanged taken", IDENTITY, "devicesafety.py", "INV-P: another device has the name by now",
        "        device.check_unchanged(info, fd)\n        _check_users", "        _check_users", (CLAIM,),
    ),
    Mutant(
        "source taken for a target", IDENTITY, "devicesafety.py", "INV-P: a device is copied over itself", "    if how:\n        raise Refused(\n            f\"source", "    if False:\n        raise Refused(\n            f\"source", (SAFETY,)
    ),
    Mutant(
        "mounted device overwritten", DURABILITY, "devicesafety.py", "INV-P: a filesystem in use is written under its feet",
        "    _check_unused(target, wait_seconds)\n    _check_size", "    _check_size", (SAFETY,),
    ),
    Mutant(
        "who came while a device was waited for overlooked", DURABILITY, "devicesafety.py", "INV-P: a filesystem that was mounted meanwhile is written under its feet",
        "        _check_users(info)  # who came", "        pass  # who came", (f"{SAFETY}::test_who_comes_by_another_device_over_the_same_bytes_while_it_is_waited_for_is_found",),
    ),
    Mutant(
        "target of a copy not judged when it is held", DURABILITY, "oneshot/target.py", "what somebody wrote meanwhile is taken for what the last copy left",
        "            self._judge()  # again", "            pass  # again", ("unit/test_oneshot.py",),
    ),
    Mutant(
        "device that the kernel still holds refused at once", LIVENESS, "devicesafety.py", "a copy that follows a killed one is told that its target is in use",
        "        if now - began >= wait_seconds or ", "        if now >= began or ",
        (f"{SAFETY}::test_a_device_that_the_kernel_lets_go_of_in_a_moment_is_waited_for",),
    ),
    Mutant(
        "device that is held taken after the wait", DURABILITY, "devicesafety.py", "INV-P: a device that something has claimed is written",
        "seen and now - seen >= OPEN_S):\n            raise _in_use(target)\n", "seen and now - seen >= OPEN_S):\n            return\n",
        (f"{SAFETY}::test_a_device_that_the_kernel_holds_for_good_is_in_use",),
    ),
    Mutant(
        "target one sector too small taken", BOUNDS, "devicesafety.py", "the end of the source has no place",
        "    if target.size < size_needed:\n", "    if target.size + 512 < size_needed:\n", (SAFETY,),
    ),
    Mutant(
        "signature overlooked", DURABILITY, "devicesafety.py", "what somebody else keeps on a device is overwritten",
        "    if not overwrite and not known:\n", "    if not overwrite and known:\n", ("system/test_device_signature.py",),
    ),
    Mutant(
        "another device taken for the volume", IDENTITY, "device.py", "INV-P: a disk with another serial number has the name by now",
        "for name, value in stored.items() if now.get(name) != value]", "for name, value in stored.items() if name in now and now[name] != value]", ("system/test_device.py",),
    ),
)  # fmt: skip
