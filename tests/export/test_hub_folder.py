"""Weights for other software: the folder says what the student is, and nothing of its training is in it."""

from __future__ import annotations

import copy
import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from safetensors.torch import load_file, save_file
from tokenizers import Tokenizer
from tokenizers.models import WordLevel
from tokenizers.pre_tokenizers import Whitespace
from torch import Tensor, nn
from transformers import (
    AutoModelForCausalLM,
    AutoModelForSequenceClassification,
    AutoTokenizer,
    BertConfig,
    BertForSequenceClassification,
    LlamaConfig,
    LlamaForCausalLM,
    PreTrainedTokenizerFast,
    Qwen3Config,
    Qwen3ForCausalLM,
    ViTConfig,
    ViTForImageClassification,
)

from tutelage.errors import ConfigError, ExportError
from tutelage.export.hub_folder import ModuleRunner, to_safetensors
from tutelage.models import class_logits

SMALL: dict[str, Any] = {"hidden_size": 16, "num_hidden_layers": 2, "num_attention_heads": 4, "intermediate_size": 24}
IDS = torch.tensor([[3, 7, 1, 9, 4, 2]])


def tokenizer(words: int = 20) -> PreTrainedTokenizerFast:
    plain = Tokenizer(WordLevel({"<unk>": 0, "</s>": 1, **{f"w{n}": n for n in range(2, words)}}, unk_token="<unk>"))
    plain.pre_tokenizer = Whitespace()
    return PreTrainedTokenizerFast(tokenizer_object=plain, unk_token="<unk>", eos_token="</s>")


def llama(**changes: Any) -> LlamaForCausalLM:
    torch.manual_seed(0)
    return LlamaForCausalLM(LlamaConfig(**{"vocab_size": 24, "num_key_value_heads": 2, **SMALL, **changes}))


def qwen() -> Qwen3ForCausalLM:
    torch.manual_seed(0)
    config = Qwen3Config(vocab_size=24, num_key_value_heads=2, head_dim=8, tie_word_embeddings=True, **SMALL)
    return Qwen3ForCausalLM(config)


def bert() -> BertForSequenceClassification:
    torch.manual_seed(0)
    return BertForSequenceClassification(BertConfig(vocab_size=24, num_labels=3, **SMALL))


def vit() -> ViTForImageClassification:
    torch.manual_seed(0)
    return ViTForImageClassification(ViTConfig(image_size=8, patch_size=4, num_channels=1, num_labels=4, **SMALL))


@pytest.mark.parametrize("build", [llama, qwen])
def test_a_language_model_is_loaded_by_its_auto_class(tmp_path: Path, build: Callable[[], Any]):
    """What a server loads by config.json alone must be the student, tokenizer and generation settings included."""
    student = build()
    student.generation_config.eos_token_id = 1
    facts = to_safetensors(student, tmp_path, tokenizer())
    assert (facts.kind, facts.architecture, facts.loader) == (
        "transformers",
        type(student).__name__,
        "AutoModelForCausalLM",
    )
    assert {"config.json", "model.safetensors", "generation_config.json", "tokenizer.json"} <= set(facts.files)
    assert facts.files == sorted(path.name for path in tmp_path.iterdir())
    config = json.loads((tmp_path / "config.json").read_text())
    assert config["architectures"] == [type(student).__name__]
    assert config["dtype"] == facts.dtype == "float32"
    loaded = AutoModelForCausalLM.from_pretrained(tmp_path, local_files_only=True)
    with torch.no_grad():
        torch.testing.assert_close(loaded(IDS).logits, student.eval()(IDS).logits, rtol=0, atol=0)
    assert AutoTokenizer.from_pretrained(tmp_path)("w3 w7")["input_ids"] == [3, 7]
    stored = load_file(tmp_path / "model.safetensors")
    assert ("lm_head.weight" in stored) is not facts.tied, "tied embeddings are stored once"
    assert facts.tied is config["tie_word_embeddings"]


def test_classifiers_and_bfloat16(tmp_path: Path):
    """Encoders and image models are of one kind with the others; the type of the weights is kept and said."""
    facts = to_safetensors(bert().to(torch.bfloat16), tmp_path / "bert", tokenizer())
    assert (facts.loader, facts.dtype) == ("AutoModelForSequenceClassification", "bfloat16")
    loaded = AutoModelForSequenceClassification.from_pretrained(tmp_path / "bert")
    assert loaded.dtype is torch.bfloat16
    facts = to_safetensors(vit(), tmp_path / "vit")
    assert (facts.loader, facts.dropped, facts.code) == ("AutoModelForImageClassification", [], None)


def test_the_caller_keeps_the_model(tmp_path: Path):
    """save_pretrained writes into the config of the model it saves; a hook or a flag that changed would spoil training."""
    student = bert().train()
    seen: list[int] = []
    student.bert.pooler.register_forward_hook(lambda *_: seen.append(1))
    config, before = student.config.to_dict(), copy.deepcopy(student.state_dict())
    to_safetensors(nn.DataParallel(student), tmp_path, tokenizer())
    assert student.config.to_dict() == config
    assert all(module.training for module in student.modules())
    assert all(torch.equal(values, before[name]) for name, values in student.state_dict().items())
    assert len(student.bert.pooler._forward_hooks) == 1


def test_leftovers_of_training_are_dropped_and_recorded(tmp_path: Path):
    """A projector hung on the student would stop a server that knows the architecture, and tell what it was taught by."""
    student = llama()
    student.projector = nn.Linear(16, 64)
    student.model.hint = nn.Parameter(torch.ones(3))
    facts = to_safetensors(student, tmp_path, tokenizer())
    assert sorted(facts.dropped) == ["model.hint", "projector.bias", "projector.weight"]
    assert not any("projector" in name or "hint" in name for name in load_file(tmp_path / "model.safetensors"))
    assert student.projector.weight.shape == (64, 16)


def _extra_layer(student: Any) -> None:
    student.model.layers.append(copy.deepcopy(student.model.layers[0]))


def _lost_layer(student: Any) -> None:
    del student.model.layers[1]


def _pruned(student: Any) -> None:
    mlp = student.model.layers[1].mlp
    mlp.gate_proj, mlp.up_proj, mlp.down_proj = (
        nn.Linear(16, 12, False),
        nn.Linear(16, 12, False),
        nn.Linear(12, 16, False),
    )


class Adapted(nn.Module):
    def __init__(self, base: nn.Linear) -> None:
        super().__init__()
        self.base_layer, self.lora_a = base, nn.Linear(16, 2, bias=False)

    def forward(self, x: Tensor) -> Tensor:
        return self.base_layer(x)


def _adapter(student: Any) -> None:
    attention = student.model.layers[0].self_attn
    attention.q_proj = Adapted(attention.q_proj)


def _other_activation(student: Any) -> None:
    student.model.layers[0].mlp.act_fn = nn.GELU()


def _other_heads(student: Any) -> None:
    student.config.num_attention_heads, student.config.num_key_value_heads, student.config.head_dim = 2, 1, 8


def _other_positions(student: Any) -> None:
    student.config.rope_parameters["rope_theta"] = 100.0


def _untied(student: Any) -> None:
    student.config.tie_word_embeddings = True


def _tied(student: Any) -> None:
    student.lm_head.weight = student.model.embed_tokens.weight


def _groups(student: Any) -> None:
    student.config.num_key_value_heads = 3


def _mixed(student: Any) -> None:
    student.lm_head.to(torch.bfloat16)


def _nan(student: Any) -> None:
    student.model.norm.weight.data[0] = torch.nan


@pytest.mark.parametrize(
    ("spoil", "message"),
    [
        (
            _extra_layer,
            r"model.layers has 3 layers, its config \(num_hidden_layers\) or builder says 2.*leave out the others",
        ),
        (_lost_layer, "model.layers has 1 layers, .* says 2.*leave some random"),
        (
            _pruned,
            r"layers.1.mlp.gate_proj.weight is \[12, 16\], its config or builder says \[24, 16\].*one size for all layers",
        ),
        (_adapter, "lacks 1 of the weights of its architecture .*q_proj.weight"),
        (_other_activation, "act_fn is a GELU, its config or builder makes a SiLU"),
        (_other_heads, "answers otherwise when it is loaded from its folder"),
        (_other_positions, "answers otherwise when it is loaded from its folder"),
        (_untied, "do not share their weights, its config says tie_word_embeddings=True.*in place of the trained head"),
        (_tied, "share their weights, its config says tie_word_embeddings=False.*head that is not stored"),
        (_groups, "4 heads do not divide among 3 key-value heads"),
        (_mixed, "the weights are bfloat16 and float32"),
        (_nan, "loads something else from .*model.norm.weight"),
    ],
)
def test_what_a_reader_would_get_wrong(tmp_path: Path, spoil: Callable[[Any], None], message: str):
    """Each of these folders loads, or nearly, and answers as another model than the one that was judged."""
    student = llama()
    spoil(student)
    with pytest.raises(ExportError, match=message):
        to_safetensors(student, tmp_path, tokenizer())


def test_kept_config_is_put_back_after_an_error(tmp_path: Path):
    """A refused export must leave the student as it was, too."""
    student = llama()
    student.generation_config.temperature, student.generation_config.do_sample = 0.5, False
    config = student.config
    with pytest.raises(ExportError, match="could not be saved"):
        to_safetensors(student, tmp_path, tokenizer())
    assert student.config is config


def test_classes_and_tokenizers_that_no_reader_knows(tmp_path: Path):
    """An architecture of one's own, a vocabulary larger than the embedding, a language model without its tokenizer."""

    class MyLlama(LlamaForCausalLM):
        pass

    with pytest.raises(ExportError, match="MyLlama is not a class of transformers"):
        to_safetensors(MyLlama(llama().config), tmp_path, tokenizer())
    with pytest.raises(ExportError, match="the tokenizer has 30 tokens, LlamaForCausalLM embeds 24"):
        to_safetensors(llama(), tmp_path, tokenizer(30))
    with pytest.raises(ExportError, match="without its tokenizer"):
        to_safetensors(llama(), tmp_path)
    adapted = llama()
    adapted._hf_peft_config_loaded = True
    with pytest.raises(ExportError, match="merge_and_unload"):
        to_safetensors(adapted, tmp_path, tokenizer())


CODE = """
import torch
from torch import nn

class Net(nn.Module):
    def __init__(self, width):
        super().__init__()
        self.embed = nn.Embedding(9, width)
        self.head = nn.Linear(width, 9, bias=False)
        self.head.weight = self.embed.weight
        self.layers = nn.Sequential(nn.Linear(width, width), nn.BatchNorm1d(width))

    def forward(self, ids):
        return self.head(self.layers(self.embed(ids).mean(1)))

def student(width=4):
    return Net(width)
"""


def build(folder: Path, **arguments: Any) -> Any:
    from tutelage.models import ModelSource, load_model

    folder.mkdir(exist_ok=True)
    (folder / "models.py").write_text(CODE)
    return load_model(ModelSource(python="models.py:student", arguments=arguments, folder=folder))


def test_a_module_with_its_code(tmp_path: Path):
    """Weights without the file that builds the module can be loaded by nobody."""
    from tutelage.models import ModelSource, load_model
    from tutelage.models.saving import load_student

    model = build(tmp_path / "user", width=6)
    facts = to_safetensors(
        model, tmp_path / "out", None, tmp_path / "user" / "models.py", "models.py:student", {"width": 6}
    )
    assert facts.files == ["model.safetensors", "models.py"]
    assert facts.code == {"file": "models.py", "reference": "models.py:student", "arguments": {"width": 6}}
    assert (facts.kind, facts.architecture, facts.dtype, facts.loader) == ("module", "Net", "float32", None)
    fresh = load_model(ModelSource(python="models.py:student", arguments={"width": 6}, folder=tmp_path / "out"), seed=9)
    ids = torch.randint(0, 9, (5, 3))
    assert np.array_equal(ModuleRunner(load_student(fresh, tmp_path / "out"))(ids), ModuleRunner(model)(ids))


def test_a_module_without_code(tmp_path: Path):
    """The weights alone, whole: shared ones once, buffers too."""
    model = build(tmp_path / "user")
    facts = to_safetensors(model, tmp_path / "out")
    assert facts.files == ["model.safetensors"]
    assert facts.code is None
    assert len(load_file(tmp_path / "out" / "model.safetensors")) == len(model.state_dict()) - 1


def test_a_module_that_its_code_does_not_build(tmp_path: Path):
    """Another width, another depth, a part that only training had: an error, or dropped and recorded."""
    model = build(tmp_path / "user", width=6)
    code = tmp_path / "user" / "models.py"

    def export(**arguments: Any) -> Any:
        return to_safetensors(model, tmp_path / "out", None, code, "models.py:student", arguments)

    with pytest.raises(
        ExportError, match=r"layers.0.weight is \[6, 6\], its config or builder says \[4, 4\]|embed.weight is"
    ):
        export()
    with pytest.raises(ExportError, match="does not build Net by itself"):
        export(depth=3)
    with pytest.raises(ExportError, match="cannot be written as JSON"):
        export(width=torch.tensor(6))
    model.projector = nn.Linear(6, 2)
    assert export(width=6).dropped == ["projector.weight", "projector.bias"]
    assert not any("projector" in name for name in load_file(tmp_path / "out" / "model.safetensors"))
    model.layers.append(nn.Linear(6, 6))
    with pytest.raises(ExportError, match="layers runs all its parts"):
        export(width=6)
    with pytest.raises(ConfigError, match="go together"):
        to_safetensors(model, tmp_path / "out", code=code)


def test_code_that_needs_its_neighbours(tmp_path: Path):
    """On another machine there is only what is in the folder."""
    model = build(tmp_path / "user")
    code = tmp_path / "user" / "models.py"
    (tmp_path / "user" / "blocks.py").write_text("width = 4\n")
    beside = "from pathlib import Path\nWIDTH = (Path(__file__).parent / 'blocks.py').read_text()\n"
    code.write_text(beside + CODE)
    with pytest.raises(ExportError, match=r"does not build Net by itself.*blocks.py"):
        to_safetensors(model, tmp_path / "out", None, code, "models.py:student", {})


def test_weights_are_compared_after_saving(tmp_path: Path, monkeypatch: pytest.MonkeyPatch):
    """A disk that swaps a bit, or a saver that does: found while the trained student is still at hand."""
    from tutelage.export import hub_folder

    def careless(model: nn.Module, folder: Path, processing: Any) -> None:
        tensors = {name: values.clone() for name, values in model.state_dict().items() if name != "head.weight"}
        tensors["embed.weight"][0, 0] += 1e-6
        save_file(tensors, folder / "model.safetensors")

    monkeypatch.setattr(hub_folder, "save_student", careless)
    with pytest.raises(ExportError, match=r"embed.weight in .* is not what was trained"):
        to_safetensors(build(tmp_path / "user"), tmp_path / "out")


def test_module_runner(tmp_path: Path):
    """Asked in train mode, dropout and batch norms would answer otherwise, and learn from what they are asked."""
    model = build(tmp_path / "user").train()
    model.layers[0].eval()
    ids = torch.randint(0, 9, (5, 3))
    before = copy.deepcopy(model.state_dict())
    answer = ModuleRunner(model)(ids)
    assert answer.dtype == np.float32
    assert all(torch.equal(values, before[name]) for name, values in model.state_dict().items())
    assert [module.training for module in (model, model.layers[0], model.layers[1])] == [True, False, True]
    with torch.no_grad():
        assert np.array_equal(answer, class_logits(copy.deepcopy(model).eval(), ids).numpy())
    assert ModuleRunner(copy.deepcopy(model).to(torch.bfloat16))(ids).dtype == np.float32
    for wrong in (ids.float(), {"pixels": ids}, ids + 9):
        with pytest.raises(ExportError, match="Net does not take these inputs"):
            ModuleRunner(model)(wrong)
    assert model.training
