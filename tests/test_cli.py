"""The person at the terminal: a mistake is one message and exit code 2; a run says where it is, what it found and where it lies."""

import json
import os
import re
import select
import shutil
import signal
import subprocess
import sys
from pathlib import Path
from typing import Any

import huggingface_hub
import pytest
from rich.cells import cell_len

from forked import begun, forked
from terminal import sets
from tutelage import cli
from tutelage.cli import summaries
from tutelage.config import load_config

EXAMPLES = Path(__file__).parents[1] / "examples" / "digits"
COMMAND = Path(sys.executable).with_name("tutelage")

MODELS = '''\
import os, signal
import torch
from torch import nn
from tutelage import TransferSet


class Student(nn.Module):
    """Stops the whole process, as a power cut would, at the training step that DIE_AT names."""

    steps = 0

    def __init__(self):
        super().__init__()
        self.layers = nn.Sequential(nn.Linear(8, 16), nn.ReLU(), nn.Dropout(0.2), nn.Linear(16, 3))

    def forward(self, inputs):
        Student.steps += self.training
        if self.training and str(Student.steps) == os.environ.get("DIE_AT"):
            os.kill(os.getpid(), signal.SIGKILL)
        if self.training and os.environ.get("INTERRUPT"):
            os.kill(os.getpid(), signal.SIGINT)
        return self.layers(inputs)


def student():
    return Student()


def broken():
    raise RuntimeError("no such cat")


def narrow():
    return nn.Linear(5, 3)


def two_classes():
    return nn.Linear(8, 2)


def teacher():
    return nn.Linear(8, 3)


def frozen():
    module = nn.Linear(8, 3)
    with torch.no_grad():
        module.weight.copy_(torch.eye(3, 8))
        module.bias.zero_()
    return module


def blobs():
    generator = torch.Generator().manual_seed(0)
    labels = torch.arange(150) % 3
    return TransferSet(2 * torch.eye(3, 8)[labels] + torch.randn(150, 8, generator=generator), labels)


def no_data():
    return None


def shaky(inputs, draws):
    return inputs + 0.1 * draws.normal("shaky", 8)


number = 3
'''

CONFIG = """\
title: "three blobs [v2]"
data: {source: python, python: "models.py:blobs", splits: {validation: 0.2, test: 0.3}}
teacher: {model: {python: "models.py:teacher"}, training: {num_train_epochs: 2, learning_rate: 0.05}}
student: {model: {python: "models.py:student"}}
objective: [{term: kl, weight: 0.9}, {term: cross_entropy, weight: 0.1}]
training: {num_train_epochs: 3, per_device_train_batch_size: 8, learning_rate: 0.05}
study: {seeds: 2, together: false}
gates: {size_ratio: 9, latency_ratio: 90}
"""


@pytest.fixture
def project(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    write_project(tmp_path)
    monkeypatch.chdir(tmp_path)
    return tmp_path


def write_project(folder: Path) -> None:
    (folder / "models.py").write_text(MODELS)
    (folder / "config.yaml").write_text(CONFIG)


def quiet() -> dict[str, str]:
    """The environment of whoever has no wishes about the output."""
    return {name: value for name, value in os.environ.items() if name not in ("COLUMNS", "FORCE_COLOR")}


def console(*words: str, cwd: Path, **environment: str) -> subprocess.CompletedProcess[str]:
    """The command in a process of its own."""
    return forked(cli.main, *words, cwd=cwd, environment={**quiet(), **environment})


def is_one_message(left: Any) -> bool:
    return left.err.startswith("error: ") and "Traceback" not in left.err and left.err.count("error: ") == 1


@pytest.fixture(scope="module")
def finished(tmp_path_factory: pytest.TempPathFactory) -> tuple[Path, subprocess.CompletedProcess[str]]:
    """By the command as it is installed, started afresh."""
    folder = tmp_path_factory.mktemp("project")
    write_project(folder)
    words = [COMMAND, "run", "config.yaml"]
    return folder, subprocess.run(words, cwd=folder, env=quiet(), capture_output=True, text=True, check=False)


# What a run says and leaves


def test_a_run_says_where_it_is_what_it_found_and_where_it_lies(finished: Any) -> None:
    folder, left = finished
    assert left.returncode == 0, left.stderr
    run = folder / "runs" / folder.name
    assert (run / "report.html").is_file()
    assert f"page:   {run.relative_to(folder)}/report.html" in left.stdout
    assert f"record: {run.relative_to(folder)}/result.json" in left.stdout
    assert "three blobs [v2]: 45 test examples, 2 seeds" in left.stdout, "rich would have swallowed [v2]"
    assert "…" not in left.stdout
    assert re.search(r"verdict: (ship|hold|reject) \(", left.stdout)
    assert "passed    size_ratio: The student's weights take" in left.stdout


def test_a_log_is_plain_lines_and_nothing_of_the_libraries(finished: Any) -> None:
    """A reader of the log looks for the run's own lines; a library's warning on each of them hides a real one."""
    _, left = finished
    first, *lines = left.stderr.splitlines()
    assert first.startswith("three blobs [v2]: kd, scratch, label_smoothing with 2 seeds, into runs/")
    names = [f"{arm}, seed {seed}" for arm in ("kd", "scratch", "label_smoothing") for seed in (0, 1)]
    expected = [f"[{number}/7] {name}" for number, name in enumerate(["teacher", *names], start=1)]
    assert [line.split(":")[0] for line in lines] == expected
    for line in lines:
        assert re.fullmatch(r"\[\d/7\] [\w ,]+: test accuracy \d+\.\d% after \d+ steps, \d+ s", line)
    assert "\x1b" not in left.stderr + left.stdout


def test_the_same_command_again_trains_nothing(finished: Any, monkeypatch: pytest.MonkeyPatch, tutelage: Any) -> None:
    folder, _ = finished
    monkeypatch.chdir(folder)
    before = json.loads((folder / "runs" / folder.name / "result.json").read_text())
    left = tutelage("run", "config.yaml")
    assert left.code == 0
    assert left.err.count("done in an earlier run") == 7
    after = json.loads((folder / "runs" / folder.name / "result.json").read_text())
    assert after["arms"] == before["arms"]
    assert after["comparisons"] == before["comparisons"]


def test_the_written_config_reads_back_as_the_one_that_ran(finished: Any) -> None:
    folder, _ = finished
    assert load_config(folder / "runs" / folder.name / "config.yaml") == load_config(folder / "config.yaml")


def weights_and_metrics(run: Path) -> tuple[dict[str, bytes], Any, Any]:
    weights = {str(path.relative_to(run)): path.read_bytes() for path in sorted(run.rglob("*.safetensors"))}
    result = json.loads((run / "result.json").read_text())
    arms = {
        name: {**arm, "seeds": [{**row, "seconds": None} for row in arm["seeds"]]}
        for name, arm in result["arms"].items()
    }
    return weights, arms, result["comparisons"]


# 150 examples leave 75 to train on: 10 steps of 8 an epoch, 30 for each arm and seed; one by one, since trying a stack takes steps too
@pytest.mark.parametrize("deaths", [[47], pytest.param([1, 9, 30, 31, 100, 2, 17], marks=pytest.mark.slow)])
def test_a_run_killed_in_mid_study_ends_as_if_nothing_had_happened(
    finished: Any, tmp_path: Path, deaths: list[int]
) -> None:
    write_project(tmp_path)
    for step in deaths:
        left = console("run", "config.yaml", "--out", "run", cwd=tmp_path, DIE_AT=str(step))
        assert left.returncode == -signal.SIGKILL, left.stderr
    assert not (tmp_path / "run" / "result.json").exists()
    left = console("run", "config.yaml", "--out", "run", cwd=tmp_path)
    assert left.returncode == 0, left.stderr
    if deaths == [47]:
        assert "[3/7] kd, seed 1: goes on at step 15 of 30" in left.stderr
    folder, _ = finished
    assert weights_and_metrics(tmp_path / "run") == weights_and_metrics(folder / "runs" / folder.name)
    assert not list((tmp_path / "run").rglob("checkpoint*"))


def test_ctrl_c_says_how_to_go_on(project: Path) -> None:
    left = console("run", "config.yaml", cwd=project, INTERRUPT="1")
    assert left.returncode == 130
    assert left.stderr.splitlines()[-1] == "stopped; the same command goes on from the last checkpoint"
    assert "Traceback" not in left.stderr


def test_a_terminal_shows_a_bar_and_colours(project: Path) -> None:
    pty = pytest.importorskip("pty")
    leader, follower = pty.openpty()
    environment = {**os.environ, "TERM": "xterm-256color", "COLUMNS": "80"}
    words = ["run", "config.yaml", "--set", "study.seeds=1", "--set", "study.arms=[kd]"]
    terminal = Path(os.ttyname(follower))
    process = begun(cli.main, *words, out=terminal, err=terminal, environment=environment)
    said = b""
    while process.is_alive() or select.select([leader], [], [], 0)[0]:
        if select.select([leader], [], [], 0.1)[0]:
            said += os.read(leader, 4096)
    os.close(follower)
    os.close(leader)
    assert process.exitcode == 0, said.decode()
    assert "━" in said.decode()
    assert "[2/2] kd, seed 0" in said.decode()
    assert "\x1b[1;33mhold" in said.decode()


def result_with(*names: str) -> dict[str, Any]:
    arm = {
        "mean": {"accuracy": 1.0, "nll": 12.345, "ece": 0.123, "agreement": 1.0},
        "ci95": {"accuracy": [1.0, 1.0]},
        "seeds": [{}] * 5,
    }
    verdict = {"decision": "hold", "gates": [{"name": "ece", "passed": None, "why": "One [seed]."}]}
    arms = {"teacher": arm, "kd": arm} | dict.fromkeys(names, arm)
    return {"title": "t" * 100, "arms": arms, "splits": {"test": 10000}, "seconds": 4000.0, "verdict": verdict}


@pytest.mark.parametrize("columns", [64, 80, 120])
def test_the_table_cuts_nothing_at_any_width(
    columns: int, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setenv("COLUMNS", str(columns))
    long = "a_method_whose_name_is_long_enough_to_need_two_lines"
    summaries.summarise(result_with("scratch", "label_smoothing", long))
    shown = capsys.readouterr().out
    assert "…" not in shown
    table = [line for line in shown.splitlines() if "% to" in line]
    assert all(cell_len(line) <= columns for line in table)
    assert len(table) == 5
    for line in table:
        assert "12.345" in line
        assert "100.0% to 100.0%" in line
    if columns >= 80:
        assert "label_smoothing" in shown
    assert long in "".join(line.split()[0] for line in shown.splitlines() if line.strip())
    assert "1 h 06 min" in shown
    assert "One [seed]." in shown


# The other commands


def test_init_then_run_works_in_an_empty_folder(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, tutelage: Any) -> None:
    monkeypatch.chdir(tmp_path)
    left = tutelage("init")
    assert left.code == 0
    assert sorted(path.name for path in tmp_path.iterdir()) == ["all-labels.yaml", "config.yaml", "models.py"]
    assert "now: tutelage run config.yaml" in left.out
    short = ["study.seeds=1", "study.arms=[kd]", "training.max_steps=3", "teacher.training.max_steps=3"]
    left = tutelage("run", "config.yaml", *sets(*short, "gates.gain_over_scratch=null"))
    assert left.code == 0, left.err
    assert (tmp_path / "runs" / tmp_path.name / "report.html").is_file()


def test_init_overwrites_nothing_unless_told(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, tutelage: Any) -> None:
    monkeypatch.chdir(tmp_path)
    (tmp_path / "models.py").write_text("mine = 1")
    left = tutelage("init")
    assert left.code == 2
    assert is_one_message(left)
    assert "models.py would be overwritten" in left.err
    assert [path.name for path in tmp_path.iterdir()] == ["models.py"]
    assert (tmp_path / "models.py").read_text() == "mine = 1"
    assert tutelage("init", "--force").code == 0
    assert (tmp_path / "models.py").read_text() == (EXAMPLES / "models.py").read_text()


def test_an_unknown_template_is_named_with_those_there_are(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, tutelage: Any
) -> None:
    monkeypatch.chdir(tmp_path)
    left = tutelage("init", "digit")
    assert (left.code, left.err) == (
        2,
        "error: there is no template 'digit'; there are digits, fashion_mnist, language_model\n",
    )
    told = tutelage("init", "--help").out
    assert all(template in told for template in ("digits", "fashion_mnist", "language_model"))


def test_report_makes_the_page_anew(finished: Any, tmp_path: Path, tutelage: Any) -> None:
    folder, _ = finished
    run = tmp_path / "copy"
    shutil.copytree(folder / "runs" / folder.name, run)
    page = (run / "report.html").read_text()
    (run / "report.html").unlink()
    left = tutelage("report", str(run))
    assert (left.code, left.out) == (0, f"page: {run}/report.html\n")
    assert (run / "report.html").read_text() == page


@pytest.mark.parametrize("content", [None, "", "{", "[]", '{"arms": {}}', "NaN"])
def test_report_on_what_is_no_run_is_one_message(tmp_path: Path, tutelage: Any, content: str | None) -> None:
    if content is not None:
        (tmp_path / "result.json").write_text(content)
    left = tutelage("report", str(tmp_path))
    assert left.code == 2
    assert is_one_message(left)
    assert "tutelage run" in left.err
    assert not (tmp_path / "report.html").exists()


@pytest.mark.parametrize(
    "words", [["run"], ["fly"], ["run", "config.yaml", "--bogus"], ["run", "config.yaml", "--set"], ["report"]]
)
def test_misuse_of_the_command_line_is_exit_code_2(tutelage: Any, words: list[str]) -> None:
    left = tutelage(*words)
    assert left.code == 2
    assert "Error" in left.err
    assert "Traceback" not in left.err


def test_version_and_help(tutelage: Any) -> None:
    assert re.fullmatch(r"tutelage \d+\.\d+\.\d+\n", tutelage("--version").out)
    shown = tutelage("--help").out
    for command in ("init", "run", "report"):
        assert command in shown


# Mistakes, each one message


@pytest.mark.parametrize(
    ("settings", "said"),
    [
        (
            ["student.model.python=models.py:studnet"],
            "student.model: .*models.py has no 'studnet'; did you mean 'student'?",
        ),
        (["student.model.python=model.py:student"], "there is no file .*; beside it: models.py"),
        (["student.model.python=torch.nn.Linear"], "expected 'file.py:function'"),
        (["student.model={}"], "student.model: a model needs exactly one of"),
        (["student.model.python=models.py:number"], "is a int, expected a function"),
        (["student.model.arguments={width: 3}"], "student.model: .*cannot be called with arguments"),
        (["student.model.python=models.py:narrow"], "the student does not take its view of the data"),
        (
            ["student.model.python=models.py:two_classes"],
            "the student has 2 classes, the teacher has 3 classes, and the data 3",
        ),
        (["teacher.model.python=models.py:two_classes"], "the teacher has 2 classes"),
        (
            ["student.model.python=models.py:broken"],
            r"models\.py, line \d+, in broken: RuntimeError: no such cat; mend it",
        ),
        (["teacher.model.checkpoint=none.safetensors"], "teacher.model: checkpoint .*none.safetensors does not exist"),
        (["teacher.model={hub: nowhere/at-all}"], "teacher.model: 'hub: nowhere/at-all' could not be loaded"),
        (["teacher.training=null"], "makes other weights from another seed, so they are not trained ones"),
        (["data.python=models.py:no_data"], "the function returned a NoneType, expected a TransferSet"),
        (["data.python=models.py:shaky"], "data.python: 'models.py:shaky' will be called with no arguments"),
        (["data.source=spreadsheet"], "unknown data source 'spreadsheet'"),
        (["data={source: idx, path: nowhere}"], "nowhere is not a folder"),
        (["data={source: idx}"], "needs the key 'path'"),
        (["data={source: parquet, path: a.parquet, inputs: x}"], "no file matches"),
        (["data.splits.test=null"], "data.splits.test is missing"),
        (["data.splits.test=0.9"], "below 1 together"),
        (["data.labelled=1000"], "asks for more labels than"),
        (["data.labelled=0"], "none of the .* examples of the transfer set has a label"),
        (["data.views.student=[normalize]"], "data.views.student: unknown view 'normalize'; did you mean 'normalise'?"),
        (
            ["data.views.student=[{normalise: {mean: 0, sdt: 1}}]"],
            "normalise: unknown option 'sdt'; did you mean 'std'?",
        ),
        (["data.views.student=[{normalise: {mean: 0}}]"], "data.views.student.normalise: .*missing"),
        (["data.views.student=[{normalise: {mean: 0, std: 0}}]"], "data.views.student.normalise: .*std is 0"),
        (["data.views.student=[normalise]"], "missing .*it takes mean, std"),
        (["data.views.student=[{normalise: 3}]"], "expected its options as a mapping"),
        (["data.views.student=[{a: {}, b: {}}]"], "has 2 keys, expected one view"),
        (
            ["data.augment=[{python: models.py:student}]"],
            r"data.augment.python: .* will be called with \(inputs, draws\)",
        ),
        (["objective.0.temperature=0"], r"error: config\.yaml: objective\.0: .*temperature"),
        (["objective.0.temperature=-4"], r"objective\.0: .*temperature"),
        (["objective.0.temperature=hot"], r"objective\.0: .*'hot'"),
        (["objective.1.weight=-1"], r"objective\.1: .*weight"),
        (["objective.0.weight=0", "objective.1.weight=0"], "all weights are zero"),
        (["objective.0.term=lk"], "unknown term 'lk'"),
        (["objective.0.temprature=1"], "'temprature' .*'temperature'"),
        (["objective=[]"], "objective is .*expected at least one item"),
        (["study.arms=[kd, scrach]"], "arms are .*expected 'kd'"),
        (["study.arms=[kd, {hot: [{term: kl, temperature: 0}]}]"], r"study.arms, 'hot': objective\.0"),
        (
            ["study.arms=[kd, {hot: [{term: kl}]}, {hot: [{term: kl}]}]"],
            r"config\.yaml: study\.arms: 'hot' is there twice",
        ),
        (["study.arms=[kd, {a: [{term: kl}], b: [{term: kl}]}]"], "has 2 names"),
        (["study.arms=[kd, {a/b: [{term: kl}]}]"], "it names a folder too"),
        (["gates.accuracy_drop_vs_teacher=3"], r"it is a fraction: .*write 0\.03"),
        (["gates.ece=-1"], "no student could pass it"),
        (["training.lr_scheduler_type=zigzag"], "training: .*zigzag"),
        (["training.seed=3"], "training.seed is the study's to set"),
        (["teacher.allow_masked_classes=true"], "leave it out of one that this run trains"),
        (["training.per_device_train_batch_size=0"], "is 0, expected at least 1"),
        (["techer.seed=1"], "unknown key 'techer'; did you mean 'teacher'?"),
    ],
)
def test_a_mistake_in_a_config_is_one_message_before_anything_is_trained(
    project: Path, tutelage: Any, monkeypatch: pytest.MonkeyPatch, settings: list[str], said: str
) -> None:
    monkeypatch.setattr(huggingface_hub.constants, "HF_HUB_OFFLINE", True)
    left = tutelage("run", "config.yaml", *sets(*settings))
    assert left.code == 2, left.err
    *before, message = re.split(r"(?=error: )", left.err, maxsplit=1)
    assert "Traceback" not in left.err
    assert re.search(said, message), message
    assert "[1/" not in "".join(before)
    assert not list(project.rglob("record.json"))


@pytest.mark.parametrize(
    ("text", "said"),
    [
        ("raise KeyError('cat')", "could not be imported: KeyError: 'cat'"),
        ("def student(:", "could not be imported: SyntaxError"),
    ],
)
def test_a_file_that_cannot_be_imported_is_one_message(project: Path, tutelage: Any, text: str, said: str) -> None:
    (project / "models.py").write_text(text)
    left = tutelage("run", "config.yaml")
    assert left.code == 2
    assert is_one_message(left)
    assert said in left.err


def test_a_model_that_fails_in_training_is_told_by_its_line(project: Path, tutelage: Any) -> None:
    broken = MODELS.replace(
        "        return self.layers(inputs)", "        return self.layers(inputs) if not self.training else {}['x']"
    )
    (project / "models.py").write_text(broken)
    left = tutelage("run", "config.yaml")
    assert left.code == 2
    assert "Traceback" not in left.err
    assert re.search(r"error: .*models\.py, line \d+, in forward: KeyError: 'x'", left.err)


def test_a_fault_of_our_own_is_not_dressed_up_as_the_users(project: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Hidden behind a message and exit code 2, it would be taken for a mistake in the config."""
    from tutelage.studies import Study

    def fail(*_: Any) -> None:
        raise AssertionError("ours")

    monkeypatch.setattr(Study, "run", fail)
    monkeypatch.setattr(sys, "argv", ["tutelage", "run", "config.yaml"])
    with pytest.raises(AssertionError, match="ours"):
        cli.main()


@pytest.mark.parametrize("name", ["confg.yaml", ".", "empty.yaml", "binary.yaml", "list.yaml", "twice.yaml"])
def test_what_is_no_config_is_one_message(project: Path, name: str) -> None:
    (project / "empty.yaml").write_text("")
    (project / "binary.yaml").write_bytes(b"\x89PNG\xff\x00")
    (project / "list.yaml").write_text("- a")
    (project / "twice.yaml").write_text("data: {}\ndata: {}\n")
    left = console("run", name, cwd=project)
    assert left.returncode == 2
    assert left.stdout == ""
    assert len(left.stderr.splitlines()) == 1
    assert left.stderr.startswith("error: ")


def test_out_must_be_a_folder_of_its_own(project: Path, tutelage: Any) -> None:
    """Into its own folder, a run would replace the user's config, comments and all, with a resolved copy."""
    left = tutelage("run", "config.yaml", "--out", ".")
    assert left.code == 2
    assert "is the config's own folder" in left.err
    assert (project / "config.yaml").read_text() == CONFIG
    (project / "file").write_text("")
    left = tutelage("run", "config.yaml", "--out", "file")
    assert left.code == 2
    assert "the output folder file is a file" in left.err
    assert "[1/" not in left.err


def test_a_changed_config_is_refused_in_the_configs_words(project: Path, tutelage: Any) -> None:
    short = ["--set", "study.seeds=1", "--set", "study.arms=[kd]", "--out", "run"]
    assert tutelage("run", "config.yaml", *short).code == 0
    for setting, said in (
        ("training.learning_rate=0.1", "learning_rate: 0.05 in the checkpoint, 0.1 now"),
        ("data.labelled=30", "data.labelled: None in the checkpoint, 30 now"),
        ("data.seed=3", "data.seed: 0 in the checkpoint, 3 now"),
        ("student.model.python=models.py:frozen", "student.model.python: 'models.py:student' in the checkpoint"),
        ("objective.0.temperature=3", "objective: "),
    ):
        left = tutelage("run", "config.yaml", *short, "--set", setting)
        assert left.code == 2
        assert said in left.err, left.err
        assert "start anew in another folder" in left.err
    (project / "models.py").write_text(MODELS.replace("0.2", "0.3"))
    assert "contents of models.py" in tutelage("run", "config.yaml", *short).err


def test_a_view_from_the_users_file_does_not_hinder_going_on(project: Path, tutelage: Any) -> None:
    """A function shows its address in memory, which differs in each session: no run with it could ever be resumed."""
    words = ["run", "config.yaml", "--out", "run", "--set", "study.seeds=1", "--set", "study.arms=[kd]"]
    words += ["--set", "data.augment=[{python: models.py:shaky}]"]
    assert tutelage(*words).code == 0
    left = console(*words, cwd=project)
    assert left.returncode == 0, left.stderr
    assert left.stderr.count("done in an earlier run") == 2


def test_a_given_trained_teacher_is_used_as_it_is(project: Path, tutelage: Any) -> None:
    settings = ["teacher={model: {python: 'models.py:frozen'}}", "study.seeds=1", "study.arms=[kd]"]
    left = tutelage("run", "config.yaml", "--out", "run", *sets(*settings))
    assert left.code == 0, left.err
    assert not (project / "run" / "teacher").exists()
    assert json.loads((project / "run" / "result.json").read_text())["arms"]["teacher"]["mean"]["accuracy"] > 0.7


def test_per_example_views_and_gates_switched_off_go_through(project: Path, tutelage: Any) -> None:
    with (project / "models.py").open("a") as file:
        file.write("\n\ndef double(example):\n    return 2 * example\n")
    settings = ["data.views.teacher=[{per_example: 'models.py:double'}]", "study.seeds=1", "study.arms=[kd]"]
    settings += ["gates={accuracy_drop_vs_teacher: null, gain_over_scratch: null}"]
    left = tutelage("run", "config.yaml", "--out", "run", *sets(*settings))
    assert left.code == 0, left.err
    assert json.loads((project / "run" / "result.json").read_text())["verdict"] == {"decision": "hold", "gates": []}
    assert load_config(project / "run" / "config.yaml").gates.gain_over_scratch is None


def test_what_is_put_between_layers_is_said_once(capsys: pytest.CaptureFixture[str]) -> None:
    """A projector that nobody hears of is a part of the model that nobody chose; said by each of 30 students it hides the rest."""
    import logging

    from tutelage.cli.watching import Watcher

    layers = logging.getLogger("tutelage.training.listening")
    with Watcher(1):
        for _ in range(3):
            layers.info("%s: %s", "hint", "a 1×1 convolution, 16 → 64 channels")
    layers.info("after")
    assert capsys.readouterr().err == "hint: a 1×1 convolution, 16 → 64 channels\n"
