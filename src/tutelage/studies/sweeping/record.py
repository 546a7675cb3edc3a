"""``sweep.json``: what a sweep tried and found, from the board alone."""

from __future__ import annotations

import warnings
from collections.abc import Sequence
from typing import Any

from tutelage import __version__
from tutelage.studies.sweeping.board import Board, Trial
from tutelage.studies.sweeping.search import Search
from tutelage.studies.sweeping.space import distributions, import_optuna, to_storage
from tutelage.studies.sweeping.trials import SCRATCH

Json = dict[str, Any]

#: Complete trials below which importance would be noise.
_ENOUGH = 8


def sweep_record(search: Search, board: Board, head: Json) -> Json:
    """What ``sweep.json`` holds but for the winner's run.

    Args:
        search: what was asked for.
        board: what is known of it.
        head: what opens the record: the config's hash, the title, the times.
    """
    trials = board.trials()
    best = search.best(trials)
    line = board.noted(SCRATCH)
    return {
        "tutelage": __version__,
        **head,
        "search": {
            "name": search.name,
            "space": {key: dimension.to_json() for key, dimension in search.space.items()},
            "sampler": search.sampler,
            "trials": search.total,
            "seeds": len(search.seeds),
            "metric": search.metric,
            "direction": search.direction,
        },
        "trials": [_entry(trial) for trial in trials if trial.state != "waiting"],
        "scratch": line if line is not None and "error" not in line else None,
        "scratch_error": line.get("error") if line is not None else None,
        "importance": importance(search, trials),
        "best": best.number if best is not None else None,
        "winner": None,
        "workers": _workers(trials),
    }


def _entry(trial: Trial) -> Json:
    record = trial.record if trial.state == "complete" and trial.record is not None else {}
    return {
        "number": trial.number,
        "params": trial.params,
        "state": trial.state,
        "error": trial.error,
        "seeds": record.get("seeds", []),
        "mean": record.get("mean", {}),
        "ci95": record.get("ci95", {}),
    }


def _workers(trials: Sequence[Trial]) -> list[Json]:
    counts: dict[tuple[str, int], int] = {}
    for trial in trials:
        if trial.worker is not None:
            who = (str(trial.worker["host"]), int(trial.worker["pid"]))
            counts[who] = counts.get(who, 0) + 1
    return [{"host": host, "pid": pid, "trials": count} for (host, pid), count in sorted(counts.items())]


def importance(search: Search, trials: Sequence[Trial]) -> dict[str, float] | None:
    """Each key's share of what the metric varied by (fANOVA, Hutter et al. 2014), the largest first.

    None where it would say nothing: fewer than eight complete trials, a single key that varies, or all values alike.
    """
    complete = [(trial, search.value(trial.record)) for trial in trials if trial.state == "complete" and trial.record]
    points = [to_storage(search.space, trial.params) for trial, _ in complete]
    varied = [key for key in search.space if len({point[key] for point in points}) > 1]
    if len(complete) < _ENOUGH or len(varied) < 2 or len({value for _, value in complete}) < 2:
        return None
    optuna = import_optuna()
    study = optuna.create_study(direction=search.direction)
    made = distributions(search.space)
    for point, (_, value) in zip(points, complete, strict=True):
        study.add_trial(optuna.trial.create_trial(params=point, distributions=made, value=value))
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        evaluator = optuna.importance.FanovaImportanceEvaluator(seed=0)
        found = optuna.importance.get_param_importances(study, evaluator=evaluator, params=varied)
    return {key: float(share) for key, share in found.items()}
