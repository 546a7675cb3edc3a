"""The transfer set: stable ids, a student view, a teacher view and an optional label for each example."""

from tutelage.data.completions import Completions, CompletionView, Layout
from tutelage.data.ids import content_ids, hex_id
from tutelage.data.lengths import input_lengths, shortest_first
from tutelage.data.masked_texts import masked_texts
from tutelage.data.masking import MaskedTokens, Masking
from tutelage.data.randomness import Draws
from tutelage.data.sources import SOURCES, DataSource, load_source
from tutelage.data.splits import Splits, keep_labels, noisy_labels, split
from tutelage.data.tokenizer_digests import tokenizer_digest
from tutelage.data.tokens import next_token_labels, rows_of
from tutelage.data.transfer_set import Batch, TransferSet
from tutelage.data.views import (
    Chain,
    GaussianNoise,
    HorizontalFlip,
    Normalise,
    PerExample,
    RandomShift,
    Tokenise,
    View,
    is_random,
)
from tutelage.ragged import Ragged

__all__ = [
    "SOURCES",
    "Batch",
    "Chain",
    "CompletionView",
    "Completions",
    "DataSource",
    "Draws",
    "GaussianNoise",
    "HorizontalFlip",
    "Layout",
    "MaskedTokens",
    "Masking",
    "Normalise",
    "PerExample",
    "Ragged",
    "RandomShift",
    "Splits",
    "Tokenise",
    "TransferSet",
    "View",
    "content_ids",
    "hex_id",
    "input_lengths",
    "is_random",
    "keep_labels",
    "load_source",
    "masked_texts",
    "next_token_labels",
    "noisy_labels",
    "rows_of",
    "shortest_first",
    "split",
    "tokenizer_digest",
]
