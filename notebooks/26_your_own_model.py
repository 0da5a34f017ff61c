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
# # Your own model: find the shortcut, ask, repair
#
# **Question.** A model is right on nearly all pictures that look like its training set, and fails in the field. Nobody
# has labelled what it leans on. Can one find the part that fails, ask for a hundred labels that count, and repair its
# last layer?
#
# **You will be able to** audit a model on your own pictures, read a slice and its interval, answer questions about what
# is in the pictures, choose among repairs by scores they did not see, put the new head back, and say what a biased
# validation set would have hidden.
#
# > **Before you start.** Chapter [02](02_last_layer.ipynb) has groups and DFR (deep feature reweighting), chapter
# > [16](16_active_hsfm.ipynb) the questions worth asking. On a laptop with two cores this takes about one minute and 2 GB
# > of memory; no GPU is needed. Nothing is downloaded. The scored searches are read from stored records.

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
# ## A model, and what its owner knows
#
# We play the owner. The task: land bird or water bird. The pictures are the book's birdscapes, chapter
# [03](03_datasets.ipynb): 95% of the birds in training stand where such birds live. The owner does not know that
# anybody would count backgrounds, so we hide them: the splits below have labels and an attribute called "unknown".

# %%
import torch
from caml_core.data import load
from caml_core.groups import GroupDataset

sizes = {"size": 64, "n_train": 1200, "n_val": 600, "n_test": 600}
truth = load("birdscapes", rho=0.95, seed=0, **sizes)


def hidden(split):
    """The same, without what nobody has labelled."""
    names = {"class_names": split.class_names}
    names["attribute_names"] = ["unknown"]
    return GroupDataset(split.x, split.y, torch.zeros_like(split.y), **names)


train, val, test = map(hidden, truth)
print(len(train), "to train on,", len(val), "labelled later,", len(test))

# %% [markdown]
# The model: an EfficientNet-Lite0 that has seen ImageNet, with a last layer trained on these birds. Yours may be a timm
# or torchvision model with weights in safetensors, a file in the Open Neural Network Exchange format (ONNX), an
# exported program, or any `nn.Module`.

# %%
from caml_core.dac import put_head
from caml_core.features import extract_features, standardise
from caml_core.last_layer import erm_head
from caml_core.metrics import group_metrics
from caml_core.networks import backbone

CPU = torch.device("cpu")
model = backbone("efficientnet_lite0", 2)
splits = (train, val, test)
raw = [extract_features(model, s, CPU, engine="onnx") for s in splits]
z = standardise(*raw)
put_head(erm_head(z[0], z[1]), model, raw[0].x)


# %%
@torch.no_grad()
def judged(model):
    """Every group of the test split, which only the book can see."""
    logits = model.head(raw[2].x)
    return group_metrics(logits, truth[2], truth[0].group_counts)


before = judged(model)
usual = before["adjusted"]["value"]
field = before["average"]["value"]
print(f"on pictures like training: {usual:.0f}% right")
print(f"in the field, where birds are anywhere: {field:.0f}%")
assert usual > 88
assert field < 75

# %% [markdown]
# ## Find: which part of a class fails?
#
# A **slice** is a rule on the model's own features. It is learned on one half of the labelled pictures (which mistakes
# go together?) and judged on the other, so that its error there is honest. The interval of its *gap*, error in the
# slice less error in the rest of its class, counts all slices that were tried, since the worst of them is looked at.
#
# Pictures can be hard without a shortcut; but then the model is unsure of them, and its confidence announces the gap.
# An alarm is given when the gap is 25 points above the announced one for sure. How often that is false is counted
# below.

# %%
from textwrap import fill

from caml_core.own.audit import audit, verdict

found = audit((train, val, test), model)
print(fill(verdict(found), 78))
for one in found.slices[:4]:
    print(
        f"{val.class_names[one.label]}, by {one.way}: {one.n} judged,"
        f" error {one.error:.0f}% (rest {one.rest:.0f}%), gap at least"
        f" {one.low:.0f}"
    )

# %% tags=["opening", "hide-input"]
from caml_core.pictures import figures as book

book.use_book_style()
worst = found.slices[0]
of_class = (val.y == worst.label).nonzero().flatten()
rest = of_class[~torch.isin(of_class, worst.rows)]
shown = torch.cat([worst.rows[:8], rest[:8]])
name = val.class_names[worst.label]
title = f"{name.capitalize()}s in the worst slice, and the others"
labels = [f"error {worst.error:.0f}%", f"error {worst.rest:.0f}%"]
figure = book.image_grid(val.x[shown], columns=8, title=title, labels=labels)
alt = "Eight pictures of the slice that fails above eight of the rest."
figure.update_layout(meta={"alt": alt})

# %% [markdown]
# Nobody had to name the background: it is what the pictures of the slice share. `python -m
# caml_core audit` writes such sheets to one page, with what the model looks at, and what is near.
#
# A CLIP can put it into words. With $z$ the embeddings of pictures, $\bar z$ their means in the slice and in the rest
# of its class, and $t$ that of a text, texts with a large $t^\top (\bar z_{\text{slice}} - \bar z_{\text{rest}})$ say
# what the slice has more of. The book's small CLIP of chapter [13](13_tiny_clip.ipynb) knows birds; for other pictures
# take a real one.

# %%
from caml_core.own.words import words
from caml_core.pictures.clip import load_clip

clip = load_clip("tiny", device="cpu")
texts = [
    f"a {colour} {name} on {place}"
    for colour in ("red", "yellow")
    for place in ("land", "water")
]
said = words(clip, val, worst, texts)
for text, nearer in said:
    print(f"{text:28}{nearer:+.2f}")
wrong_place = "land" if name == "waterbird" else "water"
assert said[0][0].endswith(wrong_place)

# %% [markdown]
# Since we know the answer, we can score the search:

# %%
share = truth[1].is_minority[worst.rows].double().mean().item()
print(f"{100 * share:.0f}% of the worst slice stand in the wrong place")
assert worst.alarm
assert share > 0.8

# %% [markdown]
# ## Ask: a hundred answers
#
# Ask inside the slice and outside of it in turn, class by class, so that every group comes up about equally often,
# though nobody knows the groups. The pictures and a csv to fill in go to a folder.

# %%
import tempfile
from pathlib import Path

from caml_core.own.ask import (
    queue,
    read_answers,
    read_lines,
    save,
    write_folder,
)
from caml_core.own.label import labeller
from caml_core.own.repair import repair

rows = queue(val.y, found.logits, found.slices, 100)
file = write_folder(Path(tempfile.mkdtemp()), val, rows)
print(file.name, "has", len(read_lines(file)), "lines; the first:")
print(read_lines(file)[0])


# %%
def told():
    """What the answers so far have changed; the widget asks every 20."""
    known = read_answers(file, found.features[1])
    sides = found.features[0], known, found.head, found.features[1]
    return repair(*sides, ways=["leave alone", "dfr"]).advice


# To answer: display(widget)
widget = labeller(file, ["land", "water"], told=told)

# %% [markdown]
# ![The widget: a picture, its label, a button for each attribute with its key, a bar of what is
# done.](../book/static/labeller.webp)
#
# A key is enough for each picture; a spreadsheet does as well. Here the program answers what you would see:

# %%
lines = read_lines(file)
for line in lines:
    line[3] = ["land", "water"][truth[1].a[int(line[1])]]
save(file, lines)
known = read_answers(file, found.features[1])
print(dict(zip(known.group_names, known.group_counts.tolist())))
assert known.group_counts.min() >= 10

# %% [markdown]
# ## Repair: which way, and how sure?
#
# With a hundred answers one can retrain the last layer on them (DFR), continue from the old one, edit the support set
# (HSFM, chapter [10](10_hsfm.ipynb)), or let a linear model of the answers guess the attribute of *everybody else* and
# run DFR on all labelled pictures. Every way is scored by cross-validation on answers that it did not see; what is
# chosen inside a way is chosen inside the fold. The gain over leaving the head alone is a mean over draws of the
# answers, with its interval, so it need not be the difference of the column "worst group"; with some 25 answers a group
# that column is rough.

# %%
WAYS = ["leave alone", "dfr", "dfr, groups guessed", "continue, balanced"]
done = repair(
    found.features[0], known, found.head, found.features[1], ways=WAYS
)
print(fill(done.advice, 78))

# %% tags=["hide-input"]
from caml_core.runs.tables import markdown
from IPython.display import Markdown


def table(head, rows, foot=""):
    """A table with a line below it: a list of texts for each row."""
    return Markdown(f"{markdown(head, rows)}\n\n{foot}")


cells = [
    [
        w.name,
        f"{w.worst_group:.0f}",
        "{:+.0f} ({:+.0f} to {:+.0f})".format(*w.gain),
        f"{w.plain:.0f}",
    ]
    for w in done.ways
]
assert done.way != "leave alone"
table(
    ["percent", "worst group", "gain in the worst group", "all labelled"], cells
)

# %% [markdown]
# The head goes back into the model, as a copy of two tensors; nothing else changes. Now the book uncovers the test
# split:

# %%
put_head(done.head, model, found.raw)
after = judged(model)
for name, metrics in {"before": before, "after": after}.items():
    worst_group, average = (
        metrics[key]["value"] for key in ("worst_group", "average")
    )
    print(f"{name}: worst group {worst_group:.0f}%, average {average:.0f}%")
gain = after["worst_group"]["value"] - before["worst_group"]["value"]
assert gain > 30
now = after["adjusted"]["value"]
print(f"on pictures like training: {usual:.0f}% before, {now:.0f}% after")
assert now < usual - 5

# %% tags=["hide-input"]
import plotly.graph_objects as go

figure = go.Figure()
for name, metrics, colour in (
    ("before", before, book.MINORITY),
    ("after a hundred answers", after, book.LABEL),
):
    names = [group["name"] for group in metrics["groups"]]
    right = [group["value"] for group in metrics["groups"]]
    figure.add_bar(x=names, y=right, name=name, marker_color=colour)
title = "After a hundred answers: the worst groups up, the best pay"
alt = {"alt": "Accuracy of four groups before and after the repair."}
figure.update_layout(title=title, meta=alt, barmode="group")
figure.update_yaxes(title="right (%)", range=[0, 100])

# %% [markdown]
# ## How often does that work?
#
# One run is an anecdote. The record has five seeds each of birdscapes, Dominoes and sentences (madlibs), always with
# the attribute hidden, scored afterwards: how much of the worst slice is minority (*purity*), whether an alarm was
# given, and worst-group accuracy before, after a hundred answers, and after DFR with *every* group of the validation
# set known.

# %%
from caml_core.runs.records import describe, paired_difference, stored

records = stored("own_search")


def pick(dataset, validation="fair", shortcut=True):
    found = [r for r in records if r["dataset"] == dataset]
    found = [r for r in found if r["config"]["validation"] == validation]
    return [r for r in found if (r["config"]["rho"] > 0.5) == shortcut]


def values(rows, metric):
    """One number a run that has it; a search may find nothing."""
    return [
        r["metrics"][metric]["value"] for r in rows if metric in r["metrics"]
    ]


# %% tags=["hide-input"]
def gap(first, second):
    """Difference of two worst groups, each (metric, runs), with interval."""
    sides = [
        [
            r | {"metrics": {"wga": r["metrics"][f"{k}, worst_group"]}}
            for r in rows
        ]
        for k, rows in (first, second)
    ]
    return paired_difference(*sides, "wga")


def moved(rows, after, before):
    return gap((after, rows), (before, rows))


# %% tags=["hide-input"]
DATA = ["birdscapes", "dominoes", "madlibs"]
HEADS = ["erm", "repaired", "dfr, all groups"]


def row_of(name, rows):
    purity = values(rows, "purity")
    wga = [
        f"{torch.tensor(values(rows, f'{k}, worst_group')).mean():.0f}"
        for k in HEADS
    ]
    gap = "{mean:+.1f} ({low:+.1f} to {high:+.1f})".format(
        **moved(rows, "repaired", "dfr, all groups")
    )
    alarms = sum(v > 0 for v in values(rows, "alarm"))
    found = ", ".join(f"{v:.0f}" for v in purity) or "nothing found"
    return [name, found, f"{alarms} of {len(rows)}", *wga, gap]


assert sum(v > 0 for v in values(pick("madlibs"), "alarm")) <= 2
for d in DATA:
    assert abs(moved(pick(d), "repaired", "dfr, all groups")["mean"]) < 3
HEAD = ["purity of the worst slice", "alarm", *HEADS, "repaired less DFR"]
table(
    ["percent", *HEAD],
    [row_of(d, pick(d)) for d in DATA],
    describe(pick(DATA[0])).split("; torch")[0],
)

# %% tags=["hide-input"]
peers = stored("own_peers")
PEERS = ["slices", "k-means", "highest losses", "datalab"]
rows = []
for d in DATA:
    fair = pick(d, shortcut=False)
    alarms = sum(v > 0 for v in values(fair, "alarm"))
    assert alarms <= 1  # of twenty
    row = [d, f"{alarms} of {len(fair)}"]
    for way in PEERS:
        runs = [r for r in peers if (r["dataset"], r["method"]) == (d, way)]
        purity = values(runs, "purity")
        row.append(", ".join(f"{v:.0f}" for v in purity) or "nothing found")
    rows.append(row)
table(
    ["", "alarms without a shortcut", *PEERS],
    rows,
    "Purity of what each way calls worst, percent, by seed.",
)

# %% [markdown]
# With the shortcut gone there is no alarm. The alarm misses, too: none in the five searches of sentences, which do have
# a shortcut. With it, the slices of the pictures are minority nearly throughout; of the five searches in sentences one
# found nothing to learn from, and one slice held a quarter of majority, so look before you trust. But for *finding*
# minority pictures one hardly needs a search: the hundred highest losses hold as many, and k-means (four clusters a
# class, the one with the most errors) does as well on pictures, though not on sentences. What the search adds is a rule
# that says which part of a class it is, an error that was judged on other pictures, and an interval. Datalab's check
# for an underperforming group, as it comes, found none here.
#
# ## What is biased validation worth?
#
# All of this needs labelled pictures in which the shortcut does *not* hold. Suppose that yours were collected like the
# training set: 95% of the birds where they belong. The same way again, with a validation split thinned to that share;
# and DFR that knows every group of it.

# %% tags=["hide-input"]
rows = []
for d in DATA:
    biased = pick(d, "like training")
    n = biased[0]["config"]["n_labelled"]
    rows.append([f"{d}, {n} labelled", *row_of(d, biased)[1:]])
table(["percent, validation like training", *HEAD], rows)


# %% tags=["hide-input"]
def against(metric, d):
    """Worst groups by fair and by biased validation, of the same seeds."""
    return gap(*((metric, pick(d, v)) for v in ("fair", "like training")))


names = {"repaired": "a hundred answers", "dfr, all groups": "all groups known"}
lost = {
    said: {d: against(metric, d) for d in DATA}
    for metric, said in names.items()
}
title = "What a fair validation set is worth"
label = "worst group, fair less biased validation, points"
colours = {"a hundred answers": book.LABEL, "all groups known": book.MINORITY}
figure = book.interval_rows(lost, title=title, x_title=label, colours=colours)
alt = {"alt": "Points of the worst group that a biased validation set costs."}
figure.update_layout(meta=alt)


# %% tags=["hide-input"]
for d in DATA:
    biased = pick(d, "like training")
    more = gap(("repaired", pick(d)), ("dfr, all groups", biased))
    assert more["low"] > 0
    text = "{mean:+.1f} ({low:+.1f} to {high:+.1f})".format(**more)
    print(f"{d}: a hundred fair answers less all biased ones {text}")
found_none = {d: not values(pick(d, "like training"), "purity") for d in DATA}
assert found_none == {"birdscapes": True, "dominoes": False, "madlibs": True}

# %% [markdown]
# Where the shortcut holds in validation as it does in training, few pictures contradict it. On birdscapes and on the
# sentences the search finds nothing to learn a rule from; on Dominoes, where one picture in ten contradicts, it finds a
# less pure slice, and gives no alarm. A hundred answers then repair less, or cross-validation says to leave the head
# alone. **A hundred answers about a fair set were worth more than DFR on all answers about a biased one** (the printed
# lines). The fair set is also about twice as large, and there the repair may choose among several ways. So the first
# thing to collect is not attributes. It is pictures from where the model will be used.
#
# ## Your pictures
#
# The same as commands: a folder with one subfolder a class, or a csv with the columns `path` and `y`. Set the path, run
# the cell, open `report/report.html`. [Bring your own data](../book/bring_your_own_data.md) has the flags for your own
# model.

# %%
MY_PICTURES = ""  # such as "pictures/labels.csv"
if MY_PICTURES:
    from caml_core.__main__ import main

    main(["audit", MY_PICTURES, "--out", "report"])
    main(["ask", MY_PICTURES, "-n", "100", "--out", "ask"])
    # then display(labeller(Path("ask/labels.csv"), ["land", "water"])), and
    # main(["repair", MY_PICTURES, "--answers", "ask/labels.csv", "--out", "new"])

# %% [markdown]
# What it refuses, each in one message with the way out: classes that do not fit the model, a model without a linear
# layer at its end, features that are constant, one class, ten pictures, an ONNX file that does not show its features,
# answers that are all the same.
#
# ## What this does not do
#
# - It repairs the *last layer*. What the features do not hold, no head can find (chapter [02](02_last_layer.ipynb)).
# - A slice with a high error need not be a shortcut. Look at it before you ask about it. Our first rule for the alarm,
#   a gap of 20 points alone, was false in all twenty runs of Dominoes without a shortcut. The threshold of this one was
#   set on other seeds of these same data, and yours may need another.
# - Two attributes are enough for the examples here. Ask one question at a time, and run the audit again after a repair.
# - Guessing groups assumes that a linear rule on the features tells the attribute. Backgrounds and digits are like
#   that; subtle cues may not be. The cross-validation shows where it does not.
# - Domino and Spotlight look for such slices, too; they were not run beside it.
#
# ## What we saw
#
# - Nearly all right on pictures like training, six in ten in the field: the average hid a group at the bottom.
# - On pictures a search that did not know the attribute found it, as a part of a class whose pictures have something in
#   common. On sentences no alarm was given.
# - A hundred answers, and guesses for everybody else, repaired the last layer about as well as knowing every group.
# - With validation data like training, little or nothing was found, and less could be repaired.
#
# ## Two quick questions
#
# **1.** Why is a slice judged on the half that it was not learned from?
#
# <details><summary>To have more pictures</summary>
#
# No. It costs half of them.
#
# </details>
#
# <details><summary>Because a rule that was learned from mistakes finds mistakes where it learned, even in noise</summary>
#
# Yes. On the other half its error is honest, for one slice. The interval then counts all that were tried.
#
# </details>
#
# <details><summary>Because the two halves have other shortcuts</summary>
#
# No. They are drawn at random.
#
# </details>
#
# **2.** Cross-validation says that a repair gains fifty points in the worst group, with an interval from thirty to
# seventy. What next?
#
# <details><summary>Use it, and look at the column "all labelled" for the price</summary>
#
# Yes. The interval is far from 0. The column says whether the average of *these* labelled pictures pays for it; on
# pictures like training, where the shortcut holds, it may.
#
# </details>
#
# <details><summary>Ask a thousand more questions first</summary>
#
# No. That some repair beats none would stay. Which one is best may still change (exercise 1).
#
# </details>
#
# <details><summary>Leave it alone: the interval is too wide</summary>
#
# No. It is wide, but all of it is on one side.
#
# </details>
#
# ## Exercises
#
# **Exercise 1: fewer answers.** Use only the first 30, then the first 60 of the answers. Which way does the
# cross-validation recommend, and what does the test split say?

# %% tags=["hide-cell", "solution"]
# @title Solution 1 { display-mode: "form" }
for n in (30, 60):
    some = known.subset(range(n))
    fewer = repair(
        found.features[0], some, found.head, found.features[1], ways=WAYS
    )
    put_head(fewer.head, model, found.raw)
    worst_group = judged(model)["worst_group"]["value"]
    print(f"{n} answers: {fewer.way}, worst group {worst_group:.0f}%")
    assert worst_group > before["worst_group"]["value"] + 10
# With few answers a group the choice of a way is noisy: more are no guarantee.
put_head(done.head, model, found.raw)

# %% [markdown]
# **Exercise 2: the missing alarm.** Madlibs has a shortcut, and its slices hold the minority; yet there was no alarm.
# Read the table again: what is different there, and which number would you look at instead?
#
# <details><summary>Solution 2</summary>
#
# The model is better: its worst group starts higher than that of the pictures (column "erm"), and it is less sure of
# what it gets wrong. So no gap is 25 points above the announced one for sure. The alarm asks for a large and certain
# surprise; a small shortcut is a small one. Look at the slice itself and at the lower end of its interval: above 0 it
# is worse for sure.
#
# </details>
#
# ## References
#
# - S. Eyuboglu et al., [Domino: discovering systematic errors with cross-modal
#   embeddings](https://arxiv.org/abs/2203.14960), 2022.
# - J. Nam et al., [Spread spurious attribute: improving worst-group accuracy with spurious attribute
#   estimation](https://arxiv.org/abs/2204.02070), 2022: groups guessed from few answers.
# - E. Creager et al., [Environment inference for invariant learning](https://arxiv.org/abs/2010.07249), 2021: EIIL.
# - P. Kirichenko et al., [Last layer re-training is sufficient for robustness to spurious
#   correlations](https://arxiv.org/abs/2204.02937), 2023: DFR.
