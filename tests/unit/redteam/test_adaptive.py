"""Attackers that know of the detectors do what they are said to do, around any attack."""

from __future__ import annotations

import math
from collections import defaultdict
from collections.abc import Callable

import numpy as np
import pytest
import torch

from services.redteam.adaptive import Colluding, Filtered, Mixed, Repeating, SubstituteDetector, train_encoder
from services.redteam.attack import NATURAL, Account, Ask, Attack, AttackReport, Banned, Loot, Questions, Reply, Route
from services.redteam.blinding import (
    BLINDINGS,
    Blinded,
    Brightness,
    Contrast,
    Crop,
    Gaussian,
    Rotate,
    Scale,
    Translate,
    Uniform,
    blinding,
    train_auto_encoder,
)
from services.redteam.jacobian import JbaPgd, JbdaTr, JbTop3
from services.redteam.pool import RandomSelection
from services.redteam.substitute import Images, Probabilities, as_tensor
from tests.support.undefended import Victim, splits

GREY = torch.full((50, 1, 28, 28), 0.5)
SEEDS = 8


def loot(route: Route, budget: int = 1000, request_rows: int = 1) -> Loot:
    random = np.random.default_rng(0)
    return Loot(route, budget, random, request_rows, AttackReport("by hand"), lambda report: None)


def recorder(victim: Victim) -> tuple[list[Images], Ask]:
    """An account whose requests are kept."""
    sent: list[Images] = []

    def ask(images: Images) -> Probabilities:
        sent.append(images)
        return np.eye(10, dtype=np.float32)[victim.network.labels(images)]

    return sent, ask


def jb_top3(seeds: Images, request_rows: int = 1) -> Attack:
    return JbTop3(seeds[:SEEDS], steps=2, step=0.05, request_rows=request_rows)


def pixels(images: Images) -> np.ndarray:
    """An encoder that leaves an image as it is."""
    return (images.reshape(len(images), -1) / 255.0).astype(np.float32)


# Blinding


def random() -> np.random.Generator:
    return np.random.default_rng(3)


def test_uniform_noise_stays_within_its_amount() -> None:
    change = Uniform(0.064).transform(GREY, random()) - GREY
    assert 0.06 < change.abs().max() <= 0.064


def test_gaussian_noise_has_its_standard_deviation() -> None:
    change = Gaussian(0.095).transform(GREY, random()) - GREY
    assert change.std() == pytest.approx(0.095, rel=0.05)


def test_brightness_moves_all_pixels_of_an_image_alike() -> None:
    change = Brightness(0.09).transform(GREY, random()) - GREY
    assert 0.05 < change.abs().max() <= 0.09
    assert change.flatten(1).std(dim=1).max() < 1e-6


def test_contrast_keeps_the_mean_and_stretches_by_its_share(seeds: Images) -> None:
    images = as_tensor(seeds)
    changed = Contrast(0.55).transform(images, random())
    assert torch.allclose(changed.mean((1, 2, 3)), images.mean((1, 2, 3)), atol=1e-5)
    stretch = changed.std((1, 2, 3)) / images.std((1, 2, 3))
    assert 0.45 - 1e-4 <= stretch.min() < stretch.max() <= 1.55 + 1e-4


def centroids(images: torch.Tensor) -> torch.Tensor:
    """[n, 2], down and across, in pixels."""
    where = torch.stack(torch.meshgrid(torch.arange(28.0), torch.arange(28.0), indexing="ij"))
    return (images[:, :1] * where).sum((2, 3)) / images.sum((2, 3))


def block(top: int, left: int, size: int = 6) -> torch.Tensor:
    images = torch.zeros(50, 1, 28, 28)
    images[:, :, top : top + size, left : left + size] = 1.0
    return images


def test_translation_moves_by_a_share_of_the_side_at_most() -> None:
    moved = centroids(Translate(0.2).transform(block(11, 11), random())) - centroids(block(11, 11))
    assert 0.1 * 28 < moved.abs().max() <= 0.2 * 28 + 1e-3


def test_rotation_keeps_the_distance_to_the_centre_and_turns_by_its_angle_at_most() -> None:
    amount = 0.5
    before = centroids(block(4, 11)) - 13.5
    after = centroids(Rotate(amount).transform(block(4, 11), random())) - 13.5
    assert torch.allclose(after.norm(dim=1), before.norm(dim=1), atol=0.3)
    turned = torch.atan2(after[:, 1], -after[:, 0]) - torch.atan2(before[:, 1], -before[:, 0])
    assert 0.3 < turned.abs().max() <= amount + 0.03


def test_scaling_changes_the_area_by_its_share_at_most() -> None:
    area = (Scale(0.3).transform(block(9, 9, 10), random()).sum((1, 2, 3)) / 100).sqrt()
    assert 0.68 < area.min() < 0.85
    assert 1.15 < area.max() < 1.32


def test_a_crop_shows_a_part_of_the_image_and_nothing_else() -> None:
    assert torch.allclose(Crop(0.5).transform(torch.ones(50, 1, 28, 28), random()), torch.ones(1), atol=1e-5)
    area = Crop(0.5).transform(block(11, 11), random()).sum((1, 2, 3)) / 36
    assert area.min() >= 1.0 - 1e-3
    assert area.max() < 2.1


@pytest.mark.parametrize("name", BLINDINGS[:-1])
def test_low_blinding_changes_less_than_high(name: str, seeds: Images) -> None:
    none = np.empty((0, 10), dtype=np.float32)
    low, high = (
        np.abs(blinding(name, strength, seeds[:0], none, random()).blind(seeds, random()).astype(int) - seeds).mean()
        for strength in ("low", "high")
    )
    assert 0 < low < high


def test_the_blindings_are_the_nine_of_the_report() -> None:
    assert len(BLINDINGS) == 9


def test_the_auto_encoder_sends_different_images_of_which_most_keep_their_label(victim: Victim) -> None:
    images = splits().test.images[8000:8200]
    answers = victim(images)
    blind = train_auto_encoder(images, answers, random(), epochs=4, spread=4.0, rate=3e-3, width=8)
    first, second = (blind.blind(images, np.random.default_rng(seed)) for seed in (1, 2))
    apart = np.linalg.norm(pixels(first) - pixels(second), axis=1)
    assert np.median(apart) > 0.1
    assert (victim.network.labels(first) == answers.argmax(axis=1)).mean() > 0.5


def test_the_answer_to_a_blinded_image_is_booked_to_the_original(victim: Victim, seeds: Images) -> None:
    sent, ask = recorder(victim)
    taken = loot(Blinded(Account(ask), Rotate(math.pi / 2), random()))
    taken.query(taken.questioning(seeds))
    assert (taken.images == seeds).all()
    blinded = np.concatenate(sent)
    assert not (blinded == seeds).all(axis=(1, 2, 3)).any()
    assert (taken.told.argmax(axis=1) == victim.network.labels(blinded)).all()


def test_what_is_compared_exactly_is_not_blinded(victim: Victim, seeds: Images) -> None:
    sent, ask = recorder(victim)
    taken = loot(Blinded(Account(ask), Uniform(0.2), random()))
    exact = np.arange(len(seeds)) % 2 == 0
    taken.query(taken.questioning(seeds, exact=exact))
    assert ((np.concatenate(sent) == seeds).all(axis=(1, 2, 3)) == exact).all()


# Filtering


def nearest_pair(vectors: np.ndarray) -> float:
    return float(torch.pdist(torch.from_numpy(vectors)).min())


@pytest.mark.usefixtures("careless")
def test_filtering_leaves_no_similar_pair_and_pays_only_for_what_is_sent(victim: Victim, seeds: Images) -> None:
    plain, ask = recorder(victim)
    jb_top3(seeds).run(ask, 60, np.random.default_rng(0))
    # Half of what the attack would send is nearer to something earlier.
    vectors = pixels(np.concatenate(plain))
    delta = float(np.median([np.linalg.norm(vectors[:n] - vectors[n], axis=1).min() for n in range(1, len(vectors))]))
    sent, ask = recorder(victim)
    report = jb_top3(seeds).run(Filtered(Account(ask), SubstituteDetector(pixels, delta)), 60, np.random.default_rng(0))
    assert nearest_pair(vectors) < delta
    assert nearest_pair(pixels(np.concatenate(sent))) >= delta * (1 - 1e-5)
    assert SEEDS / 2 < report.queries == len(np.concatenate(sent)) <= 60


def test_an_attack_learns_from_what_passes_the_filter_alone(victim: Victim, seeds: Images) -> None:
    _, ask = recorder(victim)
    taken = loot(Filtered(Account(ask), SubstituteDetector(pixels, 0.01)), request_rows=5)
    taken.query(taken.questioning(seeds[[0, 0, 1, 1, 2, 0]]))
    assert (taken.images == seeds[:3]).all()
    assert taken.numbers.tolist() == [0, 2, 4]
    assert taken.put == 6
    assert taken.report.queries == 3
    assert taken.wanted == 2 * taken.left


def test_what_is_compared_exactly_passes_the_filter(victim: Victim, seeds: Images) -> None:
    _, ask = recorder(victim)
    taken = loot(Filtered(Account(ask), SubstituteDetector(pixels, 0.01)))
    taken.query(taken.questioning(seeds[[0, 0, 0]], exact=np.array([False, True, False])))
    assert taken.numbers.tolist() == [0, 1]


def test_the_filters_threshold_lets_as_many_natural_pairs_pass_as_asked() -> None:
    natural = splits().test.images[:400]
    detector = SubstituteDetector.tuned(pixels, natural, share=0.05)
    vectors = pixels(natural)
    nearest = np.array([np.linalg.norm(vectors[:n] - vectors[n], axis=1).min() for n in range(1, 400)])
    assert (nearest < detector.delta).mean() == pytest.approx(0.05, abs=0.01)


def test_the_attackers_own_encoder_puts_variants_of_an_image_together() -> None:
    encode = train_encoder(splits().test[:320], epochs=1, contrastive_epochs=2, seed=0)
    images = splits().test.images[400:440]
    variants = Uniform(0.064).blind(images, random())
    here, near = encode(images), encode(variants)
    assert here.shape == (40, 256)
    to_variant = np.linalg.norm(here - near, axis=1)
    to_others = np.linalg.norm(here - np.roll(here, 1, axis=0), axis=1)
    assert np.median(to_variant) < 0.5 * np.median(to_others)


def test_training_an_encoder_leaves_torchs_global_generator_alone() -> None:
    torch.manual_seed(7)
    before = torch.get_rng_state()
    train_encoder(splits().test[:64], epochs=1, contrastive_epochs=1, seed=0)
    assert torch.equal(torch.get_rng_state(), before)


# Mixing

# Repeating


@pytest.mark.parametrize(("labels", "believed"), [(False, [0.25, 0.75]), (True, [0.0, 1.0])])
def test_who_asks_everything_again_believes_the_mean_and_pays_for_all(
    labels: bool, believed: list[float], seeds: Images
) -> None:
    told = iter([[0.75, 0.25], [0.0, 1.0], [0.0, 1.0]] * 3)

    def ask(images: Images) -> Probabilities:
        answers = np.array([next(told) for _ in images], dtype=np.float32)
        return np.eye(2, dtype=np.float32)[answers.argmax(axis=1)] if labels else answers

    taken = loot(Repeating(Account(ask), 3), request_rows=2)
    taken.query(taken.questioning(seeds[:3]))
    assert (taken.answered, taken.report.queries) == (3, 9)
    np.testing.assert_allclose(taken.told, [believed] * 3)
    np.testing.assert_array_equal(taken.images, seeds[:3])


def test_repeating_ends_with_the_budget_and_with_the_account(victim: Victim, seeds: Images) -> None:
    taken = loot(Repeating(Account(recorder(victim)[1]), 3), budget=7, request_rows=2)
    taken.query(taken.questioning(seeds[:5]))
    assert (taken.answered, taken.report.queries) == (3, 7)

    def banned(images: Images) -> Probabilities:
        raise Banned

    taken = loot(Repeating(Account(banned), 3))
    taken.query(taken.questioning(seeds[:1]))
    assert taken.report.banned
    with pytest.raises(ValueError, match="0 times"):
        Repeating(Account(banned), 0)


@pytest.mark.usefixtures("careless")
def test_seven_in_eight_queries_are_honest_and_the_rest_is_the_attack(victim: Victim, seeds: Images) -> None:
    honest = splits().test.images[9000:9500]
    sent, ask = recorder(victim)
    report = jb_top3(seeds).run(Mixed(Account(ask), honest, 0.875, random()), 160, np.random.default_rng(0))
    mixed = np.concatenate(sent)
    kept = {image.tobytes() for image in honest}
    is_honest = np.array([image.tobytes() in kept for image in mixed])
    assert report.queries == len(mixed) == 160
    assert is_honest.mean() == pytest.approx(0.875, abs=0.01)
    assert (mixed[is_honest] == honest[: is_honest.sum()]).all()
    alone, ask = recorder(victim)
    jb_top3(seeds).run(ask, 20, np.random.default_rng(0))
    assert (mixed[~is_honest][:SEEDS] == np.concatenate(alone)[:SEEDS]).all()


@pytest.mark.parametrize(("share", "rows"), [(0.0, 1), (0.3, 1), (0.5, 4), (0.9, 3)])
def test_any_share_can_be_mixed_in_and_answers_go_where_they_belong(
    share: float, rows: int, victim: Victim, seeds: Images
) -> None:
    sent, ask = recorder(victim)
    honest = splits().test.images[9000:9100]
    taken = loot(Mixed(Account(ask), honest, share, random()), request_rows=rows)
    taken.query(taken.questioning(seeds))
    assert (taken.images == seeds).all()
    assert (taken.told.argmax(axis=1) == victim.network.labels(seeds)).all()
    assert 1 - len(seeds) / taken.report.queries == pytest.approx(share, abs=0.03)
    assert max(len(request) for request in sent) <= rows


def test_a_mix_keeps_its_share_where_a_filter_drops_some(victim: Victim, seeds: Images) -> None:
    _, ask = recorder(victim)
    honest = splits().test.images[9000:9500]
    detector = SubstituteDetector(pixels, 0.01)
    taken = loot(Mixed(Filtered(Account(ask), detector), honest, 0.75, random()))
    taken.query(taken.questioning(np.repeat(seeds, 3, axis=0)))
    assert len(taken.images) == len(seeds)
    assert 1 - len(seeds) / taken.report.queries == pytest.approx(0.75, abs=0.03)


def test_nothing_cannot_be_mixed_in(victim: Victim, seeds: Images) -> None:
    with pytest.raises(ValueError, match="0 honest images"):
        Mixed(Account(victim), seeds[:0], 0.5, random())
    with pytest.raises(ValueError, match=r"share of 1\.0"):
        Mixed(Account(victim), seeds, 1.0, random())


# Collusion


class Noting(Route):
    """Keeps the questions as the attack put them."""

    def __init__(self, route: Route) -> None:
        self.route = route
        self.noted: list[Questions] = []

    def send(self, questions: Questions, limit: int) -> Reply:
        self.noted.append(questions)
        return self.route.send(questions, limit)


def account_of_each(accounts: list[list[Images]]) -> dict[bytes, int]:
    return {image.tobytes(): number for number, sent in enumerate(accounts) for request in sent for image in request}


@pytest.mark.parametrize("request_rows", [1, 6])
@pytest.mark.usefixtures("careless")
def test_colluding_accounts_share_no_siblings_and_no_parents(victim: Victim, seeds: Images, request_rows: int) -> None:
    accounts = [recorder(victim) for _ in range(4)]
    noting = Noting(Colluding([Account(ask) for _, ask in accounts]))
    # One round: an image and its three variants fit on four accounts.
    report = jb_top3(seeds, request_rows).run(noting, 4 * SEEDS, np.random.default_rng(0))
    assert report.queries == 4 * SEEDS
    where = account_of_each([sent for sent, _ in accounts])
    families: defaultdict[int, list[int]] = defaultdict(list)
    for questions in noting.noted:
        for image, number, origin in zip(questions.images, questions.numbers, questions.origins, strict=True):
            families[int(number if origin == NATURAL else origin)].append(where[image.tobytes()])
    assert len(families) == SEEDS
    assert all(sorted(family) == [0, 1, 2, 3] for family in families.values())


@pytest.mark.usefixtures("careless")
def test_colluding_accounts_carry_about_the_same(victim: Victim, seeds: Images) -> None:
    accounts = [recorder(victim) for _ in range(3)]
    route = Colluding([Account(ask) for _, ask in accounts])
    JbdaTr(seeds[:SEEDS], steps=1).run(route, 8 * SEEDS, np.random.default_rng(0))
    loads = [sum(len(request) for request in sent) for sent, _ in accounts]
    assert sum(loads) == 8 * SEEDS
    assert min(loads) > 0.7 * max(loads)


def banned_after(ask: Ask, answers: int) -> Ask:
    left = iter(range(answers))

    def banning(images: Images) -> Probabilities:
        if next(left, None) is None:
            raise Banned("no more")
        return ask(images)

    return banning


@pytest.mark.usefixtures("careless")
def test_the_others_take_over_from_a_banned_account(victim: Victim, seeds: Images) -> None:
    accounts = [recorder(victim) for _ in range(2)]
    (first, ask), (second, other) = accounts
    route = Colluding([Account(banned_after(ask, 3)), Account(other)])
    report = jb_top3(seeds).run(route, 32, np.random.default_rng(0))
    assert not report.banned
    assert report.queries == 32
    assert (len(first), len(second)) == (3, 29)


@pytest.mark.usefixtures("careless")
def test_an_attack_ends_when_its_last_account_is_banned(victim: Victim, seeds: Images) -> None:
    route = Colluding([Account(banned_after(victim, 3)), Account(banned_after(victim, 4))])
    report = jb_top3(seeds).run(route, 32, np.random.default_rng(0))
    assert report.banned
    assert report.queries == 7


def test_collusion_needs_accounts() -> None:
    with pytest.raises(ValueError, match="accounts"):
        Colluding([])


# Together


@pytest.mark.parametrize(
    "build",
    [jb_top3, lambda seeds: JbaPgd(seeds[:SEEDS], steps=1), lambda seeds: RandomSelection(seeds)],
    ids=["JB-top3", "JBA-PGD", "random selection"],
)
@pytest.mark.usefixtures("careless")
def test_all_schemes_go_around_any_attack_at_once(
    build: Callable[[Images], Attack], victim: Victim, seeds: Images
) -> None:
    sent, ask = recorder(victim)
    filtered = Filtered(Account(ask), SubstituteDetector(pixels, 0.05))
    mixed = Mixed(filtered, splits().test.images[9000:9200], 0.5, random())
    report = build(seeds).run(Blinded(mixed, Translate(0.05), random()), 50, np.random.default_rng(0))
    assert report.queries == sum(len(request) for request in sent) <= 50
    assert report.queries >= 16
    assert nearest_pair(pixels(np.concatenate(sent))) >= 0.05 * (1 - 1e-5)


@pytest.mark.usefixtures("careless")
def test_a_question_can_be_told_from_another_by_its_number(victim: Victim, seeds: Images) -> None:
    noting = Noting(Account(victim))
    jb_top3(seeds).run(noting, 60, np.random.default_rng(0))
    numbers = np.concatenate([questions.numbers for questions in noting.noted])
    origins = np.concatenate([questions.origins for questions in noting.noted])
    assert (numbers == np.arange(60)).all()
    assert (origins[:SEEDS] == NATURAL).all()
    assert (origins[SEEDS:] >= 0).all()
    assert (origins < numbers).all()
