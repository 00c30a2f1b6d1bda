"""Agents with one of their checks taken out, for canaries: a directory with a `sitecustomize` that both processes of an agent load before anything else."""

from pathlib import Path

# name: (what is patched, as Python; the test that must notice)
S, X = "tests/system/", "tests/security/"
SABOTAGE = {
    "the pin is not compared": (
        """
        from qrep.daemon import tls
        def accept(stream, peers):
            stream.do_handshake(); stream.settimeout(None)
            return sorted(peers)[0] if peers else "site-a", stream.selected_alpn_protocol()
        tls.accept = accept
        """,
        f"{X}test_certificates.py::test_a_key_that_was_replaced_is_worth_nothing_from_then_on",
    ),
    "TLS 1.2 is spoken": (
        """
        import ssl
        from qrep.daemon import tls
        made = tls.server_context
        def server_context(*arguments):
            context = made(*arguments); context.minimum_version = ssl.TLSVersion.TLSv1_2
            return context
        tls.server_context = server_context
        """,
        f"{S}test_agent_port_strangers.py::test_tls_1_2_even_with_a_pinned_key",
    ),
    "whose pair it is, is not asked": (
        """
        from qrep.daemon.sessions import Sessions
        def _admit(self, hello, peer):
            pair = self.node.grants.pairs()[0]
            return self.node.volumes.get(pair["volume"]).replica(), pair
        Sessions._admit = _admit
        """,
        f"{S}test_agent_port_peers.py::test_a_hello_for_a_job_that_is_not_this_peers",
    ),
    "a pair is a name's": (
        """
        from qrep.daemon.pairs import Pairs
        Pairs.lives = lambda self, pair: True
        """,
        f"{X}test_pair_keys.py::test_a_host_of_the_same_name_and_another_key_has_no_say_in_a_pair_and_the_volume_is_free_again",
    ),
    "a refused Hello makes way": (
        """
        from qrep.protocol.target_requests import TargetRequests
        TargetRequests.supersedes = lambda self, hello: True
        """,
        f"{X}test_pair_keys.py::test_a_hello_that_is_refused_does_not_end_the_session_that_is_going",
    ),
    "files are made for everybody": (
        """
        import os
        os.umask(0)
        made = os.open
        os.open = lambda path, flags, mode=0o777, **more: made(path, flags, 0o644 if mode == 0o600 and "node.key" not in str(path) else mode, **more)
        """,
        f"{S}test_agent_privacy.py::test_nothing_secret_is_shown_and_everything_kept_is_private",
    ),
    "the front keeps its rights": (
        """
        from qrep._native import sandbox
        sandbox.enter = lambda **wanted: {"landlock": 0, "empty_root": False, "unprivileged": False}
        """,
        f"{S}test_agent_front.py::test_the_front_has_no_rights_no_files_and_no_devices_and_the_engine_no_network",
    ),
    "there is room for any number of strangers": (
        """
        from qrep.daemon.halfopen import HalfOpen
        HalfOpen.add = lambda self, stream, host: self._sockets.setdefault(stream, host)
        """,
        f"{S}test_agent_port_strangers.py::test_connections_that_only_sit_there_do_not_stop_a_run",
    ),
    "any token is a good one": (
        """
        from qrep.protocol.transport import Rendezvous
        good = Rendezvous.deliver
        def deliver(self, token, make, fits=lambda owner: owner is None):
            index = good(self, token, make, fits)
            return index if index is not None else (make(0), 0)[1]
        Rendezvous.deliver = deliver
        """,
        f"{S}test_agent_port_peers.py::test_a_join_with_a_wrong_token",
    ),
    "a session that goes on is not asked whether it still may": (
        """
        from qrep.daemon.sessions import Sessions
        Sessions.expel_refused = lambda self: None
        """,
        f"{X}test_accept_taken_back.py::test_a_session_of_a_peer_that_is_not_accepted_any_more_ends_at_once",
    ),
    "a pair that is written once takes a volume with sync points": (
        """
        from qrep.daemon.once import Once
        Once.check = staticmethod(lambda volume, where: None)
        """,
        f"{S}test_agent_copy_over_points.py::test_a_device_that_was_away_when_the_agent_started_does_not_hide_what_it_holds",
    ),
    "who asks at the local socket is not looked at": (
        """
        from qrep.daemon import service
        service.peer_allowed = lambda connection: True
        """,
        f"{S}test_agent_privacy.py::test_a_socket_that_someone_opened_to_all_still_serves_root_only",
    ),
    "what a path is said to be is not compared": (
        """
        from qrep.daemon.sessions import Sessions
        Sessions.check_trust = lambda self, peer, plain: None
        """,
        f"{S}test_agent_port_plain.py::test_a_source_that_asks_for_plain_where_this_host_does_not_trust_the_path_is_refused",
    ),
}  # fmt: skip


def directory_of(name, scratch):
    """A directory to be put before PYTHONPATH."""
    import textwrap

    place = Path(scratch, "sabotage")
    place.mkdir(exist_ok=True)
    body = textwrap.indent(textwrap.dedent(SABOTAGE[name][0]), "    ")
    # Only in processes of an agent: the test itself keeps its checks.
    (place / "sitecustomize.py").write_text(
        "import sys\nargv = getattr(sys, 'orig_argv', [])\n"
        "if 'daemon' in argv or 'qrep.daemon.front.process' in argv:\n" + body
    )
    return place
