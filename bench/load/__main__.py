"""`python -m solewriter.bench.load`."""

import sys

from solewriter.bench.load.program import main

if __name__ == "__main__":
    sys.exit(main())
