"""``python -m mouso`` is the ``mouso`` command."""

import sys

from mouso.cli import main

if __name__ == "__main__":
    sys.exit(main())
