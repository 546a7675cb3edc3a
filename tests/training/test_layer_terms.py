"""Terms that listen to layers: the projector is trained with the student, resumed with it, and is no part of it."""

import logging
import re
from dataclasses import dataclass
from typing import ClassVar

import pytest
import torch
from safetensors.torch import load_file
from test_resuming import Cut, CutAt, bert, cut_and_resumed, tokens
from torch import nn
from training_helpers import (
    CLASSES,
    FEATURES,
    NOBODY,
    OBJECTIVE,
    assert_close,
    assert_same_bits,
    network,
    trained,
    trainer_of,
    training_log,
    transfer_set,
    weights,
)

from tutelage.data import GaussianNoise, hex_id
from tutelage.errors import CheckpointError, ConfigError, ModelError, NonFiniteError, ObjectiveError, TeacherError
from tutelage.objectives import CrossEntropy, Hint, Term
from tutelage.signals import Logits, Signals
from tutelage.teachers import EnsembleTeacher, MemoryTeacher
from tutelage.training.checkpoints import MANIFEST
from tutelage.training.term_weights import TermWeights

HINTED = OBJECTIVE + 0.5 * Hint("0", "1", per_unit=True)  # the student's 8 wide, the teacher's 12
TERM_FILE = "term_weights.safetensors"


def term_weights(trainer):
    return weights(trainer.objective.weights)


def by_hand(steps, *, clip=0.0, rate=0.05, decay=0.0):
    """SGD on student and projector in one list, written out without the trainer, hooks or the term's own code."""
    student, teacher, projector = network(1), network(2, width=12), initial_projector()
    data = transfer_set()
    learnt = [*student.parameters(), *projector.parameters()]
    for _ in range(steps):
        hidden = student[0](data.inputs)
        logits = student[3](student[1](hidden))
        told = teacher(data.inputs)
        target = teacher[1](teacher[0](data.inputs)).detach()
        wanted = torch.softmax(told.detach() / 2, 1)
        kl = (wanted * (wanted.log() - torch.log_softmax(logits / 2, 1))).sum(1).mean() * 4
        hint = 0.5 * (projector(hidden) - target).square().mean(1).mean()
        loss = 0.3 * nn.functional.cross_entropy(logits, data.known_labels) + 0.7 * kl + 0.5 * hint
        gradients = torch.autograd.grad(loss, learnt)
        norm = torch.stack([gradient.norm() for gradient in gradients]).norm()
        scale = min(1.0, clip / float(norm)) if clip else 1.0
        with torch.no_grad():
            for parameter, gradient in zip(learnt, gradients, strict=True):
                decays = decay if parameter.ndim > 1 else 0.0
                parameter -= rate * (scale * gradient + decays * parameter)
    return weights(student), weights(projector), float(norm)


def initial_projector():
    trainer = trainer_of("unused", objective=HINTED)
    trainer.identify()
    return trainer.objective.components[2].term.weights


PLAIN = {
    "optim": "sgd",
    "lr_scheduler_type": "constant",
    "max_steps": 3,
    "per_device_train_batch_size": 64,
    "train_sampling_strategy": "sequential",
    "max_grad_norm": 0.0,
}


@pytest.mark.parametrize("changed", [{}, {"max_grad_norm": 0.4}, {"weight_decay": 0.3}], ids=["", "clipped", "decay"])
@pytest.mark.parametrize("accumulate", [1, 4])
def test_projector_and_student_learn_as_one(tmp_path, monkeypatch, changed, accumulate):
    """Gradients left from the last step, a norm of the student's alone, decay on a bias, or a second learning rate all give a
    plausible loss curve."""
    monkeypatch.chdir(tmp_path)
    options = {**PLAIN, **changed, "per_device_train_batch_size": 64 // accumulate}
    final, trainer = trained(tmp_path, objective=HINTED, gradient_accumulation_steps=accumulate, **options)
    student, projector, norm = by_hand(3, clip=changed.get("max_grad_norm", 0), decay=changed.get("weight_decay", 0))
    assert_close(final, student, 1e-5)
    assert_close(weights(trainer.objective.components[2].term.weights), projector, 1e-5)
    assert training_log(trainer, "grad_norm")[-1] == pytest.approx(norm, rel=1e-4)
    assert len(training_log(trainer, "loss/hint")) == 3


def test_the_user_s_optimiser_takes_them_too(tmp_path, monkeypatch):
    """Made for the student's weights alone, it would leave the projector as it was drawn."""
    monkeypatch.chdir(tmp_path)
    student = network(1)
    optimizer = torch.optim.SGD(student.parameters(), lr=0.05, weight_decay=0.0)
    extra = {"optimizers": (optimizer, None)}
    final, trainer = trained(tmp_path, student=student, objective=HINTED, trainer_options=extra, **PLAIN)
    assert [len(group["params"]) for group in optimizer.param_groups] == [4, 2]
    by_us, projector, _ = by_hand(3)
    assert_close(final, by_us, 1e-5)
    assert_close(weights(trainer.objective.components[2].term.weights), projector, 1e-5)


def test_a_second_training_goes_on_with_them(tmp_path):
    """Fitted anew, the projector would be random again; joined again, the optimiser would refuse it."""
    trainer = trainer_of(tmp_path, objective=HINTED, max_steps=2)
    trainer.identify()
    drawn = term_weights(trainer)
    trainer.train()
    once = term_weights(trainer)
    groups = len(trainer.optimizer.param_groups)
    trainer.train()
    assert len(trainer.optimizer.param_groups) == groups == 4
    assert not torch.equal(drawn["hint.weight"], once["hint.weight"])
    assert trainer.optimizer.state[trainer.objective.components[2].term.weights.weight]["step"] == 4


def noisy():
    return {
        "student": network(1, dropout=0.3),
        "data": transfer_set(56, augment=GaussianNoise(0.3), unlabelled=range(0, 56, 3)),
        "objective": HINTED + 0.2 * Hint("1", "0"),
    }


SAVING = {"save_strategy": "steps", "save_steps": 2, "num_train_epochs": 3, "gradient_accumulation_steps": 2}


def test_a_run_that_was_cut_off_ends_the_same_with_its_projectors(tmp_path):
    """Without the projector's weights, or with another place of theirs among the optimiser's moments, the student would be led
    elsewhere from the cut on."""
    undisturbed, whole = trained(tmp_path / "whole", **noisy(), **SAVING)
    resumed, trainer = cut_and_resumed(tmp_path / "cut", (1, 3, 5), noisy, **SAVING)
    assert trainer._initial_global_step > 0
    assert_same_bits(resumed, undisturbed)
    assert_same_bits(term_weights(trainer), term_weights(whole))
    assert set(term_weights(whole)) == {"hint.weight", "hint.bias", "hint_2.weight", "hint_2.bias"}


def test_they_are_in_the_manifest_and_not_in_the_student(tmp_path):
    """Unlisted, a damaged projector would be resumed from; in the student's file, it would be deployed."""
    options = {**SAVING, "num_train_epochs": 2}
    trained(tmp_path, **noisy(), **options)
    newest = tmp_path / "checkpoint-4"
    assert f'"{TERM_FILE}"' in (newest / MANIFEST).read_text()
    assert set(load_file(newest / "model.safetensors")) == {"0.weight", "0.bias", "3.weight", "3.bias"}
    content = bytearray((newest / TERM_FILE).read_bytes())
    content[-3] ^= 1
    (newest / TERM_FILE).write_bytes(content)
    again = trainer_of(tmp_path, **noisy(), **options)
    again.train(resume_from_checkpoint=True)
    assert again._initial_global_step == 2, "the damaged one is left out"
    again.save_model(tmp_path / "saved")
    assert set(load_file(tmp_path / "saved" / "model.safetensors")) == {"0.weight", "0.bias", "3.weight", "3.bias"}
    (tmp_path / "checkpoint-2" / TERM_FILE).unlink()
    with pytest.raises(CheckpointError, match=r"term_weights\.safetensors is missing"):
        trainer_of(tmp_path, **noisy(), **options).train(resume_from_checkpoint=tmp_path / "checkpoint-2")


@pytest.mark.parametrize(
    ("objective", "teacher", "said"),
    [
        (OBJECTIVE + 0.5 * Hint("1", "0"), network(2, width=12), "objective"),
        (HINTED, "changed", "teacher_features: the first examples give"),
    ],
    ids=["layer", "features"],
)
def test_another_layer_or_other_features_are_another_run(tmp_path, objective, teacher, said):
    """The logits may be the same while the layer that the hint listens to is another."""
    options = {"save_strategy": "steps", "save_steps": 2, "max_steps": 4}
    run = trainer_of(tmp_path, objective=HINTED, **options)
    run.add_callback(CutAt(3))
    with pytest.raises(Cut):
        run.train()
    if teacher == "changed":  # another basis of the hidden layer, and the same function
        teacher = network(2, width=12)
        with torch.no_grad():
            order = torch.arange(11, -1, -1)
            teacher[0].weight.copy_(teacher[0].weight[order])
            teacher[0].bias.copy_(teacher[0].bias[order])
            teacher[3].weight.copy_(teacher[3].weight[:, order])
    with pytest.raises(CheckpointError, match=said):
        trainer_of(tmp_path, objective=objective, teacher=teacher, **options).train(resume_from_checkpoint=True)


def test_kept_features_teach_what_live_ones_do(tmp_path):
    """The same lesson without the teacher; and the next sitting may have the live one again."""
    data = transfer_set()
    kept = MemoryTeacher.of(network(2, width=12), data, layers=["0", "1"])
    live, _ = trained(tmp_path / "1", objective=HINTED, data=data)
    stored, trainer = trained(tmp_path / "2", objective=HINTED, data=data, teacher=kept)
    assert_close(stored, live, 1e-5)
    assert list(trainer.teacher.signals(data.batch(torch.arange(2))).features) == ["1"], (
        "only what is needed is looked up"
    )
    assert trainer.identify().keys() == trainer_of(tmp_path / "1", objective=HINTED, data=data).identify().keys()


def test_hidden_states_of_hugging_face_models(tmp_path):
    """By index, with a projector from 8 to 16 wide, masked tokens and dropout, cut off and resumed."""

    def build():
        objective = OBJECTIVE + 0.5 * Hint("hidden_states.1", "hidden_states.-1", per_unit=True)
        return {"student": bert(1), "teacher": bert(2, layers=2), "data": tokens(), "objective": objective}

    options = {"save_strategy": "steps", "save_steps": 2, "per_device_train_batch_size": 8, "num_train_epochs": 2}
    undisturbed, whole = trained(tmp_path / "whole", **build(), **options)
    resumed, _ = cut_and_resumed(tmp_path / "cut", (3,), build, **options)
    assert_same_bits(resumed, undisturbed)
    assert training_log(whole, "loss/hint")[-1] < training_log(whole, "loss/hint")[0]


def test_what_was_put_between_is_said_once(tmp_path, caplog):
    """A pooling or a projector that nobody knows of is part of what was measured all the same."""
    with caplog.at_level(logging.INFO, logger="tutelage"):
        trainer = trainer_of(tmp_path, objective=HINTED, max_steps=1)
        trainer.identify()
        trainer.train()
    said = [record.getMessage() for record in caplog.records if "projector" in record.getMessage()]
    assert len(said) == 1
    assert said[0].startswith("hint: 0 → 1: a linear projector on the student's side, 8 → 12 wide")


@pytest.mark.parametrize(
    ("objective", "options", "kind", "said"),
    [
        (Hint("layers.0", "1"), {}, ModelError, "Sequential has no layer 'layers.0'; the nearest are 0"),
        (Hint("0", "7"), {}, ModelError, "Sequential has no layer '7'; there are 0, 1, 2, 3"),
        (Hint("0", "1"), {"teacher": NOBODY}, ObjectiveError, r'needs teacher.features\["1"\], which nobody provides'),
        (
            HINTED,
            {"teacher": EnsembleTeacher([network(2), network(3)])},
            TeacherError,
            "a mixture of probabilities has no",
        ),
        (
            HINTED,
            {"teacher": lambda data: MemoryTeacher.of(network(2, width=12), data)},
            TeacherError,
            "not among the teacher's kept answers .there are: none.*layers=",
        ),
        (HINTED, {"torch_compile": True}, ConfigError, "torch_compile=True is set.*runs past the taps"),
        (Hint("pair", "0"), {"student": "pair"}, ObjectiveError, "takes floating-point vectors"),
        (
            Hint("0", "1") + OBJECTIVE,
            {"student": "frozen"},
            ModelError,
            "no gradient leads from layer '0' of Sequential",
        ),
    ],
    ids=lambda value: None,
)
def test_what_could_not_be_learnt_is_an_error_before_the_first_step(tmp_path, objective, options, kind, said):
    """An hour later, or never: with a frozen layer the projector's loss falls nicely."""
    data = transfer_set()
    options = {**options, "data": data}
    if callable(options.get("teacher")) and not isinstance(options["teacher"], nn.Module | EnsembleTeacher):
        options["teacher"] = options["teacher"](data)
    if options.get("student") == "frozen":
        options["student"] = network(1)
        options["student"][0].requires_grad_(False)
    if options.get("student") == "pair":
        options["student"] = Deep()
    with pytest.raises(kind, match=said):
        trainer_of(tmp_path, objective=objective, **options).train()
    assert not list(tmp_path.glob("checkpoint*"))


class Deep(nn.Module):
    """Has a layer of five axes."""

    def __init__(self):
        super().__init__()
        self.pair, self.last = nn.Unflatten(1, (1, 1, 2, 3)), nn.Linear(FEATURES, CLASSES)

    def forward(self, inputs):
        self.pair(inputs)
        return self.last(inputs)


def test_a_scheduler_made_before_them_is_refused(tmp_path):
    """Its list of learning rates is one group short: the projector's would stay as it is, or the step fail."""
    student = network(1)
    optimizer = torch.optim.SGD(student.parameters(), lr=0.5)
    schedule = torch.optim.lr_scheduler.StepLR(optimizer, 3, 0.1)
    extra = {"optimizers": (optimizer, schedule)}
    with pytest.raises(
        ConfigError, match="hint have weights of their own, which join the optimiser now, and the scheduler"
    ):
        trained(tmp_path, student=student, objective=HINTED, trainer_options=extra)
    trained(tmp_path, student=student, objective=OBJECTIVE, trainer_options=extra, max_steps=1)


class Unwilling:
    """An optimiser that has no room for more."""

    param_groups: ClassVar[list] = []

    def add_param_group(self, group):
        raise NotImplementedError("no more")


@pytest.mark.parametrize(
    ("optimizer", "kind", "said"),
    [
        (torch.optim.SGD([torch.zeros(1)], lr=0.1), "adalomo", "optim=adalomo steps while gradients are still made"),
        (torch.optim.SGD([torch.zeros(1)], lr=0.1), "galore_adamw_layerwise", "steps while gradients"),
        (Unwilling(), "mine", r"Unwilling.add_param_group failed \(NotImplementedError: no more\)"),
    ],
)
def test_an_optimiser_that_would_leave_them_as_they_are(optimizer, kind, said):
    """A projector that is never trained leads the student to a random map of the teacher's layer."""
    terms = TermWeights(nn.ModuleDict({"hint": nn.Linear(2, 3)}))
    with pytest.raises(ConfigError, match=said):
        terms.join(optimizer, kind, {"hint.weight"}, 0.1)
    TermWeights().join(Unwilling(), kind, None, 0.1)


def test_a_teacher_of_ones_own_may_give_features_by_itself(tmp_path):
    """Asked for by nobody's protocol, they are features all the same."""

    class Own:
        def signals(self, batch):
            net = network(2, width=12)
            with torch.no_grad():
                hidden = net[1](net[0](batch["student"]))
                return Signals(Logits(net[3](hidden)), {"1": hidden})

    own, _ = trained(tmp_path / "1", objective=HINTED, teacher=Own(), max_steps=2)
    live, _ = trained(tmp_path / "2", objective=HINTED, max_steps=2)
    assert_close(own, live, 1e-6)


@dataclass(frozen=True)
class Relates(Term):
    """A term of relations that takes no example alone, and in which one large one spoils all."""

    name: ClassVar[str] = "relates"
    needs: ClassVar[frozenset[str]] = frozenset({'student.features["tap"]'})

    def __call__(self, student, teacher, rows, progress=0.0):
        values = student.features["tap"]
        if len(values) < 2:
            raise ObjectiveError("one example has no relations")
        return values.sum() * torch.where(values.abs().max() > 1e20, torch.nan, 1.0), self.count(rows)

    def describe(self):
        return {"term": self.name}


@pytest.mark.parametrize(
    ("declared", "said"),
    [({"name": "mine"}, "needs = None, expected a set"), ({"needs": frozenset()}, "name = None, expected a word")],
)
def test_a_term_of_ones_own_says_what_it_needs(declared, said):
    """An AttributeError from inside the trainer would not say what the class lacks."""
    mine = type("Mine", (Term,), {"__call__": Relates.__call__, "describe": Relates.describe, **declared})
    with pytest.raises(ObjectiveError, match=f"the term Mine has {said}"):
        mine() + CrossEntropy()


class Spoiling(nn.Module):
    """A network whose tapped layer gives something else for one example in training; its logits never do."""

    def __init__(self, bad, value):
        super().__init__()
        self.first, self.tap, self.last = nn.Linear(FEATURES, 12), nn.Identity(), nn.Linear(FEATURES, CLASSES)
        self.bad, self.value = bad, value

    def forward(self, inputs):
        spoilt = (inputs == self.bad).all(1, keepdim=True) & self.training
        hidden = self.first(inputs)
        self.tap(hidden + torch.where(spoilt, self.value, 0.0))
        return self.last(inputs) + hidden.mean(1, keepdim=True)


@pytest.mark.parametrize(
    ("value", "term", "said"),
    [
        (torch.inf, Hint("tap", "0"), "what the student's 'tap' gave is not finite for example ids {}"),
        (1e25, Hint("tap", "0"), "component 'hint' is not finite for example ids {}"),
        (1e25, Relates(), "component 'relates' is not finite for example ids .* and 11 more"),
    ],
    ids=["layer", "term", "relations"],
)
def test_what_is_not_finite_is_named(tmp_path, value, term, said):
    """The diagnosis itself would fail on a term that hears no features, or blame the backward pass."""
    data = transfer_set()
    student = Spoiling(data.inputs[5], value)
    with pytest.raises(NonFiniteError) as caught:
        trained(tmp_path, student=student, objective=CrossEntropy() + term, data=data)
    message = str(caught.value)
    assert re.search(said.format(f"{hex_id(int(data.ids[5]))}(;|\\.)"), message), message
    assert "cross_entropy" not in message


def test_a_spoilt_projector_is_named(tmp_path):
    """The student would be blamed for what a term's own weights did."""
    trainer = trainer_of(tmp_path, objective=HINTED)
    trainer.identify()
    with torch.no_grad():
        trainer.objective.weights["hint"].weight[0, 0] = torch.nan
    with pytest.raises(NonFiniteError, match="the weights of the term 'hint' were not finite before the step"):
        trainer.train()
