"""Letter-string analogies and copying rows, after Transformer See, Transformer Do (Hellwig et al., arXiv 2604.06501).

A small version, written anew after the settings of the released code. Built in chapter 20.
"""

from __future__ import annotations

from collections.abc import Sequence
from functools import cache
from itertools import combinations, cycle, islice
from typing import NamedTuple

import numpy as np
import torch
from torch import Tensor, nn
from torch.nn.functional import cross_entropy

from caml_core.device import seeded
from caml_core.errors import CamlError

PAD, EOS, BAR, ARROW, LETTER = range(5)  # tokens; letter n of the plain alphabet is LETTER + n
SIZE, LENGTHS = 8, (2, 4)  # letters of an alphabet; shortest and longest window
TRAINED = ("extend", "succ", "pred", "sort")
COMPOSED = ("extend+pred", "sort+succ", "sort+extend")
NOVEL = ("reverse", "shift", "replicate")
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
        what, remedy = f"an alphabet of {size} letters with {k} out of place", "one letter cannot move alone"
        raise CamlError(what, f"0, or 2 to {size}", remedy)
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
                answer = apply(part, answer)
            if min(answer) >= 0 and max(answer) < size:
                found += [(tuple(swap.get(c, c) for c in w), tuple(answer)) for swap in swaps]
    return found


def apply(part: str, w: list[int]) -> list[int]:
    """One transformation of places in alphabetic order."""
    made = {"extend": [*w, w[-1] + 1], "succ": [*w[:-1], w[-1] + 1], "pred": [w[0] - 1, *w[1:]], "sort": w}
    return (made | {"reverse": w[::-1], "shift": [c + 1 for c in w], "replicate": [c for c in w for _ in "12"]})[part]


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
    source, target = (nn.utils.rnn.pad_sequence([torch.tensor(t[i]) for t in told], batch_first=True) for i in (0, 1))
    return Rows(source, target, *torch.tensor([(*k[:2], t[2]) for k, t in zip(keys, told)]).T)


def write(alphabet: Alphabet, query: Problem, study: Problem) -> tuple[list[int], list[int], int]:
    """Tokens of a source and of its target, and where the query begins."""
    shown, solved, asked, answer = ([LETTER + alphabet[c] for c in part] for part in (*study, *query))
    head = [*(LETTER + c for c in alphabet), BAR, *shown, ARROW, *solved, BAR]
    return head + asked, [*answer, EOS], len(head)


class Transformer(nn.Module):
    """Encoder and decoder. `alike`: encoder queries and keys start equal, so a letter leans to its equals."""

    def __init__(
        self, size: int = SIZE, width: int = 32, heads: int = 2, longest: int = 32, alike: bool = True
    ) -> None:
        super().__init__()
        self.embed, self.longest = nn.Embedding(LETTER + size, width), longest
        turn = torch.arange(longest)[:, None] / 1e4 ** (torch.arange(0, width, 2) / width)
        self.register_buffer("places", torch.stack([turn.sin(), turn.cos()], dim=-1).flatten(1), persistent=False)
        how = {"batch_first": True, "norm_first": True, "dropout": 0.0, "activation": "gelu"}
        layer = nn.TransformerEncoderLayer(width, heads, 4 * width, **how)  # type: ignore[arg-type]
        reader = nn.TransformerDecoderLayer(width, heads, 4 * width, **how)  # type: ignore[arg-type]
        self.encoder = nn.TransformerEncoder(layer, 2, nn.LayerNorm(width), enable_nested_tensor=False)
        self.decoder = nn.TransformerDecoder(reader, 1, nn.LayerNorm(width))
        for block in self.encoder.layers:
            nn.init.xavier_uniform_(block.self_attn.in_proj_weight)
            if alike:
                block.self_attn.in_proj_weight.data[width : 2 * width] = block.self_attn.in_proj_weight.data[:width]

    def at(self, tokens: Tensor) -> Tensor:
        """Token and place, (B, S, D)."""
        if tokens.shape[1] > self.longest:
            what = f"a sequence of {tokens.shape[1]} tokens"
            raise CamlError(what, f"at most {self.longest}", "use shorter windows, or a larger `longest`")
        return self.embed(tokens) + self.places[: tokens.shape[1]]  # type: ignore[index,no-any-return]

    def encode(self, source: Tensor) -> Tensor:
        return self.encoder(self.at(source), src_key_padding_mask=source == PAD)  # type: ignore[no-any-return]

    def decode(self, known: Tensor, source: Tensor, before: Tensor) -> Tensor:
        """Logits (B, T, tokens) of what follows each of the tokens before (B, T)."""
        later = torch.ones(before.shape[1], before.shape[1], dtype=torch.bool).triu(1)
        x = self.decoder(self.at(before), known, tgt_mask=later, memory_key_padding_mask=source == PAD)
        return x @ self.embed.weight.T / x.shape[-1] ** 0.5  # type: ignore[no-any-return]

    def forward(self, source: Tensor, target: Tensor) -> Tensor:
        """Logits (B, T, tokens) of the target (B, T), each token given those before."""
        before = torch.cat([torch.full_like(target[:, :1], BAR), target[:, :-1]], dim=1)
        return self.decode(self.encode(source), source, before)


@torch.no_grad()
def correct(model: Transformer, rows: Rows) -> Tensor:
    """bool (N,): is the whole answer right, decoded greedily?"""
    known, said = model.encode(rows.source), torch.full((len(rows.source), 1), BAR)
    for _ in range(rows.target.shape[1]):
        said = torch.cat([said, model.decode(known, rows.source, said)[:, -1].argmax(-1, keepdim=True)], dim=1)
    return ((said[:, 1:] == rows.target) | (rows.target == PAD)).all(dim=1)


def loss_of(logits: Tensor, target: Tensor) -> Tensor:
    return cross_entropy(logits.flatten(0, 1), target.flatten(), ignore_index=PAD)


def fit(rows: Rows, steps: int, seed: int = 0, alike: bool = True, batch: int = 32, lr: float = 4e-3) -> Transformer:
    """AdamW on shuffled passes over the rows, 5% of the steps to warm up, linear decay to 5% of the rate."""
    with seeded(seed):
        model, warm = Transformer(alike=alike), max(steps // 20, 1)
        opt = torch.optim.AdamW(model.parameters(), lr, betas=(0.9, 0.95), weight_decay=0.01)
        rate = torch.optim.lr_scheduler.LambdaLR(opt, lambda t: min((t + 1) / warm, 1 - 0.95 * t / steps))
        order = torch.cat([torch.randperm(len(rows.source)) for _ in range(steps * batch // len(rows.source) + 1)])
        for now in order[: steps * batch].view(steps, batch):
            opt.zero_grad()
            loss_of(model(rows.source[now], rows.target[now]), rows.target[now]).backward()
            opt.step()
            rate.step()
    return model


@torch.no_grad()
def attention(model: Transformer, source: Tensor) -> Tensor:
    """Weights of the encoder (layers, B, heads, S, S)."""
    x, found, unknown = model.at(source), [], source == PAD
    for layer in model.encoder.layers:
        y = layer.norm1(x)
        found.append(layer.self_attn(y, y, y, key_padding_mask=unknown, average_attn_weights=False)[1])
        x = layer(x, src_key_padding_mask=unknown)
    return torch.stack(found)


def matching(model: Transformer, rows: Rows, size: int = SIZE) -> Tensor:
    """Attention (layers, heads) that query letters pay, on average, to the same letter in the alphabet."""
    source = rows.source
    asks = (torch.arange(source.shape[1]) >= rows.query[:, None]) & (source != PAD)
    paid = attention(model, source)[..., :size] * (source[:, :, None] == source[:, None, :size])[:, None]
    return paid.sum(-1).transpose(2, 3)[:, asks].mean(1)
