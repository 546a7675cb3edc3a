"""The page of a sweep: what won, what it is worth on the test split, and everything that was tried."""

from __future__ import annotations

import re
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from tutelage.errors import ConfigError
from tutelage.report.charts import share_bar
from tutelage.report.pages import day, read_json, render, write_page
from tutelage.report.record import Record, interval, mapping, number, records, text
from tutelage.report.sweep_charts import charts, coordinates
from tutelage.report.sweep_trials import Sweep, Trial, check_sweep, settings, written
from tutelage.report.words import METRICS, MISSING, amount, decimal, difference, duration, metric_named, plural

RECORD = "sweep.json"
PAGE = "sweep.html"

View = dict[str, Any]

#: Trials beyond these are folded away.
MOST_TRIALS = 20
#: Characters of an error's last lines: a traceback may be as long as a book.
LONGEST_ERROR = 2000
#: The other metrics of a trial, in the table.
BESIDE = ("accuracy", "nll", "ece")
#: A folder within the sweep's, which the page may lead to.
_FOLDER = re.compile(r"[\w-][\w.-]*")


def render_sweep(record: Mapping[str, Any]) -> str:
    """One self-contained HTML page of a sweep; it loads nothing from anywhere and needs no scripts.

    Args:
        record: the content of ``sweep.json``, of a sweep that may still be running.

    Returns:
        The page, HTML 5.

    Raises:
        DataError: it is not the record of a sweep.
    """
    return render("sweep.html.j2", _view(Sweep(check_sweep(record, "this record"))))


def write_sweep_page(folder: Path) -> Path:
    """Writes ``sweep.html`` from the record in a sweep's folder; an older page is replaced whole or not at all.

    Args:
        folder: the output folder of a sweep.

    Returns:
        The page's path.

    Raises:
        ConfigError: the folder holds no ``sweep.json``.
        DataError: it is damaged, or not the record of a sweep.
    """
    source = Path(folder) / RECORD
    try:
        record = read_json(source, "run `tutelage sweep` again with the same config, which writes it anew")
    except (FileNotFoundError, NotADirectoryError):
        raise ConfigError(
            f"no {RECORD} in {folder}: expected the output folder of a sweep. There is nothing to make a page from; give the folder "
            "that `tutelage sweep` wrote to"
        ) from None
    page = render("sweep.html.j2", _view(Sweep(check_sweep(record, str(source)))))
    return write_page(Path(folder) / PAGE, page)


def _view(sweep: Sweep) -> View:
    winner = mapping(sweep.record.get("winner"))
    decision = text(winner.get("decision"))
    folder = text(winner.get("folder"))
    rows = [_row(trial, sweep) for trial in sweep.trials]
    return {
        "title": text(sweep.record.get("title"), "A sweep"),
        "version": text(sweep.record.get("tutelage"), "unknown version"),
        "facts": _facts(sweep),
        "decision": decision if decision in ("ship", "hold", "reject") else "",
        "headline": headline(sweep),
        "on_test": on_test(sweep),
        "optimism": optimism(sweep),
        "report": f"{folder}/report.html" if _FOLDER.fullmatch(folder) else "",
        "charts": charts(sweep),
        "parallel": coordinates(sweep),
        "importance": _importance(sweep),
        "keys": sweep.keys,
        "metrics": [sweep.measure.name, *(metric_named(key).name for key in _beside(sweep))],
        "rows": rows[:MOST_TRIALS],
        "folded": rows[MOST_TRIALS:],
        "scratch": _scratch(sweep),
        "failed": [_failure(trial, sweep) for trial in sweep.trials if trial.state == "failed"],
        "made": _made(sweep),
    }


def _facts(sweep: Sweep) -> list[str]:
    seconds, seeds = number(sweep.record.get("seconds")), number(sweep.search.get("seeds"))
    count = plural(len(sweep.trials), "trial")
    facts = [
        day(sweep.record.get("started")),
        f"took {duration(seconds)}" if seconds is not None else "",
        f"{count} × {plural(int(seeds), 'seed')}" if seeds else count,
        f"chosen by validation {sweep.measure.name}",
    ]
    return [fact for fact in facts if fact]


def headline(sweep: Sweep) -> str:
    """What won, and where it was chosen."""
    best, count = sweep.best, len(sweep.complete)
    if best is None:
        return "No trial is complete yet, so nothing was chosen."
    value, level = best.value(sweep.metric), sweep.scratch[0]
    between = _between(best.between(sweep.metric), sweep)
    said = (
        f"{settings(sweep, best.params)} won among {plural(count, 'trial')}: {sweep.measure.name} {sweep.write(value)}"
    )
    said += f" on the validation split{between}"
    if level is not None and value is not None:
        said += f", {sweep.apart(value, level)} against labels alone"
    return f"{said[:1].upper()}{said[1:]}."


def _between(ci: tuple[float, float] | None, sweep: Sweep) -> str:
    return "" if ci is None else f" (95% interval {sweep.write(ci[0])} to {sweep.write(ci[1])})"


def on_test(sweep: Sweep) -> str:
    """What the winner, run whole, did on the test split, which took no part in the choice."""
    winner = mapping(sweep.record.get("winner"))
    accuracy, ci, metric = number(winner.get("accuracy")), interval(winner.get("ci95")), METRICS["accuracy"]
    if not winner:
        return "The winner has not been run as a whole study yet: nothing is known of it on the test split."
    if accuracy is None:
        return "The winner was run as a whole study, but its accuracy on the test split is not recorded."
    between = f" (95% interval {amount(metric, ci[0])} to {amount(metric, ci[1])})" if ci else ""
    said = f"Run whole on its own seeds and met with the test split once, it scored {amount(metric, accuracy)}{between}"
    chosen = sweep.best.value("accuracy") if sweep.best else None
    if chosen is not None:
        gap = accuracy - chosen
        side = "the same as" if round(gap, 4) == 0 else "less than" if gap < 0 else "more than"
        apart = "" if round(gap, 4) == 0 else f"{difference(metric, abs(gap), signed=False)} "
        said += f", {apart}{side} on validation"
    return f"{said}."


def optimism(sweep: Sweep) -> str:
    """Why the best of many looks better than it is, and how many others may be as good."""
    best, count = sweep.best, len(sweep.complete)
    if best is None or count < 2:
        return ""
    ci = best.between(sweep.metric)
    said = (
        f"The best of {count} trials is the best partly by luck, and its validation {sweep.measure.name} flatters it; the test split, "
        "which nothing was chosen on, does not."
    )
    if ci is None:
        return said
    near = sum(
        (ci[0] <= value if sweep.higher else value <= ci[1])
        for trial in sweep.complete
        if trial is not best and (value := trial.value(sweep.metric)) is not None
    )
    if not near:
        return f"{said} No other trial lies within its interval."
    if near == count - 1:
        others = "The other trial lies" if count == 2 else f"All of the other {near} lie"
    else:
        others = f"{near} of the other {count - 1} {'lies' if near == 1 else 'lie'}"
    return f"{said} {others} within its interval and may be as good."


def _beside(sweep: Sweep) -> list[str]:
    """The metrics beside the one that was chosen by."""
    return [key for key in BESIDE if key != sweep.metric]


def _cells(mean: Record, ci: tuple[float, float] | None, sweep: Sweep) -> list[View]:
    """The metric with its interval, and those beside it."""
    value = number(mean.get(sweep.metric))
    between = f"{sweep.write(ci[0])} to {sweep.write(ci[1])}" if ci is not None and value is not None else ""
    cells = [{"mean": sweep.write(value), "ci": between}]
    return cells + [{"mean": amount(metric_named(key), number(mean.get(key))), "ci": ""} for key in _beside(sweep)]


def _row(trial: Trial, sweep: Sweep) -> View:
    return {
        "name": trial.name,
        "best": trial is sweep.best,
        "state": trial.state,
        "params": [
            {"value": written(key.of(trial)) if key.key in trial.params else MISSING, "numeric": key.numeric}
            for key in sweep.keys
        ],
        "cells": _cells(trial.mean if trial.state == "complete" else {}, trial.between(sweep.metric), sweep),
        "seeds": f"{len(trial.seeds):,}",
        "seconds": duration(trial.seconds),
    }


def _scratch(sweep: Sweep) -> View | None:
    """The line of labels alone at the foot of the table."""
    line = mapping(sweep.record.get("scratch"))
    if not line:
        return None
    seeds = records(line.get("seeds"))
    spent = [value for seed in seeds if (value := number(seed.get("seconds"))) is not None]
    return {
        "cells": _cells(mapping(line.get("mean")), sweep.scratch[1], sweep),
        "seeds": f"{len(seeds):,}",
        "seconds": duration(sum(spent) if spent else None),
    }


def _failure(trial: Trial, sweep: Sweep) -> View:
    said = trial.error.strip() or "The record gives no reason."
    return {
        "name": trial.name,
        "settings": settings(sweep, trial.params),
        "error": said if len(said) <= LONGEST_ERROR else f"…{said[-LONGEST_ERROR:]}",
    }


def _importance(sweep: Sweep) -> list[View]:
    """Each key's share, the largest first; of a key that the record does not weigh, none."""
    weighed = [(key, share) for key in sweep.keys if (share := key.importance) is not None]
    return [
        {"name": key.name, "key": key.key, "share": f"{decimal(100 * share, 0)}%", "bar": share_bar(share)}
        for key, share in sorted(weighed, key=lambda pair: -pair[1])
    ]


def _made(sweep: Sweep) -> Sequence[tuple[str, str]]:
    """What was asked for, and who did it."""
    search = sweep.search
    workers = [
        f"{text(worker.get('host'), 'unknown host')}, process {text(worker.get('pid'), '?')}: {text(worker.get('trials'), '?')} trials"
        for worker in records(sweep.record.get("workers"))
    ]
    facts = [
        *((f"{key}", _dimension(dimension)) for key, dimension in mapping(search.get("space")).items()),
        ("Sampler", text(search.get("sampler"))),
        ("Trials", text(search.get("trials"))),
        ("Seeds of a trial", text(search.get("seeds"))),
        ("Metric", f"{text(search.get('metric'))}, {text(search.get('direction'))}"),
        ("Workers", "; ".join(workers)),
        ("Started", text(sweep.record.get("started"))),
        ("Took", duration(number(sweep.record.get("seconds")))),
        ("tutelage", text(sweep.record.get("tutelage"))),
        ("config sha256", text(sweep.record.get("config_sha256"))),
    ]
    return [(name, value or "not recorded") for name, value in facts]


def _dimension(dimension: object) -> str:
    """Choices one after another, or a range in words."""
    asked = mapping(dimension)
    if not asked:
        values = dimension if isinstance(dimension, list) else [dimension]
        return ", ".join(written(value) for value in values)
    said = f"{written(asked.get('low'))} to {written(asked.get('high'))}"
    parts = [
        said,
        "whole numbers" if asked.get("integer") is True else "",
        "even on a logarithmic scale" if asked.get("log") is True else "",
        f"in steps of {written(asked.get('step'))}" if asked.get("step") is not None else "",
    ]
    return ", ".join(part for part in parts if part)
