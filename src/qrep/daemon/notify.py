"""Telling systemd how the agent is (sd_notify(3)): datagrams to the socket that NOTIFY_SOCKET names; without it nothing is told."""

import contextlib
import os
import socket
import time


class Notifier:
    """environment: os.environ, whose variables of systemd are taken out: they are for this process, not for those it starts."""

    def __init__(self, environment):
        self._address = environment.pop("NOTIFY_SOCKET", "")
        if self._address.startswith("@"):  # an abstract socket
            self._address = "\0" + self._address[1:]
        watchdog, pid = environment.pop("WATCHDOG_USEC", ""), environment.pop("WATCHDOG_PID", "")
        mine = self._address and watchdog.isdigit() and (not pid or pid == str(os.getpid()))
        self.watchdog_s = int(watchdog) / 1e6 if mine else None  # how long systemd waits for a sign of life; None: for ever
        self._status = None

    def ready(self):
        self._send("READY=1")

    def reloading(self):
        """Followed by ready()."""
        self._send(f"RELOADING=1\nMONOTONIC_USEC={time.monotonic_ns() // 1000}")

    def stopping(self):
        self._send("STOPPING=1\nSTATUS=ending")

    def alive(self):
        self._send("WATCHDOG=1")

    def status(self, text):
        """One line for `systemctl status`; told when it has changed."""
        if text != self._status:
            self._status = text
            self._send("STATUS=" + text.replace("\n", " "))

    def _send(self, text):
        if not self._address:
            return
        # A supervisor that does not listen is none of our business, and we must not wait for it.
        with contextlib.suppress(OSError), socket.socket(socket.AF_UNIX, socket.SOCK_DGRAM | socket.SOCK_CLOEXEC | socket.SOCK_NONBLOCK) as sender:
            sender.sendto(text.encode(), self._address)
