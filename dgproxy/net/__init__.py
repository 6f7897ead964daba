"""Moves bytes: sockets, TLS, the relay. Does I/O and decides nothing."""
