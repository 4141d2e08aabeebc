"""Command lines: no abbreviated flags, and a mistake is one line with exit status 2."""

import argparse
import sys
from pathlib import Path

from diffusion_lib.system.errors import EXIT_BAD_INPUT, say


class Parser(argparse.ArgumentParser):
    """An ArgumentParser that shows its description as it is written."""

    def __init__(self, description: str, **options):
        options = {"allow_abbrev": False, "formatter_class": argparse.RawDescriptionHelpFormatter, **options}
        super().__init__(description=description, **options)

    def parse_known_args(self, args=None, namespace=None):
        words = sys.argv[1:] if args is None else args
        for word in words:
            if word.startswith("--") and word.endswith("=--"):  # which argparse takes for an empty list
                self.error(f"argument {word.removesuffix('=--')}: its value is '--'")
        return super().parse_known_args(args, namespace)

    def error(self, message):
        say(f"error: {message}; --help lists what is allowed")
        sys.exit(EXIT_BAD_INPUT)


def whole(least: int, most: int = 10**9):
    """Return the type of a flag that takes a whole number in a range."""

    def parse(text: str) -> int:
        if not (text.isascii() and text.isdigit() and len(text) < 20 and least <= int(text) <= most):
            raise argparse.ArgumentTypeError(f"{text[:40]!r} is no whole number from {least} to {most:,}")
        return int(text)

    return parse


def directory(text: str) -> Path:
    """Read a flag that takes a folder: an empty word, which a script's unset variable gives, is refused."""
    if not text.strip():
        raise argparse.ArgumentTypeError("it is empty; allowed: a folder")
    return Path(text).expanduser()  # which a shell leaves in --results=~/x


def header(**what):
    """Print the first line of a command: what it does, where, on which device."""
    say(" | ".join(f"{key} {value}" for key, value in what.items()))
