"""Fixtures of the security tests: those of the system tests."""

from system.conftest import agents, fill, sites  # noqa: F401
