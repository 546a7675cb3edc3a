"""The published feature and relation losses in float64 NumPy, written from the papers, with loops where clearest.

Each returns what the paper gives for one example, or for a batch where it is a batch's property.
"""

import numpy as np


def norm(x):
    return np.sqrt((np.asarray(x, np.float64) ** 2).sum())


def cosine(a, b):
    """0 where one has no direction."""
    return float(np.dot(a, b) / (norm(a) * norm(b))) if norm(a) * norm(b) > 0 else 0.0


def average_pool(x, height, width):
    """``[C, H, W]`` to another resolution: each cell the mean over the input cells that it touches."""
    channels, tall, wide = x.shape
    out = np.zeros((channels, height, width))
    for i in range(height):
        for j in range(width):
            top, bottom = (i * tall) // height, -((-(i + 1) * tall) // height)
            left, right = (j * wide) // width, -((-(j + 1) * wide) // width)
            out[:, i, j] = x[:, top:bottom, left:right].mean((1, 2))
    return out


def hint(student, teacher):
    """Romero et al. 2015, eq. 3, one example, after the regressor."""
    return 0.5 * norm(teacher - student) ** 2


def attention_transfer(student, teacher, power=2.0):
    """Zagoruyko & Komodakis 2017, eq. 2, one pair of maps ``[C, H, W]``, with the ½ that stands beside β."""
    maps = []
    for activations in (student, teacher):
        summed = sum(np.abs(channel) ** power for channel in activations).ravel()
        maps.append(summed / norm(summed))
    return 0.5 * norm(maps[0] - maps[1])


def cosine_hidden(student, teacher):
    """Sanh et al. 2019, §3, one example's tokens ``[T, D]``."""
    return np.mean([1 - cosine(a, b) for a, b in zip(student, teacher, strict=True)])


def similarity_preserving(student, teacher):
    """Tung & Mori 2019, eq. 1–4, a batch."""
    grams = []
    for features in (student, teacher):
        q = features.reshape(len(features), -1)
        g = q @ q.T
        grams.append(np.stack([row / norm(row) for row in g]))
    return ((grams[1] - grams[0]) ** 2).sum() / len(student) ** 2


def huber(x, y):
    d = abs(x - y)
    return 0.5 * d**2 if d <= 1 else d - 0.5


def rkd_distance(student, teacher):
    """Park et al. 2019, §3.2.1: the mean over ordered pairs of distinct examples."""
    n = len(student)
    pairs = [(i, j) for i in range(n) for j in range(n) if i != j]
    potentials = []
    for x in (student.reshape(n, -1), teacher.reshape(n, -1)):
        lengths = {(i, j): norm(x[i] - x[j]) for i, j in pairs}
        mu = np.mean(list(lengths.values()))
        potentials.append({pair: length / mu for pair, length in lengths.items()})
    return np.mean([huber(potentials[0][pair], potentials[1][pair]) for pair in pairs])


def rkd_angle(student, teacher):
    """Park et al. 2019, §3.2.2: the mean over ordered triples of distinct examples."""
    n = len(student)
    triples = [(i, j, k) for i in range(n) for j in range(n) for k in range(n) if i != j and j != k and i != k]
    a, b = student.reshape(n, -1), teacher.reshape(n, -1)
    return np.mean([huber(cosine(a[i] - a[j], a[k] - a[j]), cosine(b[i] - b[j], b[k] - b[j])) for i, j, k in triples])


def pkt(student, teacher):
    """Passalis & Tefas 2018, §3: Σ_i Σ_j≠i p log(p/q), the sum over a batch."""
    n = len(student)
    conditional = []
    for x in (student.reshape(n, -1), teacher.reshape(n, -1)):
        kernel = np.array([[0.5 * (cosine(x[i], x[j]) + 1) for j in range(n)] for i in range(n)])
        conditional.append(
            [[kernel[i, j] / sum(kernel[i, k] for k in range(n) if k != i) for j in range(n)] for i in range(n)]
        )
    q, p = conditional
    return sum(p[i][j] * np.log(p[i][j] / q[i][j]) for i in range(n) for j in range(n) if i != j)


def crd(student, teacher, tau, labels=None):
    """In-batch contrast of embeddings ``[B, E]`` (after the linear maps), both directions, the sum over a batch."""
    n, total = len(student), 0.0
    score = np.array([[cosine(student[i], teacher[j]) / tau for j in range(n)] for i in range(n)])
    for i in range(n):
        among = [j for j in range(n) if j == i or labels is None or labels[j] != labels[i] or labels[i] < 0]
        total -= np.log(np.exp(score[i, i]) / sum(np.exp(score[i, j]) for j in among))
        total -= np.log(np.exp(score[i, i]) / sum(np.exp(score[j, i]) for j in among))
    return total


def vid(mean, teacher, variance):
    """Ahn et al. 2019, §2, one example ``[C, H, W]`` with σ² ``[C]``, without the constant."""
    total = 0.0
    for c in range(len(teacher)):
        sigma = np.sqrt(variance[c])
        total += (np.log(sigma) + (teacher[c] - mean[c]) ** 2 / (2 * sigma**2)).sum()
    return total
