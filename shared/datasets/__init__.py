"""The data that Portcullis trains, calibrates and demonstrates on.

`python -m shared.datasets` fetches Fashion-MNIST and the digits; `load_source` also reads data of anybody's own.
"""

from shared.datasets.dataset import DEFAULT_FOLDER, Dataset, DatasetError, Source, Splits
from shared.datasets.fetching import fetch
from shared.datasets.formats import read_source
from shared.datasets.sources import (
    FASHION_CLASSES,
    SHOES,
    SOURCES,
    load_digits,
    load_fashion_mnist,
    load_source,
    load_splits,
)
from shared.datasets.splits import cut

__all__ = [
    "DEFAULT_FOLDER",
    "FASHION_CLASSES",
    "SHOES",
    "SOURCES",
    "Dataset",
    "DatasetError",
    "Source",
    "Splits",
    "cut",
    "fetch",
    "load_digits",
    "load_fashion_mnist",
    "load_source",
    "load_splits",
    "read_source",
]
