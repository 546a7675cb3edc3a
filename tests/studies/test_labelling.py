"""A teacher is asked once: labels are kept, bound to what they depend on, gone on with, and taught from as the teacher would teach."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from tiny import CLASSES, CountingTeacher, blobs, good_teacher, splits, study
from torch import Tensor, nn

from tutelage import DIST, KL, CrossEntropy, Divergence, EnsembleTeacher, ModuleTeacher, TransferSet
from tutelage.data import GaussianNoise, Normalise, next_token_labels
from tutelage.errors import ConfigError, TeacherError, TutelageError
from tutelage.labels import Form, LabelStore
from tutelage.objectives import LogitMSE
from tutelage.signals import HeadLogits, Logits, Signals, SparseTargets
from tutelage.studies import Labels, label, labelling, spot_check
from tutelage.studies.certifying import certificate_of
from tutelage.studies.label_binds import teacher_fact
from tutelage.studies.remembering import Disk, RememberingTeacher, passes
from tutelage.teachers import MemoryTeacher, StoredTeacher

SAMPLED = Form("sampled", CLASSES, temperature=1.0, draws=16)
DENSE = Form("dense", CLASSES, dtype="float32")
DENSE6 = Form("dense", 6, dtype="float32")


def other_teacher() -> nn.Module:
    module = good_teacher()
    with torch.no_grad():
        module.weight.mul_(1.5)  # pyright: ignore
    return module


class Stopped(Exception):
    """What a teacher is stopped by, in place of a power cut."""


class Stopping(CountingTeacher):
    """Stops after so many calls."""

    def __init__(self, calls: int) -> None:
        super().__init__(good_teacher())
        self.left = calls

    def signals(self, batch: Any) -> Signals:
        if not self.left:
            raise Stopped
        self.left -= 1
        return super().signals(batch)


def examples_asked(teacher: CountingTeacher) -> int:
    return sum(len(ids) for ids in teacher.asked)


# What is written


def test_dense_labels_are_the_teachers_answers(tmp_path: Path) -> None:
    """A row that met another example's answer, or was rounded without being asked, would teach something else."""
    train = blobs(50, 1)
    store = label(good_teacher(), train, tmp_path / "labels", DENSE)
    order = torch.randperm(50)
    kept = store[train.ids[order]]
    assert isinstance(kept, Logits)
    with torch.no_grad():
        expected = good_teacher()(train.inputs)[order]
    assert torch.equal(kept.values, expected) or torch.allclose(kept.values, expected, atol=1e-6)
    assert store.complete


def test_draws_are_those_of_the_example_whatever_the_batch(tmp_path: Path) -> None:
    """Labels drawn from a stream would change with the batch size, and could never be held against the live teacher again."""
    train = blobs(50, 1)
    one = label(good_teacher(), train, tmp_path / "one", SAMPLED, batch_size=7)
    other = label(good_teacher(), train.select(torch.arange(49, -1, -1)), tmp_path / "other", SAMPLED, batch_size=50)
    a, b = one[train.ids], other[train.ids]
    assert isinstance(a, SparseTargets)
    assert isinstance(b, SparseTargets)
    assert torch.equal(_dense(a), _dense(b))
    exact = torch.softmax(ModuleTeacher(good_teacher()).signals(train.batch(torch.arange(50))).logits.at(1.0), 1)  # pyright: ignore
    assert (_dense(a) - exact).abs().max() < 1 / 16 + 1e-6, "systematic draws are within one of the expected count"


def _dense(targets: SparseTargets) -> Tensor:
    out = torch.zeros(len(targets.ids), targets.classes + 1)
    out.scatter_add_(1, torch.where(targets.ids < 0, targets.classes, targets.ids), targets.probs)
    return out[:, :-1]


class Tokens(nn.Module):
    """A bigram model over 6 tokens: logits [B, T, 6]."""

    def __init__(self) -> None:
        super().__init__()
        self.table = nn.Parameter(torch.randn(6, 6, generator=torch.Generator().manual_seed(0)))

    def forward(self, input_ids: Tensor) -> Tensor:
        return self.table[input_ids]


class HeadTeacher:
    """Gives a head that is not multiplied out, a row a supervised token."""

    def signals(self, batch: Any) -> Signals:
        hidden = torch.nn.functional.one_hot(batch["student"][batch["labels"] >= 0], 6).float()
        return Signals(HeadLogits(hidden, Tokens().table.detach().T.contiguous()))


def test_tokens_are_rows(tmp_path: Path) -> None:
    """A store that kept one row an example would give a sequence the first token's answer."""
    tokens = torch.randint(6, (9, 5), generator=torch.Generator().manual_seed(1))
    supervised = torch.rand(9, 5, generator=torch.Generator().manual_seed(2)) < 0.6
    train = TransferSet(tokens, next_token_labels(tokens, supervised=supervised))
    store = label(HeadTeacher(), train, tmp_path / "labels", Form("dense", 6, dtype="float32"), batch_size=4)
    counts = (train.known_labels >= 0).sum(1)
    unique = train.ids.unique()
    assert torch.equal(store.rows(train.ids), counts)
    assert store.manifest.rows == sum(int(counts[(train.ids == one).nonzero()[0, 0]]) for one in unique)
    batch = train.batch(torch.tensor([3, 0, 8]))
    expected = HeadTeacher().signals(batch).logits
    assert torch.allclose(store[batch["ids"]].at(1.0), expected.at(1.0), atol=1e-6)  # pyright: ignore


def test_equal_examples_with_other_rows_are_refused(tmp_path: Path) -> None:
    """Kept by content, one of the two would silently be given the rows of the other."""
    tokens = torch.arange(10).reshape(2, 5).repeat(2, 1) % 6
    labels = next_token_labels(tokens)
    labels[3, 0] = -100
    with pytest.raises(TeacherError, match="more than once, with other positions supervised"):
        label(HeadTeacher(), TransferSet(tokens, labels), tmp_path / "labels", Form("dense", 6))


def test_an_ensemble_keeps_its_members(tmp_path: Path) -> None:
    """One set of logits for a mixture would be the mixture at one temperature and another thing at every other."""
    train = blobs(20, 1)
    teacher = EnsembleTeacher([good_teacher(), other_teacher()], [1, 3])
    store = label(teacher, train, tmp_path / "labels", DENSE)
    batch = train.batch(torch.arange(20))
    for heat in (1.0, 4.0):
        live = teacher.signals(batch).logits
        assert live is not None
        assert torch.allclose(store[train.ids].at(heat), live.at(heat), atol=1e-5)  # pyright: ignore


# Going on, and not asking twice


def test_a_call_that_was_stopped_is_gone_on_with(tmp_path: Path) -> None:
    """Asked from the beginning again, a teacher of an hour would take another hour after every interruption."""
    train = blobs(60, 1)
    stopping = Stopping(4)
    with pytest.raises(Stopped):
        label(stopping, train, tmp_path / "labels", SAMPLED, batch_size=10)
    before = len(LabelStore.open(tmp_path / "labels"))
    assert 0 < before < 60
    counting = Stopping(99)
    store = label(counting, train, tmp_path / "labels", SAMPLED, batch_size=10)
    # the first call is about what is there, the last are the certificate's
    assert [len(ids) for ids in counting.asked] == [8, *[10] * ((60 - before) // 10), *[10] * 6]
    assert len(store) == 60
    whole = label(Stopping(99), train, tmp_path / "whole", SAMPLED)
    assert torch.equal(_dense(store[train.ids]), _dense(whole[train.ids]))  # pyright: ignore


def test_what_is_there_is_not_asked_again(tmp_path: Path) -> None:
    train = blobs(30, 1)
    label(good_teacher(), train, tmp_path / "labels", SAMPLED)
    told: list[str] = []

    class Told:
        def started(self, what: str, total_steps: int, steps_done: int) -> None:
            told.append("started")

        def advanced(self, steps_done: int) -> None:
            told.append("advanced")

        def finished(self, what: str, outcome: str) -> None:
            told.append(outcome)

    label(good_teacher(), train, tmp_path / "labels", SAMPLED, progress=Told())
    assert told == ["done in an earlier run"]


def test_only_the_damaged_shard_is_labelled_again(tmp_path: Path) -> None:
    """A store that answered from a damaged shard would teach what its bits happen to say now."""
    train = blobs(40, 1)
    path = tmp_path / "labels"
    with pytest.raises(Stopped):
        label(Stopping(3), train, path, SAMPLED, batch_size=10)
    first = LabelStore.open(path).manifest.shards
    store = label(Stopping(99), train, path, SAMPLED, batch_size=10)
    kept = store[train.ids]
    assert len(store.manifest.shards) > len(first)
    damaged = path / first[0].name
    contents = bytearray(damaged.read_bytes())
    contents[len(contents) // 2] ^= 0xFF
    damaged.write_bytes(bytes(contents))
    assert [found.shard for found in LabelStore.open(path).verify()] == [first[0].name]
    counting = Stopping(99)
    mended = label(counting, train, path, SAMPLED, batch_size=10)
    # a call about what is there, and four of the certificate's
    assert sum(map(len, counting.asked[1:-4])) == first[0].examples
    assert mended.verify() == []
    assert torch.equal(_dense(mended[train.ids]), _dense(kept))  # pyright: ignore


class Scaled(nn.Module):
    """The same weights, and a number in the code."""

    def __init__(self, by: float) -> None:
        super().__init__()
        self.inner, self.by = good_teacher(), by

    def forward(self, inputs: Tensor) -> Tensor:
        return self.by * self.inner(inputs)


class Cut(ModuleTeacher):
    """Stopped after so many calls."""

    def __init__(self, module: nn.Module, calls: int) -> None:
        super().__init__(module)
        self.left = calls

    def signals(self, batch: Any) -> Signals:
        if not self.left:
            raise Stopped
        self.left -= 1
        return super().signals(batch)


@pytest.mark.parametrize("form", [DENSE, SAMPLED], ids=["dense", "sampled"])
def test_code_that_changed_does_not_go_on_with_a_store(tmp_path: Path, form: Form) -> None:
    """One store would hold two teachers' answers, and a later check of 8 examples might see one of them alone."""
    train = blobs(60, 1)
    with pytest.raises(Stopped):
        label(Cut(Scaled(1.0), 3), train, tmp_path / "labels", form, batch_size=10)
    with pytest.raises(TeacherError, match="not what the teacher says now"):
        label(Cut(Scaled(3.0), 99), train, tmp_path / "labels", form, batch_size=10)
    assert len(LabelStore.open(tmp_path / "labels")) == 30
    assert label(Cut(Scaled(1.0), 99), train, tmp_path / "labels", form, batch_size=10).complete


# Examples without rows


def half_supervised(count: int = 12, positions: int = 3) -> TransferSet:
    """Every other example has no row."""
    tokens = torch.randint(6, (count, 6), generator=torch.Generator().manual_seed(3))
    labels = torch.full((count, 6), -100)
    labels[1::2, :positions] = 1
    return TransferSet(tokens, labels)


@pytest.mark.parametrize("form", [DENSE6, Form("sampled", 6, temperature=1.0, draws=8)], ids=["dense", "sampled"])
def test_examples_without_rows_do_not_keep_labels_from_being_finished(tmp_path: Path, form: Form) -> None:
    """A certificate that happened on them ended the labelling in an error, at each of its repetitions again."""
    train = half_supervised()
    store = label(ModuleTeacher(Tokens()), train, tmp_path / "labels", form, batch_size=1)
    assert store.complete
    certificate = store.manifest.certificate
    assert certificate is not None
    assert certificate["rows"] == 18
    for seed in range(10):
        assert spot_check(store, ModuleTeacher(Tokens()), train, 1, seed=seed).rows == 3


def test_the_certificates_rows_are_of_many_examples(tmp_path: Path) -> None:
    """With one example a call it was of one row, whose gradient is zero, or of the rows of one text."""
    store = label(good_teacher(), blobs(90, 1), tmp_path / "labels", SAMPLED, batch_size=1)
    whole = label(good_teacher(), blobs(90, 1), tmp_path / "whole", SAMPLED)
    made, expected = store.manifest.certificate, whole.manifest.certificate
    assert made is not None
    assert expected is not None
    assert made["rows"] == 64
    assert made["relative_error"] == pytest.approx(expected["relative_error"], rel=1e-4)
    assert made["relative_error"] > 0.01
    tokens = torch.randint(6, (200, 60), generator=torch.Generator().manual_seed(3))
    train = TransferSet(tokens, next_token_labels(tokens))
    places: set[int] = set()

    class Noting(ModuleTeacher):
        def signals(self, batch: Any) -> Signals:
            places.update(batch["ids"].tolist())
            return super().signals(batch)

    certificate_of(Noting(Tokens()), train, DENSE6, 4)
    assert len(places) > 40


def test_an_ensembles_certificate_is_of_its_mixture() -> None:
    """Its members' rows lie along another axis: taken for one model's they would be compared with other rows'."""
    teacher = EnsembleTeacher([good_teacher(), other_teacher()], [1, 3])
    found = [certificate_of(teacher, blobs(90, 1), Form("dense", CLASSES), size) for size in (7, 90)]
    assert found[0]["relative_error"] == pytest.approx(found[1]["relative_error"], rel=1e-6)
    assert 0 < found[0]["relative_error"] < 1e-3


def test_a_set_without_rows_is_refused(tmp_path: Path) -> None:
    """An empty store would be called complete, and a student taught from it nothing."""
    tokens = torch.zeros(3, 4, dtype=torch.int64)
    with pytest.raises(TeacherError, match="no example of the transfer set has a supervised position"):
        label(ModuleTeacher(Tokens()), TransferSet(tokens, torch.full((3, 4), -100)), tmp_path / "labels", DENSE6)


def test_the_size_of_a_call_is_that_of_the_longest_example(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """By a first example without rows it was 256 examples, whatever memory bears."""
    monkeypatch.setattr(labelling, "_CALL_BYTES", 5 * 3 * 6 * 4)
    train = half_supervised(40)
    sizes: list[int] = []

    class Noting(ModuleTeacher):
        def signals(self, batch: Any) -> Signals:
            sizes.append(len(batch["ids"]))
            return super().signals(batch)

    label(Noting(Tokens()), train, tmp_path / "labels", DENSE6)
    assert max(sizes) == 5


# What a store is bound to


@pytest.mark.parametrize(
    ("changes", "said"),
    [
        ({"teacher": other_teacher()}, "teacher"),
        ({"teacher": nn.Sequential(good_teacher())}, "teacher"),
        ({"train": blobs(31, 1)}, "examples: 30 says the store, 31 now"),
        ({"train": blobs(30, 7)}, "transfer set"),
        ({"train": blobs(30, 1, teacher_view=Normalise(0.0, 2.0))}, "teacher's view"),
        ({"train": blobs(30, 1, class_names=["a", "b", "c"])}, "class names"),
        ({"teacher": ModuleTeacher(good_teacher(), classes=CLASSES)}, "its first 3 classes"),
        ({"teacher": ModuleTeacher(good_teacher(), classes=torch.tensor([2, 1, 0]))}, "of its classes in an order"),
        ({"form": replace(SAMPLED, draws=17)}, "draws: 16 says the store, 17 now"),
        ({"train": replace(blobs(30, 1), seed=3)}, "seed of the draws"),
    ],
)
def test_what_differs_is_refused_and_shown(tmp_path: Path, changes: dict[str, Any], said: str) -> None:
    """Any of these would teach another teacher's answers, or answers to other inputs, without a sign of it."""
    asked = {"teacher": good_teacher(), "train": blobs(30, 1), "form": SAMPLED}
    label(asked["teacher"], asked["train"], tmp_path / "labels", asked["form"])
    now = asked | changes
    with pytest.raises(TeacherError, match="made from something else") as refused:
        label(now["teacher"], now["train"], tmp_path / "labels", now["form"])
    assert said in str(refused.value)


class Shifted:
    """A view without a name to tell its versions apart."""

    random = False

    def __init__(self, by: float) -> None:
        self.by = by

    def __repr__(self) -> str:
        return "Shifted()"

    def __call__(self, inputs: Tensor, draws: Any) -> Tensor:
        return inputs + self.by


def test_a_view_that_changed_under_its_name_is_refused(tmp_path: Path) -> None:
    """The code of a view may change and its name stay: what it makes of the first examples tells."""
    label(good_teacher(), blobs(30, 1, student_view=Shifted(0.0)), tmp_path / "labels", SAMPLED)
    label(good_teacher(), blobs(30, 1, student_view=Shifted(1e-6)), tmp_path / "labels", SAMPLED)
    with pytest.raises(TeacherError, match="what the teacher sees of the first examples"):
        label(good_teacher(), blobs(30, 1, student_view=Shifted(0.1)), tmp_path / "labels", SAMPLED)


class Dressed:
    """Token ids with a mask, as a tokenizer makes them."""

    random = False

    def __init__(self, mask: float = 0.0, first: int = 1, whole: bool = True) -> None:
        self.mask, self.first, self.whole = mask, first, whole

    def __repr__(self) -> str:
        return "Dressed()"

    def __call__(self, inputs: Any, draws: Any) -> Any:
        ids = inputs["input_ids"].clone()
        ids[:, 0] = self.first
        mask = torch.ones_like(ids)
        mask[:, 48:] = self.mask
        return {"input_ids": ids, "attention_mask": mask if self.whole else mask.float()}


class Reading(nn.Module):
    """Takes what a tokenizer makes."""

    def __init__(self) -> None:
        super().__init__()
        self.table = nn.Embedding(50_000, 3)

    def forward(self, input_ids: Tensor, attention_mask: Tensor) -> Tensor:
        return (self.table(input_ids) * attention_mask[..., None]).sum(1)


@pytest.mark.parametrize("whole", [True, False], ids=["int64", "float32"])
@pytest.mark.parametrize("changes", [{"mask": 1.0}, {"first": 2}])
def test_a_mask_beside_large_token_ids_is_looked_at(tmp_path: Path, changes: dict[str, Any], whole: bool) -> None:
    """Beside token ids, of 1e5 together, a changed mask or first token passed for rounding."""
    ids = torch.randint(1_000, 49_000, (8, 64), generator=torch.Generator().manual_seed(0))
    teacher = ModuleTeacher(Reading())

    def train(**now: Any) -> TransferSet:
        return TransferSet({"input_ids": ids}, torch.arange(8) % 3, student_view=Dressed(whole=whole, **now))

    label(teacher, train(), tmp_path / "labels", DENSE)
    label(teacher, train(), tmp_path / "labels", DENSE)
    with pytest.raises(TeacherError, match="what the teacher sees of the first examples"):
        label(teacher, train(**changes), tmp_path / "labels", DENSE)


def test_a_models_config_is_part_of_the_teacher() -> None:
    """A rope's base is in no weight and no layer's name, and every answer depends on it; who saved the model is no matter."""
    transformers = pytest.importorskip("transformers")

    def fact(**said: Any) -> str:
        torch.manual_seed(0)
        sizes = {"hidden_size": 16, "intermediate_size": 16, "num_hidden_layers": 1, "num_attention_heads": 2}
        config = transformers.LlamaConfig(vocab_size=8, num_key_value_heads=2, **sizes, **said)
        return teacher_fact(ModuleTeacher(transformers.LlamaForCausalLM(config)))

    plain = fact(rope_parameters={"rope_type": "default", "rope_theta": 1e4})
    assert fact(rope_parameters={"rope_type": "default", "rope_theta": 100.0}) != plain
    aside = {"use_cache": False, "name_or_path": "elsewhere", "architectures": ["LlamaForCausalLM"]}
    assert fact(rope_parameters={"rope_type": "default", "rope_theta": 1e4}, **aside) == plain


def test_labels_do_not_depend_on_the_students_labels_or_metadata(tmp_path: Path) -> None:
    """Labelling an hour again because a label was mended or a slice was added would be asking for nothing."""
    train = blobs(30, 1)
    teacher = CountingTeacher(good_teacher())
    label(teacher, train, tmp_path / "labels", SAMPLED)
    kept = {path: path.read_bytes() for path in (tmp_path / "labels").rglob("*.parquet")}
    assert kept
    teacher.asked.clear()
    label(teacher, train.with_labels(None), tmp_path / "labels", SAMPLED)
    shuffled = train.select(torch.randperm(30))
    label(teacher, shuffled, tmp_path / "labels", SAMPLED)
    assert {path: path.read_bytes() for path in (tmp_path / "labels").rglob("*.parquet")} == kept
    assert sum(map(len, teacher.asked)) < 30


# A study


def run(tmp_path: Path, **changes: Any) -> dict[str, Any]:
    return study(**changes).run(tmp_path)


def logits_of(folder: Path, arm: str = "kd", seed: int = 0) -> np.ndarray:
    from safetensors.numpy import load_file

    return load_file(folder / arm / f"seed-{seed}" / "predictions.safetensors")["logits"]


def test_a_study_from_float32_labels_is_the_study_with_the_teacher(tmp_path: Path) -> None:
    """Stored labels that taught a slightly different student would make every comparison one of two things."""
    live = run(tmp_path / "live", arms=["kd"], objective=0.9 * KL(temperature=2.0) + 0.1 * CrossEntropy())
    kept = run(
        tmp_path / "kept",
        arms=["kd"],
        objective=0.9 * KL(temperature=2.0) + 0.1 * CrossEntropy(),
        labels=Labels(dtype="float32"),
    )
    halved = run(
        tmp_path / "halved", arms=["kd"], objective=0.9 * KL(temperature=2.0) + 0.1 * CrossEntropy(), labels=Labels()
    )
    assert np.array_equal(logits_of(tmp_path / "live"), logits_of(tmp_path / "kept"))
    apart = np.abs(logits_of(tmp_path / "live") - logits_of(tmp_path / "halved")).max()
    assert 0 < apart < 1e-2
    assert "labels" not in live
    record = kept["labels"]
    assert record["store"] == "labels"
    assert record["form"]["dtype"] == "float32"
    assert (record["examples"], record["rows"]) == (60, 60)
    assert record["written"] == "by this run"
    assert record["spot_check"]["examples"] == 8
    assert record["made"]["rows"] == 60
    assert halved["labels"]["certificate"]["relative_error"] < 1e-3
    assert (tmp_path / "kept" / "labels" / "manifest.json").is_file()


def test_a_study_asks_its_teacher_once(tmp_path: Path) -> None:
    """Epochs, arms and seeds that asked again would cost the teacher's time over and over."""
    teacher = CountingTeacher(good_teacher())
    labels = Labels(form="sampled", draws=8, temperature=1.0, spot_check=0)
    first = study(teacher=teacher, labels=labels, objective=KL(), arms=["kd", "scratch"])
    first.run(tmp_path)
    ids = torch.cat(teacher.asked)
    transfer = splits().train.ids
    times = torch.tensor([int((ids == one).sum()) for one in transfer])
    assert times.float().mean() < 2.5, "once for its label; a few once more for checks and the certificate"
    before = len(teacher.asked)
    again = study(teacher=teacher, labels=labels, objective=KL(), arms=["kd", "scratch"], seeds=3).run(tmp_path)
    new = torch.cat(teacher.asked[before:])
    assert sum(int((new == one).sum()) for one in transfer) < 10, "more seeds ask nothing"
    assert again["labels"]["written"] == "before this run"


def test_finished_arms_belong_to_their_labels(tmp_path: Path) -> None:
    """Seeds taught by other labels under one name would be averaged into a number of neither."""
    study(labels=Labels(), arms=["kd"], seeds=1).run(tmp_path)
    other = Labels(form="sampled", draws=8, temperature=1.0, store=tmp_path / "others")
    with pytest.raises(TutelageError, match="teacher"):
        study(labels=other, arms=["kd"], seeds=2).run(tmp_path)


@pytest.mark.parametrize(
    ("objective", "labels", "said"),
    [
        (Divergence("reverse_kl"), Labels("sampled", draws=8, temperature=1.0), "unbiased|linear in the teacher"),
        (KL(temperature=2.0), Labels("sampled", draws=8, temperature=1.0), "T = 2"),
        (LogitMSE(), Labels("top_k", k=2, temperature=1.0), "needs the logits of all"),
        (DIST(), Labels("sampled", draws=8, temperature=1.0), "needs the logits of all"),
        (KL(), Labels("top_k", k=4, temperature=1.0), "1 to 3 classes"),
    ],
)
def test_a_form_that_cannot_serve_is_refused_before_anything_is_asked(
    tmp_path: Path, objective: Any, labels: Labels, said: str
) -> None:
    """Found out after labelling, the mistake would have cost the teacher's whole pass; never found, a biased gradient."""
    teacher = CountingTeacher(good_teacher())
    with pytest.raises(ConfigError, match=said) as refused:
        study(teacher=teacher, objective=objective, labels=labels).run(tmp_path)
    assert "'kd'" in str(refused.value)
    assert sum(map(len, teacher.asked)) < 10
    assert not (tmp_path / "labels").exists()


def test_top_k_serves_what_samples_cannot(tmp_path: Path) -> None:
    labels = Labels("top_k", k=2, temperature=1.0)
    result = run(tmp_path, objective=Divergence("reverse_kl"), labels=labels, arms=["kd"])
    assert result["labels"]["form"]["kind"] == "top_k"
    assert result["arms"]["kd"]["mean"]["accuracy"] > 0.6


NOISE = GaussianNoise(0.5)


def test_views_are_replayed(tmp_path: Path) -> None:
    """Without a fixed number of views a stored answer would meet an input that nobody asked the teacher about."""
    labels = Labels(dtype="float32", views=2)
    teacher = CountingTeacher(good_teacher())
    made = study(
        splits=splits(augment=NOISE), teacher=teacher, labels=labels, arms=["kd"], training={"num_train_epochs": 5}
    )
    assert made.splits.train.views == 2
    result = made.run(tmp_path)
    assert result["labels"]["views"] == 2
    assert result["labels"]["examples"] == 2 * 60
    # the same two views seen live give the same student
    from tutelage.data import Splits

    whole = splits(augment=NOISE)
    twice = Splits(replace(whole.train, views=2), whole.validation, whole.test)
    study(splits=twice, arms=["kd"], training={"num_train_epochs": 5}).run(tmp_path / "live")
    assert np.allclose(logits_of(tmp_path), logits_of(tmp_path / "live"), atol=1e-5)


@pytest.mark.parametrize(
    ("options", "labels", "said"),
    [({"augment": NOISE}, Labels(), "labels.views"), ({}, Labels(views=3), "always the same")],
)
def test_views_and_randomness_belong_together(options: Any, labels: Labels, said: str) -> None:
    with pytest.raises(ConfigError, match=said):
        study(splits=splits(**options), labels=labels)


# What memory does not hold


def test_answers_beyond_memory_go_to_the_disk(tmp_path: Path) -> None:
    """A study of many classes would fill the memory, or ask its teacher at every step."""
    train = blobs(30, 1)
    teacher = CountingTeacher(good_teacher())
    disk = Disk(tmp_path / "answers", uses=4, memory_bytes=100)
    kept = RememberingTeacher(teacher, train, disk)
    batch = train.batch(torch.tensor([4, 2]))
    said = kept.signals(batch).logits
    assert isinstance(kept.with_features(()), StoredTeacher)
    live = ModuleTeacher(good_teacher()).signals(batch).logits
    assert torch.equal(said.at(1.0), live.at(1.0)) or torch.allclose(said.at(1.0), live.at(1.0), atol=1e-6)  # pyright: ignore
    before = len(teacher.asked)
    assert isinstance(RememberingTeacher(teacher, train, disk).with_features(()), StoredTeacher)
    assert sum(map(len, teacher.asked[before:])) <= 1, "another call reads what is there"


def test_answers_of_an_earlier_teacher_are_named(tmp_path: Path) -> None:
    """A run wrote them for itself: "another folder" is a remedy that its user cannot follow."""
    train = blobs(30, 1)
    disk = Disk(tmp_path / "answers", uses=4, memory_bytes=100)
    RememberingTeacher(ModuleTeacher(good_teacher()), train, disk).with_features(())
    with pytest.raises(TeacherError, match=r"delete the folder .*answers and run the same command again"):
        RememberingTeacher(ModuleTeacher(other_teacher()), train, disk).with_features(())


@pytest.mark.parametrize(
    ("uses", "memory", "kind"), [(4, 1 << 20, MemoryTeacher), (1, 100, CountingTeacher), (2, 100, StoredTeacher)]
)
def test_where_answers_are_kept(tmp_path: Path, uses: int, memory: int, kind: type) -> None:
    """One use pays for no store; what fits into memory needs none."""
    kept = RememberingTeacher(
        CountingTeacher(good_teacher()), blobs(30, 1), Disk(tmp_path / "a", uses, memory_bytes=memory)
    )
    assert isinstance(kept.with_features(()), kind)


def test_passes() -> None:
    assert passes({"num_train_epochs": 4}, 10) == 4
    assert passes({}, 10) == 3
    assert passes({"max_steps": 7, "per_device_train_batch_size": 4, "gradient_accumulation_steps": 2}, 10) == 6
