"""What each kind of attack is tested by: the rows of the threat model's table, and the tests (pytest nodes, or files) that are them.

A node without parameters stands for all of its cases. tests/security/test_rows.py holds that every one of them is there; campaign/h17_security.py runs
them.
"""

S, U, N, X = "tests/system/", "tests/unit/", "tests/native/", "tests/security/"
STRANGERS, PEERS, PLAIN = f"{S}test_agent_port_strangers.py", f"{S}test_agent_port_peers.py", f"{S}test_agent_port_plain.py"

ROWS = {
    "who may not connect: plaintext, TLS 1.2, another key, another pair, an expired certificate, the same name, an old pin": (
        f"{STRANGERS}::test_a_plaintext_client", f"{STRANGERS}::test_tls_1_2_even_with_a_pinned_key", f"{STRANGERS}::test_a_key_that_is_not_pinned",
        f"{STRANGERS}::test_a_certificate_with_the_name_and_serial_of_a_pinned_one_and_another_key",
        f"{STRANGERS}::test_a_pinned_key_that_does_not_say_what_it_wants", f"{STRANGERS}::test_a_host_that_was_set_up_anew_is_not_the_one_that_was_pinned",
        f"{PEERS}::test_a_hello_for_a_job_that_is_not_this_peers", f"{X}test_certificates.py", f"{X}test_pair_keys.py", f"{X}test_rotation.py",
    ),
    "who stands in between: strip, inject, truncate, replay, splice": (
        f"{X}test_middle.py", f"{PLAIN}::test_who_stands_on_the_wire_and_changes_frames_writes_nothing",
        f"{PLAIN}::test_frames_of_an_earlier_session_are_refused_in_a_later_one", f"{PLAIN}::test_a_token_that_is_not_good_opens_nothing",
        f"{PLAIN}::test_a_source_that_asks_for_plain_where_this_host_does_not_trust_the_path_is_refused",
        f"{PLAIN}::test_nothing_of_control_or_questions_is_plain",
    ),
    "who listens": (f"{X}test_wiretap.py",),
    "who floods: connections, slow ones, lengths, tiny messages, a peer that never reads, decompression bombs": (
        f"{STRANGERS}::test_connections_that_only_sit_there_do_not_stop_a_run", f"{S}test_agent_front.py::test_two_thousand_connections_at_the_port_cost_little_and_a_run_goes_on",
        f"{STRANGERS}::test_a_handshake_may_take_ten_seconds_and_no_longer", f"{PEERS}::test_first_bytes_that_are_no_message",
        f"{N}test_target_packed.py::test_what_does_not_unpack_to_what_was_declared_is_refused_and_nothing_is_written",
        f"{N}test_target_packed.py::test_a_frame_that_unpacks_to_more_than_the_limit_of_this_session_is_refused", f"{X}test_flood.py",
    ),
    "a source with a good key that is hostile": (
        f"{X}test_hostile_source.py", f"{N}test_target_hostile.py::test_a_sealed_header_that_lies_is_refused_before_its_body_is_read",
        f"{PEERS}::test_a_join_with_a_wrong_token", f"{PEERS}::test_a_join_with_a_used_token_and_lanes_of_a_session_that_is_over",
        f"{PEERS}::test_a_pair_that_cannot_be", f"{PEERS}::test_what_a_peer_is_told_of_volumes_it_may_not_use_is_nothing",
        f"{S}test_agent_stolen_key.py", f"{U}test_asks.py", f"{U}test_role_recovery.py",
        f"{U}test_retention.py::test_a_burst_of_runs_never_pushes_out_what_the_floor_protects",
        f"{X}test_accept_taken_back.py", f"{S}test_agent_copy_over_points.py",
    ),
    "a target that is hostile": (
        f"{X}test_hostile_target.py", f"{U}test_verify_hostile.py", f"{U}test_source_machine.py::test_settle_believes_nothing_when_the_target_holds_another_generation",
        f"{U}test_source_machine.py::test_a_state_that_is_not_of_this_session_ends_the_connection",
        f"{U}test_source_machine.py::test_an_applied_list_that_does_not_fit_the_volume_ends_the_connection",
        f"{U}test_source_machine.py::test_a_target_that_always_knows_a_higher_epoch_is_not_followed_for_ever",
        f"{S}test_agent_verify.py::test_planted_damage_is_found_leaf_by_leaf",
    ),
    "another user of the host": (
        f"{X}test_local_user.py", f"{S}test_agent_privacy.py", f"{U}test_audit.py",
        f"{S}test_snapshot_backends.py::test_what_somebody_puts_in_the_place_of_a_snapshot_is_not_read_mapped_or_removed",
        f"{S}test_snapshot_backends.py::test_what_somebody_puts_in_the_place_of_the_image_is_not_cloned_and_hangs_nobody",
        "tests/flow/test_runs.py::test_the_owner_of_an_images_directory_has_nothing_else_replicated",
    ),
    "what the processes may do": (
        f"{S}test_agent_front.py::test_the_front_has_no_rights_no_files_and_no_devices_and_the_engine_no_network", f"{X}test_processes.py",
        f"{N}test_sandbox.py", f"{N}test_ring_native.py", f"{S}test_unit_file.py::test_it_is_rated_as_well_protected",
    ),
    "names and files that are none": (f"{X}test_names.py", f"{U}test_config.py::test_a_bad_name_reaches_no_file", f"{U}test_config.py::test_a_file_that_is_no_file_is_refused_and_never_hangs"),
    "devices that are somebody's": (
        f"{S}test_agent_refused_targets.py", f"{S}test_agent_refused_devices.py::test_source_and_target_that_are_the_same_storage",
        f"{S}test_device_signature.py::test_a_signature_is_named_and_taken_only_when_the_operator_says_so",
        f"{S}test_device_safety.py::test_a_partition_and_its_disk_are_the_same_device_but_two_partitions_are_not",
        f"{S}test_device_safety.py::test_the_loop_device_of_an_image_and_the_image_are_the_same_device",
    ),
    "what it is made of: dependencies, sources, libraries": (f"{X}test_dependencies.py", f"{X}test_lint.py", f"{X}test_build.py"),
}  # fmt: skip
NODES = tuple(node for nodes in ROWS.values() for node in nodes)
