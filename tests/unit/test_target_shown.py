"""What is shown of a target volume whose run is over or is being taken back."""

from qrep.daemon.status import _state
from qrep.jobs.shown import left_out, what_to_do

PLACES = [{"offset": 4096, "size": 512}]


def found(phase, **changes):
    return {"session": None, "phase": phase, "restoring": None, "open": phase != "idle", "held": None} | changes


def test_a_rollback_shows_how_far_it_is():
    assert _state(found("recovering", restoring=(1 << 20, 4 << 20)))[1]["percent"] == 25.0
    state, progress = _state(found("recovering"))
    assert state == "restoring" and progress["phase"] == "restoring" and progress["percent"] is None
    assert _state(found("rolling"))[0] == "restoring"


def test_an_open_generation_without_a_session_is_degraded_where_blocks_are_missing():
    assert _state(found("open")) == ("stopped", None)
    assert _state(found("open", held={"source": PLACES, "target": []})) == ("degraded", None)
    assert _state(found("idle")) == ("idle", None)


def test_what_was_left_out_is_named_by_its_end():
    both = {"source": PLACES, "target": [{"offset": offset, "size": 512} for offset in range(0, 7 * 4096, 4096)]}
    text = left_out(both, "site-a", "db")
    assert text.startswith("site-a: 512 bytes at 4096 cannot be read; db: 512 bytes at 0, ") and text.endswith("and 2 more places cannot be written")
    assert what_to_do(both) == "repair or replace the source device and the target device"
    assert what_to_do({"source": PLACES, "target": []}) == "repair or replace the source device"
