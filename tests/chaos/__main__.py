"""One scenario or several, for whoever wants to see them again: cd tests && python -m chaos SEED NUMBER..."""

import sys
import tempfile

from chaos.scenarios import draw
from chaos.station import Station


def main():
    seed, *numbers = map(int, sys.argv[1:])
    with tempfile.TemporaryDirectory(prefix="qrep-test-", dir="/dev/shm") as directory, Station(directory) as station:
        for number in numbers:
            if station.played == 2:
                station.rest()
            print(draw(seed, number), flush=True)
            result = station.play(draw(seed, number))
            print(f"   {result.seconds:.1f} s, moment {'came' if result.came else 'did not come'}, fail-over {result.fail_over_s}, healed {result.healed_s}, {result.tampered} changed")
            print("   ", *result.findings, result.log, sep="\n    ", flush=True)
        print("held at the end and not at the beginning:", station.rest(), flush=True)


if __name__ == "__main__":
    main()
