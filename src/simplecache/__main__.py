"""``python -m simplecache``: the ``scs`` command."""

import sys

from simplecache.cli.main import main

if __name__ == "__main__":
    sys.exit(main())
