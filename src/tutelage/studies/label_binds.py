"""What stored labels are bound to: whose answers they are, to which examples, seen how."""

from __future__ import annotations

import json
import math
import re
from collections.abc import Iterator, Mapping
from hashlib import sha256
from typing import Any, cast

import torch
from torch import Tensor, nn

from tutelage.data import Chain, Tokenise, TransferSet
from tutelage.errors import OtherLabelsError, TeacherError
from tutelage.labels import Form, LabelStore
from tutelage.labels.manifest import Manifest, refuse_differences
from tutelage.models import count_parameters
from tutelage.signals import NO_LABEL, Chosen
from tutelage.studies.arm import weights_digest
from tutelage.teachers import EnsembleTeacher, MemoryTeacher, ModuleTeacher, Teacher
from tutelage.teachers.crossing import CrossTokenizerTeacher, SortedTeacher
from tutelage.teachers.remote import RemoteTeacher
from tutelage.training.identity import probe

Json = dict[str, Any]

#: A few numbers of what the teacher sees; another machine moves them a little, another view more.
SEEN = "what the teacher sees of the first examples"
_SLACK = 1e-3
_PROBED = 4
#: So many class names are told one by one; more by their hash.
_NAMED = 100
#: What a Hugging Face config says that no logit depends on: where it came from, what reads and writes it, what a training sets in passing.
_ASIDE = {
    *("transformers_version", "architectures", "dtype", "torch_dtype"),
    *("use_cache", "problem_type", "output_attentions", "output_hidden_states", "return_dict", "id2label", "label2id"),
}


def label_binds(teacher: Teacher, transfer_set: TransferSet, form: Form) -> Json:
    """The facts under which stored answers are this teacher's to these examples, each a plain JSON value under a name for people.

    Args:
        teacher: who answers.
        transfer_set: about what.
        form: what is kept of an answer.
    """
    return {"teacher": teacher_fact(teacher), **set_binds(transfer_set, form)}


def set_binds(transfer_set: TransferSet, form: Form) -> Json:
    """Those of the facts that are known before there is a teacher."""
    varies = transfer_set.teacher_varies
    view = transfer_set.student_view if transfer_set.teacher_view is None else transfer_set.teacher_view
    names = transfer_set.class_names
    return {
        "classes": form.classes,
        "class names": None if names is None else list(names) if len(names) <= _NAMED else _short(list(names)),
        "teacher's view": described(view),
        "augmentation": described(transfer_set.augment) if transfer_set.augment is not None else "none",
        "augmentation seed": transfer_set.seed if varies else None,
        "views of each example": transfer_set.views if varies else 1,
        "seed of the draws": transfer_set.seed if form.kind == "sampled" else None,
        "tokenizer": [_tokenizer_fact(step.tokenizer) for step in _tokenisers(view)] or None,
        "chat template": [_short(getattr(step.tokenizer, "chat_template", None)) for step in _tokenisers(view)] or None,
        "examples": len(transfer_set.ids.unique()),
        "transfer set": _set_digest(transfer_set),
        # code that changes does not change its name: a few of the numbers that it makes do
        SEEN: _seen(transfer_set),
    }


def teacher_fact(teacher: Teacher) -> Any:
    """A teacher by its weights, its members by theirs, a served one by its name there; of another vocabulary with both vocabularies;
    one without any of these by its kind alone."""
    if isinstance(teacher, ModuleTeacher):
        module = teacher.model
        layers = sha256(re.sub(r" at 0x[0-9a-fA-F]+", "", repr(module)).encode()).hexdigest()[:16]
        named = f"{type(module).__name__}, {count_parameters(module):,} parameters, weights {weights_digest(module)}, layers {layers}"
        return named + _config_fact(module) + _classes_fact(teacher.classes)
    if isinstance(teacher, EnsembleTeacher):
        shares = [f"{share:.6f}" for share in teacher.weights.tolist()]
        return [f"{share} × {teacher_fact(member)}" for share, member in zip(shares, teacher.members, strict=True)]
    if isinstance(teacher, MemoryTeacher):
        return f"{type(teacher).__name__}, answers {teacher.digest}"
    if isinstance(teacher, RemoteTeacher):
        return teacher.fact
    if isinstance(teacher, CrossTokenizerTeacher | SortedTeacher):
        # the same answers would be others in another student's vocabulary
        return [type(teacher).__name__, f"vocabularies {teacher.crossing.digest}", teacher_fact(teacher.teacher)]
    return type(teacher).__name__


def store_digest(store: LabelStore) -> str:
    """A short hash of what decides a store's labels: its form and all that it is bound to.

    Not of its bytes: a shard that was damaged and made again holds the same answers, up to the order of sums.
    """
    manifest = store.manifest
    binds = {name: value for name, value in manifest.binds.items() if name != SEEN}
    return str(_short({"form": manifest.form.to_json(), "binds": binds}))


def settled(binds: Mapping[str, Any], kept: Mapping[str, Any]) -> Json:
    """The facts with what the teacher sees as it was kept, where the two differ by no more than rounding."""
    now, then = binds.get(SEEN), kept.get(SEEN)
    return {**binds, SEEN: then} if _alike(now, then) else dict(binds)


def refuse_others(found: Manifest, form: Form, facts: Mapping[str, Any], where: object) -> None:
    """Refuse a store of another form, or of other facts.

    Raises:
        OtherLabelsError: each difference, as the store says and as it is now.
    """
    try:
        refuse_differences(found.form.to_json(), form.to_json(), where)
        refuse_differences(found.binds, facts, where)
    except TeacherError as error:
        raise OtherLabelsError(str(error)) from None


def described(thing: Any) -> str:
    """A view in words: ``repr`` without memory addresses, a tokenizing step by its length."""
    if thing is None:
        return "the inputs as they are"
    if isinstance(thing, Chain):
        return ", then ".join(described(step) for step in thing.views) or "the inputs as they are"
    if isinstance(thing, Tokenise):
        return f"Tokenise(max_length={thing.max_length})"
    return re.sub(r" at 0x[0-9a-fA-F]+", "", repr(thing))


def rows_in(labels: Tensor) -> Tensor:
    """How many supervised rows each example of a batch has, int64 ``[B]``, from its labels ``[B]`` or ``[B, T]``."""
    if labels.ndim == 1:
        return torch.ones(len(labels), dtype=torch.int64)
    return (labels != NO_LABEL).sum(1)


def _seen(transfer_set: TransferSet) -> Json:
    # by id, so that the order of the set does not matter
    first = transfer_set.ids.argsort()[:_PROBED]
    batch = transfer_set.batch(first)
    return dict(_sketches("inputs", batch.get("teacher", batch["student"])))


def _sketches(name: str, values: Any) -> Iterator[tuple[str, str | list[float]]]:
    """Each tensor of a view by itself: beside token ids the numbers of a mask would be lost in the slack."""
    if isinstance(values, Mapping):
        inner = cast(Mapping[str, Any], values)
        for key in sorted(inner):
            yield from _sketches(key if name == "inputs" else f"{name}.{key}", inner[key])
    elif isinstance(values, Tensor) and not values.is_floating_point():
        # nothing rounds whole numbers
        whole = values.detach().cpu().contiguous()
        yield name, sha256(f"{tuple(whole.shape)}".encode() + whole.numpy().tobytes()).hexdigest()[:16]
    else:
        batch: Any = {"student": values}
        yield name, [float(f"{number:.9g}") for number in probe(batch, None)["student_view"]]


def _alike(now: Any, then: Any) -> bool:
    if not isinstance(now, dict) or not isinstance(then, dict) or now.keys() != then.keys():
        return False
    return all(_near(now[name], then[name]) for name in cast(Json, now))


def _near(now: Any, then: Any) -> bool:
    if not isinstance(now, list) or not isinstance(then, list) or len(cast(Json, now)) != len(cast(Json, then)):
        return now == then
    slack = _SLACK * max((abs(number) for number in then), default=0.0) + 1e-9
    return all(math.isclose(a, b, rel_tol=0.0, abs_tol=slack) for a, b in zip(now, then, strict=True))


def _config_fact(module: nn.Module) -> str:
    """A Hugging Face model's config, which decides what no weight and no layer shows (a rope's base, a scale)."""
    config: Any = getattr(module, "config", None)
    if not hasattr(config, "to_dict"):
        return ""
    return f", config {_short(_decisive(config.to_dict()))}"


def _decisive(said: Any) -> Any:
    if not isinstance(said, dict):
        return said
    entries = cast(Json, said).items()
    return {name: _decisive(value) for name, value in entries if not str(name).startswith("_") and name not in _ASIDE}


def _classes_fact(classes: Chosen) -> str:
    if classes is None:
        return ""
    if isinstance(classes, int):
        return f", its first {classes:,} classes"
    numbers = torch.as_tensor(classes).tolist()
    return f", {len(numbers):,} of its classes in an order, {_short(numbers)}"


def _set_digest(transfer_set: TransferSet) -> str:
    ids, order = transfer_set.ids.sort(stable=True)
    found = sha256(ids.unique_consecutive().numpy().tobytes())
    labels = transfer_set.known_labels
    if labels.ndim == 2:
        # which positions are supervised decides the rows; what their labels are is not the teacher's business
        found.update((labels != NO_LABEL).index_select(0, order).numpy().tobytes())
    return found.hexdigest()[:16]


def _tokenisers(view: Any) -> Iterator[Tokenise]:
    steps = view.views if isinstance(view, Chain) else [view]
    return (step for step in steps if isinstance(step, Tokenise))


def _tokenizer_fact(tokenizer: Any) -> str:
    """A tokenizer by what it makes of a text."""
    backend = getattr(tokenizer, "backend_tokenizer", None)
    if backend is not None:
        whole = json.loads(backend.to_str())
        # set anew by every call, after what that call asks for
        whole.pop("truncation", None)
        whole.pop("padding", None)
        return f"{type(tokenizer).__name__}, {len(tokenizer):,} tokens, {_short(whole)}"
    vocabulary = tokenizer.get_vocab() if hasattr(tokenizer, "get_vocab") else described(tokenizer)
    return f"{type(tokenizer).__name__}, {_short(vocabulary)}"


def _short(value: Any) -> str | None:
    if value is None:
        return None
    return sha256(json.dumps(value, sort_keys=True, default=str).encode()).hexdigest()[:16]
