"""What each further attack crafts is what its paper says, for images of any shape, and attacks."""

from __future__ import annotations

import numpy as np
import pytest
import torch

from services.redteam.attack import Attack
from services.redteam.dfme import Dfme, Maze
from services.redteam.dfms import DfmsHl
from services.redteam.jacobian import (
    EPOCHS,
    Cloudleak,
    JacobianAttack,
    JbaBs,
    JbaCw,
    JbaPgd,
    Jbda,
    JbdaTr,
    JbTop3,
    as_images,
    likeliest_others,
    within_classes,
)
from services.redteam.pool import POOL_ATTACKS, AdaptiveKnockoff, LineSearch, PoolAttack, RandomSelection
from services.redteam.substitute import Images, Probabilities, Substitute, Yardstick, as_tensor
from shared.datasets import Dataset
from tests.support.undefended import Victim, splits

ORIGINS = 40


class Situation:
    """An attacker after its first round: seeds, their labels, and the copy that learned them."""

    def __init__(self, victim: Victim) -> None:
        self.victim = victim
        self.made: dict[JacobianAttack, torch.Tensor] = {}
        self.images = splits().test.images[7000 : 7000 + ORIGINS]
        self.labels = victim.network.labels(self.images)
        self.copy = Substitute(10, np.random.default_rng(0))
        self.copy.train(self.images, np.eye(10, dtype=np.float32)[self.labels], EPOCHS)

    def crafted(self, attack: JacobianAttack) -> torch.Tensor:
        """What the attack makes of the seeds, made once."""
        if attack not in self.made:
            self.made[attack] = self.made_anew(attack)
        return self.made[attack]

    def made_anew(self, attack: JacobianAttack) -> torch.Tensor:
        return attack.craft(self.copy.network, as_tensor(self.images), self.labels, np.random.default_rng(1))

    def origins(self, attack: JacobianAttack) -> torch.Tensor:
        return as_tensor(np.repeat(self.images, attack.crafted_per_image, axis=0))

    def crossed(self, images: torch.Tensor, attack: JacobianAttack) -> float:
        """Share whose label, to the victim, is not their origin's."""
        before = np.repeat(self.labels, attack.crafted_per_image)
        return float((self.victim.network.labels(as_images(images)) != before).mean())


@pytest.fixture(scope="module")
def situation(trained: Victim) -> Situation:
    return Situation(trained)


def distances(one: torch.Tensor, other: torch.Tensor) -> torch.Tensor:
    return (one - other).flatten(1).norm(dim=1)


def test_jbda_goes_one_step_up_the_labels_own_jacobian(situation: Situation) -> None:
    attack = Jbda(situation.images, step=0.05)
    crafted, origins, labels = situation.crafted(attack), situation.origins(attack), torch.from_numpy(situation.labels)
    assert (crafted - origins).abs().max() <= 0.05 + 1e-6
    rows = torch.arange(ORIGINS)
    with torch.no_grad():
        before = situation.copy.network(origins).softmax(dim=1)[rows, labels]
        after = situation.copy.network(crafted).softmax(dim=1)[rows, labels]
    assert after.mean() > before.mean()


@pytest.mark.parametrize("step", [4 / 255, 0.3])
def test_any_step_size_can_be_had(situation: Situation, step: float) -> None:
    for attack in (
        JbdaTr(situation.images, radius=step, steps=2, step=step),
        JbTop3(situation.images, radius=step, steps=2, step=step),
        JbaPgd(situation.images, radius=step, steps=2, step=step),
        Jbda(situation.images, step=step),
    ):
        moved = (situation.crafted(attack) - situation.origins(attack)).abs().max()
        assert moved == pytest.approx(step, abs=1e-5)


def test_binary_search_ends_on_the_copys_border(situation: Situation) -> None:
    attack = JbaBs(situation.images, radius=0.3, step=0.02)
    crafted = situation.crafted(attack)
    targets = likeliest_others(situation.copy.network, as_tensor(situation.images), situation.labels, 3).flatten()
    sources = torch.from_numpy(situation.labels).repeat_interleave(3)
    rows = torch.arange(len(crafted))
    with torch.no_grad():
        logits, before = (situation.copy.network(x) for x in (crafted, situation.origins(attack)))
    gap = (logits[rows, sources] - logits[rows, targets]).abs()
    gap_before = (before[rows, sources] - before[rows, targets]).abs()
    # Where a third class lies between the two the search stops early.
    assert gap.median() < 0.01 * gap_before.median()
    assert (crafted - situation.origins(attack)).abs().max() <= 0.3 + 1e-6


def test_binary_search_keeps_to_its_halvings(situation: Situation) -> None:
    """After one it is half-way, less than half the radius away."""
    crafted = situation.crafted(attack := JbaBs(situation.images, radius=0.2, steps=5, step=0.2, halvings=1))
    assert (crafted - situation.origins(attack)).abs().max() <= 0.15 + 1e-6


@pytest.fixture(scope="module")
def carlini_wagner(situation: Situation) -> JbaCw:
    return JbaCw(situation.images, steps=40, searches=4, rate=0.05, first_weight=1e-2)


@pytest.fixture(scope="module")
def cloudleak(situation: Situation) -> Cloudleak:
    return Cloudleak(situation.images, steps=60)


def test_carlini_wagner_reaches_its_targets_from_nearer_than_the_sign_of_the_gradient_does(
    carlini_wagner: JbaCw, situation: Situation
) -> None:
    other = JbTop3(situation.images, radius=0.3, steps=15, step=0.02)
    targets = likeliest_others(situation.copy.network, as_tensor(situation.images), situation.labels, 3).flatten()
    hits, others = (
        situation.copy.network(situation.crafted(one)).argmax(dim=1) == targets for one in (carlini_wagner, other)
    )
    assert hits.float().mean() > 0.7
    both = hits & others
    assert both.any()
    near, far = (distances(situation.crafted(one), situation.origins(one))[both] for one in (carlini_wagner, other))
    assert near.median() < 0.8 * far.median()


def test_cloudleak_gets_nearer_to_others_features(cloudleak: Cloudleak, situation: Situation) -> None:
    crafted, origins = situation.crafted(cloudleak), situation.origins(cloudleak)
    assert crafted.min() >= 0
    assert crafted.max() <= 1
    with torch.no_grad():
        here, own = (torch.nn.functional.normalize(situation.copy.network.features(x)) for x in (crafted, origins))
    labels = torch.from_numpy(situation.labels)
    other = labels[:, None] != labels[None]
    to_others = torch.cdist(here, own).masked_fill(~other, torch.inf).amin(dim=1)
    assert (to_others < (here - own).norm(dim=1)).float().mean() > 0.6


def test_cloudleaks_margin_is_a_mean_over_pairs_of_a_class() -> None:
    features = torch.tensor([[0.0, 0.0], [3.0, 4.0], [100.0, 0.0]])
    assert within_classes(features, torch.tensor([0, 0, 1])) == pytest.approx(25.0)
    assert within_classes(features, torch.tensor([0, 1, 2])) == 0.0


def test_cloudleak_takes_any_seed_where_all_are_of_one_class(situation: Situation) -> None:
    """The copy knows nothing of other classes then, but the attack goes on."""
    one_class = situation.images[situation.labels == situation.labels[0]]
    assert situation.crafted(Cloudleak(one_class, steps=2)).shape == (ORIGINS, 1, 28, 28)


def test_what_is_crafted_crosses_the_victims_borders_more_often_than_noise_of_the_same_length(
    carlini_wagner: JbaCw, cloudleak: Cloudleak, situation: Situation
) -> None:
    for attack in (carlini_wagner, cloudleak):
        crafted, origins = situation.crafted(attack), situation.origins(attack)
        noise = torch.from_numpy(np.random.default_rng(2).standard_normal(crafted.shape).astype(np.float32))
        noise *= (distances(crafted, origins) / noise.flatten(1).norm(dim=1))[:, None, None, None]
        noisy = (origins + noise).clamp(0.0, 1.0)
        assert situation.crossed(crafted, attack) > 1.5 * situation.crossed(noisy, attack)
        assert situation.crossed(crafted, attack) > 0.03


def test_more_random_images_make_a_better_copy(victim: Victim, yardstick: Yardstick) -> None:
    pool = splits().test.images[5000:]
    agreement = []
    for budget in (40, 300):
        attack = RandomSelection(pool, round_queries=budget, request_rows=64)
        final = attack.run(victim, budget, np.random.default_rng(0), yardstick).final
        assert final
        agreement.append(final.agreement)
    assert agreement[1] > agreement[0] + 0.05
    asked = np.concatenate(victim.asked)
    assert {image.tobytes() for image in asked} <= {image.tobytes() for image in pool}


SHAPE, CLASSES = (3, 22, 17), 4


def odd_attacks() -> list[Attack]:
    """One of each kind, for images of an odd shape."""
    images = np.random.default_rng(0).integers(0, 256, (12, *SHAPE), dtype=np.uint8)
    return [
        Jbda(images, request_rows=5),
        JbdaTr(images, steps=2, request_rows=5),
        JbaPgd(images, steps=2, request_rows=5),
        JbTop3(images, steps=2, request_rows=5),
        JbaBs(images, steps=2, request_rows=5),
        JbaCw(images, steps=2, searches=2, request_rows=5),
        Cloudleak(images, steps=2, request_rows=5),
        Dfme(SHAPE, batch=4, width=4, latent=8, request_rows=5),
        Maze(SHAPE, batch=2, directions=3, width=4, latent=8, request_rows=5),
        DfmsHl(SHAPE, initial=9, batch=4, game_steps=2, width=4, latent=8, request_rows=5),
        LineSearch(images, pairs=6, halvings=2, request_rows=5),
        *(kind(images, round_queries=5, request_rows=5) for kind in POOL_ATTACKS),
        AdaptiveKnockoff(Dataset(images, np.arange(12) % 3), round_queries=5, request_rows=5),
    ]


@pytest.mark.parametrize("which", range(19))
def test_every_attack_takes_images_of_any_shape_and_any_number_of_classes(
    which: int, monkeypatch: pytest.MonkeyPatch
) -> None:
    # Noise has nothing to teach.
    monkeypatch.setattr("services.redteam.substitute.LEAST_STEPS", 1)
    asked: list[Images] = []

    def ask(images: Images) -> Probabilities:
        asked.append(images)
        return np.eye(CLASSES, dtype=np.float32)[images.sum(axis=(1, 2, 3)) % CLASSES]

    attack = odd_attacks()[which]
    budget = 12 if isinstance(attack, PoolAttack) else 33
    report = attack.run(ask, budget, np.random.default_rng(0))
    assert report.queries == sum(len(images) for images in asked) == budget
    assert {images.shape[1:] for images in asked} == {SHAPE}
    assert {images.dtype for images in asked} == {np.dtype(np.uint8)}
