"""`data.metadata`: read where the source has columns, and no reason to train anything again."""

import json
from pathlib import Path

import pyarrow as pa
import pyarrow.parquet as pq
import pytest

from tutelage.config import load_config
from tutelage.config.building import build_study
from tutelage.errors import ConfigError

CONFIG = """\
data: {source: parquet, path: rows.parquet, inputs: [x, y], label: label, splits: {validation: 0.2, test: 0.2}}
teacher: {model: {python: "models.py:model"}, training: {num_train_epochs: 1}}
student: {model: {python: "models.py:model"}}
objective: [{term: kl}]
training: {num_train_epochs: 1}
"""


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    rows = {
        "x": [float(i) for i in range(60)],
        "y": [float(-i) for i in range(60)],
        "label": [i % 2 for i in range(60)],
        "device": [f"d{i % 3}" for i in range(60)],
    }
    pq.write_table(pa.table(rows), tmp_path / "rows.parquet")
    (tmp_path / "models.py").write_text("import torch\n\ndef model():\n    return torch.nn.Linear(2, 2)\n")
    (tmp_path / "config.yaml").write_text(CONFIG)
    return tmp_path


def test_the_test_split_has_the_column(folder: Path) -> None:
    """Checked after the training, a column that was never read would be found out hours too late."""
    study = build_study(load_config(folder / "config.yaml", ["data.metadata=[device]"]), folder, "")
    test = study.splits.test
    assert test.metadata == {"device": [f"d{int(x) % 3}" for x in test.inputs[:, 0]]}
    assert study.config is not None
    assert study.config["data"]["metadata"] == ["device"]


def test_asking_for_other_slices_is_no_other_run(folder: Path) -> None:
    """With the columns in the fingerprint, a finished run would be refused, and its five seeds trained again for a table."""
    plain = build_study(load_config(folder / "config.yaml"), folder, "")
    sliced = build_study(load_config(folder / "config.yaml", ["data.metadata=[device]"]), folder, "")
    assert json.dumps(plain.fingerprint) == json.dumps(sliced.fingerprint)
    assert not any("metadata" in key for key in plain.fingerprint)
    # a run that knows nothing of metadata resolves to the config it always had
    assert plain.config is not None
    assert "metadata" not in plain.config["data"]
    assert plain.fingerprint["data.inputs"] == ["x", "y"]


@pytest.mark.parametrize(
    ("override", "said"),
    [
        ("data.metadata=device", "data.metadata is 'device', expected a list"),
        ("data.metadata=[]", "data.metadata is [], expected at least one"),
        ("data.metadata=[3]", "data.metadata.0 is 3, expected a text"),
        ("data.metdata=[device]", "did you mean 'metadata'?"),
    ],
)
def test_mistakes_are_named(folder: Path, override: str, said: str) -> None:
    """A list of one, written without brackets, is the likely slip."""
    with pytest.raises(ConfigError) as caught:
        load_config(folder / "config.yaml", [override])
    assert said in str(caught.value)


@pytest.mark.parametrize("source", ["digits", "python", "idx"])
def test_a_source_without_columns_says_so(folder: Path, source: str) -> None:
    """Taken without a word it would end in a gate on slices that has none."""
    text = CONFIG.replace("source: parquet, path: rows.parquet, inputs: [x, y], label: label", f"source: {source}")
    (folder / "config.yaml").write_text(text)
    with pytest.raises(ConfigError, match=f"data.metadata does nothing with the source '{source}'"):
        load_config(folder / "config.yaml", ["data.metadata=[device]"])
