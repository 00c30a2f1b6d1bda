"""qrep replicates Linux block devices: full once, then only what changed."""

__version__ = "1.0.0"
