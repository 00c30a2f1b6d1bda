"""Seeded defects that the harness of roles must report, as canaries.py has them for networks."""

SEED = 1


def told(station, number, repeat=0):
    return station.play(SEED, number, repeat).findings


def bears(canary, number, words, what):
    """Agents that bear a defect are reported by this scenario, in these words."""

    def play(station):
        agents = (station.a, station.b)
        for agent in agents:
            agent.bear(canary)
        try:
            findings = told(station, number)
        finally:
            for agent in agents:
                agent.bear("")
        return {what: (any(word in finding for finding in findings for word in words), findings)}

    return play


def wrong_leaf(station):
    """One wrong leaf on a replica."""
    change = station.change

    def flip(site):
        del station.change
        station.flip_leaf()
        change(site)

    station.change = flip
    findings = told(station, 0)
    return {"a leaf of a replica is wrong": (any("leaves differ" in finding for finding in findings), findings)}


# Scenario 0 of `SEED` is ping-pong between hosts that do not allow a switch by one command.
ON_ANY_STATION = {
    "role-takes-over": bears("takes-over", 0, ("where it must be refused",), "a replica takes over though its source is primary"),
    "role-equal": bears("equal", 0, ("leaves differ", "different contents"), "a switch without its last run"),
    "role-one-id": bears("one-id", 0, ("a second time", "must be done"), "every change of role has the same id"),
    "role-wrong-leaf": wrong_leaf,
}
NAMES = tuple(ON_ANY_STATION)
