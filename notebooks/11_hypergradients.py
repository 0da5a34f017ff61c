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
# # Five ways to the same derivative
#
# **Question.** How does one differentiate the *result* of a training run with respect to its *data*, and what does each
# way cost and get wrong?
#
# **You will be able to** write that derivative by autograd and by hand, and check one against the other; say from a
# spectrum when a truncated or a first-order gradient can be trusted; use the implicit function theorem with three
# inverses of the Hessian; and choose among five ways by looking at accuracy and cost together.
#
# > **Before you start.** You need the chain rule, gradients of a softmax, and chapter [06](06_meta_gradients.ipynb) for
# > the idea of judging a step by where it ends. On a laptop with two cores this takes about half a minute and 1 GB of
# > memory; no GPU is needed. Nothing is downloaded: all data are drawn.

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
# ## A training run with a knob
#
# HSFM (Yazdan Parast et al., 2026) has a small **support set** and a **hard set**. A linear head is trained on the
# support set for a few steps, and the hard set says how good the trained head is. Then HSFM does something unusual: it
# keeps the head's training as it is and changes the *support set*, so that the next training run ends better.
#
# Which way should a support point move? That is a derivative through a training run, a **hypergradient**. Here is the
# smallest example: eight support points in the plane. The horizontal feature is a shortcut, and on the hard set it
# points the wrong way.

# %%
import torch

torch.set_default_dtype(torch.float64)
draws = torch.Generator().manual_seed(2)
S, T, ALPHA = 8, 12, 2.0
y = torch.arange(S) % 2
side = (2.0 * y - 1)[:, None]  # -1 or 1


def cloud(centre, spread):
    """Points of both classes, mirrored at the origin: (8, 2)."""
    noise = torch.randn(S, 2, generator=draws)
    return side * torch.tensor(centre) + spread * noise


H = cloud([1.3, 0.4], 0.45)  # support set
V = cloud([-0.9, 0.8], 0.4)  # hard set, with the same labels
W_0 = torch.tensor([[-0.6, -0.1], [0.6, 0.1]])  # leans on the shortcut
b_0 = torch.zeros(2)

# %% [markdown]
# **Training** is $T$ steps of gradient descent on the mean cross-entropy of the support set. With the residuals
# $R_t = \mathrm{softmax}(Z_t) - Y$, where $Z_t = H W_t^\top + b_t$ are the logits and $Y$ has a one for each label,
#
# $$W_{t+1} = W_t - \frac{\alpha}{S} R_t^\top H, \qquad b_{t+1} = b_t - \frac{\alpha}{S} R_t^\top \mathbf 1 .$$

# %%
from torch.nn.functional import cross_entropy, one_hot

Y = one_hot(y, 2).double()


def train(H, steps=T):
    """The head after so many steps on H, from (W_0, b_0)."""
    W, b = W_0, b_0
    for _ in range(steps):
        R = (H @ W.T + b).softmax(dim=1) - Y
        W, b = W - ALPHA / S * R.T @ H, b - ALPHA / S * R.sum(dim=0)
    return W, b


def F(H):
    """What we want to lower: the loss of the hard set after training."""
    W, b = train(H)
    return cross_entropy(V @ W.T + b, y)


# %%
import numpy as np
import plotly.graph_objects as go
from caml_core.figures import CHANCE, MAJORITY, MINORITY, use_book_style

use_book_style()


def points(xy, name, symbol, **options):
    """Points of both classes as one trace, coloured by class."""
    colours = [("#0072B2", "#56B4E9")[label] for label in y.tolist()]
    marker = {"color": colours, "symbol": symbol, "size": 12, **options}
    a, b = xy.T.numpy().round(3)
    return go.Scatter(x=a, y=b, name=name, mode="markers", marker=marker)


def border(W, b, name, **line):
    """Where a head is undecided between the two classes."""
    (u, v), c = (W[1] - W[0]).tolist(), float(b[1] - b[0])
    ys = np.array([-3.0, 3.0])
    xs = -(v * ys + c) / u
    return go.Scatter(x=xs, y=ys, name=name, mode="lines", line=line)


def plane(*traces, title):
    """The plane of the two features, one unit as long on both axes."""
    figure = go.Figure(traces)
    shape = {"scaleanchor": "y", "constrain": "domain"}
    figure.update_xaxes(title="shortcut feature", range=[-2.9, 2.9], **shape)
    figure.update_yaxes(title="core feature", range=[-2, 2])
    return figure.update_layout(title=title, height=520)


# %%
plane(
    border(W_0, b_0, "before training", color=CHANCE, dash="dot"),
    border(*train(H), "after training", color="#3b4048"),
    points(H, "support set", "circle"),
    points(V, "hard set", "x"),
    title="Training on the support set leaves the hard set misread",
)

# %%
before = cross_entropy(V @ W_0.T + b_0, y).item()
print(f"loss of the hard set: {before:.2f} before, {F(H):.2f} after training")
assert F(H) > before + 0.5

# %% [markdown]
# Dark and light are the two classes. The support points (discs) are easy, most of the hard points (crosses) are on
# the wrong side, and training makes it worse.
#
# ## Move one point
#
# Take one support point and shift it along the shortcut. For each position, train and score. That gives a curve, and
# the number that we are after is its slope where the point is now. **Central differences** measure it:
#
# $$\frac{\partial F}{\partial h} \approx \frac{F(h + \epsilon) - F(h - \epsilon)}{2 \epsilon}.$$

# %%
POINT = 5
EPS = 1e-5


def shifted(amount):
    """The support set with one point moved along the shortcut."""
    moved = H.clone()
    moved[POINT, 0] += amount
    return moved


slope = ((F(shifted(EPS)) - F(shifted(-EPS))) / (2 * EPS)).item()
print(f"slope at the point: {slope:+.4f}")

# %%
offsets = torch.linspace(-4, 3, 141)
curve = torch.stack([F(shifted(offset)) for offset in offsets])
here, now = H[POINT, 0].item(), F(H).item()
near = np.array([-0.9, 0.9])
figure = go.Figure()
figure.add_scatter(
    x=(here + offsets).numpy().round(3),
    y=curve.numpy().round(4),
    name="hard-set loss after training",
)
figure.add_scatter(
    x=here + near,
    y=now + slope * near,
    name="slope, by differences",
    mode="lines",
)
figure.add_scatter(x=[here], y=[now], mode="markers", name="where it is now")
figure.data[1].line = {"color": MINORITY, "width": 3, "dash": "dash"}
figure.data[2].marker = {"color": "#3b4048", "size": 11}
figure.update_layout(
    title="Every position of one support point is a training run",
    xaxis_title="shortcut feature of the point",
    yaxis_title="hard-set loss after training",
)

# %% tags=["nbval-check-output"]
runs = 2 * H.numel()
print(f"all slopes by differences: {runs} training runs")
print(f"with 32 support points of 2,048 features: {2 * 32 * 2048:,}")

# %%
differences = torch.empty_like(H)
for i in range(H.numel()):
    step = torch.zeros(H.numel())
    step[i] = EPS
    step = step.view_as(H)
    differences.view(-1)[i] = (F(H + step) - F(H - step)) / (2 * EPS)
assert abs(differences[POINT, 0] - slope) < 1e-9

# %% [markdown]
# Differences need no thought, so we keep them as a judge. As a method they are hopeless.
#
# ## First way: unroll, and let autograd do it
#
# Training is a chain of matrix products and softmaxes, and autograd differentiates such chains. It is enough to ask.


# %%
def unrolled(H):
    """dF/dH by autograd, back through all T steps."""
    H = H.clone().requires_grad_()
    return torch.autograd.grad(F(H), H)[0]


def error(found, truth):
    """Distance of two gradients, in lengths of the true one."""
    return ((found - truth).norm() / truth.norm()).item()


exact = unrolled(H)
print(f"against differences: {error(differences, exact):.1e}")
assert error(differences, exact) < 1e-7

# %% [markdown]
# One training run and one run back give all slopes at once. This is the reference from here on. Its price: autograd
# writes down what each step did, and replays it. (We have written the gradient of the loss as $R_t^\top H$. A program
# that gets it from autograd, as one must in a deep network, needs *double backward*: a gradient of a gradient.)
#
# ## Second way: the same by hand
#
# For a linear head we can do what autograd does, with less. Three observations are enough.
#
# **First, training happens in $S \times C$ numbers.** Multiply the step of $W$ by $H$, and the features are gone: with
# the Gram matrix $G = H H^\top + 1$ (the one comes from the bias),
#
# $$Z_{t+1} = Z_t - \frac{\alpha}{S}\, G\, R_t .$$

# %%
rate = ALPHA / S
G = H @ H.T + 1
Z = H @ W_0.T + b_0
P, R = [], []
for _ in range(T):
    P.append(Z.softmax(dim=1))
    R.append(P[-1] - Y)
    Z = Z - rate * G @ R[-1]

# %% [markdown]
# The head itself is needed only at the end, $W_T = W_0 - \frac{\alpha}{S} (R_0 + \dots + R_{T-1})^\top H$.

# %%
W_T = W_0 - rate * sum(R).T @ H
b_T = b_0 - rate * sum(R).sum(dim=0)
assert torch.allclose(W_T, train(H)[0], rtol=1e-12)

# %% [markdown]
# **Second, the hard set speaks once.** All that it has to say about $H$ goes through $W_T$ and $b_T$: through
# $M = \partial F / \partial W_T$ and $m = \partial F / \partial b_T$. One pass over the hard set, and one back:

# %%
R_V = ((V @ W_T.T + b_T).softmax(dim=1) - Y) / len(V)
M, m = R_V.T @ V, R_V.sum(dim=0)

# %% [markdown]
# **Third, go backwards through the residuals.** $W_T$ and $b_T$ are sums over the $R_t$, so a change of any $R_t$, if
# it touched nothing later, would be worth
#
# $$Q = -\frac{\alpha}{S} \big(H M^\top + \mathbf 1 m^\top\big).$$
#
# But it does touch later steps: it moves every later $Z_s$ by $-\frac{\alpha}{S} G\, dR_t$. Let $B_s$ be what a change
# of the *logits* $Z_s$ is worth. Then $R_t$ is worth $Q - \frac{\alpha}{S} G \sum_{s > t} B_s$, and since $R_t$ comes
# from $Z_t$ through a softmax with Jacobian $J_t$,
#
# $$B_t = J_t \Big( Q - \frac{\alpha}{S}\, G\, (B_{t+1} + \dots + B_{T-1}) \Big),
# \qquad J_t\, b = P_t \odot (b - \langle P_t, b \rangle) \text{ in each row.}$$


# %%
def through_softmax(p, b):
    """J b, row by row."""
    return p * (b - (p * b).sum(dim=1, keepdim=True))


Q = -rate * (H @ M.T + m)
later, B = torch.zeros_like(Q), [None] * T
for t in reversed(range(T)):
    B[t] = through_softmax(P[t], Q - rate * G @ later)
    later = later + B[t]

# %% [markdown]
# **Collect.** $H$ itself stands in three places: in $Z_t = H W_t^\top + b_t$ (worth $B_t W_t$), in the steps inside
# each $W_t$, and in the steps inside $W_T$ (worth $-\frac{\alpha}{S} R_t M$). Write every $W_t$ as $W_0$ minus its
# steps, and with
#
# $$K = \sum_t B_t\, (R_0 + \dots + R_{t-1})^\top \quad (S \times S)$$
#
# the second place is the mirror image of the first:
#
# $$\frac{\partial F}{\partial H} = \Big(\sum_t B_t\Big) W_0
# - \frac{\alpha}{S} \Big[ (K + K^\top)\, H + \Big(\sum_t R_t\Big) M \Big].$$

# %%
K = sum(B[t] @ sum(R[:t]).T for t in range(1, T))
by_hand = sum(B) @ W_0 - rate * ((K + K.T) @ H + sum(R) @ M)
print(f"by hand against unrolled: {error(by_hand, exact):.1e}")
assert error(by_hand, exact) < 1e-10

# %% [markdown]
# Equal to rounding: this is no approximation but the same number, in another order of work. It is called the
# **adjoint** method, or reverse mode by hand. The package has it for many problems side by side.

# %%
from caml_core.hypergradients import Problem, adjoint, hypergradient

scene = Problem(H, y, V, y, W_0, b_0)
packaged = hypergradient(scene, "adjoint", alpha=ALPHA, steps=T)
assert error(packaged.gradient, by_hand) < 1e-12
assert abs(packaged.loss - F(H)) < 1e-12

# %% [markdown]
# What is gained? For each step, the adjoint keeps two $S \times C$ matrices, $P_t$ and $R_t$, and nothing as wide as
# the features. Autograd keeps a head for each step, and more. We weigh the two when all five ways stand side by side.
#
# ## Third way: leave something out
#
# If going back through all steps is too much, go back through some of them. Two shortcuts are in use:
#
# - **Truncated**: differentiate through the last $k$ steps only; what came before is taken as given.
# - **First order**: through every step, but as if no step changed what a later one does. In our formulas: leave out the
#   feedback $-\frac{\alpha}{S} G \sum_{s>t} B_s$.
#
# For a test we need a problem with more directions than two. In these drawn features, eight columns say the shortcut
# loudly, eight others say the label softly, and the rest is noise. The head is logistic regression on a training set
# with the shortcut, the hard set holds what this head gets most wrong.

# %%
from caml_core.data.dataset import GroupDataset


def drawn(n, rho, width, seed, signal=8):
    """Features (n, width) with a shortcut that holds in a share rho."""
    draws = torch.Generator().manual_seed(seed)
    y = torch.arange(n) % 2
    a = torch.where(torch.rand(n, generator=draws) < rho, y, 1 - y)
    x = torch.randn(n, width, generator=draws)
    loud, soft = (8 / signal) ** 0.5, 0.5 * (8 / signal) ** 0.5
    x[:, :signal] += loud * (2.0 * a - 1)[:, None]
    x[:, signal : 2 * signal] += soft * (2.0 * y - 1)[:, None]
    names = {"class_names": ("0", "1"), "attribute_names": ("0", "1")}
    return GroupDataset(x, y, a, **names)


# %%
def erm_head(split):
    """Ridge logistic regression: weight (2, D) and bias (2,)."""
    weight = split.x.new_zeros(2, split.x.shape[1]).requires_grad_()
    bias = split.x.new_zeros(2).requires_grad_()
    opt = torch.optim.LBFGS([weight, bias], max_iter=50)

    def closure():
        opt.zero_grad()
        loss = cross_entropy(split.x @ weight.T + bias, split.y)
        loss = loss + 0.01 * weight.square().sum()
        loss.backward()
        return loss

    opt.step(closure)
    return weight.detach(), bias.detach()


# %%
def hsfm_problem(width, k=64, seed=0, signal=8):
    """A batch of one problem as HSFM meets it in its first epoch."""
    train = drawn(2000, 0.95, width, seed, signal)
    val = drawn(1000, 0.5, width, seed + 1, signal)
    weight, bias = erm_head(train)
    wrong = cross_entropy(val.x @ weight.T + bias, val.y, reduction="none")
    hard = []
    for c in (0, 1):
        of_class = torch.where(val.y == c)[0]
        hard.append(of_class[wrong[of_class].topk(k).indices])
    hard = torch.cat(hard)
    support = train.x[None, :32], train.y[None, :32]
    head = weight[None], bias[None]
    return Problem(*support, val.x[hard], val.y[hard], *head)


middle = hsfm_problem(width=64)

# %% [markdown]
# How strongly does one step feed into the next? That is a matter of $\alpha$ times the **curvature** of the support
# loss: the eigenvalues of its Hessian in the head,
#
# $$N_0 = \frac1S \sum_i \tilde h_i \tilde h_i^\top \otimes \big(\mathrm{diag}(p_i) - p_i p_i^\top\big),
# \qquad \tilde h = (h, 1).$$


# %%
def start_of(problem):
    """What the starting head makes of the support set: (B, S, 2)."""
    logits = problem.support @ problem.weight.mT + problem.bias[:, None]
    return logits.softmax(dim=-1)


def hessian(H, p):
    """Hessian of the support loss in the head: (C (D+1), C (D+1))."""
    h1 = torch.cat([H, torch.ones(len(H), 1)], dim=1)
    J = torch.diag_embed(p) - p[:, :, None] * p[:, None, :]
    N = torch.einsum("icd,ia,ib->cadb", J, h1, h1) / len(H)
    return N.reshape(p.shape[1] * h1.shape[1], -1)


N_0 = hessian(middle.support[0], start_of(middle)[0])
all_curvatures = torch.linalg.eigvalsh(N_0).flip(0)
print("largest curvatures:", all_curvatures[:5].numpy().round(2))

# %% [markdown]
# With 2,048 features that matrix would be large. But it has rank $S$ at most for two classes, and the Gram matrix knows
# its eigenvalues, too: they are those of $\frac1S D^{1/2} G D^{1/2}$ with $D = \mathrm{diag}\big(2 p_i (1 - p_i)\big)$.


# %%
def curvatures(H, p):
    """Eigenvalues of the Hessian, two classes: (..., S), rising."""
    root = (2 * p[..., 0] * p[..., 1]).sqrt()
    scaled = root[..., None] * (H @ H.mT + 1) * root[..., None, :]
    return torch.linalg.eigvalsh(scaled / H.shape[-2])


spectrum = curvatures(middle.support, start_of(middle))[0].flip(0)
assert torch.allclose(spectrum, all_curvatures[:32], atol=1e-10)

# %%
STEPS = 20
top = spectrum[0].item()
SETTINGS = {  # two values of alpha T times the largest curvature
    "small steps": 0.1 / (STEPS * top),
    "large steps": 20 / (STEPS * top),
}
for name, alpha in SETTINGS.items():
    print(f"{name}: alpha T curvature = {alpha * STEPS * top:.1f}")

# %% [markdown]
# Both settings are stable: descent explodes only for $\alpha \lambda > 2$. Now compare with the exact gradient. Two
# numbers matter: the **relative error**, which also sees a wrong length, and the **cosine**, which sees the direction
# only. (Adam divides by the gradient's size, so HSFM's edits care for the direction much more than for the length.)


# %%
def cosine(found, truth):
    return ((found * truth).sum() / found.norm() / truth.norm()).item()


KS = range(1, STEPS + 1)
quality = {}
for name, alpha in SETTINGS.items():
    run = {"alpha": alpha, "steps": STEPS}
    truth = adjoint(middle, **run).gradient
    found = [adjoint(middle, last=k, **run).gradient for k in KS]
    found += [hypergradient(middle, "first_order", **run).gradient]
    quality[name] = {
        "relative error": [error(g, truth) for g in found],
        "cosine": [cosine(g, truth) for g in found],
    }

# %%
from plotly.subplots import make_subplots

WAYS = {
    "unrolled": "#7A7A7A",
    "adjoint": "#0072B2",
    "truncated": "#D55E00",
    "first order": "#E69F00",
    "implicit": "#009E73",
    "Neumann": "#56B4E9",
    "KFAC": "#CC79A7",
}

# %%
figure = make_subplots(1, 2, horizontal_spacing=0.14)
for (name, found), dash in zip(quality.items(), ("dot", "solid")):
    for column, measure in enumerate(("relative error", "cosine"), start=1):
        *cut, first = np.round(found[measure], 4)
        for way, ys in (("truncated", cut), ("first order", [first] * STEPS)):
            figure.add_scatter(
                x=list(KS),
                y=ys,
                name=f"{way}, {name}",
                line={"color": WAYS[way], "dash": dash, "width": 2.5},
                showlegend=column == 1,
                row=1,
                col=column,
            )
figure.update_xaxes(title="k, steps differentiated", range=[0.5, STEPS + 0.5])
figure.update_yaxes(title="relative error", rangemode="tozero", col=1)
figure.update_yaxes(title="cosine with exact", range=[0.78, 1.01], col=2)
figure.update_layout(
    title="With large steps, leaving out costs the direction, too",
    height=430,
    margin_t=110,
    legend={"entrywidth": 210},
)

# %%
small, big = quality["small steps"], quality["large steps"]
for found in quality.values():
    print(f"half the steps: cosine {found['cosine'][9]:.3f},", end=" ")
    print(f"first order: cosine {found['cosine'][-1]:.3f}")
assert min(small["cosine"]) > 0.99
assert abs(small["relative error"][9] - 0.5) < 0.06  # 1 - k/T
assert small["relative error"][-1] < 0.1
assert big["cosine"][0] < 0.97
assert big["cosine"][-1] < 0.95
assert big["relative error"][-1] > 1
assert big["relative error"][0] > 0.85

# %% [markdown]
# With small steps all is well: the truncated gradient has the right direction and the length $k/T$, and first order is
# nearly exact. With large steps both turn away from the truth, and how far depends on the draw (try another `seed`).
# First order becomes much too long. The truncated gradient stays about as short as before, although with large steps
# one might expect the last few to decide everything.
#
# ### When truncation lies
#
# A picture explains it. Suppose that the loss were quadratic. Then directions do not mix, and along one with curvature
# $\lambda$ a change made at some step shrinks by $1 - \alpha \lambda$ in each later one. Everything that one learns
# about this direction is multiplied by a factor:
#
# | way | factor |
# |:--|:--|
# | exact | $\alpha \sum_{j<T} (1 - \alpha\lambda)^j = \big(1 - (1 - \alpha \lambda)^T\big) / \lambda$ |
# | truncated | $\big(1 - (1 - \alpha \lambda)^k\big) / \lambda$ |
# | first order | $\alpha T$ |
# | implicit (next section) | $1 / \big(\lambda + \tfrac{1}{\alpha T}\big)$ |

# %%
strain = torch.logspace(-2.5, 1.5, 121)  # alpha T lambda
shrink = 1 - strain / STEPS
factors = {
    "adjoint": (1 - shrink**STEPS) / strain,
    "truncated": (1 - shrink ** (STEPS // 4)) / strain,
    "first order": torch.ones_like(strain),
    "implicit": 1 / (strain + 1),
}
figure = go.Figure()
for way, factor in factors.items():
    name = {"adjoint": "exact", "truncated": "truncated, k = T/4"}.get(way, way)
    figure.add_scatter(
        x=strain.numpy().round(5),
        y=factor.numpy().round(4),
        name=name,
        line={"color": WAYS[way], "width": 3},
    )

# %%
for height, (name, alpha) in zip((-0.07, -0.16), SETTINGS.items()):
    ticks = STEPS * alpha * spectrum
    figure.add_scatter(
        x=ticks.numpy().round(5),
        y=[height] * len(ticks),
        name=f"our problem, {name}",
        mode="markers",
        marker={"symbol": "line-ns-open", "size": 11},
        marker_color=MAJORITY if name == "small steps" else "#3b4048",
    )
figure.update_layout(
    title="Truncation forgets the flat, first order overrates the steep",
    xaxis={"title": "α T λ", "type": "log", "range": [-2.5, 1.5], "dtick": 1},
    yaxis={"title": "factor, in units of α T", "range": [-0.24, 1.1]},
    yaxis_tickvals=[0, 0.25, 0.5, 0.75, 1],
    height=480,
    margin_t=110,
    legend={"entrywidth": 190},
)

# %% [markdown]
# The ticks below are the curvatures of our problem. Read it from left to right:
#
# - **Flat directions** ($\alpha T \lambda \ll 1$). All steps count alike, so the last $k$ of them hold $k/T$ of the
#   answer. First order and implicit agree with exact.
# - **Steep directions** ($\alpha T \lambda \gg 1$). Here training has arrived, and only the last steps matter: exact,
#   truncated and implicit agree on $1/\lambda$. First order does not know that later steps repair what earlier ones
#   did, and stays at $\alpha T$.
#
# A gradient is a mixture of directions. As long as all ticks are at the left, truncation only gets the length wrong.
# When the ticks spread over both sides, truncation weighs flat directions too little *against* steep ones: the arrow
# turns. A flat spectrum far at the right would make truncation harmless again. Few problems have one: there are always
# directions in which a few steps get nowhere.

# %%
strained = STEPS * SETTINGS["large steps"] * spectrum
share = (strained < 1).double().mean()
print(f"large steps: {100 * share:.0f}% of all curvatures are still flat")
assert 0.1 < share < 0.9
ratio = factors["adjoint"] / factors["implicit"]
print(f"exact over implicit: at most {ratio.max():.2f}")
assert 1.25 < ratio.max() < 1.35

# %% [markdown]
# Keep the last number in mind for the next section: for *every* curvature, exact and implicit agree up to this factor.
#
# ### See it turn
#
# Back to the plane. Each arrow says where a support point should go. Move the slider: at small $k$ some arrows point
# elsewhere. Truncated arrows are stretched, so that both fields have the same overall length.

# %%
batch = Problem(H[None], y[None], V, y, W_0[None], b_0[None])
LENGTH = 0.8


def arrows(gradient, colour, name, width):
    """Where the points should go, as one trace of lines with heads."""
    tips = -LENGTH * gradient / gradient.norm() * S**0.5
    xs, ys = [], []
    for (x, y), (u, v) in zip(H.tolist(), tips.tolist()):
        for turn in (2.7, -2.7):  # the two strokes of the head
            c, s = 0.18 * np.cos(turn), 0.18 * np.sin(turn)
            xs += [x, x + u, x + u + c * u - s * v, None]
            ys += [y, y + v, y + v + s * u + c * v, None]
    line = {"color": colour, "width": width}
    xs, ys = (np.array(v, "float64").round(3) for v in (xs, ys))
    return go.Scatter(x=xs, y=ys, name=name, mode="lines", line=line)


# %%
def truncated_field(k):
    """Arrows of one slider position, and a line of text."""
    g = adjoint(batch, alpha=ALPHA, steps=T, last=k).gradient[0]
    size, turned = g.norm() / exact.norm(), cosine(g, exact)
    text = f"length {100 * size:.0f}% of exact, cosine {turned:.2f}"
    words = go.Scatter(
        x=[-2.8], y=[-1.85], text=[text], mode="text", showlegend=False
    )
    words.textposition = "top right"
    return [arrows(g, WAYS["truncated"], "truncated", 2.5), words]


frames = [
    go.Frame(name=str(k), data=truncated_field(k), traces=[2, 3])
    for k in range(1, T + 1)
]

# %%
figure = plane(
    points(H, "support set", "circle"),
    arrows(exact, WAYS["adjoint"], "exact", 5),
    *truncated_field(1),
    title="A truncated gradient sends some points elsewhere",
)
figure.data[1].opacity = 0.45
figure.update_yaxes(range=[-2, 2.3])
figure.frames = frames
jump = {"mode": "immediate", "frame": {"duration": 0, "redraw": True}}
steps = [
    {"method": "animate", "label": f.name, "args": [[f.name], jump]}
    for f in frames
]
slider = {"steps": steps, "active": 0, "pad": {"t": 60}}
slider["currentvalue"] = {"prefix": "steps differentiated, k = "}
figure.update_layout(sliders=[slider], height=620)

# %%
one = adjoint(batch, alpha=ALPHA, steps=T, last=1).gradient[0]
by_point = torch.nn.functional.cosine_similarity(one, exact, dim=1)
print("cosine of each arrow at k = 1:", by_point.numpy().round(2))
assert by_point.min() < 0.8
assert cosine(one, exact) < 0.9
whole = adjoint(batch, alpha=ALPHA, steps=T, last=T).gradient[0]
assert error(whole, exact) < 1e-12

# %% [markdown]
# ## Fourth way: forget the path
#
# If training had arrived at a minimum, it would not matter how it got there. Let $W^*$ minimise
#
# $$L(H, W) + \frac{\mu}{2} \lVert W - W_0 \rVert^2, \qquad \mu = \frac{1}{\alpha T},$$
#
# where the pull to $W_0$ stands for having taken only $T$ steps of size $\alpha$; the figure of factors says why this
# $\mu$ (and Ali et al., 2019, say it in full). At a minimum the gradient is zero, *whatever $H$ is*. Differentiate
# that statement, and you have the **implicit function theorem**: with $N = N_0 + \mu I$ at the minimum,
#
# $$N X = M, \qquad
# \frac{\partial F}{\partial H} = -\frac1S \big[ R\, X + J(\tilde H X^\top)\, W^* \big].$$
#
# No steps are left in it, only a linear system. First by hand, with the Hessian written out. Here $X$ and $M$ hold
# weights and bias side by side.

# %%
from caml_core.hypergradients import implicit, solve_head


def at_minimum(problem, mu, solve):
    """The implicit gradient of one problem; `solve(h, p, M)` gives X."""
    W, b, p = (part[0] for part in solve_head(problem, mu))
    h, v = problem.support[0], problem.hard
    h1, v1 = (torch.cat([x, torch.ones(len(x), 1)], dim=1) for x in (h, v))
    wrong = (v @ W.T + b).softmax(dim=1) - one_hot(problem.hard_y, 2)
    X = solve(h, p, wrong.T @ v1 / len(v))
    R = p - one_hot(problem.support_y[0], 2)
    back = through_softmax(p, h1 @ X.T)
    return -(R @ X[:, :-1] + back @ W) / len(h)


# %%
def dense(h, p, M, mu):
    """X from N X = M, with N written out."""
    N = hessian(h, p) + mu * torch.eye(M.numel())
    return torch.linalg.solve(N, M.flatten()).view_as(M)


mu = 1 / (ALPHA * T)
implied = at_minimum(batch, mu, lambda *parts: dense(*parts, mu))
packaged = implicit(batch, strength=mu).gradient[0]
assert error(packaged, implied) < 1e-9

# %% [markdown]
# Is it right? It is the exact derivative of *another* problem, the one with the minimum. Differences confirm it there,
# and the comparison with our $T$ steps shows the price.


# %%
def loss_at_minimum(H):
    moved = batch._replace(support=H[None])
    W, b, _ = solve_head(moved, mu)
    return cross_entropy(V @ W[0].T + b[0], y)


step = torch.zeros_like(H)
step[POINT, 0] = EPS
rise = loss_at_minimum(H + step) - loss_at_minimum(H - step)
assert abs(rise / (2 * EPS) - implied[POINT, 0]) < 1e-7
print(f"against T steps: error {error(implied, exact):.2f},", end=" ")
print(f"cosine {cosine(implied, exact):.3f}")
assert 0.1 < error(implied, exact) < 0.5
assert cosine(implied, exact) > 0.95

# %% [markdown]
# The length is off, as the factors predict, and the direction is good: this way does not forget the flat directions.
#
# ### Solving without the matrix
#
# With 2,048 features and two classes, $N$ would be a square of 4,098. Nobody writes it out: a product $N X$ is two
# small matrix products. **Conjugate gradients** (CG) solve the system with nothing else. So does a power series, the
# **Neumann series**
#
# $$N^{-1} = \frac1s \sum_{j=0}^{\infty} \Big(I - \frac{N}{s}\Big)^j, \qquad s \ge \lambda_{\max}(N),$$
#
# which looks like a training run with step $1/s$, because it is one. How many products do they need?

# %%
alpha = SETTINGS["large steps"]
strength = 1 / (alpha * STEPS)
truth = at_minimum(middle, strength, lambda *p: dense(*p, strength))
COUNTS = [1, 2, 3, 5, 7, 10, 15, 20, 30, 50, 70, 100, 150, 200, 300]
curves = {}
for solver, way in (("cg", "implicit"), ("neumann", "Neumann")):
    kind = {"strength": strength, "solver": solver}
    curves[way] = [
        error(implicit(middle, iterations=n, **kind).gradient[0], truth)
        for n in COUNTS
    ]

# %%
figure = go.Figure()
for way, errors in curves.items():
    name = "conjugate gradients" if way == "implicit" else "Neumann series"
    shown = [(n, e) for n, e in zip(COUNTS, errors) if e > 1e-11]
    xs, ys = zip(*shown)
    style = {"color": WAYS[way], "width": 3}
    figure.add_scatter(x=xs, y=ys, name=name, line=style, mode="lines+markers")
figure.update_layout(
    title="CG is done before the power series has begun",
    xaxis={"title": "products with the Hessian", "type": "log"},
    yaxis={"title": "relative error", "type": "log", "dtick": 2},
    yaxis_exponentformat="power",
)

# %%
at = dict(zip(COUNTS, zip(*curves.values())))
for n in (7, 20, 300):
    print("{:3} products: CG {:.0e}, Neumann {:.0e}".format(n, *at[n]))
assert at[7][0] < 0.1 * at[7][1]
assert at[20][0] < 1e-4 * at[20][1]
assert at[300][1] < 0.5 * at[20][1]  # slow, but it gets there

# %% [markdown]
# CG adapts to the spectrum: a few steep directions and a crowd of similar ones are quickly told apart. The series has
# one step size for all, so the steepest direction that *could* occur dictates it, and flat ones take for ever. It has
# one advantage: cut off early it is stable, and even regularises, which is why large networks use it (Lorraine et al.,
# 2020).
#
# ## Fifth way: another matrix
#
# **KFAC** (Martens and Grosse, 2015) replaces $N_0$ by something that can be inverted in pieces. The mean of a product
# becomes the product of the means:
#
# $$\frac1S \sum_i \tilde h_i \tilde h_i^\top \otimes E_i \;\approx\;
# \underbrace{\frac1S \sum_i \tilde h_i \tilde h_i^\top}_{A} \otimes \underbrace{\frac1S \sum_i E_i}_{E},
# \qquad E_i = \mathrm{diag}(p_i) - p_i p_i^\top .$$
#
# Two small eigenproblems, $A$ and $E$, then give the inverse exactly. On the plane we can look at it.


# %%
def factors_of(h, p):
    """A (D+1, D+1) and E (C, C)."""
    h1 = torch.cat([h, torch.ones(len(h), 1)], dim=1)
    E_i = torch.diag_embed(p) - p[:, :, None] * p[:, None, :]
    return h1.T @ h1 / len(h), E_i.mean(dim=0)


def kronecker(h, p, M):
    """X from the approximated system, as a dense matrix once more."""
    A, E = factors_of(h, p)
    N = torch.kron(E, A) + mu * torch.eye(M.numel())
    return torch.linalg.solve(N, M.flatten()).view_as(M)


by_kfac = at_minimum(batch, mu, kronecker)
packaged = implicit(batch, strength=mu, solver="kfac").gradient[0]
assert error(packaged, by_kfac) < 1e-9

# %%
p = solve_head(batch, mu)[-1][0]
A, E = factors_of(H, p)
matrices = hessian(H, p), torch.kron(E, A)
inverses = [torch.linalg.inv(N + mu * torch.eye(6)) for N in matrices]

# %%
labels = [f"{f}, {c}" for c in (0, 1) for f in ("shortcut", "core", "bias")]
figure = make_subplots(
    1, 2, subplot_titles=["exact inverse", "KFAC"], shared_yaxes=True
)
reach = max(float(inverse.abs().max()) for inverse in inverses)
for column, inverse in enumerate(inverses, start=1):
    heat = go.Heatmap(
        z=inverse.numpy().round(2),
        x=labels,
        y=labels,
        text=inverse.numpy().round(1),
        texttemplate="%{text}",
        **{"colorscale": "RdBu_r", "zmin": -reach, "zmax": reach},
        showscale=False,
    )
    figure.add_trace(heat, 1, column)
figure.update_yaxes(autorange="reversed")
figure.update_xaxes(tickangle=-40, title="feature, class")
figure.update_yaxes(title="feature, class", col=1)
figure.update_layout(
    title="KFAC finds the pattern of the inverse and rounds off its details",
    height=440,
    margin_t=80,
)

# %%
off = error(inverses[1], inverses[0])
print(f"inverse off by {100 * off:.0f}%,", end=" ")
print(f"gradient by {100 * error(by_kfac, implied):.0f}%")
assert 0.01 < off < 0.8

# %% [markdown]
# KFAC loses the connection between *where* a point lies and *how sure* the head is there. So it is exact when the head
# is equally sure of all support points, and the more they differ, the worse it gets. Check both on the 64 drawn
# features: take one point 32 times, then the real points with a starting head that is surer and surer.

# %%
same = middle.support[:, :1].expand_as(middle.support)
twins = middle._replace(support=same)
pair = [
    implicit(twins, strength=1.0, solver=s).gradient for s in ("kfac", "cg")
]
assert error(*pair) < 1e-8

# %%
spreads, offs = [], []
for scale in (0.0, 0.25, 0.5, 1.0, 2.0):
    other = middle._replace(weight=scale * middle.weight)
    p_other = solve_head(other, 1.0)[-1][0]
    sure = p_other[:, 0] * p_other[:, 1]
    spreads.append((sure.std() / sure.mean()).item())
    pair = [
        implicit(other, strength=1.0, solver=s).gradient for s in ("kfac", "cg")
    ]
    offs.append(error(*pair))
for spread, off in zip(spreads, offs):
    print(f"p(1-p) varies by {100 * spread:3.0f}%: gradient off by {off:.2f}")
assert spreads == sorted(spreads)
assert offs[-1] > 2 * offs[0]

# %% [markdown]
# ## What each way costs
#
# Now all of them on a problem of the published size: 32 support points, 2,048 features, 512 hard examples, ten steps,
# single precision, one problem at a time. The ways take turns, so that a busy moment hits all alike, and each way's
# fastest turn counts. The truth is the unrolled gradient in double precision.

# %%
import time

from caml_core.hypergradients import unrolled as package_unrolled

full = hsfm_problem(width=2048, k=256, signal=128)
floats = Problem(
    *(v.float() if v is not None and v.is_floating_point() else v for v in full)
)
PUBLISHED_T = 10
steepest = curvatures(full.support, start_of(full)).max().item()
CASES = {
    "published steps": 1e-4,
    "large steps": 10 / (PUBLISHED_T * steepest),
}
for name, alpha in CASES.items():
    strain_there = alpha * PUBLISHED_T * steepest
    print(f"{name}: alpha T curvature = {strain_there:.2f}")

# %%
from caml_core.hypergradients import first_order


def ways(alpha):
    """Each way as a function without arguments."""
    o = {"alpha": alpha, "steps": PUBLISHED_T}
    mu = 1 / (alpha * PUBLISHED_T)
    return {
        "unrolled": lambda: package_unrolled(floats, **o),
        "adjoint": lambda: adjoint(floats, **o),
        "truncated": lambda: adjoint(floats, last=5, **o),
        "first order": lambda: first_order(floats, **o),
        "implicit": lambda: implicit(floats, strength=mu),
        "Neumann": lambda: implicit(floats, strength=mu, solver="neumann"),
        "KFAC": lambda: implicit(floats, strength=mu, solver="kfac"),
    }


# %%
def measured(alpha, turns=12):
    """Relative error and milliseconds of each way."""
    o = {"alpha": alpha, "steps": PUBLISHED_T}
    truth = package_unrolled(full, **o).gradient
    found, taken = {}, {name: [] for name in WAYS}
    for _ in range(turns):
        for name, way in ways(alpha).items():
            start = time.perf_counter()
            found[name] = way().gradient.double()
            taken[name].append(1000 * (time.perf_counter() - start))
    return {
        name: (error(found[name], truth), min(taken[name])) for name in WAYS
    }


results = {name: measured(alpha) for name, alpha in CASES.items()}

# %%
figure = make_subplots(1, 2, shared_yaxes=True, subplot_titles=list(CASES))
for column, found in enumerate(results.values(), start=1):
    for name, (off, ms) in found.items():
        figure.add_scatter(
            x=[ms],
            y=[off],
            name="truncated, k = T/2" if name == "truncated" else name,
            mode="markers",
            marker={"color": WAYS[name], "size": 15},
            showlegend=column == 1,
            row=1,
            col=column,
        )
figure.update_xaxes(type="log", title="milliseconds", dtick="D2")
figure.update_yaxes(type="log", dtick=1, exponentformat="power")
figure.update_layout(
    title="The adjoint is exact at the price of an approximation",
    yaxis_title="relative error",
    height=480,
    margin_t=130,
    legend={"y": 1.12, "entrywidth": 140},
)

# %%
from IPython.display import Markdown

lines = ["| way | error, published | error, large | ms |", "|:--|--:|--:|--:|"]
for name in WAYS:
    (a, ms), (b, _) = (found[name] for found in results.values())
    lines.append(f"| {name} | {a:.1e} | {b:.1e} | {ms:.2f} |")
Markdown("\n".join(lines))

# %%
for found in results.values():
    assert found["adjoint"][0] < 1e-4
    assert found["unrolled"][0] < 1e-4
    assert found["truncated"][0] > 0.2
    assert found["adjoint"][1] < found["unrolled"][1]
    assert found["adjoint"][1] < 4 * found["first order"][1]
assert results["published steps"]["first order"][0] < 0.1
assert results["large steps"]["first order"][0] > 0.1

# %% [markdown]
# Far down is accurate, far left is cheap.
#
# - The adjoint is as accurate as autograd, and far cheaper. Only first order and truncation cost less, by a fraction
#   of a millisecond: the steps and the two passes over the hard set have to be made anyway.
# - The implicit ways are *not* cheaper here. Their strength is a cost that does not grow with $T$; with ten steps in
#   Gram space there is not much to save.
# - At the published steps even the crude ways are usable: all but truncation are right within a few per cent.
#
# And memory? Autograd tells us what it keeps for the way back, if we watch it save.

# %%
kept = {}


def note(tensor):
    """Remember each piece of memory once."""
    kept[tensor.untyped_storage().data_ptr()] = tensor  # and hold on to it
    return tensor


with torch.autograd.graph.saved_tensors_hooks(note, lambda saved: saved):
    package_unrolled(full, alpha=1e-4, steps=PUBLISHED_T)
data = {full.support.data_ptr(), full.hard.data_ptr()}
saved = sum(x.numel() for at, x in kept.items() if at not in data)
print(f"autograd keeps {saved:>7,} numbers beside the data")
print(f"the adjoint    {PUBLISHED_T * 2 * 32 * 2:>7,}")
assert saved > PUBLISHED_T * 2 * 2048  # a head for each step

# %% [markdown]
# ### And the libraries?
#
# Libraries for bilevel problems offer the first way for any network: an optimiser whose steps autograd sees through.
# With TorchOpt (Ren et al., 2022) and higher (Grefenstette et al., 2019) our inner loop reads
#
# ```python
# opt = torchopt.MetaSGD(head, lr=alpha)
# for _ in range(T):
#     opt.step(cross_entropy(head(H), y))
# gradient = torch.autograd.grad(cross_entropy(head(V), y_V), H)
#
# with higher.innerloop_ctx(head, SGD(head.parameters(), lr=alpha)) as (copy, opt):
#     for _ in range(T):
#         opt.step(cross_entropy(copy(H), y))
#     gradient = torch.autograd.grad(cross_entropy(copy(V), y_V), H)
# ```
#
# Both install beside the book's packages. `python benchmarks/hypergradient.py --libraries` compares whichever it finds.
# In November 2026, with torch 2.14.1, torchopt 0.7.3 and higher 0.2.1, on one core in double precision (32 support points
# of 256 features, 64 hard examples, ten steps), both agreed with the adjoint to rounding and cost about as much as the
# plain unrolled loop. That is what one should expect, since it is the same computation. betty-ml could not be compared:
# its latest version refuses Python 3.11 (and with the check switched off it has implicit derivatives and finite
# differences, none through the steps); its last version before that has metadata that pip no longer reads.
#
# So take a library when the inner model is a network with an optimiser of its own. For a linear head there is nothing to
# gain. The cell below is what can be checked without them: the same size, in double precision.

# %%
small = hsfm_problem(width=256, k=32, signal=16)
o = {"alpha": 1e-4, "steps": PUBLISHED_T}
pair = [way(small, **o).gradient for way in (package_unrolled, adjoint)]
print(f"adjoint against unrolled: {error(*pair):.0e}")
assert error(*pair) < 1e-12

# %% [markdown]
# ## In HSFM's own run
#
# So is first order good enough for HSFM? That figure speaks of the *first* edit. HSFM makes hundreds, and the support
# set does not stay what it was. Run HSFM on drawn features with the published settings (for fewer epochs), and after
# each epoch ask every way what it would answer there. We also note $\alpha\lambda$ for the largest curvature at the
# minimum that the implicit ways look at.

# %%
import os
from dataclasses import replace

from caml_core.features import standardise
from caml_core.hsfm import PUBLISHED, draw_support, hsfm, scaled

FULL = os.environ.get("CAML_PROFILE", "quick") == "full"
SEEDS, EPOCHS = range(16 if FULL else 6), 10
train_set, val_set = standardise(
    drawn(2000, 0.9, 1280, seed=0, signal=160),
    drawn(1500, 0.5, 1280, seed=1, signal=160),
)
settings = scaled(PUBLISHED["dominoes"], train_set.x)
settings = replace(settings, epochs=EPOCHS)
rows = draw_support(train_set, settings.support, SEEDS)

# %%
COMPARED = ("first order", "truncated", "implicit", "KFAC")
cosines = {name: [] for name in COMPARED}
strains = []


def watch(epoch, support, weight, bias, hard):
    """What each way says about the support set as it is now."""
    labels = train_set.y[rows], val_set.y[hard]
    now = Problem(support, labels[0], val_set.x[hard], labels[1], weight, bias)
    run = {"alpha": settings.alpha, "steps": settings.steps}
    mu = 1 / (settings.alpha * settings.steps)
    truth = adjoint(now, **run).gradient
    answers = {
        "first order": first_order(now, **run),
        "truncated": adjoint(now, last=settings.steps // 2, **run),
        "implicit": implicit(now, strength=mu),
        "KFAC": implicit(now, strength=mu, solver="kfac"),
    }
    for name, answer in answers.items():
        pairs = zip(answer.gradient, truth)
        cosines[name].append([cosine(g, exact) for g, exact in pairs])
    p = solve_head(now, mu)[-1]
    strains.append(settings.alpha * curvatures(support, p)[:, -1])


# %%
def fit(name="adjoint", watch=None):
    """One HSFM run for each seed, edited along one way's gradients."""
    return hsfm(
        train_set,
        val_set,
        *head,
        replace(settings, hypergradient=name),
        seeds=SEEDS,
        on_epoch=watch,
    )


head = erm_head(train_set)
edits = fit(watch=watch)
norms = [h.norm(dim=-1).mean() for h in (edits.before, edits.after)]
print("mean norm of a support point: {:.0f}, later {:.0f}".format(*norms))
assert norms[1] > 3 * norms[0]

# %%
figure = go.Figure()
xs = list(range(EPOCHS + 1))
for name in COMPARED:
    by_seed = np.array(cosines[name]).round(3)  # (epochs + 1, seeds)
    style = {"color": WAYS[name], "width": 3}
    label = "truncated, k = T/2" if name == "truncated" else name
    middle_one = np.median(by_seed, axis=1)
    figure.add_scatter(x=xs, y=middle_one, name=label, line=style)
    figure.add_scatter(
        x=np.repeat(xs, len(SEEDS)),
        y=by_seed.ravel(),
        mode="markers",
        marker={"color": WAYS[name], "size": 7, "opacity": 0.45},
        showlegend=False,
    )
figure.update_layout(
    title="On edited support sets, the implicit ways lose the direction",
    xaxis={"title": "epoch of HSFM", "dtick": 1},
    yaxis_title="cosine with the exact gradient",
)

# %% [markdown]
# A dot is a run, a line the median. The edits have made the support features several times longer, and curvature grows
# with the *square* of that length. But only where $p(1-p)$ is not zero: most points are so far from the border that
# the head is entirely sure of them. There is no curvature at all, until training carries a point over the border, where
# it is enormous. A step of size $\alpha$ jumps over the border; a minimum comes to rest *on* it. From there on, the
# two problems have little in common. The numbers agree with this story:

# %%
strained = torch.stack(strains).numpy()  # alpha * curvature at the minimum
by_run = np.array(cosines["implicit"])
calm, steep = by_run[strained < 0.1], by_run[strained > 1]
print("implicit, median cosine where the minimum is")
print(f"  calm  (alpha curvature < 0.1): {np.median(calm):.2f}")
print(f"  steep (alpha curvature > 1):   {np.median(steep):.2f}")
assert min(len(calm), len(steep)) >= 5
assert np.median(calm) > np.median(steep) + 0.3

# %%
astray = {}
for name in COMPARED:
    start, later = np.array(cosines[name][0]), np.array(cosines[name][1:])
    astray[name] = 100 * (later < 0.9).mean()
    print(f"{name:12} cosine below 0.9 in {astray[name]:2.0f}% of the states")
    assert start.min() > 0.99  # before any edit all agree
assert astray["implicit"] > 30
assert astray["KFAC"] > 30
assert astray["first order"] < 20
assert astray["truncated"] < 40

# %% [markdown]
# First order hardly ever goes astray here: where nothing curves, there is no feedback to forget. Where something does,
# it can be wrong altogether, and other draws of the data (another `seed`) show such states.
#
# Does all this matter for what HSFM is after? Let each way steer a run of its own.

# %%
reached = {"adjoint": edits}
reached |= {name: fit(name) for name in ("first_order", "implicit")}
for name, run in reached.items():
    worst = run.accuracy.amin(dim=-1).mean(dim=1)  # mean over seeds
    print(f"{name:12} validation WGA {worst[0]:.0f}, later {worst[-1]:.0f}")
    assert worst[-1] > worst[0] + 15

# %% [markdown]
# Here it hardly does. The edits go on for so long, and Adam forgives so much, that even a poor compass leads uphill.
# These are drawn features with an easy shortcut, so take it as a warning against the reverse conclusion: a method that
# works does not prove its gradient right.
#
# ## Which one?
#
# For a linear head: **the adjoint**. It is exact, so there is nothing to tune and nothing to wonder about when a run
# disappoints; it costs little more than the crudest approximation; and it is right in every regime, while each
# approximation is right in one, and HSFM's edits walk from one regime into another. Autograd stays as the judge in the
# tests. (With very many support points, write the same sweep another way: exercise 4.)
#
# Elsewhere the answer changes. If the inner model is a deep network, there is no Gram space to hide in: unroll a few
# steps, or truncate if you know the spectrum. If the inner training really converges, after thousands of steps, the
# implicit way with CG needs none of them. First order is for small steps, and $\alpha T \lambda$ tells you whether
# yours are small: look at it again *after* training.
#
# ## What we saw
#
# - A training run is a function of its data, and has a derivative. Differences measure it, at a run or two for each
#   number.
# - Unrolled autograd and the adjoint give the same exact number. For a linear head the adjoint lives in $S \times C$
#   numbers, keeps nothing as wide as the features, and is several times faster.
# - Truncation forgets flat directions, first order overrates steep ones. Both agree with exact while
#   $\alpha T \lambda$ is small, truncation up to its length.
# - The implicit way differentiates another problem, a minimum. Its length is off by a bounded factor as long as the
#   loss is nearly quadratic; the direction can be lost when it is not. CG inverts the Hessian in a few products, the
#   power series in hundreds, KFAC at once and with an error that grows as support points differ in confidence.
# - In HSFM's own run the implicit ways lost the direction in many states, truncation in some, first order in hardly
#   any; and the result, on drawn features, did not suffer.
#
# Turn these knobs and watch: `ALPHA` (from which value on do the arrows at small $k$ point elsewhere?), `width` of
# `hsfm_problem` (what happens to the spectrum when there are more features than support points?), `eta` of the settings
# (with smaller edits, do the implicit ways keep their direction?).
#
# ## Exercises
#
# 1. The adjoint gives $\partial F / \partial H$. Which line of it would give the derivative in the starting head,
#    $\partial F / \partial W_0$? Check it by differences.
# 2. Show that truncating at $k = 1$ and first order with $T = 1$ are the same, and that both are exact for $T = 1$.
# 3. Where exact and implicit differ most, what is $\alpha T \lambda$, and by how much? Use the factors for many small
#    steps, where $(1 - \alpha\lambda)^T$ becomes $e^{-\alpha T \lambda}$.
# 4. Count the operations of the adjoint. From which $S$ on is the Gram matrix a bad idea, and what would you do then?
#
# <details><summary>Solutions</summary>
#
# 1. $W_0$ stands in every $Z_t = H W_t^\top + b_t$, each worth $B_t$, and directly in $W_T$. So
#    $\partial F / \partial W_0 = M + \sum_t B_t^\top H$: `M + sum(B).T @ H`. Compare with differences of
#    `F` in which `W_0` is changed.
# 2. With one step nothing comes later, so the feedback that first order leaves out is empty, and so is what truncation
#    cuts off. For larger $T$ they differ: truncation takes the last step only, first order all of them.
# 3. With $x = \alpha T \lambda$ the ratio is $(1 - e^{-x})(1 + x)/x$. It is 1 at both ends and largest near
#    $x \approx 1.8$, where it is about 1.3. Implicit is shorter than exact by less than a quarter, in every direction.
# 4. $G$ costs about $S^2 D$ operations, once, and so does $(K + K^\top) H$; the plain steps cost about $T S D C$, as
#    does their way back. The Gram matrix pays while $S$ is not much larger than $T C$. With CelebA's 1,024 points for
#    each of two classes it is the wrong choice: the same sweep can be made with heads in place of logits. Keep every
#    $W_t$, start from $X = M$, and go back by $B_t = J_t(-\frac{\alpha}{S} H X^\top)$, $X \leftarrow X + B_t^\top H$
#    (the bias left out).
#
# </details>
#
# ## References
#
# - Yazdan Parast et al., [HSFM](https://arxiv.org/abs/2603.29313), 2026: hard-set-guided editing of support
#   features.
# - D. Maclaurin, D. Duvenaud, R. Adams, [Gradient-based hyperparameter optimization through reversible
#   learning](https://arxiv.org/abs/1502.03492), 2015: differentiating whole training runs, data included.
# - L. Franceschi et al., [Forward and reverse gradient-based hyperparameter
#   optimization](https://arxiv.org/abs/1703.01785), 2017: the adjoint of a training run.
# - A. Shaban et al., [Truncated back-propagation for bilevel optimization](https://arxiv.org/abs/1810.10667), 2019.
# - F. Pedregosa, [Hyperparameter optimization with approximate gradient](https://arxiv.org/abs/1602.02355), 2016, and
#   J. Lorraine, P. Vicol, D. Duvenaud, [Optimizing millions of hyperparameters by implicit
#   differentiation](https://arxiv.org/abs/1911.02590), 2020: the implicit way, by CG and by the Neumann series.
# - J. Martens, R. Grosse, [Optimizing neural networks with Kronecker-factored approximate
#   curvature](https://arxiv.org/abs/1503.05671), 2015: KFAC.
# - E. Grefenstette et al., [Generalized inner loop meta-learning](https://arxiv.org/abs/1910.01727), 2019: higher, and
#   J. Ren et al., [TorchOpt](https://arxiv.org/abs/2211.06934), 2022.
# - A. Ali, J. Z. Kolter, R. Tibshirani, [A continuous-time view of early stopping for least
#   squares](https://arxiv.org/abs/1810.10082), 2019: why $\mu = 1/(\alpha T)$.
