"""The heartbeat of a control session at its target: said by a thread of its own, however long the volume's lock is held by something else."""

import logging
import threading

from qrep.protocol.transport import Disconnected

log = logging.getLogger("qrep.target")
BEAT_S = 1.0


class Pulse:
    """From now on until end(), or until the channel is closed, `tell()` is sent every BEAT_S. tell(): a messages.Beat; must not wait."""

    def __init__(self, channel, tell):
        self._channel, self._tell = channel, tell
        self._ended = threading.Event()
        threading.Thread(target=self._beat, name="target-pulse", daemon=True).start()

    def end(self):
        """Say no more; what is being sent may still go out."""
        self._ended.set()

    def __enter__(self):
        return self

    def __exit__(self, *_exception):
        self.end()

    def _beat(self):
        while not self._ended.wait(BEAT_S):
            try:
                self._channel.send(self._tell())
            except Disconnected:  # whoever listens to this channel hears it, too
                return
            except Exception:  # a bug of ours: both ends learn now that this session is over, not when one misses the beat
                log.exception("the heartbeat of a session died")
                self._channel.close()
                return
