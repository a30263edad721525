"""Files that are there whole or not at all."""

from __future__ import annotations

import os
from pathlib import Path


def write_whole(path: Path, content: bytes, private: bool = False) -> None:
    """Write a file, or replace it, so that whoever looks finds all of it or what was there before.

    Several processes may write the same one; the last has it. (A machine that loses power may still lose it.)

    Args:
        path: of the file.
        content: all of it.
        private: whether its owner alone may read it.
    """
    unfinished = path.with_suffix(f".{os.getpid()}.partial")
    if private:
        unfinished.touch(mode=0o600)
    unfinished.write_bytes(content)
    unfinished.replace(path)
