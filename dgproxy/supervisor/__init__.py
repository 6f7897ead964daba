"""Governs: owns sockets, config, keys, ledger and workers. It never touches a client's byte."""
