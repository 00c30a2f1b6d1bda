"""Mutants of the data plane in C. `-x` ends with the first test that notices, so the file most likely to is named first."""

from mutants.mutant import BOUNDS, DURABILITY, IDENTITY, LIVENESS, SECURITY, Mutant

ORDER, BATCHES, WIRE, SOURCE = "native/test_undo_order.py", "native/test_undo_batches.py", "native/test_wire.py", "native/test_source_lane.py"

MUTANTS = (
    # ---- before-images, then the device ----
    Mutant(
        "device written before the undo flush", DURABILITY, "_native/target_apply.c", "R3: a crash finds overwritten leaves whose before-images are lost",
        "            if (!qrep_undo_is_flushed(&lane->undo, frame->batch))\n                return 0;\n", "", (ORDER,),
    ),
    Mutant(
        "failed undo flush taken for a success", DURABILITY, "_native/undo_writer.c", "R2: what the kernel reported once is forgotten",
        "    if (result < 0)\n        qrep_flush_failed(", "    if (result < -4096)\n        qrep_flush_failed(",
        ("native/test_undo_order.py::test_a_failed_flush_of_the_undo_store_ends_the_process_before_it_overwrites",),
    ),
    Mutant(
        "undo believed as soon as its flush was asked for", DURABILITY, "_native/undo_writer.c", "R3: a batch is believed when its flush is submitted",
        "    writer->own_flush = 1;\n    writer->covered = writer->written;\n", "    writer->own_flush = 1;\n    writer->covered = writer->written;\n    set_flushed(writer, writer->covered);\n",
        (ORDER,),
    ),
    Mutant(
        "batches of a lane that was stopped not counted", DURABILITY, "_native/target_requests.c", "one of them stands in for a before-image that is lost later",
        "    if (lane->run->undo_fd >= 0)\n        settle_undo(lane);\n", "    if (lane->run->undo_fd >= 0 && lane->failed == -EDOM)\n        settle_undo(lane);\n",
        ("native/test_undo.py::test_every_batch_in_the_file_is_counted_and_flushed_when_lanes_were_stopped_in_the_middle",),
    ),
    Mutant(
        "views told of batches before their flush", DURABILITY, "_native/undo_writer.c", "a view of a sync point believes what a crash takes away",
        "    if (flushed <= writer->flushed)\n        return;\n    for (uint64_t number = writer->flushed; run->undo_reach && number < flushed; number++)",
        "    if (flushed <= writer->flushed)\n        return;\n    for (uint64_t number = writer->flushed; run->undo_reach && number < writer->built; number++)",
        ("native/test_undo_view.py::test_what_lanes_overwrite_is_still_read_as_it_was",),
    ),
    Mutant(
        "short read of a before-image taken for whole", DURABILITY, "_native/target_apply.c", "what is logged is not what the device held",
        "    if (frame->moved != frame->asked)\n        return qrep_target_fail(lane, QREP_FAILURE_SHRUNK, ENODATA, frame->header.granule);\n", "", ("native/test_undo.py::test_a_device_that_ended_before_what_is_overwritten_is_not_overwritten",),
    ),
    Mutant(
        "full undo store overlooked", DURABILITY, "_native/undo_writer.c", "undo space: batches go where there is no room",
        "        if (position > run->undo_limit || run->undo_limit - position < QREP_UNDO_SEGMENT_SIZE)\n            return -ENOSPC;\n", "", ("native/test_undo.py::test_a_full_undo_store_ends_the_run_and_the_way_back_is_whole",),
    ),
    Mutant(
        "unwritable blocks counted as written", DURABILITY, "_native/target_lane.c", "INV-Z: a granule is called whole of which blocks took no write",
        "if (pass->parts || qrep_bad_list_touches(&lane->run->bad, start, run->geometry.granule_size))", "if (pass->parts)", ("native/test_target_lane.py::test_blocks_that_take_no_write_are_named_by_the_sector_and_written_round",),
    ),
    Mutant(
        "granule in parts counted as whole", DURABILITY, "_native/target_lane.c", "INV-Z: what the source could not read is claimed",
        "if (pass->parts || qrep_bad_list_touches(", "if (qrep_bad_list_touches(", ("native/test_target_lane.py::test_a_granule_of_which_leaves_are_missing_is_applied_in_part_and_nothing_is_claimed_of_it",),
    ),
    Mutant(
        "end answered before all is written", DURABILITY, "_native/target_lane.c", "R12: the source prepares while writes are under way",
        "        if (lane->count == 0 && lane->ended)\n", "        if (lane->ended)\n", ("native/test_target_lane.py::test_full_frames_become_the_device_and_the_map",),
    ),
    Mutant(
        "granule left open at the end", BOUNDS, "_native/target_lane.c", "the last frame of a granule may be missing",
        "    if (lane->assembly.open) /* the last frame of a granule is missing */\n        return qrep_target_fail(lane, QREP_FAILURE_FRAME, EPROTO, lane->assembly.granule);\n",
        "", ("native/test_target_lane.py::test_an_end_inside_a_granule_is_refused",),
    ),
    Mutant(
        "two passes over one granule at a time", DURABILITY, "_native/target_receive.c", "the older of two writes of one place may land last",
        "        if (!pass->finished && pass->closed && pass->granule < end && first < pass->granule + pass->span)\n            return 1;\n", "",
        ("native/test_target_hostile.py::test_a_second_pass_is_computed_from_what_the_first_one_left",),
    ),
    # ---- what arrives ----
    Mutant(
        "data not compared with its digest", DURABILITY, "_native/target_verify.c", "INV-C: a flip on the way is written to the device",
        "    return memcmp(value, header->digest, sizeof value) ? -EILSEQ : 0;\n", "    return 0;\n", ("native/test_target_lane.py::test_full_data_that_is_not_what_was_announced_is_not_written",),
    ),
    Mutant(
        "digest of data compared in half", DURABILITY, "_native/target_verify.c", "R11: 128 bits of a digest are not enough",
        "memcmp(value, header->digest, sizeof value) ? -EILSEQ : 0;", "memcmp(value, header->digest, sizeof value / 2) ? -EILSEQ : 0;", ("native/test_target_lane.py::test_a_digest_counts_to_its_last_byte",),
    ),
    Mutant(
        "runs not compared with their digest", DURABILITY, "_native/target_verify.c", "INV-C: a flip on the way is written to the device",
        "    if (memcmp(digest, header->digest, sizeof digest))\n        return -EILSEQ;\n", "", ("native/test_target_lane.py::test_run_data_that_is_not_what_was_announced_is_not_written",),
    ),
    Mutant(
        "digest of runs compared in half", DURABILITY, "_native/target_verify.c", "R11: 128 bits of a digest are not enough",
        "    if (memcmp(digest, header->digest, sizeof digest))\n        return -EILSEQ;\n", "    if (memcmp(digest, header->digest, sizeof digest / 2))\n        return -EILSEQ;\n",
        ("native/test_target_lane.py::test_a_digest_counts_to_its_last_byte",),
    ),
    Mutant(
        "announced value not compared", DURABILITY, "_native/target_verify.c", "maps that have diverged go unnoticed",
        "if (announced && memcmp(result->value, header->granule_value, QREP_DIGEST_SIZE))", "if (0)", ("native/test_target_lane.py::test_a_granule_that_is_not_what_the_source_says_is_refused",),
    ),
    Mutant(
        "announced value compared in half", DURABILITY, "_native/target_verify.c", "R11: 128 bits of a digest are not enough",
        "if (announced && memcmp(result->value, header->granule_value, QREP_DIGEST_SIZE))", "if (announced && memcmp(result->value, header->granule_value, 16))", ("native/test_target_lane.py::test_a_digest_counts_to_its_last_byte",),
    ),
    Mutant(
        "half-written granule taken for known", DURABILITY, "_native/target_verify.c", "a resumed pass is computed from what is not there",
        "    if (assembly->mark == 1) /* an earlier pass left it half written */\n        return 0;\n", "", ("native/test_target_hostile.py::test_a_pass_after_one_in_parts_is_not_computed_from_what_was_before_both",),
    ),
    Mutant(
        "leaf taken twice in one pass", BOUNDS, "_native/target_verify.c", "two writes of one place are in flight at once",
        "    if (memchr(assembly->replaced + first, 1, count))\n        return -EPROTO;\n", "", ("native/test_target_lane.py::test_a_leaf_that_comes_twice_in_one_pass_is_refused_after_the_first",),
    ),
    Mutant(
        "frame tag not checked", SECURITY, "_native/wire.c", "on a plain path anybody makes frames",
        "    if (tags_differ(tag, header->tag) || header->magic", "    if (header->magic", (WIRE,),
    ),
    Mutant(
        "frame tag compared in half", SECURITY, "_native/wire.c", "R11: 128 bits of a tag are not enough",
        "    for (size_t i = 0; i < QREP_DIGEST_SIZE; i++)\n        difference |=", "    for (size_t i = 0; i < QREP_DIGEST_SIZE / 2; i++)\n        difference |=", (WIRE,),
    ),
    Mutant(
        "frame of another attempt taken", IDENTITY, "_native/wire.c", "R6: what an earlier attempt sent is applied to this one",
        "if (header->attempt != state->attempt || header->session != state->session)", "if (header->session != state->session)", ("native/test_wire.py::test_a_sound_frame_of_another_stream_is_stale",),
    ),
    Mutant(
        "frame of another session taken", IDENTITY, "_native/wire.c", "R6: what an older session sent is applied to this one",
        "if (header->attempt != state->attempt || header->session != state->session)", "if (header->attempt != state->attempt)", ("native/test_wire.py::test_a_sound_frame_of_another_stream_is_stale",),
    ),
    Mutant(
        "frame replayed", SECURITY, "_native/wire.c", "a frame may come twice, or one be left out",
        "if (header->connection != state->connection || header->sequence != state->sequence)", "if (header->connection != state->connection)", ("native/test_wire.py::test_a_sound_frame_of_another_stream_is_stale",),
    ),
    Mutant(
        "frame of another connection taken", IDENTITY, "_native/wire.c", "frames of one connection pass on another",
        "if (header->connection != state->connection || header->sequence != state->sequence)", "if (header->sequence != state->sequence)", ("native/test_wire.py::test_a_sound_frame_of_another_stream_is_stale",),
    ),
    Mutant(
        "zero span one granule too long", BOUNDS, "_native/wire.c", "zeroes are written past the end of the volume",
        "header->span > granules - header->granule)", "header->span > granules - header->granule + 1)", (WIRE,),
    ),
    Mutant(
        "granule one past the last", BOUNDS, "_native/wire.c", "a frame is about a granule that does not exist",
        "if (header->kind != QREP_FRAME_END && header->granule >= granules)", "if (header->kind != QREP_FRAME_END && header->granule > granules)", (WIRE,),
    ),
    Mutant(
        "run one leaf too long", BOUNDS, "_native/wire.c", "a run reaches past its granule",
        "first >= leaves || count > leaves - first)", "first >= leaves || count > leaves - first + 1)", (WIRE,),
    ),
    Mutant(
        "runs that overlap", BOUNDS, "_native/wire.c", "a leaf is in two runs of one frame",
        "if (count == 0 || first < end || first >= leaves", "if (count == 0 || first >= leaves", (WIRE,),
    ),
    Mutant(
        "copy of what does not travel", BOUNDS, "_native/wire.c", "a reference leads to bytes that nobody sent",
        "            if (!carry_data(runs, i, qrep_run_from(run), count))\n                return -EPROTO;\n", "", ("native/test_target_copies.py::test_a_copy_of_what_does_not_travel_before_it_in_its_frame_is_refused",),
    ),
    Mutant(
        "frame larger than agreed", BOUNDS, "_native/target_receive.c", "INV-B: a frame overruns the room that was made for it",
        "    if (rc == 0 && qrep_frame_leaf_bytes(header, &lane->wire.geometry) > lane->frame_limit)\n        rc = -EPROTO;\n", "", ("native/test_target_lane.py::test_a_frame_larger_than_was_agreed_is_refused",),
    ),
    # ---- the way back ----
    Mutant(
        "undo of another attempt put back", IDENTITY, "_native/disk.c", "before-images of an earlier attempt are taken for this one's",
        "if (batch->attempt != scan->attempt || memcmp(batch->base_id, scan->base_id, QREP_ID_SIZE))", "if (memcmp(batch->base_id, scan->base_id, QREP_ID_SIZE))", (BATCHES,),
    ),
    Mutant(
        "undo of another base put back", IDENTITY, "_native/disk.c", "before-images of another generation are taken for this one's",
        "if (batch->attempt != scan->attempt || memcmp(batch->base_id, scan->base_id, QREP_ID_SIZE))", "if (batch->attempt != scan->attempt)", (BATCHES,),
    ),
    Mutant(
        "batch at another place believed", IDENTITY, "_native/disk.c", "a misdirected write passes for the batch that belongs there",
        "batch->reserved || batch->position != position)", "batch->reserved)", (BATCHES,),
    ),
    Mutant(
        "before-image believed without its digest", DURABILITY, "_native/disk.c", "INV-C: a torn batch is put back",
        "    if (!same_digest(scan->segment + at + qrep_undo_payload_offset(batch->extent_count), batch->payload_size, batch->digest))\n        return -EBADMSG;\n", "",
        (BATCHES,),
    ),
    Mutant(
        "before-image put back without its digest", DURABILITY, "_native/undo_restore.c", "INV-C: what rotted since the scan is written to the device",
        "    return memcmp(digest, head->digest, sizeof digest) ? -EBADMSG : 0;\n", "    return 0;\n", ("native/test_undo.py::test_restoring_stops_at_a_batch_that_changed_and_goes_through_once_it_is_right",),
    ),
    Mutant(
        "lost flushed batch taken for the tail", DURABILITY, "_native/disk.c", "before-images that were flushed and are gone are not missed",
        "            if (scan->gap < (*found)->flushed && scan->damaged == QREP_UNDO_NO_PLACE)\n                scan->damaged = scan->gap;\n", "", (BATCHES,),
    ),
    Mutant(
        "extent past the end of the device", BOUNDS, "_native/disk.c", "a before-image is put back outside of the volume",
        "if (extent->offset > device_size || extent->size > device_size - extent->offset)", "if (extent->offset > device_size)", (BATCHES,),
    ),
    Mutant(
        "last before-image wins within a batch", DURABILITY, "_native/undo_restore.c", "a leaf that was logged twice goes back to what the attempt wrote",
        "    for (uint32_t i = head->extent_count; rc == 0 && i-- > 0;) {\n        if (extents[i].kind == QREP_UNDO_DATA)\n            payload -= extents[i].size;\n        rc = write_extent(",
        "    payload -= head->payload_size;\n    for (uint32_t i = 0; rc == 0 && i < head->extent_count; i++) {\n        if (i && extents[i - 1].kind == QREP_UNDO_DATA)\n            payload += extents[i - 1].size;\n        rc = write_extent(",
        ("native/test_undo.py::test_overlapping_extents_of_one_batch_are_restored_last_to_first",),
    ),
    Mutant(
        "restore reads on after an error", DURABILITY, "_native/undo_scan.c", "a segment that cannot be read is taken for an empty one",
        "            if (done[i].result < 0)\n                failed = (int)done[i].result;\n", "", ("native/test_undo.py::test_an_undo_file_that_cannot_be_read_is_not_an_empty_one",),
    ),
    Mutant(
        "superblock believed without its checksum", DURABILITY, "_native/disk.c", "INV-C: a torn sector is taken for a commit",
        "block->magic != QREP_SUPERBLOCK_MAGIC || !same_digest(block, offsetof(struct qrep_superblock, checksum), block->checksum)", "block->magic != QREP_SUPERBLOCK_MAGIC",
        ("unit/test_superblock_file.py", "native/test_disk.py"),
    ),
    Mutant(
        "newer records taken for ours", BOUNDS, "_native/disk.c", "what a later version wrote is acted upon, and written over",
        "    return version > QREP_DISK_VERSION || features ? -ENOTSUP : 0;\n", "    return 0;\n", ("native/test_disk.py",),
    ),
    Mutant(
        "older before-image loses in a view", DURABILITY, "_native/undo_view_read.c", "a view shows what came after the sync point",
        "return a->file != b->file ? a->file < b->file : a->sequence < b->sequence;", "return a->file != b->file ? a->file > b->file : a->sequence < b->sequence;",
        ("native/test_undo_view.py::test_the_oldest_before_image_counts_whatever_order_the_files_and_batches_tell",),
    ),
    Mutant(
        "lost last batch not missed by a view", DURABILITY, "_native/undo_view.c", "INV-K: a view shows what came after the sync point where a before-image is gone",
        "return rc == 0 && count < told ? -EBADMSG : rc;", "return told == UINT64_MAX ? -EBADMSG : rc;",
        ("native/test_undo_view.py::test_a_batch_that_its_file_is_said_to_have_and_that_is_not_there_is_found_when_it_is_added",),
    ),
    Mutant(
        "view reads under another epoch", IDENTITY, "_native/undo_view_read.c", "a view mixes generations while the list of undo files changes",
        "    if (atomic_load(view->epoch_now) != epoch)\n        return -ESTALE;\n    int rc = read_device(view, data, size, offset);\n    if (rc)\n        return rc;\n"
        "    /* The device first, then the epoch, then the marks: see undo_view.h. */\n    atomic_thread_fence(memory_order_seq_cst);\n    pthread_mutex_lock(&view->lock);\n"
        "    if (atomic_load(view->epoch_now) != epoch || view->epoch != epoch)\n",
        "    int rc = read_device(view, data, size, offset);\n    if (rc)\n        return rc;\n    pthread_mutex_lock(&view->lock);\n    if (view->epoch != epoch)\n",
        ("native/test_undo_view.py::test_a_read_under_another_epoch_says_so_and_reads_nothing",),
    ),
    Mutant(
        "end of a device taken for the rest of a transfer", DURABILITY, "_native/ring_step.c", "what a short transfer left out counts as read or written",
        "        return done(request, (int64_t)request->reached);\n", "        return done(request, (int64_t)request->size);\n",
        ("native/test_ring_disk.py::test_a_read_of_a_device_ends_short_at_its_end",),
    ),
    # ---- the map ----
    Mutant(
        "leaf page believed without its value", DURABILITY, "_native/leafpage.c", "R8: a stale page that is consistent with itself hides changes",
        "    return memcmp(merged, value, QREP_DIGEST_SIZE) == 0;\n", "    return 1;\n", ("native/test_source_leaves.py::test_a_stale_page_is_not_built_on",),
    ),
    Mutant(
        "leaf page compared in half", DURABILITY, "digesttree.py", "R11: 128 bits of a digest are not enough",
        "hasher.merge(page) == value else None", "hasher.merge(page)[:16] == value[:16] else None",
        ("unit/test_digestmap.py::test_a_leaf_page_is_believed_only_if_it_merges_to_the_value",),
    ),
    Mutant(
        "leaf digests compared in half", DURABILITY, "_native/compare.c", "R11: a changed leaf is left out whose digest begins the same",
        "    return ((left[0] ^ right[0]) | (left[1] ^ right[1]) | (left[2] ^ right[2]) | (left[3] ^ right[3])) != 0;\n",
        "    return ((left[0] ^ right[0]) | (left[1] ^ right[1])) != 0;\n", ("native/test_compare.py::test_runs_are_those_of_the_plain_comparison",),
    ),
    Mutant(
        "granule values compared in half", DURABILITY, "_native/source_hash.c", "R11: a changed granule is left out whose value begins the same",
        "memcmp(slot->value, base->base_values + slot->granule * QREP_DIGEST_SIZE, QREP_DIGEST_SIZE) == 0)",
        "memcmp(slot->value, base->base_values + slot->granule * QREP_DIGEST_SIZE, QREP_DIGEST_SIZE / 2) == 0)", ("native/test_source_lane.py::test_a_value_counts_to_its_last_byte",),
    ),
    Mutant(
        "unknown granule believed unchanged", DURABILITY, "_native/source_hash.c", "R9: a work item that is to send all leaves out what the map has",
        "    return unknown ? QREP_STATE_UNKNOWN : lane->run->base.base_states[granule];\n", "    return lane->run->base.base_states[granule];\n", (SOURCE,),
    ),
    Mutant(
        "unknown taken for zero", DURABILITY, "_native/source_hash.c", "R9: a granule of which nothing is known is left as it is where the source is zero",
        "if ((base_state(lane, granule, unknown) & QREP_STATE_MASK) == QREP_STATE_ZERO)", "if ((base_state(lane, granule, unknown) & QREP_STATE_MASK) != QREP_STATE_HASHED)",
        (SOURCE,),
    ),
    Mutant(
        "tail not looked at for zeroes", DURABILITY, "_native/compare.c", "data at the end of a leaf is taken for zeroes",
        "    for (; size; size--)\n        seen |= *data++;\n", "", ("native/test_compare.py",),
    ),
    Mutant(
        "states in the manifest left out", DURABILITY, "_native/wire.c", "R7: zeroes and data pass for each other",
        "{.granule = granule, .state = states[granule] & QREP_STATE_MASK};", "{.granule = granule};", ("native/test_wire.py::test_manifest_is_blake3_of_its_records",),
    ),
    Mutant(
        "manifest over what was sent in part", DURABILITY, "_native/source_send.c", "R7: a granule is announced whole of which leaves are missing",
        "if (batch->finishes && !(batch->slot && batch->slot->parts))", "if (batch->finishes)", (SOURCE,),
    ),
    # ---- the source ----
    Mutant(
        "unreadable leaves read as zeroes", DURABILITY, "_native/source_read.c", "INV-Z: what could not be read is invented",
        "            slot->missing[leaf] = 1;\n", "            slot->missing[leaf] = 0;\n", (SOURCE,),
    ),
    Mutant(
        "short read of a source taken for whole", DURABILITY, "_native/source_read.c", "INV-Z: a source that shrank is filled up with what lies in memory",
        "    if (slot->short_read)\n        return qrep_fail(base, QREP_FAILURE_SHRUNK, ENODATA, lane->lane, slot->granule);\n", "", (SOURCE,),
    ),
    Mutant(
        "bad sector overlooked in a salvage", DURABILITY, "_native/salvage.c", "INV-Z: the last sector of a halved range is not named",
        "    if (size <= salvage->sector_size) {\n        report(salvage, offset, size, error);\n        return 0;\n", "    if (size <= salvage->sector_size) {\n        return 0;\n",
        ("native/test_salvage.py::test_a_failing_range_is_halved_down_to_the_sector",),
    ),
    Mutant(
        "answer of whatever session taken", IDENTITY, "_native/source_send.c", "an END that this target did not seal ends a connection in order",
        "    int rc = qrep_frame_check(&lane->answer, &lane->incoming);\n", "    int rc = 0;\n", ("native/test_source_failures.py::test_an_answer_that_is_not_the_end_of_this_session_is_refused",),
    ),
    Mutant(
        "answer taken before the end was sent", DURABILITY, "_native/source_send.c", "a lane is done while frames are still to go",
        "(lane->answer.kind != QREP_FRAME_END || !lane->ending)", "(lane->answer.kind != QREP_FRAME_END)", ("native/test_source_failures.py::test_an_end_before_ours_is_refused",),
    ),
    Mutant(
        "rate ignored", LIVENESS, "_native/bucket.c", "a limited run takes the whole line",
        "    wide gained = (wide)elapsed_ns * bucket->rate_bytes_per_s + bucket->fraction;\n", "    wide gained = (wide)elapsed_ns * bucket->rate_bytes_per_s * 4 + bucket->fraction;\n",
        ("native/test_bucket.py::test_idle_at_12_5_GB_per_s_for_years_does_not_overflow", "native/test_bucket.py::test_exact_over_a_long_time",),
    ),
)  # fmt: skip
