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
# # PASM: rules that one can read, an expert for each population
#
# *In the spirit of* PASM (population adaptive symbolic mixture of experts; Qian and Dong, 2026), of which we could read the
# abstract only, and there is no public code: grammar, search, router, adaptation and data are ours.
#
# **Question.** A model has learned from two states, most of whose households follow one rule. In a third state most
# follow another. Do a hundred answers from there suffice, if what has to change can be read and is small?
#
# **You will be able to** write a mixture of rules and its likelihood, search a rule by score tests, move a mixture with
# a hundred answers, use its experts as groups that nobody labelled, and say when none of this should help.
#
# > **Before you start.** Chapter [02](02_last_layer.ipynb) has groups and heads, chapter [04](04_active_queries.ipynb)
# > queries. On a laptop with two cores this takes about one minute and 1 GB of memory; no GPU is needed. Nothing is
# > downloaded. The full experiment is read from stored records.

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
# ## Three kinds of households
#
# A storm comes; who goes? The authors ask real households of Florida, Texas and Georgia. Ours are made by the program:
# four flags (an order to go, pets, children, a mobile home) and ten numbers between 0 and 1 (risk as it is felt, notice,
# storms lived through, ...). Each household has an **archetype**, which nobody observes:
#
# - *order-followers* go if told to, less so with pets;
# - *cost-benefit* weighs the risk, and wants notice;
# - *inertia* leaves a mobile home, but not after many storms.
#
# Trust, income and tenure make one archetype more likely than another, and so does the state. In the two states to learn
# from, order-followers are the majority; in the third, inertia is. One answer in twenty is false.

# %%
import torch
from caml_core.field.households import KINDS, NAMES, Survey, draw

first = draw(1500, 1, mix=(0.75, 0.2, 0.05))
second = draw(1500, 2, mix=(0.6, 0.3, 0.1), shift=0.3)
source = Survey(*(torch.cat(pair) for pair in zip(first, second)))
THIRD = {"mix": (0.1, 0.3, 0.6), "shift": 0.6}
few, test = draw(100, 3, **THIRD), draw(2000, 4, **THIRD)
for name, state in {"sources": source, "third state": test}.items():
    counts = state.kind.bincount() / len(state.kind)
    print(name, dict(zip(KINDS, (100 * counts).round().int().tolist())), "%")

# %% tags=["opening", "hide-input"]
import plotly.graph_objects as go
from caml_core.pictures import figures as book

book.use_book_style()
parts = {name: (source, source.kind == k) for k, name in enumerate(KINDS)}
parts |= {"both sources": (source, source.kind >= 0)}
parts |= {"third state": (test, test.kind >= 0)}
figure, gone = go.Figure(), {}
for flag, colour in ((0, book.MAJORITY), (1, book.LABEL)):
    for name, (state, rows) in parts.items():
        rows = rows & (state.x[:, 0] == flag)
        gone[name, flag] = 100 * state.y[rows].mean().item()
    y = [round(gone[name, flag], 1) for name in parts]
    name = "ordered to go" if flag else "no order"
    figure.add_bar(x=list(parts), y=y, name=name, marker_color=colour)
effect = {name: gone[name, 1] - gone[name, 0] for name in parts}
assert effect["order-followers"] > 60
assert effect["third state"] < effect["both sources"] - 15
title = "An order moves order-followers, and the third state has few"
alt = {
    "alt": "Share that goes, by archetype and state, with and without order."
}
figure.update_layout(title=title, meta=alt, barmode="group")
figure.update_yaxes(title="goes (%)", range=[0, 100])

# %% [markdown]
# For a model of everybody, the order is a shortcut: it is the rule of the majority, and in the third state it misleads.
#
# ## A mixture of rules
#
# A **rule** $g_k$ adds a few *terms*, each with a weight: a feature, a threshold such as `[notice > 0.40]`, or a product
# with a flag. These are the pieces that make sense; products of two shares, or thresholds of flags, are not offered. A
# **router** $\pi(x) = \mathrm{softmax}(V x)$ says who decides. With $\sigma$ the logistic function,
#
# $$\log p(k, y \mid x) = \log \pi_k(x) + \log \sigma\big((2y - 1)\, g_k(x)\big) , \qquad
# p(y \mid x) = \sum_k p(k, y \mid x) .$$

# %%
import torch.nn.functional as F
from caml_core.field.households import Term, columns, plain_terms, typed_terms


def log_joint(rules, weights, router, x, y):
    """log of pi_k(x) p(y | x, rule k): (N, K)."""
    logits = [columns(rule, x) @ w for rule, w in zip(rules, weights)]
    answer = F.logsigmoid((2 * y[:, None] - 1) * torch.stack(logits, dim=1))
    routed = columns(plain_terms(), x) @ router.T
    return routed.log_softmax(dim=1) + answer


print(len(typed_terms()), "terms:", *map(str, typed_terms()[::40]), sep="  ")

# %%
from caml_core.field.pasm import Mixture

two = ((Term(NAMES.index("order")),), (Term(NAMES.index("risk"), c=0.5),))
weights = tuple(torch.randn(2, 2).double())
router = torch.randn(2, len(NAMES) + 1).double()
ours = log_joint(two, weights, router, test.x, test.y)
package = Mixture(two, weights, router).log_joint(test.x, test.y)
torch.testing.assert_close(ours, package)

# %% [markdown]
# ## Which term comes next?
#
# PASM lets a language model propose rules. Our stand-in tries *all* terms by a **score test**. Let a rule give household
# $n$ the probability $p_n$, and let it count $r_n$. A new term $t$, starting from weight 0, promises to lower the loss by
# about half of
#
# $$\text{gain}(t) = \frac{\big(\sum_n r_n (y_n - p_n)\, t_n\big)^2}{\sum_n r_n p_n (1 - p_n)\, (t_n - \bar t)^2} .$$
#
# No fit is needed: two sums for each term. Suppose we knew who the order-followers are ($r = 1$ for them):

# %%
terms = typed_terms()
t = columns(terms, source.x)[:, :-1]  # a column for each term
r = (source.kind == 0).double()
p = (r @ source.y) / r.sum()  # the empty rule: a constant
v = r * p * (1 - p)
centred = t - (v @ t) / v.sum()
gain = (r * (source.y - p) @ t) ** 2 / (v @ centred**2)
for n in gain.topk(3).indices:
    print(f"{terms[n]!s:16}{gain[n]:6.0f}")
assert str(terms[gain.argmax()]) == "order"

# %% [markdown]
# A **beam search** goes on from the three best rules at a time, up to four terms, and keeps of all rules seen the one of
# the lowest *price*: its loss plus $\tfrac12 \log N$ for each constant. So a term must earn its place.
#
# Who follows which rule is not known, so one alternates, as expectation-maximisation (EM) does: share the households out,
# $r_{nk} = p(k \mid x_n, y_n)$; search a rule for each share; fit all constants on $\log p(y \mid x)$. It starts from
# rules with all features as they are, the best of five random starts.

# %%
from caml_core.field.pasm import fit_mixture, search

known = search(terms, source.x, source.y, r)
print("if we knew who they are:", *map(str, known), sep="  ")
sizes = {k: fit_mixture(k, source.x, source.y) for k in (1, 2, 3)}
for k, m in sizes.items():
    print(f"{k} rules: price {m.price(source.x, source.y):.0f}")
rules = sizes[3]
print(rules)
r = rules.log_joint(source.x, source.y).softmax(dim=1)

# %% [markdown]
# Nobody told it of archetypes; compare with the list above.
#
# ## A hundred answers
#
# In the third state the rules hold, but the router sends too many to the order-followers. Terms and thresholds stay; all
# constants $c$ (weights and router) move, as the most probable ones under a Gaussian prior around the old values $c_0$
# (maximum a posteriori):
#
# $$\min_c\; -\sum_{n=1}^{100} \log p(y_n \mid x_n; c) + \frac{\lambda}{2} \lVert c - c_0 \rVert^2 .$$
#
# Five-fold cross-validation on the hundred chooses $\lambda$.

# %%
from caml_core.field.pasm import adapt, fit

for pull in (0.3, 3, 100):
    moved = fit(rules, few.x, few.y, pull, rules)
    print(f"lambda {pull}: loss {moved.loss(test.x, test.y) / 2000:.3f}")
moved = adapt(rules, few.x, few.y)
print(f"chosen: {moved.loss(test.x, test.y) / 2000:.3f}", moved, sep="\n")
assert moved.loss(test.x, test.y) < rules.loss(test.x, test.y)

# %% [markdown]
# And if the hundred are ten, or all say the same? Then there is nothing to choose $\lambda$ by:

# %%
from caml_core.errors import CamlError

try:
    adapt(rules, few.x[:8], few.y[:8])
except CamlError as error:
    print(said := str(error))
assert "at least 5 of each" in said

# %% [markdown]
# ## The experiment, small
#
# Beside it: logistic regression, gradient boosting (`HistGradientBoosting`), one formula for all, and a mixture whose
# rules are plain (all features, no search). Boosting learns from the sources, from both (each of the hundred counts ten),
# or from the hundred only. MCC is the Matthews correlation coefficient (0: chance, 1: perfect). "The law itself" knows
# the true probabilities: nobody does better.

# %%
from IPython.display import Markdown
from sklearn.ensemble import HistGradientBoostingClassifier
from sklearn.linear_model import LogisticRegression
from sklearn.metrics import matthews_corrcoef


def boosted(x, y, weight=None):
    how = {"max_leaf_nodes": 8, "max_iter": 60, "min_samples_leaf": 8}
    model = HistGradientBoostingClassifier(**how, random_state=0)
    model.fit(x.numpy(), y.numpy(), sample_weight=weight)
    return model.predict_proba(test.x.numpy())[:, 1]


both = [torch.cat(pair) for pair in zip(source[:2], few[:2])]
weight = torch.ones(3100)
weight[3000:] = 10
logistic = LogisticRegression(max_iter=1000)
logistic.fit(*(part.numpy() for part in both), sample_weight=weight)
plain = fit_mixture(3, source.x, source.y, terms=plain_terms())

# %%
answers = {
    "boosting, sources": boosted(source.x, source.y),
    "boosting, sources and 100": boosted(*both, weight),
    "boosting, 100": boosted(few.x, few.y),
    "logistic, sources and 100": logistic.predict_proba(test.x.numpy())[:, 1],
    "one formula": adapt(sizes[1], few.x, few.y).predict(test.x),
    "plain experts": adapt(plain, few.x, few.y).predict(test.x),
    "PASM, not adapted": rules.predict(test.x),
    "PASM": moved.predict(test.x),
    "the law itself": test.p,
}
found, rows = {}, []
for name, p in answers.items():
    says, y = torch.as_tensor(p) > 0.5, test.y.bool()
    kinds = [
        100 * (says == y)[test.kind == k].double().mean() for k in (0, 1, 2)
    ]
    found[name] = {"mcc": matthews_corrcoef(y, says), "worst": min(kinds)}
    rows.append(
        [name, f"{found[name]['mcc']:.2f}", *(f"{v:.0f}%" for v in kinds)]
    )


def table(head, rows, foot=""):
    """A table in Markdown: a list of texts for each row."""
    align = [":--", *["--:"] * (len(head) - 1)]
    lines = ["| " + " | ".join(row) + " |" for row in (head, align, *rows)]
    return Markdown("\n".join([*lines, "", foot]))


table(["", "MCC", *KINDS], rows)

# %% [markdown]
# ## The full record
#
# Five seeds with their own states, everything tuned by the same five folds; PASM takes one to four rules, by price. Four
# worlds: the third state has *other archetypes*; **control**: the same archetypes as the sources, *only features shift*;
# **control**: *one rule for all*; and three rules *outside the grammar* (a ring, an odd number of flags, a wave). MCC in
# hundredths, with 95% intervals over seeds.

# %%
from caml_core.runs.records import describe, paired_difference, stored

records = stored("field_pasm")
compared = [r for r in records if "part" not in r["config"]]
methods = list(dict.fromkeys(r["method"] for r in compared))
worlds = list(dict.fromkeys(r["dataset"] for r in compared))


def runs(method, world, records=compared):
    return [
        r for r in records if (r["method"], r["dataset"]) == (method, world)
    ]


def mean(found, metric):
    """Mean over seeds, and half the width of its 95% interval."""
    values = torch.tensor([r["metrics"][metric]["value"] for r in found])
    half = 2.776 * values.std() / len(values) ** 0.5
    return values.mean().item(), half.item()


def cell(found, metric):
    return "{:.1f} ± {:.1f}".format(*mean(found, metric))


rows = [[m, *(cell(runs(m, w), "mcc") for w in worlds)] for m in methods]
source_line = describe(runs("PASM", worlds[0])).split("; torch")[0]
table(["MCC", *worlds], rows, source_line)

# %% [markdown]
# Accuracy of the worst archetype, and the difference of MCC between PASM and others on the same seeds:

# %%
rows = [
    [m, *(cell(runs(m, w), "worst_archetype") for w in (worlds[0], worlds[3]))]
    for m in methods
]
table(["worst archetype (%)", worlds[0], worlds[3]], rows)

# %%
ahead, rows = {}, []
for m in methods:
    gaps = [
        paired_difference(runs("PASM", w), runs(m, w), "mcc") for w in worlds
    ]
    ahead[m] = dict(zip(worlds, gaps))
    texts = [
        "{mean:+.1f} ({low:+.1f} to {high:+.1f})".format(**g) for g in gaps
    ]
    rows.append([m, *texts])
table(["PASM less", *worlds], [row for row in rows if row[0] != "PASM"])

# %%
chosen = {w: [r["metrics"] for r in runs("PASM", w)] for w in worlds}
for world, found_here in chosen.items():
    counts = [int(m["experts"]["value"]) for m in found_here]
    right = sum(m["recovered"]["value"] for m in found_here) / len(found_here)
    size = sum(m["constants"]["value"] for m in found_here) / len(found_here)
    print(f"{world}: rules {counts}, {size:.0f} constants", end="; ")
    print(f"{right:.0f}% of the three true rules found exactly")

# %% [markdown]
# ## Groups that nobody labelled
#
# The book has two ways to guess groups: the errors of a first model (just train twice, JTT, chapter
# [02](02_last_layer.ipynb)) and the environments of EIIL (environment inference for invariant learning; with two classes,
# again the errors). Experts are a third: household $n$ belongs to the rule that explains its answer best.

# %%
from caml_core.environments import environments
from sklearn.linear_model import LogisticRegression

linear = LogisticRegression(max_iter=1000).fit(source.x, source.y)
logit = torch.from_numpy(linear.decision_function(source.x))
logits = torch.stack([-logit, logit], dim=1) / 2
split = environments(logits, source.y.long())
errors = linear.predict(source.x) != source.y.numpy()
guesses = {"JTT": torch.from_numpy(errors).long(), "EIIL": split.long()}
guesses["experts"] = rules.log_joint(source.x, source.y).argmax(dim=1)

# %% tags=["hide-input"]
figure, shares = go.Figure(), {}
for name, guess in guesses.items():
    for g in guess.unique().tolist():
        inside = (
            source.kind[guess == g].bincount(minlength=3) / (guess == g).sum()
        )
        shares[f"{name}, group {g + 1}"] = (100 * inside).round(decimals=1)
for k, colour in enumerate((book.MAJORITY, book.LABEL, book.MINORITY)):
    y = [float(v[k]) for v in shares.values()]
    figure.add_bar(x=list(shares), y=y, name=KINDS[k], marker_color=colour)
title = "Errors mix the archetypes; experts part them"
alt = {"alt": "Archetypes in each group that JTT, EIIL and experts infer."}
figure.update_layout(title=title, meta=alt, barmode="stack")
figure.update_yaxes(title="households (%)", range=[0, 100])

# %% [markdown]
# Do such groups help another model? One linear head on all terms of the grammar, trained with groups that count the same,
# by each guess (`caml_core.heads`). *Overlap* is the adjusted mutual information with the archetypes, in percent. All
# heads choose their epoch by true archetypes of a validation set. Beside it PASM itself, before it sees the third state.

# %%
grouped = [r for r in records if r["config"].get("part") == "groups"]
rows = []
for m in dict.fromkeys(r["method"] for r in grouped):
    here = runs(m, worlds[0], grouped)
    overlap = "" if m == "ERM" else cell(here, "overlap")
    rows.append([m, overlap, cell(here, "worst_archetype"), cell(here, "mcc")])
here = runs("PASM, not adapted", worlds[0])
rows.append(["PASM", "", cell(here, "worst_archetype"), cell(here, "mcc")])
table(["", "overlap", "worst archetype (%)", "MCC"], rows)

# %% [markdown]
# ## Whom to ask?
#
# A hundred answers: of whom? At random; where the mixture is least sure, $|p - \tfrac12|$ small; or where the *rules
# disagree*: the mutual information of the answer and the rule behind it, $I(y; k \mid x)$.

# %%
asked = [r for r in records if r["config"].get("part") == "asking"]
budgets = sorted({r["config"]["asked"] for r in asked})
gains, rows = {}, []
for m in dict.fromkeys(r["method"] for r in asked):
    by = {
        n: [r for r in asked if (r["method"], r["config"]["asked"]) == (m, n)]
        for n in budgets
    }
    gains[m] = {n: mean(by[n], "mcc")[0] for n in budgets}
    rows.append([m, *(cell(by[n], "mcc") for n in budgets)])
table(["MCC", *(f"{n} answers" for n in budgets)], rows)
