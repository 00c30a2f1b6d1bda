"""Several stations at once, each in a process of its own, because most of what happens in a scenario is waiting.

    crew = Crew(seed, [*numbers, *names of canaries], workers=4)      # of scenarios.py; of roles.py: "role:NUMBER.REPEAT"
    crew.run(over=lambda: False)            # results: {number or name: dict}; rests: what a station held at its end
    python -m chaos.crew SEED               # a worker: tasks come in on stdin, one per line, and a JSON line answers each
"""

import dataclasses
import json
import os
import queue
import signal
import subprocess
import sys
import tempfile
import threading
from pathlib import Path

TESTS = Path(__file__).resolve().parents[1]
REST_AFTER = 3  # scenarios, after which what the agents hold is what they will hold


class Crew:
    def __init__(self, seed, tasks, workers=4):
        self.seed, self.workers = seed, workers
        self.results, self.rests, self.failures = {}, [], []
        self._tasks = queue.SimpleQueue()
        for task in tasks:
            self._tasks.put(task)

    def run(self, over=lambda: False):
        threads = [threading.Thread(target=self._work, args=(over,), name="crew") for _ in range(self.workers)]
        for thread in threads:
            thread.start()
        for thread in threads:
            thread.join()
        return self

    def _work(self, over):
        environment = {**os.environ, "PYTHONPATH": os.pathsep.join([str(TESTS), *filter(None, sys.path)])}
        process = subprocess.Popen(
            [sys.executable, "-m", "chaos.crew", str(self.seed)], cwd=TESTS, env=environment, stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True,
            start_new_session=True,  # whoever is killed here, it hears the end of its stdin and takes down what it made
        )  # fmt: skip
        try:
            while not over():
                try:
                    task = self._tasks.get_nowait()
                except queue.Empty:
                    break
                process.stdin.write(f"{task}\n")
                process.stdin.flush()
                line = process.stdout.readline()
                if not line:
                    self.failures.append(f"the station ended at {task}")
                    return
                self.results[task] = json.loads(line)
            process.stdin.close()
            line = process.stdout.readline()
            if line:
                self.rests.append(json.loads(line))
            elif not self.failures:
                self.failures.append("a station ended without saying what it held")
        except OSError as err:
            self.failures.append(f"a station is gone: {err}")
        finally:
            if process.stdin and not process.stdin.closed:
                process.stdin.close()
            process.stdout.close()
            process.wait()


def work(seed):
    from chaos import canaries, rolecanaries
    from chaos.roles import RoleStation
    from chaos.scenarios import draw
    from chaos.station import Station

    own = canaries.CANARIES
    on_any = {**canaries.ON_ANY_STATION, **rolecanaries.ON_ANY_STATION}
    signal.signal(signal.SIGTERM, lambda *_: sys.exit(1))  # so that namespaces and devices go
    station = None
    with tempfile.TemporaryDirectory(prefix="qrep-test-", dir="/dev/shm") as scratch:
        try:
            for count, line in enumerate(sys.stdin):
                task = line.strip()
                if station is None and task not in own:
                    made = RoleStation if task.startswith("role") else Station
                    station = made(Path(scratch, "station"), "s").__enter__()
                if task in own:
                    answer = own[task](Path(scratch, task), count)
                elif task in on_any:
                    answer = on_any[task](station)
                elif task.startswith("role:"):
                    number, _, repeat = task.removeprefix("role:").partition(".")
                    if station.played == REST_AFTER:
                        station.rest()
                    answer = dataclasses.asdict(station.play(seed, int(number), int(repeat)))
                else:
                    if station.played == REST_AFTER:
                        station.rest()
                    result = station.play(draw(seed, int(task)))
                    answer = {**dataclasses.asdict(result), "scenario": str(result.scenario), "kind": result.scenario.kind}
                print(json.dumps(answer), flush=True)
            rest = station.rest() if station is not None and station.played > REST_AFTER else []
            print(json.dumps({"found": rest, "played": station.played if station else 0}), flush=True)
        finally:
            if station is not None:
                station.__exit__(None, None, None)


if __name__ == "__main__":
    work(int(sys.argv[1]))
