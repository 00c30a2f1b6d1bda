"""The local API: HTTP/JSON on the unix socket (docs/API.md). Every handler runs in a worker thread and calls the node."""

import json
from datetime import datetime

from starlette.applications import Starlette
from starlette.concurrency import run_in_threadpool
from starlette.exceptions import HTTPException
from starlette.responses import JSONResponse, StreamingResponse
from starlette.routing import Route

from qrep.config import check as check_config
from qrep.daemon.snapshots import copy_out, delete_point, list_points, plan_rollback, roll_back
from qrep.daemon.status import status
from qrep.errors import QrepError, UsageError
from qrep.jobs import look
from qrep.jobs.shown import job_dict

BODY_MAX = 64 << 10  # bytes of a request
WAIT_MAX = 20.0  # seconds a long poll lasts at most
STATUS = {2: 400, 4: 502, 5: 409, 7: 404, 8: 504}  # by exit code; else 500

VOLUME_FIELDS = {"snapshots": str, "undo": str, "undo_space": str, "leaf": str, "granule": str, "accept": list}
VOLUME_CHANGES = {"snapshots": str, "undo": str, "undo_space": str, "accept": list}
JOB_FIELDS = {"mode": str, "initial": str, "sync_points": int, "connections": int, "timeout": str}
JOB_CHANGES = {"initial": str, "sync_points": int, "connections": int, "timeout": str}


async def _body(request, required, optional=None):
    """The JSON object of a request: exactly the known keys, each of its type."""
    data = b""
    async for part in request.stream():
        data += part
        if len(data) > BODY_MAX:
            raise UsageError(f"a request body of more than {BODY_MAX} bytes")
    try:
        value = json.loads(data or b"{}")
    except ValueError as err:
        raise UsageError(f"the request is not JSON: {err}") from err
    fields = required | (optional or {})
    if not isinstance(value, dict):
        raise UsageError("the request is not a JSON object")
    for key, item in value.items():
        if key not in fields:
            raise UsageError(f"unknown field {key!r}", hint=f"known: {', '.join(fields) or 'none'}")
        if not isinstance(item, fields[key]) or (isinstance(item, bool) and fields[key] is int):
            raise UsageError(f"field {key!r} is not of type {fields[key].__name__}")
    missing = [key for key in required if key not in value]
    if missing:
        raise UsageError(f"missing field {missing[0]!r}")
    return value


def _answer(error):
    return JSONResponse({"error": error.as_dict()}, status_code=STATUS.get(error.exit_code, 500))


async def _on_error(_request, error):
    return _answer(error)


async def _on_system_error(_request, error):
    return _answer(QrepError(str(error), code="system", hint="see the agent's log; is its disk full?"))


async def _on_http(_request, error):
    return JSONResponse(
        {"error": UsageError(str(error.detail), code="no-such-request").as_dict()}, status_code=error.status_code
    )


def routes(node):
    """All routes. A handler that has nothing to wait for but the node is one line of `simple`."""
    found = []

    def route(path, method):
        def add(handler):
            found.append(Route(f"/v1{path}", handler, methods=[method]))
            return handler

        return add

    def simple(path, method, action):
        async def handler(request):
            return JSONResponse(await run_in_threadpool(action, request))

        route(path, method)(handler)

    def with_body(path, method, required, optional, action):
        async def handler(request):
            body = await _body(request, required, optional)
            return JSONResponse(await run_in_threadpool(action, request.path_params, body))

        route(path, method)(handler)

    simple("/node", "GET", lambda request: node.as_dict())
    simple("/status", "GET", lambda request: status(node, request.query_params.getlist("job")))
    simple(
        "/check",
        "GET",
        lambda request: {"problems": [problem.as_dict() for problem in check_config(node.config.directory)]},
    )

    def volume_dict(volume):
        return volume.as_dict(node.jobs.of_volume(volume.name))

    simple("/volumes", "GET", lambda request: [volume_dict(volume) for volume in node.volumes.all()])
    simple("/volumes/{name}", "GET", lambda request: volume_dict(node.volumes.get(request.path_params["name"])))
    with_body(
        "/volumes",
        "POST",
        {"name": str, "device": str},
        VOLUME_FIELDS,
        lambda path, body: volume_dict(node.volumes.add(body.pop("name"), body)),
    )
    with_body(
        "/volumes/{name}",
        "PATCH",
        {},
        VOLUME_CHANGES,
        lambda path, body: volume_dict(node.volumes.change(path["name"], body)),
    )
    simple("/volumes/{name}", "DELETE", lambda request: node.remove_volume(request.path_params["name"]))

    simple("/volumes/{name}/snapshots", "GET", lambda request: list_points(node, request.path_params["name"]))

    def rollback(path, body):
        action = plan_rollback if body.get("dry_run") else roll_back
        name, point = path["name"], body["point"]
        node.volumes.get(name).replica()
        return node.tasks.start("rollback", name, lambda task: action(node, task, name, point)).as_dict()

    with_body("/volumes/{name}/rollback", "POST", {"point": str}, {"dry_run": bool}, rollback)
    with_body(
        "/volumes/{name}/copy",
        "POST",
        {"point": str, "target": str},
        {"overwrite": bool},
        lambda path, body: node.tasks.start(
            "snapshot-copy", path["name"], lambda task: copy_out(node, task, path["name"], **body)
        ).as_dict(),
    )
    simple("/volumes/{name}/snapshots/{point}", "DELETE", lambda request: delete_point(node, **request.path_params))

    simple(
        "/peers",
        "GET",
        lambda request: [
            {"name": name, "addresses": peer.addresses, "fingerprint": peer.fingerprint}
            for name, peer in sorted(node.peers.all().items())
        ],
    )
    with_body("/peers/look", "POST", {"addresses": list}, {}, lambda path, body: node.peers.look(body["addresses"]))
    with_body(
        "/peers",
        "POST",
        {"name": str, "addresses": list, "fingerprint": str},
        {},
        lambda path, body: node.peers.add(**body),
    )
    simple("/peers/{name}", "DELETE", lambda request: node.remove_peer(request.path_params["name"]))

    simple("/jobs", "GET", lambda request: [job_dict(runner) for _name, runner in node.jobs.all()])
    with_body(
        "/jobs",
        "POST",
        {"name": str, "source": str, "target": str},
        JOB_FIELDS | {"overwrite": bool, "dry_run": bool},
        lambda path, body: node.jobs.create(**body),
    )
    simple("/jobs/{name}", "GET", lambda request: job_dict(node.jobs.get(request.path_params["name"])))
    with_body(
        "/jobs/{name}", "PATCH", {}, JOB_CHANGES, lambda path, body: job_dict(node.jobs.change(path["name"], body))
    )
    simple("/jobs/{name}", "DELETE", lambda request: node.jobs.delete(request.path_params["name"]) or {})
    simple("/jobs/{name}/start", "POST", lambda request: node.jobs.start(request.path_params["name"]).as_dict())
    simple("/jobs/{name}/stop", "POST", lambda request: {"text": node.jobs.get(request.path_params["name"]).stop()})

    def estimate(request):
        runner = node.jobs.get(request.path_params["name"])
        runner.begin("estimate")
        return node.tasks.start("estimate", runner.name, lambda task: look.estimate(runner, task)).as_dict()

    simple("/jobs/{name}/estimate", "GET", estimate)

    def verify(path, body):
        runner = node.jobs.get(path["name"])
        runner.begin("verify")
        return node.tasks.start(
            "verify", runner.name, lambda task: look.verify(runner, task, body.get("independent", False))
        ).as_dict()

    with_body("/jobs/{name}/verify", "POST", {}, {"independent": bool}, verify)

    def task(request):
        found = node.tasks.get(request.path_params["id"])
        try:
            wait = float(request.query_params.get("wait", "0"))
        except ValueError:
            raise UsageError("wait is not a number of seconds") from None
        found.wait(max(0.0, min(wait, WAIT_MAX)))
        return found.as_dict()

    simple("/tasks/{id}", "GET", task)

    @route("/events", "GET")
    async def events(request):
        query = request.query_params
        try:
            since = datetime.fromisoformat(query["since"]).timestamp() if "since" in query else 0.0
            after = int(query.get("after", "0"))
        except ValueError:
            raise UsageError("since is not an ISO time, or after is not a number") from None
        job, follow = query.get("job"), query.get("follow") == "1"
        return StreamingResponse(_events(node, after, since, job, follow, request), media_type="application/jsonl")

    return found


async def _events(node, after, since, job, follow, request):
    """JSON lines; with follow for as long as the client listens. An empty line every WAIT_MAX seconds tells that we are here."""
    while True:
        events = await run_in_threadpool(node.events.read, after, since, job)
        for event in events:
            after = event["id"]
            yield json.dumps(event) + "\n"
        if not events:
            if not follow or await request.is_disconnected() or node.stopping.is_set():
                return
            await run_in_threadpool(node.events.wait, after, 0.5)


def application(node):
    handlers = {QrepError: _on_error, OSError: _on_system_error, HTTPException: _on_http}
    return Starlette(routes=routes(node), exception_handlers=handlers)
