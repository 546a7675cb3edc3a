"""A sweep: validation alone chooses, nothing is done twice, and what was cut off goes on as if it had not been."""

from __future__ import annotations

import json
import sys
import time
from dataclasses import replace
from datetime import timedelta
from pathlib import Path
from typing import Any

import numpy as np
import optuna
import pytest
from optuna.storages._rdb import models
from sweeps import GRID, RANGES, Listening, Make, base, found, search
from tiny import CLASSES, WIDTH, CountingTeacher, good_teacher, splits, student, without_labels
from torch import Tensor, nn

from tutelage import KL, TransferSet
from tutelage.errors import ConfigError, MissingExtraError, TutelageError
from tutelage.evaluation import crossed_interval
from tutelage.models.saving import load_student
from tutelage.studies.arm import ArmPlan, ArmRun, predict
from tutelage.studies.sweeping import run_sweep
from tutelage.studies.sweeping import work as sweeping_work
from tutelage.studies.sweeping.board import Board, Trial, hold
from tutelage.studies.sweeping.record import importance
from tutelage.studies.sweeping.space import Choices, Range, suggest
from tutelage.studies.together import run_all


def entry(number: int, params: dict[str, Any], accuracy: float, nll: float = 1.0) -> Trial:
    record: dict[str, Any] = {"seeds": [], "mean": {"accuracy": accuracy, "nll": nll}, "ci95": {}}
    return Trial(number, number + 1, params, "complete", None, record, None, False)


@pytest.fixture
def no_winner(monkeypatch: pytest.MonkeyPatch) -> None:
    """The winner's run is judged elsewhere, and takes longer than the trials."""
    monkeypatch.setattr("tutelage.studies.sweeping.sweep._run_winner", lambda *_: None)


@pytest.fixture(scope="module")
def undisturbed(tmp_path_factory: pytest.TempPathFactory) -> tuple[Path, dict[str, Any], Listening]:
    """A grid, run at once."""
    folder, listening = tmp_path_factory.mktemp("sweep"), Listening()
    return folder, run_sweep(search(), folder, listening), listening


def test_a_grid_is_tried_whole_and_judged_on_the_validation_split(
    undisturbed: tuple[Path, dict[str, Any], Listening],
) -> None:
    """Were a trial judged on other examples, or its intervals on other scores, the page would be right about something else."""
    folder, result, listening = undisturbed
    assert [trial["params"] for trial in result["trials"]] == [
        {"temperature": T, "weight": w} for T in (1.0, 4.0) for w in (0.5, 0.9)
    ]
    held_out = splits().validation
    labels = held_out.known_labels.numpy()
    seeds = sorted((folder / "trials").glob("*/seed-0"))
    assert len(seeds) == 4
    accuracies = []
    for path in seeds:
        right = [
            predict(load_student(student(), path.with_name(f"seed-{seed}")), held_out).numpy().argmax(1) == labels
            for seed in (0, 1)
        ]
        estimate = crossed_interval(np.stack(right).astype(float))
        accuracies.append((estimate.mean, estimate.low, estimate.high))
    told = [(trial["mean"]["accuracy"], *trial["ci95"]["accuracy"]) for trial in result["trials"]]
    np.testing.assert_allclose(sorted(told), sorted(accuracies))
    assert result["best"] == min(
        range(4), key=lambda n: (-result["trials"][n]["mean"]["accuracy"], result["trials"][n]["mean"]["nll"], n)
    )
    assert result["scratch"]["seeds"][0]["metrics"]["accuracy"] <= 1.0
    assert (result["importance"], result["classes"], result["search"]["sampler"]) == (None, CLASSES, "grid")
    assert json.loads((folder / "sweep.json").read_text()) == result
    assert len(listening.trained) == len(set(listening.trained)) == (4 + 1) * 2 + 1


def test_the_winner_is_run_whole_with_its_values(undisturbed: tuple[Path, dict[str, Any], Listening]) -> None:
    """If the winner's run had the base's values, everything on its page would be about a configuration nobody chose."""
    folder, result, _ = undisturbed
    run = json.loads((folder / "winner" / "result.json").read_text())
    params = result["trials"][result["best"]]["params"]
    assert result["winner"]["params"] == params
    assert {term["term"]: term for term in run["objective"]}["kl"]["temperature"] == params["temperature"]
    assert result["winner"]["accuracy"] == run["arms"]["kd"]["mean"]["accuracy"]
    assert run["splits"]["test"] == len(splits().test)


def test_a_finished_sweep_trains_nothing_again(undisturbed: tuple[Path, dict[str, Any], Listening]) -> None:
    """The same command is what one gives after a power cut, finished or not."""
    folder, result, _ = undisturbed
    listening = Listening()
    again = run_sweep(search(), folder, listening)
    assert listening.trained == []
    assert found(again) == found(result)
    assert (again["started"], again["scratch"], again["winner"]) == (
        result["started"],
        result["scratch"],
        result["winner"],
    )


@pytest.mark.usefixtures("no_winner")
@pytest.mark.parametrize("space", [GRID, RANGES], ids=["grid", "ranges"])
def test_cut_off_anywhere_it_ends_as_if_it_had_not_been(tmp_path: Path, space: dict[str, Any]) -> None:
    """A search whose next suggestion depends on when it was cut off cannot be made again, and trains points it never asks for."""
    options = {"seeds": (0,)} if space is GRID else {"seeds": (0,), "trials": 4, "batch": 2}
    whole = run_sweep(search(space, **options), tmp_path / "whole")
    names: list[str] = []
    for stop in (2, 3):
        cut = Listening(stop_after=stop)
        with pytest.raises(KeyboardInterrupt):
            run_sweep(search(space, **options), tmp_path / "cut", cut)
        names += cut.trained
    rest = Listening()
    result = run_sweep(search(space, **options), tmp_path / "cut", rest)
    names += rest.trained
    assert [trial["params"] for trial in result["trials"]] == [trial["params"] for trial in whole["trials"]]
    for one, other in zip(result["trials"], whole["trials"], strict=True):
        assert one["mean"] == pytest.approx(other["mean"], rel=1e-5)
    assert len(names) == len(set(names)) == 4 + 1


def test_the_test_split_is_met_by_the_winner_alone(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """A configuration chosen on the test split makes every number of it too good."""
    whole = splits()
    asked: list[str] = []
    batch = TransferSet.batch

    def spy(self: TransferSet, rows: Tensor, epoch: int = 0) -> Any:
        if self.ids is whole.test.ids:
            asked.append("test")
        return batch(self, rows, epoch)

    monkeypatch.setattr(TransferSet, "batch", spy)
    monkeypatch.setattr("tutelage.studies.sweeping.sweep._run_winner", lambda *_: asked.append("winner"))
    run_sweep(search({"weight": GRID["weight"]}, make=Make(base(splits=whole)), seeds=(0,)), tmp_path)
    assert asked == ["winner"]


@pytest.mark.usefixtures("no_winner")
def test_the_teacher_is_asked_once_for_all_trials(tmp_path: Path) -> None:
    """A sweep of thirty students that asks its teacher thirty times pays for the teacher and not for the students."""
    teacher = CountingTeacher(good_teacher())
    run_sweep(search({"temperature": GRID["temperature"]}, make=Make(base(teacher=teacher))), tmp_path)
    whole = [ids for ids in teacher.asked if len(ids) == len(splits().train)]
    assert len(whole) == 1
    assert sum(len(ids) for ids in teacher.asked) < 2 * len(splits().train)


@pytest.mark.usefixtures("no_winner")
def test_an_added_choice_trains_its_own_points_alone(tmp_path: Path) -> None:
    """Who adds a temperature to a finished sweep means that one temperature."""
    space = {"temperature": Choices((1.0, 4.0))}
    run_sweep(search(space, seeds=(0,)), tmp_path)
    listening = Listening()
    result = run_sweep(search({"temperature": Choices((1.0, 2.0, 4.0))}, seeds=(0,)), tmp_path, listening)
    ours = [what for what in listening.trained if what.startswith("trial")]
    assert ours == ["trial 1 (temperature 2.0), seed 0"]
    assert [trial["params"]["temperature"] for trial in result["trials"]] == [1.0, 2.0, 4.0]
    assert all(trial["state"] == "complete" for trial in result["trials"])


def test_the_winner_of_another_search_is_set_aside_and_brought_back(tmp_path: Path) -> None:
    """Two winners in one folder would refuse each other's settings, or one be reported under the other's name."""
    first, second = {"temperature": Choices((1.0,))}, {"temperature": Choices((4.0,))}
    run_sweep(search(first, seeds=(0,)), tmp_path)
    run_sweep(search(second, seeds=(0,)), tmp_path)
    assert len(list(tmp_path.glob("winner-*"))) == 1
    listening = Listening()
    result = run_sweep(search(first, seeds=(0,)), tmp_path, listening)
    assert listening.trained == []
    assert result["winner"]["params"] == {"temperature": 1.0}


class Fragile(nn.Module):
    """Fails in training while it is told to."""

    failing = False

    def __init__(self) -> None:
        super().__init__()
        self.layer = nn.Linear(WIDTH, CLASSES)

    def forward(self, inputs: Tensor) -> Tensor:
        if self.training and Fragile.failing:
            raise RuntimeError("the disk of the moment is full")
        return self.layer(inputs)


@pytest.mark.usefixtures("no_winner")
def test_a_trial_that_diverges_is_told_and_not_tried_again(tmp_path: Path) -> None:
    """One learning rate too high must not end the sweep, nor be tried anew at every command."""
    space = {"learning_rate": Choices((0.05, 1e38))}
    result = run_sweep(search(space, seeds=(0,)), tmp_path)
    good, bad = result["trials"]
    assert (good["state"], bad["state"], bad["mean"]) == ("complete", "failed", {})
    assert "NonFiniteError" in bad["error"]
    assert result["best"] == 0
    listening = Listening()
    run_sweep(search(space, seeds=(0,)), tmp_path, listening)
    assert listening.trained == []


@pytest.mark.usefixtures("no_winner")
def test_the_others_go_on_together_where_one_diverges(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """A search of learning rates diverges at its end as a rule: one such trial must not cost the others their stack."""
    asked: list[int] = []

    def counting(plans: list[ArmPlan], *rest: Any) -> list[ArmRun]:
        asked.append(len(plans))
        return run_all(plans, *rest)

    monkeypatch.setattr(sweeping_work, "run_all", counting)
    result = run_sweep(search({"learning_rate": Choices((0.05, 1e38, 0.02))}, seeds=(0,)), tmp_path)
    assert [trial["state"] for trial in result["trials"]] == ["complete", "failed", "complete"]
    assert asked == [4, 3], "three trials and the line without a teacher, then the same without the one that diverged"


@pytest.mark.usefixtures("no_winner")
def test_a_line_that_failed_for_no_fault_of_its_own_is_tried_again(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """A full memory once would leave every later page of the sweep without what its trials are held against."""
    asked = search({"temperature": Choices((1.0,))}, make=Make(base(student=Fragile)), seeds=(0,))
    monkeypatch.setattr(Fragile, "failing", True)
    with pytest.raises(TutelageError):
        run_sweep(asked, tmp_path)
    record = json.loads((tmp_path / "sweep.json").read_text())
    assert (record["scratch"], "the disk of the moment" in record["scratch_error"]) == (None, True)
    monkeypatch.setattr(Fragile, "failing", False)
    result = run_sweep(asked, tmp_path)
    assert result["scratch"]["mean"]["accuracy"] > 0
    assert result["scratch_error"] is None


@pytest.mark.usefixtures("no_winner")
def test_a_trial_that_failed_for_no_fault_of_its_own_is_tried_again(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """A sweep that remembers yesterday's full memory for ever leaves holes that the same command never fills."""
    asked = search({"temperature": Choices((1.0, 2.0))}, make=Make(base(student=Fragile)), seeds=(0,))
    monkeypatch.setattr(Fragile, "failing", True)
    with pytest.raises(
        TutelageError, match=r"none of the 2 trials could be finished; the first: RuntimeError: the disk"
    ):
        run_sweep(asked, tmp_path)
    monkeypatch.setattr(Fragile, "failing", False)
    result = run_sweep(asked, tmp_path)
    assert [(trial["number"], trial["state"], trial["error"]) for trial in result["trials"]] == [
        (0, "complete", None),
        (1, "complete", None),
    ]


def test_without_labels_there_is_no_line_and_no_error(tmp_path: Path) -> None:
    """The student without a teacher would learn nothing from no labels; the sweep needs none."""
    unlabelled = base(splits=without_labels(splits()), objective=KL(temperature=1.0))
    make = Make(unlabelled)
    asked = search({"temperature": Choices((1.0, 2.0))}, make=lambda p: _soft_alone(make, p), seeds=(0,))
    result = run_sweep(asked, tmp_path)
    assert result["scratch"] is None
    assert result["winner"]["decision"] == "hold"


def _soft_alone(make: Make, params: dict[str, Any]) -> Any:
    candidate = make(params)
    soft = replace(candidate.study, objective=KL(temperature=params.get("temperature", 1.0)))
    return replace(candidate, study=soft)


def test_what_is_chosen() -> None:
    """With the direction mistaken, the worst configuration would be shipped; with ties left to chance, another one each time."""
    trials = [entry(0, {}, 0.9, 0.5), entry(1, {}, 0.9, 0.4), entry(2, {}, 0.8, 0.1), entry(3, {}, 0.9, 0.4)]
    failed = Trial(4, 5, {}, "failed", None, None, "no", False)
    by_accuracy, by_nll = search(), search(metric="nll")
    assert by_accuracy.best([*trials, failed]) is trials[1]
    assert by_nll.best([*trials, failed]) is trials[2]
    assert by_accuracy.best([failed]) is None


def test_importance_finds_the_key_that_matters_and_is_silent_where_it_knows_nothing() -> None:
    """An importance drawn from four trials, or shared among keys that never varied, would be believed."""
    space = {"temperature": Choices((1.0, 2.0, 4.0, 8.0)), "weight": Choices((0.1, 0.5, 0.9))}
    asked = search(space)
    trials = [
        entry(4 * j + i, {"temperature": T, "weight": w}, 0.9 - 0.05 * i + 0.001 * j)
        for i, T in enumerate((1.0, 2.0, 4.0, 8.0))
        for j, w in enumerate((0.1, 0.5, 0.9))
    ]
    shares = importance(asked, trials)
    assert shares is not None
    assert list(shares) == ["temperature", "weight"]
    assert shares["temperature"] > 0.9
    assert sum(shares.values()) == pytest.approx(1.0)
    assert importance(asked, trials[:7]) is None
    assert importance(asked, [entry(n, t.params, 0.5) for n, t in enumerate(trials)]) is None
    alone = search({"temperature": space["temperature"]})
    assert importance(alone, [entry(n, {"temperature": 1.0}, n / 10) for n in range(9)]) is None


@pytest.mark.parametrize(
    ("options", "said"),
    [
        ({"space": {}}, "search.space is empty"),
        ({"space": GRID, "trials": 3}, "a grid is tried whole, here 4 trials"),
        ({"space": RANGES}, "search.trials is missing: temperature is a range"),
        ({"space": {"n": Range(1, 3, integer=True)}, "trials": 4}, "the space has 3 points"),
        ({"space": GRID, "seeds": (1, 1)}, "each once"),
    ],
)
def test_searches_that_cannot_be_meant(options: dict[str, Any], said: str) -> None:
    """Each would run for hours and find out at its end, or never."""
    with pytest.raises(ConfigError, match=said):
        search(**options)


def test_every_value_is_checked_before_the_first_trial(tmp_path: Path) -> None:
    """A temperature of 0 in the last place of a grid would cost all the trials before it."""
    with pytest.raises(TutelageError, match=r"search.space, temperature = 0\.0: .*temperature"):
        run_sweep(search({"weight": Choices((0.5, 0.9)), "temperature": Choices((1.0, 0.0))}), tmp_path / "a")
    with pytest.raises(TutelageError, match=r"search.space, temperature = 0\.0: "):
        run_sweep(search({"weight": Choices((0.5, 0.9)), "temperature": Choices((0.0, 1.0))}), tmp_path / "b")
    assert not list(tmp_path.glob("*/trials"))
    assert not list(tmp_path.glob("*/study.db"))


def test_trials_are_judged_on_the_same_examples(tmp_path: Path) -> None:
    """Two accuracies on two validation splits are no comparison, and nothing on a page would show it."""
    make = Make()

    def moving(params: dict[str, Any]) -> Any:
        candidate = make({})
        if params.get("split", 0) == 0:
            return candidate
        other = splits()
        moved = replace(other, validation=other.test, test=other.validation)
        return replace(candidate, study=replace(candidate.study, splits=moved))

    with pytest.raises(ConfigError, match="split 1 changes the validation split"):
        run_sweep(search({"split": Choices((0, 1))}, make=moving), tmp_path)


def test_a_round_that_was_cut_off_is_filled_up_as_it_would_have_been(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Half a round of suggestions, filled up with other ones, is another search from there on."""
    asked = search(RANGES, trials=4, batch=4)
    boards = [Board(f"sqlite:///{tmp_path / name}.db", asked.name, asked.space, asked.direction) for name in "ab"]
    asked.top_up(boards[0])
    add, added = Board.add, []

    def dies(self: Board, number: int, params: Any) -> None:
        if number == 2 and not added:
            added.append(number)
            raise KeyboardInterrupt
        add(self, number, params)

    monkeypatch.setattr(Board, "add", dies)
    with pytest.raises(KeyboardInterrupt):
        asked.top_up(boards[1])
    known: list[int] = []

    def spying(space: Any, settled: Any, waiting: Any, *rest: Any) -> Any:
        known.append(len(waiting))
        return suggest(space, settled, waiting, *rest)

    monkeypatch.setattr("tutelage.studies.sweeping.search.suggest", spying)
    asked.top_up(boards[1])
    assert known == [2, 3], "points of one batch avoid those of it that were suggested before the cut"
    told = [[(trial.number, trial.params, trial.state) for trial in board.trials()] for board in boards]
    assert told[0] == told[1]
    assert len(told[0]) == 4
    for board in boards:
        board.close()


def test_a_trial_of_a_silent_machine_is_taken_up_and_of_a_living_one_is_not(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Some shared file systems do not carry locks between machines: without the heartbeat two would train in one folder."""
    asked = search({"temperature": Choices((1.0,))})
    board = Board(f"sqlite:///{tmp_path / 'study.db'}", asked.name, asked.space, asked.direction)
    asked.top_up(board)
    here = sweeping_work.this_worker()
    monkeypatch.setattr("tutelage.studies.sweeping.board.this_worker", lambda: {"host": "elsewhere", "pid": 1})
    board.take(board.trials()[0])
    monkeypatch.setattr("tutelage.studies.sweeping.board.this_worker", lambda: here)
    board.note(sweeping_work.SCRATCH, {})
    take = sweeping_work._take
    assert take(asked, board, tmp_path, 1) == []
    monkeypatch.setattr(Board, "silent", lambda self: {self.trials()[0].id})
    (job,) = take(asked, board, tmp_path, 1)
    assert board.trials()[0].worker == here
    assert take(asked, board, tmp_path, 1) == [], "its files are held by this very worker"
    job.lock.release()
    board.close()


@pytest.mark.parametrize("failed", [False, True])
def test_a_trial_settled_while_another_worker_reaches_for_it_is_let_be(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, failed: bool
) -> None:
    """Between a look at the board and the lock a trial may end: taken all the same, it would end the whole sweep."""
    asked = search({"temperature": Choices((1.0,))})
    board = Board(f"sqlite:///{tmp_path / 'study.db'}", asked.name, asked.space, asked.direction)
    asked.top_up(board)
    board.note(sweeping_work.SCRATCH, {})
    (job,) = sweeping_work._take(asked, board, tmp_path, 1)
    assert job.trial is not None
    trial = job.trial

    def settle_first(path: Path) -> object:
        if failed:
            board.fail(trial, "it diverged", again=False)
        else:
            board.complete(trial, 0.5, {"mean": {}, "seeds": [], "ci95": {}})
        job.lock.release()
        return hold(path)

    monkeypatch.setattr(sweeping_work, "hold", settle_first)
    assert sweeping_work._take(asked, board, tmp_path, 1) == []
    free = hold(tmp_path / asked.make(trial.params).folder)
    assert free is not None, "what is not taken is let go of"
    free.release()
    board.close()


def test_heartbeats_reach_the_storage(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """A heartbeat that never beats makes every worker on another machine look dead after two minutes."""
    monkeypatch.setattr("tutelage.studies.sweeping.board.HEARTBEAT", 0.05)
    asked = search({"temperature": Choices((1.0,))})
    board = Board(f"sqlite:///{tmp_path / 'study.db'}", asked.name, asked.space, asked.direction)
    asked.top_up(board)
    (trial,) = board.trials()
    board.take(trial)
    assert board.silent() == set()
    session = board._storage.scoped_session()
    row = session.query(models.TrialHeartbeatModel).one()
    row.heartbeat -= timedelta(hours=1)
    session.commit()
    assert board.silent() == {trial.id}
    beats: list[int] = []
    record = optuna.storages.RDBStorage.record_heartbeat

    def counting(self: Any, trial_id: int) -> None:
        record(self, trial_id)
        beats.append(trial_id)

    monkeypatch.setattr(optuna.storages.RDBStorage, "record_heartbeat", counting)
    with board.signs_of_life([trial]):
        while not beats:
            time.sleep(0.01)
    assert board.silent() == set()
    board.close()


@pytest.mark.usefixtures("no_winner")
def test_a_storage_is_the_sweep_of_one_folder(tmp_path: Path) -> None:
    """Two folders on one storage would each train what the other has done, and one be told the other's results as its own."""
    storage = f"sqlite:///{tmp_path / 'shared.db'}"
    asked = search({"temperature": Choices((1.0,))}, seeds=(0,), storage=storage)
    run_sweep(asked, tmp_path / "here")
    with pytest.raises(ConfigError, match=r"trainings in .*here, and .*there is another folder"):
        run_sweep(asked, tmp_path / "there")


@pytest.mark.parametrize(
    ("url", "kind", "said"),
    [
        ("postgres at work", ConfigError, "no database URL"),
        ("sqlite:///:memory:", ConfigError, "in memory"),
        ("nosuch://user@host/x", ConfigError, "no such kind of database"),
        ("postgresql+pg8000://user:secret@host/x", MissingExtraError, "pip install pg8000"),
        ("sqlite:////no/such/folder/study.db", ConfigError, "cannot be reached: unable to open database file"),
    ],
)
def test_storages_that_cannot_serve(url: str, kind: type[Exception], said: str, tmp_path: Path) -> None:
    """SQLAlchemy's own words name no remedy, and a traceback shows the password."""
    with pytest.raises(kind, match=said) as told:
        run_sweep(search(storage=url), tmp_path)
    assert "secret" not in str(told.value)


def test_without_optuna_the_remedy_is_named(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """An ImportError from three levels down names no extra."""
    monkeypatch.setitem(sys.modules, "optuna", None)
    with pytest.raises(MissingExtraError, match=r"tutelage\[sweep\]"):
        run_sweep(search(), tmp_path)


def test_a_run_is_not_swept_over(tmp_path: Path) -> None:
    """A sweep in a run's folder would leave two records that each claim it."""
    (tmp_path / "result.json").write_text("{}")
    with pytest.raises(ConfigError, match="holds a run"):
        run_sweep(search(), tmp_path)


def test_a_held_folder_is_not_had_twice(tmp_path: Path) -> None:
    """The lock is what keeps two workers from deleting each other's checkpoints."""
    lock = hold(tmp_path / "trial")
    assert lock is not None
    assert hold(tmp_path / "trial") is None
    lock.release()
    again = hold(tmp_path / "trial")
    assert again is not None
    again.release()


@pytest.mark.usefixtures("no_winner")
def test_training_budget_of_the_line(tmp_path: Path) -> None:
    """Where the budget itself is swept, a line on another budget than the config's would be held against every trial."""
    result = run_sweep(search({"learning_rate": Choices((1e-6, 0.05))}, seeds=(0,)), tmp_path)
    own = run_sweep(search({"temperature": Choices((1.0,))}, seeds=(0,)), tmp_path)
    assert result["scratch"]["mean"] == own["scratch"]["mean"]
