"""Letter-string analogies with a permuted alphabet in the prompt, and rows whose answer can be copied.

A small version of the data of Hellwig et al. (arXiv 2604.06501), written anew. Built in chapter 20.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from functools import cache
from itertools import combinations, cycle, islice
from typing import NamedTuple

import numpy as np
import torch
from torch import Tensor
from torch.nn.utils.rnn import pad_sequence

from caml_core.errors import CamlError

PAD, EOS, BAR, ARROW, LETTER = range(5)  # tokens; letter n of the plain alphabet is LETTER + n
SIZE, LENGTHS = 8, (2, 4)  # letters of an alphabet; shortest and longest window
TRAINED = ("extend", "succ", "pred", "sort")
COMPOSED = ("extend+pred", "sort+succ", "sort+extend")
NOVEL = ("reverse", "shift", "replicate")
APPLY: dict[str, Callable[[list[int]], list[int]]] = {
    "extend": lambda w: [*w, w[-1] + 1], "succ": lambda w: [*w[:-1], w[-1] + 1], "pred": lambda w: [w[0] - 1, *w[1:]],
    "sort": sorted, "reverse": lambda w: w[::-1], "shift": lambda w: [c + 1 for c in w],
    "replicate": lambda w: [c for c in w for _ in range(2)],
}  # fmt: skip
Alphabet = tuple[int, ...]
Problem = tuple[tuple[int, ...], tuple[int, ...]]  # what is shown and its answer, as places in the alphabet


class Rows(NamedTuple):
    source: Tensor  # int64 (N, S): ALPHABET | STUDY > SOLUTION | QUERY, then PAD
    target: Tensor  # int64 (N, T): the solution, EOS, PAD
    alphabet: Tensor  # int64 (N,): its number
    rule: Tensor  # int64 (N,): number of the transformation
    query: Tensor  # int64 (N,): place in the source where the query begins


def derange(size: int, k: int, rng: np.random.Generator) -> Alphabet:
    """The letters 0..size-1 with exactly k of them out of place; CamlError where there is no such order."""
    if k == 1 or not 0 <= k <= size:
        what = f"an alphabet of {size} letters with {k} out of place"
        raise CamlError(what, f"0, or 2 to {size}", "one letter cannot move alone")
    letters, places = np.arange(size), rng.permutation(size)[:k]
    while k and (letters[places] == places).any():
        letters[places] = rng.permutation(places)
    return tuple(letters.tolist())


def draw_alphabets(n: int, seed: int, size: int = SIZE, levels: Sequence[int] = (2, 4, 6, 8)) -> list[Alphabet]:
    """n different alphabets, none the plain one; the numbers of letters out of place take turns."""
    rng, found = np.random.default_rng(seed), dict.fromkeys([tuple(range(size))])
    for level in islice(cycle(levels), 50 * n):
        if len(found) <= n:
            found[derange(size, level, rng)] = None
    return list(found)[1:]


@cache
def problems(rule: str, size: int, lengths: tuple[int, int] = LENGTHS) -> list[Problem]:
    """Every problem of a transformation: windows (with "sort": two letters exchanged) that have an answer."""
    if not 2 <= lengths[0] <= lengths[1] <= size:
        what = f"windows of {lengths[0]} to {lengths[1]} letters"
        raise CamlError(what, f"2 to {size}, as long as the alphabet", "choose shorter windows")
    found: list[Problem] = []
    for length in range(lengths[0], lengths[1] + 1):
        for w in (list(range(i, i + length)) for i in range(size - length + 1)):
            swaps = [{i: j, j: i} for i, j in combinations(w, 2)] if "sort" in rule else [{}]
            answer = w
            for part in rule.split("+"):
                answer = APPLY[part](answer)
            if min(answer) >= 0 and max(answer) < size:
                found += [(tuple(swap.get(c, c) for c in w), tuple(answer)) for swap in swaps]
    return found


@cache
def sides(alphabet: Alphabet, rule: str, n: int) -> tuple[np.ndarray, np.ndarray]:
    """Of n problems those to learn from, and one in five that is never trained on."""
    order = np.random.default_rng([*alphabet, *rule.encode()]).permutation(n)
    return order[n // 5 :], order[: n // 5]


def draw_rows(
    alphabets: Sequence[Alphabet], rules: Sequence[str], n: int, seed: int, held_out: bool = False, copy: bool = False
) -> Rows:
    """n different rows; study and query differ. `held_out`: the queries are problems never trained on.

    With `copy`, row i has a second, row n + i, whose study example is its own query. CamlError: no alphabet, few rows.
    """
    if not alphabets:
        raise CamlError("an empty list of alphabets", "at least one", "draw some with draw_alphabets")
    rng, size = np.random.default_rng(seed), len(alphabets[0])
    found: dict[tuple[int, ...], tuple[Problem, Problem]] = {}
    for _ in range(50 * n):
        a, r = int(rng.integers(len(alphabets))), int(rng.integers(len(rules)))
        every = problems(rules[r], size)
        apart = sides(alphabets[a], rules[r], len(every))
        query, study = (int(rng.choice(apart[side])) for side in (held_out, False))
        if query != study:
            found[a, r, query, study] = every[query], every[study]
        if len(found) == n:
            break
    else:
        raise CamlError(f"{n} different rows", f"at most some {len(found)} here", "draw fewer rows, or add alphabets")
    keys, pairs = list(found) * (1 + copy), list(found.values())
    told = [write(alphabets[k[0]], *pair) for k, pair in zip(keys, pairs + [(q, q) for q, _ in pairs] * copy)]
    source, target = (pad_sequence([torch.tensor(t[i]) for t in told], batch_first=True) for i in (0, 1))
    return Rows(source, target, *torch.tensor([(*k[:2], t[2]) for k, t in zip(keys, told)]).T)


def write(alphabet: Alphabet, query: Problem, study: Problem) -> tuple[list[int], list[int], int]:
    """Tokens of a source and of its target, and where the query begins."""
    shown, solved, asked, answer = ([LETTER + alphabet[c] for c in part] for part in (*study, *query))
    head = [*(LETTER + c for c in alphabet), BAR, *shown, ARROW, *solved, BAR]
    return head + asked, [*answer, EOS], len(head)
