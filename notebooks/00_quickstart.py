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
# > about one minute and 1 GB of memory; no GPU is needed. Nothing is downloaded: the program draws its own pictures. The results below are those of the quick profile; the full profile (`CAML_PROFILE=full`) trains longer.

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
# ## Two birds, two places
#
# Our data are *birdscapes*: little scenes with a **waterbird** (a duck or a heron) or a **landbird** (a songbird), on
# **water** or on **land**. The label $y$ is the bird. The background is the *spurious attribute* $a$: it says nothing
# about what a waterbird is, but in the training set it goes with the bird in 95 of 100 pictures. We write this
# *spurious strength* as $\rho = 0.95$. (Every symbol of the book is on the [notation page](../book/notation.md).)

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
from caml_core.groups import group_table
from IPython.display import Markdown

Markdown(group_table(train=train, validation=val, test=test))

# %% tags=["hide-input"]
from caml_core.pictures.figures import image_grid, use_book_style

use_book_style()
rows = [torch.where(test.group == g)[0][:6] for g in range(test.n_groups)]
image_grid(
    test.x[torch.cat(rows)],
    columns=6,
    labels=[name.replace(", ", ",<br>on ") for name in test.group_names],
    title="Bird and place can be told apart at a glance",
)

# %% [markdown]
# ## Train a network the usual way
#
# *Empirical risk minimisation* (ERM) makes the mean loss over the training pictures small,
#
# $$\min_\theta \; \frac1N \sum_{i=1}^{N} \ell\big(f_\theta(x_i),\, y_i\big),$$
#
# with $\ell$ the cross-entropy. It knows neither $a$ nor the groups. The network is a small ResNet; `train_erm` does what
# you would write yourself (AdamW, shuffled batches, one validation after each epoch).

# %%
import os

from caml_core.device import pick_device
from caml_core.networks import backbone
from caml_core.training import Erm, train_erm

device = pick_device("auto")
EPOCHS = {"quick": 8, "full": 30}[os.environ.get("CAML_PROFILE", "quick")]
network = backbone("small_resnet", n_classes=2, seed=0)
run = train_erm(
    network,
    train,
    val,
    Erm(epochs=EPOCHS, lr=2e-3, batch_size=32, select="last"),
    seed=0,
    device=device,
)
print(
    f"training accuracy in the last epoch: majority {run.history[-1]['train_majority']:.1f}%"
)

# %% [markdown]
# ## Look at the groups, not at the average
#
# On the balanced test set, count each group by itself. The lowest of the four is the *worst-group accuracy* (WGA),
# the number that this book is about. The *adjusted* accuracy weights the groups as they occur in training. The
# whiskers are 95% intervals over the test pictures.

# %%
from caml_core.features import predict
from caml_core.metrics import group_metrics
from caml_core.pictures.figures import group_bars

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
    print(f"{name:12} {metrics[name]['value']:5.1f}%")
assert metrics["adjusted"]["value"] > 85
assert metrics["majority"]["value"] > 95
if EPOCHS == 8:  # longer training finds some of the birds
    assert metrics["minority"]["value"] < 50, "worse than a coin"

# %% [markdown]
# Read the second line: the adjusted accuracy looks excellent. That is what a validation set drawn like the training
# set would have told you. There, the shortcut is invisible.

# %% [markdown]
# ## Proof: the same bird somewhere else
#
# Group accuracies are a correlation. Since the program draws the pictures, we can intervene: take a bird and put the
# very same bird on the other background. If the network looked at the bird, its answer would not change.

# %%
from caml_core.data.birdscapes import BIRDS, draw


def moved(bird, onto, n=200):
    """n birds of one kind, drawn on background `onto`: uint8 (n, 3, 48, 48)."""
    x = [draw(bird, bird, k, split="test", onto=onto)[0] for k in range(n)]
    return torch.stack([torch.from_numpy(pixels) for pixels in x]).permute(
        0, 3, 1, 2
    )


@torch.no_grad()
def answers_for(x):
    return network(x.to(device)).argmax(dim=1).cpu()


on_water, on_land = moved(1, onto=1), moved(1, onto=0)
answers = answers_for(on_water), answers_for(on_land)
changed = 100 * (answers[0] != answers[1]).double().mean().item()
for place, said in zip(("on water", "on land"), answers):
    print(f"waterbirds {place}: {said.double().mean():.0%} called waterbird")
print(f"the answer changes with the background for {changed:.0f}% of the birds")
assert changed > 50

# %% tags=["opening", "hide-input"]
figure = image_grid(
    torch.cat([on_water[:4], on_land[:4]]),
    columns=4,
    labels=["the birds<br>on water", "the same<br>on land"],
    title="Move the same waterbird to land, and the answer moves along",
)
for row, said in enumerate(answers):
    for column in range(4):
        figure.add_annotation(
            x=column * 50 + 24,
            y=row * 50 + 44,
            text=("✗ ", "✓ ")[said[column]] + BIRDS[said[column]],
            showarrow=False,
            font={"color": "white", "size": 12},
            bgcolor="#005A8E" if said[column] == 1 else "#A84A00",
        )
alt = "Four waterbirds on water, called waterbirds, and the same four on land, called landbirds."
figure.update_layout(meta={"alt": alt})

# %% [markdown]
# Do it by hand: in the page itself, two trained networks answer while you drag the bird or slide the background under
# it. One was trained with 95 majority pictures in 100, like ours, the other with 50.

# %%
from caml_core.pictures.explore import explore

explore("move_the_bird", "Move the bird: does the answer follow it?")

# %% [markdown]
# ## Could it have learned the bird?
#
# Perhaps the birds are just too hard. So train the same network in the same way on as many pictures in which the
# background agrees less often: in four of five, $\rho = 0.8$, and in one of two, $\rho = 0.5$, where it says nothing.

# %%
weaker = {}
for rho in (0.8, 0.5):
    other_train, _, _ = load("birdscapes", rho=rho, n_train=2000, seed=0)
    other = backbone("small_resnet", n_classes=2, seed=0)
    train_erm(
        other,
        other_train,
        val,
        Erm(epochs=EPOCHS, lr=2e-3, batch_size=32, select="last"),
        seed=0,
        device=device,
    )
    weaker[rho] = group_metrics(predict(other, test, device), test)
for rho, found in {0.95: metrics, **weaker}.items():
    majority, rare = (found[k]["value"] for k in ("majority", "minority"))
    print(f"rho {rho:4}: majority {majority:5.1f}%, minority {rare:5.1f}%")
assert weaker[0.5]["minority"]["value"] > 90
assert weaker[0.8]["minority"]["value"] > metrics["minority"]["value"] + 50
assert weaker[0.8]["minority"]["value"] < weaker[0.5]["minority"]["value"]

# %% [markdown]
# The bird can be learned. Objections in one picture of five were enough to make this network look at it, if not
# always; given a cue that is right 95 times in 100, it did not bother. (One network for each strength: chapter
# [01](01_shortcuts.ipynb) has more strengths, and stored runs with several seeds.)
#
# ## What we saw
#
# - A network can reach a high average, weighted as in training, and do worse than a coin on the minority.
# - The groups show it, and an intervention proves it: the answer follows the background.
# - Nothing was wrong with the network or the optimiser: on data with a weaker correlation they learned the bird.
#
# ## Where the book goes from here
#
# A few well-chosen labels can say what the data left open. *Active learning* asks for them; **CAML** (cumulative active
# meta-learning) makes every round of questions a meta-learning task, so that the answers shape what is learned. If the
# features are already good, **HSFM** (hard-set-guided feature-space meta-learning) edits a few of them so that the last
# layer does well on the hard examples, and we decode its edits into pictures. The next chapter looks closer at the
# shortcut itself: [01, Shortcuts](01_shortcuts.ipynb).
#
# ## Two quick questions
#
# **1.** A validation set drawn like the training set ($\rho = 0.95$) says 95%. How does the network do on waterbirds
# on land?
#
# <details><summary>About 95%, too</summary>
#
# No. Such a set has few of them: 95% is what the majority alone brings.
#
# </details>
#
# <details><summary>It may be 0%</summary>
#
# Yes. A network that reads the background alone scores 95% there, and fails on every minority picture.
#
# </details>
#
# <details><summary>About 50%</summary>
#
# No. It does not toss a coin there: it follows the background, which is wrong.
#
# </details>
#
# **2.** What shows that the network uses the background, and not something that merely goes with it?
#
# <details><summary>The low accuracy of two groups</summary>
#
# Not quite. Groups differ in more than one thing; that is a correlation.
#
# </details>
#
# <details><summary>The same bird on another background gets another answer</summary>
#
# Yes. Only the background was changed, so it made the difference.
#
# </details>
#
# <details><summary>The high training accuracy</summary>
#
# No. It says nothing about which feature was used.
#
# </details>
#
# ## Exercises
#
# **Exercise 1: a coin.** What is the WGA of a model that always answers "waterbird"? Of a coin? Why is a coin's better
# than our network's?
#
# <details><summary>Solution 1</summary>
#
# 0%, as it fails on all landbirds, and 50%. A coin does not use the background; our network uses little else, so on the
# minority it is nearly always wrong.
#
# </details>
#
# **Exercise 2: the other direction.** The proof used waterbirds. Repeat it with landbirds moved to water. Is the change
# as large?

# %% tags=["hide-cell", "solution"]
# @title Solution 2 { display-mode: "form" }
said = answers_for(moved(0, onto=0)), answers_for(moved(0, onto=1))
changed = (said[0] != said[1]).double().mean().item()
print(f"the answer changes for {changed:.0%} of the landbirds")
assert changed > 0.5, "both directions follow the background"

# %% [markdown]
# **Exercise 3: between the two.** Set `rho` in the second code cell to 0.9, and run all. Is the minority accuracy nearer to
# that at 0.95 or to that at 0.8?
#
# <details><summary>Solution 3</summary>
#
# To that at 0.95. Change the call to `load("birdscapes", rho=0.9, n_train=2000, seed=0)`; [chapter
# 01](01_shortcuts.ipynb) trains the same network at this strength, too, and lets you slide between strengths. One
# network scatters, so change the call to `load` and see: how far do a few objections go?
#
# </details>
#
# ## References
#
# - R. Geirhos et al., [Shortcut learning in deep neural networks](https://arxiv.org/abs/2004.07780), 2020.
# - S. Sagawa et al., [Distributionally robust neural networks for group shifts](https://arxiv.org/abs/1911.08731), 2020:
#   groups, worst-group accuracy, Waterbirds.
# - H. Shah et al., [The pitfalls of simplicity bias in neural networks](https://arxiv.org/abs/2006.07710), 2020.
