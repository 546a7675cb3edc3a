"""Which examples are in which batch, in which order, as which epoch shows them."""

from itertools import chain

import pytest
import torch
from token_helpers import texts, token_trainer
from training_helpers import arguments, network, trained, trainer_of, transfer_set

from tutelage.data import Completions, GaussianNoise, Ragged, TransferSet, input_lengths
from tutelage.errors import ConfigError
from tutelage.signals import NO_LABEL
from tutelage.training.evaluating import token_metrics
from tutelage.training.feeding import EpochBatches, EpochLoader


def epoch_of(batches, epoch):
    batches.set_epoch(epoch)
    return list(batches)


def rows_of(batches, epoch):
    return [[key - epoch * len(batches.transfer_set) for key in keys] for keys in epoch_of(batches, epoch)]


def test_the_order_is_a_function_of_seed_and_epoch():
    """An order that depended on what ran before could not be had again by a resumed run."""
    data = transfer_set(50)
    first, again = EpochBatches(data, 8, seed=3), EpochBatches(data, 8, seed=3)
    epoch_of(first, 0)
    assert epoch_of(first, 1) == epoch_of(again, 1)
    assert rows_of(first, 1) != rows_of(first, 2)
    assert rows_of(first, 1) != rows_of(EpochBatches(data, 8, seed=4), 1)
    assert sorted(chain.from_iterable(rows_of(first, 1))) == list(range(50))
    assert [len(keys) for keys in rows_of(first, 1)] == [8] * 6 + [2]
    assert len(first) == 7


def test_sequential_is_the_set_s_own_order():
    """``train_sampling_strategy='sequential'`` that still shuffled would break whoever sorted by length."""
    assert rows_of(EpochBatches(transfer_set(10), 4, seed=0, strategy="sequential"), 5) == [
        [0, 1, 2, 3],
        [4, 5, 6, 7],
        [8, 9],
    ]


def test_grouping_by_length_pads_little_and_stays_random():
    """Batches of unlike lengths compute mostly padding; batches that were the same in every epoch would train a worse model."""
    lengths = torch.randint(1, 60, (1000,), generator=torch.Generator().manual_seed(0)).tolist()
    data = TransferSet([f"{row:04d}".rjust(4 + length, "x") for row, length in enumerate(lengths)])
    grouped = EpochBatches(data, 8, seed=3, strategy="group_by_length")
    first, second = rows_of(grouped, 0), rows_of(grouped, 1)

    def longest(rows):
        return sum(max(lengths[row] for row in batch) for batch in rows)

    assert longest(first) < 0.65 * longest(rows_of(EpochBatches(data, 8, seed=3), 0))
    assert first == rows_of(EpochBatches(data, 8, seed=3, strategy="group_by_length"), 0)
    assert sorted(chain.from_iterable(first)) == list(range(1000))
    assert {frozenset(batch) for batch in first}.isdisjoint(frozenset(batch) for batch in second)
    means = [sum(lengths[row] for row in batch) / 8 for batch in first]
    assert means not in (sorted(means), sorted(means, reverse=True))


def test_grouping_by_length_leaves_the_last_batch_to_chance():
    """Were the batch that is not full the longest or shortest examples, ``dataloader_drop_last`` would leave out the same ones always."""
    data = TransferSet(["x" * (row + 1) for row in range(50)])
    grouped = EpochBatches(data, 8, seed=3, strategy="group_by_length")
    last = [set(rows_of(grouped, epoch)[-1]) for epoch in range(20)]
    assert all(len(rows) == 2 for rows in last)
    assert len(set.union(*last)) > 20


@pytest.mark.parametrize(
    ("inputs", "lengths"),
    [
        ({"input_ids": torch.ones(2, 3), "attention_mask": torch.tensor([[1, 1, 0], [1, 1, 1]])}, [2, 3]),
        (Completions(Ragged.of([[1, 2], [3]]), Ragged.of([[4], [5, 6, 7]])), [3, 4]),
    ],
)
def test_lengths_of_tokens_are_counted_without_their_padding(inputs, lengths):
    """Padded tensors are all of one shape; a prompt is computed as its completion is."""
    assert input_lengths(inputs).tolist() == lengths


def test_grouping_images_by_length_is_refused(tmp_path):
    """It would be a random order under another name; found at the first batch, a study's teacher would have been trained before."""
    with pytest.raises(ConfigError, match="no length to group them by"):
        EpochBatches(transfer_set(10), 4, seed=0, strategy="group_by_length")
    with pytest.raises(ConfigError, match="no length to group them by"):
        trainer_of(tmp_path, data=transfer_set(10), train_sampling_strategy="group_by_length")


def test_a_large_seed_is_a_seed():
    """Seeds are often times or hashes; the generator takes 64 bits."""
    assert sorted(chain.from_iterable(rows_of(EpochBatches(transfer_set(5), 4, seed=2**62), 1))) == list(range(5))


@pytest.mark.parametrize("examples", [48, 50, 49, 51])
@pytest.mark.parametrize("drop_last", [False, True])
def test_processes_share_out_each_global_batch(examples, drop_last):
    """A process that saw another's examples, or none, would double or lose them without any error."""
    data = transfer_set(examples)
    ranks = [
        rows_of(EpochBatches(data, 4, seed=1, drop_last=drop_last, rank=rank, world_size=3), 2) for rank in range(3)
    ]
    alone = rows_of(EpochBatches(data, 12, seed=1, drop_last=drop_last), 2)
    assert len({len(batches) for batches in ranks}) == 1, "one process would wait for ever"
    for step, whole in enumerate(alone):
        together = [row for batches in ranks for row in batches[step]]
        if len(whole) >= 3:
            assert together == whole
        else:
            assert together[: len(whole)] == whole
            assert len(together) == 3
        assert all(batches[step] for batches in ranks)


def test_no_batch_at_all_is_an_error(tmp_path):
    """``Trainer`` would end at step 0 with a warning in the log, and an untrained student would be shipped."""
    with pytest.raises(ConfigError, match=r"10 examples make no batch of 16 .*dataloader_drop_last"):
        trained(tmp_path, data=transfer_set(10), dataloader_drop_last=True, max_steps=3)
    with pytest.raises(ConfigError, match="each of 3 processes"):
        EpochBatches(transfer_set(2), 4, seed=0, world_size=3)


@pytest.mark.parametrize("workers", [{}, {"workers": 2}, {"workers": 2, "persistent_workers": True}], ids=str)
def test_each_epoch_shows_its_own_augmentation(workers):
    """A worker keeps the data set it was started with: told of no epoch, it would show the same noise for ever."""
    data = transfer_set(20, augment=GaussianNoise(0.5), seed=7)
    loader = EpochLoader(EpochBatches(data, 8, seed=0), **workers)
    for epoch in (0, 1, 4):
        loader.set_epoch(epoch)
        batches = list(loader)
        for batch, rows in zip(batches, rows_of(EpochBatches(data, 8, seed=0), epoch), strict=True):
            expected = data.batch(torch.tensor(rows), epoch)
            assert torch.equal(batch["ids"], expected["ids"])
            assert torch.equal(batch["student"], expected["student"])


@pytest.mark.parametrize("workers", [0, 1])
def test_loading_draws_nothing_from_the_global_generator(workers):
    """``DataLoader`` draws a base seed at each epoch: dropout after it would depend on how often a loader was started."""
    loader = EpochLoader(EpochBatches(transfer_set(20, augment=GaussianNoise(0.5)), 8, seed=0), workers=workers)
    before = torch.get_rng_state()
    list(loader)
    list(loader)
    assert torch.equal(torch.get_rng_state(), before)


def test_training_meets_each_example_once_an_epoch_as_that_epoch_shows_it(tmp_path):
    """The epoch must reach the batches through ``Trainer`` and ``accelerate``, which know nothing of it."""
    seen = []

    class Watched(torch.nn.Sequential):
        def forward(self, inputs):
            if self.training:
                seen.append(inputs.detach().clone())
            return super().forward(inputs)

    data = transfer_set(20, augment=GaussianNoise(0.5), seed=7)
    trainer = trainer_of(
        tmp_path,
        student=Watched(*network(1)),
        data=data,
        per_device_train_batch_size=8,
        num_train_epochs=3,
        data_seed=11,
        gradient_accumulation_steps=2,
    )
    trainer.train()
    order = EpochBatches(data, 8, seed=11)
    expected = [data.batch(torch.tensor(rows), e)["student"] for e in range(3) for rows in rows_of(order, e)]
    assert len(seen) == len(expected)
    assert all(torch.equal(got, due) for got, due in zip(seen, expected, strict=True))


def test_workers_train_the_same_student(tmp_path):
    """How many processes load is a matter of speed; it must not be one of results."""
    options = {"data": transfer_set(30, augment=GaussianNoise(0.5)), "per_device_train_batch_size": 8}
    alone, _ = trained(tmp_path / "0", **options)
    helped, _ = trained(
        tmp_path / "2",
        **options,
        dataloader_num_workers=1,
        dataloader_persistent_workers=True,
        dataloader_prefetch_factor=3,
    )
    assert all(torch.equal(values, helped[name]) for name, values in alone.items())


def test_evaluation_and_prediction_leave_training_alone(tmp_path):
    """They draw a base seed each: a run that looked at held-out data more often would have other dropout."""
    held_out = transfer_set(16, seed=5, augment=GaussianNoise(3.0))

    def train(name, **options):
        student = network(1, dropout=0.5)
        extra = {"eval_dataset": held_out, "compute_metrics": lambda p: {"mean": float(p.predictions.mean())}}
        return trained(tmp_path / name, student=student, trainer_options=extra, **options)

    plain, _ = train("plain")
    looked, trainer = train("looked", eval_strategy="steps", eval_steps=1)
    assert all(torch.equal(values, looked[name]) for name, values in plain.items())
    before = torch.get_rng_state()
    trainer.predict(held_out)
    assert torch.equal(torch.get_rng_state(), before)


def test_held_out_data_is_shown_as_it_is(tmp_path):
    """Augmented test images would make every metric that of another, harder test."""
    held_out = transfer_set(10, seed=5, augment=GaussianNoise(9.0))
    trainer = trainer_of(tmp_path, per_device_eval_batch_size=4)
    with torch.no_grad():
        expected = trainer.model.eval()(held_out.inputs)
    predicted = trainer.predict(held_out)
    assert torch.allclose(torch.from_numpy(predicted.predictions), expected, atol=1e-6)
    assert predicted.label_ids.tolist() == held_out.known_labels.tolist()


def test_views_are_applied_in_evaluation_too(tmp_path):
    """A student that was trained on normalised inputs and tested on raw ones would look bad for no reason."""

    def halved(inputs, draws):
        return inputs / 2

    held_out = TransferSet(transfer_set(6).inputs, student_view=halved)
    trainer = trainer_of(tmp_path)
    with torch.no_grad():
        expected = trainer.model.eval()(held_out.inputs / 2)
    assert torch.allclose(torch.from_numpy(trainer.predict(held_out).predictions), expected, atol=1e-6)


def test_arguments_of_the_loader_reach_it(tmp_path):
    """An argument that nobody reads makes its user believe in a speed or an order that is not there."""
    loader = trainer_of(
        tmp_path,
        dataloader_num_workers=1,
        dataloader_prefetch_factor=5,
        dataloader_in_order=False,
        dataloader_multiprocessing_context="fork",
    ).get_train_dataloader()
    assert (loader.num_workers, loader.prefetch_factor, loader.in_order) == (1, 5, False)
    assert loader.multiprocessing_context.get_start_method() == "fork"
    assert arguments(tmp_path).dataloader_pin_memory is torch.cuda.is_available()


def test_grouping_by_length_leaves_held_out_examples_where_they_are(tmp_path):
    """Predictions are read by position: in the order of their lengths they would be other examples' answers."""
    held_out = texts(12, seed=5)
    given = {"options": {"eval_dataset": held_out, "compute_metrics": token_metrics}, "max_steps": 2}
    trainer = token_trainer(
        tmp_path, train_sampling_strategy="group_by_length", eval_strategy="steps", eval_steps=1, **given
    )
    trainer.train()
    assert len([entry for entry in trainer.state.log_history if "eval_nll" in entry]) == 2
    rows = held_out.inputs["attention_mask"].sum(dim=1)
    said = trainer.predict(held_out).label_ids
    assert ((said != NO_LABEL).sum(axis=1) <= rows.numpy()).all()
    assert (said == held_out.known_labels.numpy()).all()
