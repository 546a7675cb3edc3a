"""Teacher and student for 8×8 images of handwritten digits, ``[B, 1, 8, 8]`` with values in 0 … 1."""

from torch import nn


def teacher() -> nn.Module:
    """A small convolutional network: 3 × 3 kernels see strokes wherever they are."""
    return nn.Sequential(
        nn.Conv2d(1, 32, 3, padding=1),
        nn.ReLU(),
        nn.Conv2d(32, 64, 3, padding=1),
        nn.ReLU(),
        nn.MaxPool2d(2),
        nn.Flatten(),
        nn.Linear(64 * 4 * 4, 128),
        nn.ReLU(),
        nn.Dropout(0.4),
        nn.Linear(128, 10),
    )


def student() -> nn.Module:
    """One hidden layer of 64 units: 4,810 parameters."""
    return nn.Sequential(nn.Flatten(), nn.Linear(64, 64), nn.ReLU(), nn.Linear(64, 10))


def small_cnn() -> nn.Module:
    """A student that sees strokes too: two convolutions, 2,458 parameters."""
    return nn.Sequential(
        nn.Conv2d(1, 8, 3, padding=1),
        nn.ReLU(),
        nn.MaxPool2d(2),
        nn.Conv2d(8, 16, 3, padding=1),
        nn.ReLU(),
        nn.MaxPool2d(2),
        nn.Flatten(),
        nn.Linear(16 * 2 * 2, 16),
        nn.ReLU(),
        nn.Linear(16, 10),
    )
