import sys

from benchmarks.gpu_check.command import main

sys.exit(main())
