"""An agent that is only its local API: a real server on a real unix socket, strict about what it is asked, scripted in what it answers."""

import http.server
import json
import re
import socketserver
import threading
from contextlib import contextmanager
from urllib.parse import parse_qs, unquote, urlsplit

SETTINGS = {
    "initial": str, "sync_points": int, "keep": str, "connections": int, "timeout": str, "shape": str, "schedule": str, "missed": str, "rpo": str,
    "verify_schedule": str, "verify_rate": str, "group": str, "nice": bool, "compress": str,
}  # fmt: skip
KEPT = {
    "snapshots": str, "snapshot_space": str, "freeze_before": list, "freeze_after": list, "freeze_timeout": str, "undo": str, "undo_space": str, "accept": list,
}  # fmt: skip

# (method, path): fields of the body: required, optional; None means that there must be no body
REQUESTS = {
    ("GET", "/status"): None, ("GET", "/node"): None, ("GET", "/events"): None, ("GET", "/check"): None, ("GET", "/metrics"): None, ("POST", "/reload"): ({}, {"dry_run": bool}),
    ("GET", "/volumes"): None, ("GET", "/volumes/{}"): None, ("DELETE", "/volumes/{}"): None,
    ("POST", "/volumes"): ({"name": str, "device": str}, {**KEPT, "leaf": str, "granule": str}),
    ("POST", "/volumes/create"): ({"name": str, "size": str, "in": str}, {**KEPT, "leaf": str, "granule": str, "dry_run": bool}),
    ("PATCH", "/volumes/{}"): ({}, KEPT),
    ("GET", "/volumes/{}/snapshots"): None, ("POST", "/volumes/{}/snapshots"): ({}, {"name": str, "dry_run": bool}),
    ("POST", "/volumes/{}/delete-point"): ({"point": str}, {"dry_run": bool}), ("POST", "/volumes/{}/thin"): ({}, {"dry_run": bool}),
    ("POST", "/volumes/{}/rollback"): ({"point": str}, {"dry_run": bool}),
    ("POST", "/volumes/{}/copy"): ({"point": str, "target": str}, {"overwrite": bool}),
    ("GET", "/peers"): None, ("DELETE", "/peers/{}"): None,
    ("POST", "/peers"): ({"name": str, "addresses": list, "fingerprint": str}, {"trusted": bool}), ("PATCH", "/peers/{}"): ({}, {"trusted": bool, "may_switch": bool}),
    ("POST", "/peers/{}/test"): ({}, {"seconds": int, "connections": list}), ("DELETE", "/tasks/{}"): None,
    ("POST", "/peers/look"): ({"addresses": list}, {}),
    ("GET", "/jobs"): None, ("GET", "/jobs/{}"): None, ("DELETE", "/jobs/{}"): None,
    ("POST", "/jobs"): ({"name": str, "source": str, "target": str},
                        {**SETTINGS, "from": str, "to": str, "mode": str, "overwrite": bool, "dry_run": bool}),
    ("PATCH", "/jobs/{}"): ({}, {**SETTINGS, "dry_run": bool}),
    ("POST", "/start"): ({"jobs": list}, {}), ("POST", "/jobs/{}/start"): ({}, {}), ("POST", "/jobs/{}/stop"): ({}, {}), ("GET", "/jobs/{}/estimate"): None,
    ("POST", "/jobs/{}/verify"): ({}, {"independent": bool, "repair": bool, "dry_run": bool, "rate": str}),
    ("POST", "/jobs/{}/promote"): ({}, {"force": bool, "dry_run": bool}), ("POST", "/jobs/{}/split"): ({}, {"dry_run": bool}),
    ("POST", "/jobs/{}/demote"): ({}, {"dry_run": bool}), ("POST", "/jobs/{}/failback"): ({}, {"swap": bool, "dry_run": bool}),
    ("POST", "/jobs/{}/restore"): ({"point": str}, {"discard": bool, "dry_run": bool}),
    ("POST", "/jobs/{}/resync"): ({"authoritative": str}, {"dry_run": bool}),
    ("GET", "/clones"): None, ("GET", "/clones/{}"): None, ("DELETE", "/clones/{}"): None, ("POST", "/clones/{}/start"): ({}, {}),
    ("POST", "/clones"): ({"source": str, "target": str}, {"name": str, "overwrite": bool, "dry_run": bool}),
    ("POST", "/clones/{}/convert"): ({}, {"dry_run": bool}), ("POST", "/jobs/{}/rebuild"): ({"target": str}, {"dry_run": bool}),
    ("GET", "/shapes"): None, ("GET", "/shapes/{}"): None, ("DELETE", "/shapes/{}"): None, ("GET", "/limit"): None,
    ("PATCH", "/shapes/{}"): ({}, {"peak": str, "hours": list, "off_peak": str, "dry_run": bool}),
    ("PATCH", "/limit"): ({"rate": str}, {"dry_run": bool}),
    ("GET", "/paths"): None, ("GET", "/jobs/{}/paths/{}"): None, ("DELETE", "/jobs/{}/paths/{}"): None,
    ("POST", "/jobs/{}/paths"): ({"to": str}, {"from": str, "dry_run": bool}),
    ("POST", "/jobs/{}/paths/{}/use"): ({}, {"dry_run": bool}),
    ("GET", "/connections"): None, ("POST", "/jobs/{}/paths/{}/connections"): ({}, {"from": str, "to": str, "dry_run": bool}),
    ("POST", "/jobs/{}/paths/{}/connections/{}/remove"): ({}, {"dry_run": bool}),
    ("GET", "/tasks/{}"): None,
    ("GET", "/attachments"): None, ("DELETE", "/attachments/{}"): None,
    ("POST", "/attachments"): ({"volume": str}, {"point": str, "read_only": bool, "nbd": str, "space": str}),
}  # fmt: skip
QUERIES = {
    "/status": {"job"}, "/events": {"since", "job", "follow", "after", "level", "code"}, "/tasks/{}": {"wait"}, "/shapes/{}": {"dry_run"},
}  # fmt: skip
STATUS = {2: 400, 4: 502, 5: 409, 7: 404, 8: 504}

PROGRESS = {
    "phase": "syncing", "percent": 63.1, "seconds_left": 231, "bottleneck": "network", "read": 315 << 30, "hashed": 315 << 30,
    "zero": 0, "changed": 2 << 30, "sent": 19 << 30, "written": 0, "rate_bytes_per_s": 812 << 20, "hash_bytes_per_s": 4 << 30,
    "unreadable": 0,
}  # fmt: skip
JOB = {
    "name": "db", "id": "0" * 32, "mode": "async", "state": "idle", "role": "source", "source": "db", "target": "site-b:db",
    "local": False, "initial": "auto", "connections": 2, "sync_points": 7, "keep": "", "timeout": "30s", "shape": None, "size": 500 << 30,
    "last_sync_point": "2026-11-22T00:00:03+00:00", "lag_seconds": 11520, "fuzzy": False, "counter": 41, "generation": "ab" * 16,
    "root": None, "path": {"active": 1, "total": 1, "connections": 2, "ok": True}, "paths": [], "rate_bytes_per_s": None, "limit": None,
    "progress": None, "problem": None, "next": None, "last_run": None, "schedule": None,
    "missed": "run", "rpo": None, "rpo_passed": False, "queue": None,
}  # fmt: skip
VOLUME = {
    "name": "db", "id": "1" * 32, "device": "/dev/vg0/db", "size": 500 << 30, "sector_size": 512, "role": None, "accept": [],
    "jobs": [], "identity": {"size": 500 << 30, "serial": "S1"}, "problem": None,
    "snapshots": {"backend": "reflink", "fuzzy": False, "reason": "on XFS"},
}  # fmt: skip
SHAPE = {
    "name": "office", "peak": "1G", "peak_bytes_per_s": 1 << 30, "hours": ["mon-fri 07:00-19:00"], "off_peak": "unlimited",
    "off_peak_bytes_per_s": None, "rate_bytes_per_s": 1 << 30, "is_peak": True, "until": "2026-11-23T19:00:00+00:00",
    "why": "peak 1 GiB/s mon-fri 07:00-19:00, until 19:00", "jobs": ["db", "web"],
}  # fmt: skip
FINGERPRINT = "SHA256:" + ":".join(["7b"] * 32)


class Failure(Exception):
    """An error for an answer."""

    def __init__(self, code, exit_code, message="it went wrong", hint="do something else"):
        super().__init__(message)
        self.fields = {"code": code, "exit": exit_code, "message": message, "hint": hint}


class FakeAgent:
    """on(method, path, answer): a value, a Failure, or a callable(body, query) that returns or raises one."""

    def __init__(self, path):
        self.path = str(path)
        self.answers, self.asked, self.violations = {}, [], []
        self.on("POST", "/start", self._start_all)
        self.release = threading.Event()  # lets a task that `never_ends` end

    def on(self, method, path, answer):
        self.answers[method, path] = answer
        return self

    def _start_all(self, body, query):
        """Each job as it would be started alone."""
        answers = {}
        for name in body["jobs"]:
            found = self.answers.get(("POST", f"/jobs/{name}/start"), Failure("no-such-job", 7, f"no job {name}"))
            answers[name] = found(body, query) if callable(found) else found
            if isinstance(found, Failure):
                raise found
        return answers

    def task(self, method, path, *, result=None, error=None, progress=()):
        """The request starts a task that shows each of `progress` and then ends."""
        name = f"task{len(self.answers)}"
        waiting = list(progress)

        def state(_body, _query):
            if waiting:
                return {"id": name, "state": "running", "progress": waiting.pop(0), "result": None, "error": None}
            failed = error.fields if error else None
            return {"id": name, "state": "failed" if error else "done", "progress": None, "result": result, "error": failed}

        self.on("GET", f"/tasks/{name}", state)
        return self.on(method, path, {"id": name, "state": "running", "progress": None, "result": None, "error": None})

    def bodies(self, method, path):
        return [body for asked, where, body, _query in self.asked if (asked, where) == (method, path)]

    def answer(self, method, target, headers, data):
        """(status, body bytes or list of lines) of one request."""
        url = urlsplit(target)
        if not url.path.startswith("/v1/"):
            return self._violate(f"{target} is not below /v1")
        path, query = unquote(url.path[3:]), parse_qs(url.query, strict_parsing=bool(url.query))
        pattern = next((known for known in REQUESTS if known[0] == method and _matches(known[1], url.path[3:])), None)
        if pattern is None:
            return self._violate(f"{method} {url.path} is not in the contract")
        wrong = _wrong(pattern, query, headers, data)
        if wrong:
            return self._violate(f"{method} {target}: {wrong}")
        body = json.loads(data) if data else None
        self.asked.append((method, path, body, query))
        found = self.answers.get((method, path), Failure("no-such-thing", 7, f"no {path} here"))
        try:
            if callable(found):
                found = found(body, query)
            if isinstance(found, Failure):
                raise found
        except Failure as failure:
            return STATUS.get(failure.fields["exit"], 500), json.dumps({"error": failure.fields}).encode()
        return 200, found if isinstance(found, (bytes, list)) and pattern[1] == "/events" else json.dumps(found).encode()

    def _violate(self, what):
        self.violations.append(what)
        return 400, json.dumps({"error": {"code": "violation", "exit": 2, "message": what, "hint": ""}}).encode()


def _matches(pattern, path):
    return re.fullmatch(re.escape(pattern).replace(r"\{\}", "[^/]+"), path)


def _wrong(pattern, query, headers, data):
    """What a request says that its contract does not know, or None."""
    unknown = set(query) - QUERIES.get(pattern[1], set())
    if unknown:
        return f"unknown query {unknown}"
    fields = REQUESTS[pattern]
    if fields is None:
        return "a body where none belongs" if data else None
    if headers.get("Content-Type") != "application/json":
        return "the body is not announced as JSON"
    body, (required, optional) = json.loads(data), fields
    for key, value in body.items():
        kind = (required | optional).get(key)
        if kind is None:
            return f"unknown field {key}"
        if type(value) is not kind:
            return f"field {key} is {value!r}, not {kind.__name__}"
    return next((f"field {key} is missing" for key in required if key not in body), None)


class _Handler(http.server.BaseHTTPRequestHandler):
    protocol_version = "HTTP/1.1"

    def _serve(self):
        data = self.rfile.read(int(self.headers.get("Content-Length") or 0))
        status, body = self.server.agent.answer(self.command, self.path, self.headers, data)
        self.send_response(status)
        if isinstance(body, list):  # JSON lines, one chunk each, as they come
            self.send_header("Transfer-Encoding", "chunked")
            self.end_headers()
            for item in body:
                line = item if isinstance(item, bytes) else json.dumps(item).encode() + b"\n"
                self.wfile.write(b"%x\r\n%s\r\n" % (len(line), line))
                self.wfile.flush()
            if not self.path.count("follow=1"):
                self.wfile.write(b"0\r\n\r\n")
            else:
                self.server.agent.release.wait(20)
            self.close_connection = True
            return
        self.send_header("Content-Length", str(len(body)))
        self.end_headers()
        self.wfile.write(body)

    do_GET = do_POST = do_PATCH = do_DELETE = do_PUT = _serve

    def address_string(self):
        return "unix"

    def log_message(self, *_arguments):
        return


class _Server(socketserver.ThreadingMixIn, socketserver.UnixStreamServer):
    daemon_threads = True

    def handle_error(self, _request, _address):
        return  # the client went away, which is what some tests are about


@contextmanager
def serving(path, answers=()):
    """A FakeAgent on the socket `path`; at the end it must not have been asked anything that the contract does not know. answers: what FakeAgent.on()
    takes, for whoever may ask as soon as the socket is there."""
    agent = FakeAgent(path)
    for answer in answers:
        agent.on(*answer)
    with _Server(str(path), _Handler) as server:
        server.agent = agent
        thread = threading.Thread(target=server.serve_forever, args=(0.02,), daemon=True)
        thread.start()
        try:
            yield agent
        finally:
            agent.release.set()
            server.shutdown()
            thread.join()
    assert not agent.violations
