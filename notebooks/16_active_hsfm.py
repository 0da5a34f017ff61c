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
# # Active HSFM: are queries a hard set?
#
# **Question.** CAML has queries, but little to adapt when features are frozen. HSFM has a strong adaptation, but needs a
# fair labelled set. Neither paper asks: can the queries of the one be the hard set of the other?
#
# **You will be able to** write the combination in a few lines, compare methods at the same number of bought labels, read
# a label-cost curve, and say why a batch that is full of minority examples can still be a bad teacher.
#
# > **Before you start.** Chapters [04](04_active_queries.ipynb) (queries), [07](07_caml.ipynb) (CAML) and
# > [10](10_hsfm.ipynb) (HSFM). On a laptop with two cores this takes half a minute and 1 GB of memory, and a minute more
# > where chapter 10 has not left its pictures and features behind; a GPU is not needed. Nothing is downloaded. The
# > comparison over five seeds is read from stored records.

# %% tags=["hide-input"]
import os
import subprocess
import sys

# On Colab, install the book's package; elsewhere there is nothing to do.
if "google.colab" in sys.modules:
    source = "git+https://github.com/your_account/caml-book"
    source = os.environ.get("CAML_REPOSITORY", source)
    pip = [sys.executable, "-m", "pip", "install", "-q", "--no-deps", source]
    subprocess.run(pip, check=True)
    from caml_core.colab import setup

    setup()
# %% [markdown]
# ## Each has what the other lacks
#
# | | CAML | HSFM |
# |:--|:--|:--|
# | adapts on | the labels known before a round | a support set whose *features* are edited |
# | is judged by | the batch $Q_t$ that the round bought | the hardest examples of a labelled validation set |
# | works on | features that are still learned | frozen features |
# | needs | queries, which cost labels | a fair set, which costs labels, too |
#
# On frozen features a step of CAML moves a linear head a little, and the head would have got there anyway. So let us put
# HSFM's adaptation into CAML's rounds. The features are those of a network trained on ImageNet, so no label of ours is in
# them. **Every label that a method uses must be bought.**

# %%
import torch
from caml_core.backbones import Backbone, backbone
from caml_core.data import load
from caml_core.device import pick_device
from caml_core.features import extract_features, standardise

sizes = {"n_train": 1600, "n_val": 800, "n_test": 1000, "size": 64}
pictures = load("birdscapes", rho=0.95, seed=0, **sizes)
device = pick_device("cpu")
network = backbone("efficientnet_lite0", n_classes=2)
pool, val, test = standardise(
    *(extract_features(network, s, device, batch_size=16) for s in pictures)
)
print(f"{len(pool):,} pictures in the pool", end=", ")
print(f"{100 * pool.is_minority.double().mean():.0f}% minority")

# %% [markdown]
# ## Buy four hundred labels
#
# Two hundred at random, $D_0$; then five rounds of forty, $Q_1, \dots, Q_5$, where a plain head is least confident. A
# linear head is a network without a body, so the loop of chapter 07 runs as it is. We keep two heads: $\theta_0$,
# trained on $D_0$, and *append*, trained on everything. Two draws of the first labels, so that we see two of everything.

# %%
from caml_core.active import Plan, run_active
from caml_core.device import seeded, stream_seed
from torch import nn

plan = Plan(
    "append", start=200, query=40, rounds=5, epochs=20, lr=1e-3,
    batch_size=64, select="last",
)  # fmt: skip


def linear(seed):
    """A linear head as a network of its own."""
    with seeded(seed):
        return Backbone(nn.Identity(), pool.x.shape[1], n_classes=2)


def buy(seed):
    """Rows of D_0, Q_1, ..., Q_5, and the heads of all rounds."""
    heads = []
    records = run_active(
        lambda: linear(seed), pool, val, test, plan, seed=seed, progress=False,
        on_round=lambda t, net, record: heads.append(net.head),
    )  # fmt: skip
    generator = torch.Generator().manual_seed(stream_seed(seed, 0))
    order = torch.randperm(len(pool), generator=generator)
    queries = [torch.tensor(record["queried"]) for record in records[1:]]
    return [order[:200].sort().values, *queries], heads


SEEDS = (0, 1)
bought = {seed: buy(seed) for seed in SEEDS}

# %% [markdown]
# `plan` keeps the last epoch, so the validation set chooses nothing; it is there to be looked at. Settings of the
# stored runs below were chosen on another draw of the data.

# %%
from caml_core.metrics import group_metrics


@torch.no_grad()
def accuracy(weight, bias):
    """Worst group and average on the test set, percent."""
    found = group_metrics(test.x @ weight.T + bias, test)
    return found["worst_group"]["value"], found["average"]["value"]


for seed, (sets, heads) in bought.items():
    share = pool.is_minority[torch.cat(sets[1:])].double().mean()
    print(f"draw {seed}: {100 * share:.0f}% of the queries are minority")
    for name, head in (("theta_0", heads[0]), ("append", heads[-1])):
        print("   {:8s} WGA {:4.1f}, average {:4.1f}".format(
            name, *accuracy(head.weight, head.bias)))  # fmt: skip
    assert share > 0.15

# %% [markdown]
# The questions are good ones: the minority is several times as frequent among them as in the pool. Chapter 10's hard
# set, the validation examples with the highest loss, was nearly all minority, and gave a fair head.
#
# ## The method, line by line
#
# Two ways to use the queries:
#
# - **(a) one hard set**: the support set is a part of $D_0$, the hard set is all of $Q_1 \cup \dots \cup Q_R$;
# - **(b) a task a round**: the support set of round $t$ is a part of $D_{t-1}$, its hard set is $Q_t$, and what rounds
#   ask for accumulates, as in CAML.
#
# Write $\theta_T(\theta, H)$ for the head after $T$ steps of size $\alpha$ on the support features $H$, and $L(\theta,
# Q)$ for the loss of a batch in which every class counts the same. One epoch of (b):
#
# $$
# \begin{aligned}
# &c \leftarrow 0; \quad \text{for } t = 1, \dots, R: \\
# &\qquad \theta^{(t)} = \theta - \alpha T\, \tfrac{1}{t-1}\, c
# && \text{earlier wishes count as granted} \\
# &\qquad H_t \leftarrow \mathrm{Adam}_\eta\big(H_t,\ \nabla_{H_t} L(\theta_T(\theta^{(t)}, H_t), Q_t)\big)
# && K_H \text{ times} \\
# &\qquad c \leftarrow c + \nabla_\theta L(\theta_T(\theta^{(t)}, H_t), Q_t)
# && \text{what round } t \text{ still asks for} \\
# &\theta \leftarrow T \text{ Adam steps on } H_1 \cup \dots \cup H_R .
# \end{aligned}
# $$
#
# Here it is for one run, with `hypergradient` for the gradient of a trained head in its training data (chapter
# [11](11_hypergradients.ipynb)), and with two edits an epoch. The settings are those that the paper gives for Dominoes,
# scaled to our features, with fewer epochs.

# %%
from dataclasses import replace

from caml_core.active_hsfm import round_tasks
from caml_core.hsfm import PUBLISHED, Adam, scaled
from caml_core.hypergradients import Problem, hypergradient

sets, heads = bought[0]
theta = heads[0].weight.detach().clone(), heads[0].bias.detach().clone()
settings = scaled(replace(PUBLISHED["dominoes"], epochs=6), pool.x)
small = replace(settings, edits=2, epochs=1)
tasks = round_tasks(pool, sets, small.support, seed=0)


# %%
def gradient(x, y, weights, W, b):
    """Of the weighted mean cross-entropy, in the head."""
    Y = torch.nn.functional.one_hot(y, 2)
    residual = ((x @ W.T + b).softmax(dim=1) - Y) * weights[:, None]
    return residual.T @ x, residual.sum(dim=0)


c = torch.zeros_like(theta[0]), torch.zeros_like(theta[1])
edited, pull = [], small.alpha * small.steps
for t, task in enumerate(tasks):  # t rounds lie behind
    H, y, Q, Q_y = (part[0].clone() for part in task)
    share = 0.5 / torch.bincount(Q_y)[Q_y]
    W, b = (p - pull * q / max(t, 1) for p, q in zip(theta, c))
    adam = Adam(H, torch.tensor([small.eta]))
    for edit in range(small.edits + 1):
        problem = Problem(H, y, Q, Q_y, W, b, share)
        answer = hypergradient(problem, alpha=small.alpha, steps=small.steps)
        if edit < small.edits:
            norm = answer.gradient.norm()
            adam.step(H, answer.gradient * small.clip / max(norm, small.clip))
    g = gradient(Q, Q_y, share, answer.weight, answer.bias)
    c = tuple(p + q for p, q in zip(c, g))
    edited.append(H)

# %% [markdown]
# Then the head takes its $T$ Adam steps on all edited support sets, and the epoch is over. The package does the same for
# many runs side by side:

# %%
from caml_core.active_hsfm import active_hsfm

weight, bias = theta[0].clone(), theta[1].clone()
step = torch.tensor([small.alpha])
adam_W, adam_b = Adam(weight, step), Adam(bias[None], step)
x, y = torch.cat(edited), torch.cat([task.support_y[0] for task in tasks])
even = torch.full((len(x),), 1 / len(x))
for _ in range(small.steps):
    g = gradient(x, y, even, weight, bias)
    adam_W.step(weight, g[0])
    adam_b.step(bias[None], g[1][None])

packaged = active_hsfm(tasks, *theta, small)
torch.testing.assert_close(packaged.weight[0], weight, rtol=1e-4, atol=1e-5)
torch.testing.assert_close(packaged.bias[0], bias, rtol=1e-4, atol=1e-5)
print("one epoch by hand and by the package: the same")

# %% [markdown]
# With one round there is no bias yet, and (b) *is* (a). With as many queries of each class, (a) is HSFM with the queries
# for a validation set. What is missing is a choice of the epoch: no label is put aside for it, so the number of epochs is
# a setting, and the last one counts.
#
# ## Does it work?
#
# Both forms on both draws, beside the head that simply *appends* the queries. The last line is a control that nobody can
# buy: a hard set with **as many examples of each group** as the queries have, but drawn at random within the groups.

# %%
from caml_core.active_hsfm import batch


def same_groups(seed):
    """Rows outside D_0, as many of each group as were queried."""
    sets, _ = bought[seed]
    generator = torch.Generator().manual_seed(seed)
    order = torch.randperm(len(pool), generator=generator)
    order = order[~torch.isin(order, sets[0])]
    wanted = pool.group[torch.cat(sets[1:])].bincount(minlength=4).tolist()
    return torch.cat(
        [order[pool.group[order] == g][:n] for g, n in enumerate(wanted)]
    )


alike = {seed: same_groups(seed) for seed in SEEDS}


def tasks_of(seed, form):
    sets, _ = bought[seed]
    if form == "same groups":
        sets = [sets[0], alike[seed]]
    one = form != "(b) rounds"
    return round_tasks(pool, sets, 16, seed=seed, one_hard_set=one)


def start():
    """theta_0 of both draws, side by side."""
    heads = [bought[seed][1][0] for seed in SEEDS]
    W, b = (
        torch.stack([getattr(h, k) for h in heads]) for k in ("weight", "bias")
    )
    return W.detach(), b.detach()


# %%
found = {
    "append": [accuracy(h[-1].weight, h[-1].bias) for _, h in bought.values()]
}
for form in ("(a) one hard set", "(b) rounds", "same groups"):
    both = batch([tasks_of(seed, form) for seed in SEEDS])
    done = active_hsfm(both, *start(), settings)
    found[form] = [accuracy(W, b) for W, b in zip(done.weight, done.bias)]
for name, values in found.items():
    text = ";  ".join("WGA {:4.1f}, average {:4.1f}".format(*v) for v in values)
    print(f"{name:17s} {text}")

# %%
for i in range(len(SEEDS)):
    gain = found["(a) one hard set"][i][0] - found["append"][i][0]
    assert abs(gain) < 10
    assert found["same groups"][i][0] > found["(a) one hard set"][i][0] + 10

# %% [markdown]
# Neither form does much better than *append*. But the last line does: **the same number of labels, the same share of
# minority, the same method**. So neither HSFM nor the composition of the batch is at fault. It must be *which* examples
# of each group were asked.
#
# ## Uncertain is not hard
#
# To look behind the scenes we use the fair validation set: fit one head to the bird and one to the background. The first
# gives every picture its *bird evidence*, how far it speaks for the picture's own label; the second its *background
# evidence*. Majority pictures have both. For minority pictures the background speaks against the label.

# %%
from caml_core.data.dataset import GroupDataset
from caml_core.heads import descend


def evidence(target):
    """Evidence for each picture's own label, from a head fitted to `target`."""
    split = GroupDataset(
        val.x, target, val.a, class_names=val.class_names,
        attribute_names=val.attribute_names,
    )  # fmt: skip
    even = torch.full((len(val),), 1 / len(val))
    head = descend(split, split, lambda _: even, epochs=10, select="last")
    score = pool.x @ (head.weight[1] - head.weight[0])
    score = (score - score.mean()) / score.std()
    return (2 * pool.y - 1) * score


bird, background = evidence(val.y), evidence(val.a)

# %%
from caml_core.figures import MAJORITY, MINORITY, use_book_style
from plotly.subplots import make_subplots

use_book_style()
asked = torch.cat(bought[0][0][1:])
panels = {"queried": asked, "same groups, at random": alike[0]}
figure = make_subplots(1, 2, subplot_titles=list(panels), shared_yaxes=True)
for column, rows in enumerate(panels.values(), start=1):
    for name, colour, flag in (
        ("majority", MAJORITY, False),
        ("minority", MINORITY, True),
    ):
        these = rows[pool.is_minority[rows] == flag]
        figure.add_scatter(
            x=bird[these].numpy().round(2), y=background[these].numpy().round(2),
            mode="markers", name=name, showlegend=column == 1,
            marker={"color": colour, "size": 7}, row=1, col=column,
        )  # fmt: skip
figure.update_xaxes(title="bird speaks for the label →", range=[-2.9, 2.9])
figure.update_yaxes(range=[-2.2, 2.2])
figure.update_layout(
    title="Among the queries, a right background comes with an unclear bird",
    yaxis_title="background speaks for it →",
    legend={"y": 1.1},
    margin_t=110,
    height=460,
)

# %%
for name, rows in {"pool": torch.arange(len(pool)), **panels}.items():
    minority = pool.is_minority[rows]
    both = torch.stack([bird[rows], background[rows]])
    correlation = float(torch.corrcoef(both)[0, 1])
    print(f"{name:23s} bird evidence: majority {bird[rows][~minority].mean():5.2f}, "
          f"minority {bird[rows][minority].mean():5.2f};  "
          f"correlation with background {correlation:5.2f}")  # fmt: skip

# %%
for seed in SEEDS:
    asked = torch.cat(bought[seed][0][1:])
    gap = {}
    for name, rows in (("queried", asked), ("alike", alike[seed])):
        few = pool.is_minority[rows]
        gap[name] = float(bird[rows][few].mean() - bird[rows][~few].mean())
    assert gap["queried"] > 0.4
    assert gap["queried"] > gap["alike"] + 0.3

# %% [markdown]
# A head is unsure where the evidence **cancels**. A minority picture gets there when its bird is clear enough to outweigh
# the wrong background. A majority picture, whose background speaks for the label, gets there only when its bird is
# unclear, or looks like the other kind. So within the queries the two kinds of evidence pull apart, though in the pool
# they have nothing to do with each other. Statisticians call this collider bias: select on a sum, and its parts become
# rivals.
#
# What can a head learn from such a batch? Along the line where the evidence cancels, more weight on the bird is right for
# the minority and *wrong for the majority of the very same batch*. The batch does not say which of the two cues to trust.
# It lets the groups vote, and the majority still has more votes. HSFM's own hard set is chosen otherwise: by the **loss**
# among examples whose labels are known already. High loss means that the head is sure and wrong, which is what the
# shortcut does to the minority. Uncertain means that it cannot tell.

# %% [markdown]
# ## At equal budgets: five seeds, two datasets
#
# Now the stored runs. A budget of $B$ labels is $B/2$ at random and five batches of $B/10$; every method gets exactly
# these, and none a validation label. Settings, as many tried for every method, were chosen by worst-group accuracy on the
# validation split of *another draw* of each dataset. Dominoes has $\rho = 0.9$, birdscapes $\rho = 0.95$ and a larger pool
# than above; the features are those of the same ImageNet network.

# %%
from caml_core.records import (
    describe,
    mean_and_spread,
    paired_difference,
    stored,
)
from IPython.display import Markdown

everything = stored("active_hsfm")
records = [r for r in everything if r["method"] == "all"]
BUDGETS = records[0]["config"]["budgets"]
DATASETS = ("dominoes", "birdscapes")


def runs(dataset, method, budget, asked="least_confidence"):
    """One small record a seed; empty when it was not run."""
    found = []
    for r in records:
        scores = r["metrics"].get(method)
        if (r["dataset"], r["acquisition"]) == (dataset, asked) and scores:
            at = BUDGETS.index(budget) if len(scores["average"]) > 1 else 0
            metrics = {k: {"value": v[at]} for k, v in scores.items()}
            if metrics["average"]["value"] is not None:
                found.append({"seed": r["seed"], "metrics": metrics})
    return found


# %%
ROWS = {  # name: (method, acquisition, what it uses beside the class labels it bought)
    "append": ("append", "least_confidence", ""),
    "upweight": ("upweight", "least_confidence", ""),
    "CAML": ("caml", "least_confidence", ""),
    "fine-tune θ₀ on the queries": ("finetune", "least_confidence", ""),
    "DFR on the queries, class-balanced": ("dfr", "least_confidence", ""),
    "HSFM (a), queries": ("hsfm", "least_confidence", ""),
    "HSFM (b), rounds": ("hsfm, rounds", "least_confidence", ""),
    "HSFM (b), no bias": ("hsfm, rounds, no bias", "least_confidence", ""),
    "HSFM (a), BADGE queries": ("hsfm", "badge", ""),
    "HSFM (a), random queries": ("hsfm", "random", ""),
    "DFR on the queries, group-balanced": ("dfr, groups", "least_confidence", "groups of the queries"),
    "HSFM (a), group-balanced queries": ("hsfm, groups", "least_confidence", "groups of the queries"),
    "HSFM (a), same groups at random": ("hsfm, same groups", "least_confidence", "an oracle"),
    "fine-tune θ₀, same groups at random": ("finetune, same groups", "least_confidence", "an oracle"),
    "HSFM (a), fair labels": ("hsfm, fair", "random", "a fair set to label"),
    "fine-tune θ₀, fair labels": ("finetune, fair", "random", "a fair set to label"),
    "append, the whole pool": ("erm_all", "random", "all labels"),
}  # fmt: skip


def gain(name, dataset, budget, metric="worst_group", over="append"):
    """Difference to append on the least-confident queries, by seed."""
    method, asked, _ = ROWS[name]
    a, b = runs(dataset, method, budget, asked), runs(dataset, over, budget)
    both = {r["seed"] for r in a} & {r["seed"] for r in b}
    sides = [[r for r in side if r["seed"] in both] for side in (a, b)]
    return paired_difference(*sides, metric) if both else None


def cells(name, dataset, budget):
    method, asked, _ = ROWS[name]
    mine = runs(dataset, method, budget, asked)
    if not mine:
        return ["not run", ""]
    accuracy = [mean_and_spread(mine, k)[0] for k in ("worst_group", "average")]
    d = gain(name, dataset, budget)
    text = f"{d['mean']:+.1f} [{d['low']:+.1f}, {d['high']:+.1f}]"
    accuracy = "{:.1f} / {:.1f}".format(*accuracy)
    return [accuracy, "" if name == "append" else text]


BUDGET = 400
rows = [
    "| method | also uses | Dominoes, WGA / average | − append "
    "| birdscapes, WGA / average | − append |",
    "|:--|:--|--:|--:|--:|--:|",
]
for name, (_, _, also) in ROWS.items():
    values = [c for d in DATASETS for c in cells(name, d, BUDGET)]
    rows.append(f"| {name} | {also} | {' | '.join(values)} |")
Markdown(f"{BUDGET} labels:\n\n" + "\n".join(rows))

# %% tags=["nbval-check-output"]
own = [r for r in records if r["acquisition"] == "least_confidence"]
for dataset in DATASETS:
    print(f"{dataset}: {describe([r for r in own if r['dataset'] == dataset])}")

# %%
import plotly.graph_objects as go

shown = [n for n in ROWS if n != "append"][::-1]
colours = {"dominoes": "#0072B2", "birdscapes": "#D55E00"}
figure = go.Figure()
for shift, dataset in enumerate(DATASETS):
    points = [(n, gain(n, dataset, BUDGET)) for n in shown]
    points = [(n, d) for n, d in points if d]
    figure.add_scatter(
        x=[d["mean"] for _, d in points], y=[n for n, _ in points],
        error_x={"array": [d["high"] - d["mean"] for _, d in points]},
        mode="markers", name=dataset,
        marker={"size": 10, "color": colours[dataset],
                "symbol": ("circle", "diamond")[shift]},
    )  # fmt: skip
figure.add_vline(x=0, line_color="#8C8C8C")
figure.update_layout(
    title=f"{BUDGET} labels: what is asked outweighs what is made of it",
    xaxis_title="worst-group accuracy − append (points), 95% interval",
    yaxis={
        "automargin": True,
        "categoryorder": "array",
        "categoryarray": shown,
    },
    height=620,
)

# %% [markdown]
# Read it from the top.
#
# - **Dominoes.** Up-weighting, CAML, fine-tuning and HSFM (a) stand within a few points of *append*; HSFM (b) is behind.
#   What is made of the queries hardly matters.
# - **Birdscapes** are less tame. The intervals of HSFM are wide, and CAML is behind, with a step size that had done best
#   on the draw for settings. DFR without groups is ahead: it forgets $\theta_0$ and starts from nothing, while most
#   others go on from a head that leans on the background.
# - **Group labels of the queries** help: DFR on queries balanced over groups gains on both. The vote of the last section
#   is then a tie, and what the asking head did not look at gets its say. Only queries need these labels, not the pool.
# - **The oracle**, the same groups at random, shows what asking at the line costs: on Dominoes nearly as much as fair
#   labels gain.
# - **Fair labels** are the best buy, where there is a fair set that one could label, and fine-tuning is all they need. A
#   few hundred of them beat the labels of the whole pool.


# %%
def mean(name, dataset, budget=BUDGET):
    return gain(name, dataset, budget)["mean"]


for budget in BUDGETS:
    for name in ("upweight", "CAML", "fine-tune θ₀ on the queries",
                 "HSFM (a), queries"):  # fmt: skip
        assert abs(mean(name, "dominoes", budget)) < 6
    for dataset in DATASETS:
        for name in ("fine-tune θ₀, same groups at random",
                     "fine-tune θ₀, fair labels"):  # fmt: skip
            assert gain(name, dataset, budget)["low"] > 0
for dataset in DATASETS:
    assert mean("DFR on the queries, group-balanced", dataset) > 5
    fair = mean("fine-tune θ₀, fair labels", dataset)
    assert fair > mean("append, the whole pool", dataset)
oracle = mean("fine-tune θ₀, same groups at random", "dominoes")
assert oracle > 0.7 * mean("fine-tune θ₀, fair labels", "dominoes")
assert mean("CAML", "birdscapes") < 0
assert mean("DFR on the queries, class-balanced", "birdscapes") > 5

# %% [markdown]
# ## How many labels does it take?
#
# The same comparison as a curve, worst-group accuracy against the number of labels bought: mean and standard deviation
# over seeds.

# %%
from caml_core.figures import METHOD_COLOURS, curves_with_band

CURVES = {
    "append": METHOD_COLOURS["append"],
    "CAML": METHOD_COLOURS["caml"],
    "HSFM (a), queries": "#D55E00",
    "HSFM (b), rounds": "#CC79A7",
    "HSFM (a), random queries": "#E69F00",
    "DFR on the queries, group-balanced": "#009E73",
    "fine-tune θ₀, same groups at random": "#000000",
    "fine-tune θ₀, fair labels": "#56B4E9",
}


def curve(name, dataset):
    """Worst-group accuracy, (seeds, budgets)."""
    method, asked, _ = ROWS[name]
    each = [runs(dataset, method, budget, asked) for budget in BUDGETS]
    values = [[r["metrics"]["worst_group"]["value"] for r in e] for e in each]
    return [list(seed) for seed in zip(*values)]


def cost_curves(dataset, title):
    lines = {name: curve(name, dataset) for name in CURVES}
    figure = curves_with_band(
        BUDGETS, {n: v for n, v in lines.items() if v}, title=title,
        x_title="labels bought", y_title="worst-group accuracy (%)",
        colours=CURVES,
    )  # fmt: skip
    ticks = {"tickvals": BUDGETS, "ticktext": [f"{b:,}" for b in BUDGETS]}
    figure.update_xaxes(type="log", **ticks)
    return figure.update_layout(
        height=560, margin_t=160, legend={"y": 1.02, "font": {"size": 12}}
    )


cost_curves("dominoes", "Dominoes: all that learns from queries levels off")

# %%
cost_curves("birdscapes", "Birdscapes: HSFM starts ahead and ends behind")

# %% [markdown]
# On Dominoes the queries soon stop paying, whatever is made of them; only the groups of the queries, or other labels, lead
# higher. On birdscapes HSFM is ahead with few labels and behind with many, and its average falls, too:

# %%
for name in ("append", "HSFM (a), queries", "HSFM (b), no bias"):
    method, asked, _ = ROWS[name]
    text = [
        "{:.0f} / {:.0f}".format(
            *(mean_and_spread(runs("birdscapes", method, b, asked), k)[0]
              for k in ("worst_group", "average")))
        for b in BUDGETS
    ]  # fmt: skip
    print(f"{name:18s} WGA / average:", ",  ".join(text))
assert mean("HSFM (a), queries", "birdscapes", 200) > 5
assert mean("HSFM (a), queries", "birdscapes", 1600) < -5
share = [r["batch_minority"] for r in own if r["dataset"] == "birdscapes"]
share = [round(sum(s) / len(s)) for s in zip(*share)]
print("minority in the batches (%):", share)

# %% [markdown]
# Two things happen. A pool with five percent minority runs out of it: with many queries, the later batches are majority
# like the pool. And **nothing brakes**: HSFM as published keeps the epoch with the best validation accuracy. Here no label
# is left for that, and a number of epochs that suits one budget overshoots at another. The gain with few labels is to be
# read with care as well: with two classes a coin has fifty percent in every group, and the averages are not far from it.
#
# The curves read the other way: labels needed until the mean over seeds first reaches an accuracy, by a straight line
# between budgets on the logarithmic scale.

# %%
import math

TARGETS = {"dominoes": (50, 60, 70, 80), "birdscapes": (20, 30, 40, 60)}


def labels_for(name, dataset, target):
    """Labels at which the mean curve first reaches the target, as text."""
    y = [sum(v) / len(v) for v in zip(*curve(name, dataset))]
    if not y:
        return "not run"
    x = BUDGETS
    if y[0] >= target:
        return f"≤ {x[0]}"
    for (x0, y0), (x1, y1) in zip(zip(x, y), zip(x[1:], y[1:])):
        if y0 < target <= y1:
            share = (target - y0) / (y1 - y0)
            n = math.exp(math.log(x0) + share * math.log(x1 / x0))
            return f"{float(f'{n:.2g}'):,.0f}"
    return f"> {x[-1]:,}"


heads_ = [f"{d}, {t}%" for d, targets in TARGETS.items() for t in targets]
rows = [
    "| method | " + " | ".join(heads_) + " |",
    "|:--|" + "--:|" * len(heads_),
]
for name in CURVES:
    cells_ = [labels_for(name, d, t) for d, ts in TARGETS.items() for t in ts]
    rows.append(f"| {name} | {' | '.join(cells_)} |")
Markdown("\n".join(rows))

# %% [markdown]
# ## What became of CAML's part?
#
# Form (b) was to be the better one: CAML's rounds, with an adaptation that can do something. One measurement says why it
# is not. Take the loss of each round's batch under three heads: $\theta_0$; the round's own head, trained on the support
# set that was edited for it; and the common head, trained on all edited support sets together.

# %%
import torch.nn.functional as F


def batch_losses(tasks, W, b):
    return [
        float(F.cross_entropy(t.hard[0] @ W.T + b, t.hard_y[0])) for t in tasks
    ]


rounds = tasks_of(0, "(b) rounds")
done = active_hsfm(rounds, *theta, settings)
alone = active_hsfm(tasks_of(0, "(a) one hard set"), *theta, settings)
by_head = {
    "theta_0": batch_losses(rounds, *theta),
    "(b), own head": done.loss[-1, :, 0].tolist(),
    "(b), common head": batch_losses(rounds, done.weight[0], done.bias[0]),
    "(a)": batch_losses(rounds, alone.weight[0], alone.bias[0]),
}
for name, losses in by_head.items():
    print(f"{name:17s}", "  ".join(f"{loss:.2f}" for loss in losses))

# %%
total = {name: sum(losses) for name, losses in by_head.items()}
assert total["(b), own head"] < 0.4 * total["theta_0"]
assert total["(b), common head"] > 1.5 * total["(b), own head"]
assert total["(b), common head"] > total["(a)"]

# %% [markdown]
# Every round's own head fits its batch: the edits are strong. That is just why the bias has nothing to say. What a round
# *still asks for after adapting* is next to nothing, so $c \approx 0$. CAML lives on an adaptation that is weak; HSFM's
# is not. And the common head does worse than the one of form (a): each support set was edited to teach one batch by
# itself, and nobody edited their union.
#
# ## What we saw
#
# - Queries can stand in for HSFM's hard set: a few lines, no group labels, no validation labels. The result is negative.
#   On Dominoes HSFM on queries is as good as appending them, and no better; on birdscapes it is ahead with few labels,
#   and behind with many, since nothing tells it when to stop.
# - The main reason is neither HSFM nor the share of minority. A head asks where its evidence cancels; there the majority
#   has unclear birds, and the batch cannot say which cue to trust. *Uncertain is not hard.*
# - CAML's bias adds nothing to edited support sets, since little is left to ask for after them.
# - What helps is another kind of label: the groups of the *queries*, or labels of a fair set, if there is one.
# - All this is linear heads on one network's features, two datasets, and half of each budget drawn at random. Where
#   features are still learned (chapter 07), queries are worth far more.
#
# Turn these knobs and watch: the acquisition in `plan` (`"core_set"`, `"badge"`), `start` and `query`, and of `settings`
# `eta` and `epochs`.
#
# ## Exercises
#
# 1. Take the control one step further: draw as many examples of each group as were queried, but only among pictures on
#    which $\theta_0$ is *sure*. Guess first: better or worse than at random?
# 2. With labels in hand, HSFM's rule is open to us, too: keep the quarter of the queries with the highest loss under
#    $\theta_0$. What is its minority share, and what does the head make of it?
# 3. Give HSFM a brake that costs no label: keep the epoch with the best of $\min(\text{accuracy on } D_0, \text{accuracy on
#    the queries})$. What does each of the two see that the other does not?
#
# <details><summary>Solutions</summary>
#
# 1. Minority pictures on which the head is sure are those it gets wrong with confidence: high loss. Majority pictures on
#    which it is sure have clear birds. In such a batch more weight on the bird is right for both.
# 2. `F.cross_entropy(..., reduction="none")` and `topk`, as in chapter 10. The share rises, since the head is more often
#    wrong on the minority; but these are still examples near the line, and with few of them the head soon overshoots:
#    watch the majority.
# 3. Call `active_hsfm` with 1, 2, 3, ... epochs and score each head on both. The queries see whether the minority gains;
#    $D_0$, nearly all majority, sees when the head overshoots. Both were trained on, so the numbers are too high; only
#    their order counts.
#
# </details>
#
# ## References
#
# - K. W. Chew, J. Wang, [Cumulative meta-learning from active learning queries](https://arxiv.org/abs/2605.20771), 2026:
#   CAML.
# - Yazdan Parast et al., [HSFM](https://arxiv.org/abs/2603.29313), 2026.
# - P. Kirichenko et al., [Last layer re-training is sufficient for robustness to spurious
#   correlations](https://arxiv.org/abs/2204.02937), 2022: DFR.
# - J. T. Ash et al., [Deep batch active learning by diverse, uncertain gradient lower
#   bounds](https://arxiv.org/abs/1906.03671), 2020: BADGE.
# - J. Berkson, [Limitations of the application of fourfold table analysis to hospital
#   data](https://doi.org/10.2307/3002000), 1946: the bias of selecting on a sum.
