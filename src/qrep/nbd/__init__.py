"""The NBD server: sync points as a device for whoever speaks the protocol. It runs in a process of its own, without rights (docs/ARCHITECTURE.md)."""
