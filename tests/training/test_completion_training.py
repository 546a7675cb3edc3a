"""Prompts and completions: what is learnt from them is the same in every layout, and equals training text by text."""

import pytest
import torch
from completion_helpers import by_hand, completion_set, completion_trained, examples
from token_helpers import VOCABULARY, llama
from torch import nn
from training_helpers import assert_close, training_log

from tutelage.data import TransferSet
from tutelage.errors import ModelError
from tutelage.labels import Form
from tutelage.objectives import KL, CrossEntropy, Divergence
from tutelage.studies.labelling import label
from tutelage.teachers import ModuleTeacher, StoredTeacher

LAYOUTS = ["padded", "packed"]


@pytest.mark.parametrize("own_prompts", [False, True], ids=["one prompt", "a prompt for each"])
@pytest.mark.parametrize("layout", LAYOUTS)
def test_training_equals_text_by_text(tmp_path, layout, own_prompts):
    """A row too early, a prompt that is supervised, padding that is, texts that see one another: each still gives a falling loss."""
    raw = examples(own_prompts=own_prompts)
    found, trainer = completion_trained(
        tmp_path, data=TransferSet.of_completions(raw, layout=layout), num_train_epochs=2
    )
    expected, losses = by_hand(raw, epochs=2)
    assert_close(found, expected, 1e-9)
    torch.testing.assert_close(training_log(trainer), losses, rtol=1e-6, atol=0)


def test_the_layout_is_a_matter_of_speed_alone(tmp_path):
    """Micro-batches of other lengths, accumulated in either layout, or one batch: a mean within any of them weighs texts by it."""
    objective = 0.3 * CrossEntropy() + 0.5 * KL(temperature=2) + 0.2 * Divergence("reverse_kl")
    ways = [(layout, size) for layout in LAYOUTS for size in (12, 4)]
    found = []
    for layout, size in ways:
        options = {"per_device_train_batch_size": size, "gradient_accumulation_steps": 12 // size}
        weights, trainer = completion_trained(
            tmp_path / f"{layout} {size}",
            data=completion_set(layout=layout),
            objective=objective,
            num_train_epochs=3,
            **options,
        )
        found.append((weights, training_log(trainer)))
    for weights, losses in found[1:]:
        assert_close(weights, found[0][0], 1e-9)
        torch.testing.assert_close(losses, found[0][1], rtol=1e-6, atol=0)


def test_answers_stored_in_one_layout_serve_the_other(tmp_path):
    """Rows are the completions' tokens in order: bound to a layout, a teacher's answers would meet other tokens in another one."""
    data = completion_set()
    label(ModuleTeacher(llama(2, width=12)), data, tmp_path / "labels", Form("dense", VOCABULARY, dtype="float32"))
    expected, _ = by_hand(data.inputs)
    for layout in LAYOUTS:
        found, _ = completion_trained(
            tmp_path / layout, data=completion_set(layout=layout), teacher=StoredTeacher(tmp_path / "labels")
        )
        assert_close(found, expected, 1e-5)


class Blind(nn.Module):
    """A model that takes no positions, as many do: what is packed is one long text to it."""

    def __init__(self, seed):
        super().__init__()
        self.inner = llama(seed)

    def forward(self, input_ids):
        return self.inner(input_ids=input_ids, use_cache=False)


@pytest.mark.parametrize("who", ["student", "teacher"])
def test_packed_texts_that_see_one_another_are_refused(tmp_path, who):
    """Names that a model does not take are left out: its texts would go on from one another's, and the loss would still fall."""
    models = {"student": llama(1), "teacher": llama(2), who: Blind(3)}
    with pytest.raises(
        ModelError, match=f"the {who} Blind gives other scores for a text when others are packed before it"
    ):
        completion_trained(tmp_path / "1", data=completion_set(layout="packed"), **models)
    completion_trained(tmp_path / "2", data=completion_set(layout="padded"), **models)


def test_a_single_packed_text_is_not_asked_about(tmp_path):
    """There is no other text to see; and a set of one example is what a user tries first."""
    completion_trained(tmp_path, data=completion_set(1, layout="packed"), student=Blind(1))
