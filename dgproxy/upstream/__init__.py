"""The containers: which one, and a connection to it."""
