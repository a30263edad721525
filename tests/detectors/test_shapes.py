"""The detectors' networks take images of any size that a model may have."""

from __future__ import annotations

import pytest
import torch

from services.likelihood.vqvae import VectorQuantisedAutoencoder
from services.similarity.encoder import ReferenceEncoder, SimilarityEncoder

SHAPES = [(1, 28, 28), (3, 32, 32), (3, 96, 64), (1, 16, 17), (3, 31, 30)]


@pytest.mark.parametrize("shape", SHAPES, ids=str)
def test_every_network_takes_images_of_any_size(shape: tuple[int, int, int]) -> None:
    images = torch.rand(2, *shape)
    with torch.inference_mode():
        similarity, reference = SimilarityEncoder(shape, 5).eval(), ReferenceEncoder(shape, 5).eval()
        assert similarity(images).shape == (2, similarity.DIMENSIONS)
        assert similarity.classify(images).shape == (2, 5)
        assert reference(images).shape == (2, reference.DIMENSIONS + 1)
        assert [output.shape for output in reference.classify(images)] == [(2, 5), (2,)]
        network = VectorQuantisedAutoencoder(shape[0]).eval()
        reconstructions, _ = network(images)
        assert reconstructions.shape == images.shape
        assert network.log_likelihood(images, 0.1).shape == (2,)


def test_a_large_image_is_averaged_before_the_fully_connected_layers() -> None:
    for kind in (SimilarityEncoder, ReferenceEncoder):
        medium, large = (sum(p.numel() for p in kind((3, side, side), 10).parameters()) for side in (64, 224))
        assert large == medium
