"""The files of a sentence-transformers folder: its modules, their settings, and what would change an embedding unseen.

The layout, as the package writes it: ``modules.json`` lists the modules in the order in which they run, each with its
class and its folder; a module's own folder holds its ``config.json`` and weights; ``sentence_bert_config.json`` beside
the transformer has the length at which texts are cut. What these files ask for and this library does not do is refused:
left out, the embeddings would be others than the package's, with nothing to show for it.

Source: sentence-transformers 2.0 to 6.2, ``base/modules`` and ``sentence_transformer/modules``.
"""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any, NamedTuple

from torch import nn

from tutelage.errors import ModelError

MODULES_FILE = "modules.json"
PACKAGE_FILE = "config_sentence_transformers.json"
TRANSFORMER_FILE = "sentence_bert_config.json"

#: Ways of pooling by their key in a folder's config, in the order in which the package concatenates several.
POOLING_KEYS = {
    "pooling_mode_cls_token": "cls",
    "pooling_mode_max_tokens": "max",
    "pooling_mode_mean_tokens": "mean",
    "pooling_mode_mean_sqrt_len_tokens": "mean_sqrt_len_tokens",
}
POOLINGS = tuple(POOLING_KEYS.values())

_KINDS = ("Transformer", "Pooling", "Dense", "Normalize", "StaticEmbedding")
_INPUT = "sentence_embedding"

#: Keys of the transformer's settings beside the length, and what they may say: others run it in another way.
_TRANSFORMER_SETTINGS: dict[str, tuple[Any, ...]] = {
    "transformer_task": ("feature-extraction",),
    "module_output_name": ("token_embeddings",),
    "unpad_inputs": (None, False, True),
}
_TEXT_BY_FORWARD = {"method": "forward", "method_output_name": "last_hidden_state"}

#: Keys of the package's own file that change no embedding (a prompt is added only where one is named).
_PACKAGE_SETTINGS = ("__version__", "model_type", "prompts", "similarity_fn_name")


class Part(NamedTuple):
    """One module of a folder: its class in the package, and where its files are."""

    kind: str
    folder: Path


def read_json(path: Path) -> Any:
    """The contents of a JSON file.

    Raises:
        ModelError: it is not there or no JSON.
    """
    try:
        return json.loads(path.read_text())
    except (OSError, ValueError) as error:
        raise ModelError(
            f"{path} cannot be read ({error}): a sentence encoder's folder needs it to say how the embedding is made; "
            "copy the folder again"
        ) from error


def write_json(path: Path, contents: Any) -> None:
    """Write ``contents`` as JSON, making the folder where it is missing."""
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text(json.dumps(contents, indent=2) + "\n")


def read_parts(folder: Path) -> list[Part]:
    """The modules of a folder in the order in which they run; none where it has no ``modules.json``.

    Raises:
        ModelError: a module of a class that this library does not know.
    """
    if not (folder / MODULES_FILE).is_file():
        return []
    parts: list[Part] = []
    for entry in read_json(folder / MODULES_FILE):
        package, _, kind = str(entry["type"]).rpartition(".")
        if package.partition(".")[0] != "sentence_transformers" or kind not in _KINDS:
            raise ModelError(
                f"{folder / MODULES_FILE} asks for {entry['type']!r}, expected one of {', '.join(_KINDS)} of "
                "sentence_transformers: without it the embeddings would be others than the package's; wrap the "
                "package's own model in a function (python: file.py:function)"
            )
        parts.append(Part(kind, folder / str(entry.get("path", ""))))
    return parts


def write_parts(folder: Path, parts: Sequence[Part]) -> None:
    """Write ``modules.json``; each part's folder is the model's own or inside it."""
    entries = [
        {
            "idx": index,
            "name": str(index),
            "path": "" if part.folder == folder else part.folder.name,
            "type": f"sentence_transformers.models.{part.kind}",
        }
        for index, part in enumerate(parts)
    ]
    write_json(folder / MODULES_FILE, entries)


def read_pooling(folder: Path) -> tuple[str, ...]:
    """The ways of pooling that a folder's config switches on, in the order of concatenation.

    Raises:
        ModelError: another way of pooling, another order, or a pooling that leaves out the prompt.
    """
    config = read_json(folder / "config.json")
    named = config.get("pooling_mode")
    modes: list[str]
    if named is None:
        asked: list[str] = [key for key, on in config.items() if key.startswith("pooling_mode_") and on is True]
        modes = [POOLING_KEYS.get(key, key.removeprefix("pooling_mode_")) for key in asked]
        modes = sorted(modes, key=lambda mode: POOLINGS.index(mode) if mode in POOLINGS else len(POOLINGS)) or ["mean"]
    else:
        modes = [named] if isinstance(named, str) else list(named)
    check_pooling(modes, str(folder / "config.json"))
    if config.get("include_prompt", True) is not True:
        raise ModelError(
            f"{folder / 'config.json'} leaves the prompt's tokens out of the pooling ('include_prompt: false'), "
            "expected true: here a prompt is a part of its text and would be pooled with it; use a model that pools "
            "all its tokens"
        )
    return tuple(modes)


def check_pooling(modes: Sequence[str], where: str) -> None:
    """Raise ModelError unless ``modes`` are known ways of pooling, each once, in the order of concatenation."""
    if not modes or any(mode not in POOLINGS for mode in modes) or list(modes) != [m for m in POOLINGS if m in modes]:
        raise ModelError(
            f"{where} pools by {', '.join(map(repr, modes)) or 'nothing'}, expected one or more of "
            f"{', '.join(POOLINGS)}, in this order: the embedding would be put together differently from the model's "
            "own; use a model that pools so"
        )


def write_pooling(folder: Path, modes: Sequence[str], width: int) -> None:
    """Write a pooling's config with the keys that every version reads; ``width`` is the transformer's."""
    flags = {key: mode in modes for key, mode in POOLING_KEYS.items()}
    write_json(folder / "config.json", {"word_embedding_dimension": width, **flags, "include_prompt": True})


class DenseSettings(NamedTuple):
    """What a dense layer's config says."""

    in_features: int
    out_features: int
    bias: bool
    activation: nn.Module


def read_dense(folder: Path) -> DenseSettings:
    """A dense layer's settings.

    Raises:
        ModelError: an activation that is not one of torch's, a residual connection, or other inputs than the pooled
            embedding.
    """
    path = folder / "config.json"
    config = read_json(path)
    name = str(config.get("activation_function", "torch.nn.modules.activation.Tanh"))
    package, _, kind = name.rpartition(".")
    known = package == "torch.nn.modules.activation" or name == "torch.nn.modules.linear.Identity"
    activation: Any = getattr(nn, kind, None) if known else None
    if activation is None:
        raise ModelError(
            f"{path} has the activation {name!r}, expected one of torch.nn's: another would be put in its place; save "
            "the layer with one of those"
        )
    for key, only in (("use_residual", False), ("module_input_name", _INPUT), ("module_output_name", _INPUT)):
        if config.get(key) not in (None, only):
            raise ModelError(
                f"{path} has {key} = {config[key]!r}, expected {only!r}: the layer would be left out or wrongly "
                "connected; use a model whose dense layers stand one after another behind the pooling"
            )
    return DenseSettings(
        int(config["in_features"]), int(config["out_features"]), bool(config.get("bias", True)), activation()
    )


def write_dense(folder: Path, settings: DenseSettings) -> None:
    """Write a dense layer's config."""
    kind = type(settings.activation)
    config = {
        "in_features": settings.in_features,
        "out_features": settings.out_features,
        "bias": settings.bias,
        "activation_function": f"{kind.__module__}.{kind.__qualname__}",
    }
    write_json(folder / "config.json", config)


class TransformerSettings(NamedTuple):
    """Beside a transformer: at how many tokens texts are cut (None: not said), and whether they are written small."""

    max_length: int | None
    lower_case: bool


def read_transformer(folder: Path) -> TransformerSettings:
    """A transformer's settings; the file is named after the model in old folders.

    Raises:
        ModelError: it is run in another way than this library runs it.
    """
    path = next(iter(sorted(folder.glob("sentence_*_config.json"))), None)
    config = {} if path is None else read_json(path)
    for key, value in config.items():
        if key in ("max_seq_length", "do_lower_case") or value in (None, {}, []):
            continue
        if key == "modality_config" and value.get("text") == _TEXT_BY_FORWARD:
            continue
        if value not in _TRANSFORMER_SETTINGS.get(key, ()):
            raise ModelError(
                f"{path} has {key} = {value!r}, which this library does not do: the embeddings would be others than "
                "the package's; save the model without it"
            )
    return TransformerSettings(config.get("max_seq_length"), bool(config.get("do_lower_case", False)))


def write_transformer(folder: Path, max_length: int | None) -> None:
    """Write the length at which texts are cut."""
    write_json(folder / TRANSFORMER_FILE, {"max_seq_length": max_length, "do_lower_case": False})


def read_package_settings(folder: Path) -> dict[str, Any]:
    """The package's own settings, to be written again with a student.

    Raises:
        ModelError: a prompt that the package puts before every text, a model of another kind, or settings that this
            library does not know.
    """
    path = folder / PACKAGE_FILE
    settings: dict[str, Any] = read_json(path) if path.is_file() else {}
    prompt = settings.get("default_prompt_name")
    if prompt is not None:
        raise ModelError(
            f"{path} puts the prompt {prompt!r} before every text, and this library embeds texts as they stand: the "
            "teacher would be another than the package's; write the prompt into the texts and set default_prompt_name "
            "to null"
        )
    if settings.get("model_type", "SentenceTransformer") != "SentenceTransformer":
        raise ModelError(
            f"{path} is a {settings['model_type']}'s, expected a SentenceTransformer's: it gives no one embedding a "
            "text; a reranker is loaded as a classifier"
        )
    unknown = [
        key for key, value in settings.items() if key not in (*_PACKAGE_SETTINGS, "default_prompt_name") and value
    ]
    if unknown:
        raise ModelError(
            f"{path} sets {', '.join(unknown)}, which this library does not know: the embeddings may be others than "
            "the package's; save the model without it"
        )
    return settings


def write_package_settings(folder: Path, settings: Mapping[str, Any]) -> None:
    """Write the package's own settings, of a model compared by cosine where they do not say otherwise."""
    defaults = {"prompts": {}, "default_prompt_name": None, "similarity_fn_name": "cosine"}
    given = {key: value for key, value in settings.items() if value is not None}
    write_json(folder / PACKAGE_FILE, defaults | given)
