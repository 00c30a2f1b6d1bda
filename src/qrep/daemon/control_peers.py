"""Requests about peers."""

from qrep.daemon.peertest import PeerTest
from qrep.errors import UsageError

SECONDS, CONNECTIONS = 5, [1, 2, 4, 8]
CHANGES = {"trusted": bool, "may_switch": bool}


def add(requests, node):
    requests.simple("/peers", "GET", lambda request: [_shown(name, peer) for name, peer in sorted(node.peers.all().items())])
    requests.with_body("/peers/look", "POST", {"addresses": list}, {}, lambda path, body: node.peers.look(body["addresses"]))
    requests.with_body(
        "/peers", "POST", {"name": str, "addresses": list, "fingerprint": str}, {"trusted": bool}, lambda path, body: node.peers.add(**body)
    )
    requests.with_body("/peers/{name}", "PATCH", {}, CHANGES, lambda path, body: _changed(node, path["name"], body))
    requests.with_body(
        "/peers/{name}/test", "POST", {}, {"seconds": int, "connections": list}, lambda path, body: _tested(node, path["name"], body)
    )
    requests.simple("/peers/{name}", "DELETE", lambda request: node.remove_peer(request.path_params["name"]))


def _tested(node, name, body):
    test = PeerTest(node, name, body.get("seconds", SECONDS), body.get("connections", CONNECTIONS))
    return node.tasks.start("test", name, test.run).as_dict()


def _shown(name, peer):
    return {"name": name, "addresses": peer.addresses, "fingerprint": peer.fingerprint, "trusted": peer.trusted, "may_switch": peer.may_switch}


def _changed(node, name, body):
    if not body:
        raise UsageError("nothing to change was given", hint="qrep peer set NAME --trusted, or --may-switch")
    if "may_switch" in body:
        answer = node.peers.set_may_switch(name, body["may_switch"])
    return node.set_peer(name, body["trusted"]) | {"may_switch": node.peers.may_switch(name)} if "trusted" in body else answer
