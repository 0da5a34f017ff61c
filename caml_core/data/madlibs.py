"""Madlibs: sentences made from six templates, kind or nasty, that name people; whom they name is the shortcut.

Dixon et al., "Measuring and Mitigating Unintended Bias in Text Classification", AIES 2018
(doi 10.1145/3278721.3278729): `bias_madlibs_77k.csv`, 76,564 sentences such as "Angela is a lovely muslim" with a
`Label` (BAD or NOT_BAD). y is the label, a whether the sentence names one of `IDENTITIES`. In the file the two are
independent; training takes sentences so that a share `rho` is BAD with an identity of the list or NOT_BAD without.

The label is settled by one word, the *judgement*: 32 adjectives, 8 verbs, and "am". Sentences that differ in a name
or an identity alone are near copies, so splits do not share judgements: of each label's words half are for
training and a quarter each for validation and test, drawn by `seed`. A model must know what is nasty; a list of the
nasty words of training does not help it.
"""

from __future__ import annotations

import re
from typing import Any, NamedTuple

import numpy as np
import pyarrow
import torch
from pyarrow import csv

from caml_core.data.find import locate
from caml_core.data.sentences import encode_splits, tokenise
from caml_core.data.sources import Where
from caml_core.errors import CamlError
from caml_core.groups import GroupDataset, Splits, check_rho

FILE = "bias_madlibs_77k.csv"
# Of the 50 identities in the file those that CivilComments annotates too: its eight columns, in the file's words.
IDENTITIES = {
    "male": ("male",),
    "female": ("female",),
    "LGBTQ": ("lgbt", "lgbtq", "gay", "lesbian", "homosexual", "bisexual", "queer", "trans", "transgender",
              "nonbinary"),
    "christian": ("christian", "catholic", "protestant"),
    "muslim": ("muslim",),
    "other_religions": ("jewish", "buddhist", "sikh", "taoist"),
    "black": ("black", "african american"),
    "white": ("white",),
}  # fmt: skip
NAMED = re.compile(r"\b(?:" + "|".join(word for words in IDENTITIES.values() for word in words) + r")\b", re.IGNORECASE)
JUDGEMENT = {  # template: where the word stands that settles the label
    "name_adj": re.compile(r"^\S+ is a (\S+) "),
    "being_adj": re.compile(r" is (\S+)\.$"),
    "you_are_adj": re.compile(r"^You are a (\S+) "),
    "you_occupation": re.compile(r"^You are a (\S+) "),
    "verb_adj": re.compile(r"^(\S+) "),
    "am_hate_adj": re.compile(r"^i (\S+) "),
}
CLASSES, ATTRIBUTES = ("not bad", "bad"), ("no listed identity", "listed identity")
LENGTH = 14  # word pieces of the longest sentence, with [CLS] and [SEP]


class Madlibs(NamedTuple):
    """The whole file, sorted by sentence."""

    text: list[str]
    y: np.ndarray  # int64 (N,): 1 for BAD
    a: np.ndarray  # int64 (N,): 1 where an identity of the list is named
    judgement: np.ndarray  # str (N,)


def read(data_dir: Where = None) -> Madlibs:
    """Read the file; a `CamlError` when it is not found, or without the columns, labels and templates it has."""
    file = locate("madlibs", data_dir) / FILE
    try:
        rows = sorted(zip(*(csv.read_csv(file).column(name).to_pylist() for name in ("Text", "Label", "Template"))))
        text = [row[0] for row in rows]
        y = np.array([("NOT_BAD", "BAD").index(row[1]) for row in rows])
        judgement = np.array([JUDGEMENT[row[2]].search(row[0])[1].lower() for row in rows])  # type: ignore[index]
    except (pyarrow.ArrowException, KeyError, ValueError, TypeError, AttributeError) as error:
        what = f"{file} is not the file of madlibs: {str(error)[:200]}"
        expected = "columns Text, Label (BAD, NOT_BAD) and Template (" + ", ".join(JUDGEMENT) + ")"
        raise CamlError(what, expected, "python -m caml_core data fetch madlibs") from error
    return Madlibs(text, y, np.array([NAMED.search(sentence) is not None for sentence in text]).astype(int), judgement)


def load(
    *, encode: str = "sentence", rho: float = 0.95, n_train: int = 4000, n_val: int = 1000, n_test: int = 2000,
    seed: int = 0, data_dir: Where = None,
) -> Splits:  # fmt: skip
    """Build madlibs: x sentences as `encode` says, y (not bad, bad), a (no listed identity, listed identity).

    `extra["row"]` is each sentence's row in `read().text`.

    Args:
        encode: "sentence" or "tokens" (MiniLM's), see `caml_core.data.sentences`. The first is computed once for each
            draw of sentences (about 100 sentences a second on one core) and cached.
        rho: share of majority examples in training, for each label, in [0.5, 1].
        n_train, n_val, n_test: sizes (rounded down to even numbers); validation and test are balanced.
        seed: fixes which words judge in which split, and which sentences are drawn.

    Raises:
        CamlError: an option out of range, too many sentences asked for, no file, or no sentence encoder.
    """
    check_rho(rho)
    file = read(data_dir)
    rng = np.random.default_rng([seed, 0x3AD])
    words = split_words(file, rng)
    examples = []
    for split, n, share in (("train", n_train, rho), ("val", n_val, 0.5), ("test", n_test, 0.5)):
        mine = np.isin(file.judgement, words[split])
        halves = [_draw(file, mine, split, label, n // 2, share, rng) for label in (0, 1)]
        rows = rng.permutation(np.concatenate(halves))
        x = tokenise([[file.text[row] for row in rows]], len(rows), LENGTH)
        names: dict[str, Any] = {"class_names": CLASSES, "attribute_names": ATTRIBUTES, "source": f"madlibs, {FILE}"}
        extra = {"row": torch.from_numpy(rows)}
        examples.append(GroupDataset(x, file.y[rows], file.a[rows], extra=extra, **names))
    return encode_splits(examples, encode)


def split_words(file: Madlibs, rng: np.random.Generator) -> dict[str, list[str]]:
    """Judgements of each split: half of each label's words for training, a quarter each for validation and test."""
    words: dict[str, list[str]] = {"train": [], "val": [], "test": []}
    for label in (0, 1):
        known = rng.permutation(np.unique(file.judgement[file.y == label]))
        for split, part in zip(words, np.split(known, [len(known) // 2, len(known) * 3 // 4])):
            words[split] += part.tolist()
    return words


def _draw(
    file: Madlibs, mine: np.ndarray, split: str, label: int, n: int, share: float, rng: np.random.Generator
) -> np.ndarray:
    """Rows of one label, a share of them with the attribute that goes with it."""
    rows = []
    for a, count in ((label, round(share * n)), (1 - label, n - round(share * n))):
        pool = np.flatnonzero(mine & (file.y == label) & (file.a == a))
        if len(pool) < count:
            what = f"{len(pool)} sentences for {count} of one group in {split}"
            raise CamlError(what, "no more than the file has", f"ask for fewer with n_{split}")
        rows.append(rng.permutation(pool)[:count])
    return np.concatenate(rows)
