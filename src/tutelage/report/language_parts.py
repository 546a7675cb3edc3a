"""The rest of a language study's page: prompts and what shorter ones save, cost, completions by the teacher, stored labels, curves."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

from tutelage.report.charts import key_mark, share_bar
from tutelage.report.curves import Series, line_chart
from tutelage.report.diagnosis import loss_curves, points
from tutelage.report.labels import labels_section
from tutelage.report.labels import lead as labels_lead
from tutelage.report.language_words import TEACHER, UNTOUCHED, arms_of, tokens_text
from tutelage.report.record import Record, mapping, number, records, text
from tutelage.report.sections import cost_row
from tutelage.report.words import MISSING, amount, bytes_text, decimal, duration, metric_named, plural, times

View = dict[str, Any]

#: Two medians of time that lie nearer than this share of each other are told as the same.
_NOISE = 0.02


def context_section(result: Record) -> View | None:
    """What the shorter prompt saves of each request; None where both models see the same prompt."""
    found = mapping(result.get("context"))
    if not found:
        return None
    bare, full, saved = (number(found.get(key)) for key in ("student_prompt_tokens", "teacher_prompt_tokens", "saved"))
    times_ = mapping(found.get("milliseconds"))
    slow, fast = number(times_.get("full")), number(times_.get("bare"))
    rows = [
        _saving("Prompt tokens", full, bare, lambda value: tokens_text(value).split(" ")[0]),
        _saving("Milliseconds until the student’s first token", slow, fast, lambda value: decimal(value, 1), _NOISE),
    ]
    said: list[str] = []
    if saved is not None and full:
        said.append(
            f"A request to the student is {tokens_text(saved)} shorter than one to the teacher: {decimal(100 * saved / full, 0)}% of the "
            "prompt need not be sent, read or paid for."
        )
    if slow is not None and fast is not None:
        gain = slow - fast
        said.append(
            f"The same student would need {decimal(slow, 1)} ms to read the full prompt and needs {decimal(fast, 1)} ms for its own: "
            f"{decimal(gain, 1)} ms saved on each request."
            if gain > _NOISE * slow
            else f"On this machine that saves no time that could be measured: {decimal(slow, 1)} ms to read the full prompt, "
            f"{decimal(fast, 1)} ms for the student’s own."
        )
    return {"lead": " ".join(said) or "What it saves is not recorded.", "table": rows}


def _saving(name: str, full: float | None, bare: float | None, write: Any, least: float = 0.0) -> View:
    """A row of the table; a difference of no more than the ``least`` share of the whole is told as none, one below as more."""
    share = bare / full if full and bare is not None else None
    return {
        "name": name,
        "full": MISSING if full is None else write(full),
        "bare": MISSING if bare is None else write(bare),
        "saved": MISSING if full is None or bare is None else _saved(full, bare, write, least),
        "share": MISSING if share is None else f"{decimal(100 * share, 0)}%",
        "bar": None if share is None else share_bar(share),
    }


def _saved(full: float, bare: float, write: Any, least: float) -> str:
    if abs(full - bare) <= least * full:
        return "none"
    return write(full - bare) if full > bare else f"{write(bare - full)} more"


def cost_section(result: Record) -> View:
    """Size, memory and speed of the student beside the teacher."""
    both = mapping(result.get("cost"))
    teacher, student = mapping(both.get("teacher")), mapping(both.get("student"))

    def prefill(cost: Record, which: str) -> object:
        return mapping(cost.get("prefill_ms")).get(which)

    def milliseconds(value: float) -> str:
        return f"{decimal(value, 1)} ms"

    table = [
        cost_row("Parameters", teacher.get("parameters"), student.get("parameters"), lambda v: f"{v:,.0f}", "fewer"),
        cost_row("Size of the weights", teacher.get("bytes"), student.get("bytes"), bytes_text, "smaller"),
        cost_row("Peak memory", teacher.get("peak_bytes"), student.get("peak_bytes"), bytes_text, "smaller"),
        cost_row("Prompt tokens, mean", teacher.get("prompt_tokens"), student.get("prompt_tokens"), _mean, "fewer"),
        cost_row(
            "Prompt to first token, median", prefill(teacher, "p50"), prefill(student, "p50"), milliseconds, "faster"
        ),
        cost_row(
            "Prompt to first token, p95", prefill(teacher, "p95"), prefill(student, "p95"), milliseconds, "faster"
        ),
        _rate("Tokens written a second", *(cost.get("decode_tokens_per_second") for cost in (teacher, student))),
        cost_row(
            "A whole request, mean length", teacher.get("request_ms"), student.get("request_ms"), milliseconds, "faster"
        ),
    ]
    provenance = mapping(result.get("provenance"))
    threads = number(provenance.get("threads"))
    where = " on ".join(
        part for part in (plural(int(threads), "thread") if threads else "", text(provenance.get("cpu"))) if part
    )
    missing = " and ".join(f"the {who}" for who, its in (("teacher", teacher), ("student", student)) if not its)
    return {"table": table if teacher or student else [], "where": where, "missing": missing}


def _mean(value: float) -> str:
    return tokens_text(value).split(" ")[0]


def _rate(name: str, teacher: object, student: object) -> View:
    """A row of which more is better."""
    row = cost_row(name, teacher, student, lambda value: f"{decimal(value, 1)}", "faster")
    t, s = number(teacher), number(student)
    share = t / s if t is not None and s else None
    return {**row, "words": times(share, "faster"), "worse": share is not None and share > 1.05}


def transfer_section(result: Record) -> list[tuple[str, str]]:
    """What the distilled student learnt from, fact by fact."""
    found, splits = mapping(result.get("transfer")), mapping(result.get("splits"))
    if not found:
        return []

    def count(key: str, words: str) -> str:
        value = number(found.get(key))
        return "not recorded" if value is None else f"{value:,.0f}{words}"

    author = {"data": "the data", "teacher": "the teacher (see its completions)"}
    lengths = mapping(found.get("prompt_tokens"))
    own, theirs = (number(lengths.get(who)) for who in ("student", "teacher"))
    prompts = [
        f"{tokens_text(value)} as the {who} sees them"
        for who, value in (("student", own), ("teacher", theirs))
        if value is not None
    ]
    if own is not None and own == theirs:
        prompts = [f"{tokens_text(own)}, the same for both models"]
    cut_, dropped = number(found.get("cut")), number(found.get("dropped"))
    return [
        ("Examples", count("examples", "")),
        ("Supervised tokens", count("tokens", ": of completions alone; no prompt and no padding is taught")),
        ("Completions written by", author.get(text(found.get("completions")), "not recorded")),
        (
            "Cut at the longest length",
            count(
                "cut", "" if not cut_ else ", of all splits together: what was cut off, and their end, is not taught"
            ),
        ),
        (
            "Left out as too long",
            count("dropped", "" if not dropped else ", of all splits together: no room was left for a completion"),
        ),
        ("Prompts, mean", "; ".join(prompts) or "not recorded"),
        ("Layout", text(found.get("layout")) or "not recorded"),
        (
            "Splits",
            ", ".join(f"{value:,} {key}" for key, value in splits.items() if number(value) is not None)
            or "not recorded",
        ),
    ]


def generated_section(result: Record) -> View | None:
    """What the teacher wrote, and what was kept of it; None where it wrote nothing."""
    record = mapping(result.get("generated"))
    if not record:
        return None
    counts, facts, made = (mapping(record.get(key)) for key in ("counts", "facts", "made"))
    prompts, written, kept = (number(counts.get(key)) for key in ("prompts", "written", "kept"))
    told = [
        plural(int(written), "completion") + " written" if written is not None else "",
        f"for {plural(int(prompts), 'prompt')}" if prompts is not None else "",
    ]
    lead = " ".join(part for part in told if part)
    share = f" ({decimal(100 * kept / written, 1)}%)" if kept is not None and written else ""
    lead += f"; {kept:,.0f} of them kept{share}." if kept is not None else "; how many were kept is not recorded."
    rows = [("kept", kept)] + [(key, number(value)) for key, value in mapping(counts.get("dropped")).items()]
    table = [
        {
            "name": name,
            "count": f"{count:,.0f}",
            "bar": share_bar(count / written) if written else None,
            "share": f"{decimal(100 * count / written, 1)}%" if written else MISSING,
        }
        for name, count in rows
        if count is not None
    ]
    seconds, tokens = number(made.get("seconds")), number(made.get("tokens"))
    speed = f", {tokens / seconds:,.0f} tokens a second" if tokens and seconds else ""
    took = f"{tokens:,.0f} tokens in {duration(seconds)}{speed}" if tokens is not None and seconds is not None else ""
    details = [
        ("Took", took),
        ("Sampling", _sampling(mapping(facts.get("sampling")))),
        ("Of each prompt", plural(int(n), "completion") if (n := number(facts.get("n"))) else ""),
        ("Kept if", _filters(facts)),
        ("Writer", text(facts.get("teacher"))),
        ("Written", text(made.get("started"))),
    ]
    return {
        "lead": _begun(lead),
        "table": table,
        "facts": [(name, value or "not recorded") for name, value in details],
    }


def _sampling(found: Record) -> str:
    most = number(found.get("max_new_tokens"))
    limit = f"at most {tokens_text(most)}" if most is not None else ""
    if found.get("greedy") is True:
        return ", ".join(part for part in ("always the most probable one", limit) if part)
    drawn = [f"temperature {heat:g}" if (heat := number(found.get("temperature"))) is not None else ""]
    drawn.append(f"top-p {top:g}" if (top := number(found.get("top_p"))) is not None and top < 1 else "")
    drawn.append(f"top-k {most_:g}" if (most_ := number(found.get("top_k"))) else "")
    drawn += [limit, f"seed {seed:g}" if (seed := number(found.get("seed"))) is not None else ""]
    return ", ".join(part for part in drawn if part)


def _filters(facts: Record) -> str:
    found = mapping(facts.get("filters"))
    said = [
        "it was finished" if found.get("finished") is True else "",
        f"it has at least {tokens_text(least)}" if (least := number(found.get("min_tokens"))) else "",
        f"it has at most {tokens_text(most)}" if (most := number(found.get("max_tokens"))) is not None else "",
        f"{text(found.get('python'))} says so" if text(found.get("python")) else "",
        "it was not there already" if facts.get("deduplicate") is True else "",
    ]
    return ", ".join(part for part in said if part)


def stores_section(result: Record) -> list[View]:
    """Each store of labels once, with the arms that were taught from it."""
    arms = arms_of(result)
    readers: dict[str, list[str]] = {}
    found: dict[str, Record] = {}
    for key, (_, record) in arms.items():
        labels = mapping(record.get("labels"))
        if labels:
            digest = text(labels.get("digest")) or text(labels.get("store")) or key
            readers.setdefault(digest, []).append(key)
            found[digest] = labels
    alone = mapping(result.get("labels"))
    if not found and alone:
        found[""] = alone
    views: list[View] = []
    for digest, labels in found.items():
        view = labels_section({"labels": labels})
        assert view is not None
        own = [arms[key][0].phrase for key in readers.get(digest, [])]
        if own:
            lead = labels_lead(labels).split(" Every student", 1)[0]
            view = {**view, "lead": f"{lead} {_begun(_listed(own))} read them from there in place of the teacher."}
        views.append(view)
    return views


def _listed(names: Sequence[str]) -> str:
    return names[0] if len(names) == 1 else f"{', '.join(names[:-1])} and {names[-1]}"


def _begun(words: str) -> str:
    return words[:1].upper() + words[1:]


def curves_section(result: Record) -> View:
    """Validation NLL of all arms in one chart; the training loss of each in its own, for their losses differ."""
    recorded = mapping(mapping(result.get("evidence")).get("curves"))
    arms = arms_of(result)
    held, losses, missing = list[Series](), list[Series](), list[str]()
    for key, (arm, _) in arms.items():
        if key in (TEACHER, UNTOUCHED):
            continue
        runs = records(recorded.get(key))
        lines = [line for run in runs if (line := points(run.get("validation"), "nll"))]
        trained = [line for run in runs if (line := points(run.get("train"), "loss"))]
        if lines:
            held.append(Series(arm, lines))
        else:
            missing.append(arm.phrase)
        if trained:
            losses.append(Series(arm, trained))
    return {**_validation(held), "losses": loss_curves(losses), "missing": missing}


def _validation(held: Sequence[Series]) -> View:
    if not held:
        return {"chart": None, "ends": [], "cut": ""}
    values = sorted(value for item in held for line in item.lines for _, value in line)
    # the first steps lie far above all that matters
    high = values[-1 - len(values) // 12]
    low = values[0]
    air = max(high - low, 1e-3)
    window = (max(0.0, low - 0.06 * air), high + 0.06 * air)
    metric = metric_named("nll")
    ends: list[View] = []
    for item in held:
        last = [line[-1][1] for line in item.lines]
        ends.append(
            {
                "name": item.arm.name,
                "key": key_mark(item.arm.slot, item.arm.shape),
                "seeds": len(last),
                "last": round(item.end[0]),
                "steps": f"{item.end[0]:,.0f}",
                "range": amount(metric, min(last)) + ("" if len(last) == 1 else f" to {amount(metric, max(last))}"),
            }
        )
    chart = line_chart(
        "chart-validation",
        "Validation NLL during training",
        "; ".join(f"{end['name']} ends at {end['range']} nats after {plural(end['last'], 'step')}" for end in ends)
        + ".",
        held,
        window,
        lambda tick: f"{0.0 + round(tick, 10):g}",
        height=320,
        named=False,
    )
    return {"chart": chart, "ends": ends, "cut": decimal(window[1], 1) if values[-1] > window[1] else ""}


def on_policy_lead(result: Record) -> str:
    """Which students wrote completions of their own while they trained, and how much of the time that took."""
    said: list[str] = []
    for arm, record in arms_of(result).values():
        shares = [value for seed in records(record.get("seeds")) if (value := number(seed.get("generation_share")))]
        if shares:
            said.append(f"{arm.phrase} spent {decimal(100 * sum(shares) / len(shares), 0)}% of its training on it")
    return f"On-policy training lets the student write: {'; '.join(said)}." if said else ""
