"""What the man pages say beyond what the commands say of themselves: tables, notes and examples. How they become pages is in manual.py."""

EXIT_CODES = (
    (0, "It is done."), (1, "It failed."), (2, "The command or the configuration makes no sense."),
    (3, "It ended or runs degraded."), (4, "The agent or the peer cannot be reached."),
    (5, "Refused for safety; nothing was written."), (6, "Verify found differences."), (7, "There is no such object."),
    (8, "It took longer than it may."), (130, "Ended by the person in front of it. A run goes on in the agent; qrep stop ends it."),
)  # fmt: skip
ENVIRONMENT = (
    ("QREP_SOCKET", "The agent's socket; default /run/qrep/qrep.sock."),
    ("QREP_CONFIG_DIR", "Where the configuration lies; default /etc/qrep."),
    ("QREP_STATE_DIR", "Where qrep keeps its state; default /var/lib/qrep."),
    ("QREP_RSH", "The command that qrep copy uses instead of ssh."),
    ("NO_COLOR", "If set, nothing is coloured."),
)
FILES = (
    ("/etc/qrep/qrep.toml", "This node: name, listen, port, user (of the process that faces the network), time zone, limits."),
    ("/etc/qrep/{peers,volumes,shapes,jobs}/NAME.toml", "One object a file; the commands write the file you would write."),
    ("/var/lib/qrep", "Maps, undo, keys and the event log; never edited by hand."),
    ("/run/qrep/qrep.sock", "Where the agent listens to this command. Only root may talk to it."),
)
SIGNALS = (
    ("SIGTERM, SIGINT", "To qrep daemon: it ends within 10 seconds. Runs keep what has been applied and are taken up at the next start."),
    ("SIGHUP", "To qrep daemon: it reads its configuration again, as qrep reload does; what came of it is an event."),
)
SERVICE = (
    "packaging/systemd/qrep.service is a unit for the agent: it tells systemd when it is ready, what it does and that it lives, and it is confined "
    "to block devices and its own directories. Copy it to /etc/systemd/system, let ExecStart and ExecReload name the qrep of this host, and add "
    "in a drop-in (systemctl edit qrep) what else it may write: ReadWritePaths= of image files, of --undo directories and of the file of the metrics. "
    "Then: systemctl enable --now qrep.",
    "qrep metrics prints what the agent counts, for Prometheus; the agent opens no network port for it.",
)
ADDRESSES = (
    ("NAME", "a volume or a job of this host"), ("PEER:VOLUME", "a volume of another host"),
    ("VOLUME@POINT", "a sync point of a target volume, by the number of its generation"), ("JOB/N", "a path of a job, such as db/1"),
    ("JOB/N/M", "a connection of a path, such as db/1/2"),
)  # fmt: skip
EXAMPLES = {
    "events": (
        ("What was not as it should be, since yesterday evening:", ("qrep events --since 2026-11-21T18:00 --level warning",)),
        ("For a script, as they come:", ("qrep events -f --json --code run-committed --code run-failed",)),
    ),
    "qrep": (
        ("On site-a and site-b, each other's address:", ("qrep peer add site-b 10.0.1.2",)),
        ("On site-b, the target, which says who may write to it:", ("qrep volume add db /dev/vg1/db --accept site-a",)),
        ("On site-a, the source:", ("qrep volume add db /dev/vg0/db", "qrep job create db --source db --target site-b:db", "qrep start db --wait")),
        (
            "Compare both sides every Sunday, reading at most 100 MiB a second; heal what was found to be damaged:",
            ("qrep job set db --verify-schedule '0 3 * * sun' --verify-rate 100M", "qrep verify db --repair -n", "qrep verify db --repair"),
        ),
    ),
    "volume": (
        ("A target that one peer may write to, with its undo elsewhere:", ("qrep volume add db /dev/vg1/db --accept site-a --undo /srv/undo",)),
        ("New storage, an image file or a logical volume:", ("qrep volume create logs --size 100G --in /srv/images", "qrep volume create web --size 50G --in vg0")),
        ("A database that is told before each snapshot and after it:",
         ("qrep volume set db --freeze-before '/usr/local/sbin/db-rest begin' --freeze-after '/usr/local/sbin/db-rest end' --freeze-timeout 30s",)),
    ),
    "job": (
        ("Compare digests first, because both sides are nearly equal already:", ("qrep job create db --source db --target site-b:db --initial compare",)),
        ("Every quarter of an hour, with a warning when a sync point is older than an hour:", ("qrep job set db --schedule 'every 15m' --rpo 1h",)),
        ("At 02:00 on working days and at 04:30 on Sundays:", ("qrep job set db --schedule '0 2 * * mon-fri; 30 4 * * sun'",)),
        (
            "The grid of an array, January to June, Monday, Wednesday and Friday, at 08:00, 12:00 and 16:00, as one entry: the hours, the "
            "months, the days of the week:",
            ("qrep job set db --schedule '0 8,12,16 * 1-6 mon,wed,fri'",),
        ),
        ("The same with a time at 00:00 of every day beside the hourly ones of the working day:", ("qrep job set db --schedule '0 0 * * *; 0 9-17 * * mon-fri'",)),
        ("Three volumes that are only right together, committed all or none:",
         ("qrep job set data --group shop", "qrep job set log --group shop", "qrep job set index --group shop", "qrep start data --wait")),
        ("No schedule any more:", ("qrep job set db --schedule none",)),
        ("A planned switch: on site-a, which stops its writers and gives up; then on site-b:",
         ("umount /srv/db && qrep job demote db    # on site-a", "qrep job promote db                       # on site-b")),
        ("Site-a is lost; on site-b, at the last sync point:", ("qrep job promote db --force",)),
        ("Site-a is back. What would change, then its consent, then back to it with the differences only:",
         ("qrep job failback db -n", "qrep job demote db      # on site-a", "qrep job failback db")),
        ("Both sides were written, and site-b's changes win; what only site-a has stays a sync point there:",
         ("qrep job resync db --authoritative site-b    # on site-a",)),
        ("The source gets last night's content back:", ("qrep job restore db@41",)),
    ),
    "clone": (
        ("A copy on disks beside the original, and its root, which is what b3sum says of it:",
         ("qrep clone create db db-copy", "qrep clone start db --wait", "qrep clone show db")),
        ("Carry these disks to site-b, add them there, and go on with what changed meanwhile:",
         ("qrep clone convert db", "qrep volume add logs /dev/vg1/db --accept site-a    # on site-b", "qrep job rebuild db --target site-b:logs", "qrep start db")),
    ),
    "shape": (
        ("50 MiB/s in office hours for two jobs together, and all there is at night:",
         ('qrep shape set office --peak 50M --hours "mon-fri 07:00-19:00"', "qrep job set db --shape office", "qrep job set web --shape office")),
        ("Never more than 400 Mbit/s of this host, whatever its groups allow:", ("qrep shape node 400Mbit",)),
    ),
    "snapshot": (
        ("What can be gone back to, and going there:", ("qrep snapshot db", "qrep snapshot rollback db@41")),
        ("An earlier content in a file, the volume left as it is:", ("qrep snapshot copy db@41 /srv/db-at-41.img",)),
    ),
    "attach": (
        ("Look into last night's content, and put it away again:", ("qrep attach db@41 --read-only", "mount -o ro,noload /dev/loop3 /mnt", "umount /mnt", "qrep detach db@41")),
        ("A disaster test on the newest sync point, with 20 GiB to write to, while replication goes on:", ("qrep attach db --space 20G",)),
        ("For a client of NBD elsewhere, over a network that nobody else is on:", ("qrep attach db@41 --read-only --nbd 10.0.1.2:10809", "nbdcopy nbd://10.0.1.2:10809 db.img")),
        ("What is attached:", ("qrep attach",)),
    ),
    "path": (
        ("A second path over another link, and what there is now:", ("qrep path add db --from 10.0.2.1 --to 10.0.2.2", "qrep path")),
        ("Before work on the first link, and when it is done:", ("qrep path use db/2", "qrep path use db/1")),
    ),
    "connection": (
        ("A third connection over another link, and one less, while a run goes on:",
         ("qrep connection add db/1 --from 10.0.3.1 --to 10.0.3.2", "qrep connection", "qrep connection remove db/1/3")),
        ("Four for every path:", ("qrep job set db --connections 4",)),
    ),
    "peer": (
        ("A host with two addresses, its fingerprint checked by eye:", ("qrep peer add site-b 10.0.1.2,10.0.2.2",)),
        ("How fast the paths to it are, and how many connections a job should have:", ("qrep peer test site-b", "qrep job set db --connections 4")),
        ("A storage network with nobody else on it; the same on site-b, of site-a:", ("qrep peer set site-b --trusted",)),
    ),
    "copy": (
        ("To another host, at most 50 MiB/s, and again later, which sends what changed:", ("qrep copy /dev/vg0/db root@site-b:/dev/vg1/db --rate 50M",)),
        ("Through another port:", ('qrep copy -e "ssh -p 2222" disk.img site-b:/srv/disk.img',)),
    ),
}  # fmt: skip
NOTES = {
    "events": (
        "Times are those of the agent's host. docs/EVENTS.md lists the codes. With --follow nothing is lost and nothing told twice when the agent "
        "is restarted: it goes on after the last one that was shown.",
        "An event that repeats more than 30 times in a minute about one job, volume or peer is counted from then on; events-suppressed tells "
        "the count. How many are kept, and commands that are run because of events, are settings: see [events] and [[hooks]] in qrep.toml(5).",
    ),
    "copy": (
        "A copy that ends in order, or with an error, leaves the target as it was before, or, the first time, with what was copied. After a kill, a power cut or a "
        "reboot nothing is put back: the target may be a mix of old and new until the next copy has ended. A job has no such gap.",
        "What it is known by is the device itself, not its name. If somebody wrote to the target since the last copy to it, that is "
        "found, its content is compared instead of believed, and it is overwritten only after an answer or with -y. After a kill or a reboot that "
        "cannot be told: only a signature that is not the source's is asked about.",
        "Over ssh, qrep must be installed on the other host. Data goes over --connections further ssh connections; with --direct, "
        "over TLS 1.3 connections to a port that the other end opens for this copy, with keys made for it.",
        "The root that is printed is the BLAKE3 of the source as it was copied: b3sum of the target says the same.",
    ),
    "shape": (
        "Hours are those of the clock on the wall in the node's time zone (node.time_zone in qrep.toml, else the system's): when it goes forward, "
        "a border that is skipped comes with the jump; when it goes back, a border inside the doubled hour comes twice. A window that ends "
        "before it begins goes on after midnight.",
        "What is counted is what the data connections carry: blocks, frames and the records of TLS. The headers of TCP and IP, about 4 % with "
        "frames of 1500 bytes, come on top. The source keeps the rate; jobs whose target is on this host, too, are shaped like any other.",
        "A group below the limit of the node gets an equal share of it beside the other groups and the jobs without one.",
    ),
    "attach": (
        "The device shows the sync point from the first to the last byte for as long as it is attached: runs, rollbacks and the end of older sync points do not change it, and "
        "the sync point is not given up meanwhile. The target itself is never written to. A source has no sync points: attach it where its target is.",
        "What is written goes to a file in the state directory that has no name, block by block, and is thrown away by qrep detach, by the end of the agent, and when "
        "the process that serves it dies. When it holds as much as --space says, or the filesystem is full, whoever writes is told that there is no space; nobody else notices. "
        "A failed flush of it ends the process.",
        "The device is /dev/nbdN where the kernel's nbd is loaded (modprobe nbd), else a loop device over what nbdfuse shows. Beside it, and with --nbd instead of it, an NBD server listens on "
        "a unix socket that only root can open. With an address it listens there, too: without encryption and without asking who is there. It takes 16 connections.",
        "Each attachment is served by a process of its own that has given up all rights. If it dies, the device gives errors, the event attach-ended says so, and qrep detach "
        "takes it away. So it is when the agent ends: nothing is attached anew by itself. What is mounted then is named, and can be detached once it is unmounted.",
        "qrep detach is refused while the device is mounted or open, and says by whom. Detaching what was written to asks first.",
    ),
    "snapshot": ("A rollback makes a new generation of the old content; what the volume held before stays a sync point itself.",),
    "job": (
        "A schedule is a list of entries with ; between them. An entry is \"every\" with a duration (every 30s, every 15m, every 2h, every 1d), "
        "@hourly, @daily, @weekly, @monthly, @yearly, or the five fields of cron: minute, hour, day of the month, month, day of the week. A field "
        "takes *, lists (1,5), ranges (9-17) and steps (*/15); months and days of the week may be names; L is the last day of the month, 5L its "
        "last Friday, 1#2 its second Monday. Where both the day of the month and the day of the week are given, either will do, as in cron. A "
        "time that several entries name comes once.",
        "The calendar of an array, where months, days of the week and hours are ticked, is one entry: 0, the hours, *, the months, the days of "
        "the week. A time at 00:00 beside hourly ones is a second entry; where both name a time, it comes once.",
        "Times are those of the time zone node.time_zone in qrep.toml (an IANA name such as Europe/Berlin), else of the system. \"every\" counts "
        "elapsed time from 1970-01-01 00:00 UTC, so that its times are the same after a restart and a change of clocks does not touch them; "
        "whole days come at midnight of the time zone.",
        "When clocks change, an entry that names its hours comes once for every time that it names: a time that does not exist comes at the "
        "first moment after the gap, one that exists twice comes the first time. An entry for every hour (*) follows elapsed time: it comes in "
        "both passes of a doubled hour, and not in a skipped one.",
        "A time that comes while a run of the job goes on, or waits for its turn, starts nothing and is not caught up afterwards: that run stands "
        "for it (event run-coalesced), and the next time is the next one of the schedule. A time that comes while a person has the "
        "job verified waits for its end; a verify of --verify-schedule is ended by it and goes on after the run, which waits only if the verify did not get further three times in a row (events "
        "verify-gave-way and verify-started). After a run that failed or was stopped, the next time starts one again. Times that passed while the agent was down, or the "
        "host slept, are one run at start, or none with --missed skip (event run-missed). A clock that is set back by more than a minute makes "
        "times come again.",
        "A job whose last sync point is older than its --rpo, from the moment it was frozen, is shown with what to do, makes qrep status --check "
        "end in 3, and is told by the events rpo-passed and rpo-met.",
        "The jobs of a consistency group (--group) start together, whichever of them is started; one that is not idle keeps all of them from it. All "
        "their sources are brought to rest, then all are frozen, then all go on, so that the group shows one moment; each source must be one that "
        "can be frozen, unless its volume says --snapshots none. Their targets are on one host, where one durable record commits all members or "
        "none: after a crash of anything the targets hold the same moment, the new one or the one before. A member that fails or is stopped ends "
        "the run of the others; what was applied is kept where it can be. The group takes one turn among limits.jobs_running.",
        "Change hints: where the source is an image file on XFS or btrfs (or a loop device over one), or a thin logical volume, the snapshot of the last committed "
        "generation is kept, and the next run asks the filesystem or the driver where the new one may differ from it. Only that is read; the rest is "
        "taken from the digest map. A share of the rest is read in every run all the same (--hint-sample; auto: 1 %, but no more than 15 % of what was named or "
        "4 MiB, so that a run with little change reads little more than that). If one block there has changed, the run reads everything (event hint-wrong), "
        "and so do the next ones until a hint was right. qrep job show tells how much was read for each byte that had changed. The snapshot that is "
        "kept needs room for what is written between two runs; --hints off gives it back at once, or at the next run while one goes on.",
        "A source that was never written (an image of holes only) is known as such: its first run asks the target for what it holds instead of sending "
        "everything. Where both ends find nothing but zeroes by looking themselves, nothing is copied, and the run says so. One that was "
        "erased with zeroes is read, and nothing but a record of how much is zero is sent.",
        "Jobs of one source volume that start together, by one qrep start or because they are due at the same moment, share one frozen snapshot, which "
        "is given back with the last of them, and one pass over it: each granule is read and hashed once, and each target is sent what it lacks. A "
        "target that is slower than the others keeps them for five seconds in all; then it reads by itself. What a run took from another is told as "
        "read_shared. They take one turn among limits.jobs_running. A source without snapshots is read by each of them.",
        "At most limits.jobs_running jobs (32) run at once; more wait in the order in which they came, and status shows their turn. At most "
        "limits.pairs_local jobs (256) within this host, limits.pairs_remote (64) to others and limits.pairs_per_source (8) of one source volume "
        "may be configured. A volume that is a target cannot be a source, nor the other way round.",
        "A job of mode copy runs once. When its one generation is committed the target is given back before the run is said to have ended: "
        "qrep holds it no longer, it is no replica, and it can be mounted, written and used for another job; what qrep kept of it is gone, the root "
        "stays in qrep status. What is written to the source later is not its business; a second start, and a verify, are refused (exit 5). A copy that was "
        "interrupted goes on with qrep start. A volume with sync points is refused, for they would be lost.",
    ),
    "clone": (
        "A clone is a job of mode clone on this host; qrep status and qrep stop know it by its name, which is that of SOURCE. Each start brings what changed, and the "
        "clone is never torn: killed in the middle, it goes back to what it held. Until it is converted or deleted its device is held, and cannot be mounted.",
        "After convert the job waits for its disk, which qrep status says with what to do. It cannot be started until qrep job rebuild has proved, by the digests of "
        "generation N, that the volume offered is that clone. First some hundred leaves (blocks of 4 KiB by default) that are not zero are read at random places; then everything. A volume of which less than half "
        "of the leaves that are not zero match is refused, with the percentage that matches and exit 5; nothing is ever written to a volume that is "
        "refused. One that was mounted and changed on the way is taken: the leaves that differ are counted, and the next run sends them, keeping what "
        "they held as a sync point. A larger volume is taken, a smaller one refused. A filesystem on it needs no -y: it is proved to be the clone's.",
    ),
    "volume": (
        "Adding a volume writes nothing to its device. A peer may replicate onto it only if it is named with --accept.",
        "How a source is frozen for a run: lvm, a snapshot of the logical volume, in its pool if it is thin, else with space of its own in the volume group "
        "(--snapshot-space); reflink, a clone beside the image file, on XFS or btrfs, also below a loop device; none, not at all: it is read live, and its "
        "sync points are fuzzy. auto takes the first that works, and qrep volume show says which and why.",
        "The space of an LVM snapshot is looked at every second while a run reads. When it is nearly full, or soon will be, the run ends with snapshot-full and the "
        "snapshot is removed, so that nothing happens to the source; what was applied is kept, and the next run goes on.",
        "Filesystems that are mounted on the volume, on its partitions or on what is stacked on it are frozen for the moment of the snapshot, at most for "
        "--freeze-timeout. Commands: no shell is involved, the first word is an absolute path, what they print is told if they fail. Order: --freeze-before, freeze, "
        "snapshot, thaw, --freeze-after, which is run also where something failed in between or the agent was killed. Where one fails or takes too long the run ends and "
        "nothing stays frozen.",
        "A volume that was created and never written needs no first copy.",
    ),
}
