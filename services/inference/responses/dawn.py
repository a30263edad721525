"""DAWN (Szyller et al. 2021): a keyed share of all inputs, chosen by their hash, is answered wrongly."""

from __future__ import annotations

import numpy as np

from services.inference.responses.interface import AnswerMode, Queries
from services.inference.responses.stateless import Probabilities, Stateless, keyed


class Dawn(Stateless):
    """Whether an answer is wrong (W, section 4.1), and how (B, section 4.2), follow from a key and the input's hash.

    The hash is the perceptual one (the paper's mapping function): near copies mostly share it, and with it their
    answer. The wrong answer is the true one with its values permuted, so that another class leads.
    """

    name = "dawn"

    def __init__(self, mode: AnswerMode, share: float, key: bytes) -> None:
        """
        Args:
            mode: what the model answers.
            share: r_w, of all inputs.
            key: K_w, secret; the same for all replicas.
        """
        super().__init__(mode)
        self._share, self._key = share, key

    def see(self, queries: Queries) -> Probabilities:
        """See `Stateless.see`."""
        told = queries.probabilities.astype(np.float64)
        classes = told.shape[1]
        for row, random in enumerate(keyed(self._key, queries)):
            if random.random() < self._share:
                label = int(told[row].argmax())
                leader = (label + 1 + int(random.integers(classes - 1))) % classes
                told[row] = random.permuted(told[row])
                highest = int(told[row].argmax())
                told[row, [leader, highest]] = told[row, [highest, leader]]
        return told
