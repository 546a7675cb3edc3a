"""Small real tokenizers: byte-level BPE and a SentencePiece-like one, with the habits of those that models come with."""

import json
from functools import cache
from typing import Any

from tokenizers import Tokenizer, decoders, models, normalizers, pre_tokenizers, processors, trainers
from transformers import PreTrainedTokenizerBase, PreTrainedTokenizerFast

#: The end of a turn is the EOS, as in ChatML.
CHATML = (
    "{% for message in messages %}{{ '<|im_start|>' + message['role'] + '\n' + message['content'] + '<|im_end|>\n' }}{% endfor %}"
    "{% if add_generation_prompt %}{{ '<|im_start|>assistant\n' }}{% endif %}"
)
#: Writes a system turn of its own where there is none.
WITH_DEFAULT = (
    "{% if messages[0]['role'] != 'system' %}{{ '<|im_start|>system\nBe kind.<|im_end|>\n' }}{% endif %}" + CHATML
)
#: BOS written by the template, contents stripped, a space before the answer that the prompt does not end with.
BRACKETS = (
    "{{ bos_token }}{% for m in messages %}{% if m['role'] == 'user' %}{{ '[INST] ' + m['content'].strip() + ' [/INST]' }}"
    "{% else %}{{ ' ' + m['content'].strip() + eos_token }}{% endif %}{% endfor %}"
)
CORPUS = [
    "the quick brown fox jumps over the lazy dog",
    "a small round fruit with red or yellow skin",
    "[INST] which animal is it? [/INST] a dog, of course.",
    "system user assistant be kind answer in one word",
    "one two three 1 2 3 the cat sat on the mat",
]


@cache
def _byte_level() -> Tokenizer:
    tokenizer = Tokenizer(models.BPE())
    tokenizer.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
    tokenizer.decoder = decoders.ByteLevel()
    trainer = trainers.BpeTrainer(
        vocab_size=420,
        special_tokens=["<|im_start|>", "<|im_end|>", "<|endoftext|>"],
        initial_alphabet=pre_tokenizers.ByteLevel.alphabet(),
        show_progress=False,
    )
    tokenizer.train_from_iterator(CORPUS, trainer)
    return tokenizer


def talker(template: str | None = CHATML, **special: str | None) -> PreTrainedTokenizerBase:
    """Byte-level; pad and EOS are both the end of a turn, and nothing is put in front."""
    names: dict[str, Any] = {
        "eos_token": "<|im_end|>",
        "pad_token": "<|im_end|>",
        "bos_token": "<|im_start|>",
        **special,
    }
    backend = Tokenizer.from_str(_byte_level().to_str())
    return PreTrainedTokenizerFast(tokenizer_object=backend, chat_template=template, **names)


@cache
def _pieces(scheme: str) -> Tokenizer:
    tokenizer = Tokenizer(models.BPE(byte_fallback=True, unk_token="<unk>"))
    tokenizer.pre_tokenizer = pre_tokenizers.Metaspace(prepend_scheme=scheme)
    tokenizer.decoder = decoders.Sequence([decoders.ByteFallback(), decoders.Metaspace(prepend_scheme=scheme)])
    trainer = trainers.BpeTrainer(
        vocab_size=500,
        special_tokens=["<unk>", "<s>", "</s>", *(f"<0x{byte:02X}>" for byte in range(256))],
        show_progress=False,
    )
    tokenizer.train_from_iterator(CORPUS, trainer)
    described = json.loads(tokenizer.to_str())
    described["added_tokens"] = described["added_tokens"][:3]  # the bytes are special to the trainer alone
    tokenizer = Tokenizer.from_str(json.dumps(described))
    tokenizer.post_processor = processors.TemplateProcessing("<s> $A </s>", "<s> $A $B </s>", [("<s>", 1), ("</s>", 2)])
    return tokenizer


def pieces(template: str | None = BRACKETS, scheme: str = "first") -> PreTrainedTokenizerBase:
    """SentencePiece-like: puts a space before a text (or ``always``, behind each mark too), a BOS before it and an EOS behind."""
    backend = Tokenizer.from_str(_pieces(scheme).to_str())
    return PreTrainedTokenizerFast(
        tokenizer_object=backend, chat_template=template, bos_token="<s>", eos_token="</s>", unk_token="<unk>"
    )


def lowered() -> PreTrainedTokenizerBase:
    """The byte-level vocabulary behind another normaliser."""
    backend = Tokenizer.from_str(_byte_level().to_str())
    backend.normalizer = normalizers.Lowercase()
    return PreTrainedTokenizerFast(
        tokenizer_object=backend, chat_template=CHATML, eos_token="<|im_end|>", pad_token="<|im_end|>"
    )


def renamed(count: int) -> PreTrainedTokenizerBase:
    """The byte-level tokenizer with so many more tokens at the end of its vocabulary."""
    tokenizer = talker()
    tokenizer.add_tokens([f"<extra_{number}>" for number in range(count)])
    return tokenizer
