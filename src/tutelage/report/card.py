"""A model card for the Hugging Face Hub: what an artefact is, how it was made, and what was and was not shown of it."""

from __future__ import annotations

import io
import re
from collections.abc import Mapping, Sequence
from typing import Any

from tutelage.report.artefacts import TEACHER, Standing, artefact_named, described, single, standings
from tutelage.report.details import quantisation
from tutelage.report.gate_words import because
from tutelage.report.limits import limits
from tutelage.report.markdown import plain, table
from tutelage.report.record import Record, check_layout, check_shipped, mapping, number, records, sequence, text
from tutelage.report.sections import TASK_METRICS, arms_of, comparison_cells, gates, metric_cells
from tutelage.report.shipped import answer_row, calibration_row, cost_row, currency_of, machine
from tutelage.report.words import arm_named, bytes_text, metric_named, objective_text

_LIBRARIES = {"onnx": "onnx", "executorch": "executorch"}
_TASKS = {"image": "image-classification", "text": "text-classification"}
#: The data sources that hold images and nothing else.
_IMAGES = ("digits", "idx")
#: What the Hub calls our metrics.
_METRIC_TYPES = {"accuracy": "accuracy", "macro_f1": "f1", "nll": "nll", "ece": "ece"}
_HUB_ID = re.compile(r"[\w-][\w.-]*/[\w-][\w.-]*|[\w-][\w.-]*")


def model_card(result: Mapping[str, Any], shipped: Mapping[str, Any], name: str, *, license: str | None = None) -> str:
    """The README.md of an artefact on the Hugging Face Hub, its metadata in front.

    The metadata claims only what the records hold. ``base_model`` is what the config calls ``hub``, if that reads like an id
    on the Hub; a folder of that shape cannot be told from one.

    Args:
        result: the content of ``result.json``.
        shipped: the content of ``shipped.json``.
        name: of the artefact.
        license: an identifier the Hub knows, such as ``"apache-2.0"``; none is claimed if none is given.

    Returns:
        Markdown that ``huggingface_hub.ModelCard`` reads.

    Raises:
        ConfigError: there is no artefact of that name.
        DataError: a record is not that of a finished run or of an export.
    """
    run, exported = check_layout(result, "this record"), check_shipped(shipped, "the record of what was exported")
    artefact = artefact_named(exported, name)
    rows = standings(run, exported, only=name)
    parts = [
        [f"# {plain(text(run.get('title'), name))}: {plain(name)}"],
        what_it_is(run, artefact),
        how_it_was_trained(run),
        evidence(run),
        verdict(run, artefact),
        as_shipped(exported, name, artefact, rows),
        ["## Limits", "", *(f"- {plain(sentence, 400)}" for sentence in limits(run, exported, name))],
        how_to_use(artefact),
    ]
    body = "\n\n".join("\n".join(part) for part in parts if part)
    front = metadata(run, artefact, name, rows[-1], license)
    # a lone surrogate is valid in JSON and has no UTF-8
    return f"---\n{front}\n---\n\n{body}\n".encode("utf-8", errors="replace").decode("utf-8")


def metadata(result: Record, artefact: Record, name: str, its: Standing, license: str | None) -> str:
    """The metadata in the Hub's own schema, as YAML."""
    from huggingface_hub import EvalResult, ModelCardData

    config = config_of(result)
    data, student = mapping(config.get("data")), mapping(mapping(config.get("student")).get("model"))
    kind, task = text(artefact.get("format")), pipeline_tag(result, data)
    source = text(data.get("source"), "unknown")
    dataset = text(data.get("path")) if source == "hub" else source
    results = [
        EvalResult(
            task_type=task or "other",
            dataset_type=dataset,
            dataset_name=dataset if source == "hub" else text(result.get("title"), source),
            dataset_split=its.split,
            metric_type=its_type,
            metric_name=metric_named(key).name,
            metric_value=value,
        )
        for key, its_type in _METRIC_TYPES.items()
        if (value := number(its.metrics.get(key))) is not None
    ]
    precision = text(artefact.get("precision"))
    tags = ["knowledge-distillation", "tutelage", kind, *([precision, "quantized"] if precision == "int8" else [])]
    transformers = kind == "safetensors" and bool(text(student.get("hub")))
    front = ModelCardData(
        license=license,
        library_name="transformers" if transformers else _LIBRARIES.get(kind, "pytorch"),
        pipeline_tag=task,
        base_model=base_models(config) or None,
        datasets=[dataset] if source == "hub" and dataset else None,
        metrics=["accuracy"] if results else None,
        tags=[tag for tag in tags if tag],
        model_name=name,
        eval_results=results or None,
    )
    return front.to_yaml()


def config_of(result: Record) -> Record:
    """The resolved config that the run recorded; empty where there is none or it is damaged."""
    from ruamel.yaml import YAML
    from ruamel.yaml.error import YAMLError

    try:
        return mapping(
            YAML(typ="safe", pure=True).load(io.StringIO(text(mapping(result.get("provenance")).get("config"))))
        )
    except YAMLError:
        return {}


def base_models(config: Record) -> list[str]:
    """The Hub ids that the student and the teacher start from."""
    named = (text(mapping(mapping(config.get(who)).get("model")).get("hub")) for who in ("student", "teacher"))
    return list(dict.fromkeys(hub for hub in named if _HUB_ID.fullmatch(hub)))


def pipeline_tag(result: Record, data: Record) -> str | None:
    """What the Hub calls the task; None where the records do not tell images from texts."""
    if data.get("source") in _IMAGES:
        return _TASKS["image"]
    examples = records(mapping(mapping(result.get("evidence")).get("flips")).get("examples"))
    return next((task for kind, task in _TASKS.items() if any(text(example.get(kind)) for example in examples)), None)


def what_it_is(result: Record, artefact: Record) -> list[str]:
    """The artefact in two sentences."""
    classes, size = len(sequence(result.get("classes"))), number(artefact.get("bytes"))
    said = f"A classifier of {classes:,} classes" if classes else "A classifier"
    weight = f", {bytes_text(size)} on disk" if size is not None else ""
    return [
        f"{said}, distilled from a larger teacher and exported as {plain(described(artefact))}{weight}. It was made and judged with "
        f"tutelage {plain(text(result.get('tutelage')))}, which trains the same student without its teacher beside it."
    ]


def how_it_was_trained(result: Record) -> list[str]:
    """Objective, teacher, data and seeds."""
    splits, transfer, arms = (mapping(result.get(key)) for key in ("splits", "transfer", "arms"))
    seeds = [text(seed.get("seed")) for seed in records(mapping(arms.get("kd")).get("seeds"))]

    def counts(found: Record) -> str:
        return ", ".join(f"{value:,.0f} {key}" for key, each in found.items() if (value := number(each)) is not None)

    facts = {
        "Objective": " + ".join(objective_text(term) for term in records(result.get("objective"))),
        "Teacher": text(mapping(arms.get("teacher")).get("description")),
        "Transfer set": counts(transfer),
        "Splits": counts(splits),
        "Seeds": ", ".join(seed for seed in seeds if seed),
        "Config": f"sha256 {digest}" if (digest := text(result.get("config_sha256"))) else "",
    }
    return ["## How it was trained", "", *(f"- {what}: {plain(said)}" for what, said in facts.items() if said)]


def evidence(result: Record) -> list[str]:
    """The student against its teacher and its controls, over seeds, with intervals."""
    head = ["Arm", *(metric_named(key).name for key in TASK_METRICS)]
    rows = [
        [arm.name, *(f"{cell['mean']} ({cell['ci']})" for cell in metric_cells(record, TASK_METRICS))]
        for arm, record in arms_of(result)
    ]
    compared = [
        [f"{arm_named(text(found.get('a'))).name} − {arm_named(text(found.get('b'))).versus}", *_compared(found)]
        for found in records(result.get("comparisons"))
        if found.get("metric") == "accuracy"
    ]
    lines = ["## Evidence", "", "On the test split, as trained: mean over seeds, 95% interval in brackets.", ""]
    lines += table(head, rows, right=range(1, len(head)))
    if compared:
        lines += ["", *table(("Accuracy", "Difference", "95% interval", "p", "Reading"), compared, right=(1, 2, 3))]
    return lines


def _compared(found: Record) -> list[str]:
    cells = comparison_cells(found)
    return [cells["difference"], cells["ci"], cells["p"], cells["words"]]


def verdict(result: Record, artefact: Record) -> list[str]:
    """What was decided of the artefact itself, or, as long as it is not checked, of the study."""
    check = mapping(artefact.get("check"))
    judged = check or mapping(result.get("verdict"))
    of = (
        "the artefact itself, on the test split"
        if check
        else "the students as trained; this artefact is not checked yet"
    )
    rows = [(gate["state"], gate["name"], gate["value"], gate["limit"], gate["why"]) for gate in gates(judged)]
    lines = [
        "## Verdict",
        "",
        f"**{text(judged.get('decision')).capitalize()}**: {plain(because({'verdict': judged}), 400)}",
    ]
    lines += ["", f"Asked of {of}."]
    return (
        [*lines, "", *table(("", "Gate", "Value", "Limit", "Why"), rows, right=(2, 3), reasons=(4,))] if rows else lines
    )


def as_shipped(shipped: Record, name: str, artefact: Record, rows: Sequence[Standing]) -> list[str]:
    """The artefact beside the trained student and the teacher: answers, calibration and cost."""
    teacher = next((row for row in rows if row.key == TEACHER), None)
    one, where = single(shipped), machine(shipped)
    answers = [answer_row(row) for row in rows]
    lines = ["## As shipped", "", *_answers(answers)]
    if one:
        costs = [cost_row(row, teacher, currency_of(shipped)) for row in rows]
        head = (
            "Model",
            "On disk",
            f"Median latency, {one}",
            "Its spread, ms",
            "Against the teacher",
            "Peak memory",
            "A million",
        )
        keys = ("name", "size", "latency", "spread", "faster", "memory", "price")
        lines += ["", *table(head, [[row[key] for key in keys] for row in costs], right=range(1, 7))]
        lines += [
            "",
            plain(f"Measured on {where['cpu'] or 'a processor that is not recorded'}. {where['int8_note']}", 400),
        ]
    calibrated = calibration_row(name, artefact, rows)
    if calibrated:
        lines += ["", f"Calibration: {plain(calibrated['why'] or 'no reason is recorded.', 400)}"]
    quantised = quantisation(mapping(artefact.get("quantisation")))
    if quantised:
        floats = (
            f"In float stay {', '.join(quantised['floats'])}." if quantised["floats"] else "Nothing stays in float."
        )
        lines += ["", plain(f"Quantised. {quantised['method']} {floats} {quantised['why']}", 600)]
    return lines


def _answers(answers: Sequence[Mapping[str, Any]]) -> list[str]:
    head = ("Model", "Accuracy", "Interval", "NLL, nats", "ECE", "Largest error against the trained", "Same answer")
    keys = ("name", "accuracy", "under", "nll", "ece", "max_abs", "agreement")
    return table(head, [[row[key] for key in keys] for row in answers], right=range(1, 7))


def how_to_use(artefact: Record) -> list[str]:
    """Where the loading example is, and what to do with the logits."""
    calibration = mapping(artefact.get("calibration"))
    temperature = number(calibration.get("temperature"))
    lines = [
        "## How to use it",
        "",
        "The README.md in the artefact’s folder loads it in a few lines; manifest.json there names its inputs, classes and hashes.",
    ]
    if calibration.get("helps") is True and temperature is not None:
        lines[-1] += (
            f" Divide the logits by {temperature:.4g} before the softmax: the probabilities above were made so."
        )
    return lines
