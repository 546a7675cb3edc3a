"""``labels:`` in a config: what it says becomes what the study keeps, and senseless combinations are named before torch is loaded."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest

from tutelage.config.building import build_study, labels_of
from tutelage.config.reading import check_config
from tutelage.errors import ConfigError
from tutelage.studies import Labels

BASE: dict[str, Any] = {
    "data": {"source": "python", "python": "models.py:data", "splits": {"validation": 0.2, "test": 0.3}},
    "teacher": {"model": {"python": "models.py:model"}, "training": {"max_steps": 2}},
    "student": {"model": {"python": "models.py:model"}},
    "objective": [{"term": "kl"}],
    "training": {"max_steps": 2},
}
MODELS = """\
import torch

import tutelage

def model():
    return torch.nn.Linear(4, 2)

def data():
    labels = torch.arange(60) % 2
    return tutelage.TransferSet(torch.randn(60, 4, generator=torch.Generator().manual_seed(0)), labels)
"""


def checked(labels: dict[str, Any], **changes: Any) -> Any:
    return check_config({**BASE, **changes, "labels": labels}, "here")


@pytest.mark.parametrize(
    ("labels", "said"),
    [
        ({"form": "sampled"}, ["labels.draws is missing", "labels.temperature is missing"]),
        ({"form": "top_k", "k": 4}, ["labels.temperature is missing"]),
        ({"form": "top_k", "temperature": 1}, ["labels.k is missing"]),
        ({"draws": 8}, ["labels.draws is for the form 'sampled', and labels.form is 'dense'"]),
        ({"form": "sampled", "draws": 8, "temperature": 1, "k": 3}, ["labels.k is for the form 'top_k'"]),
        ({"scheme": "systematic"}, ["labels.scheme is for the form 'sampled'"]),
        ({"temperature": 2}, ["dense logits serve every temperature"]),
        ({"form": "sampled", "draws": 8, "temperature": 1, "dtype": "float16"}, ["sampled labels are counts"]),
        ({"form": "top_k", "k": 4, "temperature": 1, "dtype": "bfloat16"}, ["labels.dtype is 'bfloat16'"]),
        ({"form": "tok_k"}, ["'tok_k'"]),
        ({"drows": 8}, ["labels.drows", "did you mean 'draws'?"]),
        ({"temperature": 0}, ["labels.temperature is 0", "more than 0"]),
        ({"spot_check": -1}, ["labels.spot_check is -1"]),
    ],
)
def test_senseless_combinations_are_named(labels: dict[str, Any], said: list[str]) -> None:
    """A key that nothing reads would be believed to be at work."""
    with pytest.raises(ConfigError) as refused:
        checked(labels)
    for words in said:
        assert words in str(refused.value)


def test_features_of_a_mixture_are_refused() -> None:
    with pytest.raises(ConfigError, match=r"labels\.features are asked of an ensemble"):
        checked({"features": ["0"]}, teacher={**BASE["teacher"], "members": 2})


def test_what_is_said_is_what_the_study_keeps(tmp_path: Path) -> None:
    """A key that did not arrive would leave the default at work under the config's name."""
    (tmp_path / "models.py").write_text(MODELS)
    said = {
        "store": "kept/here",
        "form": "sampled",
        "draws": 8,
        "scheme": "independent",
        "temperature": 1.0,
        "batch_size": 5,
        "spot_check": 2,
    }
    study = build_study(checked(said), tmp_path, "")
    assert study.labels == Labels(
        form="sampled",
        store=tmp_path / "kept/here",
        draws=8,
        scheme="independent",
        temperature=1.0,
        batch_size=5,
        spot_check=2,
    )
    assert study.config is not None
    assert study.config["labels"] == said
    assert study.labels.place(tmp_path / "run") == tmp_path / "kept/here"


def test_places_of_the_store(tmp_path: Path) -> None:
    """A URL that was taken for a path would make a folder called s3: beside the config."""
    labels = labels_of(checked({"store": "memory://labels"}).labels, tmp_path)
    assert labels is not None
    assert labels.place(tmp_path) == "memory://labels"
    own = labels_of(checked({}).labels, tmp_path)
    assert own is not None
    assert own.place(tmp_path / "run") == tmp_path / "run" / "labels"
    assert labels_of(check_config(BASE, "here").labels, tmp_path) is None


def test_another_store_is_another_teacher_of_a_sweep(tmp_path: Path) -> None:
    """Candidates that differ in their labels and shared a store would be refused, each by the other's."""
    from tutelage.config.searching import build_search

    (tmp_path / "models.py").write_text(MODELS)
    space = {"labels.dtype": ["float16", "float32"]}
    search = build_search(checked({}, search={"space": space}), tmp_path, "")
    folders = {search.make({"labels.dtype": dtype}).teacher_folder for dtype in space["labels.dtype"]}
    assert len(folders) == 2
