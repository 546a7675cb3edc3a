"""A checkpoint is complete or not there; a damaged one is never resumed from, the one before it is."""

import json
import logging
import os
import shutil
from pathlib import Path

import pytest
import torch
from safetensors.torch import load_model
from torch import nn
from training_helpers import CLASSES, FEATURES, assert_same_bits, network, trained, trainer_of, transfer_set, weights

from tutelage import files
from tutelage.errors import CheckpointError
from tutelage.files import write_atomically
from tutelage.training import checkpoints, latest_checkpoint, verify_checkpoint
from tutelage.training.checkpoints import MANIFEST, STAGING, commit_checkpoint, compare_fingerprints

SAVING = {"save_strategy": "steps", "save_steps": 2, "num_train_epochs": 2}  # 8 steps


def staged(folder, text="weights"):
    (folder / STAGING / "part" / "sub").mkdir(parents=True)
    (folder / STAGING / "part" / "a.bin").write_text(text)
    (folder / STAGING / "part" / "sub" / "b.bin").write_text("more")
    return folder / STAGING / "part"


def committed(folder, step, text="weights"):
    """A checkpoint of that step, with what marks it as one that training can go on from."""
    part = staged(folder, text)
    (part / "rng_state.pth").write_text("state")
    commit_checkpoint(part, folder / f"checkpoint-{step}", {"seed": 1})
    shutil.rmtree(folder / STAGING)
    return folder / f"checkpoint-{step}"


def flip_a_byte(path, at=None):
    content = bytearray(path.read_bytes())
    content[len(content) // 2 if at is None else at] ^= 1
    path.write_bytes(content)


DAMAGES = {
    "truncated": lambda folder: os.truncate(folder / "optimizer.pt", 100),
    "emptied": lambda folder: os.truncate(folder / "model.safetensors", 0),
    "flipped byte": lambda folder: flip_a_byte(folder / "model.safetensors"),
    "missing file": lambda folder: (folder / "scheduler.pt").unlink(),
    "missing manifest": lambda folder: (folder / MANIFEST).unlink(),
    "garbled manifest": lambda folder: (folder / MANIFEST).write_text('{"files": {'),
    "binary manifest": lambda folder: (folder / MANIFEST).write_bytes(b"\xff\x00\xfe"),
    "a list for a manifest": lambda folder: (folder / MANIFEST).write_text("[]"),
    "a manifest of nothing": lambda folder: (folder / MANIFEST).write_text('{"files": {}, "fingerprint": {}}'),
    "altered fingerprint": lambda folder: (folder / MANIFEST).write_text(
        (folder / MANIFEST).read_text().replace('"seed": 42', '"seed": 43')
    ),
    "a file beside the others": lambda folder: (folder / "model.safetensors").rename(folder / "model.safetensors.bak"),
}


def test_a_committed_checkpoint_verifies(tmp_path):
    folder = committed(tmp_path, 5)
    assert verify_checkpoint(folder) == {"seed": 1}
    (folder / "added-later.txt").write_text("by a callback")
    assert verify_checkpoint(folder) == {"seed": 1}
    listed = json.loads((folder / MANIFEST).read_text())["files"]
    assert set(listed) == {"a.bin", "sub/b.bin", "rng_state.pth"}


def test_everything_is_on_disk_before_the_name_is_there(tmp_path, monkeypatch):
    """Renamed before it is flushed, a checkpoint can survive a power cut as a name with empty files."""
    events = []
    flush, rename = checkpoints.flush, Path.rename
    monkeypatch.setattr(checkpoints, "flush", lambda path: (events.append(path.name), flush(path)))
    monkeypatch.setattr(Path, "rename", lambda self, to: (events.append("RENAME"), rename(self, to))[1])
    commit_checkpoint(staged(tmp_path), tmp_path / "checkpoint-1", {})
    named = events.index("RENAME")
    assert set(events[:named]) == {"a.bin", "b.bin", "sub", MANIFEST, "part"}
    assert events[:named][-1] == "part", "the folder's entries are flushed after its files"
    assert events[named + 1 :] == [tmp_path.name]


def test_a_commit_takes_the_place_of_the_same_step(tmp_path):
    """A renaming onto a folder that is not empty fails, and a resumed run would die at the step where it died before."""
    committed(tmp_path, 5, "old")
    assert (committed(tmp_path, 5, "new") / "a.bin").read_text() == "new"
    assert sorted(path.name for path in tmp_path.iterdir()) == ["checkpoint-5"]


def test_latest_is_by_number_and_sound(tmp_path):
    """``checkpoint-10`` sorts before ``checkpoint-9`` as text."""
    committed(tmp_path, 9)
    newest = committed(tmp_path, 10)
    (tmp_path / "checkpoint-best").mkdir()
    (tmp_path / "checkpoint-12").write_text("a file")
    assert latest_checkpoint(tmp_path) == (newest, {})
    flip_a_byte(newest / "a.bin")
    found, damaged = latest_checkpoint(tmp_path)
    assert found == tmp_path / "checkpoint-9"
    assert "hash differs" in str(damaged[newest])
    assert latest_checkpoint(tmp_path / "nowhere") == (None, {})


@pytest.mark.parametrize(
    "content", ["{}", "[]", "3", '{"files": []}', '{"files": 1, "fingerprint": 2, "sha256": 3}', ""]
)
def test_any_manifest_that_is_not_ours_is_a_checkpoint_error(tmp_path, content):
    """A ``KeyError`` from a garbled manifest would end the run instead of going back one checkpoint."""
    folder = committed(tmp_path, 5)
    (folder / MANIFEST).write_text(content)
    with pytest.raises(CheckpointError):
        verify_checkpoint(folder)


def test_every_byte_of_the_manifest_counts(tmp_path):
    """A byte flipped in a recorded setting would be taken for a changed setting, and a sound earlier checkpoint not be used."""
    folder = committed(tmp_path, 5)
    for at in range((folder / MANIFEST).stat().st_size):
        flip_a_byte(folder / MANIFEST, at)
        try:
            verify_checkpoint(folder)
        except CheckpointError:
            pass
        else:  # only white space between values may change unseen
            assert json.loads((folder / MANIFEST).read_text())["fingerprint"] == {"seed": 1}
        flip_a_byte(folder / MANIFEST, at)


def test_a_written_file_is_the_old_or_the_new_one(tmp_path, monkeypatch):
    """A record cut in half would be read as damage, or as another result."""
    path = tmp_path / "new" / "record.json"
    write_atomically(path, "old")
    monkeypatch.setattr(files, "flush", lambda _: (_ for _ in ()).throw(OSError("disk full")))
    with pytest.raises(OSError, match="disk full"):
        write_atomically(path, "new")
    assert path.read_text() == "old"


def test_the_difference_is_shown():
    with pytest.raises(CheckpointError) as caught:
        compare_fingerprints({"seed": 1, "same": 2, "gone": 3}, {"seed": 2, "same": 2}, Path("checkpoint-5"))
    assert "seed: 1 in the checkpoint, 2 now" in str(caught.value)
    assert "gone: 3 in the checkpoint, None now" in str(caught.value)
    assert "same" not in str(caught.value)
    compare_fingerprints({"pair": [1, 2]}, {"pair": (1, 2)}, Path("tuples come back from JSON as lists"))


@pytest.fixture(scope="module")
def finished(tmp_path_factory):
    folder = tmp_path_factory.mktemp("finished")
    final, trainer = trained(folder, student=network(1, dropout=0.2), **SAVING)
    return folder, final, trainer


def copy_of(finished, tmp_path):
    return Path(shutil.copytree(finished[0], tmp_path / "run"))


def test_nothing_is_left_beside_the_checkpoints(finished):
    assert sorted(path.name for path in finished[0].iterdir()) == [f"checkpoint-{n}" for n in (2, 4, 6, 8)]
    for path in finished[0].iterdir():
        assert verify_checkpoint(path)["seed"] == 42


@pytest.mark.parametrize("damage", DAMAGES.values(), ids=DAMAGES)
def test_the_one_before_a_damaged_checkpoint_is_resumed_from(finished, tmp_path, caplog, damage):
    """``Trainer`` takes the highest number: it would crash on the damage, or worse, train on from wrong weights."""
    folder = copy_of(finished, tmp_path)
    shutil.rmtree(folder / "checkpoint-8")
    damage(folder / "checkpoint-6")
    trainer = trainer_of(folder, student=network(9, dropout=0.2), **SAVING)
    with caplog.at_level(logging.WARNING, "tutelage"):
        trainer.train(resume_from_checkpoint=True)
    assert "checkpoint-6 is left out" in caplog.text
    assert trainer._initial_global_step == 4
    assert_same_bits(weights(trainer.model), finished[1])
    assert verify_checkpoint(folder / "checkpoint-6"), "written anew"
    with pytest.raises(CheckpointError, match=r"checkpoint-6"):
        verify_checkpoint(folder / "set-aside-checkpoint-6")


@pytest.mark.parametrize("damage", DAMAGES.values(), ids=DAMAGES)
def test_a_damaged_checkpoint_that_is_asked_for_is_an_error(finished, tmp_path, damage):
    """The user said which one: another one in its place would be a surprise."""
    folder = copy_of(finished, tmp_path)
    damage(folder / "checkpoint-6")
    with pytest.raises(CheckpointError, match="checkpoint-6"):
        trainer_of(folder, student=network(1, dropout=0.2), **SAVING).train(str(folder / "checkpoint-6"))


def test_a_checkpoint_that_does_not_exist_is_an_error(tmp_path):
    with pytest.raises(CheckpointError, match="nowhere"):
        trainer_of(tmp_path).train(tmp_path / "nowhere")


def test_a_path_is_as_good_as_a_string(finished, tmp_path):
    """A ``Path`` taken for "yes, the newest" would resume from another checkpoint than the one named."""
    folder = copy_of(finished, tmp_path)
    trainer = trainer_of(folder, student=network(9, dropout=0.2), **SAVING)
    trainer.train(resume_from_checkpoint=folder / "checkpoint-2")
    assert trainer._initial_global_step == 2
    assert_same_bits(weights(trainer.model), finished[1])


def test_a_half_written_checkpoint_is_not_one(finished, tmp_path):
    """What a crash leaves is under another name, is not resumed from, and does not stay to be mixed with the next one."""
    folder = copy_of(finished, tmp_path)
    for number in (4, 6, 8):
        shutil.rmtree(folder / f"checkpoint-{number}")
    shutil.copytree(finished[0] / "checkpoint-6", folder / STAGING / "checkpoint-6")
    (folder / STAGING / "checkpoint-6" / MANIFEST).unlink()
    trainer = trainer_of(folder, student=network(9, dropout=0.2), **SAVING)
    trainer.train(resume_from_checkpoint=True)
    assert trainer._initial_global_step == 2
    assert not (folder / STAGING).exists()
    assert_same_bits(weights(trainer.model), finished[1])


def test_where_all_are_damaged_the_run_starts_anew(finished, tmp_path, caplog):
    folder = copy_of(finished, tmp_path)
    for path in folder.iterdir():
        flip_a_byte(path / "model.safetensors")
    trainer = trainer_of(folder, student=network(1, dropout=0.2), **SAVING, save_total_limit=1)
    trainer.train(resume_from_checkpoint=True)
    assert trainer._initial_global_step == 0
    assert_same_bits(weights(trainer.model), finished[1])
    found, damaged = latest_checkpoint(folder)
    assert (found, damaged) == (folder / "checkpoint-8", {})


def test_a_damaged_later_checkpoint_does_not_push_out_good_ones(finished, tmp_path):
    """Rotation keeps the highest number: with a limit of 1 it kept the damaged one and removed each new one."""
    folder = copy_of(finished, tmp_path)
    flip_a_byte(folder / "checkpoint-8" / "model.safetensors")
    student = network(9, dropout=0.2)

    trainer = trainer_of(folder, student=student, **SAVING, save_total_limit=1)
    seen = []
    save = trainer._save_checkpoint
    trainer._save_checkpoint = lambda *given: (save(*given), seen.append(latest_checkpoint(folder)[0]))[0]
    trainer.train(resume_from_checkpoint=str(folder / "checkpoint-4"))
    assert seen == [folder / "checkpoint-6", folder / "checkpoint-8"]


def test_a_new_run_in_an_old_folder_is_not_resumed_as_the_old_one(finished, tmp_path):
    """The old run's last checkpoint has the highest number: the new run, cut off, would be found finished."""
    folder = copy_of(finished, tmp_path)
    trainer = trainer_of(folder, student=network(5), **{**SAVING, "learning_rate": 0.01, "num_train_epochs": 1})
    trainer.train()
    found, damaged = latest_checkpoint(folder)
    assert (found, damaged) == (folder / "checkpoint-4", {})
    assert verify_checkpoint(found)["learning_rate"] == 0.01
    assert verify_checkpoint(folder / "set-aside-checkpoint-8")["learning_rate"] == 0.05, (
        "nothing of the old one is lost"
    )


def test_weights_alone_are_not_resumed_from(tmp_path, caplog):
    """``Trainer`` goes on with fresh optimiser moments and another dropout, without a word."""
    student = network(1, dropout=0.2)
    options = {**SAVING, "save_only_model": True}
    final, _ = trained(tmp_path, student=student, **options)
    with pytest.raises(CheckpointError, match="save_only_model"):
        trainer_of(tmp_path, **options, student=student).train(str(tmp_path / "checkpoint-4"))
    anew = trainer_of(tmp_path, student=network(1, dropout=0.2), **options)
    anew.train(resume_from_checkpoint=True)
    assert anew._initial_global_step == 0
    assert_same_bits(weights(anew.model), final)


def test_only_so_many_are_kept(tmp_path):
    trained(tmp_path, **SAVING, save_total_limit=2)
    assert sorted(path.name for path in tmp_path.iterdir()) == ["checkpoint-6", "checkpoint-8"]


class Tied(nn.Module):
    """Two layers that share a matrix."""

    def __init__(self, seed=0):
        super().__init__()
        with torch.random.fork_rng(devices=[]):
            torch.manual_seed(seed)
            self.first, self.second = nn.Linear(FEATURES, FEATURES), nn.Linear(FEATURES, FEATURES)
            self.head = nn.Linear(FEATURES, CLASSES)
        self.second.weight = self.first.weight

    def forward(self, inputs):
        return self.head(torch.tanh(self.second(torch.tanh(self.first(inputs)))))


class OwnSaving(nn.Sequential):
    """A module whose ``save_pretrained`` writes what nobody else can read."""

    def save_pretrained(self, folder):
        (Path(folder) / "mine.txt").write_text("mine")


def own_saving(seed=1):
    return OwnSaving(*network(seed))


def compiled(seed=1):
    return torch.compile(network(seed), backend="eager")


@pytest.mark.parametrize("build", [Tied, own_saving, compiled])
def test_any_module_resumes(tmp_path, build):
    """Shared weights are left out of a safetensors file and a wrapper prefixes the names: loaded leniently, the student would go
    on from its initial weights; ``Trainer`` itself fails on a plain module with such a file."""
    final, _ = trained(tmp_path / "1", student=build(1), **SAVING)
    folder = Path(shutil.copytree(tmp_path / "1", tmp_path / "2"))
    for number in (6, 8):
        shutil.rmtree(folder / f"checkpoint-{number}")
    trainer = trainer_of(folder, student=build(7), **SAVING)
    trainer.train(resume_from_checkpoint=True)
    assert trainer._initial_global_step == 4
    assert_same_bits(weights(trainer.model), final)


def test_the_student_is_saved_as_what_will_be_deployed(tmp_path):
    trainer = trainer_of(tmp_path, student=own_saving())
    trainer.save_model(str(tmp_path / "student"))
    assert (tmp_path / "student" / "mine.txt").read_text() == "mine"
    trainer = trainer_of(tmp_path)
    trainer.save_model(str(tmp_path / "plain"))
    assert [path.name for path in (tmp_path / "plain").iterdir()] == ["model.safetensors"]


BEST = {"eval_strategy": "steps", "eval_steps": 2, "load_best_model_at_end": True, "greater_is_better": True}


def scripted(scores):
    """``compute_metrics`` that gives these scores, one after the other."""
    given = iter(scores)
    return {"eval_dataset": transfer_set(8, seed=5), "compute_metrics": lambda _: {"score": next(given)}}


@pytest.mark.parametrize(("scores", "best"), [((1, 5, 3, 2), 4), ((1, 2, 3, 4), 8), ((9, 1, 2, 3), 2)])
@pytest.mark.parametrize("build", [network, Tied])
def test_the_best_model_is_loaded_from_where_it_stays(tmp_path, scores, best, build):
    """The best folder was seen by ``Trainer`` in the staging folder, which is gone: it would warn and keep the last weights."""
    options = {**SAVING, **BEST, "metric_for_best_model": "score", "save_total_limit": 1}
    trained(tmp_path / "plain", student=build(1), **SAVING)
    final, trainer = trained(tmp_path / "run", student=build(1), trainer_options=scripted(scores), **options)
    assert trainer.state.best_model_checkpoint == str(tmp_path / "run" / f"checkpoint-{best}")
    assert Path(trainer.state.best_model_checkpoint).is_dir()
    recorded = json.loads((tmp_path / "run" / f"checkpoint-{best}" / "trainer_state.json").read_text())
    assert recorded["best_model_checkpoint"] == trainer.state.best_model_checkpoint
    expected = build(7)
    load_model(expected, str(tmp_path / "plain" / f"checkpoint-{best}" / "model.safetensors"))
    assert_same_bits(final, weights(expected))


def test_a_best_checkpoint_that_was_never_saved_is_none(tmp_path):
    """Evaluated at 2 and saved at 8 only: a path to a folder that never was would protect nothing and load nothing."""
    options = {"save_strategy": "steps", "save_steps": 8, "eval_strategy": "steps", "eval_steps": 2}
    extra = scripted((9, 1, 1, 1))
    _, trainer = trained(
        tmp_path, **options, metric_for_best_model="score", greater_is_better=True, trainer_options=extra
    )
    assert trainer.state.best_global_step == 2
    assert trainer.state.best_model_checkpoint is None


def test_a_damaged_best_checkpoint_is_not_loaded(tmp_path):
    """A flipped byte in a weight loads without complaint, and that student would be shipped."""
    options = {**SAVING, **BEST, "metric_for_best_model": "score"}
    trainer = trainer_of(tmp_path, trainer_options=scripted((9, 1, 2, 3)), **options)
    save = trainer._save_checkpoint

    def then_damage(*given):
        save(*given)
        if trainer.state.global_step == 8:
            flip_a_byte(tmp_path / "checkpoint-2" / "model.safetensors", -1)

    trainer._save_checkpoint = then_damage
    with pytest.raises(CheckpointError, match=r"checkpoint-2.*hash differs"):
        trainer.train()


def test_a_moved_folder_keeps_its_best(tmp_path):
    """The path in the state is that of the old place: ``Trainer`` forgets the best model then, and ends with the last one."""
    options = {**SAVING, **BEST, "metric_for_best_model": "score"}
    trained(tmp_path / "old", trainer_options=scripted((9, 1, 2, 3)), **options)
    (tmp_path / "old").rename(tmp_path / "new")
    shutil.rmtree(tmp_path / "new" / "checkpoint-8")
    trainer = trainer_of(tmp_path / "new", trainer_options=scripted((3,)), **options)
    trainer.train(resume_from_checkpoint=True)
    assert trainer.state.best_model_checkpoint == str(tmp_path / "new" / "checkpoint-2")


def test_a_failed_save_ends_the_run_and_leaves_the_last_good_one(tmp_path, monkeypatch):
    """A full disk that is passed over would be found out at the next crash."""
    trainer = trainer_of(tmp_path, **SAVING)
    save = torch.save

    def full(content, path, *args, **options):
        if "checkpoint-4" in str(path):
            raise OSError("No space left on device")
        return save(content, path, *args, **options)

    monkeypatch.setattr(torch, "save", full)
    with pytest.raises(OSError, match="No space left"):
        trainer.train()
    assert latest_checkpoint(tmp_path) == (tmp_path / "checkpoint-2", {})
