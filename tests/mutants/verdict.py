"""A plugin of pytest's that says how a run of tests ended: which test failed and of what, or why it says nothing about the defect."""

import json
import os

# A defect that cannot even be loaded, or that a test misspells, is noticed by anything: that is not what a test is there for.
NOT_NOTICED = (ImportError, SyntaxError, NameError)


class Verdict:
    """ran: tests that were begun. failed: [name, what was raised] of tests that noticed something. broken: of what ended otherwise."""

    def __init__(self):
        self.ran, self.failed, self.broken = 0, [], []

    def pytest_exception_interact(self, node, call, report):
        text = f"{call.excinfo.typename}: {call.excinfo.value}"[:300]
        noticed = report.when == "call" and not isinstance(call.excinfo.value, NOT_NOTICED)
        (self.failed if noticed else self.broken).append([node.nodeid, text])

    def pytest_runtest_logreport(self, report):
        if report.when == "call":
            self.ran += report.outcome != "skipped"
        if report.outcome == "skipped":
            self.broken.append([report.nodeid, "skipped"])

    def line(self):
        return json.dumps({"ran": self.ran, "failed": self.failed, "broken": self.broken})


def run(arguments, out):
    """Run pytest in this process and write the verdict to the descriptor `out`."""
    import pytest

    verdict = Verdict()
    pytest.main([*arguments, "-q", "-x", "-m", "not slow and not alone", "-p", "no:cacheprovider"], plugins=[verdict])
    os.write(out, verdict.line().encode())
