"""Is a Hugging Face model what its config says? Programs that read the folder build that, and see nothing else."""

from __future__ import annotations

import copy
from collections.abc import Mapping, Sized
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn

from tutelage.errors import ExportError

#: The Auto classes for a class of model, the more telling first.
_AUTO_CLASSES = (
    "AutoModelForCausalLM",
    "AutoModelForSequenceClassification",
    "AutoModelForImageClassification",
    "AutoModelForTokenClassification",
    "AutoModelForMultipleChoice",
    "AutoModelForQuestionAnswering",
    "AutoModelForMaskedLM",
    "AutoModelForSeq2SeqLM",
    "AutoModelForAudioClassification",
    "AutoModelForVideoClassification",
    "AutoModelForImageTextToText",
    "AutoModel",
)

#: Modules whose children are all run, whatever they are called.
_CONTAINERS = (nn.Sequential, nn.ModuleList, nn.ModuleDict, nn.ParameterList, nn.ParameterDict)

#: How far the answers of equal weights may lie apart, as a part of the largest, in roundings of their type.
_ROUNDINGS = 8

_READERS = "vLLM, llama.cpp's converter and the Auto classes"


def auto_class(model: Any) -> Any:
    """The Auto class that builds ``model``'s class from its config.

    Raises:
        ExportError: none does, because the class is the user's own, an adapter's, or lives in a model's repository.
    """
    import transformers

    kind = type(model)
    if "peft" in kind.__module__.split(".")[0] or getattr(model, "_hf_peft_config_loaded", False):
        raise ExportError(
            f"{kind.__name__} carries adapters (PEFT): its folder would hold them without the model, or a model without them; merge them "
            "first (merge_and_unload) and export the result"
        )
    if getattr(transformers, kind.__name__, None) is not kind or getattr(model.config, "auto_map", None):
        raise ExportError(
            f"{kind.__name__} is not a class of transformers: {_READERS} know an architecture by its name in "
            "config.json, and would refuse this one, or build the class it was made from and lose what was changed; "
            "put the weights into that class, or export to ONNX"
        )
    for name in _AUTO_CLASSES:
        loader = getattr(transformers, name)
        found: Any = loader._model_mapping.get(type(model.config), None)
        if kind in (found if isinstance(found, list | tuple) else (found,)):
            return loader
    raise ExportError(
        f"no Auto class of transformers builds {kind.__name__} from a {type(model.config).__name__}: nobody could "
        "load the folder without knowing the class; use one of its classes with a head for the task"
    )


def check_config(model: Any, processing: Any) -> None:
    """What can be seen without building anything: heads, tied embeddings, the tokenizer and its vocabulary."""
    kind, config = type(model).__name__, model.config.get_text_config()
    heads, groups = getattr(config, "num_attention_heads", None), getattr(config, "num_key_value_heads", None)
    hidden, size = getattr(config, "hidden_size", None), getattr(config, "head_dim", None)
    if isinstance(heads, int) and isinstance(hidden, int) and size is None and hidden % heads:
        raise ExportError(
            f"{kind}: {hidden:,} hidden units do not divide among {heads:,} heads, and the config has no head_dim: "
            "vLLM and llama.cpp take hidden_size / num_attention_heads for every head's size, and would cut the "
            "projections wrongly; give a whole number of heads"
        )
    if isinstance(heads, int) and isinstance(groups, int) and (groups < 1 or heads % groups):
        raise ExportError(
            f"{kind}: {heads:,} heads do not divide among {groups:,} key-value heads: vLLM refuses to share them out, "
            "and llama.cpp would give queries the wrong keys; keep num_attention_heads a multiple of num_key_value_heads"
        )
    _check_tied(model, config)
    if processing is None and model.can_generate():
        raise ExportError(
            f"{kind} is a language model and comes without its tokenizer: vLLM would look for one in the folder and stop, llama.cpp's "
            "converter cannot write a vocabulary; give processing"
        )
    vocabulary = len(processing) if isinstance(processing, Sized) else 0
    rows = getattr(config, "vocab_size", None)
    if isinstance(rows, int) and vocabulary > rows:
        raise ExportError(
            f"the tokenizer has {vocabulary:,} tokens, {kind} embeds {rows:,}: a token beyond them reads outside the "
            "embedding, or stops the server; give the tokenizer that the student was trained with, or resize the embeddings"
        )


def _check_tied(model: Any, config: Any) -> None:
    head, embedding = model.get_output_embeddings(), model.get_input_embeddings()
    if head is None or not hasattr(head, "weight") or not hasattr(embedding, "weight"):
        return
    tied, said = head.weight is embedding.weight, bool(getattr(config, "tie_word_embeddings", False))
    if tied != said:
        happens = "look for a head that is not stored" if tied else "put the embeddings in place of the trained head"
        raise ExportError(
            f"{type(model).__name__}: head and embeddings {'share' if tied else 'do not share'} their weights, its config says "
            f"tie_word_embeddings={said}: {_READERS} would {happens}; set config.tie_word_embeddings = {tied}"
        )


def described(model: Any) -> nn.Module:
    """The model that the config describes, without memory for its weights."""
    try:
        with torch.device("meta"):
            return type(model)(copy.deepcopy(model.config))
    except Exception as error:  # a config that was changed by hand leads to anything
        raise ExportError(
            f"{type(model).__name__} cannot be built from its own config: {error} {_READERS} build it from nothing "
            "else; make the config say what the model is"
        ) from error


def leftovers(model: nn.Module, fresh: nn.Module) -> list[str]:
    """Names of the tensors that training hung on the model and that its architecture never reads.

    Args:
        model: the trained module.
        fresh: one that was built as a reader of the folder builds it.

    Raises:
        ExportError: the model differs from ``fresh`` in any other way: by layers, by shapes, by classes.
    """
    kind = type(fresh).__name__
    has, wanted = model.state_dict(), fresh.state_dict()
    _check_layers(kind, model, fresh)
    missing = [name for name in wanted if name not in has]
    if missing:
        raise ExportError(
            f"{kind} lacks {len(missing):,} of the weights of its architecture ({', '.join(missing[:3])}): they were "
            f"renamed, by an adapter or a parametrisation, or cut away. {_READERS} find weights by name, and would "
            "leave these random or stop; merge or undo it"
        )
    for name, values in wanted.items():
        if has[name].shape != values.shape:
            raise ExportError(
                f"{kind}: {name} is {list(has[name].shape)}, its config or builder says {list(values.shape)}. vLLM "
                "and llama.cpp have one size for all layers, the config's, and would refuse the file or read rows "
                "out of place; prune all layers alike, and say so there"
            )
    modules = dict(fresh.named_modules())
    for name, module in model.named_modules():
        twin = modules.get(name)
        if twin is not None and _class(module) != _class(twin):
            raise ExportError(
                f"{kind}: {name or 'the model'} is a {type(module).__name__}, its config or builder makes a "
                f"{type(twin).__name__}: a reader of the folder would run that one on these weights, and answer "
                "otherwise; change the config, or export to ONNX, which keeps what is run"
            )
    surplus = [name for name in has if name not in wanted]
    for name in surplus:
        owner = _owner(name, modules)
        if isinstance(modules[owner], _CONTAINERS):
            raise ExportError(
                f"{kind} has {name}, which its config or builder does not make: {owner or 'the model'} runs all its "
                "parts, so that without it the model is another, and readers of the folder would leave it out; make "
                "the config or builder say so"
            )
    return surplus


def _check_layers(kind: str, model: nn.Module, fresh: nn.Module) -> None:
    """Whether each list of layers is as long as the config says."""
    lists = {name: module for name, module in model.named_modules() if isinstance(module, nn.ModuleList)}
    for name, twin in fresh.named_modules():
        layers = lists.get(name)
        if isinstance(twin, nn.ModuleList) and layers is not None and len(layers) != len(twin):
            raise ExportError(
                f"{kind}: {name} has {len(layers):,} layers, its config (num_hidden_layers) or builder says "
                f"{len(twin):,}: {_READERS} would build {len(twin):,}, and "
                f"{'leave some random or stop' if len(layers) < len(twin) else 'leave out the others'}; set the "
                "config to what the student has"
            )


def _class(module: nn.Module) -> str:
    """By name: a copy of the user's file makes classes of its own."""
    return type(module).__qualname__


def _owner(name: str, modules: Mapping[str, nn.Module]) -> str:
    """The innermost module of the architecture above a tensor that it does not have."""
    path = name.rpartition(".")[0]
    while path not in modules:
        path = path.rpartition(".")[0]
    return path


def one_dtype(tensors: Mapping[str, Tensor]) -> str:
    """The one type of the floating-point weights.

    Raises:
        ExportError: there are several.
    """
    kinds = sorted(
        {str(values.dtype).removeprefix("torch.") for values in tensors.values() if values.is_floating_point()}
    )
    if len(kinds) > 1:
        raise ExportError(
            f"the weights are {' and '.join(kinds)}, expected one type: a config names one, and readers would cast "
            f"the others to it without a word; cast the student to one of them, e.g. model.to(torch.{kinds[-1]})"
        )
    return kinds[0] if kinds else "float32"


def compared(model: Any, folder: Path, loader: Any, tensors: Mapping[str, Tensor]) -> None:
    """Load the folder as a stranger does, and compare every tensor, and an answer: a config can change what equal weights do.

    Raises:
        ExportError: something is missing or differs.
    """
    try:
        loaded, info = loader.from_pretrained(
            folder,
            output_loading_info=True,
            local_files_only=True,
            trust_remote_code=False,
            use_safetensors=True,
            attn_implementation=model.config._attn_implementation,
        )
    except Exception as error:  # from_pretrained raises what its parts raise
        raise ExportError(f"{loader.__name__} cannot load {folder}, which was just written: {error}") from error
    wrong = [f"{what.replace('_', ' ')} {sorted(map(str, names))[:3]}" for what, names in info.items() if names]
    again = loaded.state_dict()
    wrong += [f"no {name}" for name in tensors if name not in again][:3]
    wrong += [name for name, values in tensors.items() if name in again and not _same(again[name], values)][:3]
    if type(loaded) is not type(model):
        wrong.append(f"a {type(loaded).__name__} instead of a {type(model).__name__}")
    if wrong:
        raise ExportError(
            f"{loader.__name__} loads something else from {folder} than was trained: {'; '.join(wrong)}. NaN weights "
            "lead to it, and weights that the class shares but training took apart; mend the student"
        )
    _compare_answers(model, loaded)


def _same(found: Tensor, wanted: Tensor) -> bool:
    return found.dtype == wanted.dtype and torch.equal(found.cpu(), wanted.detach().cpu())


def _compare_answers(model: Any, loaded: Any) -> None:
    """Whether both answer alike to a made-up input; left out for models that take more than tokens or an image."""
    inputs = _made_up(model)
    if inputs is None:
        return
    device = next(model.parameters()).device
    given = {name: values.to(device) for name, values in inputs.items()}
    try:
        answer = _answer(model, given)
    except Exception:  # it takes more than that, and what else is not known here
        return
    again = _answer(loaded.to(device), given)
    apart = (
        float((answer - again).abs().max() / answer.abs().max().clamp(min=1e-6))
        if answer.shape == again.shape
        else float("inf")
    )
    if not apart <= _ROUNDINGS * torch.finfo(model.dtype).eps:
        raise ExportError(
            f"{type(model).__name__} answers otherwise when it is loaded from its folder, with equal weights: outputs "
            f"{apart:.1%} of the largest apart. Its config was changed after it was built (heads, positions, "
            "activation, norm), or its forward was; make the config say what it is"
        )


def _answer(model: Any, inputs: Mapping[str, Tensor]) -> Tensor:
    """What it gives first, in eval mode; its flags are put back."""
    flags = {module: module.training for module in model.modules()}
    try:
        with torch.no_grad():
            return model.eval()(**inputs)[0].float().cpu()
    finally:
        for module, training in flags.items():
            module.training = training


def _made_up(model: Any) -> dict[str, Tensor] | None:
    config = model.config
    if model.main_input_name == "pixel_values" and isinstance(getattr(config, "image_size", None), int):
        shape = (1, config.num_channels, config.image_size, config.image_size)
        values = torch.linspace(-1, 1, shape[1] * shape[2] * shape[3]).reshape(shape)
        return {"pixel_values": values.to(next(model.parameters()).dtype)}
    if model.main_input_name == "input_ids":
        ids = (torch.arange(1, 9) % config.get_text_config().vocab_size).unsqueeze(0)
        return {"input_ids": ids, **({"decoder_input_ids": ids} if config.is_encoder_decoder else {})}
    return None
