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
# # PTA: purify a noisy teacher, then align
#
# **Question.** Several sensors see the same thing, and one of them is wrong. In training the network can learn its
# mistakes by heart, so it looks as good as the others: it is a shortcut. Does a small held-out set find it, and does a
# teacher without it help a weak sensor that must later work alone?
#
# **You will be able to** weigh sensors by the loss of a held-out set, split that gradient into what a fixed head sees
# and what the head's training adds, align weak sensors with their weighted mean, and say when all this wins nothing.
#
# > **Before you start.** Chapter [11](11_hypergradients.ipynb) has the gradient through a training run. On a laptop
# > with two cores this takes about one minute and 1 GB of memory; no GPU is needed. Nothing is downloaded. The full
# > experiment is read from stored records.

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
# ## Three sensors, one of them wrong
#
# PTA (purify-then-align; Weng et al., 2026) was made for radar, WiFi and radio tags that watch people move. This is our
# own small version, after the code that the authors released: digits in the place of people, three sensors in the place
# of three radios. The sensors, what is wrong with them, and everything about exact gradients are ours.
#
# Each sensor adds noise to what it sees. **A** sees the picture. **B** is weak: it sees only the sums of rows and
# columns, 16 numbers. **C** is contaminated: half of its pictures are static, the other half belong to some other
# example. So C knows *nothing* about the label.

# %%
from caml_core.field.pta import sense

SEEDS = [0, 1]  # two runs side by side
train = sense(slice(0, 400), SEEDS)
held = sense(slice(400, 500), SEEDS)
test = sense(slice(900, None), SEEDS)
print("runs, sensors, examples, numbers:", *train.x.shape)

# %% tags=["opening", "hide-input"]
import torch
from caml_core.pictures import figures as book

book.use_book_style()
shown = torch.cat([(train.group[0] == g).nonzero()[:4, 0] for g in (1, 2)])
pixels = train.x[0][:, shown] * torch.tensor([1, 0.5, 1])[:, None, None]
pixels = pixels.reshape(-1, 1, 8, 8).clamp(0, 1)
pixels = (255 * pixels).byte().expand(-1, 3, -1, -1)
title = "C shows static, or somebody else's digit"
figure = book.image_grid(pixels, columns=8, title=title, labels=["A", "B", "C"])
alt = "Eight digits as three sensors see them; C shows static or other digits."
figure.update_layout(meta={"alt": alt})

# %% [markdown]
# Each sensor gets an encoder, a network of two layers that makes 32 features of what it sees. First every encoder is
# trained alone, with a head of its own.

# %%
from caml_core.field.pta import Network, fit

OFF = torch.zeros(len(SEEDS))


def one(data, m):
    """What sensor m alone sees."""
    return data._replace(x=data.x[:, m : m + 1])


@torch.no_grad()
def right(network, data, present):
    """Percent right of each run, from the sensors that are present."""
    present = torch.tensor(present).expand_as(network.k)
    logits = network.logits(network.features(data.x), present)
    return 100 * (logits.argmax(dim=2) == data.y).float().mean(dim=1)


# %%
alone = [Network(SEEDS, torch.ones(len(SEEDS), 1)) for _ in "ABC"]
for m, network in enumerate(alone):
    fit(network, one(train, m), one(held, m), OFF.bool(), OFF)
    found = [right(network, one(d, m), [True]).mean() for d in (train, test)]
    print(
        "{}: {:.0f}% right in training, {:.0f}% in test".format(
            "ABC"[m], *found
        )
    )

# %% [markdown]
# C gets its training examples right by learning them by heart. Whoever trains a head on the features of all three
# meets three sensors that seem to know the label. That is a spurious feature as in chapter
# [01](01_shortcuts.ipynb), only that here a whole sensor is spurious.
#
# ## Purify: weights from a held-out set
#
# Sensor $m$ gives the features $z_m$. PTA's **teacher** is their weighted mean, $t = \sum_m w_m z_m$, with
# $w = \mathrm{softmax}(k)$: three numbers to be learned. The head sees the teacher after a layer norm, so its length
# does not matter. Call the result $h(k)$.
#
# Who should choose $k$? Not the training loss: there C looks perfect. So ask a **held-out** set: train the head on
# $h(k)$, which gives $\theta(k)$, and look at the loss $L(\theta(k), k)$ of examples that it has not seen. Here is the
# bilevel program of chapter [11](11_hypergradients.ipynb), with $k$ outside and $\theta$ inside:
#
# $$\frac{dL}{dk} = \underbrace{\frac{\partial L}{\partial k}}_{\text{at a fixed head}}
# + \underbrace{\frac{\partial L}{\partial \theta} \frac{d\theta}{dk}}_{\text{the head's response}} .$$
#
# The released code takes a step on $\theta$, then one on $k$ with the first part only. But we can have both: $k$ moves
# the head's training features, and how *those* move the trained head's loss is exactly the hypergradient
# $\partial L / \partial H$ that chapter [11](11_hypergradients.ipynb) computes for HSFM.

# %%
from caml_core.hypergradients import Problem, adjoint
from torch.nn.functional import cross_entropy, layer_norm

with torch.no_grad():  # features of each sensor's own encoder: (3, N, 32)
    z, held_z, test_z = (
        torch.cat([net.features(one(d, m).x) for m, net in enumerate(alone)], 1)
        for d in (train, held, test)
    )
Z, V = z[0].double(), held_z[0].double()  # the first run
y, V_y = train.y[0], held.y[0]
ZERO = torch.zeros(1, 10, 32, dtype=torch.float64)


def h(k, Z):
    """The teacher, normalised: (N, 32)."""
    return layer_norm(torch.einsum("m,mnf->nf", k.softmax(0), Z), (32,))


# %%
def two_parts(k):
    """Held-out loss of the trained head, and both parts of dL/dk."""
    k = k.clone().requires_grad_()
    H = h(k, Z)
    support = H[None].detach(), y[None]
    inner = Problem(*support, h(k, V).detach(), V_y, ZERO, ZERO[..., 0])
    head = adjoint(inner, alpha=0.5, steps=100)  # 100 steps from zero
    logits = h(k, V) @ head.weight[0].T + head.bias[0]
    loss = cross_entropy(logits, V_y)
    (fixed,) = torch.autograd.grad(loss, k)
    (response,) = torch.autograd.grad(H, k, head.gradient[0])
    return loss.detach(), fixed, response


k = torch.zeros(3, dtype=torch.float64)
loss, fixed, response = two_parts(k)
for m, name in enumerate("ABC"):
    step = 1e-5 * torch.eye(3, dtype=torch.float64)[m]
    slope = (two_parts(k + step)[0] - two_parts(k - step)[0]) / 2e-5
    assert abs(slope - fixed[m] - response[m]) < 1e-6
    print(f"{name}: fixed {fixed[m]:+.3f}, response {response[m]:+.3f}")

# %% [markdown]
# The differences agree with the *sum*. The package does the same for many runs at a time, and `purify` takes sixty
# steps of Adam on $k$, once by the sum and once by the first part alone.

# %%
from caml_core.field.pta import purify, weight_gradient

ours = weight_gradient(k[None], Z[None], y[None], V[None], V_y[None])
torch.testing.assert_close(ours[1][0], fixed)
torch.testing.assert_close(ours[2][0], response)
sets = (z, train.y, held_z, held.y)
paths = {
    "exact": purify(*sets),
    "fixed head": purify(*sets, exact=False),
}
for name, path in paths.items():
    w = path[-1].mean(dim=0)
    loss, *_ = weight_gradient(path[-1].log(), z, train.y, test_z, test.y)
    print(f"{name}: w {w.numpy().round(2)}, test loss {loss.mean():.3f}")

# %% tags=["hide-input"]
import plotly.graph_objects as go

SENSOR = {"A": book.LABEL, "B": "#56B4E9", "C": book.MINORITY}
figure = go.Figure()
for name, dash in (("exact", "solid"), ("fixed head", "dot")):
    for m, sensor in enumerate("ABC"):
        look = {"color": SENSOR[sensor], "dash": dash, "width": 2.5}
        shares = (100 * paths[name].mean(dim=1)[:, m]).numpy().round(2)
        figure.add_scatter(y=shares, name=sensor, line=look)
        figure.data[-1].showlegend = name == "exact"
alt = {"alt": "Weights of three sensors by round; C falls below a tenth."}
title = "A held-out set turns C down (dotted: at a fixed head)"
assert max(path[-1][:, 2].max() for path in paths.values()) < 0.25
figure.update_layout(title=title, xaxis_title="round", meta=alt)
figure.update_yaxes(title="weight (%)")

# %% [markdown]
# ## Align: every sensor towards the teacher
#
# A weak sensor that must later work alone will have only its own features; in training it may look at the teacher's.
# PTA adds to the task's loss a distance between each sensor's features and the teacher's,
#
# $$L_{\text{task}} + \frac{\lambda}{|P|} \sum_{m \in P} \tfrac{1}{32} \lVert \bar z_m - \mathrm{stop}(\bar t) \rVert^2 ,$$
#
# where $P$ are the sensors present, two or more, the bar is the same layer norm, and the teacher itself gets no
# gradient. (Without the norm one could shrink all features and call it alignment. The release measures the distance
# through a small diffusion model; we come to that.) All sensors share one head. Each batch sees a random set of them.
# In training those present count equally, and the absent are replaced by the weighted mean of the present; at test all
# are weighed by $w$. The distances of one batch by hand:

# %%
network = Network(SEEDS, torch.full((len(SEEDS), 3), 1 / 3))
features = network.features(train.x[:, :, :32])  # (R, 3, 32, 32)
w = network.k.softmax(dim=1).detach()
teacher = torch.einsum("rm,rmnf->rnf", w, features).detach()
bar = [layer_norm(v, (32,)) for v in (features, teacher[:, None])]
apart = ((bar[0] - bar[1]) ** 2).mean(dim=(2, 3))
torch.testing.assert_close(apart, network.align(features, teacher)[1])
print("distance of A, B, C:", apart.mean(dim=0).detach().numpy().round(2))

# %% [markdown]
# ## The experiment
#
# Train with equal weights; with weights learned on the way, as in the release ($k$ takes a step on the held-out loss
# every ten batches, the networks standing still); and with the exact weights from above. All three with and without
# alignment. What counts is every set of sensors that may be left, most of all **B alone**.

# %%
from itertools import product

from caml_core.runs.tables import markdown
from IPython.display import Markdown

SETS = [s for s in product([True, False], repeat=3) if any(s)]
NAMES = ["".join(n for n, on in zip("ABC", s) if on) for s in SETS]
EQUAL = torch.full((len(SEEDS), 3), 1 / 3)


def experiment(train, held, test, exact, pull):
    """Percent right for each way to weigh and set of sensors: (3, 7)."""
    rows = []
    for start, learns in ((EQUAL, 0), (EQUAL, 1), (exact, 0)):
        network = Network(SEEDS, start)
        fit(network, train, held, (OFF + learns).bool(), OFF + pull)
        rows.append([right(network, test, s).mean() for s in SETS])
    return torch.tensor(rows)


def table(head, rows, foot=""):
    """A table with a line below it: a list of texts for each row."""
    return Markdown(f"{markdown(head, rows)}\n\n{foot}")


# %%
WAYS = ["equal", "learned", "exact"]
exact, rows = paths["exact"][-1], []
found = {}
for pull in (0.0, 1.0):
    part = found[pull] = experiment(train, held, test, exact, pull)
    said = "aligned" if pull else "not aligned"
    for way, line in zip(WAYS, part.tolist()):
        rows.append([f"{said}, {way}", *(f"{v:.0f}" for v in line)])
BC = NAMES.index("BC")
assert found[1.0][1, BC] > found[1.0][0, BC] + 3
table(["right (%)", *NAMES], rows)

# %% [markdown]
# ## The control: all sensors equally good
#
# Three sensors like A, each with noise of its own. The equal mean is the best that weights can do. Whoever
# learns weights has a hundred held-out examples to be misled by, and nothing to win.

# %%
parts = [sense(rows, SEEDS, "AAA") for rows in (slice(0, 400), slice(400, 500))]
fair_test = sense(slice(900, None), SEEDS, "AAA")
control = experiment(*parts, fair_test, EQUAL, 1.0)
gain = control[1] - control[0]  # learned less equal
print("learned - equal:", *(f"{n} {g:+.1f}" for n, g in zip(NAMES, gain)))
assert gain.abs().max() < 4

# %% [markdown]
# ## The full record
#
# Five seeds; all arms but the two of diffusion start from the same first weights and see the same batches; the strength
# of alignment is chosen for each arm on the held-out set. Means with 95% intervals over seeds. "Worst" is the worse of
# two groups of test examples: those where C shows static, and those where it shows another digit.

# %%
from caml_core.runs.records import describe, paired_difference, stored

records = stored("field_pta")


def of(method, world):
    """The records of an arm in a world, one a seed."""
    found = [r for r in records if r["config"]["world"] == world]
    return [r for r in found if r["method"] == method]


def cell(method, world, metric):
    """Mean over seeds, with its 95% interval (Student's t, 4 degrees)."""
    values = [r["metrics"][metric]["value"] for r in of(method, world)]
    values = torch.tensor(values)
    half = 2.776 * values.std() / 5**0.5
    return f"{values.mean():.1f} ± {half:.1f}"


def gap(ours, other, world, metric):
    """Difference of two arms, paired by seed: mean, low, high."""
    return paired_difference(of(ours, world), of(other, world), metric)


# %% tags=["hide-input"]
ARMS = [f"{how}, {w}" for how in ("fusion", "aligned") for w in WAYS]
ARMS.remove("fusion, exact")
ARMS += ["aligned, oracle", "diffusion, equal", "diffusion, learned"]
HEAD = ["ABC", "ABC worst", "A", "BC", "B", "w C"]
rows = [[m, *(cell(m, "C bad", metric) for metric in HEAD)] for m in ARMS]
single = [cell(f"alone, {n}", "C bad", n) for n in "AB"]
rows.append(["each sensor alone", "", "", single[0], "", single[1], ""])
foot = describe(of("aligned, learned", "C bad")).split("; torch")[0]
table(["C bad, percent", *HEAD], rows, foot)

# %% [markdown]
# And the question of the control, asked of the whole record: how much do learned weights add where C is wrong always,
# in half of the examples, or never; and where all three sensors are alike?

# %% tags=["hide-input"]
WORLDS = ["C bad", "C half bad", "C fine", "all equal"]
learned = "aligned, learned"
gains = {
    f"{w}: {s}": gap(learned, "aligned, equal", w, s)
    for w in WORLDS
    for s in ("BC", "ABC", "B")
}
for w in WORLDS[:2]:
    assert gains[f"{w}: BC"]["low"] > 3
    assert gains[f"{w}: ABC"]["low"] > 0
for w in WORLDS[2:]:
    assert max(abs(gains[f"{w}: {s}"]["mean"]) for s in ("BC", "ABC")) < 1
assert gains["C bad: B"]["low"] < 0  # not for B alone
title = "Learned weights win where C is wrong and in the set"
label = "right with learned less equal weights, points"
colours = {"difference": book.LABEL}
figure = book.interval_rows(
    {"difference": gains}, title=title, x_title=label, colours=colours
)
alt = {"alt": "Gains with 95% intervals: large for B with C when C is bad."}
figure.update_layout(meta=alt)

# %% tags=["hide-input"]
checks = {
    "aligned less fusion, A alone": (learned, "fusion, learned", "A"),
    "aligned less fusion, B alone": (learned, "fusion, learned", "B"),
    "student B less B trained alone": (learned, "alone, B", "B"),
    "diffusion less plain alignment, ABC": (
        "diffusion, learned",
        learned,
        "ABC",
    ),
    "exact less learned weights, ABC": ("aligned, exact", learned, "ABC"),
    "oracle (A only) less exact, ABC": (
        "aligned, oracle",
        "aligned, exact",
        "ABC",
    ),
}
found = {k: gap(a, b, "C bad", m) for k, (a, b, m) in checks.items()}
rows = [
    [k, "{mean:+.1f} ({low:+.1f} to {high:+.1f})".format(**v)]
    for k, v in found.items()
]
bounds = [(v["low"], v["high"]) for v in found.values()]
assert min(bounds[0][0], bounds[1][0]) > 0
assert max(bounds[3][1], bounds[5][1]) < 0
assert all(low < 0 < high for low, high in (bounds[2], bounds[4]))
table(["C bad", "points"], rows)

# %% [markdown]
# - **Purify works** in sets that hold C. Its weight goes down to 2 to 16%, by seed, and B with C gets back to what B
#   has alone. Without C in the set, or with C fine, no gain was seen.
# - **Align helps a little**: with learned weights, A and B do better alone after alignment. B is not seen to be better
#   than B trained alone from the start, and the purified teacher does not help it more than the unpurified one.
# - **Diffusion cost points here.** Our version trains the head on the denoised features and tests it on raw ones; that,
#   or the few pictures that the denoiser learns from, may be why. We did not separate them.
# - **Trusting A only is worse** than weights from the held-out set: B is weak, not useless. Who knows that C is wrong
#   leaves it out and weighs A and B alike, and is as good as the learned weights (both in the record).
#
# ## Was the rest of the gradient missed?
#
# The release leaves out the head's response. Above both paths were nearly the same. The record has the whole
# comparison: frozen features, five seeds, and three ways for C to be wrong. In *C breaks, seen* C is fine in training,
# but not in the held-out set and the test; in *not seen* the held-out set is like training, and only the test differs.

# %% tags=["hide-input"]
rows, losses = [], {}
for w in ("C bad", "C breaks, seen", "C breaks, not seen"):
    for way in ("equal", "exact", "fixed head"):
        runs = of(f"weights, {way}", w)
        value = {
            k: [r["metrics"][k]["value"] for r in runs]
            for k in ("w C", "test loss", "cosine")
        }
        mean = {k: torch.tensor(v).mean().item() for k, v in value.items()}
        losses[w, way] = mean["test loss"]
        rows.append(
            [
                f"{w}, {way}",
                f"{mean['w C']:.0f}%",
                f"{mean['test loss']:.2f}",
                f"{mean['cosine']:.2f}",
            ]
        )
        if w != "C breaks, not seen":
            assert mean["cosine"] > 0.9
assert (
    losses["C breaks, seen", "exact"]
    < 0.7
    < 1
    < losses["C breaks, not seen", "exact"]
)
assert abs(losses["C bad", "exact"] - losses["C bad", "fixed head"]) < 0.05
table(
    [
        "frozen features",
        "weight of C",
        "test loss",
        "cosine of the two gradients",
    ],
    rows,
)

# %% [markdown]
# What the release leaves out costs nothing that we could see: where there is something to find, the first part points
# almost where the whole gradient does (the cosine is that of the first step), and the test losses are alike. HSFM is
# the other extreme, chapter [11](11_hypergradients.ipynb): there the edited features are *only* seen through the head's
# training, the first part is zero, and the response is all there is.
#
# The last block matters more. **If the fault does not show in the held-out set, neither gradient finds it.** That is
# the old lesson of chapter [02](02_last_layer.ipynb): the method is as good as the held-out set.
#
# ## What differs from the paper, and what could not be checked
#
# - Digits for people, made-up sensors for radios, two small layers for pretrained encoders; one token for 32.
# - From the released code: weights by softmax, the weighted mean as a teacher without a gradient, random sets of
#   sensors, the mean in place of the absent, a step on the weights every few batches by the held-out loss at fixed
#   networks; DiffKD for alignment. The release as published does not run (names that are not defined, shapes that
#   cannot fit); we read it.
# - Ours: the layer norm before the head, plain alignment, exact weights, every control, the worst group.
# - Their tables (MM-Fi, XRF55) could not be read, so no number of theirs stands here.
# - Five seeds, one data set, one size. Alignment strength was chosen on the same held-out set that chose the weights.
#
# ## What we saw
#
# - A sensor learned by heart looked perfect in training; a hundred held-out examples turned it down.
# - The gain was in the sets where the bad sensor used to drown a weak one, and it vanished without contamination.
# - Alignment helped modestly (B only with learned weights); it did not lift the weak sensor above one trained alone.
#   Our version of diffusion, tested on features that its head had not been trained on, cost points.
# - The gradient at a fixed head was enough. A held-out set that did not show the fault was not.
#
# ## Two quick questions
#
# **1.** Why does the training loss not unplug C?
#
# <details><summary>Because C has more numbers</summary>
#
# No. A has as many, and B's few would be enough to learn from.
#
# </details>
#
# <details><summary>Because C is right in training: its mistakes are learned by heart</summary>
#
# Yes. Only examples that were not trained on show that C knows nothing.
#
# </details>
#
# <details><summary>Because softmax weights cannot be zero</summary>
#
# No. They get as small as they like; the held-out loss makes them a few percent.
#
# </details>
#
# **2.** In *C breaks, not seen* the exact gradient fails as well. What would help?
#
# <details><summary>More steps on the weights</summary>
#
# No. The loss that they lower does not know of the fault.
#
# </details>
#
# <details><summary>A few held-out examples from where the network will be used</summary>
#
# Yes. That is *C breaks, seen*.
#
# </details>
#
# ## Exercises
#
# **Exercise 1: why a layer norm?** Suppose the head saw $t$ itself and alignment compared $z_m$ with $t$. Find a change
# of all features that lowers the alignment loss and leaves every answer as it is.
#
# <details><summary>Solution 1</summary>
#
# Multiply all features by a small number and divide the head's weights by it. Distances shrink, answers stay. With the
# norm on both sides the size of the features has no effect.
#
# </details>
#
# **Exercise 2: how small may the held-out set be?** Purify with 10, 20, 50 and 100 held-out examples. What is the
# smallest set with which C gets less than a fifth of the weight?

# %% tags=["hide-cell", "solution"]
# @title Solution 2 { display-mode: "form" }
share = {}
for n in (10, 20, 50, 100):
    path = purify(z, train.y, held_z[:, :, :n], held.y[:, :n])
    share[n] = path[-1][:, 2].mean().item()
    print(f"{n} held-out examples: C has {100 * share[n]:.0f}% of the weight")
assert max(share.values()) < 0.3
# A mean of two runs: ten are about enough, as C is wrong on nearly all.

# %% [markdown]
# ## References
#
# - P. Weng et al., [Purify-then-align: towards robust human sensing under modality missing with knowledge distillation
#   from noisy multimodal teacher](https://arxiv.org/abs/2604.05584), 2026; its code is
#   [Vongolia11/PTA](https://github.com/Vongolia11/PTA).
# - T. Huang et al., [Knowledge diffusion for distillation](https://arxiv.org/abs/2305.15712), 2023: DiffKD.
# - M. Ren et al., [Learning to reweight examples for robust deep learning](https://arxiv.org/abs/1803.09050), 2018:
#   weights from a clean held-out set.
# - P. Kirichenko et al., [Last layer re-training is sufficient for robustness to spurious
#   correlations](https://arxiv.org/abs/2204.02937), 2023: DFR.
