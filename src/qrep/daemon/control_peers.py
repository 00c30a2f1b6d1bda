"""Requests about peers."""


def add(requests, node):
    requests.simple("/peers", "GET", lambda request: [_shown(name, peer) for name, peer in sorted(node.peers.all().items())])
    requests.with_body("/peers/look", "POST", {"addresses": list}, {}, lambda path, body: node.peers.look(body["addresses"]))
    requests.with_body(
        "/peers", "POST", {"name": str, "addresses": list, "fingerprint": str}, {}, lambda path, body: node.peers.add(**body)
    )
    requests.simple("/peers/{name}", "DELETE", lambda request: node.remove_peer(request.path_params["name"]))


def _shown(name, peer):
    return {"name": name, "addresses": peer.addresses, "fingerprint": peer.fingerprint}
