"""A run whose snapshot others hold, too: what it reads, compares with and gives back when its target moves, or when a name is asked for."""

import pytest
from flow.harness import GRANULE, JOB, LEAF, MIB, b3sum
from flow.test_hints import interrupted_run
from flow.test_hints import site as hinted  # noqa: F401

from qrep.jobs.sharedturn import SharedTurn
from qrep.source import shared
from qrep.source.shared import SharedSource, SharedTokens
from qrep.store import Directory
from qrep.volumes.reflink import Reflink

pytestmark = pytest.mark.root
OTHER = bytes([9]) * 16


class Moved(Reflink):
    """While the first snapshot is made somebody does something."""

    def __init__(self, meanwhile):
        super().__init__()
        self.meanwhile = meanwhile

    def freeze(self, *given, **more):
        frozen = super().freeze(*given, **more)
        meanwhile, self.meanwhile = self.meanwhile, None
        if meanwhile is not None:
            meanwhile()
        return frozen


@pytest.fixture
def several(monkeypatch, tmp_path, undo_after):
    """start(): a SharedSource of the site's job and another one that holds the snapshot and never comes."""
    monkeypatch.setattr(shared, "GATHER_S", 0.0)
    directory = Directory(str(tmp_path))
    undo_after.callback(directory.close)
    tokens = SharedTokens(directory)

    def start():
        return SharedSource(tokens, "volume", {"this": JOB.hex(), "other": OTHER.hex()}, SharedTurn(None))

    return start


def run_as(site, member, **options):
    """The report of a run that shares, or of one that does not (member None)."""
    tokens = member._shared.tokens if member is not None else None
    run = site.make_run(together=member, tokens=tokens, **options)
    if member is not None:
        member.joined(run)
    try:
        report = run.run()
    finally:
        if member is not None:
            for each in member._shared.members.values():
                each.ended(None)
            assert len(site.snapshots()) == 1, "nobody holds what all had"
    assert report.root == b3sum(site.target_path) == b3sum(site.source)
    site.map_is_true(24 * MIB)
    return report


@pytest.mark.parametrize("others", ["none", "hold it", "have ended"])
def test_a_target_that_is_rolled_back_while_its_source_is_frozen_is_compared_without_the_hint_of_before(hinted, several, random_source, others):
    hinted.put(MIB, random_source.randbytes(LEAF))
    hinted.run()
    hinted.put(5 * MIB, random_source.randbytes(LEAF))
    oldest = hinted.volume.sync_points()[-1]
    backend = Moved(lambda: hinted.volume.rollback(oldest.id))
    member = None
    if others != "none":
        members = several().members
        member = members["this"]
        if others == "have ended":
            members["other"].ended(None)
    report = run_as(hinted, member, backend=backend)
    assert report.interruptions and report.hints["state"] == "none" and report.changed == 2 * LEAF
    assert hinted.run().hints["state"] == "used"


def test_a_hint_is_not_used_over_another_map_than_it_was_made_for_though_the_image_is_the_same(hinted):
    run = hinted.make_run()
    try:
        image = run._image
        token = image.freeze("", None).token
        assert image.hints.state == "used" and image.hints.in_use is not None
        run._map.forget()
        assert image.freeze(token, None).token == token
        assert image.hints.state == "none" and image.hints.in_use is None
        image.give_back(token)
    finally:
        run._image.close()
        run._map.close()
        run._run_file.close()


@pytest.mark.parametrize("shares", [False, True])
@pytest.mark.parametrize("before", ["", "before-upgrade"])
def test_a_sync_point_with_a_name_shows_what_was_written_before_it_was_asked_for(hinted, several, random_source, shares, before):
    hinted.put(0, random_source.randbytes(4 * GRANULE))
    interrupted_run(hinted, GRANULE, label=before)
    hinted.put(7 * MIB, random_source.randbytes(LEAF))
    report = run_as(hinted, several().members["this"] if shares else None, label="before-upgrade")
    assert report.resumed and hinted.volume.sync_points()[0].name == "before-upgrade"
