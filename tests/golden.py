"""Golden files: bytes that may only change together with the version of their format."""

import os
from pathlib import Path

GOLDEN = Path(__file__).parent / "golden"


def check_golden(name, data):
    """Compare `data` with tests/golden/`name`; QREP_WRITE_GOLDEN=1 writes a file that is not there yet, never an existing one."""
    path = GOLDEN / name
    if os.environ.get("QREP_WRITE_GOLDEN") == "1" and not path.exists():
        path.write_bytes(data)
    assert path.read_bytes() == data, f"{name}: the bytes changed; that needs a new format version and a new golden file"
