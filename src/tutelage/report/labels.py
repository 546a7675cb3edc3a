"""Stored labels in words: where they came from, what they take, and what keeping less of them costs."""

from __future__ import annotations

from typing import Any

from tutelage.report.record import Record, mapping, number, sequence, text
from tutelage.report.words import bytes_text, decimal, duration, figures, plural, sentence

View = dict[str, Any]


def labels_section(result: Record) -> View | None:
    """What the page shows of the stored labels that the students were taught from, or None where there were none."""
    record = mapping(result.get("labels"))
    if not record:
        return None
    facts = [
        ("What is kept of a row", kept_words(record)),
        ("Size", size_words(record)),
        ("Time", time_words(record)),
        ("What that costs", certificate_words(record)),
        ("Spot check", spot_words(record)),
    ]
    places = [("Where", text(record.get("store"))), ("Digest", text(record.get("digest")))]
    return {"lead": lead(record), "facts": [(name, sentence(words)) for name, words in facts] + places}


def lead(record: Record) -> str:
    """Who was asked, how often, and who was not."""
    views = number(record.get("views")) or 1
    seen = f", in {int(views):,} views of each" if views > 1 else ""
    asked = f"about {plural(int(number(record.get('distinct')) or 0), 'example')}{seen}"
    again = (
        "for the spot check and on the test split" if mapping(record.get("spot_check")) else "on the test split alone"
    )
    return (
        f"The teacher was asked once {asked}, {text(record.get('written'), 'at an unknown time')}, and its answers were stored. Every "
        f"student that learnt from the teacher read them from there; the teacher itself ran again {again}."
    )


def kept_words(record: Record) -> str:
    """What of an answer is kept."""
    form = mapping(record.get("form"))
    kind, classes = text(form.get("kind")), number(form.get("classes")) or 0
    heat = f"{number(form.get('temperature')) or 1.0:g}"
    if kind == "sampled":
        draws = plural(int(number(form.get("draws")) or 0), "draw")
        kept = f"{draws} from its distribution over {classes:,.0f} classes at T = {heat} ({text(form.get('scheme'))})"
    elif kind == "top_k":
        kept = f"the {number(form.get('k')) or 0:,.0f} most probable of {classes:,.0f} classes at T = {heat}, and the mass of the others"
    else:
        kept = f"the logits of all {classes:,.0f} classes in {text(form.get('dtype'))}"
    layers = [text(layer) for layer in sequence(form.get("features"))]
    return kept + (f"; of each example the features of {', '.join(layers)}" if layers else "")


def size_words(record: Record) -> str:
    """Bytes in all, of an example and of a row."""
    size, examples, rows = (number(record.get(key)) for key in ("bytes", "examples", "rows"))
    if not size or not examples or not rows:
        return "not recorded"
    each = f"{decimal(size / examples, 1)} bytes an example"
    views = number(record.get("views")) or 1
    if views > 1:
        each = f"{decimal(size / examples, 1)} bytes a view of an example"
    if rows != examples:
        each += f", {decimal(size / rows, 1)} a row"
    return f"{bytes_text(size)} for {rows:,.0f} rows: {each}"


def time_words(record: Record) -> str:
    """Seconds of labelling, and how many of them were the teacher's."""
    made = mapping(record.get("made"))
    rows, seconds, teacher = (number(made.get(key)) for key in ("rows", "seconds", "teacher_seconds"))
    if not rows or seconds is None or teacher is None:
        return "not recorded"
    all_rows = number(record.get("rows")) or rows
    last = f" (the last {rows:,.0f} rows, after a break)" if rows < all_rows else ""
    return f"{duration(seconds)}{last}, of which the teacher itself took {duration(teacher)}"


def certificate_words(record: Record) -> str:
    """What a student’s gradient loses to the form, in one or two sentences."""
    found = mapping(record.get("certificate"))
    error, bias, noise = (number(found.get(f"relative_{key}")) for key in ("error", "bias", "bias_noise"))
    if error is None or bias is None:
        return (
            "not measured: the teacher says the same of all the rows that were looked at" if found else "not measured"
        )
    rows = f"on {plural(int(number(found.get('rows')) or 0), 'random row')}"
    heat = f"{number(found.get('temperature')) or 1.0:g}"
    term = f"{text(found.get('divergence'), 'forward_kl').replace('_kl', ' KL').replace('_', ' ')} at T = {heat}"
    gradient = f"{rows} a student’s gradient of {term}"
    off = f"{gradient} is {_percent(error)} away from the one that the teacher itself would give"
    if error > 1:
        off = (
            f"{gradient} misses the one that the teacher itself would give by {figures(error)} times that one’s own size: one row "
            "alone tells next to nothing, as with a teacher that is sure of little; more draws, or more of the classes kept, lessen it"
        )
    if text(found.get("form")) == "sampled":
        unbiased = noise is not None and bias <= noise
        mean = (
            f"nothing stays that could be told from 0 ({_within(noise or 0.0)})"
            if unbiased
            else f"{_percent(bias)} stays"
        )
        return (
            f"{off}, row by row; that is chance, which averages out over rows, and not over epochs, which hear the same "
            f"draws: over other draws {mean}"
        )
    if text(found.get("form")) == "top_k":
        return (
            f"{off}, for the classes that were not kept; no number of rows averages that away, and divergences other than forward KL can "
            "lose far more"
        )
    return off


def spot_words(record: Record) -> str:
    """What asking the live teacher again gave."""
    found = mapping(record.get("spot_check"))
    rows, worst, slack = (number(found.get(key)) for key in ("rows", "worst", "tolerance"))
    if rows is None or worst is None or slack is None:
        return "none was asked for"
    form = mapping(record.get("form"))
    what = "of a row’s spread" if text(form.get("kind")) == "dense" else "of a row’s probability"
    most = f"at most {_percent(worst)} {what} differs" if worst > 0 else "nothing differs"
    looked_at = ", features included" if sequence(form.get("features")) else ""
    again = (
        f"the live teacher was asked again about {plural(int(number(found.get('examples')) or 0), 'random example')}"
    )
    return f"{again}{looked_at}: {most} (rounding alone may change up to {_percent(slack)})"


def _within(noise: float) -> str:
    """How much could hide in the chance of the draws."""
    return (
        f"±{_percent(noise)}"
        if noise <= 1
        else f"up to {figures(noise)} times its size could hide in the chance of so few rows"
    )


def _percent(share: float) -> str:
    return f"{figures(100 * share)}%" if share >= 1e-6 else "0%"
