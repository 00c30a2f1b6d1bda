"""Every call fails at its n-th time: a choice of the points of tests/iofail, those at which a defect was found among them, and its canaries."""

from iofail.running import start

ONE_IN = 29
# Points at which something was wrong once.
FOUND = [
    "merge superblock.read 2 zero",  # what was left of the first slot was taken for the second one
    "second superblock.read 1 zero",
    "rollback undo.read 55 short",  # half a batch of before-images was an internal error
    "rollback device.read 6 short",
    "second record.open 4 eio",  # the map of a run that could not begin stayed open
    "first record.open 5 eio",  # and so did its directory
    "second record.flush 1 eio",  # what was written beside run.json stayed for ever
    "second target-map.write 4 zero-always",  # it wrote nothing for ever
    "second source-map.write 9 zero-always",
    "merge undo.open 22 eio",  # an earlier sync point was lost with the one that was deleted, for its undo file could not be opened just then
    "merge undo.read 32 zero",  # or gave no byte
    "records statedb.write 17 short",  # the age of the state database was written in part, and not believed afterwards
    "records statedb.read 1 eio",  # and stayed open where it could not be read
    "verify target-map.read 4 eio",  # what reads the device for a verify ended, and its source waited for ever
]


def test_whatever_call_fails_the_target_holds_what_it_says_and_the_next_run_commits():
    told, code, errors = start(["--one-in", str(ONE_IN), *FOUND], timeout=600)
    assert told is not None, errors
    print(f"{told['points']} points, {told['states']} states, {told['seconds']} s, {told['cpu']} s of CPU; {told['kinds']}")
    assert told["failures"] == [] and told["complete"] and code == 0
    assert told["points"] > 250 and set(told["ends"]) == {"done", "failed", "ended"}


def test_errors_that_are_swallowed_are_reported():
    told, _code, errors = start(["--canaries"], timeout=300)
    assert told is not None, errors
    print(told["told"])
    assert told["missed"] == [] and told["caught"] == told["seeded"] >= 6


