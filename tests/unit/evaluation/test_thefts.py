"""A theft from the whole system: what the thief keeps, what is held against him, and that it is run once."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest
import torch
from rich.progress import Progress
from torch import nn

from services.decision.policy_file import DEFAULT_POLICY
from services.evaluation import thefts
from services.evaluation.attackers import Jacobian, seeds_of
from services.evaluation.copies import matched
from services.evaluation.thefts import Defence, Theft, Thief, independent, pruned, steal
from services.inference.model import Model
from services.inference.responses.interface import AnswerMode
from services.redteam.jacobian import JbdaTr
from services.redteam.substitute import VictimsOwn, Yardstick
from shared.bundle import Bundle
from shared.datasets import load_splits
from shared.responses import DawnResponse
from shared.settings import REPOSITORY_BUNDLE

BUDGET = 260
quiet = Progress(disable=True)


@pytest.fixture(scope="module")
def bundle() -> Bundle:
    return Bundle.load(REPOSITORY_BUNDLE)


@pytest.fixture(scope="module")
def yardstick(bundle: Bundle) -> Yardstick:
    clean = load_splits().test[-300:]
    return Yardstick(clean.images, Model(bundle).logits(clean.images).argmax(axis=1).astype(np.int64), clean.labels)


def thief(defence: Defence) -> Thief:
    build = Jacobian(JbdaTr, seeds_of(load_splits().test[:-300], 50, 1).images, 0.1)
    return Thief("JBDA-TR", defence, AnswerMode.LABEL, BUDGET, 1, build, VictimsOwn("lenet5"))


@pytest.fixture(scope="module")
def cache(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return tmp_path_factory.mktemp("thefts")


@pytest.fixture(scope="module")
def found(bundle: Bundle, yardstick: Yardstick, cache: Path) -> list[Theft]:
    """Without a defence, under the system, and under DAWN."""
    defences = (Defence("none"), Defence("system", DEFAULT_POLICY), Defence("DAWN", response=DawnResponse(share=0.2)))
    return steal([thief(defence) for defence in defences], bundle, yardstick, cache, quiet, "thieves", processes=1)


def test_the_system_spoils_answers_from_the_verdict_on_and_the_copy_says_what_it_was_told(found: list[Theft]) -> None:
    undefended, system, dawn = found
    assert (undefended.queries, undefended.perturbed, undefended.spoiled_from, undefended.marks) == (
        BUDGET,
        0,
        None,
        [],
    )
    assert system.spoiled_from is not None
    assert 50 < system.spoiled_from < 200
    assert system.perturbed >= len(system.marks) > 10
    assert system.accuracy < undefended.accuracy
    assert 0.1 * BUDGET < dawn.perturbed < 0.3 * BUDGET
    assert dawn.spoiled_from is None

    own, without = matched(system.copy, system), matched(undefended.copy, system)
    assert own is not None
    assert without is not None
    assert own > without + 0.3


def test_each_mark_was_told_wrongly_and_near_copies_count_once(found: list[Theft]) -> None:
    marks, answers = independent(found[1])
    assert len(marks) == len(answers)
    assert 0 < len(marks) <= len(found[1].marks)
    assert all(answer.answer.argmax() != answer.logits.argmax() for answer in found[1].marks)


def test_a_theft_is_run_once(
    bundle: Bundle, yardstick: Yardstick, cache: Path, found: list[Theft], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(thefts._Worker, "steal", lambda *_: pytest.fail("it was run again"))
    (again,) = steal([found[1].thief], bundle, yardstick, cache, quiet, "thieves", processes=1)
    assert (again.queries, again.perturbed) == (found[1].queries, found[1].perturbed)
    assert (again.milestones == found[1].milestones).all()
    inputs = load_splits().test.images[:50]
    x = torch.from_numpy(inputs).float() / 255
    with torch.inference_mode():
        torch.testing.assert_close(again.copy(x), found[1].copy(x))


def test_pruning_takes_the_smallest_weights_and_leaves_the_network_as_it_is() -> None:
    network = nn.Sequential(nn.Linear(2, 2), nn.ReLU(), nn.Linear(2, 1))
    with torch.no_grad():
        network[0].weight.copy_(torch.tensor([[0.1, -4.0], [0.3, 2.0]]))
        network[2].weight.copy_(torch.tensor([[-0.2, 5.0]]))
    smaller = pruned(network, 0.5)
    assert isinstance(smaller, nn.Sequential)
    torch.testing.assert_close(smaller[0].weight, torch.tensor([[0.0, -4.0], [0.0, 2.0]]))
    torch.testing.assert_close(smaller[2].weight, torch.tensor([[0.0, 5.0]]))
    torch.testing.assert_close(pruned(network, 0.0)[0].weight, network[0].weight)  # type: ignore[index]
    assert network[0].weight[0, 0].item() == pytest.approx(0.1)
