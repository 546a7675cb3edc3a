"""``result.json`` of a language study, put together from what its arms left."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
from numpy.typing import NDArray
from torch import Tensor

from tutelage.data import Completions, Ragged, TransferSet
from tutelage.evaluation.language import per_token, perplexity, share_closed
from tutelage.evaluation.significance import Estimate, crossed_interval, paired_comparison
from tutelage.evaluation.task_score import TaskScore
from tutelage.signals import NO_LABEL
from tutelage.studies.evidence import curves_of
from tutelage.studies.gates import JUDGED
from tutelage.studies.language.arms import UNTOUCHED
from tutelage.studies.language.data import LanguageData, Split
from tutelage.studies.language.gates import LanguageGates
from tutelage.studies.language.judging import Evidence, judge_language
from tutelage.studies.language.speaking import texts_of
from tutelage.studies.language.training import LanguageRun

TEACHER = "teacher"
#: What arms are compared on, and whether more is better.
COMPARED = {"score": True, "kl": False, "nll": False}

Json = dict[str, Any]
Values = NDArray[np.float64]


@dataclass(frozen=True)
class Findings:
    """What a language study left.

    Args:
        runs: of each arm, the teacher's among them.
        descriptions: of each arm, in words.
        data: the splits, with completions.
        learnt: the transfer set of the judged arm.
        author: who wrote its completions.
        score: the task's; None for none.
        gates: the limits.
        cost: of teacher and student.
        context: what the shorter prompt saves; None where both see the same.
        tokenizers: of student and teacher.
    """

    runs: Mapping[str, Sequence[LanguageRun]]
    descriptions: Mapping[str, str]
    data: LanguageData
    learnt: TransferSet
    author: str
    score: TaskScore | None
    gates: LanguageGates
    cost: Mapping[str, Any]
    context: Json | None
    tokenizers: tuple[Any, Any]


def assemble_language(found: Findings) -> Json:
    """The part of ``result.json`` that says what was found."""
    values = {arm: _values(runs, found.data.test.sources) for arm, runs in found.runs.items()}
    metric = "score" if found.score is not None else "kl"
    arms = {arm: _arm(found.descriptions[arm], runs, values[arm], found.score) for arm, runs in found.runs.items()}
    compared = _comparisons(values)
    gap = _gap(values, metric)
    likeliest = _likeliest(found.runs)
    evidence = Evidence(
        arms=arms,
        comparisons=compared,
        cost=found.cost,
        gap=gap,
        metric=metric,
        fraction=found.score is not None and found.score.fraction,
        values={arm: (1 if COMPARED[metric] else -1) * each[metric] for arm, each in values.items() if metric in each},
        likeliest=likeliest,
    )
    trained = {arm: runs for arm, runs in found.runs.items() if arm not in (TEACHER, UNTOUCHED)}
    return {
        "splits": {name: len(split) for name, split in found.data.splits.items()},
        "transfer": _transfer(found),
        "arms": arms,
        "comparisons": compared,
        "metric": metric,
        "score_name": found.score.name if found.score is not None else None,
        "score_is_share": found.score is not None and found.score.fraction,
        "kl_likeliest": likeliest,
        "gap": gap,
        "context": found.context,
        "cost": dict(found.cost),
        "samples": _samples(found),
        "evidence": {"curves": {arm: [curves_of(run.seed, run.log) for run in runs] for arm, runs in trained.items()}},
        "verdict": judge_language(found.gates, evidence),
    }


def _likeliest(runs: Mapping[str, Sequence[LanguageRun]]) -> int | None:
    """Of how many of its likeliest tokens the teacher told, where the KL is of these alone; None where it is of all."""
    sums = [run.measured.sums for each in runs.values() for run in each]
    told = [int(one.likeliest[0]) for one in sums if one is not None and one.likeliest is not None]
    return min(told, default=None)


def _values(runs: Sequence[LanguageRun], sources: Tensor | None) -> dict[str, Values]:
    """By metric ``[S, G]``: scores whose means and spread are those of the metric (:func:`per_token` where it is one of tokens), one for
    each source of examples: what was made of one text is not several proofs."""
    found: dict[str, Values] = {}
    sums = [run.measured.sums for run in runs]
    for name in ("nll", "kl", "agreement"):
        each = [getattr(one, name) for one in sums if one is not None]
        if len(each) == len(runs) and all(values is not None for values in each) and sums[0] is not None:
            found[name] = per_token(_by_source(np.stack(each), sources), _by_source(sums[0].tokens, sources))
    scores = [run.measured.scores for run in runs]
    if all(values is not None for values in scores):
        stacked = np.stack([values for values in scores if values is not None])
        counts = _by_source(np.ones(stacked.shape[1], dtype=np.int64), sources)
        # the mean over examples, with the spread of a ratio of sums where sources have several
        found["score"] = stacked if (counts == 1).all() else per_token(_by_source(stacked, sources), counts)
    return found


def _by_source(values: NDArray[Any], sources: Tensor | None) -> NDArray[Any]:
    """Sums ``[..., G]`` over the examples ``[..., N]`` of each source; as they are where each stands for itself."""
    if sources is None:
        return values
    known, group = np.unique(sources.numpy(), return_inverse=True)
    if len(known) == values.shape[-1]:
        return values
    summed = np.zeros((len(known), *values.shape[:-1]), dtype=values.dtype)
    np.add.at(summed, group, np.moveaxis(values, -1, 0))
    return np.moveaxis(summed, 0, -1)


def _arm(description: str, runs: Sequence[LanguageRun], values: Mapping[str, Values], score: TaskScore | None) -> Json:
    seeds: list[Json] = []
    for run in runs:
        metrics = run.measured.metrics
        seeds.append(
            {
                **{name: getattr(run, name) for name in ("seed", "seconds", "steps", "tokens", "generation_share")},
                "metrics": {name: metrics[name] for name in ("nll", "perplexity", "score") if name in metrics},
                "fidelity": {name: metrics[name] for name in ("kl", "agreement") if name in metrics},
            }
        )
    estimates = {name: crossed_interval(each) for name, each in values.items()}
    mean = {name: estimate.mean for name, estimate in estimates.items()}
    ends = {name: _ends(estimate, *_bounds(name, score)) for name, estimate in estimates.items()}
    if "nll" in mean:
        mean["perplexity"] = perplexity(mean["nll"])
        ends["perplexity"] = [None if end is None else perplexity(end) for end in ends["nll"]]
    return {
        "description": description,
        "seeds": seeds,
        "mean": mean,
        "ci95": ends,
        "ci_method": {name: estimate.method for name, estimate in estimates.items()},
    }


def _bounds(name: str, score: TaskScore | None) -> tuple[float, float]:
    """What a metric can be at least and at most."""
    share = name == "agreement" or (name == "score" and score is not None and score.fraction)
    return (0.0, 1.0) if share else (-np.inf if name == "score" else 0.0, np.inf)


def _ends(estimate: Estimate, least: float, most: float) -> list[float | None]:
    ends = (estimate.low, estimate.high)
    return [None if not np.isfinite(end) else float(min(max(end, least), most)) for end in ends]


def _comparisons(values: Mapping[str, Mapping[str, Values]]) -> list[Json]:
    """The judged arm against every other, paired by seed and by test example."""
    rows: list[Json] = []
    for other in values:
        if other == JUDGED:
            continue
        for metric, higher in COMPARED.items():
            a, b = values[JUDGED].get(metric), values[other].get(metric)
            if a is None or b is None:
                continue
            compared = paired_comparison(a, b, metric, higher_is_better=higher)
            rows.append({"a": JUDGED, "b": other, **compared.to_json()})
    return rows


def _gap(values: Mapping[str, Mapping[str, Values]], metric: str) -> Json | None:
    """How far each arm has gone from the untouched student to the teacher, where that one is the better; the teacher's KL to itself is
    0."""
    start = values.get(UNTOUCHED, {}).get(metric)
    goal = values.get(TEACHER, {}).get(metric)
    if metric == "kl" and start is not None:
        goal = np.zeros_like(start)
    if start is None or goal is None:
        return None
    # an arm that goes all the way to a worse teacher has closed nothing
    better = float(goal.mean() - start.mean()) * (1 if COMPARED[metric] else -1) > 0
    shares = {
        arm: share_closed(each[metric], start, goal) if better else None
        for arm, each in values.items()
        if arm not in (TEACHER, UNTOUCHED) and metric in each
    }
    told: dict[str, Json] = {
        arm: {"closed": share.mean if share is not None else None, "ci95": share.to_json()["ci95"] if share else None}
        for arm, share in shares.items()
    }
    return {
        "untouched": float(start.mean()),
        "teacher": float(goal.mean()),
        JUDGED: float(values[JUDGED][metric].mean()),
        **told[JUDGED],
        "arms": told,
    }


def _transfer(found: Findings) -> Json:
    inputs = found.learnt.inputs
    assert isinstance(inputs, Completions)
    return {
        "examples": len(found.learnt),
        "tokens": int((found.learnt.known_labels != NO_LABEL).sum()),
        "cut": found.data.cut,
        "dropped": found.data.dropped,
        "completions": found.author,
        "layout": found.data.layout,
        "prompt_tokens": {
            "student": _mean_length(inputs.prompts),
            "teacher": _mean_length(inputs.prompts_of("teacher")),
        },
    }


def _mean_length(prompts: Ragged) -> float:
    return float(prompts.lengths.double().mean())


def _samples(found: Findings) -> list[Json]:
    test: Split = found.data.test
    answers = {arm: runs[0].measured.answers for arm, runs in found.runs.items() if runs[0].measured.answers}
    count = max((len(each) for each in answers.values()), default=0)
    if not count:
        return []
    shown = test.first(count)
    own, theirs = found.tokenizers
    bare = [own.decode(tokens) for tokens in shown.prompts.lists()]
    full = [theirs.decode(tokens) for tokens in shown.taught_prompts.lists()]
    references = shown.references if shown.references is not None else _written(shown, own)
    return [
        {
            "prompt": bare[row],
            "teacher_prompt": full[row],
            "reference": references[row],
            "answers": {arm: each[row] for arm, each in answers.items()},
        }
        for row in range(len(shown))
    ]


def _written(split: Split, tokenizer: Any) -> list[str]:
    assert split.completions is not None
    return texts_of(tokenizer, split.completions.completions)
