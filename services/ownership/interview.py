"""Asks a suspect, and innocent models beside it, about every mark of some accounts."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator, Sequence
from dataclasses import dataclass

import numpy as np

from services.ownership.chain import Link, follow
from services.ownership.errors import OwnershipError
from services.ownership.suspects import BATCH, Suspect
from services.ownership.verification import Labels, Marks, MarkSelector, marks_of
from shared.bundle import ModelSection
from shared.events import PerturbedAnswer


class EvidenceMismatchError(OwnershipError):
    """Evidence is of a model of another form than the bundle's; the message says which record."""


@dataclass(frozen=True, slots=True)
class Interview:
    """Marks and answers, account by account."""

    marks: tuple[Marks, ...]
    suspect: tuple[Labels, ...]
    innocents: tuple[tuple[Labels, ...], ...]
    """For each innocent model, its labels for each account's marks."""
    records: int
    """Spoiled answers looked at; those that are no marks of their own among them."""
    asked_twice: int
    changed: int
    """Of the inputs that the suspect was asked twice, those that it answered otherwise the second time."""


def interview(
    accounts: Iterable[tuple[str, Iterable[Link]]],
    suspect: Suspect,
    innocents: Sequence[Suspect],
    section: ModelSection,
    asked: Callable[[int], None],
) -> Interview:
    """Ask every model about every mark, and the suspect about the first marks of each account twice.

    Inputs are held a batch at a time, so that an account may have more of them than memory.

    Args:
        accounts: names and chains.
        suspect: the first answers count.
        innocents: for the base rate.
        section: the marked model.
        asked: told how many more records were dealt with, after each batch.

    Raises:
        BrokenChainError: an account's evidence is not what it was.
        EvidenceMismatchError: it is of a model with other inputs or classes.
        SuspectError: a model does not answer.
    """
    models = [suspect, *innocents]
    marks: list[Marks] = []
    labels: list[list[Labels]] = [[] for _ in models]
    records = asked_twice = changed = 0
    for account, links in accounts:
        parts: list[Marks] = []
        said: list[list[Labels]] = [[] for _ in models]
        for seen, batch in _batches(account, links, section):
            if batch:
                inputs = np.stack([answer.input for answer in batch])
                for model, answers in zip(models, said, strict=True):
                    answers.append(model.labels(inputs))
                if not parts:
                    asked_twice += len(inputs)
                    changed += int((suspect.labels(inputs) != said[0][0]).sum())
                parts.append(marks_of(account, batch))
            records += seen
            asked(seen)
        marks.append(_joined(account, parts))
        for of_model, answers in zip(labels, said, strict=True):
            of_model.append(np.concatenate([np.zeros(0, dtype=np.int64), *answers]))
    return Interview(
        tuple(marks), tuple(labels[0]), tuple(tuple(of) for of in labels[1:]), records, asked_twice, changed
    )


def _batches(
    account: str, links: Iterable[Link], section: ModelSection
) -> Iterator[tuple[int, Sequence[PerturbedAnswer]]]:
    """An account's marks, some at a time, and how many records were looked at for them; the last may have no mark."""
    selector = MarkSelector()
    batch: list[PerturbedAnswer] = []
    seen = 0
    for found, answer in follow(section.name, account, links):
        _require_form(answer, section, found.position)
        seen += 1
        if selector.admits(answer):
            batch.append(answer)
        if len(batch) == BATCH:
            yield seen, batch
            seen, batch = 0, []
    yield seen, batch


def _joined(account: str, parts: Sequence[Marks]) -> Marks:
    every = [marks_of(account, ()), *parts]
    return Marks(
        account,
        np.concatenate([part.told for part in every]),
        np.concatenate([part.true for part in every]),
        np.concatenate([part.believed for part in every]),
    )


def _require_form(answer: PerturbedAnswer, section: ModelSection, position: int) -> None:
    if answer.input.shape != section.input_shape or len(answer.logits) != len(section.classes):
        raise EvidenceMismatchError(
            f"record {position} of account {answer.account} is of an input {list(answer.input.shape)} and "
            f"{len(answer.logits)} classes, the bundle's model takes {list(section.input_shape)} and tells "
            f"{len(section.classes)} apart: set PORTCULLIS_BUNDLE to the bundle of {answer.model_name} "
            f"{answer.model_version}"
        )
