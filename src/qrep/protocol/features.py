"""What the frames of a session may use beyond version 1 of their format, agreed on with `hello` and `state`.

The source offers names, the target answers with those of them that it takes. A name that one end does not know is no error: it is not used.
What was not agreed on must not come; a frame that uses it is refused (wire.h).
"""

from qrep.errors import ProtocolError

KNOWN = ("copies", "zstd")  # by this program: feature_bits() of wire.pxd has their bits


def common(offered):
    """Of the names in a Hello, those that this end takes."""
    return tuple(name for name in KNOWN if name in offered)


def agreed(offered, answered):
    """What is used, by the answer in a State. Raises ProtocolError if it names what was not offered."""
    if not set(answered) <= set(offered):
        raise ProtocolError(f"the target chose features that were not offered: {', '.join(sorted(set(answered) - set(offered)))}")
    return common(answered)
