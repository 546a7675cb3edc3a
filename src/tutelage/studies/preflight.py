"""What can be known before anything is trained, so that no mistake costs an hour first."""

from __future__ import annotations

import copy
import tempfile
from collections.abc import Callable, Generator, Mapping, Sequence
from contextlib import contextmanager, suppress
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn

from tutelage.data import Splits, TransferSet
from tutelage.errors import ConfigError, DataError, TeacherError, TutelageError
from tutelage.models import check_layers, class_logits, on_device
from tutelage.objectives import Objective
from tutelage.signals import Side, layers_needed
from tutelage.studies.arm import TRAINING_DEFAULTS, build_seeded, validation_metrics, weights_digest
from tutelage.studies.teaching import logits_of
from tutelage.teachers import MemoryTeacher, ModuleTeacher, Teacher, as_teacher
from tutelage.training import DistillationArguments, DistillationTrainer
from tutelage.training.listening import first_signals, showing
from tutelage.training.stackable import why_plan_alone, why_student_alone

#: A study sets these itself.
OWNED_ARGUMENTS = ("output_dir", "seed", "data_seed", "resume_from_checkpoint")

#: Examples among which one is looked for that two tokenizers cut apart.
_LOOKED_AT = 512


def check_folder(folder: Path) -> None:
    """Find out that the output folder can be made and written to; what was not there before is gone again afterwards.

    A mistake that is found later would leave an empty folder that looks like a run.

    Raises:
        ConfigError: it is a file, or cannot be made or written to.
    """
    new: list[Path] = []
    try:
        new = [each for each in (folder, *folder.parents) if not each.exists()]
        folder.mkdir(parents=True, exist_ok=True)
        with tempfile.TemporaryFile(dir=folder):
            pass
    except OSError as error:
        what = "is a file" if folder.is_file() else f"cannot be written to ({error.strerror})"
        raise ConfigError(
            f"the output folder {folder} {what}: the run would be lost at its end; name a folder that is new or your own"
        ) from error
    finally:
        with suppress(OSError):  # another run may have begun in it
            for each in new:
                each.rmdir()


def check_labels(objectives: Mapping[str, Objective], train: TransferSet) -> None:
    """Find out that each arm has the labels its objective learns from.

    Raises:
        ConfigError: names the arm and the term.
    """
    if train.labelled:
        return
    for arm, objective in objectives.items():
        for component in objective.components:
            if "labels" in component.term.needs:
                raise ConfigError(
                    f"none of the {len(train)} examples of the transfer set has a label, and {component.name!r} of the arm {arm!r} learns "
                    "from labels alone: it would be 0 throughout; give some labels, or leave out that term or arm (with the arm kd "
                    "alone nobody can tell what the teacher was worth, and no gate asks it)"
                )


def check_student(build: Callable[[], nn.Module], seed: int) -> nn.Module:
    """Find out that ``build`` makes fresh students from the seed alone; one of them is returned.

    Raises:
        ConfigError: it returns no module, the same one twice, or other weights from the same seed.
    """
    first, second = build_seeded(build, seed), build_seeded(build, seed)
    for made in (first, second):
        if not isinstance(made, nn.Module):  # pyright: ignore[reportUnnecessaryIsInstance]
            raise ConfigError(f"student() returned a {type(made).__name__}, expected a fresh nn.Module")
    if {id(values) for values in first.parameters()} & {id(values) for values in second.parameters()}:
        raise ConfigError(
            "student() returned the same parameters twice: the second arm would start from what the first has learnt; build the "
            "module inside the function"
        )
    if weights_digest(first) != weights_digest(second):
        raise ConfigError(
            "student() made two different modules from one torch seed, so the arms would not start from the same weights: draw every "
            "initial weight from torch's generator, or load fixed ones"
        )
    return first


def check_training(
    training: Mapping[str, Any],
    where: str,
    model: nn.Module,
    objective: Objective,
    train: TransferSet,
    validation: TransferSet,
) -> None:
    """Make the trainer once, in a folder of its own, to find out what its arguments are worth.

    Raises:
        ConfigError: an argument that is the study's to set, or that ``transformers`` refuses.
    """
    for owned in OWNED_ARGUMENTS:
        if owned in training:
            raise ConfigError(f"{where}.{owned} is the study's to set (seeds and folders of all arms); leave it out")
    with tempfile.TemporaryDirectory() as aside:
        try:
            arguments = DistillationArguments(output_dir=aside, **{**TRAINING_DEFAULTS, **training})
            DistillationTrainer(
                model, arguments, objective, train, eval_dataset=validation, compute_metrics=validation_metrics
            )
        except TutelageError as error:
            raise type(error)(f"{where}: {error}") from error
        except (ValueError, TypeError, ImportError, RuntimeError) as error:
            raise ConfigError(f"{where}: transformers.TrainingArguments does not take it: {error}") from error


def check_classes(
    student: nn.Module, teacher: Teacher | nn.Module, splits: Splits, known_names: Sequence[str] | None
) -> None:
    """Find out that teacher, student and data speak of the same classes.

    Args:
        student: a fresh one.
        teacher: the teacher, or the fresh module that this run is going to train.
        splits: the data; the test split is not looked at.
        known_names: the data's class names, where it has any.

    Raises:
        ConfigError: a model cannot take its view, or their classes differ.
    """
    first = torch.arange(min(2, len(splits.train)))
    try:
        splits.train.batch(first)  # as training will see it, augmentation included
        batch: Any = splits.train.for_evaluation().batch(first)
    except TutelageError:
        raise
    except Exception as error:
        raise DataError(f"a view of the data fails on the first examples: {type(error).__name__}: {error}") from error
    classes = {"student": _class_count("student", student, batch["student"])}
    if isinstance(teacher, nn.Module):
        classes["teacher"] = _class_count("teacher", teacher, batch.get("teacher", batch["student"]))
    elif isinstance(teacher, ModuleTeacher):
        classes["teacher"] = _answered("teacher", lambda: logits_of(teacher, batch, "the teacher").classes, batch)
        _check_names(teacher.model, known_names)
    else:
        classes["teacher"] = logits_of(teacher, batch, "the teacher").classes
    known = splits.classes
    if len(set(classes.values())) > 1 or min(classes.values()) < known:
        said = ", ".join(f"the {who} has {count:,} classes" for who, count in classes.items())
        raise ConfigError(
            f"{said}, and the data {known:,}: rows cannot be compared class by class; give both models one output for each class"
        )
    if isinstance(teacher, MemoryTeacher):
        test = splits.test
        try:
            teacher.signals({"ids": test.ids, "labels": test.known_labels, "student": None})
        except TeacherError as error:
            raise ConfigError(
                f"the teacher's answers in memory do not cover the test split, on which the student is compared with it: {error}"
            ) from error


def check_features(
    objectives: Mapping[str, Objective], student: nn.Module, teacher: Teacher | nn.Module, splits: Splits
) -> None:
    """Find out that both models have the layers each objective listens to, and that these can meet.

    Args:
        objectives: of the arms that this teacher teaches, by their names.
        student: a fresh one.
        teacher: the teacher, or the fresh module that this run is going to train.
        splits: the data; two examples of the transfer set are shown to both, which their tokenizers cut apart where they have one each.

    Raises:
        TutelageError: an unknown layer, one that cannot be tapped, or shapes that cannot meet; the message names the arm.
    """
    for arm, objective in objectives.items():
        sides: tuple[Side, Side] = ("student", "teacher")
        mine, theirs = (layers_needed(objective.needs, side) for side in sides)
        if not mine and not theirs:
            continue
        try:
            with _of("student"):
                check_layers(student, mine)
            with _of("teacher"):
                shown = showing(as_teacher(teacher), theirs)
            assert shown is not None
            train = splits.train.for_evaluation()
            batch: Any = train.batch(_telling_rows(train))
            with torch.random.fork_rng(devices=[]):
                said, heard = shown.signals(batch), first_signals(student, batch, mine)
            objective.check(heard, said, {"labels": train.known_labels, "ids": train.ids})
            objective.fitted(heard, said, seed=0)
        except TutelageError as error:
            raise type(error)(f"the objective of the arm {arm!r}: {error}") from error


def _telling_rows(train: TransferSet) -> Tensor:
    """Two examples; if student and teacher have a view each, one that is more tokens to the one than to the other is among them.

    Terms that compare tokens by their places must be refused then, and the first two examples may be cut alike by chance.
    """
    first = torch.arange(min(2, len(train)))
    if train.teacher_view is None or len(train) < 2:
        return first
    batch: Any = train.batch(torch.arange(min(_LOOKED_AT, len(train))))
    masks = [each.get("attention_mask") for each in (batch["student"], batch["teacher"]) if isinstance(each, Mapping)]
    mine, theirs = masks if len(masks) == 2 else (None, None)
    if not isinstance(mine, Tensor) or not isinstance(theirs, Tensor):
        return first
    apart = (mine.sum(dim=1) - theirs.sum(dim=1)).abs()
    if int(apart.max()) == 0:
        return first
    told = int(apart.argmax())
    return torch.tensor([told, 0 if told else 1])


def check_together(
    objectives: Mapping[str, Objective], student: nn.Module, training: Mapping[str, Any], train: TransferSet
) -> None:
    """Find out that students which are to be trained at once can be, as far as arguments, objectives and the student tell.

    Raises:
        ConfigError: one cannot; the message says why.
    """
    of_student = why_student_alone(student)
    if of_student is None and _draws(student, train):
        of_student = "the student draws random numbers while it trains (dropout)"
    for arm, objective in objectives.items():
        reason = why_plan_alone({**TRAINING_DEFAULTS, **training}, objective) or of_student
        if reason is not None:
            raise ConfigError(
                f"together is true, and the arm {arm!r} cannot be trained with others: {reason}; leave it to be chosen (auto), or change "
                "what stands in the way"
            )


def _draws(student: nn.Module, train: TransferSet) -> bool:
    """Whether a training pass moves torch's generator."""
    inputs = train.for_evaluation().batch(torch.arange(min(2, len(train))))["student"]
    student = copy.deepcopy(student).train()
    with torch.no_grad(), torch.random.fork_rng(devices=[]):
        before = torch.random.get_rng_state()
        class_logits(student, inputs)
        return not torch.equal(before, torch.random.get_rng_state())


@contextmanager
def _of(who: str) -> Generator[None]:
    try:
        yield
    except TutelageError as error:
        raise type(error)(f"the {who}: {error}") from error


def _class_count(who: str, model: nn.Module, inputs: Any) -> int:
    device = next((parameter.device for parameter in model.parameters()), torch.device("cpu"))

    def count() -> int:
        with torch.no_grad(), torch.random.fork_rng(devices=[]):
            return class_logits(model.eval(), on_device(inputs, device)).shape[1]

    return _answered(who, count, {"student": inputs})


def _answered(who: str, ask: Callable[[], int], batch: Mapping[str, Any]) -> int:
    """What a first call gives, or why this model and this data do not go together."""
    try:
        return ask()
    except TutelageError as error:
        raise type(error)(f"the {who}: {error}") from error
    except (RuntimeError, TypeError, ValueError, IndexError, KeyError, AttributeError) as error:
        inputs = batch.get("teacher", batch["student"]) if who == "teacher" else batch["student"]
        named: Any = {"inputs": inputs} if isinstance(inputs, torch.Tensor) else inputs
        given = ", ".join(f"{name} {values.dtype} {list(values.shape)}" for name, values in named.items())
        raise ConfigError(
            f"the {who} does not take its view of the data ({given}): {type(error).__name__}: {error}; change the model, or the view "
            "it is given"
        ) from error


def _check_names(model: nn.Module, known_names: Sequence[str] | None) -> None:
    """A teacher that names its classes must number them as the data does."""
    named = getattr(getattr(model, "config", None), "id2label", None)
    if not named or known_names is None:
        return
    own = [str(named[index]).casefold() for index in sorted(named)]
    data = [str(name).casefold() for name in known_names]
    if own != data and sorted(own) == sorted(data):
        raise ConfigError(
            f"the teacher numbers its classes {', '.join(own)}, the data {', '.join(data)}: it would teach each class under another's "
            "number; give both one order"
        )
