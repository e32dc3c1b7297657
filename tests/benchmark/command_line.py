"""What the commands that print tables share: how they are told what to measure, and how they say where they are."""

import argparse
import sys
import time
from collections.abc import Callable, Collection


def say(text: str) -> None:
    """Say what goes on, beside the table: on stderr, with the time."""
    print(f"{time.strftime('%H:%M:%S')}  {text}", file=sys.stderr, flush=True)


def several(choices: Collection[str]) -> Callable[[str], list[str]]:
    """Return what reads an option of several choices with commas between."""

    def read(text: str) -> list[str]:
        if unknown := [each for each in text.split(",") if each not in choices]:
            raise argparse.ArgumentTypeError(f"{', '.join(unknown)}: choose from {', '.join(choices)}")
        return text.split(",")

    return read
