"""An encoder distilled beside its controls, from texts to a verdict; what is done is not done again, and what was cut off goes on."""

from __future__ import annotations

import json
import shutil
from collections.abc import Iterator
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from embedding_tiny import TRAINING, cut, data, encoder, split, static, study, teacher, terms
from safetensors.torch import load_file
from scipy.stats import spearmanr
from torch import nn

from tutelage.errors import CheckpointError, ConfigError, DataError, ModelError, TeacherError, TutelageError
from tutelage.evaluation import embeddings
from tutelage.evaluation.embeddings_pairs import pairs_of
from tutelage.models.sentence import SentenceEncoder, embed_texts
from tutelage.models.sentence_folders import load_sentence_encoder
from tutelage.models.sentence_static import StaticEncoder
from tutelage.studies.embedding import (
    EmbeddingArm,
    EmbeddingData,
    EmbeddingGates,
    Pupil,
    TextSplit,
    costing,
    recording,
    taught,
)
from tutelage.training import DistillationTrainer

Run = tuple[Path, dict[str, Any]]
ARMS: dict[str, Any] = {
    "matrix": EmbeddingArm(terms("similarity_matrix")),
    "table": EmbeddingArm(terms({"term": "embedding_cosine", "projection": "pca"}), static()),
}


@pytest.fixture(scope="module", autouse=True)
def hasty() -> Iterator[None]:
    """Neither what a model costs nor how an interval is resampled is what these tests are about."""
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(costing, "_ROUNDS", 1)
        patch.setattr(costing, "_MOST_ROUNDS", 1)
        for name in ("similarity_agreement", "agreement_difference"):
            patch.setattr(recording, name, partial(getattr(embeddings, name), resamples=40))
        yield


@pytest.fixture(scope="module")
def done(tmp_path_factory: pytest.TempPathFactory, hasty: None) -> Run:
    folder = tmp_path_factory.mktemp("embedding")
    return folder, study(extra_arms=ARMS).run(folder)


def test_the_record_has_what_the_page_needs(done: Run) -> None:
    """A missing number would be a hole in the page of a run that took hours."""
    folder, result = done
    assert result == json.loads((folder / "result.json").read_text())
    assert result["task"] == "embedding"
    assert result["splits"] == {"train": 80, "validation": 24, "test": 48}
    assert list(result["arms"]) == ["teacher", "untouched", "untouched_table", "kd", "matrix", "table"]
    assert result["retrieval"]["metrics"] == ["recall@5", "recall@1", "ndcg@5", "mrr"]
    assert result["retrieval"]["queries"] == 48
    for arm, found in result["arms"].items():
        trained = arm in ("kd", "matrix", "table")
        assert [row["seed"] for row in found["seeds"]] == ([0, 1] if trained else [None if arm == "teacher" else 0])
        assert {row["steps"] for row in found["seeds"]} == ({15} if trained else {None})
        assert ("spearman" in found["mean"]) == (arm != "teacher")
        # of another width than the teacher, a text's embedding has no cosine with it
        assert ("cosine" in found["mean"]) == (arm not in ("teacher", "table", "untouched_table"))
    kd = result["arms"]["kd"]
    assert kd["mean"]["spearman"] > result["arms"]["untouched"]["mean"]["spearman"]
    assert kd["ci95"]["spearman"][0] < kd["mean"]["spearman"] < kd["ci95"]["spearman"][1]
    assert {row["b"] for row in result["comparisons"] if row["metric"] == "spearman"} == set(result["arms"]) - {
        "kd",
        "teacher",
    }
    assert {row["b"] for row in result["comparisons"] if row["metric"] == "recall@5"} == set(result["arms"]) - {"kd"}
    assert {row["task"] for row in result["tasks"]} == {"animal", "food", "place"}
    assert set(result["cost"]) == {"teacher", "student", "table"}
    assert result["cost"]["student"]["bytes"] < result["cost"]["teacher"]["bytes"]
    # a table is looked up: "not measured" would leave open what it takes
    assert result["cost"]["table"]["flops_per_text"] == 0 < result["cost"]["student"]["flops_per_text"]
    assert result["surgery"]["kd"]["kept_layers"] == [0]
    assert set(result["surgery"]) == {"kd"}
    assert len(result["evidence"]["curves"]["kd"][0]["validation"]) == 3
    assert set(result["evidence"]["curves"]) == {"kd", "matrix", "table"}
    assert [gate["name"] for gate in result["verdict"]["gates"]] == ["spearman", "gain_over_untouched", "recall_drop"]
    assert (folder / "config.yaml").is_file()


def test_a_student_is_deployed_from_its_folder(done: Run) -> None:
    """Weights that reload as something else than what was measured would be shipped with its numbers."""
    folder, result = done
    texts = data().test.texts
    theirs = embed_texts(teacher(), texts)
    pairs = pairs_of(theirs, 300)
    for arm, kind in (("kd", SentenceEncoder), ("table", StaticEncoder)):
        loaded = load_sentence_encoder(folder / arm / "seed-1")
        assert isinstance(loaded, kind)
        own = embed_texts(loaded, texts)
        measured = load_file(folder / arm / "seed-1" / "test-embeddings.safetensors")["embedding"]
        assert np.allclose(own, measured.numpy(), atol=1e-5)
        ours = (own / np.linalg.norm(own, axis=1, keepdims=True)).astype(np.float64)
        both = [(each[pairs.first] * each[pairs.second]).sum(1) for each in (theirs.astype(np.float64), ours)]
        said = result["arms"][arm]["seeds"][1]["fidelity"]["spearman"]
        assert spearmanr(*both).statistic == pytest.approx(said, abs=1e-3)


def test_what_is_found_is_what_a_search_finds(done: Run) -> None:
    """A query that finds itself, or an answer counted for another group, would be a recall that no user sees."""
    folder, result = done
    test = data().test
    own = load_file(folder / "kd" / "seed-0" / "test-embeddings.safetensors")["embedding"].double().numpy()
    own /= np.linalg.norm(own, axis=1, keepdims=True)
    near = own @ own.T
    np.fill_diagonal(near, -np.inf)
    assert test.groups is not None
    hits = [
        any(test.groups[other] == group for other in np.argsort(-near[row])[:5])
        for row, group in enumerate(test.groups)
    ]
    assert result["arms"]["kd"]["seeds"][0]["metrics"]["recall@5"] == pytest.approx(np.mean(hits))


def test_what_is_done_is_not_done_again(done: Run, monkeypatch: pytest.MonkeyPatch) -> None:
    """The same command after an interruption would train finished arms for hours; other ks and gates are asked of what is there."""
    folder, result = done
    monkeypatch.setattr(DistillationTrainer, "train", lambda *_, **__: pytest.fail("trained again"))
    monkeypatch.setattr(taught, "encode", lambda *_, **__: pytest.fail("asked the teacher again"))
    before = {path: path.stat().st_mtime_ns for path in folder.rglob("record.json")}
    again = study(extra_arms=ARMS, ks=(2,), pairs=200, gates=EmbeddingGates(spearman=None, size_ratio=0.9)).run(folder)
    assert {path: path.stat().st_mtime_ns for path in folder.rglob("record.json")} == before
    assert again["retrieval"]["metrics"] == ["recall@2", "ndcg@2", "mrr"]
    assert again["arms"]["kd"]["mean"]["mrr"] == result["arms"]["kd"]["mean"]["mrr"]
    assert [gate["name"] for gate in again["verdict"]["gates"]] == ["gain_over_untouched", "recall_drop", "size_ratio"]


@pytest.mark.parametrize(
    ("changes", "said"),
    [
        ({"objective": terms("similarity_matrix")}, "objective"),
        ({"teacher": encoder(9)}, "teacher"),
        ({"max_length": 8}, "max_length"),
        ({"data": EmbeddingData(split(range(39)), split(range(40, 52)), split(range(52, 76)))}, "texts"),
        ({"student": cut(layers=[1])}, "initial_weights"),
        ({"training": {**TRAINING, "learning_rate": 0.02}}, "learning_rate"),
    ],
)
def test_a_folder_of_other_settings_is_refused(changes: Any, said: str, done: Run) -> None:
    """Arms taught otherwise, or tested on other texts, would be compared as if they were alike."""
    before = sorted(path for path in done[0].rglob("*") if "checkpoints" not in path.parts)
    with pytest.raises(CheckpointError, match=said):
        study(**changes).run(done[0])
    assert sorted(path for path in done[0].rglob("*") if "checkpoints" not in path.parts) == before


def test_damage_is_noticed(done: Run, tmp_path: Path) -> None:
    """A student whose file changed since would be deployed with another one's numbers."""
    folder = tmp_path / "copy"
    shutil.copytree(done[0], folder)
    config = folder / "kd" / "seed-0" / "modules.json"
    config.write_text(config.read_text() + " ")
    with pytest.raises(CheckpointError, match=r"modules.json is not what was written"):
        study().run(folder)


def test_a_run_that_was_cut_off_ends_where_an_undisturbed_one_does(
    done: Run, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """A student that is trained anew from the middle would have learnt some texts twice and others never."""
    from tutelage.studies.embedding import training

    commit, calls = training.commit_embedding_run, []

    def killed(*args: Any) -> None:
        calls.append(1)
        if len(calls) == 1:
            raise KeyboardInterrupt
        commit(*args)

    monkeypatch.setattr(training, "commit_embedding_run", killed)
    settings = {"training": {**TRAINING, "save_strategy": "steps", "save_steps": 7}, "arms": ("kd",), "seeds": [1]}
    with pytest.raises(KeyboardInterrupt):
        study(**settings).run(tmp_path)
    assert list((tmp_path / "kd" / "seed-1" / "checkpoints").glob("checkpoint-*"))
    result = study(**settings).run(tmp_path)
    assert result["arms"]["kd"]["seeds"][0]["fidelity"] == done[1]["arms"]["kd"]["seeds"][1]["fidelity"]
    weights = [folder / "kd" / "seed-1" / "model.safetensors" for folder in (tmp_path, done[0])]
    assert weights[0].read_bytes() == weights[1].read_bytes()
    assert not (tmp_path / "kd" / "seed-1" / "checkpoints").exists()


def test_the_teachers_embeddings_survive(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Hours of a teacher's work would be lost to a kill in its last minute, or a damaged file be taught from."""
    monkeypatch.setattr(taught, "_TEXTS_A_PART", 50)
    plain, asked = taught.encode, []

    def killed(model: Any, view: Any, texts: Any, *args: Any) -> Any:
        asked.append(len(texts))
        if len(asked) == 3:
            raise KeyboardInterrupt
        return plain(model, view, texts, *args)

    monkeypatch.setattr(taught, "encode", killed)
    short = {"arms": ("kd",), "seeds": 1, "training": {**TRAINING, "max_steps": 1, "eval_strategy": "no"}}
    with pytest.raises(KeyboardInterrupt):
        study(**short).run(tmp_path)
    assert len(list((tmp_path / "teacher").glob("embeddings-*.safetensors"))) == 2
    study(**short).run(tmp_path)
    assert asked == [50, 50, 50, 50, 2]
    first = load_file(tmp_path / "teacher" / "embeddings-00000.safetensors")["embedding"].clone()
    (tmp_path / "teacher" / "embeddings-00000.safetensors").write_bytes(b"damaged")
    study(**short).run(tmp_path)
    assert asked == [50, 50, 50, 50, 2, 50]
    again = load_file(tmp_path / "teacher" / "embeddings-00000.safetensors")
    assert torch.equal(first, again["embedding"])


def test_a_copy_of_the_teacher_is_the_teacher(tmp_path: Path) -> None:
    """Nothing cut, nothing learnt: any number but the best shows a text that meets another one's embedding."""
    result = study(student=cut(), arms=("untouched", "kd"), seeds=1, training={**TRAINING, "max_steps": 1}).run(
        tmp_path
    )
    copy = result["arms"]["untouched"]
    assert copy["mean"]["spearman"] == pytest.approx(1.0)
    assert copy["mean"]["cosine"] == pytest.approx(1.0)
    assert copy["mean"]["cka"] == pytest.approx(1.0, abs=1e-6)
    assert copy["mean"]["procrustes"] == pytest.approx(0.0, abs=1e-6)
    teacher_s = result["arms"]["teacher"]["mean"]
    assert {name: copy["mean"][name] for name in ("recall@5", "mrr")} == {
        name: teacher_s[name] for name in ("recall@5", "mrr")
    }
    ratios = {row["what"]: row["ratio"] for row in result["surgery"]["kd"]["rows"]}
    assert ratios["parameters"] == 1.0


def _expect_like_starts(folder: Path, *arms: str) -> None:
    records = [json.loads((folder / arm / "seed-0" / "record.json").read_text()) for arm in arms]
    assert len({record["fingerprint"]["initial_weights"] for record in records}) == 1


def test_every_way_to_make_a_student(tmp_path: Path) -> None:
    """Each way is a word of the config; one that fails would fail after the teacher's hours."""
    ways = {
        "narrow": cut(hidden=8),
        "random": cut(layers=1, at_random=True),
        "lean": cut(layers="important:1", vocabulary=True),
    }
    arms = {name: EmbeddingArm(terms("similarity_matrix"), pupil) for name, pupil in ways.items()}
    short = {**TRAINING, "max_steps": 2, "eval_strategy": "no"}
    result = study(extra_arms=arms, training=short, seeds=1).run(tmp_path)
    assert result["arms"]["narrow"]["width"] == 8
    rows = {row["what"]: row for row in result["surgery"]["lean"]["rows"]}
    assert rows["vocabulary"]["after"] < rows["vocabulary"]["before"]
    assert result["arms"]["untouched_random"]["mean"]["spearman"] < 0.9
    _expect_like_starts(tmp_path, "untouched_random", "random")
    for name in ways:
        loaded = load_sentence_encoder(tmp_path / name / "seed-0")
        assert embed_texts(loaded, ["old aa ab new"]).shape == (1, result["arms"][name]["width"])


def _without_tokenizer() -> nn.Module:
    made = encoder()
    made.tokenizer = None
    return made


def _not_finite() -> nn.Module:
    made = encoder()
    with torch.no_grad():
        made.transformer.embeddings.word_embeddings.weight[10] = torch.nan
    return made


@pytest.mark.parametrize(
    ("changes", "kind", "said"),
    [
        ({"objective": terms("kl")}, ConfigError, "listens to student.logits, teacher.logits"),
        (
            {"objective": terms({"term": "hint", "student": "encoder.transformer.encoder", "teacher": "embedding"})},
            ConfigError,
            "heard by its embeddings alone",
        ),
        ({"teacher": _without_tokenizer()}, ConfigError, "the teacher has no tokenizer"),
        ({"student": Pupil(_without_tokenizer)}, ConfigError, "the student of the arm 'kd' has no tokenizer"),
        ({"student": Pupil(teacher)}, ConfigError, "the student of the arm 'kd'.*same parameters twice"),
        ({"student": cut(layers=5)}, ModelError, "5"),
        ({"student": static(99)}, ConfigError, "99 principal components"),
        ({"max_length": 64}, ConfigError, "has positions for 32"),
        ({"ks": (1, 48)}, DataError, "goes up to 48"),
        ({"ks": (5, 1)}, ConfigError, "expected rising"),
        ({"pairs": 1}, ConfigError, "pairs is 1"),
        ({"arms": ("untouched",)}, ConfigError, "expected 'kd'"),
        ({"extra_arms": {"student": EmbeddingArm(terms("embedding_mse"))}}, ConfigError, "cannot be called 'student'"),
        ({"training": {**TRAINING, "seed": 3}}, ConfigError, "training.seed is the study's to set"),
        ({"training": {**TRAINING, "metric_for_best_model": "accuracy"}}, ConfigError, "'spearman' alone"),
        ({"training": {**TRAINING, "optim": "none_such"}}, ConfigError, "none_such"),
        ({"teacher": _not_finite()}, TeacherError, "NaN or infinity for"),
        (
            {"data": EmbeddingData(split(range(40)), TextSplit(["one new", "two"]), split(range(52, 76)))},
            DataError,
            "validation split has 2 texts",
        ),
    ],
)
def test_what_does_not_fit_is_found_before_anything_is_written(
    changes: Any, kind: type[TutelageError], said: str, tmp_path: Path
) -> None:
    """Found an hour into a run, or never."""
    with pytest.raises(kind, match=said):
        study(**changes).run(tmp_path / "runs" / "one")
    assert list(tmp_path.iterdir()) == []


@pytest.mark.parametrize(
    ("make", "said"),
    [
        (lambda: TextSplit([]), "has no texts"),
        (lambda: TextSplit(["a", " "]), "text 1 of a split is empty"),
        (lambda: TextSplit(["a", "b", "a"]), "texts 0 and 2 of a split are the same"),
        (lambda: TextSplit(["a", "b", "c"], ["x", "x", "y"]), "groups have one text in their split, the first 'y'"),
        (lambda: TextSplit(["a", "b"], ["x"]), "2 texts and 1 groups"),
        (lambda: EmbeddingData(TextSplit(["a"]), TextSplit(["b"]), TextSplit(["a"])), "also stand in the train split"),
        (
            lambda: EmbeddingData(
                TextSplit(["a", "b"], ["x", "x"]), TextSplit(["c"]), TextSplit(["d", "e"], ["x", "x"])
            ),
            "groups stand in the train and in the test split, the first 'x'",
        ),
    ],
)
def test_texts_that_would_make_the_numbers_worthless_are_refused(make: Any, said: str) -> None:
    with pytest.raises(DataError, match=said):
        make()


def test_without_answers_nothing_is_searched(tmp_path: Path) -> None:
    """Made-up answers would be a retrieval score of nothing."""
    plain = EmbeddingData(*(TextSplit(part.texts) for part in data().splits.values()))
    short = {**TRAINING, "max_steps": 1, "eval_strategy": "no"}
    result = study(data=plain, training=short, seeds=1, arms=("kd",), ks=(1, 999)).run(tmp_path)
    assert result["retrieval"] is None
    assert result["tasks"] == []
    assert {row["metric"] for row in result["comparisons"]} == set()
    assert [gate["name"] for gate in result["verdict"]["gates"]] == ["spearman"]
