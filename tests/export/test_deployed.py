"""What every exporter starts from: the student as it answers, without what training hung on it, and with its own weights."""

import io
import logging
import sys
import warnings

import pytest
import torch
from torch import nn
from torch.nn.utils import prune

from tutelage.errors import ExportError, ModelError
from tutelage.export.deployed import ByPosition, copy_as_deployed
from tutelage.export.quieting import silenced
from tutelage.export.refusals import refusal

X = torch.randn(4, 8, generator=torch.Generator().manual_seed(0))


class EveryOther(prune.BasePruningMethod):
    """A user's own way of pruning, as PyTorch's documentation has one write it."""

    PRUNING_TYPE = "unstructured"

    def compute_mask(self, t, default_mask):
        mask = default_mask.clone()
        mask.view(-1)[::2] = 0
        return mask


def weight_norm(layer):
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", FutureWarning)
        return nn.utils.weight_norm(layer)


def pruned(layer):
    EveryOther.apply(layer, "weight")
    return layer


MADE = {
    "weight norm": (weight_norm, "weight_g"),
    "spectral norm": (nn.utils.spectral_norm, "weight_orig"),
    "pruning": (lambda layer: prune.l1_unstructured(layer, "weight", amount=0.5), "weight_orig"),
    "one's own pruning": (pruned, "weight_orig"),
}


@pytest.mark.parametrize("how", MADE)
def test_weights_that_hooks_make_are_those_of_the_last_step(how):
    """Hooks taken for training's leave the weights of the last forward behind, one optimiser step old."""
    make, learned = MADE[how]
    model = nn.Sequential(make(nn.Linear(8, 3)))
    model(X).sum().backward()
    with torch.no_grad():
        getattr(model[0], learned).mul_(3)
        expected = model.eval()(X)
    model[0].weight = model[0].weight / 3  # as before the step
    deployed = copy_as_deployed(model, X)
    torch.testing.assert_close(deployed(X), expected)
    assert not deployed[0]._forward_pre_hooks, "the weights are made once, and not at each call on the phone"
    assert model[0]._forward_pre_hooks
    assert learned in dict(model[0].named_parameters())


def test_other_hooks_and_train_mode_stay_with_the_model():
    """A hook that watches would run on the phone; a model left without it, or in eval mode, would go on training as another."""
    model = nn.Sequential(nn.Linear(8, 8), nn.Dropout(0.5), nn.Linear(8, 3)).train()
    model[1].eval()
    seen = []
    model[0].register_forward_hook(lambda *_: seen.append("after"))
    model[0].register_forward_pre_hook(lambda *_, **__: seen.append("before"), with_kwargs=True)
    deployed = copy_as_deployed(model, X)
    deployed(X)
    assert seen == []
    assert not any(module.training for module in deployed.modules())
    assert [module.training for module in model] == [True, False, True]
    model(X)
    assert seen == ["before", "after"]


def test_a_wrapper_is_taken_off():
    """DDP and torch.compile put a prefix before every name, and calls into the graph that no runtime knows."""
    inner = nn.Linear(8, 3)
    wrapper = nn.Module()
    wrapper._orig_mod = inner
    assert type(copy_as_deployed(wrapper, X)) is nn.Linear


class Logging(nn.Module):
    """With an open file, which cannot be copied."""

    def __init__(self):
        super().__init__()
        self.linear = nn.Linear(8, 3)
        self.log = io.TextIOWrapper(io.BytesIO())

    def forward(self, x):
        return self.linear(x)


@pytest.mark.parametrize(
    ("model", "sample", "error", "message"),
    [
        (Logging(), X, ExportError, r"Logging cannot be copied: TypeError"),
        (nn.Linear(7, 3), X, ExportError, r"own sample \('input' \[4, 8\]\): RuntimeError"),
        (nn.Linear(8, 3), {"x": X}, ModelError, "needs input"),
    ],
    ids=["not to be copied", "another sample", "another name"],
)
def test_a_model_that_is_refused_is_as_it_was(model, sample, error, message):
    """After a refused export the user goes on training; in eval mode, dropout would be off and nothing would say so."""
    model.train()
    hook = model.register_forward_hook(lambda *_: None)
    with pytest.raises(error, match=message):
        copy_as_deployed(model, sample)
    assert all(module.training for module in model.modules())
    assert list(model._forward_hooks) == [hook.id]


def test_by_position_gives_each_tensor_its_name():
    """Two tensors of one shape that change places are answered without complaint, and wrongly."""

    class Less(nn.Module):
        def forward(self, high, low):
            return {"logits": high - low}

    seen = []
    caller = ByPosition(Less(), ["low", "high"], seen.append)
    assert torch.equal(caller(X, 2 * X), X)
    assert len(seen) == 1
    assert torch.equal(ByPosition(nn.Identity(), ["input"])(X), X)


def test_a_refusal_names_the_innermost_module_and_the_users_line():
    """An exporter's error is raised pages away from the model; its class and line are what a user can act on."""

    class Block(nn.Module):
        def forward(self, x):
            raise NotImplementedError("no such thing")

    model = nn.Sequential(nn.Sequential(Block()))

    def refused():
        try:
            ByPosition(model, ["input"])(X)
        except NotImplementedError as error:
            try:
                raise RuntimeError("the exporter\nfailed on page one") from error
            except RuntimeError as outer:
                return str(refusal(outer, model, "a tablet"))

    assert r"turned into a tablet in its module '0.0' (class Block), line " in refused()
    assert "test_deployed.py: NotImplementedError: no such thing." in refused()


def test_packages_are_silenced_for_a_while_alone(capsys):
    """A package's handler on the root logger would print every message of the user's own program twice."""
    child, before = logging.getLogger("noisy.inside"), list(logging.getLogger().handlers)
    child.setLevel(logging.DEBUG)
    levels = [child.level, logging.getLogger("noisy").level]
    with silenced("noisy"):
        logging.getLogger().addHandler(logging.StreamHandler())
        child.error("of its own workings")
        sys.stdout.write("a graph")
    assert capsys.readouterr() == ("", "")
    assert logging.getLogger().handlers == before
    assert [child.level, logging.getLogger("noisy").level] == levels
