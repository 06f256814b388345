"""`python -m jaxchat`, and what the command `jaxchat` starts with."""

import sys

from jaxchat.config.huge_pages import restart_with_huge_pages

COMPUTING = ("chat", "serve", "eval", "bench", "ladder", "doctor")  # commands that compute


def main() -> int:
    """Runs one command; returns its exit code."""
    restart_with_huge_pages(among=COMPUTING)
    from jaxchat.cli.main import main as run

    return run()


if __name__ == "__main__":
    sys.exit(main())
