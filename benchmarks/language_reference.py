"""The first step's loss in float64, text by text, as the formula says."""

from pathlib import Path

import torch
from torch import Tensor

from benchmarks.language_data import Material, load_student, load_teacher


def reference_loss(model: Path, step: Material, dtype: str) -> float:
    """Mean forward KL at T = 1 of a step's supervised rows, nats; no padding, no blocks, weights as each road has them."""
    student, teacher = load_student(model).double().eval(), load_teacher(model, dtype).double().eval()
    total, rows = 0.0, 0
    for prompt, completion in zip(step.prompts, step.completions, strict=True):
        ids, first = torch.cat([prompt, completion])[None], len(prompt) - 1
        with torch.no_grad():
            log_q, log_p = (_log_p(each, ids)[first:-1] for each in (teacher, student))
        total += float((log_q.exp() * (log_q - log_p)).sum())
        rows += len(completion)
    return total / rows


def _log_p(model: torch.nn.Module, ids: Tensor) -> Tensor:
    return model(input_ids=ids, use_cache=False).logits[0].log_softmax(-1)
