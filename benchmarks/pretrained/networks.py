"""The networks of the bench: one line each."""

from __future__ import annotations

from benchmarks.pretrained import classifier, encoders, language, maps
from benchmarks.pretrained.case import Network
from ifap.errors import ConfigError, nearest

NETWORKS: dict[str, Network] = {
    "efficientnet_lite0": Network(
        "EfficientNet-Lite0, ImageNet's weights; 512 images to calibrate, CIFAR-10 enlarged to measure",
        "convolutional",
        classifier.enlarged,
        "top-1 on 20 images of ImageNet",
        (0.2, 0.3),
    ),
    "efficientnet_lite0_folds": Network(
        "EfficientNet-Lite0 on images of ImageNet that calibration did not see (two folds of ten)",
        "convolutional",
        classifier.folds,
        "top-1 on 20 images of ImageNet",
        (0.2, 0.3),
    ),
    "smollm2": Network(
        "SmolLM2-135M, passages of SQuAD",
        "transformer",
        language.passages,
        "perplexity",
        (0.1, 0.2),
        higher_is_better=False,
    ),
    "minilm": Network(
        "MiniLM, sentences of SQuAD's articles", "transformer", encoders.minilm, "mean cosine", (0.2, 0.35)
    ),
    "mpnet": Network("MPNet, sentences of SQuAD's articles", "transformer", encoders.mpnet, "mean cosine", (0.2, 0.35)),
    "craft": Network(
        "CRAFT, words drawn on images",
        "convolutional",
        maps.words,
        "relative error",
        (0.3, 0.5),
        higher_is_better=False,
    ),
}


def network(key: str) -> Network:
    """Return a network by its key; the error names the nearest."""
    if key not in NETWORKS:
        raise ConfigError(f"unknown network '{key}': {nearest(key, NETWORKS)}")
    return NETWORKS[key]
