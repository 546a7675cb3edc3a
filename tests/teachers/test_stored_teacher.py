"""Answers from a store: the same lesson as the live teacher's, or an error that names the example."""

import pytest
import torch
from torch import nn

from tutelage import KL, DistillationArguments, DistillationTrainer, TransferSet
from tutelage.data import Chain, GaussianNoise, hex_id, next_token_labels
from tutelage.errors import CheckpointError, TeacherError
from tutelage.labels import Form, LabelWriter
from tutelage.signals import NO_LABEL, Logits, MixtureLogits, Signals, SparseTargets
from tutelage.studies import label
from tutelage.teachers import EnsembleTeacher, ModuleTeacher, ShowsLayers, StoredTeacher, Teacher, as_teacher
from tutelage.training.identity import compare_runs, probe

INPUTS = torch.randn(50, 4, generator=torch.Generator().manual_seed(0))
DATA = TransferSet(INPUTS)


def teacher(seed=2):
    torch.manual_seed(seed)
    return ModuleTeacher(nn.Sequential(nn.Linear(4, 5), nn.ReLU(), nn.Linear(5, 3)))


def stored(path, live, data, *, layers=(), views=(None,), **options):
    """The live teacher's answers of each view, in a store."""
    form = Form("dense", 3, dtype="float32", features=tuple(layers))
    showing = live.with_features(layers) if layers else live
    with LabelWriter(path, form, {}, group_bytes=100) as writer:
        for view, rows in writer.missing(data.ids, None if views == (None,) else views).items():
            for part in rows.split(8):
                batch = data.batch(part, view or 0)
                said = showing.signals(batch)
                writer.add(batch["ids"], batch.get("view"), torch.ones(len(part)).long(), said.logits, said.features)
        writer.finish()
    return StoredTeacher(path, **options)


@pytest.mark.parametrize("memory", [0, 300, 2**30])
def test_equals_the_live_teacher_in_any_order(tmp_path, memory):
    """An objective cannot tell which of the two it hears, however the epoch is shuffled."""
    live = teacher()
    kept = stored(tmp_path, live, DATA, memory_bytes=memory)
    assert isinstance(kept, Teacher)
    assert as_teacher(kept) is kept
    for seed in range(3):
        rows = torch.randperm(50, generator=torch.Generator().manual_seed(seed))[:23]
        said = kept.signals(DATA.batch(rows))
        assert isinstance(said.logits, Logits)
        assert torch.equal(said.logits.values, live.signals(DATA.batch(rows)).logits.values)
        assert said.features == {}


def test_a_student_learns_the_same_from_either(tmp_path):
    """Through the whole trainer: the same weights, step by step."""
    live = teacher()

    def trained(by):
        torch.manual_seed(0)
        student = nn.Linear(4, 3)
        arguments = DistillationArguments(
            output_dir=str(tmp_path / "run"),
            max_steps=5,
            per_device_train_batch_size=16,
            save_strategy="no",
            report_to=[],
            disable_tqdm=True,
        )
        DistillationTrainer(student, arguments, KL(temperature=2.0), DATA, by).train()
        return student.weight

    assert torch.equal(trained(stored(tmp_path / "store", live, DATA)), trained(live))


def test_an_ensemble_is_one_again(tmp_path):
    """Its members are mixed at the temperature that is asked for, as the live one's."""
    live = EnsembleTeacher([teacher(2), teacher(3)], [0.7, 0.3])
    said = stored(tmp_path, live, DATA).signals(DATA.batch(torch.arange(9))).logits
    assert isinstance(said, MixtureLogits)
    expected = live.signals(DATA.batch(torch.arange(9))).logits
    for temperature in (1.0, 4.0):
        assert torch.equal(said.at(temperature), expected.at(temperature))


def test_augmented_views_are_replayed(tmp_path):
    """Another view's answer would be learnt for this one."""
    data = TransferSet(INPUTS, augment=GaussianNoise(0.5), views=3)
    live = teacher()
    kept = stored(tmp_path, live, data, views=(0, 1, 2))
    rows = torch.arange(10, 20)
    for epoch in range(5):
        batch = data.batch(rows, epoch)
        assert torch.equal(kept.signals(batch).logits.values, live.signals(batch).logits.values)
    unending = TransferSet(INPUTS, augment=GaussianNoise(0.5))
    with pytest.raises(
        TeacherError, match=rf"10 of 10 .* id {hex_id(int(data.ids[10]))}, view 3 .*other views: 0, 1, 2"
    ):
        kept.signals(unending.batch(rows, 3))
    with pytest.raises(TeacherError, match="other views"):
        kept.signals(DATA.batch(rows))


def test_features_of_the_layers_asked_for(tmp_path):
    """A term that compares features must meet those of its own example."""
    live = teacher()
    kept = stored(tmp_path, live, DATA, layers=["0", "1"])
    assert isinstance(kept, ShowsLayers)
    rows = torch.tensor([4, 40, 7])
    said = kept.with_features(["1"]).signals(DATA.batch(rows))
    assert said.provides == {"logits", 'features["1"]'}
    expected = live.with_features(["1"]).signals(DATA.batch(rows)).features["1"]
    assert torch.equal(said.features["1"], expected)
    assert kept.signals(DATA.batch(rows)).features == {}, "asking left the first as it was"
    with pytest.raises(TeacherError, match=r"features of '2' are not in the label store .* \(there are: '0', '1'\)"):
        kept.with_features(["1", "2"])


def test_an_unknown_example_is_named(tmp_path):
    """The wrong answers would be learnt."""
    kept = stored(tmp_path, teacher(), DATA.select(torch.arange(40)))
    with pytest.raises(TeacherError, match=rf"2 of 3 examples .* id {hex_id(int(DATA.ids[45]))}"):
        kept.signals(DATA.batch(torch.tensor([3, 45, 47])))
    with pytest.raises(TeacherError, match="there is no label store"):
        StoredTeacher(tmp_path / "nowhere")


LABELS = torch.tensor([[NO_LABEL, 1, 2, 0], [2, NO_LABEL, NO_LABEL, NO_LABEL], [NO_LABEL, NO_LABEL, 1, 1]])


def test_tokens_meet_their_own_answers(tmp_path):
    """Rows are the supervised positions in row-major order; with another mask each would meet another token's answer."""
    ids = torch.tensor([7, -3, 12])
    targets = SparseTargets(torch.arange(6)[:, None] % 3, torch.ones(6, 1), 3, 1.0, "sampled")
    with LabelWriter(tmp_path, Form("sampled", 3, temperature=1.0, draws=4), {}) as writer:
        writer.add(ids, None, (LABELS != NO_LABEL).sum(1), targets)
        writer.finish()
    kept = StoredTeacher(tmp_path)
    assert kept.classes == 3
    order = torch.tensor([2, 0])
    said = kept.signals({"ids": ids[order], "labels": LABELS[order], "student": None}).logits
    assert isinstance(said, SparseTargets)
    assert said.ids[:, 0].tolist() == [4 % 3, 5 % 3, 0, 1, 2]
    longer = LABELS.clone()
    longer[1, 3] = 0
    with pytest.raises(
        TeacherError, match=rf"id {hex_id(-3)} has 1 rows in the label store and 2 supervised positions"
    ):
        kept.signals({"ids": ids, "labels": longer, "student": None})
    with pytest.raises(TeacherError, match=rf"id {hex_id(7)} has 3 rows in the label store and 1 supervised"):
        kept.signals({"ids": ids, "labels": torch.zeros(3).long(), "student": None})


def test_as_many_rows_at_other_places_are_refused(tmp_path):
    """A mask moved by one token has as many rows: every token would learn its neighbour's distribution, without an error."""
    ids = torch.tensor([7, -3, 12])
    with LabelWriter(tmp_path, Form("dense", 3), {}) as writer:
        writer.add(ids, None, LABELS != NO_LABEL, Logits(torch.eye(3).repeat(2, 1)))
        writer.finish()
    kept = StoredTeacher(tmp_path)
    relabelled = torch.where(LABELS == NO_LABEL, NO_LABEL, 0)
    longer = torch.cat([relabelled, torch.full((3, 2), NO_LABEL)], dim=1)
    for labels in (LABELS, relabelled, longer):  # which labels, and how long the padding, is not the teacher's business
        assert len(kept.signals({"ids": ids, "labels": labels, "student": None}).logits.values) == 6
    moved = LABELS.clone()
    moved[2] = LABELS[2].roll(1)
    with pytest.raises(TeacherError, match=rf"id {hex_id(12)} has 2 rows .* 2 supervised .* at other places"):
        kept.signals({"ids": ids[1:], "labels": moved[1:], "student": None})


def trainer_of(data, by, folder):
    arguments = DistillationArguments(
        output_dir=str(folder), max_steps=1, save_strategy="no", report_to=[], disable_tqdm=True
    )
    return DistillationTrainer(nn.Linear(4, 3), arguments, KL(temperature=2.0), data, by)


OTHERS = {
    "seed": (TransferSet(INPUTS, augment=GaussianNoise(0.5), views=3, seed=1), "augmentation seed: 0 .* 1 now"),
    "noise": (TransferSet(INPUTS, augment=GaussianNoise(0.7), views=3), r"augmentation: .*0\.5.*0\.7.* now"),
    "none": (TransferSet(INPUTS), 'augmentation: .* "none" now'),
    "chain": (
        TransferSet(INPUTS, augment=Chain([GaussianNoise(0.5), GaussianNoise(0.5)]), views=3),
        r"augmentation: .*, then .* now",
    ),
    "views": (TransferSet(INPUTS, augment=GaussianNoise(0.5), views=4), "50 of 50 .* view 3 .*other views: 0, 1, 2"),
    "unending": (TransferSet(INPUTS, augment=GaussianNoise(0.5)), "random and ever new"),
    "unknown": (TransferSet(INPUTS + 1, augment=GaussianNoise(0.5), views=3), "50 of 50 examples are not in"),
}


@pytest.mark.parametrize("other", OTHERS)
def test_a_trainer_refuses_answers_to_something_else(tmp_path, other):
    """Nothing in a batch shows that its augmentation was drawn from another seed: the student would learn other views' answers."""
    data = TransferSet(INPUTS, augment=GaussianNoise(0.5), views=3)
    kept = StoredTeacher(label(teacher(), data, tmp_path / "store", Form("dense", 3)))
    trainer_of(data, kept, tmp_path / "run").train()
    fewer = TransferSet(INPUTS[10:30], augment=GaussianNoise(0.5), views=2)
    trainer_of(fewer, kept, tmp_path / "run").identify()
    asked, reason = OTHERS[other]
    trainer = trainer_of(asked, kept, tmp_path / "run")
    before = trainer.model.weight.clone()
    with pytest.raises(TeacherError, match=reason):
        trainer.train()
    assert torch.equal(trainer.model.weight, before)


class NextToken(nn.Module):
    """Scores that depend on the token and its place."""

    def forward(self, input_ids):
        return torch.nn.functional.one_hot(input_ids, 6).float() * torch.arange(1.0, 9.0)[:, None]


def test_a_trainer_refuses_a_mask_that_moved(tmp_path):
    """The same for stores of texts that `label` wrote, told of positions or only of their number."""
    tokens = torch.arange(48).view(6, 8) % 6
    labels = next_token_labels(tokens, supervised=(torch.arange(8) > 4).expand(6, 8))
    data = TransferSet({"input_ids": tokens}, labels)
    kept = StoredTeacher(label(ModuleTeacher(NextToken()), data, tmp_path, Form("dense", 6)))
    kept.check(data)
    kept.check(data.select(torch.tensor([3, 1])))
    moved = TransferSet({"input_ids": tokens}, labels.roll(-1, dims=1))
    assert torch.equal((moved.known_labels != NO_LABEL).sum(1), (labels != NO_LABEL).sum(1))
    trainer = trainer_of(moved, kept, tmp_path / "run")
    with pytest.raises(TeacherError, match=r"transfer set: .* now|at other places"):
        trainer.train()


@pytest.mark.parametrize("augment", [None, GaussianNoise(0.5), Chain([GaussianNoise(0.1), GaussianNoise(0.2, "b")])])
def test_a_set_that_was_labelled_is_known_again(tmp_path, augment):
    """Were an augmentation named in one way where it is kept and in another where it is compared, nothing could be trained on."""
    data = TransferSet(INPUTS, augment=augment, views=None if augment is None else 2, seed=3)
    kept = StoredTeacher(label(teacher(), data, tmp_path, Form("dense", 3)))
    assert {"augmentation", "augmentation seed"} <= set(kept.store.manifest.binds)
    kept.check(data)


def test_a_checkpoint_knows_which_classes_were_kept(tmp_path):
    """Resumed with the same probabilities of other classes, half of a run would have had another teacher."""
    batch, probs = DATA.batch(torch.arange(2)), torch.tensor([[0.5, 0.5], [0.25, 0.75]])

    def seen(*ids):
        targets = SparseTargets(torch.tensor(ids), probs, 100, 1.0, "sampled")
        return probe(batch, Signals(targets))

    with pytest.raises(CheckpointError, match="teacher: the first examples"):
        compare_runs({"probe": seen([1, 2], [3, 4])}, {"probe": seen([51, 52], [53, 54])}, tmp_path)
    padded = SparseTargets(
        torch.tensor([[2, 1, -1], [4, 3, -1]]), torch.cat([probs.flip(1), torch.zeros(2, 1)], 1), 100, 1.0, "sampled"
    )
    compare_runs({"probe": seen([1, 2], [3, 4])}, {"probe": probe(batch, Signals(padded))}, tmp_path)


def test_an_example_without_a_label_has_its_row(tmp_path):
    """Unlabelled examples are most of what a classifier's student learns from."""
    kept = stored(tmp_path, teacher(), DATA)
    assert len(kept.signals(DATA.batch(torch.arange(5))).logits.values) == 5
    assert bool((DATA.known_labels == NO_LABEL).all())
