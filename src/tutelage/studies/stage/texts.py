"""The texts of a stage: those that are learnt from, and those that it is measured on."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from hashlib import sha256
from itertools import compress
from typing import Any

import torch
from torch import Tensor

from tutelage.data import Draws, MaskedTokens, Masking, TransferSet, content_ids, masked_texts
from tutelage.errors import ConfigError, DataError

#: More texts than these are not needed to see how a stage goes, and each look at them would take its time.
MOST_VALIDATION = 1_000

Json = dict[str, Any]


@dataclass(frozen=True)
class StageTexts:
    """A stage's texts, masked.

    Args:
        train: masked anew in each epoch.
        validation: masked once.
        masking: how much is hidden.
        left_out: texts in which there is nothing to hide.
        kept_apart: texts that the task is measured on, from which no student may learn anything.
    """

    train: TransferSet
    validation: TransferSet
    masking: Masking
    left_out: int = 0
    kept_apart: int = 0

    @classmethod
    def of(
        cls,
        texts: Sequence[str],
        tokenizer: Any,
        masking: Masking | None = None,
        *,
        max_length: int = 128,
        validation: float = 0.05,
        seed: int = 0,
        apart_from: Tensor | None = None,
    ) -> StageTexts:
        """Divide texts by their content: equal ones stay together, and a text's place does not depend on the others' order.

        Args:
            texts: all of them; no labels are needed.
            tokenizer: of the student and the teacher.
            masking: how much is hidden; 15% of the tokens by default.
            max_length: longer texts are cut, in tokens.
            validation: the share that is measured on, at most 1,000 texts.
            seed: of the division and of what is hidden.
            apart_from: content ids of the task's validation and test examples; these texts are left out.

        Raises:
            ConfigError: a share that is not above 0 and below 1; a tokenizer without a mask token.
            DataError: a part would be empty.
        """
        if not 0.0 < validation < 1.0:
            raise ConfigError(
                f"validation is {validation}, expected a share above 0 and below 1: something must be left to learn from, and "
                "something to measure on"
            )
        masking = masking or Masking()
        ids = content_ids(texts)
        free = torch.ones_like(ids, dtype=torch.bool) if apart_from is None else ~torch.isin(ids, apart_from)
        share = min(validation, MOST_VALIDATION / max(len(ids[free].unique()), 1))
        measured = Draws(seed, 0, ids).uniform("stage, validation")[:, 0] < share
        parts = [list(compress(texts, chosen.tolist())) for chosen in (free & ~measured, free & measured)]
        if not all(parts):
            apart = int((~free).sum())
            held = f", {apart:,} of them the task's own validation or test examples" if apart else ""
            raise DataError(
                f"{len(texts):,} texts{held} are too few to learn from and to hold {validation:.0%} back to measure on; give more"
            )
        views = [MaskedTokens(tokenizer, masking, max_length, fixed) for fixed in (False, True)]
        sets = [masked_texts(part, view, seed) for part, view in zip(parts, views, strict=True)]
        left_out = sum(map(len, parts)) - sum(map(len, sets))
        return cls(sets[0], sets[1], masking, left_out, int((~free).sum()))

    @property
    def identity(self) -> Json:
        """What must not change between a stage and its resumption, beside what the transfer set says of itself."""
        held = self.validation
        digest = sha256(held.ids.numpy().tobytes() + held.known_labels.numpy().tobytes()).hexdigest()
        return {"masking_seed": self.train.seed, "validation_set": f"{len(held)} texts, {digest[:16]}"}

    def describe(self) -> Json:
        """How many there are, plain JSON values."""
        return {
            "train": len(self.train),
            "validation": len(self.validation),
            "left_out": self.left_out,
            "kept_apart": self.kept_apart,
        }
