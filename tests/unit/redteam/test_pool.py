"""Attacks that choose from a pool really copy, and choose as their papers say."""

from __future__ import annotations

from collections.abc import Callable

import numpy as np
import pytest
import torch
from scipy.spatial.distance import cdist

from services.redteam.attack import Attack
from services.redteam.pool import (
    AdaptiveKnockoff,
    CopyCat,
    Dfal,
    DfalKCenter,
    KCenter,
    KnockoffNets,
    LineSearch,
    PoolAttack,
    RandomSelection,
    Uncertainty,
    border_distances,
    farthest,
    nearest_to_the_border,
)
from services.redteam.substitute import Images, Probabilities, Substitute, Yardstick, as_tensor, said
from shared.datasets import Dataset, load_digits
from tests.support.undefended import Victim, splits

ROWS = 64
ROUND, BUDGET = 60, 120
ACTIVE: tuple[type[PoolAttack], ...] = (Uncertainty, KCenter, Dfal, DfalKCenter)


def pool() -> Images:
    return splits().test.images[6000:8000]


def attacks() -> dict[str, Attack]:
    both = np.concatenate([load_digits().images[:1000], pool()[:1000]])
    return {
        **{kind.name: kind(pool()[:600], ROUND, ROWS) for kind in ACTIVE},
        CopyCat.name: CopyCat(both, ROUND, ROWS),
        AdaptiveKnockoff.name: AdaptiveKnockoff(splits().test[6000:8000], ROUND, ROWS),
        LineSearch.name: LineSearch(pool()[:ROUND], pairs=100, halvings=3, request_rows=ROWS),
    }


@pytest.mark.parametrize("name", [*(kind.name for kind in ACTIVE), "CopyCat", "KnockoffNets, adaptive", "line search"])
def test_a_copy_gets_better_than_its_first_round_made_it(name: str, victim: Victim, yardstick: Yardstick) -> None:
    """By 3 points of agreement; along lines between its seeds, which teach little, it stays as good."""
    report = attacks()[name].run(victim, BUDGET, np.random.default_rng(1), yardstick)
    assert report.queries >= 0.9 * BUDGET
    agreement = [milestone.similarity.agreement for milestone in report.milestones if milestone.similarity]
    assert agreement[-1] > agreement[0] + (-0.01 if name == LineSearch.name else 0.03)


@pytest.mark.usefixtures("careless")
@pytest.mark.parametrize("kind", [*ACTIVE, RandomSelection, KnockoffNets, CopyCat])
def test_no_image_is_asked_twice_and_a_used_up_pool_ends_the_attack(kind: type[PoolAttack], victim: Victim) -> None:
    images = pool()[:50]
    report = kind(images, 20, ROWS).run(victim, 200, np.random.default_rng(1))
    assert report.queries == 50
    assert {image.tobytes() for image in np.concatenate(victim.asked)} == {image.tobytes() for image in images}


@pytest.fixture(scope="module")
def copy() -> Substitute:
    data = splits().train[:1000]
    copy = Substitute(10, np.random.default_rng(3))
    copy.train(data.images, np.eye(10, dtype=np.float32)[data.labels], 5)
    return copy


def test_uncertainty_asks_about_what_the_copy_doubts_most(copy: Substitute) -> None:
    images = pool()[:300]
    chosen = Uncertainty(images).choose(None, copy, images, 30)  # type: ignore[arg-type]  # it needs no loot
    surest = said(copy, images).max(axis=1)
    assert surest[chosen].max() < np.median(surest)


def test_the_farthest_point_comes_next_each_time() -> None:
    random = np.random.default_rng(0)
    points, centres = random.random((60, 4), np.float32), random.random((5, 4), np.float32)
    chosen = farthest(points, centres, 20).tolist()
    assert len(set(chosen)) == 20
    for number, row in enumerate(chosen):
        known = np.concatenate([centres, points[chosen[:number]]])
        distances = cdist(points, known).min(axis=1)
        assert distances[row] == pytest.approx(distances.max(), abs=1e-5)


def test_the_way_to_the_border_of_a_linear_model_is_the_one_of_geometry() -> None:
    torch.manual_seed(0)
    layer = torch.nn.Linear(12, 4)
    images = torch.rand(20, 3, 2, 2)
    with torch.no_grad():
        logits = layer(images.flatten(1))
    weight = layer.weight.detach()
    expected = []
    for row, label in enumerate(logits.argmax(dim=1).tolist()):
        others = [k for k in range(4) if k != label]
        gaps = [float((logits[row, label] - logits[row, k]) / (weight[label] - weight[k]).norm()) for k in others]
        expected.append(min(gaps))
    found = border_distances(torch.nn.Sequential(torch.nn.Flatten(), layer), images)
    np.testing.assert_allclose(found.numpy(), expected, rtol=5e-3, atol=1e-3)


def test_images_near_the_border_change_their_label_by_less_noise(copy: Substitute) -> None:
    images = pool()[:400]
    order = nearest_to_the_border(copy, images, 400)
    noise = torch.randn(as_tensor(images).shape, generator=torch.Generator().manual_seed(0)) * 0.1
    with torch.inference_mode():
        after = copy.network((as_tensor(images) + noise).clamp(0, 1)).argmax(dim=1).numpy()
    changed = (copy.labels(images) != after)[order]
    assert changed[:100].mean() > changed[-100:].mean() + 0.1


@pytest.mark.usefixtures("careless")
def test_the_bandit_asks_more_of_the_class_whose_answers_teach_more() -> None:
    """Class 0 is answered with certainty and variety, class 1 always with the same doubt."""
    images = np.random.default_rng(0).integers(0, 256, (2000, 1, 4, 4), dtype=np.uint8)
    images[:, 0, 0, 0] = np.arange(2000) % 2
    asked: list[Images] = []

    def ask(images: Images) -> Probabilities:
        asked.append(images)
        surely = np.eye(5, dtype=np.float32)[images[:, 0, 1, 1] % 5]
        return np.where(images[:, 0, 0, :1] == 0, surely, np.float32(0.2)).astype(np.float32)

    attack = AdaptiveKnockoff(Dataset(images, np.arange(2000) % 2), round_queries=50, request_rows=ROWS)
    attack.run(ask, 600, np.random.default_rng(0))
    share = [float((part[:, 0, 0, 0] == 0).mean()) for part in np.array_split(np.concatenate(asked), 6)]
    assert attack.preferences[0] > attack.preferences[1]
    assert share[-1] > 0.55


@pytest.mark.usefixtures("careless")
def test_a_line_search_ends_at_the_border(victim: Victim) -> None:
    images = pool()[:20]

    def searched(budget: int) -> LineSearch:
        attack = LineSearch(images, pairs=30, halvings=6, request_rows=ROWS)
        attack.run(victim, budget, np.random.default_rng(0))
        return attack

    lines = len(searched(20 + 10).near)  # as many as join images of different labels
    victim.asked = []
    attack = searched(20 + 6 * lines)
    assert {image.tobytes() for image in np.concatenate(victim.asked)[:20]} == {image.tobytes() for image in images}
    near, far = attack.near, attack.far
    assert len(near) > 10
    assert (victim.network.labels(near) != victim.network.labels(far)).mean() > 0.9
    # Rounding to whole pixels aside, each halving halved the way.
    assert np.abs(near.astype(int) - far.astype(int)).max() <= 255 / 2**6 + 1


@pytest.mark.parametrize(
    "build",
    [
        lambda: Uncertainty(pool()[:0]),
        lambda: AdaptiveKnockoff(splits().test[:0]),
        lambda: LineSearch(pool()[:1]),
        lambda: LineSearch(pool(), pairs=0),
    ],
)
def test_nothing_to_ask_about_is_refused(build: Callable[[], Attack]) -> None:
    with pytest.raises(ValueError, match="need"):
        build()
