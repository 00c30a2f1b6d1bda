"""Native layer: io_uring, BLAKE3 and the lanes. Imports nothing of qrep."""
