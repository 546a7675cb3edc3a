"""What a language study's record says of its arms: the gap to the teacher, and how wide intervals are."""

from pathlib import Path
from types import SimpleNamespace
from typing import Any

import numpy as np
import pytest
import torch
from language_tiny import TRAINING, data, knowing, study

from tutelage.data import Batch
from tutelage.evaluation.language import TokenSums
from tutelage.evaluation.task_score import ExactMatch
from tutelage.signals import Signals, SparseTargets, whole
from tutelage.studies.language import LanguageGates
from tutelage.studies.language.measuring import Measured
from tutelage.studies.language.recording import Findings, assemble_language
from tutelage.studies.language.training import LanguageRun
from tutelage.teachers import ModuleTeacher

NO_GATES: dict[str, Any] = dict.fromkeys(vars(LanguageGates()))


def test_a_lower_bound_of_the_kl_is_recorded_as_one(tmp_path: Path) -> None:
    """A remote teacher's KL would stand beside another study's whole one, and pass its ceiling."""

    class Few(ModuleTeacher):
        def signals(self, batch: Batch) -> Signals:
            said = super().signals(batch).logits
            assert said is not None
            best = whole(said, "").at(1.0).softmax(-1).topk(3)
            return Signals(SparseTargets(best.indices, best.values, said.classes, 1.0, "top_k"))

    gates = LanguageGates(**{**NO_GATES, "kl": 100.0})
    settings: dict[str, Any] = {"arms": ("kd",), "seeds": 2, "gates": gates, "training": {**TRAINING, "max_steps": 1}}
    for _ in range(2):  # as measured, and as read again
        found = study(**settings, teacher=Few(knowing()), score=None).run(tmp_path / "few")
        assert found["kl_likeliest"] == 3
        assert found["verdict"]["gates"][0]["passed"] is None
    found = study(**settings, score=None).run(tmp_path / "all")
    assert found["kl_likeliest"] is None
    assert found["verdict"]["gates"][0]["passed"] is True


def recorded(
    scores: dict[str, Any], nll: dict[str, Any] | None = None, sources: torch.Tensor | None = None, **limits: float
) -> dict[str, Any]:
    """The record of a study whose arms were found to have these scores ``[S, N]``, and negative log-likelihoods of two tokens each."""
    held_out = data()
    assert held_out.train.set is not None

    def run(arm: str, seed: int) -> LanguageRun:
        each = np.asarray(scores[arm][seed], dtype=np.float64)
        sums = None if nll is None else TokenSums(np.full(len(each), 2), np.asarray(nll[arm][seed], dtype=np.float64))
        return LanguageRun(arm, seed, 1.0, 1, 1, None, [], Measured(sums, each, []), Path())

    return assemble_language(
        Findings(
            runs={arm: [run(arm, seed) for seed in range(len(each))] for arm, each in scores.items()},
            descriptions=dict.fromkeys(scores, ""),
            data=SimpleNamespace(test=SimpleNamespace(sources=sources), splits={}, cut=0, dropped=0, layout="padded"),
            learnt=held_out.train.set,
            author="data",
            score=ExactMatch("kind"),
            gates=LanguageGates(**{**NO_GATES, **limits}),
            cost={},
            context=None,
            tokenizers=(study().tokenizer, study().tokenizer),
        )
    )


def test_pieces_of_one_text_count_as_one() -> None:
    """An interval over pieces of documents holds the truth in 63 of 100 studies, and is told as one that does so in 95."""
    draws = np.random.default_rng(0)
    texts, pieces = 40, 10
    sources = torch.arange(texts).repeat_interleave(pieces)[torch.randperm(texts * pieces)]

    hard = {arm: 0.1 * draws.normal(size=texts) for arm in ("teacher", "untouched", "sft", "kd")}
    scores = {
        arm: 0.5 + each[sources.numpy()] + 0.001 * draws.normal(size=(seeds, 1))
        for (arm, each), seeds in zip(hard.items(), (1, 1, 3, 3), strict=True)
    }
    nll = {arm: 4.0 - 2.0 * each for arm, each in scores.items()}
    by_text = {
        arm: each[:, [int((sources == text).nonzero()[0]) for text in range(texts)]] for arm, each in scores.items()
    }
    found, as_one = (
        recorded(scores, nll, sources),
        recorded(by_text, {arm: 4.0 - 2.0 * each for arm, each in by_text.items()}),
    )
    alone = recorded(scores, nll)
    for arm in scores:
        for metric in ("score", "nll"):
            mine, theirs, narrow = (each["arms"][arm]["ci95"][metric] for each in (found, as_one, alone))
            assert mine == pytest.approx(theirs)
            assert mine[1] - mine[0] > 2 * (narrow[1] - narrow[0])
            assert found["arms"][arm]["mean"][metric] == pytest.approx(alone["arms"][arm]["mean"][metric])
    for mine, theirs, narrow in zip(found["comparisons"], as_one["comparisons"], alone["comparisons"], strict=True):
        assert mine["p_value"] == pytest.approx(theirs["p_value"], rel=0.05, abs=1e-3)
        assert mine["ci95"] == pytest.approx(theirs["ci95"])
        assert mine["ci95"][1] - mine["ci95"][0] > narrow["ci95"][1] - narrow["ci95"][0]


@pytest.mark.parametrize(("untouched", "teacher", "closed"), [(0.55, 0.8, 1.0), (0.8, 0.55, None)])
def test_there_is_no_gap_to_a_worse_teacher(untouched: float, teacher: float, closed: float | None) -> None:
    """A student as bad as a teacher that is worse than the untouched one would have closed all of the gap, and be shipped for it."""
    draws = np.random.default_rng(0).random(600)
    levels = {"teacher": [teacher], "untouched": [untouched], "kd": [teacher] * 3}
    scores = {arm: [(draws < level) * 1.0 for level in each] for arm, each in levels.items()}
    found = recorded(scores, gap_closed=0.9)
    assert found["gap"]["closed"] == (pytest.approx(closed) if closed is not None else None)
    assert found["gap"]["arms"]["kd"]["closed"] == found["gap"]["closed"]
    assert found["verdict"]["decision"] == ("ship" if closed is not None else "hold")
