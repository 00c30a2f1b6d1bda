"""Write digests.json: BLAKE3's published test-vector rule (input byte i is i % 251) through the packaged `blake3`.

Lengths and key are those of the published test vectors. The file changes only if BLAKE3 does.
"""

import json
from pathlib import Path

from blake3 import blake3

KEY = "whats the Elvish word for friend"
LENGTHS = [
    *range(9), 63, 64, 65, 127, 128, 129, 1023, 1024, 1025, 2048, 2049, 3072, 3073, 4096, 4097, 5120, 5121, 6144, 6145,
    7168, 7169, 8192, 8193, 16384, 31744, 102400,
]


def make_case(length):
    data = bytes(i % 251 for i in range(length))
    return {"length": length, "hash": blake3(data).hexdigest(), "keyed_hash": blake3(data, key=KEY.encode()).hexdigest()}


if __name__ == "__main__":
    document = {"rule": "input byte i is i % 251", "key": KEY, "cases": [make_case(length) for length in LENGTHS]}
    Path(__file__).with_name("digests.json").write_text(json.dumps(document, indent=1) + "\n")
