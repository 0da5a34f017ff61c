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
# # Quickstart: a model that learned the wrong thing
#
# **Question.** A network answers nearly every training picture correctly. How can it know nothing about birds?
#
# **You will be able to** recognise a learned shortcut by its group accuracies, prove it by changing nothing but the
# background, and say what the rest of the book does about it.
#
# > **Before you start.** You need Python and a first course in deep learning. On a laptop with two cores this takes
# > about one minute and 1 GB of memory; on a T4 or an A100 half of that. Nothing is downloaded: the program draws its own
# > pictures. The results below are those of the quick profile; the full profile (`CAML_PROFILE=full`) trains longer.

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
# ## Two birds, two places
#
# Our data are *birdscapes*: little scenes with a **waterbird** (a duck or a heron) or a **landbird** (a songbird), on
# **water** or on **land**. The label $y$ is the bird. The background is the *spurious attribute* $a$: it says nothing
# about what a waterbird is, but in the training set it goes with the bird in 95 of 100 pictures. We write this
# *spurious strength* as $\rho = 0.95$.

# %%
import torch
from caml_core.data import load

train, val, test = load("birdscapes", rho=0.95, n_train=2000, seed=0)
print(train.source)
print(
    f"{len(train):,} training, {len(val):,} validation, {len(test):,} test pictures of {tuple(train.x.shape[1:])}"
)

# %% [markdown]
# Label and attribute together make four groups, $g = 2y + a$. Two are in the *majority*; the two in which bird and
# background disagree are the *minority*. Validation and test sets have as many of each: there the background is of no
# help.

# %% tags=["nbval-check-output"]
from caml_core.data.dataset import group_table
from IPython.display import Markdown

Markdown(group_table(train=train, validation=val, test=test))

# %%
from caml_core.figures import image_grid, use_book_style

use_book_style()
rows = [torch.where(test.group == g)[0][:8] for g in range(test.n_groups)]
image_grid(
    test.x[torch.cat(rows)],
    columns=8,
    labels=test.group_names,
    title="Bird and place can be told apart at a glance",
)

# %% [markdown]
# ## Train a network as one always does
#
# *Empirical risk minimisation* (ERM) makes the mean loss over the training pictures small,
#
# $$\min_\theta \; \frac1N \sum_{i=1}^{N} \ell\big(f_\theta(x_i),\, y_i\big),$$
#
# with $\ell$ the cross-entropy. It knows neither $a$ nor the groups. The network is a small ResNet; `train_erm` does what
# you would write yourself (AdamW, shuffled batches, one validation after each epoch).

# %%
import os

from caml_core.backbones import backbone
from caml_core.device import pick_device
from caml_core.erm import train_erm

device = pick_device("auto")
EPOCHS = {"quick": 8, "full": 30}[os.environ.get("CAML_PROFILE", "quick")]
network = backbone("small_resnet", n_classes=2, seed=0)
run = train_erm(
    network,
    train,
    val,
    epochs=EPOCHS,
    lr=2e-3,
    batch_size=32,
    seed=0,
    device=device,
    select="last",
)
print(
    f"training accuracy in the last epoch: majority {run.history[-1]['train_majority']:.1f}%"
)

# %% [markdown]
# ## Look at the groups, not at the average
#
# On the balanced test set, count each group by itself. The lowest of the four is the *worst-group accuracy* (WGA), the
# number that this book is about.

# %%
from caml_core.features import predict
from caml_core.figures import group_bars
from caml_core.metrics import group_metrics

metrics = group_metrics(
    predict(network, test, device), test, train.group_counts
)
minority = [not bool(test.majority[g // 2, g % 2]) for g in range(4)]
group_bars(
    metrics,
    minority=minority,
    chance=50,
    title="The network answers by the background",
)

# %%
for name in ("average", "adjusted", "majority", "minority", "worst_group"):
    print(
        f"{name:12} {metrics[name]['value']:5.1f}%   95% interval {metrics[name]['low']:.1f} to {metrics[name]['high']:.1f}"
    )

# %% [markdown]
# Read the second line: weighted by how often each group occurs in *training*, the accuracy looks excellent. That is
# what a validation set drawn like the training set would have told you. The shortcut is invisible there.

# %%
assert metrics["adjusted"]["value"] > 85, (
    "the average as usually reported should look fine"
)
assert metrics["majority"]["value"] > 95, (
    "the majority should be learned almost perfectly"
)
assert metrics["minority"]["value"] < 60, (
    "the minority should fail: otherwise no shortcut was learned"
)

# %% [markdown]
# ## Proof: the same bird somewhere else
#
# Group accuracies are a correlation. Since the program draws the pictures, we can intervene: take a bird and put the
# very same bird on the other background. If the network looked at the bird, its answer would not change.

# %%
from caml_core.data.birdscapes import BIRDS, draw


def pixels(k, onto):
    """Waterbird number k of the test split, drawn on background `onto`: uint8 (3, 48, 48)."""
    return torch.from_numpy(draw(1, 1, k, split="test", onto=onto)[0]).permute(
        2, 0, 1
    )


birds = range(200)
on_water, on_land = (
    torch.stack([pixels(k, onto) for k in birds]) for onto in (1, 0)
)
with torch.no_grad():
    answers = [
        network(x.to(device)).argmax(dim=1).cpu() for x in (on_water, on_land)
    ]
changed = 100 * (answers[0] != answers[1]).double().mean().item()
print(
    f"{len(birds)} waterbirds: 'waterbird' on water {100 * answers[0].double().mean():.0f}%, the same on land "
    f"{100 * answers[1].double().mean():.0f}%"
)
print(f"the answer changes with the background for {changed:.0f}% of the birds")
assert changed > 50

# %%
figure = image_grid(
    torch.cat([on_water[:8], on_land[:8]]),
    columns=8,
    labels=["on water", "on land"],
    title="The same eight waterbirds, moved from water to land: the answer moves along",
)
for row, said in enumerate(answers):
    for column in range(8):
        right = said[column] == 1
        figure.add_annotation(
            x=column * 50 + 24,
            y=row * 50 + 44,
            text=BIRDS[said[column]],
            showarrow=False,
            font={"color": "white", "size": 12},
            bgcolor="#0072B2" if right else "#D55E00",
        )
figure

# %% [markdown]
# ## Could it have learned the bird?
#
# Perhaps the birds are just too hard. So train the same network in the same way on as many pictures in which bird and
# background are independent, $\rho = 0.5$.

# %%
fair_train, _, _ = load("birdscapes", rho=0.5, n_train=2000, seed=0)
fair_network = backbone("small_resnet", n_classes=2, seed=0)
train_erm(
    fair_network,
    fair_train,
    val,
    epochs=EPOCHS,
    lr=2e-3,
    batch_size=32,
    seed=0,
    device=device,
    select="last",
)
fair = group_metrics(predict(fair_network, test, device), test)
print(
    f"minority accuracy: {metrics['minority']['value']:.1f}% at rho 0.95, {fair['minority']['value']:.1f}% at rho 0.5"
)
assert fair["minority"]["value"] > metrics["minority"]["value"] + 25

# %% [markdown]
# The bird can be learned. Given a cheaper cue that is right 95 times in 100, the network did not bother.
#
# ## What we saw
#
# - A network can reach a high average and be wrong on nearly every picture of a minority group.
# - The groups show it, and an intervention proves it: the answer follows the background.
# - Nothing was wrong with the network or the optimiser. The *data* made the shortcut the shortest way to a small loss.
#
# ## Where the book goes from here
#
# A few well-chosen labels can say what the data left open. *Active learning* asks for them; **CAML** makes every round of
# questions a meta-learning task, so that the answers shape what is learned and are not drowned by the majority.
# If the features are already good, **HSFM** edits a few of them so that the last layer does well on the hard examples,
# and we decode its edits into pictures. The next chapter looks closer at the shortcut itself:
# [01, Shortcuts](01_shortcuts.ipynb).
#
# ## Exercises
#
# 1. What is the WGA of a model that always answers "waterbird"? Of a coin? Why is a coin's better than our network's?
# 2. Lower `rho` to 0.9 and to 0.8. Where does the minority accuracy begin to rise?
# 3. The proof used waterbirds. Repeat it with landbirds moved to water: is the change as large?
#
# <details><summary>Solutions</summary>
#
# 1. 0% (it fails on all landbirds) and 50%. A coin does not use the background; our network uses nothing else, so on the
#    minority it is wrong almost always.
# 2. Change the first cell to `load("birdscapes", rho=0.9, n_train=2000)` and run all. The explorer at the end of
#    [chapter 01](01_shortcuts.ipynb) shows the whole curve.
# 3. `draw(0, 0, k, split="test", onto=1)` puts landbird `k` on water. The change is of the same kind: both directions
#    follow the background.
#
# </details>
#
# ## References
#
# - R. Geirhos et al., [Shortcut learning in deep neural networks](https://arxiv.org/abs/2004.07780), 2020.
# - S. Sagawa et al., [Distributionally robust neural networks for group shifts](https://arxiv.org/abs/1911.08731), 2020:
#   groups, worst-group accuracy, Waterbirds.
# - H. Shah et al., [The pitfalls of simplicity bias in neural networks](https://arxiv.org/abs/2006.07710), 2020.
