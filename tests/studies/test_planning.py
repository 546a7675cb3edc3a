"""What a plan says of a study: how often its teacher is asked, what each way to the answers costs, and which one it takes."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import torch
from sweeps import QUICK, RANGES, search
from tiny import CLASSES, TRAINING, WIDTH, CountingTeacher, blobs, good_teacher, splits, student, study
from torch import nn

from tutelage import KL, CrossEntropy, ModuleTeacher, TransferSet
from tutelage.data import GaussianNoise, Splits
from tutelage.errors import ConfigError
from tutelage.objectives import Divergence
from tutelage.studies import Assistant, BornAgain, Chain, Member, Study, TeacherTraining
from tutelage.studies.planning import measuring, plan_study
from tutelage.studies.planning.asks import Asks, asks_of, asks_of_sweep, budget_of
from tutelage.studies.planning.measuring import Steps, ask_some, free_memory, time_form
from tutelage.studies.planning.plan import Measured, disk_of, teacher_here, temperature_of
from tutelage.studies.planning.ways import Costs, FormCost, Limits, Spread, Way, lasting, pick, size, ways_of
from tutelage.studies.stored_labels import Labels

TRAIN = len(splits().train)
QUIET: dict[str, Any] = {**TRAINING, "eval_strategy": "no", "save_strategy": "no"}


def once(seconds: float) -> Spread:
    return Spread(seconds, 0.9 * seconds, 1.2 * seconds, 12)


def form(kind: str, row: float, write: float = 1e-5, read: float = 1e-5) -> FormCost:
    sections: dict[str, dict[str, Any]] = {
        "dense": {"form": "dense"},
        "sampled": {"form": "sampled", "draws": 50, "temperature": 1.0},
        "top_k": {"form": "top_k", "k": 32, "temperature": 2.0},
    }
    return FormCost(sections[kind], once(0.5), once(write), once(read), once(read / 10), row, row, row)


def costs(**changes: Any) -> Costs:
    """A thousandth of a second an answer, ten classes."""
    usual: dict[str, Any] = {
        "ask": once(1e-3),
        "label": once(1e-3),
        "recall": once(1e-6),
        "answer_bytes": 40.0,
        "teacher_bytes": 4_000_000,
        "cache_bytes": 64 << 20,
        "free_memory": 8 << 30,
        "free_disk": 100 << 30,
        "dense": form("dense", 21.0),
        "sparse": form("sampled", 30.0),
    }
    return Costs(**{**usual, **changes})


def asks(**changes: Any) -> Asks:
    """Five seeds of twenty epochs over 10,000 examples."""
    usual: dict[str, Any] = {
        "trainings": 5,
        "shared": 0,
        "stacked": 0,
        "live": 1_000_000,
        "examples": 10_000,
        "epochs": 20,
        "passes": 1,
        "stores": 1,
        "student_steps": 30_000,
        "layers": (),
        "batch": 64,
    }
    return Asks(**{**usual, **changes})


def taken(asked: Asks, given: Costs, limits: Limits | None = None) -> tuple[Way, str]:
    return pick(ways_of(asked, given, limits if limits is not None else Limits()), given)


def by_name(ways: Sequence[Way]) -> dict[str, Way]:
    return {way.name: way for way in ways}


# How often the teacher is asked


@pytest.mark.parametrize(
    ("training", "expected"),
    [
        ({"num_train_epochs": 2, "per_device_train_batch_size": 16}, (8, 120, 2)),
        ({"num_train_epochs": 2, "per_device_train_batch_size": 16, "dataloader_drop_last": True}, (6, 96, 2)),
        ({"num_train_epochs": 2, "per_device_train_batch_size": 16, "gradient_accumulation_steps": 3}, (4, 120, 2)),
        ({"max_steps": 6, "per_device_train_batch_size": 16}, (6, 92, 2)),
        ({"num_train_epochs": 1.5, "per_device_train_batch_size": 16}, (6, 92, 2)),
        ({"num_train_epochs": 3, "per_device_train_batch_size": 100}, (3, 180, 3)),
    ],
)
def test_the_examples_of_one_training(training: dict[str, Any], expected: tuple[int, int, int]) -> None:
    """60 examples make batches of 16, 16, 16 and 12: counted as full ones, a small set would be planned for many times over."""
    found = budget_of(training, splits().train)
    assert (found.steps, found.examples, found.epochs) == expected


def heard_in_training(teacher: CountingTeacher, whole: Study) -> int:
    """The examples of the transfer set that a teacher was really asked about, without the few that every trainer looks at first."""
    ours = set(whole.splits.train.ids.tolist())
    asked = [ids.tolist() for ids in teacher.asked if len(ids) > 4]
    return sum(len(ids) for ids in asked if set(ids) <= ours)


@pytest.mark.parametrize("together", [False, None])
def test_what_is_planned_is_what_a_study_asks(tmp_path: Path, together: bool | None) -> None:
    """A plan that miscounts arms, seeds or shared answers takes the wrong way by as much."""
    augmented = splits(augment=GaussianNoise(0.1))
    augmented = replace(augmented, validation=splits().validation, test=splits().test)
    teacher = CountingTeacher(good_teacher())
    whole = study(
        splits=augmented,
        teacher=teacher,
        training={**QUIET, "max_steps": 6},
        arms=["kd"],
        extra_arms={"warm": KL(temperature=4.0), "own_kind": BornAgain(1)},
        together=together,
    )
    planned = asks_of(whole, teacher)
    teacher.asked.clear()
    whole.run(tmp_path)
    assert heard_in_training(teacher, whole) == planned.live
    assert planned.trainings == 4
    assert planned.shared == (0 if together is False else 2), "two arms of a seed in one stack hear one answer"
    assert planned.live == (4 - planned.shared) * 92


def test_what_is_remembered_is_asked_once(tmp_path: Path) -> None:
    """The same of a view that stays as it is: one pass over the different examples, whatever listens to it."""
    teacher = CountingTeacher(good_teacher())
    whole = study(teacher=teacher, extra_arms={"warm": KL(temperature=4.0)})
    planned = asks_of(whole, teacher)
    teacher.asked.clear()
    whole.run(tmp_path)
    assert heard_in_training(teacher, whole) == planned.examples * planned.passes == TRAIN
    assert planned.student_steps == 4 * 2 * 8


def test_behind_assistants_only_the_first_hear_the_teacher(tmp_path: Path) -> None:
    """The judged student of a chain hears its last assistant: counted as the teacher's pupil, it would ask a teacher that is silent."""
    augmented = replace(splits(), train=blobs(60, 1, augment=GaussianNoise(0.1)))
    teacher = CountingTeacher(good_teacher())
    chain = Chain([Assistant("a", student, training={**QUIET, "num_train_epochs": 3}), Assistant("b", student)])
    whole = study(splits=augmented, teacher=teacher, chain=chain, training=QUIET, arms=["kd"])
    planned = asks_of(whole, teacher)
    teacher.asked.clear()
    whole.run(tmp_path)
    assert planned.trainings == 2 + 1, "direct with two seeds, and the first assistant"
    assert heard_in_training(teacher, whole) == planned.live == (2 * 2 + 3) * TRAIN
    assert planned.epochs == 3


def test_a_sweep_asks_for_each_trial_and_for_its_winner() -> None:
    """Eight trials that are left out make a teacher look cheap that is asked nine times as long."""
    wanted = search({**RANGES}, trials=7)
    base = wanted.make({}).study
    run = asks_of(base, CountingTeacher(good_teacher()))
    swept = asks_of_sweep(wanted, run)
    assert QUICK["num_train_epochs"] == 1
    assert run.live == TRAIN
    assert swept.live == (7 * 2 + 1) * TRAIN
    assert swept.trainings == 7 * 2 + 1
    assert (swept.passes, swept.stores) == (2, 1), "the winner's run remembers anew"


def test_layers_are_remembered_in_passes_of_their_own() -> None:
    asked = asks_of(study(extra_arms={"plain": CrossEntropy()}), CountingTeacher(good_teacher()))
    assert (asked.trainings, asked.passes, asked.layers) == (2, 1, ())


# What each way costs


def test_the_arithmetic() -> None:
    """By hand, of a million asks and 10,000 examples at 1 ms, 10 µs to write and to read, half a second to certify."""
    ways = by_name(ways_of(asks(), costs(), Limits()))
    assert ways["live"].seconds.median == pytest.approx(1000.0)
    assert (ways["live"].seconds.low, ways["live"].seconds.high) == (pytest.approx(900.0), pytest.approx(1200.0))
    assert ways["memory"].seconds.median == pytest.approx(10.0 + 1.0)
    assert ways["memory"].memory == 4_000_000 + 400_000
    # all of it is in the store's cache: a tenth of 10 µs an example
    assert ways["dense"].seconds.median == pytest.approx(10.0 + 0.1 + 0.5 + 1.0)
    assert ways["dense"].again.median == pytest.approx(1.0)
    assert ways["dense"].disk == 210_000
    assert ways["sparse"].labels == {"form": "sampled", "draws": 50, "temperature": 1.0}
    # a store of which a tenth is in the cache
    large = costs(dense=form("dense", 2.1e3), cache_bytes=2_100_000)
    reading = by_name(ways_of(asks(), large, Limits()))["dense"].again.median
    assert reading == pytest.approx(1e6 * (0.9 * 1e-5 + 0.1 * 1e-6))


def test_a_sweep_and_views_multiply_what_is_labelled() -> None:
    """With eight views of each example and two teachers, a store is sixteen times as large, and takes sixteen times as long."""
    limits = Limits(varies=True, views=8)
    dense = by_name(ways_of(asks(stores=2), costs(), limits))["dense"]
    assert dense.labelling.median == pytest.approx(16 * 10_000 * (1e-3 + 1e-5) + 2 * 0.5)
    assert dense.disk == 16 * 210_000
    assert dense.labels == {"form": "dense", "views": 8}
    # views that no epoch shows are written all the same
    assert by_name(ways_of(asks(epochs=3), costs(), limits))["dense"].disk == 8 * 210_000


# Which one it takes


def test_a_fast_teacher_is_remembered() -> None:
    """A store for an answer that takes a microsecond is a folder to look after for nothing."""
    way, why = taken(asks(), costs(ask=once(1e-6), label=once(1e-6)))
    assert (way.name, way.labels) == ("memory", None)
    assert why == "no way is much faster, and it is the simplest of those"
    way, why = taken(asks(), costs())
    assert way.name == "memory"
    assert "asking at every step" in why


def test_a_slow_teacher_of_many_epochs_is_stored() -> None:
    """Ten hours of answers that go with the process are ten hours to be waited for again after a power cut."""
    slow = costs(ask=once(4.0), label=once(3.6))
    way, why = taken(asks(), slow)
    assert (way.name, way.labels) == ("dense", {"form": "dense"})
    assert "labelling takes 10 h" in why


def test_a_huge_vocabulary_is_stored_sparsely() -> None:
    """262,144 classes at 100,000 tokens: 52 GB of logits against 4 MB."""
    tokens = asks(live=2_000_000, examples=100_000)
    huge = costs(
        ask=once(0.1),
        label=once(0.1),
        answer_bytes=1_048_576.0,
        dense=form("dense", 524_288.0, 2e-3, 1e-3),
        sparse=form("sampled", 36.0, 5e-3),
    )
    way, why = taken(tokens, huge)
    assert way.name == "sparse"
    assert way.labels == {"form": "sampled", "draws": 50, "temperature": 1.0}
    assert why.endswith("storing them whole would take 52.4 GB of the disk and 3.4 h")
    ways = by_name(ways_of(tokens, huge, Limits()))
    assert "105 GB, and 8.59 GB of memory" in ways["memory"].cannot[0]


def test_a_full_disk_is_not_written_to() -> None:
    """The labels of a night that fail at nine tenths are worse than no plan."""
    slow = costs(ask=once(4.0), label=once(3.6), free_disk=200_000)
    way, why = taken(asks(), slow)
    ways = by_name(ways_of(asks(), slow, Limits()))
    assert way.name == "memory"
    assert "times faster than asking at every step" in why
    assert "the store takes 210 kB, and 200 kB of disk are free" in ways["dense"].cannot[0]
    assert ways["sparse"].cannot


def test_one_pass_is_not_worth_keeping_where_memory_is_short() -> None:
    """Asked once about everything, a teacher that is stored first is asked as often, and written and read besides."""
    single = asks(live=10_000, epochs=1, trainings=1)
    way, _ = taken(single, costs(answer_bytes=1e6))
    assert way.name == "live"


def test_ever_new_views_cannot_be_kept() -> None:
    """An answer to one view that is learnt for another is a wrong label."""
    limits = Limits(varies=True)
    ways = by_name(ways_of(asks(), costs(), limits))
    for name in ("memory", "dense", "sparse"):
        assert "another view of each example in every epoch" in ways[name].cannot[0]
    assert "labels.views" in ways["dense"].cannot[0]
    way, why = taken(asks(), costs(), limits)
    assert (way.name, why) == ("live", "no other way is open to this study")


def test_what_a_form_refuses_is_not_taken() -> None:
    slow = costs(ask=once(4.0), label=once(3.6), sparse=None, dense=None)
    limits = Limits(dense="too wide", sparse="no temperature", memory="features do not fit")
    ways = by_name(ways_of(asks(), slow, limits))
    assert (ways["dense"].cannot, ways["sparse"].cannot) == (["too wide"], ["no temperature"])
    assert taken(asks(), slow, limits)[0].name == "live"


def test_numbers_for_people() -> None:
    times = [lasting(seconds) for seconds in (0.04, 12.3, 300.0, 2400.0, 12_000.0, 500_000.0)]
    assert times == ["0.04 s", "12 s", "5.0 min", "40 min", "3.3 h", "5.8 days"]
    assert [size(count) for count in (12, 4.2e6, 5.24e10, 3e12)] == ["12 B", "4.2 MB", "52.4 GB", "3 TB"]


# What is measured


def injected(found: Costs, limits: Limits | None = None) -> Any:
    steps = Steps(once(1e-2), once(2e-3))
    return lambda *_: Measured(found, limits if limits is not None else Limits(), steps, 640, 640)


def test_a_plan_trains_nothing(tmp_path: Path) -> None:
    """A teacher that the run would train is measured with fresh weights, and a later run finds an empty folder."""
    trained = study(teacher=student, teacher_training=TeacherTraining(splits().train, TRAINING))
    result = plan_study(trained, tmp_path, measure=injected(costs()))
    assert result["teacher"]["source"] == "fresh"
    assert result["students"]["median"] == pytest.approx(2e-3 * 3 * 2 * 8)
    assert sorted(path.name for path in tmp_path.iterdir()) == ["plan.json"]
    trained.prepare_teacher(tmp_path)
    assert teacher_here(trained, tmp_path)[1] == "trained"


def test_an_ensemble_is_measured_whole() -> None:
    """One member measured for three would be a third of the cost."""
    members = [Member(student, TeacherTraining(splits().train, TRAINING), 3.0), Member(good_teacher())]
    teacher, source = teacher_here(study(teacher=members), Path("nowhere"))
    said: Any = teacher.signals(splits().train.batch(torch.arange(4))).logits
    assert source == "fresh"
    assert said.weights.tolist() == [0.75, 0.25]


def test_a_study_that_hears_no_teacher_has_nothing_to_plan(tmp_path: Path) -> None:
    with pytest.raises(ConfigError, match="no arm's objective listens to the teacher"):
        plan_study(study(objective=CrossEntropy()), tmp_path, measure=injected(costs()))


def test_the_temperature_is_that_of_what_hears_the_teacher() -> None:
    from tutelage.objectives import as_objective

    assert temperature_of(as_objective(0.5 * CrossEntropy() + 0.5 * KL(temperature=3.0))) == 3.0
    assert temperature_of(as_objective(CrossEntropy())) is None


def test_memory_is_what_the_container_leaves(tmp_path: Path) -> None:
    """In a container of 2 GB on a machine of 64, half of 64 GB would be promised to the answers."""
    (tmp_path / "proc").mkdir()
    (tmp_path / "proc/meminfo").write_text("MemTotal: 64000000 kB\nMemAvailable:   32000000 kB\n")
    assert free_memory(tmp_path) == 32_000_000 * 1024
    group = tmp_path / "sys/fs/cgroup"
    group.mkdir(parents=True)
    (group / "memory.current").write_text("500000000\n")
    (group / "memory.max").write_text("2000000000\n")
    assert free_memory(tmp_path) == 1_500_000_000
    (group / "memory.max").write_text("max\n")
    assert free_memory(tmp_path) == 32_000_000 * 1024


def test_room_is_looked_for_where_the_store_will_be(tmp_path: Path) -> None:
    """A run on a small disk whose labels go to a large one would be told that they do not fit."""
    (tmp_path / "large").mkdir()
    there = study(labels=Labels(store=tmp_path / "large" / "labels" / "v1"))
    assert disk_of(there, tmp_path / "runs") == tmp_path / "large"
    assert disk_of(study(labels=Labels(store="s3://bucket/labels")), tmp_path) == tmp_path
    assert disk_of(study(), tmp_path) == tmp_path


class Wide(nn.Module):
    """A teacher of many classes."""

    def __init__(self) -> None:
        super().__init__()
        self.layer = nn.Linear(WIDTH, 4096)

    def forward(self, inputs: torch.Tensor) -> torch.Tensor:
        return self.layer(inputs)


class Tokens(nn.Module):
    """Logits [B, T, 6]."""

    def __init__(self) -> None:
        super().__init__()
        self.table = nn.Embedding(6, 6)

    def forward(self, input_ids: torch.Tensor) -> torch.Tensor:
        return self.table(input_ids)


def test_the_answers_that_are_held_have_a_bound(monkeypatch: pytest.MonkeyPatch) -> None:
    """1,024 answers of 512 tokens and 49,152 classes are 100 GB: a plan would end in the out-of-memory killer."""
    monkeypatch.setattr(measuring, "MOST_BYTES", 3 * 16 * 4 * CLASSES)
    assert ask_some(ModuleTeacher(good_teacher()), blobs(600, 1), 16, ()).examples == 3 * 16
    monkeypatch.setattr(measuring, "MOST_BYTES", 1)
    assert ask_some(ModuleTeacher(good_teacher()), blobs(600, 1), 16, ()).examples == 16


def test_a_form_is_measured_where_examples_have_no_rows(tmp_path: Path) -> None:
    """A certificate that happened on them told the user that the form could not be."""
    labels = torch.full((12, 6), -100)
    labels[1::2, :3] = 1
    train = TransferSet(torch.randint(6, (12, 6), generator=torch.Generator().manual_seed(3)), labels)
    answers = ask_some(ModuleTeacher(Tokens()), train, 1, ())
    for kept in (Labels(), Labels("sampled", draws=8, temperature=1.0)):
        found = time_form(ModuleTeacher(Tokens()), train, answers, kept, tmp_path)
        assert found.once.median > 0


def test_a_slow_teacher_is_not_asked_for_a_whole_certificate(tmp_path: Path) -> None:
    """A teacher of a second an example would take two minutes of a plan for that alone."""
    teacher, train = CountingTeacher(good_teacher()), blobs(200, 1)
    answers = ask_some(teacher, train, 16, ())
    slow = replace(answers, label=once(measuring.LABEL_SECONDS / 4))
    before = len(teacher.asked)
    found = time_form(teacher, train, slow, Labels(spot_check=0), tmp_path)
    assert sum(map(len, teacher.asked[before:])) == 4
    assert found.once.median > 0


def test_language_models_are_not_planned_for(tmp_path: Path) -> None:
    """Refused with "reshape inside the model", their user would look for the mistake in the model."""
    tokens = torch.zeros(30, 5, dtype=torch.int64)
    parts = Splits(*[TransferSet(tokens + part, tokens.clone()) for part in range(3)])
    with pytest.raises(ConfigError, match="judges classifiers"):
        plan_study(study(splits=parts, teacher=Tokens(), student=Tokens), tmp_path)
    with pytest.raises(ConfigError, match="judges classifiers"):
        study(splits=parts, teacher=Tokens(), student=Tokens, labels=Labels())


def test_what_is_measured_fits_the_study(tmp_path: Path) -> None:
    """End to end on this machine: every way has a number, the forms are those of the objective, and nothing is left behind."""
    result = plan_study(study(objective=0.9 * KL(temperature=2.0) + 0.1 * CrossEntropy()), tmp_path)
    assert result["asks"]["live"] == 2 * 2 * TRAIN
    for way in result["ways"].values():
        assert way["seconds"]["low"] <= way["seconds"]["median"] <= way["seconds"]["high"]
        assert way["cannot"] == []
    forms = result["measured"]["forms"]
    assert forms["sparse"]["labels"] == {"form": "sampled", "draws": 50, "temperature": 2.0}
    assert forms["dense"]["row_bytes"] >= 2 * CLASSES
    assert result["measured"]["answer_bytes"] == 4 * CLASSES
    assert [path.name for path in tmp_path.iterdir()] == ["plan.json"]


def test_a_divergence_that_sampling_cannot_serve_gets_top_k(tmp_path: Path) -> None:
    """Sampled targets would bias it without a word; and many classes make the sparse form the small one."""
    wide = replace(splits(), train=blobs(60, 1), validation=splits().validation)
    whole = study(
        splits=wide, teacher=Wide(), student=Wide, objective=Divergence("reverse_kl", temperature=1.0), arms=["kd"]
    )
    result = plan_study(whole, tmp_path)
    forms = result["measured"]["forms"]
    assert forms["sparse"]["labels"] == {"form": "top_k", "k": 32, "temperature": 1.0}
    assert forms["sparse"]["row_bytes"] < forms["dense"]["row_bytes"] / 10
    mixed = replace(whole, objective=0.5 * KL(temperature=1.0) + 0.5 * KL(temperature=4.0))
    sparse = plan_study(mixed, tmp_path)["ways"]["sparse"]
    assert "T = 4" in sparse["cannot"][0]
