"""Birdscapes: scenes drawn by the program, in which the background nearly always gives the kind of bird away.

Two kinds of bird (the label y) stand or swim on two kinds of background (the spurious attribute a). In
training, a share `rho` of the waterbirds is on water and of the landbirds on land. Nothing is downloaded: an
image is a function of (size, seed, split, bird, background, k) alone, so another `rho` takes more or fewer
scenes of each group and changes none of them.
"""

from __future__ import annotations

import hashlib
import inspect
import warnings
from collections.abc import Iterable
from typing import TYPE_CHECKING, Any

import numpy as np
import PIL
from joblib import Parallel, cpu_count, delayed
from tqdm.auto import tqdm

from caml_core import store
from caml_core.data import backgrounds, scenery
from caml_core.data.scenery import COLOURS, SPLITS, Attributes, draw
from caml_core.errors import CamlError

if TYPE_CHECKING:
    from caml_core.groups import GroupDataset, Splits

BIRDS = ("landbird", "waterbird")
BACKGROUNDS = ("land", "water")
SIZES = ("small", "big")
FACINGS = ("left", "right")
CHUNK = 64  # scenes drawn by a worker process at a time
SOURCE = hashlib.sha256("".join(map(inspect.getsource, (scenery, backgrounds))).encode()).hexdigest()

Arrays = dict[str, np.ndarray]


def caption(attributes: Attributes, include: Iterable[str] = Attributes._fields) -> str:
    """Say what of a scene `include` names: "a small red waterbird facing left on water", "a red bird on water"."""
    include = set(include)
    if unknown := include - set(Attributes._fields):
        what = f"a caption cannot include {', '.join(sorted(unknown))}"
        raise CamlError(what, f"some of {', '.join(Attributes._fields)}", "check the spelling")
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


def group_counts(n: int, rho: float) -> dict[tuple[int, int], int]:
    """Examples of each group (bird, background) among n: classes are balanced, and so are minority groups."""
    minority = round((1 - rho) * n)
    counts: dict[tuple[int, int], int] = {}
    for bird in (0, 1):
        in_class, rare = (n + 1 - bird) // 2, (minority + bird) // 2
        counts |= {(bird, bird): in_class - rare, (bird, 1 - bird): rare}
    return counts


def scenes(n: int, bird: int, background: int, progress: bool = False, **options: Any) -> Arrays:
    """The first n scenes of a group: `x` uint8 (n, size, size, 3) and `attributes` int64 (n, 5).

    They come from the cache as far as it goes; the others are drawn on all cores and added to it.

    Args:
        options: seed, split and size, as `caml_core.data.scenery.draw` takes them.
    """
    meta = {"bird": bird, "background": background, **options, "source": SOURCE}
    meta |= {"numpy": np.__version__, "pillow": PIL.__version__}  # others may draw otherwise
    folder = store.cache_dir() / "birdscapes" / f"{options['size']}px-seed{options['seed']}"
    path = folder / f"{options['split']}-{BIRDS[bird]}-{BACKGROUNDS[background]}.npz"
    parts: list[Arrays] = []
    if path.exists():
        try:
            parts.append(store.load_npz(path, meta))
        except CamlError as error:
            warnings.warn(f"drawing birds again: {error.what}", stacklevel=3)
    todo = range(sum(len(part["x"]) for part in parts), n)
    if todo:
        chunks = [todo[at : at + CHUNK] for at in range(0, len(todo), CHUNK)]
        jobs = 1 if len(chunks) <= 2 else min(cpu_count(), len(chunks))  # drawn before processes would have started
        work = (delayed(draw_scenes)(chunk, bird, background, **options) for chunk in chunks)
        drawn = Parallel(n_jobs=jobs, return_as="generator")(work)
        parts += tqdm(drawn, f"drawing {path.stem}", len(chunks), unit_scale=CHUNK, disable=not progress)
        store.save_npz(path, {name: np.concatenate([part[name] for part in parts]) for name in parts[0]}, meta)
    return {name: np.concatenate([part[name] for part in parts])[:n] for name in parts[0]}


def draw_scenes(numbers: Iterable[int], bird: int, background: int, **options: Any) -> Arrays:
    """Draw some scenes of a group, see `scenes`."""
    images, attributes = zip(*(draw(bird, background, k, **options) for k in numbers), strict=True)
    return {"x": np.stack(images), "attributes": np.array(attributes)}


def load(
    *, rho: float = 0.95, n_train: int = 3000, n_val: int = 600, n_test: int = 1200, size: int = 48, seed: int = 0,
    progress: bool = True,
) -> Splits:  # fmt: skip
    """The training, validation and test splits, drawn on first use and cached in the user's cache folder.

    x is uint8 (n, 3, size, size); the columns of `Attributes` are in `extra`.

    Args:
        rho: share of majority examples (a == y) in training, 0.5 to 1; the other splits are balanced.
        n_train, n_val, n_test: examples in each split, at least 4.
        size: side of the images in pixels, at least 16.
        seed: seed of the scenes and of the order of the rows, 0 or more.
    """
    from caml_core.groups import GroupDataset, check_rho

    check_rho(rho)
    splits = []
    for k, (split, n) in enumerate(zip(SPLITS, (n_train, n_val, n_test))):
        if n < 4:
            raise CamlError(f"n_{split} = {n}", "at least 4, one for each group", f"choose for example n_{split}=600")
        counts = group_counts(n, rho if split == "train" else 0.5)
        options: dict[str, Any] = {"size": size, "seed": seed, "split": split, "progress": progress}
        groups = [scenes(count, *group, **options) for group, count in counts.items() if count]
        order = np.random.default_rng([seed, k]).permutation(n)
        images, attributes = (np.concatenate([group[name] for group in groups])[order] for name in ("x", "attributes"))
        extra: dict[str, Any] = dict(zip(Attributes._fields, attributes.T.copy()))
        names: dict[str, Any] = {"class_names": BIRDS, "attribute_names": BACKGROUNDS, "extra": extra}
        names["source"] = f"birdscapes, drawn by the program: {split}, seed {seed}, {size} px"
        x = np.ascontiguousarray(images.transpose(0, 3, 1, 2))
        splits.append(GroupDataset(x, extra["bird"], extra["background"], **names))
    return splits[0], splits[1], splits[2]
