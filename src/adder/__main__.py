"""`python -m adder`: the command line, where the `adder` script is not on the path."""

import sys

from adder.cli.main import main

if __name__ == "__main__":
    sys.exit(main())
