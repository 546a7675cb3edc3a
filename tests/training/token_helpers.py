"""A tiny Llama as student and teacher, and random texts with uneven masks."""

import torch
from training_helpers import arguments, weights
from transformers import LlamaConfig, LlamaForCausalLM, PrinterCallback

from tutelage.data import TransferSet, next_token_labels
from tutelage.objectives import KL, CrossEntropy
from tutelage.training import DistillationTrainer

VOCABULARY = 61
TOKEN_OBJECTIVE = 0.4 * CrossEntropy() + 0.6 * KL(temperature=2)


def texts(examples=16, *, seed=0, tokens=7, unsupervised=(), **options):
    """Random tokens of uneven lengths, padded on the right; ``unsupervised`` examples have no row at all."""
    generator = torch.Generator().manual_seed(seed)
    ids = torch.randint(1, VOCABULARY, (examples, tokens), generator=generator)
    lengths = torch.randint(2, tokens + 1, (examples,), generator=generator)
    mask = (torch.arange(tokens) < lengths[:, None]).long()
    learnt = mask.bool() & (torch.rand(examples, tokens, generator=generator) < 0.8)
    learnt[list(unsupervised)] = False
    ids = ids * mask
    return TransferSet({"input_ids": ids, "attention_mask": mask}, next_token_labels(ids, mask, learnt), **options)


def llama(seed=1, *, width=8, dtype=torch.float64, tied=False, vocabulary=VOCABULARY):
    config = LlamaConfig(
        vocab_size=vocabulary,
        hidden_size=width,
        intermediate_size=12,
        num_hidden_layers=1,
        num_attention_heads=2,
        max_position_embeddings=16,
        tie_word_embeddings=tied,
        pad_token_id=0,
        initializer_range=0.3,
    )
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(seed)
        return LlamaForCausalLM(config).to(dtype)


def token_trainer(folder, *, student=None, data=None, teacher=None, objective=TOKEN_OBJECTIVE, options=None, **given):
    settings = {
        "per_device_train_batch_size": 8,
        "num_train_epochs": 2,
        "optim": "sgd",
        "learning_rate": 0.5,
        "lr_scheduler_type": "constant",
        "train_sampling_strategy": "sequential",
        **given,
    }
    trainer = DistillationTrainer(
        llama() if student is None else student,
        arguments(folder, **settings),
        objective,
        texts() if data is None else data,
        teacher=llama(2, width=12) if teacher is None else teacher,
        **(options or {}),
    )
    trainer.remove_callback(PrinterCallback)
    return trainer


def token_trained(folder, **options):
    """The student's weights after training, and the trainer."""
    trainer = token_trainer(folder, **options)
    trainer.train()
    return weights(trainer.model), trainer
