"""``python -m examples.published NAME``: run an experiment, or go on with it, and write its table into its README."""

import argparse
import os
import shlex
import subprocess
import sys
from pathlib import Path

from examples.published.evidence import Finished
from examples.published.experiments import EXPERIMENTS, TEACHER, Experiment, provenance
from examples.published.words import put

HERE = Path(__file__).parent
ROOT = HERE.parents[1]
RESULTS, LINE = "results", "line"


def main() -> None:
    """Run what was asked for, one experiment after the other."""
    parser = argparse.ArgumentParser(prog="python -m examples.published", description=__doc__)
    parser.add_argument("name", choices=[*EXPERIMENTS, "all"], help="which experiment")
    parser.add_argument("--table", action="store_true", help="write the tables of runs that are there; run nothing")
    asked = parser.parse_args()
    os.chdir(ROOT)  # the commands are then the same wherever one stands, and so is what is recorded of them
    for name in EXPERIMENTS if asked.name == "all" else [asked.name]:
        if not asked.table:
            run_experiment(name, EXPERIMENTS[name])
        write_tables(name, EXPERIMENTS[name], HERE, Path("runs"))


def run_experiment(name: str, experiment: Experiment) -> None:
    """Run an experiment's configs, and the shared teacher's first where it is missing."""
    if experiment.shared_teacher and not Path("runs", TEACHER, "teacher", "model.safetensors").is_file():
        run_config(HERE / "teacher.yaml", Path("runs", TEACHER))
    for config in experiment.configs:
        run_config(HERE / name / f"{config}.yaml", run_folder(Path("runs"), name, config))


def run_config(config: Path, out: Path) -> None:
    """``tutelage run``: finished arms and seeds are not run again."""
    words = ["tutelage", "run", str(config.relative_to(ROOT)), "--out", str(out)]
    print(f"$ {shlex.join(words)}", flush=True)
    done = subprocess.run([str(Path(sys.executable).with_name(words[0])), *words[1:]], check=False)
    if done.returncode:
        sys.exit(done.returncode)


def run_folder(runs: Path, name: str, config: str) -> Path:
    """Where a config of an experiment leaves its run."""
    return runs / (f"published-{name}" if config == "config" else f"published-{name}-{config}")


def write_tables(name: str, experiment: Experiment, readmes: Path, runs: Path) -> None:
    """Write an experiment's tables into its README, and its line into the index."""
    folders = {config: run_folder(runs, name, config) for config in experiment.configs}
    finished = {config: Finished(folder) for config, folder in folders.items()}
    said = provenance(name, list(finished.values()), list(folders.values()))
    put(readmes / name / "README.md", RESULTS, f"\n{experiment.body(finished)}\n\n{said}\n")
    put(readmes / "README.md", f"{LINE} of {name}", experiment.headline(finished))
    print(f"wrote the tables of {name} into {(readmes / name / 'README.md')}")


if __name__ == "__main__":
    main()
