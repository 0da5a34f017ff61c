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
# **Question.** The book uses nine datasets, most of them from the tables of the two papers. Where does the shortcut of
# each come from, and what does a result on it mean?
#
# **You will be able to** load any of them with one word, read a group table, say which split shows the shortcut and
# which does not, and name the trap of each dataset before you fall into it.
#
# > **Before you start.** Chapter [01](01_shortcuts.ipynb) helps: it says what groups are. On a laptop with two cores
# > this takes less than a minute and 1 GB of memory, with or without a GPU. Only MNIST and CIFAR-10 (140 MB) are
# > downloaded, where there is a network; any other dataset that is not on your machine shows its published table and the
# > line that fetches it. Image datasets that are there are packed when first loaded, which takes some minutes.

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
# ## A dataset that is always there
#
# Label $y$ and spurious attribute $a$ of an example give its group. The **group table** is the first thing to look at,
# before any training: it counts the examples of each group in each split.

# %%
from caml_core.data import load
from caml_core.groups import group_table
from IPython.display import Markdown, display

train, val, test = load("birdscapes", n_train=400, n_val=80, n_test=80, seed=0)
display(Markdown(group_table(train=train, validation=val, test=test)))

# %% [markdown]
# *Birdscapes* are drawn by the program. The label is the kind of bird. The attribute is the background, and it agrees
# with the bird because we say so: $\rho$ is a number that you set. That makes it a good first dataset. You know the
# truth, so a surprise is about the method.

# %% tags=["hide-input"]
import torch
from caml_core.pictures.figures import image_grid, use_book_style

use_book_style()


def contact_sheet(split, title, columns=6):
    groups = [g for g, n in enumerate(split.group_counts) if n >= columns]
    rows = [torch.where(split.group == g)[0][:columns] for g in groups]
    names = [split.group_names[g].replace(", ", ",<br>") for g in groups]
    return image_grid(
        split.x[torch.cat(rows)], columns=columns, labels=names, title=title
    )


contact_sheet(
    test, "Birdscapes: the bird is the label, the background the shortcut"
)

# %%
for name, split in (("training", train), ("test", test)):
    share = (~split.is_minority).double().mean().item()
    print(f"majority share, {name:8} {share:.2f}")
    assert abs(share - (0.95 if split is train else 0.5)) < 0.02

# %% [markdown]
# ## Made from digits and vehicles
#
# *SpuCoMNIST* asks for the pair of a digit (0 or 1, 2 or 3, ...); the colour behind it nearly always tells. *Dominoes*
# puts a digit over a vehicle and asks for the vehicle. Both are glued together from known parts, so any $\rho$ can be
# had, and validation and test splits are made without correlation. The digits below are drawn by the program; with
# `digits="mnist"` they are handwritten.

# %%
spuco, _, spuco_test = load(
    "spuco_mnist", digits="drawn", rho=0.95, n_train=2000, n_val=500, n_test=500
)
usual = torch.where(~spuco.is_minority)[0]
rare = torch.where(spuco.is_minority)[0]
sheet = torch.cat(
    [rows[spuco.y[rows] == k][:2] for rows in (usual, rare) for k in range(5)]
)
image_grid(
    spuco.x[sheet],
    columns=10,
    labels=["majority", "minority"],
    title="SpuCoMNIST: two digits a class; the colour gives the class away",
)

# %% [markdown]
# Dominoes needs MNIST and CIFAR-10 (140 MB). The two papers mean different things by the word, and the loader keeps
# both by name:
#
# | | `protocol="hsfm"` | `protocol="caml"` |
# |:--|:--|:--|
# | classes | automobile, truck | all ten of CIFAR-10 |
# | shortcut | digit 0 or 1 | the digit of the class |
# | $\rho$ | 0.9, exact in each class | 0.95, by shuffling pairs |
# | chance | 50% | 10% |
#
# A number from one protocol says nothing about the other.

# %% tags=["hide-input"]
from caml_core.data.sources import available

if available("mnist") and available("cifar10"):
    _, _, dominoes_test = load("dominoes", n_train=400, n_val=80, n_test=80)
    display(
        contact_sheet(
            dominoes_test,
            "Dominoes: the vehicle is the label, the digit the shortcut",
            columns=8,
        )
    )
else:
    print("MNIST and CIFAR-10 are not here: connect once, or set CAML_DATA")

# %% [markdown]
# ## Collected from the world
#
# The other datasets are fetched. Two functions show what your machine has of each, and the published table. Where a
# dataset comes from, how large it is and under which licence, `python -m caml_core data list` prints as well.

# %%
from importlib import import_module

from caml_core.data.find import CATALOGUE, locate
from caml_core.errors import CamlError


def is_here(name):
    try:
        locate(name, download=False)
    except CamlError:
        return False
    return True


# %%
def table(name):
    """The published group table; groups that are empty everywhere are left out."""
    module = import_module(f"caml_core.data.{name}")
    names = [f"{y}, {a}" for y in module.CLASSES for a in module.ATTRIBUTES]
    counts = module.PUBLISHED
    lines = [
        "| group | " + " | ".join(counts) + " |",
        "|:--|" + "--:|" * len(counts),
    ]
    for g, group in enumerate(names):
        if any(column[g] for column in counts.values()):
            cells = [
                f"{n[g]:,}<br>{100 * n[g] / sum(n):.1f}%"
                for n in counts.values()
            ]
            lines.append(f"| {group} | " + " | ".join(cells) + " |")
    return "\n".join(lines)


# %%
def card(name):
    """Licence, source, and whether it is on this machine."""
    entry = CATALOGUE[name]
    size = sum(file.size or 0 for file in entry.files) / 1e6
    lines = [
        f"**{entry.title}**",
        f"Licence: {entry.licence}.",
        f"{entry.citation}. [Page]({entry.page})",
    ]
    if is_here(name):
        lines.append("It is on this machine.")
    elif entry.files:
        about = f" ({size:,.0f} MB)" if size else ""
        command = f"`python -m caml_core data fetch {name}`"
        lines.append(f"Not on this machine. Fetch it{about}: {command}")
    else:
        how = f"no program can fetch it: {entry.by_hand}."
        lines.append(f"Not on this machine, and {how}")
    return Markdown("\n\n".join(lines))


# %% [markdown]
# ### Waterbirds
#
# Birds cut out of photographs (CUB-200-2011) are pasted on landscapes (Places). Nobody photographed these scenes: the
# correlation was made, at 95%, to study what plain training does with it.

# %% tags=["hide-input"]
display(card("waterbirds"), Markdown(table("waterbirds")))
if is_here("waterbirds"):
    _, _, waterbirds_test = load("waterbirds")
    display(
        contact_sheet(
            waterbirds_test,
            "Waterbirds: pasted birds, so that bird and place can disagree",
        )
    )

# %% [markdown]
# **Trap 1: the labels.** A species was called a waterbird when its name *contains* one of seventeen words, such as
# "tern". Look at what that does.

# %%
import re

species = [
    "Common Tern",
    "Least Tern",
    "Eastern Towhee",
    "Western Meadowlark",
    "Western Wood Pewee",
]
for name in species:
    is_tern = re.search(r"\btern\b", name.lower())
    print(f"{name:22}", "a tern" if is_tern else "contains 'tern'")
    assert "tern" in name.lower()
    assert bool(is_tern) == name.endswith("Tern")

# %% [markdown]
# Three land birds became waterbirds. Some errors that a model makes on "waterbird, land" are the label's. The same
# mistake lurks in text: "male" stands in "female".
#
# **Trap 2: the training average.** In the test split half of each kind of bird is on water, on purpose, so a plain
# average over it is not the accuracy that a user would see. Some papers therefore weight the groups as in *training*;
# others report the plain one. The [notation page](../book/notation.md) names both.
#
# ### CelebA
#
# Is the hair blond? The attribute is the recorded sex. Here nobody made the correlation: there are few blond men among
# these celebrities.

# %%
display(card("celeba"), Markdown(table("celeba")))

# %% [markdown]
# **Ethics.** We show no faces. The people in the pictures were not asked; the licence allows non-commercial research
# only. The attributes are the guesses of annotators, "male" among them, and say nothing about how a person sees
# themselves. Use the dataset to study shortcuts, not to build something that judges faces.
#
# **Trap.** The smallest group of the test split is tiny. One picture more or less moves its accuracy by more than half
# a point, before any seed is changed.

# %%
from caml_core.data import celeba

smallest = min(celeba.PUBLISHED["test"])
one_picture = 100 / smallest
wobble = 100 * (0.9 * 0.1 / smallest) ** 0.5  # binomial standard error at 90%
print(f"{smallest} pictures: one of them is {one_picture:.2f} points")
print(f"standard error at 90% accuracy: {wobble:.1f} points")
assert 0.5 < one_picture < 0.6
assert 2.0 < wobble < 2.5

# %% [markdown]
# ### MetaShift: cats and dogs
#
# In training cats are on sofas and beds, dogs on benches and with bikes. In the test split both are on shelves.

# %% tags=["hide-input"]
display(card("metashift"))
if is_here("metashift"):
    metashift_train, _, metashift_test = load("metashift")
    display(Markdown(group_table(train=metashift_train, test=metashift_test)))
    display(
        contact_sheet(
            metashift_test,
            "MetaShift: in the test split, both animals are on shelves",
        )
    )

# %% [markdown]
# **Trap: two test groups.** "Worst group" means the lower of cat and dog. No test picture has a background of training,
# so this measures a new place, not a minority. And the validation pictures are 15% of the *test* pictures: whoever
# chooses settings on them chooses on the new place.
#
# ### SpuCoAnimals
#
# ImageNet birds on land and water, dogs indoors and outdoors: the "SpuCo" of the tables of
# [CAML](07_caml.ipynb), cumulative active meta-learning.

# %% tags=["hide-input"]
display(card("spuco_animals"), Markdown(table("spuco_animals")))
if is_here("spuco_animals"):
    _, _, animals_test = load("spuco_animals")
    display(
        contact_sheet(
            animals_test,
            "SpuCoAnimals: real photographs, sorted by where the animal is",
        )
    )

# %% [markdown]
# **Trap.** The official validation split is as skewed as training, so the best epoch by its average is the epoch that
# uses the shortcut best. CAML balances validation; the loader does so with `protocol="caml"`.
#
# ### CivilComments
#
# Comments under newspaper articles. Is the comment toxic? The attribute: does it speak of one of eight groups of
# people? Comments that do are attacked more often, so a model learns that naming people is rude.

# %%
display(card("civilcomments"), Markdown(table("civilcomments")))

# %% [markdown]
# **Ethics.** The sentences hurt, and they are real. A filter that leans on the shortcut silences the very people whom
# it should protect. Print examples only when you must, and never leave them in a notebook.
#
# **Trap.** WILDS scores each of the eight identities by itself (sixteen overlapping groups) and takes the worst. The
# papers of this book use four groups. The second number is higher; they do not compare. The column `identity_any` of
# the file is a third definition.
#
# ## Which split shows the shortcut?
#
# Now compare all of them with one number. For two labels and two attributes, the correlation of $y$ and $a$ is
#
# $$\phi = \frac{n_{00} n_{11} - n_{01} n_{10}}{\sqrt{n_{0\cdot}\, n_{1\cdot}\, n_{\cdot 0}\, n_{\cdot 1}}},$$
#
# where $n_{ya}$ counts a group and a dot is a sum over both values. It is 0 when the attribute says nothing about the
# label, and $\pm 1$ when it says all.

# %%
import math


def phi(n00, n01, n10, n11):
    margins = (n00 + n01) * (n10 + n11) * (n00 + n10) * (n01 + n11)
    return (n00 * n11 - n01 * n10) / math.sqrt(margins)


four = [0, 1, 2, 3]
groups_of = {"waterbirds": four, "celeba": four, "civilcomments": four}
groups_of["spuco_animals"] = [0, 1, 4, 5]  # birds; dogs have the same counts
strength = {}
for name, groups in groups_of.items():
    counts = import_module(f"caml_core.data.{name}").PUBLISHED
    found = {
        split: abs(phi(*(n[g] for g in groups))) for split, n in counts.items()
    }
    print(f"{name:14}", *(f"{split} {v:.2f} " for split, v in found.items()))
    strength[name] = found

# %% tags=["opening", "hide-input"]
import plotly.graph_objects as go

names = ["Water-<br>birds", "CelebA", "Civil-<br>Comments", "SpuCo-<br>Animals"]
figure = go.Figure()
for split, name, colour in (
    ("train", "training", "#7F7F7F"),
    ("val", "validation", "#CC79A7"),
    ("test", "test", "#009E73"),
):
    bars = [round(found[split], 3) for found in strength.values()]
    figure.add_bar(x=names, y=bars, name=name, marker_color=colour)
figure.update_layout(
    title="Some test splits remove the shortcut; CelebA and CivilComments keep it",
    xaxis={"title": "dataset", "tickangle": 0},
    yaxis={"title": "|φ| of label and attribute", "range": [0, 1]},
    margin={"r": 10},
    meta={
        "alt": "Correlation of label and attribute in three splits of four datasets."
    },
)

# %% [markdown]
# No bar means $\phi = 0$. In **Waterbirds** the shortcut is strong in training and absent from both other splits, so
# choosing by plain validation accuracy already helps the minority. In **CelebA** and **CivilComments** all three splits
# are alike: the average hardly notices a minority, and only the worst group shows the shortcut. In **SpuCoAnimals**
# validation looks like training and only the test split is balanced.

# %% tags=["hide-input"]
assert strength["waterbirds"]["train"] > 0.8
assert strength["waterbirds"]["val"] < 0.02
assert strength["waterbirds"]["test"] < 0.02
for name in ("celeba", "civilcomments"):
    values = strength[name].values()
    assert max(values) - min(values) < 0.1, name
assert strength["spuco_animals"]["train"] > 0.8
assert (
    abs(strength["spuco_animals"]["val"] - strength["spuco_animals"]["train"])
    < 0.02
)
assert strength["spuco_animals"]["test"] < 0.02

# %% [markdown]
# ## Sentences from templates
#
# *Madlibs* were written to test filters such as those for CivilComments: six templates, filled with names, kind or
# nasty words, and people. "Angela is a lovely muslim" is not bad; with another adjective it is. The label is
# settled by one word, the **judgement**. The attribute: does the sentence name one of these?

# %%
from caml_core.data import madlibs

display(card("madlibs"))
for column, words in madlibs.IDENTITIES.items():
    print(f"{column:16}{', '.join(words)}")

# %%
HAVE_MADLIBS = is_here("madlibs")
if HAVE_MADLIBS:
    file = madlibs.read()
    kind = [
        i
        for i, word in enumerate(file.judgement)
        if word in ("lovely", "caring", "respect", "am")
    ]
    for i in kind[:: len(kind) // 6]:
        print(f"a = {file.a[i]}  {file.text[i]}")
    per_label = [file.a[file.y == label].mean() for label in (0, 1)]
    for name, share in zip(("not bad", "bad"), per_label):
        print(f"{name:7} sentences that name one: {share:.1%}")
    assert abs(per_label[0] - per_label[1]) < 0.001

# %% [markdown]
# In the file, label and attribute are independent. The loader makes the shortcut by choosing sentences: a share $\rho$
# of the bad ones names an identity of the list, and a share $\rho$ of the others does not. (The remaining identities,
# such as "canadian", stay in both.)
#
# **Trap: near copies.** "Liam is a vile ..." and "Zoe is a vile ..." differ in a name. If one is in training and the
# other in the test split, a list of nasty words is enough. So the loader gives each split its own judgements. What
# difference does it make? Let a model count words, the plainest model there is, and split in both ways.

# %%
import numpy as np
from sklearn.feature_extraction.text import CountVectorizer
from sklearn.linear_model import LogisticRegression


def draw(file, rows, share, n, rng):
    """n rows of each label, a share of them with the attribute that goes with it."""
    chosen = []
    for label in (0, 1):
        for a, count in (
            (label, round(share * n)),
            (1 - label, n - round(share * n)),
        ):
            pool = rows[(file.y[rows] == label) & (file.a[rows] == a)]
            chosen.append(rng.permutation(pool)[:count])
    return np.concatenate(chosen)


# %% tags=["hide-input"]
def count_words(file, train_rows, test_rows, rng, rho=0.95):
    """Accuracy of counting words on minority and majority, percent."""
    train = draw(file, train_rows, rho, 1000, rng)
    test = draw(file, test_rows, 0.5, 500, rng)
    words = CountVectorizer(token_pattern=r"\w+")
    seen = words.fit_transform([file.text[i] for i in train])
    model = LogisticRegression(max_iter=500).fit(seen, file.y[train])
    right = (
        model.predict(words.transform([file.text[i] for i in test]))
        == file.y[test]
    )
    minority = file.y[test] != file.a[test]
    return 100 * right[minority].mean(), 100 * right[~minority].mean()


if HAVE_MADLIBS:
    rng = np.random.default_rng(0)
    rows = rng.permutation(len(file.text))
    by_sentence = count_words(file, rows[:50000], rows[50000:], rng)
    words = madlibs.split_words(file, rng)
    parts = [
        np.flatnonzero(np.isin(file.judgement, words[split]))
        for split in ("train", "test")
    ]
    by_judgement = count_words(file, *parts, rng)
    assert by_sentence[0] > 85
    assert by_judgement[0] < 30
    assert by_judgement[1] > 70

# %% tags=["hide-input"]
from caml_core.pictures.figures import MAJORITY, MINORITY, add_chance

if HAVE_MADLIBS:
    ways = ["by sentence", "by judgement"]
    figure = go.Figure()
    for k, (name, colour) in enumerate(
        (("minority", MINORITY), ("majority", MAJORITY))
    ):
        bars = [round(pair[k]) for pair in (by_sentence, by_judgement)]
        figure.add_bar(
            x=ways, y=bars, name=name, marker_color=colour, text=bars
        )
    figure.update_layout(
        title="Near copies make counting words look like understanding",
        xaxis={"title": "how training and test are told apart", "tickangle": 0},
        yaxis={"title": "accuracy (%)", "range": [0, 104]},
    )
    display(add_chance(figure, 50))

# %% [markdown]
# Split by judgement, the model has never met the words that matter and answers by the identity alone. A pretrained
# encoder knows that "rotten" resembles "nasty", so it can do the honest task; `load("madlibs")` gives its sentence
# vectors.
#
# ## What we saw
#
# - A group table comes first. It tells which split carries the shortcut, and so what a validation score can choose.
# - Made datasets (birdscapes, SpuCoMNIST, Dominoes, Waterbirds) have a known truth; collected ones (CelebA,
#   CivilComments) have a history and people in them.
# - Every dataset has a trap: wrong labels, a tiny worst group, two test groups, near copies, three definitions of one
#   word.
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
# <details><summary>It chooses the epoch that uses the shortcut best</summary>
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
# Yes. The 95% interval of such an accuracy is some thirty points wide.
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
# **Exercise 1: the shortcut's score.** From the table alone: which accuracy does "waterbird if on water" reach on
# Waterbirds' training, validation and test splits?

# %% tags=["hide-cell", "solution"]
# @title Solution 1 { display-mode: "form" }
from caml_core.data import waterbirds

for split, n in waterbirds.PUBLISHED.items():
    score = (n[0] + n[3]) / sum(n)  # the two majority groups
    print(f"{split:6} {score:.1%}")
    assert abs(score - (0.95 if split == "train" else 0.5)) < 0.01

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
# **Exercise 3: no correlation.** Word counting, split by judgement, is wrong on nearly all minorities. What would it
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
# ## References
#
# - Sagawa, Koh, Hashimoto and Liang, [Distributionally Robust Neural Networks for Group Shifts](https://arxiv.org/abs/1911.08731) (Waterbirds).
# - Liu, Luo, Wang and Tang, [Deep Learning Face Attributes in the Wild](https://arxiv.org/abs/1411.7766) (CelebA).
# - Liang and Zou, [MetaShift](https://arxiv.org/abs/2202.06523); Wu et al., [Discover and Cure](https://arxiv.org/abs/2305.00650).
# - Joshi et al., [Towards Mitigating Spurious Correlations in the Wild](https://arxiv.org/abs/2306.11957) (SpuCo).
# - Borkan et al., [Nuanced Metrics for Measuring Unintended Bias](https://arxiv.org/abs/1903.04561) and
#   Koh et al., [WILDS](https://arxiv.org/abs/2012.07421) (CivilComments).
# - Dixon et al., [Measuring and Mitigating Unintended Bias in Text Classification](https://doi.org/10.1145/3278721.3278729) (madlibs).
