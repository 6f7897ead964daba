"""The same bytes to dgproxy, nginx and HAProxy: what each answers, and what each lets through to the upstream.

Not a part of the test run, since it needs both servers: `make differential` (or `python -m tests.differential`).
"""
