"""Where a bundle is made: networks and images that took long to make are kept, and found again by what made them."""

from __future__ import annotations

import hashlib
import shutil
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import TypeVar

from rich.progress import Progress
from safetensors.numpy import load, save
from torch import nn

from shared.cameras import Images
from shared.datasets import Splits
from shared.files import write_whole
from shared.networks import load_network, network_tensors

NetworkType = TypeVar("NetworkType", bound=nn.Module)


def _fingerprint(splits: Splits) -> str:
    """Of all that the networks learn from: a path's data may change while its name stays."""
    data = splits.train
    about = f"{data.images.shape} {splits.classes} {splits.mirror}".encode()
    return hashlib.sha256(about + data.images.tobytes() + data.labels.tobytes()).hexdigest()[:8]


@dataclass(frozen=True, slots=True)
class Workshop:
    """A folder for one data set.

    Attributes:
        folder: of everything that is kept.
        seed: of what is made.
        progress: shows how far it is.
    """

    folder: Path
    seed: int
    progress: Progress

    @classmethod
    def of(cls, splits: Splits, work: Path, seed: int, progress: Progress) -> Workshop:
        """A data set's own, in the folder of all of them."""
        folder = work / f"{splits.name}-{_fingerprint(splits)}"
        folder.mkdir(parents=True, exist_ok=True)
        return cls(folder, seed, progress)

    def trained(
        self, name: str, key: tuple[object, ...], empty: NetworkType, train: Callable[[Path], nn.Module]
    ) -> NetworkType:
        """A network ready to infer, trained where it is not kept yet.

        Args:
            name: of the network.
            key: whatever else than data and seed its weights depend on.
            empty: of the same form.
            train: makes it, with a folder for checkpoints, in which an interrupted training is found again.
        """
        path = self.folder / f"{name}-{'-'.join(map(str, (self.seed, *key)))}.safetensors"
        checkpoints = path.with_suffix(".checkpoints")
        if path.exists():
            self.progress.console.print(f"{name}: found in {path}")
            return load_network(empty, load(path.read_bytes()))
        network = train(checkpoints)
        write_whole(path, save(network_tensors(network)))
        shutil.rmtree(checkpoints)
        return load_network(empty, network_tensors(network))

    def made(self, name: str, make: Callable[[], Mapping[str, Images]]) -> Mapping[str, Images]:
        """Images to learn from, made where they are not kept yet."""
        path = self.folder / f"{name}.safetensors"
        if not path.exists():
            write_whole(path, save(dict(make())))
        return load(path.read_bytes())
