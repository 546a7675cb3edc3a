"""Students that are made of a sentence encoder: some of its layers and units, or a table of its tokens."""

from __future__ import annotations

import copy
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any, Literal

import numpy as np
import torch
from numpy.typing import NDArray
from torch import nn

from tutelage.data import Tokenise
from tutelage.errors import ConfigError
from tutelage.models.sentence import SentenceEncoder, with_transformer
from tutelage.models.sentence_static import static_from_teacher
from tutelage.models.shrinking import Importance, importance_of, shrink
from tutelage.models.shrinking.building import drawn_anew
from tutelage.models.vocabulary_cut import cut_vocabulary
from tutelage.studies.embedding.costing import sample
from tutelage.studies.embedding.encoding import as_inputs

#: Texts on which the importance of layers and units is measured, and how many of them at a time.
_MEASURED_ON, _AT_A_TIME = 256, 32


@dataclass(frozen=True)
class CutTo:
    """What is left of an encoder; None for all of it.

    Args:
        layers, hidden, heads, feed_forward: as for :func:`tutelage.models.shrinking.shrink`.
        vocabulary: whether tokens that no training text uses are taken out.
        at_random: whether the weights are drawn anew, so that the shape alone is left.
    """

    layers: int | Sequence[int] | str | None = None
    hidden: int | None = None
    heads: int | None = None
    feed_forward: int | None = None
    vocabulary: bool = False
    at_random: bool = False

    @property
    def sizes(self) -> dict[str, Any]:
        """What is said of layers and widths."""
        named = {name: getattr(self, name) for name in ("layers", "hidden", "heads", "feed_forward")}
        return {name: value for name, value in named.items() if value is not None}

    @property
    def whole(self) -> bool:
        """Whether nothing is taken out or drawn anew."""
        return not self.sizes and not self.vocabulary and not self.at_random

    def words(self, origin: str) -> str:
        """What it is, to stand behind "the student, "."""
        parts = [f"{name.replace('_', '-')} {_shown(value)}" for name, value in self.sizes.items()]
        parts += ["the vocabulary of the training texts"] if self.vocabulary else []
        said = f"cut from {origin} ({', '.join(parts)})" if parts else f"a copy of {origin}"
        return f"{said}, its weights drawn at random" if self.at_random else said


@dataclass(frozen=True, eq=False)
class Making:
    """What students are made of.

    Args:
        teacher: the encoder that they come from.
        texts: those that they will learn from.
        max_length: tokens at which these are cut.
    """

    teacher: nn.Module
    texts: Sequence[str]
    max_length: int

    def cut(self, to: CutTo, of: Callable[[], nn.Module] | None = None) -> Callable[[], SentenceEncoder]:
        """Makes fresh students that are cut from an encoder; whoever calls it has seeded torch.

        Args:
            to: what is left.
            of: gives the encoder; None for the teacher.

        Raises:
            ConfigError: when it is called, and there are no layers to cut.
            ModelError: what cannot be cut as asked.
        """
        known: list[SentenceEncoder] = []

        def make() -> SentenceEncoder:
            # of the teacher one and the same is cut each time; another encoder may be drawn anew for each seed
            if not known or of is not None:
                known[:] = [self._cut(to, _layered(self.teacher if of is None else of()))]
            made = copy.deepcopy(known[0])
            return _drawn_anew(made) if to.at_random else made

        return make

    def static(self, width: int | None, tokens: Literal["outputs", "inputs"]) -> Callable[[], nn.Module]:
        """Makes fresh tables of the teacher's tokens, weighted by how often the texts have them: all alike.

        Args:
            width: of the table; None for the teacher's.
            tokens: whether a token's vector begins as what the teacher makes of it alone, or as what it reads.

        Raises:
            ConfigError: when it is called, and the teacher has no layers; a width that there is not.
        """
        known: list[nn.Module] = []

        def make() -> nn.Module:
            if not known:
                encoder = _layered(self.teacher)
                counts = None if encoder.tokenizer is None else self._counts(encoder, tokens)
                known.append(static_from_teacher(encoder, tokens=tokens, width=width, counts=counts))
            return copy.deepcopy(known[0])

        return make

    def _counts(self, encoder: SentenceEncoder, tokens: Literal["outputs", "inputs"]) -> NDArray[np.int64]:
        """How often the texts have each token that the table has a row for ``[V]``."""
        transformer: Any = encoder.transformer
        rows = transformer.get_input_embeddings().num_embeddings if tokens == "inputs" else len(encoder.tokenizer)
        whole = encoder.tokenizer(list(self.texts), add_special_tokens=False, truncation=False, verbose=False)
        # ids are no ranks: the lowest are often marks and characters that no text has
        return np.bincount(
            np.concatenate([np.array(ids, dtype=np.int64) for ids in whole["input_ids"]]), minlength=rows
        )

    def _cut(self, to: CutTo, encoder: SentenceEncoder) -> SentenceEncoder:
        transformer, tokenizer = encoder.transformer, encoder.tokenizer
        # an encoder whose kind no table knows may still be copied whole
        smaller: Any = shrink(transformer, **to.sizes, importance=self._importance(to, encoder)) if to.sizes else None
        smaller = copy.deepcopy(transformer) if smaller is None else smaller
        if to.vocabulary:
            found = cut_vocabulary(smaller, tokenizer, list(self.texts))
            smaller, tokenizer = found.model, found.tokenizer
        for parameter in smaller.parameters():
            parameter.requires_grad_(True)
        # a teacher may be held in fewer bits, in which small steps of a training are lost
        return with_transformer(encoder, smaller, copy.deepcopy(tokenizer)).float()

    def _importance(self, to: CutTo, encoder: SentenceEncoder) -> Importance | None:
        """Of layers and units, where some of them are to be chosen by it."""
        by_layers = isinstance(to.layers, str) and to.layers.startswith("important")
        if not by_layers and not (set(to.sizes) - {"layers"}):
            return None
        view = Tokenise(encoder.tokenizer, self.max_length)
        # the first of a file may all be of one kind
        texts = sample(self.texts, min(_MEASURED_ON, len(self.texts)))
        batches = (as_inputs(view, texts[start : start + _AT_A_TIME]) for start in range(0, len(texts), _AT_A_TIME))
        with torch.random.fork_rng(devices=[]):
            return importance_of(encoder.transformer, batches)


def _layered(encoder: nn.Module) -> SentenceEncoder:
    if not isinstance(encoder, SentenceEncoder):
        raise ConfigError(
            f"a student is made of an encoder's layers, and {type(encoder).__name__} is no transformer with a pooling whose layers are "
            "known: give a folder of one (model: {hub: …}), or build the student in a function of your own"
        )
    return encoder


def _drawn_anew(encoder: SentenceEncoder) -> SentenceEncoder:
    """The same shape with weights drawn from torch's generator."""
    made = with_transformer(encoder, drawn_anew(encoder.transformer), encoder.tokenizer)
    for module in made.after.modules():
        if isinstance(module, nn.Linear):
            module.reset_parameters()
    return made


def _shown(value: Any) -> str:
    return ", ".join(map(str, value)) if isinstance(value, list | tuple) else str(value)
