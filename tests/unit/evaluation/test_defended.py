"""The whole system in one process: it judges as the services do, and answers as inference does."""

from __future__ import annotations

from functools import partial

import numpy as np
import pytest

from services.decision.policy_file import DEFAULT_POLICY, load_policy
from services.evaluation.attackers import Jacobian, seeds_of
from services.evaluation.defended import LAG, START, DefendedVictim
from services.inference.responses.interface import AnswerMode
from services.redteam.attack import Banned
from services.redteam.jacobian import JbdaTr
from shared.bundle import Bundle
from shared.datasets import load_splits
from shared.events import Action, Override, OverrideKind
from shared.population import draw_account
from shared.settings import REPOSITORY_BUNDLE

BUDGET = 260
HOUR = 3600


@pytest.fixture(scope="module")
def bundle() -> Bundle:
    return Bundle.load(REPOSITORY_BUNDLE)


def victim(bundle: Bundle, mode: AnswerMode = AnswerMode.LABEL, seconds_between: float = 0.01) -> DefendedVictim:
    policy = load_policy(DEFAULT_POLICY, bundle.manifest.evidence.log_threshold)
    return DefendedVictim(bundle, policy, mode, seconds_between=seconds_between)


def test_an_attacker_is_answered_wrongly_from_the_verdict_on_and_an_honest_account_beside_it_never(
    bundle: Bundle,
) -> None:
    test = load_splits().test
    defended = victim(bundle)
    random = np.random.default_rng(1)
    attack = Jacobian(JbdaTr, seeds_of(test, 50, 1).images, 0.1)(random)
    attack.run(partial(defended.ask, "mallory"), BUDGET, random)
    photographs = draw_account(test, 0, BUDGET, 7).images
    for start in range(0, BUDGET, 20):
        defended.ask("alice", photographs[start : start + 20])

    mallory, alice = defended.served("mallory"), defended.served("alice")
    caught = mallory.first(Action.PERTURB)
    assert caught is not None
    assert 50 < caught < 200
    assert mallory.perturbed >= len(mallory.marks) >= 1
    assert min(mallory.marks) >= caught - LAG
    assert (alice.queries, alice.perturbed, alice.verdicts) == (BUDGET, 0, [])


def test_what_the_registry_would_hold_are_answers_other_than_the_models(bundle: Bundle) -> None:
    test = load_splits().test
    defended = victim(bundle, AnswerMode.PROBABILITIES)
    random = np.random.default_rng(2)
    Jacobian(JbdaTr, seeds_of(test, 50, 2).images, 0.1)(random).run(partial(defended.ask, "mallory"), BUDGET, random)
    marks, inputs = defended.served("mallory").marks, defended.served("mallory").inputs
    assert marks
    honest = victim(bundle, AnswerMode.PROBABILITIES).ask("alice", np.stack(list(inputs.values())))
    told = np.stack(list(marks.values()))
    assert (honest.argmax(axis=1) != told.argmax(axis=1)).all()


def test_a_banned_account_gets_no_answer(bundle: Bundle) -> None:
    defended = victim(bundle)
    photograph = load_splits().test.images[:1]
    defended.ask("mallory", photograph)
    defended.obey(
        Override("one", "mallory", bundle.manifest.model.name, OverrideKind.PIN, Action.BAN, "ada", "theft", 1)
    )
    with pytest.raises(Banned):
        defended.ask("mallory", photograph)


def test_patience_buys_nothing_one_query_in_seven_hours_is_spoiled_like_a_hundred_a_second(bundle: Bundle) -> None:
    """An action under a rule lasts six hours since the rule last fired, and until the evidence has fallen."""
    natural = seeds_of(load_splits().test, 50, 3).images
    told = []
    for seconds_between in (0.01, 7 * HOUR):
        defended = victim(bundle, AnswerMode.PROBABILITIES, seconds_between)
        random = np.random.default_rng(3)
        Jacobian(JbdaTr, natural, 0.1)(random).run(partial(defended.ask, "mallory"), BUDGET, random)
        told.append(defended.served("mallory"))
    hasty, patient = told
    assert hasty.perturbed > 10
    assert (patient.perturbed, list(patient.marks)) == (hasty.perturbed, list(hasty.marks))


def test_a_ban_ends_with_its_time(bundle: Bundle) -> None:
    defended = victim(bundle, seconds_between=HOUR)
    photograph = load_splits().test.images[:1]
    day = 24 * HOUR * 1_000_000
    defended.obey(
        Override(
            "one", "mallory", bundle.manifest.model.name, OverrideKind.PIN, Action.BAN, "ada", "theft", START,
            START + day,
        )
    )  # fmt: skip
    for _ in range(23):
        with pytest.raises(Banned):
            defended.ask("mallory", photograph)
    defended.ask("mallory", photograph)
