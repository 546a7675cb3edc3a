"""Sentence encoders: a transformer, a pooling over its real tokens, and what follows; one embedding a text.

They are what a sentence-transformers folder holds, without that package: `tutelage.models.sentence_folders` loads them,
and what
``save`` writes is opened by the package's own loader.
"""

from __future__ import annotations

import copy
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Protocol

import numpy as np
import torch
from numpy.typing import NDArray
from safetensors.torch import save_file
from torch import Tensor, nn
from torch.nn import functional
from transformers.utils.generic import ModelOutput

from tutelage.errors import ConfigError, ModelError
from tutelage.models import sentence_layout as layout
from tutelage.models.calling import describe_output, run_model

_ASKED = ("output_hidden_states", "output_attentions")


@dataclass
class SentenceOutput(ModelOutput):
    """What a sentence encoder gives: a mapping, and attributes.

    Args:
        embedding: ``[B, D]``, one row a text.
        hidden_states: of the transformer's embeddings and layers, ``[B, T, H]`` each; where they were asked for.
        attentions: of the transformer's layers, ``[B, heads, T, T]`` each; where they were asked for.
    """

    embedding: Tensor | None = None
    hidden_states: tuple[Tensor, ...] | None = None
    attentions: tuple[Tensor, ...] | None = None


class Normalise(nn.Module):
    """Scale each embedding ``[B, D]`` to length 1; a vector of zeros stays one."""

    def forward(self, embedding: Tensor) -> Tensor:
        """``[B, D]`` of length 1."""
        return functional.normalize(embedding, dim=-1)


class Dense(nn.Module):
    """A linear layer on the pooled embedding, and an activation.

    Args:
        in_features: width of what comes in.
        out_features: width of what goes out.
        bias: whether the layer has one.
        activation: a module without weights; the hyperbolic tangent where none is given, as in the package.
    """

    def __init__(
        self, in_features: int, out_features: int, bias: bool = True, activation: nn.Module | None = None
    ) -> None:
        super().__init__()
        self.linear = nn.Linear(in_features, out_features, bias)
        self.activation = nn.Tanh() if activation is None else activation

    def forward(self, embedding: Tensor) -> Tensor:
        """``[B, in]`` to ``[B, out]``."""
        return self.activation(self.linear(embedding))


def pooled(hidden_BTD: Tensor, mask_BT: Tensor, modes: Sequence[str]) -> Tensor:
    """One vector a text from its tokens' hidden states; what stands at padding, NaN included, does not enter.

    Args:
        hidden_BTD: ``[B, T, D]``.
        mask_BT: ``[B, T]``, not 0 at real tokens. A text without one gets zeros.
        modes: of ``cls`` (the first real token, so that padding may stand on either side), ``max``, ``mean`` and
            ``mean_sqrt_len_tokens`` (the sum over √length); several are concatenated.

    Returns:
        ``[B, len(modes) · D]``.
    """
    real_BT1 = (mask_BT != 0).unsqueeze(-1)
    count_B1 = real_BT1.sum(1).clamp(min=1).to(hidden_BTD.dtype)
    vectors: list[Tensor] = []
    for mode in modes:
        if mode == "cls":
            first_B = real_BT1.squeeze(-1).to(torch.int32).argmax(1)
            vectors.append(hidden_BTD[torch.arange(len(hidden_BTD), device=hidden_BTD.device), first_B])
        elif mode == "max":
            highest_BD = hidden_BTD.masked_fill(~real_BT1, -torch.inf).amax(1)
            vectors.append(highest_BD.masked_fill(~real_BT1.any(1), 0.0))
        else:
            total_BD = hidden_BTD.masked_fill(~real_BT1, 0.0).sum(1)
            vectors.append(total_BD / (count_B1 if mode == "mean" else count_B1.sqrt()))
    return torch.cat(vectors, dim=-1)


class SentenceEncoder(nn.Module):
    """A transformer whose hidden states are pooled over the real tokens of a text, with what follows.

    The embedding passes through a submodule named ``embedding``, so that a term can listen to it by that name as to any
    layer; by ``hidden_states.I`` and ``attentions.I`` it hears the transformer's.

    Args:
        transformer: a model of transformers that gives ``last_hidden_state`` ``[B, T, H]``.
        pooling: as for :func:`pooled`.
        after: dense layers and normalisations, in the order in which they run.
        tokenizer: the transformer's, needed to embed texts and to save; None where neither is done.
        max_length: tokens at which a text is cut; None: nowhere.
        settings: of the package, kept for :meth:`save`.
        notes: what the user should be told about how it was loaded.

    Raises:
        ModelError: an unknown pooling, or a dense layer of another width than what comes in.
    """

    def __init__(
        self,
        transformer: nn.Module,
        *,
        pooling: str | Sequence[str] = "mean",
        after: Sequence[Dense | Normalise] = (),
        tokenizer: Any = None,
        max_length: int | None = None,
        settings: Mapping[str, Any] | None = None,
        notes: Sequence[str] = (),
    ) -> None:
        super().__init__()
        self.transformer = transformer
        self.pooling = (pooling,) if isinstance(pooling, str) else tuple(pooling)
        layout.check_pooling(self.pooling, "the sentence encoder")
        self.after = nn.ModuleList(after)
        self.embedding = nn.Identity()
        self.tokenizer = tokenizer
        self.max_length = max_length
        self.settings = dict(settings or {})
        self.notes = tuple(notes)
        self.width = self._width()

    @property
    def config(self) -> Any:
        """The transformer's config."""
        return self.transformer.config

    def forward(self, **inputs: Any) -> SentenceOutput:
        """The embedding of each text.

        Args:
            inputs: what a tokenizer gives, ``[B, T]`` each: ``input_ids``, ``attention_mask``, and others that reach
                the transformer where its ``forward`` takes them; ``output_hidden_states`` and ``output_attentions`` as
                of any model of transformers.

        Raises:
            ModelError: no ``attention_mask``, or hidden states of another shape.
        """
        tensors = {name: value for name, value in inputs.items() if isinstance(value, Tensor)}
        mask_BT = expected_mask(self, tensors)
        output = run_model(self.transformer, tensors, **{name: inputs[name] for name in _ASKED if name in inputs})
        hidden_BTD = getattr(output, "last_hidden_state", None)
        if not isinstance(hidden_BTD, Tensor) or hidden_BTD.shape[:2] != mask_BT.shape:
            raise ModelError(
                f"{type(self.transformer).__name__} gave {describe_output(output)}, expected last_hidden_state [texts, "
                f"tokens, width] for the attention mask {list(mask_BT.shape)}: real tokens could not be told from "
                "padding; use an encoder of AutoModel"
            )
        embedding_BD = pooled(hidden_BTD, mask_BT, self.pooling)
        for module in self.after:
            embedding_BD = module(embedding_BD)
        return SentenceOutput(
            embedding=self.embedding(embedding_BD),
            hidden_states=getattr(output, "hidden_states", None),
            attentions=getattr(output, "attentions", None),
        )

    def tokenise(self, texts: Sequence[str]) -> dict[str, Tensor]:
        """What :meth:`forward` takes for ``texts``: padded to the longest, cut at ``max_length``."""
        return tokenised(self.tokenizer, texts, self.max_length)

    def save(self, folder: Path) -> Path:
        """Write the encoder in sentence-transformers' layout, which the package and `load_sentence_encoder` open.

        Raises:
            ConfigError: it has no tokenizer.
        """
        if self.tokenizer is None:
            raise ConfigError(
                "the sentence encoder has no tokenizer to be saved with, and would embed no text when it is opened; "
                "give it one: SentenceEncoder(…, tokenizer=…)"
            )
        transformer: Any = self.transformer
        transformer.save_pretrained(folder)
        tokenizer = copy.deepcopy(self.tokenizer)
        if self.max_length is not None:
            tokenizer.model_max_length = self.max_length
        tokenizer.save_pretrained(folder)
        layout.write_transformer(folder, self.max_length)
        parts = [layout.Part("Transformer", folder), layout.Part("Pooling", folder / "1_Pooling")]
        layout.write_pooling(parts[1].folder, self.pooling, _hidden_width(self.transformer))
        for module in self.after:
            kind = "Dense" if isinstance(module, Dense) else "Normalize"
            parts.append(layout.Part(kind, folder / f"{len(parts)}_{kind}"))
            _save_after(module, parts[-1].folder)
        layout.write_parts(folder, parts)
        layout.write_package_settings(folder, self.settings)
        return folder

    def _width(self) -> int:
        width = len(self.pooling) * _hidden_width(self.transformer)
        for module in self.after:
            if isinstance(module, Dense):
                if module.linear.in_features != width:
                    raise ModelError(
                        f"a dense layer takes embeddings of width {module.linear.in_features:,} and gets {width:,}: "
                        "the encoder would fail on its first batch; keep the transformer's width, or leave the dense "
                        "layers out and learn a projection"
                    )
                width = module.linear.out_features
        return width


def with_transformer(encoder: SentenceEncoder, transformer: nn.Module, tokenizer: Any = None) -> SentenceEncoder:
    """A sentence encoder that pools and projects as ``encoder`` does, around another transformer (a cut one, say).

    Args:
        encoder: whose pooling, dense layers (copied), normalisation, settings and lengths are taken.
        transformer: not copied.
        tokenizer: the transformer's own, where its vocabulary was cut; the encoder's where None.

    Raises:
        ModelError: the transformer has another width than the encoder's dense layers take.
    """
    return SentenceEncoder(
        transformer,
        pooling=encoder.pooling,
        after=[copy.deepcopy(module) for module in encoder.after if isinstance(module, Dense | Normalise)],
        tokenizer=encoder.tokenizer if tokenizer is None else tokenizer,
        max_length=encoder.max_length,
        settings=encoder.settings,
        notes=encoder.notes,
    )


class Embeds(Protocol):
    """A module that embeds what its own ``tokenise`` makes of texts."""

    def tokenise(self, texts: Sequence[str]) -> dict[str, Tensor]:
        """What its forward takes."""
        ...


def embed_texts(encoder: Embeds, texts: Sequence[str], *, batch_size: int = 64) -> NDArray[np.float32]:
    """The embeddings ``[N, D]`` of ``texts``, in evaluation mode and without gradients; the mode is put back.

    Texts of like length share a batch, so that little is computed on padding.
    """
    module: Any = encoder
    device = next(module.parameters()).device
    was_training = module.training
    order = sorted(range(len(texts)), key=lambda row: len(texts[row]))
    rows: list[NDArray[np.float32]] = []
    module.eval()
    try:
        with torch.inference_mode():
            for start in range(0, len(order), batch_size):
                inputs = encoder.tokenise([texts[row] for row in order[start : start + batch_size]])
                output = module(**{name: tensor.to(device) for name, tensor in inputs.items()})
                rows.append(output["embedding"].float().cpu().numpy())
    finally:
        module.train(was_training)
    embeddings = np.concatenate(rows) if rows else np.zeros((0, module.width), np.float32)
    return embeddings[np.argsort(order, kind="stable")] if rows else embeddings


def longest_text(transformer: Any) -> int | None:
    """Tokens of the longest text that a transformer has positions for; None where it does not say."""
    most = getattr(getattr(transformer, "config", None), "max_position_embeddings", None)
    if not isinstance(most, int):
        return None
    tables = (part for name, part in transformer.named_modules() if name.endswith("position_embeddings"))
    paddings = [place for table in tables if (place := getattr(table, "padding_idx", None)) is not None]
    # RoBERTa and its kin count positions from behind the padding token's number
    return most - max(paddings) - 1 if paddings else most


def tokenised(tokenizer: Any, texts: Sequence[str], max_length: int | None) -> dict[str, Tensor]:
    """``texts`` as named tensors ``[B, T]``, padded to the longest, and cut where a length is given.

    Raises:
        ConfigError: there is no tokenizer.
    """
    if tokenizer is None:
        raise ConfigError("the sentence encoder has no tokenizer, so no text can be embedded; give it one: tokenizer=…")
    cut: dict[str, Any] = {} if max_length is None else {"truncation": True, "max_length": max_length}
    return dict(tokenizer(list(texts), padding=True, return_tensors="pt", **cut))


def expected_mask(encoder: nn.Module, inputs: Mapping[str, Tensor]) -> Tensor:
    """The attention mask ``[B, T]`` among ``inputs``.

    Raises:
        ModelError: there is none.
    """
    if "attention_mask" not in inputs:
        raise ModelError(
            f"{type(encoder).__name__} got {', '.join(map(repr, inputs)) or 'nothing'} and no 'attention_mask': "
            "padding would be averaged with the text; give everything that the tokenizer returns"
        )
    return inputs["attention_mask"]


def _hidden_width(transformer: nn.Module) -> int:
    config: Any = getattr(transformer, "config", None)
    width = getattr(config, "hidden_size", None)
    if not isinstance(width, int):
        raise ModelError(
            f"{type(transformer).__name__} has no config with a hidden_size, so the width of its embeddings is not "
            "known; use an encoder of AutoModel"
        )
    return width


def _save_after(module: nn.Module, folder: Path) -> None:
    folder.mkdir(parents=True, exist_ok=True)
    if isinstance(module, Dense):
        weights = {name: value.contiguous() for name, value in module.state_dict().items()}
        linear, bias = module.linear, "linear.bias" in weights
        layout.write_dense(
            folder, layout.DenseSettings(linear.in_features, linear.out_features, bias, module.activation)
        )
        save_file(weights, folder / "model.safetensors")
