"""Change hints: where a source's new frozen image may differ from the one kept of the last generation."""

from qrep.source.kept import kept

__all__ = ["kept"]
