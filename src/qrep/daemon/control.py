"""The local API: HTTP/JSON on the unix socket (docs/API.md). Every handler runs in a worker thread and calls the node.

This file is the plumbing; the requests themselves are in control_node.py, control_volumes.py, control_peers.py, control_shapes.py, control_jobs.py and so on.
"""

import json

from starlette.applications import Starlette
from starlette.concurrency import run_in_threadpool
from starlette.exceptions import HTTPException
from starlette.responses import JSONResponse
from starlette.routing import Route

from qrep.daemon import (
    control_attach,
    control_clones,
    control_connections,
    control_jobs,
    control_node,
    control_paths,
    control_peers,
    control_roles,
    control_shapes,
    control_volumes,
)
from qrep.errors import QrepError, UsageError

BODY_MAX = 64 << 10  # bytes of a request
STATUS = {2: 400, 4: 502, 5: 409, 7: 404, 8: 504}  # by exit code; else 500
PARTS = (
    control_node, control_volumes, control_peers, control_shapes, control_jobs, control_clones, control_paths, control_connections, control_roles, control_attach,
)  # fmt: skip


async def _body(request, required, optional=None):
    """The JSON object of a request: exactly the known keys, each of its type."""
    data = b""
    async for part in request.stream():
        data += part
        if len(data) > BODY_MAX:
            raise UsageError(f"a request body of more than {BODY_MAX} bytes")
    try:
        value = json.loads(data or b"{}")
    except (ValueError, RecursionError) as err:  # lists in lists in lists
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


class Requests:
    """The requests that one part adds: `add(requests, node)` of its module calls these."""

    def __init__(self):
        self.routes = []

    def route(self, path, method, below="/v1"):
        """Decorator of an async handler(request) that makes its own response."""

        def add(handler):
            self.routes.append(Route(f"{below}{path}", handler, methods=[method]))
            return handler

        return add

    def simple(self, path, method, action):
        """action(request) -> what is answered as JSON."""

        async def handler(request):
            return JSONResponse(await run_in_threadpool(action, request))

        self.route(path, method)(handler)

    def with_body(self, path, method, required, optional, action):
        """action(path parameters, body) -> what is answered as JSON. required, optional: the known fields and their types."""

        async def handler(request):
            body = await _body(request, required, optional)
            return JSONResponse(await run_in_threadpool(action, request.path_params, body))

        self.route(path, method)(handler)


def routes(node):
    requests = Requests()
    for part in PARTS:
        part.add(requests, node)
    return requests.routes


def application(node):
    handlers = {QrepError: _on_error, OSError: _on_system_error, HTTPException: _on_http}
    return Starlette(routes=routes(node), exception_handlers=handlers)
