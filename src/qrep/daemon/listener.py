"""Connections of peers, as the front hands them over (network.py): each is served in a thread of its own."""

import contextlib
import socket
import threading
from collections import Counter

from qrep.daemon import plain
from qrep.errors import QrepError, Unreachable

NOBODY = ""  # whose a plain connection is before its token was looked at


class Listener:
    """serve: ALPN purpose -> function(stream, peer name), and plain.PURPOSE -> function(stream, token). peers(): name -> config.Peer of now."""

    def __init__(self, limits, peers, serve, events):
        self.peers, self.serve, self.events = peers, serve, events
        self._limit = limits.connections
        self._lock = threading.Lock()
        self._streams = {}  # stream -> peer name, of the connections that are served
        self._stopping = False

    def accepted(self, stream, peer, purpose, host):
        """The front says who it is; whether that peer is known, and how many there are, is asked here once more."""
        if peer in self.peers() and purpose in self.serve and purpose != plain.PURPOSE:
            self._begin(stream, peer, f"{peer} ({host})", lambda: self.serve[purpose](stream, peer), {"address": host, "peer": peer})
        else:
            stream.close()

    def accepted_plain(self, stream, token, host):
        """A plain data connection: the token says whose it is."""
        self._begin(stream, NOBODY, host, lambda: self.serve[plain.PURPOSE](stream, token), {"address": host})

    def stop(self):
        """No more are served; those that are end by themselves."""
        self._stopping = True

    def counts(self):
        """{name: connections that are served}"""
        with self._lock:
            return Counter(peer for peer in self._streams.values() if peer != NOBODY)

    def drop(self, peer):
        """Cut the connections of a peer that is not trusted any more."""
        with self._lock:
            for stream, name in self._streams.items():
                if name == peer:
                    with contextlib.suppress(OSError):
                        stream.shutdown(socket.SHUT_RDWR)

    def _begin(self, stream, peer, who, serve, data):
        with self._lock:
            welcome = not self._stopping and len(self._streams) < self._limit
            if welcome:
                self._streams[stream] = peer
        if welcome:
            try:
                threading.Thread(target=self._serve, args=(stream, who, serve, data), name=f"peer {who}", daemon=True).start()
            except RuntimeError as err:  # no thread to be had: this one is refused, and takes no place from the others
                with self._lock:
                    del self._streams[stream]
                stream.close()
                self._tell(f"{who}: {err}", **data, reason="no-thread")
        else:
            stream.close()

    def _serve(self, stream, who, serve, data):
        try:
            serve()
        except (Unreachable, ConnectionError):  # it went away, which is how connections end
            stream.close()
        except (QrepError, OSError) as err:
            stream.close()
            self._tell(f"{who}: {err}", **data, reason=getattr(err, "code", "connection"))
        except BaseException:  # a bug of ours: the peer must not wait for an answer, and the service log gets the place
            stream.close()
            raise
        finally:
            with self._lock:
                del self._streams[stream]

    def _tell(self, text, **data):
        if not self._stopping:
            self.events.add("peer-refused", text, **data)
