"""Load a sentence encoder: a folder of sentence-transformers or of transformers, a hub id, a function in a file."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import fields
from pathlib import Path
from typing import Any

import torch
from safetensors import SafetensorError
from safetensors.torch import load_file
from torch import nn

from tutelage.errors import ConfigError, ModelError
from tutelage.models import sentence_layout as layout
from tutelage.models.hub import expect_hub
from tutelage.models.loading import ModelSource, load_model, load_weights
from tutelage.models.sentence import Dense, Normalise, SentenceEncoder, longest_text
from tutelage.models.sentence_static import TABLE_KEY, StaticEncoder

#: Files of a hub model that are read; its exports in other formats are not fetched.
_WANTED = ("*.json", "*.safetensors", "*.txt", "*.model")
_UNWANTED = ("onnx/*", "openvino/*")

#: Weights that no pooling uses, and that a checkpoint of a masked language model lacks.
_UNUSED = "pooler."


def load_sentence_encoder(source: str | Path | ModelSource | Mapping[str, Any], *, seed: int = 0) -> Any:
    """The sentence encoder that a source names, in float32 unless its ``arguments`` have another ``dtype``.

    A folder with ``modules.json`` is loaded as sentence-transformers would: a transformer with its pooling, dense
    layers and normalisation, or a StaticEmbedding. A plain transformers folder becomes an encoder that averages the
    last hidden states over the real tokens, and says so in its ``notes``.

    Args:
        source: a folder or hub id, a `ModelSource`, or its fields as a mapping. Of a hub model, ``arguments`` override
            the transformer's config, or say how it is loaded (``dtype``, ``attn_implementation``); a ``python``
            function returns any module whose forward takes what a tokenizer gives and returns a mapping with
            ``"embedding"`` ``[B, D]``.
        seed: seeds a ``python`` function's initialisation.

    Returns:
        A `SentenceEncoder`, a `StaticEncoder`, or whatever module the function builds.

    Raises:
        ConfigError: the folder, hub id, function or combination of keys is wrong.
        ModelError: weights that are missing or damaged, or a folder that asks for what this library does not do.
    """
    if isinstance(source, str | Path):
        source = ModelSource(hub=str(source))
    elif not isinstance(source, ModelSource):
        source = _from_mapping(source)
    if source.hub is None:
        return load_model(source, seed=seed)
    folder = _folder(source)
    parts = layout.read_parts(folder)
    kinds = [part.kind for part in parts]
    if kinds and kinds[0] == "StaticEmbedding":
        encoder: nn.Module = _static(parts, source)
    elif not kinds:
        encoder = _plain(folder, source)
    elif kinds[:2] == ["Transformer", "Pooling"] and set(kinds[2:]) <= {"Dense", "Normalize"}:
        encoder = _whole(folder, parts, source)
    else:
        raise ModelError(
            f"{folder / layout.MODULES_FILE} runs {', '.join(kinds)}, expected a Transformer, a Pooling, and then "
            "Dense and Normalize in any number, or a StaticEmbedding: other modules would be left out or run in "
            "another order; use a model of this form"
        )
    if source.checkpoint is not None:
        load_weights(encoder, source.folder / source.checkpoint, allow_pickle=source.allow_pickle)
    return encoder


def _from_mapping(source: Mapping[str, Any]) -> ModelSource:
    known = [item.name for item in fields(ModelSource)]
    unknown = [key for key in source if key not in known]
    if unknown:
        raise ConfigError(f"a model has no key {unknown[0]!r}; there are {', '.join(known)}")
    given: dict[str, Any] = {**source, "folder": Path(source.get("folder", "."))}
    return ModelSource(**given)


def _folder(source: ModelSource) -> Path:
    """The files of a source, fetched from the hub where they are not on the disk."""
    assert source.hub is not None
    local = source.folder / source.hub
    if local.is_dir():
        return local
    expect_hub(source.hub, source.folder)
    from huggingface_hub import snapshot_download

    try:
        fetched = snapshot_download(
            source.hub, revision=source.revision, allow_patterns=list(_WANTED), ignore_patterns=list(_UNWANTED)
        )
    except (OSError, ValueError) as error:
        raise ModelError(
            f"'hub: {source.hub}' could not be loaded: {error}. Expected a folder, or the id of a model on the hub "
            f"(reachable, or already in the cache when offline); {local} is not a folder"
        ) from error
    return Path(fetched)


def _whole(folder: Path, parts: list[layout.Part], source: ModelSource) -> SentenceEncoder:
    settings = layout.read_package_settings(folder)
    home = parts[0].folder
    transformer, tokenizer = _transformer(home, source), _tokenizer(home)
    stated = layout.read_transformer(home)
    if stated.lower_case and tokenizer.tokenize("THE Text") != tokenizer.tokenize("the text"):
        raise ModelError(
            f"{home} asks for texts in small letters ('do_lower_case') of a tokenizer that keeps capitals: the package "
            "would put that before it, and here capitals would reach the model; save the tokenizer with a normaliser "
            "that writes them small"
        )
    return SentenceEncoder(
        transformer,
        pooling=layout.read_pooling(parts[1].folder),
        after=[_after(part, source) for part in parts[2:]],
        tokenizer=tokenizer,
        max_length=stated.max_length or _max_length(transformer, tokenizer),
        settings=settings,
    )


def _plain(folder: Path, source: ModelSource) -> SentenceEncoder:
    transformer, tokenizer = _transformer(folder, source), _tokenizer(folder)
    note = f"{source.hub} has no modules.json: its embedding is the mean of the last hidden states over the real tokens"
    return SentenceEncoder(
        transformer, tokenizer=tokenizer, max_length=_max_length(transformer, tokenizer), notes=(note,)
    )


def _static(parts: list[layout.Part], source: ModelSource) -> StaticEncoder:
    kinds = [part.kind for part in parts[1:]]
    if kinds not in ([], ["Normalize"]) or source.arguments:
        raise ModelError(
            f"'hub: {source.hub}' has {', '.join(kinds) or 'nothing'} behind its StaticEmbedding and the arguments "
            f"{dict(source.arguments)}, expected at most a Normalize, and no arguments: they would be ignored; leave "
            "them out"
        )
    path = parts[0].folder / "model.safetensors"
    try:
        weights = load_file(path)
    except (OSError, SafetensorError) as error:
        raise ModelError(
            f"{path} is not a readable safetensors file ({error}): the table of tokens is in it; copy the folder again"
        ) from error
    # model2vec's own folders have another name for it
    key = TABLE_KEY if TABLE_KEY in weights else "embeddings"
    if set(weights) != {key}:
        raise ModelError(
            f"{path} holds {', '.join(sorted(weights))}, expected {TABLE_KEY!r} alone: the vectors would be used "
            "without what belongs to them; save the model with sentence-transformers"
        )
    return StaticEncoder(weights[key].float(), _static_tokenizer(parts[0].folder), normalise=kinds == ["Normalize"])


def _static_tokenizer(folder: Path) -> Any:
    if (folder / "tokenizer_config.json").is_file():
        tokenizer = _tokenizer(folder)
    else:
        from transformers import PreTrainedTokenizerFast

        tokenizer = PreTrainedTokenizerFast(tokenizer_file=str(folder / "tokenizer.json"))
    if tokenizer.pad_token is None:
        # what stands at padding never enters the mean, so that any token may
        tokenizer.pad_token = tokenizer.convert_ids_to_tokens(0)
    return tokenizer


def _transformer(folder: Path, source: ModelSource) -> Any:
    """The transformer of a folder; weights that no pooling uses are drawn without touching the global generator."""
    from transformers import AutoConfig, AutoModel

    loading = {name: source.arguments[name] for name in ("dtype", "attn_implementation") if name in source.arguments}
    overrides = {name: value for name, value in source.arguments.items() if name not in loading}
    try:
        config, unused = AutoConfig.from_pretrained(
            str(folder), trust_remote_code=False, return_unused_kwargs=True, **overrides
        )
        if unused:
            raise ConfigError(
                f"'hub: {source.hub}': the config of {type(config).__name__} has no {', '.join(map(repr, unused))}, "
                "which would be ignored; correct the name in 'arguments'"
            )
        with torch.random.fork_rng(devices=range(torch.cuda.device_count())):
            torch.manual_seed(0)
            model, found = AutoModel.from_pretrained(
                str(folder),
                config=config,
                output_loading_info=True,
                trust_remote_code=False,
                use_safetensors=not source.allow_pickle or None,
                **{"dtype": "float32"} | loading,
            )
    except ConfigError:
        raise
    except (ImportError, OSError, ValueError, KeyError, RuntimeError, SafetensorError) as error:
        raise ModelError(
            f"'hub: {source.hub}' could not be loaded: {error}. Expected a folder with a transformer's config and "
            "weights; they are read from safetensors unless 'allow_pickle: true'"
        ) from error
    missing = sorted(name for name in found["missing_keys"] if not name.startswith(_UNUSED))
    if missing:
        raise ModelError(
            f"'hub: {source.hub}' lacks {len(missing):,} of the weights of {type(model).__name__} "
            f"({', '.join(missing[:3])}): they would be random, and so would the embeddings; give a trained model"
        )
    return model


def _tokenizer(folder: Path) -> Any:
    from transformers import AutoTokenizer

    try:
        tokenizer: Any = AutoTokenizer.from_pretrained(str(folder))
    except Exception as error:  # a tokenizer's files fail in ways of their own
        raise ModelError(
            f"no tokenizer could be loaded from {folder}: {error}. A sentence encoder needs the one that it was "
            "trained with; save it beside the model"
        ) from error
    # where a folder has none of its files, transformers makes one up
    if len(tokenizer) <= len(tokenizer.all_special_ids):
        raise ModelError(
            f"{folder} has no tokenizer, or one with no token but its {len(tokenizer)} special ones: every word would "
            "be unknown and all texts one; save the tokenizer that the model was trained with beside it"
        )
    return tokenizer


def _max_length(transformer: Any, tokenizer: Any) -> int | None:
    """The tokens at which a text is cut where the folder does not say: what tokenizer and positions both allow."""
    both = (tokenizer.model_max_length, longest_text(transformer))
    lengths = [length for length in both if length and length < 1_000_000]
    return min(lengths, default=None)


def _after(part: layout.Part, source: ModelSource) -> Dense | Normalise:
    if part.kind == "Normalize":
        return Normalise()
    module = Dense(*layout.read_dense(part.folder))
    weights = part.folder / "model.safetensors"
    if not weights.is_file() and source.allow_pickle:
        weights = part.folder / "pytorch_model.bin"
    load_weights(module, weights, allow_pickle=source.allow_pickle)
    return module
