"""The front: the one process that touches the network, and may touch nothing else.

The agent (the engine) starts it and talks with it over one unix socket (talk.py). It holds the peer port, makes every TLS handshake,
checks every pin and the form of every control message (screen.py), and hands the engine one unix stream for each connection whose peer
has proved its key (relay.py). Before the port opens it gives up its user, its capabilities, all files and most system calls
(process.py, _native/sandbox.h). docs/ARCHITECTURE.md, "Who may do what", draws it.
"""
