"""Runs studies one after the other and writes what they find."""

from __future__ import annotations

import sys
from collections.abc import Callable, Mapping, Sequence
from functools import partial
from pathlib import Path
from types import MappingProxyType

from rich.console import Console

from services.evaluation import (
    amao,
    berkeley,
    blinded,
    copies,
    data_free,
    explained,
    guarantee,
    hardening,
    hashes,
    recall,
    report,
)
from services.evaluation.context import QUICK, Context, Sizes
from services.evaluation.figures import FIGURES, Figure, FiguresError, read_figures, record
from services.evaluation.report import Study
from services.evaluation.variants import of_digits, with_adversarial_positives
from services.inference.responses.interface import AnswerMode
from services.training.command import bars
from shared.bundle import Bundle
from shared.datasets import load_digits, load_splits

_copies_of_probabilities = partial(copies.study, mode=AnswerMode.PROBABILITIES)
STUDIES: Mapping[str, Callable[[Context], Study]] = MappingProxyType(
    {
        "recall": recall.study,
        "patient": recall.patient,
        "insiders": recall.insiders,
        "blinded": blinded.study,
        "guarantee": guarantee.study,
        "lives": guarantee.lives,
        "explained": explained.study,
        "amao": amao.study,
        "copies": copies.study,
        "copies-probabilities": _copies_of_probabilities,
        "data-free": data_free.study,
        "hardening": hardening.study,
        "hashes": hashes.study,
        "berkeley": lambda context: berkeley.study(context, {"adversarial": with_adversarial_positives(context)}),
    }
)
OF_DIGITS: Mapping[str, Callable[[Context], Study]] = MappingProxyType(
    {
        "amao-digits": amao.study,
        "copies-digits": copies.study,
        "copies-probabilities-digits": _copies_of_probabilities,
        "hardening-digits": hardening.study,
    }
)
"""Studies of another bundle, which is made on the way."""


class UnknownStudyError(ValueError):
    """There is no such study; the message names those that there are."""


def evaluate(
    names: Sequence[str] | None, bundle: Path, data: Path, output: Path, cache: Path, quick: bool, quiet: bool = False
) -> list[Figure]:
    """Run studies and write their pages, pictures and figures.

    Args:
        names: of studies; all where None or empty.
        bundle: folder of the bundle under evaluation.
        data: folder of the data sets.
        output: folder of the pages and pictures.
        cache: folder of streams and traces of earlier runs.
        quick: small sizes; figures are shown and not recorded.
        quiet: no progress bars.

    Returns:
        All figures, with what was found.

    Raises:
        UnknownStudyError: a name is of no study.
        BundleError, DatasetError: bundle or data cannot be used.
        FiguresError: the file of figures cannot be used.
    """
    everything = {**STUDIES, **OF_DIGITS}
    if unknown := set(names or ()) - everything.keys():
        raise UnknownStudyError(f"no study {', '.join(sorted(unknown))}; there are {', '.join(everything)}")
    figures = {figure.id: figure for figure in read_figures()}
    with bars(Console(file=sys.stderr), quiet) as progress:
        context = Context(
            bundle=Bundle.load(bundle),
            splits=load_splits(data),
            foreign=load_digits(data),
            sizes=QUICK if quick else Sizes(),
            cache=cache,
            output=output,
            progress=progress,
        )
        for name, study in everything.items():
            if names and name not in names:
                continue
            command = f"portcullis evaluate --study {name}{' --quick' if quick else ''}"
            found = study(of_digits(context, data) if name in OF_DIGITS else context)
            report.write(found, output, command)
            progress.console.print(f"{name}: {output / name}.md")
            for finding in found.findings:
                if finding.id not in figures:
                    raise FiguresError(f"{FIGURES}: no row {finding.id!r}; add it with its target first")
                update = {"value": finding.rounded, "spread": finding.spread}
                figures[finding.id] = figures[finding.id].model_copy(update=update)
            if not quick:
                record(found.findings, command, report.machine())
    return list(figures.values())
