"""A victim without defences."""

from __future__ import annotations

import functools

import numpy as np

from services.redteam.substitute import Images, Probabilities, Substitute
from shared.datasets import load_splits

splits = functools.cache(load_splits)
"""Fashion-MNIST, read once a process."""


class Victim:
    """An undefended model that answers with labels, and remembers what it was asked."""

    def __init__(self) -> None:
        train = splits().train[:5000]
        self.network = Substitute(10, np.random.default_rng(0))
        self.network.train(train.images, np.eye(10, dtype=np.float32)[train.labels], epochs=4)
        self.asked: list[Images] = []

    def __call__(self, images: Images) -> Probabilities:
        self.asked.append(images)
        return np.eye(10, dtype=np.float32)[self.network.labels(images)]
