"""A checked artefact as a run of MLflow: its verdict, its numbers, and the folder itself."""

from __future__ import annotations

import importlib
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from tutelage.errors import ExportError, missing_extra
from tutelage.report.record import mapping, number, records, text

#: What MLflow takes as the longest value of a parameter.
_LONGEST_PARAMETER = 500


def require_mlflow() -> Any:
    """The package, asked for before an hour's work and not after it.

    Raises:
        MissingExtraError: it is not installed.
    """
    try:
        return importlib.import_module("mlflow")
    except ImportError as error:
        raise missing_extra("mlflow", "mlflow", "--mlflow") from error


def log_to_mlflow(result: Mapping[str, Any], shipped: Mapping[str, Any], name: str, folder: Path) -> str:
    """Log one artefact's check as a run in the experiment that MLflow's own settings name; returns the run's id.

    Metrics are named after what they are of: ``test/accuracy``, ``gate/size_ratio``, ``latency_ms_p50/onnx``. The artefact's folder
    and ``check.json`` are attached; the verdict is the tag ``tutelage.verdict``.

    Args:
        result: the content of ``result.json``.
        shipped: that of ``shipped.json``.
        name: the artefact's name in it, checked.
        folder: the artefact.

    Raises:
        MissingExtraError: MLflow is not installed.
        ExportError: it could not be reached, or refused what it was given.
    """
    mlflow = require_mlflow()
    entry = mapping(mapping(shipped.get("artefacts")).get(name))
    check = mapping(entry.get("check"))
    try:
        with mlflow.start_run(run_name=f"{text(result.get('title'), 'tutelage')}: {name}") as run:
            mlflow.set_tags(
                {
                    "tutelage.verdict": text(check.get("decision"), "not checked"),
                    "tutelage.version": text(result.get("tutelage")),
                    "tutelage.artefact": name,
                    "tutelage.digest": text(entry.get("digest")),
                    "tutelage.config_sha256": text(result.get("config_sha256")),
                }
            )
            mlflow.log_params(_parameters(result, entry))
            mlflow.log_metrics(_metrics(entry, check, mapping(shipped.get("measured"))))
            mlflow.log_dict(dict(check), "check.json")
            mlflow.log_artifacts(str(folder), artifact_path=name)
            return run.info.run_id
    except Exception as error:
        raise ExportError(
            f"the check is done and written, but MLflow did not take it at {mlflow.get_tracking_uri()}: {type(error).__name__}: "
            f"{str(error).strip()[:300]}; set MLFLOW_TRACKING_URI to a server that answers, and check again"
        ) from error


def _parameters(result: Mapping[str, Any], entry: Mapping[str, Any]) -> dict[str, str]:
    objective = " + ".join(
        f"{text(part.get('weight'))} {text(part.get('term'))}" for part in records(result.get("objective"))
    )
    told = {
        "objective": objective,
        "format": text(entry.get("format")),
        "precision": text(entry.get("precision")),
        "seed": text(entry.get("seed")),
        "bytes": text(entry.get("bytes")),
    }
    return {key: value[:_LONGEST_PARAMETER] for key, value in told.items() if value}


def _metrics(entry: Mapping[str, Any], check: Mapping[str, Any], measured: Mapping[str, Any]) -> dict[str, float]:
    found: dict[str, float | None] = {}
    for key, value in mapping(mapping(check.get("test")).get("metrics")).items():
        found[f"test/{key}"] = number(value)
    for key, value in mapping(mapping(entry.get("validation")).get("artefact")).items():
        found[f"validation/{key}"] = number(value)
    for gate in records(check.get("gates")):
        found[f"gate/{text(gate.get('name'))}"] = number(gate.get("value"))
    rows = records(measured.get("rows"))
    fewest = min((number(row.get("threads")) or 0 for row in rows), default=0)
    longest = max((number(row.get("length")) or 0 for row in rows), default=0)
    for row in rows:
        setting = (number(row.get("batch")), number(row.get("threads")), number(row.get("length")) or 0)
        if setting == (1, fewest, longest):
            found[f"latency_ms_p50/{text(row.get('model'))}"] = number(row.get("p50"))
    found["bytes"] = number(entry.get("bytes"))
    return {key: value for key, value in found.items() if value is not None}
