"""``python -m mirlib`` is the command ``mir``."""

import sys

from mirlib.cli import main

if __name__ == "__main__":
    sys.exit(main())
