"""How many data connections a run shall have, and what has to be done so that it has them."""

from qrep.protocol.messages import CONNECTIONS_MAX


class Connections:
    """count: how many are wanted: slots 0 to count - 1. Used by the thread of the run alone."""

    def __init__(self, count):
        self.count = count
        self._asked = []  # slots that tokens were asked for
        self._told = set()  # slots that are down, as was told

    def change(self, count, removed, lanes, machine):
        """count: from now on. removed: a slot whose place the later ones take, or None. lanes: those that run, or None."""
        self.count = count
        machine.set_connections(count)
        if lanes is not None and removed is not None:
            lanes.remove(removed)
            self._asked = [slot - (slot > removed) if slot != removed else count for slot in self._asked]

    def settle(self, lanes, machine):
        """Actions that bring what is there closer to what is wanted; lanes that are too many are told to finish."""
        lanes.shrink(self.count)
        room = min(machine.may_add_connections(), CONNECTIONS_MAX - lanes.places())
        missing = lanes.missing(self.count)[: max(0, room)]
        if not missing:
            return []
        self._asked = missing
        return machine.add_connections(len(missing))

    def news(self, lanes):
        """[(event code, text, slot)] of what has changed. Where no connection is there at all, that is for the run to tell."""
        now = lanes.connections()
        if not any(entry["state"] in ("up", "finishing") for entry in now):
            return []
        down = {entry["number"] - 1: entry["text"] for entry in now if entry["state"] == "down"}
        up = {entry["number"] - 1 for entry in now if entry["state"] == "up"}
        found = [("connection-down", f"connection {slot + 1}: {down[slot]}; the others do its work", slot) for slot in down.keys() - self._told]
        found += [("connection-up", f"connection {slot + 1} is there again", slot) for slot in up & self._told]
        self._told = (self._told - up) | down.keys()
        return found

    def added(self, tokens, lanes):
        """The target gave tokens: a lane for each; one that is not wanted any more leaves as soon as it is there.

        lanes: None when those of the session have ended while the target was asked; the tokens become void by themselves.
        """
        asked, self._asked = self._asked, []
        if lanes is None:
            return
        lanes.add(tokens, asked)
        lanes.shrink(self.count)
