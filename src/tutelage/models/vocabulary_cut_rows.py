"""A model with some of its tokens' rows: embeddings, head, biases, and the numbers of tokens that its config names."""

from __future__ import annotations

import copy
import re
from collections.abc import Iterator, Mapping
from typing import Any

import torch
from torch import Tensor, nn

from tutelage.errors import ModelError

#: Settings that name tokens which a model is given or gives.
_NAMING = re.compile(r"_token_(id|ids|index)$")
#: Settings that name tokens which must not be written: of those that are gone, none can be.
_FORBIDDING = ("suppress_tokens", "begin_suppress_tokens")
_FORBIDDING_SEQUENCES = ("bad_words_ids",)
#: Settings with tokens in them that cannot be left out.
_DEMANDING = ("force_words_ids", "forced_decoder_ids", "sequence_bias", "lang_to_id", "task_to_id")


def row_count(model: Any) -> int:
    """How many tokens a model has rows for, padding rows among them."""
    return model.get_input_embeddings().weight.shape[0]


def padding_row(model: Any) -> int | None:
    """The number that its embeddings take for padding."""
    return model.get_input_embeddings().padding_idx


def named_tokens(model: Any) -> set[int]:
    """Numbers of tokens that a model's settings name and that it has a row for.

    Raises:
        ModelError: it is no plain model of transformers that takes tokens, or has several vocabularies.
    """
    _expect_tokens(model)
    found = {padding_row(model)} - {None}
    for settings in _settings(model.config, getattr(model, "generation_config", None)):
        for key, value in settings.to_dict().items():
            if _NAMING.search(key):
                found |= set(value if isinstance(value, list) else [value])
    return {number for number in found if isinstance(number, int) and 0 <= number < row_count(model)}


def with_rows(model: Any, kept: list[int]) -> Any:
    """A new model of the same class with those tokens' rows alone, in that order; the given one is as before.

    All its weights are to be trained, whatever was frozen, and it is in the mode that the model is in.

    Raises:
        ModelError: it cannot be built with so many tokens, something else of it hangs on their number, or it counts positions from a
            padding token that has another number now.
    """
    name = type(model).__name__
    new_numbers = {old: new for new, old in enumerate(kept)}
    config = copy.deepcopy(model.config)
    config.name_or_path = ""  # what is read again by that name has other rows
    _renumber(list(_settings(config)), new_numbers)
    config.get_text_config().vocab_size = len(kept)
    smaller = _built(model, config)
    expected = {at: values.shape for at, values in _tensors(smaller)}
    rows, other, shapes = row_count(model), len(kept), expected
    if rows == other and kept != list(range(rows)):
        # in another order alone: which axes count tokens shows in a model with one more
        other, longer = rows + 1, copy.deepcopy(config)
        longer.get_text_config().vocab_size = other
        shapes = {at: values.shape for at, values in _tensors(_built(model, longer))}
    tensors = {
        at: _rows_of(at, values, shapes[at], (rows, other), kept) for at, values in _tensors(model) if at in expected
    }
    _load(smaller, tensors, set(model.state_dict()), name)
    if (generation := getattr(model, "generation_config", None)) is not None:
        smaller.generation_config = copy.deepcopy(generation)
        _renumber([smaller.generation_config], new_numbers)
    _expect_whole(model, smaller, kept)
    return smaller.train(model.training)


def _expect_tokens(model: Any) -> None:
    """Refuse a model whose tokens' rows are not those of one table, in one vocabulary."""
    name = type(model).__name__
    config: Any = getattr(model, "config", None)
    if not hasattr(config, "get_text_config") or hasattr(model, "peft_config"):
        raise ModelError(
            f"{name} is no model of transformers with plain weights, and which of them belong to tokens is not known: give one of "
            "AutoModel's, out of any wrapper and before adapters are put into it"
        )
    try:
        text, table = config.get_text_config(), model.get_input_embeddings()
    except (NotImplementedError, ValueError) as error:
        raise ModelError(
            f"{name} has no one table of tokens ({error}): rows of another would keep their numbers"
        ) from error
    if not isinstance(table, nn.Embedding):
        raise ModelError(
            f"{name} has {type(table).__name__} for its inputs, expected one embedding for each token: it reads no tokens; "
            "leave out the vocabulary cut"
        )
    others = [
        key
        for part in {id(config): config, id(text): text}.values()
        for key, value in part.to_dict().items()
        if "vocab_size" in key and key != "vocab_size" and "type_vocab_size" not in key and value is not None
    ]
    if others:
        raise ModelError(
            f"{name} has a second vocabulary by its config ('{others[0]}'), expected one: its rows would keep their old numbers and "
            "meet other tokens; leave its vocabulary as it is"
        )


def _settings(config: Any, *more: Any) -> Iterator[Any]:
    text = config.get_text_config()
    yield config
    if text is not config:
        yield text
    yield from (settings for settings in more if settings is not None)


def _renumber(all_settings: list[Any], new_numbers: Mapping[int, int]) -> None:
    # all read before any is written: one may be a view of another
    changes = [(settings, list(_renumbered(settings, new_numbers))) for settings in all_settings]
    for settings, changed in changes:
        for key, value in changed:
            setattr(settings, key, value)


def _renumbered(settings: Any, new_numbers: Mapping[int, int]) -> Iterator[tuple[str, Any]]:
    """The new numbers of all tokens that some settings name; one that has no row stays as it is, out of range."""
    for key, value in settings.to_dict().items():
        if value is None:
            continue
        if _NAMING.search(key):
            many = isinstance(value, list)
            new = [new_numbers.get(number, number) for number in (value if many else [value])]
            yield key, new if many else new[0]
        elif key in _FORBIDDING:
            yield key, [new_numbers.get(number, number) for number in value if number in new_numbers or number < 0]
        elif key in _FORBIDDING_SEQUENCES:
            able = [words for words in value if new_numbers.keys() >= set(words)]
            yield key, [[new_numbers[number] for number in words] for words in able] or None
        elif key in _DEMANDING:
            raise ModelError(
                f"{type(settings).__name__} has '{key}', whose tokens may be gone and whose numbers would mean others: set it to None, "
                "cut the vocabulary, and set it again"
            )


def _built(model: Any, config: Any) -> Any:
    """A model of the same class, its weights yet to come."""
    from transformers.initialization import no_init_weights

    try:
        with torch.random.fork_rng(devices=range(torch.cuda.device_count())), no_init_weights():
            return type(model)(config)
    except (AssertionError, IndexError, KeyError, RuntimeError, TypeError, ValueError) as error:
        raise ModelError(
            f"{type(model).__name__} could not be built with {config.get_text_config().vocab_size:,} tokens: {error}. Something else in "
            "its config counts them; leave its vocabulary as it is"
        ) from error


def _tensors(model: Any) -> Iterator[tuple[str, Tensor]]:
    """All weights and buffers, saved ones or not, by every name they have."""
    yield from model.named_parameters(remove_duplicate=False)
    yield from model.named_buffers(remove_duplicate=False)


def _rows_of(at: str, values: Tensor, shape: torch.Size, counts: tuple[int, int], kept: list[int]) -> Tensor:
    """A copy of what stays of a tensor: rows of tokens along the one axis that counts them.

    Args:
        at: the tensor's name.
        values: the tensor.
        shape: with another number of tokens.
        counts: the number that there are, and that other one.
        kept: rows to take.
    """
    axes = [axis for axis, (before, after) in enumerate(zip(values.shape, shape, strict=False)) if before != after]
    if values.ndim == len(shape) and not axes:
        return values.detach().clone()
    counted = len(axes) == 1 and values.ndim == len(shape)
    if not counted or (values.shape[axes[0]], shape[axes[0]]) != counts:
        raise ModelError(
            f"{at} is {list(values.shape)} with {counts[0]:,} tokens and {list(shape)} with {counts[1]:,}, expected one axis that counts "
            "them: which of its rows stay is not known; leave the vocabulary as it is"
        )
    return values.detach().index_select(axes[0], torch.tensor(kept, device=values.device))


def _load(smaller: Any, tensors: dict[str, Tensor], saved: set[str], name: str) -> None:
    # assigned, not copied: what is kept in another precision than the rest stays in it
    keys = smaller.load_state_dict({at: tensors[at] for at in saved & tensors.keys()}, strict=False, assign=True)
    wrong = [*keys.missing_keys, *keys.unexpected_keys, *sorted(saved - tensors.keys())]
    if wrong:
        raise ModelError(
            f"{name} has weights that it lacks with fewer tokens, or the other way round ({', '.join(wrong[:4])}): they would be lost or "
            "random; leave its vocabulary as it is"
        )
    for at in (
        tensors.keys() - saved
    ):  # what a model makes for itself when it is built, as another precision would make it otherwise
        owner, _, last = at.rpartition(".")
        setattr(smaller.get_submodule(owner), last, tensors[at])
    smaller.tie_weights()
    smaller.requires_grad_(True)


def _expect_whole(model: Any, smaller: Any, kept: list[int]) -> None:
    """Refuse a model that would read or write other tokens than are meant."""
    name = type(model).__name__
    table, head = smaller.get_input_embeddings(), smaller.get_output_embeddings()
    counts = [part.weight.shape[0] for part in (table, head) if part is not None]
    if set(counts) != {len(kept)}:
        raise ModelError(
            f"{name} has {counts} tokens in its embeddings and its head, expected {len(kept):,} in each: its config does not count them; "
            "leave its vocabulary as it is"
        )
    old_head = model.get_output_embeddings()
    if head is not None and (head.weight is table.weight) != (old_head.weight is model.get_input_embeddings().weight):
        raise ModelError(
            f"the config of {name} says that its head {'is' if head.weight is table.weight else 'is not'} its embeddings, and in the model "
            "given it is the other way round: one of the two would be lost; load it with arguments: {tie_word_embeddings: false}"
        )
    _expect_padding(model, smaller, kept)


def _expect_padding(model: Any, smaller: Any, kept: list[int]) -> None:
    before, after = padding_row(model), padding_row(smaller)
    moved = (after is None or kept[after] != before) if before is not None else after is not None
    positions = [
        at
        for (at, old), new in zip(model.named_modules(), smaller.modules(), strict=True)
        if isinstance(old, nn.Embedding) and isinstance(new, nn.Embedding) and old.num_embeddings == new.num_embeddings
        if old.padding_idx != new.padding_idx
    ]
    if moved or positions:
        where = f"and {positions[0]} counts from it" if positions else "which is another token"
        raise ModelError(
            f"{type(model).__name__} has token {before} for padding and would have {after}, {where}: each token would have another "
            "position, or be taken for padding; give the tokenizer's padding token a low number, or leave the vocabulary as it is"
        )
