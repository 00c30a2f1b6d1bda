"""Requests about clones, and what they do; and the rebuild of a job whose disk was moved."""

from qrep.daemon import rebuilds


def add(requests, node):
    def source(request):
        return request.path_params["source"]

    requests.simple("/clones", "GET", lambda request: [node.clones.shown(runner) for runner in node.clones.all()])
    requests.with_body(
        "/clones", "POST", {"source": str, "target": str}, {"name": str, "overwrite": bool, "dry_run": bool}, lambda path, body: node.clones.create(**body)
    )
    requests.simple("/clones/{source}", "GET", lambda request: node.clones.shown(node.clones.get(source(request))))
    requests.simple("/clones/{source}", "DELETE", lambda request: node.clones.delete(source(request)))
    requests.simple("/clones/{source}/start", "POST", lambda request: node.jobs.start(node.clones.get(source(request)).name).as_dict())
    requests.with_body("/clones/{source}/convert", "POST", {}, {"dry_run": bool}, lambda path, body: node.clones.convert(path["source"], **body))

    def rebuild(path, body):
        return rebuilds.start(node, path["name"], **body).as_dict()

    requests.with_body("/jobs/{name}/rebuild", "POST", {"target": str}, {"dry_run": bool}, rebuild)
