"""Random prompts and completions for a tiny Llama, and its training by hand, example by example and without padding."""

import torch
from token_helpers import VOCABULARY, llama, token_trainer
from training_helpers import weights

from tutelage.data import Completions, Ragged, TransferSet
from tutelage.objectives import KL

EOS = 3


def sequences(count, longest, *, seed, least=1):
    generator = torch.Generator().manual_seed(seed)
    lengths = torch.randint(least, longest + 1, (count,), generator=generator).tolist()
    return Ragged.of([torch.randint(4, VOCABULARY, (length,), generator=generator) for length in lengths])


def examples(count=12, *, own_prompts=True, seed=0):
    """Prompts of 1 to 3 tokens, other ones of up to 5 for the teacher, completions of 1 to 4."""
    teacher = sequences(count, 5, seed=seed + 2) if own_prompts else None
    return Completions(sequences(count, 3, seed=seed), sequences(count, 4, seed=seed + 1), teacher)


def completion_set(count=12, *, layout="padded", **options):
    return TransferSet.of_completions(examples(count, **options), layout=layout)


def completion_trainer(folder, *, data=None, objective=None, **options):
    settings = {"per_device_train_batch_size": 4, "num_train_epochs": 1, "max_grad_norm": 0.0, **options}
    data = completion_set() if data is None else data
    return token_trainer(folder, data=data, objective=KL() if objective is None else objective, **settings)


def completion_trained(folder, **options):
    """The student's weights after training, and the trainer."""
    trainer = completion_trainer(folder, **options)
    trainer.train()
    return weights(trainer.model), trainer


def log_p_one_by_one(model, prompts, completions):
    """``[N, C]`` log-probabilities at each completion's tokens: one example at a time, its prompt in front, nothing padded."""
    rows = []
    for prompt, completion in zip(prompts, completions, strict=True):
        ids = torch.cat([prompt, completion])[None]
        rows.append(model(input_ids=ids, use_cache=False).logits[0, len(prompt) - 1 : -1].log_softmax(-1))
    return torch.cat(rows)


def written_one_by_one(model, prompts, most):
    """What the model writes greedily after each prompt: each token from the whole text anew."""
    completions = []
    for prompt in prompts:
        ids = prompt
        with torch.no_grad():
            while len(ids) - len(prompt) < most and (len(ids) == len(prompt) or ids[-1] != EOS):
                ids = torch.cat([ids, model(input_ids=ids[None], use_cache=False).logits[0, -1].argmax()[None]])
        completions.append(ids[len(prompt) :])
    return Ragged.of(completions)


def by_hand(raw, *, batch=4, epochs=1, rate=0.5, write=None, teacher=None):
    """Weights after plain SGD on the mean forward KL of a batch's rows; ``write(model, prompts)`` gives other completions."""
    student, teacher = llama(), llama(2, width=12) if teacher is None else teacher
    losses = []
    for rows in torch.arange(len(raw)).repeat(epochs).split(batch):
        some = raw.take(rows)
        completions = some.completions if write is None else write(student, some.prompts)
        with torch.no_grad():
            log_q = log_p_one_by_one(teacher, some.prompts_of("teacher"), completions)
        student.zero_grad()
        log_p = log_p_one_by_one(student, some.prompts, completions)
        loss = (log_q.exp() * (log_q - log_p)).sum(1).mean()
        loss.backward()
        losses.append(float(loss.detach()))
        with torch.no_grad():
            for values in student.parameters():
                if values.grad is not None:
                    values -= rate * values.grad
    return weights(student), losses
