"""What a message that this program cannot read says of the program that sent it: a newer one may have fields that are unknown here."""

import msgspec

from qrep.errors import ProtocolError

FIRST = ("hello", "offer")  # they name the versions that their sender speaks, in these two fields, in every version


def told(body, low, high):
    """A ProtocolError that names both ends' versions if `body` is the first message of a program that speaks none of low to high, else None."""
    try:
        fields = msgspec.msgpack.decode(body)
    except (msgspec.DecodeError, UnicodeDecodeError, RecursionError, ValueError):
        return None
    if not isinstance(fields, dict) or fields.get("t") not in FIRST:
        return None
    least, most = fields.get("version_min"), fields.get("version_max")
    if type(least) is not int or type(most) is not int or (least <= high and low <= most):
        return None
    return versions_apart(low, high, least, most)


def versions_apart(low, high, least, most):
    """low, high: of this end, the target; least, most: of the source."""
    return ProtocolError(
        f"the target speaks protocol {low} to {high}, the source {least} to {most}", hint="bring both ends to versions that overlap", code="version"
    )
