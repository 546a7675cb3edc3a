"""Low-rank adapters: trained alone, through the head as ever, resumed, and merged into a plain model."""

from __future__ import annotations

import sys
from pathlib import Path
from typing import Any

import numpy as np
import peft.utils.save_and_load
import pytest
import torch
from language_helpers import language_model, random_prompts
from peft import PeftModel
from torch import Tensor, nn
from transformers import AutoModelForCausalLM, PrinterCallback

from tutelage.data import TransferSet, next_token_labels
from tutelage.errors import ConfigError, MissingExtraError
from tutelage.models import merged, rows, with_lora
from tutelage.models.decoding import keeps_keys
from tutelage.models.head import find_head
from tutelage.models.sampling import Sampling
from tutelage.models.saving import save_student
from tutelage.models.writing import write
from tutelage.objectives import KL, CrossEntropy
from tutelage.ragged import Ragged
from tutelage.training import DistillationArguments, DistillationTrainer

IDS = torch.stack(list(random_prompts(9, 9)))


def logits(model: Any) -> Tensor:
    with torch.no_grad():
        return model.eval()(input_ids=IDS).logits


def moved(model: Any) -> Any:
    """As after some training."""
    for name, values in model.named_parameters():
        if "lora_B" in name:
            nn.init.normal_(values, std=0.3, generator=torch.Generator().manual_seed(0))
    return model


def student(**options: Any) -> Any:
    return with_lora(language_model(dtype=torch.float64), r=4, alpha=8, **options)


def texts() -> TransferSet:
    ids = torch.stack(list(random_prompts(*[7] * 16, seed=2)))
    return TransferSet({"input_ids": ids, "attention_mask": torch.ones_like(ids)}, next_token_labels(ids))


def trainer_of(folder: Path, model: Any) -> DistillationTrainer:
    arguments = DistillationArguments(
        output_dir=str(folder),
        per_device_train_batch_size=4,
        max_steps=8,
        learning_rate=0.02,
        logging_steps=1,
        save_strategy="steps",
        save_steps=3,
        report_to="none",
        disable_tqdm=True,
        use_cpu=True,
    )
    teacher = language_model(seed=2, dtype=torch.float64)
    trainer = DistillationTrainer(model, arguments, 0.4 * CrossEntropy() + 0.6 * KL(), texts(), teacher=teacher)
    trainer.remove_callback(PrinterCallback)
    return trainer


def weights(model: Any) -> dict[str, Tensor]:
    return {name: values.detach().clone() for name, values in model.state_dict().items()}


def losses(trainer: DistillationTrainer) -> list[float]:
    return [line["loss"] for line in trainer.state.log_history if "loss" in line]


def test_at_first_they_add_nothing():
    """A student that begins elsewhere than its model would be compared with another untouched one."""
    plain, draws = language_model(), torch.get_rng_state()
    expected = logits(plain)
    adapted = with_lora(plain, r=2)
    assert torch.equal(torch.get_rng_state(), draws)
    assert torch.equal(logits(adapted), expected)
    trained = [name for name, values in adapted.named_parameters() if values.requires_grad]
    assert trained
    assert all("lora_" in name for name in trained)
    assert not any("lm_head" in name for name in trained)
    same, other = with_lora(language_model(), r=2), with_lora(language_model(), r=2, seed=1)
    first = "base_model.model.model.layers.0.self_attn.q_proj.lora_A.default.weight"
    assert torch.equal(adapted.get_parameter(first), same.get_parameter(first))
    assert not torch.equal(adapted.get_parameter(first), other.get_parameter(first))


def test_what_is_added():
    """Hu et al. 2021, section 4.1: W + (alpha / r) B A; another scale is another learning rate."""
    adapted = moved(with_lora(language_model(), r=2, alpha=6, targets=["q_proj"]))
    layer = adapted.base_model.model.model.layers[0].self_attn.q_proj
    added = 3.0 * layer.lora_B.default.weight @ layer.lora_A.default.weight
    plain = merged(adapted)
    torch.testing.assert_close(plain.model.layers[0].self_attn.q_proj.weight, layer.base_layer.weight + added)
    assert sum("lora_A" in name for name, _ in adapted.named_parameters()) == 3


def test_the_head_is_left_out_of_the_pass_as_ever(tmp_path: Path, monkeypatch: pytest.MonkeyPatch):
    """With adapters around it, a model's head could be taken for another layer, and the loss for that of another model."""
    assert find_head(student(), texts().batch(torch.arange(2))["student"]) is not None
    through_head = trainer_of(tmp_path / "head", student())
    through_head.train()
    monkeypatch.setattr(rows, "find_head", lambda *_: None)
    dense = trainer_of(tmp_path / "dense", student())
    dense.train()
    np.testing.assert_allclose(losses(through_head), losses(dense), rtol=1e-9)
    for name, values in weights(through_head.model).items():
        torch.testing.assert_close(values, weights(dense.model)[name], rtol=1e-6, atol=1e-6)


@pytest.mark.filterwarnings("ignore:Setting .save_embedding_layers. to:UserWarning")  # of a checkpoint, as is right
def test_an_adapted_head_serves_by_its_own_logits(tmp_path: Path):
    """The head's weight alone leaves its adapters out of the loss: they would never learn."""
    adapted = student(targets=["q_proj", "lm_head"])
    assert find_head(adapted, texts().batch(torch.arange(2))["student"]) is None
    trainer_of(tmp_path, adapted).train()
    learnt = [values for name, values in weights(adapted).items() if "lm_head.lora_B" in name]
    assert len(learnt) == 1
    assert learnt[0].abs().max() > 0


def test_only_adapters_learn_and_a_resumed_run_is_the_same(tmp_path: Path):
    """Weights that move besides are not in the checkpoint: what resumes, or is merged, would be another model."""
    initial = weights(student(dropout=0.2))
    whole = trainer_of(tmp_path, student(dropout=0.2))
    whole.train()
    for name, values in weights(whole.model).items():
        assert torch.equal(values, initial[name]) == ("lora_" not in name), name
    checkpoint = tmp_path / "checkpoint-3"
    assert not (checkpoint / "model.safetensors").exists()
    adapters = sum(values.numel() for name, values in student().named_parameters() if "lora_" in name)
    assert (checkpoint / "adapter_model.safetensors").stat().st_size < adapters * 8 + 8192
    resumed = trainer_of(tmp_path, student(dropout=0.2))
    resumed.train(resume_from_checkpoint=str(checkpoint))
    assert whole.state.global_step == resumed.state.global_step == 8
    for name, values in weights(resumed.model).items():
        assert torch.equal(values, weights(whole.model)[name]), name


@pytest.mark.parametrize("family", ["llama", "llama-tied", "gpt2"])
def test_merged_is_plain_and_says_the_same(family: str, tmp_path: Path):
    """What is shipped must need no adapter library, and be the model that was measured."""
    adapted = moved(with_lora(language_model(family), r=4))
    expected = logits(adapted)
    plain = merged(adapted)
    assert type(plain) is type(language_model(family))
    assert all(values.requires_grad for values in plain.parameters())
    torch.testing.assert_close(logits(plain), expected, rtol=1e-4, atol=1e-4)
    assert torch.equal(logits(adapted), expected)
    save_student(plain, tmp_path)
    assert not (tmp_path / "adapter_config.json").exists()
    torch.testing.assert_close(logits(AutoModelForCausalLM.from_pretrained(tmp_path)), logits(plain), rtol=0, atol=0)


def test_adapters_alone_are_saved(tmp_path: Path, monkeypatch: pytest.MonkeyPatch):
    """A whole model for each seed fills the disk; and saving must not wait for a hub that is asked about the vocabulary."""

    def asked(*_args: object) -> None:
        raise AssertionError("the hub was asked")

    monkeypatch.setattr(peft.utils.save_and_load, "check_file_exists_on_hf_hub", asked)
    model = language_model()
    model.name_or_path = "somebody/some-model"
    adapted = moved(with_lora(model, r=4))
    save_student(adapted, tmp_path)
    assert not (tmp_path / "model.safetensors").exists()
    assert torch.equal(logits(PeftModel.from_pretrained(language_model(), tmp_path)), logits(adapted))


def test_what_cannot_be_adapted_is_refused(monkeypatch: pytest.MonkeyPatch):
    """A target that is misspelt beside one that is right would be left out; a second adapter would train on the first."""
    for wrong in ({"r": 0}, {"alpha": 0}, {"dropout": 1.0}):
        with pytest.raises(ConfigError, match="nothing would be learnt"):
            with_lora(language_model(), **wrong)
    with pytest.raises(ConfigError, match=r"takes no adapters there .* called .*q_proj"):
        with_lora(language_model(), targets="q_porj")
    with pytest.raises(ConfigError, match="lora target 'q_porj' is no layer"):
        with_lora(language_model(), targets=["k_proj", "q_porj"])
    with pytest.raises(ConfigError, match="has adapters already"):
        with_lora(with_lora(language_model(), r=2), r=2)
    with pytest.raises(ConfigError, match="no adapters to merge"):
        merged(language_model())
    monkeypatch.setitem(sys.modules, "peft", None)
    with pytest.raises(MissingExtraError, match=r"tutelage\[lora\]"):
        with_lora(language_model())


def test_packed_texts_stay_apart_through_the_wrapper() -> None:
    """Its forward names neither positions nor the cache: without the ones, or with the other, each text would be read as going on
    from the one before it."""
    packed = {"input_ids": IDS.reshape(1, -1), "position_ids": torch.arange(IDS.shape[1]).repeat(len(IDS))[None]}
    plain, adapted = language_model(dtype=torch.float64).eval(), student().eval()
    with torch.no_grad():
        alone = plain(input_ids=IDS).logits.reshape(IDS.numel(), -1)
        for model in (plain, adapted):
            scores, _ = rows.scores_and_features(model, packed, packed["input_ids"], ())
            torch.testing.assert_close(scores.at(1.0), alone)


def test_adapters_write_with_keys_kept() -> None:
    """Through the wrapper, whose forward does not name them, each token would be paid for with the whole text before it."""
    adapted = moved(student()).eval()
    assert keeps_keys(adapted)
    prompts = Ragged.of(random_prompts(5, 9))
    found = write(adapted, prompts, Sampling(6, greedy=True), eos=[0])
    assert (
        found.completions.lists()
        == write(merged(adapted), prompts, Sampling(6, greedy=True), eos=[0]).completions.lists()
    )
