"""`python -m watnn` is the console script `watnn`."""

import sys

from watnn.cli import main

sys.exit(main())
