"""Acquisition functions: which rows of the pool to label next.

All have one signature, `f(pool, k, generator) -> rows`, are pure, ask for no row twice, and break ties by the lowest
row, so that the same seed asks the same questions. Scores are computed by the current network before it sees any new
label.

Sources: least confidence, margin, entropy (Settles, 2009); BALD (Houlsby et al., arXiv 1112.5745; Gal et al., arXiv
1703.02910); core-set (Sener and Savarese, arXiv 1708.00489); BADGE (Ash et al., arXiv 1906.03671); TypiClust
(Hacohen et al., arXiv 2202.02794); DIAL (OpenReview 2XVECaYiFB).
"""

from __future__ import annotations

import itertools
import math
from collections.abc import Callable
from dataclasses import dataclass

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from caml_core.errors import CamlError
from caml_core.linear import all_finite


@dataclass(frozen=True)
class Pool:
    """What the current network says about the unlabelled pool."""

    logits: Tensor  # float32 (N, C)
    features: Tensor  # float32 (N, D), the input of the last layer
    labelled: Tensor  # float32 (M, D), the features of what is labelled already
    head: nn.Module  # last layer: (..., D) to (..., C)
    trail: Tensor | None = None  # float32 (T, N, C), logits at T moments of the training, for `dial` alone

    def __post_init__(self) -> None:
        for name in ("logits", "features", "labelled"):  # from arrays or other types of float, too
            object.__setattr__(self, name, torch.as_tensor(getattr(self, name)).detach().float())


def random(pool: Pool, k: int, generator: torch.Generator) -> Tensor:
    """Uniformly, without replacement."""
    return torch.randperm(len(pool.logits), generator=generator)[:k]


def least_confidence(pool: Pool, k: int, generator: torch.Generator) -> Tensor:
    """Highest 1 - max_c p_c."""
    return _highest(1 - pool.logits.softmax(1).amax(1), k)


def margin(pool: Pool, k: int, generator: torch.Generator) -> Tensor:
    """Smallest difference between the two most likely classes."""
    first, second = pool.logits.softmax(1).topk(2).values.unbind(1)
    return _highest(second - first, k)


def entropy(pool: Pool, k: int, generator: torch.Generator) -> Tensor:
    """Highest entropy of the prediction, in nats."""
    return _highest(_entropy(pool.logits.log_softmax(1)), k)


def bald(pool: Pool, k: int, generator: torch.Generator, draws: int = 20, dropout: float = 0.5) -> Tensor:
    """Highest mutual information between the answer and the weights, H(E p) - E H(p), by Monte-Carlo dropout.

    Dropout acts on the last layer's input, so that the features are computed once and networks trained without
    dropout have an answer too.
    """
    mean, mean_entropy = torch.zeros_like(pool.logits), torch.zeros(len(pool.logits))
    for _ in range(draws):
        kept = torch.rand(pool.features.shape, generator=generator) >= dropout
        with torch.no_grad():
            log_p = pool.head(pool.features * kept / (1 - dropout)).log_softmax(1)
        mean += log_p.exp() / draws
        mean_entropy += _entropy(log_p) / draws
    return _highest(_entropy(mean.clamp_min(1e-30).log()) - mean_entropy, k)


def core_set(pool: Pool, k: int, generator: torch.Generator) -> Tensor:
    """k-centre greedy: again and again the row farthest (Euclidean) from everything labelled or chosen.

    Squared distances are |x|^2 + |c|^2 - 2 <x, c>, with the norms computed once. With nothing labelled, row 0 comes
    first.
    """
    x = pool.features - pool.features.mean(0)  # near the origin, where differences of squares lose no digits
    n, columns = x.square().sum(1), x.T.contiguous()  # a product with rows runs along the memory: three times as fast
    nearest = torch.full_like(n, math.inf)
    for block in (pool.labelled - pool.features.mean(0)).split(256) if len(pool.labelled) else ():
        nearest = torch.minimum(nearest, n + torch.addmm(block.square().sum(1), x, block.T, alpha=-2).amin(1))
    rows = []
    for _ in range(k):
        row = int(nearest.argmax())
        rows.append(row)
        nearest = torch.minimum(nearest, n + (n[row] - 2 * (x[row] @ columns)))
        nearest[rows] = -math.inf  # never twice, even among copies
    return torch.tensor(rows)


def badge(pool: Pool, k: int, generator: torch.Generator) -> Tensor:
    """k-means++ seeding on the gradients that the last layer would get if each guess were right.

    The gradient of row i is the outer product of a_i = p_i - onehot(argmax p_i) and z_i, C x D numbers. They are
    never formed: <g_i, g_j> = <a_i, a_j> <z_i, z_j>, so a distance costs C + D. The first row is the longest
    gradient, as in the authors' code; each next one is drawn with probability proportional to its squared distance
    from the nearest chosen row.
    """
    p = pool.logits.softmax(1)
    a, z = p - F.one_hot(p.argmax(1), p.shape[1]), pool.features
    a_columns, z_columns = a.T.contiguous(), z.T.contiguous()  # see `core_set`
    length = (a * a).sum(1) * (z * z).sum(1)  # squared
    rows = [int(length.argmax())]
    nearest = torch.full_like(length, math.inf)
    while len(rows) < k:
        row = rows[-1]
        distance = (length + length[row] - 2 * (a[row] @ a_columns) * (z[row] @ z_columns)).clamp_min(0)
        nearest = torch.minimum(nearest, distance)
        nearest[rows] = 0
        weight = nearest.double().cumsum(0)
        if weight[-1] > 0:
            at = torch.rand((), generator=generator, dtype=torch.float64) * weight[-1]
            at = at.clamp_max(weight[-1].nextafter(weight[0] - 1))  # below the sum: a row of weight 0 is never drawn
            rows.append(int(torch.searchsorted(weight, at, right=True)))
        else:  # every gradient is a copy of a chosen one: go on in order
            rows.append(min(set(range(len(length))) - set(rows)))
    return torch.tensor(rows)


def typiclust(pool: Pool, k: int, generator: torch.Generator, neighbours: int = 20, most: int = 500) -> Tensor:
    """The most typical row of each of the k largest clusters without a label.

    k-means (scikit-learn) cuts labelled and unlabelled rows together into M + k clusters (at most `most`);
    typicality is one over the mean distance to the nearest neighbours in the cluster. When clusters run out, the
    next most typical rows follow, largest cluster first.
    """
    from sklearn.cluster import KMeans, MiniBatchKMeans

    n, m = len(pool.features), len(pool.labelled)
    z = F.normalize(torch.cat([pool.features, pool.labelled]), dim=1)
    clusters = min(m + k, most, n)
    seed = int(torch.randint(2**31 - 1, (), generator=generator))
    engine = KMeans if clusters <= 50 else MiniBatchKMeans
    found = torch.from_numpy(engine(clusters, n_init=1, random_state=seed).fit_predict(z.numpy())).long()
    covered = torch.bincount(found[n:], minlength=clusters)
    size = torch.bincount(found[:n], minlength=clusters)
    order = sorted(size.nonzero().flatten().tolist(), key=lambda c: (int(covered[c]), -int(size[c]), c))
    queues = [_typical(z, (found[:n] == c).nonzero().flatten(), neighbours) for c in order[:k]]  # more are not reached
    turns = itertools.chain.from_iterable(itertools.zip_longest(*queues))  # the best of each, the second of each, ...
    return torch.tensor([row for row in turns if row is not None][:k])


def _typical(z: Tensor, rows: Tensor, neighbours: int) -> list[int]:
    """Rows of a cluster, the most typical first; distances a block at a time, so that memory stays below 128 MB."""
    blocks = rows.split(max(32, 2**24 // len(rows)))
    near = [torch.cdist(z[b], z[rows]).topk(min(neighbours + 1, len(rows)), largest=False).values for b in blocks]
    return rows[_highest(-torch.cat(near).mean(1), len(rows))].tolist()


def dial(pool: Pool, k: int, generator: torch.Generator) -> Tensor:
    """Slowly learned: what the moments of the training disagree on most. A shortcut is learned first, so what
    contradicts it changes its prediction late.

    Read, in the abstract and the authors' code: a distance between the predictions of two checkpoints, its mean over
    all pairs, the highest first. Ours: the distance (total variation), and which checkpoints (`CHECKPOINTS`).
    """
    assert pool.trail is not None
    pairs = itertools.combinations(pool.trail.softmax(2), 2)
    return _highest(torch.stack([(p - q).abs().sum(1) / 2 for p, q in pairs]).mean(0), k)


CHECKPOINTS = 5  # moments of a training that `dial` looks at, spread evenly over its epochs
ACQUISITIONS: dict[str, Callable[[Pool, int, torch.Generator], Tensor]] = {
    f.__name__: f for f in (random, least_confidence, margin, entropy, bald, core_set, badge, typiclust)
}
FROM_LOGITS = (random, least_confidence, margin, entropy)
BY_TRAINING = {"dial": dial}  # not from the trained network alone


def acquire(name: str, pool: Pool, k: int, generator: torch.Generator) -> Tensor:
    """Choose k different rows of the pool: int64 (k,).

    Raises:
        CamlError: unknown name, k below 1 or above the pool, logits or features that are not finite.
    """
    known = ACQUISITIONS if pool.trail is None else {**ACQUISITIONS, **BY_TRAINING}
    if name not in known or not 1 <= k <= len(pool.logits):
        what = f"acquisition {name!r}, a batch of {k} from a pool of {len(pool.logits)}"
        expected = "one of " + ", ".join(known) + " (dial with a trail); at least 1 and at most the pool"
        raise CamlError(what, expected, "check the spelling; ask for fewer labels or fewer rounds (--query, --rounds)")
    if not all(map(all_finite, (pool.logits, pool.features, pool.labelled)[: 1 if known[name] in FROM_LOGITS else 3])):
        what = "the network's scores of the pool contain NaN or infinity"
        raise CamlError(what, "finite logits and features", "training has diverged: lower the learning rate")
    return known[name](pool, k, generator)


def _entropy(log_p: Tensor) -> Tensor:
    return -(log_p.exp() * log_p).sum(1)


def _highest(score: Tensor, k: int) -> Tensor:
    """Rows of the k highest scores; among equals the lowest row first."""
    return score.sort(descending=True, stable=True).indices[:k]
