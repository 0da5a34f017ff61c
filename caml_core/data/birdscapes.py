"""Birdscapes: scenes drawn by the program, in which the background nearly always gives the kind of bird away.

Two kinds of bird (the label y) stand or swim on two kinds of background (the spurious attribute a). In
training, a share `rho` of the waterbirds is on water and of the landbirds on land. Nothing is downloaded: an
image is a function of (size, seed, split, bird, background, k) alone, so another `rho` takes more or fewer
scenes of each group and changes none of them.
"""

from __future__ import annotations

import hashlib
import warnings
from collections.abc import Iterable, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any, NamedTuple

import numpy as np
import numpy.typing as npt
import PIL

from caml_core.data import scenery
from caml_core.data.scenery import COLOURS, SPLITS, Attributes, check_size, draw
from caml_core.errors import CamlError

if TYPE_CHECKING:
    from caml_core.data.dataset import GroupDataset

BIRDS = ("landbird", "waterbird")
BACKGROUNDS = ("land", "water")
SIZES = ("small", "big")
FACINGS = ("left", "right")
BLOCK = 64  # images in a cache file: few files, yet little is drawn that nobody asked for
IN_PROCESS = 4  # up to this many missing blocks are drawn before worker processes would have started

SOURCE = hashlib.sha256(Path(scenery.__file__).read_bytes()).hexdigest()  # another program never reuses our pictures

Arrays = dict[str, npt.NDArray[Any]]


# ---- captions ----------------------------------------------------------------------------------------------


def caption(attributes: Attributes, include: Iterable[str] = Attributes._fields) -> str:
    """Say what a scene shows, such as "a small red waterbird facing left on water".

    `include` chooses among the attributes; without "bird" the kind is left open: "a red bird on water".
    """
    include = set(include)
    if unknown := include - set(Attributes._fields):
        raise CamlError(
            what=f"a caption cannot include {', '.join(sorted(unknown))}",
            expected="some of " + ", ".join(Attributes._fields),
            remedy="check the spelling",
        )
    words = [SIZES[attributes.size]] if "size" in include else []
    words += [list(COLOURS)[attributes.colour]] if "colour" in include else []
    words += [BIRDS[attributes.bird] if "bird" in include else "bird"]
    words += ["facing", FACINGS[attributes.facing]] if "facing" in include else []
    words += ["on", BACKGROUNDS[attributes.background]] if "background" in include else []
    return ("an " if words[0][0] in "aeiou" else "a ") + " ".join(words)


def captions(dataset: GroupDataset) -> list[str]:
    """The full caption of each example of a split made by `load`."""
    columns = [dataset.extra[name].tolist() for name in Attributes._fields]
    return [caption(Attributes(*row)) for row in zip(*columns, strict=True)]


# ---- dataset -----------------------------------------------------------------------------------------------


class Block(NamedTuple):
    """Scenes `number * BLOCK` and following of one group: what one cache file holds."""

    size: int
    seed: int
    split: str
    bird: int
    background: int
    number: int

    def path(self) -> Path:
        """Where the block is cached."""
        from caml_core.store import cache_dir

        folder = cache_dir() / "birdscapes" / f"{self.size}px-seed{self.seed}" / self.split
        return folder / f"{BIRDS[self.bird]}-{BACKGROUNDS[self.background]}-{self.number:04d}.npz"

    def meta(self) -> dict[str, Any]:
        """What has to agree before a file is used: the request, the program and its libraries."""
        return {**self._asdict(), "source": SOURCE, "numpy": np.__version__, "pillow": PIL.__version__}


def group_counts(n: int, rho: float) -> dict[tuple[int, int], int]:
    """Examples of each group (bird, background) among n: classes are balanced, and so are minority groups."""
    minority = round((1 - rho) * n)
    counts: dict[tuple[int, int], int] = {}
    for bird in (0, 1):
        in_class, rare = (n + 1 - bird) // 2, (minority + bird) // 2
        counts |= {(bird, bird): in_class - rare, (bird, 1 - bird): rare}
    return counts


def draw_block(block: Block) -> Arrays:
    """Draw a block: `x` uint8 (BLOCK, size, size, 3) and `attributes` int64 (BLOCK, 5)."""
    first = block.number * BLOCK
    options: dict[str, Any] = {"seed": block.seed, "split": block.split, "size": block.size}
    scenes = [draw(block.bird, block.background, k, **options) for k in range(first, first + BLOCK)]
    images, attributes = zip(*scenes, strict=True)
    return {"x": np.stack(images), "attributes": np.array(attributes)}


def get_blocks(blocks: Sequence[Block], progress: bool) -> dict[Block, Arrays]:
    """All `blocks`, from the cache where possible; the others are drawn in parallel and saved one by one."""
    from caml_core.store import load_npz, save_npz

    have: dict[Block, Arrays] = {}
    unusable: list[str] = []
    for block in blocks:
        if (path := block.path()).exists():
            try:
                have[block] = load_npz(path, block.meta())
            except CamlError as error:
                unusable.append(error.what)
    if unusable:
        warnings.warn(f"drawing {len(unusable)} cached blocks again; first reason: {unusable[0]}", stacklevel=3)
    missing = [block for block in blocks if block not in have]
    if not missing:
        return have
    from joblib import Parallel, cpu_count, delayed
    from tqdm.auto import tqdm

    jobs = 1 if len(missing) <= IN_PROCESS else min(cpu_count(), len(missing))
    drawn = Parallel(n_jobs=jobs, return_as="generator")(delayed(draw_block)(block) for block in missing)
    with tqdm(total=BLOCK * len(missing), desc="drawing birds", unit="image", disable=not progress) as bar:
        for block, arrays in zip(missing, drawn, strict=True):
            save_npz(block.path(), arrays, block.meta())
            have[block] = arrays
            bar.update(BLOCK)
    return have


def assemble(split: str, seed: int, groups: Sequence[tuple[int, Sequence[Arrays]]]) -> GroupDataset:
    """A split with the first n scenes of each group's blocks, in random order; `groups` lists (n, blocks)."""
    import torch

    from caml_core.data.dataset import GroupDataset

    rows = {
        name: np.concatenate([np.concatenate([b[name] for b in blocks])[:n] for n, blocks in groups if n])
        for name in ("x", "attributes")
    }
    order = np.random.default_rng([seed, SPLITS.index(split)]).permutation(len(rows["x"]))
    images = np.ascontiguousarray(rows["x"][order].transpose(0, 3, 1, 2))
    columns = torch.from_numpy(rows["attributes"][order].astype(np.int64))
    extra = {name: columns[:, i].clone() for i, name in enumerate(Attributes._fields)}
    return GroupDataset(
        torch.from_numpy(images),
        extra["bird"],
        extra["background"],
        class_names=BIRDS,
        attribute_names=BACKGROUNDS,
        extra=extra,
        source=f"birdscapes, drawn by the program: {split}, seed {seed}, {images.shape[-1]} px",
    )


def load(
    *,
    rho: float = 0.95,
    n_train: int = 3000,
    n_val: int = 600,
    n_test: int = 1200,
    size: int = 48,
    seed: int = 0,
    progress: bool = True,
) -> tuple[GroupDataset, GroupDataset, GroupDataset]:
    """The training, validation and test splits, drawn on first use and cached in the user's cache folder.

    Args:
        rho: share of majority examples (a == y) in training, 0.5 to 1; the other splits are balanced.
        n_train, n_val, n_test: examples in each split, at least 4.
        size: side of the images in pixels, at least 16.
        seed: seed of the scenes and of the order of the rows, 0 or more.
        progress: show a bar while something is drawn.

    Returns:
        Three splits with x uint8 (n, 3, size, size) and the columns of `Attributes` in `extra`.
    """
    from caml_core.data.dataset import check_rho

    check_rho(rho)
    check_size(size)
    lengths = dict(zip(SPLITS, (n_train, n_val, n_test), strict=True))
    for split, n in lengths.items():
        if n < 4:
            raise CamlError(
                what=f"n_{split} = {n}",
                expected="at least 4 examples, one for each group of a balanced split",
                remedy=f"choose for example n_{split}=600",
            )
    counts = {split: group_counts(n, rho if split == "train" else 0.5) for split, n in lengths.items()}
    blocks = {
        (split, group): [Block(size, seed, split, *group, number) for number in range(-(-count // BLOCK))]
        for split in SPLITS
        for group, count in counts[split].items()
    }
    arrays = get_blocks([block for wanted in blocks.values() for block in wanted], progress)
    splits = []
    for split in SPLITS:
        groups = [(n, [arrays[block] for block in blocks[split, group]]) for group, n in counts[split].items()]
        splits.append(assemble(split, seed, groups))
    train, val, test = splits
    return train, val, test
