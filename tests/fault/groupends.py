"""The two ends of a consistency group of two volumes as programs, for tests that kill them; started through ends.py.

    ends.py grouptarget STATE DEVICE...           prints a JSON line once it is ready: the ports, the status of each volume
    ends.py groupsource STATE PORTS KIND DEVICE...   one attempt of the group; prints the reports. KIND: none or reflink
    ends.py groupshared STATE PORTS IMAGE TIMES     as many runs of one image that start together as TIMES says, each to a target of its own
"""

import contextlib
import json
import os
import socket
import sys
import threading
from types import SimpleNamespace

from ends import GRANULE, LEAF, accept, connected, held, leave

from qrep import device
from qrep.copy import local_request
from qrep.daemon import asks
from qrep.daemon.groups import GroupAttempt
from qrep.daemon.joblist import named_tokens
from qrep.errors import QrepError, Unreachable
from qrep.jobs.sharedturn import SharedTurn
from qrep.jobs.slots import Slots
from qrep.protocol.transport import Channel, DataConnection, Rendezvous, join
from qrep.source.flow import Run
from qrep.source.shared import SharedSource, SharedTokens
from qrep.store import Directory
from qrep.target.groupcommit import GroupCommits
from qrep.target.volume import TargetVolume
from qrep.volumes.none import Live
from qrep.volumes.reflink import Reflink


def ids(number):
    """(job id, volume id) of a member."""
    return bytes([10 + number]) * 16, bytes([20 + number]) * 16


def grouptarget(state, *paths):
    with Directory(os.path.join(state, "groups")) as directory:
        groups = GroupCommits(directory)
        volumes = {}
        for number, path in enumerate(paths):
            volume_id = ids(number)[1]
            volumes[volume_id.hex()] = TargetVolume(
                device.inspect(path), os.path.join(state, f"target{number}"), volume_id=volume_id, leaf_size=LEAF, granule_size=GRANULE, sync_points=2,
                groups=groups,
            ).open()  # fmt: skip
        listeners = [socket.create_server(("127.0.0.1", 0)) for _ in (*paths, "questions")]
        before = held()
        ready = {"ports": [listener.getsockname()[1] for listener in listeners], "volumes": [volume.status() for volume in volumes.values()]}
        print(json.dumps(ready | {"records": len(groups.unsettled())}), flush=True)
        for volume, listener in zip(volumes.values(), listeners, strict=False):
            threading.Thread(target=serve, args=(volume, listener), daemon=True).start()
        threading.Thread(target=answer, args=(groups, volumes, listeners[-1]), daemon=True).start()
        leave(list(volumes.values()), before)


def serve(volume, listener):
    rendezvous = Rendezvous()
    while True:
        stream, _ = listener.accept()
        threading.Thread(target=accept, args=(volume, rendezvous, stream), daemon=True).start()


def answer(groups, volumes, listener):
    while True:
        stream, _ = listener.accept()

        def commit(question):
            members = [(volumes[one.volume_id], one.attempt, bytes.fromhex(one.new), one.epoch) for one in question.members]
            groups.commit(bytes.fromhex(question.id), question.group, members)
            return {}

        threading.Thread(target=answer_one, args=(stream, commit), daemon=True).start()


def answer_one(stream, commit):
    with contextlib.suppress(Unreachable, ConnectionError):  # as the agent does: it went away
        asks.answer(stream, commit)


def groupsource(state, ports, kind, *paths):
    ports = json.loads(ports)
    peer = SimpleNamespace(ask=lambda question: asks.ask(connected(ports[-1]), question))
    node = SimpleNamespace(slots=Slots(4), events=SimpleNamespace(add=lambda *_arguments, **_data: None), peers=SimpleNamespace(reach=lambda _name: peer))
    runners = {}
    for number, _path in enumerate(paths):
        job_id, volume_id = ids(number)
        runners[f"job{number}"] = SimpleNamespace(settings=SimpleNamespace(id=job_id.hex(), target_volume=volume_id.hex(), target="site-b:x"))
    attempt, reports = GroupAttempt(node, "shop", runners), {}
    go([attempt.members[f"job{number}"] for number in range(len(paths))], paths, state, ports, kind, reports)


def groupshared(state, ports, image, times):
    """What the agent does with several jobs of one source, its start included."""
    jobs = {f"job{number}": ids(number)[0].hex() for number in range(int(times))}
    with Directory(state) as directory:
        tokens = SharedTokens(directory)
        tokens.settle(lambda job: named_tokens(os.path.join(state, "sources", job)))
        shared = SharedSource(tokens, "ab" * 16, jobs, SharedTurn(Slots(8)))
        go(list(shared.members.values()), [image] * int(times), state, json.loads(ports), "reflink", {}, tokens)


def go(links, paths, state, ports, kind, reports, tokens=None):
    threads = [
        threading.Thread(target=member, args=(link, number, path, state, ports[number], kind, reports, tokens))
        for number, (link, path) in enumerate(zip(links, paths, strict=True))
    ]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    print(json.dumps([reports[f"job{number}"] for number in range(len(paths))]), flush=True)
    if any("error" in report or "root" not in report for report in reports.values()):
        sys.exit(1)


def member(link, number, path, state, port, kind, reports, tokens=None):
    def connect(token, slot):
        index, stream = join(connected(port), token)
        return DataConnection(stream, index)

    job_id, volume_id = ids(number)
    request = local_request(
        path, state, job_id=job_id, volume_id=volume_id, backend=Reflink() if kind == "reflink" else Live(), leaf_size=LEAF, granule_size=GRANULE,
        frame_limit=64 << 10, timeout_s=0.0,
    )  # fmt: skip
    request.together, request.tokens = link, tokens
    name = f"job{number}"
    run = Run(request, lambda: Channel(connected(port), "target"), connect)
    try:
        link.joined(run)
        reports[name] = run.run().as_dict()
    except QrepError as err:
        reports[name] = err.as_dict()
        link.ended(err)
    else:
        link.ended(None)
