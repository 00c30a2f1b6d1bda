"""Requests about the agent itself: what it is, its status, its files, its tasks and its events."""

import asyncio
import difflib
import json
import time
from datetime import datetime

from starlette.concurrency import run_in_threadpool
from starlette.responses import PlainTextResponse, StreamingResponse

from qrep.configcheck import check
from qrep.daemon import grants
from qrep.daemon.events import CODES, LEVELS
from qrep.daemon.status import status
from qrep.errors import Refused, UsageError

WAIT_MAX = 20.0  # seconds a long poll lasts at most
CANCEL_S = 5.0
METRICS_TYPE = "text/plain; version=0.0.4"
NEWS_S = 0.1  # how soon a follower hears of an event


def add(requests, node):
    requests.simple("/node", "GET", lambda request: node.as_dict())
    requests.simple("/status", "GET", lambda request: status(node, request.query_params.getlist("job")))
    requests.simple("/check", "GET", lambda request: {"problems": [problem.as_dict() for problem in problems_of(node)]})
    requests.simple("/tasks/{id}", "GET", lambda request: _task(node, request))
    requests.simple("/tasks/{id}", "DELETE", lambda request: _cancel(node, request))

    requests.with_body("/reload", "POST", {}, {"dry_run": bool}, lambda path, body: node.reload(dry_run=body.get("dry_run", False)))
    requests.simple("/metrics", "GET", lambda request: node.metrics.as_list())

    @requests.route("/metrics", "GET", below="")
    async def metrics(request):
        return PlainTextResponse(await run_in_threadpool(node.metrics.text), media_type=METRICS_TYPE)

    @requests.route("/events", "GET")
    async def events(request):
        after, wanted = events_wanted(request.query_params)
        return StreamingResponse(_events(node, after, wanted, request.query_params.get("follow") == "1", request), media_type="application/jsonl")


def events_wanted(query):
    """(after, the other arguments of EventLog.read) that a request asks for. Raises UsageError."""
    try:
        since = datetime.fromisoformat(query["since"]).timestamp() if "since" in query else 0.0
        after = int(query.get("after", "0"))
    except (ValueError, OverflowError):
        raise UsageError("since is not an ISO time, or after is not a number") from None
    if not 0 <= after < 1 << 63:
        raise UsageError("after is not the number of an event")
    wanted = {"since": since, "job": query.get("job"), "level": query.get("level"), "codes": query.getlist("code")}
    if wanted["level"] not in (None, *LEVELS):
        raise UsageError(f"no level {wanted['level']!r}", hint=f"levels: {', '.join(LEVELS)}")
    for code in wanted["codes"]:
        if code not in CODES:
            near = difflib.get_close_matches(code, CODES, 1)
            raise UsageError(f"no event has the code {code!r}", hint=f"did you mean {near[0]}?" if near else "docs/EVENTS.md lists them")
    return after, wanted


def problems_of(node):
    return check(node.config.directory, state_dir=node.state.path, event_codes=CODES) + grants.problems(node.state.path)


def _task(node, request):
    found = node.tasks.get(request.path_params["id"])
    try:
        wait = float(request.query_params.get("wait", "0"))
    except ValueError:
        raise UsageError("wait is not a number of seconds") from None
    found.wait(max(0.0, min(wait, WAIT_MAX)))
    return found.as_dict()


def _cancel(node, request):
    found = node.tasks.get(request.path_params["id"])
    cancel = found.cancel
    if cancel is None:
        raise Refused(f"{found.kind} {found.subject} is not ended this way", hint="qrep stop JOB ends what a job does", code="not-cancelled")
    cancel()
    found.wait(CANCEL_S)
    return found.as_dict()


async def _events(node, after, wanted, follow, request):
    """JSON lines; with follow for as long as the client listens. An empty line every WAIT_MAX seconds tells that we are here.

    Followers wait in the event loop: however many there are, they hold no thread.
    """
    told = time.monotonic()
    while True:
        events, position = await run_in_threadpool(node.events.read, after, **wanted)
        for event in events:
            yield json.dumps(event) + "\n"
            told = time.monotonic()
        if position > after and events:
            after = position
            continue
        after = position
        if not follow:
            return
        while node.events.last <= after:
            if node.stopping.is_set() or await request.is_disconnected():
                return
            if time.monotonic() - told > WAIT_MAX:
                yield "\n"
                told = time.monotonic()
            await asyncio.sleep(NEWS_S)
