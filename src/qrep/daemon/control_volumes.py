"""Requests about volumes and their sync points."""

from qrep.daemon import retaining
from qrep.daemon.snapshots import copy_out, list_points, plan_rollback, roll_back
from qrep.daemon.volumecreate import create

CHANGES = {
    "snapshots": str, "snapshot_space": str, "freeze_before": list, "freeze_after": list, "freeze_timeout": str, "undo": str, "undo_space": str,
    "open_generation": str, "keep_points": int, "keep_for": str, "accept": list,
}  # fmt: skip
FIELDS = {**CHANGES, "leaf": str, "granule": str}


def add(requests, node):
    def shown(volume):
        return volume.as_dict(node.jobs.of_volume(volume.name))

    requests.simple("/volumes", "GET", lambda request: [shown(volume) for volume in node.volumes.all()])
    requests.simple("/volumes/{name}", "GET", lambda request: shown(node.volumes.get(request.path_params["name"])))
    requests.with_body(
        "/volumes", "POST", {"name": str, "device": str}, FIELDS, lambda path, body: shown(node.volumes.add(body.pop("name"), body))
    )

    def make(_path, body):
        name, size, place, dry_run = (body.pop(key, None) for key in ("name", "size", "in", "dry_run"))
        made = create(node, name, size, place, body, dry_run=bool(dry_run))
        return made if dry_run else shown(made)

    requests.with_body("/volumes/create", "POST", {"name": str, "size": str, "in": str}, {**FIELDS, "dry_run": bool}, make)
    requests.with_body("/volumes/{name}", "PATCH", {}, CHANGES, lambda path, body: shown(node.volumes.change(path["name"], body)))
    requests.simple("/volumes/{name}", "DELETE", lambda request: node.remove_volume(request.path_params["name"]))

    requests.simple("/volumes/{name}/snapshots", "GET", lambda request: list_points(node, request.path_params["name"]))

    def rollback(path, body):
        action = plan_rollback if body.get("dry_run") else roll_back
        name, point = path["name"], body["point"]
        node.volumes.get(name).replica()
        return node.tasks.start("rollback", name, lambda task: action(node, task, name, point)).as_dict()

    requests.with_body("/volumes/{name}/rollback", "POST", {"point": str}, {"dry_run": bool}, rollback)

    def copy(path, body):
        name = path["name"]
        return node.tasks.start("snapshot-copy", name, lambda task: copy_out(node, task, name, **body)).as_dict()

    requests.with_body("/volumes/{name}/copy", "POST", {"point": str, "target": str}, {"overwrite": bool}, copy)

    def delete(path, body):
        name, action = path["name"], retaining.plan_delete if body.get("dry_run") else retaining.delete_point
        return node.tasks.start("snapshot-delete", name, lambda task: action(node, task, name, body["point"])).as_dict()

    def thin(path, body):
        name, action = path["name"], retaining.plan_thin if body.get("dry_run") else retaining.thin
        return node.tasks.start("snapshot-thin", name, lambda task: action(node, task, name)).as_dict()

    requests.with_body("/volumes/{name}/delete-point", "POST", {"point": str}, {"dry_run": bool}, delete)
    requests.with_body("/volumes/{name}/thin", "POST", {}, {"dry_run": bool}, thin)
    requests.with_body(
        "/volumes/{name}/snapshots", "POST", {}, {"name": str, "dry_run": bool},
        lambda path, body: retaining.create(node, path["name"], body.get("name", ""), body.get("dry_run", False)),
    )  # fmt: skip
