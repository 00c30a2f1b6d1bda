"""The README's table of numbers, made of RESULTS.md: no figure stands there that no session measured.

    python bench/readme.py      writes it anew, after the words below were changed
"""

import re
from pathlib import Path

BEGIN, END = "<!-- numbers: written by bench/readme.py from bench/RESULTS.md -->", "<!-- numbers end -->"
# (section of RESULTS.md, how the case begins, what the README calls it, what it is set against[, column of what it cost])
SHOWN = (
    ("copy", "dense, over TCP / nbdcopy to qemu-nbd", "verified full copy over TCP, memory to memory", "nbdcopy to qemu-nbd"),
    ("copy", "dense, over TCP / nbdcopy to qemu-nbd, cubic", "the same", "nbdcopy, its connections with cubic as ours"),
    ("copy", "dense, on one host / qemu-img convert", "verified full copy on one host", "qemu-img convert"),
    ("copy", "D to M over TCP / min", "full copy over TCP, disk to memory", "min(fio read, fio write)"),
    ("scan", "unchanged scan, M / fio 8M q2", "unchanged scan, memory device", "fio read"),
    ("scan", "unchanged scan, M / fio, huge pages", "the same", "fio read with huge pages"),
    ("scan", "unchanged scan, D / fio 8M q2", "unchanged scan, disk", "fio read"),
    ("scan", "all-zero scan, M / fio 8M q2", "all-zero scan, memory device", "fio read"),
    ("peers", "unchanged / rsync", "unchanged scan", "rsync"),
    ("peers", "unchanged / bdsync", "the same", "bdsync"),
    ("peers", "unchanged / blocksync-fast", "the same", "blocksync-fast with its file of 32-bit digests"),
    ("hash", "hash 8M, avx512 / packaged", "BLAKE3 with 4 KiB leaves, one thread, 8 MiB", "packaged blake3"),
    ("hash", "hash 4K, avx512 / packaged", "the same, 4 KiB", "packaged blake3"),
    ("changed", "1 % at random changed / own unchanged scan", "1 % of random 4 KiB changed", "own unchanged scan"),
    ("changed", "1 % at random changed", "the same: bytes on the wire", "bytes changed", "wire / changed"),
    ("undo", "1 % changed, before-images kept", "1 % changed, before-images kept", "not kept"),
    ("cli", "full run of", "full run through command and agent", "bare lanes"),
    ("tls", "full run of two agents over TLS", "full run of two agents over TLS 1.3", "what the CPUs allow"),
    ("limit", "worst error over any", "rate limit: worst error over any 5 s", ""),
    ("cli", "memory of the target", "memory of an agent beyond its buffers, 10 GiB volume", ""),
    ("cli", "qrep status", "`qrep status`", ""),
)
PICTURES = ("full-copy-over-tcp", "unchanged", "size")  # shown below the table where a session has drawn them


def rows_of(results):
    """{section: [{column: cell}]} of the tables of RESULTS.md."""
    found, section, head = {}, "", None
    for line in results.splitlines():
        if line.startswith("#"):
            section, head = line.lstrip("# "), None
        elif not line.startswith("|"):
            head = None
        else:
            cells = [cell.strip() for cell in re.split(r"(?<!\\)\|", line)[1:-1]]
            if head is None:
                head = cells
            elif not set("".join(cells)) <= {"-", " "}:
                found.setdefault(section, []).append(dict(zip(head, cells, strict=True)))
    return found


def block(results, pictures=()):
    """The lines between the two marks. pictures: names of those that there are."""
    tables = rows_of(results)
    machine = {row["what"]: row["value"] for row in tables["Machine"]}
    lines = [
        BEGIN, f"{machine['processor']}, kernel {machine['kernel']}, loop devices of {machine['devices'].split(',')[0]}, commit {machine['commit']}. Each ratio is the median of",
        "rounds in which both sides took turns; how far they spread, and what else was measured, is in [bench/RESULTS.md](bench/RESULTS.md).", "",
        "| | ours | against | ratio |", "|---|---|---|---|",
    ]  # fmt: skip
    for section, begins, words, against, *column in SHOWN:
        found = (row for row in tables.get(section, ()) if row["case"].startswith(begins) and (row.get("who") == "qrep" if column else "ratio" in row))
        if row := next(found, None):
            ours, ratio = ("", row[column[0]]) if column else (row["ours"], row["ratio"] if row["ceiling"] else "")
            lines.append(f"| {words} | {ours} | {against} | {ratio} |")
    for name in PICTURES:
        if name in pictures:
            lines += ["", f"![{name.replace('-', ' ')}](bench/pictures/{name}.svg)"]
    return "\n".join([*lines, END])


def replaced(text, results, pictures):
    """The README with the block of these results. Raises ValueError if it has no place for it."""
    before, begin, rest = text.partition(BEGIN)
    _, end, after = rest.partition(END)
    if not begin or not end:
        raise ValueError("README.md has lost the marks of its numbers")
    return before + block(results, pictures) + after


def update(path, results, directory):
    path.write_text(replaced(path.read_text(), results, {picture.stem for picture in directory.glob("*.svg")}))


if __name__ == "__main__":
    here = Path(__file__).parent
    update(here.parent / "README.md", (here / "RESULTS.md").read_text(), here / "pictures")
