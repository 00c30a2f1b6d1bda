"""Requests about shaping groups, and the limit of the node above them."""

FIELDS = {"peak": str, "hours": list, "off_peak": str}


def add(requests, node):
    requests.simple("/shapes", "GET", lambda request: node.shapes.all())
    requests.simple("/shapes/{name}", "GET", lambda request: node.shapes.get(request.path_params["name"]))

    def change(path, body):
        dry_run = body.pop("dry_run", False)
        return node.shapes.set(path["name"], body, dry_run)

    requests.with_body("/shapes/{name}", "PATCH", {}, FIELDS | {"dry_run": bool}, change)
    requests.simple("/shapes/{name}", "DELETE", lambda request: _deleted(node, request.path_params["name"], request.query_params.get("dry_run") == "1"))
    requests.simple("/limit", "GET", lambda request: node.shapes.node_limit())
    requests.with_body("/limit", "PATCH", {"rate": str}, {"dry_run": bool}, lambda path, body: node.shapes.set_node_limit(body["rate"], body.get("dry_run", False)))


def _deleted(node, name, dry_run):
    node.shapes.delete(name, dry_run)
    return {"deleted": name}
