"""Connections of the simulation: in order while they live, cut at any moment, late, half open. Frames may be told twice or to the wrong lane."""


class End:
    """One end of a connection. receive(item) and closed() are set by whoever owns it."""

    def __init__(self, connection, side):
        self.connection, self.side = connection, side
        self.receive = None
        self.closed = None
        self.open = True
        self.waiting = []  # arrived before anyone listened

    def send(self, item):
        self.connection.carry(self.side, item)

    def close(self):
        """This end is gone; the other one hears of it after what was sent before."""
        if self.open:
            self.open = False
            self.connection.closing(self.side)

    def listen(self, receive, closed):
        self.receive, self.closed = receive, closed
        waiting, self.waiting = self.waiting, []
        for item in waiting:
            self.deliver(item)

    def deliver(self, item):
        if not self.open:
            return
        if self.receive is None:
            self.waiting.append(item)
        elif item is CLOSED:
            self.open = False
            self.closed()
        else:
            self.receive(item)


CLOSED = object()


class Connection:
    """Two Ends. latency: seconds, scale."""

    def __init__(self, world, network, name):
        self.world, self.network, self.name = world, network, name
        self.ends = (End(self, 0), End(self, 1))
        self.last = [0.0, 0.0]  # when the latest item of each direction arrives: nothing overtakes
        self.cut_off = False

    def carry(self, side, item):
        if self.cut_off:
            return
        world = self.world
        if world.chance(self.network.cut_chance):
            self.cut()
            return
        wait = world.delay(self.network.latency)
        if world.chance(0.01):
            wait += world.delay(2.0)
        self.last[side] = max(self.last[side], world.now + wait)
        world.at(self.last[side] - world.now, self._arrive, side, item)

    def _arrive(self, side, item):
        if not self.cut_off or self.late:
            self.ends[1 - side].deliver(item)

    def closing(self, side):
        if not self.cut_off:
            self.last[side] = max(self.last[side], self.world.now + self.world.delay(self.network.latency))
            self.world.at(self.last[side] - self.world.now, self._arrive, side, CLOSED)

    late = False

    def cut(self):
        """The wire is cut. What is under way is lost, or still arrives (late). Each end finds out in its own time; one may not for long."""
        if self.cut_off:
            return
        random = self.world.random
        self.cut_off = True
        self.late = random.random() < 0.5
        self.world.log(f"{self.name} is cut{' and drips' if self.late else ''}")
        for end in self.ends:
            wait = random.choice((0.01, 0.1, 1.0, 10.0 if not self.world.calm else 1.0))
            self.world.at(wait, end.deliver, CLOSED)


class Network:
    def __init__(self, world, *, latency, cut_chance):
        self.world, self.latency, self.cut_chance = world, latency, cut_chance
        self.connections = []
        self.down = False

    def connect(self, name):
        """A new connection, or None while the network is down."""
        if self.down:
            return None
        self.connections = [connection for connection in self.connections if any(end.open for end in connection.ends)]
        connection = Connection(self.world, self, name)
        self.connections.append(connection)
        return connection

    def cut_some(self, probability):
        for connection in list(self.connections):
            if self.world.random.random() < probability:
                connection.cut()
