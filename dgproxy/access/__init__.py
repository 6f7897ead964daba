"""Decides who may do what. Pure: no sockets, no clock, no log; time and randomness come in as arguments."""
