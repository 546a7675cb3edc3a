"""An encoder as the trainer takes a model, and texts as an encoder takes them."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from typing import Any

import torch
from torch import Tensor, nn

from tutelage.data import Tokenise, content_ids, shortest_first
from tutelage.data.randomness import Draws
from tutelage.errors import DataError, ModelError, TeacherError
from tutelage.models import on_device
from tutelage.models.calling import describe_output, run_model

#: What both models' embeddings are called among their features.
EMBEDDING = "embedding"


class EmbeddingModel(nn.Module):
    """An encoder whose embedding ``[B, D]`` stands where the trainer looks for class scores, and is shown as the layer ``embedding``.

    Args:
        encoder: a module whose ``forward`` takes a tokenizer's tensors by name and returns ``{"embedding": [B, D]}``.
    """

    def __init__(self, encoder: nn.Module) -> None:
        super().__init__()
        self.encoder = encoder
        self.embedding = nn.Identity()

    def forward(self, **inputs: Tensor) -> dict[str, Tensor]:
        """``{"logits": [B, D]}``.

        Raises:
            ModelError: the encoder returns no embedding ``[B, D]``.
        """
        output = run_model(self.encoder, inputs)
        found = output.get(EMBEDDING) if isinstance(output, Mapping) else None
        if not isinstance(found, Tensor) or found.ndim != 2 or not found.is_floating_point():
            got = f"{found.dtype} {tuple(found.shape)}" if isinstance(found, Tensor) else describe_output(output)
            raise ModelError(
                f"{type(self.encoder).__name__} returned {got}, expected {{'embedding': floats [texts, width]}}: what is compared must be "
                "one vector a text; pool the tokens inside the model"
            )
        return {"logits": self.embedding(found)}


def encode(
    model: EmbeddingModel,
    view: Tokenise,
    texts: Sequence[str],
    batch_size: int = 64,
    done: Callable[[int], None] | None = None,
) -> Tensor:
    """Embeddings float32 ``[N, D]`` on the CPU, in eval mode and without gradient; the model is as before afterwards.

    Texts of like length share a batch, so that little of it is padding.

    Args:
        model: the encoder.
        view: makes its inputs of texts.
        texts: N of them.
        batch_size: texts in a call.
        done: told after each call how many texts are done.

    Raises:
        DataError: no texts.
        TeacherError: an embedding that is NaN or infinite; the text is named.
    """
    if not texts:
        raise DataError("there are no texts to encode")
    device = next((parameter.device for parameter in model.parameters()), torch.device("cpu"))
    order = shortest_first(texts)
    was_training = model.training
    model.eval()
    parts: list[Tensor] = []
    with torch.no_grad():
        for rows in order.split(batch_size):
            inputs: Any = on_device(as_inputs(view, [texts[int(row)] for row in rows]), device)
            parts.append(model(**inputs)["logits"].float().cpu())
            if done is not None:
                done(sum(map(len, parts)))
    model.train(was_training)
    found = torch.cat(parts)[order.argsort()]
    bad = (~torch.isfinite(found).all(dim=1)).nonzero()
    if len(bad):
        raise TeacherError(
            f"{type(model.encoder).__name__} gave NaN or infinity for {len(bad):,} of {len(texts):,} texts, the first "
            f"{texts[int(bad[0])]!r}: no similarity of it is a number; run the model in float32, or look at that text"
        )
    return found


def as_inputs(view: Tokenise, texts: Sequence[str]) -> Any:
    """What an encoder is given for these texts: tensors ``[B, T]`` by name."""
    return view(list(texts), Draws(0, 0, content_ids(list(texts))))


def token_count(view: Tokenise, texts: Sequence[str]) -> tuple[int, int]:
    """How many tokens these texts have as the model sees them, and how many of the texts are cut to that."""
    whole = view.tokenizer(list(texts), truncation=False, verbose=False)["input_ids"]
    lengths = [len(tokens) for tokens in whole]
    most = view.max_length if view.max_length is not None else max(lengths, default=0)
    return sum(min(length, most) for length in lengths), sum(length > most for length in lengths)
