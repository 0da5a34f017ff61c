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
# # Hypergradients: differentiating a whole training run
#
# **Question.** How does one differentiate the *result* of a training run with respect to its *data*, and when may one
# take a cheaper derivative that is not exact?
#
# **You will be able to** write that derivative by autograd and by hand, and check one against the other; say from a
# spectrum when a truncated, a first-order or an implicit gradient can be trusted; and choose among these five ways by
# looking at accuracy and cost together.
#
# > **Before you start.** You need the chain rule, gradients of a softmax, and chapter [06](06_meta_gradients.ipynb) for
# > the idea of judging a step by where it ends. On a laptop with two cores this takes about half a minute and 1 GB of
# > memory; a GPU is not used. Nothing is downloaded: all data are drawn.

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
# ## A training run with a knob
#
# HSFM (hard-set-guided feature-space meta-learning, chapter [10](10_hsfm.ipynb)) trains a linear head for a few steps on
# a small **support set**, and a **hard set** says how good the trained head is. Then it changes the *support set*, so
# that the next training run ends better. Which way should a support point move? That is a derivative through a training
# run, a **hypergradient**.
#
# Here is such a problem, with drawn features: eight columns say a shortcut loudly, eight others say the label softly,
# the rest is noise. The head starts as logistic regression on a set in which the shortcut mostly holds; the hard set is
# what this head gets most wrong where it does not.

# %% tags=["hide-input"]
import torch
from caml_core.groups import GroupDataset
from caml_core.hypergradients import Problem, adjoint, first_order
from sklearn.linear_model import LogisticRegression
from torch.nn.functional import cross_entropy, one_hot

torch.set_default_dtype(torch.float64)


def drawn(n, rho, width, seed, signal=8):
    """Features (n, width) with a shortcut that holds in a share rho."""
    draws = torch.Generator().manual_seed(seed)
    y = torch.arange(n) % 2
    a = torch.where(torch.rand(n, generator=draws) < rho, y, 1 - y)
    x = torch.randn(n, width, generator=draws)
    loud = (8 / signal) ** 0.5
    x[:, :signal] += loud * (2.0 * a - 1)[:, None]
    x[:, signal : 2 * signal] += loud * (y - 0.5)[:, None]
    return GroupDataset(x, y, a, class_names="01", attribute_names="01")


def erm_head(split):
    """Ridge logistic regression: weight (2, D) and bias (2,)."""
    found = LogisticRegression(C=100 / len(split), tol=1e-8, max_iter=1000)
    found.fit(split.x.numpy(), split.y.numpy())
    w, b = torch.from_numpy(found.coef_), torch.from_numpy(found.intercept_)
    return torch.cat([-w, w]) / 2, torch.cat([-b, b]) / 2


def hsfm_problem(width, k=64, seed=0, signal=8):
    """A batch of one problem as HSFM meets it in its first epoch."""
    train = drawn(2000, 0.95, width, seed, signal)
    val = drawn(1000, 0.5, width, seed + 1, signal)
    weight, bias = erm_head(train)
    wrong = cross_entropy(val.x @ weight.T + bias, val.y, reduction="none")
    of_class = [torch.where(val.y == c)[0] for c in (0, 1)]
    hard = torch.cat([c[wrong[c].topk(k).indices] for c in of_class])
    support = train.x[None, :32], train.y[None, :32]
    head = weight[None], bias[None]
    return Problem(*support, val.x[hard], val.y[hard], *head)


# %%
scene = hsfm_problem(width=64)
H, y = scene.support[0], scene.support_y[0]  # (S, D), (S,)
V, V_y = scene.hard, scene.hard_y
W_0, b_0 = scene.weight[0], scene.bias[0]
S, T, ALPHA = len(H), 20, 0.9

# %% [markdown]
# **Training** is $T$ steps of gradient descent on the mean cross-entropy of the support set. With the residuals
# $R_t = \mathrm{softmax}(Z_t) - Y$, where $Z_t = H W_t^\top + b_t$ are the logits and $Y$ has a one for each label,
#
# $$W_{t+1} = W_t - \frac{\alpha}{S} R_t^\top H, \qquad b_{t+1} = b_t - \frac{\alpha}{S} R_t^\top \mathbf 1 .$$

# %%
Y = one_hot(y, 2).double()


def train(H, W=W_0):
    """The head after T steps on H, from (W_0, b_0)."""
    b = b_0
    for _ in range(T):
        R = (H @ W.T + b).softmax(dim=1) - Y
        W, b = W - ALPHA / S * R.T @ H, b - ALPHA / S * R.sum(dim=0)
    return W, b


def F(H, W=W_0):
    """What we want to lower: the loss of the hard set after training."""
    W, b = train(H, W)
    return cross_entropy(V @ W.T + b, V_y)


# %% [markdown]
# Shift one support point along the shortcut. For each position, train and score. What we are after is the slope of this
# curve where the point is now. **Central differences** measure the slope along any change $\Delta$ of the support set:
#
# $$\langle \nabla F, \Delta \rangle \approx \frac{F(H + \epsilon \Delta) - F(H - \epsilon \Delta)}{2 \epsilon}.$$

# %%
EPS = 1e-5
shift = torch.zeros_like(H)
shift[0, :8] = 8**-0.5  # one point, one unit along the shortcut


def slope_along(change, loss=F):
    return (loss(H + EPS * change) - loss(H - EPS * change)) / (2 * EPS)


slope = slope_along(shift).item()
print(f"slope at the point: {slope:+.4f}")

# %% tags=["hide-input"]
import numpy as np
import plotly.graph_objects as go
from caml_core.pictures.figures import MINORITY, use_book_style
from plotly.subplots import make_subplots

use_book_style()
offsets = torch.linspace(-8, 8, 161)
curve = torch.stack([F(H + offset * shift) for offset in offsets])
INK, near, now = "#3b4048", np.array([-2.5, 2.5]), F(H).item()
figure = go.Figure(layout={"showlegend": False})
figure.add_scatter(x=offsets.numpy().round(1), y=curve.numpy().round(4))
figure.add_scatter(x=near, y=now + slope * near, mode="lines")
figure.add_scatter(x=[0], y=[now], mode="markers")
figure.data[1].line = {"color": MINORITY, "width": 3, "dash": "dash"}
figure.data[2].marker = {"color": INK, "size": 11}
figure.update_layout(
    title="Every position of one support point is a training run",
    xaxis_title="shift of the point along the shortcut",
    yaxis_title="hard-set loss after training (nats)",
    meta={"alt": "A smooth curve, with its tangent where the point is now"},
)

# %% [markdown]
# Differences are a good judge and a hopeless method: two training runs for each number, and the smaller published
# problems have 32 support points of 2,048 features.
#
# ## First way: unroll, and let autograd do it
#
# Training is a chain of matrix products and softmaxes, and autograd differentiates such chains. It is enough to ask.


# %%
def unrolled(H):
    """dF/dH by autograd, back through all T steps."""
    H = H.clone().requires_grad_()
    return torch.autograd.grad(F(H), H)[0]


exact = unrolled(H)
draws = torch.Generator().manual_seed(0)
change = torch.randn(H.shape, generator=draws)
measured = slope_along(change)
print(f"autograd {(exact * change).sum():.8f}, measured {measured:.8f}")
assert abs((exact * change).sum() - measured) < 1e-6 * exact.norm()
assert abs((exact * shift).sum() - slope) < 1e-6

# %% [markdown]
# One run and one run back give all slopes at once. This is the reference from here on. Its price: autograd writes down
# what each step did, a head for each step and more.
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

# The head itself is needed only at the end.
W_T = W_0 - rate * sum(R).T @ H
b_T = b_0 - rate * sum(R).sum(dim=0)
assert torch.allclose(W_T, train(H)[0], rtol=1e-12)

# %% [markdown]
# **Second, the hard set speaks once.** All that it has to say about $H$ goes through $W_T$ and $b_T$: through
# $M = \partial F / \partial W_T$ and $m = \partial F / \partial b_T$. One pass over the hard set, and one back:

# %%
R_V = ((V @ W_T.T + b_T).softmax(dim=1) - one_hot(V_y, 2)) / len(V)
M, m = R_V.T @ V, R_V.sum(dim=0)
assert torch.allclose(M[1], -M[0])  # residuals sum to zero over classes

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
# $$B_t = J_t \Big( Q - \frac{\alpha}{S}\, G\, (B_{t+1} + \dots + B_{T-1}) \Big),$$
#
# where $J_t\, b = P_t \odot (b - \langle P_t, b \rangle)$ in each row.


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
# steps. Beside $\sum_t B_t W_0$ the first place then holds $-\frac{\alpha}{S} K H$ with
#
# $$K = \sum_t B_t\, (R_0 + \dots + R_{t-1})^\top \quad (S \times S),$$
#
# and the second, where the two $H$ of $H H^\top$ change roles, $-\frac{\alpha}{S} K^\top H$. Together
#
# $$\frac{\partial F}{\partial H} = \Big(\sum_t B_t\Big) W_0
# - \frac{\alpha}{S} \Big[ (K + K^\top)\, H + \Big(\sum_t R_t\Big) M \Big].$$


# %%
def error(found, truth):
    """Distance of two gradients, in lengths of the true one."""
    return ((found - truth).norm() / truth.norm()).item()


K = sum(B[t] @ sum(R[:t]).T for t in range(1, T))
by_hand = sum(B) @ W_0 - rate * ((K + K.T) @ H + sum(R) @ M)
print(f"by hand against unrolled: {error(by_hand, exact):.1e}")
assert error(by_hand, exact) < 1e-10

run = {"alpha": ALPHA, "steps": T}
assert error(adjoint(scene, **run).gradient[0], by_hand) < 1e-12

# %% [markdown]
# Equal to rounding: the same number, in another order of work. This is the **adjoint** method, or reverse mode by hand.
# For each step it keeps two $S \times C$ matrices, $P_t$ and $R_t$, and nothing as wide as the features. The package has
# it for many problems side by side.
#
# ## Third and fourth way: leave something out
#
# Two shortcuts are in use:
#
# - **Truncated**: differentiate through the last $k$ steps only; what came before is taken as given.
# - **First order**: through every step, but as if no step changed what a later one does. In our formulas: leave out the
#   feedback $-\frac{\alpha}{S} G \sum_{s>t} B_s$.
#
# How strongly does one step feed into the next? That is a matter of $\alpha$ times the **curvature** of the support
# loss, the eigenvalues $\lambda$ of its Hessian in the head. For two classes those that are not zero are the
# eigenvalues of
#
# $$\frac1S D^{1/2} G D^{1/2}, \qquad D = \mathrm{diag}\big(2 p_i (1 - p_i)\big) .$$


# %%
def curvatures(H, p):
    """Curvatures of the support loss in the head: (S,), falling."""
    root = (2 * p[:, 0] * p[:, 1]).sqrt()
    small = root[:, None] * (H @ H.T + 1) * root / len(H)
    return torch.linalg.eigvalsh(small).flip(0)


spectrum = curvatures(H, P[0])
print("largest curvatures:", spectrum[:5].numpy().round(2))

# %% [markdown]
# Compare a step 200 times smaller, and our $\alpha$. Both are stable: descent explodes only when $\alpha \lambda > 2$.
# The **relative error** also sees a wrong length, the **cosine** sees the direction only. (Adam divides by the gradient's
# size, so HSFM's edits care for the direction much more than for the length.)


# %%
def cosine(found, truth):
    return ((found * truth).sum() / found.norm() / truth.norm()).item()


tried = {}
for size, alpha in (("small", ALPHA / 200), ("large", ALPHA)):
    print(f"alpha T lambda up to {alpha * T * spectrum[0]:.1f}:")
    run = {"alpha": alpha, "steps": T}
    truth = adjoint(scene, **run).gradient
    ways = {f"k = {k}": adjoint(scene, last=k, **run) for k in (1, 5, 10)}
    ways["first order"] = first_order(scene, **run)
    for way, (_, g, *_) in ways.items():
        pair = tried[size, way] = error(g, truth), cosine(g, truth)
        print("    {:12} error {:.2f}, cosine {:.2f}".format(way, *pair))

# %% tags=["hide-input"]
for way in ("k = 1", "k = 5", "k = 10", "first order"):
    assert tried["small", way][1] > 0.99
assert abs(tried["small", "k = 10"][0] - 0.5) < 0.06  # 1 - k/T
assert tried["small", "first order"][0] < 0.1
for way in ("k = 1", "first order"):
    assert tried["large", way][1] < 0.95
assert tried["large", "first order"][0] > 1

# %% [markdown]
# With small steps all is well: the truncated gradient has the right direction and the length $k/T$, and first order is
# nearly exact. With large steps both turn away from the truth; first order becomes much too long.
#
# ### When truncation lies
#
# Suppose that the loss were quadratic. Then directions do not mix, and along one with curvature $\lambda$ a change made
# at some step shrinks by $1 - \alpha \lambda$ in each later one. So each way multiplies what it learns about this
# direction by a factor of its own:
#
# | way | factor |
# |:--|:--|
# | exact | $\alpha \sum_{j<T} (1 - \alpha\lambda)^j = \big(1 - (1 - \alpha \lambda)^T\big) / \lambda$ |
# | truncated | $\big(1 - (1 - \alpha \lambda)^k\big) / \lambda$ |
# | first order | $\alpha T$ |
# | implicit (next section) | $1 / \big(\lambda + \tfrac{1}{\alpha T}\big)$ |

# %% tags=["hide-input"]
WAYS = {"unrolled": "#7A7A7A", "adjoint": "#0072B2", "truncated": "#D55E00"}
WAYS |= {"first order": "#E69F00", "implicit": "#009E73"}
strain = torch.logspace(-2.5, 1.5, 81)  # alpha T lambda
shrink = 1 - strain / T
factors = {
    "adjoint": (1 - shrink**T) / strain,
    "first order": torch.ones_like(strain),
    "implicit": 1 / (strain + 1),
}


def truncation(k=5, largest=20.0):
    """The factors; `largest` is alpha T times the largest curvature."""
    run = {"alpha": largest / (T * spectrum[0].item()), "steps": T}
    truth = adjoint(scene, **run).gradient
    found = adjoint(scene, last=k, **run).gradient
    length, turned = found.norm() / truth.norm(), cosine(found, truth)
    figure = go.Figure()
    lines = {"truncated": (1 - shrink**k) / strain, **factors}
    for way, factor in lines.items():
        x, y = strain.numpy().round(4), factor.numpy().round(3)
        figure.add_scatter(x=x, y=y, name=way.replace("adjoint", "exact"))
        figure.data[-1].line = {"color": WAYS[way], "width": 3}
    x = (largest * spectrum / spectrum[0]).numpy().round(4)
    figure.add_scatter(x=x, y=[-0.1] * S, mode="markers", name="our problem")
    bars = {"symbol": "line-ns-open", "size": 11, "color": INK}
    figure.data[-1].marker = bars
    figure.update_xaxes(title="α T λ", type="log", range=[-2.5, 1.5], dtick=1)
    figure.update_yaxes(title="factor, in units of α T", range=[-0.2, 1.1])
    figure.update_yaxes(tickvals=[0, 0.25, 0.5, 0.75, 1])
    text = f"k = {k}: length {100 * length:.0f}%, cosine {turned:.2f}"
    return figure.update_layout(title=text, height=480)


# %% tags=["opening", "hide-input"]
figure = truncation()
each = [truncation(k) for k in range(1, T + 1)]
texts = [one.layout.title.text for one in each]
figure.frames = [
    go.Frame(name=text, data=one.data[:1], traces=[0])
    for one, text in zip(each, texts)
]
jump = {"mode": "immediate", "frame": {"duration": 0, "redraw": True}}
steps = [{"method": "animate", "label": t, "args": [[t], jump]} for t in texts]
slider = {"steps": steps, "active": 4, "pad": {"t": 75}, "ticklen": 0}
slider["font"] = {"color": "rgba(0,0,0,0)"}  # the chosen label alone is shown
slider["currentvalue"] = {"font": {"color": INK}}
figure.update_layout(
    title="Truncation forgets the flat, first order overrates the steep",
    sliders=[slider],
    height=540,
    meta={"alt": "Factors of four ways: exact falls from 1, implicit near it"},
)

# %% [markdown]
# Move the slider: $k$ is the number of steps differentiated, and its line says what happens to the gradient of our
# problem, whose curvatures are the ticks below.
#
# - **Flat directions** ($\alpha T \lambda \ll 1$, left). All steps count alike, so the last $k$ of them hold $k/T$ of
#   the answer. First order and implicit agree with exact.
# - **Steep directions** ($\alpha T \lambda \gg 1$, right). Training has arrived, and only the last steps matter: exact,
#   truncated and implicit agree on $1/\lambda$. First order does not know that later steps repair what earlier ones
#   did, and stays at $\alpha T$.
#
# As long as all ticks are at the left, truncation only gets the length wrong. When they spread over both sides, as here,
# it weighs flat directions too little *against* steep ones: it turns.

# %% tags=["hide-input"]
flat = (20 * spectrum / spectrum[0] < 1).double().mean()
ratio = factors["adjoint"] / factors["implicit"]
print(f"large steps: {flat:.0%} of all curvatures are still flat")
print(f"exact over implicit, any curvature: at most {ratio.max():.2f}")
assert 0.1 < flat < 0.9
assert 0.99 < ratio.min() < 1.25 < ratio.max() < 1.35
texts = [truncation(5, at).layout.title.text for at in (0.1, 20)]
assert texts[0].endswith("length 25%, cosine 1.00")
assert float(texts[1].split()[-1]) < 0.98

# %% [markdown]
# In the next figure the curvatures, $T$ and $\alpha$ are yours. From which spread on does the direction suffer?

# %%
from caml_core.pictures.explore import explore

explore("whose_derivative", "Which way turns, and when?")

# %% [markdown]
# ## Fifth way: forget the path
#
# If training had arrived at a minimum, it would not matter how it got there. Let $W^*$ minimise
#
# $$L(H, W) + \frac{\mu}{2} \lVert W - W_0 \rVert^2, \qquad \mu = \frac{1}{\alpha T},$$
#
# where the pull to $W_0$ stands for having taken only $T$ steps of size $\alpha$ (Ali et al., 2019, say why). At a
# minimum the gradient is zero, *whatever $H$ is*. Differentiate that statement, and you have the **implicit function
# theorem**. With the Hessian there, for $\tilde h = (h, 1)$,
#
# $$N = \frac1S \sum_i \big(\mathrm{diag}(p_i) - p_i p_i^\top\big) \otimes \tilde h_i \tilde h_i^\top + \mu I,$$
#
# it says: solve $N X = M$; then
#
# $$\frac{\partial F}{\partial H} = -\frac1S \big[ R\, X + J(\tilde H X^\top)\, W^* \big].$$
#
# ($\otimes$: each entry of one matrix times the whole other; $X$ and $M$ hold weights and bias side by side.) No steps
# are left, only a linear system. The folded cell solves it; differences of the loss at the minimum check the result.

# %% tags=["hide-input"]
from caml_core.implicit import implicit, solve_head

mu = 1 / (ALPHA * T)
W, b, p = (part[0] for part in solve_head(scene, mu))  # W*, b*
h1, v1 = (torch.cat([x, torch.ones(len(x), 1)], dim=1) for x in (H, V))
J = torch.diag_embed(p) - p[:, :, None] * p[:, None, :]
N_0 = torch.einsum("icd,ia,ib->cadb", J, h1, h1) / S
N_0 = N_0.reshape(2 * h1.shape[1], -1)
M_1 = ((V @ W.T + b).softmax(dim=1) - one_hot(V_y, 2)).T @ v1 / len(V)  # M
X = torch.linalg.solve(N_0 + mu * torch.eye(len(N_0)), M_1.flatten())
X = X.view_as(M_1)
back = through_softmax(p, h1 @ X.T)
implied = -((p - Y) @ X[:, :-1] + back @ W) / S

assert error(implicit(scene, strength=mu).gradient[0], implied) < 1e-9
steep = torch.linalg.eigvalsh(N_0).flip(0)[:S]  # as from the Gram matrix
assert torch.allclose(steep, curvatures(H, p), atol=1e-10)


# %%
def loss_at_minimum(H):
    W, b, _ = solve_head(scene._replace(support=H[None]), mu)
    return cross_entropy(V @ W[0].T + b[0], V_y)


rise = slope_along(change, loss_at_minimum)
assert abs(rise - (implied * change).sum()) < 1e-6 * implied.norm()
off, turned = error(implied, exact), cosine(implied, exact)
print(f"against T steps: error {off:.2f}, cosine {turned:.3f}")
assert 0.05 < off < 0.5
assert turned > 0.95

# %% [markdown]
# This is the exact derivative of *another* problem, the one with the minimum. Against our $T$ steps its length is off, as
# the factors predict, and its direction good: it does not forget the flat directions. Nobody writes $N$ out: a product
# $N X$ is two small matrix products, and **conjugate gradients** (CG) solve the system with nothing else. The
# appendix has two other inverses.
#
# ## What each way costs
#
# Now all five on a problem of the published size: 32 support points, 2,048 features, 512 hard examples, ten steps,
# single precision, one problem at a time. The ways take turns, so that a busy moment hits all alike, and each way's
# fastest turn counts. The truth is the unrolled gradient in double precision. (*Truncated* is half the steps.)

# %% tags=["hide-input"]
from caml_core.implicit import hypergradient

full = hsfm_problem(width=2048, k=256, signal=128)
p = (full.support[0] @ full.weight[0].T + full.bias[0]).softmax(dim=1)
top = curvatures(full.support[0], p)[0].item()
CASES = {"published steps": 1e-4, "large steps": 1 / top}


def gradient(way, problem, alpha):
    """The hypergradient by one of the ways, for ten steps."""
    run = {"alpha": alpha, "steps": 10}
    if way == "truncated":
        return adjoint(problem, last=5, **run).gradient
    how = way.lower().replace(" ", "_")
    return hypergradient(problem, how, **run).gradient


import time

floats = Problem(
    *(v.float() if v is not None and v.is_floating_point() else v for v in full)
)


def timed(alpha, turns=12):
    """Relative error and milliseconds of each way."""
    truth = gradient("unrolled", full, alpha)
    found, taken = {}, {way: [] for way in WAYS}
    for _ in range(turns):
        for way in WAYS:
            start = time.perf_counter()
            found[way] = gradient(way, floats, alpha).double()
            taken[way].append(1000 * (time.perf_counter() - start))
    return {way: (error(found[way], truth), min(taken[way])) for way in WAYS}


results = {name: timed(alpha) for name, alpha in CASES.items()}
figure = make_subplots(1, 2, shared_yaxes=True, subplot_titles=list(CASES))
for column, found in enumerate(results.values(), start=1):
    for name, (off, ms) in found.items():
        mark = go.Scatter(x=[ms], y=[off], mode="markers", name=name)
        mark.update(marker={"color": WAYS[name], "size": 15})
        figure.add_trace(mark.update(showlegend=column == 1), 1, column)
marks = [0.1, 0.3, 1, 3, 10, 30]
figure.update_xaxes(type="log", title="milliseconds", tickvals=marks)
figure.update_yaxes(type="log", dtick=1, exponentformat="power")
figure.update_layout(
    title="The adjoint is as exact as autograd, at a fraction of the time",
    yaxis_title="relative error",
    height=500,
    margin_t=120,
    legend={"y": 1.13},
    meta={"alt": "Error over time of five ways, at two sizes of the steps"},
)

# %% tags=["hide-input"]
for name, found in results.items():
    off, ms = ({way: pair[i] for way, pair in found.items()} for i in (0, 1))
    print(f"{name}, alpha T lambda up to {10 * CASES[name] * top:.2f}")
    for way in WAYS:
        took = ms[way] / ms["adjoint"]
        print(f"    {way:12} error {off[way]:.0e}, time {took:.1f}")
    assert max(off["adjoint"], off["unrolled"]) < 1e-4
    assert off["truncated"] > 0.2
    assert ms["unrolled"] > 3 * ms["adjoint"]
    assert ms["first order"] > ms["adjoint"] / 4
    assert ms["implicit"] > ms["adjoint"]
    rest = [off["first order"], off["implicit"]]
    assert max(rest) < 0.1 if name == "published steps" else min(rest) > 0.1

# %% [markdown]
# Down is accurate, left is cheap; the printed times count the adjoint as 1. Only first order and truncation, which leave
# out a part of it, cost less. The implicit way is *not* cheaper here: its cost does not grow with $T$, but with ten steps
# there is not much to save. At the published steps all but truncation are right within a few per cent.
#
# ## In HSFM's own run
#
# So is first order good enough for HSFM? That figure speaks of the *first* edit. HSFM makes hundreds, and the support
# set does not stay what it was. Run HSFM on drawn features with the published settings for ten epochs (the folded cell
# sets it up), and after each epoch ask every way what it would answer there.

# %% tags=["hide-input"]
from dataclasses import replace

from caml_core.features import standardise
from caml_core.hsfm import draw_support, hsfm
from caml_core.hsfm_settings import PUBLISHED, scaled

FULL = os.environ.get("CAML_PROFILE", "quick") == "full"
SEEDS, EPOCHS = range(16 if FULL else 6), 10
splits = ((2000, 0.9, 1280, 0, 160), (1500, 0.5, 1280, 1, 160))
train_set, val_set = standardise(*(drawn(*split) for split in splits))
head = erm_head(train_set)
settings = scaled(PUBLISHED["dominoes"], train_set.x)
settings = replace(settings, epochs=EPOCHS)
rows = draw_support(train_set, settings.support, SEEDS)
assert settings.steps == 10  # as in `gradient`

# %%
COMPARED = ("first order", "truncated", "implicit", "KFAC")
cosines = {name: [] for name in COMPARED}
strain = {"start": [], "minimum": []}  # largest alpha T lambda


def watch(epoch, support, weight, bias, hard):
    """What each way says about the support set as it is now."""
    outside = val_set.x[hard], val_set.y[hard]
    now = Problem(support, train_set.y[rows], *outside, weight, bias)
    truth = gradient("adjoint", now, settings.alpha)
    for name in COMPARED:
        pairs = zip(gradient(name, now, settings.alpha), truth)
        cosines[name].append([cosine(g, true) for g, true in pairs])
    p = (support @ weight.mT + bias[..., None, :]).softmax(dim=-1)
    p_rest = solve_head(now, 1 / (10 * settings.alpha))[2]
    for where, each in (("start", p), ("minimum", p_rest)):
        steep = [curvatures(h, q)[0].item() for h, q in zip(support, each)]
        strain[where].append(10 * settings.alpha * np.array(steep))


edits = hsfm(
    *(train_set, val_set, *head, settings), seeds=SEEDS, on_epoch=watch
)

# %% tags=["hide-input"]
figure = go.Figure()
for name in ("first order", "truncated", "implicit"):
    by_state = np.sort(np.array(cosines[name][1:]).ravel())[::-1]
    x = 100 * (np.arange(len(by_state)) + 1) / len(by_state)
    figure.add_scatter(x=x.round(1), y=by_state.round(3), name=name)
    figure.data[-1].line = {"color": WAYS[name], "width": 3}
figure.update_layout(
    title="On edited support sets the implicit way often loses the direction",
    xaxis_title="states, the best of each way first (%)",
    yaxis_title="cosine with the exact gradient",
    meta={"alt": "Sorted cosines of three ways over the states of HSFM"},
)

# %%
astray = {}
for name in COMPARED:
    start, later = np.array(cosines[name][0]), np.array(cosines[name][1:])
    astray[name] = (later < 0.9).mean()
    print(f"{name:12} cosine below 0.9 in {astray[name]:3.0%} of the states")
    assert start.min() > 0.99  # before any edit all agree
assert min(astray["implicit"], astray["KFAC"]) > 0.3
assert astray["first order"] < 0.2
assert astray["truncated"] < 0.4

# %%
norms = [h.norm(dim=-1).mean() for h in (edits.before, edits.after)]
print("mean length of a support point: {:.0f}, later {:.0f}".format(*norms))
assert norms[1] > 3 * norms[0]
start, rest = (np.array(strain[where][1:]) for where in strain)
lost = np.array(cosines["implicit"][1:]) < 0.9
steep, flat = lost[rest > 1].mean(), lost[rest < 1].mean()
print(f"alpha T lambda where training starts: at most {start.max():.2f}")
print(f"implicit astray: steep minimum {steep:.0%}, flat {flat:.0%}")
assert start.max() < 0.5
assert steep > flat + 0.2

# %% [markdown]
# A state is one support set after one epoch of one run. Before any edit all ways agree. The edits make support features
# several times longer, and curvature grows with the *square* of that length, but only where $p(1-p)$ is not zero. Where
# training starts, the head is sure of every edited point, rightly or wrongly: no curvature, and no feedback for first
# order to forget. The minimum is another place. There some long points come to rest *on* the border, $\alpha T \lambda$
# is large, and the implicit way goes astray far more often than where its minimum is flat.
#
# Does it matter for what HSFM is after? In the ablation of chapter [12](12_hsfm_tables.ipynb), on other features, first
# order, the implicit way and KFAC end within a point of the exact gradient's worst-group accuracy; truncation was not
# run. A method that works does not prove its gradient right.
#
# ## Which one?
#
# For a linear head: **the adjoint**. It is exact in every regime, while HSFM's edits walk from one into another. For a
# deep inner network there is no Gram matrix: unroll a few steps, or truncate if you know the spectrum. If the inner
# training converges, after thousands of steps, the implicit way needs none of them. First order is for runs along which
# $\alpha T \lambda$ stays small; before trusting the implicit way, look at $\alpha T \lambda$ at its minimum, too.
#
# ## What we saw
#
# - A training run is a function of its data, and has a derivative. Differences measure it, at two runs for each number.
# - Unrolled autograd and the adjoint give the same exact number. For a linear head the adjoint lives in $S \times C$
#   numbers and is several times faster.
# - Truncation forgets flat directions, first order overrates steep ones. Both point as exact does while
#   $\alpha T \lambda$ is small.
# - The implicit way differentiates another problem, a minimum. Its factor is off by a third at most while the loss is
#   quadratic and $\alpha\lambda$ stays well below 2; else the direction can be lost.
# - In HSFM's own run the implicit way lost the direction in many states, truncation in some, first order in few.
#
# **Turn these knobs.** `largest` of `truncation`; `width` of `hsfm_problem` (how does the spectrum change with more
# features than support points?); `eta` of the settings (with smaller edits, does the implicit way keep its direction?).
#
# ## Two quick questions
#
# **1.** Which of these differentiates something other than the training run that was made?
#
# <details><summary>The adjoint</summary>
#
# No. It is exact for the steps that were taken.
#
# </details>
#
# <details><summary>The implicit way</summary>
#
# Yes. It differentiates a minimum, which ten steps have not reached.
#
# </details>
#
# <details><summary>Unrolled autograd</summary>
#
# No. It is the definition, at the price of memory.
#
# </details>
#
# **2.** Along which directions does a truncated hypergradient lose most?
#
# <details><summary>The steep ones</summary>
#
# No. They are settled within the last few steps.
#
# </details>
#
# <details><summary>The flat ones</summary>
#
# Yes. What early steps did there still stands at the end, and truncation forgets it.
#
# </details>
#
# <details><summary>All alike</summary>
#
# No. How much is lost depends on $\alpha\lambda$ and on the number of steps kept.
#
# </details>
#
# ## Exercises
#
# **Exercise 1: the starting head.** The adjoint gives $\partial F / \partial H$. Which line of it would give the
# derivative in the starting head, $\partial F / \partial W_0$? Check it by differences.
#
# <details><summary>Solution 1</summary>
#
# $W_0$ stands in every $Z_t = H W_t^\top + b_t$, each worth $B_t$, and directly in $W_T$. So
# $\partial F / \partial W_0 = M + \sum_t B_t^\top H$.
#
# </details>

# %% tags=["hide-cell", "solution"]
# @title Solution 1 { display-mode: "form" }
in_head = M + sum(B).T @ H
turn = torch.randn(W_0.shape, generator=torch.Generator().manual_seed(0))
rise = (F(H, W_0 + EPS * turn) - F(H, W_0 - EPS * turn)) / (2 * EPS)
print(f"by hand {(in_head * turn).sum():.8f}, measured {rise:.8f}")
assert abs((in_head * turn).sum() - rise) < 1e-6

# %% [markdown]
# **Exercise 2: the worst strain.** At which $\alpha T \lambda$ do exact and implicit differ most, and by what factor?
# Use the factors for many small steps, where $(1 - \alpha\lambda)^T$ becomes $e^{-\alpha T \lambda}$.

# %% tags=["hide-cell", "solution"]
# @title Solution 2 { display-mode: "form" }
x = torch.linspace(0.01, 20, 2000)
ratio = (1 - torch.exp(-x)) * (1 + x) / x  # 1 at both ends
worst = x[ratio.argmax()]
print(f"at alpha T lambda = {worst:.2f} the ratio is {ratio.max():.2f}")
assert 1.25 < ratio.max() < 1.35 < 1.7 < worst < 1.9

# %% [markdown]
# **Exercise 3: many support points.** Count the operations of the adjoint. From which $S$ on is the Gram matrix a bad
# idea, and what would you do then?
#
# <details><summary>Solution 3</summary>
#
# $G$ costs about $S^2 D$ operations, once, and so does $(K + K^\top) H$; the plain steps cost about $T S D C$, as does
# their way back. By this count the Gram matrix pays while $S$ is not much larger than $T C$; in practice some way beyond
# (`GRAM_UP_TO` in the package), since two square products run faster than many thin ones. With CelebA's 1,024 points of
# each class make the same sweep with heads in place of logits: keep every $W_t$, start from $X = M$, and go back by
# $B_t = J_t(-\frac{\alpha}{S} H X^\top)$, $X \leftarrow X + B_t^\top H$ (the bias left out).
#
# </details>
#
# ## Appendix
#
# ### Two other inverses
#
# A power series, the **Neumann series**, needs products $N X$ alone, as CG does:
#
# $$N^{-1} = \frac1s \sum_{j=0}^{\infty} \Big(I - \frac{N}{s}\Big)^j, \qquad s \ge \lambda_{\max}(N).$$

# %%
left = {}
for n in (7, 20, 300):
    for solver in ("cg", "neumann"):
        run = {"strength": mu, "solver": solver, "iterations": n}
        left[solver, n] = error(implicit(scene, **run).gradient[0], implied)
    pair = left["cg", n], left["neumann", n]
    print("{:3} products: CG {:.0e}, Neumann {:.0e}".format(n, *pair))
assert left["cg", 7] < 0.1 * left["neumann", 7]
assert left["cg", 20] < 1e-4 * left["neumann", 20]
assert left["neumann", 300] < 0.5 * left["neumann", 20]  # it comes

# %% [markdown]
# CG adapts to the spectrum. The series has one step size for all directions, so the steepest that *could* occur
# dictates it, and flat ones take for ever.
#
# **KFAC** (Kronecker-factored approximate curvature; Martens and Grosse, 2015) replaces the mean of a product in $N$ by
# the product of the means, which two small eigenproblems invert exactly:
#
# $$\frac1S \sum_i E_i \otimes \tilde h_i \tilde h_i^\top \;\approx\;
# \Big(\frac1S \sum_i E_i\Big) \otimes \Big(\frac1S \sum_i \tilde h_i \tilde h_i^\top\Big)$$
#
# with $E_i = \mathrm{diag}(p_i) - p_i p_i^\top$. This loses the connection between *where* a point lies and *how sure*
# the head is there. So it is exact for one point 32 times, and worse, the more $p(1-p)$ varies. (In HSFM's run, printed
# above, it goes astray about as often as CG.)


# %%
def kfac_error(problem):
    ways = ("kfac", "cg")
    pair = [implicit(problem, strength=1.0, solver=s).gradient for s in ways]
    return error(*pair)


twins = scene.support[:, :1].expand_as(scene.support)
assert kfac_error(scene._replace(support=twins)) < 1e-8
spreads, offs = [], []
for scale in (0.0, 0.5, 1.0, 2.0):
    other = scene._replace(weight=scale * scene.weight)
    pq = solve_head(other, 1.0)[-1][0].prod(dim=1)  # p (1 - p)
    spreads.append((pq.std() / pq.mean()).item())
    offs.append(kfac_error(other))
    print(f"p(1-p) varies by {spreads[-1]:.0%}: off by {offs[-1]:.2f}")
assert spreads == sorted(spreads)
assert offs[-1] > 2 * offs[0]

# %% [markdown]
# ### In code
#
# The package's adjoint keeps $Z_t$, $P_t$, $R_t$ and $B_t$ class by class: a softmax over two numbers that lie side by
# side is slow. With two classes one is free, since residuals sum to zero over classes, so each pass over the hard set is
# half the work. `python benchmarks/hypergradient.py` prints what a problem costs among many side by side; with
# `--libraries` it compares TorchOpt (Ren et al., 2022) and higher (Grefenstette et al., 2019), which offer the first way
# for any network, and agree to rounding.
#
# ## References
#
# - A. Yazdan Parast et al., [HSFM](https://arxiv.org/abs/2603.29313), 2026.
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
