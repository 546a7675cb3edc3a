"""A student's step: a 784-128-10 MLP, batch 128, teacher logits in memory, 0.1 · cross-entropy + 0.9 · KL at T = 4.

The peer is the loop one writes by hand, with the same loss, optimiser (fused AdamW), gradient clipping and schedule. Steady
state: set-up and the first steps are not counted.
"""

import tempfile
import time

import torch
import torch.nn.functional as F
from torch import nn
from torch.utils.data import DataLoader, TensorDataset
from transformers import PrinterCallback, TrainerCallback

import tutelage
from benchmarks.timing import Times, in_turns
from tutelage import TransferSet

EXAMPLES, BATCH, WARM = 128 * 320, 128, 20
STEPS = EXAMPLES // BATCH


def student() -> nn.Module:
    torch.manual_seed(0)
    return nn.Sequential(nn.Linear(784, 128), nn.ReLU(), nn.Linear(128, 10))


def wide_teacher() -> nn.Module:
    torch.manual_seed(1)
    return nn.Sequential(nn.Linear(784, 1200), nn.ReLU(), nn.Linear(1200, 1200), nn.ReLU(), nn.Linear(1200, 10)).eval()


class Stopwatch(TrainerCallback):
    """Time from the end of step ``WARM`` to the end of the last."""

    started = elapsed = 0.0

    def on_step_end(self, args, state, control, **_):
        if state.global_step == WARM:
            self.started = time.perf_counter()
        elif state.global_step == STEPS:
            self.elapsed = time.perf_counter() - self.started


def ours(data: TransferSet, teacher: tutelage.MemoryTeacher | tutelage.ModuleTeacher) -> float:
    watch = Stopwatch()
    with tempfile.TemporaryDirectory() as folder:
        arguments = tutelage.DistillationArguments(
            output_dir=folder,
            per_device_train_batch_size=BATCH,
            num_train_epochs=1,
            learning_rate=1e-3,
            save_strategy="no",
            logging_strategy="no",
            disable_tqdm=True,
        )
        objective = 0.1 * tutelage.CrossEntropy() + 0.9 * tutelage.KL(temperature=4)
        trainer = tutelage.DistillationTrainer(student(), arguments, objective, data, teacher, callbacks=[watch])
        trainer.remove_callback(PrinterCallback)
        trainer.train()
    return 1e3 * watch.elapsed / (STEPS - WARM)


def loss_of(student_logits: torch.Tensor, teacher_logits: torch.Tensor, labels: torch.Tensor) -> torch.Tensor:
    soft = F.kl_div(
        F.log_softmax(student_logits / 4, -1),
        F.log_softmax(teacher_logits / 4, -1),
        log_target=True,
        reduction="batchmean",
    )
    return 0.1 * F.cross_entropy(student_logits, labels) + 0.9 * 16 * soft


def by_hand(batches) -> float:
    """The hand-written loop over batches (inputs, labels, teacher logits)."""
    model = student()
    optimiser = torch.optim.AdamW(model.parameters(), lr=1e-3, weight_decay=0.0, fused=True)
    schedule = torch.optim.lr_scheduler.LambdaLR(optimiser, lambda step: 1 - step / STEPS)
    model.train()
    started = 0.0
    for step, (inputs, labels, teacher_logits) in enumerate(batches, start=1):
        loss = loss_of(model(inputs), teacher_logits, labels)
        loss.backward()
        nn.utils.clip_grad_norm_(model.parameters(), 1.0)
        optimiser.step()
        schedule.step()
        optimiser.zero_grad()
        if step == WARM:
            started = time.perf_counter()
    return 1e3 * (time.perf_counter() - started) / (STEPS - WARM)


def in_memory(inputs: torch.Tensor, labels: torch.Tensor, logits: torch.Tensor):
    order = torch.randperm(EXAMPLES)
    for start in range(0, EXAMPLES, BATCH):
        rows = order[start : start + BATCH]
        yield inputs[rows], labels[rows], logits[rows]


class Timed(nn.Module):
    """A teacher that times its own forward passes, where they happen: between the student's, in whatever is left of the caches."""

    def __init__(self, model: nn.Module) -> None:
        super().__init__()
        self.model = model
        self.seconds: list[float] = []

    def forward(self, inputs: torch.Tensor) -> torch.Tensor:
        started = time.perf_counter()
        outputs = self.model(inputs)
        self.seconds.append(time.perf_counter() - started)
        return outputs


def measure(rounds: int = 9) -> tuple[Times, Times]:
    """Times of a step with logits in memory beside the peers, and of a live teacher beside its own forward."""
    torch.manual_seed(2)
    inputs, labels = torch.randn(EXAMPLES, 784), torch.randint(0, 10, (EXAMPLES,))
    data = TransferSet(inputs, labels)
    teacher = wide_teacher()
    memory = tutelage.MemoryTeacher.of(tutelage.ModuleTeacher(teacher), data)
    with torch.no_grad():
        logits = teacher(inputs)
    dataset = TensorDataset(inputs, labels, logits)
    step = in_turns(
        {
            "tutelage": lambda: ours(data, memory),
            "by hand, in memory": lambda: by_hand(in_memory(inputs, labels, logits)),
            "by hand, DataLoader": lambda: by_hand(DataLoader(dataset, batch_size=BATCH, shuffle=True)),
        },
        rounds,
    )
    forwards: list[float] = []

    def with_live_teacher() -> float:
        timed = Timed(teacher)
        elapsed = ours(data, tutelage.ModuleTeacher(timed))
        forwards.append(1e3 * sum(timed.seconds[-(STEPS - WARM) :]) / (STEPS - WARM))
        return elapsed

    def live_by_hand() -> float:
        def batches():
            for inputs_now, labels_now, _ in in_memory(inputs, labels, logits):
                with torch.no_grad():
                    answers = teacher(inputs_now)
                yield inputs_now, labels_now, answers

        return by_hand(batches())

    live = in_turns(
        {
            "live": with_live_teacher,
            "memory": lambda: ours(data, memory),
            "forward": lambda: forwards[-1],
            "live by hand": live_by_hand,
            "memory by hand": lambda: by_hand(in_memory(inputs, labels, logits)),
        },
        rounds,
    )
    return step, live
