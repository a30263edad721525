"""Disks that are full."""

from __future__ import annotations

import errno
from pathlib import Path

BLOCK = 65_536


def fill(file: Path) -> None:
    """Write a file until its file system has no room."""
    with file.open("wb", buffering=0) as filler:
        for size in (BLOCK, 512):
            try:
                while filler.write(bytes(size)):
                    pass
            except OSError as error:
                if error.errno != errno.ENOSPC:
                    raise
