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
# # The last layer: unlearned, or unused?
#
# **Question.** Has the network not learned the core feature, or does its last layer not use it?
#
# **You will be able to** read out of a frozen layer what it knows with a linear probe, say how much of a logit comes
# from the background and how much from the bird, repair a last layer by deep feature reweighting (DFR), and tell from a
# probe when there is nothing to repair.
#
# > **Before you start.** Chapter [01](01_shortcuts.ipynb) says what majority and minority are. On a laptop with two
# > cores this takes about one minute and 2 GB of memory, most of it to draw the pictures and to compute their features,
# > which are kept for the next time; no GPU is needed. Nothing is downloaded: the weights come with a Python
# > package. The full profile (`CAML_PROFILE=full`) trains one network for longer and repeats more draws.

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
# ## A network that has never seen our pictures
#
# A classifier is two things: a **backbone** that turns a picture into features $z$, and a **head**, the last layer,
# that turns them into logits $Wz + b$. When a classifier leans on a shortcut, which of the two is to blame?
#
# Our scenes are those of [chapter 00](00_quickstart.ipynb), a little larger: two kinds of *bird* (the label $y$) before
# two *backgrounds* (the spurious attribute $a$), which agree in a share $\rho$ of the training set.

# %%
from caml_core.data import load

pictures = load(
    "birdscapes",
    rho=0.95,
    size=64,
    n_train=1600,
    n_val=800,
    n_test=1000,
    seed=0,
)

# %% tags=["nbval-check-output"]
from caml_core.groups import group_table
from IPython.display import Markdown

Markdown(group_table(**dict(zip(("train", "validation", "test"), pictures))))

# %% [markdown]
# In the validation and the test set, bird and background have nothing to do with each other. Remember that: it will
# turn out to be worth more than it seems.
#
# The backbone is EfficientNet-Lite0, trained on ImageNet and **frozen**. It has never seen our pictures, so the
# correlation in our training set cannot have spoiled it. (At the end of the chapter we look at a network that *was*
# trained on them.) We compute the features once and give each of them mean 0 and standard deviation 1 on the training
# set.

# %%
from caml_core.device import pick_device
from caml_core.features import extract_features, standardise
from caml_core.networks import backbone

device = pick_device("auto")
network = backbone("efficientnet_lite0", n_classes=2)
features = [
    extract_features(network, split, device, batch_size=16)
    for split in pictures
]
train, val, test = standardise(*features)
print(f"{train.x.shape[1]} features of each picture")

# %% [markdown]
# ## The head that ERM finds
#
# With frozen features, empirical risk minimisation (ERM) is logistic regression. It has one setting, $C$: the smaller,
# the more the weights are held back. Every linear model of this chapter but one shares a single $C$, so that they
# differ in their data only. It is chosen with the validation set: one half to fit the bird, the other to judge.

# %%
from sklearn.linear_model import LogisticRegression

half, held = val.subset(range(400)), val.subset(range(400, 800))


def fit(split, target, C):
    """Logistic regression of a target, int64 (N,), on features."""
    model = LogisticRegression(C=C, max_iter=5000)
    return model.fit(split.x.numpy(), target.numpy())


scores = {}
for C in (1e-4, 1e-3, 1e-2, 1e-1, 1.0):
    model = fit(half, half.y, C)
    scores[C] = model.score(held.x.numpy(), held.y.numpy())
    print(f"C = {C:<6g} right on the held-out half: {scores[C]:.1%}")
C = min(C for C in scores if scores[C] > max(scores.values()) - 0.01)
print(f"chosen: {C:g}, the smallest within one point of the best")

# %%
import torch
from caml_core.metrics import group_metrics
from caml_core.pictures.figures import group_bars, use_book_style

use_book_style()
erm = fit(train, train.y, C)


def measure(model, split):
    """Group accuracies of a two-class scikit-learn model."""
    margin = torch.from_numpy(model.decision_function(split.x.numpy()))
    return group_metrics(torch.stack([-margin, margin], dim=1), split)


before = measure(erm, test)
group_bars(
    before,
    title="ERM: right where the background agrees, often wrong elsewhere",
    minority=[False, True, True, False],
    chance=50,
)

# %%
print(f"training set: {erm.score(train.x.numpy(), train.y.numpy()):.1%} right")
for name in ("average", "worst_group", "minority", "majority"):
    print(f"test, {name:11} {before[name]['value']:5.1f}%")
assert before["majority"]["value"] > 95
assert before["worst_group"]["value"] < 35

# %% [markdown]
# A backbone that has never seen our pictures, and a classifier that is wrong about most waterbirds on land. So a last
# layer alone can take a shortcut. But is there anything better that it *could* have done?
#
# ## Probes: what can be read out
#
# A **linear probe** is a linear classifier trained on frozen features to answer one question. If it succeeds on new
# pictures, the answer is in the features, in a form that a last layer can use. We ask two questions, *which bird* and
# *which background*, and learn each from the biased training set and from the validation set, the *balanced set*.

# %%
probes = {
    ("bird", "training set"): fit(train, train.y, C),
    ("bird", "balanced set"): fit(val, val.y, C),
    ("background", "training set"): fit(train, train.a, C),
    ("background", "balanced set"): fit(val, val.a, C),
}
read = {}
for (question, data), model in probes.items():
    answer = test.y if question == "bird" else test.a
    read[question, data] = 100 * model.score(test.x.numpy(), answer.numpy())

# %% tags=["hide-input"]
import plotly.graph_objects as go
from caml_core.pictures.figures import ATTRIBUTE, LABEL, add_chance

figure = go.Figure()
for question, colour in (("bird", LABEL), ("background", ATTRIBUTE)):
    found = {data: value for (q, data), value in read.items() if q == question}
    figure.add_bar(
        name=f"which {question}?",
        x=[data.replace(" set", "<br>set") for data in found],
        y=list(found.values()),
        text=[f"{value:.0f}%" for value in found.values()],
        textangle=0,
        marker_color=colour,
    )
figure.update_layout(
    title="The bird can be read, if the probe learns from balanced data",
    xaxis={"title": "what the probe was trained on", "tickangle": 0},
    yaxis={"title": "right on the test set (%)", "range": [0, 106]},
)
add_chance(figure, 50)

# %%
assert read["bird", "balanced set"] > 77
lost = read["bird", "balanced set"] - read["bird", "training set"]
assert lost > 8
for data in ("training set", "balanced set"):
    assert read["background", data] > 97
print(f"lost by learning the bird from biased data: {lost:.1f} points")

# %% [markdown]
# The balanced set is half as large, and still teaches the bird better. For the background it makes no difference. A
# correlation is symmetric, but the two attributes are not: the *easy* one is learned in spite of it.
#
# ### Is it the network's merit?
#
# A probe learns, too. Before we praise the features, give the same probe something poorer: the picture itself, as 16
# by 16 coloured pixels; and something absurd: labels in random order.


# %%
def pixels(split):
    """The pictures averaged to 16 x 16, as features."""
    small = torch.nn.functional.avg_pool2d(split.x.float() / 255, 4)
    return split.with_x(small.flatten(1))


shuffled = val.y[
    torch.randperm(800, generator=torch.Generator().manual_seed(0))
]
plain_train, plain_test = standardise(pixels(pictures[1]), pixels(pictures[2]))
controls = {
    "features": (fit(val, val.y, C), test, test.y),
    "pixels": (fit(plain_train, val.y, C), plain_test, test.y),
    "pixels, background": (fit(plain_train, val.a, C), plain_test, test.a),
    "features, shuffled labels": (fit(val, shuffled, C), test, test.y),
}
seen = {}
for name, (model, split, answer) in controls.items():
    seen[name] = 100 * model.score(split.x.numpy(), answer.numpy())
    print(f"{name:26} {seen[name]:5.1f}% right")
assert seen["pixels"] < 60 < 90 < seen["pixels, background"]
assert 40 < seen["features, shuffled labels"] < 60

# %% [markdown]
# Pixels give away the background at once, and of the bird nearly nothing. The kind of bird is hidden in the pixels; the
# network has worked it out and laid it where a straight cut finds it. So the answer, for this network, is: **it knows
# the bird, and the head makes too little use of what it knows.**
#
# ## What the head does instead
#
# With two classes only the difference of the logits counts, the **margin**
#
# $$m(z) = w \cdot z + b, \qquad w = W_1 - W_0,$$
#
# positive for "waterbird". Its mean over each group says how much the bird moves it and how much the background does:
#
# $$E_y = \tfrac12 \sum_a \big( \bar m_{1a} - \bar m_{0a} \big), \qquad
# E_a = \tfrac12 \sum_y \big( \bar m_{y1} - \bar m_{y0} \big).$$


# %%
def effects(margin, split):
    """(E_y, E_a) of a margin, (N,)."""
    mean = torch.stack([margin[split.group == g].mean() for g in range(4)])
    mean = mean.view(2, 2)  # label, attribute
    e_y, e_a = mean[1] - mean[0], mean[:, 1] - mean[:, 0]
    return e_y.mean().item(), e_a.mean().item()


def direction(model):
    """Weights of the margin, float32 (D,)."""
    return torch.from_numpy(model.coef_[0]).float()


balanced = probes["bird", "balanced set"]
heads = {"ERM head": erm, "head from balanced data": balanced}
moves = {}
for name, model in heads.items():
    moves[name] = effects(test.x @ direction(model), test)
    print("{}: bird {:.2f}, background {:.2f}".format(name, *moves[name]))

# %% tags=["hide-input"]
from caml_core.pictures.figures import CHANCE, MAJORITY, MINORITY
from plotly.subplots import make_subplots

figure = make_subplots(
    2, 1, shared_xaxes=True, subplot_titles=list(heads), vertical_spacing=0.1
)
for row, model in enumerate(heads.values(), start=1):
    margin = test.x @ direction(model) + float(model.intercept_[0])
    for g in (3, 2, 1, 0):  # the first group on top
        figure.add_violin(
            x=margin[test.group == g].numpy().round(1),
            y0=test.group_names[g].replace(", ", ",<br>on "),
            marker_color=MINORITY if g in (1, 2) else MAJORITY,
            **{"points": False, "meanline_visible": True, "spanmode": "hard"},
            **{"showlegend": False, "row": row, "col": 1},
        )
figure.add_vline(0, line={"dash": "dot", "color": CHANCE})
figure.update_xaxes(title="margin (logits; above 0: waterbird)", row=2)
alt = "Margins of the four groups under the ERM head and under the head from balanced data."
figure.update_layout(
    title="On the ERM head's scale, the background outweighs the bird",
    **{"height": 560, "meta": {"alt": alt}},
)

# %% [markdown]
# Vermilion groups are the minorities. Under the ERM head, landbirds on water lie farther right, on average, than
# waterbirds on land. Under the head from balanced data, the bird alone decides.

# %%
(bird, ground), (fair_bird, fair_ground) = moves.values()
assert ground > bird > 0.3 * ground
assert abs(fair_ground) < 0.25 * fair_bird
on_water, on_land = ((test.x @ direction(erm))[test.group == g] for g in (1, 2))
assert on_water.mean() > on_land.mean()

# %% [markdown]
# The ERM head *does* react to the bird. That is not enough: next to it the background is louder.
#
# ### A small weight with a long lever
#
# How can it be? Take two unit vectors in the space of features: $u$, along the probe for the bird, and $v$, along the
# probe for the background, made orthogonal to $u$. The background's effect is a product,
#
# $$E_a = w \cdot \Delta_a = (w \cdot u)(u \cdot \Delta_a) + (w \cdot v)(v \cdot \Delta_a) + \text{rest},$$
#
# with $\Delta_a$ the difference of mean features between the two backgrounds (with as many of each bird on both).

# %%
u = direction(balanced)
u = u / u.norm()
v = direction(probes["background", "balanced set"])
v = v - (v @ u) * u
v = v / v.norm()
w = direction(erm)
share = ((w @ v) / w.norm()) ** 2
print(f"share of the ERM head's squared weight along v: {share:.1%}")

# %%
lever = {
    name: effects(test.x @ axis, test) for name, axis in (("u", u), ("v", v))
}
lines = [
    "| | weight of the head | moved by the bird | moved by the background |"
]
lines += ["|:--|--:|--:|--:|"]
for name, axis in (("u", u), ("v", v)):
    cells = (w @ axis, *lever[name])
    lines.append(
        f"| along ${name}$ | " + " | ".join(f"{x:.2f}" for x in cells) + " |"
    )
along_v = (w @ v).item() * lever["v"][1] / ground
Markdown("\n".join(lines) + f"\n\nOf $E_a$, {along_v:.0%} comes along $v$.")

# %%
assert share < 0.2
assert w @ u > w @ v > 0
assert lever["v"][1] > 3 * lever["u"][0]
assert 0.5 < along_v < 1.3

# %% [markdown]
# The head puts *more* weight on the bird than on the background. But between the two backgrounds the features travel
# far along $v$, and between the two birds only a little along $u$. A weight is not an effect; an effect is a weight
# times the distance that it acts on. (It may also be one reason why the background is learned first: where the lever
# is long, a small weight suffices.)
#
# ## Turning the line
#
# The two directions span a plane, and there is our test set in it. A head is a line in this plane: where its margin,
# averaged over all that the plane does not show, is zero. How much does the plane not show? The margin's $R^2$ says.

# %%
plane = torch.stack([test.x @ u, test.x @ v], dim=1)  # (N, 2)
corner = torch.cat([plane, torch.ones(len(test), 1)], dim=1)


def in_plane(weight, bias):
    """The margin as p s + q t + r, by least squares, and its R^2."""
    margin = test.x @ weight + bias
    found = torch.linalg.lstsq(corner, margin[:, None]).solution[:, 0]
    left = margin - corner @ found
    return found, 1 - (left.var() / margin.var()).item()


for name, model in heads.items():
    _, r2 = in_plane(direction(model), float(model.intercept_[0]))
    print(f"{name}: the plane explains {r2:.0%} of its margin")
    assert r2 > 0.75

# %% [markdown]
# Dark points are landbirds, light ones waterbirds, crosses the minority. Now blend the two heads, $w_\lambda = (1 -
# \lambda)\, w_\text{ERM} + \lambda\, w_\text{balanced}$ (each scaled to the same spread of margins first), and move
# $\lambda$. Accuracies are those of the whole head with its 1,280 weights, not of the line.


# %%
def scaled(model):
    """Weights and bias, so that the margin has standard deviation 1."""
    size = (val.x @ direction(model)).std()
    return direction(model) / size, float(model.intercept_[0]) / size


def blend(share):
    """Weight and bias between the two heads."""
    (w0, b0), (w1, b1) = scaled(erm), scaled(balanced)
    return (1 - share) * w0 + share * w1, (1 - share) * b0 + share * b1


def group_accuracy(weight, bias):
    """Accuracy of a margin on the test set, percent, (4,)."""
    right = ((test.x @ weight + bias > 0) == test.y.bool()).double()
    return torch.stack([100 * right[test.group == g].mean() for g in range(4)])


# %% tags=["hide-input"]
reach_v = plane[:, 1].abs().max().item()
reach_u = plane[:, 0].abs().max().item()


def line(share):
    """What changes with the slider: the line, and the accuracies."""
    (p, q, r), _ = in_plane(*blend(share))
    accuracy = group_accuracy(*blend(share))
    texts = [
        f"{name.replace(', ', '<br>on ')}: {value:.0f}%"
        for name, value in zip(test.group_names, accuracy)
    ]
    x = torch.tensor([-reach_v, reach_v])
    y = -(r + q * x) / p
    return [
        go.Scatter(x=x.tolist(), y=[round(h, 2) for h in y.tolist()]),
        go.Scatter(
            x=[-0.97 * reach_v, 0.97 * reach_v] * 2,
            y=[-0.9 * reach_u] * 2 + [0.9 * reach_u] * 2,
            text=texts,
        ),
    ]


# %%
shown = torch.cat([torch.where(test.group == g)[0][:100] for g in range(4)])
looks = [  # dark: landbird, light: waterbird; cross: minority
    (LABEL, "circle"),
    (LABEL, "x"),
    ("#56B4E9", "x"),
    ("#56B4E9", "circle"),
]
figure = go.Figure()
for g, (colour, symbol) in enumerate(looks):
    rows = shown[test.group[shown] == g]
    figure.add_scatter(
        x=plane[rows, 1].numpy().round(1),
        y=plane[rows, 0].numpy().round(1),
        mode="markers",
        name=test.group_names[g].replace(", ", " on "),
        marker={"color": colour, "symbol": symbol, "size": 6, "opacity": 0.6},
    )
start = line(0.0)
start[0].update(
    mode="lines", line={"color": "#7F7F7F", "width": 3}, name="head"
)
start[1].update(mode="text", showlegend=False, hoverinfo="skip")
start[1].update(textposition=["middle right", "middle left"] * 2)
figure = figure.add_traces(start)

# %% tags=["opening"]
steps = []
SHARES = [round(0.1 * i, 1) for i in range(11)]
now = {"mode": "immediate", "frame": {"duration": 0, "redraw": True}}
figure.frames = [
    go.Frame(name=f"{share}", data=line(share), traces=[4, 5])
    for share in SHARES
]
for share in SHARES:
    worst = group_accuracy(*blend(share)).min()
    step = {"method": "animate", "args": [[f"{share}"], now]}
    steps.append({**step, "label": f"{share}, worst group {worst:.0f}%"})
slider = {"steps": steps, "currentvalue": {"prefix": "λ = "}, "pad": {"t": 60}}
slider |= {"ticklen": 0, "font": {"color": "rgba(0,0,0,0)"}}
slider["currentvalue"]["font"] = {"color": "#7F7F7F"}
figure.update_xaxes(
    title="v: background (land ← → water)", range=[-reach_v, reach_v]
)
figure.update_yaxes(title="u: bird (land ← → water)", range=[-reach_u, reach_u])
alt = "Test pictures by background and by bird, and the line at which the head changes its answer."
figure.update_layout(
    title="Turn the line, and the same features serve all groups",
    **{"sliders": [slider], "height": 640, "meta": {"alt": alt}},
)

# %%
worst = [group_accuracy(*blend(share)).min().item() for share in SHARES]
assert worst[-1] > worst[0] + 25
assert worst[-1] > 65

# %% [markdown]
# Now turn a line by hand. This one *is* the head: only the two coordinates of the plane count. It starts as the ERM
# head looks in the plane.

# %%
from caml_core.pictures.explore import explore

(p, q, r), _ = in_plane(direction(erm), float(erm.intercept_[0]))
ends = {
    end: [x, round(float(-(r + q * x) / p), 2)]
    for end, x in (("a", -4.0), ("b", 4.0))
}
rows = torch.cat([plane[:, [1, 0]], test.group[:, None]], dim=1).tolist()
points = [[round(s, 2), round(t, 2), int(g)] for s, t, g in rows]
explore("turn_the_head", "Turn the head by hand", points=points, **ends)


# %%
def average_and_worst(margin):
    """Average reweighted as in training, and worst group, percent."""
    right = ((margin > 0) == test.y.bool()).double()
    each = [100 * right[test.group == g].mean().item() for g in range(4)]
    majority, minority = each[0] + each[3], each[1] + each[2]
    return (0.95 * majority + 0.05 * minority) / 2, min(each)


erm_line = average_and_worst(p * plane[:, 0] + q * plane[:, 1] + r)
bird_line = average_and_worst(plane[:, 0] + 0.5)
for name, found in (("ERM", erm_line), ("bird alone", bird_line)):
    average, lowest = found
    print(f"{name}: reweighted {average:.0f}%, worst group {lowest:.0f}%")
assert bird_line[1] - erm_line[1] > 4 * (erm_line[0] - bird_line[0])

# %% [markdown]
# ## DFR: retrain the last layer
#
# That is a method, and it has a name: *deep feature reweighting* (Kirichenko et al., 2023). Keep the backbone; throw
# the head away; train a new one where the groups are balanced. In the paper's recipe the new head is sparse (L1
# penalty), its strength is chosen by the worst-group accuracy (WGA) of a held-out half, and the fit is averaged over
# several balanced subsets. Our validation set holds equally many of each group, so it *is* its only balanced subset; but
# a half of it is not exactly balanced, and we cut it to size.


# %%
def balance(split):
    """As many of each group as of the rarest."""
    n = int(split.group_counts.min())
    rows = [torch.where(split.group == g)[0][:n] for g in range(4)]
    return split.subset(torch.cat(rows))


# %% [markdown]
# The name of scikit-learn's penalty has changed over the years; we ask which one this version knows.

# %%
old = LogisticRegression().get_params().get("penalty") == "l2"
L1 = {"penalty": "l1"} if old else {"l1_ratio": 1.0}


def sparse(split, C):
    """L1 logistic regression of the bird."""
    model = LogisticRegression(solver="liblinear", C=C, random_state=0, **L1)
    return model.fit(split.x.numpy(), split.y.numpy())


worst_held = {}
for strength in (1.0, 0.7, 0.3, 0.1, 0.07, 0.03, 0.01):
    metrics = measure(sparse(balance(half), strength), held)
    worst_held[strength] = metrics["worst_group"]["value"]
    print(f"C = {strength:<4g} held-out WGA {worst_held[strength]:.1f}%")

# %%
dfr = sparse(balance(val), max(worst_held, key=worst_held.get))
lines = ["| head | WGA (95%) | average | minority | majority |"]
lines += ["|:--|--:|--:|--:|--:|"]
tested = {"ERM": before, "balanced data, same C": measure(balanced, test)}
tested["DFR"] = measure(dfr, test)
for name, found in tested.items():
    w_ = found["worst_group"]
    cells = [f"{w_['value']:.1f} ({w_['low']:.1f} to {w_['high']:.1f})"]
    cells += [
        f"{found[key]['value']:.1f}"
        for key in ("average", "minority", "majority")
    ]
    lines.append(f"| {name} | " + " | ".join(cells) + " |")
used = (dfr.coef_ != 0).sum()
Markdown(
    "\n".join(lines)
    + f"\n\nPercent, test set. DFR uses {used} of 1,280 features."
)

# %%
gain = tested["DFR"]["worst_group"]["value"] - before["worst_group"]["value"]
assert gain > 30
cost = before["majority"]["value"] - tested["DFR"]["majority"]["value"]
assert 8 < cost < 22, "some fifteen points"
plain = tested["balanced data, same C"]["average"]["value"]
assert plain > tested["DFR"]["average"]["value"] - 1
assert tested["DFR"]["average"]["value"] > before["average"]["value"] + 5

# %% [markdown]
# Not a single weight of the backbone has moved. The price is paid on the majority: there the background *was* a help,
# and the new head does without it. Nor is DFR's recipe what helps: on this balanced set the plain head with the
# chapter's $C$ does at least as well. It is the data.
#
# ## How few labels are enough?
#
# Group labels cost money. So draw few: the same number from each group of the validation set, several times over. And
# for comparison, as many from the training set, drawn as they come.

# %%
import os

import numpy as np

FULL = os.environ.get("CAML_PROFILE", "quick") == "full"
SIZES = (8, 16, 32, 64, 128, 256, 512)
SEEDS = range(20 if FULL else 5)


def few(split, n, seed, even):
    """n rows: n/4 of each group, or as they come (both birds present)."""
    order = torch.randperm(
        len(split), generator=torch.Generator().manual_seed(seed)
    )
    key = split.group if even else split.y
    k = int(key.max()) + 1
    rows = [order[key[order] == g][: n // k] for g in range(k)]
    return split.subset(torch.cat(rows))


# %%
curves = {"balanced groups": [], "as in training": []}
for name, split in (("balanced groups", val), ("as in training", train)):
    for seed in SEEDS:
        row = []
        for n in SIZES:
            part = few(split, n, seed, even=split is val)
            found = measure(fit(part, part.y, C), test)
            row.append(found["worst_group"]["value"])
        curves[name].append(row)

# %% tags=["hide-input"]
from caml_core.pictures.figures import curves_with_band

figure = curves_with_band(
    SIZES,
    {name: np.array(rows) for name, rows in curves.items()},
    title="On average, eight balanced examples beat all the training pictures",
    x_title="examples that the head is trained on",
    y_title="WGA on the test set (%)",
    colours={"balanced groups": "#009E73", "as in training": CHANCE},
)
style = {"dash": "dash", "color": CHANCE}
figure.add_hline(before["worst_group"]["value"], line=style)
figure.add_annotation(
    text=f"ERM, all {len(train):,}",
    y=before["worst_group"]["value"],
    **{"x": 1, "xref": "paper", "xanchor": "right", "yshift": 10},
    showarrow=False,
)
figure.update_xaxes(type="log", tickvals=SIZES).update_yaxes(range=[-2, 90])

# %%
mean = {name: np.mean(rows, axis=0) for name, rows in curves.items()}
for i, n in enumerate(SIZES):
    even, biased = mean["balanced groups"][i], mean["as in training"][i]
    print(f"{n:4} examples: balanced {even:.1f}%, as in training {biased:.1f}%")
at = dict(zip(SIZES, mean["balanced groups"]))
assert at[8] > before["worst_group"]["value"] + 3
assert at[64] > before["worst_group"]["value"] + 10
assert at[512] > at[32] > at[8]
assert mean["as in training"].max() < at[64]

# %% [markdown]
# The band is one standard deviation over draws. More of the same biased data helps slowly; *eight* examples in which
# bird and background disagree as often as they agree are, in the mean over draws, already worth more than all the
# biased ones together. What the head lacks is not data but a *reason* to prefer the bird.
#
# ## When the answer is the other one
#
# All this presumed that the features contain the bird. Here is a network that was trained on the biased pictures and on
# nothing else. The same probes, the same balanced set:

# %%
from caml_core.training import Erm, train_erm

scratch = backbone("small_resnet", n_classes=2, seed=0)
run = train_erm(
    scratch,
    *pictures[:2],
    Erm(epochs=30 if FULL else 3, batch_size=32, lr=2e-3, select="last"),
    device=device,
    progress=False,
)

# %%
own = [
    extract_features(scratch, split, device, batch_size=64, cache=False)
    for split in pictures
]
own_train, own_val, own_test = standardise(*own)
inside = {
    "bird": (own_val.y, own_test.y),
    "background": (own_val.a, own_test.a),
}
for name, (asked, answer) in inside.items():
    model = fit(own_val, asked, C)
    inside[name] = 100 * model.score(own_test.x.numpy(), answer.numpy())
    print(
        f"trained on biased pictures: which {name}? {inside[name]:.1f}% right"
    )
retrained = measure(fit(own_val, own_val.y, C), own_test)
print(f"worst group after retraining: {retrained['worst_group']['value']:.1f}%")

# %%
assert inside["background"] > 95
if not FULL:
    assert inside["bird"] < 68
    assert read["bird", "balanced set"] > inside["bird"] + 12

# %% [markdown]
# In this network our linear probe of the last layer hardly finds the bird. Presumably training had little left to look
# for once the background explained the labels, and no last layer can use what is not there. Such a network needs other
# pictures or more of them, not another head: see chapters [04](04_active_queries.ipynb) to [09](09_caml_tables.ipynb).
# Whether a backbone trained on biased data keeps the core feature depends on how long and on what it was trained. On
# the benchmarks of DFR's paper it does, in part because those networks start from ImageNet. **So probe before you
# repair.**
#
# ## The catch
#
# Count what DFR had to know: for every validation picture not only the bird but also the *background*. Somebody must
# have named the shortcut first. In our validation set the two are independent, so training on all of it does as well;
# but then somebody must have *made* it so, which takes the same knowledge. In the wild, a validation set is often as
# biased as the training set, and its minorities are as small.
#
# Could the model itself point at what it lacks? In chapter 01 the examples with the highest loss were the minority.
# [HSFM](10_hsfm.ipynb) (hard-set-guided feature-space meta-learning) takes them as its guide: it changes a few training
# examples until a head trained on them does well on the hard ones.
#
# ## What we saw
#
# - A head on features that were never trained on our pictures takes the shortcut: a last layer suffices for that.
# - A probe trained on balanced data reads the bird from the same features. A linear probe of the raw
#   pixels, shrunk to 16 × 16, does not.
# - The ERM head has more weight along the bird than along the background; but the background moves the features much
#   farther, and effect is weight times distance.
# - Retraining the last layer on balanced data (DFR) repairs most of the worst group. The price is some fifteen points
#   on the majority. Eight balanced examples beat, in the mean over draws, ERM on the whole biased training set; that
#   set balanced by its group labels does about as well as 64 (exercise 2).
# - In one small network, trained briefly on the biased pictures alone, the same probe does not recover the bird. DFR
#   would be of no use there.
#
# **Turn these knobs.** `rho` (does the ERM head's background effect grow?), `C` (does a stronger penalty make the
# shortcut better or worse?), the layer that is probed, and `epochs` of the network from scratch.
#
# ## Two quick questions
#
# **1.** The ERM head has more weight along the bird than along the background, and still answers by the background.
# How?
#
# <details><summary>Its bias is wrong</summary>
#
# No. A bias moves all answers alike.
#
# </details>
#
# <details><summary>The background moves the features farther</summary>
#
# Yes. What counts is weight times distance.
#
# </details>
#
# <details><summary>The bird is not in the features</summary>
#
# No. A probe trained on balanced data reads it.
#
# </details>
#
# **2.** When is DFR of no use?
#
# <details><summary>When the backbone is large</summary>
#
# No. The ImageNet network here is the larger one, and there DFR repairs most.
#
# </details>
#
# <details><summary>When no probe can read the core feature</summary>
#
# Yes. A last layer can only choose among the features that there are.
#
# </details>
#
# <details><summary>When the training set is biased</summary>
#
# No. That is what it is for; it needs a *balanced* set for the head alone.
#
# </details>
#
# ## Exercises
#
# **Exercise 1: cut it out.** Subtract from every feature vector its part along $v$, $z \leftarrow z - (v \cdot z)\, v$,
# and train the ERM head again. Does the shortcut go away?
#
# <details><summary>Solution 1</summary>
#
# The worst group gains, but a probe still reads the background from what is left, and so does the head: $v$ is only one
# direction for it among many. Repeating the step with the next probe's direction is called iterative null-space
# projection.
#
# </details>

# %% tags=["hide-cell", "solution"]
# @title Solution 1 { display-mode: "form" }
cut_train, cut_val, cut_test = (
    split.with_x(split.x - (split.x @ v)[:, None] * v)
    for split in (train, val, test)
)
cut = measure(fit(cut_train, train.y, C), cut_test)["worst_group"]["value"]
probe = fit(cut_val, val.a, C).score(cut_test.x.numpy(), test.a.numpy())
print(f"WGA {before['worst_group']['value']:.1f}% before, {cut:.1f}% after")
print(f"background still read by a probe: {probe:.1%}")
assert cut > before["worst_group"]["value"]
assert probe > 0.8

# %% [markdown]
# **Exercise 2: balance by repetition.** The head from balanced data was trained on half as many examples as the ERM
# head. Give ERM a training set of the same size *and* balance, by repeating its few minority pictures. What does it
# lack compared with a balanced set?

# %% tags=["hide-cell", "solution"]
# @title Solution 2 { display-mode: "form" }
chances = 1 / train.group_counts[train.group]
generator = torch.Generator().manual_seed(0)
rows = chances.multinomial(len(val), replacement=True, generator=generator)
part = train.subset(rows)
rare = rows[part.is_minority].unique()
repeated = measure(fit(part, part.y, C), test)["worst_group"]["value"]
fair = tested["balanced data, same C"]["worst_group"]["value"]
print(f"WGA {repeated:.1f}%, from {len(rare)} different minority pictures")
print(f"WGA {fair:.1f}%, from {int(val.is_minority.sum())} of them")
assert before["worst_group"]["value"] < repeated < fair

# %% [markdown]
# **Exercise 3: random weights.** Use `backbone("efficientnet_lite0", 2, pretrained=False)`. What do the two probes read
# from it?
#
# <details><summary>Solution 3</summary>
#
# Even random convolutions pass on colours, so expect the background to be read nearly as well, and the bird hardly
# better than by a coin. Compare with the pixels above.
#
# </details>
#
# ## References
#
# - P. Kirichenko, P. Izmailov, A. Wilson, [Last layer re-training is sufficient for robustness to spurious
#   correlations](https://arxiv.org/abs/2204.02937), 2023: DFR.
# - G. Alain, Y. Bengio, [Understanding intermediate layers using linear classifier
#   probes](https://arxiv.org/abs/1610.01644), 2016.
# - J. Hewitt, P. Liang, [Designing and interpreting probes with control tasks](https://arxiv.org/abs/1909.03368), 2019:
#   why a probe needs controls.
# - S. Ravfogel et al., [Null it out: guarding protected attributes by iterative nullspace
#   projection](https://arxiv.org/abs/2004.07667), 2020.
