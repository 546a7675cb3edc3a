"""Masked language models: loaded, made of another model's encoder, and their encoder given back."""

from __future__ import annotations

import copy
from collections.abc import Mapping
from typing import Any

import torch
from torch import Tensor, nn

from tutelage.errors import ModelError
from tutelage.models.calling import unwrapped
from tutelage.models.loading import ModelSource, load_model

_SHOWN = 3


def load_masked_language_model(source: ModelSource | Mapping[str, Any], *, trained: bool = False, seed: int = 0) -> Any:
    """The masked language model that a source names; fresh weights are drawn under ``seed``, without touching the global generator.

    An encoder without a head (a sentence encoder's folder) gets one where it is to be ``trained`` yet: its output layer is then the
    embeddings, as far as the config ties them, and the layers before it are drawn.

    Args:
        source: a :class:`ModelSource`, or its fields as a mapping, as a config has them. A ``python`` function returns a model of
            transformers, or any module that takes ``input_ids`` and ``attention_mask`` and gives logits ``[B, T, C]``.
        trained: refuse a hub model some of whose weights are not in its files: a head that was never trained would teach noise.
        seed: seeds the initialisation.

    Raises:
        ConfigError: the file, function or combination of keys is wrong.
        ModelError: the weights do not fit, are damaged, lacking, or are pickled without ``allow_pickle``; there is no masked language
            model of that architecture.
    """
    return load_model(source, seed=seed, trained=trained, task="masked_language_model")


def encoder_of(model: nn.Module) -> Any:
    """The encoder in a model, without head: a ``PreTrainedModel``, which may be all of it.

    Args:
        model: of transformers, or a module that holds exactly one such model.

    Raises:
        ModelError: it holds none, or several.
    """
    from transformers import PreTrainedModel

    inner = unwrapped(model)
    held = {name: part for name, part in inner.named_modules() if isinstance(part, PreTrainedModel)}
    outer = [name for name in held if not any(_inside(name, other) for other in held)]
    if len(outer) != 1:
        found = ", ".join(repr(name) for name in outer) or "none"
        raise ModelError(
            f"{type(inner).__name__} holds {len(outer)} models of transformers ({found}), expected one: which encoder is meant cannot be "
            "told; give a model of AutoModelForSequenceClassification, or a module around one encoder"
        )
    return held[outer[0]].base_model


def masked_language_student(student: nn.Module, teacher: nn.Module | None = None) -> Any:
    """A masked language model around a copy of a student's encoder; its output layer is its embeddings (Press and Wolf 2017).

    What stands between encoder and output layer is copied from the teacher where it has the same layers there, as DistilBERT's was, and
    else drawn from torch's generator; whether the teacher's own output layer is its embeddings does not matter.

    Args:
        student: a model with one encoder of transformers, such as a classifier's; it is as before afterwards.
        teacher: a masked language model; None for a head that is drawn.

    Returns:
        A ``PreTrainedModel`` in train mode, all of whose weights are to be trained.

    Raises:
        ModelError: there is no masked language model of the encoder's architecture, or it needs weights that the encoder lacks.
    """
    from transformers import AutoModelForMaskedLM

    encoder = encoder_of(student)
    config = copy.deepcopy(encoder.config)
    config.tie_word_embeddings = True
    try:
        model: Any = AutoModelForMaskedLM.from_config(
            config, dtype=encoder.dtype, attn_implementation=encoder.config._attn_implementation
        )
    except (ImportError, RuntimeError, ValueError) as error:
        reason = next(iter(str(error).splitlines()), type(error).__name__)
        raise ModelError(
            f"of {type(encoder).__name__} transformers has no masked language model ({reason}): a stage before the task would have nothing "
            "to train; leave the stage out, or take a student of BERT's, RoBERTa's, DistilBERT's or ModernBERT's kind"
        ) from error
    _copy(encoder, model.base_model, f"the encoder of {type(unwrapped(student)).__name__}", type(model).__name__)
    if teacher is not None and begins_with_head(model, teacher):
        theirs = _head(unwrapped(teacher))
        with torch.no_grad():
            for name, values in _head(model).items():
                values.copy_(theirs[name])
    model.tie_weights()
    return model.requires_grad_(True).train()


def begins_with_head(model: nn.Module, teacher: nn.Module) -> bool:
    """Whether what stands between encoder and output layer is copied from this teacher by :func:`masked_language_student`, and not drawn.

    Args:
        model: the masked language model that was made.
        teacher: a masked language model.
    """
    teacher = unwrapped(teacher)
    ours, theirs = _head(unwrapped(model)), _head(teacher) if hasattr(teacher, "base_model_prefix") else {}
    # BERT's bias stands there a second time, unused, where the output layer is not the embeddings
    return ours.keys() <= theirs.keys() and all(ours[name].shape == theirs[name].shape for name in ours)


def carry_over(stage_model: nn.Module, student: nn.Module) -> Any:
    """Put the encoder that a stage has trained into a student, whose head and pooler stay as they are.

    Args:
        stage_model: a masked language model, or another with one encoder of transformers.
        student: with an encoder of the same shape; changed in place.

    Returns:
        The student.

    Raises:
        ModelError: the encoders are of different kinds, or some weights of one have no place in the other: a student half trained would
            pass for a trained one.
    """
    _copy(encoder_of(stage_model), encoder_of(student), "the encoder of the stage", type(unwrapped(student)).__name__)
    return student


def _inside(name: str, other: str) -> bool:
    return name != other and (other == "" or name.startswith(f"{other}."))


def _copy(source: Any, target: Any, what: str, whose: str) -> None:
    """Copy one encoder's weights into another; modules that only one of them has at all (a pooler) are left out."""
    if source.config.model_type != target.config.model_type:
        raise ModelError(
            f"{what} is a {type(source).__name__}, and that of {whose} a {type(target).__name__}: weights of one name would mean another "
            "thing; let both be made by the same 'student' section"
        )
    given: dict[str, Tensor] = source.state_dict()
    own: dict[str, Tensor] = target.state_dict()
    both = {_part(name) for name in given} & {_part(name) for name in own}
    missing = [name for name in own if name not in given and _part(name) in both]
    surplus = [name for name in given if name not in own and _part(name) in both]
    other = [name for name in given if name in own and given[name].shape != own[name].shape]
    wrong = [f"{len(surplus)} have no place there ({_some(surplus)})"] if surplus else []
    wrong += [f"{len(missing)} of that one's are not there ({_some(missing)})"] if missing else []
    wrong += (
        [
            f"{len(other)} have another shape ({other[0]}: {tuple(given[other[0]].shape)} for {tuple(own[other[0]].shape)})"
        ]
        if other
        else []
    )
    if wrong or not both:
        raise ModelError(
            f"{what} does not fit into that of {whose}: of its weights {' and '.join(wrong) or 'none is known there'}. Some layers would "
            "be trained and others not, without a word; let both be made by the same 'student' section"
        )
    with torch.no_grad():
        for name, values in given.items():
            if name in own:
                own[name].copy_(values)


def _head(model: Any) -> dict[str, Tensor]:
    """The parameters outside the encoder but the output layer's weight; that layer's bias goes by one name in all models."""
    prefix, output = f"{model.base_model_prefix}.", model.get_output_embeddings()
    weight, bias = getattr(output, "weight", None), getattr(output, "bias", None)
    return {
        "output bias" if values is bias else name: values
        for name, values in model.named_parameters()
        if values is not weight and not name.startswith(prefix)
    }


def _part(name: str) -> str:
    return name.partition(".")[0]


def _some(names: list[str]) -> str:
    return ", ".join(names[:_SHOWN]) + (", …" if names[_SHOWN:] else "")
