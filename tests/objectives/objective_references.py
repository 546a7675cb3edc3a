"""The published formulas in float64 NumPy, written from the papers with loops where that is clearest."""

import numpy as np


def softmax(z, temperature=1.0):
    z = np.asarray(z, np.float64) / temperature
    e = np.exp(z - z.max(-1, keepdims=True))
    return e / e.sum(-1, keepdims=True)


def kl(a, b):
    """KL(a‖b) with 0 log 0 = 0."""
    return np.where(a > 0, a * (np.log(np.where(a > 0, a, 1)) - np.log(np.where(a > 0, b, 1))), 0).sum(-1)


def forward_kl(s, t, temperature=1.0):
    return kl(softmax(t, temperature), softmax(s, temperature))


def reverse_kl(s, t, temperature=1.0):
    return kl(softmax(s, temperature), softmax(t, temperature))


def jensen_shannon(s, t, temperature=1.0, beta=0.5):
    p, q = softmax(s, temperature), softmax(t, temperature)
    m = beta * q + (1 - beta) * p
    return (beta * kl(q, m) + (1 - beta) * kl(p, m)) / (4 * beta * (1 - beta))


def skew_forward_kl(s, t, temperature=1.0, alpha=0.1):
    p, q = softmax(s, temperature), softmax(t, temperature)
    return kl(q, alpha * q + (1 - alpha) * p)


def skew_reverse_kl(s, t, temperature=1.0, alpha=0.1):
    p, q = softmax(s, temperature), softmax(t, temperature)
    return kl(p, alpha * p + (1 - alpha) * q)


def total_variation(s, t, temperature=1.0):
    return np.abs(softmax(s, temperature) - softmax(t, temperature)).sum(-1) / 2


def alpha_beta(s, t, temperature=1.0, alpha=0.2, beta=0.7):
    """Cichocki, Cruces & Amari 2011, all five branches; q is the teacher, which comes first."""
    p, q = softmax(s, temperature), softmax(t, temperature)
    if alpha == 0 and beta == 0:
        return (0.5 * (np.log(q) - np.log(p)) ** 2).sum(-1)
    if beta == 0:
        return (q**alpha * np.log(q**alpha / p**alpha) - q**alpha + p**alpha).sum(-1) / alpha**2
    if alpha == 0:
        return (p**beta * np.log(p**beta / q**beta) - p**beta + q**beta).sum(-1) / beta**2
    if alpha + beta == 0:
        return (np.log(p**alpha / q**alpha) + (p**alpha / q**alpha) ** -1 - 1).sum(-1) / alpha**2
    both = alpha + beta
    inner = q**alpha * p**beta - alpha / both * q**both - beta / both * p**both
    return -inner.sum(-1) / (alpha * beta)


DIVERGENCES = {
    f.__name__: f
    for f in (
        forward_kl,
        reverse_kl,
        jensen_shannon,
        skew_forward_kl,
        skew_reverse_kl,
        total_variation,
        alpha_beta,
    )
}


def cross_entropy(s, label, smoothing=0.0):
    """Szegedy et al. 2016, §7, one row."""
    log_p = np.log(softmax(s))
    target = np.full(len(s), smoothing / len(s))
    target[label] += 1 - smoothing
    return -(target * log_p).sum()


def dkd(s, t, label, alpha, beta, temperature):
    """Zhao et al. 2022 (DKD), §3, one row, times T² as in the authors' code."""
    p, q = softmax(s, temperature), softmax(t, temperature)
    b_p, b_q = np.array([p[label], 1 - p[label]]), np.array([q[label], 1 - q[label]])
    others = [c for c in range(len(p)) if c != label]
    hat_p, hat_q = p[others] / p[others].sum(), q[others] / q[others].sum()
    return temperature**2 * (alpha * kl(b_q, b_p) + beta * kl(hat_q, hat_p))


def dist(s, t, beta, gamma, temperature):
    """Huang et al. 2022 (DIST), §3: a mean over rows and a mean over classes, times T² as in the authors' code."""
    p, q = softmax(s, temperature), softmax(t, temperature)
    inter = np.mean([1 - np.corrcoef(a, b)[0, 1] for a, b in zip(p, q, strict=True)])
    intra = np.mean([1 - np.corrcoef(a, b)[0, 1] for a, b in zip(p.T, q.T, strict=True)])
    return temperature**2 * (beta * inter + gamma * intra)


def standardised(z):
    """Sun et al. 2024, algorithm 1, without its temperature."""
    return (z - z.mean(-1, keepdims=True)) / z.std(-1, keepdims=True)
