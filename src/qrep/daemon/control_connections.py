"""Requests about the data connections of paths."""

from qrep.daemon import connectionedit
from qrep.errors import NotFound


def add(requests, node):
    requests.simple("/connections", "GET", lambda request: connectionedit.listed(node, request.query_params.get("job")))
    requests.with_body(
        "/jobs/{name}/paths/{number}/connections", "POST", {}, {"from": str, "to": str, "dry_run": bool},
        lambda path, body: connectionedit.add(
            node, path["name"], _number(path["number"], "path"), body.get("from"), body.get("to"), body.get("dry_run", False)
        ),
    )  # fmt: skip
    requests.with_body(
        "/jobs/{name}/paths/{number}/connections/{place}/remove", "POST", {}, {"dry_run": bool},
        lambda path, body: connectionedit.remove(
            node, path["name"], _number(path["number"], "path"), _number(path["place"], "connection"), body.get("dry_run", False)
        ),
    )  # fmt: skip


def _number(text, what):
    if not text.isascii() or not text.isdigit() or len(text) > 4:
        raise NotFound(f"{text[:20]!r} is no number of a {what}", hint="qrep connection lists them", code=f"no-such-{what}")
    return int(text)
