"""Requests that change roles. Each is a task, because the other side is asked, and a run may be part of it."""


def add(requests, node):
    def task(kind, action):
        def begin(path, body):
            dry_run = body.pop("dry_run", False)
            return node.tasks.start(kind, path["name"], lambda task: action(task, path["name"], dry_run, **body)).as_dict()

        return begin

    def promote(task, name, dry_run, force=False):
        return node.switch.plan_promote(name, force=force) if dry_run else node.switch.promote(task, name, force=force)

    def split(task, name, dry_run):
        return node.switch.plan_promote(name, split=True) if dry_run else node.switch.promote(task, name, split=True)

    def demote(task, name, dry_run):
        return node.switch.plan_demote(task, name) if dry_run else node.switch.demote(task, name)

    def failback(task, name, dry_run, swap=True):
        return node.switch.plan_failback(task, name) if dry_run else node.switch.failback(task, name, swap=swap)

    def resync(task, name, dry_run, authoritative):
        return node.switch.resync(task, name, authoritative, dry_run=dry_run)

    requests.with_body("/jobs/{name}/promote", "POST", {}, {"force": bool, "dry_run": bool}, task("promote", promote))
    requests.with_body("/jobs/{name}/split", "POST", {}, {"dry_run": bool}, task("split", split))
    requests.with_body("/jobs/{name}/demote", "POST", {}, {"dry_run": bool}, task("demote", demote))
    requests.with_body("/jobs/{name}/failback", "POST", {}, {"swap": bool, "dry_run": bool}, task("failback", failback))
    def restore(task, name, dry_run, point, discard=False):
        restoring = node.roles.restoring
        return restoring.plan(name, point) if dry_run else restoring.restore(task, name, point, discard=discard)

    requests.with_body("/jobs/{name}/restore", "POST", {"point": str}, {"discard": bool, "dry_run": bool}, task("restore", restore))
    requests.with_body("/jobs/{name}/resync", "POST", {"authoritative": str}, {"dry_run": bool}, task("resync", resync))
