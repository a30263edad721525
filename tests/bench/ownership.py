"""How often the tests of ownership would accuse an innocent model, and a thief's: `python -m tests.bench.ownership`.

Innocent models are LeNet-5s of 960 images of Fashion-MNIST each, no two of the same. Every one of them is the suspect
once, with some of the others as innocent models beside it. Marks are AMAO's, of the repository's bundle, on 200
pictures an account: two accounts that sent clothes, two that sent digits. The thief learnt 480 answers, one in eight
spoiled.
"""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
from numpy.typing import NDArray
from torch import nn

from services.inference.model import Model
from services.ownership.verification import Finding, marks_of, verify
from shared.bundle import Bundle
from shared.datasets import load_digits, load_splits
from shared.settings import REPOSITORY_BUNDLE
from tests.support.thieves import labels_of, spoiled_answers, trained

INNOCENTS = 24
IMAGES = 960
MARKS = 200
REFERENCES = (0, 1, 3, 10)
LEVEL = 0.001


def main() -> None:
    """Train, ask, and print."""
    bundle = Bundle.load(REPOSITORY_BUNDLE)
    model, splits, digits = Model(bundle), load_splits(), load_digits()
    train = splits.train
    innocents = [
        trained(
            train.images[start : start + IMAGES],
            train.labels[start : start + IMAGES].astype(np.int64),
            seed=start,
            epochs=4,
        )
        for start in range(0, INNOCENTS * 1000, 1000)
    ]
    right = [(labels_of(network, splits.test.images) == splits.test.labels).mean() for network in innocents]
    print(f"{INNOCENTS} innocent models, accuracy {min(right):.1%} to {max(right):.1%}; level {LEVEL}")
    for name, pictures in (("clothes", splits.test.images), ("digits", digits.images)):
        accounts = [pictures[:MARKS], pictures[MARKS : 2 * MARKS]]
        for references in REFERENCES:
            found = _suspected(bundle, model, accounts, innocents, references)
            by_base, by_order = (sum(of.p_base <= LEVEL for of in found), sum(of.p_order <= LEVEL for of in found))
            print(
                f"{name}: {references:2} innocent models beside it, {len(found)} findings: "
                f"claims {sum(of.claim for of in found)}; at the level by base rate alone {by_base}, by order alone "
                f"{by_order}; largest ratio {max(of.ratio for of in found):.1%}"
            )
    print(_thief(bundle, model, innocents[:3]))


def _suspected(
    bundle: Bundle,
    model: Model,
    accounts: Sequence[NDArray[np.uint8]],
    innocents: Sequence[nn.Module],
    references: int,
) -> list[Finding]:
    """Every innocent model as the suspect, with the next ones beside it."""
    marks = [
        marks_of(str(n), spoiled_answers(model.logits(pictures), pictures, str(n), bundle.manifest.model))
        for n, pictures in enumerate(accounts)
    ]
    said = [[labels_of(network, pictures) for pictures in accounts] for network in innocents]
    classes = len(bundle.manifest.model.classes)
    found: list[Finding] = []
    for suspect, labels in enumerate(said):
        beside = [said[(suspect + 1 + step) % len(said)] for step in range(references)]
        found += verify(marks, labels, beside, classes, level=LEVEL).findings
    return found


def _thief(bundle: Bundle, model: Model, innocents: Sequence[nn.Module]) -> str:
    pictures = load_splits().holdout.images[:480]
    spoiled = spoiled_answers(model.logits(pictures[::8]), pictures[::8], "thief", bundle.manifest.model)
    answers = model.logits(pictures).argmax(axis=1).astype(np.int64)
    answers[::8] = [of.answer.argmax() for of in spoiled]
    copy = trained(pictures, answers, seed=1, epochs=40)
    marks = [marks_of("thief", spoiled)]
    lines = []
    for beside in ([], innocents):
        labels = [[labels_of(network, pictures[::8])] for network in beside]
        (found,) = verify(marks, [labels_of(copy, pictures[::8])], labels, len(bundle.manifest.model.classes)).findings
        lines.append(
            f"thief's copy, {len(beside)} innocent models beside it: {found.matches} of {found.marks} match, base rate "
            f"at most {found.base_rate_limit:.1%}, p {found.p:.1e}; tolerated {found.tolerated_base_rate:.0%}"
        )
    return "\n".join(lines)


if __name__ == "__main__":
    main()
