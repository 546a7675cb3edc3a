"""Studies whose students are cut from their teacher: run, gone on with, opened again, planned, inspected, swept and exported."""

import json
from collections.abc import Generator
from functools import partial
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import load_file
from transformers import AutoModelForMaskedLM, AutoModelForSequenceClassification, AutoTokenizer

from encoder_project import CONFIG, LAYERS, TRAINED, built, project
from masked_tiny import SYLLABLES, masked, tokenizer
from tutelage.config import load_config
from tutelage.config.reopening import reopen
from tutelage.config.searching import build_search
from tutelage.errors import CheckpointError, TutelageError
from tutelage.evaluation import measure_cost
from tutelage.studies import Silent, export_student, open_run, recording
from tutelage.studies.arm import build_seeded, weights_digest
from tutelage.studies.beforehand import check_study
from tutelage.studies.inspecting import inspect_teacher
from tutelage.studies.passing import settings_of
from tutelage.studies.planning import plan_study
from tutelage.studies.sweeping import run_sweep

ARMS = """study.arms=[kd, scratch, {random: {objective: [{term: cross_entropy}], student: {initial: random}}},
  {small: {student: {layers: 1, vocabulary: used}}}]"""


@pytest.fixture(scope="module", autouse=True)
def _timed_shortly() -> Generator[None]:
    """No latency is asked about here, and each run would measure it for seconds."""
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(recording, "measure_cost", partial(measure_cost, seconds=0.05))
        yield


def weights(folder: Path) -> dict[str, torch.Tensor]:
    return load_file(folder / "model.safetensors")


def same(a: dict[str, torch.Tensor], b: dict[str, torch.Tensor]) -> bool:
    return a.keys() == b.keys() and all(torch.equal(a[name], b[name]) for name in a)


@pytest.fixture(scope="module")
def ran(tmp_path_factory: pytest.TempPathFactory) -> tuple[Path, dict[str, Any]]:
    """A run with a given teacher, arms of its own and a cut vocabulary in one of them."""
    path = project(tmp_path_factory.mktemp("given"))
    return path, built(path, ARMS).run(path.parent / "run")


@pytest.fixture(scope="module")
def trained(tmp_path_factory: pytest.TempPathFactory) -> tuple[Path, dict[str, Any]]:
    """A run that trains the teacher whom its students are cut from, and cuts the vocabulary too."""
    path = project(tmp_path_factory.mktemp("trained"))
    return path, built(path, TRAINED, "student.vocabulary=used").run(path.parent / "run")


def test_the_arithmetic_of_an_example_is_one_number(ran: tuple[Path, dict[str, Any]]) -> None:
    """One page had two for one model: of a text padded to others beside it, and of a text alone."""
    result = ran[1]
    rows = {row["what"]: row for row in result["surgery"][0]["rows"]}
    cost = result["cost"]
    assert rows["flops_per_example"]["before"] == cost["teacher"]["flops_per_example"]
    assert rows["flops_per_example"]["after"] == cost["student"]["flops_per_example"]
    assert cost["teacher"]["example_tokens"] == cost["student"]["example_tokens"]


def test_each_arm_says_how_its_students_begin(ran: tuple[Path, dict[str, Any]]) -> None:
    """Two starts compared as if they were one would be called what a teacher is worth."""
    _, result = ran
    starts = {arm: record.get("start") for arm, record in result["arms"].items()}
    assert starts == {
        "teacher": None,
        "kd": "cut from the teacher (layers every_other)",
        "scratch": None,
        "random": "of the teacher’s shape, cut (layers every_other), its weights drawn at random",
        "small": "cut from the teacher (layers 1, the vocabulary of the training texts)",
    }
    assert "weights drawn at random" in result["arms"]["random"]["description"]


def test_what_was_cut_stands_in_the_record(ran: tuple[Path, dict[str, Any]]) -> None:
    """A cut that nobody can look up cannot be held against the sizes that were promised."""
    _, result = ran
    judged, drawn, small = result["surgery"]
    assert judged["arms"] == ["kd", "scratch"]
    assert (drawn["arms"], small["arms"]) == (["random"], ["small"])
    sizes = {row["what"]: (row["before"], row["after"]) for row in judged["rows"]}
    assert sizes["layers"] == (LAYERS, LAYERS // 2)
    assert sizes["vocabulary"][0] == sizes["vocabulary"][1]
    assert judged["kept_layers"] == [0, 2]
    assert drawn["kept_layers"] is None
    vocabulary = next(row for row in small["rows"] if row["what"] == "vocabulary")
    assert vocabulary["after"] < vocabulary["before"]


def test_arms_are_compared_on_the_same_examples_and_seeds(ran: tuple[Path, dict[str, Any]]) -> None:
    """An arm of another vocabulary has another view, and its pairs must be the same texts all the same."""
    path, result = ran
    folder = path.parent / "run"
    pairs = {(row["a"], row["b"]) for row in result["comparisons"]}
    assert {("kd", "scratch"), ("kd", "random"), ("kd", "small")} <= pairs
    kept = [load_file(folder / arm / "seed-0" / "predictions.safetensors") for arm in ("kd", "small")]
    assert torch.equal(kept[0]["ids"], kept[1]["ids"])


def test_students_are_plain_folders_of_transformers(ran: tuple[Path, dict[str, Any]]) -> None:
    """A cut student that only this package can open could be shipped to nobody."""
    path, _ = ran
    for arm, layers in (("kd", 2), ("small", 1)):
        folder = path.parent / "run" / arm / "seed-0"
        model = AutoModelForSequenceClassification.from_pretrained(folder)
        tokenizer = AutoTokenizer.from_pretrained(folder)
        assert model.config.num_hidden_layers == layers
        assert model.config.vocab_size == len(tokenizer)
        assert same(model.state_dict(), weights(folder))


def test_the_same_command_trains_nothing_again(ran: tuple[Path, dict[str, Any]]) -> None:
    """A start that is not the same twice would be refused as another run, or be trained again each time."""
    path, result = ran
    again = built(path, ARMS).run(path.parent / "run")
    assert again["arms"]["kd"]["seeds"] == result["arms"]["kd"]["seeds"]
    assert again["arms"]["small"]["seeds"] == result["arms"]["small"]["seeds"]


def test_another_cut_in_the_same_folder_is_refused(ran: tuple[Path, dict[str, Any]]) -> None:
    """Finished arms of another cut would be compared as if they were of this one."""
    path, _ = ran
    with pytest.raises(CheckpointError, match=r"student\.layers"):
        built(path, ARMS, "student.layers=last:2").run(path.parent / "run")


class CutOff(Silent):
    """Ends the run in the middle of one training."""

    def __init__(self, what: str) -> None:
        self._what, self._now = what, ""

    def started(self, what: str, total_steps: int, steps_done: int) -> None:
        self._now = what

    def advanced(self, steps_done: int) -> None:
        if self._now == self._what and steps_done == 2:
            raise KeyboardInterrupt


def test_a_run_that_is_cut_off_ends_bit_for_bit_the_same(ran: tuple[Path, dict[str, Any]], tmp_path: Path) -> None:
    """A start that is drawn or cut anew would be mixed with what was trained before, into a student that nobody described."""
    path, _ = ran
    with pytest.raises(KeyboardInterrupt):
        built(path, ARMS).run(tmp_path / "run", CutOff("small, seed 0"))
    assert not (tmp_path / "run" / "small" / "seed-0" / "record.json").exists()
    built(path, ARMS).run(tmp_path / "run")
    for arm in ("kd", "random", "small"):
        assert same(weights(tmp_path / "run" / arm / "seed-0"), weights(path.parent / "run" / arm / "seed-0"))


def test_students_are_cut_from_the_teacher_that_was_trained(trained: tuple[Path, dict[str, Any]]) -> None:
    """Cut from the untrained one, they would begin with noise; and no accuracy would tell on so small a task."""
    path, result = trained
    folder = path.parent / "run"
    study = built(path, TRAINED, "student.vocabulary=used")
    found = open_run(study, folder)
    module = found.teacher.model  # type: ignore[attr-defined]
    begun = found.fresh(0).state_dict()
    taught = module.state_dict()
    assert torch.equal(begun["classifier.weight"], taught["classifier.weight"])
    assert torch.equal(
        begun["bert.encoder.layer.1.output.dense.weight"], taught["bert.encoder.layer.2.output.dense.weight"]
    )
    assert result["surgery"][0]["kept_layers"] == [0, 2]
    record = json.loads((folder / "kd" / "seed-0" / "record.json").read_text())
    assert record["fingerprint"]["initial_weights"] == weights_digest(found.fresh(0))
    assert record["fingerprint"]["initial_weights"] != weights_digest(_untrained(study))


def _untrained(study: Any) -> torch.nn.Module:
    return build_seeded(study._setting(Path("unused"), None).student, 0)


def test_a_run_that_trained_its_teacher_opens_again_from_its_folder(trained: tuple[Path, dict[str, Any]]) -> None:
    """Export, check and inspect open it: a student of the wrong shape or view would fail there, hours later."""
    path, _ = trained
    found = reopen(path.parent / "run")
    student = found.student(0)
    assert student.config.num_hidden_layers == LAYERS // 2  # type: ignore[union-attr]
    assert set(found.test_logits) == {"teacher", "kd", "scratch"}


def test_a_finished_teacher_is_not_trained_again_for_another_student(
    trained: tuple[Path, dict[str, Any]], tmp_path: Path
) -> None:
    """A sweep over students shares one teacher: refused for another student's sake, the winner's run would end at its beginning."""
    path, _ = trained
    overrides = [TRAINED, "search={space: {student.layers: [1, 2]}, seeds: 1}", "study.arms=[kd]"]
    search = build_search(load_config(path, overrides), path.parent, "")  # type: ignore[arg-type]
    result = run_sweep(search, tmp_path / "sweep")
    assert [trial["state"] for trial in result["trials"]] == ["complete", "complete"]
    assert result["winner"]["folder"] == "winner"
    layers = result["winner"]["params"]["student.layers"]
    config = json.loads((tmp_path / "sweep" / "winner" / "kd" / "seed-0" / "config.json").read_text())
    assert config["num_hidden_layers"] == layers


def test_a_plan_and_an_inspection(trained: tuple[Path, dict[str, Any]], tmp_path: Path) -> None:
    """Both make the student: before there is a teacher to cut it from, and after."""
    path, _ = trained
    study = built(path, TRAINED, "student.vocabulary=used")
    planned = plan_study(study, tmp_path / "plan")
    assert planned["teacher"]["source"] == "fresh"
    inspected = inspect_teacher(study, path.parent / "run")
    assert inspected["student"] == "kd/seed-0"


def test_a_cut_student_is_exported_with_its_tokenizer(trained: tuple[Path, dict[str, Any]]) -> None:
    """What is shipped must open without this package, and answer as what was judged."""
    path, _ = trained
    artefact = export_student(reopen(path.parent / "run"), "safetensors")
    model = AutoModelForSequenceClassification.from_pretrained(artefact.folder)
    tokenizer = AutoTokenizer.from_pretrained(artefact.folder)
    assert model.config.vocab_size == len(tokenizer)
    assert artefact.manifest["code"] is None


def test_by_way_of_an_assistant_that_is_cut_too(tmp_path: Path) -> None:
    """The assistant is cut from the teacher, not from nobody, and hears it in its own vocabulary."""
    path = project(tmp_path)
    chain = "assistants=[{name: middle, from: teacher, layers: 3}]"
    result = built(path, TRAINED, chain, "student.vocabulary=used", "study.arms=[kd]").run(tmp_path / "run")
    assert [link["name"] for link in result["chain"]["links"]] == ["teacher", "middle", "student"]
    assert result["surgery"][1]["assistants"] == ["middle"]
    middle = AutoModelForSequenceClassification.from_pretrained(tmp_path / "run" / "assistants" / "middle")
    student = AutoModelForSequenceClassification.from_pretrained(tmp_path / "run" / "kd" / "seed-0")
    assert middle.config.num_hidden_layers == 3
    assert middle.config.vocab_size > student.config.vocab_size
    again = built(path, TRAINED, chain, "student.vocabulary=used", "study.arms=[kd]").run(tmp_path / "run")
    assert again["chain"]["links"] == result["chain"]["links"]


def test_two_peers_that_would_begin_alike_are_refused(tmp_path: Path) -> None:
    """Cut from one teacher, the two would agree at every step, and learn from the labels alone under the name of mutual learning."""
    path = project(tmp_path)
    with pytest.raises(TutelageError, match="would begin with the same weights"):
        built(path, "study.arms=[kd, mutual]").run(tmp_path / "run")


def test_inputs_that_only_the_teacher_takes_reach_it(tmp_path: Path) -> None:
    """``token_type_ids`` that are dropped for the student's sake make another teacher, silently."""
    path = project(tmp_path)
    (tmp_path / "views.py").write_text(_SECOND)
    views = 'data.views.student=[{tokenise: {tokenizer: tokens, max_length: 16}}, {python: "views.py:second"}]'
    study = built(path, views, 'student={model: {python: "models.py:small"}}', "study.arms=[kd]")
    seen: list[torch.Tensor] = []
    module = study.teacher.model.bert.embeddings.token_type_embeddings  # type: ignore[union-attr]
    handle = module.register_forward_hook(lambda _module, given, _out: seen.append(given[0].clone()))
    study.run(tmp_path / "run")
    handle.remove()
    assert seen
    assert all(bool((types == 1).all()) for types in seen), "zeros are what BERT takes where it is given none"


_SECOND = """
import torch

def second(inputs, draws):
    return {**inputs, "token_type_ids": torch.ones_like(inputs["input_ids"])}

second.random = False
"""

OTHER = "data.views.teacher=[{tokenise: {tokenizer: other, max_length: 32}}]"


@pytest.fixture
def with_two_tokenizers(tmp_path: Path) -> Path:
    """A project whose teacher reads letters, where the student reads syllables."""
    path = project(tmp_path)
    letters = list("abcdefghijklmnopqrstuvwxyz")
    tokenizer(letters).save_pretrained(tmp_path / "other")
    return path


@pytest.mark.parametrize("term", ["hint", "cosine_hidden"])
def test_tokenizers_that_differ_are_refused_for_terms_on_tokens(with_two_tokenizers: Path, term: str) -> None:
    """Position i of the one is another word of the other: a term that pairs them teaches a wrong word at every place."""
    path = with_two_tokenizers
    layers = "student: hidden_states.1, teacher: hidden_states.2"
    study = built(
        path,
        OTHER,
        f"objective=[{{term: kl}}, {{term: {term}, {layers}}}]",
        'student={model: {python: "models.py:bert"}}',
    )
    with pytest.raises(TutelageError, match="arm 'kd'"):
        study.run(path.parent / "run")


def test_tokenizers_that_differ_in_one_syllable_alone_are_refused_too(tmp_path: Path) -> None:
    """The first examples may be cut alike by chance: the run would end at the first word that is not, hours later."""
    path = project(tmp_path)
    texts = list(built(path).splits.train.inputs)
    first = "".join(texts[:2]).replace(" ", "")
    pairs = [word for text in texts for word in text.split() if len(word) == 4]
    lacking = next(word[:2] for word in pairs if all(first[at : at + 2] != word[:2] for at in range(0, len(first), 2)))
    tokenizer([syllable for syllable in SYLLABLES if syllable != lacking]).save_pretrained(tmp_path / "other")
    hint = "objective=[{term: kl}, {term: hint, student: hidden_states.1, teacher: hidden_states.2}]"
    with pytest.raises(TutelageError, match="arm 'kd'"):
        built(path, OTHER, hint).run(tmp_path / "run")
    assert not (tmp_path / "run" / "kd").exists()


def test_tokenizers_that_differ_are_fine_for_terms_on_whole_texts(with_two_tokenizers: Path) -> None:
    """Refused as well, a teacher of another vocabulary could only teach by its logits."""
    path = with_two_tokenizers
    layers = "student: bert.pooler, teacher: bert.pooler"
    objective = f"objective=[{{term: kl}}, {{term: cosine_hidden, {layers}}}, {{term: rkd, {layers}}}]"
    result = built(path, OTHER, objective, 'student={model: {python: "models.py:bert"}}', "study.arms=[kd]").run(
        path.parent / "run"
    )
    assert "loss/rkd" in (path.parent / "run" / "kd" / "seed-0" / "record.json").read_text()
    assert result["arms"]["kd"]["seeds"]


STAGED = "stage={teacher: {model: {hub: masked}}, training: {max_steps: 3}, validation: 0.2}"


def with_stage_teacher(folder: Path) -> Path:
    path = project(folder)
    masked().save_pretrained(folder / "masked")
    AutoTokenizer.from_pretrained(folder / "tokens").save_pretrained(folder / "masked")
    return path


def test_a_vocabulary_is_cut_after_the_stage(tmp_path: Path) -> None:
    """The stage's teacher has all tokens: cut before it, a student's number for a word would be another word's to the teacher; cut
    otherwise than the data are split, every word of the task would be."""
    study = built(with_stage_teacher(tmp_path), STAGED, "student.vocabulary=used")
    plain = built(tmp_path / "config.yaml", STAGED)
    check_study(study, tmp_path / "run")
    setting = settings_of(study, study._setting(tmp_path / "run", None))["kd"]
    assert setting.begin is not None
    student = build_seeded(setting.begin(0), 0)
    learnt = AutoModelForMaskedLM.from_pretrained(tmp_path / "run" / "stage" / "seed-0")
    assert learnt.config.vocab_size > student.config.vocab_size == len(study.processing)
    whole = build_seeded(plain._setting(tmp_path / "run", None).student, 0)
    rows = torch.arange(12)
    with torch.no_grad():
        seen = study.splits.train.batch(rows)["student"]
        said = student.eval()(**seen).logits
        whole.bert.load_state_dict(learnt.bert.state_dict(), strict=False)
        meant = whole.eval()(**plain.splits.train.batch(rows)["student"]).logits
    assert torch.equal(said, meant)


def test_arms_pass_the_stage_before_the_task(tmp_path: Path) -> None:
    """An arm that skips it, or passes another one, would be compared by its start and not by what it was taught."""

    path = with_stage_teacher(tmp_path)
    arms = """study.arms=[kd, scratch, {plain: {stage: false}}, {one: {student: {layers: 1, vocabulary: used}}}]"""
    study = built(path, STAGED, arms)
    result = study.run(tmp_path / "run")
    assert result["stage"]["arms"] == ["kd", "scratch", "one"]
    assert set(result["stage"]["students"]) == {"student", "one"}
    digests = {
        arm: json.loads((tmp_path / "run" / arm / "seed-0" / "record.json").read_text())["fingerprint"][
            "initial_weights"
        ]
        for arm in ("kd", "scratch", "plain", "one")
    }
    assert digests["kd"] == digests["scratch"]
    kept = len(AutoTokenizer.from_pretrained(tmp_path / "run" / "one" / "seed-0"))
    assert weights(tmp_path / "run" / "one" / "seed-0")["bert.embeddings.word_embeddings.weight"].shape[0] == kept
    assert kept < len(AutoTokenizer.from_pretrained(tmp_path / "tokens"))
    assert len(set(digests.values())) == 3
    again = built(path, STAGED, arms).run(tmp_path / "run")
    assert again["arms"]["kd"]["seeds"] == result["arms"]["kd"]["seeds"]
    with pytest.raises(TutelageError, match="pass the stage"):
        built(path, STAGED, "study.arms=[kd, born_again]").run(tmp_path / "other")


def test_the_config_is_told_of_in_the_runs_own(ran: tuple[Path, dict[str, Any]]) -> None:
    """The page and the run's folder must say how each arm began without the command that was typed."""
    path, _ = ran
    text = (path.parent / "run" / "config.yaml").read_text()
    assert "from: teacher" in text
    assert "initial: random" in text
    assert CONFIG.splitlines()[0] in text
