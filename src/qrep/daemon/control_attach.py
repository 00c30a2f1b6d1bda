"""Requests about what is attached."""


def add(requests, node):
    requests.simple("/attachments", "GET", lambda request: node.attachments.list())

    def attach(_path, body):
        volume = body.pop("volume")
        node.volumes.get(volume).replica()
        return node.tasks.start("attach", volume, lambda task: node.attachments.attach(task, volume, **body)).as_dict()

    requests.with_body("/attachments", "POST", {"volume": str}, {"point": str, "read_only": bool, "nbd": str, "space": str}, attach)
    requests.simple("/attachments/{name}", "DELETE", lambda request: node.attachments.detach(request.path_params["name"]))
