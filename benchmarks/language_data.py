"""What the language benchmark's roads train on: the models, and texts in tokens."""

import random
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from safetensors.torch import load_file, save_file
from torch import Tensor
from transformers import AutoModelForCausalLM, AutoTokenizer, LlamaConfig, LlamaForCausalLM

from tutelage.data import Completions, Layout, Ragged, TransferSet, next_token_labels
from tutelage.models.shrinking import keep_layers

HERE = Path(__file__).parents[1]
WORDNET = Path("/usr/share/wordnet")
BATCH, TOKENS, LAYERS, STEPS, DRAWS = 4, 256, 6, 3, 50
#: Tokens that the student writes of each completion on-policy; nothing ends one earlier.
WRITTEN = 64
#: Worked examples in a prompt, at most.
SHOTS = 8


def dequantised(gguf: Path, folder: Path) -> None:
    """Make a plain folder of a GGUF file."""
    named = {"gguf_file": gguf.name}
    model = AutoModelForCausalLM.from_pretrained(str(gguf.parent), dtype=torch.float32, **named)
    config = {name: value for name, value in model.config.to_dict().items() if name != "quantization_config"}
    plain = LlamaForCausalLM(LlamaConfig(**config))
    plain.load_state_dict(model.state_dict())
    plain.save_pretrained(folder)
    AutoTokenizer.from_pretrained(str(gguf.parent), **named).save_pretrained(folder)


def load_teacher(model: Path, dtype: str) -> Any:
    return AutoModelForCausalLM.from_pretrained(str(model), dtype=torch.bfloat16 if dtype == "bf16" else torch.float32)


def load_student(model: Path) -> Any:
    """The teacher with so many of its layers, evenly chosen, embeddings and head kept."""
    return keep_layers(AutoModelForCausalLM.from_pretrained(str(model), dtype=torch.float32), LAYERS)


@dataclass(frozen=True)
class Material:
    """``BATCH · (STEPS + 1)`` examples: running texts alone, or prompts and completions.

    Args:
        prompts: what is not learnt; one token each of a running text, which nothing predicts.
        completions: what is.
    """

    prompts: Ragged
    completions: Ragged

    def save(self, path: Path) -> None:
        parts = {"prompts": self.prompts, "completions": self.completions}
        save_file(
            {
                f"{name}.{of}": getattr(part, of).contiguous()
                for name, part in parts.items()
                for of in ("values", "offsets")
            },
            str(path),
        )

    @classmethod
    def load(cls, path: Path) -> "Material":
        found = load_file(path)
        return cls(*(Ragged(found[f"{name}.values"], found[f"{name}.offsets"]) for name in ("prompts", "completions")))

    def transfer_set(self, layout: Layout | None) -> TransferSet:
        """Prompts and completions in a layout; running texts, all of one length, without one."""
        if layout is not None:
            return TransferSet.of_completions(Completions(self.prompts, self.completions), layout=layout)
        ids = self.whole().padded(0)[0]
        mask = torch.ones_like(ids)
        return TransferSet({"input_ids": ids, "attention_mask": mask}, next_token_labels(ids, mask))

    def whole(self) -> Ragged:
        """Prompt and completion, end to end."""
        return Ragged.of([torch.cat(both) for both in zip(self.prompts, self.completions, strict=True)])

    def batches(self) -> list["Material"]:
        """A step's examples each."""
        rows = torch.arange(len(self.prompts)).split(BATCH)
        return [Material(self.prompts.take(some), self.completions.take(some)) for some in rows]


def running_texts(model: Path, text: str) -> Material:
    """Texts of ``TOKENS`` tokens, cut out of a long one."""
    ids = _encoded(model, text, BATCH * (STEPS + 1) * TOKENS).view(-1, TOKENS)
    return Material(Ragged.of(list(ids[:, :1])), Ragged.of(list(ids[:, 1:])))


def prompts_and_completions(model: Path, text: str) -> Material:
    """Lines as completions; before them a few other lines, and the first words of the line itself, as prompts."""
    tokenizer = AutoTokenizer.from_pretrained(str(model))
    lines, chance = [line for line in text.splitlines() if len(line.split()) > 4], random.Random(0)
    prompts: list[list[int]] = []
    completions: list[list[int]] = []
    for line in chance.sample(lines, BATCH * (STEPS + 1)):
        words = line.split()
        shots = "\n".join(chance.sample(lines, chance.randint(0, SHOTS)))
        prompts.append(tokenizer(f"{shots}\n{' '.join(words[:3])}")["input_ids"])
        completions.append([*tokenizer(f" {' '.join(words[3:])}")["input_ids"], tokenizer.eos_token_id])
    return Material(Ragged.of(prompts), Ragged.of(completions))


def prompts_to_write_after(model: Path, text: str) -> Material:
    """The same prompts; in their completions' place ``WRITTEN`` tokens of the text, whose number is what TRL divides by."""
    prompts = prompts_and_completions(model, text).prompts
    ids = _encoded(model, text, len(prompts) * WRITTEN).view(-1, WRITTEN)
    return Material(prompts, Ragged.of(list(ids)))


def _encoded(model: Path, text: str, count: int) -> Tensor:
    ids = AutoTokenizer.from_pretrained(str(model))(text[: 8 * count], return_tensors="pt")["input_ids"][0]
    if len(ids) < count:
        raise SystemExit(f"the text has {len(ids):,} tokens, {count:,} are needed")
    return ids[:count]


def texts(given: str | None) -> tuple[str, str]:
    """A long text of many lines, and what it is."""
    if given is not None:
        return Path(given).read_text(encoding="utf-8"), Path(given).name
    if WORDNET.is_dir():
        lines = (WORDNET / "data.noun").read_text(encoding="utf-8").splitlines()
        glosses = [line.split("|", 1)[1].strip() for line in lines if "|" in line]
        return "\n".join(glosses[:: max(len(glosses) // 2000, 1)]), "WordNet's glosses"
    pages = sorted((HERE / "docs").glob("*.md"))
    return "\n".join(page.read_text(encoding="utf-8") for page in pages), "this project's documents"
