"""What packing and copies saved, in words."""

from qrep import units

TELLING = 1.05  # times; below this nothing is said


def sent_text(found):
    """`1.2 GiB`, and ` (2.4x packed, 1.0 GiB as copies)` where so much of what there was to send did not have to travel. found: a report or progress."""
    sent = found.get("sent") or 0
    before = sent + (found.get("packed") or 0) - (found.get("packed_sent") or 0)
    text = units.format_size(sent)
    saved = [f"{before / sent:.1f}x packed"] if sent and before / sent >= TELLING else []
    copies = found.get("copies") or 0
    if sent and (sent + copies) / sent >= TELLING:
        saved.append(f"{units.format_size(copies)} as copies")
    return f"{text} ({', '.join(saved)})" if saved else text
