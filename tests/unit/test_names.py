"""Names of hosts become addresses outside of the engine."""

import pytest

from qrep.daemon.names import addresses_of
from qrep.errors import Unreachable


@pytest.mark.parametrize("text", ["127.0.0.1", "10.97.0.2", "::1", "fe80::1%2"])
def test_an_address_is_itself(text):
    assert addresses_of(text, 1) == [text]


def test_an_interface_becomes_its_number():
    assert addresses_of("fe80::1%lo", 1) == ["fe80::1%1"]
    with pytest.raises(Unreachable, match="no interface nothere"):
        addresses_of("fe80::1%nothere", 1)


def test_a_name_of_this_host():
    assert {"127.0.0.1", "::1"} & set(addresses_of("localhost", 10))


@pytest.mark.parametrize("name", ["--help", "-V", "a b", "", "x" * 300])
def test_what_is_no_name_is_none(name):
    with pytest.raises(Unreachable):
        addresses_of(name, 10)
