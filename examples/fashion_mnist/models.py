"""Teacher and students for 28×28 images of clothes, ``[B, 1, 28, 28]``, normalised; ten classes."""

import torch
from torch import nn


def _convolution(inputs: int, outputs: int, kernel: int = 3, stride: int = 1) -> list[nn.Module]:
    # no bias: the normalisation behind it takes away whatever a bias adds
    convolution = nn.Conv2d(inputs, outputs, kernel, stride=stride, padding=kernel // 2, bias=False)
    return [convolution, nn.BatchNorm2d(outputs), nn.ReLU()]


def teacher() -> nn.Module:
    """Three convolutions of 32, 64 and 128 channels, each halved by pooling, and a hidden layer: 390,634 parameters."""
    network = nn.Sequential(
        *_convolution(1, 32),
        nn.MaxPool2d(2),
        *_convolution(32, 64),
        nn.MaxPool2d(2),
        *_convolution(64, 128),
        nn.MaxPool2d(2),
        nn.Flatten(),
        nn.Linear(128 * 3 * 3, 256),
        nn.ReLU(),
        nn.Dropout(0.4),
        nn.Linear(256, 10),
    )
    # CPU kernels are about twice as fast when the channels lie innermost; the numbers are the same
    return network.to(memory_format=torch.channels_last)


def small_cnn() -> nn.Module:
    """Three narrow convolutions, the first with stride 2 and the classifier right behind the last: 29,434 parameters."""
    return nn.Sequential(
        *_convolution(1, 16, kernel=5, stride=2),
        *_convolution(16, 32),
        nn.MaxPool2d(2),
        *_convolution(32, 64),
        nn.MaxPool2d(2),
        nn.Flatten(),
        nn.Linear(64 * 3 * 3, 10),
    )


def mlp() -> nn.Module:
    """One hidden layer of 128 units: 101,770 parameters, and no idea of neighbouring pixels."""
    return nn.Sequential(nn.Flatten(), nn.Linear(28 * 28, 128), nn.ReLU(), nn.Linear(128, 10))
