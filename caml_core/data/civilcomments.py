"""CivilComments: comments of newspaper readers, toxic or not; the shortcut is whether they speak of certain people.

Borkan et al., arXiv 1903.04561, in the version of WILDS (Koh et al., arXiv 2012.07421): one file,
`all_data_with_identities.csv`, with the comment, the share of annotators who found it toxic, the share who found
each identity mentioned, and the split. y is toxicity >= 0.5; a is whether any of `IDENTITIES` has >= 0.5. The
file's own column `identity_any` counts further identities and is not used. WILDS itself scores the eight identities
separately, 16 overlapping groups; here, as in the papers of the book, there are four groups.
"""

from __future__ import annotations

import warnings
from collections.abc import Iterator
from pathlib import Path

import numpy as np
import torch

from caml_core.data.catalogue import locate
from caml_core.data.dataset import GroupDataset
from caml_core.errors import CamlError

FILE = "all_data_with_identities.csv"
IDENTITIES = ("male", "female", "LGBTQ", "christian", "muslim", "other_religions", "black", "white")
SPLITS = ("train", "val", "test")
CLASSES, ATTRIBUTES = ("not toxic", "toxic"), ("no identity", "identity")
# Examples of each group (y, a), as the literature reports them; each row adds up to WILDS's size of the split.
PUBLISHED = {
    "train": (148186, 90337, 12731, 17784),
    "val": (25159, 14966, 2111, 2944),
    "test": (74780, 43778, 6455, 8769),
}


def load(
    *,
    encode: str = "tokens",
    model: str = "google-bert/bert-base-uncased",
    length: int = 300,
    n_train: int | None = None,
    n_val: int | None = None,
    n_test: int | None = None,
    seed: int = 0,
    check_counts: bool = True,
    data_dir: str | Path | None = None,
) -> tuple[GroupDataset, GroupDataset, GroupDataset]:
    """Load CivilComments: x int16 (N, length) word pieces of `model`, y (not toxic, toxic), a (no identity, identity).

    The file is read as a stream; only the word pieces are kept (all: 270 MB). `extra["row"]` is the row in the file.

    Args:
        encode: "tokens", or "sentence": x float32 (N, 384), MiniLM's vectors, which need no `model` and no download
            (see `caml_core.text`; about 20 comments a second on one CPU core, so ask for a sample).
        model: a BERT of the Hub or a folder; the network must be the same.
        length: word pieces kept of each comment; 300 is published.
        check_counts: compare with `PUBLISHED`; False for a part of the file.
        n_train, n_val, n_test: keep a random sample of the split, drawn by `seed`; default all.

    Raises:
        CamlError: an option out of range, no file, not its columns, or other sizes than the published ones.
    """
    from caml_core.text import MINILM, check_encode, encode_splits, tokenise

    check_encode(encode, ("tokens", "sentence"))
    file = locate("civilcomments", data_dir) / FILE
    y, a, split_of = _labels(file)
    if check_counts:
        compare_counts(y, a, split_of)
    rng = np.random.default_rng([seed, 0xC1C])
    rows = []
    for split, n in zip(SPLITS, (n_train, n_val, n_test)):
        mine = np.flatnonzero(split_of == split)
        if n is not None and not 0 < n <= len(mine):
            raise CamlError(
                what=f"n_{split}={n}",
                expected=f"1 to {len(mine)}, the size of the split",
                remedy=f"ask for fewer, or leave n_{split} out for all",
            )
        rows.append(mine if n is None else np.sort(rng.permutation(mine)[:n]))
    kept = np.sort(np.concatenate(rows))
    ids = tokenise(_text(file, kept), len(kept), length, model if encode == "tokens" else MINILM)
    examples = []
    for mine in rows:
        examples.append(
            GroupDataset(
                ids[torch.from_numpy(np.searchsorted(kept, mine))],
                torch.from_numpy(y[mine]),
                torch.from_numpy(a[mine]),
                class_names=CLASSES,
                attribute_names=ATTRIBUTES,
                extra={"row": torch.from_numpy(mine)},
                source=f"CivilComments of WILDS, {FILE}",
            )
        )
    train, val, test = encode_splits(examples, encode)
    return train, val, test


def compare_counts(y: np.ndarray, a: np.ndarray, split_of: np.ndarray) -> None:
    """Hold the examples of each group against `PUBLISHED`.

    A split of another size is an error. Another group count is a warning, since not all papers count the same
    identities.
    """
    lines, sizes_agree, groups_agree = [], True, True
    for split, published in PUBLISHED.items():
        mine = split_of == split
        found = np.bincount(2 * y[mine] + a[mine], minlength=4)
        sizes_agree &= found.sum() == sum(published)
        groups_agree &= tuple(found) == published
        lines.append(f"{split} {found.tolist()} (published {list(published)})")
    if not sizes_agree:
        raise CamlError(
            what="CivilComments with examples of each group " + ", ".join(lines),
            expected="the sizes that WILDS published: "
            + ", ".join(f"{split} {sum(n):,}" for split, n in PUBLISHED.items()),
            remedy="python -m caml_core data fetch civilcomments",
        )
    if not groups_agree:
        warnings.warn("groups of CivilComments differ from the published: " + ", ".join(lines), stacklevel=3)


def _labels(file: Path) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    """y, a: int64 (N,), and the split of each row: str (N,)."""
    import pyarrow
    from pyarrow import compute, csv

    try:
        table = csv.read_csv(
            file,
            parse_options=csv.ParseOptions(newlines_in_values=True),
            convert_options=csv.ConvertOptions(include_columns=["split", "toxicity", *IDENTITIES]),
        )
        y, *named = (
            np.asarray(compute.fill_null(table[name].cast("float64"), 0.0)) >= 0.5 for name in ("toxicity", *IDENTITIES)
        )
        split_of = np.asarray(table["split"]).astype(str)
    except (pyarrow.ArrowException, KeyError) as error:
        raise _not_the_file(file, error) from error
    return y.astype(np.int64), np.any(named, axis=0).astype(np.int64), split_of


def _text(file: Path, rows: np.ndarray) -> Iterator[list[str]]:
    """Comments of the given rows (sorted), a block of the file at a time."""
    import pyarrow
    from pyarrow import csv

    first = 0
    try:
        stream = csv.open_csv(
            file,
            parse_options=csv.ParseOptions(newlines_in_values=True),
            convert_options=csv.ConvertOptions(
                include_columns=["comment_text"], column_types={"comment_text": pyarrow.string()}
            ),
        )
        for block in stream:
            begin, end = np.searchsorted(rows, (first, first + len(block)))
            yield block.column(0).take(pyarrow.array(rows[begin:end] - first)).to_pylist()
            first += len(block)
    except (pyarrow.ArrowException, KeyError) as error:
        raise _not_the_file(file, error) from error


def _not_the_file(file: Path, error: Exception) -> CamlError:
    return CamlError(
        what=f"{file} is not the file of CivilComments: {str(error)[:200]}",
        expected="columns comment_text, split, toxicity, " + ", ".join(IDENTITIES),
        remedy="python -m caml_core data fetch civilcomments",
    )
