"""What programs of other versions say, message by message and field by field; and what must come of it. A case: (name, function of a Site)."""

import contextlib
import functools
import json

import msgspec
import oracle
from golden import GOLDEN

from qrep.errors import QrepError, Refused
from qrep.protocol import features
from qrep.protocol import messages as say

RANGES = ((1, 1), (1, 2), (2, 2), (2, 3), (3, 3))  # that this program may have
PEERS = tuple((low, high) for low in range(1, 5) for high in range(low, 5))
FIRST = ("hello",)
STRANGER = "from_tomorrow"


class Skewed(AssertionError):
    """What came of it must not be."""


@contextlib.contextmanager
def speaking(low, high):
    before = say.VERSION_MIN, say.VERSION_MAX
    say.VERSION_MIN, say.VERSION_MAX = low, high
    try:
        yield
    finally:
        say.VERSION_MIN, say.VERSION_MAX = before


def _says(name, edit):
    """A change of the first message of that name."""
    done = []

    def change(_sender, fields):
        if fields["t"] == name and not done:
            done.append(name)
            return edit(fields)
        return fields

    change.done = done
    return change


def committed(site):
    return oracle.superblock(site.directory / "target").counter


def _attempt(site, what, change):
    """The error that it ends with, None: it commits."""
    try:
        what(change)
    except QrepError as error:
        if error.code == "internal" or not error.message:
            raise Skewed(f"{error.code}: {error.message!r}") from error
        return error
    finally:
        left = site.is_held_open()
        if left:
            raise Skewed(f"left open: {left}")
    return None


def ranges(site, ours, theirs):
    """A source that speaks `theirs` meets this target. The highest version of both is chosen, or it is refused and nothing is written."""
    wanted = min(ours[1], theirs[1])
    overlap = wanted >= max(ours[0], theirs[0])
    seen = []

    def change(sender, fields):
        if fields["t"] == "hello":
            return fields | {"version_min": theirs[0], "version_max": theirs[1]}
        if fields["t"] == "state":
            seen.append(fields["version"])
        return fields

    before = site.fingerprint("target"), site.device()
    with speaking(*ours):
        error = _attempt(site, site.run, change)
    if overlap:
        if error or seen != [wanted] or site.device() != site.waiting:
            raise Skewed(f"{ours} and {theirs}: {error}, version {seen}")
        return
    if error is None or error.code != "version" or not isinstance(error, Refused) or "overlap" not in error.hint:
        raise Skewed(f"{ours} and {theirs}: {error and (error.code, error.message, error.hint)}")
    if seen or (site.fingerprint("target"), site.device()) != before:
        raise Skewed(f"{ours} and {theirs}: something was written before it was refused")


def newer_hello(site, theirs):
    """A Hello of a form that is unknown here, of a program whose versions do not overlap: it is told which ones, nothing is written."""
    before = site.fingerprint("target"), site.device()
    edit = _says("hello", lambda fields: fields | {"version_min": theirs[0], "version_max": theirs[1], STRANGER: {"more": [1]}})
    error = _attempt(site, site.run, edit)
    wanted = "version" if theirs[0] > say.VERSION_MAX else "protocol"
    if error is None or error.code != wanted or (wanted == "protocol" and STRANGER not in error.message):
        raise Skewed(f"it was told {error and (error.code, error.message)}")
    if (site.fingerprint("target"), site.device()) != before:
        raise Skewed("something was written before it was refused")


def field(site, act, name, key, edit, needed):
    """A message with one field more, or one less. needed: it cannot be understood then, so that nothing comes of it; else all goes as ever."""
    before = committed(site), site.device(), site.fingerprint("target")
    change = _says(name, edit)
    error = _attempt(site, getattr(site, act), change)
    if not change.done:
        raise Skewed("that message did not come")
    if not needed:
        if error is not None:
            raise Skewed(f"it is not needed, and refused: {error.message}")
        return
    if error is None:
        raise Skewed("nobody noticed")
    if name in FIRST:
        if (committed(site), site.device(), site.fingerprint("target")) != before:
            raise Skewed("something was written before it was refused")
        if key not in error.message:
            raise Skewed(f"the reason does not name it: {error.message}")
    site.open()  # what is open is put back
    site.close()
    counter = committed(site)
    if counter not in (before[0], before[0] + 1) or site.device() not in (site.content[counter], site.damaged):
        raise Skewed(f"generation {counter} is committed, and the device holds something else")


def said(site, act):
    """{message: fields} of one act in which nobody changes anything."""
    found = {}

    def change(_sender, fields):
        found.setdefault(fields["t"], dict(fields))
        return fields

    error = _attempt(site, getattr(site, act), change)
    if error is not None:
        raise Skewed(f"{act}: {error.message}")
    return found


CLASSES = {cls.__struct_config__.tag: cls for cls in (*say.SOURCE_SAYS, *say.TARGET_SAYS)}
SENDERS = {sender: [cls.__struct_config__.tag for cls in said] for sender, said in (("source", say.SOURCE_SAYS), ("target", say.TARGET_SAYS))}
IGNORED = {"beat", "pong", "ping"}  # they come from threads of their own, and may come when all is over


def fields_of(name):
    """{field: whether a message without it cannot be understood}."""
    return {each.name: each.required for each in msgspec.structs.fields(CLASSES[name])}


def field_cases(found, act):
    for name in sorted(set(found) - IGNORED):
        yield f"{act}: {name} with a field more", functools.partial(
            field, act=act, name=name, key=STRANGER, edit=lambda fields: fields | {STRANGER: 1}, needed=True
        )
        yield f"{act}: {name} under another name", functools.partial(
            field, act=act, name=name, key="from-tomorrow", edit=lambda fields: fields | {"t": "from-tomorrow"}, needed=True
        )
        for key, needed in fields_of(name).items():
            yield f"{act}: {name} without {key}", functools.partial(
                field, act=act, name=name, key=key, edit=functools.partial(_without, key), needed=needed
            )


def _without(key, fields):
    return {name: value for name, value in fields.items() if name != key}


def offered(site, source, target):
    """Features that one end or the other does not have: what both have is used, the run commits, and what was not agreed on does not travel."""
    said_back = []

    def change(_sender, fields):
        if fields["t"] == "hello":
            return fields | {"features": list(source)}
        if fields["t"] == "state":
            answer = [name for name in fields["features"] if name in target]
            said_back.append(set(fields["features"]))
            return fields | {"features": answer}
        return fields

    report = []
    error = _attempt(site, lambda change: report.append(site.run(change)), change)
    common = set(source) & set(target) & set(features.KNOWN)
    if error is not None or site.device() != site.waiting:
        raise Skewed(f"offered {source}, {target} known there: {error and error.message}")
    if not said_back or not said_back[0] <= set(source) & set(features.KNOWN):
        raise Skewed(f"offered {source}, answered {said_back}")
    found = report[0]
    if ("copies" not in common and found.copies) or ("zstd" not in common and found.packed):
        raise Skewed(f"agreed on {common}, and {found.copies} bytes were copies, {found.packed} were packed")
    if common == set(features.KNOWN) and not (found.copies and found.packed):
        raise Skewed("with every feature agreed on none was used")


def not_offered(site, answer):
    """A target that chooses what was not offered is refused before anything is opened."""
    before = committed(site), site.device()
    error = _attempt(site, site.run, _says("state", lambda fields: fields | {"features": answer}))
    if error is None or "not offered" not in error.message or (committed(site), site.device()) != before:
        raise Skewed(f"{answer}: {error and error.message}")


def chosen(site, version):
    """A target that chooses a version that this source does not speak."""
    before = committed(site), site.device()
    error = _attempt(site, site.run, _says("state", lambda fields: fields | {"version": version}))
    if error is None or "version" not in error.message or (committed(site), site.device()) != before:
        raise Skewed(f"version {version}: {error and error.message}")


def golden_messages(site):
    """Every message as it was written down is read, and written again byte by byte."""
    stored = json.loads((GOLDEN / "messages-v1.json").read_text())
    if missing := {f"{sender} {name}" for sender, names in SENDERS.items() for name in names} - set(stored):
        raise Skewed(f"not written down: {sorted(missing)}")
    for key, text in stored.items():
        sender, _, name = key.partition(" ")
        body = bytes.fromhex(text)
        message = say.decode(body, sender)
        if say.encode(message)[4:] != body or message.__struct_config__.tag != name:
            raise Skewed(f"{key} is written in another way than it was")


def cases(site_with):
    """All of them. site_with(act): a Site in which that act is about to be done."""
    yield "golden messages", golden_messages
    for ours in RANGES:
        for theirs in PEERS:
            yield f"versions {ours} here, {theirs} there", functools.partial(ranges, ours=ours, theirs=theirs)
    for theirs in ((2, 2), (2, 5), (7, 9), (1, 2), (1, 9)):
        yield f"an unknown hello of {theirs}", functools.partial(newer_hello, theirs=theirs)
    for version in (2, 3, 65535):
        yield f"version {version} chosen", functools.partial(chosen, version=version)
    sets = ((), ("copies",), ("zstd",), ("zstd", "copies"), ("from-tomorrow",), ("from-tomorrow", "zstd", "copies"))
    for source in sets:
        for target in sets:
            yield f"features {source} offered, {target} there", functools.partial(offered, source=source, target=target)
    for answer in (["from-tomorrow"], ["copies", "zstd", "other"]):
        yield f"features {answer} chosen", functools.partial(not_offered, answer=answer)
    for act in ("run", "compare", "verify"):
        with site_with(act) as site:
            found = said(site, "verify" if act == "verify" else "run")
        for name, case in field_cases(found, "verify" if act == "verify" else "run"):
            yield f"{act}|{name}", case
