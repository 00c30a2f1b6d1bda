"""The process that thaws filesystems and undoes hooks when the one that asked for it cannot: it died, or took too long.

    python -IS thawguard.py JSON    {"fds": [FD...], "limit_s": S, "before": [ARGV or null...], "after": [ARGV or null...], "hook_s": [S...]}

stdin is a pipe from the freezer; its end says that the freezer died, also by kill -9. One word a line: `before N` and `after N` run that hook,
answered with a line of JSON {"ok", "said"}; `frozen` starts the limit; `mine FD` says that this one is about to be frozen, `leave FD` that it was not,
so what somebody else froze is never thawed; `thawed` that the freezer has thawed by itself; `done` that all is over. stdout gets one byte once the
guard stands, and nothing may be frozen before.

After the limit it thaws, and keeps thawing until it is told `thawed`. When the freezer is gone it ends the hook that is running, thaws, and runs
what is left of `after` for each `before` that was started. A hook is killed with its whole process group when its time is up. Imports nothing of
qrep, so that it starts in a few milliseconds.
"""

import fcntl
import json
import os
import select
import signal
import sys
import time

FITHAW = 0xC0045878
AGAIN_S = 0.2
SAID = 400  # bytes of what a hook says that are passed on
PIPE = 1 << 20  # bytes: more than a pipe holds


class Guard:
    def __init__(self, limit_s, before, after, hook_s):
        self.limit_s, self.hooks, self.hook_s = limit_s, {"before": before, "after": after}, hook_s
        self.mine = []  # descriptors of filesystems that it thaws
        self.owed = []  # numbers of hooks whose `after` has not been run since their `before` was started
        self.frozen_until = None
        self.buffer = b""
        self.gone = False

    def serve(self):
        while not self.gone:
            line = self.next_line()
            if line is None or line == "done":
                break
            word, _, rest = line.partition(" ")
            if word in self.hooks:
                os.write(1, json.dumps(self.run(word, int(rest))).encode() + b"\n")
            elif word == "frozen":
                self.frozen_until = time.monotonic() + self.limit_s
            elif word == "thawed":
                self.frozen_until = None
            elif word == "mine" and int(rest) not in self.mine:
                self.mine.append(int(rest))
            elif word == "leave":
                self.mine.remove(int(rest))
        if line != "done":
            self.thaw()
            for number in reversed(list(self.owed)):
                self.run("after", number)
            self.thaw()  # what a hook has frozen and did not thaw

    def next_line(self):
        """The next word of the freezer, None when it is gone."""
        while b"\n" not in self.buffer:
            if not self.wait(None):
                return None
        line, _, self.buffer = self.buffer.partition(b"\n")
        return line.decode()

    def wait(self, seconds):
        """Read what the freezer says within that time; False once it is gone. Thaws meanwhile if the limit has passed."""
        until = None if seconds is None else time.monotonic() + seconds
        while True:
            now = time.monotonic()
            limits = [at - now for at in (until, self.frozen_until) if at is not None]
            if select.select([0], [], [], max(0, min(limits)) if limits else None)[0]:
                data = os.read(0, 4096)
                self.buffer += data
                self.gone = not data
                return not self.gone
            if self.frozen_until is not None and time.monotonic() >= self.frozen_until:
                self.thaw()
                self.frozen_until = time.monotonic() + AGAIN_S
            if until is not None and time.monotonic() >= until:
                return True

    def thaw(self):
        for fd in self.mine:
            try:
                fcntl.ioctl(fd, FITHAW, 0)
            except OSError:  # EINVAL: it is not frozen, which is what we want
                continue

    def run(self, kind, number):
        """Run a hook to its end, at most its limit: {"ok", "said"}."""
        if kind == "before":
            self.owed.append(number)
        elif number in self.owed:
            self.owed.remove(number)
        argv = self.hooks[kind][number]
        if not argv:
            return {"ok": True, "said": ""}
        output, theirs = os.pipe()
        os.set_blocking(output, False)
        null = os.open("/dev/null", os.O_RDONLY)
        try:
            pid = os.posix_spawn(
                argv[0], argv, os.environ, setsid=True, setsigdef=STANDARD, setsigmask=[],
                file_actions=[(os.POSIX_SPAWN_DUP2, null, 0), (os.POSIX_SPAWN_DUP2, theirs, 1), (os.POSIX_SPAWN_DUP2, theirs, 2)],
            )  # fmt: skip
        except OSError as err:
            os.close(output)
            return {"ok": False, "said": err.strerror}
        finally:
            os.close(null)
            os.close(theirs)
        how, said = self.reap(pid, output, time.monotonic() + self.hook_s[number], dying=kind == "after")
        os.close(output)
        said = said.decode(errors="replace").strip()
        return {"ok": how == "exit 0", "said": f"{how}: {said.splitlines()[-1]}" if said else how}

    def reap(self, pid, output, until, dying):
        """Wait for a process; how it ended, and the end of what it said: however much that is, it is taken and not kept. dying: it is run to its
        end also when the freezer is gone."""
        pidfd, how, said = os.pidfd_open(pid), "", b""
        try:
            watched = {pidfd, output} if self.gone else {pidfd, output, 0}
            while not how:
                ready = select.select(watched, [], [], max(0, until - time.monotonic()))[0]
                if output in ready:
                    data = take(output)
                    said = (said + data)[-SAID:]
                    if not data:
                        watched.discard(output)
                if pidfd in ready:
                    break
                if 0 in ready:
                    data = os.read(0, 4096)
                    self.buffer += data
                    self.gone = not data
                    if self.gone:
                        watched.discard(0)
                        how = "" if dying else "ended with the one who asked for it"
                if not how and time.monotonic() >= until:
                    how = "killed at its time limit"
            try:
                os.killpg(pid, signal.SIGKILL)  # with all that it has started
            except ProcessLookupError:
                pass
            code = os.waitstatus_to_exitcode(os.waitpid(pid, 0)[1])
            said = (said + take(output))[-SAID:]  # a pipe holds less than is taken at once
            return how or (f"exit {code}" if code >= 0 else f"killed by signal {-code}"), said
        finally:
            os.close(pidfd)


def take(output):
    """What lies in the pipe, b"": nothing, or nobody holds its other end."""
    try:
        return os.read(output, PIPE)
    except BlockingIOError:
        return b""


STANDARD = [signal.SIGINT, signal.SIGTERM, signal.SIGHUP, signal.SIGPIPE]


def main(text):
    for number in (signal.SIGINT, signal.SIGTERM, signal.SIGHUP):  # what ends the freezer must not end its guard
        signal.signal(number, signal.SIG_IGN)
    signal.signal(signal.SIGPIPE, signal.SIG_IGN)
    asked = json.loads(text)
    for fd in asked.pop("fds"):
        os.set_inheritable(fd, False)  # not to hooks: a filesystem could not be unmounted while one of their children lives
    guard = Guard(**asked)
    os.write(1, b"r")
    try:
        guard.serve()
    except BrokenPipeError:  # gone while it was answered
        guard.thaw()
        for number in reversed(list(guard.owed)):
            guard.run("after", number)
        guard.thaw()


if __name__ == "__main__":
    main(sys.argv[1])
