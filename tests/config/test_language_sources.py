"""Which test examples of a config's study are of one source, and so count as one in every interval."""

from pathlib import Path
from typing import Any

import pytest

from language_project import write_project, write_rows
from tutelage.config import LanguageConfig, load_config
from tutelage.config.language.building import build_language_study
from tutelage.config.models import user_function
from tutelage.errors import ConfigError, TutelageError

WORDS = ["small", "large", "old", "that", "eats", "grows", "walks", "cut"]
PAIRS = [f"{one} {other}" for one in WORDS for other in WORDS][:40]
TEXTS = [{"text": " ".join([f"{pair} thing"] * count)} for count, pair in enumerate(PAIRS, 9)]
CHATS = [
    {
        "messages": [
            {"role": role, "content": f"{pair} {turn}"} for turn in ("a", "one") for role in ("user", "assistant")
        ]
    }
    for pair in PAIRS
]
QUESTIONS = [
    {"gloss": f"{pair} {word}", "sort": "food", "completion": "food", "of": pair}
    for pair in PAIRS
    for word in ("a", "one")
]


@pytest.mark.parametrize(
    ("rows", "overrides"),
    [
        (
            TEXTS,
            ["data.pack_text=true", "data.max_length=20", "views={}"],
        ),
        (CHATS, ["data.turns=all", "views={}"]),
        (QUESTIONS, ["data.splits.by=of"]),
    ],
    ids=["pieces", "turns", "groups"],
)
def test_what_was_made_of_one_text_is_one_source(rows: list[Any], overrides: list[str], tmp_path: Path) -> None:
    """Pieces of one document, and questions about one passage, would each be a proof of their own."""
    folder = write_project(tmp_path / "sources")
    write_rows(folder, rows)
    config = load_config(folder / "config.yaml", ["score=null", "gates={}", *overrides])
    assert isinstance(config, LanguageConfig)
    for split in build_language_study(config, folder, "").data.splits.values():
        assert split.sources is not None
        keys = [str(row.get("of", row)) for row in split.rows]
        assert len(set(keys)) < len(keys), "a case with nothing to bring together"
        assert (
            len(set(zip(keys, split.sources.tolist(), strict=True)))
            == len(set(keys))
            == len(set(split.sources.tolist()))
        )


@pytest.mark.parametrize(
    ("rows", "said"),
    [
        ([{"messages": [pair]} for pair in PAIRS], "row 0"),
        ([{"messages": pair} for pair in PAIRS], "row 0"),
        (
            [{**QUESTIONS[0]}, *({"gloss": row["gloss"], "sort": "food"} for row in QUESTIONS[1:])],
            "row 0 has .* row 1 has none",
        ),
        ([{"gloss": "thing", "sort": "food"}, *QUESTIONS], "row 1 has a completion of its own and row 0 has none"),
    ],
    ids=["text for a turn", "text for turns", "the first alone", "all but the first"],
)
def test_rows_of_no_completions_are_told_by_each_row(rows: list[Any], said: str, tmp_path: Path) -> None:
    """By the first row alone, what the others bring was ignored or missed; a text in a turn's place was an error of Python's."""
    folder = write_project(tmp_path / "mixed")
    write_rows(folder, rows)
    overrides = [
        "score=null",
        "gates={}",
        "data.completions=teacher",
        "generate={max_new_tokens: 4, greedy: true}",
        "views={}",
    ]
    if "gloss" in rows[0]:
        overrides[-1] = "views={student: {user: '{{ gloss }}'}}"
    config = load_config(folder / "config.yaml", overrides)
    assert isinstance(config, LanguageConfig)
    with pytest.raises(TutelageError, match=said):
        build_language_study(config, folder, "")


def test_a_text_from_another_vocabulary_ends_as_the_students_turns_do(tmp_path: Path) -> None:
    """Ended by the tokenizer's EOS, where the template has another one, the student would learn to stop otherwise than it is asked to."""
    folder = write_project(tmp_path / "ends")
    overrides = ["teacher={model: {python: 'models.py:teacher'}, tokenizer: 'models.py:three_others', alignment: text}"]
    overrides += ["data.completions=teacher", "generate={max_new_tokens: 4}", "objective=[{term: cross_entropy}]"]
    overrides += ["views={student: {user: '{{ gloss }}'}}"]
    with (folder / "models.py").open("a") as models:
        models.write(
            "\n\ndef turned():\n    WORDS[0] = 'b'\n    made, marks = tokenizer(), [*MARKS[2:]]\n    return PreTrainedTokenizerFast("
            "tokenizer_object=made.backend_tokenizer, eos_token='<s>', pad_token='<pad>', unk_token='<unk>', "
            "additional_special_tokens=marks, chat_template=TEMPLATE)\n"
        )
    config = load_config(folder / "config.yaml", [*overrides, "student.tokenizer=models.py:turned"])
    assert isinstance(config, LanguageConfig)
    study = build_language_study(config, folder, "")
    assert study.tokenizer.eos_token == "<s>"
    assert study.tokenizer.convert_ids_to_tokens(study.data.end) == "<end>"


def test_a_users_function_is_found_not_to_fit_before_anything_is_read(tmp_path: Path) -> None:
    """A score that takes the text alone would end in a traceback once all models are trained."""
    (tmp_path / "score.py").write_text("def mark(text):\n    return 1.0\n", encoding="utf-8")
    with pytest.raises(ConfigError, match=r"score\.python: .*will be called with \(text, row\), which does not fit"):
        user_function("score.py:mark", tmp_path, "score.python", 2, "(text, row)")
