"""A network that learnt spoiled answers is proved to have, and networks that never saw them are not.

Small networks, seconds of training, every seed fixed; the whole way from the registry to the probability.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from numpy.typing import NDArray
from torch import nn

from services.inference.model import Model
from services.inference.network import ARCHITECTURES
from services.ownership.interview import EvidenceMismatchError, Interview, interview
from services.ownership.registry import Registry, SourceRecord
from services.ownership.suspects import Suspect, open_suspect
from services.ownership.verification import Labels, Verification, verify
from shared.bundle import Bundle, ModelSection
from shared.codec import encode_perturbed
from shared.settings import REPOSITORY_BUNDLE
from tests.support.thieves import labels_of, saved, spoiled_answers, trained
from tests.support.undefended import splits

QUERIES = 480
GROUP = 8
"""One answer in so many is spoiled."""


@dataclass
class World:
    """A model, two accounts whose answers were spoiled, a thief who used the first account, and innocent models."""

    section: ModelSection
    registry: Registry
    thief: nn.Module
    innocents: Sequence[nn.Module]
    folder: Path

    def suspect(self, network: nn.Module) -> Suspect:
        file = self.folder / f"{id(network)}.safetensors"
        return open_suspect(saved(network, file), self.section, ARCHITECTURES)

    def interview(self, suspect: Suspect, innocents: Sequence[nn.Module] = ()) -> Interview:
        chains = [(of.account, self.registry.links(of.model_name, of.account)) for of in self.registry.chains()]
        return interview(chains, suspect, [self.suspect(one) for one in innocents], self.section, lambda _: None)

    def verify(self, suspect: nn.Module, innocents: Sequence[nn.Module] = ()) -> Verification:
        heard = self.interview(self.suspect(suspect), innocents)
        return verify(heard.marks, heard.suspect, heard.innocents, len(self.section.classes))


@pytest.fixture(scope="module")
def world(tmp_path_factory: pytest.TempPathFactory) -> World:
    bundle = Bundle.load(REPOSITORY_BUNDLE)
    section = bundle.manifest.model
    model = Model(bundle)
    folder = tmp_path_factory.mktemp("world")
    registry = Registry.create(f"sqlite:///{folder}/registry.db")
    images, labels = splits().holdout.images, splits().holdout.labels.astype(np.int64)

    queries = images[:QUERIES]
    spoiled = spoiled_answers(model.logits(queries[::GROUP]), queries[::GROUP], "mallory", section)
    others = images[QUERIES : 2 * QUERIES : GROUP]
    records = [*spoiled, *spoiled_answers(model.logits(others), others, "oscar", section)]
    registry.append([SourceRecord("t", 0, n, encode_perturbed(record)) for n, record in enumerate(records)])

    answers = model.logits(queries).argmax(axis=1).astype(np.int64)
    answers[::GROUP] = [record.answer.argmax() for record in spoiled]
    thief = trained(queries, answers, seed=1, epochs=40)
    innocents = [
        trained(images[start : start + QUERIES], labels[start : start + QUERIES], seed=start, epochs=6)
        for start in (2000, 3000, 4000)
    ]
    return World(section, registry, thief, innocents, folder)


@pytest.mark.parametrize("references", [0, 2])
def test_a_thiefs_copy_is_proved_and_attributed_to_the_account_whose_answers_it_learnt(
    world: World, references: int
) -> None:
    verification = world.verify(world.thief, world.innocents[:references])
    mallory, oscar = verification.findings
    assert mallory.account == "mallory"
    assert mallory.claim
    assert mallory.paper_rule
    assert mallory.p_holm < 1e-12
    assert mallory.tolerated_base_rate > 0.4
    assert (oscar.claim, oscar.paper_rule) == (False, False)


def test_independently_trained_models_are_not_accused_of_anything(world: World) -> None:
    for number, innocent in enumerate(world.innocents):
        others = [other for other in world.innocents if other is not innocent]
        for references in ([], others):
            verification = world.verify(innocent, references)
            assert not verification.claim, number
            assert not any(found.paper_rule for found in verification.findings)
            assert min(found.p for found in verification.findings) > 0.5


def test_a_copy_of_what_was_told_truly_is_no_proof(world: World) -> None:
    images = splits().holdout.images[:QUERIES]
    honest = Model(Bundle.load(REPOSITORY_BUNDLE)).logits(images).argmax(axis=1).astype(np.int64)
    assert not world.verify(trained(images, honest, seed=1, epochs=10), world.innocents[:2]).claim


def test_the_paper_would_clear_a_copy_that_forgot_half_of_its_marks_and_the_probability_does_not(world: World) -> None:
    heard = world.interview(world.suspect(world.thief), world.innocents[:2])
    (mallory, _), (said, other) = heard.marks, heard.suspect
    kept = np.flatnonzero(said == mallory.told)[: int(0.45 * len(said))]
    forgetful = mallory.true.copy()
    forgetful[kept] = mallory.told[kept]
    found = verify(heard.marks, [forgetful, other], heard.innocents, 10).findings[0]
    assert not found.paper_rule
    assert found.claim
    assert found.p_holm < 1e-6


class Wavering(Suspect):
    """The thief's copy, behind an interface that answers one question in four at random."""

    def __init__(self, network: nn.Module, section: ModelSection) -> None:
        super().__init__("wavering", section, None)
        self._network = network
        self._random = np.random.default_rng(0)

    def _ask(self, inputs: NDArray[np.uint8]) -> Labels:
        said = labels_of(self._network, inputs)
        guess = self._random.integers(0, 10, len(said))
        return np.where(self._random.random(len(said)) < 0.25, guess, said)


def test_a_suspect_that_changes_its_answers_is_noticed_and_still_proved(world: World) -> None:
    steady = world.interview(world.suspect(world.thief))
    assert (steady.asked_twice, steady.changed) == (64, 0)
    wavering = world.interview(Wavering(world.thief, world.section), world.innocents[:2])
    assert 0.2 < wavering.changed / wavering.asked_twice < 0.6
    assert verify(wavering.marks, wavering.suspect, wavering.innocents, 10).findings[0].claim


def test_evidence_of_a_model_of_another_form_is_refused_with_the_bundle_to_set(world: World) -> None:
    section = world.section.model_copy(update={"input_shape": (1, 32, 32)})
    chains: Any = [("mallory", world.registry.links(section.name, "mallory"))]
    with pytest.raises(EvidenceMismatchError, match=r"record 0 of account mallory.*PORTCULLIS_BUNDLE"):
        interview(chains, Wavering(world.thief, section), [], section, lambda _: None)
