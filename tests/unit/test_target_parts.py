"""The parts that a target volume and its machine are put together of."""

from collections import Counter

import pytest

from qrep.protocol.target_machine import TargetMachine
from qrep.target.volume import TargetVolume


@pytest.mark.parametrize("whole", [TargetVolume, TargetMachine])
def test_no_two_parts_of_a_target_use_one_name_for_different_things(whole):
    names = Counter(name for part in whole.__mro__[:-1] for name in vars(part) if not name.startswith("__"))
    assert not [name for name, count in names.items() if count > 1], "an attribute of one part would be taken for the method of another"
