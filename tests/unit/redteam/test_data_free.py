"""Attackers without data of the victim's kind invent their questions, and still get a copy."""

from __future__ import annotations

from collections.abc import Callable

import numpy as np
import pytest
import torch

from services.redteam.attack import Account, Attack, Questions, Reply
from services.redteam.dfme import Dfme, Maze, divergence, estimated_gradient
from services.redteam.dfms import DfmsHl, class_diversity_loss, random_shapes
from services.redteam.substitute import Images, Probabilities, Substitute, Yardstick
from tests.support.undefended import Victim, splits

SHAPE = (1, 14, 14)


def halved(images: Images) -> Images:
    """28 by 28 pixels to 14 by 14, so that a data-free attack is quick."""
    shrunk: Images = images.reshape(-1, 1, 14, 2, 14, 2).mean(axis=(3, 5)).astype(np.uint8)
    return shrunk


@pytest.fixture(scope="module")
def small_victim(trained: Victim) -> Substitute:
    images = splits().train.images[:1500]
    network = Substitute(10, np.random.default_rng(0))
    network.train(halved(images), np.eye(10, dtype=np.float32)[trained.network.labels(images)], epochs=8)
    return network


@pytest.fixture(scope="module")
def small_yardstick(small_victim: Substitute) -> Yardstick:
    test = splits().test[:500]
    clean = halved(test.images)
    return Yardstick(clean, small_victim.labels(clean), test.labels)


def telling(victim: Substitute) -> Callable[[Images], Probabilities]:
    """The victim as it answers with probabilities."""

    def ask(images: Images) -> Probabilities:
        return torch.from_numpy(victim.logits(images)).softmax(dim=1).numpy()

    return ask


def labelling(victim: Substitute) -> Callable[[Images], Probabilities]:
    """The victim as it answers with labels."""

    def ask(images: Images) -> Probabilities:
        return np.eye(10, dtype=np.float32)[victim.labels(images)]

    return ask


def agreements(
    build: Callable[[], Attack], ask: Callable[[Images], Probabilities], budget: int, draws: int, yardstick: Yardstick
) -> tuple[list[float], list[float]]:
    """The first copies' agreement with the victim and the last ones', a draw each."""
    first, last = [], []
    for draw in range(draws):
        report = build().run(ask, budget, np.random.default_rng(draw), yardstick)
        agreement = [milestone.similarity.agreement for milestone in report.milestones if milestone.similarity]
        first.append(agreement[0])
        last.append(agreement[-1])
    return first, last


def test_dfme_copies_a_victim_that_tells_probabilities_without_any_image_of_its_kind(
    small_victim: Substitute, small_yardstick: Yardstick
) -> None:
    """From 8% to 20-43% in 4,000 queries; draws differ, so two count."""
    first, last = agreements(
        lambda: Dfme(SHAPE, batch=16, width=8, latent=32, request_rows=256),
        telling(small_victim), 4000, 2, small_yardstick,
    )  # fmt: skip
    assert np.mean(last) > np.mean(first) + 0.05


def maze(**options: float) -> Callable[[], Attack]:
    return lambda: Maze(SHAPE, batch=16, width=8, latent=32, request_rows=256, **options)


def test_maze_learns_through_the_victim_which_questions_teach_most(
    small_victim: Substitute, small_yardstick: Yardstick
) -> None:
    """In 8,000 queries from 9% to 62-72%, and to 35-56% where the generator stays as it is (five draws each; the
    smallest difference of a draw is 15 points)."""
    ask = telling(small_victim)
    _, learning = agreements(maze(epsilon=1.0, generator_rate=1e-2), ask, 8000, 2, small_yardstick)
    _, staying = agreements(maze(epsilon=1.0, generator_rate=0.0), ask, 8000, 2, small_yardstick)
    assert np.mean(learning) > 0.45
    assert np.mean(learning) > np.mean(staying) + 0.05


def test_maze_takes_labels_too_and_gets_less_out_of_them(small_victim: Substitute, small_yardstick: Yardstick) -> None:
    """From 9% to 9-41% in 4,000 queries (eight draws, a mean of 29%)."""
    first, last = agreements(maze(), labelling(small_victim), 4000, 3, small_yardstick)
    assert np.mean(last) > np.mean(first) + 0.05


def test_maze_teaches_its_points_and_replays_what_it_taught(
    small_victim: Substitute, monkeypatch: pytest.MonkeyPatch
) -> None:
    batch, copy_steps, directions, replays = 4, 3, 2, 2
    steps: list[int] = []
    step = torch.optim.SGD.step
    monkeypatch.setattr(torch.optim.SGD, "step", lambda self: (steps.append(1), step(self)))
    attack = Maze(SHAPE, batch, copy_steps, directions, replays=replays, width=4, latent=8, request_rows=1000)
    rounds = 3
    asked = rounds * batch * (copy_steps + directions)
    assert attack.run(telling(small_victim), asked, np.random.default_rng(0)).queries == asked
    # One step of the generator's beside the copy's.
    assert len(steps) == rounds * (copy_steps + replays + 1)


def test_the_divergence_is_zero_where_a_copy_agrees_and_the_cross_entropy_of_labels() -> None:
    logits = torch.tensor([[2.0, 0.0, -1.0]])
    assert divergence(logits, logits.softmax(dim=1)).item() == pytest.approx(0.0, abs=1e-6)
    label = torch.tensor([[0.0, 1.0, 0.0]])
    assert divergence(logits, label).item() == pytest.approx(-logits.log_softmax(dim=1)[0, 1].item())


@pytest.mark.parametrize("options", [{"batch": 0}, {"directions": 0}, {"copy_steps": 0}, {"epsilon": 0.0}])
def test_an_attack_that_could_teach_nothing_is_refused(options: dict[str, int]) -> None:
    for attack in (Dfme, Maze):
        with pytest.raises(ValueError, match=attack.name):
            attack(SHAPE, **options)


def dfms(**options: float) -> Callable[[], Attack]:
    return lambda: DfmsHl(
        SHAPE, batch=32, replays=5, game_steps=0, width=8, latent=32, copy_rate=0.03, generator_rate=1e-3,
        request_rows=256, **options,
    )  # fmt: skip


def test_dfms_copies_a_victim_that_tells_labels_without_any_image_of_its_kind(
    small_victim: Substitute, small_yardstick: Yardstick
) -> None:
    """From 18-42% after its first 500 queries to 43-71% after 3,000 (six draws; each gains 7 points or more)."""
    first, last = agreements(dfms(initial=500), labelling(small_victim), 3000, 2, small_yardstick)
    assert np.mean(last) > 0.3
    assert np.mean(last) > np.mean(first) + 0.05


def test_dfms_asks_proxies_first_and_no_two_questions_that_are_nearly_the_same(small_victim: Substitute) -> None:
    asked: list[Images] = []

    def ask(images: Images) -> Probabilities:
        asked.append(images)
        return labelling(small_victim)(images)

    proxies = random_shapes(SHAPE, 10, np.random.default_rng(3))
    attack = DfmsHl(SHAPE, proxies, initial=20, batch=8, game_steps=5, width=4, latent=16, request_rows=1000)
    assert attack.run(ask, 44, np.random.default_rng(0)).queries == 44
    images = np.concatenate(asked)
    assert {image.tobytes() for image in images[:10]} == {image.tobytes() for image in proxies}
    assert [len(request) for request in asked] == [20, 8, 8, 8]
    assert torch.pdist(torch.from_numpy(images.reshape(44, -1) / 255.0)).min() > 0.1


def test_the_game_before_the_first_question_makes_images_like_the_proxies(small_victim: Substitute) -> None:
    white = np.full((50, *SHAPE), 255, dtype=np.uint8)

    def brightness(steps: int) -> float:
        asked: list[Images] = []

        def ask(images: Images) -> Probabilities:
            asked.append(images)
            return labelling(small_victim)(images)

        attack = DfmsHl(SHAPE, white, initial=64, game_steps=steps, width=4, generator_rate=1e-3, request_rows=64)
        attack.run(ask, 64, np.random.default_rng(0))
        return float(asked[0][32:].mean())

    assert brightness(150) > brightness(0) + 20


def test_dfms_goes_on_where_none_of_its_first_questions_is_answered(small_victim: Substitute) -> None:
    class Late(Account):
        def send(self, questions: Questions, limit: int) -> Reply:
            if questions.numbers[0] < 20:
                return Reply.of({}, 5, banned=False)
            return super().send(questions, limit)

    attack = DfmsHl(SHAPE, initial=20, batch=8, game_steps=0, width=4, latent=16, request_rows=1000)
    report = attack.run(Late(labelling(small_victim)), 37, np.random.default_rng(0))
    assert [milestone.queries for milestone in report.milestones] == [13, 21, 29, 37]


def test_class_diversity_is_least_lost_where_every_class_comes_equally_often() -> None:
    every = 20.0 * torch.eye(4)
    assert class_diversity_loss(every).item() == pytest.approx(-np.log(4), abs=1e-4)
    assert class_diversity_loss(every[[0, 0, 0, 0]]).item() == pytest.approx(0.0, abs=1e-4)


def test_synthetic_images_are_many_shapes_of_many_colours() -> None:
    images = random_shapes((3, 22, 17), 20, np.random.default_rng(0))
    assert images.shape == (20, 3, 22, 17)
    assert images.dtype == np.uint8
    assert min(len(np.unique(image)) for image in images) > 50
    assert (images == random_shapes((3, 22, 17), 20, np.random.default_rng(0))).all()


def test_proxies_must_be_images_that_the_victim_takes() -> None:
    with pytest.raises(ValueError, match=r"\(1, 14, 14\)"):
        DfmsHl(SHAPE, np.zeros((5, 1, 28, 28), dtype=np.uint8))
    with pytest.raises(ValueError, match="DFMS-HL"):
        DfmsHl(SHAPE, np.zeros((0, *SHAPE), dtype=np.uint8))
    with pytest.raises(ValueError, match="two images"):
        DfmsHl(SHAPE, batch=1)


@pytest.mark.parametrize("build", [maze(), dfms(initial=64)], ids=["MAZE", "DFMS-HL"])
def test_an_attack_of_one_seed_asks_the_same_questions_again(
    build: Callable[[], Attack], small_victim: Substitute
) -> None:
    def questions() -> bytes:
        asked: list[Images] = []

        def ask(images: Images) -> Probabilities:
            asked.append(images)
            return labelling(small_victim)(images)

        build().run(ask, 500, np.random.default_rng(5))
        return np.concatenate(asked).tobytes()

    assert questions() == questions()


def test_dfme_sends_points_in_pairs_that_are_nearly_the_same(small_victim: Substitute) -> None:
    asked: list[Images] = []

    def ask(images: Images) -> Probabilities:
        asked.append(images)
        return np.eye(10, dtype=np.float32)[small_victim.labels(images)]

    batch, copy_steps = 8, 2
    a_round = batch * (copy_steps + 2)
    attack = Dfme(SHAPE, batch=batch, copy_steps=copy_steps, width=8, latent=32, request_rows=1000)
    assert attack.run(ask, 3 * a_round, np.random.default_rng(0)).queries == 3 * a_round
    for images in asked:
        lessons, probes = np.split(images.astype(np.int64), [batch * copy_steps])
        points, neighbours = probes[::2], probes[1::2]
        # Steps of 1e-3 before the activation move a pixel by a quantum or not at all.
        assert np.abs(points - neighbours).max() <= 1
        assert np.abs(lessons[0] - lessons[1]).max() > 20


def test_a_step_along_many_directions_estimates_the_gradient() -> None:
    torch.manual_seed(0)
    target = torch.randn(2, 1, 3, 4)
    points = torch.randn(2, 1, 3, 4)
    directions = torch.randn(2, 3000, 1, 3, 4)
    directions /= directions.flatten(2).norm(dim=2)[:, :, None, None, None]
    moved = torch.cat([points[:, None], points[:, None] + 1e-2 * directions], dim=1)
    losses = (moved - target[:, None]).square().flatten(2).sum(dim=2)
    found, true = estimated_gradient(losses, directions, 1e-2), 2 * (points - target)
    assert torch.nn.functional.cosine_similarity(found.flatten(1), true.flatten(1)).min() > 0.95
    assert torch.allclose(found.flatten(1).norm(dim=1), true.flatten(1).norm(dim=1), rtol=0.15)
