"""One process that a hook is: its input without a pipe that could fill, a bounded end of its output, and its end within a time."""

import contextlib
import os
import select
import signal
import subprocess
import time

OUTPUT_KEPT = 400  # bytes of the end of what it prints
READ = 65536


class HookProcess:
    """Raises OSError if it cannot be started. data: its standard input, which need not be read."""

    def __init__(self, command, data, environment):
        self._kept = b""
        with contextlib.ExitStack() as opened:
            given = os.memfd_create("event", os.MFD_CLOEXEC)
            opened.callback(os.close, given)
            os.write(given, data)
            os.lseek(given, 0, os.SEEK_SET)
            self._out, write_end = os.pipe2(os.O_CLOEXEC | os.O_NONBLOCK)
            os.set_blocking(write_end, True)
            opened.callback(os.close, write_end)
            try:
                self._process = subprocess.Popen(
                    command, stdin=given, stdout=write_end, stderr=write_end, cwd="/", env=environment, start_new_session=True, close_fds=True
                )
            except OSError:
                os.close(self._out)
                raise
        self._end = os.pidfd_open(self._process.pid)

    def wait(self, timeout):
        """Its exit code, negative for a signal; None if it took longer and was killed, with everything in its process group."""
        deadline = time.monotonic() + timeout
        waiting = select.poll()
        waiting.register(self._end, select.POLLIN)
        waiting.register(self._out, select.POLLIN)
        late = False
        try:
            while True:
                left = deadline - time.monotonic()
                if left <= 0 and not late:
                    late, left = True, None
                    self.kill()
                ready = dict(waiting.poll(None if late else max(1, left * 1000)))
                if self._out in ready and not self._read():
                    waiting.unregister(self._out)
                if self._end in ready:
                    self._read()
                    code = self._process.wait()
                    return None if late else code
        finally:
            os.close(self._end)
            os.close(self._out)

    def kill(self):
        """End it and everything in its process group, now. The group is its own until it has been waited for."""
        if self._process.returncode is None:
            with contextlib.suppress(ProcessLookupError):
                os.killpg(self._process.pid, signal.SIGKILL)

    def output(self):
        """The end of what it printed, as one line."""
        text = self._kept.decode(errors="replace").strip().splitlines()
        return text[-1] if text else ""

    def _read(self):
        """False at the end of its output."""
        try:
            data = os.read(self._out, READ)
        except BlockingIOError:
            return True
        self._kept = (self._kept + data)[-OUTPUT_KEPT:]
        return bool(data)
