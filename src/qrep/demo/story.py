"""What the demo shows, from beginning to end."""

from qrep.demo.life import Life
from qrep.demo.replica import Replica
from qrep.demo.unattended import Unattended


class Story(Replica, Unattended, Life):
    """place: a Place. say: as there."""

    def tell(self, everything=False):
        self.set_up()
        self.first_run()
        self.differential_run()
        self.kill_source()
        self.kill_target()
        self.roll_back()
        self.catch_up()
        self.schedule()
        self.share_a_rate()
        self.lose_a_path()
        if everything:
            self.life()

    def kept(self):
        """Where everything is, and how to look at it and to end it."""
        sites = [site for site in (self.a, self.b) if site is not None and site.process is not None]
        lines = [f"left in {self.place.path}; the agents run on. To use them:"]
        lines += [f"  qrep --socket {site.socket} status     ({site.name})" for site in sites]
        kill = f"kill {' '.join(str(site.process.pid) for site in sites)}; sleep 1" if sites else "true"
        return "\n".join([*lines, "To remove it:", f"  {'; '.join([kill, *self.place.ways_out()])}"])
