"""The third act (`--all`): what else happens to a replica: verified and healed, grouped, copied, cloned, carried away, switched and brought back."""

import os
import random
import re
from typing import NamedTuple

from qrep import units
from qrep.client import Client
from qrep.demo.content import files_of
from qrep.demo.place import b3sum
from qrep.demo.telling import Telling

MIB = 1 << 20
SIZE = 48 * MIB
LEAF = 4096


class Life(Telling):
    def life(self):
        self.start_clean()
        self.verify_and_heal()
        self.read_what_changed()
        self.show_a_moment()
        self.thin_out()
        self.copy_once()
        self.commit_together()
        self.send_to_many()
        self.carry_a_clone()
        self.switch_as_planned()
        self.lose_the_source()
        self.go_back()

    # ---- a volume that was never written ----

    def start_clean(self):
        self.say("\nWhat was never written need not be copied, if both sides can prove it.")
        with self.step("the first copy of a new volume of 8 GiB", "skipped, the roots are equal") as step:
            for site, options in ((self.a, ()), (self.b, ("--accept", "site-a"))):
                directory = os.path.join(self.place.path, "xfs", f"new-{site.name}")
                os.mkdir(directory)
                site.qrep("volume", "create", "new", "--size", "8G", "--in", directory, *options)
            self.a.qrep("job", "create", "new", "--source", "new", "--target", "site-b:new")
            last = self._wait_run(self.a, "new")
            text = f"read {units.format_size(last['read'])}, sent {units.format_size(last['sent'])}"
            step.measured(text, bool(last["clean"]) and last["sent"] < MIB)

    # ---- damage ----

    def verify_and_heal(self):
        self.say("\nA bit of the replica rots. Each side reads only its own device; what crosses the wire is digests.")
        self.books, self.books_target = self._pair("books", filesystem=True)
        self._wait_run(self.a, "books")
        with self.step("one bit of the target flipped, verify", "that leaf and no other, exit 6") as step:
            place = 20 * MIB + 12345
            _flip(self.books_target.image, place)
            found = [int(offset) for offset in re.findall(r"offset (\d+)", self.a.qrep("verify", "books", code=6))]
            step.measured(f"leaves at {', '.join(str(offset) for offset in found) or 'none'}", found == [place // LEAF * LEAF])
        with self.step("verify --repair, from what the source still holds", "healed in place, equal") as step:
            self.a.qrep("verify", "books", "--repair", "-y")
            self.a.qrep("verify", "books")
            root = self.a.job("books")["root"]
            step.measured("no difference, b3sum is the root", b3sum(self.books_target.device) == root)

    # ---- hints ----

    def read_what_changed(self):
        self.say("\nTwo clones of an image know what they do not share, so a run reads little more than what changed.")
        with self.step("a run after 8 MiB of changes", "reads at most 1.2 times what changed") as step:
            self._wait_run(self.a, "books")
            with open(os.path.join(self.books.point, "ledger"), "r+b") as file:
                file.write(os.urandom(8 * MIB))
                os.fsync(file.fileno())
            last = self._wait_run(self.a, "books")
            ratio = last["read"] / last["changed"]
            text = f"read {units.format_size(last['read'])}, changed {units.format_size(last['changed'])}: {ratio:.2f}"
            step.measured(text, last["root"] == b3sum(self.books_target.device) and ratio <= 1.2)

    # ---- sync points ----

    def show_a_moment(self):
        self.say("\nA disaster test: an earlier sync point is mounted and written to over there, while replication goes on.")
        with self.step("attach a sync point, write to it, a run meanwhile", "the files of then; the replica is not touched") as step:
            before = self._wait_run(self.a, "books")["counter"]
            then = files_of(self.books.point)
            _file(self.books.point, "after-that", MIB)
            os.sync()
            output = self.b.qrep("attach", f"books@{before}")
            point = self.place.mount(re.search(r"/dev/\w+", output)[0], "test")
            found = files_of(point)
            _file(point, "test-result", MIB)
            os.sync()
            last = self._wait_run(self.a, "books")
            self.place.unmount(point)
            self.b.qrep("detach", f"books@{before}", "-y")
            equal = last["root"] == b3sum(self.books_target.device)
            step.measured(f"{len(found)} files equal, the run is {'equal' if equal else 'different'}", found == then and equal)

    def thin_out(self):
        with self.step("a sync point in the middle given up", "the ones before it are still there, exactly") as step:
            points = {point["point"]: point["root"] for point in self._points()}
            oldest, middle = sorted(points, key=int)[0], sorted(points, key=int)[1]
            self.b.qrep("snapshot", "delete", f"books@{middle}", "-y")
            copy = os.path.join(self.place.path, "oldest.img")
            self.b.qrep("snapshot", "books")
            self.b.qrep("snapshot", "copy", f"books@{oldest}", copy)
            left = {point["point"] for point in self._points()}
            step.measured(f"{len(points)} -> {len(left)} sync points", left == set(points) - {middle} and b3sum(copy) == points[oldest])

    def _points(self):
        return Client(self.b.socket).get("/volumes/books/snapshots")

    # ---- copies ----

    def copy_once(self):
        self.say("\nA copy is made once: its target is free as soon as it is there, and what the source becomes later does not matter.")
        with self.step("--mode copy, then mounted over there", "the files of that moment") as step:
            target = self.place.loop(self.place.image("copy.img", SIZE))
            self.b.qrep("volume", "add", "copy", target, "--accept", "site-a")
            self.a.qrep("job", "create", "copy", "--source", "books", "--target", "site-b:copy", "--mode", "copy")
            before = files_of(self.books.point)
            self.a.qrep("start", "copy", "--wait")
            with open(os.path.join(self.books.point, "later"), "wb") as file:
                file.write(b"not in the copy")
                os.fsync(file.fileno())
            point = self.place.mount(target, "copy")
            found = files_of(point)
            self.place.unmount(point)
            self.a.qrep("start", "copy", code=5)
            step.measured(f"{len(found)} files equal, a second start is refused" if found == before else "they differ", found == before)

    # ---- several volumes ----

    def commit_together(self):
        self.say("\nTwo volumes of one application: frozen at one moment, committed both or neither.")
        with self.step("a consistency group, an agent killed in its run", "both at one generation, or both at the one before") as step:
            volumes = [self._pair(name, "--group", "shop") for name in ("orders", "stock")]
            self.a.qrep("start", "orders", "--wait")
            for number, (source, _target) in enumerate(volumes):
                _write(source.device, 24 * MIB, number)
            before = [self.a.job(name)["counter"] for name in ("orders", "stock")]
            command = self.a.begin("start", "orders", "--wait")
            self.until(lambda: command.poll() is not None or self.sent("orders") + self.sent("stock") > 4 * MIB, "the group sent nothing")
            self.b.kill()
            self.b.start()
            self.a.end(command, None)
            self.until(lambda: all(self.a.job(name)["state"] in ("idle", "failed") for name in ("orders", "stock")), "the group did not end")
            after = [self.a.job(name)["counter"] for name in ("orders", "stock")]
            together = after == [number + 1 for number in before] or after == before
            if after == before:
                self.a.qrep("start", "orders", "--wait")
            equal = all(b3sum(source.device) == b3sum(target.device) for source, target in volumes)
            step.measured(f"generations {before} -> {after}, {'equal' if equal else 'different'}", together and equal)

    def send_to_many(self):
        with self.step("one source, three targets, started together", "three equal, read once") as step:
            source, first = self._pair("news")
            targets = [first]
            for number in (2, 3):
                target = self.place.loop(self.place.image(f"news{number}-target.img", SIZE))
                self.b.qrep("volume", "add", f"news{number}", target, "--accept", "site-a")
                self.a.qrep("job", "create", f"news{number}", "--source", "news", "--target", f"site-b:news{number}")
                targets.append(Volume(target, None, None))
            names = ["news", "news2", "news3"]
            self.a.qrep("start", *names, "--wait")
            _write(source.device, 4 * MIB, 7)
            self.a.qrep("start", *names, "--wait")
            equal = len({b3sum(source.device), *(b3sum(target.device) for target in targets)}) == 1
            read = sum(self.a.job(name)["last_run"]["read"] for name in names)
            step.measured(f"read {units.format_size(read)} for a volume of {units.format_size(SIZE)}", equal and read <= 1.5 * SIZE)

    # ---- clones ----

    def carry_a_clone(self):
        self.say("\nThe first copy goes by car: a clone is made here, its disk is carried over, and only what differs crosses the wire.")
        source = self._volume(self.a, "films")
        clone = self.place.image("films-clone.img", SIZE)
        device = self.place.loop(clone)
        with self.step("a clone becomes a job", "waits for its disk, keeps track") as step:
            self.a.qrep("volume", "add", "films-copy", device)
            self.a.qrep("clone", "create", "films", "films-copy")
            self.a.qrep("clone", "start", "films", "--wait")
            equal = b3sum(device) == b3sum(source.device)
            self.a.qrep("clone", "convert", "films", "-y")
            self.place.detach(device)
            step.measured("the clone is equal, and released", equal)
        with self.step("rebuild with a wrong disk", "refused, exit 5, nothing written") as step:
            wrong = self._volume(self.b, "wrong", "--accept", "site-a")
            before = b3sum(wrong.device)
            output = self.a.qrep("job", "rebuild", "films", "--target", "site-b:wrong", code=5)
            refused = re.search(r"is not the clone of films.*", output)
            step.measured(refused[0] if refused else "not refused", bool(refused) and b3sum(wrong.device) == before)
        with self.step("rebuild with the disk that was carried", "only what changed since") as step:
            moved = self.place.loop(clone)
            _write(source.device, 2 * MIB, 8)
            self.b.qrep("volume", "add", "films", moved, "--accept", "site-a")
            self.a.qrep("job", "rebuild", "films", "--target", "site-b:films")
            last = self._wait_run(self.a, "films")
            equal = b3sum(moved) == b3sum(source.device)
            step.measured(f"sent {units.format_size(last['sent'])} of {units.format_size(SIZE)}, equal", equal and last["sent"] < 8 * MIB)

    # ---- roles ----

    def switch_as_planned(self):
        self.say("\nThe application moves to the other site and back: the source gives up first, so that there are never two.")
        books = self.books
        with self.step("demote here, promote there", "the same files, mounted there") as step:
            self.b.qrep("job", "promote", "books", "-y", code=5)
            before = files_of(books.point)
            self.place.unmount(books.point)
            self.a.qrep("job", "demote", "books", "-y")
            self.b.qrep("job", "promote", "books", "-y")
            self.there = self.place.mount(self.books_target.device, "books-there")
            found = files_of(self.there)
            step.measured(f"{len(found)} files equal" if found == before else "they differ", found == before)
        with self.step("work there, failback", "the work is here") as step:
            _file(self.there, "written-there", MIB)
            os.sync()
            before = files_of(self.there)
            self.place.unmount(self.there)
            self.b.qrep("job", "failback", "books", "-n")
            self.b.qrep("job", "failback", "books", "-y")
            found = self._files_here()
            step.measured(f"{len(found)} files equal" if found == before else "they differ", found == before)

    def lose_the_source(self):
        self.say("\nThe source's site is lost, and comes back later with writes that never arrived.")
        self._wait_run(self.a, "books")
        with self.step("promote --force, then the old source comes back", "refused on both sides as split-brain, exit 5") as step:
            point = self.place.mount(self.books.device, "books")
            _file(point, "never-arrived", MIB)
            os.sync()
            self.a.kill()
            self.b.qrep("job", "promote", "books", "--force", "-y")
            there = self.place.mount(self.books_target.device, "books-there")
            _file(there, "after-the-loss", MIB)
            os.sync()
            self.place.unmount(there)
            self.place.unmount(point)
            held = b3sum(self.books_target.device)
            self.a.start()
            self.a.qrep("start", "books", "--wait", code=5)
            step.measured("refused, nothing written", {site.job("books")["problem"]["code"] for site in (self.a, self.b)} == {"split-brain"} and b3sum(self.books_target.device) == held)
        with self.step("the losing side is named, and failback", "equal; what was given up is a sync point until the swap") as step:
            self.a.qrep("job", "demote", "books", "-y")
            self.b.qrep("job", "failback", "books", "-y")
            names = set(self._files_here())
            step.measured("only what was written after the loss is here", "after-the-loss" in names and "never-arrived" not in names)
        with self.step("one more run, the first way again", "equal") as step:
            last = self._wait_run(self.a, "books")
            step.measured("equal", last["root"] == b3sum(self.books.device) == b3sum(self.books_target.device))

    def go_back(self):
        self.say("\nA ledger is lost by a mistake that was replicated, too. The source gets back what its target still holds.")
        with self.step("restore the source from a sync point", "the files of then, only what differs is sent") as step:
            point = self._wait_run(self.a, "books")["counter"]
            then = self._files_here()
            here = self.place.mount(self.books.device, "books")
            os.unlink(os.path.join(here, "ledger"))
            self.place.unmount(here)
            self._wait_run(self.a, "books")
            self.a.qrep("job", "restore", f"books@{point}", "-y")
            found = self._files_here()
            step.measured(f"{len(found)} files equal" if found == then else "they differ", found == then)

    def _files_here(self):
        point = self.place.mount(self.books.device, "books", "-o", "ro")
        found = files_of(point)
        self.place.unmount(point)
        return found

    # ---- what these scenes are made of ----

    def _volume(self, site, name, *options, filesystem=False):
        """A volume of random data, known to a site."""
        image = self.place.image(f"xfs/{name}-{site.name}.img", SIZE)
        device = self.place.loop(image)
        point = None
        if filesystem:
            self.place.command("mkfs.ext4", "-q", device)
            point = self.place.mount(device, name)
            _file(point, "ledger", 16 * MIB)
            for number in range(20):
                _file(point, f"page{number}", 50 * 1024)
            os.sync()
        else:
            _write(device, 32 * MIB, name)
        site.qrep("volume", "add", name, device, *options)
        return Volume(device, image, point)

    def _pair(self, name, *options, filesystem=False):
        """(source, target) of a new job `name`."""
        source = self._volume(self.a, name, filesystem=filesystem)
        image = self.place.image(f"{name}-target.img", SIZE)
        target = Volume(self.place.loop(image), image, None)
        self.b.qrep("volume", "add", name, target.device, "--accept", "site-a")
        self.a.qrep("job", "create", name, "--source", name, "--target", f"site-b:{name}", *options)
        return source, target

    def _wait_run(self, site, name):
        site.qrep("start", name, "--wait")
        return site.job(name)["last_run"]


class Volume(NamedTuple):
    """device: a loop device over image. point: where its filesystem is mounted, None for none."""

    device: str
    image: str
    point: str | None


def _write(device, size, seed):
    """Overwrite the beginning of a device; the same seed, the same bytes."""
    with open(device, "r+b") as file:
        file.write(random.Random(seed).randbytes(size))
        os.fsync(file.fileno())


def _file(point, name, size):
    with open(os.path.join(point, name), "wb") as file:
        file.write(random.Random(name).randbytes(size))


def _flip(image, offset):
    """One bit, behind the back of whoever holds the device over this image."""
    with open(image, "r+b") as file:
        file.seek(offset)
        byte = file.read(1)[0]
        file.seek(offset)
        file.write(bytes([byte ^ 1]))
        os.fsync(file.fileno())
