"""A language study from prompts to a verdict: what it leaves, what it goes on with, and what it refuses."""

import copy
import json
import re
import shutil
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from language_tiny import TRAINING, counted, data, knowing, llama, split, student, study, tokenizer
from transformers import AutoModelForCausalLM, AutoTokenizer

from tutelage import KL, CrossEntropy
from tutelage.errors import CheckpointError, ConfigError, DataError, TutelageError
from tutelage.evaluation.language import token_fidelity
from tutelage.evaluation.task_score import ExactMatch, PythonScore
from tutelage.models.writing import Sampling
from tutelage.studies import Labels
from tutelage.studies.arm import Silent
from tutelage.studies.language import Filters, Generation, LanguageArm, LanguageData, LanguageGates, costing
from tutelage.studies.language.speaking import ModuleSpeaker, SignalSpeaker
from tutelage.teachers import EnsembleTeacher, ModuleTeacher
from tutelage.training import DistillationTrainer
from tutelage.training.on_policy import OnPolicy

SHORT = {**TRAINING, "num_train_epochs": 2}
TIMED = {key: value for key, value in TRAINING.items() if key not in ("num_train_epochs", "lr_scheduler_type")}
ONE_STEP = {**TRAINING, "max_steps": 1, "eval_strategy": "no"}


@pytest.fixture(autouse=True)
def hasty(monkeypatch: pytest.MonkeyPatch) -> None:
    """What a model costs is not what these tests are about."""
    monkeypatch.setattr(costing, "_ROUNDS", 1)
    monkeypatch.setattr(costing, "_MOST_ROUNDS", 1)


@pytest.fixture(scope="module")
def done(tmp_path_factory: pytest.TempPathFactory) -> tuple[Path, dict[str, Any]]:
    folder = tmp_path_factory.mktemp("language")
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(costing, "_MOST_ROUNDS", 1)
        patch.setattr(costing, "_ROUNDS", 1)
        return folder, study().run(folder)


def test_the_record_has_what_the_page_needs(done: tuple[Path, dict[str, Any]]) -> None:
    """A missing number would be a hole in the page of a run that took hours."""
    folder, result = done
    assert result == json.loads((folder / "result.json").read_text())
    assert result["task"] == "language_model"
    assert result["splits"] == {"train": 144, "validation": 36, "test": 36}
    assert result["transfer"]["prompt_tokens"] == {"student": 2.0, "teacher": 4.0}
    assert result["transfer"]["tokens"] == 288
    assert list(result["arms"]) == ["teacher", "untouched", "sft", "kd"]
    assert {len(result["arms"][arm]["seeds"]) for arm in ("teacher", "untouched")} == {1}
    for arm in ("sft", "kd"):
        assert set(result["arms"][arm]["mean"]) == {"nll", "perplexity", "score", "kl", "agreement"}
        seeds = result["arms"][arm]["seeds"]
        assert [row["seed"] for row in seeds] == [0, 1]
        assert [(row["steps"], row["tokens"]) for row in seeds] == [(32, 8 * 288)] * 2
    assert result["arms"]["kd"]["mean"]["kl"] < 0.1 < 1 < result["arms"]["untouched"]["mean"]["kl"]
    assert result["arms"]["kd"]["mean"]["score"] > 0.9
    assert result["metric"] == "score"
    assert result["gap"]["closed"] == pytest.approx(1, abs=0.1)
    assert result["context"]["saved"] == 2.0
    assert {row["b"] for row in result["comparisons"] if row["metric"] == "kl"} == {"untouched", "sft"}
    sample = result["samples"][0]
    assert (sample["prompt"], sample["teacher_prompt"], sample["reference"]) == ("b0 f", "sort : b0 f", "beast")
    assert sample["answers"]["kd"] == "beast"
    curve = result["evidence"]["curves"]["kd"][0]
    assert len(curve["validation"]) == 8
    assert curve["validation"][-1]["nll"] < curve["validation"][0]["nll"]
    assert {gate["name"]: gate["passed"] for gate in result["verdict"]["gates"]}["gain_over_untouched"] is True


def test_a_student_is_deployed_from_its_folder(done: tuple[Path, dict[str, Any]]) -> None:
    """Weights that reload as something else than what was measured would be shipped with its numbers."""
    folder, result = done
    for seed in (0, 1):
        where = folder / "kd" / f"seed-{seed}"
        loaded = AutoModelForCausalLM.from_pretrained(where).eval()
        assert len(AutoTokenizer.from_pretrained(where)) == len(tokenizer())
        test = data().test.set
        assert test is not None
        found = token_fidelity(loaded, ModuleTeacher(knowing()), test)
        said = result["arms"]["kd"]["seeds"][seed]
        assert found.means["kl"] == pytest.approx(said["fidelity"]["kl"], rel=1e-4)
        assert found.means["nll"] == pytest.approx(said["metrics"]["nll"], rel=1e-4)
        assert not (where / "checkpoints").exists()


def test_what_is_done_is_not_done_again(done: tuple[Path, dict[str, Any]]) -> None:
    """The same command after an interruption would train finished arms for hours, or open the test split a second time."""
    folder, result = done
    before = {path: path.stat().st_mtime_ns for path in folder.rglob("record.json")}
    again = study(gates=LanguageGates(kl=0.5)).run(folder)
    assert {path: path.stat().st_mtime_ns for path in folder.rglob("record.json")} == before
    assert again["arms"] == result["arms"]
    assert [gate["name"] for gate in again["verdict"]["gates"]][-1] == "kl"


@pytest.mark.parametrize(
    ("changes", "said"),
    [
        ({"objective": KL(temperature=2.0)}, "objective"),
        ({"data": data(view="a {}")}, "the test split's examples"),
        ({"teacher": ModuleTeacher(llama(9, width=32))}, "the teacher's weights"),
        ({"fingerprint": {"views.teacher.system": "sort"}}, "views.teacher.system: nothing then, 'sort' now"),
    ],
)
def test_a_folder_of_other_settings_is_refused(changes: Any, said: str, done: tuple[Path, dict[str, Any]]) -> None:
    """Arms taught otherwise, or tested on other prompts, would be compared as if they were alike."""
    with pytest.raises(CheckpointError, match=said):
        study(**changes).run(done[0])


def test_nothing_is_written_into_another_studys_folder(done: tuple[Path, dict[str, Any]]) -> None:
    """The completions of another teacher would lie in a finished run, which then holds what it never learnt from."""
    before = sorted(done[0].rglob("*"))
    generation = Generation(Sampling(3, greedy=True), filters=Filters(finished=False))
    other = study(teacher=ModuleTeacher(llama(9, width=32)), completions="teacher", generation=generation)
    with pytest.raises(CheckpointError, match="--out"):
        other.run(done[0])
    with pytest.raises(CheckpointError, match="holds another study"):
        other.generate(done[0])
    assert sorted(done[0].rglob("*")) == before


def test_less_than_a_batch_is_not_learnt_from(tmp_path: Path) -> None:
    """A filter that drops nearly all leaves a student that knows a single text by heart, and a run that ends as any other."""
    one = Filters(finished=False, python=lambda text, row: row["word"] == "b0 a")
    generation = Generation(Sampling(3, greedy=True), filters=one)
    with pytest.raises(DataError, match=r"1 of 144 kept \(143 refused\), fewer than one batch of 36"):
        study(completions="teacher", generation=generation).run(tmp_path)
    assert not (tmp_path / "kd").exists()


def test_another_score_is_asked_of_the_students_that_are_there(
    done: tuple[Path, dict[str, Any]], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Refused, a forgotten score would cost every training again; taken from the old record, it would be another question's answer."""
    folder = tmp_path / "copy"
    shutil.copytree(done[0], folder)
    monkeypatch.setattr(DistillationTrainer, "train", lambda *_, **__: pytest.fail("trained again"))
    half = PythonScore(lambda text, row: 0.5 * (text == row["kind"]), max_new_tokens=4)
    few: dict[str, Any] = {"arms": ("untouched", "kd"), "seeds": 1}
    other = {**few, "score": half, "samples": 1}
    result = study(**other).run(folder)
    for arm in ("teacher", "untouched", "kd"):
        before, after = done[1]["arms"][arm]["seeds"][0], result["arms"][arm]["seeds"][0]
        assert after["metrics"]["nll"] == pytest.approx(before["metrics"]["nll"], rel=1e-5)
        assert arm != "kd" or after["metrics"]["score"] == pytest.approx(0.5 * before["metrics"]["score"])
        assert after["steps"] == before["steps"]
    assert len(result["samples"]) == 1
    records = {path: path.stat().st_mtime_ns for path in folder.rglob("record.json")}
    assert study(**other).run(folder)["arms"] == result["arms"]
    assert {path: path.stat().st_mtime_ns for path in folder.rglob("record.json")} == records


def test_damage_is_noticed(done: tuple[Path, dict[str, Any]], tmp_path: Path) -> None:
    """A student whose file changed since would be deployed with another one's numbers."""
    folder = tmp_path / "copy"
    shutil.copytree(done[0], folder)
    config = folder / "kd" / "seed-0" / "generation_config.json"
    config.write_text(config.read_text() + " ")
    with pytest.raises(CheckpointError, match=r"generation_config.json is not what was written"):
        study().run(folder)


def test_a_run_that_was_cut_off_ends_where_an_undisturbed_one_does(
    done: tuple[Path, dict[str, Any]], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """A student that is trained anew from the middle would have learnt some texts twice and others never."""
    from tutelage.studies.language import training

    commit, calls = training.commit_language_run, []

    def killed(*args: Any) -> None:
        calls.append(1)
        if len(calls) == 2:
            raise KeyboardInterrupt
        commit(*args)

    monkeypatch.setattr(training, "commit_language_run", killed)
    settings = {"training": {**TRAINING, "save_strategy": "steps", "save_steps": 5}, "arms": ("kd",), "seeds": [1]}
    with pytest.raises(KeyboardInterrupt):
        study(**settings, extra_arms={"again": LanguageArm(KL(temperature=1.0))}).run(tmp_path)
    assert list((tmp_path / "again" / "seed-1" / "checkpoints").glob("checkpoint-*"))
    result = study(**settings, extra_arms={"again": LanguageArm(KL(temperature=1.0))}).run(tmp_path)
    assert result["arms"]["again"]["mean"] == result["arms"]["kd"]["mean"]
    whole = done[1]["arms"]["kd"]["seeds"][1]
    assert result["arms"]["kd"]["seeds"][0]["metrics"] == whole["metrics"]


def test_every_way_to_teach(tmp_path: Path) -> None:
    """A way that is silently another one (stored labels of other rows, the wrong author, the wrong prompt) would still train."""
    arms = {
        "stored": LanguageArm(KL(temperature=1.0), labels=Labels(dtype="float32", spot_check=2)),
        "sequence": LanguageArm(CrossEntropy(), completions="teacher"),
        "on_policy": LanguageArm(KL(temperature=1.0), on_policy=OnPolicy(1.0, Sampling(3), eos=[1])),
        "full_prompt": LanguageArm(KL(temperature=1.0), shows="teacher"),
    }
    generation = Generation(Sampling(3, greedy=True), filters=Filters(min_tokens=2))
    result = study(extra_arms=arms, generation=generation, arms=("kd",), seeds=1, training=SHORT).run(tmp_path)
    found = {arm: each["mean"] for arm, each in result["arms"].items()}
    assert found["stored"]["kl"] == pytest.approx(found["kd"]["kl"], rel=1e-3)
    assert found["full_prompt"]["kl"] > 1.2 * found["kd"]["kl"]
    own = result["arms"]["on_policy"]["seeds"][0]
    assert 0 < own["generation_share"] < 1
    assert 0 < own["tokens"] <= 2 * 144 * 3
    assert result["arms"]["kd"]["seeds"][0]["generation_share"] is None
    assert result["generated"]["counts"]["kept"] == 144
    assert result["labels"]["rows"] == 288
    assert result["labels"]["store"] == "stored/labels"
    assert "labels" not in result["arms"]["kd"]
    assert (tmp_path / "generated" / "manifest.json").is_file()
    assert {gate["passed"] for gate in result["verdict"]["gates"]} == {None}, "one seed decides nothing"


def test_labels_and_completions_alone_and_before(tmp_path: Path) -> None:
    """A run that labelled or wrote anew would take the teacher's hours twice, and differ where the teacher is drawn from."""
    plain = data(completed=False)
    generation = Generation(Sampling(3, seed=5))
    settings = {"data": plain, "completions": "teacher", "generation": generation, "labels": Labels(spot_check=0)}
    settings |= {"arms": ("kd",), "seeds": 1, "training": SHORT, "score": None}
    wrote = study(**settings).generate(tmp_path)
    assert wrote["counts"]["kept"] > 100
    manifest = (tmp_path / "generated" / "manifest.json").stat().st_mtime_ns
    kept = study(**settings).label(tmp_path)
    result = study(**settings).run(tmp_path)
    assert (tmp_path / "generated" / "manifest.json").stat().st_mtime_ns == manifest
    assert result["labels"]["digest"] == kept["digest"]
    assert result["labels"]["written"] == "before this run"
    assert result["generated"] == wrote
    assert result["metric"] == "kl"
    assert result["transfer"]["completions"] == "teacher"
    assert result["samples"][0]["reference"] == "beast"


def test_adapters_are_saved_by_themselves_and_merged_in(tmp_path: Path) -> None:
    """An adapter alone cannot be loaded without its base; merged alone it cannot be taken off again."""
    from tutelage.models.adapters import with_lora

    base = knowing().state_dict()

    def adapted() -> Any:
        model = llama(3, width=32)
        model.load_state_dict(base)
        return with_lora(model, r=4)

    settings: dict[str, Any] = {"student": adapted, "arms": ("untouched", "kd"), "seeds": 1, "training": SHORT}
    result = study(**settings).run(tmp_path)
    where = tmp_path / "kd" / "seed-0"
    plain = AutoModelForCausalLM.from_pretrained(where).eval()
    test = data().test.set
    assert test is not None
    found = token_fidelity(plain, ModuleTeacher(knowing()), test)
    assert found.means["kl"] == pytest.approx(result["arms"]["kd"]["mean"]["kl"], rel=1e-3, abs=1e-5)
    assert not any("lora" in name for name in plain.state_dict())
    # what is paid for is the plain model that is shipped, not the two weights a layer that were trained
    for measure in ("parameters", "bytes"):
        assert result["cost"]["student"][measure] == result["cost"]["teacher"][measure]
    again = study(**settings, samples=1).run(tmp_path)["arms"]["kd"]["mean"]
    assert again["kl"] == pytest.approx(result["arms"]["kd"]["mean"]["kl"], rel=1e-3, abs=1e-5)
    assert (where / "adapter" / "adapter_model.safetensors").is_file()
    assert result["arms"]["kd"]["mean"]["kl"] < result["arms"]["untouched"]["mean"]["kl"]


def seed_log(folder: Path, arm: str) -> list[dict[str, Any]]:
    return json.loads((folder / arm / "seed-0" / "record.json").read_text())["log"]


def test_an_equal_time_for_each(tmp_path: Path) -> None:
    """Arms that take as many steps as they like compare budgets, not methods."""
    result = study(arms=("sft", "kd"), seeds=1, seconds=0.5, training=TIMED).run(tmp_path)
    for arm in ("sft", "kd"):
        seed = result["arms"][arm]["seeds"][0]
        assert 0.2 <= seed["seconds"] < 5
        assert "max_steps" not in result["arms"][arm]["description"]
        rates = [line["learning_rate"] for line in seed_log(tmp_path, arm) if "learning_rate" in line]
        assert rates[-1] == (0.03 if seed["steps"] > 20 else max(rates))


def test_an_arm_that_ends_before_its_time_is_told(tmp_path: Path) -> None:
    """Ended by its steps, an arm would be compared with others that had all of the time, without a word."""
    said: list[str] = []
    watcher = type("Watcher", (Silent,), {"finished": lambda _, what, outcome: said.append(f"{what}: {outcome}")})
    timed = {**TIMED, "max_steps": 2}
    result = study(arms=("kd",), seeds=1, seconds=600.0, training=timed).run(tmp_path, watcher())
    assert result["arms"]["kd"]["seeds"][0]["steps"] == 2
    assert re.search(r"; ended by max_steps after [\d.e-]+ of 600 s$", result["arms"]["kd"]["description"])
    assert re.search(r"kd, seed 0: .* after 2 steps, ended by max_steps after", "\n".join(said))


def test_as_many_steps_whoever_wrote_the_completions_and_their_making_told(tmp_path: Path) -> None:
    """Epochs of three times as many completions are three times the training; hours of writing would have cost nothing."""
    arms = {
        "written": LanguageArm(CrossEntropy(), completions="teacher"),
        "stored": LanguageArm(KL(temperature=1.0), labels=Labels(spot_check=0)),
    }
    settings: dict[str, Any] = {"extra_arms": arms, "arms": ("kd",), "seeds": 1, "score": None, "training": SHORT}
    generation = Generation(Sampling(3), n=3, deduplicate=False, filters=Filters(finished=False))
    found = study(**settings, generation=generation).run(tmp_path)["arms"]
    assert {arm: found[arm]["seeds"][0]["steps"] for arm in ("kd", "written", "stored")} == dict.fromkeys(
        ("kd", "written", "stored"), 2 * 4
    )
    assert found["written"]["preparation_seconds"] > 0
    assert found["stored"]["preparation_seconds"] == found["stored"]["labels"]["made"]["seconds"]
    assert "preparation_seconds" not in found["kd"]
    assert json.loads((tmp_path / "generated" / "manifest.json").read_text())["counts"]["kept"] == 3 * 144


@pytest.mark.parametrize(
    ("training", "said"),
    [
        ({"num_train_epochs": 3}, "num_train_epochs is 3 beside a budget of seconds"),
        ({"max_steps": -1}, "max_steps is -1 beside"),
        ({"lr_scheduler_type": "linear"}, "lr_scheduler_type is 'linear'.*falls towards a last step"),
        ({"warmup_steps": 0.1}, "warmup_steps is 0.1, a share of all steps"),
        ({"save_steps": 0.5}, "save_steps is 0.5, a share"),
    ],
)
def test_what_contradicts_a_budget_of_time(training: dict[str, Any], said: str) -> None:
    """Each would end some arms before the others, or train them at another rate, in silence."""
    with pytest.raises(ConfigError, match=said):
        study(seconds=60.0, training={**TIMED, **training})


def test_a_text_alone_is_shared_by_two_vocabularies(tmp_path: Path) -> None:
    """Tokens of one vocabulary taken for another's would teach words that nobody wrote."""
    from language_tiny import VOCABULARY

    other = tokenizer(VOCABULARY[:2] + VOCABULARY[:1:-1])
    settings: dict[str, Any] = {"tokenizer": other, "teacher_tokenizer": tokenizer(), "alignment": "text"}
    mine = data(completed=False)
    encode, theirs = other.encode, tokenizer().decode
    for part in mine.splits.values():
        translated = [encode(theirs(prompt)) for prompt in part.prompts.lists()]
        object.__setattr__(part, "prompts", type(part.prompts).of(translated))
    settings |= {"data": mine, "objective": CrossEntropy(), "completions": "teacher", "seeds": 1, "arms": ("kd",)}
    result = study(**settings, generation=Generation(Sampling(3, greedy=True))).run(tmp_path)
    assert result["arms"]["kd"]["mean"]["score"] > 0.8
    assert "kl" not in result["arms"]["kd"]["mean"]
    assert result["samples"][0]["answers"]["kd"] == "beast"
    assert result["context"] is None


def test_vocabularies_padded_differently_share_their_tokens(tmp_path: Path) -> None:
    """Qwen's models of one tokenizer have heads of several sizes: refused, half of that family could teach nobody."""
    wide = llama(3, width=32, vocabulary=64)
    state = wide.state_dict()
    for name, values in knowing().state_dict().items():
        state[name][: len(values)] = values
    wide.load_state_dict(state)
    result = study(teacher=ModuleTeacher(wide), arms=("kd",), seeds=1, training=ONE_STEP).run(tmp_path)
    plain = study(arms=("kd",), seeds=1, training=ONE_STEP).run(tmp_path / "plain")
    assert result["arms"]["kd"]["mean"]["kl"] == pytest.approx(plain["arms"]["kd"]["mean"]["kl"], rel=1e-3)


def test_an_ensemble_is_scored_through_what_it_says(done: tuple[Path, dict[str, Any]], tmp_path: Path) -> None:
    """Without its score a study of an ensemble had no gap to close, and its verdict no teacher to be held against."""
    members = [knowing(), llama(9, width=32)]
    ensemble = EnsembleTeacher(members, [3, 1])
    prompts = data().test.taught_prompts
    choices = ["beast", "meal town", "town : b1"]
    found = SignalSpeaker(ensemble, tokenizer(), batch_size=5).choice_scores(prompts, choices)
    alone = SignalSpeaker(ModuleTeacher(knowing()), tokenizer()).choice_scores(prompts, choices)
    torch.testing.assert_close(
        alone.float(), ModuleSpeaker(knowing(), tokenizer(), [1]).choice_scores(prompts, choices), rtol=1e-4, atol=1e-4
    )
    for row, column in ((0, 1), (7, 2)):
        words = tokenizer().encode(choices[column])
        ids = torch.tensor([[*prompts.lists()[row], *words]])
        with torch.no_grad():
            first, second = (member(input_ids=ids).logits[0, -len(words) - 1 : -1].softmax(-1) for member in members)
        mixed = (0.75 * first + 0.25 * second).log()
        assert float(found[row, column]) == pytest.approx(float(mixed[range(len(words)), words].sum()), rel=1e-4)
    result = study(teacher=ensemble, arms=("untouched", "kd"), seeds=1, training=ONE_STEP).run(tmp_path)
    assert result["arms"]["teacher"]["mean"]["score"] > 0.9
    assert result["gap"]["teacher"] == result["arms"]["teacher"]["mean"]["score"]
    assert "no sample of it is shown" in result["arms"]["teacher"]["description"]
    assert set(result["samples"][0]["answers"]) == {"untouched", "kd"}
    written = {"completions": "teacher", "generation": Generation(Sampling(3))}
    with pytest.raises(ConfigError, match="EnsembleTeacher cannot: it has no model of its own"):
        study(teacher=ensemble, **written).generate(tmp_path / "written")


def test_a_score_of_texts_is_not_made_up_for_a_teacher_that_writes_none(tmp_path: Path) -> None:
    """A 0 in its place would let every student pass as better than its teacher."""
    ensemble = EnsembleTeacher([knowing()])
    made = study(teacher=ensemble, arms=("kd",), seeds=1, training=ONE_STEP, score=ExactMatch("kind", max_new_tokens=4))
    result = made.run(tmp_path)
    assert "score" not in result["arms"]["teacher"]["mean"]
    assert "score" in result["arms"]["kd"]["mean"]


@pytest.mark.parametrize(
    ("changes", "said"),
    [
        ({"arms": ("sft",)}, "expected 'kd'"),
        ({"arms": ("kd", "scratch")}, "other ways are extra arms"),
        ({"extra_arms": {"generated": LanguageArm(KL())}}, "cannot be called"),
        ({"extra_arms": {"a/b": LanguageArm(KL())}}, "cannot be called"),
        ({"seeds": 0}, "at least 1"),
        ({"student": student()}, "a function that makes a fresh one"),
        ({"completions": "teacher"}, "give a Generation"),
        ({"data": data(completed=False)}, "train split has none"),
        ({"alignment": "text"}, "shares no vocabulary.*cross_entropy"),
        (
            {"extra_arms": {"x": LanguageArm(KL(), OnPolicy(1.0, Sampling(3), eos=[1]), labels=Labels())}},
            "on-policy and has labels",
        ),
        (
            {"data": data(teacher_view=None), "extra_arms": {"x": LanguageArm(KL(), shows="teacher")}},
            "the student's own already",
        ),
    ],
)
def test_settings_that_contradict_one_another(changes: Any, said: str) -> None:
    """Found out after an hour of the teacher's writing, each would have cost that hour."""
    with pytest.raises(ConfigError, match=said):
        study(**changes)


@pytest.mark.parametrize(
    ("changes", "said"),
    [
        (
            {"on_policy": OnPolicy(1.0, Sampling(3), eos=[1]), "objective": 0.5 * KL() + 0.5 * CrossEntropy()},
            "the arm 'kd': .*needs labels",
        ),
        ({"labels": Labels(form="sampled", temperature=2.0)}, "'kd' cannot learn from labels"),
        ({"training": {**TRAINING, "seed": 3}}, "training.seed is the study's"),
        ({"student": knowing}, "same parameters twice"),
        ({"student": lambda: llama(vocabulary=40)}, "the student reads 40 tokens"),
    ],
)
def test_what_cannot_work_is_refused_before_anything_is_written(changes: Any, said: str, tmp_path: Path) -> None:
    """A mistake that training alone would find costs all that comes before it."""
    with pytest.raises(TutelageError, match=said):
        study(**changes).run(tmp_path)
    assert not [path for path in tmp_path.rglob("*") if path.is_file()]


class Counting:
    """A progress that counts what is reported as done."""

    def __init__(self) -> None:
        self.done: list[str] = []

    def started(self, what: str, total_steps: int, steps_done: int) -> None: ...

    def advanced(self, steps_done: int) -> None: ...

    def labelling(self, what: str, rows: int, done: int) -> None: ...

    def labelled(self, done: int, rows_a_second: float) -> None: ...

    def finished(self, what: str, outcome: str) -> None:
        self.done.append(what)


def test_nothing_to_show_and_as_many_reports_as_were_promised(tmp_path: Path) -> None:
    """A run that shows no samples ended in an error after all of its training; one told [3/2] seems to have lost count of itself."""
    watch = Counting()
    plain = data()
    without: dict[str, Any] = {"data": replace(plain, validation=replace(plain.validation, set=None)), "samples": 0}
    without["arms"] = ("untouched", "kd")
    generation = Generation(Sampling(2, greedy=True))
    arms = {"own": LanguageArm(CrossEntropy(), completions="teacher")}
    made = study(
        **without, seeds=1, training=ONE_STEP, labels=Labels(spot_check=0), generation=generation, extra_arms=arms
    )
    result = made.run(tmp_path, watch)
    assert result["samples"] == []
    assert len(watch.done) == made.trainings, watch.done


@pytest.mark.parametrize("completed", [True, False])
def test_no_example_is_in_two_splits(completed: bool) -> None:
    """What was learnt by heart would be told as understood."""
    texts = [f"{word} {letter}" for word in ("b0", "m1") for letter in "abc"]
    train, held, fresh = (
        split(some, completed=completed) for some in (texts[:4], texts[3:], [f"t{number} d" for number in range(3)])
    )
    with pytest.raises(DataError, match=r"1 of 3 test examples also stand in the train split \(the first: 0\)"):
        LanguageData(train, fresh, held)
    with pytest.raises(DataError, match="validation examples also stand in the train split"):
        LanguageData(train, held, fresh)
    with pytest.raises(DataError, match="test examples also stand in the validation split"):
        LanguageData(fresh, held, train)
    apart = LanguageData(train.without(held), fresh, held)
    assert [row["word"] for row in apart.train.rows] == texts[:3]
    with pytest.raises(DataError, match="nothing of it is left"):
        held.without(train, held)


def test_labels_are_not_made_where_none_are_asked_for(tmp_path: Path) -> None:
    """A store nobody reads takes the teacher's time and the disk."""
    with pytest.raises(ConfigError, match="keeps no labels"):
        study().label(tmp_path)
    with pytest.raises(ConfigError, match="no arm of this study learns from completions"):
        study().generate(tmp_path)


def test_every_arm_begins_with_the_same_student(tmp_path: Path) -> None:
    """Another initialisation for each arm would be taken for what its method did."""
    calls: list[int] = []
    result = study(student=counted(student, calls), training={**ONE_STEP, "learning_rate": 1e-12}, seeds=1)
    found = result.run(tmp_path)
    np.testing.assert_allclose(
        [found["arms"][arm]["mean"]["kl"] for arm in ("sft", "kd")], found["arms"]["untouched"]["mean"]["kl"], rtol=1e-5
    )
    assert len(calls) == 2 + 1 + 2 + 1  # two looks beforehand, untouched, both arms, what it costs


def test_the_teacher_is_left_as_it_was(tmp_path: Path) -> None:
    """A teacher that learns from its student would agree with it in the end."""
    teacher = copy.deepcopy(knowing()).train()
    before = {name: values.clone() for name, values in teacher.state_dict().items()}
    study(teacher=ModuleTeacher(teacher), arms=("kd",), seeds=1, training=ONE_STEP).run(tmp_path)
    assert teacher.training
    assert all(torch.equal(values, before[name]) for name, values in teacher.state_dict().items())
