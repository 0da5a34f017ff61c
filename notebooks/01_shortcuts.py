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
# # Shortcuts: what a spurious correlation does to training
#
# **Question.** When, how fast and with which pixels does a network learn a shortcut?
#
# **You will be able to** define a spurious correlation and its groups, read a learning curve split into majority and
# minority, find the pixels that carry an answer, and predict how the damage grows with the spurious strength $\rho$,
# on drawn scenes and on real pictures.
#
# > **Before you start.** Chapter [00](00_quickstart.ipynb) helps. On a laptop with two cores this takes about two minutes
# > and 2 GB of memory; no GPU is needed. The drawn part downloads nothing. The real part uses MNIST and
# > CIFAR-10 (140 MB) from the folder `CAML_DATA` or the Hugging Face Hub; without both, it shows stored runs only.

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
# ## What is spurious about it
#
# An attribute $a$ is **spuriously correlated** with the label $y$ when $p(y \mid a)$ is far from $p(y)$ in training, yet
# the link does not hold where the model will be used. With two classes, two attributes and *spurious strength* $\rho$,
#
# $$p_\text{train}(a = y) = \rho, \qquad p_\text{test}(a = y) = \tfrac12 .$$
#
# A model that answers $\hat y = a$ is right for a share $\rho$ of the training set and no better than a coin in the test
# set.

# %%
from caml_core.data import load

RHO = 0.95
train, val, test = load("birdscapes", rho=RHO, n_train=3000, seed=0)

# %% tags=["nbval-check-output"]
from caml_core.groups import group_table
from IPython.display import Markdown

Markdown(group_table(train=train, validation=val, test=test))

# %% tags=["nbval-check-output"]
shortcut_train = (train.a == train.y).double().mean().item()
shortcut_test = (test.a == test.y).double().mean().item()
print(
    f"answering by the background alone: {100 * shortcut_train:.1f}% in training, {100 * shortcut_test:.1f}% in the test set"
)
assert abs(shortcut_train - RHO) < 0.001
assert shortcut_test == 0.5

# %% [markdown]
# The smallest loss on the training set belongs to a model that looks at the bird. But the background is found first,
# as we shall see, and then there is little loss left to learn from: only 5 in 100 examples still object.
#
# Logistic regression on points with two cues does the same, and answers at once:

# %%
from caml_core.pictures.explore import explore

explore("two_cues", "Two cues: the stronger one is learned first")

# %% [markdown]
# ## The learning curve, split
#
# Train by empirical risk minimisation (ERM, the mean loss over all training pictures), and after every epoch count
# majority and minority apart.

# %%
import os

from caml_core.device import pick_device
from caml_core.networks import backbone
from caml_core.training import Erm, train_erm

FULL = os.environ.get("CAML_PROFILE", "quick") == "full"
device = pick_device("auto")
network = backbone("small_resnet", n_classes=2, seed=1)
run = train_erm(
    network,
    train,
    val,
    Erm(epochs=40 if FULL else 8, lr=1e-3, select="last"),
    seed=1,
    device=device,
)

# %% tags=["hide-input"]
import plotly.graph_objects as go
from caml_core.pictures.figures import (
    MAJORITY,
    MINORITY,
    add_chance,
    use_book_style,
)

use_book_style()


def accuracy_curves(history, title):
    """Lines on the validation split, circles on the training split."""
    figure = go.Figure()
    epochs = [epoch["epoch"] for epoch in history]
    for kind, colour in (("majority", MAJORITY), ("minority", MINORITY)):
        unseen = [epoch["val"][kind]["value"] for epoch in history]
        seen = [epoch[f"train_{kind}"] for epoch in history]
        line = {"mode": "lines+markers", "line_color": colour}
        ring = {"color": colour, "symbol": "circle-open", "size": 9}
        figure.add_scatter(
            x=epochs, y=unseen, name=f"{kind}, validation", **line
        )
        figure.add_scatter(
            x=epochs,
            y=seen,
            name=f"{kind}, training",
            mode="markers",
            marker=ring,
        )
    figure.update_yaxes(title="accuracy (%)", range=[0, 104])
    figure.update_layout(title=title, xaxis_title="epoch")
    return add_chance(figure, 50)


# %% tags=["opening"]
alt = "Accuracy on majority and minority after each epoch, in training and validation."
title = "The majority is learned at once; the minority waits"
accuracy_curves(run.history, title).update_layout(meta={"alt": alt})

# %% [markdown]
# Circles are training accuracy, lines validation accuracy. The majority is near its best after the first epoch. The
# minority starts *below* chance, because the background votes against it, and rises slowly or not at all; by the last
# epoch some minority *training* pictures are memorised (circles), with little use for new ones. A line below chance
# is the mark of a shortcut: a model that merely lacked skill would be *at* chance.

# %%
first, last = run.history[0]["val"], run.history[-1]["val"]
print(
    f"first epoch: majority {first['majority']['value']:.1f}%, minority {first['minority']['value']:.1f}%"
)
print(
    f"last epoch:  majority {last['majority']['value']:.1f}%, minority {last['minority']['value']:.1f}%"
)
assert first["majority"]["value"] > 85, "learned at once"
assert last["majority"]["value"] > 95
assert last["minority"]["value"] < 60
assert min(epoch["val"]["minority"]["value"] for epoch in run.history) < 25

# %% [markdown]
# ## Where the loss is
#
# Sort the test set by loss. If the model leans on the background, the hard examples are the minority. Remember that:
# [chapter 10](10_hsfm.ipynb) finds the minority *without* attribute labels, by looking for high loss.

# %%
import torch
import torch.nn.functional as F
from caml_core.features import predict

logits = predict(network, test, device)
losses = F.cross_entropy(logits, test.y, reduction="none")
hardest = losses.argsort(descending=True)[:100]
share = 100 * test.is_minority[hardest].double().mean().item()
print(
    f"of the 100 test pictures with the highest loss, {share:.0f} are minority; in the test set, 50 in 100 are"
)
assert share > 80

# %% tags=["hide-input"]
from caml_core.pictures.figures import image_grid

easiest = losses.argsort()[:6]
image_grid(
    test.x[torch.cat([easiest, hardest[:6]])],
    columns=6,
    labels=["lowest<br>loss", "highest<br>loss"],
    title="Easy is a bird at home, hard is a bird abroad",
)

# %% [markdown]
# ## Which pixels matter
#
# **Occlusion.** Lay a grey patch over the picture, move it around, and note how much the margin for the true class
# changes (Zeiler and Fergus, 2014):
#
# $$\Delta(u, v) = m\big(x\big) - m\big(x \text{ with a patch at } (u, v)\big), \qquad m(x) = f_y(x) - f_{1-y}(x).$$
#
# Where $\Delta$ is large, the pixels spoke for the right answer; where it is negative, they spoke against it.


# %%
@torch.no_grad()
def occlusion_map(network, x, y, patch=12, step=4):
    """Change of margin for each place of the patch: float (n, n). x uint8 (3, H, W)."""
    places = range(0, x.shape[-1] - patch + 1, step)
    batch = x.repeat(len(places) ** 2, 1, 1, 1)
    for i, (u, v) in enumerate((u, v) for u in places for v in places):
        batch[i, :, u : u + patch, v : v + patch] = 128

    def margin(images):
        scores = network(images.to(device)).cpu()
        return scores[:, y] - scores[:, 1 - y]

    return (margin(x[None]) - margin(batch)).view(len(places), len(places))


# %% tags=["hide-input"]
from caml_core.pictures.figures import data_uri
from plotly.subplots import make_subplots

chosen = [int(torch.where(~test.is_minority)[0][0]), int(hardest[0])]
names = ["majority", "minority", "its evidence", "its evidence"]
figure = make_subplots(2, 2, subplot_titles=names, vertical_spacing=0.12)
for column, row in enumerate(chosen, start=1):
    source = data_uri(test.x[row].permute(1, 2, 0).numpy())
    figure.add_trace(go.Image(source=source, hoverinfo="skip"), 1, column)
    heat = occlusion_map(network, test.x[row], int(test.y[row]))
    figure.add_trace(
        go.Heatmap(z=heat.numpy(), coloraxis="coloraxis"), 2, column
    )
reach = max(float(abs(heat.z).max()) for heat in figure.data[1::2])
scale = {"colorscale": "RdBu", "cmin": -reach, "cmax": reach}
figure.update_xaxes(visible=False, fixedrange=True, constrain="domain")
figure.update_yaxes(visible=False, fixedrange=True, autorange="reversed")
for axis in ("3", "4"):
    figure.update_layout({f"yaxis{axis}": {"scaleanchor": f"x{axis}"}})
figure.update_layout(
    title="Blue pixels speak for the right answer, red ones against it",
    coloraxis={**scale, "colorbar": {"title": "Δ", "nticks": 3}},
    height=560,
    margin={"l": 10, "r": 10, "b": 10},
)

# %% [markdown]
# Read such maps with care. In the majority picture the bird lights up, although the network answers by the
# background: a patch can hide a whole bird but only a little of a background, so the map understates the background.
# And two pictures are an anecdote. So hide *all* of the background and, in turn, all of the bird, for many scenes.
# Drawing the same bird twice, on land and on water, tells which pixels are background: those that change. (A bird on
# plain grey is a picture unlike any in training, so read the last bar as a hint, not as what the network knows of
# birds.)

# %%
from caml_core.data.birdscapes import draw


def halves(bird, k):
    """Scene k without its bird, without its background, and whole: three uint8 (3, 48, 48)."""
    here, away = (
        torch.from_numpy(
            draw(bird, bird, k, split="test", onto=onto)[0]
        ).permute(2, 0, 1)
        for onto in (bird, 1 - bird)
    )
    background = ((here.float() - away.float()).abs().mean(dim=0) > 20)[None]
    background = (
        F.max_pool2d(background[None].float(), 3, 1, 1)[0] > 0
    )  # close the gaps
    gray = torch.full_like(here, 128)
    return (
        torch.where(background, here, gray),
        torch.where(background, gray, here),
        here,
    )


# %%
scenes = [(bird, *halves(bird, k)) for bird in (0, 1) for k in range(60)]
labels = torch.tensor([scene[0] for scene in scenes])
kept = {}
with torch.no_grad():
    for name, column in (
        ("the whole scene", 3),
        ("only the background", 1),
        ("only the bird", 2),
    ):
        x = torch.stack([scene[column] for scene in scenes])
        kept[name] = (
            100
            * (network(x.to(device)).argmax(dim=1).cpu() == labels)
            .double()
            .mean()
            .item()
        )
        print(f"{name:20} {kept[name]:5.1f}% right")

# %% tags=["hide-input"]
from caml_core.pictures.figures import ATTRIBUTE, CHANCE, LABEL

figure = go.Figure(
    go.Bar(
        x=["<br>".join(name.rsplit(" ", 1)) for name in kept],
        y=list(kept.values()),
        marker_color=[CHANCE, ATTRIBUTE, LABEL],
        text=[f"{value:.0f}%" for value in kept.values()],
        textposition="inside",
    )
)
figure.update_layout(
    title="The background alone is nearly enough; the bird alone is not",
    xaxis={"title": "what the network is shown", "tickangle": 0},
    yaxis={"title": "accuracy (%)", "range": [0, 104]},
)
add_chance(figure, 50)

# %%
assert kept["only the background"] > 75
assert kept["only the background"] > kept["only the bird"] + 5

# %% [markdown]
# ## How strong must the correlation be?
#
# Everything so far was at $\rho = 0.95$. Train afresh at several strengths, with the same network and, since scenes are
# shared between strengths, nearly the same pictures. (Chapter 00 had more pictures and epochs, and its network at $\rho
# = 0.8$ got more of the minority right than those at 0.6 and 0.7 do here: $\rho$ alone does not set the damage.)

# %%
from caml_core.metrics import group_metrics

STRENGTHS = (0.5, 0.6, 0.7, 0.9, 1.0)
by_rho, networks = {}, {}
for rho in STRENGTHS:
    part, _, _ = load("birdscapes", rho=rho, n_train=1500, seed=0)
    small = networks[rho] = backbone("small_resnet", n_classes=2, seed=0)
    train_erm(
        small,
        part,
        val,
        Erm(epochs=30 if FULL else 6, lr=2e-3, batch_size=32, select="last"),
        seed=0,
        device=device,
        progress=False,
    )
    by_rho[rho] = group_metrics(predict(small, test, device), test)
    print(
        f"rho {rho:.2f}: majority {by_rho[rho]['majority']['value']:5.1f}%, minority {by_rho[rho]['minority']['value']:5.1f}%"
    )

# %% [markdown]
# Move the slider: the bars on the left are what training shows the network, those on the right what the balanced test
# set finds. One network a strength scatters: here the one at $\rho = 0.6$ did worse than the one at 0.7, so compare
# the ends of the slider rather than neighbours.


# %% tags=["hide-input"]
def bars(rho, metrics):
    """Two traces: what training shows, what the test set finds."""
    kinds = ["majority", "minority"]
    found = [metrics[kind]["value"] for kind in kinds]
    style = {"marker_color": [MAJORITY, MINORITY], "showlegend": False}
    return [
        go.Bar(x=kinds, y=values, text=[f"{v:.0f}%" for v in values], **style)
        for values in ([100 * rho, 100 - 100 * rho], found)
    ]


def two_panels(rho, metrics):
    """The bars side by side, as a figure."""
    names = [
        "share of the<br>training set (%)",
        "accuracy on<br>the test set (%)",
    ]
    figure = make_subplots(1, 2, subplot_titles=names, shared_yaxes=True)
    for column, trace in enumerate(bars(rho, metrics)):
        figure.add_trace(trace, 1, column + 1)
    margin = {"l": 40, "r": 10, "t": 95}
    figure.update_layout(margin=margin).update_xaxes(tickangle=0)
    return figure.update_yaxes(range=[0, 104])


# %% tags=["hide-input"]
found = [by_rho[rho]["minority"]["value"] for rho in STRENGTHS]
figure = two_panels(STRENGTHS[0], by_rho[STRENGTHS[0]])
figure.frames = [
    go.Frame(name=f"{rho:.2f}", data=bars(rho, by_rho[rho]), traces=[0, 1])
    for rho in STRENGTHS
]
instant = {
    "mode": "immediate",
    "frame": {"duration": 0, "redraw": True},
    "transition": {"duration": 0},
}
steps = [
    {"method": "animate", "label": f.name, "args": [[f.name], instant]}
    for f in figure.frames
]
figure.update_layout(
    sliders=[
        {"steps": steps, "currentvalue": {"prefix": "ρ = "}, "pad": {"t": 40}}
    ],
    title="From ρ = 0.5 to 1 the minority falls from "
    f"{found[0]:.0f}% right to {found[-1]:.0f}%",
    height=470,
)

# %%
assert found[0] > found[3] + 25
assert found[4] < 30

# %% [markdown]
# Those are five strengths that we chose, with one network each. Training a network takes too long for a slider, so
# glue together the features of two networks from above, the one at $\rho = 0.5$, which sees the bird, and the one at
# $\rho = 1$, which sees the background. Both cues are then at hand. Only a last layer (logistic regression) is
# trained anew, on 300 pictures that neither network was trained on, with the strength $\rho$ and the penalty $C$ of
# your choice: the smaller $C$, the smaller the weights must be.

# %% tags=["hide-input"]
from caml_core.features import predict_with_features, standardise
from sklearn.linear_model import LogisticRegression


def glued(split):
    """A split with the features of both networks as its x."""
    both = [networks[rho] for rho in (0.5, 1.0)]
    z = [predict_with_features(network, split, device)[1] for network in both]
    return split.with_x(torch.cat(z, dim=1))


fresh, glued_test = standardise(glued(val), glued(test))


def retrain(rho=0.95, C=0.001):
    """Retrain the last layer at strength rho; the two panels."""
    take = [round(150 * share) for share in (rho, 1 - rho, 1 - rho, rho)]
    rows = [torch.where(fresh.group == g)[0][:n] for g, n in enumerate(take)]
    part = fresh.subset(torch.cat(rows))
    head = LogisticRegression(C=C, max_iter=2000)
    head.fit(part.x.numpy(), part.y.numpy())
    margin = torch.from_numpy(head.decision_function(glued_test.x.numpy()))
    metrics = group_metrics(torch.stack([-margin, margin], dim=1), glued_test)
    right = metrics["minority"]["value"]
    title = (
        f"Both cues at hand, ρ = {rho:.2f}: {right:.0f}% of the minority right"
    )
    return two_panels(rho, metrics).update_layout(title=title)


figure = retrain(rho=0.95)
assert figure.data[1].y[1] < 40, "minority accuracy"
figure

# %%
from caml_core.pictures.live import live

live(retrain, rho=(0.5, 1.0, 0.01), C=[0.0001, 0.001, 0.01, 1])

# %% [markdown]
# What does the network *see* at each strength? Forty training pictures, drawn at random. (This widget works in the
# rendered book, too: it only chooses among stored pictures.)

# %%
import ipywidgets as widgets
from caml_core.pictures.figures import contact_sheet

sheets = []
for rho in STRENGTHS:
    part, _, _ = load("birdscapes", rho=rho, n_train=1500, seed=0)
    source = data_uri(contact_sheet(part.x[:40], columns=10), "WEBP")
    image = (
        f'<img alt="40 training pictures" style="width: 100%" src="{source}">'
    )
    rare = int(part.is_minority[:40].sum())
    sheets.append(widgets.HTML(f"{image}<br>{rare} of 40 from the minority"))
choice = widgets.SelectionSlider(
    options=[(f"{rho:.2f}", i) for i, rho in enumerate(STRENGTHS)],
    description="ρ",
)
stack = widgets.Stack(sheets, selected_index=0)
widgets.jslink((choice, "index"), (stack, "selected_index"))
widgets.VBox([choice, stack])

# %% [markdown]
# ## Real pictures: Dominoes
#
# Is this an artefact of our drawings? *Dominoes* (Shah et al., 2020) puts a handwritten 0 or 1 (MNIST) over a car or a
# truck (CIFAR-10). The label is the vehicle; the digit goes with it in 90 of 100 training pictures. Digits are easy,
# vehicles are hard.

# %%
from caml_core.data.sources import available
from IPython.display import display

HAVE_IMAGES = available("mnist") and available("cifar10")
if HAVE_IMAGES:
    domino_train, domino_val, domino_test = load(
        "dominoes", rho=0.9, n_train=8000 if FULL else 4000, seed=0
    )
    display(Markdown(group_table(train=domino_train, test=domino_test)))
else:
    print("MNIST and CIFAR-10 are not here: connect once, or set CAML_DATA.")
    print("Below: a stored picture of them, and stored runs.")

# %% tags=["hide-input"]
from caml_core.pictures.figures import still

DOMINOES = {
    "title": "Top: the digit, a shortcut. Bottom: the vehicle, the label",
    "labels": [
        f"{vehicle},<br>{digit}"
        for vehicle in ("automobile", "truck")
        for digit in (0, 1)
    ],
}
if HAVE_IMAGES:
    rows = [torch.where(domino_test.group == g)[0][:8] for g in range(4)]
    pictured = domino_test.x[torch.cat(rows)]
    display(image_grid(pictured, columns=8, **DOMINOES))
else:
    display(still("dominoes", **DOMINOES))

# %%
if HAVE_IMAGES:
    domino_network = backbone("small_resnet", n_classes=2, seed=0)
    domino_run = train_erm(
        domino_network,
        domino_train,
        domino_val,
        Erm(epochs=20 if FULL else 3),
        seed=0,
        device=device,
    )
    found = group_metrics(
        predict(domino_network, domino_test, device), domino_test
    )
    display(
        accuracy_curves(
            domino_run.history,
            "Real pictures: the digit is learned first, the vehicle hardly yet",
        )
    )
    wga, average = (found[k]["value"] for k in ("worst_group", "average"))
    print(f"epoch kept: {domino_run.rule}")
    print(f"worst-group accuracy (WGA) {wga:.1f}%, average {average:.1f}%")
    assert found["majority"]["value"] > found["minority"]["value"] + 20

# %% [markdown]
# ### Longer runs, stored with their provenance
#
# Three seeds on 8,000 Dominoes, made by the command line, with worst-group accuracy (WGA, the lowest of the four).
# "Small ResNet" is trained from scratch; "EfficientNet-Lite0 head" is a linear layer on frozen features of a network
# trained on ImageNet, a network that has seen cars and trucks before.

# %% tags=["nbval-check-output"]
from caml_core.runs.records import describe, mean_and_spread, stored

names = {
    "small ResNet, from scratch": "dominoes_erm",
    "EfficientNet-Lite0 head": "dominoes_erm_lite0_head",
}
lines = [
    "| ERM on Dominoes, rho 0.9 | WGA | average | minority | majority |",
    "|:--|--:|--:|--:|--:|",
]
for name, file in names.items():
    cells = [
        "{:.1f} ± {:.1f}".format(*mean_and_spread(stored(file), key))
        for key in ("worst_group", "average", "minority", "majority")
    ]
    lines.append(f"| {name} | " + " | ".join(cells) + " |")
Markdown(
    "\n".join(lines)
    + "\n\nMean ± standard deviation over seeds, percent, on the balanced test set."
)

# %% tags=["nbval-check-output"]
Markdown(
    "\n".join(
        f"- **{name}**: {describe(stored(file))}; epoch chosen by {stored(file)[0]['selection']['rule']}"
        for name, file in names.items()
    )
)

# %%
for file in names.values():
    for record in stored(file):
        assert (
            record["metrics"]["majority"]["value"]
            > record["metrics"]["minority"]["value"] + 20
        )
assert len(stored("dominoes_erm")) >= 3

# %% [markdown]
# Even on features that were never trained on this task, a head trained on correlated data leans on the digit. Is the
# vehicle in those features at all, and could a head use it? The [next chapter](02_last_layer.ipynb) asks this of the
# birds.
#
# ## What we saw
#
# - A spurious attribute is defined by a change of distribution: right in training, useless later.
# - The majority is learned at once, the minority starts below chance and waits.
# - The background alone carries most answers; the hardest examples are the minority.
# - From $\rho = 0.5$ to 0.9 the minority was lost, though not evenly (one network for each strength); at $\rho = 1$
#   nothing in the data could prevent it.
# - On real pictures the minority lags, too, in stored runs with three seeds, though there it ends above chance.
#
# **Turn these knobs.** `n_train` (more pictures mean more objections), `epochs` in the full profile (does the minority
# line ever meet the majority line?), `patch` of the occlusion map.
#
# ## Two quick questions
#
# **1.** At $\rho = 1$ a larger network is trained longer, on more pictures of the same kind. What happens to the
# minority?
#
# <details><summary>It is learned at last</summary>
#
# No. No training picture contradicts the background, however many there are.
#
# </details>
#
# <details><summary>Nothing in the data can help it</summary>
#
# Yes. Both cues explain every label, and the easier one is learned.
#
# </details>
#
# <details><summary>It rises to 50%</summary>
#
# No. The background answers, and on the minority the background is wrong.
#
# </details>
#
# **2.** Early in training the minority accuracy is *below* a coin. What does that tell you?
#
# <details><summary>The network has learned nothing yet</summary>
#
# No. Then it would be near 50%.
#
# </details>
#
# <details><summary>The network follows the spurious attribute</summary>
#
# Yes. Below chance means that it knows something, and that it is wrong there.
#
# </details>
#
# <details><summary>The minority pictures are mislabelled</summary>
#
# No. The labels are right; the cue is wrong.
#
# </details>
#
# ## Exercises
#
# **Exercise 1: worse than a coin.** With `retrain(rho, C)`, find the strength from which on the retrained last layer
# does worse than a coin on the minority. What does a larger $C$ change?

# %% tags=["hide-cell", "solution"]
# @title Solution 1 { display-mode: "form" }
grid = [round(0.5 + 0.05 * i, 2) for i in range(11)]
figure = go.Figure()
for C in (0.001, 1):
    curve = [retrain(rho, C).data[1].y[1] for rho in grid]
    dash = "solid" if C == 1 else "dot"
    figure.add_scatter(x=grid, y=curve, name=f"C = {C}", line_dash=dash)
    worse = next(rho for rho, value in zip(grid, curve) if value < 50)
    print(f"C = {C}: worse than a coin from rho = {worse} on")
    assert curve[0] > 60 > 40 > curve[-1]
figure.update_traces(line_color=MINORITY).update_layout(
    title="Larger weights let the few objections count for more",
    xaxis_title="spurious strength ρ",
    yaxis={"title": "minority accuracy (%)", "range": [0, 104]},
)
add_chance(figure, 50)

# %% [markdown]
# **Exercise 2: halves swapped.** With `load("dominoes", top="cifar10", bottom="mnist", top_classes=(1, 9), classes=(0, 1))`
# the label is the digit, and the vehicle is correlated with it. Is the vehicle a shortcut?
#
# <details><summary>Solution 2</summary>
#
# Hardly. The correlation is the same, but the vehicle is harder to see than the digit, so the digit is learned first. A
# correlation is a shortcut only if it is *easier* than the label. Check it: the minority should be nearly as good as the
# majority.
#
# </details>
#
# **Exercise 3: balanced groups.** Train with `balance="group"` in `train_erm`. It needs the attribute of every training
# picture. What does it buy?
#
# <details><summary>Solution 3</summary>
#
# Every group is then drawn equally often, so the background no longer helps on average. The few minority pictures are
# repeated many times and may be learned by heart: watch the gap between circles and lines.
#
# </details>
#
# ## References
#
# - H. Shah et al., [The pitfalls of simplicity bias in neural networks](https://arxiv.org/abs/2006.07710), 2020: Dominoes.
# - R. Geirhos et al., [Shortcut learning in deep neural networks](https://arxiv.org/abs/2004.07780), 2020.
# - S. Sagawa et al., [Distributionally robust neural networks for group shifts](https://arxiv.org/abs/1911.08731), 2020.
# - M. Zeiler, R. Fergus, [Visualizing and understanding convolutional networks](https://arxiv.org/abs/1311.2901), 2014.
