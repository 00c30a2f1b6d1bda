"""The hosts this node trusts, by name: pinned keys, and how each is reached."""

import contextlib
import threading

import msgspec

from qrep import config
from qrep.daemon import asks
from qrep.daemon.identity import certificate_pem, fingerprint_of
from qrep.daemon.peers import Reach, parse_address
from qrep.errors import NotFound, QrepError, Refused, UsageError


class KnownPeers:
    """Thread-safe. network: how they are reached. `users(name)`: the jobs here that need a peer."""

    def __init__(self, settings, identity, network, events, users):
        self.config, self.identity, self.network, self.events, self._users = settings, identity, network, events, users
        self._lock = threading.RLock()
        self._peers = settings.load_all("peers")
        self._reach = {name: Reach(network, name, peer) for name, peer in self._peers.items()}

    def all(self):
        with self._lock:
            return dict(self._peers)

    def fingerprint(self, name):
        """Of the key that is pinned for a peer now, "" if it is not known any more."""
        with self._lock:
            return self._peers[name].fingerprint if name in self._peers else ""

    def trusted(self, name):
        """Whether the paths to a peer are trusted here, so that data may travel plain."""
        with self._lock:
            return name in self._peers and self._peers[name].trusted

    def may_switch(self, name):
        """Whether a peer may make this host give up its role in a job of both."""
        with self._lock:
            return name in self._peers and self._peers[name].may_switch

    def set_may_switch(self, name, may_switch):
        with self._lock:
            self.reach(name)  # raises NotFound
            peer = msgspec.structs.replace(self._peers[name], may_switch=may_switch)
            self.config.save("peers", name, peer)
            self._peers[name] = self._reach[name].peer = peer
        self.events.add("peer-changed", f"it may {'' if may_switch else 'not '}make this host give up its role in jobs of both", peer=name)
        return {"name": name, "addresses": peer.addresses, "fingerprint": peer.fingerprint, "trusted": peer.trusted, "may_switch": may_switch}

    def set_trusted(self, name, trusted):
        """(what the API answers, whether it changed). Plain connections that we made are cut."""
        with self._lock:
            self.reach(name)  # raises NotFound
            peer, reach = self._peers[name], self._reach[name]
            changed = peer.trusted != trusted
            if changed:
                peer = msgspec.structs.replace(peer, trusted=trusted)
                self.config.save("peers", name, peer)
                self._peers[name] = reach.peer = peer
        if changed:
            reach.cut()
            self.events.add("peer-changed", f"its paths are {'trusted: data travels plain' if trusted else 'not trusted: everything is TLS'}", peer=name)
        answer = {"name": name, "addresses": peer.addresses, "fingerprint": peer.fingerprint, "trusted": trusted, "agreed": None}
        with contextlib.suppress(QrepError):  # it does not answer now; a run that it refuses says so
            answer["agreed"] = reach.ask(asks.Hail()).get("trusted") == trusted
        return answer, changed

    # ---- by a reload: the files were changed by somebody else ----

    def adopt(self, name, peer):
        """Let a peer be what its file says now. Plain connections that we made are cut if it is not trusted any more."""
        with self._lock:
            known, self._peers[name] = self._peers.get(name), peer
            self.network.trust(name, peer)
            if known is None:
                self._reach[name] = Reach(self.network, name, peer)
                return
            reach = self._reach[name]
            reach.peer = peer
        if known.trusted != peer.trusted:
            reach.cut()

    def let_go(self, name):
        """The file of a peer is gone."""
        with self._lock:
            del self._peers[name], self._reach[name]
            self.network.distrust(name)

    def reach(self, name):
        with self._lock:
            if name not in self._reach:
                self.config.load("peers", name)  # raises the NotFound that names what was probably meant
                raise NotFound(f"no peer called {name}", hint="qrep peer lists them", code="no-such-peer")
            return self._reach[name]

    def look(self, addresses):
        """Who presents which key at the first address that answers. Trusts nothing yet."""
        return next(self._look_at(addresses))

    def _look_at(self, addresses):
        """What look() gives for each address that answers. Raises the last error if none does."""
        if not addresses:
            raise UsageError("no address was given", hint="qrep peer add NAME ADDR[,ADDR...]")
        for text in addresses:
            config.check_address(text)
        error, answered = None, False
        for text in addresses:
            try:
                der = self.network.look(parse_address(text))
            except QrepError as err:
                error = err
                continue
            answered = True
            yield {"address": text, "fingerprint": fingerprint_of(der), "certificate": certificate_pem(der)}
        if not answered:
            raise error

    def add(self, name, addresses, fingerprint, trusted=None):
        """Pin the key that a person has seen and agreed to; every address that answers must present it. trusted: None: as it was, or not."""
        config.check_name("peers", name)
        answering = list(self._look_at(addresses))
        for seen in answering:
            if seen["fingerprint"] != fingerprint:
                raise Refused(
                    f"{name} presents {seen['fingerprint']} ({seen['address']}), not {fingerprint}",
                    hint="someone stands in between, or the host has a new key",
                    code="wrong-fingerprint",
                )
        if fingerprint == self.identity.fingerprint:
            raise Refused(f"{answering[0]['address']} is this host", hint="give the address of the other host", code="self")
        with self._lock:
            self._check_new(name, fingerprint)
            if trusted is None:
                trusted = self.trusted(name)
            peer = config.Peer(addresses=addresses, fingerprint=fingerprint, certificate=answering[0]["certificate"], trusted=trusted, may_switch=self.may_switch(name))
            self.config.save("peers", name, peer)
            self._peers[name] = peer
            self._reach[name] = reach = Reach(self.network, name, peer)
        self.network.trust(name, peer)
        self.events.add("peer-added", f"{', '.join(addresses)} {fingerprint}", peer=name)
        answer = {
            "name": name, "addresses": addresses, "fingerprint": fingerprint, "mutual": True, "version": None, "reachable": len(answering),
            "trusted": trusted, "agreed": None,
        }  # fmt: skip
        try:
            hailed = reach.ask(asks.Hail())
            answer["version"], answer["agreed"] = hailed.get("version"), hailed.get("trusted") == trusted
        except QrepError:
            answer["mutual"] = False  # what there is to do is told by the CLI
        return answer

    def _check_new(self, name, fingerprint):
        for other, peer in self._peers.items():
            if other == name and peer.fingerprint != fingerprint:
                raise Refused(
                    f"peer {name} is pinned with another key, {peer.fingerprint}",
                    hint=f"if the host was set up anew: qrep peer remove {name} first",
                    code="wrong-fingerprint",
                )
            if other != name and peer.fingerprint == fingerprint:
                raise Refused(f"that host is peer {other} already", hint=f"qrep peer remove {other}", code="peer-known")

    def remove(self, name):
        with self._lock:
            self.config.load("peers", name)
            users = self._users(name)
            if users:
                raise Refused(
                    f"peer {name} is the target of {', '.join(users)}",
                    hint=f"qrep job delete {users[0]}",
                    code="peer-in-use",
                )
            self.config.remove("peers", name)
            del self._peers[name], self._reach[name]
            self.network.distrust(name)
        self.events.add("peer-removed", "its connections are refused from now on", peer=name)
