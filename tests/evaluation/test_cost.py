"""FLOPs and bytes counted by hand, and latency that is measured on what would be deployed."""

import json
import time

import pytest
import torch
from torch import nn

from tutelage.errors import ConfigError, DataError, ModelError
from tutelage.evaluation import measure_cost
from tutelage.evaluation.cost import count_flops, stored_bytes


class Pooled(nn.Module):
    """A sequence layer, then the mean over tokens as logits."""

    def __init__(self, layer):
        super().__init__()
        self.layer = layer

    def forward(self, x):
        out = self.layer(x)
        return (out[0] if isinstance(out, tuple) else out).mean(dim=1)


class Attention(nn.Module):
    def __init__(self, width, heads):
        super().__init__()
        self.qkv = nn.Linear(width, 3 * width, bias=False)
        self.heads = heads

    def forward(self, x):
        q, k, v = self.qkv(x).unflatten(-1, (3, self.heads, -1)).permute(2, 0, 3, 1, 4)
        return nn.functional.scaled_dot_product_attention(q, k, v).transpose(1, 2).flatten(2)


def quick(models, inputs, **options):
    return measure_cost(models, inputs, **{"seconds": 0.02, "repeats": 12, **options})


def test_linear_flops_are_two_for_a_multiply_add():
    assert count_flops(nn.Linear(64, 10), torch.zeros(1, 64)) == 2 * 64 * 10


def test_convolution_flops():
    # 16 filters of 3×3 over 4 channels at each of 8×8 places
    model = nn.Sequential(nn.Conv2d(4, 16, 3, padding=1), nn.Flatten(), nn.Linear(16 * 64, 5))
    assert count_flops(model, torch.zeros(1, 4, 8, 8)) == 2 * 64 * 16 * 9 * 4 + 2 * 16 * 64 * 5


def test_attention_is_not_free():
    """PyTorch's counter sees nothing in CPU attention: a transformer would look cheaper than it is."""
    tokens, width = 6, 8
    projections = 2 * tokens * width * 3 * width
    products = 2 * (2 * tokens * tokens * width)
    assert count_flops(Pooled(Attention(width, 2)), torch.zeros(1, tokens, width)) == projections + products


def test_fused_encoder_and_recurrent_layers_are_counted_as_what_they_compute():
    tokens, width = 5, 8
    encoder = nn.TransformerEncoderLayer(width, 2, 16, batch_first=True).eval()
    expected = 2 * tokens * width * 4 * width + 4 * tokens * tokens * width + 2 * (2 * tokens * width * 16)
    assert count_flops(Pooled(encoder), torch.zeros(1, tokens, width)) == expected
    assert torch.backends.mha.get_fastpath_enabled()
    lstm = Pooled(nn.LSTM(width, 12, batch_first=True))
    assert count_flops(lstm, torch.zeros(1, tokens, width)) == 2 * tokens * 4 * 12 * (width + 12)


def test_what_cannot_be_counted_is_unknown_and_not_zero():
    class Distances(nn.Module):
        def forward(self, x):
            return torch.cdist(x[:, None], torch.ones(30, 4)[None])[:, 0]

    class Lookup(nn.Module):
        def forward(self, x):
            return x + 1

    class Uncountable(nn.Module):
        def forward(self, x):
            if torch.utils._python_dispatch._get_current_dispatch_mode() is not None:
                raise RuntimeError("not under a counter")
            return x

    for model in (Distances(), Lookup(), Uncountable()):
        assert count_flops(model, torch.zeros(1, 4)) is None
        cost = quick({"m": model}, {"m": torch.zeros(1, 4)})["m"]
        assert cost.to_json()["flops_per_example"] is None


def test_a_custom_operator_is_unknown():
    @torch.library.custom_op("tutelage_tests::triple", mutates_args=())
    def triple(x: torch.Tensor) -> torch.Tensor:
        return 3 * x

    class Custom(nn.Module):
        def __init__(self):
            super().__init__()
            self.head = nn.Linear(4, 2)

        def forward(self, x):
            return self.head(triple(x))

    assert count_flops(Custom(), torch.zeros(1, 4)) is None


def test_shared_weights_count_once_and_bytes_follow_the_type():
    model = nn.Sequential(nn.Linear(8, 8, bias=False), nn.BatchNorm1d(8), nn.Linear(8, 8, bias=False))
    model[2].weight = model[0].weight
    model.register_buffer("cache", torch.zeros(100), persistent=False)
    cost = quick({"m": model}, {"m": torch.zeros(4, 8)})["m"]
    assert cost.parameters == 64 + 16
    # the two running statistics are float32, the number of batches seen an int64; the cache is never stored
    assert cost.bytes == 4 * (64 + 16 + 16) + 8
    assert stored_bytes(model.half()) == 2 * (64 + 16 + 16) + 8
    assert cost.flops_per_example == 2 * 2 * 64


def test_a_model_is_timed_in_eval_mode_and_given_back_as_it_came():
    """In train mode dropout would be timed and BatchNorm refuse batch 1, or move its statistics."""
    seen = []

    class Watcher(nn.Module):
        def forward(self, x):
            seen.append((self.training, torch.is_grad_enabled()))
            return x

    model = nn.Sequential(nn.Linear(8, 4), nn.BatchNorm1d(4), Watcher())
    model.train()
    model[1].eval()
    before = {name: value.clone() for name, value in model.state_dict().items()}
    quick({"m": model}, {"m": torch.randn(3, 8)})
    assert set(seen) == {(False, False)}
    assert [module.training for module in model] == [True, False, True]
    assert all(torch.equal(before[name], value) for name, value in model.state_dict().items())


def test_flags_are_given_back_after_an_error():
    class Broken(nn.Module):
        def forward(self, x):
            return "no logits"

    model = Broken().train()
    with pytest.raises(ModelError, match="returned"):
        quick({"m": model}, {"m": torch.zeros(1, 4)})
    assert model.training


def test_latency_ranks_a_slow_model_behind_a_fast_one_and_takes_turns():
    order = []

    class Sleeper(nn.Module):
        def __init__(self, name, seconds):
            super().__init__()
            self.name, self.seconds = name, seconds

        def forward(self, x):
            order.append(self.name)
            time.sleep(self.seconds)
            return x

    models = {"teacher": Sleeper("teacher", 4e-3), "student": Sleeper("student", 1e-3)}
    cost = quick(models, dict.fromkeys(models, torch.zeros(2, 3)), batch_sizes=(1,))
    teacher, student = cost["teacher"].latency_ms_at[1], cost["student"].latency_ms_at[1]
    assert 4.0 <= teacher.p50 <= teacher.p95
    assert 1.0 <= student.p50 < teacher.p50
    assert teacher.calls == student.calls == 12
    turns = [name for i, name in enumerate(order[:-2]) if i % 5 == 0]
    # a warm-up each, then there and back again
    assert turns == ["teacher", "student", "teacher", "student", "student", "teacher", "teacher", "student"]


def test_batches_are_cut_or_repeated_and_mappings_passed_by_name():
    sizes = []

    class Text(nn.Module):
        def forward(self, input_ids, attention_mask):
            assert len(input_ids) == len(attention_mask)
            sizes.append(len(input_ids))
            return {"logits": nn.functional.one_hot(input_ids[:, 0], 4).float() @ torch.ones(4, 2)}

    batch = {"input_ids": torch.ones(3, 5, dtype=torch.long), "attention_mask": torch.ones(3, 5, dtype=torch.long)}
    cost = quick({"m": Text()}, {"m": batch}, batch_sizes=(32, 2, 1))["m"]
    assert set(sizes) == {1, 2, 32}
    assert list(cost.latency_ms_at) == [1, 2, 32]
    assert cost.flops_per_example == 2 * 4 * 2


def test_time_is_bounded():
    models = {"m": nn.Linear(8, 4)}
    start = time.perf_counter()
    cost = measure_cost(models, {"m": torch.zeros(1, 8)}, seconds=0.3, repeats=10**9)["m"]
    assert time.perf_counter() - start < 5.0
    assert cost.latency_ms_at[1].calls > 12


def test_json_has_the_layout_of_the_record():
    record = quick({"m": nn.Linear(8, 4)}, {"m": torch.zeros(32, 8)})["m"].to_json()
    record = json.loads(json.dumps(record))
    assert list(record) == ["parameters", "bytes", "flops_per_example", "threads", "latency_ms", "latency_ms_at"]
    assert record["threads"] == torch.get_num_threads()
    assert record["latency_ms"] == record["latency_ms_at"]["1"]
    assert record["latency_ms_at"]["32"]["batch"] == 32
    assert set(record["latency_ms"]) == {"p50", "p95", "batch", "calls"}


def test_bad_input_is_an_error():
    model, x = nn.Linear(8, 4), torch.zeros(1, 8)
    with pytest.raises(ConfigError, match="batch"):
        measure_cost({"m": model}, {"m": x}, batch_sizes=(0,))
    with pytest.raises(ConfigError, match="0 models"):
        measure_cost({}, {})
    with pytest.raises(DataError, match="view"):
        measure_cost({"m": model}, {"other": x})
    with pytest.raises(DataError, match="empty"):
        measure_cost({"m": model}, {"m": x[:0]})
    with pytest.raises(ModelError, match="CPU"):
        measure_cost({"m": nn.Linear(8, 4, device="meta")}, {"m": x})


def test_flops_are_of_the_example_that_comes_alone():
    """Beside a long text a short one is padded, and its arithmetic would be that of the long one."""
    pooled = Pooled(nn.Linear(4, 3))
    given, alone = {"m": torch.zeros(5, 6, 4)}, {"m": torch.zeros(1, 2, 4)}
    assert quick({"m": pooled}, given)["m"].flops_per_example == 2 * 6 * 4 * 3
    assert measure_cost({"m": pooled}, given, alone=alone, seconds=0.01)["m"].flops_per_example == 2 * 2 * 4 * 3
    with pytest.raises(DataError, match="one batch for each of the models"):
        measure_cost({"m": pooled}, given, alone={"other": alone["m"]})
