"""Words: what sets a slice apart from the rest of its class, in the words of a CLIP."""

from __future__ import annotations

from collections.abc import Sequence

import torch

from caml_core.groups import GroupDataset
from caml_core.own.slices import Slice
from caml_core.pictures.clip import Clip, embed_images, embed_texts


def words(clip: Clip, split: GroupDataset, one: Slice, texts: Sequence[str]) -> list[tuple[str, float]]:
    """Texts and how much nearer to the slice they are than to the rest of its class, the nearest first.

    After Domino (Eyuboglu et al., arXiv 2203.14960): the inner product of a text's embedding with the difference of two
    mean embeddings of pictures.

    Args:
        split: the one that was searched, x uint8 (N, 3, H, W).
        texts: what the pictures may show, such as "a bird on water"; a text that fits both sides alike gets 0.
    """
    rows = (split.y == one.label).nonzero().flatten()
    z, inside = embed_images(clip, split.x[rows]), torch.isin(rows, one.rows)
    nearer = embed_texts(clip, texts) @ (z[inside].mean(dim=0) - z[~inside].mean(dim=0))
    return sorted(zip(texts, nearer.tolist()), key=lambda pair: -pair[1])
