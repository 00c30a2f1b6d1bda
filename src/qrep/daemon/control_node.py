"""Requests about the agent itself: what it is, its status, its files, its tasks and its events."""

import json
from datetime import datetime

from starlette.concurrency import run_in_threadpool
from starlette.responses import StreamingResponse

from qrep.config import check as check_config
from qrep.daemon.status import status
from qrep.errors import UsageError

WAIT_MAX = 20.0  # seconds a long poll lasts at most


def add(requests, node):
    requests.simple("/node", "GET", lambda request: node.as_dict())
    requests.simple("/status", "GET", lambda request: status(node, request.query_params.getlist("job")))
    requests.simple("/check", "GET", lambda request: {"problems": [problem.as_dict() for problem in check_config(node.config.directory)]})
    requests.simple("/tasks/{id}", "GET", lambda request: _task(node, request))

    @requests.route("/events", "GET")
    async def events(request):
        query = request.query_params
        try:
            since = datetime.fromisoformat(query["since"]).timestamp() if "since" in query else 0.0
            after = int(query.get("after", "0"))
        except ValueError:
            raise UsageError("since is not an ISO time, or after is not a number") from None
        job, follow = query.get("job"), query.get("follow") == "1"
        return StreamingResponse(_events(node, after, since, job, follow, request), media_type="application/jsonl")


def _task(node, request):
    found = node.tasks.get(request.path_params["id"])
    try:
        wait = float(request.query_params.get("wait", "0"))
    except ValueError:
        raise UsageError("wait is not a number of seconds") from None
    found.wait(max(0.0, min(wait, WAIT_MAX)))
    return found.as_dict()


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
