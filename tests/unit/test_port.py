"""The peer port's bounds."""

from qrep.daemon.front.port import Room


def test_one_peer_takes_half_of_the_places_and_the_others_still_come_in():
    room = Room(8)
    assert [room.take("site-b") for _ in range(4)] == [""] * 4
    assert "half" in room.take("site-b")
    assert [room.take("site-c") for _ in range(4)] == [""] * 4
    assert "more than 8 connections" in room.take("site-d")
    room.give_back("site-b")
    assert room.take("site-d") == "" and room.take("site-d") != ""


def test_where_there_is_one_place_it_can_be_taken():
    room = Room(1)
    assert room.take("site-b") == "" and room.take("site-b") != ""
    room.give_back("site-b")
    assert room.take("site-c") == ""
