"""KnockoffNets (Orekondy et al. 2019), policy random: natural images from elsewhere, each asked once."""

from __future__ import annotations

from services.redteam.attack import Attack, Loot
from services.redteam.substitute import Images, Substitute

EPOCHS = 20


class KnockoffNets(Attack):
    """Random images of a foreign set; nothing is crafted, so no history of near neighbours gives it away."""

    name = "KnockoffNets"

    def __init__(self, foreign: Images, round_queries: int = 300, request_rows: int = 1) -> None:
        """
        Args:
            foreign: [n, 1, 28, 28] natural images, not of the victim's kind.
            round_queries: images asked between two trainings of the copy.
            request_rows: images a request.
        """
        super().__init__(request_rows)
        self.foreign = foreign
        self.round_queries = round_queries
        self._order: list[int] = []

    def questions(self, loot: Loot, substitute: Substitute | None) -> Images:
        """The next images of a random order; none twice."""
        if substitute is None:
            self._order = loot.random.permutation(len(self.foreign)).tolist()
        start = loot.report.queries
        return self.foreign[self._order[start : start + self.round_queries]]

    def learn(self, loot: Loot, substitute: Substitute) -> None:
        """Start anew and train on everything."""
        substitute.train(loot.images, loot.told, EPOCHS)
