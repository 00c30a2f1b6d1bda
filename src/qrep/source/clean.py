"""Volumes that were never written: found so before the first run, proved by it on both sides, and then nothing is copied.

The first run of such a source asks the target what it holds instead of sending everything. The target looks at all of its own device, or at its
holes; the source at its frozen image, or at its holes. Where both find zeroes only, the generation is committed without a frame.
"""

from qrep._native.disk import STATE_MASK, STATE_ZERO
from qrep.digestmap import NO_ID
from qrep.errors import QrepError
from qrep.volumes import registry


def initial(request, digest_map):
    """How a run that has no map begins: request.initial, or "compare" where that is auto and the source looks as if it was never written."""
    fresh = digest_map.tag == NO_ID and digest_map.pending is None
    if request.initial == "auto" and fresh and request.backend.never_written(request.device):
        return "compare"
    return request.initial


def never_written(settings, device):
    """Whether a volume looks so, for people. settings: its settings.Volume. device: its DeviceInfo. One that cannot be frozen says so in its run."""
    try:
        return registry.of_volume(settings, device).backend.never_written(device)
    except QrepError:
        return False


def is_clean(base, states, changed):
    """Whether a committed run is the first one, of two empty volumes. base: the generation it began with. changed: bytes."""
    return base == NO_ID and not changed and all(state & STATE_MASK == STATE_ZERO for state in set(states))
