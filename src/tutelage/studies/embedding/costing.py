"""What an encoder costs to run: weights, arithmetic, and how many texts a second it encodes on this machine's CPU."""

from __future__ import annotations

import time
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
import torch

from tutelage.data import Tokenise
from tutelage.evaluation.cost import count_flops, stored_bytes
from tutelage.models import count_parameters
from tutelage.models.sentence_static import StaticEncoder
from tutelage.studies.embedding.encoding import EmbeddingModel, as_inputs

#: Texts in a timed call.
BATCH = 32
#: Timed rounds, at least and at most, and after how many seconds no further one begins.
_ROUNDS, _MOST_ROUNDS, _SECONDS = 5, 60, 6.0

Json = dict[str, Any]


@dataclass(frozen=True, eq=False)
class Deployed:
    """An encoder as it would serve texts.

    Args:
        model: it.
        view: makes its inputs of texts.
    """

    model: EmbeddingModel
    view: Tokenise


def embedding_costs(models: Mapping[str, Deployed], texts: Sequence[str], batch_size: int = BATCH) -> dict[str, Json]:
    """Measure encoders side by side on the same texts, one batch at a time.

    The models take turns, forwards and then backwards through the list, so that a machine that warms up or is shared slows all alike.

    Args:
        models: by name, on the CPU.
        texts: of which a batch is taken, evenly over their lengths.
        batch_size: texts in a call.

    Returns:
        By name: ``parameters``; ``bytes`` of the weights; ``flops_per_text``, None where they cannot be counted, 0 of a table of
        tokens; ``texts_per_second``,
        from text to embedding; ``forward_texts_per_second``, of the model alone, whose inputs are there already; ``batch`` and the
        ``tokens`` of a text in it, ``mean`` and ``longest``, which a batch is padded to.
    """
    some = sample(texts, batch_size)
    inputs = {name: as_inputs(each.view, some) for name, each in models.items()}
    calls: dict[str, dict[str, Callable[[], Any]]] = {"whole": {}, "forward": {}}
    for name, each in models.items():
        each.model.eval()
        calls["whole"][name] = lambda each=each: each.model(**as_inputs(each.view, some))
        calls["forward"][name] = lambda each=each, given=inputs[name]: each.model(**given)
    with torch.inference_mode():
        took = {kind: _in_turns(each) for kind, each in calls.items()}
    found: dict[str, Json] = {}
    for name, each in models.items():
        lengths = inputs[name]["attention_mask"].sum(dim=1)
        one = {key: values[:1] for key, values in as_inputs(each.view, [_middling(some)]).items()}
        found[name] = {
            "parameters": count_parameters(each.model),
            "bytes": stored_bytes(each.model),
            # vectors that are looked up and averaged are no products, of which nothing at all would read as not known
            "flops_per_text": 0 if isinstance(each.model.encoder, StaticEncoder) else count_flops(each.model, one),
            "texts_per_second": len(some) / float(np.median(took["whole"][name])),
            "forward_texts_per_second": len(some) / float(np.median(took["forward"][name])),
            "batch": len(some),
            "tokens": {"mean": float(lengths.double().mean()), "longest": int(lengths.max())},
            "threads": torch.get_num_threads(),
        }
    return found


def sample(texts: Sequence[str], count: int) -> list[str]:
    """So many texts, evenly over their lengths, repeated where there are fewer."""
    ranked = sorted(texts, key=lambda text: (len(text), text))
    places = np.linspace(0, len(ranked) - 1, min(count, len(ranked))).round().astype(int)
    chosen = [ranked[place] for place in places.tolist()]
    return [chosen[index % len(chosen)] for index in range(count)]


def _middling(texts: Sequence[str]) -> str:
    return sorted(texts, key=len)[len(texts) // 2]


def _in_turns(calls: Mapping[str, Callable[[], Any]]) -> dict[str, list[float]]:
    """Seconds of each timed call, after one of each that is not timed."""
    for call in calls.values():
        call()
    found: dict[str, list[float]] = {name: [] for name in calls}
    names: Sequence[str] = list(calls)
    deadline, rounds = time.perf_counter() + _SECONDS, 0
    while rounds < _ROUNDS or (rounds < _MOST_ROUNDS and time.perf_counter() < deadline):
        for name in names if rounds % 2 == 0 else reversed(names):
            began = time.perf_counter()
            calls[name]()
            found[name].append(time.perf_counter() - began)
        rounds += 1
    return found
