"""Attacks that craft nothing and choose: which images of a pool to ask about, each of them once.

No history of near neighbours gives such an attacker away. The first round is drawn at random; what the copy says of the
others decides from then on.
"""

from __future__ import annotations

from abc import abstractmethod

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor, nn

from services.redteam.attack import Attack, Loot, Questions
from services.redteam.substitute import Images, Probabilities, Substitute, as_tensor, said
from shared.datasets import Dataset

EPOCHS = 20
CONSIDERED = 2_000
"""Images of the pool whose way to the border is measured in a round; all of them would take minutes."""
SHORTLIST = 4
"""Times as many images near the border as a round asks, among which the centres are chosen."""
DEEPFOOL_STEPS = 5
DEEPFOOL_BATCH = 256

Rows = NDArray[np.intp]


class PoolAttack(Attack):
    """Rounds of images from a pool, none of them twice; the copy starts anew after each."""

    def __init__(self, images: Images, round_queries: int = 300, request_rows: int = 1) -> None:
        """
        Args:
            images: [n, channels, height, width], the pool.
            round_queries: images asked between two trainings of the copy.
            request_rows: images a request.

        Raises:
            ValueError: no images.
        """
        super().__init__(request_rows)
        if not len(images):
            raise ValueError(f"{self.name} needs images to choose from")
        self.images = images
        self.round_queries = round_queries

    def learn(self, loot: Loot, substitute: Substitute) -> None:
        """Start anew and train on everything."""
        substitute.train(loot.images, loot.told, EPOCHS)


class ChoosingAttack(PoolAttack):
    """The first round is drawn at random; then a subclass chooses from the images that are left."""

    def questions(self, loot: Loot, substitute: Substitute | None) -> Questions:
        """The chosen images."""
        if not loot.put:
            self._left: Rows = loot.random.permutation(len(self.images))
        count = min(self.round_queries, len(self._left))
        if substitute is None or not count:
            places = np.arange(count)
        else:
            places = self.choose(loot, substitute, self.images[self._left], count)
        chosen = self._left[places]
        self._left = np.delete(self._left, places)
        return loot.questioning(self.images[chosen])

    @abstractmethod
    def choose(self, loot: Loot, substitute: Substitute, images: Images, count: int) -> Rows:
        """[count] rows of `images` [n, ...], which are left and in random order."""


class RandomSelection(ChoosingAttack):
    """Images of a set in random order (TR 2021-126, III-C: the baseline of the others)."""

    name = "random selection"

    def choose(self, loot: Loot, substitute: Substitute, images: Images, count: int) -> Rows:
        """The next ones."""
        return np.arange(count)


class KnockoffNets(RandomSelection):
    """KnockoffNets (Orekondy et al. 2019), policy random: the images are of a foreign set."""

    name = "KnockoffNets"


class CopyCat(RandomSelection):
    """CopyCat CNN (Correia-Silva et al. 2018): random natural images, of whose answers the labels alone are learnt."""

    name = "CopyCat"

    def learn(self, loot: Loot, substitute: Substitute) -> None:
        """Start anew and train on every label."""
        labels = np.eye(loot.told.shape[1], dtype=np.float32)[loot.told.argmax(axis=1)]
        substitute.train(loot.images, labels, EPOCHS)


# ---- ActiveThief: Pal et al. 2020, section 4.2 ----


class Uncertainty(ChoosingAttack):
    """ActiveThief's uncertainty strategy: the images of which the copy's answer has the largest entropy."""

    name = "ActiveThief, uncertainty"

    def choose(self, loot: Loot, substitute: Substitute, images: Images, count: int) -> Rows:
        """The least certain."""
        answers = said(substitute, images)
        entropy = -(answers * np.log(np.maximum(answers, 1e-12))).sum(axis=1)
        return np.argsort(-entropy, kind="stable")[:count]


class KCenter(ChoosingAttack):
    """ActiveThief's k-center strategy: answers of the copy that lie as far as can be from those to asked images."""

    name = "ActiveThief, k-center"

    def choose(self, loot: Loot, substitute: Substitute, images: Images, count: int) -> Rows:
        """Greedily, the farthest from all that is chosen or asked."""
        return farthest(said(substitute, images), said(substitute, loot.images), count)


class Dfal(ChoosingAttack):
    """ActiveThief's DFAL strategy (Ducoffe and Precioso 2018): the images that are nearest to the copy's border.

    The way to the border is DeepFool's (Moosavi-Dezfooli et al. 2016). Written here: Foolbox needs git to be imported.
    """

    name = "ActiveThief, DFAL"

    def choose(self, loot: Loot, substitute: Substitute, images: Images, count: int) -> Rows:
        """The nearest, of `CONSIDERED` or of as many as are needed."""
        return nearest_to_the_border(substitute, images[: max(CONSIDERED, count)], count)


class DfalKCenter(ChoosingAttack):
    """ActiveThief's DFAL+k-center: of the images near the border those that are far from each other."""

    name = "ActiveThief, DFAL+k-center"

    def choose(self, loot: Loot, substitute: Substitute, images: Images, count: int) -> Rows:
        """Centres among `SHORTLIST` times as many near images."""
        considered = images[: max(CONSIDERED, count)]
        near = nearest_to_the_border(substitute, considered, min(SHORTLIST * count, len(considered)))
        return near[farthest(said(substitute, images[near]), said(substitute, loot.images), count)]


def farthest(points: Probabilities, centres: Probabilities, count: int) -> Rows:
    """Greedy k-center (Gonzalez 1985): each next point is the one farthest from the centres and the points before it.

    Args:
        points: [n, d], n at least `count`.
        centres: [m, d], m at least 1.
        count: how many.
    """
    distances = np.full(len(points), np.inf, dtype=np.float32)
    for centre in centres:
        np.minimum(distances, np.square(points - centre).sum(axis=1), out=distances)
    chosen = []
    for _ in range(count):
        row = int(distances.argmax())
        chosen.append(row)
        np.minimum(distances, np.square(points - points[row]).sum(axis=1), out=distances)
        distances[row] = -1.0
    return np.array(chosen, dtype=np.intp)


def nearest_to_the_border(substitute: Substitute, images: Images, count: int) -> Rows:
    """[count] rows of images [n, ...] whose answer the smallest perturbation changes, the nearest first."""
    network = substitute.network.eval()
    lengths = torch.cat([border_distances(network, as_tensor(part)) for part in _parts(images)])
    return np.argsort(lengths.numpy(), kind="stable")[:count]


def _parts(images: Images) -> list[Images]:
    return [images[start : start + DEEPFOOL_BATCH] for start in range(0, len(images), DEEPFOOL_BATCH)]


def border_distances(network: nn.Module, images: Tensor) -> Tensor:
    """[n], the L2 norm of DeepFool's perturbation (Moosavi-Dezfooli et al. 2016, algorithm 2).

    Args:
        network: from images to logits.
        images: [n, ...] in [0, 1].
    """
    n = len(images)
    with torch.no_grad():
        labels = network(images).argmax(dim=1)
    change = torch.zeros_like(images)
    going = torch.ones(n, dtype=torch.bool)
    for _ in range(DEEPFOOL_STEPS):
        moved = (images + change).requires_grad_(True)
        logits = network(moved)
        gradients = torch.stack(
            [torch.autograd.grad(logits[:, k].sum(), moved, retain_graph=True)[0] for k in range(logits.shape[1])], 1
        )
        logits = logits.detach()
        going &= logits.argmax(dim=1) == labels
        if not going.any():
            break
        rows = torch.arange(n)
        slopes = (gradients - gradients[rows, labels][:, None]).flatten(2)
        gaps = (logits - logits[rows, labels][:, None]).abs()
        steepness = slopes.norm(dim=2).clamp_min(1e-12)
        ways = gaps / steepness
        ways[rows, labels] = torch.inf
        nearest = ways.argmin(dim=1)
        # A hair beyond, or rounding would leave it on this side of the border.
        size = (ways[rows, nearest] + 1e-4) / steepness[rows, nearest]
        step = size[:, None] * slopes[rows, nearest]
        change = change + torch.where(going[:, None], step, 0.0).reshape_as(change)
    lengths: Tensor = change.flatten(1).norm(dim=1)
    return lengths


POOL_ATTACKS: tuple[type[PoolAttack], ...] = (
    RandomSelection, KnockoffNets, CopyCat, Uncertainty, KCenter, Dfal, DfalKCenter,
)  # fmt: skip


# ---- KnockoffNets' adaptive policy ----


class AdaptiveKnockoff(PoolAttack):
    """KnockoffNets (Orekondy et al. 2019), policy adaptive: a bandit learns which classes of the pool teach most.

    Each class of the pool is an action, drawn by the softmax of its preference; preferences follow the gradient bandit
    of section 4.2 with a rate of 1 / N(action). The reward is the mean of certainty (margin of the answer), diversity
    (how far each class's answers exceed its mean so far) and loss of the copy, each scaled to [0, 1] over all that were
    seen. Their copy learns after every query; here, after each round.
    """

    name = "KnockoffNets, adaptive"

    def __init__(self, pool: Dataset, round_queries: int = 300, request_rows: int = 1) -> None:
        """
        Args:
            pool: images with labels of their own, foreign to the victim or not.
            round_queries: images asked between two trainings of the copy.
            request_rows: images a request.

        Raises:
            ValueError: no images.
        """
        super().__init__(pool.images, round_queries, request_rows)
        self._labels = pool.labels

    def questions(self, loot: Loot, substitute: Substitute | None) -> Questions:
        """Images of the classes that are drawn; none twice."""
        if not loot.put:
            order = loot.random.permutation(len(self.images))
            actions = int(self._labels.max()) + 1
            self._left = [order[self._labels[order] == action].tolist() for action in range(actions)]
            self.preferences = np.zeros(actions)
            self._times = np.zeros(actions)
            self._rewards = _Rewards()
            self._action_of: dict[int, int] = {}
        chosen: list[int] = []
        while len(chosen) < self.round_queries and any(self._left):
            action = int(loot.random.choice(len(self._left), p=self._policy()))
            self._action_of[loot.put + len(chosen)] = action
            chosen.append(self._left[action].pop())
        return loot.questioning(self.images[chosen])

    def _policy(self) -> NDArray[np.float64]:
        open_ = np.array([bool(left) for left in self._left])
        weights = np.where(open_, np.exp(self.preferences - self.preferences[open_].max()), 0.0)
        policy: NDArray[np.float64] = weights / weights.sum()
        return policy

    def learn(self, loot: Loot, substitute: Substitute) -> None:
        """The bandit learns from the answers, by the copy as it was; then the copy, from everything."""
        new = np.flatnonzero(np.isin(loot.numbers, list(self._action_of)))
        views = said(substitute, loot.images[new]) if substitute.started else None
        rewards = self._rewards.of(loot.told[new], loot.told, views)
        for row, reward in zip(new.tolist(), rewards.tolist(), strict=True):
            self._reinforce(self._action_of.pop(int(loot.numbers[row])), reward)
        super().learn(loot, substitute)

    def _reinforce(self, action: int, reward: float) -> None:
        """One step of the gradient bandit (their eq. of section 4.2.2)."""
        weights = np.exp(self.preferences - self.preferences.max())
        policy = weights / weights.sum()
        self._times[action] += 1
        advantage = (reward - self._rewards.mean) / self._times[action]
        self.preferences -= advantage * policy
        self.preferences[action] += advantage
        self._rewards.count(reward)


class _Rewards:
    """Rewards of answers, each part scaled by the smallest and the largest that were seen."""

    def __init__(self) -> None:
        self._limits: dict[int, tuple[float, float]] = {}
        self._sum, self._count = 0.0, 0

    @property
    def mean(self) -> float:
        """Of all that were counted."""
        return self._sum / self._count if self._count else 0.0

    def count(self, reward: float) -> None:
        """Take a reward into the mean."""
        self._sum, self._count = self._sum + reward, self._count + 1

    def of(self, told: Probabilities, all_told: Probabilities, views: Probabilities | None) -> NDArray[np.float64]:
        """[n], of the answers `told` [n, classes], given all so far and what the copy said, if it knew anything."""
        ordered = np.sort(told, axis=1)
        parts = [ordered[:, -1] - ordered[:, -2], np.maximum(told - all_told.mean(axis=0), 0.0).sum(axis=1)]
        if views is not None:
            parts.append(-(told * np.log(np.maximum(views, 1e-12))).sum(axis=1))
        rewards: NDArray[np.float64] = np.mean(
            [self._scaled(number, part) for number, part in enumerate(parts)], axis=0
        )
        return rewards

    def _scaled(self, number: int, values: NDArray[np.float32]) -> NDArray[np.float64]:
        low, high = self._limits.get(number, (np.inf, -np.inf))
        low, high = min(low, float(values.min(initial=np.inf))), max(high, float(values.max(initial=-np.inf)))
        self._limits[number] = (low, high)
        scaled: NDArray[np.float64] = (values.astype(np.float64) - low) / max(high - low, 1e-12)
        return scaled


# ---- line search ----


class LineSearch(Attack):
    """Line search for the victim's borders (Tramer et al. 2016, section 4.2 and its retraining strategies), by labels.

    Between two natural images that the victim calls differently lies a border: the middle is asked again and again,
    each time of the half that holds it. All pairs of a round search side by side; the copy learns when they are done.
    """

    name = "line search"

    def __init__(self, seeds: Images, pairs: int = 100, halvings: int = 8, request_rows: int = 1) -> None:
        """
        Args:
            seeds: [n, channels, height, width] natural images, asked first.
            pairs: lines that are searched side by side.
            halvings: of each; 8 find the border to 1/256 of the way.
            request_rows: images a request.

        Raises:
            ValueError: fewer than two seeds, or nothing to search.
        """
        super().__init__(request_rows)
        if len(seeds) < 2 or min(pairs, halvings) < 1:
            raise ValueError(
                f"a line search needs two seeds, a pair and a halving, not {len(seeds)}, {pairs}, {halvings}"
            )
        self.seeds = seeds
        self.pairs = pairs
        self.halvings = halvings

    def questions(self, loot: Loot, substitute: Substitute | None) -> Questions:
        """The seeds, then the middle of every line."""
        if substitute is None:
            self._halved = self.halvings
            return loot.questioning(self.seeds)
        if self._halved == self.halvings:
            self._begin(loot)
        middles = np.rint((self.near.astype(np.float32) + self.far) / 2).astype(np.uint8)
        asked = loot.questioning(middles, self._origins)
        self._numbers = asked.numbers
        return asked

    def _begin(self, loot: Loot) -> None:
        known = np.flatnonzero(loot.numbers < len(self.seeds))
        labels = loot.told[known].argmax(axis=1)
        first = loot.random.integers(len(known), size=self.pairs)
        second = loot.random.integers(len(known), size=self.pairs)
        differ = labels[first] != labels[second]
        first, second = known[first[differ]], known[second[differ]]
        self.near, self.far = loot.images[first], loot.images[second]
        self._origins, self._labels = loot.numbers[first], loot.told[first].argmax(axis=1)
        self._halved = 0

    def learn(self, loot: Loot, substitute: Substitute) -> None:
        """Every line is cut in half; the copy starts anew when all of them are searched, or nothing more is to come."""
        if substitute.started:
            self._halve(loot)
        if not substitute.started or self._halved == self.halvings or not loot.goes_on:
            substitute.train(loot.images, loot.told, EPOCHS)

    def _halve(self, loot: Loot) -> None:
        answered = np.isin(self._numbers, loot.numbers)
        rows = np.searchsorted(loot.numbers, self._numbers[answered])
        same = loot.told[rows].argmax(axis=1) == self._labels[answered]
        middles, whole = loot.images[rows], same[:, None, None, None]
        self.near[answered] = np.where(whole, middles, self.near[answered])
        self.far[answered] = np.where(whole, self.far[answered], middles)
        self._halved += 1
