"""qrep peer: other hosts, known by the fingerprint of their key."""

import click

from qrep.cli import names, peertest
from qrep.cli.app import Group
from qrep.client import part
from qrep.cli.render import table
from qrep.errors import NotFound, Refused, UsageError


def listing(peers):
    if not peers:
        return "no peers\n  action: qrep peer add NAME ADDR[,ADDR...]"
    return table(
        ("PEER", "ADDRESSES", "DATA", "MAY SWITCH", "FINGERPRINT"),
        [(peer["name"], ", ".join(peer["addresses"]), "plain" if peer.get("trusted") else "TLS", "yes" if peer.get("may_switch") else "no", peer["fingerprint"]) for peer in peers],
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
        option = " --trusted" if answer.get("trusted") else ""
        text += f"\n  action: {answer['name']} does not know this host yet; run there: qrep peer add NAME ADDR{option}"
    return text + disagreement(answer)


def disagreement(answer):
    """What to do when the two ends do not say the same of the path; until they do, runs are refused."""
    if answer.get("agreed") is not False:
        return ""
    option, says = ("--trusted", "is not trusted") if answer["trusted"] else ("--no-trusted", "is trusted")
    return f"\n  action: {answer['name']} says that the path {says}; run there: qrep peer set NAME {option}"


def changed_text(answer):
    how = "trusted: data travels plain, authenticated and not encrypted" if answer["trusted"] else "not trusted: everything is TLS"
    return f"{answer['name']}: its paths are {how}{disagreement(answer)}"


@peer.command()
@click.argument("name")
@click.argument("addresses", metavar="ADDR[,ADDR...]")
@click.option("--fingerprint", metavar="SHA256:...", help="Pin this fingerprint; refuse any other.")
@click.option("--trusted", is_flag=True, help="Data may travel plain to it, once it says the same of this host; see set.")
@click.option("-y", "--yes", is_flag=True, help="Pin what is presented without asking.")
@click.pass_obj
def add(app, name, addresses, fingerprint, trusted, yes):
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
    body |= {"fingerprint": seen["fingerprint"]} | ({"trusted": True} if trusted else {})
    answer = client.post("/peers", body, timeout=60)
    app.data(answer, added_text(answer))


peer.add_command(peertest.test)


@peer.command("set")
@click.argument("name", shell_complete=names.peers)
@click.option("--trusted/--no-trusted", default=None, help="Whether the paths to it are trusted.")
@click.option("--may-switch/--no-may-switch", default=None, help="Whether it may make this host give up its role in jobs of both.")
@click.option("-n", "--dry-run", is_flag=True, help="Say what would change; change nothing.")
@click.pass_obj
def set_(app, name, trusted, may_switch, dry_run):
    """Change what is known of host NAME.

    The paths to a host are trusted where nobody else is on the wire, as in a storage network: data then travels plain, because only so the
    kernel can send it without copying. It is authenticated all the same, and control is always TLS. Both hosts must say so; while they
    do not agree, runs between them are refused.

    A host that may switch can promote its replica while this one is the source, and this one is demoted by that: a switch is one command
    then, and so is a failback. Without it, each side's operator says so there. Sync points of a volume with a floor (keep_points, keep_for)
    are not lost by its word in either case: where a volume would take over and lose them, its own operator promotes it.
    """
    if trusted is None and may_switch is None:
        raise UsageError("nothing to change was given", hint=f"qrep peer set {name} --trusted, or --may-switch; or the same with --no-")
    client = app.client()
    if trusted is None:
        _set_may_switch(app, client, name, may_switch, dry_run)
        return
    if dry_run:
        known = next((peer for peer in client.get("/peers") if peer["name"] == name), None)
        if known is None:
            raise NotFound(f"no peer called {name}", hint="qrep peer lists them", code="no-such-peer")
        word = ("would be" if trusted else "would no longer be") if known["trusted"] != trusted else "are" if trusted else "are not"
        app.data(known | {"would_be_trusted": trusted}, f"{name}: its paths {word} trusted{' already' if known['trusted'] == trusted else ''}")
        return
    body = {"trusted": trusted} | ({} if may_switch is None else {"may_switch": may_switch})
    answer = client.call("PATCH", f"/peers/{part(name)}", body, timeout=60)
    app.data(answer, changed_text(answer))


def _set_may_switch(app, client, name, may_switch, dry_run):
    known = next((peer for peer in client.get("/peers") if peer["name"] == name), None)
    if known is None:
        raise NotFound(f"no peer called {name}", hint="qrep peer lists them", code="no-such-peer")
    does = "may" if may_switch else "may not"
    if dry_run:
        app.data(known | {"would_may_switch": may_switch}, f"{name}: {does} make this host give up its role{' already' if known['may_switch'] == may_switch else ' then'}")
        return
    answer = client.call("PATCH", f"/peers/{part(name)}", {"may_switch": may_switch}, timeout=60)
    app.data(answer, f"{name}: {does} make this host give up its role in jobs of both")


@peer.command()
@click.argument("name", shell_complete=names.peers)
@click.option("-y", "--yes", is_flag=True, help="Do not ask.")
@click.pass_obj
def remove(app, name, yes):
    """Forget host NAME; its connections are refused from then on."""
    app.confirm(f"{name} will not be trusted any more.", yes)
    app.client().call("DELETE", f"/peers/{part(name)}")
    app.data({"removed": name}, f"{name}: removed")
