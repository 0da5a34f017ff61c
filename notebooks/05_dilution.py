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
# # Dilution: what a few right labels can do
#
# **Question.** We bought labels that the model was unsure of. Why does it learn so little of the core feature from them?
#
# **You will be able to** say what share of the objective a batch of queries has, measure what share of the *gradient*
# it has, tell learning from memorising, and run the two controls that any method for queried labels must face:
# better labels, and the same labels with more weight.
#
# > **Before you start.** Chapter [01](01_shortcuts.ipynb) helps; chapter [04](04_active_queries.ipynb) says how
# > queries are chosen. On a laptop with two cores, with or without a GPU, this takes one to two minutes and 1 GB of
# > memory. Nothing is downloaded: the program draws its own digits. The full profile (`CAML_PROFILE=full`) repeats the
# > last comparison with three seeds and takes twice as long.

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
    print("expect 2 minutes on two cores")
# %% [markdown]
# ## Ten digits on ten colours
#
# The pool is that of [chapter 04](04_active_queries.ipynb): the label $y$ is the digit, the spurious attribute $a$ the
# colour of the specks behind it, which goes with the digit in 95 of 100 pictures. Validation and test sets carry no
# correlation, so there nine pictures in ten are *minority*: their colour is another digit's. Chance is 10%.

# %%
from caml_core.data import load

pool, val, test = load(
    "spuco_mnist",
    classes=10,
    digits="drawn",
    magnitude=0.1,
    rho=0.95,
    n_val=500,
    seed=0,
)
print(f"{len(pool):,} in the pool, {len(val):,} validation, {len(test):,} test")

# %%
import torch
from caml_core.pictures.figures import image_grid, use_book_style

use_book_style()
rows = []
for rare in (False, True):
    kind = pool.is_minority == rare
    rows += [torch.where(kind & (pool.y == k))[0][0] for k in range(10)]
image_grid(
    pool.x[torch.stack(rows)],
    columns=10,
    labels=["majority", "minority"],
    title="The colour of the specks usually gives the digit away",
)

# %% [markdown]
# ## Three rounds of questions
#
# We start with 600 random labels $D_0$. A small network is trained on them; the 50 pictures $Q_1$ that it is least
# sure of are labelled and *appended*; the network is trained afresh on $D_1 = D_0 \cup Q_1$, and so on, $R = 3$
# rounds. `run_active` is this loop. (`select="last"` keeps the last epoch of each training. A rule that looks for the
# best minority accuracy can keep an unsettled one, whose doubts find little: exercise 3 of chapter 04.)

# %%
from caml_core.active import run_active
from caml_core.device import pick_device
from caml_core.loader import random_shift
from caml_core.networks import backbone
from caml_core.round import Plan

device = pick_device("auto")
plan = Plan(
    method="append",
    acquisition="least_confidence",
    start=600,
    query=50,
    rounds=3,
    epochs=60,
    lr=2e-3,
    weight_decay=1e-4,
    select="last",
)

# %%
settings = {"device": device, "augment": random_shift, "progress": False}


def fresh_network():
    """The network with its first weights, the same in every round."""
    return backbone("small_cnn", 10, seed=0)


appended = run_active(fresh_network, pool, val, test, plan, **settings)

# %%
from IPython.display import Markdown

lines = [
    "| round | labels | minority in the batch | majority | minority |",
    "|--:|--:|--:|--:|--:|",
]
for r in appended:
    batch = f"{r['batch_minority']:.0f}%" if r["round"] else ""
    cells = [f"{r['round']}", f"{r['labels']}", batch]
    for kind in ("majority", "minority"):
        cells.append(f"{r['metrics'][kind]['value']:.1f}%")
    lines.append("| " + " | ".join(cells) + " |")
Markdown("\n".join(lines))

# %% [markdown]
# The last two columns are accuracies on the test set. What changed for the minority over the three rounds?

# %%
before, after = (
    appended[t]["metrics"]["minority"]["value"] for t in (0, plan.rounds)
)
print(
    f"minority accuracy: {before:.1f}% before, {after:.1f}% after 150 queries"
)
assert before < 25
assert before < after < 50, "better, and still far from learned"

# %% [markdown]
# A fifth of the labels are now answers to the network's own questions, and it still fails on most of the minority.
# There are three suspects: the labels, their weight, and what training makes of them.
#
# ## First suspect: were they the right labels?
#
# The third column says: only in part. In the pool 5 in 100 pictures are minority. A batch held several times as much,
# but it was far from pure: a network that trusts the colour can be *sure* of a minority picture, and wrong, and then
# it does not ask. So buy better labels, with the same budget and the same plain appending. An **oracle** that knows
# the attribute buys minority pictures only.

# %%
from caml_core.device import stream_seed

queries = [torch.tensor(r["queried"]) for r in appended[1:]]
generator = torch.Generator().manual_seed(stream_seed(0, 0))
order = torch.randperm(len(pool), generator=generator)
start = order[:600].sort().values  # the first labels, as run_active draws them
rest = order[600:]
oracle = rest[pool.is_minority[rest]][:150].split(50)
for name, rows in (
    ("asked", torch.cat(queries)),
    ("oracle", torch.cat(oracle)),
):
    print(f"{name}: {int(pool.is_minority[rows].sum())} of 150 are minority")

# %% [markdown]
# `run_active` can buy a given list of labels, and `first_round=3` trains only what comes after the last of them.

# %%
given = {"queries": [rows.tolist() for rows in oracle], "first_round": 3}
bought = run_active(fresh_network, pool, val, test, plan, **settings, **given)
best = bought[-1]["metrics"]["minority"]["value"]
print(f"minority accuracy: {after:.1f}% asked, {best:.1f}% from the oracle")
assert best > after + 10
found = sum(int(pool.is_minority[rows].sum()) for rows in queries)
assert 150 * 0.15 < found < 150 * 0.8, "several times the pool's 5%, not pure"

# %% [markdown]
# A sobering first answer: by appending alone, 150 labels can teach the model far more, if every one of them objects
# to the shortcut. Of ours only a part did. So the premise of our question was half wrong, and a method that trains
# better on queries must not be credited with, or blamed for, the quality of the queries: compare methods on the
# *same* labels. Nobody has the oracle, so the rest of the chapter asks what can be got out of the labels that we did
# buy.
#
# ## Second suspect: their weight
#
# Appending changes nothing but the likelihood. The gradient of the mean loss on $D_R$ splits exactly:
#
# $$\nabla L_{D_R} = \frac{|D_0|}{|D_R|}\, \nabla L_{D_0} + \sum_{t=1}^{R} \frac{|Q_t|}{|D_R|}\, \nabla L_{Q_t} .$$
#
# However much a query cost, it counts $1/|D_R|$, like any other example. The same arithmetic for our sizes and for
# those of the paper on CAML (cumulative active meta-learning):

# %% tags=["nbval-check-output"]
for name, n_start, n_query, rounds in (
    ("here", 600, 50, 3),
    ("paper", 4500, 100, 5),
):
    n_asked = rounds * n_query
    n = n_start + n_asked
    print(
        f"{name + ':':6} {n_asked} of {n:,} labels are queries: "
        f"share {n_asked / n:.0%}, one batch {n_query / n:.1%}, "
        f"one query {1 / n:.2%}"
    )

# %% [markdown]
# In training, batches are balanced by class, so that each of the $C$ classes is equally likely: an example of class $y$
# counts $1/(C n_y)$, with $n_y$ the number of labels of that class. That moves the share a little.

# %%
labelled = torch.cat([start, *queries])
n_y = torch.bincount(pool.y[labelled])
share = (1 / (10 * n_y[pool.y[torch.cat(queries)]])).sum().item()
print(f"share of the queries in class-balanced batches: {share:.1%}")
assert 0.1 < share < 0.3

# %% [markdown]
# ## What the gradient says
#
# A share of the objective is not yet a share of the gradient. The cross-entropy of an example has the gradient
# $p - \mathrm{onehot}(y)$ in its logits: what is fitted hardly pulls. So measure. At some moment of training, take the
# two parts of the gradient on all of $D_R$,
#
# $$g = g_0 + g_Q, \quad g_0 = \tfrac{|D_0|}{|D_R|} \nabla L_{D_0}, \quad
# g_Q = \sum_t \tfrac{|Q_t|}{|D_R|} \nabla L_{Q_t},$$
#
# and ask how much of $g$ is due to the queries:
#
# $$s_Q = \frac{\langle g_Q,\, g\rangle}{\lVert g\rVert^2}, \qquad s_0 + s_Q = 1 .$$
#
# Were the queries like any other examples, $s_Q$ would be their share of the labels, give or take some noise.
#
# Both parts come from one forward pass over all of $D_R$: in training, too, queries and first labels share their
# batches, and BatchNorm makes the examples of a batch depend on one another.

# %%
import copy

import torch.nn.functional as F


def two_parts(network):
    """Gradient on D_R, the part of D_0 and the part of the queries."""
    network = copy.deepcopy(network).train()  # BatchNorm as in training
    logits = network(pool.x[labelled].to(device))
    y = pool.y[labelled].to(device)
    losses = F.cross_entropy(logits, y, reduction="none") / len(labelled)
    parts = []
    for part in losses.split([len(start), len(labelled) - len(start)]):
        g = torch.autograd.grad(
            part.sum(), list(network.parameters()), retain_graph=True
        )
        parts.append(torch.cat([piece.flatten() for piece in g]))
    return parts


# %% [markdown]
# `train_round` is one training of the loop. It calls `on_epoch` after each epoch; there we take a note of the share
# and, for later, of the accuracy on three sets of pictures. `times` says how many times as much as in $g_Q$ a query
# counts; for appending that is 1.

# %%
from caml_core.features import predict

asked = torch.cat(queries)
asked_minority = asked[pool.is_minority[asked]]


def fitted(network, rows):
    """Accuracy on these rows of the pool, percent."""
    logits = predict(network, pool.subset(rows), device)
    return 100 * (logits.argmax(1) == pool.y[rows]).double().mean().item()


# %%
def observe(network, times):
    """Share of the queries in the gradient; what is fitted."""
    g_0, g_Q = two_parts(network)
    g = g_0 + times * g_Q
    return {
        "share": (times * g_Q @ g / (g @ g)).item(),
        "start": fitted(network, start),
        "asked": fitted(network, asked),
        "asked minority": fitted(network, asked_minority),
    }


# %%
import dataclasses

from caml_core.metrics import group_metrics
from caml_core.round import train_round


def train_and_watch(method, times, seed=0):
    """The last round again: the run, notes of every second epoch, the test."""
    stream = stream_seed(seed, 1000 + plan.rounds)  # as in run_active
    network = backbone("small_cnn", 10, seed=seed).to(device)
    notes = []

    def on_epoch(epoch, network):
        if epoch % 2 == 0:
            notes.append(observe(network, times))

    run = train_round(
        network, pool, [start, *queries], val,
        dataclasses.replace(plan, method=method),
        seed=stream, device=device, augment=random_shift, on_epoch=on_epoch,
    )  # fmt: skip
    return run, notes, group_metrics(predict(network, test, device), test)


# %%
run, notes, metrics = train_and_watch("append", times=1)
again = metrics["minority"]["value"]
print(f"minority accuracy {again:.1f}%, before {after:.1f}%")
assert again == after or device.type == "cuda", "the same training, repeated"

# %% tags=["hide-input"]
import plotly.graph_objects as go
from caml_core.pictures.figures import CHANCE, METHOD_COLOURS

epochs = list(range(2, plan.epochs + 1, 2))
figure = go.Figure()
figure.add_scatter(
    x=epochs,
    y=[100 * note["share"] for note in notes],
    mode="lines+markers",
    line={"color": METHOD_COLOURS["append"]},
)
figure.update_layout(
    title="The queries have more of the gradient than of the labels",
    xaxis_title="epoch",
    yaxis_title="queries' share of the gradient (%)",
)
figure.update_yaxes(rangemode="tozero")
figure.add_hline(
    y=100 * len(asked) / len(labelled),
    line={"dash": "dot", "color": CHANCE},
    annotation={"text": "their share of the labels", "yshift": -20},
)

# %%
import numpy as np

mean_share = np.mean([note["share"] for note in notes])
weight = len(asked) / len(labelled)
print(f"queries: {weight:.0%} of the labels, {mean_share:.0%} of the gradient")
assert mean_share > weight + 0.03

# %% [markdown]
# This is not the picture that the word *dilution* suggests: the queries are not drowned in the gradient. In the first
# epochs they pull about as hard as any other examples, for nothing is fitted yet. Then the first labels, nearly all
# majority, are fitted by way of the colour and fall silent; the queries, chosen because they are hard, keep their
# losses and so pull more than their share. The weight in the objective is small, but what it multiplies is large.
#
# The same in a plane, where you can change the number of queries, their weight and their place:

# %%
from caml_core.pictures.explore import explore

explore("weight_of_a_query", "A few queries against a hundred old labels")

# %% [markdown]
# ## Third suspect: what training makes of them
#
# If the queries have the gradient's attention, what does the network do for them? There are two ways to satisfy a
# queried minority picture: learn the digit, which helps on every minority picture, or learn that one picture by
# heart. Compare the accuracy on *queried* minority pictures with that on *fresh* ones, those of the validation set.
# The queried ones were chosen because the network doubted them, so they should be no easier.

# %% tags=["hide-input"]
from caml_core.pictures.figures import MAJORITY, MINORITY


def three_lines(run, notes, title):
    """Accuracy on the start set, on queried and on fresh minority pictures."""
    fresh = [epoch["val"]["minority"]["value"] for epoch in run.history[1::2]]
    figure = go.Figure()
    rare = [note["asked minority"] for note in notes]
    for name, values, colour, dash in (
        ("start set", [n["start"] for n in notes], MAJORITY, "solid"),
        ("queried, minority", rare, MINORITY, "solid"),
        ("fresh, minority", fresh, MINORITY, "dot"),
    ):
        line = {"color": colour, "dash": dash, "width": 2.5}
        figure.add_scatter(x=epochs, y=values, name=name, line=line)
    return figure.update_layout(
        title=title, xaxis_title="epoch",
        yaxis={"title": "accuracy (%)", "range": [0, 104]},
    )  # fmt: skip


# %% tags=["opening"]
alt = "Accuracy over epochs on the start set, on queried and on fresh minority pictures."
three_lines(
    run,
    notes,
    "Queried pictures are answered far better than fresh ones",
).update_layout(meta={"alt": alt})


# %%
def late(run, notes):
    """Means over the last third of training, percent."""
    found = {
        name: np.mean([note[name] for note in notes[-10:]])
        for name in ("start", "asked", "asked minority")
    }
    fresh = [epoch["val"]["minority"]["value"] for epoch in run.history[-20:]]
    return {**found, "fresh minority": np.mean(fresh)}


by_heart = late(run, notes)
for name, value in by_heart.items():
    print(f"{name:15} {value:5.1f}%")
assert by_heart["start"] > 80
assert by_heart["asked"] > by_heart["fresh minority"] + 30
assert by_heart["asked minority"] > by_heart["fresh minority"] + 10

# %% [markdown]
# The gap between the two minority lines is what memorisation looks like: the network was taught these pictures, and
# learned *them*. Some of the digit is learned on the way, as the dotted line rises, but less than the solid line
# claims. (This is one training.) What is known by heart has little loss left and little more to teach. (The lines jump
# because accuracy is measured with BatchNorm's running averages, which lag behind the weights; the gap is larger than
# the jumps.)
#
# ## The control: the same labels, more weight
#
# Whatever a method does with queries, it also gives them *weight*, and weight alone may help. CAML will add to the
# gradient on $D_R$ a mean over rounds of gradients on the $Q_t$. Leave out everything that is clever about it and
# keep the mass: this is **up-weighting**,
#
# $$g(\theta, D_R) + \frac1R \sum_{t=1}^{R} g(\theta, Q_t) .$$
#
# Now a query counts $\frac{1}{|D_R|} + \frac{1}{R\,|Q_t|}$.

# %% tags=["nbval-check-output"]
for name, n_start, n_query, rounds in (
    ("here", 600, 50, 3),
    ("paper", 4500, 100, 5),
):
    n_asked = rounds * n_query
    n = n_start + n_asked
    heavier = 1 + n / n_asked
    print(
        f"{name + ':':6} a query counts {heavier:.0f} times as much; "
        f"queries have {(n_asked / n + 1) / 2:.0%} of the objective, "
        f"before {n_asked / n:.0%}"
    )

# %% [markdown]
# The same labels, the same first weights, the same seed; only the objective differs. In the full profile two more pairs
# with other first weights.

# %%
import os

SEEDS = {"quick": 1, "full": 3}[os.environ.get("CAML_PROFILE", "quick")]
pairs = {"append": [(run, notes, metrics)], "upweight": []}
for seed in range(SEEDS):
    if seed > 0:
        pairs["append"].append(train_and_watch("append", 1, seed))
    pairs["upweight"].append(train_and_watch("upweight", 6, seed))

# %%
from caml_core.pictures.figures import curves_with_band


def smooth(run):
    """Minority accuracy on the validation split, means of five epochs."""
    values = [epoch["val"]["minority"]["value"] for epoch in run.history]
    return np.array(values).reshape(-1, 5).mean(axis=1)


curves = {
    method: np.stack([smooth(found[0]) for found in runs])
    for method, runs in pairs.items()
}
assert curves["upweight"].mean() > curves["append"].mean()
curves_with_band(
    range(5, plan.epochs + 1, 5),
    curves,
    title="The same labels with more weight teach more in as many epochs",
    x_title="epoch",
    y_title="accuracy on fresh minority (%)",
).update_yaxes(rangemode="tozero")


# %%
def summary(run, notes, metrics):
    """What a training came to, percent."""
    kinds = ("majority", "minority")
    tests = {f"test {kind}": metrics[kind]["value"] for kind in kinds}
    share = 100 * np.mean([note["share"] for note in notes])
    return {**late(run, notes), **tests, "share of the gradient": share}


means = {}
for method, found in pairs.items():
    each = [summary(*one) for one in found]
    means[method] = {key: np.mean([e[key] for e in each]) for key in each[0]}
lines = ["| percent | append | upweight |", "|:--|--:|--:|"]
for key, value in means["append"].items():
    lines.append(f"| {key} | {value:.1f} | {means['upweight'][key]:.1f} |")
Markdown("\n".join(lines))

# %% [markdown]
# The first four rows are means over the last third of training; the next two are the test set after the last epoch;
# the last is the mean share of the queries in each method's own gradient. One pair of trainings is an anecdote, and
# single epochs scatter by several points, so read the means first.

# %%
gain = {k: means["upweight"][k] - means["append"][k] for k in by_heart}
for key in ("asked minority", "fresh minority"):
    print(f"{key}: {gain[key]:+.1f} points by weight alone")
assert gain["asked minority"] > 3
assert gain["fresh minority"] > -3, "it helps, or at least does no harm"
assert means["upweight"]["asked minority"] > 70
assert means["upweight"]["share of the gradient"] > 45

# %% [markdown]
# Weight alone moves the minority, by an amount that could easily be taken for the merit of a clever method. It does
# not remove the suspect: the queried pictures are now known by heart almost perfectly, and many fresh ones still
# fail. More weight says *louder* what was asked; it does not say what to make of it. (That weights matter less and
# less once a network can fit everything is the finding of Byrd and Lipton.)
#
# ### What a fair test needs
#
# - **The same labels** for every method: the oracle showed how much the labels alone can do.
# - **The same weight**: a method that adds a term for queries is compared with up-weighting, not only with appending.
# - **The same compute**: an up-weighted step costs $R + 1$ gradients, one from CAML $2R + 1$, an appended one a single
#   gradient, and longer training by appending also helps. Chapter [09](09_caml_tables.ipynb) measures it.
#
# ## What we saw
#
# - Three rounds of uncertain queries moved the minority accuracy, but most of the minority stayed wrong.
# - The batches were only partly right: with minority labels only, the same budget and plain appending did far better.
# - Appending gives a query the weight $1/|D_R|$. Yet the queries had *more* than their share of the gradient, since
#   they are what is not fitted. They are not drowned; in good part they are memorised.
# - Queried minority pictures were answered far better than fresh ones.
# - In as many epochs, the same labels with more weight taught more (one pair of trainings). Weight is the first thing
#   to control for; it is not the cure, and longer training did as well in our one trial (exercise 2).
#
# What should a query teach, if not itself? That depends on what the network would have done without it. The [next
# chapter](06_meta_gradients.ipynb) asks for the gradient *after* a step, and chapter [07](07_caml.ipynb) builds CAML
# on it.
#
# ## Two quick questions
#
# **1.** Queries are a fifth of the labels. What share of the gradient do they have after training?
#
# <details><summary>A fifth</summary>
#
# No. That would hold if every example had a gradient of the same length.
#
# </details>
#
# <details><summary>Less than a fifth</summary>
#
# No. They are what is *not* fitted.
#
# </details>
#
# <details><summary>More than a fifth</summary>
#
# Yes. Fitted examples hardly pull; the queries were chosen because they are not fitted.
#
# </details>
#
# **2.** Queried minority pictures are answered well, fresh ones badly. What happened?
#
# <details><summary>The queries were drowned</summary>
#
# No. Then they, too, would be answered badly.
#
# </details>
#
# <details><summary>They were memorised</summary>
#
# Yes, in good part. The network learned these pictures more than what they have in common.
#
# </details>
#
# <details><summary>The fresh ones are harder</summary>
#
# No. The queried ones were chosen because the network doubted them; if anything, the fresh ones are easier.
#
# </details>
#
# ## Exercises
#
# **Exercise 1: half of the objective.** With $|D_0| = 600$ and rounds of 50, after how many rounds do queries have half
# of the objective by appending? What share do they have then by up-weighting?

# %% tags=["hide-cell", "solution"]
# @title Solution 1 { display-mode: "form" }
for R in (1, 3, 6, 12):
    share = 50 * R / (600 + 50 * R)
    heavier = (share + 1) / 2  # a mass of 1 is added: always above a half
    print(f"{R:2} rounds: {share:.0%} appended, {heavier:.0%} up-weighted")
assert share == 0.5
assert heavier == 0.75

# %% [markdown]
# **Exercise 2: the same compute.** Give appending the compute of up-weighting: four times as many epochs. Is
# up-weighting still ahead?
#
# <details><summary>Solution 2</summary>
#
# Set `plan = dataclasses.replace(plan, epochs=240)` and call `train_and_watch("append", 1)`. In our one trial it did at
# least as well as up-weighting, which is why tables should say what a step costs.
#
# </details>
#
# **Exercise 3: copies.** Weight without extra gradients: repeat each query six times in the labelled set,
# `rows.repeat(6)`, and halve the epochs. Why halve them? Compare with up-weighting.
#
# <details><summary>Solution 3</summary>
#
# `train_round(..., [start, *[rows.repeat(6) for rows in queries]], ...)`. The set is then twice as long (1,500 rows),
# and so is an epoch. In our one trial this did about as well as up-weighting, at a fraction of the latter's cost.
#
# </details>
#
# ## References
#
# - K. W. Chew, J. Wang, [Cumulative meta-learning from active learning queries for robustness to spurious
#   correlations](https://arxiv.org/abs/2605.20771), 2026: CAML; the sizes named *paper* above are those of the
#   authors' code.
# - J. Byrd, Z. Lipton, [What is the effect of importance weighting in deep
#   learning?](https://arxiv.org/abs/1812.03372), 2019: weights shape early training and fade once a network fits all
#   examples.
# - S. Sagawa et al., [An investigation of why overparameterization exacerbates spurious
#   correlations](https://arxiv.org/abs/2005.04345), 2020: majority by the shortcut, minority by heart.
