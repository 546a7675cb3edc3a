"""What is asked of embeddings, and what comes of it: groups of answers count once, the worst task comes first, gates ask intervals."""

from __future__ import annotations

import copy
from typing import Any

import numpy as np
import pytest

from tutelage.errors import ConfigError, DataError
from tutelage.evaluation.significance import crossed_interval
from tutelage.studies.embedding import EmbeddingGates, TextSplit
from tutelage.studies.embedding.judging import Evidence, judge_embedding
from tutelage.studies.embedding.measuring import Exam
from tutelage.studies.embedding.tasks import task_table
from tutelage.studies.judging import ONE_SEED

GROUPS, TASKS = 30, ("law", "news", "sport")


def cloud(noise: float, seed: int = 0, spoilt: str | None = None) -> np.ndarray:
    """Embeddings of two texts a group, near each other; of the spoilt task, noise alone."""
    draws = np.random.default_rng(seed)
    centres = np.random.default_rng(7).normal(size=(GROUPS, 8))
    found = np.repeat(centres, 2, axis=0) + noise * draws.normal(size=(2 * GROUPS, 8))
    for row, task in enumerate(texts().tasks or ()):
        if task == spoilt:
            found[row] = draws.normal(size=8)
    return found.astype(np.float32)


def texts(tasks: bool = True) -> TextSplit:
    names = [f"g{row // 2}" for row in range(2 * GROUPS)]
    kinds = [TASKS[row // 2 % 3] for row in range(2 * GROUPS)]
    return TextSplit([f"text {row}" for row in range(2 * GROUPS)], names, kinds if tasks else None)


def exam(**changes: Any) -> Exam:
    return Exam(**{"test": texts(), "teacher": cloud(0.2), "pairs": 400, "ks": (1, 3), **changes})


def test_answers_to_one_another_count_once() -> None:
    """Two texts that answer each other are one proof: counted as two, every interval would be too narrow by a factor of 1.4."""
    values = np.repeat(np.random.default_rng(0).integers(0, 2, size=(3, GROUPS)), 2, axis=1).astype(float)
    asked = exam()
    grouped = asked.by_group(values)
    assert grouped.shape == (3, GROUPS)
    assert np.allclose(grouped, values[:, ::2])
    assert crossed_interval(grouped).mean == pytest.approx(values.mean())
    some = asked.by_group(values, np.array([0, 1, 4]))
    assert np.allclose(some.mean(axis=1).mean(), values[:, [0, 1, 4]].mean())


def test_a_text_without_a_group_is_searched_through_and_asks_nothing() -> None:
    split = TextSplit(["a", "b", "c", "d", "e"], ["x", "x", None, None, None])
    asked = Exam(split, np.eye(5, dtype=np.float32), 4, (1,))
    assert asked.queries.tolist() == [0, 1]
    assert len(set(split.group_numbers.tolist())) == 4
    assert asked.retrieves
    assert not Exam(TextSplit(["a", "b", "c", "d"]), np.eye(4, dtype=np.float32), 4, (1, 99)).retrieves


def test_what_cannot_be_asked_is_refused() -> None:
    with pytest.raises(DataError, match="the test split has 3 texts"):
        Exam(TextSplit(["a", "b", "c"]), np.eye(3, dtype=np.float32), 3, (1,))
    with pytest.raises(ConfigError, match=r"retrieval.k is \[3, 1\]"):
        exam(ks=(3, 1))
    with pytest.raises(DataError, match="goes up to 60"):
        exam(ks=(1, 60))


def test_the_worst_task_comes_first() -> None:
    """A student that lost one task of three keeps a good average; the page must begin with what was lost."""
    asked = exam()
    embeddings = {
        "teacher": [asked.teacher],
        "kd": [cloud(0.2, seed, spoilt="news") for seed in (1, 2)],
        "untouched": [cloud(1.0, 5)],
    }
    measured = {arm: asked.of(each) for arm, each in embeddings.items()}
    rows = task_table(asked, embeddings, measured, "kd", "teacher")
    assert rows[0]["task"] == "news"
    worst, others = rows[0], rows[1:]
    assert worst["drop"] > 0.5
    assert worst["ci"][0] > 0.1
    assert all(abs(row["drop"]) < 0.3 for row in others)
    assert worst["arms"]["kd"]["spearman"] < 0.4 < min(row["arms"]["kd"]["spearman"] for row in others)
    assert (worst["texts"], worst["queries"]) == (20, 20)
    teacher, kd = (worst["arms"][arm]["recall@3"] for arm in ("teacher", "kd"))
    assert worst["drop"] == pytest.approx(teacher - kd)
    one = asked.of([asked.teacher]).retrieval["recall@3"][0]
    news = [row for row, task in enumerate(texts().tasks or ()) if task == "news"]
    assert teacher == pytest.approx(one[news].mean())


def test_a_handful_of_texts_leads_no_list() -> None:
    """Two texts that were found by luck, and are not now, would stand above the task that was lost."""
    kinds = ["law"] * 2 + ["art"] * 18 + ["news"] * 20 + ["sport"] * 20
    plain = texts()
    asked = exam(test=TextSplit(plain.texts, plain.groups, kinds))
    kd = asked.teacher.copy()
    kd[:20] = np.random.default_rng(3).normal(size=(20, 8))
    embeddings = {"teacher": [asked.teacher], "kd": [kd, kd]}
    rows = task_table(asked, embeddings, {arm: asked.of(each) for arm, each in embeddings.items()}, "kd", "teacher")
    assert [(row["task"], row["few"]) for row in rows[2:]] == [("law", True), ("art", True)]
    assert {row["task"] for row in rows[:2]} == {"news", "sport"}
    assert min(row["drop"] for row in rows[2:]) > max(row["drop"] for row in rows[:2])
    assert [row["ci"] for row in rows[2:]] == [[None, None]] * 2
    assert all(None not in row["ci"] for row in rows[:2])


def test_many_texts_of_one_group_are_few() -> None:
    """They answer each other alone: one proof, of which there is no interval."""
    split = TextSplit(
        [f"text {row}" for row in range(60)],
        ["one"] * 24 + [f"g{row // 2}" for row in range(36)],
        ["a"] * 24 + ["b"] * 36,
    )
    asked = exam(test=split)
    measured = {arm: asked.of([asked.teacher]) for arm in ("teacher", "kd")}
    rows = task_table(asked, {"kd": [asked.teacher]}, measured, "kd", "teacher")
    assert [(row["task"], row["few"]) for row in rows] == [("b", False), ("a", True)]


def test_a_handful_of_texts_neither_rejects_nor_is_passed_over() -> None:
    """Two texts would reject a student by chance; and one that lost every small task would be shipped on the large ones."""
    handful = {"task": "art", "drop": 0.1, "ci": [None, None], "queries": 2, "few": True}
    lost = [{**handful, "task": task, "drop": drop} for task, drop in (("ode", 0.8), ("epic", 0.9))]
    gates = EmbeddingGates(worst_task_drop=0.1)

    def judged(*few: dict[str, Any]) -> dict[str, Any]:
        return judge_embedding(gates, evidence(tasks=[*evidence().tasks, *few]))["gates"][-1]

    found = judged(handful)
    assert (found["passed"], found["value"]) == (True, 0.05)
    assert "Left out: a task with fewer than 20 texts with answers" in found["why"]
    found = judged(handful, *lost)
    assert (found["passed"], found["value"]) == (None, 0.05)
    assert "Left out: 3 tasks with fewer than 20" in found["why"]
    assert "2 of them lose more than the 10 points allowed, 'epic' 90 points on 2 texts" in found["why"]
    assert "One of them loses more than the 10 points allowed, 'ode' 80" in judged(lost[0])["why"]
    surely = judge_embedding(EmbeddingGates(worst_task_drop=0.02), evidence(tasks=[*evidence().tasks, *lost]))["gates"][
        -1
    ]
    assert surely["passed"] is False
    alone = judge_embedding(gates, evidence(tasks=[handful]))["gates"][-1]
    assert (alone["passed"], alone["value"]) == (None, None)
    assert "Every task has fewer than 20 texts" in alone["why"]


def test_without_answers_tasks_are_ranked_by_similarity() -> None:
    split = TextSplit(texts().texts, None, texts().tasks)
    asked = Exam(split, cloud(0.2), 200, (1,))
    embeddings = {"teacher": [asked.teacher], "kd": [cloud(0.2, 1, spoilt="sport")]}
    rows = task_table(asked, embeddings, {arm: asked.of(each) for arm, each in embeddings.items()}, "kd", "teacher")
    assert rows[0]["task"] == "sport"
    assert [row["drop"] for row in rows] == [None] * 3
    assert task_table(exam(test=texts(tasks=False)), {}, {}, "kd", "teacher") == []


def evidence(**changes: Any) -> Evidence:
    found: dict[str, Any] = {
        "arms": {"kd": {"seeds": [{}, {}, {}], "mean": {"spearman": 0.96}, "ci95": {"spearman": [0.955, 0.965]}}},
        "comparisons": [
            comparison("untouched", "spearman", 0.2, [0.15, 0.25]),
            comparison("teacher", "recall@10", -0.01, [-0.015, -0.005]),
        ],
        "cost": {
            "teacher": {"bytes": 100, "texts_per_second": 50.0, "batch": 32},
            "student": {"bytes": 50, "texts_per_second": 100.0, "batch": 32},
        },
        "tasks": [
            {"task": "law", "drop": 0.05, "ci": [0.03, 0.07], "queries": 40, "few": False},
            {"task": "news", "drop": 0.0, "ci": [-0.01, 0.01], "queries": 40, "few": False},
        ],
        "recall": "recall@10",
        "values": {},
        "untouched": True,
    }
    return Evidence(**{**found, **changes})


def comparison(other: str, metric: str, difference: float, ci: list[float | None], seeds: int = 3) -> dict[str, Any]:
    return {"a": "kd", "b": other, "metric": metric, "difference": difference, "ci95": ci, "seeds": seeds}


def outcome(gates: EmbeddingGates, found: Evidence) -> dict[str, bool | None]:
    return {gate["name"]: gate["passed"] for gate in judge_embedding(gates, found)["gates"]}


NONE = {"spearman": None, "gain_over_untouched": None, "recall_drop": None}


@pytest.mark.parametrize(
    ("gates", "changes", "passed"),
    [
        ({"spearman": 0.95}, {}, True),
        ({"spearman": 0.97}, {}, False),
        ({"spearman": 0.96}, {}, None),
        ({"gain_over_untouched": 0.1}, {}, True),
        ({"gain_over_untouched": 0.2}, {}, None),
        ({"gain_over_untouched": 0.3}, {}, False),
        ({"recall_drop": 0.02}, {}, True),
        ({"recall_drop": 0.01}, {}, None),
        ({"recall_drop": 0.001}, {}, False),
        ({"worst_task_drop": 0.1}, {}, True),
        ({"worst_task_drop": 0.05}, {}, None),
        ({"worst_task_drop": 0.02}, {}, False),
        ({"worst_task_drop": 0.1}, {"tasks": []}, None),
        ({"size_ratio": 0.5}, {}, True),
        ({"size_ratio": 0.4}, {}, False),
        ({"throughput_ratio": 2.0}, {}, True),
        ({"throughput_ratio": 2.1}, {}, False),
    ],
)
def test_a_gate_asks_the_whole_interval(gates: Any, changes: Any, passed: bool | None) -> None:
    """A mean on the right side of the limit is no proof; a student would be shipped by luck."""
    (name,) = gates
    assert outcome(EmbeddingGates(**{**NONE, **gates}), evidence(**changes)) == {name: passed}


def test_nothing_is_no_minus_zero() -> None:
    """A loss would be read where there is none to speak of."""
    rows = [comparison("untouched", "spearman", -0.0004, [-0.002, 0.001])]
    (gate,) = judge_embedding(EmbeddingGates(**{**NONE, "gain_over_untouched": 0.0}), evidence(comparisons=rows))[
        "gates"
    ]
    assert "by +0.000 (95% interval: −0.002 to +0.001)" in gate["why"]


def test_one_seed_decides_nothing() -> None:
    """One training may have been lucky: weights and speed alone can be told from it."""
    one = copy.deepcopy(dict(evidence().arms))
    one["kd"]["seeds"] = [{}]
    rows = [{**row, "seeds": 1} for row in evidence().comparisons]
    gates = EmbeddingGates(worst_task_drop=0.9, size_ratio=0.9, throughput_ratio=1.0)
    verdict = judge_embedding(gates, evidence(arms=one, comparisons=rows))
    found = {gate["name"]: gate for gate in verdict["gates"]}
    assert verdict["decision"] == "hold"
    for name in ("spearman", "gain_over_untouched", "recall_drop", "worst_task_drop"):
        assert found[name]["passed"] is None
        assert found[name]["why"] == ONE_SEED
    assert found["size_ratio"]["passed"] is found["throughput_ratio"]["passed"] is True


def test_what_cannot_be_asked_has_no_gate() -> None:
    """Without answers and control a default limit would keep every study at hold for ever."""
    assert outcome(EmbeddingGates(), evidence(recall=None, untouched=False)) == {"spearman": True}


@pytest.mark.parametrize(
    ("limits", "said"),
    [
        ({"spearman": 95.0}, "number up to 1"),
        ({"recall_drop": -0.1}, "expected 0 or more"),
        ({"size_ratio": float("nan")}, "finite"),
        ({"throughput_ratio": True}, "finite"),
    ],
)
def test_a_limit_that_decides_nothing_is_refused(limits: Any, said: str) -> None:
    with pytest.raises(ConfigError, match=said):
        EmbeddingGates(**limits)
