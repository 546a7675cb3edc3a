"""Language data: rows of text, what each model is asked about them, and both in tokens."""

from tutelage.data.language.conversations import Columns, Turns
from tutelage.data.language.encoding import Counts, Encoded, encode
from tutelage.data.language.prompts import PromptView
from tutelage.data.language.rows import TEXT_SOURCES, TextSource, read_rows, row_place, rows_from_dataset
from tutelage.data.language.splitting import overlapping, read_parts, split_rows
from tutelage.data.language.templates import Row
from tutelage.data.language.tokenizers import (
    Comparison,
    compare_tokenizers,
    eos_ids,
    load_tokenizer,
    refuse_other_tokenizer,
)

__all__ = [
    "TEXT_SOURCES",
    "Columns",
    "Comparison",
    "Counts",
    "Encoded",
    "PromptView",
    "Row",
    "TextSource",
    "Turns",
    "compare_tokenizers",
    "encode",
    "eos_ids",
    "load_tokenizer",
    "overlapping",
    "read_parts",
    "read_rows",
    "refuse_other_tokenizer",
    "row_place",
    "rows_from_dataset",
    "split_rows",
]
