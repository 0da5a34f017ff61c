"""CivilComments: comments of newspaper readers, toxic or not; the shortcut is whether they speak of certain people.

Borkan et al., arXiv 1903.04561, in the version of WILDS (Koh et al., arXiv 2012.07421): one file,
`all_data_with_identities.csv`, with the comment, the share of annotators who found it toxic, the share who found
each identity mentioned, and the split. y is toxicity >= 0.5; a is whether any of `IDENTITIES` has >= 0.5. The
file's own column `identity_any` counts further identities and is not used. WILDS itself scores the eight identities
separately, 16 overlapping groups; here, as in the papers of the book, there are four groups.
"""

from __future__ import annotations

import warnings
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow
import torch
from pyarrow import compute, csv

from caml_core.data.find import locate
from caml_core.data.sentences import encode_splits, tokenise
from caml_core.data.sources import Where
from caml_core.errors import CamlError
from caml_core.groups import GroupDataset, Splits

FETCH = "python -m caml_core data fetch civilcomments"
FILE = "all_data_with_identities.csv"
IDENTITIES = ("male", "female", "LGBTQ", "christian", "muslim", "other_religions", "black", "white")
CLASSES, ATTRIBUTES = ("not toxic", "toxic"), ("no identity", "identity")
# Examples of each group (y, a), as the literature reports them; each row adds up to WILDS's size of the split.
PUBLISHED = {"train": (148186, 90337, 12731, 17784), "val": (25159, 14966, 2111, 2944),
             "test": (74780, 43778, 6455, 8769)}  # fmt: skip


def load(
    *, encode: str = "tokens", model: str = "google-bert/bert-base-uncased", length: int = 300,
    n_train: int | None = None, n_val: int | None = None, n_test: int | None = None, seed: int = 0,
    check_counts: bool = True, data_dir: Where = None,
) -> Splits:  # fmt: skip
    """Load CivilComments: x int16 (N, length) word pieces of `model`, y (not toxic, toxic), a (no identity, identity).

    `extra["row"]` is the row in the file.

    Args:
        encode: "tokens", or "sentence": x float32 (N, 384), MiniLM's vectors, which need no `model` and no download
            (see `caml_core.data.sentences`; about 20 comments a second on one CPU core, so ask for a sample).
        model: a BERT of the Hub or a folder; the network must be the same.
        length: word pieces kept of each comment; 300 is published.
        check_counts: compare with `PUBLISHED`; False for a part of the file.
        n_train, n_val, n_test: keep a random sample of the split, drawn by `seed`; default all.

    Raises:
        CamlError: an option out of range, no file, not its columns, or other sizes than the published ones.
    """
    file = locate("civilcomments", data_dir) / FILE
    text, y, a, split_of = read(file)
    if check_counts:
        compare_counts(y, a, split_of)
    names: dict[str, Any] = {"class_names": CLASSES, "attribute_names": ATTRIBUTES, "source": f"WILDS, {FILE}"}
    rng, examples = np.random.default_rng([seed, 0xC1C]), []
    for split, n in zip(PUBLISHED, (n_train, n_val, n_test)):
        rows = np.flatnonzero(split_of == split)
        if n is not None and not 0 < n <= len(rows):
            expected = f"1 to {len(rows)}, the size of the split"
            raise CamlError(f"n_{split}={n}", expected, f"ask for fewer, or leave n_{split} out for all")
        rows = rows if n is None else np.sort(rng.permutation(rows)[:n])
        chunks = (text.take(rows[at : at + 1000]).to_pylist() for at in range(0, len(rows), 1000))
        x = tokenise(chunks, len(rows), length, model if encode == "tokens" else None)
        examples.append(GroupDataset(x, y[rows], a[rows], extra={"row": torch.from_numpy(rows)}, **names))
    return encode_splits(examples, encode)


def compare_counts(y: np.ndarray, a: np.ndarray, split_of: np.ndarray) -> None:
    """Hold the groups against `PUBLISHED`: a warning where identities are counted otherwise, as some papers do."""
    found = {split: np.bincount(2 * y[split_of == split] + a[split_of == split], minlength=4) for split in PUBLISHED}
    if any(tuple(n) != PUBLISHED[split] for split, n in found.items()):
        what = "; ".join(f"{split} {n.tolist()}, published {list(PUBLISHED[split])}" for split, n in found.items())
        if any(n.sum() != sum(PUBLISHED[split]) for split, n in found.items()):
            raise CamlError(f"CivilComments has splits of other sizes: {what}", "the published sizes", FETCH)
        warnings.warn(f"groups of CivilComments differ from the published: {what}", stacklevel=3)


def read(file: Path) -> tuple[Any, np.ndarray, np.ndarray, np.ndarray]:
    """The comments (of pyarrow), y and a: int64 (N,), and the split of each: str (N,)."""
    columns = ["comment_text", "split", "toxicity", *IDENTITIES]
    try:
        convert = csv.ConvertOptions(include_columns=columns, column_types={"comment_text": pyarrow.string()})
        table = csv.read_csv(file, parse_options=csv.ParseOptions(newlines_in_values=True), convert_options=convert)
        y, *named = (np.asarray(compute.fill_null(table[name].cast("float64"), 0.0)) >= 0.5 for name in columns[2:])
    except (pyarrow.ArrowException, KeyError) as error:
        what = f"{file} is not the file of CivilComments: {str(error)[:200]}"
        raise CamlError(what, "columns " + ", ".join(columns), FETCH) from error
    split_of = np.asarray(table["split"]).astype(str)
    return table["comment_text"], y.astype(np.int64), np.any(named, axis=0).astype(np.int64), split_of
