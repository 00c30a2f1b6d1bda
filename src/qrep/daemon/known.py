"""The hosts this node trusts, by name: pinned keys, and how each is reached."""

import threading

from qrep import config
from qrep.daemon import asks, tls
from qrep.daemon.identity import certificate_pem, fingerprint_of
from qrep.daemon.peers import Reach, parse_address
from qrep.errors import NotFound, QrepError, Refused, UsageError


class KnownPeers:
    """Thread-safe. `users(name)`: the jobs here that need a peer."""

    def __init__(self, settings, identity, events, users):
        self.config, self.identity, self.events, self._users = settings, identity, events, users
        self._lock = threading.RLock()
        self._peers = settings.load_all("peers")
        self._reach = {name: Reach(identity, name, peer) for name, peer in self._peers.items()}

    def all(self):
        with self._lock:
            return dict(self._peers)

    def fingerprint(self, name):
        """Of the key that is pinned for a peer now, "" if it is not known any more."""
        with self._lock:
            return self._peers[name].fingerprint if name in self._peers else ""

    def reach(self, name):
        with self._lock:
            if name not in self._reach:
                self.config.load("peers", name)  # raises the NotFound that names what was probably meant
                raise NotFound(f"no peer called {name}", hint="qrep peer lists them", code="no-such-peer")
            return self._reach[name]

    def look(self, addresses):
        """Who presents which key at the first address that answers. Trusts nothing yet."""
        error = None
        for text in addresses:
            config.check_address(text)
        for text in addresses:
            try:
                der = tls.look(self.identity, parse_address(text))
            except QrepError as err:
                error = err
                continue
            return {"address": text, "fingerprint": fingerprint_of(der), "certificate": certificate_pem(der)}
        raise error or UsageError("no address was given", hint="qrep peer add NAME ADDR[,ADDR...]")

    def add(self, name, addresses, fingerprint):
        config.check_name("peers", name)
        seen = self.look(addresses)
        if seen["fingerprint"] != fingerprint:
            raise Refused(
                f"{name} presents {seen['fingerprint']} ({seen['address']}), not {fingerprint}",
                hint="someone stands in between, or the host has a new key",
                code="wrong-fingerprint",
            )
        if fingerprint == self.identity.fingerprint:
            raise Refused(f"{seen['address']} is this host", hint="give the address of the other host", code="self")
        with self._lock:
            if name in self._peers and self._peers[name].fingerprint != fingerprint:
                raise Refused(
                    f"peer {name} is pinned with another key, {self._peers[name].fingerprint}",
                    hint=f"if the host was set up anew: qrep peer remove {name} first",
                    code="wrong-fingerprint",
                )
            for other, peer in self._peers.items():
                if peer.fingerprint == fingerprint and other != name:
                    raise Refused(
                        f"that host is peer {other} already", hint=f"qrep peer remove {other}", code="peer-known"
                    )
            peer = config.Peer(addresses=addresses, fingerprint=fingerprint, certificate=seen["certificate"])
            self.config.save("peers", name, peer)
            self._peers[name] = peer
            self._reach[name] = reach = Reach(self.identity, name, peer)
        self.events.add("peer-added", f"{', '.join(addresses)} {fingerprint}", peer=name)
        answer = {
            "name": name,
            "addresses": addresses,
            "fingerprint": fingerprint,
            "mutual": True,
            "version": None,
            "reachable": self._reachable(addresses, fingerprint),
        }
        try:
            answer["version"] = reach.ask(asks.Hail())["version"]
        except QrepError:
            answer["mutual"] = False
        return answer

    def _reachable(self, addresses, fingerprint):
        count = 0
        for text in addresses:
            try:
                count += fingerprint_of(tls.look(self.identity, parse_address(text))) == fingerprint
            except QrepError:
                continue  # the count is what tells
        return count

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
        self.events.add("peer-removed", "its connections are refused from now on", peer=name)
