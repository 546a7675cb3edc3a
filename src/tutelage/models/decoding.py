"""A language model read token by token: what comes next after each prompt, and after each token that is put behind it."""

from __future__ import annotations

import copy
import inspect
from collections.abc import Generator
from contextlib import contextmanager
from functools import lru_cache
from typing import Any, Protocol

import torch
from torch import Tensor, nn

from tutelage.errors import DataError, ModelError
from tutelage.models.calling import asked, logits_in, run_model, unwrapped
from tutelage.models.detours import copied_buffers
from tutelage.ragged import Ragged


class Decoder(Protocol):
    """What comes after B texts that grow."""

    def start(self, prompts: Ragged) -> Tensor:
        """Scores ``[B, C]`` of the token after each prompt."""
        ...

    def add(self, tokens: Tensor) -> Tensor:
        """Put a token, int64 ``[B]``, behind each text; the scores ``[B, C]`` of the one after it."""
        ...

    def ahead(self, tokens: Tensor) -> Tensor:
        """Scores ``[B, L, C]`` of what comes after each of L tokens, int64 ``[B, L]``, behind the texts, which stay as they are."""
        ...

    def keep(self, rows: Tensor) -> None:
        """Go on with those texts alone, int64 ``[B']``."""
        ...


def decoder_of(model: nn.Module, room: int) -> Decoder:
    """The quickest way to read on in a model: with its keys and values kept where it can, else everything anew for each token.

    Args:
        model: a causal language model.
        room: how many tokens may be put behind each prompt.
    """
    return _Cached(model, room) if keeps_keys(model) else _Anew(model)


def readable(model: nn.Module) -> nn.Module:
    """The module to read on in: out of DDP's wrapper, and of an adapter's that only puts layers into it.

    Raises:
        ModelError: it reads one text and writes another one; or its weights are spread over processes, which would wait for one
            another once their texts end at different tokens.
    """
    inner = unwrapped(model)
    adapter: Any = getattr(inner, "active_peft_config", None)
    if adapter is not None and not getattr(adapter, "is_prompt_learning", True):
        inner = inner.get_base_model()  # pyright: ignore[reportCallIssue]
    if getattr(getattr(inner, "config", None), "is_encoder_decoder", False):
        raise ModelError(
            f"{type(inner).__name__} is an encoder and a decoder, expected a causal language model: a completion stands right behind "
            "its prompt in the same text; use a model of AutoModelForCausalLM"
        )
    spread = hasattr(inner, "_get_fsdp_state") or any(hasattr(weight, "ds_id") for weight in inner.parameters())
    if spread or any("_fsdp_wrapped_module" in module._modules for module in inner.modules()):  # pyright: ignore[reportPrivateUsage]
        raise ModelError(
            f"the weights of {type(inner).__name__} are spread over processes, which would wait for one another for ever once their texts "
            "end at different tokens: write with a model that is whole on each process (DDP, or one process)"
        )
    return inner


@contextmanager
def unchanged(model: nn.Module) -> Generator[None]:
    """Eval mode and no gradient inside; flags and buffers as before outside."""
    training = [module for module in model.modules() if module.training]
    try:
        for module in training:
            module.training = False
        with torch.no_grad(), copied_buffers(model):
            yield
    finally:
        for module in training:
            module.training = True


@contextmanager
def answering(model: nn.Module) -> Generator[None]:
    """As :func:`unchanged`, and random generators too are as before outside."""
    with torch.random.fork_rng(devices=range(torch.cuda.device_count())), unchanged(model):
        yield


def check_prompts(model: nn.Module, prompts: Ragged, behind: int) -> None:
    """Refuse what a model cannot read.

    Args:
        model: the model.
        prompts: of B texts.
        behind: how many tokens may follow a prompt.

    Raises:
        DataError: an empty prompt; a token that the model does not have; more tokens than it has positions for.
    """
    if len(prompts) == 0:
        return
    lengths = prompts.lengths
    if int(lengths.min()) == 0:
        raise DataError(
            f"prompt {int(lengths.argmin())} holds no token: nothing would say what its first token should be; begin it with the "
            "tokenizer's BOS token, or leave it out"
        )
    name = type(model).__name__
    embedding: Any = model.get_input_embeddings() if hasattr(model, "get_input_embeddings") else None  # pyright: ignore[reportCallIssue]
    classes = getattr(embedding, "num_embeddings", None)
    if classes is not None and not 0 <= int(prompts.values.min()) <= int(prompts.values.max()) < classes:
        raise DataError(
            f"prompts hold tokens from {int(prompts.values.min()):,} to {int(prompts.values.max()):,}, and {name} has {classes:,}: they "
            "are another tokenizer's; encode them with this model's own"
        )
    config: Any = getattr(model, "config", None)
    most = getattr(config, "max_position_embeddings", None)
    needed = int(lengths.max()) + behind
    if isinstance(most, int) and needed > most:
        raise DataError(
            f"prompt {int(lengths.argmax())} has {int(lengths.max()):,} tokens and up to {behind:,} follow, {needed:,} in all; {name} has "
            f"positions for {most:,}, and what it says beyond them is noise: shorten the prompts, or let fewer tokens follow"
        )


def device_of(model: nn.Module) -> torch.device:
    """Where a model's weights are."""
    parameter = next(model.parameters(), None)
    return torch.device("cpu") if parameter is None else parameter.device


def keeps_keys(model: nn.Module) -> bool:
    """Whether a model is one of transformers' that keeps keys and values in a cache of its kind."""
    supports: Any = getattr(model, "_supports_default_dynamic_cache", None)
    return supports is not None and bool(supports()) and "past_key_values" in takes(type(asked(model)))


@lru_cache(maxsize=256)
def takes(kind: type[nn.Module]) -> frozenset[str]:
    """The keywords of a model's ``forward``."""
    return frozenset(inspect.signature(kind.forward).parameters)


class _Cached:
    """With keys and values kept; prompts are padded in front."""

    def __init__(self, model: nn.Module, room: int) -> None:
        self._model, self._room = model, room
        self._named = takes(type(asked(model)))
        self._cache: Any = None
        self._takes_back = False
        self._mask: Tensor | None = None  # [B, all that there is room for]; None where no row is padded
        self._lengths = torch.zeros(0, dtype=torch.int64)
        self._seen = 0

    def start(self, prompts: Ragged) -> Tensor:
        from tutelage.models.growing_cache import GrowingLayer, growing_cache

        ids, mask = prompts.padded(0, left=True)
        self._seen, self._lengths = ids.shape[1], prompts.lengths
        self._cache = growing_cache(self._model.config, self._seen + self._room)
        # a state that was moved on, as of a convolution, cannot be taken back
        self._takes_back = all(isinstance(layer, GrowingLayer) for layer in self._cache.layers)
        padded = not bool(mask.all())
        self._mask = torch.cat([mask.long(), mask.new_ones(len(ids), self._room).long()], 1) if padded else None
        return self._run(ids, (mask.long().cumsum(1) - 1).clamp_(min=0))[:, -1]

    def add(self, tokens: Tensor) -> Tensor:
        self._seen += 1
        self._lengths = self._lengths + 1
        return self._run(tokens[:, None], self._lengths[:, None] - 1)[:, -1]

    def ahead(self, tokens: Tensor) -> Tensor:
        count, cache = tokens.shape[1], self._cache
        if not self._takes_back:
            self._cache = copy.deepcopy(cache)
        self._seen += count
        places = self._lengths[:, None] + torch.arange(count, device=tokens.device)
        scores = self._run(tokens, places, last=count)
        self._seen -= count
        if self._takes_back:
            cache.crop(-count)
        self._cache = cache
        return scores[:, -count:]

    def keep(self, rows: Tensor) -> None:
        self._cache.reorder_cache(rows)
        self._lengths = self._lengths[rows]
        self._mask = None if self._mask is None else self._mask[rows]

    def _run(self, ids: Tensor, positions: Tensor, last: int = 1) -> Tensor:
        """Scores of the last so many tokens, or of more."""
        options: dict[str, Any] = {"past_key_values": self._cache, "use_cache": True}
        if self._mask is not None:
            options["attention_mask"] = self._mask[:, : self._seen]
            if "position_ids" in self._named:
                options["position_ids"] = positions
        if "logits_to_keep" in self._named:
            options["logits_to_keep"] = last
        return logits_in(self._model, self._model(input_ids=ids, **options), per_token=True)


class _Anew:
    """Everything read again for each token, padded behind: right for any causal model, and slow."""

    def __init__(self, model: nn.Module) -> None:
        self._model = model
        self._texts: list[Tensor] = []

    def start(self, prompts: Ragged) -> Tensor:
        self._texts = list(prompts)
        return self._after(self._texts, 1)[:, 0]

    def add(self, tokens: Tensor) -> Tensor:
        self._texts = self._with(tokens[:, None])
        return self._after(self._texts, 1)[:, 0]

    def ahead(self, tokens: Tensor) -> Tensor:
        return self._after(self._with(tokens), tokens.shape[1])

    def keep(self, rows: Tensor) -> None:
        self._texts = [self._texts[row] for row in rows.tolist()]

    def _with(self, tokens: Tensor) -> list[Tensor]:
        return [torch.cat([text, more]) for text, more in zip(self._texts, tokens, strict=True)]

    def _after(self, texts: list[Tensor], last: int) -> Tensor:
        """Scores ``[B, last, C]`` of what comes after each of the last tokens."""
        lengths = torch.tensor([len(text) for text in texts], device=texts[0].device)
        ids = nn.utils.rnn.pad_sequence(texts, batch_first=True)
        mask = torch.arange(ids.shape[1], device=ids.device) < lengths[:, None]
        output = run_model(self._model, {"input_ids": ids, "attention_mask": mask.long()})
        places = lengths[:, None] - last + torch.arange(last, device=ids.device)
        return logits_in(self._model, output, per_token=True)[
            torch.arange(len(ids), device=ids.device)[:, None], places
        ]
