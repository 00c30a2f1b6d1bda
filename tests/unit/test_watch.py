"""The watch over data connections: a dead one is told from a closed window, a busy target and a slow link."""

import socket

from qrep.protocol import messages as say
from qrep.protocol.transport import DataConnection, TcpView, tcp_view
from qrep.source.watch import DEAD_S, STALLED_S, Watch

QUIET = {"read": 5, "hashed": 5, "granules_done": 1, "sent": 5}


def beat(busy="", received=0, written=0):
    return say.Beat(busy=busy, received=received, written=written, undo=0)


def view(unacked=0, probes=0, silent_s=0.0):
    return TcpView(unacked, probes, silent_s)


def looks(watch, seconds, make, *, start=0.0, counters=None, said=None):
    """The first thing that is found wrong in so many seconds, half a second apart, and when: (when, words), or None."""
    for step in range(int(2 * seconds) + 1):
        now = start + step / 2
        wrong = watch.look(now, [(0, make(now))], counters(now) if counters else {"sent": now}, said(now) if said else beat())
        if wrong:
            return now, wrong
    return None


def test_data_that_nobody_acknowledges_is_a_dead_connection_after_its_time():
    when, words = looks(Watch(0.0), 60, lambda now: view(unacked=3, silent_s=now))
    assert when == DEAD_S and "data connection 0 is dead" in words


def test_a_connection_that_was_idle_for_long_is_not_dead_when_it_sends_again():
    """Its last acknowledgement is a minute old when its first segment leaves."""
    assert looks(Watch(0.0), DEAD_S - 0.5, lambda now: view(unacked=1, silent_s=60 + now)) is None
    assert looks(Watch(0.0), 25, lambda now: view(unacked=1 if now < 1 else 0, silent_s=60 + now)) is None


def test_a_closed_window_whose_probes_are_answered_is_a_target_that_takes_its_time():
    assert looks(Watch(0.0), 100, lambda now: view(probes=1, silent_s=now % 20)) is None


def test_a_closed_window_whose_probes_are_not_answered_is_dead():
    assert looks(Watch(0.0), 100, lambda now: view(probes=2, silent_s=now)) is not None


def test_a_slow_connection_stays():
    """One acknowledgement every four seconds."""
    assert looks(Watch(0.0), 300, lambda now: view(unacked=5, silent_s=now % 4)) is None


def test_where_nothing_moves_at_either_end_the_run_is_stalled_after_its_time():
    when, words = looks(Watch(0.0), 100, lambda now: None, counters=lambda now: QUIET)
    assert when == STALLED_S and "nothing moved" in words


def test_a_busy_target_is_not_stalled_and_gets_the_whole_time_when_it_is_done():
    watch = Watch(0.0)
    when, _words = looks(watch, 200, lambda now: None, counters=lambda now: QUIET, said=lambda now: beat("FlushDevice" if now < 100 else ""))
    assert when >= 100 + STALLED_S - 0.5


def test_whatever_moves_at_one_end_shows_that_nothing_is_stalled():
    for moving in (lambda now: beat(received=int(now)), lambda now: beat(written=int(now))):
        assert looks(Watch(0.0), 100, lambda now: None, counters=lambda now: QUIET, said=moving) is None
    for name in QUIET:
        assert looks(Watch(0.0), 100, lambda now: None, counters=lambda now, name=name: QUIET | {name: now}) is None


def test_what_tcp_says_of_a_real_connection_is_read_from_the_right_places():
    with socket.create_server(("127.0.0.1", 0)) as server:
        near = socket.create_connection(server.getsockname())
        far, _ = server.accept()
    connection = DataConnection(near, 3)
    near.sendall(bytes(100_000))
    got = 0
    while got < 100_000:
        got += len(far.recv(1 << 16))
    far.sendall(b"x")
    near.recv(1)  # with it came the acknowledgement of all
    seen = connection.view()
    assert (seen.unacked, seen.probes) == (0, 0) and 0 <= seen.silent_s < 60
    connection.close()
    far.close()
    assert connection.view() is None


def test_what_is_not_tcp_has_no_account():
    one, other = socket.socketpair()
    assert tcp_view(one) is None
    one.close()
    other.close()
