"""How pictures look: one colour for honest accounts, others for attacks, told apart by the colour-blind too."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from pathlib import Path
from types import MappingProxyType
from typing import Any

import numpy as np

HONEST = "#0072B2"
ATTACKS: Mapping[str, str] = MappingProxyType(
    {
        "JBDA-TR": "#D55E00",
        "KnockoffNets": "#E69F00",
        "Cloudleak": "#CC79A7",
        "JB-top3": "#D55E00",
        "foreign": "#E69F00",
        "colluding": "#009E73",
    }
)
"""Colours of Okabe and Ito (Color universal design, 2008)."""
DEFENCES = ("#333333", "#E69F00", "#009E73", "#D55E00", "#0072B2")
"""Of several that are compared, the first of none."""
NEUTRAL = "#333333"
"""Of thresholds and of what belongs to nobody."""
DOTS_PER_INCH = 110


@contextmanager
def drawn(
    path: Path, columns: int = 1, width: float = 4.4, height: float = 3.6, rows: int = 1, sharey: bool = False
) -> Iterator[Any]:
    """Draws a picture of panels side by side, in one row or more, and saves it at the end.

    Args:
        path: PNG to write; its folder is made where it is missing.
        columns: panels of a row.
        width: of each, inches.
        height: of each, inches.
        rows: of panels.
        sharey: whether all have the scale of the first.

    Yields:
        [rows * columns] axes.
    """
    import matplotlib

    matplotlib.use("Agg")
    from matplotlib import pyplot

    size = (width * columns, height * rows)
    figure, axes = pyplot.subplots(rows, columns, figsize=size, squeeze=False, sharey=sharey)
    try:
        yield axes.ravel()
        figure.tight_layout()
        path.parent.mkdir(parents=True, exist_ok=True)
        figure.savefig(path, dpi=DOTS_PER_INCH)
    finally:
        pyplot.close(figure)


def mean_and_spread(values: list[float], decimals: int = 1) -> str:
    """Mean and sample standard deviation over seeds, in words; the mean alone where there is one seed."""
    mean = f"{np.mean(values):,.{decimals}f}"
    return f"{mean} ± {np.std(values, ddof=1):.{decimals}f}" if len(values) > 1 else mean


def seeds_in_words(values: list[float], decimals: int = 1) -> str:
    """The spread of a finding: standard deviation over how many seeds."""
    if len(values) == 1:
        return "one seed"
    return f"standard deviation {np.std(values, ddof=1):.{decimals}f} over {len(values)} seeds"
