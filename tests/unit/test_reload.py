"""Every key of qrep.toml is either read where it is used, or known to need a restart."""

from qrep.daemon.reload import RESTART
from qrep.settings import Node

# Read through node.settings whenever they are needed, or handed on by Reload._take.
LIVE = {
    "node": {"path_hold"}, "limits": {"jobs_running", "pairs_local", "pairs_remote", "pairs_per_source", "rate", "open_generation"},
    "events": {"keep", "keep_for"}, "metrics": {"file", "every"},
}  # fmt: skip


def test_whoever_adds_a_key_says_what_a_reload_does_with_it():
    for section in Node.__struct_fields__:
        if section != "hooks":
            keys = set(type(getattr(Node(), section)).__struct_fields__)
            assert keys == LIVE[section] | set(RESTART.get(section, ())), f"[{section}]: add the key to reload.RESTART, or to LIVE here"
