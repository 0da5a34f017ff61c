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
# # Meta-gradients: learning from the step you would take
#
# **Question.** What does it mean to learn from the step you *would* take?
#
# **You will be able to** write a meta-gradient in a few lines, draw it as a vector field, say what it rewards and what
# its first-order form leaves out, and take a first look at the bias that CAML (cumulative active meta-learning)
# gathers over rounds.
#
# > **Before you start.** You need gradients, the chain rule and chapter [01](01_shortcuts.ipynb). Everything happens in
# > the plane: two parameters, no data, no network. On any laptop it takes some ten seconds and less than 1 GB of
# > memory; a GPU is of no use. Nothing is downloaded.

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
# ## Two losses that want different things
#
# A model has two weights, $\theta = (\theta_1, \theta_2)$: how much it leans on the *shortcut* and how much on the
# *core feature*. In the labelled set $D$ the two go together, so a loss on $D$ cares about their **sum**, and only
# faintly about which of them does the work: it is a valley. (Slightly bent, so that $L_D$ is not quadratic.)

# %%
import torch

torch.set_default_dtype(torch.float64)


def L_D(theta):
    """Loss on the labelled set: steep in the sum, nearly flat along it."""
    along = theta[0] - theta[1] - 1
    across = theta[0] + theta[1] - 1 + 0.06 * along**2
    return 0.75 * across**2 + 0.05 * along**2


# %% [markdown]
# The queries $Q$ come from where the shortcut fails. Their loss is a plain bowl: less shortcut, much more core.


# %%
def bowl(centre, curvature):
    """A quadratic loss with its minimum at `centre`."""
    centre, curvature = torch.tensor(centre), torch.tensor(curvature)
    return lambda theta: (curvature * (theta - centre) ** 2).sum() / 2


L_Q = bowl([0.5, 2.0], curvature=[0.5, 1.0])

# %% tags=["hide-input"]
import plotly.graph_objects as go
from caml_core.pictures.figures import MAJORITY, MINORITY, use_book_style
from torch.func import vmap

use_book_style()
X, Y = torch.linspace(-1.2, 2.0, 41), torch.linspace(-0.3, 2.3, 41)


def level_lines(loss, colour, name):
    """Where a loss is constant; its root is drawn, so lines are even."""
    z = vmap(loss)(torch.cartesian_prod(X, Y)).view(41, 41).T.sqrt()
    return go.Contour(
        x=X.numpy().astype("float32"),
        y=Y.numpy().astype("float32"),
        z=z.numpy().astype("float32"),
        contours={"coloring": "none", "start": 0.1, "end": 2.4, "size": 0.3},
        line={"color": colour, "width": 1},
        **{"name": name, "showlegend": True, "hoverinfo": "skip"},
    )


# %% tags=["hide-input"]
SHORTCUT, CORE = "θ₁ (shortcut)", "θ₂ (core feature)"


def plane(*traces, title, alt):
    """The plane of the two weights, one unit as long on both axes."""
    figure = go.Figure(traces)
    figure.update_xaxes(title=SHORTCUT, range=[-1.2, 2.0], showgrid=False)
    figure.update_xaxes(scaleanchor="y", constrain="domain")
    figure.update_yaxes(title=CORE, range=[-0.3, 2.3], showgrid=False)
    figure.update_yaxes(constrain="domain", constraintoward="top")
    figure.update_layout(title=title, meta={"alt": alt})
    return figure.update_layout(height=460, margin_r=10)


LINES_D = level_lines(L_D, MAJORITY, "loss on D")
LINES_Q = level_lines(L_Q, MINORITY, "loss on Q")
plane(
    LINES_D,
    LINES_Q,
    title="D fixes the sum of the weights, Q says how to share it",
    alt="Level lines: a slanted valley for D, round bowls for Q above it.",
)

# %% [markdown]
# ## The plain way: add the losses
#
# Up-weighting puts both losses into one, and follows
#
# $$g_D(\theta) + g_Q(\theta), \qquad g_D = \nabla L_D, \quad g_Q = \nabla L_Q .$$
#
# Now $Q$ is asked about $\theta$ as it is, off the valley or on it. Part of its answer concerns the sum of the weights,
# which $D$ is about to correct anyway.

# %% tags=["nbval-check-output"]
from torch.func import grad

theta = torch.tensor([1.1, 0.8])
g_D, g_Q = grad(L_D)(theta), grad(L_Q)(theta)
print(f"D would step along {(-g_D).numpy().round(2)}")
print(f"Q would step along {(-g_Q).numpy().round(2)}")
assert g_D @ g_Q < -0.5  # they disagree, mostly about the sum

# %% [markdown]
# ## The other way: ask after the step
#
# Model-agnostic meta-learning (MAML; Finn et al., 2017) takes a step that it does not keep, and asks how good the place
# *after* the step is. Meta-learning for domain generalisation (MLDG; Li et al., 2018) uses this for data that differ:
# **adapt** on $D$, **be judged** on $Q$,
#
# $$\theta' = \theta - \alpha\, g_D(\theta), \qquad M(\theta) = L_Q(\theta').$$


# %%
def adapted(theta, alpha):
    """The step one would take on D."""
    return theta - alpha * grad(L_D)(theta)


def meta_loss(theta, alpha):
    """How Q judges the place after that step."""
    return L_Q(adapted(theta, alpha))


# %% [markdown]
# The **meta-gradient** is the gradient of $M$ with respect to the place *before* the step. There are two of them in
# use, and the whole difference is where `grad` stands:
#
# $$\text{exact:}\quad \nabla_\theta\, L_Q\big(\theta - \alpha\, g_D(\theta)\big), \qquad\qquad
# \text{first order:}\quad g_Q(\theta').$$


# %%
def exact(theta, alpha):
    """Differentiate through the step."""
    return grad(meta_loss)(theta, alpha)


def first_order(theta, alpha):
    """Take the gradient where the step ends, and use it at the start."""
    return grad(L_Q)(adapted(theta, alpha))


# %% [markdown]
# The chain rule says what lies between them, the Jacobian of the step with the Hessian $H_D$ of $L_D$:
#
# $$\nabla_\theta M = \Big(\frac{\partial \theta'}{\partial \theta}\Big)^{\!\top} g_Q(\theta')
# = \big(I - \alpha H_D(\theta)\big)\, g_Q(\theta').$$
#
# First order takes $\partial\theta'/\partial\theta$ as the identity. That saves the second derivatives, and is right up
# to $O(\alpha)$.

# %%
from torch.func import jacrev

ALPHA = 0.25
H_D = jacrev(grad(L_D))(theta)
by_hand = (torch.eye(2) - ALPHA * H_D) @ first_order(theta, ALPHA)
assert torch.allclose(exact(theta, ALPHA), by_hand, rtol=1e-12)
assert torch.equal(first_order(theta, 0.0), g_Q)  # no step: up-weighting
assert torch.equal(exact(theta, 0.0), g_Q)

# %% [markdown]
# Here is one place and everything that could be done there. Arrows point where a descent would go; those of Q are all
# shortened alike.

# %% tags=["hide-input"]
from caml_core.pictures.figures import METHOD_COLOURS

PLAIN, MLDG = METHOD_COLOURS["upweight"], METHOD_COLOURS["mldg"]
EXACT = "#8A5FBF"  # exact MLDG


def arrow(figure, tail, vector, colour, text="", **label):
    """An arrow, with a word at its tip."""
    (x, y), (ax, ay) = (tail + vector).tolist(), tail.tolist()
    ends = {"x": x, "y": y, "ax": ax, "ay": ay, "axref": "x", "ayref": "y"}
    style = {"arrowcolor": colour, "arrowwidth": 3, "arrowhead": 2}
    figure.add_annotation(**ends, **style, text="")
    figure.add_annotation(
        **{"x": x, "y": y, "text": text, "showarrow": False},
        **{"font": {"color": colour, "size": 14, "weight": 600}, **label},
    )


# %% tags=["opening", "hide-input"]
after = adapted(theta, ALPHA)
asked, through = first_order(theta, ALPHA), exact(theta, ALPHA)
figure = plane(
    LINES_D,
    title="Only the exact meta-gradient stops pulling across the valley",
    alt="Arrows from one place: D's step goes down its valley wall; plain and "
    "first-order point up and across the valley, exact along it.",
)
arrow(figure, theta, after - theta, MAJORITY, "D's step", yshift=-12)
arrow(figure, after, -0.75 * asked, MLDG)
figure.add_annotation(
    **{"x": 0.7, "y": 0.9, "text": "Q, after<br>the step"},
    **{
        "xanchor": "right",
        "showarrow": False,
        "font": {"color": MLDG, "weight": 600},
    },
)
arrow(figure, theta, -0.75 * asked, MLDG, "first order", xshift=45)
arrow(figure, theta, -0.75 * g_Q, PLAIN, "plain", yshift=11)
arrow(figure, theta, -0.75 * through, EXACT, "exact", xshift=-26)
figure.update_xaxes(range=[-0.2, 1.9]).update_yaxes(range=[0.25, 2.1])

# %%
assert abs(through.sum()) < 0.4 * abs(g_Q.sum())
assert abs(asked.sum()) > abs(g_Q.sum())

# %% [markdown]
# Plain asks $Q$ at $\theta$. First order asks where $D$'s step ends, and carries the answer back. Exact also asks what
# will be left of a move *after* $D$'s step: the factor $I - \alpha H_D$ shrinks what $D$ would undo, and $D$ undoes
# what leaves its valley. What remains runs along the valley: it is what $D$ leaves open.
#
# ## The same everywhere
#
# Two arrows at each place of a grid; long ones are shortened. Move the slider: at $\alpha = 0$ both fields are
# up-weighting and lie on each other. As the step grows, the exact field turns along the valley.

# %% tags=["hide-input"]
import numpy as np
from plotly.figure_factory import create_quiver

POINTS = torch.cartesian_prod(
    torch.linspace(-0.9, 1.7, 8), torch.linspace(0.0, 2.0, 7)
)


def field(direction, colour, name):
    """Descent arrows of a meta-gradient on the grid, as one trace."""
    g = vmap(direction)(POINTS)
    arrows = -0.35 * g / (g.norm(dim=1, keepdim=True) + 0.3)
    drawn = create_quiver(*POINTS.T, *arrows.T, scale=1, arrow_scale=0.35)
    return go.Scatter(
        x=np.array(drawn.data[0].x, "float32"),  # None becomes a gap
        y=np.array(drawn.data[0].y, "float32"),
        line={"color": colour, "width": 1.8},
        **{"mode": "lines", "name": name, "hoverinfo": "skip"},
    )


# %%
def both(alpha):
    """The two fields of one slider position."""
    return [
        field(lambda theta: first_order(theta, alpha), MLDG, "first order"),
        field(lambda theta: exact(theta, alpha), EXACT, "exact"),
    ]


ALPHAS = (0.0, 0.05, 0.1, 0.15, 0.2, 0.25, 0.3)
frames = [
    go.Frame(name=f"{alpha:.2f}", data=both(alpha), traces=[1, 2])
    for alpha in ALPHAS
]

# %%
figure = plane(
    LINES_D,
    *both(ALPHA),
    title="Only the exact field learns to follow D's valley",
    alt="Two fields of arrows over D's valley, first order and exact; a slider "
    "sets the inner step.",
)
figure.frames = frames
now = {"mode": "immediate", "frame": {"duration": 0, "redraw": True}}
steps = [
    {"method": "animate", "label": f.name, "args": [[f.name], now]}
    for f in frames
]
slider = {"steps": steps, "active": ALPHAS.index(ALPHA), "pad": {"t": 60}}
slider["currentvalue"] = {"prefix": "inner step α = "}
figure.update_layout(sliders=[slider], height=530)

# %% [markdown]
# How well does an arrow follow the valley? Take the absolute cosine between it and the direction in which $L_D$ curves
# least, averaged over the grid: 1 would be perfect.


# %%
def along_valley(meta, alpha):
    """Mean |cos| between the arrows and the flat direction of L_D."""
    g = vmap(lambda theta: meta(theta, alpha))(POINTS)
    flat = torch.linalg.eigh(vmap(jacrev(grad(L_D)))(POINTS))[1][:, :, 0]
    return ((g * flat).sum(1).abs() / g.norm(dim=1)).mean().item()


for alpha in (0.0, 0.1, 0.25):
    one, other = (along_valley(f, alpha) for f in (first_order, exact))
    print(f"alpha {alpha:.2f}: first order {one:.2f}, exact {other:.2f}")
assert other > 0.75
assert other > one + 0.2

# %% [markdown]
# ## What a meta-gradient rewards
#
# Expand $M$ for a small step:
#
# $$M(\theta) = L_Q\big(\theta - \alpha g_D\big) = L_Q(\theta) - \alpha\, g_D^\top g_Q + O(\alpha^2).$$
#
# The first term is up-weighting. The second is a **bonus where the gradients agree**: $M$ is small where a step
# for $D$ is also a step for $Q$. Take the gradient of the bonus by the product rule:
#
# $$\nabla_\theta M = g_Q - \alpha\,\big(H_Q\, g_D + H_D\, g_Q\big) + O(\alpha^2),$$
#
# $$g_Q(\theta') = g_Q - \alpha\, H_Q\, g_D + O(\alpha^2).$$
#
# So first order keeps *one half of the bonus*. What it drops, $\alpha H_D\, g_Q$, is of the same order as what it
# keeps.

# %%
H_Q = jacrev(grad(L_Q))(theta)
alphas = torch.logspace(-3, -0.6, 25)
bonus = torch.stack([alpha * (H_Q @ g_D + H_D @ g_Q) for alpha in alphas])
exact_path = torch.stack([exact(theta, alpha) for alpha in alphas])
first_path = torch.stack([first_order(theta, alpha) for alpha in alphas])
errors = {
    "plain": exact_path - g_Q,
    "first order": exact_path - first_path,
    "plain + the whole bonus": exact_path - (g_Q - bonus),
}

# %% tags=["hide-input"]
figure = go.Figure()
for (name, error), colour in zip(errors.items(), (PLAIN, MLDG, EXACT)):
    size = error.norm(dim=1).numpy()
    figure.add_scatter(x=alphas.numpy(), y=size, name=name, line_color=colour)
figure.update_layout(
    title="Here first order comes no closer to exact than plain does",
    meta={
        "alt": "Errors against the inner step on logarithmic axes: two lines "
        "of slope one, first order above plain, and one of slope two."
    },
    xaxis={"title": "inner step α", "type": "log", "dtick": 1},
    yaxis={"title": "distance from exact", "type": "log", "dtick": 1},
    yaxis_exponentformat="power",
)

# %% tags=["nbval-check-output"]
for (name, error), power in zip(errors.items(), (1, 1, 2)):
    size = error.norm(dim=1)
    growth = (size[9] / size[0]).log() / (alphas[9] / alphas[0]).log()
    print(f"{name:24} errs like alpha to the power {growth:.1f}")
    assert abs(growth - power) < 0.1

# %%
halves = torch.stack([H_Q @ g_D, H_D @ g_Q])
dropped = -errors["first order"][0] / alphas[0]
assert torch.allclose(dropped, halves[1], rtol=0.02)  # just this half
assert halves[1].norm() > halves[0].norm()  # D is the steeper of the two
distance = {name: error.norm(dim=1) for name, error in errors.items()}
assert (distance["first order"] > distance["plain"]).all()

# %% [markdown]
# ## Where the three paths end
#
# Start from what $D$ alone prefers, all shortcut and no core, and go down
#
# $$\theta \leftarrow \theta - \eta\, \big(g_D(\theta) + m(\theta)\big), \qquad
# m = g_Q(\theta), \;\; g_Q(\theta') \;\text{ or }\; \nabla_\theta M .$$


# %%
def descend(labelled, meta, steps=300, eta=0.1):
    """The path of plain gradient descent, (steps + 1, 2)."""
    path = [torch.tensor([1.0, 0.0])]
    for _ in range(steps):
        here = path[-1]
        path.append(here - eta * (grad(labelled)(here) + meta(here)))
    return torch.stack(path)


paths = {
    "plain": descend(L_D, grad(L_Q)),
    "MLDG, first order": descend(L_D, lambda at: first_order(at, ALPHA)),
    "MLDG, exact": descend(L_D, lambda at: exact(at, ALPHA)),
}


# %%
def agreement(theta):
    """What the bonus rewards: the product of the two gradients."""
    return grad(L_D)(theta) @ grad(L_Q)(theta)


ends = {name: path[-1] for name, path in paths.items()}
for name, end in ends.items():
    on_d, on_q, agree = (f(end) for f in (L_D, L_Q, agreement))
    print(f"{name:18} L_D {on_d:.2f}, L_Q {on_q:.2f}, agreement {agree:+.2f}")

# %% tags=["hide-input"]
agree = vmap(agreement)(torch.cartesian_prod(X, Y)).view(41, 41).T
LAND = go.Heatmap(
    x=X.numpy().astype("float32"),
    y=Y.numpy().astype("float32"),
    z=agree.numpy().astype("float32"),
    **{"colorscale": "RdBu", "zmin": -2.5, "zmax": 2.5, "opacity": 0.55},
    colorbar={"title": "agree", "thickness": 8, "len": 0.7, "y": 0.6},
    **{"zsmooth": "best", "hoverinfo": "skip"},
)


def trail(path, colour, name):
    """A path of descent with a mark at its end."""
    x, y = path.T.numpy().astype("float32")
    end = {"size": [0] * (len(x) - 1) + [12], "opacity": 1}
    line = {"color": colour, "width": 3}
    mode = {"mode": "lines+markers", "marker": end, "line": line}
    return go.Scatter(x=x, y=y, name=name, **mode)


# %% tags=["hide-input"]
figure = plane(
    LAND,
    *map(trail, paths.values(), (PLAIN, MLDG, EXACT), paths),
    title="Only the exact path gives way where the gradients disagree (red)",
    alt="Three paths from the same start into a red region, where the "
    "gradients disagree; the exact one stays lowest.",
)
figure.update_xaxes(range=[-0.7, 1.5]).update_yaxes(range=[-0.15, 1.65])

# %%
conflict = {name: -agreement(end) for name, end in ends.items()}
assert conflict["MLDG, exact"] < 0.6 * conflict["plain"]
assert conflict["MLDG, first order"] > conflict["plain"]
assert L_D(ends["MLDG, exact"]) < L_D(ends["plain"])
assert L_Q(ends["MLDG, first order"]) < L_Q(ends["plain"])
assert min(ends, key=lambda name: L_Q(ends[name])) == "MLDG, first order"
assert max(ends, key=lambda name: ends[name][1]) == "MLDG, first order"
assert min(ends, key=lambda name: L_D(ends[name])) == "MLDG, exact"
assert min(ends, key=lambda name: ends[name][0]) == "MLDG, exact"

# %% [markdown]
# The bonus is said to make gradients agree, and the exact path does so. The first-order path ends with *more*
# conflict than plain: here $D$ is steeper than $Q$, so the half that first order drops is the larger one, and the
# half that it keeps points the other way. What first order does instead is to give $Q$ a louder voice: it hears $Q$'s
# complaint about the place where $D$'s step ends, and that complaint is the greater. Which end is the best? That
# depends on what one wants: first order ends with the lowest $L_Q$ and the most core feature, exact with the lowest
# $L_D$ and the least shortcut.

# %%
end = ends["plain"]
kept = jacrev(grad(L_Q))(end) @ grad(L_D)(end)
lost = jacrev(grad(L_D))(end) @ grad(L_Q)(end)
assert lost.norm() > kept.norm()
assert kept @ (kept + lost) < 0  # the half kept opposes the whole
assert first_order(end, ALPHA).norm() > grad(L_Q)(end).norm()

# %% [markdown]
# Were $D$ and $Q$ halves of a random split, now one and now the other, the two halves of the bonus would be equal on
# average, and first order would lose only a factor. In active learning they are not: $D$ is what one had, $Q$ is what
# one asked.
#
# ## Rounds: from MLDG to CAML
#
# Active learning gives a *sequence* of such pairs. Round $t$ has the labelled set $D_{t-1}$ and its queries $Q_t$, and
# $D_t = D_{t-1} \cup Q_t$. Three rounds: two ask for more core and for less shortcut, and the third is
# misleading: it asks for the shortcut back.

# %%
QUERIES = [
    L_Q,
    bowl([0.0, 1.4], curvature=[1.0, 0.4]),
    bowl([1.6, 0.4], curvature=[0.6, 0.6]),
]


def labelled(t, start=3):
    """Mean loss on D_t: the first set counts as `start` batches."""

    def loss(theta):
        queried = sum(query(theta) for query in QUERIES[:t])
        return (start * L_D(theta) + queried) / (start + t)

    return loss


TASKS = [(labelled(t), query) for t, query in enumerate(QUERIES)]

# %% [markdown]
# MLDG treats the rounds as **independent** tasks. CAML (Chew and Wang, 2026) lets each step also follow what the
# earlier rounds asked for, the bias $c$ gathered so far. From $c = 0$, for $t = 1, \dots, R$,
#
# $$\theta'_t = \theta - \alpha \Bigl( g(\theta, D_{t-1}) + \tfrac{1}{t-1}\, c \Bigr),
# \qquad c \leftarrow c + g(\theta'_t, Q_t),$$
#
# where the term in $c$ is left out for $t = 1$. First order ends with $c / R$; exact is the gradient of
# $\frac1R \sum_t L_{Q_t}(\theta'_t)$ through all of it.


# %%
def rounds(theta, alpha, cumulative):
    """Mean loss where the inner steps end, and c / R."""
    c, losses = torch.zeros(2), []
    for t, (train, test) in enumerate(TASKS):  # t rounds lie behind
        u = grad(train)(theta)
        if cumulative and t > 0:
            u = u + c / t
        there = theta - alpha * u
        losses.append(test(there))
        c = c + grad(test)(there)
    return sum(losses) / len(TASKS), c / len(TASKS)


def rounds_first(theta, alpha, cumulative):
    return rounds(theta, alpha, cumulative)[1]


def rounds_exact(theta, alpha, cumulative):
    return grad(lambda at: rounds(at, alpha, cumulative)[0])(theta)


# %% [markdown]
# Chapter [07](07_caml.ipynb) takes this apart line by line. What does the bias add? Expand once more, with
# $\bar c_{t-1} = \frac{1}{t-1} \sum_{s<t} g_{Q_s}$:
#
# $$L_{Q_t}(\theta'_t) = L_{Q_t} - \alpha\, g_{D_{t-1}}^\top g_{Q_t}
# - \alpha\, \bar c_{t-1}^{\,\top} g_{Q_t} + O(\alpha^2).$$
#
# The last term is CAML's own. It couples each round with all earlier ones: a bonus when a query agrees with what was
# asked before, a penalty when it contradicts. Chapter [08](08_interactions.ipynb) measures it in a network.

# %% tags=["nbval-check-output"]
g = torch.stack([grad(query)(theta) for query in QUERIES])
terms = [g[t] @ g[:t].mean(dim=0) for t in (1, 2)]
for t, term in enumerate(terms, start=2):
    print(f"round {t}: product with the earlier queries {term:+.2f}")
assert terms[0] > 0.3  # round 2 agrees
assert terms[1] < -0.2  # the misleading round 3 does not

# %%
small = 1e-4
losses = [rounds(theta, small, kind)[0] for kind in (True, False)]
change = (losses[0] - losses[1]) / small
assert torch.allclose(change, -sum(terms) / len(TASKS), rtol=0.01)

# %% [markdown]
# ## Does it change where one ends?
#
# Descend on $D_R$ plus the mean over the rounds, from the same start, with independent and with cumulative tasks, in
# first order and exact.

# %%
from functools import partial

last = labelled(len(QUERIES))
goal = {}
for order, meta in {"first order": rounds_first, "exact": rounds_exact}.items():
    for kind in ("MLDG", "CAML"):
        step = partial(meta, alpha=ALPHA, cumulative=kind == "CAML")
        path = descend(last, step, steps=150)
        goal[kind, order] = path[-1]
        print(f"{kind}, {order:11}: ends at {path[-1].numpy().round(2)}")

# %%
by_order = goal["MLDG", "first order"] - goal["MLDG", "exact"]
by_bias = goal["MLDG", "first order"] - goal["CAML", "first order"]
print(f"from first order to exact:       {by_order.norm():.2f}")
print(f"from independent to cumulative:  {by_bias.norm():.2f}")
assert by_order.norm() > 2 * by_bias.norm() > 0

# %% [markdown]
# Here the accumulated bias is the finer of the two effects: it is a second voice in a step that is itself small. How
# much it does in a network, where many rounds train shared features, is no question for a toy.
#
# ## The same from the package
#
# `caml_core.meta.meta_gradient` does what these cells do, for a network as well. It takes any `loss(theta, batch)`,
# where $\theta$ is a list with a tensor for each parameter; ours has one. Here a batch is just the function that it
# stands for.

# %% tags=["nbval-check-output"]
from caml_core import meta


def loss(theta, batch):
    return batch(theta)


def meta_gradient(loss, theta, tasks, **settings):
    """The package's, with our theta as a list of one parameter."""
    one = meta.meta_gradient(
        lambda theta, batch: loss(*theta, batch), [theta], tasks, **settings
    )
    return one[0]


ours = {"first": rounds_first, "exact": rounds_exact}
for order in ours:
    for kind in (False, True):
        settings = {"alpha": ALPHA, "order": order, "cumulative": kind}
        theirs = meta_gradient(loss, theta, TASKS, **settings)
        mine = ours[order](theta, ALPHA, kind)
        assert torch.allclose(theirs, mine, rtol=1e-12, atol=1e-14)
        print(f"{order}, cumulative={kind}: the same vector")

# %%
single = [(L_D, L_Q)]  # one round: CAML is MLDG
for order, mine in {"first": first_order, "exact": exact}.items():
    theirs = meta_gradient(loss, theta, single, alpha=ALPHA, order=order)
    assert torch.allclose(theirs, mine(theta, ALPHA), rtol=1e-12)
plain = meta_gradient(loss, theta, single, alpha=0.0)
assert torch.equal(plain, g_Q)

# %% [markdown]
# ## What we saw
#
# - To learn from the step one *would* take is to ask $Q$ about $\theta' = \theta - \alpha g_D$ and to change $\theta$.
#   With $\alpha = 0$ it is up-weighting.
# - For small $\alpha$ it is up-weighting plus a bonus for agreeing gradients. The exact meta-gradient leaves to $D$
#   what $D$ will settle anyway, and speaks where $D$ is open.
# - First order keeps one half of the bonus. It is right up to $O(\alpha)$, but so is plain up-weighting; where $D$ was
#   steeper than $Q$, it ended with more conflict than plain, not with less.
# - CAML's accumulated bias adds products between the rounds: agreement with earlier queries is rewarded, contradiction
#   is not (in the exact form; the first order keeps half of that gradient). On this toy it moved the end less than the
#   choice between first order and exact.
#
# Turn these knobs and watch: `ALPHA` (beyond which value does the exact field overshoot the valley?), the `curvature`
# of `L_Q` (make $Q$ the steeper one and look at the conflict of the first-order path), `start` in `labelled` (how loud
# are the first labels?).
#
# ## Two quick questions
#
# **1.** What is left of the meta-gradient when $\alpha = 0$?
#
# <details><summary>Nothing</summary>
#
# No. The loss of $Q$ still has a gradient at $\theta$.
#
# </details>
#
# <details><summary>The plain gradient of Q: up-weighting</summary>
#
# Yes. Without a step there is no look ahead.
#
# </details>
#
# <details><summary>The gradient of D</summary>
#
# No. $D$ stands only in the step.
#
# </details>
#
# **2.** The exact meta-gradient hardly moves along a direction in which $D$ is steep. Why?
#
# <details><summary>D's own step will undo such a move</summary>
#
# Yes. The factor $1 - \alpha\lambda$ shrinks what $D$ settles anyway.
#
# </details>
#
# <details><summary>Q does not care there</summary>
#
# No. $Q$ may care a lot; its complaint is left to $D$.
#
# </details>
#
# <details><summary>It is a numerical error</summary>
#
# No. It is what differentiating through the step means.
#
# </details>
#
# ## Exercises
#
# **Exercise 1: overshooting.** Let $L_D$ be quadratic with largest curvature $\lambda$. What does the exact
# meta-gradient say along the steepest direction at $\alpha = 1/\lambda$? At $\alpha = 2/\lambda$?
#
# <details><summary>Solution 1</summary>
#
# The factor is $1 - \alpha\lambda$. At $1/\lambda$ it is zero: $D$'s step lands at the bottom of the valley from
# wherever it starts, so $Q$ has nothing to say across the valley. At $2/\lambda$ it is $-1$: the step lands as far on
# the other side, and the meta-gradient asks to go the wrong way in order to end up right.
#
# </details>

# %% tags=["hide-cell", "solution"]
# @title Solution 1 { display-mode: "form" }
steep = bowl([0.0, 0.0], curvature=[4.0, 1.0])  # λ = 4, along θ₁


def after_steep(theta, alpha):
    return L_Q(theta - alpha * grad(steep)(theta))


for alpha, factor in ((1 / 4, 0.0), (2 / 4, -1.0)):
    there = theta - alpha * grad(steep)(theta)
    says = grad(after_steep)(theta, alpha)[0]
    print(f"alpha {alpha}: {says:+.2f} along the steepest direction")
    assert torch.allclose(says, factor * grad(L_Q)(there)[0])

# %% [markdown]
# **Exercise 2: a field without a loss.** Is the first-order field the gradient of some loss? Look at its Jacobian.
#
# <details><summary>Solution 2</summary>
#
# No. The Jacobian of a gradient is symmetric, and this one is $H_Q (I - \alpha H_D)$, symmetric only if the two Hessians
# commute. First-order descent therefore minimises no loss at all, not even a modified one.
#
# </details>

# %% tags=["hide-cell", "solution"]
# @title Solution 2 { display-mode: "form" }
J = jacrev(lambda at: first_order(at, ALPHA))(theta)
print(J.numpy().round(3))
assert torch.allclose(J, H_Q @ (torch.eye(2) - ALPHA * H_D))
assert not torch.allclose(J, J.T, atol=0.05)

# %% [markdown]
# **Exercise 3: the order of rounds.** Give all three rounds the same labelled set, `labelled(0)`, and reverse the order
# of the queries. Which meta-gradient changes, MLDG's or CAML's?
#
# <details><summary>Solution 3</summary>
#
# CAML's. MLDG's is a sum over rounds that do not know of each other, so their order does not matter. In CAML each
# round is judged after the earlier ones.
#
# </details>

# %% tags=["hide-cell", "solution"]
# @title Solution 3 { display-mode: "form" }
forth = [(labelled(0), query) for query in QUERIES]
for kind in (False, True):
    settings = {"alpha": ALPHA, "cumulative": kind}
    one, other = (
        meta_gradient(loss, theta, tasks, **settings)
        for tasks in (forth, forth[::-1])
    )
    print("CAML" if kind else "MLDG", (one - other).numpy().round(3))
    assert torch.allclose(one, other) != kind

# %% [markdown]
# ## References
#
# - C. Finn, P. Abbeel, S. Levine, [Model-agnostic meta-learning for fast adaptation of deep
#   networks](https://arxiv.org/abs/1703.03400), 2017: MAML, and its first-order form.
# - D. Li, Y. Yang, Y.-Z. Song, T. Hospedales, [Learning to generalize: meta-learning for domain
#   generalization](https://arxiv.org/abs/1710.03463), 2018: MLDG, and the expansion.
# - A. Nichol, J. Achiam, J. Schulman, [On first-order meta-learning algorithms](https://arxiv.org/abs/1803.02999),
#   2018: the two halves of the bonus on random splits.
# - K. W. Chew, J. Wang, [Cumulative meta-learning from active learning queries for robustness to spurious
#   correlations](https://arxiv.org/abs/2605.20771), 2026: CAML.
