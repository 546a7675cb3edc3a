"""Which tokens of a text are hidden, and what stands in their place."""

from dataclasses import replace

import pytest
import torch

from masked_tiny import SYLLABLES, texts, tokenizer
from tutelage.data import Draws, MaskedTokens, Masking, content_ids, masked_texts, rows_of
from tutelage.errors import ConfigError, DataError
from tutelage.signals import NO_LABEL

TOKENIZER = tokenizer()
MASK, CLS, SEP, PAD, UNK = (
    TOKENIZER.convert_tokens_to_ids(f"[{name}]") for name in ("MASK", "CLS", "SEP", "PAD", "UNK")
)


def view(probability=0.15, whole_words=False, **options):
    return MaskedTokens(TOKENIZER, Masking(probability, whole_words), **options)


def plain(some):
    """The tokens of texts, and which of them may be hidden: found from the marks' numbers alone."""
    encoded = TOKENIZER(list(some), padding=True, return_tensors="pt")["input_ids"]
    return encoded, ~torch.isin(encoded, torch.tensor([CLS, SEP, PAD, UNK, MASK]))


def seen(some, *, seed=0, epoch=0, of=None):
    return (of or view())(some, Draws(seed, epoch, content_ids(some)))


def test_rates_are_those_of_the_paper():
    """With a probability applied twice, or 80/10/10 drawn from the number that chose the token, a model would see
    other masks than it is said to: 15% of tokens are asked for, of which 80% are hidden, 10% exchanged, 10% left."""
    some = texts(3000, words=20)
    ids, maskable = plain(some)
    given, labels = seen(some)
    asked = labels != NO_LABEL
    # a text none of whose W tokens was drawn gives one all the same: (1 − p)^W of the texts do
    width = maskable.sum(1).double()
    expected = float((0.15 * width + 0.85**width).sum() / width.sum())
    count = int(maskable.sum())
    share = int(asked.sum()) / count
    assert abs(share - expected) < 4 * (expected * (1 - expected) / count) ** 0.5
    now, before = given["input_ids"][asked], ids[asked]
    total = len(now)
    others = len(SYLLABLES) * 2
    # an exchanged token is by chance the same one again
    for found, rate in (
        (now == MASK, 0.8),
        ((now != MASK) & (now != before), 0.1 * (1 - 1 / others)),
        (now == before, 0.1 + 0.1 / others),
    ):
        assert abs(float(found.double().mean()) - rate) < 4 * (rate * (1 - rate) / total) ** 0.5


def test_only_what_is_asked_for_is_changed_and_the_label_is_what_stood_there():
    """A token changed without a label would teach nothing and spoil the text; another label would teach the wrong word."""
    some = [*texts(200), "ba [MASK] xyz bado"]
    ids, maskable = plain(some)
    given, labels = seen(some, of=view(0.5))
    asked = labels != NO_LABEL
    assert bool((asked <= maskable).all())
    torch.testing.assert_close(labels[asked], ids[asked])
    torch.testing.assert_close(given["input_ids"][~asked], ids[~asked])
    assert not set(given["input_ids"][asked].tolist()) & {CLS, SEP, PAD, UNK}
    assert bool(asked.any(dim=1).all())


def test_each_text_is_asked_for_something():
    """A text that has two tokens would be passed over in 72% of epochs, and its epoch's step could have no row at all."""
    some = [f"{one} {other}" for one in SYLLABLES[:20] for other in SYLLABLES[20:40]]
    for epoch in range(3):
        labels = seen(some, epoch=epoch, of=view(0.01)).labels
        asked = (labels != NO_LABEL).sum(1)
        assert int(asked.min()) == 1
    # the one that is asked for is not always the same place
    assert 0.4 < float((labels[:, 1] != NO_LABEL).double().mean()) < 0.6


def test_masks_are_a_function_of_seed_epoch_and_id_alone():
    """Were they one of the batch, of the order or of a global generator, a resumed run would see other masks, and a
    stored answer would be met by another question."""
    some = texts(12)
    long = " ".join(["bado"] * 30)
    torch.manual_seed(0)
    whole = seen([*some, long])
    torch.manual_seed(1)
    for row, text in enumerate(some):
        alone = seen([text])
        width = alone.labels.shape[1]
        torch.testing.assert_close(whole.inputs["input_ids"][row, :width], alone.inputs["input_ids"][0])
        torch.testing.assert_close(whole.labels[row, :width], alone.labels[0])
    for other in (seen(some, epoch=1), seen(some, seed=1)):
        width = other.labels.shape[1]
        assert not torch.equal(other.labels, whole.labels[: len(some), :width])


@pytest.mark.parametrize("whole_words", [False, True])
def test_masks_do_not_hang_on_the_side_of_the_padding(whole_words):
    """With padding before a text, its place in the batch is another in each company: what validation asks for would change
    with the size of its batches."""
    some = texts(12)
    left = MaskedTokens(tokenizer(padding_side="left"), Masking(0.3, whole_words))
    together = seen([*some, " ".join(["bado"] * 30)], of=left)
    for row, text in enumerate(some):
        for alone in (seen([text], of=left), seen([text], of=view(0.3, whole_words))):
            width = alone.labels.shape[1]
            torch.testing.assert_close(together.inputs["input_ids"][row, -width:], alone.inputs["input_ids"][0])
            torch.testing.assert_close(together.labels[row, -width:], alone.labels[0])


def test_a_word_is_asked_for_whole():
    """Were a piece of a word left, it would give the others away: the very thing that whole words are for."""
    some = texts(800, words=12)
    ids, maskable = plain(some)
    labels = seen(some, of=view(0.15, True)).labels
    asked = labels != NO_LABEL
    entries = TOKENIZER.convert_ids_to_tokens(ids.flatten().tolist())
    goes_on = torch.tensor([entry.startswith("##") for entry in entries]).view_as(ids)
    assert bool(goes_on.any())
    torch.testing.assert_close(asked[:, 1:][goes_on[:, 1:]], asked[:, :-1][goes_on[:, 1:]])
    words = (maskable & ~goes_on).sum(1).double()
    expected = float((0.15 * words + 0.85**words).sum() / words.sum())
    share = int((asked & ~goes_on).sum()) / float(words.sum())
    assert abs(share - expected) < 4 * (expected / float(words.sum())) ** 0.5
    by_token = seen(some, of=view(0.15)).labels != NO_LABEL
    assert not torch.equal(by_token[:, 1:][goes_on[:, 1:]], by_token[:, :-1][goes_on[:, 1:]])


def test_a_set_gives_both_models_one_question_and_counts_its_rows():
    """Were the labels those of the whole text, every token would be asked for, hidden or not: a copy would be learnt."""
    some = texts(40)
    data = masked_texts(some, view(), seed=3)
    assert data.token_level
    assert data.teacher_varies
    rows = torch.tensor([5, 2, 30])
    batch = data.batch(rows, epoch=4)
    given, labels = seen([some[row] for row in rows.tolist()], seed=3, epoch=4)
    assert "teacher" not in batch
    torch.testing.assert_close(batch["labels"], labels)
    torch.testing.assert_close(batch["student"]["input_ids"], given["input_ids"])
    assert set(batch["student"]) == set(given)
    assert batch["view"].tolist() == [4, 4, 4]
    torch.testing.assert_close(rows_of(batch)["labels"], labels[labels != NO_LABEL])
    replayed = replace(data, views=2).batch(rows, epoch=6)
    first = replace(data, views=2).batch(rows, epoch=0)
    torch.testing.assert_close(replayed["student"]["input_ids"], first["student"]["input_ids"])
    torch.testing.assert_close(replayed["labels"], first["labels"])


def test_what_is_measured_on_is_masked_once():
    """Masked anew at each look, or not at all, a perplexity would wander with the dice or be that of a copy; and its labels
    must be the rows that it has, or an example's sum would be another one's."""
    some = texts(60)
    data = masked_texts(some, view(fixed=True), seed=1)
    assert not data.teacher_varies
    rows = torch.arange(len(data))
    batches = [data.batch(rows, epoch) for epoch in (0, 7)] + [data.for_evaluation().batch(rows)]
    for batch in batches[1:]:
        torch.testing.assert_close(batch["student"]["input_ids"], batches[0]["student"]["input_ids"])
        torch.testing.assert_close(batch["labels"], batches[0]["labels"])
    torch.testing.assert_close(data.known_labels, batches[0]["labels"])
    assert int((batches[0]["student"]["input_ids"] == MASK).sum()) > 0


def test_texts_without_a_word_are_left_out():
    """An empty text, or one in another script, would be an example without a row; a set of none but such cannot teach."""
    data = masked_texts(["ba do", "", "漢字", "ki"], view())
    assert list(data.inputs) == ["ba do", "ki"]
    assert len(data.known_labels) == 2
    with pytest.raises(DataError, match="in none of 2 texts is there a token to hide"):
        masked_texts(["", "漢字"], view())


def test_long_texts_are_cut():
    """Were the length not the model's, its position embeddings would be read past their end."""
    given, labels = seen([" ".join(["ba"] * 50)], of=view(max_length=10))
    assert given["input_ids"].shape == labels.shape == (1, 10)
    assert given["input_ids"][0, -1] == SEP


def test_another_tokenizer_is_another_view():
    """A run is resumed by what its view shows as: with the address in memory, or without the vocabulary, a run would never
    or always be taken for the same one."""
    assert repr(view()) == repr(MaskedTokens(tokenizer(), Masking()))
    TOKENIZER(["ba", "do ki"], padding=True, truncation=True, max_length=5)
    assert repr(view()) == repr(MaskedTokens(tokenizer(), Masking()))
    assert repr(view()) != repr(MaskedTokens(tokenizer(SYLLABLES[::-1]), Masking()))
    assert repr(view()) != repr(view(0.2))


@pytest.mark.parametrize("probability", [0.0, 1.0, -0.1, float("nan")])
def test_a_share_that_leaves_nothing_to_learn_is_refused(probability):
    """At 0 every text would be asked for its one fallback token, at 1 nothing would be left to tell it from."""
    with pytest.raises(ConfigError, match="probability is"):
        Masking(probability)


def test_a_tokenizer_that_cannot_hide_is_refused():
    """Without a mask token the number None would become whatever torch makes of it."""
    with pytest.raises(ConfigError, match="no mask token"):
        MaskedTokens(tokenizer(mask_token=None))


def test_whole_words_need_a_tokenizer_that_knows_words():
    """One that takes a text for a single word would hide all of it, and leave nothing to tell it from."""
    whole = tokenizer()
    whole.backend_tokenizer.pre_tokenizer = None
    assert MaskedTokens(whole).masking.whole_words is False
    with pytest.raises(ConfigError, match="which these are"):
        MaskedTokens(whole, Masking(whole_words=True))
