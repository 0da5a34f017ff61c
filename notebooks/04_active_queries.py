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
# # Active queries: which labels teach a network what it does not know
#
# **Question.** If you could ask for fifty labels, which would you ask for?
#
# **You will be able to** write the eight usual acquisition functions, measure what each of them finds in a pool with a
# shortcut, run active learning in rounds, draw a map of what was asked, and say when uncertainty is a bad guide.
#
# > **Before you start.** Chapter [01](01_shortcuts.ipynb) helps: it says what majority and minority are. On a laptop
# > with two cores this takes about one minute and 1 GB of memory; the network is tiny, and no GPU is needed. Nothing is downloaded: the program draws its own digits. The full profile (`CAML_PROFILE=full`) trains on
# > more seeds.

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
# ## A pool of pictures, and few labels
#
# Labels cost money; pictures do not. So there is a **pool** of pictures without labels, and a budget. Ours shows ten
# *digits* (the label $y$) before ten *colours* (the spurious attribute $a$). Each digit goes with one colour in a share
# $\rho$ of the pool. Only some background pixels carry the colour, and that is enough.

# %%
from caml_core.data import load

RHO = 0.95
pool, val, test = load(
    "spuco_mnist",
    classes=10,
    digits="drawn",
    magnitude=0.1,
    rho=RHO,
    n_val=1000,
    seed=0,
)
print(f"{len(pool):,} pictures in the pool, {pool.source}")

# %%
import torch
from caml_core.pictures.figures import image_grid, use_book_style

use_book_style()
sheet = []
for digit in range(10):
    of_digit = pool.y == digit
    usual = torch.where(of_digit & ~pool.is_minority)[0][:2]
    rare = torch.where(of_digit & pool.is_minority)[0][:2]
    sheet.append(torch.cat([usual, rare]))
image_grid(
    pool.x[torch.stack(sheet, dim=1).flatten()],
    columns=10,
    labels=["majority", "majority", "minority", "minority"],
    title="Above, each digit in its own colour; below, in another one",
)

# %% [markdown]
# Ten labels and ten attributes make a hundred groups, $g = 10\,y + a$. The ten on the diagonal are the majority.

# %% tags=["hide-input"]
import plotly.graph_objects as go

counts = pool.group_counts.view(10, 10)
figure = go.Figure(
    go.Heatmap(
        z=counts.log10().tolist(),
        x=pool.attribute_names,
        y=pool.class_names,
        text=counts.tolist(),
        texttemplate="%{text}",
        hovertemplate="digit %{y}, %{x}: %{text}<extra></extra>",
        colorscale="Blues",
        showscale=False,
    )
)
figure.update_layout(
    title="Ten large groups, ninety tiny ones (pictures in the pool)",
    xaxis={"title": "background colour"},
    yaxis={"title": "digit", "autorange": "reversed", "dtick": 1},
)

# %% tags=["nbval-check-output"]
POOL_SHARE = 100 * pool.is_minority.double().mean().item()
for name, split in (("pool", pool), ("validation", val), ("test", test)):
    share = 100 * split.is_minority.double().mean()
    print(f"{name:10} {len(split):6,} pictures, {share:4.1f}% minority")
assert abs(POOL_SHARE - 100 * (1 - RHO)) < 0.1

# %% [markdown]
# In the validation and the test set, colours are drawn at random, so the colour is of no help there. In the pool, a
# picture from the minority is rare, and it is the only kind that tells digit and colour apart. A good question finds
# it.
#
# Part of the validation set is put aside for an experiment at the end of the chapter.

# %%
START, QUERY = 600, 50
aside, val = val.subset(range(START)), val.subset(range(START, len(val)))

# %% [markdown]
# ## The start: some labels at random
#
# We cannot choose before we know anything. The first labelled set $D_0$ is drawn at random.


# %% tags=["nbval-check-output"]
def first_labels(seed):
    """Rows of the pool with a label, rows without, as (600,) and (9400,)."""
    generator = torch.Generator().manual_seed(seed)
    order = torch.randperm(len(pool), generator=generator)
    return order[:START].sort().values, order[START:].sort().values


labelled, unlabelled = (pool.subset(rows) for rows in first_labels(0))
known = int(labelled.is_minority.sum())
print(f"{len(labelled)} labels, {known} of them from the minority")

# %% [markdown]
# Train a small network on them the usual way, by empirical risk minimisation (ERM). Each digit is moved by a few
# pixels each time it is seen. While it trains, a small function looks over its shoulder: we need its notes at the end of
# the chapter.

# %%
import os

from caml_core.device import pick_device
from caml_core.loader import random_shift
from caml_core.networks import backbone
from caml_core.training import Erm, train_erm

FULL = os.environ.get("CAML_PROFILE", "quick") == "full"
EPOCHS = 30
device = pick_device("auto")


def trained(labelled, seed, on_epoch=None):
    """A small network after ERM on `labelled`; keeps its last epoch."""
    network = backbone("small_cnn", n_classes=10, seed=seed)
    erm = Erm(epochs=EPOCHS, lr=2e-3, batch_size=32, select="last")
    options = {"augment": random_shift, "progress": False, "on_epoch": on_epoch}
    train_erm(network, labelled, val, erm, seed=seed, device=device, **options)
    return network


# %%
from caml_core.features import predict

notes = []


def watch(epoch, network):
    """At a few epochs, note what the network says about the pool."""
    if epoch in (1, 3, 6, 10, 15, 22, EPOCHS):
        notes.append((epoch, predict(network, unlabelled, device)))


network = trained(labelled, seed=0, on_epoch=watch)

# %% [markdown]
# What does it make of the pictures that have no label yet? (We have all labels, of course, and use them here to look
# behind the scenes. The acquisition functions never see them.)

# %%
logits = predict(network, unlabelled, device)
right = (logits.argmax(dim=1) == unlabelled.y).double()
minority = unlabelled.is_minority
by_colour = (logits.argmax(dim=1) == unlabelled.a)[minority].double().mean()
print(f"right on the majority: {100 * right[~minority].mean():5.1f}%")
print(f"right on the minority: {100 * right[minority].mean():5.1f}%")
print(f"minority answered by its colour: {100 * by_colour:.1f}%")
assert right[~minority].mean() > 0.9
assert right[minority].mean() < 0.3
assert by_colour > 0.6

# %% [markdown]
# The network reads colours. It is wrong on nearly every minority picture. Does it *know* that something is odd there?
# Let its **uncertainty** be one minus the largest probability, $u(x) = 1 - \max_c\, p_c(x)$.

# %%
uncertainty = 1 - logits.softmax(dim=1).amax(dim=1)
median = {
    "majority": uncertainty[~minority].median().item(),
    "minority": uncertainty[minority].median().item(),
}
for name, value in median.items():
    print(f"median uncertainty, {name}: {value:.3f}")
assert median["minority"] > median["majority"]

# %% tags=["hide-input"]
from caml_core.pictures.figures import CHANCE, MAJORITY, MINORITY


def mark_pool(figure):
    """Draw the pool's minority share as a dotted line, named."""
    style = {"dash": "dot", "color": CHANCE}
    figure.add_hline(y=POOL_SHARE, line=style)
    figure.add_annotation(
        text="pool",
        y=POOL_SHARE,
        x=1,
        xref="paper",
        xanchor="left",
        showarrow=False,
    )
    return figure


# %% tags=["hide-input"]
ranked = uncertainty.argsort(descending=True)
blocks = minority[ranked][: 40 * QUERY].view(-1, QUERY).double()
figure = go.Figure(
    go.Bar(
        x=[QUERY * (i + 0.5) for i in range(len(blocks))],
        y=(100 * blocks.mean(dim=1)).tolist(),
        marker_color=MINORITY,
        hovertemplate="%{y:.0f}% minority<extra></extra>",
    )
)
figure.update_layout(
    title="Minority pictures crowd where the network is least sure",
    xaxis_title="rank in the pool, most uncertain first",
    yaxis={"title": "minority (%)", "range": [0, 104]},
)
mark_pool(figure)

# %% [markdown]
# Each bar is a block of as many pictures as one batch of questions; the dotted line is the share in the whole pool. A
# network that is wrong on the minority still hesitates there: the shape of the digit objects, faintly, to what the
# colour says. That hesitation is what active learning lives on.
#
# ## Eight ways to ask
#
# An **acquisition function** has one signature, `f(pool, k, generator) -> rows`. Its `pool` holds what the network
# says: logits, the features $z$ (input of the last layer), the features of what is labelled already, and the last
# layer.

# %%
import copy

from caml_core.acquisition import Pool, acquire
from caml_core.features import predict_with_features


def scores_of(network, labelled, unlabelled):
    """What an acquisition function may see."""
    logits, z = predict_with_features(network, unlabelled, device)
    _, z_labelled = predict_with_features(network, labelled, device)
    return Pool(logits, z, z_labelled, copy.deepcopy(network.head).cpu())


scores = scores_of(network, labelled, unlabelled)
p = scores.logits.softmax(dim=1)


def ask(name, k=QUERY, seed=0):
    """k rows of the unlabelled pictures."""
    return acquire(name, scores, k, torch.Generator().manual_seed(seed))


# %% [markdown]
# ### By uncertainty
#
# **Least confidence** takes the highest $1 - \max_c p_c$: no answer is likely. One line does it:

# %%
by_hand = (1 - p.amax(dim=1)).sort(descending=True, stable=True).indices
assert torch.equal(by_hand[:QUERY], ask("least_confidence"))

# %% [markdown]
# **Margin** takes the smallest $p_{(1)} - p_{(2)}$ between the two likeliest classes: it cannot decide between two.
# **Entropy** takes the highest $H(p) = -\sum_c p_c \log p_c$: the whole answer is spread out.

# %%
first, second = p.topk(2, dim=1).values.T
by_hand = (first - second).sort(stable=True).indices
assert torch.equal(by_hand[:QUERY], ask("margin"))

spread = -(p * p.clamp_min(1e-30).log()).sum(dim=1)
both = torch.isin(spread.topk(QUERY).indices, ask("entropy"))
assert both.double().mean() > 0.9  # the last digits of a sum may differ

# %% [markdown]
# With two classes these three agree. With more they need not. Three made-up answers, and what each function would ask:

# %% tags=["nbval-check-output"]
toy = torch.tensor(
    [
        [0.50, 0.50, 0.00, 0.00, 0.00],  # one of two
        [0.40, 0.20, 0.20, 0.20, 0.00],  # no good guess
        [0.44, 0.14, 0.14, 0.14, 0.14],  # a guess, and no idea otherwise
    ]
)
toy_pool = Pool(toy.clamp_min(1e-9).log(), toy, toy, None)
for name in ("margin", "least_confidence", "entropy"):
    row = int(acquire(name, toy_pool, 1, torch.Generator()))
    answer = [round(value, 2) for value in toy[row].tolist()]
    print(f"{name:16} asks for {answer}")

# %% [markdown]
# **BALD** (Bayesian active learning by disagreement) takes the highest $H(\mathbb{E}_w\, p) - \mathbb{E}_w H(p)$ over
# random weights $w$ (here: dropout before the last layer). It wants pictures on which *versions of the network
# disagree*, each being sure, and not pictures on which all of them shrug.

# %%
chosen = ask("bald")
in_both = torch.isin(chosen, ask("least_confidence")).sum()
print(f"{in_both} of {QUERY} questions are shared by BALD and least confidence")

# %% [markdown]
# ### By distance
#
# **Core-set** takes, again and again, $\arg\max_x \min_{x' \in D} \lVert z - z' \rVert$: the picture farthest from all
# that is labelled or chosen already. It wants to *cover* the feature space and does not look at the answers.

# %%
nearest = torch.cdist(scores.features, scores.labelled).amin(dim=1)
assert int(ask("core_set")[0]) == int(nearest.argmax())

# %% [markdown]
# **TypiClust**, a [function for very few labels](../book/glossary.md), cuts the features into clusters and takes, from
# large clusters without a label, the most *typical* one, crowded by its $K$ neighbours: with features $z$ scaled to length
# 1, the highest $\big(\tfrac1K \sum_{x' \in \mathrm{NN}_K(x)} \lVert z - z' \rVert\big)^{-1}$.


# %%
def crowding(chosen, neighbours=20):
    """Median distance to the nearest unlabelled neighbours."""
    z = torch.nn.functional.normalize(scores.features, dim=1)
    near = torch.cdist(z[chosen], z).topk(neighbours + 1, largest=False)
    return near.values.mean(dim=1).median().item()


distances = {name: crowding(ask(name)) for name in ("typiclust", "core_set")}
for name, distance in distances.items():
    print(f"{name:10} median distance to 20 neighbours: {distance:.3f}")
assert distances["typiclust"] < distances["core_set"]

# %% [markdown]
# ### By both
#
# **BADGE** (batch active learning by diverse gradient embeddings) draws rows that are far apart (k-means++) in
# $(p - e_{\hat y})\, z^\top$, the gradient that the last layer would get if the guess $\hat y$ were right ($e_{\hat y}$ is
# its one-hot vector). A long gradient is an unsure answer; far apart means different pictures.

# %%
residual = p.clone()
residual[torch.arange(len(p)), p.argmax(dim=1)] -= 1
length = residual.norm(dim=1) * scores.features.norm(dim=1)
assert length[ask("badge")[0]] >= 0.999 * length.max()  # it starts there

# %% [markdown]
# The eighth is **random**: every function must beat it.
#
# ## What each of them finds
#
# Now the same network, the same pool, the same budget, and each function's batch. How much of it is minority? One
# network is an anecdote, so repeat with other first labels and other weights.

# %%
from caml_core.acquisition import ACQUISITIONS

SEEDS = range(5 if FULL else 3)
found = {name: [] for name in ACQUISITIONS}
one_colour = {name: [] for name in ACQUISITIONS}
for seed in SEEDS:
    part, rest = (pool.subset(rows) for rows in first_labels(seed))
    other = network if seed == 0 else trained(part, seed)
    seen = scores_of(other, part, rest)
    for name in ACQUISITIONS:
        generator = torch.Generator().manual_seed(seed)
        batch = acquire(name, seen, QUERY, generator)
        share = 100 * rest.is_minority[batch].double().mean().item()
        found[name].append(share)
        commonest = rest.a[batch].bincount().max().item()
        one_colour[name].append(100 * commonest / QUERY)

# %% tags=["opening", "hide-input"]
mean = {name: sum(shares) / len(shares) for name, shares in found.items()}
order = sorted(mean, key=mean.get)
figure = go.Figure(
    go.Bar(
        x=[mean[name] for name in order],
        y=[name.replace("_", " ") for name in order],
        orientation="h",
        marker_color=MINORITY,
        opacity=0.6,
        name="mean",
    )
)
figure.add_scatter(
    x=[share for name in order for share in found[name]],
    y=[name.replace("_", " ") for name in order for _ in SEEDS],
    mode="markers",
    marker={
        "color": "#3b4048",
        "size": 7,
        "line": {"color": "#fff", "width": 1},
    },
    name="one network",
)
figure.update_layout(
    title="Asking where the network is unsure finds the minority",
    xaxis={"title": "minority pictures in a batch (%)", "range": [-2, 102]},
    meta={
        "alt": "Share of minority pictures in a batch of eight acquisition functions."
    },
)
figure.add_vline(
    x=POOL_SHARE,
    line={"dash": "dot", "color": CHANCE},
    annotation={"text": "pool", "font_color": CHANCE},
    annotation_position="bottom right",
)

# %% [markdown]
# As a table, in multiples of the pool's share. The last column asks how *varied* a batch is: how much of it is on its
# commonest colour? (With ten colours in equal parts it would be a tenth.)

# %%
from IPython.display import Markdown

lines = ["| acquisition | minority | times the pool | on one colour |"]
lines += ["|:--|--:|--:|--:|"]
same = {name: sum(v) / len(v) for name, v in one_colour.items()}
for name in reversed(order):
    times = mean[name] / POOL_SHARE
    cells = [f"{mean[name]:.0f}%", f"{times:.1f}", f"{same[name]:.0f}%"]
    lines.append("| " + " | ".join([name.replace("_", " "), *cells]) + " |")
Markdown("\n".join(lines))

# %%
for name in ("least_confidence", "margin", "entropy", "bald"):
    assert mean[name] > 4 * POOL_SHARE, name
for name in ("core_set", "badge"):
    assert mean[name] > 2 * POOL_SHARE, name
for name in ("random", "typiclust"):
    assert mean[name] < 2.5 * POOL_SHARE, name
assert mean["least_confidence"] > mean["badge"]
assert same["least_confidence"] > same["badge"] + 5

# %% [markdown]
# Each function does what it says. (Random draws from the pool, so it has the pool's share; a few batches of fifty
# scatter around it by some points.)
#
# - *Least confidence, margin, entropy, BALD* follow the hesitation, and the hesitation is at the minority. But they
#   score each picture by itself, and ask nearly the same question many times: a large part of a batch is on one
#   colour.
# - *Core-set* looks at no answer at all. A digit in a strange colour is simply far from everything labelled. So is any
#   other odd picture, hence fewer.
# - *BADGE* trades uncertainty for variety: fewer minority pictures, in many colours.
# - *TypiClust* asks for typical pictures, and in this pool the typical picture is majority. It was made for the
#   *first* labels, when a network's doubts are worth nothing; for finding a minority it is no better than chance.
#
# ## Look at what it asked

# %% tags=["hide-input"]
asked = {name: ask(name)[:20] for name in ("least_confidence", "random")}
shown = torch.cat(list(asked.values()))
figure = image_grid(
    unlabelled.x[shown],
    columns=10,
    labels=["least<br>confidence", "", "random", ""],
    title="Least confidence asks about strange pairs, random about usual ones",
)
for i in torch.where(unlabelled.is_minority[shown])[0].tolist():
    x, y = 30 * (i % 10), 30 * (i // 10)
    box = {"x0": x, "y0": y, "x1": x + 28, "y1": y + 28}
    figure.add_shape(type="rect", line={"color": MINORITY, "width": 3}, **box)
figure

# %% [markdown]
# Framed pictures are minority. Nobody told the function about colours or groups: it only saw ten probabilities a
# picture. The repetition can be seen, too.
#
# ## Rounds
#
# Active learning asks in **rounds**. In round $t$ the network trained on $D_{t-1}$ chooses the batch $Q_t$; the labels
# are bought, $D_t = D_{t-1} \cup Q_t$; and the network is trained again *from its initial weights*. `run_active` does
# this; `method="append"` means that a query is simply one more example.

# %%
from caml_core.active import run_active
from caml_core.round import Plan

plan = {"method": "append", "start": START, "query": QUERY, "rounds": 3}
plan |= {"epochs": 60 if FULL else 40, "select": "last"}
plan |= {"lr": 2e-3, "weight_decay": 1e-4}
runs, networks = {}, []
for name in ("random", "least_confidence"):
    runs[name] = run_active(
        lambda: backbone("small_cnn", n_classes=10, seed=0),
        pool,
        val,
        test,
        Plan(acquisition=name, **plan),
        seed=0,
        device=device,
        augment=random_shift,
        progress=False,
        on_round=lambda t, network, record: networks.append(network),
    )

# %% [markdown]
# Each record says which rows were bought (`queried`), how much of them was minority (`batch_minority`) and how the
# network does on the test set (`metrics`).

# %%
lines = [
    "| round | labels | asked | minority in the batch | accuracy, minority |"
]
lines += ["|--:|--:|:--|--:|--:|"]
for name, records in runs.items():
    for record in records:
        share = record["batch_minority"]
        share = "" if share is None else f"{share:.0f}%"
        accuracy = f"{record['metrics']['minority']['value']:.1f}%"
        how = name.replace("_", " ") if record["round"] else "first labels"
        cells = [record["round"], record["labels"], how, share, accuracy]
        lines.append("| " + " | ".join(map(str, cells)) + " |")
Markdown("\n".join(lines))

# %% tags=["hide-input"]
from caml_core.pictures.figures import curves_with_band

curves_with_band(
    [record["labels"] for record in runs["random"]],
    {
        name.replace("_", " "): [
            [r["metrics"]["minority"]["value"] for r in records]
        ]
        for name, records in runs.items()
    },
    title="One seed: labels bought in doubt teach more than random ones",
    x_title="labels bought",
    y_title="minority accuracy (%)",
    colours={"random": CHANCE, "least confidence": MINORITY},
).update_yaxes(rangemode="tozero").update_xaxes(dtick=QUERY)

# %%
batches = {
    name: sum(record["batch_minority"] for record in records[1:]) / 3
    for name, records in runs.items()
}
later = {
    name: sum(r["metrics"]["minority"]["value"] for r in records[1:]) / 3
    for name, records in runs.items()
}
assert batches["least_confidence"] > 2 * POOL_SHARE > batches["random"] - 5
assert later["least_confidence"] > later["random"] + 3

# %% [markdown]
# A label costs the same in both runs. But **one seed proves nothing**: the next one may rise more, or less. The
# batches hold less minority than those of the table above: these networks had other first labels, and were trained at a
# constant step size, where that of the first networks fell to zero. A training that stops at such a moment can be off by
# many points in a single round. Chapter [09](09_caml_tables.ipynb) has more seeds, and intervals.
#
# ## A map of the pool
#
# To see *where* the questions lie, project the features of the network of round 0 on their two main directions
# (principal component analysis) and draw a sample of the pool. Then put the queries of each round on the map. The signs
# of the directions are arbitrary; we fix them, so that the map does not flip between runs.

# %%
from caml_core.device import seeded

before = networks[0]  # of round 0, the same in both runs
_, z = predict_with_features(before, pool, device)
with seeded(0):  # pca_lowrank starts from random directions
    _, _, directions = torch.pca_lowrank(z, q=8)
axes = directions[:, :2]
strongest = axes.abs().argmax(dim=0)
axes = axes * axes[strongest, [0, 1]].sign()
position = (z - z.mean(dim=0)) @ axes


# %%
def points(rows, name, **marker):
    """A trace of pool pictures on the map."""
    x, y = ([round(v, 2) for v in axis] for axis in position[rows].T.tolist())
    text = [
        f"{pool.class_names[d]} on {pool.attribute_names[c]}"
        for d, c in zip(pool.y[rows].tolist(), pool.a[rows].tolist())
    ]
    style = {"x": x, "y": y, "text": text, "name": name, "marker": marker}
    return go.Scatter(mode="markers", hoverinfo="text", **style)


sample = torch.randperm(len(pool), generator=torch.Generator().manual_seed(0))[
    :1000
]
rare = pool.is_minority[sample]
ground = [
    points(sample[~rare], "majority", color=MAJORITY, size=4, opacity=0.5),
    points(sample[rare], "minority", color=MINORITY, size=4, opacity=0.8),
]


# %%
def asked_in(record):
    """The queries of one round, majority and minority."""
    rows = torch.tensor(record["queried"])
    rare = pool.is_minority[rows]
    edge = {"color": "#111111", "width": 1.5}
    look = {"size": 10, "line": edge, "symbol": "diamond"}
    return [
        points(rows[~rare], "asked, majority", color=MAJORITY, **look),
        points(rows[rare], "asked, minority", color=MINORITY, **look),
    ]


frames = [
    go.Frame(name=str(r["round"]), data=asked_in(r), traces=[2, 3])
    for r in runs["least_confidence"][1:]
]

# %% tags=["hide-input"]
figure = go.Figure(data=[*ground, *frames[0].data], frames=frames)


def moves(duration):
    """How the animation goes from frame to frame."""
    frame = {"duration": duration, "redraw": False}
    return {"mode": "immediate", "frame": frame, "transition": {"duration": 0}}


steps = [
    {"method": "animate", "label": f.name, "args": [[f.name], moves(0)]}
    for f in frames
]
play = {"method": "animate", "label": "Play", "args": [None, moves(1200)]}
figure.update_layout(
    title="Each round asks somewhere else",
    xaxis={"title": "first main direction of the features", "zeroline": False},
    yaxis={"title": "second main direction", "zeroline": False},
    legend={"itemsizing": "constant"},
    meta={
        "alt": "A map of the pool, with the pictures asked about in each round."
    },
    height=620,
    sliders=[
        {
            "steps": steps,
            "currentvalue": {"prefix": "round "},
            "x": 0.15,
            "len": 0.85,
            "pad": {"t": 70},
        }
    ],
    updatemenus=[{"type": "buttons", "buttons": [play], "x": 0.1, "y": -0.3}],
)

# %% [markdown]
# Press *Play*, or move the slider; a dot names its digit and its colour. Clusters are colours, because this network
# reads colours: in feature space the nearest neighbour of a minority picture has its colour far more often than its
# digit.

# %%
rare = torch.where(pool.is_minority)[0]
away = torch.cdist(z[rare], z)
away[torch.arange(len(rare)), rare] = torch.inf  # itself
near = away.argmin(dim=1)
like = {"colour": pool.a[near] == pool.a[rare]}
like["digit"] = pool.y[near] == pool.y[rare]
like = {name: same.double().mean().item() for name, same in like.items()}
for name, same in like.items():
    print(f"nearest neighbour of a minority picture, same {name}: {same:.0%}")
assert like["colour"] > like["digit"] + 0.4

# %% [markdown]
# Two directions of many are a crude picture, yet it shows how the questions move as the network changes. How much of a
# batch moves?

# %%
colours = torch.stack(
    [
        pool.a[torch.tensor(record["queried"])].bincount(minlength=10)
        for record in runs["least_confidence"][1:]
    ]
)
moved = (colours[1:] - colours[:-1]).clamp_min(0).sum(dim=1) / QUERY
for share in 100 * moved:
    print(f"{share:.0f}% of a batch is on other colours than the one before")
assert moved.max() > 0.2

# %% [markdown]
# Vermilion diamonds are questions about the minority. A cluster of grey diamonds means something else: after
# that training the network doubted one colour as a whole, and asked about pictures that it might have understood an
# epoch later. Questions are only as good as the network that asks.
#
# ## When uncertainty is a bad guide
#
# **Too early.** Here are the notes taken while the first network was training: how well it knew the majority, and how
# much minority a least-confidence batch would have held.

# %%
curves = {"minority in the batch": [], "right on the majority": []}
for _, said in notes:
    knows = (said.argmax(dim=1) == unlabelled.y)[~minority].double()
    unsure = 1 - said.softmax(dim=1).amax(dim=1)
    batch = minority[unsure.topk(QUERY).indices].double()
    curves["minority in the batch"].append(100 * batch.mean().item())
    curves["right on the majority"].append(100 * knows.mean().item())
figure = curves_with_band(
    [epoch for epoch, _ in notes],
    {name: [values] for name, values in curves.items()},
    title="In this network doubts were worth most late in training",
    x_title="epoch of training on the first labels",
    y_title="share of pictures (%)",
    colours=dict(zip(curves, (MINORITY, MAJORITY))),
)
mark_pool(figure)

# %% [markdown]
# This is one network. At first it is unsure about everything, so its doubts point nowhere. Then its accuracy swings
# from note to note, as steps are still large, and the worth of its doubts swings, too, though not always the same way.
# Once it is sure of the majority, what is left over is the minority.

# %%
worth = curves["minority in the batch"]
assert worth[-1] > max(worth[0], 4 * POOL_SHARE)
assert curves["right on the majority"][-1] > 90

# %% [markdown]
# **Too late.** Now suppose the network has understood. We train the same network on the pictures that we put aside.
# There are as many of them, but their colours are random. Then it may ask about the same pool.

# %%
fair = trained(aside, seed=0)
fair_logits = predict(fair, pool, device)
fair_right = (fair_logits.argmax(dim=1) == pool.y).double()
for name, of in (
    ("majority", ~pool.is_minority),
    ("minority", pool.is_minority),
):
    print(f"right on the {name}: {100 * fair_right[of].mean():.1f}%")
fair_unsure = 1 - fair_logits.softmax(dim=1).amax(dim=1)
fair_batch = fair_unsure.topk(QUERY).indices

# %%
new = backbone("small_cnn", n_classes=10, seed=0).to(device)
new_unsure = 1 - predict(new, unlabelled, device).softmax(dim=1).amax(dim=1)
stages = {
    "before training": minority[new_unsure.topk(QUERY).indices],
    "reads colours": minority[ask("least_confidence")],
    "reads digits": pool.is_minority[fair_batch],
}
stages = {k: 100 * v.double().mean().item() for k, v in stages.items()}
names = [
    f"{name.replace(' ', '<br>')}<br><b>{value:.0f}%</b>"
    for name, value in stages.items()
]
figure = go.Figure(go.Bar(x=names, y=list(stages.values())))
figure.update_traces(marker_color=MINORITY)
figure.update_layout(
    title="Least confidence finds the minority while colours are read",
    xaxis={"title": "the network that asks", "tickangle": 0},
    yaxis={"title": "minority in a batch (%)", "range": [0, 104]},
)
mark_pool(figure)

# %%
assert stages["reads colours"] > 4 * POOL_SHARE
assert stages["before training"] < 4 * POOL_SHARE
assert stages["reads digits"] < 5 * POOL_SHARE
assert fair_right[pool.is_minority].mean() > 0.6

# %% [markdown]
# What does a network that can read digits ask for? For digits that *it* finds hard, nearly all of them majority:

# %%
image_grid(
    pool.x[fair_batch[:20]],
    columns=10,
    title="A network that reads digits asks about digits, on their usual colours",
)

# %% [markdown]
# Some are badly written, many look neat to us. They are informative in their own way, but not about the shortcut. A
# batch's minority share is therefore not a score to push up for ever: it should rise, and fall again once the answers
# have been understood. And even in a good batch some questions are of this kind.
#
# Ask yourself. In this pool of points, some lie in a fog: on neither background, with labels that say nothing.

# %%
from caml_core.pictures.explore import explore

explore("ask_yourself", "Buy labels: is uncertain the same as hard?")

# %% [markdown]
# ## What we saw
#
# - An acquisition function turns what a network says about a pool into a batch of questions.
# - Here the network with the shortcut is wrong on the minority, *and less sure*: uncertainty finds several times the
#   pool's share without knowing any group. (Some networks of chapters [08](08_interactions.ipynb) and
#   [09](09_caml_tables.ipynb) find little.)
# - Distance finds the minority for another reason, BADGE gives up some of it for variety, and typicality does no better
#   than chance.
# - In rounds, the labels asked for teach the minority more than as many random ones: in one run, which proves nothing
#   yet.
# - Doubts are worth something between ignorance and understanding.
#
# Finding the right examples is half of the matter. The labels found here are still a small part of all labels, and each
# of them is only *one more term* of the loss. What that does to them is the question of the
# [next chapter](05_dilution.ipynb).
#
# **Turn these knobs.** `QUERY` (are the next questions as good as the first?), `magnitude` (a shortcut that is easier to
# see), `START` (how little is too little for a useful doubt?).
#
# ## Two quick questions
#
# **1.** Least confidence knows no groups. Why do its batches hold more minority than the pool?
#
# <details><summary>It favours rare classes</summary>
#
# No. It looks at one number for each picture: the top probability.
#
# </details>
#
# <details><summary>On the minority the two cues disagree, so the network is less sure</summary>
#
# Yes. That holds for a network that has learned something of both.
#
# </details>
#
# <details><summary>By luck</summary>
#
# No. The share was several times that of the pool, batch after batch.
#
# </details>
#
# **2.** The first network was trained for one epoch only. What is a batch by uncertainty worth?
#
# <details><summary>As much as later</summary>
#
# No. Its doubts are about everything.
#
# </details>
#
# <details><summary>Little: doubts are worth something between ignorance and understanding</summary>
#
# Yes. One that knows nothing doubts at random, one that knows all does not doubt.
#
# </details>
#
# <details><summary>More, since it doubts more</summary>
#
# No. Doubt that does not discriminate is no information.
#
# </details>
#
# ## Exercises
#
# **Exercise 1: two classes.** Margin and least confidence found nearly the same. Show that with *two* classes they
# always choose the same rows.
#
# <details><summary>Solution 1</summary>
#
# With $p_1 \ge p_2$ and $p_1 + p_2 = 1$, the margin is $p_1 - p_2 = 2 p_1 - 1$ and least confidence is $1 - p_1$. Each is
# a monotone function of $p_1$; we want the smallest of the one and the largest of the other, so the order is the same.
# So is that of the entropy.
#
# </details>
#
# **Exercise 2: a rule of your own.** Ask about rows whose nearest labelled neighbour (in features) has *another* label
# than the network's answer. How much minority does this find?

# %% tags=["hide-cell", "solution"]
# @title Solution 2 { display-mode: "form" }
near = torch.cdist(scores.features, scores.labelled).argmin(dim=1)
doubted = labelled.y[near] != scores.logits.argmax(dim=1)
share = 100 * minority[doubted].double().mean().item()
print(f"{int(doubted.sum())} rows, {share:.0f}% of them minority")
print(f"{share / POOL_SHARE:.1f} times the pool's share")
assert share > 2 * POOL_SHARE

# %% [markdown]
# **Exercise 3: the rule for the epoch.** Many papers keep the epoch with the best minority accuracy on the validation
# set (`select="minority"`). Run the rounds again with it. What happens to the batches of least confidence, and why?
#
# <details><summary>Solution 3</summary>
#
# In a network that reads colours, minority accuracy is at chance or below. The rule then prefers an epoch that is
# unsettled, which is right on *more* of the minority because it is wrong on more of the majority. Its doubts are those
# of an early network, and their batches can be poorer; we keep no record of it. A rule is a choice: say which one you
# used.
#
# </details>
#
# ## References
#
# - B. Settles, [Active learning literature survey](https://burrsettles.com/pub/settles.activelearning.pdf), 2009: least
#   confidence, margin, entropy.
# - N. Houlsby et al., [Bayesian active learning for classification and preference
#   learning](https://arxiv.org/abs/1112.5745), 2011: BALD. Y. Gal et al., [Deep Bayesian active learning with image
#   data](https://arxiv.org/abs/1703.02910), 2017: with dropout.
# - O. Sener, S. Savarese, [Active learning for convolutional neural networks: a core-set
#   approach](https://arxiv.org/abs/1708.00489), 2018.
# - J. Ash et al., [Deep batch active learning by diverse, uncertain gradient lower
#   bounds](https://arxiv.org/abs/1906.03671), 2020: BADGE.
# - G. Hacohen et al., [Active learning on a budget: opposite strategies suit high and low
#   budgets](https://arxiv.org/abs/2202.02794), 2022: TypiClust.
# - S. Joshi et al., [Towards mitigating spurious correlations in the wild](https://arxiv.org/abs/2306.11957), 2023:
#   SpuCoMNIST, which our digits imitate.
