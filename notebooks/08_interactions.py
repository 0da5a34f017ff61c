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
# # Interactions: what the accumulated bias adds
#
# **Question.** What does the cumulative bias add that independent tasks lack?
#
# **You will be able to** derive the interaction terms of CAML (cumulative active meta-learning) in four lines, measure
# them in a network, tell when they matter and when they do not, and read the bias as a prior over the parameters.
#
# > **Before you start.** Chapter [07](07_caml.ipynb) builds the update of CAML; it is repeated below. You need
# > gradients and a first-order Taylor expansion. On a laptop with two cores this takes about one minute and 1 GB of
# > memory. A GPU is not used: we measure in double precision, on the processor. Nothing is downloaded: the program
# > draws its own digits.

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
# ## Four lines of algebra
#
# $D_0$ are the first labels, $Q_t$ the batch that round $t$ queried, $D_t = D_{t-1} \cup Q_t$. $L_B(\theta)$ is the
# mean cross-entropy on a batch $B$ and $g(\theta, B)$ its gradient. Round $t$ adapts the parameters to what was known
# before it, then asks how well they do on $Q_t$. **CAML** adapts with the help of a *bias*, the mean of the gradients
# that earlier rounds left behind:
#
# $$\theta'_t = \theta - \alpha \big( g(\theta, D_{t-1}) + \bar c_{t-1} \big), \qquad
# \bar c_{t-1} = \frac1{t-1} \sum_{s<t} g(\theta'_s, Q_s).$$
#
# 1. **Expand** the loss on $Q_t$ around $\theta$:
#    $L_{Q_t}(\theta - \alpha u) = L_{Q_t}(\theta) - \alpha\, g(\theta, Q_t) \cdot u + O(\alpha^2)$.
# 2. **Insert** the step $u = g(\theta, D_{t-1}) + \bar c_{t-1}$. It has two parts, so there are two products.
# 3. **Replace** $g(\theta'_s, Q_s)$ by $g(\theta, Q_s)$. They differ by $O(\alpha)$, and in the product by
#    $O(\alpha^2)$.
# 4. **Collect:**
#
# $$L_{Q_t}(\theta'_t) = L_{Q_t}(\theta)
# - \underbrace{\alpha\, g(\theta, Q_t) \cdot g(\theta, D_{t-1})}_{\text{adaptation}}
# - \underbrace{\frac{\alpha}{t-1} \sum_{s<t} g(\theta, Q_t) \cdot g(\theta, Q_s)}_{\text{interaction}} + O(\alpha^2).$$
#
# Up-weighting the queries keeps the first term only. Independent tasks (MLDG, meta-learning for domain generalisation)
# keep two. CAML has all three, and the last one couples $Q_t$ with *every* earlier $Q_s$: it makes the loss small where
# the rounds ask for the same change of $\theta$. The rest of the chapter checks this, and asks how large the third
# term is.
#
# ## A short run of active learning
#
# Ten digits, each on a speckled background whose colour goes with the digit in 95 of 100 training pictures.

# %%
import torch
from caml_core.data import load

device = torch.device("cpu")
sizes = {"n_train": 3000, "n_val": 500, "n_test": 500}
look = {"classes": 10, "digits": "drawn", "magnitude": 0.1, "rho": 0.95}
pool, val, _ = load("spuco_mnist", **look, **sizes, seed=0)

# %% [markdown]
# A Taylor expansion wants a smooth loss, and ReLU has a corner. We take the book's small network, thinner, and
# replace its ReLUs by SiLU, $x / (1 + e^{-x})$. The ReLU comes back where training steps are compared.

# %%
from caml_core.device import seeded
from caml_core.networks import Backbone, small_cnn_body
from torch import nn


def make_network(smooth=True):
    """The small network at half its width; the same weights each time."""
    with seeded(0):
        body = small_cnn_body((16, 32, 64))
        for i, layer in enumerate(body):
            if smooth and isinstance(layer, nn.ReLU):
                body[i] = nn.SiLU()
        return Backbone(body, 64, n_classes=10)


# %% [markdown]
# The loop of chapter [04](04_active_queries.ipynb): train from the initial weights on the labels so far, then ask for
# the pictures in which the network has least confidence, those with the highest $1 - \max_k p_k$.

# %%
from caml_core.active import run_active
from caml_core.device import stream_seed
from caml_core.round import Plan, train_round

R = 5
plan = Plan(
    method="append", start=600, query=50, rounds=R, acquisition="least_confidence",
    epochs=12, lr=5e-4, select="last",
)  # fmt: skip
networks = []
records = run_active(
    make_network, pool, val, val, plan, device=device, progress=False,
    on_round=lambda t, network, record: networks.append(network),
)  # fmt: skip
trained = networks[-1]
first = torch.Generator().manual_seed(stream_seed(0, 0))
sets = [torch.randperm(len(pool), generator=first)[:600]]  # D_0, Q_1, ...
sets += [torch.tensor(record["queried"]) for record in records[1:]]

# %% [markdown]
# What did the rounds buy? Look at the classes.

# %%
for t, rows in enumerate(sets):
    rare = 100 * pool.is_minority[rows].double().mean()
    counts = torch.bincount(pool.y[rows], minlength=10).tolist()
    print(
        f"{'Q' if t else 'D'}{t}: {rare:2.0f}% minority; digits 0 to 9:",
        *counts,
    )
most = [torch.bincount(pool.y[rows]).max() / len(rows) for rows in sets]
assert most[0] < 0.2
assert sum(most[1:]) / R > 0.25
assert max(pool.is_minority[rows].double().mean() for rows in sets[1:]) < 0.15

# %% [markdown]
# The queries are lopsided: each is mostly about the few digits that this network happened to confuse, and holds about
# as little minority as the pool. What follows is said of such queries. (In chapters [04](04_active_queries.ipynb) and
# [07](07_caml.ipynb) networks are trained longer, and their queries find more.)
#
# CAML draws every batch so that the classes in it are equally likely. We do the same, with more rows than in training
# so that chance matters less. `loss_at` makes the loss a function of the list of parameters; for products of gradients
# we lay them end to end in one flat vector $\theta$.

# %%
draws = torch.Generator().manual_seed(1)


def batch(rows, n=100):
    """Class-balanced draw with replacement: float64 images, labels."""
    odds = 1 / torch.bincount(pool.y[rows])[pool.y[rows]].double()
    drawn = rows[torch.multinomial(odds, n, True, generator=draws)]
    return pool.x[drawn].double() / 255, pool.y[drawn]


def make_tasks(n=100):
    """For t = 1..R, a batch of D_{t-1} and one of Q_t."""
    known = [torch.cat(sets[:t]) for t in range(1, R + 1)]
    return [(batch(d, n), batch(q, n)) for d, q in zip(known, sets[1:])]


tasks = make_tasks()

# %%
from caml_core import meta
from torch.nn.utils import parameters_to_vector


def at(network):
    """The loss as a function of one flat vector, and the vector."""
    parameters = list(network.double().train().parameters())
    sizes = [p.numel() for p in parameters]
    of_list = meta.loss_at(network, device)

    def loss(theta, data):
        pieces = theta.split(sizes)
        return of_list([t.view_as(p) for t, p in zip(pieces, parameters)], data)

    return loss, parameters_to_vector(parameters).detach()


# %%
def value_and_gradient(loss, theta, data):
    """L_B(theta) and g(theta, B)."""
    theta = theta.detach().requires_grad_()
    value = loss(theta, data)
    return value.detach(), torch.autograd.grad(value, theta)[0]


places = {"initial weights": at(make_network()), "trained": at(trained)}
print(f"{len(places['trained'][1]):,} parameters")

# %% [markdown]
# ## Is the expansion right?
#
# First the left-hand side, $L_{Q_t}(\theta'_t)$ for every round, by the recursion itself.


# %%
def cumulative(loss, theta, tasks, alpha):
    """L(theta'_t, Q_t) of each round, float64 (R,), and c after the last."""
    values, c = [], torch.zeros_like(theta)
    for t, (known, asked) in enumerate(tasks):  # t rounds lie behind
        u = value_and_gradient(loss, theta, known)[1]
        if t > 0:
            u = u + c / t
        value, g = value_and_gradient(loss, theta - alpha * u, asked)
        c = c + g
        values.append(value)
    return torch.stack(values), c


# %% [markdown]
# The package has the same recursion; its meta-gradient is $c / R$. To it our flat vector is a list of one parameter.


# %%
def meta_gradient(loss, theta, tasks, **settings):
    """The package's, with our theta as a list of one parameter."""
    one = meta.meta_gradient(
        lambda theta, batch: loss(*theta, batch), [theta], tasks, **settings
    )
    return one[0]


place = places["initial weights"]
_, c = cumulative(*place, tasks, alpha=0.1)
torch.testing.assert_close(c / R, meta_gradient(*place, tasks, alpha=0.1))

# %% [markdown]
# Now the three terms of the right-hand side. All that is needed are gradients at $\theta$: the rows of $G$ are
# $g(\theta, Q_1), \dots, g(\theta, Q_R)$.


# %%
def terms(loss, theta, tasks):
    """L_Qt, its products with g(D_{t-1}) and with the bias, each (R,); G."""
    found = [value_and_gradient(loss, theta, asked) for _, asked in tasks]
    value, G = (torch.stack(column) for column in zip(*found))
    D = [value_and_gradient(loss, theta, known)[1] for known, _ in tasks]
    adaptation = (G * torch.stack(D)).sum(dim=1)
    before = [G[:t].mean(dim=0) if t else 0 * G[0] for t in range(R)]
    interaction = (G * torch.stack(before)).sum(dim=1)
    return value, adaptation, interaction, G


expansion = {name: terms(*place, tasks) for name, place in places.items()}

# %% [markdown]
# If the expansion is complete to first order, its error shrinks a hundredfold when $\alpha$ shrinks tenfold: slope 2
# on logarithmic axes. If a first-order term is missing, the error shrinks only tenfold: slope 1.

# %%
import numpy as np

ALPHAS = np.logspace(-5, 0, 11).tolist()
UP, MLDG, CAML = "loss only", "and adaptation", "and interaction"
errors = {name: {UP: [], MLDG: [], CAML: []} for name in places}
for name, (loss, theta) in places.items():
    value, adaptation, interaction, _ = expansion[name]
    for alpha in ALPHAS:
        true, _ = cumulative(loss, theta, tasks, alpha)
        guess = {UP: value, MLDG: value - alpha * adaptation}
        guess[CAML] = guess[MLDG] - alpha * interaction
        for kind, guessed in guess.items():  # round 1 has no interaction
            error = (true - guessed)[1:].abs().mean().item()
            errors[name][kind].append(error)


# %%
def slope(x, y):
    """Of the straight line through the points on logarithmic axes."""
    return np.polyfit(np.log10(x), np.log10(y), 1)[0]


SMALL = [alpha for alpha in ALPHAS if alpha < 2e-3]
for name, kinds in errors.items():
    for kind, error in kinds.items():
        found = slope(SMALL, error[: len(SMALL)])
        print(f"{name:16} {kind:16} slope {found:.2f}")
        assert abs(found - (2 if kind == CAML else 1)) < 0.15
large = errors["trained"]  # at alpha = 0.1 the expansion is of no use
assert large[CAML][8] > 0.3 * large[UP][8]

# %% tags=["opening", "hide-input"]
from caml_core.pictures.figures import METHOD_COLOURS, use_book_style
from plotly.subplots import make_subplots

use_book_style()
powers = {"type": "log", "dtick": 2, "exponentformat": "power"}
figure = make_subplots(1, 2, shared_yaxes=True, subplot_titles=list(places))
methods = {UP: "upweight", MLDG: "mldg", CAML: "caml"}
for column, name in enumerate(places):
    for kind, method in methods.items():
        figure.add_scatter(
            x=ALPHAS,
            y=errors[name][kind],
            name=kind,
            line={"color": METHOD_COLOURS[method]},
            showlegend=column == 0,
            row=1,
            col=column + 1,
        )
figure.update_xaxes(title="α", tickangle=0, tickfont_size=12, **powers)
figure.update_yaxes(**powers)
figure.update_layout(
    title="With the interaction terms the expansion is complete",
    meta={
        "alt": "Error against the inner step on logarithmic axes, at the initial "
        "weights and after training: with the interaction the line is steeper."
    },
    yaxis_title="error of the expansion",
    margin={"t": 100, "r": 10},
    legend_y=1.12,
)

# %% [markdown]
# The dark blue line is twice as steep as the others, at the initial weights and after training. So the interaction
# terms are what CAML has and independent tasks lack, and there is no other difference of first order. Where the lines
# meet at the right, $\alpha$ is too large for any expansion; after training, when the loss is more curved, this
# happens earlier. (CAML as published is *first order* in another sense, too: its steps keep only one half of the
# gradient of these products. Chapter [06](06_meta_gradients.ipynb) shows the halves.)
#
# ## Do rounds agree?
#
# The sign of an interaction term says whether two rounds agree. A product also grows with the *length* of the
# gradients, so we look at cosines. One might expect agreement: are not all queries about the same mistake? Compare with
# two controls of the same size: batches drawn at random from the pool, and random batches with *the same labels* as the
# queries.

# %%
import torch.nn.functional as F


def at_random(rows):
    """As many rows, drawn from the whole pool."""
    return torch.randperm(len(pool), generator=draws)[: len(rows)]


def same_labels(rows):
    """For each row another one of its class, drawn at random."""
    shuffled = torch.randperm(len(pool), generator=draws)
    counts = torch.bincount(pool.y[rows], minlength=10).tolist()
    of = [shuffled[pool.y[shuffled] == k][:n] for k, n in enumerate(counts)]
    return torch.cat(of)


# %%
kinds = {"queries": lambda rows: rows}
kinds |= {"same labels": same_labels, "random": at_random}
off = ~torch.eye(R, dtype=torch.bool)
agreement = {}
for name, place in places.items():
    for kind, pick in kinds.items():
        data = [batch(pick(rows)) for rows in sets[1:]]
        G = torch.stack([value_and_gradient(*place, b)[1] for b in data])
        unit = F.normalize(G, dim=1)  # its products are cosines
        agreement[name, kind] = (unit @ unit.T)[off].mean().item()

# %% tags=["hide-input"]
import plotly.graph_objects as go

figure = go.Figure()
for name, colour in zip(places, ("#A9B4C0", "#3b4048")):
    values = [agreement[name, kind] for kind in kinds]
    figure.add_bar(x=list(kinds), y=values, name=name, marker_color=colour)
figure.update_traces(texttemplate="%{y:.2f}", textposition="outside")
figure.update_layout(
    title="In this run random batches agree, queries do not",
    meta={
        "alt": "Mean cosine between gradients of two rounds: near zero for the "
        "queries, higher for random batches with their labels, highest for "
        "random batches."
    },
    yaxis={"title": "mean cosine of two rounds", "range": [-0.2, 0.6]},
    margin_r=10,
)

# %%
for name in places:
    assert abs(agreement[name, "queries"]) < 0.2
    gap = agreement[name, "random"] - agreement[name, "queries"]
    labels = agreement[name, "random"] - agreement[name, "same labels"]
    assert gap > 0.05
    assert labels > 0.35 * gap

# %% [markdown]
# For random rows with the labels of the queries, most of the agreement is gone already (one draw of each kind). So much
# of it is a matter of lopsided classes: a round about 5s and a round about 7s pull the shared weights in different
# directions. The interaction terms do not find an agreement that is there. They ask training to *make* one. Whether
# they are heard depends on their size.
#
# ## How large are they?
#
# The default of the authors' code is $\alpha = 10^{-4}$; we call it the published $\alpha$. Compare the absolute
# sizes of the terms with the loss that they belong to.

# %%
PUBLISHED = Plan().alpha
print("mean size, rounds 2 to R    loss  adaptation  interaction")
for name, (value, *products, _) in expansion.items():
    for alpha in (PUBLISHED, 0.1):
        a, b = (alpha * x[1:].abs().mean() for x in products)
        print(f"{name:16} α={alpha:<6g}", end=" ")
        print(f"{value[1:].mean():7.3f} {a:11.6f} {b:12.6f}")
        assert alpha > PUBLISHED or b < 0.01 * value[1:].mean()

# %% [markdown]
# Training follows gradients, so compare those too. `meta_gradient` gives the step of all three methods:
#
# $$\frac{\lVert \text{caml} - \text{upweight} \rVert}{\lVert \text{upweight} \rVert}, \qquad
# \frac{\lVert \text{caml} - \text{mldg} \rVert}{\lVert \text{mldg} \rVert},$$
#
# now with batches as small as in training, and with the ReLUs that are used elsewhere. How much is a little? A
# yardstick: the same up-weighted step computed on *another draw* of the same batches. Steps of stochastic training
# differ by that much anyway.

# %%
relu = make_network(smooth=False)
train_round(relu, pool, sets, val, plan, seed=R, device=device)
used = {"initial weights": at(make_network(smooth=False)), "trained": at(relu)}


def apart(one, other):
    """Length of the difference, relative to the second."""
    return ((one - other).norm() / other.norm()).item()


# %%
GRID = np.logspace(-4, 0, 9).tolist()
step_tasks, other_tasks = (make_tasks(plan.batch_size) for _ in range(2))
difference, noise = {}, {}
for name, place in used.items():
    upweight = meta_gradient(*place, step_tasks, alpha=0)
    other = meta_gradient(*place, other_tasks, alpha=0)
    noise[name] = apart(other, upweight)
    pairs = []
    for alpha in GRID:
        caml, mldg = (
            meta_gradient(*place, step_tasks, alpha=alpha, cumulative=kind)
            for kind in (True, False)
        )
        pairs.append((apart(caml, upweight), apart(caml, mldg)))
    difference[name] = np.array(pairs)  # (alphas, 2)

# %% tags=["hide-input"]
lines = {"caml against upweight": "upweight", "caml against mldg": "mldg"}
figure = make_subplots(1, 2, shared_yaxes=True, subplot_titles=list(used))
for j, name in enumerate(used):
    at_column = {"row": 1, "col": j + 1}
    for i, (text, method) in enumerate(lines.items()):
        figure.add_scatter(
            x=GRID,
            y=difference[name][:, i].tolist(),
            name=text,
            line={"color": METHOD_COLOURS[method]},
            showlegend=j == 0,
            **at_column,
        )
    figure.add_scatter(
        x=[GRID[0], GRID[-1]],
        y=[noise[name]] * 2,
        name="upweight, another draw",
        mode="lines",
        line={"color": "#8C8C8C", "dash": "dash"},
        showlegend=j == 0,
        **at_column,
    )

# %% tags=["hide-input"]
figure.update_xaxes(title="α", tickangle=0, tickfont_size=12, **powers)
figure.update_yaxes(**{**powers, "dtick": 1})
figure.update_layout(
    title="At the published α (left edge) CAML nearly is up-weighting",
    meta={
        "alt": "Relative difference of training steps against the inner step: "
        "a few percent at the left, at the right more than another draw makes."
    },
    yaxis_title="relative difference of the steps",
    height=460,
    margin={"t": 120, "r": 10},
    legend_y=1.12,
)

# %%
for name, found in difference.items():
    print(f"{name:16} another draw {noise[name]:.2f};", end=" ")
    print(
        "published α: upweight {:.3f}, mldg {:.3f};".format(*found[0]), end=" "
    )
    print("α = 0.1: {:.2f}, {:.2f}".format(*found[6]))
    assert found[0].max() < 0.1
    assert found[0].max() < noise[name] / 5
    assert found[6, 0] > 5 * found[0, 0]
assert difference["trained"][6, 0] > 0.3

# %% [markdown]
# At the published $\alpha$ another draw of the batches (dashed) changes the step far more than CAML does. At $\alpha =
# 0.1$ the methods differ, after training even more than chance draws do. But there the expansion has broken down: the
# inner step overshoots, and "interaction" is no longer the right word for what is added. (To the left the lines do not
# fall in proportion to $\alpha$: a ReLU that the inner step carries over its corner changes the gradient by a jump,
# and a smaller $\alpha$ makes such jumps rarer, but not smaller.)
#
# ### Does it add up?
#
# A tiny push in a constant direction could still matter after many steps. Train one epoch from the same initial
# weights, with ReLUs: up-weighted, by CAML, and up-weighted with another seed for the batches.

# %%
from dataclasses import replace


def one_epoch(method, seed):
    """Weights after one epoch on all rounds, from the same start."""
    network = make_network(smooth=False)
    short = replace(plan, method=method, epochs=1, alpha=PUBLISHED)
    train_round(network, pool, sets, val, short, seed=seed, device=device)
    return parameters_to_vector(network.parameters()).detach()


upweight = one_epoch("upweight", seed=0)
start = parameters_to_vector(make_network(smooth=False).parameters()).detach()
way = (upweight - start).norm()
to_caml = (one_epoch("caml", seed=0) - upweight).norm() / way
to_other = (one_epoch("upweight", seed=1) - upweight).norm() / way
print("distance from the up-weighted weights, in units of the way gone:")
print(f"CAML, same batches {to_caml:.4f}; up-weighted, other {to_other:.4f}")
assert to_caml < to_other / 4

# %% [markdown]
# It does not, so far. What CAML gains at this $\alpha$ over plainly appending the queries, we must expect
# up-weighting to gain as well. That is one small network, one dataset and one epoch, far from the paper's networks; but
# it says which baseline a table of CAML must carry, and that $\alpha$ is a setting to vary, not to inherit.
#
# ## The same bias, read as a prior
#
# Why *inductive bias*? The step of round $t$ solves a small problem,
#
# $$\theta'_t = \arg\min_{\theta'} \; \langle g(\theta, D_{t-1}) + \bar c_{t-1},\; \theta' \rangle
# + \frac{1}{2\alpha} \lVert \theta' - \theta \rVert^2 ,$$
#
# as setting its gradient to zero shows. Move $\bar c$ into the square; what is left over does not depend on
# $\theta'$:
#
# $$\theta'_t = \arg\min_{\theta'} \;
# \underbrace{\langle g(\theta, D_{t-1}),\, \theta' \rangle}_{-\log \text{likelihood of } D_{t-1},\ \text{linearised}}
# + \underbrace{\frac{1}{2\alpha} \big\lVert \theta' - (\theta - \alpha\, \bar c_{t-1}) \big\rVert^2}_{-\log
# \mathcal N(\theta';\; \theta - \alpha \bar c_{t-1},\; \alpha I)} .$$
#
# So $\theta'_t$ is the most probable $\theta'$ (maximum a posteriori, MAP) under a Gaussian prior of variance
# $\alpha$. (The losses are means, so each set counts as one observation, however many examples it has.) Independent
# tasks centre the prior at $\theta$ (Grant et al., 2018, say so of meta-learning in general). CAML's bias moves the
# centre to where earlier queries pointed. This is exact for every network, because only the tangent of the likelihood
# is used. We can draw it for two parameters: a linear model with a core and a spurious feature.


# %%
def draw_pairs(n, agree):
    """x = (core, spurious) with y = core; the spurious feature flips."""
    core = torch.randn(n, generator=draws, dtype=torch.float64)
    noise = torch.randn(n, generator=draws, dtype=torch.float64)
    flip = 1 - 2 * (torch.rand(n, generator=draws) > agree).double()
    return torch.stack([core, flip * core + 0.3 * noise], dim=1), core


def squares(theta, data):
    """Half the mean squared error of a linear model."""
    x, y = data
    return ((x @ theta - y) ** 2).mean() / 2


# %% [markdown]
# In $D_0$ the features agree in 95 of 100 rows, in the queries in 30. Run the recursion, note the centre of each
# prior, and see that the objective is flat where the step ends.

# %%
ALPHA = 0.25
base = draw_pairs(400, agree=0.95)
asked = [draw_pairs(12, agree=0.3) for _ in range(R)]
grown = [tuple(map(torch.cat, zip(base, *asked[:t]))) for t in range(R)]
toy = list(zip(grown, asked))
theta = torch.tensor([0.1, 0.4], dtype=torch.float64)


# %%
c, centres, adapted = torch.zeros_like(theta), [], []
for t, (known, query) in enumerate(toy):
    g = value_and_gradient(squares, theta, known)[1]
    bias = c / t if t else c
    centres.append(theta - ALPHA * bias)
    adapted.append(theta - ALPHA * (g + bias))
    flat = g + (adapted[-1] - centres[-1]) / ALPHA  # of the objective
    assert flat.norm() < 1e-12
    c = c + value_and_gradient(squares, adapted[-1], query)[1]
packaged = meta_gradient(squares, theta, toy, alpha=ALPHA)
torch.testing.assert_close(c / R, packaged)

# %% tags=["hide-input"]
figure = go.Figure()
turn = np.linspace(0, 2 * np.pi, 60)
for t, method in ((0, "mldg"), (R - 1, "caml")):
    (a, b), (p, q) = centres[t].tolist(), adapted[t].tolist()
    figure.add_scatter(
        x=[*(a + ALPHA**0.5 * np.cos(turn)), None, a, p],
        y=[*(b + ALPHA**0.5 * np.sin(turn)), None, b, q],
        mode="lines+markers",
        line_color=METHOD_COLOURS[method],
        marker={"size": [0] * 61 + [9, 15], "opacity": 1},
        name=f"prior of round {t + 1}",
    )
figure.add_annotation(x=1, y=0, text="the truth", ax=10, ay=-40)
figure.add_annotation(x=0.1, y=0.4, text="θ", ax=-40, ay=-20)
figure.update_layout(
    title="The bias moves the prior towards the core feature",
    meta={
        "alt": "Two circles, the priors of rounds 1 and 5, their centres and most "
        "probable points; round 5 is nearer to the truth."
    },
    height=520,
    xaxis={"title": "core weight", "range": [-0.6, 1.3]},
    yaxis={"title": "spurious weight", "range": [-0.5, 1.0]},
    margin_r=10,
)
figure.update_xaxes(constrain="domain", scaleanchor="y")
figure.update_yaxes(constrain="domain", constraintoward="top")

# %%
moved = torch.stack(centres) - theta
print("core moved by    ", np.round(moved[:, 0].numpy(), 3))
print("spurious moved by", np.round(moved[:, 1].numpy(), 3))
assert (moved[1:, 0] > 0.02).all()
assert (moved[1:, 1] < -0.02).all()
steps = moved.diff(dim=0).norm(dim=1)
assert steps[0] > 2 * steps[1:].max()
assert moved[-1].norm() < moved[1].norm()

# %% [markdown]
# Circles are one standard deviation of the prior, small dots its centre, large ones the most probable parameters. The
# prior of round 1 is centred at $\theta$. From round 2 on its centre lies towards the core feature and away from the
# spurious one, although $D_0$ alone pulls both weights up. And the centre does not run away: the bias is a *mean*, so
# each further round moves it less than the one before. More rounds did not make the bias stronger.
#
# ## What we saw
#
# - To first order, CAML is up-weighting, plus the adaptation term of independent tasks, plus interaction terms that
#   couple every two rounds. With them the expansion is complete: its error has slope 2, without them slope 1.
# - These queries found hardly more minority than the pool holds: what is said of queries here is about lopsided batches
#   of majority pictures. They hardly agreed with each other, much less than random batches, in good part because each
#   is about a few classes. The interaction terms ask training to change that.
# - At the published $\alpha$ these terms are tiny, and CAML's step is nearly the up-weighted one. They become
#   visible at an $\alpha$ at which, after training, the expansion breaks down.
# - Each inner step is a MAP estimate; the accumulated bias is the shift of its prior.
#
# Turn these knobs and watch: `lr` and `epochs` of the plan (more training, more curvature: where does the expansion
# break?), the size of a query, and `make_network(smooth=False)` in the first figure.
#
# ## Two quick questions
#
# **1.** To first order, what does the accumulated bias add to the loss?
#
# <details><summary>More weight for late queries</summary>
#
# No. Every query has the same weight.
#
# </details>
#
# <details><summary>Products of gradients of two rounds</summary>
#
# Yes. Loss falls where a round's gradient agrees with those before it.
#
# </details>
#
# <details><summary>A term that shrinks the parameters</summary>
#
# No. That is weight decay.
#
# </details>
#
# **2.** At the paper's $\alpha = 10^{-4}$, how does CAML's step differ from up-weighting?
#
# <details><summary>Hardly: less than another draw of the batches changes it</summary>
#
# Yes. On this network the terms in $\alpha$ are far smaller than the noise of a batch.
#
# </details>
#
# <details><summary>It points elsewhere</summary>
#
# No. Not at that size.
#
# </details>
#
# <details><summary>It is twice as long</summary>
#
# No. The mass of the gradients is the same.
#
# </details>
#
# ## Exercises
#
# **Exercise 1: pairs.** Write the interaction terms of all $R$ rounds as one sum over pairs $s < t$. How many pairs are
# there, and which one weighs most?
#
# <details><summary>Solution 1</summary>
#
# $-\alpha \sum_{s<t} \frac{1}{t-1}\, g(\theta, Q_s) \cdot g(\theta, Q_t)$, with $R(R-1)/2$ pairs. The pair of rounds 1
# and 2 has weight 1, each pair of round $R$ only $1/(R-1)$: every *round* counts alike, not every pair.
#
# </details>

# %% tags=["hide-cell", "solution"]
# @title Solution 1 { display-mode: "form" }
_, _, interaction, G = expansion["trained"]
pairs = [(s, t) for t in range(1, R) for s in range(t)]  # from zero
summed = sum(G[s] @ G[t] / t for s, t in pairs)
print(len(pairs), "pairs,", f"{summed:.4f} = {interaction.sum():.4f}")
torch.testing.assert_close(summed, interaction.sum())

# %% [markdown]
# **Exercise 2: two ways.** Training makes $-\alpha\, g(\theta, Q_s) \cdot g(\theta, Q_t)$ small. Name two ways, of which
# only one is agreement. Which of them shows in the table of sizes above?
#
# <details><summary>Solution 2</summary>
#
# The product is $\cos \cdot \lVert g_s \rVert \cdot \lVert g_t \rVert$. It grows when the gradients turn towards each
# other, but also when two that agree already become longer. After training the gradients of the queries are longer, and
# that is what the table shows. Here they mostly disagree (the sum in exercise 1 is negative), so the interaction is
# worse, not better.
#
# </details>

# %% tags=["hide-cell", "solution"]
# @title Solution 2 { display-mode: "form" }
norms = {name: found[-1].norm(dim=1) for name, found in expansion.items()}
for name, norm in norms.items():
    print(f"{name:16}", norm.numpy().round(2))
assert norms["trained"].mean() > norms["initial weights"].mean()

# %% [markdown]
# **Exercise 3: the whole likelihood.** Our MAP used the tangent of the likelihood. In the toy the whole likelihood is a
# parabola, so its MAP has a closed form too. How does the distance between the two shrink with $\alpha$?
#
# <details><summary>Solution 3</summary>
#
# With $A = \frac1n X^\top X$ and $b = \frac1n X^\top y$, the MAP solves
# $(A + I/\alpha)\, \theta' = b + (\theta - \alpha \bar c)/\alpha$. It differs from $\theta'_t$ by
# $\alpha\, (g(\theta'_{\text{MAP}}) - g(\theta))$, which is $O(\alpha^2)$: halve $\alpha$, and the distance falls to a
# quarter.
#
# </details>

# %% tags=["hide-cell", "solution"]
# @title Solution 3 { display-mode: "form" }
x, y = toy[0][0]
A, b = x.T @ x / len(x), x.T @ y / len(x)
far = []
for alpha in (0.02, 0.01):
    whole = torch.linalg.solve(A + torch.eye(2) / alpha, b + theta / alpha)
    far.append((whole - (theta - alpha * (A @ theta - b))).norm().item())
print(f"{far[0]:.6f} and {far[1]:.6f}")
assert abs(far[1] / far[0] - 1 / 4) < 0.02

# %% [markdown]
# ## References
#
# - K. W. Chew, J. Wang, [Cumulative meta-learning from active learning queries for robustness to spurious
#   correlations](https://arxiv.org/abs/2605.20771), 2026: CAML.
# - D. Li et al., [Learning to generalize: meta-learning for domain generalization](https://arxiv.org/abs/1710.03463),
#   2018: MLDG, and the expansion for two domains.
# - E. Grant et al., [Recasting gradient-based meta-learning as hierarchical Bayes](https://arxiv.org/abs/1801.08930),
#   2018: the inner step as MAP estimate.
