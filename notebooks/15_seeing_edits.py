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
# # Seeing the edits
#
# **Question.** HSFM moves the features of a few training examples. What do these moves look like?
#
# **You will be able to** edit CLIP embeddings with HSFM, draw them before and after, measure along which words they
# moved, and say what such pictures prove and what they do not.
#
# > **Before you start.** Chapter [10](10_hsfm.ipynb) explains HSFM, chapter [13](13_tiny_clip.ipynb) the tiny CLIP and
# > chapter [14](14_unclip.ipynb) the decoder. On a laptop with two cores this takes about a minute and 2 GB of memory.
# > Nothing is downloaded: both models come with the book. With a GPU, one word gives you Stable Diffusion and
# > photographs; that has not been run for these pages.

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
# ## A claim, made testable
#
# The most convincing figure of the HSFM paper (Yazdan Parast et al., [arXiv 2603.29313](https://arxiv.org/abs/2603.29313))
# shows pictures. A support example is embedded by CLIP, HSFM edits the embedding, and unCLIP draws it before and after:
# the bird stays, the background changes. *The edits follow the spurious attribute.*
#
# A picture cannot carry that claim alone. The decoder loses things of its own accord, a large enough push in any
# direction changes *something*, and eight pictures can be chosen. So we ask three questions, each with a control:
#
# | question | control |
# |:--|:--|
# | Does the background change because of the edit? | decode the **unedited** embedding, with the same noise |
# | Do edits go along the background more than elsewhere? | **random moves** of the same lengths |
# | Is it the edit that repairs the head? | train the head as long on the **unedited** support set |
#
# `MODEL` chooses what draws. `"tiny"` draws birdscapes, which we know completely; that is why we can check it.

# %%
import torch
from caml_core.data import load
from caml_core.device import pick_device
from caml_core.figures import image_grid, use_book_style
from caml_core.tiny_clip import embed_images, load_clip
from caml_core.unclip import decode, load_unclip

use_book_style()
MODEL = "tiny"  # the last section says what other words do
device = pick_device("cpu")
train, val, test = load("birdscapes", rho=0.95, seed=0)
clip, pipeline = load_clip(), load_unclip(MODEL, device)
e_train, e_val, e_test = (
    split.with_x(embed_images(clip, split.x)) for split in (train, val, test)
)
print(f"{len(e_train)} training embeddings of width {e_train.x.shape[1]}")
print(f"of length {e_train.x.norm(dim=1).mean():.3f}")

# %% [markdown]
# ## Coordinates to edit in
#
# HSFM was made for features that may move anywhere. CLIP embeddings may not: they have length 1, and real images fill
# only a few directions. Adam, which makes the edits, moves *every* coordinate by about $\eta$, however small its
# gradient. In raw coordinates most of an edit would leave for directions that no image has, and the decoder would be
# asked to draw what it never met.
#
# `ClipSpace` keeps the directions that hold 99.9% of the variance, $u = V^\top (e - \bar e)$, and after every edit puts
# the point back on the sphere, $e \leftarrow (\bar e + V u) / \|\bar e + V u\|$. It rotates and does not rescale:
# lengths and angles are those of CLIP.

# %%
from caml_core.clip_space import ClipSpace

space = ClipSpace.fit(e_train.x)
u_train, u_val, u_test = (
    split.with_x(space.to(split.x)) for split in (e_train, e_val, e_test)
)
k = space.directions.shape[1]
print(f"{k} of {e_train.x.shape[1]} directions kept")
assert k < 20

# %% [markdown]
# ## A head that leans on the background
#
# The ERM head is the book's usual one: 8 epochs of Adam. In these coordinates that is short, and the head takes what
# moves first, the direction in which bird and background agree.

# %%
from caml_core.heads import erm_head
from caml_core.metrics import group_metrics

erm = erm_head(u_train, u_val, seed=0)
longer = erm_head(u_train, u_val, seed=0, epochs=30)


def wga(weight, bias):
    metrics = group_metrics(u_test.x @ weight.T + bias, u_test)
    return metrics["worst_group"]["value"], metrics["average"]["value"]


for name, head in (("8 epochs", erm), ("30 epochs", longer)):
    print(
        "ERM head, {}: WGA {:.1f}, average {:.1f}".format(name, *wga(*head[:2]))
    )
assert wga(*erm[:2])[0] < wga(*longer[:2])[0] - 5
assert wga(*longer[:2])[0] > 90

# %% [markdown]
# Keep this in mind: on these embeddings plain patience repairs the head as well. Our CLIP was trained on scenes in which
# bird and background are independent, so the kind of bird lies open in its embedding. That makes a poor benchmark for
# HSFM's accuracy (chapter [12](12_hsfm_tables.ipynb) has better ones) and a good one for looking at edits: we know
# which direction is which.
#
# ## HSFM on the sphere
#
# Waterbirds' published settings, with two step sizes changed, since our features are some forty times shorter than
# standardised ones of a ResNet-50. $\eta = 0.01$ makes edits about as long as the distance between two scenes that differ
# in background alone: long enough to change it, if they go that way.

# %%
import dataclasses

from caml_core.hsfm import PUBLISHED, hsfm

settings = dataclasses.replace(PUBLISHED["waterbirds"], alpha=1.0, eta=0.01)
SUPPORTS = (0, 1, 2, 3, 4)  # five support sets, solved side by side
edits = hsfm(
    u_train, u_val, *erm[:2], settings, seeds=SUPPORTS, project=space.project
)
before, after = (
    space.back(h).flatten(0, 1) for h in (edits.before, edits.after)
)
rows = edits.rows.flatten()
print(f"{len(before)} support examples in {len(SUPPORTS)} sets")
print("epochs chosen on validation:", edits.epoch.tolist())
repaired = [wga(w, b)[0] for w, b in zip(edits.weight, edits.bias)]
print("WGA with HSFM:", ", ".join(f"{value:.1f}" for value in repaired))
assert min(repaired) > wga(*erm[:2])[0]
torch.testing.assert_close(
    after.norm(dim=1), torch.ones(len(after)), atol=1e-3, rtol=0
)

# %% [markdown]
# ## Before and after
#
# The first support set, one class after the other. In each block: the training picture; the decoder's picture of its
# **unedited** embedding, which shows what the decoder loses by itself; the picture of the **edited** embedding, drawn
# from the same noise; and the real training picture whose embedding is nearest to the edited one, which no decoder can
# have made up.

# %%
show = torch.tensor([0, 1, 2, 3, 4, 5, 16, 17, 18, 19, 20, 21])
drawn_before = decode(pipeline, before[show], seed=1, same_noise=False)
drawn_after = decode(pipeline, after[show], seed=1, same_noise=False)
nearest = (after[show] @ e_train.x.T).argmax(dim=1)
blocks = torch.cat(
    [train.x[rows[show]], drawn_before, drawn_after, train.x[nearest]]
)
image_grid(
    blocks,
    columns=len(show),
    labels=["picture", "unedited", "edited", "nearest real"],
    title="Some landbirds (left) lose their land, some waterbirds their water",
)

# %% [markdown]
# Look at the columns one by one before you read on. In some of them nothing happens but a shade. That is part of the
# result.
#
# The way from one to the other can be walked. The slider moves all examples along the great circle between the two
# embeddings, with the noise held fixed.

# %%
import plotly.graph_objects as go
import torch.nn.functional as F
from caml_core.figures import data_uri

walk = show[[0, 1, 2, 3, 6, 7, 8, 9]]
SHARES = (0.0, 0.25, 0.5, 0.75, 1.0)


def between(start, end, share):
    """Points on the great circle from start to end, unit vectors (N, width)."""
    angle = torch.acos((start * end).sum(1, keepdim=True).clamp(-1, 1))
    mixed = ((1 - share) * angle).sin() * start + (share * angle).sin() * end
    return F.normalize(mixed, dim=1)


def strip(share):
    """The walkers' pictures side by side, enlarged three times: uint8 (H, W, 3)."""
    there = between(before[walk], after[walk], share)
    x = decode(pipeline, there, seed=1, same_noise=False)
    x = torch.cat(list(x), dim=2)
    return (
        x.repeat_interleave(3, 1)
        .repeat_interleave(3, 2)
        .permute(1, 2, 0)
        .numpy()
    )


strips = [strip(share) for share in SHARES]
height, width = strips[0].shape[:2]


def layer(pixels):
    return {
        "source": data_uri(pixels, "JPEG"),
        "xref": "x",
        "yref": "y",
        "x": 0,
        "y": 0,
        "sizex": width,
        "sizey": height,
        "sizing": "stretch",
        "layer": "below",
    }


figure = go.Figure(
    go.Scatter(x=[0, width], y=[0, height], mode="markers", marker_opacity=0)
)
figure.frames = [
    go.Frame(name=f"{share:.0%}", layout={"images": [layer(pixels)]})
    for share, pixels in zip(SHARES, strips)
]
figure.update_layout(
    title="From the unedited embedding to the edited one",
    images=[layer(strips[0])],
    height=290,
    showlegend=False,
    margin={"l": 10, "r": 10, "t": 50, "b": 10},
    sliders=[
        {
            "currentvalue": {"prefix": "share of the edit: "},
            "steps": [
                {
                    "label": frame.name,
                    "method": "animate",
                    "args": [
                        [frame.name],
                        {"mode": "immediate", "frame": {"redraw": True}},
                    ],
                }
                for frame in figure.frames
            ],
        }
    ],
)
figure.update_xaxes(visible=False, range=[0, width], constrain="domain")
figure.update_yaxes(visible=False, range=[height, 0], scaleanchor="x")
figure.show()

# %% [markdown]
# ## Along which words?
#
# Pictures are impressions. CLIP offers a ruler: the difference of two texts is a direction, and the cosine of a move with
# it says how much of the move goes that way,
#
# $$\cos\big(e' - e,\; t_\text{water} - t_\text{land}\big).$$
#
# For bird and background we count a move as positive when it goes *towards the label's own side* (a waterbird towards
# "water", a landbird towards "land"). The paper's claim becomes: **cosines with the background are negative, and larger
# than those of any other word.** The null is a random move of the same length on the same sphere. It is not exactly 0:
# on a sphere every way leads a little away from what one has.

# %%
from caml_core.clip_space import along, random_moves
from caml_core.tiny_clip import prompts, text_centres

moves = after - before
control = random_moves(space, before, moves.norm(dim=1), seed=0)
y = edits.support_y.flatten()
WORDS = ("background", "bird", "facing", "size")


def cosines(there):
    """Of the moves with each word's direction: name -> (N,)."""
    found = {}
    for word in WORDS:
        low, high = text_centres(clip, prompts(word)[0])
        sign = 2 * y - 1 if word in ("background", "bird") else 1
        found[word] = along(there - before, high - low) * sign
    return found


edited, random = cosines(after), cosines(control)
figure = go.Figure()
for name, found, colour in (
    ("random move", random, "#999999"),
    ("HSFM's edit", edited, "#0072B2"),
):
    figure.add_box(
        x=[word for word in WORDS for _ in y],
        y=torch.cat([found[word] for word in WORDS]).numpy().round(3),
        name=name,
        marker_color=colour,
        boxpoints=False,
    )
figure.update_layout(
    boxmode="group",
    title="Edits leave the label's usual background",
    yaxis_title="cosine with the word's direction",
    xaxis_title="word",
)
figure.show()

# %%
for word in WORDS:
    print(
        f"{word:>10}: edits {edited[word].mean():+.2f}, "
        f"random moves {random[word].mean():+.2f}"
    )
assert edited["background"].mean() < -0.2
assert edited["background"].mean() < edited["bird"].mean() - 0.1
assert edited["background"].mean() < random["background"].mean() - 0.1

# %% [markdown]
# ## What flips
#
# A cosine of this size leaves room for much else. So we read each embedding again, zero-shot, before and after: does CLIP
# now see another background? Another bird?

# %%
from caml_core.clip_space import flips

ATTRIBUTES = ("background", "bird", "colour", "facing", "size")
figure = go.Figure()
share = {}
for name, there, colour in (
    ("random move", control, "#999999"),
    ("HSFM's edit", after, "#0072B2"),
):
    share[name] = {
        key: 100 * float(value.float().mean())
        for key, value in flips(clip, before, there).items()
    }
    figure.add_bar(
        x=ATTRIBUTES,
        y=[share[name][key] for key in ATTRIBUTES],
        name=name,
        marker_color=colour,
    )
figure.update_layout(
    title="The background flips several times as often as by chance",
    yaxis_title="support examples read differently, %",
    xaxis_title="attribute",
)
figure.show()
hsfm_share, chance = share["HSFM's edit"], share["random move"]
assert hsfm_share["background"] > 2 * chance["background"]
assert hsfm_share["background"] > hsfm_share["bird"]

# %% [markdown]
# ## Five sets of scenes, and longer edits
#
# One training set is an anecdote. The table repeats the measurement on five, with five support sets each, for edits of
# four sizes. It was run once (`python benchmarks/edits.py`); this page reads its record.

# %%
import numpy as np
from caml_core.records import describe, paired_difference, stored
from IPython.display import Markdown

runs = {}
for record in stored("edits"):
    runs.setdefault(record["run"], []).append(record)


def cell(name, metric, digits=0):
    values = [r["metrics"][metric]["value"] for r in runs[name]]
    return f"{np.mean(values):.{digits}f}\u00a0±\u00a0{np.std(values, ddof=1):.{digits}f}"


etas = [name.split()[-1] for name in runs if name.startswith("hsfm")]
lines = [
    "| move | length | cosine with background | with bird | background flips, % "
    "| bird flips, % | colour flips, % |",
    "|:--|--:|--:|--:|--:|--:|--:|",
]
for eta in etas:
    for kind in ("hsfm", "random"):
        name = f"{kind}, eta {eta}"
        cells = [cell(name, "length", 2)]
        cells += [
            cell(name, f"along {word}", 2) for word in ("background", "bird")
        ]
        cells += [
            cell(name, f"flip {w}") for w in ("background", "bird", "colour")
        ]
        label = f"HSFM, η = {eta}" if kind == "hsfm" else "random, as long"
        lines.append(f"| {label} | " + " | ".join(cells) + " |")
Markdown("\n".join(lines))

# %% tags=["nbval-check-output"]
Markdown(f"*HSFM, η = 0.01*: {describe(runs['hsfm, eta 0.01'])}")

# %%
middle = ("hsfm, eta 0.01", "random, eta 0.01")
for metric in (
    "along background",
    "along bird",
    "flip background",
    "flip bird",
):
    d = paired_difference(runs[middle[0]], runs[middle[1]], metric)
    print(
        f"{metric}: HSFM - random {d['mean']:+.2f} "
        f"[{d['low']:+.2f}, {d['high']:+.2f}], {d['n']} sets of scenes"
    )
d = paired_difference(runs[middle[0]], runs[middle[1]], "along background")
assert d["high"] < 0

# %%
figure = go.Figure()
for kind, dash in (("hsfm", "solid"), ("random", "dot")):
    for word, colour in (
        ("background", "#D55E00"),
        ("bird", "#0072B2"),
        ("colour", "#999999"),
    ):
        names = [f"{kind}, eta {eta}" for eta in etas]
        mean = {
            metric: [
                np.mean([r["metrics"][metric]["value"] for r in runs[n]])
                for n in names
            ]
            for metric in ("length", f"flip {word}")
        }
        figure.add_scatter(
            x=mean["length"],
            y=mean[f"flip {word}"],
            name=f"{word}, {'HSFM' if kind == 'hsfm' else 'random'}",
            line={"color": colour, "dash": dash},
        )
figure.update_layout(
    title="Middling edits change the background first; long ones change everything",
    xaxis_title="length of the move (two antipodes lie 2 apart)",
    yaxis_title="read differently, %",
)
figure.show()

# %% [markdown]
# The claim holds in its direction: at every size, edits point away from the label's usual background, and clearly more
# so than random moves of the same length. But *how much of the picture* changes is set by $\eta$. Short edits show
# nothing at all; long ones repaint colour, size and bird too. A figure of decoded edits is a figure at one chosen $\eta$.
#
# And whose background flips? A support set is drawn from biased training data, so nearly all of it is majority.

# %%
for name in ("hsfm, eta 0.01", "random, eta 0.01"):
    shares = [
        cell(name, f"flip background of {g}") for g in ("majority", "minority")
    ]
    print(f"{name}: majority {shares[0]} %, minority {shares[1]} %")

# %% [markdown]
# HSFM flips the background of majority examples: it makes the minority that the training set lacks. The few minority
# examples keep theirs.
#
# All this is read from embeddings. In the decoded pictures (one support set of each five) it is blurred by the decoder:

# %%
for word in ("background", "bird", "colour"):
    shares = [cell(name, f"decoded flip {word}") for name in middle]
    print(f"decoded {word} flips: HSFM {shares[0]} %, random {shares[1]} %")
d = paired_difference(
    runs[middle[0]], runs[middle[1]], "decoded flip background"
)
print(
    f"background, HSFM - random: {d['mean']:+.0f} [{d['low']:+.0f}, {d['high']:+.0f}]"
)
assert d["mean"] > 5

# %% [markdown]
# The background of a picture still changes more often than by chance. Its bird changes about as often after a random move
# as after an edit: a slip of the decoder, not a finding.
#
# ## Is it the edit that repairs the head?

# %%
lines = ["| head | WGA | average |", "|:--|--:|--:|"]
for name, label in (
    ("erm-head", "ERM, 8 epochs"),
    ("erm-head, long", "ERM, 30 epochs"),
    ("dfr", "DFR: no edit, balanced data"),
    ("unedited support", "HSFM's training on the unedited support"),
    ("hsfm, eta 0.001", "HSFM, η = 0.001"),
    ("hsfm, eta 0.01", "HSFM, η = 0.01"),
):
    cells = [cell(name, "worst_group", 1), cell(name, "average", 1)]
    lines.append(f"| {label} | " + " | ".join(cells) + " |")
Markdown("\n".join(lines))

# %%
d = paired_difference(
    runs["hsfm, eta 0.01"], runs["unedited support"], "worst_group"
)
print(
    f"WGA, HSFM - unedited support: {d['mean']:+.1f} "
    f"[{d['low']:+.1f}, {d['high']:+.1f}]"
)

# %% [markdown]
# HSFM has two parts: edits, and a head that is trained for $40 \times T$ further steps on the support set, with the epoch
# chosen on validation. The row *unedited support* has the second part alone. Compare it with the rows around it before
# you credit the edits: the pictures show where edits go, and not that they were needed.
#
# ## What the pictures prove
#
# - **They show** that an edit, decoded, changes what the decoder draws, while the same noise and the unedited embedding
#   do not. That the change is the background, more often than chance.
# - **They do not show** that the network "thinks of" backgrounds: an edit is a vector that helps a linear head. Nor
#   that the edit repaired the head. Nor what another decoder would draw; ours knows only birdscapes, so *every* vector
#   becomes a bird in a scene.
# - **The nearest real picture** is the sober version of the same figure. It needs no decoder at all.

# %%
pictured = flips(
    clip, embed_images(clip, drawn_before), embed_images(clip, drawn_after)
)
print(
    f"of {len(show)} decoded pairs, the background is read differently in "
    f"{int(pictured['background'].sum())}, the bird in {int(pictured['bird'].sum())}"
)

# %% [markdown]
# ## The same on photographs
#
# `load_unclip`, `embed` and `decode` treat two models alike. `"tiny"` ships with the book. `"sd-unclip"` is Stable
# Diffusion unCLIP, and with it this chapter draws what the paper draws: birds of Waterbirds, faces of CelebA.
#
# ```python
# MODEL, DATA = "sd-unclip", "waterbirds"
# train, val, test = load(DATA)
# pipeline = load_unclip(MODEL, pick_device("auto"))
# z = embed(pipeline, train.x[:4000])           # not of length 1
# e, length = F.normalize(z, dim=1), z.norm(dim=1)
# # ... ClipSpace, erm_head and hsfm on e, as above; a decoder wants the lengths back:
# decode(pipeline, after, norm=length[rows], seed=1)
# ```
#
# The probes want the text encoder that belongs to the image encoder: `load_clip("ViT-H-14", "laion2b_s32b_b79k")`
# for `"sd-unclip"`, `load_clip("ViT-L-14", "openai")` for the small one.
#
# > **Not run here.** The pages of this book are made on a machine without a GPU and without these weights. What you see
# > above comes from `MODEL = "tiny"`. The path for `"sd-unclip"` is tested with a model of the same classes
# > that has a few thousand random weights, so it is known to run, and it is not known what it draws. The figures in the
# > table are estimates from the sizes of the weights and the usual speed of Stable Diffusion, not measurements.
#
# | | `"sd-unclip-small"` | `"sd-unclip"` |
# |:--|:--|:--|
# | image encoder, width of an embedding | ViT-L/14, 768 | ViT-H/14, 1,024 |
# | to download once (estimate) | 5 to 6 GB | 4 GB |
# | weights in memory, float16 (estimate) | 3 GB | 4 GB |
# | free GPU memory | from 4 GiB, better 12 | from 4 GiB, better 12 |
# | one picture, 768 x 768, 20 steps, on a T4 (estimate) | 5 to 15 s | 5 to 15 s |
# | a hundred pictures on a T4 (estimate) | 10 to 25 min | 10 to 25 min |
# | embedding 4,000 images on a T4 (estimate) | 1 to 3 min | 1 to 3 min |
#
# With less than 12 GiB free, the parts of the model visit the GPU in turn, which is slower. `pip install accelerate`
# if it says so. If the GPU still runs out of memory, give `decode` a smaller `batch_size`.
#
# **The weights.** Stability AI took Stable Diffusion 2 off the Hub in November 2025. `load_unclip("sd-unclip")` still
# works where the files are in your cache. Otherwise it says so and names a copy that others keep: give
# `MODEL = "sd2-community/stable-diffusion-2-1-unclip"`, or the path of a folder with the files. Only safetensors are
# read, because a pickle can run code when it is opened. The copy is not Stability AI's, and the book has not
# compared the two.
#
# **The data.** `load("waterbirds")` and `load("celeba")` look for the folders that their authors ship, under the folder
# `$CAML_DATA` or the one given as `data_dir=`; chapter [03](03_datasets.ipynb) says how to get them. The first
# call decodes every image once, to 224 pixels (some 30 GB of disk for CelebA); after that only the rows that you embed
# are read. CelebA's training split has more than 160,000 of them: embed a few thousand, as the cell above does.
#
# **Before you show a picture.** The weights have the CreativeML Open RAIL++-M licence, which forbids a list of harmful
# uses and wants that list passed on. This pipeline has no safety checker: look at every picture yourself. CelebA shows
# real people and labels them "male" or not by somebody's guess. A face drawn from an edited embedding is nobody's, and
# it says nothing about the person in the photograph. Read it as a picture of what the *embedding* confuses.

# %% [markdown]
# ## What we saw
#
# - CLIP embeddings live on a small part of a sphere. Edits must stay there, or they leave for directions that mean
#   nothing; principal directions and a projection do it in two lines.
# - HSFM's edits point away from the background that goes with the label, more so than random moves of the same length,
#   at every size of an edit. It is the majority examples whose background flips.
# - The size $\eta$ decides what a picture shows. With edits too small to see the head is nearly repaired; with large
#   ones colour, size and bird change along with the background.
# - The head's own further training, without any edit, has to be in the table. So do the round trip and the nearest real
#   picture in the figure.
#
# ## Turn these knobs
#
# - `settings.eta` and `settings.alpha`: watch the cosine with the background, and the flips of colour.
# - `keep` in `ClipSpace.fit`: with 1.0 the edits may use every direction. What does the decoder draw?
# - `rho`: at 0.5 there is no usual background. Which cosine remains?
#
# ## Exercises
#
# 1. The support sets hold a few minority examples, such as a waterbird on land. Does their background flip as often?
#
# <details><summary>Solution</summary>
#
# ```python
# changed = flips(clip, before, after)["background"]
# minority = e_train.is_minority[rows]
# print(changed[minority].float().mean(), changed[~minority].float().mean())
# ```
#
# There are only a handful of them: the record has both shares over five sets of scenes
# (`flip background of minority`), with their spread.
#
# </details>
#
# 2. Edit by hand. Move each support embedding along $t_\text{water} - t_\text{land}$ by the length of its edit, away from
#    the label's side, and train the head on that.
#
# <details><summary>Solution</summary>
#
# ```python
# low, high = text_centres(clip, prompts("background")[0])
# away = F.normalize(high - low, dim=0) * (1 - 2 * y)[:, None]
# by_hand = F.normalize(before + moves.norm(dim=1, keepdim=True) * away, dim=1)
# image_grid(
#     torch.cat([drawn_before, decode(pipeline, by_hand[show], seed=1, same_noise=False)]),
#     columns=len(show), title="Moved by words",
# )
# ```
#
# The pictures change their background and little else, which HSFM's do not: an edit that helps the head is not the
# same as an edit that one would make by hand.
#
# </details>
#
# ## References
#
# - S. Yazdan Parast et al. HSFM: hard-set-guided feature-space meta-learning. ECCV 2026.
#   [arXiv 2603.29313](https://arxiv.org/abs/2603.29313)
# - A. Ramesh et al. Hierarchical text-conditional image generation with CLIP latents. 2022.
#   [arXiv 2204.06125](https://arxiv.org/abs/2204.06125)
# - A. Radford et al. Learning transferable visual models from natural language supervision. ICML 2021.
#   [arXiv 2103.00020](https://arxiv.org/abs/2103.00020)
