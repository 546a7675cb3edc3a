"""A run that was cut off and continued ends with the same weights, bit for bit; a run that has become another is refused."""

import logging
import shutil

import pytest
import torch
from torch import nn
from training_helpers import (
    CLASSES,
    FEATURES,
    OBJECTIVE,
    assert_same_bits,
    network,
    trained,
    trainer_of,
    training_log,
    transfer_set,
    weights,
)
from transformers import BertConfig, BertForSequenceClassification, EarlyStoppingCallback, TrainerCallback

from tutelage.data import GaussianNoise, HorizontalFlip, TransferSet
from tutelage.errors import CheckpointError
from tutelage.objectives import KL, CrossEntropy, Linear
from tutelage.teachers import EnsembleTeacher, MemoryTeacher


class Cut(Exception):
    """The run was cut off."""


class CutAt(TrainerCallback):
    def __init__(self, step):
        self.step = step

    def on_step_begin(self, args, state, control, **_):
        if state.global_step == self.step:
            raise Cut


def cut_and_resumed(folder, cuts, build, **options):
    """The weights of a run that is cut off before each of these steps, and continued by the same command."""
    for step in cuts:
        trainer = trainer_of(folder, **build(), **options)
        trainer.add_callback(CutAt(step))
        with pytest.raises(Cut):
            trainer.train(resume_from_checkpoint=True)
    trainer = trainer_of(folder, **build(), **options)
    trainer.train(resume_from_checkpoint=True)
    return weights(trainer.model), trainer


def noisy():
    return {
        "student": network(1, dropout=0.3),
        "data": transfer_set(56, augment=GaussianNoise(0.3), unlabelled=range(0, 56, 3)),
        "objective": Linear(1, 0.2) * CrossEntropy() + KL(temperature=Linear(4, 1)),
    }


SCENES = {
    "epochs and accumulation": {"gradient_accumulation_steps": 2, "per_device_train_batch_size": 4, "save_steps": 3},
    "cosine with warm-up": {"lr_scheduler_type": "cosine", "warmup_steps": 3, "save_steps": 2},
    "max_steps within an epoch": {"max_steps": 17, "save_steps": 5},
    "saved by epoch": {"save_strategy": "epoch"},
    "sgd with momentum": {"optim": "sgd", "optim_args": "momentum=0.9", "save_steps": 3},
    "workers": {"dataloader_num_workers": 1, "dataloader_persistent_workers": True, "save_steps": 6},
}


@pytest.mark.parametrize("scene", SCENES.values(), ids=SCENES)
def test_a_run_that_was_cut_off_ends_the_same(tmp_path, scene):
    """Dropout, augmentation, order, moments and schedule must all go on where they were; any one that restarts gives another
    student, and a comparison of arms would depend on which was interrupted."""
    options = {"save_strategy": "steps", "num_train_epochs": 4, **scene}
    undisturbed, whole = trained(tmp_path / "whole", **noisy(), **options)
    resumed, trainer = cut_and_resumed(tmp_path / "cut", (1, 7, 8, 13), noisy, **options)
    assert trainer._initial_global_step > 0
    assert trainer.state.global_step == whole.state.global_step
    assert_same_bits(resumed, undisturbed)


@pytest.mark.parametrize("max_steps", [10, 8])
def test_a_run_that_had_ended_is_not_taken_further(tmp_path, max_steps):
    """Resumed at its last step within an epoch, ``Trainer`` takes one step more before it looks at ``max_steps``."""
    options = {"max_steps": max_steps, "save_strategy": "steps", "save_steps": 1}
    undisturbed, _ = trained(tmp_path, **noisy(), **options)
    resumed, trainer = cut_and_resumed(tmp_path, (), noisy, **options)
    assert trainer.state.global_step == max_steps
    assert_same_bits(resumed, undisturbed)


@pytest.mark.parametrize("cuts", [(6,), (11,), (12,), ()])
def test_early_stopping_stops_at_the_same_step(tmp_path, cuts):
    """Its patience would be counted from 0 again, and a run that had stopped would go on."""
    scores = [1, 2, 3, 3, 3, 3, 9, 9, 9, 9]
    options = {
        "save_strategy": "steps",
        "save_steps": 2,
        "eval_strategy": "steps",
        "eval_steps": 2,
        "metric_for_best_model": "score",
        "greater_is_better": True,
        "load_best_model_at_end": True,
        "num_train_epochs": 5,
    }

    def build():
        holder = {}

        def score(_):
            return {"score": scores[holder["trainer"].state.global_step // 2 - 1]}

        extra = {
            "eval_dataset": transfer_set(8, seed=5),
            "compute_metrics": score,
            "callbacks": [EarlyStoppingCallback(early_stopping_patience=3), Knows(holder)],
        }
        return {**noisy(), "trainer_options": extra, "holder": holder}

    class Knows(TrainerCallback):
        def __init__(self, holder):
            self.holder = holder

    def run(folder, cut=None):
        built = build()
        holder = built.pop("holder")
        trainer = holder["trainer"] = trainer_of(folder, **built, **options)
        if cut is not None:
            trainer.add_callback(CutAt(cut))
        return trainer

    whole = run(tmp_path / "whole")
    whole.train()
    assert whole.state.global_step == 12
    for cut in cuts:
        cut_off = run(tmp_path / "cut", cut)
        if cut == 12:
            cut_off.train(resume_from_checkpoint=True)
        else:
            with pytest.raises(Cut):
                cut_off.train(resume_from_checkpoint=True)
    resumed = run(tmp_path / "cut")
    resumed.train(resume_from_checkpoint=True)
    assert resumed.state.global_step == 12
    assert_same_bits(weights(resumed.model), weights(whole.model))


def bert(seed=0, layers=1, **options):
    config = BertConfig(
        vocab_size=50,
        hidden_size=8,
        num_hidden_layers=layers,
        num_attention_heads=2,
        intermediate_size=16,
        max_position_embeddings=12,
        num_labels=CLASSES,
        hidden_dropout_prob=0.2,
        **options,
    )
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(seed)
        return BertForSequenceClassification(config)


def tokens(examples=24):
    generator = torch.Generator().manual_seed(3)
    ids = torch.randint(1, 50, (examples, 7), generator=generator)
    mask = torch.ones_like(ids)
    mask[::3, 5:] = 0
    kinds = (torch.arange(7) > 3).long().expand(examples, 7).contiguous()
    labels = torch.randint(CLASSES, (examples,), generator=generator)
    return TransferSet({"input_ids": ids, "attention_mask": mask, "token_type_ids": kinds}, labels)


def test_a_hugging_face_student_resumes(tmp_path):
    """``save_pretrained`` and back, with dropout and a teacher of another size."""

    def build():
        return {"student": bert(1), "teacher": bert(2, layers=2), "data": tokens()}

    options = {"save_strategy": "steps", "save_steps": 2, "per_device_train_batch_size": 8, "num_train_epochs": 3}
    undisturbed, whole = trained(tmp_path / "whole", **build(), **options)
    resumed, _ = cut_and_resumed(tmp_path / "cut", (3, 6), build, **options)
    assert_same_bits(resumed, undisturbed)
    again = BertForSequenceClassification.from_pretrained(tmp_path / "cut" / "checkpoint-9")
    assert_same_bits(weights(again), weights(whole.model))


BASE = {"save_strategy": "steps", "save_steps": 2, "num_train_epochs": 1}


@pytest.fixture(scope="module")
def cut_off(tmp_path_factory):
    folder = tmp_path_factory.mktemp("cut-off")
    trainer = trainer_of(folder, **base(), **BASE)
    trainer.add_callback(CutAt(3))
    with pytest.raises(Cut):
        trainer.train()
    return folder


def base(**changes):
    return {"student": network(1, dropout=0.3), "data": data_with(), "objective": OBJECTIVE, **changes}


def data_with(**changes):
    return transfer_set(56, **{"augment": GaussianNoise(0.3), **changes})


def relu():
    return nn.Sequential(nn.Linear(FEATURES, 8), nn.ReLU(), nn.Dropout(0.3), nn.Linear(8, CLASSES))


def first_view(inputs, draws):
    return inputs * 1.0


def other_view(inputs, draws):
    return inputs * 1.1


other_view.__qualname__ = other_view.__name__ = "first_view"

CHANGES = {
    "learning rate": ({"learning_rate": 0.04}, "learning_rate: 0.05 in the checkpoint, 0.04 now"),
    "batch": ({"per_device_train_batch_size": 8}, "per_device_train_batch_size: 16 in the checkpoint, 8 now"),
    "accumulation": ({"gradient_accumulation_steps": 2}, "gradient_accumulation_steps"),
    "length": ({"num_train_epochs": 2}, "num_train_epochs"),
    "seed": ({"seed": 1}, "seed: 42 in the checkpoint, 1 now"),
    "data seed": ({"data_seed": 1}, "data_seed"),
    "order": ({"train_sampling_strategy": "sequential"}, "train_sampling_strategy: 'random' .* 'sequential' now"),
    "schedule": ({"lr_scheduler_type": "cosine"}, "lr_scheduler_type: 'linear' .* 'cosine' now"),
    "schedule's settings": ({"lr_scheduler_kwargs": {"last_epoch": -1}}, "lr_scheduler_kwargs"),
    "optimiser": ({"optim": "sgd"}, "optim: 'adamw_torch_fused' .* 'sgd' now"),
    "optimiser's settings": ({"optim_args": "amsgrad=True"}, "optim_args"),
    "clipping": ({"max_grad_norm": 0.5}, "max_grad_norm"),
    "precision": ({"bf16": True}, "bf16: False in the checkpoint, True now"),
    "weight in the objective": ({"objective": 0.4 * CrossEntropy() + 0.7 * KL(2)}, "objective: .*0.3.*0.4"),
    "temperature": ({"objective": 0.3 * CrossEntropy() + 0.7 * KL(3)}, "objective"),
    "examples": ({"data": data_with(seed=9)}, "transfer_set: '56 examples"),
    "labels": ({"data": data_with(unlabelled=[3])}, "56 labelled.*55 labelled"),
    "augmentation": ({"data": data_with(augment=GaussianNoise(0.4))}, r"augmentation: .*std=0.3.*std=0.4"),
    "no augmentation": ({"data": data_with(augment=None)}, "augmentation: .*'none' now"),
    "student's width": ({"student": network(1, width=9, dropout=0.3)}, "student: 'Sequential, 92 parameters"),
    "student's activation": ({"student": relu()}, "student"),
    "student's dropout": ({"student": network(1, dropout=0.1)}, "student"),
    "student's view": ({"data": data_with(student_view=first_view)}, "student_view: 'none' .*first_view"),
    "teacher's view": ({"data": data_with(teacher_view=first_view)}, "teacher_view: 'none' .*first_view"),
    "teacher": ({"teacher": network(3, width=12)}, "teacher: the first examples give"),
}


@pytest.mark.parametrize(("change", "shown"), CHANGES.values(), ids=CHANGES)
def test_a_changed_run_is_refused_with_the_difference_shown(cut_off, change, shown):
    """Half a run with one setting and half with another is a model that neither config describes, under the name of one."""
    built = base(**{key: change[key] for key in change if key in ("student", "data", "objective", "teacher")})
    options = {**BASE, **{key: change[key] for key in change if key not in built}}
    before = sorted(path.name for path in cut_off.iterdir())
    with pytest.raises(CheckpointError, match=f"(?s)differs from this one.*{shown}"):
        trainer_of(cut_off, **built, **options).train(resume_from_checkpoint=True)
    assert sorted(path.name for path in cut_off.iterdir()) == before, "refusing must not move anything"


def test_a_view_of_the_same_name_that_does_something_else_is_refused(tmp_path):
    """A function has no settings to compare: edited between two sittings, it would change the data half-way."""
    options = {**BASE, "max_steps": 3}

    def build(view, **given):
        return base(data=transfer_set(56, student_view=view, **given))

    for changed in (build(other_view), build(first_view, teacher_view=other_view)):
        folder = tmp_path / str(len(list(tmp_path.iterdir())))
        first = base(
            data=transfer_set(56, student_view=first_view, teacher_view=changed["data"].teacher_view and first_view)
        )
        trained(folder, **first, **options)
        with pytest.raises(CheckpointError, match=r"(student|teacher)_view: the first examples give"):
            trainer_of(folder, **changed, **options).train(resume_from_checkpoint=True)


def test_a_view_that_is_a_function_resumes(tmp_path):
    """``repr`` of a function holds its address, which differs in each process: no such run could ever be resumed."""

    def build():
        def view(inputs, draws):
            return inputs * 2

        return {**noisy(), "data": transfer_set(56, student_view=view, augment=lambda inputs, draws: inputs + 1)}

    found, _ = cut_and_resumed(tmp_path / "cut", (3,), build, **BASE)
    undisturbed, _ = trained(tmp_path / "whole", **build(), **BASE)
    assert_same_bits(found, undisturbed)


def test_what_does_not_touch_the_weights_may_change(cut_off, tmp_path):
    """A user who must give up the run to save more often will not save more often; and the new settings must be obeyed:
    ``Trainer`` takes them from the checkpoint."""
    folder = shutil.copytree(cut_off, tmp_path / "run")
    undisturbed, _ = trained(tmp_path / "whole", **base(), **BASE)
    changed = {
        **BASE,
        "save_steps": 1,
        "logging_steps": 2,
        "save_total_limit": 5,
        "per_device_eval_batch_size": 3,
        "dataloader_num_workers": 1,
        "eval_strategy": "steps",
        "eval_steps": 1,
        "log_level": "error",
    }
    extra = {"eval_dataset": transfer_set(8, seed=5), "compute_metrics": lambda _: {"one": 1.0}}
    trainer = trainer_of(folder, **base(), trainer_options=extra, **changed)
    trainer.train(resume_from_checkpoint=True)
    assert_same_bits(weights(trainer.model), undisturbed)
    assert sorted(path.name for path in folder.iterdir()) == ["checkpoint-2", "checkpoint-3", "checkpoint-4"]
    assert training_log(trainer, "eval_one") == [1.0, 1.0]
    steps = [line["step"] for line in trainer.state.log_history if "loss" in line]
    assert steps == [1, 2, 4], "every second step since the resumption"


def test_log_lines_after_a_resumption_are_means_of_their_own_steps(cut_off, tmp_path):
    """Divided by all steps since 0, the first line after a resumption would show a loss that suddenly fell."""
    folder = shutil.copytree(cut_off, tmp_path / "run")
    _, whole = trained(tmp_path / "whole", **base(), **BASE)
    trainer = trainer_of(folder, **base(), **BASE)
    trainer.train(resume_from_checkpoint=True)
    for key in ("loss", "loss/kl", "loss/cross_entropy"):
        assert training_log(trainer, key) == training_log(whole, key)


@pytest.mark.parametrize(
    "teacher",
    [
        lambda data: MemoryTeacher.of(network_teacher(), data),
        lambda data: EnsembleTeacher([network(2, width=12), network(3, width=5)]),
        lambda data: EnsembleTeacher([MemoryTeacher.of(network_teacher(), data), network(3, width=5)]),
    ],
    ids=["memory", "ensemble", "ensemble with memory"],
)
def test_every_teacher_resumes(tmp_path, teacher):
    """All of them give the same answers in the next sitting, and must be recognised as the same."""

    def build():
        data = transfer_set(56)
        return {**noisy(), "data": data, "teacher": teacher(data)}

    undisturbed, _ = trained(tmp_path / "whole", **build(), **BASE)
    resumed, _ = cut_and_resumed(tmp_path / "cut", (3,), build, **BASE)
    assert_same_bits(resumed, undisturbed)


def network_teacher():
    from tutelage.teachers import ModuleTeacher

    return ModuleTeacher(network(2, width=12))


def test_a_teacher_on_another_machine_is_the_same_teacher(tmp_path):
    """The last bits of its logits depend on the machine and its threads: held to be another one, the run could not be moved."""

    def build(scale=1.0):
        teacher = network(2, width=12)
        with torch.no_grad():
            teacher[3].weight.mul_(scale)
        return {**noisy(), "teacher": teacher}

    trained(tmp_path, **build(), **BASE)
    trainer_of(tmp_path, **build(1.001), **BASE).train(resume_from_checkpoint=True)
    with pytest.raises(CheckpointError, match="teacher: the first examples give"):
        trainer_of(tmp_path, **build(1.2), **BASE).train(resume_from_checkpoint=True)


def test_an_own_optimiser_is_part_of_the_run(tmp_path):
    """Its settings are in no argument: another learning rate would go unseen."""

    def build(rate, kind=torch.optim.SGD):
        student = network(1)
        return {
            **noisy(),
            "student": student,
            "trainer_options": {"optimizers": (kind(student.parameters(), lr=rate), None)},
        }

    options = {**BASE, "num_train_epochs": 2}
    undisturbed, _ = trained(tmp_path / "whole", **build(0.1), **options)
    resumed, _ = cut_and_resumed(tmp_path / "cut", (3,), lambda: build(0.1), **options)
    assert_same_bits(resumed, undisturbed)
    for changed in (build(0.2), build(0.1, torch.optim.RMSprop), noisy()):
        with pytest.raises(CheckpointError, match=r"optimizer: .SGD .*lr"):
            trainer_of(tmp_path / "cut", **changed, **options).train(resume_from_checkpoint=True)


def test_users_own_facts_are_part_of_the_run(tmp_path):
    def build(facts):
        return {**noisy(), "trainer_options": {"fingerprint": facts}}

    trained(tmp_path, **build({"revision": "a1"}), **BASE)
    with pytest.raises(CheckpointError, match="revision: 'a1' in the checkpoint, 'b2' now"):
        trainer_of(tmp_path, **build({"revision": "b2"}), **BASE).train(resume_from_checkpoint=True)


def test_no_checkpoint_yet_is_a_fresh_start(tmp_path, caplog):
    """Killed before the first save, the same command must begin again; ``Trainer`` raises there."""
    with caplog.at_level(logging.WARNING, "tutelage"):
        _, trainer = cut_and_resumed(tmp_path / "never", (), noisy, **BASE)
    assert trainer._initial_global_step == 0
    assert not caplog.records


def test_images_with_two_random_views_resume(tmp_path):
    """Two random views, one for each model, are replayed as they were."""

    class Flat(nn.Module):
        def __init__(self, seed):
            super().__init__()
            self.inner = network(seed, dropout=0.2)

        def forward(self, images):
            return self.inner(images.flatten(1))

    def build():
        images = transfer_set(40).inputs.reshape(40, 1, 2, 3)
        data = TransferSet(
            images,
            torch.arange(40) % CLASSES,
            augment=HorizontalFlip(),
            student_view=GaussianNoise(0.5, stream="student"),
            teacher_view=GaussianNoise(0.1, stream="teacher"),
        )
        return {"student": Flat(1), "teacher": Flat(2), "data": data}

    options = {**BASE, "num_train_epochs": 2}
    undisturbed, _ = trained(tmp_path / "whole", **build(), **options)
    resumed, _ = cut_and_resumed(tmp_path / "cut", (3,), build, **options)
    assert_same_bits(resumed, undisturbed)
