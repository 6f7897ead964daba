"""`python -m dgproxy`."""

from dgproxy.cli import main

main()
