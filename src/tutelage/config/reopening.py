"""A finished run from its folder alone: the study is put together again from the config that the run left there."""

from __future__ import annotations

from hashlib import sha256
from pathlib import Path

from tutelage.config.building import build_study
from tutelage.config.reading import load_classifier_config
from tutelage.config.schema import StudyConfig
from tutelage.errors import ConfigError, TutelageError
from tutelage.studies.finished import FinishedRun, open_run, read_result
from tutelage.studies.study import CONFIG

_LANGUAGE_MODELS = (
    "a language model's student is a folder that transformers' from_pretrained loads as it is (kd/seed-0 in the run, say), and its verdict "
    "is in result.json and on the page"
)


def reopen(run: Path, config: Path | None = None) -> FinishedRun:
    """The finished run in a folder that ``tutelage run`` left.

    What ran is read from the run's own ``config.yaml``; the models' code, the data and other files that it names are looked for
    where the original config lies.

    Args:
        run: the folder.
        config: the config that was run, or the folder it lies in now, where it has moved since.

    Raises:
        ConfigError: no finished run, or the config's folder is not known or not there.
    """
    ran = ran_config(run)
    provenance = read_result(run).get("provenance", {})
    home = _given(config) if config is not None else _recorded(run, provenance.get("config_folder"))
    try:
        study = build_study(ran, home, provenance.get("command", ""))
        found = open_run(study, run)
        found.fresh(study.seed_list[0])
    except TutelageError as error:
        if config is not None:
            raise
        raise type(error)(
            f"{error} (what {run / CONFIG} names was looked for in {home.resolve()}; if it lies elsewhere now, give --config)"
        ) from error
    return found


def ran_config(run: Path) -> StudyConfig:
    """The config that a finished run of a classifier was made by.

    Raises:
        ConfigError: no finished run, one of a language model, or its config was changed since.
    """
    result = read_result(run)
    if sha256((run / CONFIG).read_bytes()).hexdigest() != result.get("config_sha256"):
        raise ConfigError(
            f"{run / CONFIG} is not what ran, its hash differs from the record's: gates or data that were changed afterwards would decide; "
            "change your own config (or use --set) and give the same `tutelage run` command, which trains nothing anew and judges again"
        )
    return load_classifier_config(run / CONFIG, instead=_LANGUAGE_MODELS)


def _given(config: Path) -> Path:
    if not config.exists():
        raise ConfigError(f"--config {config} does not exist: name the config that was run, or the folder it lies in")
    return config if config.is_dir() else config.parent


def _recorded(run: Path, folder: object) -> Path:
    if not isinstance(folder, str):
        raise ConfigError(
            f"{run} does not say where its config lies, so its models and data cannot be found: give --config; a study that was run "
            "from Python is opened with tutelage.studies.open_run(study, folder)"
        )
    home = run / folder
    if not home.is_dir():
        raise ConfigError(
            f"the config of {run} lay in {home.resolve()}, which is not there any more: give --config, the config that was run or the "
            "folder it lies in now"
        )
    return home
