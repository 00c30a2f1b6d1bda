"""A peer that speaks by hand: questions, and the control connection of a run, with the very key of an agent or with another one."""

import contextlib
import os

import msgspec
from intruder import admitted, hears, identity_of, read_exactly, read_message

from qrep._native import wire
from qrep.daemon import asks, tls
from qrep.protocol import messages as say


def job_of(agent, name="db"):
    """The file of a job of `agent`: its id, its volumes, its shape."""
    return msgspec.toml.decode((agent.config / "jobs" / f"{name}.toml").read_bytes())


def ask(agent, identity, question):
    """What `agent` answers to a question (asks.Answer); None if it closes instead."""
    stream = admitted(agent, identity, tls.ASK)
    body = msgspec.msgpack.encode(question)
    stream.sendall(len(body).to_bytes(4, "little") + body)
    said = hears(stream)
    return msgspec.msgpack.decode(said[4:], type=asks.Answer) if said else None


class Control:
    """A control connection to `target` for job `name` of `source`, with its key."""

    def __init__(self, source, target, name="db", identity=None):
        self.target, self.job = target, job_of(source, name)
        self.identity = identity or identity_of(source)
        self.stream = admitted(target, self.identity, tls.CONTROL)

    def hello(self, **changed):
        """Say Hello; what is answered. epoch: as far above those before as need be."""
        job = self.job
        fields = {
            "version_min": 1, "version_max": 1, "job_id": bytes.fromhex(job["id"]), "volume_id": bytes.fromhex(job["target_volume"]), "epoch": 900,
            "size": job["size"], "leaf_size": job["leaf"], "granule_size": job["granule"], "sector_size": 512, "plain": False, "features": [],
        }  # fmt: skip
        return self.say(say.Hello(**fields | changed))

    def say(self, message):
        self.stream.sendall(say.encode(message))
        return self.hear()

    def hear(self):
        """The next message but heartbeats; None: it was closed."""
        with contextlib.suppress(OSError, AssertionError):
            while True:
                message = read_message(self.stream)
                if not isinstance(message, say.Beat):
                    return message
        return None

    def close(self):
        self.stream.close()

    def __enter__(self):
        return self

    def __exit__(self, *_exception):
        self.close()


def commit_nothing(control, attempt=77):
    """A whole run in which nothing has changed: the Committed, with the session still there."""
    job, state = control.job, control.hello()
    began = control.say(say.Begin(state.committed, os.urandom(16), attempt, 1, 1 << 20))
    with contextlib.closing(admitted(control.target, control.identity, tls.DATA)) as data:
        data.sendall(say.encode(say.Join(token=began.tokens[0])))
        assert read_message(data) == say.Joined(index=0)
        geometry = wire.Geometry(job["size"], job["leaf"], job["granule"])
        data.sendall(wire.FrameWriter(geometry, attempt, began.session, 0, began.key).end())
        assert len(read_exactly(data, wire.HEADER_SIZE)) == wire.HEADER_SIZE, "the end was answered"
    granules = -(-job["size"] // job["granule"])
    count, manifest = wire.manifest(bytes(granules), bytes(granules), bytes(32 * granules))
    assert isinstance(control.say(say.Prepare(attempt, count, manifest, True, 0, "", "")), say.Prepared)
    return control.say(say.Commit(attempt))
