"""`python -m chatloom`, and so `torchrun -m chatloom`: the command line."""

import sys

from chatloom.cli import main

if __name__ == "__main__":
    sys.exit(main())
