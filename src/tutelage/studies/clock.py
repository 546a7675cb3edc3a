"""How long a run took, over all the sessions that worked on it."""

from __future__ import annotations

import json
import time
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

from tutelage.studies.arm import RECORD

Json = dict[str, Any]


class Clock:
    """Starts where a session begins to work on a run.

    Earlier sessions that were cut off left no clock behind, but each training that they finished left its seconds: these are
    counted with the session's own. What they trained and could not finish is in nobody's record.

    Args:
        folder: of the run.
        result: what the record of the finished run is called there.
    """

    def __init__(self, folder: Path, result: str) -> None:
        self._started, self._begun = datetime.now(UTC), time.perf_counter()
        trained = sum(_seconds(path) for path in folder.rglob(RECORD))
        self._earlier = max(trained, _seconds(folder / result))

    def to_json(self) -> Json:
        """``started`` of this session, ``seconds`` of all, and where there were some, ``earlier_seconds`` of those before it."""
        own = time.perf_counter() - self._begun
        return {
            "started": self._started.isoformat(timespec="seconds"),
            "seconds": self._earlier + own,
            **({"earlier_seconds": self._earlier} if self._earlier else {}),
        }


def _seconds(path: Path) -> float:
    """What a record says of its time; 0 of one that is not there, or cannot be read: whoever needs more of it says so."""
    try:
        said: Any = json.loads(path.read_text())
        return float(said["seconds"])
    except (OSError, ValueError, KeyError, TypeError):
        return 0.0
