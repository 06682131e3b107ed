"""`python -m benchmarks` is `watnn bench`."""

import sys

from watnn.cli import main

sys.exit(main(["bench", *sys.argv[1:]]))
