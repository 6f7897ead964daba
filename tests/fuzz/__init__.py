"""Coverage-guided fuzzing of what reads foreign bytes: `make fuzz`; `make test` runs the same over their seeds.

A harness is one module here with a `HARNESS` (see `harness.py`); it is found by that name, so that adding one is adding
a file. An input that once failed is kept in tests/data/fuzz/<harness>/ and is a seed ever after.
"""
