"""Becomes another program that the kernel signals when this one's parent ends: `tether.py SIGNAL PARENT ARGV...`.

Run as a script by `child`, with the standard library alone. (A hook between fork and exec would do the same, but is not
safe in a parent with threads.)
"""

import ctypes
import os
import sys

_PR_SET_PDEATHSIG = 1


def main(arguments: list[str]) -> None:
    """Ask for the signal, make sure that the parent still lives, and become the program."""
    number, parent, argv = int(arguments[0]), int(arguments[1]), arguments[2:]
    if sys.platform == "linux":
        ctypes.CDLL(None).prctl(_PR_SET_PDEATHSIG, number, 0, 0, 0)
        if os.getppid() != parent:  # it died before we asked
            return
    os.execvp(argv[0], argv)  # noqa: S606 - a program of our own plan


if __name__ == "__main__":
    main(sys.argv[1:])
