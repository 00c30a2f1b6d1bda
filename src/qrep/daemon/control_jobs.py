"""Requests about jobs, and what they do."""

from qrep.daemon.made import check_may_run
from qrep.daemon.status import shown
from qrep.jobs import look

FIELDS = {
    "mode": str, "initial": str, "sync_points": int, "keep": str, "connections": int, "timeout": str, "shape": str, "schedule": str, "missed": str, "rpo": str,
    "verify_schedule": str, "verify_rate": str, "group": str,
    "hints": str, "hint_sample": str, "nice": bool, "compress": str,
}  # fmt: skip
CHANGES = {key: kind for key, kind in FIELDS.items() if key != "mode"}

PATH = {"from": str, "to": str}


def add(requests, node):
    requests.simple("/jobs", "GET", lambda request: [shown(node, runner) for _name, runner in node.jobs.all()])
    requests.with_body(
        "/jobs",
        "POST",
        {"name": str, "source": str, "target": str},
        FIELDS | PATH | {"overwrite": bool, "dry_run": bool},
        lambda path, body: node.jobs.create(**body),
    )
    requests.simple("/jobs/{name}", "GET", lambda request: shown(node, node.jobs.get(request.path_params["name"])))

    def change(path, body):
        settings = {key: value for key, value in body.items() if key != "dry_run"}
        return node.jobs.change(path["name"], settings, body.get("dry_run", False))

    requests.with_body("/jobs/{name}", "PATCH", {}, CHANGES | {"dry_run": bool}, change)
    requests.simple("/jobs/{name}", "DELETE", lambda request: node.jobs.delete(request.path_params["name"]) or {})
    requests.with_body("/start", "POST", {"jobs": list}, {}, lambda path, body: {name: task.as_dict() for name, task in node.jobs.starting.start(body["jobs"]).items()})
    requests.simple("/jobs/{name}/start", "POST", lambda request: node.jobs.start(request.path_params["name"]).as_dict())
    requests.simple("/jobs/{name}/stop", "POST", lambda request: {"text": node.jobs.get(request.path_params["name"]).stop()})

    def estimate(request):
        runner = node.jobs.get(request.path_params["name"])
        if runner.settings.finished:
            check_may_run(runner)
        runner.begin("estimate")
        return node.tasks.start("estimate", runner.name, lambda task: look.estimate(runner, task)).as_dict()

    requests.simple("/jobs/{name}/estimate", "GET", estimate)

    def verify(path, body):
        return node.jobs.verify(path["name"], **body).as_dict()

    options = {"independent": bool, "repair": bool, "dry_run": bool, "rate": str}
    requests.with_body("/jobs/{name}/verify", "POST", {}, options, verify)
