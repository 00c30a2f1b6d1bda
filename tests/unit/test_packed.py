"""What packing saved, as people read it; and which jobs may pack."""

from qrep.cli.packed import sent_text

MIB = 1 << 20


def test_what_was_saved_is_said_as_a_ratio_and_only_where_it_is_worth_a_word():
    # 30 MiB of data travelled as 10, beside 2 MiB that travelled plain: 32 MiB for 12
    assert sent_text({"sent": 12 * MIB, "packed": 30 * MIB, "packed_sent": 10 * MIB}) == "12 MiB (2.7x packed)"
    assert sent_text({"sent": 12 * MIB, "packed": 1000, "packed_sent": 900}) == "12 MiB"
    assert sent_text({"sent": 12 * MIB}) == "12 MiB"
    assert sent_text({"sent": 12 * MIB, "copies": 6 * MIB}) == "12 MiB (6 MiB as copies)"
    assert sent_text({"sent": 12 * MIB, "packed": 30 * MIB, "packed_sent": 10 * MIB, "copies": 6 * MIB}) == "12 MiB (2.7x packed, 6 MiB as copies)"
    assert sent_text({"sent": 12 * MIB, "copies": 1000}) == "12 MiB"
    assert sent_text({"sent": 0, "packed": 0, "packed_sent": 0}) == "0 B"
    assert sent_text({"sent": None, "packed": None, "packed_sent": None}) == "0 B"
