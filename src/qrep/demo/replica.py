"""The first act: a volume is replicated through changes, kills, a rollback and back, and equal after each."""

import re

from qrep import units
from qrep.demo.content import Content, files_of
from qrep.demo.place import SPARSE, Cables, Witness, b3sum
from qrep.demo.site import Site
from qrep.demo.telling import ROOT, Telling


class Replica(Telling):
    def set_up(self):
        place = self.place
        self.say("A volume with real files, on an image that can be cloned, and an empty target of the same size.")
        with self.step("two agents, pinned to each other", "both answer") as step:
            outer = place.loop(place.image("outer.img", 2 * SPARSE))
            place.command("mkfs.xfs", "-q", "-m", "reflink=1", outer)
            xfs = place.mount(outer, "xfs")
            self.witness = Witness(xfs)
            self.source = place.loop(place.image("xfs/source.img", SPARSE))
            place.command("mkfs.ext4", "-q", self.source)
            self.content = Content(place.mount(self.source, "data"))
            self.content.make()
            self.target_image = place.image("target.img", SPARSE)
            self.target = place.loop(self.target_image)
            self.cables = Cables(place)
            self.a, self.b = (Site(place, name, self.cables) for name in Cables.SITES)
            seconds = max(self.a.start(), self.b.start())
            self.a.qrep("peer", "add", "site-b", ",".join(self.b.addresses), "-y")
            self.b.qrep("peer", "add", "site-a", ",".join(self.a.addresses), "-y")
            step.measured(f"both within {seconds:.1f} s", True)
        with self.step("a job over both volumes", "created") as step:
            self.a.qrep("volume", "add", "data", self.source)
            self.b.qrep("volume", "add", "data", self.target, "--accept", "site-a")
            output = self.a.qrep("job", "create", "data", "--source", "data", "--target", "site-b:data", "--sync-points", "5")
            step.measured("created", "Created job data" in output)

    def first_run(self):
        self.full_sent = self.run_and_compare("first run, source mounted and in use", "the whole volume")

    def differential_run(self):
        self.say("\nA new file, 64 changed pages, one file deleted, one renamed.")
        self.content.change_a_little()
        with self.step("how much would move (start -n)", "under 16 MiB") as step:
            number, unit = re.search(r"Would send ([0-9.]+) (\S+) of", self.a.qrep("start", "data", "-n")).groups()
            moved = float(number) * units.parse_size(f"1{unit}")
            step.measured(f"{number} {unit}", 0 < moved < 16 << 20)
        sent = self.run_and_compare("second run", "only what changed")
        with self.step("what the second run sent", "under 16 MiB") as step:
            step.measured(f"{units.format_size(sent)} of {units.format_size(SPARSE)}", 0 < sent < 16 << 20)

    def kill_source(self):
        self.say("\nThe source's agent dies in the middle of a run.")
        with self.step("kill -9 of the source's agent, resume", "resumed, equal") as step:
            self.in_the_middle(self.a)
            before = self.committed(self.b)
            self.a.start()
            self.say("  (the agent takes the run up by itself)")
            last = self.wait_for(before + 1)
            self.a.qrep("events", "--since", "1m", "data")
            equal, text = self.compare(last["counter"], last["root"])
            how = "resumed" if last["resumed"] else "begun anew"
            step.measured(f"{how}, {text}, sent {units.format_size(last['sent'])}", equal and last["resumed"])

    def kill_target(self):
        self.say("\nThe target's agent dies in the middle of a run, and recovers without the source.")
        with self.step("kill -9 of the target's agent, recovery", "the last sync point, exactly") as step:
            last = self.committed(self.b)
            command = self.in_the_middle(self.b)
            self.a.qrep("stop", "data")
            self.a.end(command, None)
            seconds = self.b.start()
            self.b.qrep("events", "--since", "1m")
            found = b3sum(self.target)
            step.measured(f"ready in {seconds:.1f} s, b3sum is that of generation {last}", found == self.roots[last])
        self.run_and_compare("the run after it", "equal")

    def roll_back(self):
        self.say("\nBack to the second sync point.")
        with self.step("rollback to an earlier sync point", "b3sum of that generation") as step:
            self.b.qrep("snapshot", "data")
            self.b.qrep("snapshot", "rollback", "data@2", "-y")
            found = b3sum(self.target)
            step.measured(f"{found[:16]}...", found == self.roots[2])
        with self.step("mounted read-only, file by file", "the files of that moment") as step:
            device = self.place.loop(self.target_image, "--read-only")
            point = self.place.mount(device, "rolled-back", "-o", "ro,noload")
            found = files_of(point)
            self.place.unmount(point)
            self.place.detach(device)  # whose agent starts anew must not find its target in use by another loop device
            step.measured(f"{len(found)} files equal" if found == self.files[2] else "they differ", found == self.files[2])

    def catch_up(self):
        self.run_and_compare("forward again from the rolled back target", "equal")
        with self.step("verify, hashed by the packaged blake3", "no difference") as step:
            output = self.a.qrep("verify", "data", "--independent")
            root = ROOT.search(output)
            step.measured("no difference, same root", bool(root) and root[1] == self.roots[max(self.roots)])
        with self.step("a run with nothing changed", "sends nothing") as step:
            self.place.command("mount", "-o", "remount,ro", self.content.point)
            self.run("--wait")
            self.run("--wait")
            changed = self.a.job("data")["last_run"]["changed"]
            step.measured(f"{units.format_size(changed)} changed", changed == 0)
