"""What no process of ends.py may do although all data are right, for canaries: ends.py defect NAME target ..."""

import os
import threading


def a_thread_ends_in_a_traceback():
    def fail():
        raise RuntimeError("a bug")

    threading.Thread(target=fail).start()


def an_internal_error_is_told():
    """In what a target does once a commit is made, so that the run is right all the same."""
    from qrep.protocol import actions as do
    from qrep.target.driver import TargetDriver

    def fail(self, action):
        raise ValueError("a bug")

    TargetDriver._handlers[do.Retain] = fail


def a_descriptor_stays_open():
    """One of each connection."""
    from qrep.protocol.transport import Channel

    close = Channel.close

    def leaky(self):
        os.open("/dev/null", os.O_RDONLY)
        close(self)

    Channel.close = leaky


def a_file_is_left_to_the_garbage_collector():
    open("/dev/null")


def it_ends_with_another_code():
    end = os._exit
    os._exit = lambda code: end(code or 3)


DEFECTS = {
    each.__name__: each
    for each in (
        a_thread_ends_in_a_traceback, an_internal_error_is_told, a_descriptor_stays_open, a_file_is_left_to_the_garbage_collector,
        it_ends_with_another_code,
    )
}  # fmt: skip
