"""Every problem of a configuration: in each file, in what the files say of each other, and in who may read and write them."""

import difflib
import os
import stat

from qrep import audit
from qrep.config import KINDS, NAME, NODE_FILE, Config, Node, read
from qrep.configparse import Problem, is_told, look
from qrep.errors import ConfigError
from qrep.tomlplaces import line_of, lines, path_of

AUDIT_TOLD = 5
LEVELS = ("info", "warning", "error")
KEY_FILE = os.path.join("keys", "node.key")


def check(directory, file=None, *, state_dir=None, event_codes=()):
    """[Problem] in `file`, or in all files of `directory`. Needs no agent.

    state_dir: its private key is looked at, too. event_codes: what a hook may name, empty: anything.
    """
    if file is not None:
        return _check_file(os.path.abspath(file), event_codes)
    problems = survey(directory, state_dir=state_dir, event_codes=event_codes)[1]
    return problems + (_audit(state_dir) if state_dir else [])


def _audit(state_dir):
    """What was changed in the audit log, the first few places."""
    try:
        _lines, _head, wrong = audit.verify(state_dir)
    except OSError as err:
        return [Problem(os.path.join(state_dir, audit.NAME), "", f"cannot be read: {err.strerror}")]
    hint = "somebody changed what the agent had written, or the disk did; copy the file away, the agent goes on behind it"
    return [Problem(path, "", what, hint, line) for path, line, what in wrong[:AUDIT_TOLD]]


def survey(directory, *, state_dir=None, event_codes=()):
    """(found, [Problem]) of all files. found.node: config.Node; found.objects: {kind: {name: object}}; to be used if there is no problem."""
    config = Config(directory)
    found, problems = _Found(), []
    for path, cls, kind, name in _files(config, problems):
        value, wrong = _look(path, cls)
        problems += wrong + _writable(path)
        found.told[path] = wrong
        if isinstance(value, Node):
            found.node, found.node_path = value, path
        elif value is not None:
            found.objects[kind][name] = value
            found.paths[kind, name] = path
    more = [problem for part in (_dangling, _twice, _crossed, _groups, _limits) for problem in part(config, found)]
    more += _hooks(found.node, found.node_path, event_codes) + _metrics(found.node, found.node_path)
    problems += [problem for problem in more if not is_told(problem.place, found.told[problem.file])]
    if state_dir:
        problems += _key(os.path.join(state_dir, KEY_FILE))
    return found, sorted((_with_line(problem) for problem in problems), key=lambda problem: (problem.file, problem.line or 0))


class _Found:
    """What could be read, by kind and name."""

    def __init__(self):
        self.objects = {kind: {} for kind in KINDS}
        self.paths, self.told = {}, {}
        self.node, self.node_path = Node(), None


def _files(config, problems):
    """(path, class, kind, name) of all files; those whose names are no names are told."""
    node = os.path.join(config.directory, NODE_FILE)
    if os.path.lexists(node):
        yield node, Node, None, None
    for kind, cls in KINDS.items():
        for name in config.names(kind):
            path = os.path.join(config.directory, kind, f"{name}.toml")
            if NAME.match(name):
                yield path, cls, kind, name
            else:
                problems.append(Problem(path, "", f"{name!r} cannot name a {kind.rstrip('s')}", "use letters, digits, '.', '_' and '-'"))


def _check_file(path, event_codes):
    value, problems = _look(path, KINDS.get(os.path.basename(os.path.dirname(path)), Node))
    if isinstance(value, Node):
        more = _hooks(value, path, event_codes) + _metrics(value, path)
        problems = problems + [_with_line(one) for one in more if not is_told(one.place, problems)]
    return problems


def _look(path, cls):
    """configparse.look(), with what keeps the file from being read as one more problem."""
    try:
        return look(read(path), cls, path)
    except ConfigError as err:
        return None, [Problem(path, "", err.message.removeprefix(f"{path}: "), err.hint)]
    except OSError as err:
        return None, [Problem(path, "", f"cannot be read: {err.strerror}")]


def _with_line(problem):
    """The line of a problem that was found in the values."""
    if problem.line is None and problem.place and problem.file.endswith(".toml"):
        try:
            problem.line = line_of(lines(read(problem.file).decode()), path_of(problem.place))
        except (OSError, ConfigError, UnicodeDecodeError):  # told already, or it went away just now
            problem.line = None
    return problem


def _dangling(config, found):
    """References to objects that are not there."""
    for name, job in found.objects["jobs"].items():
        path = found.paths["jobs", name]
        peer, _, volume = job.target.rpartition(":")
        for place, kind, wanted in (
            ("source", "volumes", job.source),
            ("target", "peers", peer if job.has_target else ""),
            ("target", "volumes", "" if peer or not job.has_target else volume),
            ("shape", "shapes", job.shape),
        ):
            if wanted and wanted not in config.names(kind):
                near = difflib.get_close_matches(wanted, config.names(kind), 1)
                yield Problem(path, place, f"no {kind.rstrip('s')} called {wanted}", f"did you mean {near[0]}?" if near else "")
    for name, volume in found.objects["volumes"].items():
        for number, peer in enumerate(volume.accept):
            if peer not in config.names("peers"):
                yield Problem(found.paths["volumes", name], f"accept[{number}]", f"no peer called {peer}", f"qrep peer add {peer} ADDR")


def _twice(_config, found):
    """What may be there only once. The second one, in the order of names, is told of."""
    kinds = {
        ("volumes", "device"): ("{other} is the same device", "one name for one device: remove one of them"),
        ("volumes", "id"): ("{other} has the same id", "a copied file: give the copy an id of its own, 32 random hexadecimal digits"),
        ("jobs", "id"): ("{other} has the same id", "a copied file: delete it and use qrep job create"),
        ("jobs", "target"): ("{other} writes to the same target", "a volume takes one source"),
        ("peers", "fingerprint"): ("{other} is the same host", "one name for one host: remove one of them"),
    }
    for (kind, key), (text, hint) in kinds.items():
        first = {}
        for name, value in sorted(found.objects[kind].items()):
            if is_told(key, found.told[found.paths[kind, name]]):
                continue
            if key == "target" and not value.has_target:
                continue
            what = getattr(value, key)
            what = os.path.realpath(what) if key == "device" else what
            other = first.setdefault(what, name)
            if other != name:
                yield Problem(found.paths[kind, name], key, text.format(other=f"{kind.rstrip('s')} {other}"), hint)


def _crossed(_config, found):
    """Volumes that are source and target."""
    jobs = found.objects["jobs"]
    sources = {job.source: name for name, job in sorted(jobs.items(), reverse=True)}
    for name, job in jobs.items():
        if not job.has_target:
            continue
        if job.target == job.source:
            yield Problem(found.paths["jobs", name], "target", f"{job.target} is the source of this job itself", "name another volume")
        elif job.target in sources:
            other = sources[job.target]
            yield Problem(
                found.paths["jobs", name], "target", f"{job.target} is the source of job {other}", "cascading is not possible; choose another target"
            )


def _groups(_config, found):
    """Members of a consistency group that cannot be committed together. The second one, in the order of names, is told of."""
    first, sources = {}, {}
    for name, job in sorted(found.objects["jobs"].items()):
        if not job.group or not job.has_target:
            continue
        other = first.setdefault(job.group, name)
        theirs = found.objects["jobs"][other].target
        if theirs.rpartition(":")[0] != job.target.rpartition(":")[0]:
            text = f"the target of {name} is {job.target}, that of {other} in the same group {theirs}"
            yield Problem(found.paths["jobs", name], "group", text, "all targets of a group must be on one host: name another group")
        same = sources.setdefault((job.group, job.source), name)
        if same != name:
            yield Problem(found.paths["jobs", name], "group", f"job {same} of the same group has the same source", "name another group")


def _limits(_config, found):
    """More of something than qrep.toml allows. The job that is one too many, in the order of names, is told of."""
    limits, jobs = found.node.limits, sorted(found.objects["jobs"].items())
    counted = [
        ("pairs_remote", limits.pairs_remote, lambda job: "remote" if ":" in job.target else None, "target"),
        ("pairs_local", limits.pairs_local, lambda job: None if ":" in job.target else "local", "target"),
        ("pairs_per_source", limits.pairs_per_source, lambda job: job.source, "source"),
    ]
    for key, limit, group, place in counted:
        counts = {}
        for name, job in jobs:
            what = group(job)
            if what is None:
                continue
            counts[what] = counts.get(what, 0) + 1
            if counts[what] == limit + 1:
                yield Problem(found.paths["jobs", name], place, f"more than {limit} jobs ({key})", f"raise {key} in [limits] of qrep.toml")


def _hooks(node, path, event_codes):
    problems = []
    for number, hook in enumerate(node.hooks):
        place = f"hooks[{number}]"
        for index, word in enumerate(hook.events):
            if event_codes and word not in event_codes and word not in LEVELS:
                near = difflib.get_close_matches(word, [*event_codes, *LEVELS], 1)
                hint = f"did you mean {near[0]}?" if near else f"a code of docs/EVENTS.md, or {', '.join(LEVELS)}"
                problems.append(Problem(path, f"{place}.events[{index}]", f"no event has the code {word!r}", hint))
        problems += _command(path, f"{place}.command", hook.command[0])
    return problems


def _command(path, place, command):
    """What would keep a hook from being run, or let somebody else say what is run."""
    try:
        status = os.stat(command)
    except (OSError, ValueError) as err:  # ValueError: a NUL, which the settings told of
        return [Problem(path, place, f"{command}: {getattr(err, 'strerror', None) or err}", "give the path of a program that is there")]
    mode = status.st_mode
    if not stat.S_ISREG(mode) or not mode & 0o111:
        return [Problem(path, place, f"{command} cannot be executed", f"chmod 755 {command}")]
    if mode & 0o022:
        return [Problem(path, place, f"{command} may be changed by others (mode {stat.S_IMODE(mode):04o}), and runs as root", f"chmod go-w {command}")]
    if _foreign(status):
        return [Problem(path, place, f"{command} belongs to user {status.st_uid}, and runs as root", f"chown root {command}")]
    return []


def _metrics(node, path):
    directory = os.path.dirname(node.metrics.file)
    if directory and not os.path.isdir(directory):
        return [Problem(path, "metrics.file", f"no directory {directory}", f"mkdir -p {directory}, or name another file")]
    return []


def _writable(path):
    """A file that others may write says what the agent does as root."""
    try:
        status = os.lstat(path)
    except OSError:
        return []
    if stat.S_ISREG(status.st_mode) and status.st_mode & 0o022:
        return [Problem(path, "", f"may be changed by others (mode {stat.S_IMODE(status.st_mode):04o})", f"chmod go-w {path}")]
    if _foreign(status):
        return [Problem(path, "", f"belongs to user {status.st_uid}, who may change it", f"chown root {path}")]
    return []


def _foreign(status):
    """Whether somebody else than root and whoever we are owns it, and so may change it whatever its mode is."""
    return status.st_uid not in (0, os.geteuid())


def _key(path):
    try:
        mode = stat.S_IMODE(os.lstat(path).st_mode)
    except OSError:
        return []  # it is made at the first start
    return [Problem(path, "", f"mode {mode:04o}: others may read the key of this node", f"chmod 600 {path}")] if mode & 0o077 else []
