"""How long a run took is told of all its sessions, as far as they left anything to tell it by."""

import json
from pathlib import Path

from tutelage.studies.clock import Clock


def left(path: Path, **said: object) -> None:
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text(json.dumps(said))


def test_what_earlier_sessions_trained_is_counted(tmp_path: Path) -> None:
    """The page of a run that went on said that it took a minute, above trainings of four."""
    left(tmp_path / "kd" / "seed-0" / "record.json", seconds=100.0)
    left(tmp_path / "teacher" / "record.json", seconds=80.5)
    left(tmp_path / "kd" / "seed-1" / "record.json", other=1)
    said = Clock(tmp_path, "result.json").to_json()
    assert said["earlier_seconds"] == 180.5
    assert 180.5 <= said["seconds"] < 240


def test_a_finished_run_that_is_run_again_counts_its_trainings_once(tmp_path: Path) -> None:
    """Its own record has them already, with the rest of the time that it took."""
    left(tmp_path / "kd" / "seed-0" / "record.json", seconds=100.0)
    left(tmp_path / "result.json", seconds=130.0)
    assert Clock(tmp_path, "result.json").to_json()["earlier_seconds"] == 130.0


def test_a_first_session_has_nothing_before_it(tmp_path: Path) -> None:
    """A zero would be told as an earlier session that took no time."""
    said = Clock(tmp_path / "new", "result.json").to_json()
    assert sorted(said) == ["seconds", "started"]
    assert 0 <= said["seconds"] < 60
