"""What a mutant is: one place of the implementation that reads otherwise, and the tests that must notice."""

import dataclasses

DURABILITY, IDENTITY, BOUNDS, LIVENESS, SECURITY = CLASSES = ("durability", "identity", "bounds", "liveness", "security")


@dataclasses.dataclass(frozen=True)
class Mutant:
    """file: below src/qrep. old: a text that is in it exactly once, new: what stands there instead. what: which rule is broken, in words.
    tests: arguments of pytest that must fail, the quickest first; the rest is not run once one did."""

    name: str
    kind: str
    file: str
    what: str
    old: str
    new: str
    tests: tuple

    @property
    def native(self):
        return self.file.endswith((".c", ".h"))

    def applied(self, text):
        """The file's text with the defect in it. Raises ValueError if its place is not there, or more than once."""
        count = text.count(self.old)
        if count != 1:
            raise ValueError(f"mutant {self.name}: its place is in {self.file} {count} times, not once; a mutant follows what it mutates")
        return text.replace(self.old, self.new)
