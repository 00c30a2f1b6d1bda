"""qrep peer: other hosts, known by the fingerprint of their key."""

import click

from qrep.cli import names
from qrep.cli.app import Group
from qrep.client import part
from qrep.cli.render import table
from qrep.errors import Refused


def listing(peers):
    if not peers:
        return "no peers\n  action: qrep peer add NAME ADDR[,ADDR...]"
    return table(
        ("PEER", "ADDRESSES", "FINGERPRINT"),
        [(peer["name"], ", ".join(peer["addresses"]), peer["fingerprint"]) for peer in peers],
    )


@click.group(cls=Group)
@click.pass_context
def peer(ctx):
    """Other hosts. Alone: list them."""
    if ctx.invoked_subcommand is None:
        peers = ctx.obj.client().get("/peers")
        ctx.obj.data(peers, lambda: listing(peers))


def added_text(answer):
    reachable = answer.get("reachable", 0)
    text = f"{answer['name']} added: {reachable} address{'es' if reachable != 1 else ''} reachable, TLS 1.3"
    if answer.get("version"):
        text += f", qrep {answer['version']}"
    if not answer.get("mutual", True):
        text += f"\n  action: {answer['name']} does not know this host yet; run there: qrep peer add NAME ADDR"
    return text


@peer.command()
@click.argument("name")
@click.argument("addresses", metavar="ADDR[,ADDR...]")
@click.option("--fingerprint", metavar="SHA256:...", help="Pin this fingerprint; refuse any other.")
@click.option("-y", "--yes", is_flag=True, help="Pin what is presented without asking.")
@click.pass_obj
def add(app, name, addresses, fingerprint, yes):
    """Make a host known as NAME. ADDR may carry a port: 10.0.1.2:7414, [fe80::1]:7414."""
    client = app.client()
    body = {"name": name, "addresses": [address for address in addresses.split(",") if address]}
    seen = client.post("/peers/look", {"addresses": body["addresses"]}, timeout=60)
    if fingerprint and seen["fingerprint"] != fingerprint:
        raise Refused(
            f"{name} presents {seen['fingerprint']} ({seen['address']}), not {fingerprint}",
            hint="someone stands in between, or the host has a new key",
            code="wrong-fingerprint",
        )
    if not fingerprint:
        app.confirm(f"{name} presents {seen['fingerprint']} ({seen['address']}).", yes, ask="Pin it?")
    answer = client.post("/peers", body | {"fingerprint": seen["fingerprint"]}, timeout=60)
    app.data(answer, added_text(answer))


@peer.command()
@click.argument("name", shell_complete=names.peers)
@click.option("-y", "--yes", is_flag=True, help="Do not ask.")
@click.pass_obj
def remove(app, name, yes):
    """Forget host NAME; its connections are refused from then on."""
    app.confirm(f"{name} will not be trusted any more.", yes)
    app.client().call("DELETE", f"/peers/{part(name)}")
    app.data({"removed": name}, f"{name}: removed")
