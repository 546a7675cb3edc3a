"""Views: what each model sees of an example."""

from __future__ import annotations

import random as python_random
from typing import Any

import numpy as np
import pytest
import torch
from torch import Tensor

from tutelage.data import (
    Chain,
    Draws,
    GaussianNoise,
    HorizontalFlip,
    Normalise,
    PerExample,
    RandomShift,
    Tokenise,
    content_ids,
    is_random,
)
from tutelage.errors import ConfigError, DataError

IMAGES = torch.rand(12, 2, 5, 7, generator=torch.Generator().manual_seed(0)) + 0.1


def _draws(images: Tensor, epoch: int = 0, seed: int = 0) -> Draws:
    return Draws(seed, epoch, content_ids(images))


AUGMENTATIONS = [
    RandomShift(2),
    HorizontalFlip(),
    GaussianNoise(0.3),
    PerExample(lambda image: image + torch.rand(1)),
    Chain([RandomShift(1), HorizontalFlip(), GaussianNoise(0.1)]),
]


@pytest.mark.parametrize("view", AUGMENTATIONS, ids=lambda view: type(view).__name__)
def test_a_function_of_seed_epoch_and_id(view: Any):
    """If the batch's composition entered, a label stored for one view would be taught for another."""
    whole = view(IMAGES, _draws(IMAGES))
    assert torch.equal(view(IMAGES, _draws(IMAGES)), whole)
    rows = torch.tensor([7, 0, 3])
    assert torch.equal(view(IMAGES[rows], _draws(IMAGES[rows])), whole[rows])
    assert torch.equal(view(IMAGES[5:6], _draws(IMAGES[5:6])), whole[5:6])
    assert not torch.equal(view(IMAGES, _draws(IMAGES, epoch=1)), whole)
    assert not torch.equal(view(IMAGES, _draws(IMAGES, seed=1)), whole)


@pytest.mark.parametrize("view", AUGMENTATIONS, ids=lambda view: type(view).__name__)
def test_inputs_are_not_changed_and_dtype_is_kept(view: Any):
    """A view that wrote into its inputs would hand the teacher what the student's view made of them."""
    images = IMAGES.to(torch.bfloat16)
    before = images.clone()
    assert view(images, _draws(images)).dtype in (torch.bfloat16, torch.float32)
    assert torch.equal(images, before)
    assert view(IMAGES, _draws(IMAGES)).dtype is torch.float32


def _slow_shift(image: np.ndarray, down: int, right: int) -> np.ndarray:
    out = np.zeros_like(image)
    channels, height, width = image.shape
    for c in range(channels):
        for y in range(height):
            for x in range(width):
                if 0 <= y + down < height and 0 <= x + right < width:
                    out[c, y, x] = image[c, y + down, x + right]
    return out


@pytest.mark.parametrize("pixels", [0, 1, 3, 9])
def test_shift_against_loops(pixels: int):
    """A gather with rows and columns exchanged still looks like an image; and what leaves must not come in again."""
    shift = Draws(0, 0, content_ids(IMAGES)).integers("shift", -pixels, pixels, 2).tolist()
    expected = np.stack([_slow_shift(image.numpy(), *by) for image, by in zip(IMAGES, shift, strict=True)])
    moved = RandomShift(pixels)(IMAGES, _draws(IMAGES))
    np.testing.assert_array_equal(moved.numpy(), expected)
    np.testing.assert_array_equal(RandomShift(pixels)(IMAGES[:, 0], _draws(IMAGES)).numpy(), expected[:, 0])


def test_flip_against_loops():
    """Flipping the rows instead of the columns turns a 6 into no digit at all."""
    chosen = Draws(0, 0, content_ids(IMAGES)).uniform("flip")[:, 0].numpy() < 0.5
    expected = np.stack(
        [image[..., ::-1] if flip else image for image, flip in zip(IMAGES.numpy(), chosen, strict=True)]
    )
    np.testing.assert_array_equal(HorizontalFlip()(IMAGES, _draws(IMAGES)).numpy(), expected)
    assert 0 < chosen.sum() < len(chosen)
    assert torch.equal(HorizontalFlip(0.0)(IMAGES, _draws(IMAGES)), IMAGES)
    assert torch.equal(HorizontalFlip(1.0)(IMAGES, _draws(IMAGES)), IMAGES.flip(-1))


def test_noise_has_its_deviation_and_differs_in_every_value():
    """One number added to a whole image is brightness, not noise."""
    images = torch.zeros(200, 1, 8, 8) + torch.arange(200.0)[:, None, None, None]
    noise = GaussianNoise(0.5)(images, _draws(images)) - images
    assert abs(float(noise.std()) - 0.5) < 0.01
    assert (noise.flatten(1).std(dim=1) > 0.3).all()
    column = torch.arange(5.0)
    assert GaussianNoise(0.5)(column, _draws(column)).shape == (5,)


def test_views_on_one_stream_see_the_same_shift_and_on_two_do_not():
    """A teacher that saw another crop than its student would teach it the wrong image."""
    draws = _draws(IMAGES)
    student = Chain([RandomShift(2), Normalise(0.5, 2.0)])
    assert torch.equal(student(IMAGES, draws), Normalise(0.5, 2.0)(RandomShift(2)(IMAGES, draws), draws))
    assert not torch.equal(RandomShift(2, stream="other")(IMAGES, draws), RandomShift(2)(IMAGES, draws))


def test_per_example_leaves_the_global_generator_alone():
    """A view that reseeded torch would make dropout repeat itself every batch, in training as in a resumed run."""
    torch.manual_seed(5)
    python_random.seed(5)
    expected = torch.rand(3)
    torch.manual_seed(5)
    seen: list[Tensor] = []
    view = PerExample(lambda image: seen.append(torch.rand(1)) or image)
    view(IMAGES, _draws(IMAGES))
    assert torch.equal(torch.rand(3), expected)
    assert len(torch.cat(seen).unique()) == len(IMAGES)

    def fails(image: Tensor) -> Tensor:
        torch.rand(1)
        raise KeyError("in the user's transform")

    torch.manual_seed(5)
    with pytest.raises(KeyError):
        PerExample(fails)(IMAGES, _draws(IMAGES))
    assert torch.equal(torch.rand(3), expected)


def test_per_example_refuses_named_inputs():
    """Iterating a mapping gives its names: the transform would be asked to transform the word 'input_ids'."""
    with pytest.raises(DataError, match="named inputs x"):
        PerExample(lambda image: image)({"x": IMAGES}, _draws(IMAGES))


def test_normalise_against_numpy():
    """Statistics on the wrong axis still give a tensor of the right shape, and a teacher that is mostly wrong."""
    x = IMAGES.numpy()
    expected = (x - np.array([0.1, 0.5]).reshape(1, 2, 1, 1)) / np.array([0.5, 2.0]).reshape(1, 2, 1, 1)
    out = Normalise([0.1, 0.5], [0.5, 2.0])(IMAGES, _draws(IMAGES))
    np.testing.assert_allclose(out.numpy(), expected, rtol=1e-5)
    table = IMAGES.flatten(1)[:, :2]
    np.testing.assert_allclose(
        Normalise([0.1, 0.5], [0.5, 2.0])(table, _draws(table)).numpy(),
        (table.numpy() - np.array([0.1, 0.5])) / np.array([0.5, 2.0]),
        rtol=1e-5,
    )
    np.testing.assert_allclose(
        Normalise(0.1, 0.5)(IMAGES[:, 0], _draws(IMAGES)).numpy(), (x[:, 0] - 0.1) / 0.5, rtol=1e-6
    )


def test_normalise_never_makes_channels():
    """Three means on a grey image broadcast to three channels: a convolution for colour would take it without a word."""
    with pytest.raises(DataError, match="3 means"):
        Normalise([0.1, 0.2, 0.3], [1.0, 1.0, 1.0])(IMAGES[:, :1], _draws(IMAGES))
    with pytest.raises(DataError, match="float tensor"):
        Normalise(0.1, 0.2)((IMAGES * 255).to(torch.uint8), _draws(IMAGES))


@pytest.mark.parametrize(
    "make",
    [
        lambda: Normalise(0.0, 0.0),
        lambda: Normalise([0.0, 0.0], [1.0, float("nan")]),
        lambda: RandomShift(-1),
        lambda: HorizontalFlip(1.5),
        lambda: GaussianNoise(-0.1),
        lambda: GaussianNoise(float("nan")),
    ],
)
def test_impossible_arguments_die_at_construction(make: Any):
    """A deviation of 0 divides to infinity and a negative shift draws from an empty range, batches later."""
    with pytest.raises(ConfigError):
        make()


@pytest.mark.parametrize("view", [RandomShift(1), HorizontalFlip()])
@pytest.mark.parametrize("inputs", [torch.zeros(3, 4), torch.zeros(3, 1, 4, 4, dtype=torch.uint8), ["text"]])
def test_image_views_take_images_alone(view: Any, inputs: Any):
    """Shifting a row of a table by two columns is an error, not an augmentation."""
    with pytest.raises(DataError, match="float images"):
        view(inputs, Draws(0, 0, torch.tensor([1, 2, 3])))


def test_is_random():
    """A view that does not say is taken to be random: wrongly thought fixed, its teacher would be answered from memory."""
    assert not is_random(None)
    assert not is_random(Normalise(0.0, 1.0))
    assert not is_random(Chain([Normalise(0.0, 1.0)]))
    assert is_random(Chain([Normalise(0.0, 1.0), RandomShift(1)]))
    assert is_random(lambda inputs, draws: inputs)


class _Tokenizer:
    """Letters to numbers, padded with 0: what Tokenise needs of a Hugging Face tokenizer."""

    pad_token: str | None = "-"

    def __call__(self, texts: list[str], *, max_length: int, **_: Any) -> dict[str, Tensor]:
        rows = [[ord(letter) - 96 for letter in text][:max_length] for text in texts]
        longest = max(map(len, rows))
        ids = torch.tensor([row + [0] * (longest - len(row)) for row in rows])
        return {"input_ids": ids, "attention_mask": (ids > 0).long()}


def test_tokenise():
    """Texts are padded to the batch's longest and cut at max_length."""
    texts = ["abc", "z", "abcdefgh"]
    out = Tokenise(_Tokenizer(), max_length=4)(texts, Draws(0, 0, content_ids(texts)))
    assert out["input_ids"].tolist() == [[1, 2, 3, 0], [26, 0, 0, 0], [1, 2, 3, 4]]
    assert out["attention_mask"].sum().item() == 8


def test_tokenise_refuses_what_teaches_nothing(tmp_path: Any):
    """An empty text is nothing but padding: its teacher's answer is the prior, taught as if it were about the example."""
    texts = ["abc", "  "]
    ids = content_ids(texts)
    with pytest.raises(DataError, match=f"{int(ids[1]) % 2**64:016x}"):
        Tokenise(_Tokenizer())(texts, Draws(0, 0, ids))
    with pytest.raises(DataError, match="takes texts"):
        Tokenise(_Tokenizer())(torch.zeros(2, 2), Draws(0, 0, ids))
    no_padding = _Tokenizer()
    no_padding.pad_token = None
    with pytest.raises(ConfigError, match="no padding token"):
        Tokenise(no_padding)
    with pytest.raises(ConfigError, match="max_length"):
        Tokenise(_Tokenizer(), max_length=0)


def test_tokenise_loads_a_folder(tmp_path: Any, monkeypatch: pytest.MonkeyPatch):
    """Offline, a tokenizer comes from its folder; what is not there is a config error that says where it looked."""
    monkeypatch.setenv("HF_HUB_OFFLINE", "1")
    from transformers import BertTokenizer

    words = ["[PAD]", "[UNK]", "[CLS]", "[SEP]", "[MASK]", "cat", "dog"]
    BertTokenizer(vocab={word: index for index, word in enumerate(words)}).save_pretrained(tmp_path)
    for folder in (tmp_path, str(tmp_path)):
        out = Tokenise(folder)(["cat dog", "dog"], Draws(0, 0, torch.tensor([1, 2])))
        assert out["input_ids"].tolist() == [[2, 5, 6, 3], [2, 6, 3, 0]]
        assert "token_type_ids" in out
    with pytest.raises(ConfigError, match="could not be loaded"):
        Tokenise(str(tmp_path / "nowhere"))
