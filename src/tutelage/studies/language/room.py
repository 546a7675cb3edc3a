"""How long texts may become that models write: the data's longest length, and the positions that both models have."""

from __future__ import annotations

from collections.abc import Iterator
from typing import TYPE_CHECKING, Any, NamedTuple

from torch import nn

from tutelage.data import Ragged
from tutelage.errors import ConfigError

if TYPE_CHECKING:
    from tutelage.studies.language.study import LanguageStudy


class _Written(NamedTuple):
    """Texts that are going to be written.

    what: where it is said how long they are · split: whose prompts · tokens: the most that follow a prompt · learnt: whether they are
    given to models again, and not only read or scored
    """

    what: str
    split: str
    tokens: int
    learnt: bool


def check_room(study: LanguageStudy, student: nn.Module, teacher: nn.Module | None) -> None:
    """Find out that whatever is written behind the longest prompts fits.

    Args:
        study: what is asked for.
        student: a fresh one.
        teacher: the teacher's model; None where it has none here.

    Raises:
        ConfigError: a text would be longer than ``data.max_length``, or than one of the models has positions for.
    """
    # of two vocabularies, how many tokens of the student's a text of the teacher's will be is not known yet
    apart = study.teacher_tokenizer is not None
    for text in _written(study):
        split = study.data.splits[text.split]
        if text.learnt:
            longest = _longest(split.taught_prompts, *(() if apart else (split.prompts,)))
            most = study.data.max_length
            if most is not None and longest + text.tokens > most:
                raise ConfigError(
                    f"{text.what} lets up to {text.tokens:,} tokens follow prompts of up to {longest:,} (of the {text.split} split), "
                    f"{longest + text.tokens:,} in all, and data.max_length is {most:,}: what is learnt or measured would be longer than "
                    f"given texts may be; {_remedy(most - longest)}, raise data.max_length, or shorten the prompts"
                )
        _expect_positions("student", student, text, split.prompts)
        if teacher is not None:
            _expect_positions("teacher", teacher, text, split.taught_prompts)


def _written(study: LanguageStudy) -> Iterator[_Written]:
    for name, lesson in study.lessons.items():
        if lesson.on_policy is not None and lesson.on_policy.share > 0:
            yield _Written(f"on_policy of the arm {name!r}", "train", lesson.on_policy.sampling.max_new_tokens, True)
    if study.generation is not None:
        lacking = [name for name in ("validation", "test") if study.data.splits[name].set is None]
        for name in (["train"] if "teacher" in study.authors else []) + lacking:
            yield _Written("generate", name, study.generation.sampling.max_new_tokens, True)
    if study.samples:
        yield _Written("samples", "test", study.sample_tokens, False)
    asked = getattr(study.score, "max_new_tokens", None)
    if asked is not None:
        yield _Written("score", "test", asked, False)


def _expect_positions(who: str, model: nn.Module, text: _Written, prompts: Ragged) -> None:
    config: Any = getattr(model, "config", None)
    most, longest = getattr(config, "max_position_embeddings", None), _longest(prompts)
    if isinstance(most, int) and longest + text.tokens > most:
        raise ConfigError(
            f"{text.what} lets up to {text.tokens:,} tokens follow prompts of up to {longest:,} (of the {text.split} split), "
            f"{longest + text.tokens:,} in all, and the {who} has positions for {most:,}: what it says beyond them is noise; "
            f"{_remedy(most - longest)}, or shorten the prompts"
        )


def _remedy(left: int) -> str:
    return f"lower max_new_tokens to {left:,}" if left > 0 else "lower max_new_tokens"


def _longest(*prompts: Ragged) -> int:
    return max(int(part.lengths.max()) for part in prompts)
