"""A stack of students: each must come out as it would alone, or not be stacked."""

from __future__ import annotations

import copy
import shutil
from dataclasses import replace

import pytest
import torch
from torch import nn
from training_helpers import assert_same_bits

from tutelage import KL, CrossEntropy, DistillationArguments, DistillationTrainer, TransferSet
from tutelage.data import GaussianNoise, Tokenise
from tutelage.errors import CheckpointError, NonFiniteError
from tutelage.evaluation import classification_metrics
from tutelage.objectives import DIST, DKD, Hint, Linear, as_objective
from tutelage.studies.arm import build_seeded
from tutelage.teachers import EnsembleTeacher, MemoryTeacher, ModuleTeacher
from tutelage.training.stack import Stack
from tutelage.training.stack_plain import PlainNetwork
from tutelage.training.stackable import kind, same_set, why_alone
from tutelage.training.stacked import StackedTrainer, kept_members

WIDTH, CLASSES = 12, 5
MLP = lambda: nn.Sequential(nn.Linear(WIDTH, 16), nn.ReLU(), nn.Linear(16, CLASSES))  # noqa: E731
NORMED = lambda: nn.Sequential(  # noqa: E731
    nn.Linear(WIDTH, 16, bias=False), nn.BatchNorm1d(16), nn.ReLU(), nn.Linear(16, CLASSES)
)
TIMES = {"eval_runtime", "eval_samples_per_second", "eval_steps_per_second"}


def data(count=72, seed=1, unlabelled=0, **options):
    generator = torch.Generator().manual_seed(seed)
    labels = torch.arange(count) % CLASSES
    centres = torch.randn(CLASSES, WIDTH, generator=torch.Generator().manual_seed(0))
    inputs = centres[labels] + torch.randn(count, WIDTH, generator=generator)
    labels[torch.randperm(count, generator=generator)[:unlabelled]] = -100
    return TransferSet(inputs, labels, **options)


def teacher(seed=5):
    torch.manual_seed(seed)
    return ModuleTeacher(nn.Linear(WIDTH, CLASSES))


def trainer_of(folder, seed, objective, train, said=None, build=MLP, **training):
    arguments = {
        "max_steps": 12,
        "per_device_train_batch_size": 16,
        "learning_rate": 0.02,
        "logging_steps": 1,
        "eval_strategy": "steps",
        "eval_steps": 5,
        "save_strategy": "no",
        "report_to": "none",
        "disable_tqdm": True,
    }
    own = {"output_dir": str(folder / f"{seed}"), "seed": seed, "data_seed": seed}
    return DistillationTrainer(
        build_seeded(build, seed),
        DistillationArguments(**{**arguments, **training, **own}),
        objective,
        train,
        said,
        eval_dataset=data(30, seed=2),
        compute_metrics=lambda p: classification_metrics(p.predictions, p.label_ids),
    )


def both(folder, cases, train, said=None, build=MLP, **training):
    """The trainers of (seed, objective, own arguments), trained one by one, and the same trained as a stack."""
    make = lambda: [  # noqa: E731
        trainer_of(folder, seed, objective, train, said, build, **{**training, **own}) for seed, objective, own in cases
    ]
    alone = make()
    for trainer in alone:
        trainer.train()
    together = make()
    assert [why_alone(trainer) for trainer in together] == [None] * len(together)
    assert len({kind(trainer)[0] for trainer in together}) == 1
    stacked = stack_of(folder, together)
    assert stacked.why_not() is None
    stacked.train(lambda *_: None, lambda _: None)
    return alone, together, stacked


def stack_of(folder, trainers):
    names = [f"student {index}" for index in range(len(trainers))]
    return StackedTrainer(trainers, names, names, folder / "together")


def weights(trainer):
    return {name: values.detach().clone() for name, values in trainer.model.state_dict().items()}


def assert_alike(alone, together, stacked, tolerance=1e-5):
    for index, (one, other) in enumerate(zip(alone, together, strict=True)):
        torch.testing.assert_close(weights(other), weights(one), rtol=tolerance, atol=tolerance)
        expected = [
            {key: value for key, value in line.items() if key not in TIMES}
            for line in one.state.log_history
            if "train_runtime" not in line
        ]
        log = stacked.logs[stacked.place[index]]
        assert [line.keys() for line in log] == [line.keys() for line in expected]
        for got, want in zip(log, expected, strict=True):
            assert got == pytest.approx(want, rel=1e-3, abs=1e-4)


def test_temperatures_smoothing_decay_and_rates_of_their_own(tmp_path):
    """A sweep's trials share a loop: a weight, temperature, seed, rate or decay of a neighbour would be a wrong result that
    looks like a good one. The gradient's norm exceeds the bound for some and not for others, so clipping all alike shows too."""
    cases = [
        (3, 0.3 * CrossEntropy() + 0.7 * KL(1.0), {}),
        (0, 0.3 * CrossEntropy() + 0.7 * KL(4.0), {"learning_rate": 0.005}),
        (0, CrossEntropy(label_smoothing=0.2) * 1.0, {"weight_decay": 0.5}),
        (3, 0.3 * CrossEntropy() + 2.0 * KL(32.0), {"learning_rate": 0.005, "weight_decay": 0.5}),
        (0, 0.9 * KL(1.0, direction="reverse") + 0.1 * CrossEntropy(), {}),
    ]
    how = {"lr_scheduler_type": "cosine", "warmup_steps": 3, "max_grad_norm": 0.7, "weight_decay": 0.1}
    train = data()
    alone, together, stacked = both(tmp_path, cases, train, MemoryTeacher.of(teacher(), train), **how)
    norms = [line["grad_norm"] for log in stacked.logs for line in log if "grad_norm" in line]
    assert min(norms) < 0.7 < max(norms)
    assert_alike(alone, together, stacked)


def test_augmentation_partial_labels_schedules_and_terms_that_cannot_be_joined(tmp_path):
    """Each student divides by the labelled rows of its own batch; a term over the whole batch (DIST) must never see another's
    rows; a weight that is 0 for now must leave its component in the log alone. 72 examples in batches of 16 leave one of 8."""
    ramp = Linear(0.0, 1.0)
    cases = [
        (1, CrossEntropy() + ramp * DKD(temperature=2.0), {}),
        (2, CrossEntropy() + ramp * DKD(temperature=2.0), {}),
        (1, DIST() + 0.5 * CrossEntropy(), {}),
        (2, CrossEntropy() + KL(Linear(8.0, 1.0)), {}),
    ]
    train = data(unlabelled=50, augment=GaussianNoise(0.3), seed=7)
    ensemble = EnsembleTeacher([teacher(5), teacher(6)], [2.0, 1.0])
    alone, together, stacked = both(tmp_path, cases, train, ensemble, num_train_epochs=2, max_steps=-1)
    assert stacked.steps == 10
    assert_alike(alone, together, stacked)


def test_batch_norm_keeps_each_students_own_statistics(tmp_path):
    """Running statistics are changed in place by the forward: shared ones would be the last student's, and wrong in
    evaluation only."""
    cases = [(0, CrossEntropy() * 1.0, {}), (1, CrossEntropy() * 1.0, {}), (1, CrossEntropy(0.3) * 1.0, {})]
    alone, together, stacked = both(tmp_path, cases, data(), build=NORMED)
    assert weights(together[0])["1.num_batches_tracked"] == 12
    assert_alike(alone, together, stacked, tolerance=1e-4)


def test_named_inputs_tokens_and_tied_weights(tmp_path):
    """Texts of different batches have different lengths, a linear layer then meets ``[B, T, D]``, and one tensor has two names."""

    class Reader(nn.Module):
        def __init__(self):
            super().__init__()
            self.words, self.mix = nn.Embedding(40, 8), nn.Linear(8, 8)
            self.again, self.head = nn.Linear(8, 8), nn.Linear(8, CLASSES)
            self.again.weight = self.mix.weight

        def forward(self, input_ids, attention_mask):
            found = self.again(torch.tanh(self.mix(self.words(input_ids))))
            share = attention_mask.unsqueeze(-1).float()
            return {"logits": self.head((found * share).sum(1) / share.sum(1))}

    class Letters:
        pad_token = "_"

        def __call__(self, texts, **_):
            rows = [torch.tensor([ord(letter) % 40 for letter in text]) for text in texts]
            ids = nn.utils.rnn.pad_sequence(rows, batch_first=True)
            mask = nn.utils.rnn.pad_sequence([torch.ones_like(row) for row in rows], batch_first=True)
            return {"input_ids": ids, "attention_mask": mask}

    texts = [f"{'abcde'[index % 5] * (1 + index % 7)} {index}" for index in range(60)]
    train = TransferSet(texts, torch.arange(60) % CLASSES, student_view=Tokenise(Letters()))
    cases = [(seed, CrossEntropy(smoothing) * 1.0, {}) for seed in (0, 1) for smoothing in (0.0, 0.1)]
    make = lambda: [  # noqa: E731
        trainer_of(tmp_path, seed, objective, train, build=Reader, eval_strategy="no") for seed, objective, _ in cases
    ]
    alone, together = make(), make()
    for trainer in alone:
        trainer.train()
    stacked = stack_of(tmp_path, together)
    assert stacked.why_not() is None
    stacked.train(lambda *_: None, lambda _: None)
    assert_alike(alone, together, stacked)


def test_each_batch_is_asked_about_once(tmp_path):
    """A live teacher costs more than all students: asked for each of them, it would eat what the stack saves."""

    class Asked:
        def __init__(self):
            self.inner, self.ids = teacher(), []

        def signals(self, batch):
            self.ids.append(tuple(batch["ids"].tolist()))
            return self.inner.signals(batch)

    asked, train = Asked(), data()
    trainers = [
        trainer_of(tmp_path, seed, KL(t) * 1.0, train, asked, max_steps=3) for seed in (0, 1) for t in (1.0, 2.0, 4.0)
    ]
    stacked = stack_of(tmp_path, trainers)
    asked.ids.clear()
    stacked.train(lambda *_: None, lambda _: None)
    assert len(asked.ids) == len(set(asked.ids)) == 2 * 3


class Noted(nn.Linear):
    def __init__(self):
        super().__init__(WIDTH, CLASSES)
        self.calls = 0

    def forward(self, inputs):
        self.calls += 1
        return super().forward(inputs)


class Choosing(nn.Linear):
    def __init__(self):
        super().__init__(WIDTH, CLASSES)

    def forward(self, inputs):
        values = super().forward(inputs)
        return values if float(values.detach().sum()) > 0 else -values


class Scaled(nn.Linear):
    def __init__(self):
        super().__init__(WIDTH, CLASSES)
        self.scale = float(torch.rand(())) + 1

    def forward(self, inputs):
        return super().forward(inputs) * self.scale


@pytest.mark.parametrize(
    ("build", "reason"),
    [
        (lambda: nn.Sequential(nn.Linear(WIDTH, CLASSES), nn.Dropout(0.1)), "draws random numbers"),
        (Noted, "keeps notes"),
        (Choosing, "vmap cannot call"),
        (Scaled, "does not answer or learn as it does alone"),
    ],
)
def test_what_a_trial_finds(tmp_path, build, reason):
    """Nothing in these students' names and shapes tells that a stack would train something else; only trying does."""
    trainers = [trainer_of(tmp_path, seed, as_objective(CrossEntropy()), data(), build=build) for seed in (0, 1)]
    before, state = [weights(trainer) for trainer in trainers], torch.get_rng_state()
    stacked = stack_of(tmp_path, trainers)
    assert reason in str(stacked.why_not())
    assert torch.equal(torch.get_rng_state(), state)
    for trainer, held in zip(trainers, before, strict=True):
        assert_same_bits(weights(trainer), held)


def test_dropout_of_nothing_is_no_obstacle(tmp_path):
    """Many models have Dropout(0.0): refusing the layer by its name would send them all the slow road."""
    build = lambda: nn.Sequential(nn.Linear(WIDTH, CLASSES), nn.Dropout(0.0))  # noqa: E731
    trainers = [trainer_of(tmp_path, seed, as_objective(CrossEntropy()), data(), build=build) for seed in (0, 1)]
    assert stack_of(tmp_path, trainers).why_not() is None


@pytest.mark.parametrize(
    ("changes", "reason"),
    [
        ({"gradient_accumulation_steps": 2}, "gradient_accumulation_steps is 2"),
        ({"optim": "sgd"}, "the optimiser is sgd"),
        ({"lr_scheduler_type": "reduce_lr_on_plateau", "metric_for_best_model": "nll"}, "metric_for_best_model"),
        (
            {"load_best_model_at_end": True, "save_strategy": "steps", "save_steps": 5, "metric_for_best_model": "nll"},
            "best",
        ),
        ({"neftune_noise_alpha": 0.1}, "neftune_noise_alpha"),
        ({"bf16": True, "use_cpu": True}, "bf16"),
        ({"optim_args": "amsgrad=True"}, "optim_args"),
        ({"build": lambda: nn.Linear(WIDTH, CLASSES).double()}, "not in float32"),
        (
            {"build": lambda: nn.Sequential(nn.Linear(WIDTH, 60_000), nn.Linear(60_000, CLASSES))},
            "1,080,005 parameters",
        ),
        (
            {
                "build": lambda: nn.Sequential(
                    nn.Unflatten(1, (3, 4)), nn.Conv1d(3, 2, 2), nn.Flatten(), nn.Linear(6, 5)
                )
            },
            "convolutions",
        ),
        ({"objective": CrossEntropy() + Hint("0", "0")}, "reads student.features"),
        ({"objective": Linear(0.0, 1.0) * CrossEntropy()}, "may weigh nothing"),
    ],
)
def test_why_one_trains_alone(tmp_path, changes, reason):
    """What a stack does not do as the trainer does must be found from the settings, or it would silently be left out."""
    own = dict(changes)
    objective, build = own.pop("objective", CrossEntropy()), own.pop("build", MLP)
    train = data()
    if "float32" in reason:
        train = replace(train, inputs=train.inputs.double())
    trainer = trainer_of(tmp_path, 0, objective, train, ModuleTeacher(MLP()), build, **own)
    assert reason in str(why_alone(trainer))


def test_settings_that_decide_no_number_do_not_part_students(tmp_path):
    """Only what is listed may differ in a stack; a folder and a seed must, and a batch size must not."""
    same = kind(trainer_of(tmp_path, 0, CrossEntropy(), data()))
    assert kind(trainer_of(tmp_path, 1, KL(2.0), data(), teacher(), learning_rate=0.5))[0::2] == same[0::2]
    assert kind(trainer_of(tmp_path, 1, CrossEntropy(), data(), per_device_train_batch_size=8)) != same
    assert kind(trainer_of(tmp_path, 1, CrossEntropy(), data(), eval_steps=6)) != same


def test_sets_are_the_same_by_what_they_show():
    """A sweep reads its data anew for each trial: other objects, the same examples. Another view, label or seed is another set."""
    one = data(augment=GaussianNoise(0.1))
    assert same_set(one, data(augment=GaussianNoise(0.1)))
    assert not same_set(one, data(augment=GaussianNoise(0.2)))
    assert not same_set(one, data(unlabelled=1, augment=GaussianNoise(0.1)))
    assert not same_set(one, replace(one, seed=1))
    assert not same_set(one, None)


def test_a_loss_that_is_not_finite_names_the_student_and_takes_no_step(tmp_path):
    """One student of thirty that diverges must not spoil or hide among the others, and its weights say how far it got."""
    torch.manual_seed(0)
    rates = (0.01, 1e38, 0.01)
    trainers = [
        trainer_of(tmp_path, seed, as_objective(CrossEntropy()), data(), learning_rate=rate, max_grad_norm=0)
        for seed, rate in enumerate(rates)
    ]
    stacked = stack_of(tmp_path, trainers)
    steps = []
    with pytest.raises(NonFiniteError, match=r"^student 1: .*not finite at step (\d+); the step was not taken"):
        stacked.train(lambda *_: None, steps.append)
    assert steps
    held = {name: values.clone() for name, values in stacked.stack.weights.items()}
    again = [
        trainer_of(tmp_path, seed, as_objective(CrossEntropy()), data(), learning_rate=0.01, max_grad_norm=0)
        for seed in (0, 2)
    ]
    alone = stack_of(tmp_path / "alone", again)
    short = []

    def until_there(step):
        short.append(step)
        if step == len(steps):
            raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        alone.train(lambda *_: None, until_there)
    for name, values in alone.stack.weights.items():
        torch.testing.assert_close(held[name][[0, 2]], values, rtol=1e-5, atol=1e-6)


class Cut(Exception):
    pass


def cut_at(step):
    def advanced(done):
        if done == step:
            raise Cut

    return advanced


def resumable(folder):
    train = data(augment=GaussianNoise(0.3))
    how = {"save_strategy": "steps", "save_steps": 1, "max_steps": 30}
    return [
        trainer_of(folder, seed, objective, train, teacher(), NORMED, **how)
        for seed in (0, 1)
        for objective in (0.5 * CrossEntropy() + 0.5 * KL(2.0), as_objective(CrossEntropy(0.1)))
    ]


def run(folder, advanced=lambda _: None):
    """Train, or go on; what is there at the end, and the step it began at."""
    trainers, began = resumable(folder), []
    stacked = stack_of(folder, trainers)
    stacked.train(lambda _, done: began.append(done), advanced)
    return [weights(trainer) for trainer in trainers], stacked.logs, began[0]


def test_cut_off_and_continued_ends_bit_for_bit_the_same(tmp_path):
    """A moment, a log line or a batch that is not restored changes the weights without an error; a damaged checkpoint must
    be passed over, and a stack is saved at most ten times."""
    expected, logs, _ = run(tmp_path / "whole")
    folder = tmp_path / "cut"
    kept = folder / "together"
    with pytest.raises(Cut):
        run(folder, cut_at(17))
    assert sorted(path.name for path in kept.iterdir()) == ["checkpoint-12", "checkpoint-15"]
    with (kept / "checkpoint-15" / "stack.safetensors").open("r+b") as file:
        file.seek(1000)
        file.write(b"\0\0\0\0\1")
    assert kept_members(kept) == [f"student {index}" for index in range(4)]
    found, found_logs, began = run(folder)
    assert began == 12
    for one, other in zip(found, expected, strict=True):
        assert_same_bits(one, other)
    assert found_logs == logs


def test_a_stack_of_other_settings_is_not_continued(tmp_path):
    """Going on with another objective would leave a model that no settings describe."""
    with pytest.raises(Cut):
        run(tmp_path, cut_at(4))
    trainers = resumable(tmp_path)
    trainers[2].objective = as_objective(CrossEntropy(0.4))
    with pytest.raises(CheckpointError, match="objective"):
        stack_of(tmp_path, trainers).train(lambda *_: None, lambda _: None)


def test_some_of_a_stack_go_on_alone(tmp_path):
    """Killed while its arms were being committed, a stack has members that are finished; the others must still find theirs."""
    expected, *_ = run(tmp_path / "whole")
    folder = tmp_path / "part"
    run(folder)
    trainers = resumable(folder)[1:3]
    stacked = StackedTrainer(trainers, ["b", "c"], ["student 1", "student 2"], folder / "together")
    begun = []
    stacked.train(lambda *at: begun.append(at), lambda _: pytest.fail("no step was left to make"))
    assert begun == [(30, 30)]
    for trainer, values in zip(trainers, expected[1:3], strict=True):
        assert_same_bits(weights(trainer), values)
    shutil.rmtree(folder)


def test_gradients_lie_in_memory_as_the_weights_do(tmp_path):
    """The fused kernel walks through memory and asks nobody for strides: a transposed gradient would move other weights."""

    class Product(nn.Module):
        def __init__(self):
            super().__init__()
            self.weight = nn.Parameter(torch.randn(CLASSES, WIDTH))

        def forward(self, inputs):
            return inputs @ self.weight.T

    cases = [(seed, as_objective(CrossEntropy()), {}) for seed in (0, 1)]
    assert_alike(*both(tmp_path, cases, data(), build=Product))


def test_a_student_that_vmap_would_take_one_by_one_trains_alone(tmp_path):
    """torch falls back to a loop for operations it cannot batch, with a warning: slower than without a stack."""

    class Pairs(nn.Module):
        def __init__(self):
            super().__init__()
            self.inner = nn.Bilinear(6, 6, CLASSES)

        def forward(self, inputs):
            return self.inner(inputs[:, :6], inputs[:, 6:])

    trainers = [trainer_of(tmp_path, seed, as_objective(CrossEntropy()), data(), build=Pairs) for seed in (0, 1)]
    assert "performance drop" in str(stack_of(tmp_path, trainers).why_not())


def test_plain_networks_answer_as_vmap_does(tmp_path):
    """A plain network goes another road than ``vmap``; a layer passed over, a shared weight or a hook would show here."""
    inputs = torch.randn(6, 3, 4)
    tied = nn.Sequential(nn.Flatten(), nn.Linear(12, 12), nn.Tanh(), nn.Linear(12, 12), nn.Linear(12, CLASSES))
    tied[3].weight = tied[1].weight
    hooked = nn.Sequential(nn.Flatten(), nn.Linear(12, CLASSES))
    hooked[1].register_forward_hook(lambda module, given, answer: 2 * answer)
    twice = nn.ReLU()
    networks = {
        "nested": nn.Sequential(
            nn.Linear(4, 5, bias=False), nn.Sequential(nn.GELU(), nn.Dropout(0.0), nn.Flatten()), nn.Linear(15, CLASSES)
        ),
        "tied": tied,
        "hooked": hooked,
        "inplace": nn.Sequential(nn.Flatten(), nn.Linear(12, 8), nn.ReLU(inplace=True), nn.Linear(8, CLASSES)),
        "twice": nn.Sequential(nn.Flatten(), nn.Linear(12, 8), twice, nn.Linear(8, 8), twice, nn.Linear(8, CLASSES)),
        "normed": nn.Sequential(nn.Flatten(), nn.LayerNorm(12), nn.Linear(12, CLASSES)),
    }
    plain = {name for name, network in networks.items() if PlainNetwork.of(network) is not None}
    assert plain == {"nested"}
    optimiser = stack_of(
        tmp_path, [trainer_of(tmp_path, seed, as_objective(CrossEntropy()), data()) for seed in (0, 1)]
    ).stack.optimiser
    for network in networks.values():
        students = [network, copy.deepcopy(network)]
        with torch.no_grad():
            for values in students[1].parameters():
                values.add_(0.1)
        stack = Stack(students, [slice(0, 2)], optimiser)
        expected = torch.stack([student(inputs) for student in students])
        torch.testing.assert_close(stack.logits(0, inputs), expected)
