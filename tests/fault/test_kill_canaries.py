"""What the kill tests look at after each kill would tell: targets with a defect are noticed by the same oracle."""

import oracle
import pytest
from fault.scene import Torn

pytestmark = pytest.mark.root
OF_RECOVERY = ("nothing_is_put_back", "the_last_batch_is_not_put_back", "something_is_written_after_the_recovery")


@pytest.mark.parametrize("defect", OF_RECOVERY)
def test_a_recovery_that_leaves_something_else_is_noticed(committed, defect):
    assert committed.run("", "target-flush-before:1")[1] == -9
    committed.defect = defect
    with pytest.raises(Torn):
        committed.recover()


def test_a_map_that_tells_of_another_content_is_noticed(committed):
    committed.defect = "the_map_tells_of_another_content"
    committed.run("", "map-fold-durable:1")
    committed.defect = ""
    with pytest.raises(oracle.Wrong, match="the value of granule"):
        committed.recover()
