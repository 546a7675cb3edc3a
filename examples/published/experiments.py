"""The seven experiments: what each runs, and what its table and its line in the index say."""

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path

from examples.published.evidence import Finished, gap_share, right_answers
from examples.published.words import nats, percent, points, table

TEACHER = "published-teacher"

#: The finished runs of an experiment, by the names of their configs.
Runs = Mapping[str, Finished]


@dataclass(frozen=True)
class Experiment:
    """One of the field's experiments.

    Args:
        title: of the question, in a few words.
        configs: the names of its configs, without ``.yaml``, in the order they run.
        body: the tables, as Markdown.
        headline: one line for the index.
        shared_teacher: whether its students are taught by the teacher of ``teacher.yaml``.
    """

    title: str
    configs: Sequence[str]
    body: Callable[[Runs], str]
    headline: Callable[[Runs], str]
    shared_teacher: bool = True


def _arms(run: Finished, names: Mapping[str, str], against: str = "scratch") -> str:
    """A row for each arm: accuracy, NLL, and what it gained over the control."""
    rows: list[list[str]] = []
    for arm, said in names.items():
        record = run.arm(arm)
        gained = points(run.difference(arm, against)) if arm not in (against, "teacher") else ""
        accuracy = percent(record["mean"]["accuracy"], record["ci95"]["accuracy"])
        rows.append([said, accuracy, nats(record["mean"]["nll"]), gained])
    return table(["arm", "accuracy, %", "NLL, nats", f"points over {names[against]}"], rows)


def _costs(run: Finished) -> str:
    rows = [
        [model, f"{cost['parameters']:,}", f"{cost['flops_per_example'] / 1e6:.2f}"]
        for model, cost in run.result["cost"].items()
    ]
    ratio = run.result["cost"]["teacher"]["flops_per_example"] / run.result["cost"]["student"]["flops_per_example"]
    return (
        f"{table(['model', 'parameters', 'MFLOPs an image'], rows)}\n\nThe student takes {ratio:.1f} times fewer FLOPs."
    )


def _temperatures(judged: str, others: Mapping[str, str]) -> dict[str, str]:
    """The arms in the order of their temperatures, which stand in their labels."""
    taught = {"kd": judged, **others}
    ordered = sorted(taught.items(), key=lambda arm: float(arm[1].removeprefix("T = ")))
    return {"teacher": "teacher", "scratch": "scratch", **dict(ordered)}


def _temperature_share(runs: Runs, arm: str, run: str) -> tuple[str, bool]:
    textbook = runs["config"]
    teacher = right_answers(textbook.folder.parent / TEACHER / "teacher")[None]
    share = gap_share(runs[run].correct(arm), textbook.correct("scratch"), teacher)
    return f"{percent(share.mean, [share.low, share.high], 0)}", share.low >= 0.5


def _temperature(runs: Runs) -> str:
    textbook, matching = runs["config"], runs["function_matching"]
    arms = _temperatures("T = 4", {f"t{t}": f"T = {t}" for t in (1, 2, 16, 32, 64)})
    shares = [
        ["T = 4, the textbook's", _temperature_share(runs, "kd", "config")[0]],
        ["function matching", _temperature_share(runs, "kd", "function_matching")[0]],
        [
            "the labels alone, as long and with the same images",
            _temperature_share(runs, "scratch", "function_matching")[0],
        ],
    ]
    matched = {"teacher": "teacher", "scratch": "scratch, as long and with the same images", "kd": "function matching"}
    return "\n\n".join(
        [
            _costs(textbook),
            "Half of the weight on the teacher:",
            _arms(textbook, arms),
            "Function matching, and the labels alone with the same images, steps and schedule:",
            _arms(matching, matched),
            "How much of the gap between the textbook's scratch student and the teacher was closed:",
            table(["student", "share of the gap, %"], shares),
        ]
    )


def _temperature_line(runs: Runs) -> str:
    textbook = runs["config"]
    best = max(
        (arm for arm in textbook.result["arms"] if arm not in ("teacher", "scratch")),
        key=lambda arm: textbook.arm(arm)["mean"]["accuracy"],
    )
    share, _ = _temperature_share(runs, "kd", "function_matching")
    return (
        f"textbook, best arm `{best}` − scratch: {points(textbook.difference(best, 'scratch'))}; "
        f"function matching closes {share}% of the gap"
    )


def _unseen(runs: Runs) -> str:
    run = runs["config"]
    corrected = run.result["prior_correction"]
    names = {"scratch": "scratch", "t1": "T = 1", "t4": "T = 4", "kd": "T = 20"}
    rows = [
        [said]
        + [
            percent(corrected["arms"][arm][what][when]["mean"], corrected["arms"][arm][what][when]["ci95"])
            for what in ("accuracy", "recall")
            for when in ("before", "after")
        ]
        for arm, said in names.items()
    ]
    name = corrected["classes"][0]
    head = ["arm", "accuracy, %", "corrected", f"of the {corrected['test_examples']:,} of class {name}, %", "corrected"]
    teacher = run.arm("teacher")
    return f"{table(head, rows)}\n\nTeacher: {percent(teacher['mean']['accuracy'], teacher['ci95']['accuracy'])}."


def _unseen_line(runs: Runs) -> str:
    corrected = runs["config"].result["prior_correction"]["arms"]["kd"]
    before, after = (100 * corrected["recall"][when]["mean"] for when in ("before", "after"))
    return (
        f"recall of the class that the student never saw: {before:.1f}%, with its prior corrected {after:.1f}% (T = 20)"
    )


def _small(runs: Runs) -> str:
    parts: list[str] = []
    for units in (30, 800):
        run = runs[f"units{units}"]
        others = {"t1": "T = 1", "t2_5": "T = 2.5", "t8": "T = 8", "t20": "T = 20"}
        parts += [f"One hidden layer of {units} units:", _arms(run, _temperatures("T = 4", others))]
    pairs = (("t1", "kd"), ("kd", "t20"), ("t8", "t20"))
    rows = [
        [f"{units} units", *(points(runs[f"units{units}"].difference(low, high)) for low, high in pairs)]
        for units in (30, 800)
    ]
    head = ["student", "T = 1 − T = 4", "T = 4 − T = 20", "T = 8 − T = 20"]
    return "\n\n".join([*parts, "What a lower temperature is worth, in points:", table(head, rows)])


def _small_line(runs: Runs) -> str:
    said = [f"{units} units {points(runs[f'units{units}'].difference('t1', 't20'))}" for units in (30, 800)]
    return f"T = 1 − T = 20: {'; '.join(said)}"


def _assistant(runs: Runs) -> str:
    run = runs["config"]
    chain = run.result["chain"]
    links = [
        [
            link["name"],
            link["taught_by"] or "labels",
            f"{link['parameters']:,}",
            f"{100 * link['test']['accuracy']:.1f}",
            f"{link['seconds']:.0f}" if link["seconds"] is not None else "",
        ]
        for link in chain["links"]
    ]
    names = {"teacher": "teacher", "scratch": "scratch", "direct": "the direct road", "kd": "by way of the assistant"}
    return "\n\n".join(
        [
            _arms(run, names),
            table(["link", "taught by", "parameters", "test accuracy, %", "seconds"], links),
            f"The detour against the direct road: {points(run.difference('kd', 'direct'))}. {run.result['chain']['detour']['why']}",
        ]
    )


def _assistant_line(runs: Runs) -> str:
    run = runs["config"]
    return f"assistant − direct: {points(run.difference('kd', 'direct'))}; direct − scratch: {points(run.difference('direct', 'scratch'))}"


def _ensemble(runs: Runs) -> str:
    run = runs["config"]
    members = [
        [member["name"], percent(member["mean"]["accuracy"], member["ci95"]["accuracy"]), nats(member["mean"]["nll"])]
        for member in run.result["members"]
    ]
    names = {
        "teacher": "the five together",
        "scratch": "scratch",
        "label_smoothing": "label smoothing",
        "kd": "one, taught by the five",
    }
    return f"{_arms(run, names)}\n\n{table(['member', 'accuracy, %', 'NLL, nats'], members)}"


def _ensemble_line(runs: Runs) -> str:
    run = runs["config"]
    gained, possible = (points(run.difference(arm, "scratch")) for arm in ("kd", "teacher"))
    return f"taught by five − scratch: {gained}; the five themselves − scratch: {possible}"


def _few(runs: Runs) -> str:
    names = {
        "teacher": "teacher",
        "scratch": "scratch",
        "label_smoothing": "label smoothing",
        "kd": "T = 1",
        "t4": "T = 4",
    }
    parts: list[str] = []
    for run in runs.values():
        counts = run.result["transfer"]
        parts += [f"{counts['labelled']:,} labels, {counts['unlabelled']:,} images without:", _arms(run, names)]
    return "\n\n".join(parts)


def _few_line(runs: Runs) -> str:
    said = [f"{run.result['title']}: {points(run.difference('kd', 'scratch'))}" for run in runs.values()]
    return f"distilled − scratch, {'; '.join(said)}"


def _regulariser(runs: Runs) -> str:
    run = runs["config"]
    names = {
        "teacher": "teacher",
        "scratch": "scratch",
        "label_smoothing": "label smoothing 0.1",
        "smoothed_more": "label smoothing 0.3",
        "teacher_free": "teacher-free",
        "kd": "distilled",
    }
    rows = [
        [names[arm], points(run.difference("kd", arm))] for arm in ("label_smoothing", "smoothed_more", "teacher_free")
    ]
    return f"{_arms(run, names)}\n\n{table(['distilled against', 'points'], rows)}"


def _regulariser_line(runs: Runs) -> str:
    run = runs["config"]
    return f"distilled − scratch: {points(run.difference('kd', 'scratch'))}; − teacher-free: {points(run.difference('kd', 'teacher_free'))}"


EXPERIMENTS = {
    "temperature": Experiment("Which temperature?", ["config", "function_matching"], _temperature, _temperature_line),
    "unseen_class": Experiment("A class never seen", ["config"], _unseen, _unseen_line),
    "small_students": Experiment("Small students want a low temperature", ["units30", "units800"], _small, _small_line),
    "assistant": Experiment("A teacher assistant", ["config"], _assistant, _assistant_line),
    "ensemble": Experiment("Five into one", ["config"], _ensemble, _ensemble_line, shared_teacher=False),
    "few_labels": Experiment("Few labels", ["one_percent", "ten_percent"], _few, _few_line),
    "regulariser": Experiment(
        "Distillation as a regulariser", ["config"], _regulariser, _regulariser_line, shared_teacher=False
    ),
}


def provenance(name: str, runs: Sequence[Finished], folders: Sequence[Path]) -> str:
    """How a table came about: the command, the seeds, the data and the time."""
    first = runs[0].result
    digits = (
        "" if "T-shirt" in first["classes"] else " **On scikit-learn's digits, since Fashion-MNIST was not at hand.**"
    )
    seeds = len(first["arms"]["kd"]["seeds"])
    trained = [row["seconds"] for run in runs for arm in run.result["arms"].values() for row in arm["seeds"]]
    minutes = sum(seconds for seconds in trained if seconds is not None) / 60
    where = " and ".join(f"`{folder}`" for folder in folders)
    return (
        f"`python -m examples.published {name}`, from {where}: {seeds} seeds, {first['splits']['train']:,} images to learn from, "
        f"{first['splits']['test']:,} to test on; tutelage {first['tutelage']}. Means with 95% intervals over seeds and test images; "
        f"differences are paired, bold where their interval excludes 0. {minutes:.0f} min of training in all.{digits}"
    )
