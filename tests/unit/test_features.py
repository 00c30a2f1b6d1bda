"""What frames may use is agreed on with hello and state: only what both ends know, and nothing that was not offered."""

import pytest

from qrep._native.source_lane import SourceRun
from qrep._native.target_lane import TargetRun
from qrep._native.wire import Geometry
from qrep.errors import ProtocolError
from qrep.protocol import features
from qrep.protocol import messages as say

SHAPE = Geometry(1 << 20, 4096, 16384)
RUN = dict(attempt=1, session=1, key=bytes(32), sector_size=512, base_states=bytes(64), base_values=bytes(64 * 32))


def test_what_is_common_is_in_the_order_of_this_program_and_knows_no_strangers():
    assert features.common(["from-tomorrow", *reversed(features.KNOWN), *features.KNOWN]) == features.KNOWN
    assert features.common([]) == ()


def test_an_answer_may_only_name_what_was_offered():
    assert features.agreed(("copies", "more"), ["copies"]) == ("copies",)
    assert features.agreed(("copies",), []) == ()
    with pytest.raises(ProtocolError, match="not offered: other"):
        features.agreed(("copies",), ["copies", "other"])


def test_too_many_names_or_too_long_ones_are_no_message():
    for names in (["x"] * 17, [""], ["x" * 17]):
        with pytest.raises(ProtocolError):
            say.decode(say.encode(say.Hello(1, 1, bytes(16), bytes(16), 1, 1 << 20, 4096, 16384, 512, False, names))[4:], "source")


@pytest.mark.parametrize("run", [SourceRun, TargetRun])
def test_lanes_know_every_feature_and_no_other(run):
    run(SHAPE, **RUN, features=features.KNOWN)
    with pytest.raises(ValueError, match="features"):
        run(SHAPE, **RUN, features=("made-up",))
