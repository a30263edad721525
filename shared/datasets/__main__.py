"""`python -m shared.datasets [--folder data]`: fetch what is missing, and say what there is."""

from __future__ import annotations

import argparse
import sys
from pathlib import Path

from shared.datasets.dataset import DEFAULT_FOLDER, DatasetError
from shared.datasets.fetching import fetch
from shared.datasets.sources import load_digits, load_fashion_mnist


def main() -> int:
    """Fetch, and say what there is."""
    parser = argparse.ArgumentParser(description="Fetch the data sets that Portcullis uses.")
    parser.add_argument("--folder", type=Path, default=DEFAULT_FOLDER, help="where they are kept (%(default)s)")
    folder = parser.parse_args().folder
    try:
        fetch(folder)
        fashion, digits = load_fashion_mnist("train", folder), load_digits(folder)
    except DatasetError as error:
        print(error, file=sys.stderr)
        return 1
    print(f"{folder}: Fashion-MNIST ({len(fashion):,} training images) and {len(digits):,} digits")
    return 0


if __name__ == "__main__":
    sys.exit(main())
