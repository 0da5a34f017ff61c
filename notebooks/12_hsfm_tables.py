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
# # HSFM tables: the method beside its paper
#
# **Question.** HSFM (hard-set-guided feature-space meta-learning) edits a few support examples until a head that is
# trained on them does well on a hard set. Does it repair a biased last layer as well as its paper says, and is it
# better than retraining that layer on fair data?
#
# **You will be able to** set a published row beside your own runs, say what each method had to know, tell a paired
# difference from the noise of five seeds, and name the settings on which a verdict hangs.
#
# > **Before you start.** Chapter [10](10_hsfm.ipynb) explains the method, chapter [02](02_last_layer.ipynb) the last
# > layer and deep feature reweighting (DFR). This chapter trains nothing. It reads stored records, which takes seconds
# > on any machine and less than 1 GB of memory, and its tables say "not run" where there is none.

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
# ## Four networks, one table
#
# The paper (Yazdan Parast et al., [arXiv 2603.29313](https://arxiv.org/abs/2603.29313)) has a table for two-class
# Dominoes: an MNIST 0 or 1 above a CIFAR-10 car or truck, and in nine of ten training images the digit goes with the
# vehicle. We ran it with three networks that fit on two cores, and added the birds of chapter 10. Five seeds each:
#
# | column | network | head to start from |
# |:--|:--|:--|
# | **authors' protocol** | EfficientNet-Lite0, trained on Dominoes (the paper: ResNet-50) | its own, on raw features |
# | **ImageNet** | EfficientNet-Lite0, never trained on Dominoes | a new one, features standardised |
# | **small ResNet** | that of chapter [01](01_shortcuts.ipynb), trained on Dominoes | a new one, features standardised |
# | **birds** | as ImageNet, on birdscapes with $\rho = 0.95$ | a new one, features standardised |
#
# So only the first column may be read beside the paper's numbers, and its network is another one: that their *heights*
# agree may be luck, their *order* less so.

# %%
from caml_core.runs.tables import HSFM, by_run

authors = by_run("authors")
imagenet = by_run("heads")
resnet = by_run("heads_resnet")
birds = by_run("heads_birdscapes")
paper = HSFM["Dominoes"]  # worst-group accuracy and average, by method

# %% [markdown]
# All methods retrain the head that empirical risk minimisation (ERM) left. *Balanced* weighs the groups of the training
# set equally; GroupDRO (group distributionally robust optimisation) trains on the worst of them; JTT (just train twice)
# repeats what a first head got wrong, and AFR (automatic feature reweighting) does so softly; DFR trains on validation
# images with balanced groups; DaC (Decompose-and-Compose) sets the part that a heat map finds into images of the other
# class; DDB (diffusion driven balancing) paints new ones. The numbers are the worst-group accuracy (WGA), in percent.

# %% tags=["hide-input"]
from caml_core.runs.records import mean_and_spread
from caml_core.runs.tables import markdown, mean_text
from IPython.display import Markdown

ROWS = {  # method: group labels, key in the paper, run in each column
    "ERM head": ("none", "erm-head", *["erm-head"] * 4),
    "JTT": ("choose", "", *["jtt-head"] * 4),
    "AFR": ("choose", "", *["afr"] * 4),
    "balanced groups": ("train", "", *["balanced-head"] * 4),
    "GroupDRO": ("train", "", *["gdro-head"] * 4),
    "DaC": ("choose", "dac", *["dac"] * 4),
    "DDB": ("choose", "", *["ddb"] * 4),
    "DFR": ("validation", "dfr", *["dfr"] * 4),
    "HSFM": ("choose", "hsfm", "hsfm, authors", "hsfm", "hsfm", ""),
    "HSFM, scaled": (
        *("choose", "", "hsfm, authors, scaled", "hsfm, scaled"),
        *("hsfm, scaled", "hsfm, scaled"),
    ),
}
COLUMNS = {"authors' protocol": authors, "ImageNet": imagenet}
COLUMNS |= {"small ResNet": resnet, "birds": birds}
rows = []
for name, (labels, published, *keys) in ROWS.items():
    theirs = f"{paper[published][0][0]:.1f}" if published else ""
    ours = [
        mean_text(runs.get(key, []), "worst_group")
        for key, runs in zip(keys, COLUMNS.values())
    ]
    rows.append([name, labels, theirs, *ours])
Markdown(markdown(["method", "group labels", "paper", *COLUMNS], rows))

# %% [markdown]
# *Group labels* says who has to know them: to *choose* an epoch or a setting on validation images; to *train* on them,
# too; or to train on those of *validation* images. *Scaled* adapts HSFM's published step sizes to the width of the
# features by a rule that has seen no test image. A ± is the standard deviation over seeds; averages over the test set
# are in the appendix.
#
# - **The paper's order repeats in the means** with a network that was trained on the dataset: ERM, DaC, DFR, HSFM.
# - **JTT and AFR hardly move that network**, presumably because it makes few mistakes on images that it knows. On
#   ImageNet features they do help.
# - **On the birds, balancing the training set is far behind** DFR and HSFM: in this training set a minority is forty
#   pictures.


# %% tags=["hide-input"]
def wga(runs, name):
    return mean_and_spread(runs[name], "worst_group")[0]


by_authors = ["erm-head", "dac", "dfr", "hsfm, authors"]
order = [wga(authors, name) for name in by_authors]
assert order == sorted(order)
for mine, theirs in zip(by_authors, ("erm-head", "dac", "dfr", "hsfm")):
    for k, metric in enumerate(("worst_group", "average")):
        height = mean_and_spread(authors[mine], metric)[0]
        assert abs(height - paper[theirs][k][0]) < 3
for name in ("jtt-head", "afr"):
    assert abs(wga(authors, name) - wga(authors, "erm-head")) < 3
    assert wga(imagenet, name) > wga(imagenet, "erm-head") + 8
for name in ("dfr", "hsfm, scaled"):
    assert wga(birds, name) > wga(birds, "balanced-head") + 15

# %% [markdown]
# ## Is HSFM better than DFR?
#
# Both means are close, so look at differences. With the same seed both methods get the same images, the same network and
# the same ERM head, so subtract *within* each seed $s$. For $n$ seeds the 95% interval of Student's t is
#
# $$\bar d \pm t_{0.975,\, n-1} \frac{\mathrm{std}(d_1, \dots, d_n)}{\sqrt n}, \qquad
# d_s = \mathrm{WGA}^\text{HSFM}_s - \mathrm{WGA}^\text{DFR}_s .$$

# %%
import numpy as np
from scipy import stats


def values(records):
    """Worst-group accuracy of each run, in the order of the seeds."""
    records = sorted(records, key=lambda record: record["seed"])
    found = [record["metrics"]["worst_group"] for record in records]
    return np.array([one["value"] for one in found])


d = values(imagenet["hsfm"]) - values(imagenet["dfr"])
n = len(d)
half = stats.t.ppf(0.975, n - 1) * d.std(ddof=1) / n**0.5

# %%
from caml_core.runs.records import paired_difference


def over(a, b, metric="worst_group"):
    """Mean, low and high of a - b, from the package."""
    return paired_difference(a, b, metric)


def told(gap):
    return "{mean:+5.1f} [{low:+.1f}, {high:+.1f}]".format(**gap)


gap = over(imagenet["hsfm"], imagenet["dfr"])
print("ImageNet, HSFM − DFR:", told(gap))
assert np.isclose(gap["high"], d.mean() + half)

# %% tags=["opening", "hide-input"]
from caml_core.pictures.figures import interval_rows, use_book_style

use_book_style()
own = authors["resnet, hsfm, authors, scaled"]
PAIRS = {
    "authors' protocol": (authors["hsfm, authors"], authors["dfr"]),
    "ImageNet": (imagenet["hsfm"], imagenet["dfr"]),
    "small ResNet": (resnet["hsfm"], resnet["dfr"]),
    "small ResNet, steps scaled": (resnet["hsfm, scaled"], resnet["dfr"]),
    "small ResNet, authors' protocol, steps scaled": (own, resnet["dfr"]),
    "birds, steps scaled": (birds["hsfm, scaled"], birds["dfr"]),
    "birds, settings tuned": (birds["hsfm, tuned"], birds["dfr"]),
}
ahead = {name: over(*pair) for name, pair in PAIRS.items()}
figure = interval_rows(
    {"hsfm": ahead},
    title="HSFM − DFR: level in two columns of the table, behind in two",
    x_title="difference of worst-group accuracy (points)",
    colours={"hsfm": "#CC79A7"},
)
alt = "HSFM minus DFR: the first two intervals include zero, four do not."
figure.update_layout(showlegend=False, meta={"alt": alt})

# %%
for name, gap in ahead.items():
    print(f"{name:46} {gap['mean']:+.1f}")
for name in ("authors' protocol", "ImageNet"):
    assert ahead[name]["low"] < 0 < ahead[name]["mean"] < 2
for name in ("small ResNet", "birds, steps scaled"):
    assert ahead[name]["high"] < 0
    assert ahead[name]["mean"] < -5
assert ahead["birds, settings tuned"]["high"] > 0

# %% [markdown]
# In the first two columns HSFM's mean is ahead of DFR's, as in the paper, and five seeds cannot tell the two apart. On
# the small ResNet the published settings are behind, on the birds the same with scaled steps, and their intervals lie
# below zero. How much of that is HSFM, and how much its settings?
#
# - **Small ResNet**: with the network's own head, raw features and scaled steps, HSFM comes within two points, on every
#   seed a little behind. What closed the gap we cannot say: those runs are also in float64, and no single step is sure.
# - **Birds**: *tuned* settings close more than half of the gap, and the interval then includes zero. They were chosen on
#   three *other* draws of the pictures (on halves of their validation sets): a support set four times and a hard set
#   twice as large, and a tenth of the edits' step $\eta$. DFR chooses its penalty, too, so this is the fairer row.
#
# Chapter 10 saw the two level on the birds. It looked at one draw of the pictures; here every seed has its own.

# %% tags=["hide-input"]
gaps = values(own) - values(resnet["dfr"])
assert -2 < gaps.mean() < gaps.max() < 0
in_double = authors["resnet, hsfm, ours, scaled"]
steps = ((in_double, resnet["hsfm, scaled"]), (own, in_double))
assert all(over(*pair)["low"] < 0 < over(*pair)["mean"] for pair in steps)
scaled, tuned = (
    ahead[f"birds, {how}"] for how in ("steps scaled", "settings tuned")
)
assert scaled["mean"] / 2 < tuned["mean"] < 0
assert over(birds["hsfm, tuned"], birds["hsfm, scaled"])["low"] > 0

# %% [markdown]
# ## Which part of the protocol matters?
#
# The authors' protocol differs from ours in several details. Take one away at a time, with the network of the first
# column, and compare with the full protocol.

# %%
full = authors["hsfm, authors"]
AWAY = ["standardised", "new head", "first of equals"]
AWAY += ["epochs above chance", "float32", "scaled"]
alone = {}
for name in AWAY:
    alone[name] = over(authors[f"hsfm, authors, {name}"], full)
    print(f"{name:20}", told(alone[name]))
assert max(abs(gap["mean"]) for gap in alone.values()) < 1

# %%
ours = authors["hsfm, ours"]
print("all at once", told(over(ours, full)))
moved = [run for run in ours if run["selection"]["epoch"] > 0]
rest = over(moved, full)  # over the seeds that both have
print(f"without the seed that stays at its head {rest['mean']:+.1f}")
assert len(moved) == len(ours) - 1
assert abs(rest["mean"]) < 1

# %% [markdown]
# **None of them alone** moves the mean by a point. All at once cost more, and one seed of five makes that difference: on
# it no epoch beats the head that HSFM starts from.
#
# **Rounding** is a detail of its own. Adam turns a sign that was rounded the other way into a whole step, so float32
# and float64 choose different epochs on most seeds, with nearly the same mean. A single seed says little.

# %% tags=["hide-input"]
epochs = {
    name: [run["selection"]["epoch"] for run in authors[name]]
    for name in ("hsfm, authors", "hsfm, authors, float32")
}
other = [a != b for a, b in zip(*epochs.values())]
assert sum(other) > len(other) / 2
assert abs(alone["float32"]["mean"]) < 0.5

# %% [markdown]
# ## What does HSFM's repair depend on?
#
# The paper's settings for Dominoes are 16 support examples of each class, ten inner steps, 256 hard examples of each
# class, and 15 edits an epoch by Adam. Change one at a time, on ImageNet features.

# %% tags=["hide-input"]
import plotly.graph_objects as go
from caml_core.pictures.figures import CHANCE, LABEL

names = [n for n in imagenet if n.startswith("hsfm, ") and "labels" not in n]
found = {n[6:]: over(imagenet[n], imagenet["hsfm"]) for n in names}
order = sorted(found, key=lambda name: found[name]["mean"])
error = [found[n]["high"] - found[n]["mean"] for n in order]
figure = go.Figure()
figure.add_scatter(
    x=[found[n]["mean"] for n in order],
    y=[n.removeprefix("hypergradient ").replace("_", " ") for n in order],
    error_x={"array": error},
    mode="markers",
    marker={"size": 10, "color": LABEL},
)
figure.add_vline(x=0, line_color=CHANCE)
figure.update_layout(
    title="Four of eighteen intervals lie below zero",
    xaxis_title="WGA − WGA of the paper's settings (points)",
    height=560,
    margin_r=10,
    meta={"alt": "Differences with 95% intervals; most include zero."},
)

# %%
lost = {name for name in found if found[name]["high"] < 0}
assert lost == {"inner-steps 1", "hard 32", "edits 1", "sgd, eta 200"}
assert len(found) == 18
assert not any(gap["low"] > 0 for gap in found.values())
for name in ("hard-set random", "hard-set minority", "sgd, eta 20000"):
    assert abs(found[name]["mean"]) < 1
for how in ("first_order", "implicit", "kfac"):
    assert abs(found[f"hypergradient {how}"]["mean"]) < 1
for n in (4, 16, 64):
    mine = imagenet["hsfm" if n == 16 else f"hsfm, support {n}"]
    stuck = sum(run["selection"]["epoch"] == 0 for run in mine)
    print(f"support {n:2}: no epoch beats ERM on {stuck} of 5 seeds")
    assert (stuck > 0) == (n == 4)

# %% [markdown]
# A bar is a 95% interval; among eighteen, one may miss zero by chance.
#
# - **The hard set need not be hard.** Random validation examples do as well, and here minority examples alone, too (on
#   the birds of chapter 10 these did worse). This validation set has no correlation, so any sample of it contradicts
#   the shortcut. (Chapter [10](10_hsfm.ipynb) looks at a biased one.)
# - **The derivative need not be exact.** First order, the implicit way and KFAC (Kronecker-factored approximate
#   curvature) end within a point of the exact adjoint. Chapter [11](11_hypergradients.ipynb) shows states in which they
#   point elsewhere.
# - **The optimiser need not be Adam.** Plain steps end level, but with $\eta$ four orders of magnitude larger. *sgd, eta
#   200* is too short a step.
# - **Room to move counts**: enough inner steps and hard examples, and perhaps edits. With four support examples of each
#   class some seeds do not move at all, so the interval is wide.
#
# ## How many validation labels?
#
# DFR and HSFM learn from a validation set in which the shortcut does not hold. Labels of such a set are the real price.
# Give both only some of them (ImageNet features, HSFM's published settings).

# %%
COUNTS = (40, 100, 400, 2000)


def at(method, n):
    return imagenet[method if n == 2000 else f"{method}, val-labels {n}"]


few = {"worst_group": {}, "average": {}}
for metric, found_at in few.items():
    for n in COUNTS:
        gap = over(at("hsfm", n), at("dfr", n), metric)
        found_at[f"{n:,} labels"] = gap

# %% tags=["hide-input"]
from caml_core.pictures.figures import MINORITY

looks = {"worst group": MINORITY, "average": CHANCE}
figure = interval_rows(
    {name: few[name.replace(" ", "_")] for name in looks},
    title="Few labels: HSFM leads in the average, the worst group is open",
    x_title="HSFM − DFR (points)",
    colours=looks,
)
alt = "HSFM minus DFR with 40 to 2,000 labels, worst group and average."
figure.update_layout(meta={"alt": alt}, margin_t=100)

# %%
for row, gap in few["worst_group"].items():
    print(f"{row:12} worst group", told(gap))
    assert gap["mean"] > 0
    assert (gap["low"] > 0) == (row == "400 labels")
for row, gap in few["average"].items():
    assert (gap["low"] > 0) == (row != "2,000 labels")

# %% [markdown]
# Below 2,000 labels HSFM is ahead in the average. In the worst group its mean is ahead at each count, but three of the
# four intervals include zero. One reason for the lead may be the start: DFR fits 1,280 weights from nothing, HSFM turns a
# trained head. A DFR that starts from the ERM head would decide it; we have not run one.
#
# ## Without any group label
#
# To choose the epoch by the worst group takes group labels of the validation set. Can HSFM, and others, do without?
#
# - **HSFM by the worst class**, or by the loss on the hard set: the mean falls by a point or two, and the intervals
#   reach from a little better to five points worse.
# - **Errors on a fair set.** SELF (selective last-layer finetuning) and EVaLS (environment-based validation and
#   loss-based sampling) train on half of the validation split, on what an ERM head gets wrong or loses most on, and
#   choose by the worst class on the other half. Without knowing a group they come within four points of DFR on Dominoes
#   and within nine on the birds.
# - **Errors on the training set.** LEIA (low-rank error-informed adaptation) corrects those. It lifts the worst group on
#   ImageNet features, and does nothing for networks that know their training images.
# - **Inferred groups are a gamble.** EVaLS guesses groups (what the head gets wrong, and the rest) and chooses by the
#   worse of them. On the birds DFR stays within five points when it does so; on the small ResNet HSFM ends below the head
#   that it started from.
#
# The appendix has the numbers of these and three more.

# %% tags=["hide-input"]
extra = by_run("comparators")
PLACES = {"dominoes": imagenet, "resnet": resnet, "birdscapes": birds}


def runs_of(place, name):
    """A run of `comparators`, or one of the tables above."""
    key = "hsfm, scaled" if (place, name) == ("birdscapes", "hsfm") else name
    return extra.get(f"{place}, {name}") or PLACES[place].get(key, [])


def gain(place, name, base="erm-head"):
    return over(runs_of(place, name), runs_of(place, base))["mean"]


for rule in ("worst_class", "hard_loss"):
    gap = found[f"select {rule}"]
    assert -5.1 < gap["low"] < gap["mean"] < 0 < gap["high"] < 2
    assert gap["mean"] > -2.5
for place in PLACES:
    for name in ("self", "evals"):
        assert gain(place, f"{name}, groups classes") > 15
        behind = gain(place, f"{name}, groups classes", "dfr")
        assert (-9 if place == "birdscapes" else -4) < behind < 1
    for name in ("reweight", "crt"):
        assert gain(place, name) < 5
    assert gain(place, "crt by group") > 15
assert min(gain(place, "leia") for place in ("dominoes", "birdscapes")) > 8
assert abs(gain("resnet", "leia")) < 5
assert abs(wga(authors, "trained, leia") - wga(authors, "erm-head")) < 2
assert gain("dominoes", "evals, groups inferred") < 0
assert gain("birdscapes", "dfr, groups inferred", "dfr") > -5
assert gain("resnet", "hsfm, groups inferred") < 0
assert max(gain(p, "neurontune") for p in ("dominoes", "birdscapes")) < 8
assert gain("resnet", "neurontune") > 8

# %% [markdown]
# ## What we saw
#
# - By the authors' protocol, on a network trained on Dominoes, the paper's order repeats in the means: ERM, DaC, DFR,
#   HSFM, each within three points of the published number, though the network is another. Five seeds do not tell HSFM
#   from DFR.
# - On frozen ImageNet features the two are level as well.
# - On a small ResNet and on birds HSFM gains a lot over the ERM head and stays behind DFR with the published settings
#   (on the birds: these with scaled steps). Other settings close more than half of the gap on the birds.
# - No single detail of the protocol moves the mean by a point. float32 and float64 choose different epochs on most
#   seeds; one seed says little.
# - On frozen ImageNet features of Dominoes neither a hard hard set, nor an exact derivative, nor Adam was needed. A
#   fair validation set is what DFR, HSFM, SELF and EVaLS share.
# - With few validation labels HSFM leads DFR in the average; in the worst group only one interval of four excludes zero.
# - HSFM, SELF and EVaLS can choose without a group label. Inferred groups can cost all that was won.
# - Not run: DDB, a ResNet-50, and the paper's three other datasets.
#
# **Turn these knobs.** `python -m caml_core run hsfm --help` lists the settings: `--support`, `--hard` and `--eta` first;
# watch the chosen epoch as well as the accuracy.
#
# ## Two quick questions
#
# **1.** Random hard sets do as well as hard ones on Dominoes. Why?
#
# <details><summary>The loss is a bad measure</summary>
#
# No. It finds what the head gets wrong.
#
# </details>
#
# <details><summary>The validation set has no correlation</summary>
#
# Yes. There any sample contradicts the shortcut.
#
# </details>
#
# <details><summary>256 examples are too many</summary>
#
# No. With 32 the worst group is almost three points lower.
#
# </details>
#
# **2.** HSFM equals DFR on two columns and is behind on two others. What may a summary say?
#
# <details><summary>HSFM equals DFR</summary>
#
# No. Those are two columns of four.
#
# </details>
#
# <details><summary>HSFM is worse</summary>
#
# No. On the first two columns the interval includes zero.
#
# </details>
#
# <details><summary>Both, each with its network and settings</summary>
#
# Yes. And that tuned settings close more than half of the gap on the birds.
#
# </details>
#
# ## Exercises
#
# **Exercise 1: which labels?** HSFM and DFR both use the validation set. Which of its labels does each use, and where?
# What would you give up first if labels cost money?
#
# <details><summary>Solution 1</summary>
#
# DFR trains on validation images balanced over *groups*, and chooses its penalty by worst-group accuracy: group labels
# twice. HSFM takes its hard set by the loss, so it needs class labels, and group labels only to choose the epoch; the
# runs that choose by the worst class do without. The group labels are the dearer ones.
#
# </details>
#
# **Exercise 2: a rate of exchange.** How many labelled images does DFR need for the WGA that HSFM reaches with 100, and
# with 400? Read it from the records (linear between the measured counts, on the logarithmic axis). How sure is it?
#
# <details><summary>Solution 2</summary>
#
# About twice as many with 100 and three times with 400. But these are means over five seeds, and at 100 labels the
# interval of the difference includes zero.
#
# </details>

# %% tags=["hide-cell", "solution"]
# @title Solution 2 { display-mode: "form" }
dfr, hsfm = (
    np.mean([values(at(method, n)) for n in COUNTS], axis=1)
    for method in ("dfr", "hsfm")
)
for n, times in ((100, (1.4, 2.4)), (400, (2, 4))):
    reached = hsfm[COUNTS.index(n)]
    needed = np.exp(np.interp(reached, dfr, np.log(COUNTS)))
    print(f"{n} labels give HSFM {reached:.1f}%; DFR needs about {needed:.0f}")
    assert times[0] < needed / n < times[1]

# %% [markdown]
# **Exercise 3: without a validation set.** The paper has no row for group-balanced retraining on the training set. Why
# is it a fair question to ask, and what does it need that HSFM does not?
#
# <details><summary>Solution 3</summary>
#
# It asks whether the validation set was needed at all. It needs the group of every training image, which is the label
# that one seldom has; and enough minority images, as the birds show.
#
# </details>
#
# **Exercise 4: perfect scissors.** DaC gains less than other repairs on the small ResNet. Is its heat map to blame? Plan
# a run that decides it.
#
# <details><summary>Solution 4</summary>
#
# Give it perfect masks, the lower half of every picture: replace `caml_core.dac.masks` by a function that returns zeros
# of shape (n, 64, 32) with `mask[:, 32:] = True`, run `caml_core.dac.dac`, and compare over the same five seeds. If the
# gap to DFR closes, it was the heat map's.
#
# </details>
#
# ## Appendix
#
# ### Averages, and all seeds
#
# Average accuracy over the test set, of the runs in the first table. Then the ablation in numbers, with the seconds of a
# run on one core.

# %% tags=["hide-input"]
rows = []
for name, (_, published, *keys) in ROWS.items():
    theirs = f"{paper[published][1][0]:.1f}" if published else ""
    mean = [
        mean_text(runs.get(key, []), "average")
        for key, runs in zip(keys, COLUMNS.values())
    ]
    rows.append([name, theirs, *mean])
Markdown(markdown(["average", "paper", *COLUMNS], rows))

# %% tags=["hide-input"]
from caml_core.runs.tables import gain_text

rows = []
for name in found:
    mine = imagenet[f"hsfm, {name}"]
    cells = [mean_text(mine, k) for k in ("worst_group", "average")]
    change = gain_text(mine, imagenet["hsfm"], "worst_group").split(", n")[0]
    seconds = np.mean([run["train_seconds"] for run in mine])
    rows.append([name, *cells, change, f"{seconds:.1f}"])
Markdown(
    markdown(["changed", "WGA", "average", "WGA − paper's settings", "s"], rows)
)

# %% [markdown]
# The runs of the protocols, with the epoch that each seed chose (0: the head to start from):

# %% tags=["hide-input"]
names = ["hsfm, authors", *(f"hsfm, authors, {name}" for name in AWAY)]
names += [n for n in authors if "ours" in n or n.startswith("resnet")]
rows = []
for name in dict.fromkeys(names):
    cells = [mean_text(authors[name], k) for k in ("worst_group", "average")]
    epochs = " ".join(str(r["selection"]["epoch"]) for r in authors[name])
    rows.append([name, *cells, epochs])
Markdown(markdown(["run", "WGA", "average", "chosen epochs"], rows))

# %% tags=["nbval-check-output", "hide-input"]
from caml_core.runs.records import describe

told = ((authors, "hsfm, authors"), (imagenet, "hsfm"), (resnet, "hsfm"))
told += ((birds, "hsfm, scaled"), (extra, "birdscapes, evals"))
lines = [f"- *{name}*: {describe(runs[name])}" for runs, name in told]
Markdown("\n".join(lines))

# %% [markdown]
# ### Six more methods
#
# WGA again (averages: `python -m caml_core tables comparators`). *Groups inferred* chooses by guessed groups: EIIL (environment inference for invariant
# learning) parts the validation split so that the ERM head fits the two parts as differently as can be; for two classes
# these are what the head gets wrong, and the rest. *Groups classes* chooses by the worst class. *Reweight* weighs the
# classes alike, CRT (classifier retraining) draws them alike, NeuronTune sets features to zero that are high where the
# ERM head errs.

# %% tags=["hide-input"]
LABELS = {"erm-head": "none", "dfr": "validation", "hsfm": "choose"}
LABELS |= {"reweight": "choose", "crt": "choose", "crt by group": "train"}
for name in ("leia", "self", "evals", "neurontune"):
    LABELS |= {name: "choose", f"{name}, groups inferred": "none"}
LABELS |= {f"{name}, groups classes": "none" for name in ("self", "evals")}
LABELS |= {f"{name}, groups inferred": "none" for name in ("dfr", "hsfm")}
rows = []
for name, labels in LABELS.items():
    cells = [mean_text(runs_of(p, name), "worst_group") for p in PLACES]
    above = ", as above" if name in ("erm-head", "dfr", "hsfm") else ""
    rows.append([name + above, labels, *cells])
Markdown(markdown(["method", "group labels", *list(COLUMNS)[1:]], rows))

# %% [markdown]
# - *Balanced classes are no balanced groups.* The classes were balanced to begin with, so *crt* is ERM once more and
#   *reweight* an ERM that is trained longer. Drawing *groups* alike helps.
# - *NeuronTune* is the reverse of LEIA: it gains on the small ResNet and next to nothing on ImageNet features. It takes
#   its errors from the validation split; perhaps a network trained on the shortcut has features for it that can be muted.
# - *Inferred groups* prefer heads that turn the shortcut around: in *evals, groups inferred* the **majority** is the
#   worse half on Dominoes. They were made for a biased validation split, which we have not run.
#
# These are heads on frozen, standardised features; several of the papers train more than that. Where a detail could not
# be read, the docstring (`caml_core.comparators`) says what is ours.

# %%
for place in ("dominoes", "resnet"):
    chosen = runs_of(place, "evals, groups inferred")
    usual, rare = (
        mean_and_spread(chosen, k)[0] for k in ("majority", "minority")
    )
    print(f"{place:9} majority {usual:.1f}, minority {rare:.1f}")
    assert usual < rare
chosen = [run["selection"]["alpha"] for run in birds["dac"]]
assert set(chosen) == {max(birds["dac"][0]["config"]["alphas"])}

# %% [markdown]
# *DaC* on the birds takes the largest weight offered for its new images on every draw, so a wider grid might lift it:
# its number there may be too low.
#
# ### DDB, not run
#
# DDB (Yazdan Parast et al., 2025) finds a part of a picture by a word, lets a diffusion model paint the other class over
# it, throws away what is sure of itself or shows nothing new, and retrains. It takes 3 GB of weights and a GPU. Tests
# run `results/studies/ddb.py` on tiny random models; what it reaches with real ones, we do not know.
#
# ```python
# images, val, _ = load("birdscapes", rho=0.95, seed=0)
# features = [extract_features(network, split, gpu) for split in (images, val)]
# painter = load_painter(device=gpu)  # CLIPSeg and Stable Diffusion
# head, painted = ddb(network, images, *features, painter, part="bird",
#                     words=("blackbird", "duck"), device=gpu)
# ```
#
# ## References
#
# - A. Yazdan Parast et al., [HSFM](https://arxiv.org/abs/2603.29313), 2026.
# - P. Kirichenko et al., [Last layer re-training is sufficient for robustness to spurious
#   correlations](https://arxiv.org/abs/2204.02937), 2023: DFR.
# - F. Hosseini Noohdani et al., [Decompose-and-Compose](https://arxiv.org/abs/2402.18919), 2024: DaC.
# - A. Yazdan Parast et al., [Leveraging text-to-image generation for handling spurious
#   correlation](https://arxiv.org/abs/2503.17226), 2025: DDB.
# - E. Liu et al., [Just train twice](https://arxiv.org/abs/2107.09044), 2021: JTT.
# - S. Qiu et al., [Simple and fast group robustness by automatic feature
#   reweighting](https://arxiv.org/abs/2306.11074), 2023: AFR.
# - S. Sagawa et al., [Distributionally robust neural networks for group shifts](https://arxiv.org/abs/1911.08731),
#   2020: GroupDRO.
# - A. Gourabathina et al., [Robustness beyond known groups with low-rank adaptation](https://arxiv.org/abs/2602.06924),
#   2026: LEIA.
# - T. LaBonte et al., [Towards last-layer retraining for group robustness with fewer
#   annotations](https://arxiv.org/abs/2309.08534), 2023: SELF.
# - M. Ghaznavi et al., [Trained models tell us how to make them robust to spurious correlation without group
#   annotation](https://arxiv.org/abs/2410.05345), 2024: EVaLS.
# - G. Zheng et al., [NeuronTune](https://arxiv.org/abs/2505.24048), 2025.
# - E. Creager et al., [Environment inference for invariant learning](https://arxiv.org/abs/2010.07249), 2021: EIIL.
# - Y. Yang et al., [Change is hard](https://arxiv.org/abs/2302.12254), 2023: SubpopBench, with ReWeight and CRT.
