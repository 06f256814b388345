"""`python -m jaxchat`, the same as the command `jaxchat`."""

import sys

from jaxchat.cli.main import main

if __name__ == "__main__":
    sys.exit(main())
