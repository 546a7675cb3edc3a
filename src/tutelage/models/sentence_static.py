"""A sentence encoder without layers: the average of one vector a token, looked up in a table.

The smallest and fastest student there is, and what is lost is known: "dog bites man" and "man bites dog" are one text
to it. Its table begins as what the teacher makes of each token alone.

References: Arora, Liang & Ma, "A Simple but Tough-to-Beat Baseline for Sentence Embeddings" (ICLR 2017), for weights by
frequency (SIF); Tulkens & van Dongen, "Model2Vec" (2024), for a table of a sentence encoder's outputs, reduced by
principal components and weighted by SIF with frequencies from Zipf's law.
"""

from __future__ import annotations

import copy
from collections.abc import Sequence
from pathlib import Path
from typing import Any, Literal

import numpy as np
import torch
from numpy.typing import NDArray
from safetensors.torch import save_file
from torch import Tensor, nn
from torch.nn import functional

from tutelage.errors import ConfigError, ModelError
from tutelage.models import sentence_layout as layout
from tutelage.models.sentence import Dense, SentenceEncoder, SentenceOutput, expected_mask, tokenised

#: The table's name in the weights of a folder.
TABLE_KEY = "embedding.weight"


class StaticEncoder(nn.Module):
    """The average of a text's token vectors.

    Padding and the special tokens that the tokenizer puts around a text do not enter the mean, so that texts may be
    tokenised with or without them; a text without any token gets zeros. The embedding passes through a submodule named
    ``embedding``, as `SentenceEncoder`'s.

    Args:
        table: ``[V, D]``, the vector of each token id; learnt as the module's only weights.
        tokenizer: of transformers, with a ``tokenizer.json`` of its own (a fast one); at most V tokens.
        normalise: scale the average to length 1.
        notes: what the user should be told about how it was made.

    Raises:
        ModelError: fewer rows than the tokenizer has tokens, or a tokenizer that is not a fast one.
    """

    def __init__(self, table: Tensor, tokenizer: Any, *, normalise: bool = True, notes: Sequence[str] = ()) -> None:
        super().__init__()
        if not hasattr(tokenizer, "backend_tokenizer"):
            raise ModelError(
                f"{type(tokenizer).__name__} is no fast tokenizer, which a static encoder is saved with: its folder "
                "would hold no tokenizer.json and could not be opened; load the tokenizer with AutoTokenizer"
            )
        if table.ndim != 2 or len(table) < len(tokenizer):
            raise ModelError(
                f"the table has shape {list(table.shape)}, expected [tokens, width] with at least {len(tokenizer):,} "
                "rows, one for each token of the tokenizer: a token without a vector would stop the first batch that "
                "has it; make the table for this tokenizer"
            )
        rows, self.width = table.shape
        self.table = nn.Embedding(rows, self.width)
        with torch.no_grad():
            self.table.weight.copy_(table)
        self.embedding = nn.Identity()
        self.tokenizer = tokenizer
        self.normalise = normalise
        self.notes = tuple(notes)
        self.max_length = None
        left_out_V = torch.zeros(len(table), dtype=torch.bool)
        left_out_V[special_ids(tokenizer)] = True
        self.left_out_V: Tensor
        self.register_buffer("left_out_V", left_out_V, persistent=False)

    def forward(self, **inputs: Any) -> SentenceOutput:
        """The embedding of each text.

        Args:
            inputs: ``input_ids`` and ``attention_mask``, ``[B, T]`` each; whatever else a tokenizer gives is not
                needed.

        Raises:
            ModelError: no ``attention_mask``.
        """
        mask_BT = expected_mask(self, inputs)
        ids_BT = inputs["input_ids"]
        real_BT1 = ((mask_BT != 0) & ~self.left_out_V[ids_BT]).unsqueeze(-1)
        total_BD = self.table(ids_BT).masked_fill(~real_BT1, 0.0).sum(1)
        mean_BD = total_BD / real_BT1.sum(1).clamp(min=1)
        return SentenceOutput(
            embedding=self.embedding(functional.normalize(mean_BD, dim=-1) if self.normalise else mean_BD)
        )

    def tokenise(self, texts: Sequence[str]) -> dict[str, Tensor]:
        """What :meth:`forward` takes for ``texts``: padded to the longest, and never cut."""
        return tokenised(self.tokenizer, texts, None)

    def save(self, folder: Path) -> Path:
        """Write the encoder into ``folder`` in sentence-transformers' layout of a StaticEmbedding.

        The package averages without special tokens and without a limit of length; so does this encoder.
        """
        inner = folder / "0_StaticEmbedding"
        inner.mkdir(parents=True, exist_ok=True)
        tokenizer = copy.deepcopy(self.tokenizer)
        tokenizer.save_pretrained(inner)
        # a fast tokenizer keeps the padding and the limit of its last call, and the package would cut every text there
        tokenizer.backend_tokenizer.no_truncation()
        tokenizer.backend_tokenizer.no_padding()
        tokenizer.backend_tokenizer.save(str(inner / "tokenizer.json"))
        save_file({TABLE_KEY: self.table.weight.detach().contiguous()}, inner / "model.safetensors")
        parts = [layout.Part("StaticEmbedding", inner)]
        if self.normalise:
            parts.append(layout.Part("Normalize", folder / "1_Normalize"))
            parts[-1].folder.mkdir(exist_ok=True)
        layout.write_parts(folder, parts)
        layout.write_package_settings(folder, {})
        return folder


def static_from_teacher(
    teacher: SentenceEncoder,
    *,
    tokens: Literal["outputs", "inputs"] = "outputs",
    width: int | None = None,
    sif: float | None = 1e-4,
    counts: Sequence[int] | NDArray[np.int64] | None = None,
    normalise: bool = True,
    batch_size: int = 1024,
) -> StaticEncoder:
    """A static student with the teacher's tokenizer, whose table is made from the teacher.

    Args:
        teacher: with its tokenizer.
        tokens: ``outputs``: a token's vector is the teacher's embedding of that token alone (between the special tokens
            that its tokenizer adds, with its dense layers, before it normalises); ``inputs``: its row in the teacher's
            input embeddings.
        width: principal components that are kept, of the table centred over its tokens; None: the table as it is, not
            centred.
        sif: a of the weight a / (a + p) that scales a token of frequency p: frequent tokens say little. None: no
            weights.
        counts: how often each token id occurs ``[V]``, in the transfer set say; None: Zipf's law, taking ids for ranks
            (token r of V has p ∝ 1 / (r + 2)), which holds for vocabularies in the order of frequency alone.
        normalise: scale the embeddings of texts to length 1.
        batch_size: tokens that the teacher embeds at a time.

    Raises:
        ConfigError: no tokenizer; ``width``, ``sif`` or ``counts`` out of range.
        ModelError: as `StaticEncoder`.
    """
    if teacher.tokenizer is None:
        raise ConfigError(
            "the teacher has no tokenizer, whose tokens a static student looks up; give it one: tokenizer=…"
        )
    transformer: Any = teacher.transformer
    inputs = transformer.get_input_embeddings().weight if tokens == "inputs" else None
    if width is not None:  # before the teacher is asked about every token
        _expect_width(width, teacher.width if inputs is None else inputs.shape[1])
    table = _token_outputs(teacher, batch_size) if inputs is None else inputs.detach().double().cpu().numpy()
    if width is not None:
        table = principal_components(table, width)
    if sif is not None:
        table = table * _sif_weights(len(table), sif, counts)[:, None]
    elif counts is not None:
        raise ConfigError(
            "counts are given and 'sif' is None, so nothing would be weighted by them; give sif, such as 1e-4"
        )
    what = "the teacher's output for it alone" if tokens == "outputs" else "the teacher's input embedding"
    note = f"static: each token's vector begins as {what}"
    return StaticEncoder(
        torch.from_numpy(table.astype(np.float32)), teacher.tokenizer, normalise=normalise, notes=(note,)
    )


def special_ids(tokenizer: Any) -> list[int]:
    """The ids that a tokenizer puts around every text."""
    return list(dict.fromkeys(tokenizer("")["input_ids"]))


def principal_components(table_VD: NDArray[np.float64], width: int) -> NDArray[np.float64]:
    """The centred rows of a table in the coordinates of their ``width`` largest principal components.

    Each axis is turned so that its largest coefficient is positive: the signs of eigenvectors are the library's choice
    otherwise.

    Raises:
        ConfigError: ``width`` is not within 1 … D.
    """
    _expect_width(width, table_VD.shape[1])
    centred_VD = table_VD - table_VD.mean(axis=0)
    _, axes_DD = np.linalg.eigh(centred_VD.T @ centred_VD)
    kept_DK = axes_DD[:, ::-1][:, :width]
    largest_K = kept_DK[np.abs(kept_DK).argmax(axis=0), np.arange(width)]
    return centred_VD @ (kept_DK * np.sign(largest_K))


def _expect_width(width: int, most: int) -> None:
    if not 1 <= width <= most:
        raise ConfigError(
            f"a width of {width:,} principal components, expected 1 to {most:,}, the width of the table: there are no more"
        )


def _sif_weights(rows: int, smoothing: float, counts: Sequence[int] | NDArray[np.int64] | None) -> NDArray[np.float64]:
    """a / (a + p) for each token."""
    if not 0.0 < smoothing < 1.0:
        raise ConfigError(
            f"sif = {smoothing:g}, expected a number between 0 and 1, such as 1e-4: with 0 every token weighs 0, and "
            "far above the frequencies all weigh alike"
        )
    occurrences_V = 1.0 / np.arange(2, rows + 2) if counts is None else np.asarray(counts, dtype=np.float64)
    if occurrences_V.shape != (rows,) or (occurrences_V < 0).any() or occurrences_V.sum() <= 0:
        raise ConfigError(
            f"counts of shape {list(occurrences_V.shape)}, expected {rows:,} numbers of 0 or more, one for each row of "
            "the table, not all of them 0: tokens would be weighted by others' frequencies"
        )
    return smoothing / (smoothing + occurrences_V / occurrences_V.sum())


def _token_outputs(teacher: SentenceEncoder, batch_size: int) -> NDArray[np.float64]:
    """The teacher's embedding of each token alone ``[V, D]``, before it is normalised."""
    before, after = _around(teacher.tokenizer)
    vocabulary = len(teacher.tokenizer)
    device = next(teacher.parameters()).device
    dense = [module for module in teacher.after if isinstance(module, Dense)]
    plain = SentenceEncoder(teacher.transformer, pooling=teacher.pooling, after=dense)
    was_training = teacher.training
    teacher.eval()
    rows: list[NDArray[np.float64]] = []
    try:
        with torch.inference_mode():
            for start in range(0, vocabulary, batch_size):
                ids = range(start, min(start + batch_size, vocabulary))
                ids_BT = torch.tensor([[*before, token, *after] for token in ids], device=device)
                output = plain(input_ids=ids_BT, attention_mask=torch.ones_like(ids_BT))
                assert output.embedding is not None
                rows.append(output.embedding.double().cpu().numpy())
    finally:
        teacher.train(was_training)
    return np.concatenate(rows)


def _around(tokenizer: Any) -> tuple[list[int], list[int]]:
    """The special ids that a tokenizer puts before a text and behind it."""
    empty: list[int] = list(tokenizer("")["input_ids"])
    some: list[int] = list(tokenizer("a")["input_ids"])
    before = next((index for index, (one, two) in enumerate(zip(empty, some, strict=False)) if one != two), len(empty))
    return empty[:before], empty[before:]
