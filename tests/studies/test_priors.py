"""A class that the transfer set lacks: measured before and after the prior is put right, on validation data."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest
import tiny
import torch
from safetensors.torch import load_file

from tutelage import KL
from tutelage.evaluation import fit_class_offsets


@pytest.fixture(scope="module")
def run(tmp_path_factory: pytest.TempPathFactory):
    folder = tmp_path_factory.mktemp("unseen")
    study = tiny.study(splits=tiny.splits().omit_classes([1]), objective=KL(2.0), arms=["kd", "scratch"])
    return study, study.run(folder), folder


def test_the_record_says_what_the_offset_does(run: tuple) -> None:
    """An accuracy before the correction that is not the arm's own would compare two students."""
    study, result, folder = run
    found = result["prior_correction"]
    assert found["classes"] == ["1"]
    assert found["test_examples"] == 15
    labels = study.splits.test.known_labels.numpy()
    for arm in ("kd", "scratch"):
        one = found["arms"][arm]
        assert one["accuracy"]["before"]["mean"] == pytest.approx(result["arms"][arm]["mean"]["accuracy"])
        assert one["recall"]["after"]["mean"] > one["recall"]["before"]["mean"]
        corrected = []
        for seed, (offset,) in zip(study.seed_list, one["offsets"], strict=True):
            logits = load_file(folder / arm / f"seed-{seed}" / "predictions.safetensors")["logits"].numpy()
            corrected.append((logits + offset * np.eye(3)[1]).argmax(1) == labels)
        assert one["accuracy"]["after"]["mean"] == pytest.approx(np.mean(corrected))


def test_the_offset_is_chosen_on_validation(run: tuple) -> None:
    """Chosen on the test split, as in the paper, it would know the answers."""
    study, result, folder = run
    module = tiny.student()
    module.load_state_dict(load_file(folder / "kd" / "seed-0" / "model.safetensors"))
    validation = study.splits.validation
    with torch.no_grad():
        said = module(validation.inputs).numpy()
    expected = fit_class_offsets(said, validation.known_labels.numpy(), [1])
    assert result["prior_correction"]["arms"]["kd"]["offsets"][0] == pytest.approx([expected[1]], abs=1e-4)


def test_without_an_omitted_class_there_is_nothing_to_correct(tmp_path: Path) -> None:
    """A section about nothing would suggest that something was wrong."""
    assert "prior_correction" not in tiny.study(seeds=1, arms=["kd"]).run(tmp_path)
