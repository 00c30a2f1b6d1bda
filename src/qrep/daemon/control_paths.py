"""Requests about the paths of jobs."""

from qrep.daemon import pathedit
from qrep.errors import NotFound
from qrep.settings import AUTO


def add(requests, node):
    requests.simple("/paths", "GET", lambda request: [path for _name, runner in node.jobs.all() if runner.paths for path in runner.paths.shown()])
    requests.with_body(
        "/jobs/{name}/paths", "POST", {"to": str}, {"from": str, "dry_run": bool},
        lambda path, body: pathedit.add(node, path["name"], body.get("from", AUTO), body["to"], body.get("dry_run", False)),
    )  # fmt: skip
    requests.simple("/jobs/{name}/paths/{number}", "GET", lambda request: _shown(node, **request.path_params))
    requests.with_body(
        "/jobs/{name}/paths/{number}/use", "POST", {}, {"dry_run": bool},
        lambda path, body: pathedit.use(node, path["name"], _number(path["number"]), body.get("dry_run", False)),
    )  # fmt: skip
    requests.simple(
        "/jobs/{name}/paths/{number}", "DELETE",
        lambda request: pathedit.remove(node, request.path_params["name"], _number(request.path_params["number"])),
    )  # fmt: skip


def _shown(node, name, number):
    paths = pathedit.paths_of(node.jobs.get(name))
    paths.way(_number(number))
    connections = (node.jobs.get(name).progress() or {}).get("connections") or ()
    return paths.shown(connections)[_number(number) - 1]


def _number(text):
    if not text.isascii() or not text.isdigit() or len(text) > 4:
        raise NotFound(f"{text[:20]!r} is no number of a path", hint="qrep path lists them", code="no-such-path")
    return int(text)
