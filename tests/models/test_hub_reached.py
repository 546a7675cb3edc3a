"""A name that is neither a folder nor in the cache, without a hub: one attempt, and one message."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import huggingface_hub
import pytest
from huggingface_hub import constants

from tutelage.errors import ConfigError
from tutelage.models.hub import expect_hub
from tutelage.models.loading import load_model


def test_a_folder_that_is_not_there_is_told_after_one_attempt(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Five retries a file are a minute of a library's lines about DNS, and no word of the folder that was meant."""
    (tmp_path / "bigger").mkdir()
    asked: list[str] = []

    def unreachable(name: str, **_: Any) -> None:
        asked.append(name)
        raise ConnectionError("Name or service not known")

    monkeypatch.setattr(constants, "HF_HUB_OFFLINE", False)
    monkeypatch.setattr(huggingface_hub, "model_info", unreachable)
    with pytest.raises(ConfigError, match=r"no folder 'nofolder' .*there are bigger.*Name or service not known"):
        load_model({"hub": "nofolder", "folder": tmp_path}, task="language_model")
    assert asked == ["nofolder"]
    with pytest.raises(
        ConfigError, match=r"no folder './nope' beside the config \(there are bigger\), and no model of the hub"
    ):
        load_model({"hub": "./nope", "folder": tmp_path})
    with pytest.raises(ConfigError, match=r"no folder '/nope', and no model of the hub can be called that"):
        expect_hub("/nope", tmp_path)
    assert asked == ["nofolder"]
    expect_hub("bigger", tmp_path)
    monkeypatch.setattr(constants, "HF_HUB_OFFLINE", True)
    expect_hub("nofolder", tmp_path)
    assert asked == ["nofolder"]
