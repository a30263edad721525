"""Attacks that craft nothing: natural images, each asked once, so no history of near neighbours gives them away."""

from __future__ import annotations

from services.redteam.attack import Attack, Loot, Questions
from services.redteam.substitute import Images, Substitute

EPOCHS = 20


class RandomSelection(Attack):
    """Images of a set in random order (TR 2021-126, III-C: CopyCat's strategy, the baseline of the others)."""

    name = "random selection"

    def __init__(self, images: Images, round_queries: int = 300, request_rows: int = 1) -> None:
        """
        Args:
            images: [n, channels, height, width] natural images of the victim's kind.
            round_queries: images asked between two trainings of the copy.
            request_rows: images a request.
        """
        super().__init__(request_rows)
        self.images = images
        self.round_queries = round_queries
        self._order: list[int] = []

    def questions(self, loot: Loot, substitute: Substitute | None) -> Questions:
        """The next images of a random order; none twice."""
        if not loot.put:
            self._order = loot.random.permutation(len(self.images)).tolist()
        return loot.questioning(self.images[self._order[loot.put : loot.put + self.round_queries]])

    def learn(self, loot: Loot, substitute: Substitute) -> None:
        """Start anew and train on everything."""
        substitute.train(loot.images, loot.told, EPOCHS)


class KnockoffNets(RandomSelection):
    """KnockoffNets (Orekondy et al. 2019), policy random: the images are of a foreign set."""

    name = "KnockoffNets"
