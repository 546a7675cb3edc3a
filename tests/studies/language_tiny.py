"""A language study that takes seconds: a dozen words in three kinds, a Llama of one layer that is told the kinds, and one that is not."""

import copy
from collections.abc import Callable
from functools import cache
from typing import Any

import torch
from tokenizers import Tokenizer
from tokenizers.models import WordLevel
from tokenizers.pre_tokenizers import Whitespace
from transformers import LlamaConfig, LlamaForCausalLM, PreTrainedTokenizerFast

from tutelage import KL
from tutelage.data import Completions, Ragged, TransferSet
from tutelage.evaluation.task_score import ChoiceScore
from tutelage.studies.language import LanguageData, LanguageStudy, Split
from tutelage.teachers import ModuleTeacher

KINDS = ("beast", "meal", "town")
WORDS = [f"{kind[0]}{number}" for kind in KINDS for number in range(12)]
SPECIAL = ["<pad>", "<eos>", "sort", ":"]
LETTERS = "abcdef"
VOCABULARY = [*SPECIAL, *KINDS, *WORDS, *LETTERS]
TRAINING: dict[str, Any] = {
    "num_train_epochs": 8,
    "per_device_train_batch_size": 36,
    "learning_rate": 0.03,
    "lr_scheduler_type": "constant",
    "logging_steps": 4,
    "eval_strategy": "epoch",
    "save_strategy": "no",
}


def tokenizer(words: list[str] | None = None) -> PreTrainedTokenizerFast:
    inner = Tokenizer(WordLevel({word: index for index, word in enumerate(words or VOCABULARY)}, unk_token="<pad>"))
    inner.pre_tokenizer = Whitespace()
    return PreTrainedTokenizerFast(tokenizer_object=inner, eos_token="<eos>", pad_token="<pad>")


def llama(seed: int = 1, *, layers: int = 1, width: int = 16, vocabulary: int = len(VOCABULARY)) -> LlamaForCausalLM:
    config = LlamaConfig(
        vocab_size=vocabulary,
        hidden_size=width,
        intermediate_size=24,
        num_hidden_layers=layers,
        num_attention_heads=2,
        max_position_embeddings=32,
        initializer_range=0.2,
        bos_token_id=None,
        eos_token_id=1,
        pad_token_id=0,
    )
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(seed)
        return LlamaForCausalLM(config).eval()


def student() -> LlamaForCausalLM:
    """Initialised from torch's generator, as the study's seed has set it."""
    config = llama().config
    return LlamaForCausalLM(config)


@cache
def knowing() -> LlamaForCausalLM:
    """A model that sorts words into their kinds when it is told to, and not otherwise."""
    model, words = llama(3, width=32), tokenizer()
    told = [f"sort : {word} {letter} {kind_of(word)} <eos>" for letter in LETTERS for word in WORDS]
    asked = torch.tensor([words.encode(text) for text in told])
    optimiser = torch.optim.Adam(model.parameters(), 0.01)
    for _ in range(60):
        loss = model(input_ids=asked, labels=torch.where(torch.arange(6) < 4, -100, asked)).loss
        optimiser.zero_grad()
        loss.backward()
        optimiser.step()
    return model


def kind_of(word: str) -> str:
    return next(kind for kind in KINDS if kind[0] == word[0])


def split(
    words: list[str], *, completed: bool = True, view: str = "{}", teacher_view: str | None = "sort : {}"
) -> Split:
    encode = tokenizer().encode
    prompts = Ragged.of([encode(view.format(word)) for word in words])
    taught = None if teacher_view is None else Ragged.of([encode(teacher_view.format(word)) for word in words])
    answers = Ragged.of([encode(f"{kind_of(word)} <eos>") for word in words])
    return Split(
        set=TransferSet.of_completions(Completions(prompts, answers, taught)) if completed else None,
        rows=[{"word": word, "kind": kind_of(word)} for word in words],
        prompts=prompts,
        teacher_prompts=taught,
        references=[kind_of(word) for word in words] if completed else None,
    )


def data(**options: Any) -> LanguageData:
    """Each word with letters behind it that mean nothing: held-out words are known, beside other letters."""
    pairs = [(place, f"{word} {letter}") for w, word in enumerate(WORDS) for place, letter in _turned(w)]
    parts = {"train": range(4), "validation": (4,), "test": (5,)}
    return LanguageData(
        **{name: split([text for place, text in pairs if place in of], **options) for name, of in parts.items()}
    )


def _turned(by: int) -> list[tuple[int, str]]:
    return [(index, LETTERS[(index + by) % len(LETTERS)]) for index in range(len(LETTERS))]


def study(**changes: Any) -> LanguageStudy:
    settings: dict[str, Any] = {
        "data": data(),
        "student": student,
        "teacher": ModuleTeacher(copy.deepcopy(knowing())),
        "tokenizer": tokenizer(),
        "objective": KL(temperature=1.0),
        "training": TRAINING,
        "seeds": 2,
        "score": ChoiceScore(KINDS, "kind"),
        "samples": 2,
        "sample_tokens": 4,
    }
    return LanguageStudy(**{**settings, **changes})


def counted(build: Callable[[], Any], calls: list[int]) -> Callable[[], Any]:
    def made() -> Any:
        calls.append(1)
        return build()

    return made
