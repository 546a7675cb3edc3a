"""Views: what a model sees of an example. A view maps a batch of raw inputs, and the batch's draws, to model inputs.

Any callable ``(inputs, draws) -> inputs`` is a view. One that draws random numbers says so with ``random = True``, so
that a teacher whose view changes with the epoch is never answered from memory.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, ClassVar, Protocol

import torch
from torch import Tensor

from tutelage.data.completions import Completions
from tutelage.data.ids import RawInputs, hex_id
from tutelage.data.randomness import Draws
from tutelage.errors import ConfigError, DataError


class View(Protocol):
    """A function of a batch and its draws; attribute ``random`` says whether it uses the draws."""

    def __call__(self, inputs: Any, draws: Draws, /) -> Any:
        """Transform a batch of inputs ``[B, ...]``; row b may depend on row b and its draws alone."""
        ...


def is_random(view: View | None) -> bool:
    """Whether the view's outcome depends on the epoch. A view that does not say is taken to be random."""
    return view is not None and bool(getattr(view, "random", True))


def _images(inputs: Any, view: object) -> Tensor:
    if not isinstance(inputs, Tensor) or inputs.ndim < 3 or not inputs.is_floating_point():
        got = f"{inputs.dtype} {tuple(inputs.shape)}" if isinstance(inputs, Tensor) else type(inputs).__name__
        raise DataError(f"{type(view).__name__} takes float images [B, (C,) H, W], got {got}")
    return inputs


@dataclass(frozen=True)
class Chain:
    """Views applied one after the other."""

    views: Sequence[View]

    @property
    def random(self) -> bool:
        """Whether any of them is."""
        return any(is_random(view) for view in self.views)

    def __call__(self, inputs: Any, draws: Draws, /) -> Any:
        for view in self.views:
            inputs = view(inputs, draws)
        return inputs


@dataclass(frozen=True)
class Normalise:
    """``(x − mean) / std``, per channel for images ``[B, C, H, W]`` when several values are given."""

    mean: float | Sequence[float]
    std: float | Sequence[float]
    random: ClassVar[bool] = False

    def __post_init__(self) -> None:
        if not bool((torch.as_tensor(self.std) > 0).all()):
            raise ConfigError(
                f"Normalise: std is {self.std}, expected values above 0: dividing by it would give infinities"
            )

    def __call__(self, inputs: Any, draws: Draws, /) -> Tensor:  # noqa: ARG002
        if not isinstance(inputs, Tensor) or not inputs.is_floating_point():
            raise DataError("Normalise takes a float tensor: convert the images to floats first")
        mean = torch.as_tensor(self.mean, dtype=inputs.dtype).reshape(-1)
        std = torch.as_tensor(self.std, dtype=inputs.dtype).reshape(-1)
        channels = inputs.shape[1] if inputs.ndim > 1 else 1
        if not {len(mean), len(std)} <= {1, channels}:
            raise DataError(
                f"Normalise has {len(mean)} means and {len(std)} deviations for inputs {tuple(inputs.shape)}, expected 1 or "
                f"{channels} of each: broadcasting would copy the image into channels that it does not have"
            )
        trailing = (1,) * (inputs.ndim - 2)
        return (inputs - mean.reshape(-1, *trailing)) / std.reshape(-1, *trailing)


@dataclass(frozen=True)
class RandomShift:
    """Translate each image by up to ``pixels`` in each direction, filling with zeros."""

    pixels: int
    stream: str = "shift"
    random: ClassVar[bool] = True

    def __post_init__(self) -> None:
        if self.pixels < 0:
            raise ConfigError(f"RandomShift: pixels is {self.pixels}, expected 0 or more")

    def __call__(self, inputs: Any, draws: Draws, /) -> Tensor:
        images = _images(inputs, self)
        height, width = images.shape[-2:]
        shift = draws.integers(self.stream, -self.pixels, self.pixels, 2)
        rows = torch.arange(height)[None, :] + shift[:, :1]
        columns = torch.arange(width)[None, :] + shift[:, 1:]
        inside = ((rows >= 0) & (rows < height))[:, :, None] & ((columns >= 0) & (columns < width))[:, None, :]
        flat = (rows.clamp(0, height - 1)[:, :, None] * width + columns.clamp(0, width - 1)[:, None, :]).flatten(1)
        channels = images.reshape(len(images), -1, height * width)
        moved = channels.gather(2, flat[:, None, :].expand(-1, channels.shape[1], -1)).reshape(images.shape)
        return moved * inside.reshape(len(images), *(1,) * (images.ndim - 3), height, width)


@dataclass(frozen=True)
class HorizontalFlip:
    """Mirror each image left to right with probability ``probability``."""

    probability: float = 0.5
    stream: str = "flip"
    random: ClassVar[bool] = True

    def __post_init__(self) -> None:
        if not 0 <= self.probability <= 1:
            raise ConfigError(f"HorizontalFlip: probability is {self.probability}, expected a number from 0 to 1")

    def __call__(self, inputs: Any, draws: Draws, /) -> Tensor:
        images = _images(inputs, self)
        flipped = draws.uniform(self.stream)[:, 0] < self.probability
        return torch.where(flipped.reshape(-1, *(1,) * (images.ndim - 1)), images.flip(-1), images)


@dataclass(frozen=True)
class GaussianNoise:
    """Add independent normal noise of standard deviation ``std`` to every value."""

    std: float
    stream: str = "noise"
    random: ClassVar[bool] = True

    def __post_init__(self) -> None:
        if not 0 <= self.std < float("inf"):
            raise ConfigError(f"GaussianNoise: std is {self.std}, expected a finite number, 0 or more")

    def __call__(self, inputs: Any, draws: Draws, /) -> Tensor:
        if not isinstance(inputs, Tensor) or not inputs.is_floating_point():
            raise DataError("GaussianNoise takes a float tensor")
        values = inputs[0].numel()
        return inputs + self.std * draws.normal(self.stream, values).reshape(inputs.shape).to(inputs.dtype)


@dataclass(frozen=True)
class PerExample:
    """Lift an ordinary transform of one example (torchvision's, say) to a view.

    torch's global CPU generator is seeded from (seed, epoch, id) around each call and restored after it, so that a
    transform that uses it is replayed exactly. A transform that draws from ``random`` or NumPy is not.
    """

    transform: Callable[[Any], Tensor]
    stream: str = "per_example"
    random: ClassVar[bool] = True

    def __call__(self, inputs: Any, draws: Draws, /) -> Tensor:
        if isinstance(inputs, Mapping):
            raise DataError(f"PerExample takes one tensor or texts, got named inputs {', '.join(map(str, inputs))}")
        seeds = draws.bits(self.stream, 1)[:, 0]
        with torch.random.fork_rng(devices=[]):
            rows: list[Tensor] = []
            for example, example_seed in zip(inputs, seeds.tolist(), strict=True):
                # torch.manual_seed would also reseed the accelerators, whose dropout would repeat itself
                torch.default_generator.manual_seed(example_seed >> 1)
                row = self.transform(example)
                if not isinstance(row, Tensor):  # pyright: ignore[reportUnnecessaryIsInstance]
                    raise DataError(
                        f"per_example: the transform returned a {type(row).__name__}, expected a tensor; torch.as_tensor makes one"
                    )
                rows.append(row)
        return torch.stack(rows)


class Tokenise:
    """Texts to padded ``input_ids``, ``attention_mask`` and whatever else the tokenizer gives, ``[B, T]`` each.

    Args:
        tokenizer: a Hugging Face tokenizer, or the id or folder of one.
        max_length: longer texts are cut, which changes what the model sees; None for nowhere. A batch is padded to its longest text.

    Raises:
        ConfigError: the tokenizer cannot be loaded, or has no padding token.
    """

    random: ClassVar[bool] = False

    def __init__(self, tokenizer: Any, max_length: int | None = 128) -> None:
        if isinstance(tokenizer, str | Path):
            from transformers import AutoTokenizer

            try:
                tokenizer = AutoTokenizer.from_pretrained(tokenizer)
            except (OSError, ValueError) as error:
                raise ConfigError(
                    f"tokenizer {str(tokenizer)!r} could not be loaded: {error}. Expected the id of one (reachable, or already in "
                    "the cache when offline) or its folder"
                ) from error
        if getattr(tokenizer, "pad_token", "unknown") is None:
            raise ConfigError(
                "the tokenizer has no padding token, so texts of different lengths cannot share a batch: set tokenizer.pad_token"
            )
        if max_length is not None and max_length < 1:
            raise ConfigError(f"Tokenise: max_length is {max_length}, expected 1 or more")
        self.tokenizer = tokenizer
        self.max_length = max_length

    def __call__(self, inputs: Any, draws: Draws, /) -> Mapping[str, Tensor]:
        if isinstance(inputs, Tensor | Mapping):
            raise DataError(f"Tokenise takes texts, got a {type(inputs).__name__}")
        empty = [hex_id(int(draws.ids[row])) for row, text in enumerate(inputs) if not text.strip()]
        if empty:
            raise DataError(
                f"example {empty[0]} has an empty text: a model would be taught from padding alone; drop such rows"
            )
        cut: dict[str, Any] = {"truncation": False, "verbose": False}
        if self.max_length is not None:
            cut = {"truncation": True, "max_length": self.max_length}
        return dict(self.tokenizer(list(inputs), padding=True, return_tensors="pt", **cut))


def take(inputs: RawInputs, rows: Tensor) -> RawInputs:
    """Rows of raw inputs, in the order asked for."""
    if isinstance(inputs, Tensor):
        return inputs.index_select(0, rows)
    if isinstance(inputs, Mapping):
        return {name: values.index_select(0, rows) for name, values in inputs.items()}
    if isinstance(inputs, Completions):
        return inputs.take(rows)
    texts: list[str] = [inputs[row] for row in rows.tolist()]  # pyright: ignore[reportAssignmentType]
    return texts
