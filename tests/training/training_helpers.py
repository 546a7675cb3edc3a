"""Small students, teachers and transfer sets, and a trainer that says nothing."""

import torch
from torch import nn
from transformers import PrinterCallback

from tutelage.data import TransferSet
from tutelage.objectives import KL, CrossEntropy
from tutelage.signals import NO_LABEL
from tutelage.training import DistillationArguments, DistillationTrainer

FEATURES, CLASSES = 6, 4
NOBODY = object()  # no teacher, where None means the usual one
OBJECTIVE = 0.3 * CrossEntropy() + 0.7 * KL(temperature=2)


def transfer_set(examples=64, *, unlabelled=(), seed=0, dtype=torch.float32, **options):
    """Random features; ``unlabelled`` are rows without a label."""
    generator = torch.Generator().manual_seed(seed)
    inputs = torch.randn(examples, FEATURES, generator=generator, dtype=torch.float64).to(dtype)
    labels = torch.randint(CLASSES, (examples,), generator=generator)
    labels[list(unlabelled)] = NO_LABEL
    return TransferSet(inputs, labels, **options)


def network(seed=0, *, width=8, dropout=0.0, dtype=torch.float32):
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(seed)
        layers = [nn.Linear(FEATURES, width), nn.Tanh(), nn.Dropout(dropout), nn.Linear(width, CLASSES)]
        return nn.Sequential(*layers).to(dtype)


def arguments(folder, **options):
    defaults = {
        "output_dir": str(folder),
        "per_device_train_batch_size": 16,
        "num_train_epochs": 2,
        "learning_rate": 0.05,
        "logging_steps": 1,
        "save_strategy": "no",
        "report_to": "none",
        "disable_tqdm": True,
        "use_cpu": True,
    }
    return DistillationArguments(**{**defaults, **options})


def trainer_of(
    folder, *, student=None, objective=OBJECTIVE, data=None, teacher=None, trainer_options=None, **arguments_given
):
    if teacher is None:
        teacher = network(seed=2, width=12)
    trainer = DistillationTrainer(
        network(seed=1) if student is None else student,
        arguments(folder, **arguments_given),
        objective,
        transfer_set() if data is None else data,
        teacher=None if teacher is NOBODY else teacher,
        **(trainer_options or {}),
    )
    trainer.remove_callback(PrinterCallback)
    return trainer


def trained(folder, **options):
    """The student's weights after training, and the trainer."""
    trainer = trainer_of(folder, **options)
    trainer.train()
    return weights(trainer.model), trainer


def weights(model):
    return {name: values.detach().clone() for name, values in model.state_dict().items()}


def assert_same_bits(left, right):
    assert left.keys() == right.keys()
    for name, values in left.items():
        assert torch.equal(values, right[name]), f"{name} differs by {(values - right[name]).abs().max()}"


def assert_close(left, right, tolerance=1e-12):
    assert left.keys() == right.keys()
    for name, values in left.items():
        torch.testing.assert_close(
            values, right[name], rtol=tolerance, atol=tolerance, msg=lambda m, n=name: f"{n}: {m}"
        )


def training_log(trainer, key="loss"):
    return [line[key] for line in trainer.state.log_history if key in line]
