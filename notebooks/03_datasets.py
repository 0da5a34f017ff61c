# ---
# jupyter:
#   jupytext:
#     formats: ipynb,py:percent
#     text_representation:
#       extension: .py
#       format_name: percent
#   kernelspec:
#     display_name: Python 3
#     language: python
#     name: python3
# ---

# %% [markdown]
# # Datasets: what is spurious in each, and what to watch
#
# **Question.** The book uses nine datasets, most of them from the tables of the two papers. Which of their splits show
# the shortcut, and what does an accuracy on them mean?
#
# **You will be able to** load any of them with one word, measure how strongly label and attribute go together in each
# split, say which score a split can choose by, and name the trap of each dataset before you fall into it.
#
# > **Before you start.** Chapter [01](01_shortcuts.ipynb) helps: it says what groups are. On a laptop with two cores
# > this takes less than a minute and 1 GB of memory, with or without a GPU. Only MNIST and CIFAR-10 (140 MB) are
# > downloaded, where there is a network. Of datasets that are not on your machine you see the published counts.

# %% tags=["hide-input"]
import os
import subprocess
import sys
from importlib.metadata import version
from importlib.util import find_spec

os.environ.setdefault("GOMP_SPINCOUNT", "2000")  # threads that wait give way

# On Colab, or where the book's package is missing: install it, beside the
# PyTorch and NumPy that are here.
if find_spec("caml_core") is None:
    source = "git+https://github.com/your_account/caml-book"
    source = os.environ.get("CAML_REPOSITORY", source)
    if "/your_account/" in source:
        sys.exit("Set CAML_REPOSITORY to git+https://..., the book's address")
    here = filter(find_spec, ("torch", "torchvision", "numpy"))
    held = [f"{name}=={version(name)}" for name in here]
    pip = [sys.executable, "-m", "pip", "install", "-q", source, *held]
    done = subprocess.run(pip, capture_output=True, text=True)
    if done.returncode:
        sys.exit(f"pip could not install {source}:\n{done.stderr[-900:]}")
if "google.colab" in sys.modules:
    import torch

    cuda = torch.cuda.is_available()
    gpu = torch.cuda.get_device_name() if cuda else "no GPU (not needed)"
    print("caml_core", version("caml_core"), "torch", version("torch"), gpu)
    print("expect 1 minute on two cores")
# %% [markdown]
# ## Count first
#
# The label $y$ and the spurious attribute $a$ of an example give its group. Before any training, count the groups of
# each split. *Birdscapes* are drawn by the program, so they are always there:

# %%
from caml_core.data import load
from caml_core.groups import group_table
from IPython.display import Markdown

few = {"n_train": 400, "n_val": 80, "n_test": 80}
train, val, test = load("birdscapes", **few, seed=0)
Markdown(group_table(train=train, validation=val, test=test))

# %% [markdown]
# One number sums up such a table. For two labels and two attributes, with $n_{ya}$ examples in a group and a dot for a
# sum over both values, the correlation of $y$ and $a$ is
#
# $$\phi = \frac{n_{00} n_{11} - n_{01} n_{10}}{\sqrt{n_{0\cdot}\, n_{1\cdot}\, n_{\cdot 0}\, n_{\cdot 1}}}.$$
#
# It is 0 when the attribute says nothing about the label, and $\pm 1$ when it says all.

# %%
import math


def phi(n00, n01, n10, n11):
    margins = (n00 + n01) * (n10 + n11) * (n00 + n10) * (n01 + n11)
    return (n00 * n11 - n01 * n10) / math.sqrt(margins)


for name, split in (("training", train), ("test", test)):
    print(f"{name:8} phi = {phi(*split.group_counts.tolist()):.2f}")
assert abs(phi(*train.group_counts.tolist()) - 0.9) < 0.02  # 2 rho - 1
assert abs(phi(*test.group_counts.tolist())) < 0.02

# %% [markdown]
# ## Made: you choose the correlation
#
# Three datasets are put together from known parts: you choose the share $\rho$ of matching training examples, and
# validation and test splits have no correlation. *SpuCoMNIST* asks for a pair of digits (0 or 1, 2 or 3, ...) on a colour
# that nearly always tells; *Dominoes* puts a digit over a vehicle and asks for the vehicle. (It needs MNIST and CIFAR-10.)

# %%
small = {"n_train": 2000, "n_val": 500, "n_test": 500}
made = {
    "Birdscapes": train,
    "SpuCoMNIST": load("spuco_mnist", digits="drawn", rho=0.95, **small)[0],
}

# %% tags=["hide-input"]
import torch
from caml_core.data.sources import available
from caml_core.pictures.figures import image_grid, use_book_style
from torch.nn.functional import interpolate, pad

use_book_style()
if available("mnist") and available("cifar10"):
    made["Dominoes"] = load("dominoes", **small)[0]
rows, names = [], []
for name, split in made.items():
    for kind, chosen in (
        ("majority", ~split.is_minority),
        ("minority", split.is_minority),
    ):
        classes = range(len(split.class_names))
        each = 10 // len(classes)
        of = [torch.where(chosen & (split.y == k))[0][:each] for k in classes]
        x = split.x[torch.cat(of)].float()
        x = interpolate(x, scale_factor=64 / x.shape[2], mode="nearest")
        side = (64 - x.shape[3]) // 2
        rows.append(pad(x, (side, side), value=255).byte())
        names.append(f"{name},<br>{kind}")
image_grid(
    torch.cat(rows),
    columns=10,
    labels=names,
    title="The same labels, before the usual and the rare attribute",
)

# %% tags=["hide-input"]
for name, split in made.items():
    share = (~split.is_minority).double().mean().item()
    print(f"{name:10} share of matching examples in training {share:.2f}")
    assert abs(share - (0.9 if name == "Dominoes" else 0.95)) < 0.02

# %% [markdown]
# **Trap: one name, two datasets.** The Dominoes of HSFM (chapter [10](10_hsfm.ipynb)) are cars and trucks with a 0 or 1
# and $\rho = 0.9$, our default; those of CAML (chapter [07](07_caml.ipynb)) have all ten classes of CIFAR-10, the digit of
# the class and $\rho = 0.95$ (`protocol="caml"`). Chance is 50% in one and 10% in the other, so their numbers do not compare.
#
# ## Collected: somebody else chose
#
# The others are fetched (`python -m caml_core data list` says from where). Their counts are published:
#
# | dataset | label | attribute | where the correlation comes from |
# |:--|:--|:--|:--|
# | Waterbirds | land or water bird | land or water behind it | pasted on purpose: photographs of birds on landscapes |
# | CelebA | blond hair | recorded sex | few blond men among these celebrities |
# | CivilComments | toxic comment | names a group of people | naming people and attacking them go together |
# | SpuCoAnimals | kind of bird, size of dog | where it stands | chosen from ImageNet on purpose |
# | MetaShift | cat or dog | sofa, bed, bench, bike | chosen on purpose; test pictures are on shelves |

# %%
from importlib import import_module

four = [0, 1, 2, 3]
groups_of = {"waterbirds": four, "celeba": four, "civilcomments": four}
groups_of["spuco_animals"] = [0, 1, 4, 5]  # birds; dogs have the same counts
strength = {}
for name, groups in groups_of.items():
    strength[name] = {}
    counts = import_module(f"caml_core.data.{name}").PUBLISHED
    for split, n in counts.items():
        strength[name][split] = abs(phi(*[n[g] for g in groups]))

# %% tags=["opening", "hide-input"]
import plotly.graph_objects as go

names = ["Water-<br>birds", "CelebA", "Civil-<br>Comments"]
names += ["SpuCo-<br>Animals"]
figure = go.Figure()
for split, name, colour in (
    ("train", "training", "#7F7F7F"),
    ("val", "validation", "#CC79A7"),
    ("test", "test", "#009E73"),
):
    bars = [found[split] for found in strength.values()]
    figure.add_bar(x=names, y=bars, name=name, marker_color=colour)
    figure.data[-1].update(text=[f"{bar:.2f}" for bar in bars], textangle=0)
    figure.data[-1].update(textposition="outside", cliponaxis=False)
figure.update_layout(
    title="Which split shows the shortcut differs between datasets",
    xaxis={"title": "dataset", "tickangle": 0},
    yaxis={"title": "|φ| of label and attribute", "range": [0, 1]},
    margin={"r": 10},
    meta={"alt": "Correlation of label and attribute, by dataset and split."},
)

# %% tags=["hide-input"]
by = {name: list(found.values()) for name, found in strength.items()}
assert by["waterbirds"][0] > 0.8 > 0.02 > max(by["waterbirds"][1:])
for name in ("celeba", "civilcomments"):
    assert max(by[name]) - min(by[name]) < 0.1 < min(by[name])
assert min(by["spuco_animals"][:2]) > 0.8 > 0.02 > by["spuco_animals"][2]

# %% [markdown]
# Read it as advice on what a plain average can choose and show:
#
# - **Waterbirds**: neither validation nor test is correlated. An average over them does not reward the shortcut.
# - **CelebA, CivilComments**: all three splits are alike. The average hardly notices a small minority; look at the worst
#   group.
# - **SpuCoAnimals**: validation looks like training, so the best epoch by its average may be the one that uses the
#   shortcut best, and its average will not tell; its minority groups do, roughly, with 25 pictures each. CAML
#   (cumulative active meta-learning, chapter [07](07_caml.ipynb)) balances validation; the loader does so with
#   `protocol="caml"`.
#
# ## Traps
#
# ### Labels: a towhee becomes a waterbird
#
# In Waterbirds a species was called a waterbird when its name *contains* one of seventeen words, such as "tern".

# %%
import re

terns = ["Common Tern", "Least Tern"]
others = ["Eastern Towhee", "Western Meadowlark", "Western Wood Pewee"]
for name in [*terns, *others]:
    is_tern = re.search(r"\btern\b", name.lower())
    print(f"{name:20}", "a tern" if is_tern else "contains 'tern'")
    assert "tern" in name.lower()
    assert bool(is_tern) == (name in terns)

# %% [markdown]
# Three land birds became waterbirds, so some errors on "waterbird, land" are the label's.
#
# ### Averages: over which groups?
#
# The test split of Waterbirds has half of each kind of bird on water. Some papers report the plain average over it,
# others weight the groups as in *training*: with the accuracy $c_g$ of a group and its share $w_g$, $\sum_g w_g c_g$.
# Take the rule "waterbird if on water", which is right on the two majority groups and wrong on the others:

# %%
from caml_core.data import waterbirds

correct = [1, 0, 0, 1]  # c_g of land on land, land on water, ...
average = {}
for split in ("train", "test"):
    n = waterbirds.PUBLISHED[split]
    average[split] = sum(k * c for k, c in zip(n, correct)) / sum(n)
    print(f"groups weighed as in {split:5}: {average[split]:.1%} right")
assert average["train"] > 0.94
assert abs(average["test"] - 0.5) < 0.01

# %% [markdown]
# One model, one test set, two averages. The [notation page](../book/notation.md) names both; say which you report.
#
# ### Worst groups: of how many examples?
#
# The smallest group of CelebA's test split is tiny. An accuracy $p$ on $n$ pictures has the standard error
# $\sqrt{p(1-p)/n}$ before any seed is changed:

# %%
from caml_core.data import celeba

n, p = min(celeba.PUBLISHED["test"]), 0.9
error = 100 * math.sqrt(p * (1 - p) / n)
print(f"{n} pictures: one of them is {100 / n:.2f} points")
print(f"standard error at {p:.0%}: {error:.1f} points")
assert 0.5 < 100 / n < 0.6
assert 2.0 < error < 2.5

# %% [markdown]
# ### Groups: who defines them?
#
# - **MetaShift** has two test groups, cats and dogs, both on shelves. No test picture has a background of training, so
#   its "worst group" measures a new place, not a minority. Its validation pictures are 15% of the *test* pictures: who
#   chooses settings on them chooses on the new place.
# - **CivilComments**: WILDS scores each of eight identities by itself (sixteen overlapping groups) and takes the worst.
#   The papers of this book use four groups, as we do. The two worst groups do not compare. The column `identity_any` of
#   the file is a third definition.
#
# ### Near copies: what does a test split test?
#
# *Madlibs* fill six templates with names, kind or nasty words, and people: "Angela is a lovely muslim" is not bad. One
# word settles the label, the **judgement**. The attribute: does the sentence name an identity of a list? The loader draws
# sentences so that the two go together. "Liam is a vile ..." and "Zoe is a vile ..." differ in a name, so a random split
# trains on near copies of its test sentences. The loader gives each split its own judgements instead. What difference
# does that make to a model that counts words?

# %% tags=["hide-input"]
import numpy as np


def draw(file, rows, share, n, rng):
    """n rows of each label; in a share of them the attribute equals it."""
    chosen = []
    for y in (0, 1):
        usual = round(share * n)
        for a, count in ((y, usual), (1 - y, n - usual)):
            pool = rows[(file.y[rows] == y) & (file.a[rows] == a)]
            chosen.append(rng.permutation(pool)[:count])
    return np.concatenate(chosen)


# %%
from sklearn.feature_extraction.text import CountVectorizer
from sklearn.linear_model import LogisticRegression


def count_words(file, train_rows, test_rows, rng, rho=0.95):
    """Accuracy of counting words on minority and majority, percent."""
    train = draw(file, train_rows, rho, 1000, rng)
    test = draw(file, test_rows, 0.5, 500, rng)
    words = CountVectorizer(token_pattern=r"\w+")
    seen = words.fit_transform([file.text[i] for i in train])
    model = LogisticRegression(max_iter=500).fit(seen, file.y[train])
    new = words.transform([file.text[i] for i in test])
    right = model.predict(new) == file.y[test]
    minority = file.y[test] != file.a[test]
    return 100 * right[minority].mean(), 100 * right[~minority].mean()


# %% tags=["hide-input"]
from caml_core.data.find import locate
from caml_core.errors import CamlError


def is_here(name):
    try:
        locate(name, download=False)
    except CamlError:
        return False
    return True


# %%
from caml_core.data import madlibs

if HAVE_MADLIBS := is_here("madlibs"):
    file, rng = madlibs.read(), np.random.default_rng(0)
    rows = rng.permutation(len(file.text))
    by_sentence = count_words(file, rows[:50000], rows[50000:], rng)
    words = madlibs.split_words(file, rng)
    parts = [
        np.flatnonzero(np.isin(file.judgement, words[split]))
        for split in ("train", "test")
    ]
    by_judgement = count_words(file, *parts, rng)

# %% tags=["hide-input"]
from caml_core.pictures.figures import MAJORITY, MINORITY, add_chance
from IPython.display import display

if HAVE_MADLIBS:
    figure = go.Figure()
    for k, (name, colour) in enumerate(
        (("minority", MINORITY), ("majority", MAJORITY))
    ):
        bars = [round(pair[k]) for pair in (by_sentence, by_judgement)]
        figure.add_bar(
            x=["by sentence", "by judgement"],
            **{"y": bars, "name": name, "marker_color": colour, "text": bars},
        )
    figure.update_layout(
        title="Near copies hide what counting words has learned",
        xaxis={"title": "how training and test are split", "tickangle": 0},
        yaxis={"title": "accuracy (%)", "range": [0, 104]},
    )
    display(add_chance(figure, 50))
    assert min(by_sentence) > 85
    assert by_judgement[0] < 30
    assert by_judgement[1] > 70
else:
    print("No madlibs here. python -m caml_core data fetch madlibs")

# %% [markdown]
# Split by sentence, counting words is right on minority and majority alike. Split by judgement it has never met the words
# that matter, and answers by the identity. `load("madlibs")` gives sentence vectors of a pretrained encoder, which may
# know that "rotten" resembles "nasty".
#
# ## What we saw
#
# - A group table, and $\phi$, come first. They tell which split carries the shortcut, and so what a validation score can
#   choose.
# - Waterbirds' test split has no correlation, those of CelebA and CivilComments keep it, and SpuCoAnimals' validation
#   split has the shortcut of training.
# - The same rule scores 95% or 50% on Waterbirds, as groups are weighed.
# - One picture of CelebA's smallest test group is more than half a point.
# - A name of a dataset is not a protocol: wrong labels, test groups, definitions and near copies are part of a result.
#
# **Turn these knobs.** `rho` and `magnitude` of `spuco_mnist`; `seed` of `madlibs`, which draws other judgements;
# `load("folder", path=...)` for pictures of your own.
#
# ## Two quick questions
#
# **1.** In SpuCoAnimals the validation split has the same correlation as training. What follows for choosing the epoch
# by average accuracy?
#
# <details><summary>Nothing</summary>
#
# No. That average rewards the shortcut.
#
# </details>
#
# <details><summary>It may choose the epoch that uses the shortcut best</summary>
#
# Yes. One has to look at groups, or at a split without the correlation.
#
# </details>
#
# <details><summary>It chooses the best worst group</summary>
#
# No. The worst group is a small share of that average.
#
# </details>
#
# **2.** A worst group has 30 test pictures, and method B is 3 points ahead of A in it. What is that worth?
#
# <details><summary>Three points are three points</summary>
#
# No. One picture is worth more than three points there.
#
# </details>
#
# <details><summary>Nothing yet</summary>
#
# Yes. The 95% interval of such an accuracy is twenty to thirty-five points wide.
#
# </details>
#
# <details><summary>It is enough with one more seed</summary>
#
# No. More seeds do not make the test group larger.
#
# </details>
#
# ## Exercises
#
# **Exercise 1: the shortcut's score.** From the published counts (appendix): which accuracy does "waterbird if on water"
# reach on Waterbirds' *validation* split? And on CelebA, what does "blond if female" reach in each split?

# %% tags=["hide-cell", "solution"]
# @title Solution 1 { display-mode: "form" }
n = waterbirds.PUBLISHED["val"]
print(f"waterbirds val {(n[0] + n[3]) / sum(n):.1%}")
assert abs((n[0] + n[3]) / sum(n) - 0.5) < 0.01
for split, n in celeba.PUBLISHED.items():
    print(f"celeba {split:6} {(n[1] + n[2]) / sum(n):.1%}")
    assert 0.49 < (n[1] + n[2]) / sum(n) < 0.57  # a weak shortcut

# %% [markdown]
# **Exercise 2: enough pictures.** How many test pictures would the smallest group of CelebA need for a standard error of
# one point at 90%?
#
# <details><summary>Solution 2</summary>
#
# $0.9 \cdot 0.1 / 0.01^2 = 900$, five times as many.
#
# </details>
#
# **Exercise 3: no correlation.** Split by judgement, word counting is wrong on most of the minority. What would it
# score if $\rho$ were one half?
#
# <details><summary>Solution 3</summary>
#
# Half. Without the correlation the identity says nothing, and the judgements are new: it can only guess.
#
# </details>

# %% tags=["hide-cell", "solution"]
# @title Solution 3 { display-mode: "form" }
if HAVE_MADLIBS:
    guess = count_words(file, *parts, np.random.default_rng(0), rho=0.5)
    print("minority {:.0f}%, majority {:.0f}%".format(*guess))
    assert all(abs(score - 50) < 20 for score in guess)
else:
    print("madlibs is not on this machine")

# %% [markdown]
# ## Appendix: licences, sources, counts
#
# `python -m caml_core data fetch NAME` fetches a dataset, but for MetaShift, which a browser has to.
#
# **Two of them hurt people.** We show no faces: the people in CelebA were not asked, and its attributes, "male" among
# them, are guesses of annotators. The sentences of CivilComments are real, and a filter that leans on the shortcut
# silences those whom it should protect. Study shortcuts with both; build nothing that judges faces; leave no comments in
# a notebook.

# %% tags=["hide-input"]
from caml_core.data.find import CATALOGUE
from caml_core.runs.tables import markdown

rows = []
for name in ("waterbirds", "celeba", "civilcomments", "spuco_animals",
             "metashift", "madlibs"):  # fmt: skip
    entry = CATALOGUE[name]
    size = sum(part.size or 0 for part in entry.files) / 1e6
    about = f"{size:,.0f}\u00a0MB" if size else ""
    rows.append([f"[{name}]({entry.page})", entry.licence, about])
table = markdown(["dataset", "licence", "download"], rows)
Markdown(table.replace("--:", ":--"))

# %% tags=["hide-input"]
rows = []
for name in groups_of:
    module = import_module(f"caml_core.data.{name}")
    named = [f"{y}, {a}" for y in module.CLASSES for a in module.ATTRIBUTES]
    for g, group in enumerate(named):
        n = [module.PUBLISHED[split] for split in ("train", "val", "test")]
        if any(split[g] for split in n):
            cells = [f"{s[g]:,} ({100 * s[g] / sum(s):.1f}%)" for s in n]
            rows.append([f"{name}: {group}", *cells])
header = ["published counts", "training", "validation", "test"]
Markdown(markdown(header, rows))

# %% [markdown]
# Photographs of the datasets that are on your machine, a row for each group of the test split:

# %% tags=["hide-input"]
photographs = [n for n in ("waterbirds", "metashift", "spuco_animals")
               if is_here(n)]  # fmt: skip
for name in photographs:
    split = load(name)[2]
    groups = [g for g, n in enumerate(split.group_counts) if n >= 6]
    rows = [torch.where(split.group == g)[0][:6] for g in groups]
    texts = [split.group_names[g].replace(", ", ",<br>") for g in groups]
    picture = split.x[torch.cat(rows)]
    title = f"{CATALOGUE[name].title.split(':')[0]}, test split"
    display(image_grid(picture, columns=6, labels=texts, title=title))
print("shown:", ", ".join(photographs) or "none; none is on this machine")

# %% [markdown]
# ## References
#
# - Sagawa, Koh, Hashimoto and Liang, [Distributionally Robust Neural Networks for Group Shifts](https://arxiv.org/abs/1911.08731) (Waterbirds).
# - Liu, Luo, Wang and Tang, [Deep Learning Face Attributes in the Wild](https://arxiv.org/abs/1411.7766) (CelebA).
# - Liang and Zou, [MetaShift](https://arxiv.org/abs/2202.06523); Wu et al., [Discover and Cure](https://arxiv.org/abs/2305.00650).
# - Joshi et al., [Towards Mitigating Spurious Correlations in the Wild](https://arxiv.org/abs/2306.11957) (SpuCo).
# - Borkan et al., [Nuanced Metrics for Measuring Unintended Bias](https://arxiv.org/abs/1903.04561) and
#   Koh et al., [WILDS](https://arxiv.org/abs/2012.07421) (CivilComments).
# - Dixon et al., [Measuring and Mitigating Unintended Bias in Text Classification](https://doi.org/10.1145/3278721.3278729) (madlibs).
