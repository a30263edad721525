"""The served models: every architecture that a bundle can name, for images of any size and any number of classes.

All take images [n, channels, height, width] in [0, 1], at least 16 pixels a side, and give logits [n, classes].
"""

from __future__ import annotations

import copy
from collections.abc import Callable, Mapping

from torch import Tensor, nn

from shared.networks import ImageShape, flattened

SMALL_IMAGE = 64
"""Pixels of the shorter side up to which a ResNet keeps the full resolution in its stem, as for CIFAR-10."""


class Classifier(nn.Module):
    """A small convolutional classifier, the one that the bundle in this repository holds."""

    def __init__(self, shape: ImageShape, classes: int) -> None:
        super().__init__()
        channels, height, width = shape
        flat, features = flattened(64, height // 4, width // 4)
        self.features = nn.Sequential(
            nn.Conv2d(channels, 32, 3, padding=1), nn.BatchNorm2d(32), nn.ReLU(), nn.MaxPool2d(2),
            nn.Conv2d(32, 64, 3, padding=1), nn.BatchNorm2d(64), nn.ReLU(), nn.MaxPool2d(2),
            nn.Conv2d(64, 64, 3, padding=1), nn.BatchNorm2d(64), nn.ReLU(),
            flat, nn.Dropout(0.3), nn.Linear(features, 128), nn.ReLU(), nn.Dropout(0.3),
        )  # fmt: skip
        self.head = nn.Linear(128, classes)

    def forward(self, images: Tensor) -> Tensor:
        """Logits [n, classes]."""
        logits: Tensor = self.head(self.features(images))
        return logits


def _lenet5(shape: ImageShape, classes: int) -> nn.Module:
    """LeCun et al., Gradient-based learning applied to document recognition (1998), with ReLU and maxima."""
    channels, height, width = shape
    flat, features = flattened(16, (height // 2 - 4) // 2, (width // 2 - 4) // 2)
    return nn.Sequential(
        nn.Conv2d(channels, 6, 5, padding=2), nn.ReLU(), nn.MaxPool2d(2),
        nn.Conv2d(6, 16, 5), nn.ReLU(), nn.MaxPool2d(2),
        flat, nn.Linear(features, 120), nn.ReLU(), nn.Linear(120, 84), nn.ReLU(), nn.Linear(84, classes),
    )  # fmt: skip


def _alexnet(shape: ImageShape, classes: int) -> nn.Module:
    """Krizhevsky et al. (2012) for small images: no strides, and a quarter of the hidden units for as fewer pixels."""
    channels, height, width = shape
    flat, features = flattened(256, height // 8, width // 8)
    network = nn.Sequential(
        nn.Conv2d(channels, 64, 5, padding=2), nn.ReLU(), nn.MaxPool2d(2),
        nn.Conv2d(64, 192, 5, padding=2), nn.ReLU(), nn.MaxPool2d(2),
        nn.Conv2d(192, 384, 3, padding=1), nn.ReLU(),
        nn.Conv2d(384, 256, 3, padding=1), nn.ReLU(),
        nn.Conv2d(256, 256, 3, padding=1), nn.ReLU(), nn.MaxPool2d(2),
        flat, nn.Dropout(0.5), nn.Linear(features, 1024), nn.ReLU(),
        nn.Dropout(0.5), nn.Linear(1024, 1024), nn.ReLU(), nn.Linear(1024, classes),
    )  # fmt: skip
    for layer in network:
        if isinstance(layer, nn.Conv2d | nn.Linear):
            # Eight layers without normalisation: from torch's own weights nothing is learnt for hundreds of steps.
            nn.init.kaiming_normal_(layer.weight, nonlinearity="relu")
            nn.init.zeros_(layer.bias)  # type: ignore[arg-type]
    return network


def _resnet(name: str, shape: ImageShape, classes: int) -> nn.Module:
    """He et al. (2016), with the CIFAR stem where images are small."""
    # Its import takes seconds, which a service with another model need not wait.
    from torchvision import models

    network: nn.Module = getattr(models, name)(weights=None, num_classes=classes)
    channels, height, width = shape
    if min(height, width) <= SMALL_IMAGE:
        network.conv1 = nn.Conv2d(channels, 64, 3, padding=1, bias=False)
        network.maxpool = nn.Identity()
    else:
        network.conv1 = nn.Conv2d(channels, 64, 7, stride=2, padding=3, bias=False)
    nn.init.kaiming_normal_(network.conv1.weight, mode="fan_out", nonlinearity="relu")
    return network


def _resnet18(shape: ImageShape, classes: int) -> nn.Module:
    return _resnet("resnet18", shape, classes)


def _resnet34(shape: ImageShape, classes: int) -> nn.Module:
    return _resnet("resnet34", shape, classes)


def _vgg16_bn(shape: ImageShape, classes: int) -> nn.Module:
    """Simonyan and Zisserman (2015) with batch normalisation, and one linear layer as usual for small images."""
    from torchvision.models import vgg

    layers = list(vgg.make_layers(vgg.cfgs["D"], batch_norm=True))
    layers[0] = nn.Conv2d(shape[0], 64, 3, padding=1)
    for layer in layers:
        if isinstance(layer, nn.Conv2d):
            nn.init.kaiming_normal_(layer.weight, mode="fan_out", nonlinearity="relu")
        elif isinstance(layer, nn.MaxPool2d):
            # Rounded up, so that five poolings leave something of an image under 32 pixels.
            layer.ceil_mode = True
    return nn.Sequential(*layers, nn.AdaptiveAvgPool2d(1), nn.Flatten(), nn.Linear(512, classes))


ARCHITECTURES: Mapping[str, Callable[[ImageShape, int], nn.Module]] = {
    "convnet": Classifier,
    "lenet5": _lenet5,
    "alexnet": _alexnet,
    "resnet18": _resnet18,
    "resnet34": _resnet34,
    "vgg16-bn": _vgg16_bn,
}
"""From an image's shape and the number of classes to a network with random weights, by the manifest's name for it."""


def split_head(network: nn.Module) -> tuple[nn.Module, nn.Linear]:
    """A network as features and head: a copy that stops before the last linear layer, and that layer.

    Raises:
        ValueError: the network has no linear layer.
    """
    body = copy.deepcopy(network)
    linear = [(name, layer) for name, layer in body.named_modules() if isinstance(layer, nn.Linear)]
    if not linear:
        raise ValueError(f"{type(network).__name__} has no linear layer to split off")
    name, head = linear[-1]
    body.set_submodule(name, nn.Identity())
    return body, head
