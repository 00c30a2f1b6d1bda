"""What people are told of change hints: how much the last run read, and why not more or less."""

from qrep import units

WORDS = {"used": "hint used", "checked": "hint not trusted, compared with a full scan", "wrong": "hint was wrong", "none": "no hint"}


def read_text(last):
    """`read 105 MiB, changed 100 MiB, 1.05 for each byte changed`, or that there was nothing to copy. last: a RUN of the API."""
    if last.get("clean"):
        return "nothing was copied: both volumes hold nothing, each by its own look"
    ratio = f", {last['read_per_changed']:.2f} for each byte changed" if last.get("read_per_changed") else ""
    return f"read {units.format_size(last.get('read', 0))}, changed {units.format_size(last.get('changed', 0))}{ratio}"


def hint_text(last):
    """`hint used: 100 MiB named, 5 MiB of the rest read`; "" where hints are off or it is not known."""
    hints = last.get("hints") or {}
    if hints.get("state") not in WORDS or last.get("clean"):
        return ""
    text = WORDS[hints["state"]]
    if hints["state"] == "used":
        text += f": {units.format_size(hints['named'])} named, {units.format_size(hints['sampled'])} of the rest read"
    return text + (f": {hints['reason']}" if hints.get("reason") else "")


def rows(job):
    """For `job show`."""
    last = job.get("last_run") or {}
    found = [("hints", f"{job['hints']}, sample {job['hint_sample']}" if job["hints"] == "auto" else job["hints"])] if job.get("hints") else []
    if "read" in last:
        found.append(("last run", read_text(last)))
        found += [("", hint_text(last))] if hint_text(last) else []
    return found
