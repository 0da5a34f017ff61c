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
# # Scaling: hundreds of runs
#
# **Question.** A table of this book is fifty to two hundred trainings. How does each get done once, on a laptop that is
# closed in the evening or on a cluster that loses machines?
#
# **You will be able to** write a list of runs, say when a run has to be made again, kill a sweep in the middle and go on,
# and estimate what a million runs would cost beside the computing.
#
# > **Before you start.** Chapter [01](01_shortcuts.ipynb) is enough. This takes about a minute and 1 GB of memory on a
# > laptop; a GPU is not used, and nothing is downloaded. One number needs [Ray](https://docs.ray.io) (`pip install
# > "caml_core[ray]"`); without it a round one stands in its place.

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
# ## A list of runs
#
# One run is one command: `python -m caml_core run append --dataset birdscapes --seed 0 ...`. A **sweep** is many of them.
# People should be able to read which settings, which seeds, and what was left out, so it is a plain text file. What
# stands at the top is for all runs, each `[[runs]]` adds its own settings, and a list stands for one run an entry.

# %%
import tempfile
from pathlib import Path

folder = Path(tempfile.mkdtemp())
LIST = """
dataset = "birdscapes"
option = { size = 16, n_train = 200, n_val = 60, n_test = 80 }
backbone = "small_cnn"
start = 60
query = 20
rounds = 2
epochs = 10
seed = [0, 1]

[[runs]]
method = "append"

[[runs]]
method = ["upweight", "caml"]
queries-from = "append"
"""

# %% tags=["nbval-check-output"]
from caml_core.runs.lists import expand

(folder / "list.toml").write_text(LIST)
runs = expand(folder / "list.toml")
for run in runs:
    print(
        f"{run.label:12}", "buys the labels of " + run.buys if run.buys else ""
    )
assert len(runs) == 2 * 3

# %% [markdown]
# `queries-from` says that two methods are compared on *the same* labels: *append* asks, and the others buy what it
# bought (chapter [07](07_caml.ipynb)). So they wait for it; apart from that, runs may be made in any order. The whole
# list is read before anything is run, so that a misspelt setting costs a second and not a night:

# %%
from caml_core.errors import CamlError

(folder / "wrong.toml").write_text(LIST.replace("epochs", "epoch"))
try:
    expand(folder / "wrong.toml")
except CamlError as error:
    print(f"{error.what.split(' ', 1)[1]}: {error.expected}")

# %% [markdown]
# ## When is a run the same run?
#
# A sweep must know what is finished. File names do not tell: a record called `caml-0` may come from other settings, or
# from a program that had a mistake in it. So each run has an **identity**,
#
# $$\text{identity} = \text{hash}(\text{settings},\ \text{data},\ \text{code},\ \text{identity of the run it buys from}).$$
#
# Change one setting of *append* alone, and see who is affected:

# %%
changed = LIST.replace('method = "append"', 'method = "append"\nlr = 0.002')
(folder / "changed.toml").write_text(changed)
before = {run.label: run.identity for run in runs}
after = {run.label: run.identity for run in expand(folder / "changed.toml")}
for label in before:
    print(f"{label:12} {before[label]}  {after[label]}")
assert all(before[label] != after[label] for label in before)

# %% [markdown]
# All of them, since all others buy its labels. A remark in the file, the order of the entries or the name of a run would
# change nothing.
#
# The *code* part is a choice. With the commit, a comma in a chapter would throw away every table; with nothing, a mistake
# would survive its correction. Here it is a number set by hand, the **revision** of the method and of the dataset. Tiny
# runs of every method keep it honest: their numbers are stored, and when one of them moves, a test fails.

# %%
from unittest.mock import patch

from caml_core.runs.identity import REVISION

with patch.dict(REVISION, caml=REVISION["caml"] + 1):
    raised = {run.label: run.identity for run in expand(folder / "list.toml")}
again = [label for label in before if before[label] != raised[label]]
print("to be made again:", ", ".join(again))
assert again == ["caml-0", "caml-1"]

# %% [markdown]
# For data of your own the content counts, not the path. *Not* in the identity are the device and the version of
# PyTorch, which change the last digits of a number, and more where training amplifies them (chapter
# [15](15_seeing_edits.ipynb)). The record names them, and the reader can judge.
#
# ## Kill it
#
# Start the sweep as one does in a terminal, and kill it without a chance to clean up, while its third run trains:

# %%
import subprocess
import sys
import time

COMMAND = [sys.executable, "-m", "caml_core", "sweep", "list.toml"]
COMMAND += ["--address", "serial", "--device", "cpu", "--out", "table.json"]
work = folder / "table.json.work"
process = subprocess.Popen(
    COMMAND, cwd=folder, stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL
)
middle = f"unfinished/{before['upweight-0']}/**/*.safetensors"
while process.poll() is None and not list(work.glob(middle)):
    time.sleep(0.02)
process.kill()
process.wait()
files = sorted(path for path in work.rglob("*") if path.is_file())
for path in files:
    print(f"{path.stat().st_size:8,} bytes  {path.relative_to(work)}")

# %% [markdown]
# A file appears under its own name only when it is whole; what ends in `.part` was being written. A finished run is one
# record and its log. The run that was hit has left a checkpoint, in a folder named by its identity, so that nobody goes
# on with a checkpoint of other settings. Now the same command again:

# %%
again = subprocess.run(COMMAND, cwd=folder, capture_output=True, text=True)
print(again.stdout.split("| run")[0].strip())
finished = int(again.stdout.split(" of them finished")[0].split()[-1])
assert again.returncode == 0
assert 2 <= finished < 6

# %% [markdown]
# Does the result show the scar? Make the same list again in peace, and compare:

# %%
import contextlib
import io

from caml_core.runs.records import read_records
from caml_core.runs.sweep import sweep

with contextlib.redirect_stdout(io.StringIO()):
    peace = sweep(
        folder / "list.toml",
        folder / "peace.json",
        address="serial",
        device="cpu",
    )
killed = read_records(folder / "table.json")


def found(record):
    """What a run found, without when and where."""
    other = ("provenance", "train_seconds")
    return {key: value for key, value in record.items() if key not in other}


same = sum(found(a) == found(b) for a, b in zip(killed, peace))
print(f"{same} of {len(peace)} records are equal, bit for bit")
assert same == len(peace) == len(killed) == 6

# %% [markdown]
# Nothing random is *remembered*: each epoch draws from (seed, epoch), so there is no state to lose.
#
# ## Many workers
#
# Without `--address serial` the same command makes as many runs at a time as the machine has cores. Each is a process, a
# copy of one that has imported PyTorch, so that a run of a second is worth starting. On a cluster (`--address HOST:PORT`)
# a run is a [Ray](https://docs.ray.io) *task*. When a machine is lost, Ray starts its run elsewhere, and it goes on from
# the checkpoint if all machines share the folder; otherwise it begins anew. With `--gpus-per-run 0.25` four runs share a
# GPU. Whether that pays we have not measured.
#
# How much would more workers help? Take the real durations of a stored table and give the runs to $W$ workers: each free
# worker takes the next run whose seller is ready.

# %% tags=["hide-input"]
import math
import re

from caml_core.runs.records import stored

records = stored("digits")
seconds, seller = {}, {}
for record in records:
    label = f"{record['run']}-{record['seed']}"
    seconds[label] = record["provenance"]["wall_seconds"]
    bought = re.search(
        r"--queries-from (\S+)\.json", record["provenance"]["command"]
    )
    seller[label] = bought[1] if bought else None

# %%
import heapq


def makespan(seconds, seller, workers):
    """Seconds until the last run is done, sellers first."""
    free, done = [0.0] * workers, {}
    for label in sorted(seconds, key=lambda label: seller[label] is not None):
        start = max(heapq.heappop(free), done.get(seller[label], 0.0))
        done[label] = start + seconds[label]
        heapq.heappush(free, done[label])
    return max(done.values())


# %% tags=["opening", "hide-input"]
import plotly.graph_objects as go
from caml_core.pictures.figures import CHANCE, use_book_style

use_book_style()
INK = "#3b4048"
WORKERS = [1, 2, 4, 8, 16, 32, 64]
alone = sum(seconds.values())
speedup = [alone / makespan(seconds, seller, w) for w in WORKERS]
chain = max(seconds[x] + seconds.get(seller[x], 0) for x in seconds)
bound = alone / chain
figure = go.Figure()
figure.add_scatter(
    x=WORKERS, y=[round(s, 2) for s in speedup], mode="lines+markers",
    name="this table", line_color=INK,
)  # fmt: skip
figure.add_scatter(
    x=WORKERS, y=WORKERS, mode="lines", name="W times as fast",
    line={"color": CHANCE, "dash": "dot"},
)  # fmt: skip
figure.add_hline(y=bound, line={"color": CHANCE, "dash": "dash"})
figure.add_annotation(
    x=0, xanchor="left", xref="paper", y=math.log10(bound), yanchor="bottom",
    text="all / longest chain of runs", showarrow=False, font_color=CHANCE,
)  # fmt: skip
figure.update_layout(
    title="More workers help until one long chain is all that is left",
    meta={
        "alt": "Speed against workers on logarithmic axes: close to W times as "
        "fast at first, then level at all work over the longest chain."
    },
    margin_r=10,
    xaxis={"title": "workers W", "type": "log", "tickvals": WORKERS},
    yaxis={
        "title": "times as fast as one worker",
        "type": "log",
        "tickvals": WORKERS,
    },
)

# %%
last = max(seconds, key=lambda x: seconds[x] + seconds.get(seller[x], 0))
print(f"{len(seconds)} runs, {alone / 3600:.1f} core-hours of computing")
print(f"two workers: {speedup[1]:.2f} times as fast; at most {bound:.1f} times")
links = [label for label in (seller[last], last) if label]
print("the longest chain:", ", then ".join(links))

# %% tags=["hide-cell"]
assert speedup[1] > 1.7
assert max(speedup) < bound + 1e-9
assert speedup[-1] > 0.9 * bound
assert len(links) == 1
assert "own queries" in last
assert speedup[-1] < 0.5 * WORKERS[-1]

# %% [markdown]
# Two workers waste little. With many, the table waits for its longest chain, here a single run: CAML (chapter
# [07](07_caml.ipynb)) with queries of its own. More machines cannot cut that; one could put other tables into the gaps. This
# was arithmetic on measured durations; `python benchmarks/sweep.py` measures the thing itself on your cores.
#
# ## What one run costs beside the run
#
# Of the overhead we measure three parts: the disk (a record is written, and forced to the platter), the list (reading
# and checking it) and the scheduler (starting a task, collecting its result).

# %% tags=["hide-input"]
import json

from caml_core.store import write_text


def timed(action, n):
    """Seconds for each of n calls of action(i)."""
    start = time.perf_counter()
    for i in range(n):
        action(i)
    return (time.perf_counter() - start) / n


text = json.dumps([peace[3]]) + "\n"
(folder / "grid.toml").write_text(LIST.replace("[0, 1]", str(list(range(100)))))
cost = {
    "a record to disk": timed(
        lambda i: write_text(folder / "disk" / f"{i}.json", text), 50
    ),
    "a run of the list": timed(lambda i: expand(folder / "grid.toml"), 1) / 300,
}
for name, value in cost.items():
    print(f"{name:20} {1000 * value:8.2f} ms")
assert max(cost.values()) < 1

# %% tags=["hide-input"]
import os

os.environ["RAY_USAGE_STATS_ENABLED"] = "0"  # Ray reports to nobody
try:
    import ray
except ImportError:
    print("Ray is not installed here")
    RATE = 200.0  # tasks a second, to go on with
else:
    ray.init(
        address="local", num_cpus=2, include_dashboard=False,
        log_to_driver=False, logging_level=40, object_store_memory=10**8,
    )  # fmt: skip
    nothing = ray.remote(lambda: None)
    ray.get([nothing.remote() for _ in range(4)])  # workers start
    start = time.perf_counter()
    waiting = [nothing.remote() for _ in range(200)]
    while waiting:
        _, waiting = ray.wait(waiting)
    RATE = 200 / (time.perf_counter() - start)
    ray.shutdown()
    print(f"{RATE:.0f} empty tasks a second")
assert RATE > 1

# %% [markdown]
# Milliseconds, where a run takes seconds to hours. For the tables of this book the overhead is nothing.
#
# ## The plan to a million
#
# Multiply by $10^6$ and see what stops being nothing. A driver that hands out $r$ tasks a second keeps $W$ workers busy
# only if runs are long enough. In the $s$ seconds of a run it must hand out $W$ others, so
#
# $$\text{busy} \le \min\Bigl(1,\ \frac{r\,s}{W}\Bigr).$$
#
# A simulation with runs of random length, at the rate just measured, and the bound beside it:

# %% tags=["hide-input"]
import random


def busy(rate, mean_seconds, workers):
    """Share of the workers' time that is spent computing."""
    draw = random.Random(0)
    tasks, free, given, end, used = 20 * workers, [0.0] * workers, 0.0, 0.0, 0.0
    for _ in range(tasks):
        given += 1 / rate  # one task after the other leaves the driver
        start = max(given, heapq.heappop(free))
        length = mean_seconds * draw.uniform(0.5, 1.5)
        heapq.heappush(free, start + length)
        used, end = used + length, max(end, start + length)
    return used / (workers * end)


SIZES = [10, 30, 100, 300, 1000, 3000, 10000]
colours = (INK, "#8A5FBF", "#009E73")
figure, shares = go.Figure(), {}
for length, colour in zip((0.3, 1, 3), colours):
    shares[length] = [100 * busy(RATE, length, w) for w in SIZES]
    limit = [100 * min(1, RATE * length / w) for w in SIZES]
    figure.add_scatter(
        x=SIZES, y=[round(s, 1) for s in shares[length]], name=f"runs of {length} s",
        mode="lines+markers", line_color=colour,
    )  # fmt: skip
    figure.add_scatter(
        x=SIZES, y=limit, mode="lines", line={"color": colour, "dash": "dot"},
        showlegend=False, hoverinfo="skip",
    )  # fmt: skip
figure.update_layout(
    title="Short runs leave a large cluster idle (dots: the bound)",
    meta={
        "alt": "Time spent computing against workers for runs of 0.3, 1 and 3 "
        "seconds: the shorter the runs, the earlier the fall."
    },
    margin_r=10,
    xaxis={"title": "workers W", "type": "log", "tickvals": SIZES[::2]},
    yaxis={"title": "time spent computing (%)", "range": [0, 104]},
)

# %% tags=["hide-cell"]
for length, values in shares.items():
    for w, share in zip(SIZES, values):
        assert share <= 100 * min(1, RATE * length / w) + 1
assert shares[3][-1] > shares[1][-1] > shares[0.3][-1]
assert shares[0.3][-1] < 0.5 * shares[0.3][0]

# %% [markdown]
# Then the sums. Each run loads its own data, which is measured, too:

# %% tags=["hide-input"]
from caml_core.data import load

option = {"size": 16, "n_train": 200, "n_val": 60, "n_test": 80}
loading = timed(lambda i: load("birdscapes", seed=0, **option), 3)
N = 10**6
seconds_each = {
    "driver: tasks handed out": 1 / RATE,
    "driver: list read and checked": cost["a run of the list"],
    "workers: records written": cost["a record to disk"],
    "workers: data loaded": loading,
}
for name, value in seconds_each.items():
    print(f"{name:30} {N * value / 3600:6.1f} h")
print(
    f"records and logs: {2 * N:,} files, records {N * len(text) / 1e9:.1f} GB"
)
assert sum(seconds_each.values()) < 0.5

# %% [markdown]
# A million runs of one second are 278 hours; beside these, all four together are the smaller part. So ask who pays.
# Loading and writing are done by the workers, side by side. The list and the tasks are paid by the driver alone. And
# all records go into one folder: two million files (a record and a log each) are slow to list on most filesystems, and
# a quota on files may end it sooner. From this, not from a test, our plan:
#
# 1. **Files.** One folder a table, merged into one file when it is done, as the sweep does with `--out`. Further on, one
#    file a bundle of runs.
# 2. **The scheduler.** When runs are shorter than $W / r$, put many seeds into one task.
# 3. **The list.** Nobody reads a list of a million runs. Split it into tables that each ask a question.
# 4. **The data.** Keep it on the machines' own disks, and let a worker keep what it loaded.
#
# We did *not* measure a real cluster, a network filesystem, or a driver with a million waiting tasks. The numbers are
# this machine's, multiplied. Measure yours first.

# %%
import shutil

shutil.rmtree(folder)

# %% [markdown]
# ## Beside what one would pick instead
#
# Many runs are no excuse for slow ones. `python -m benchmarks.peers` sets what the package does beside maintained
# packages, the loops that authors publish and plain scripts. Both sides first show how far they give the same; then
# they take turns, and the median of the seconds counts. Above 1 means that the other takes longer.

# %% tags=["hide-input"]
from caml_core.runs.tables import markdown
from IPython.display import Markdown

FLOOR = "its gradients alone"  # what no way of making the step can go below
peers, ahead, times = stored("peers"), [], {}
for record in peers:
    medians = {name: m["value"] for name, m in record["metrics"].items()}
    own = medians.pop("ours")
    times[record["dataset"]] = {name: s / own for name, s in medians.items()}
    ahead += [name for name, s in medians.items() if s < own / 1.05]
rows = [
    [
        record["dataset"],
        f"{record['metrics']['ours']['value']:.3g}",
        "; ".join(
            [f"{k} {v:.2g}" for k, v in times[record["dataset"]].items()]
            + record["missing"]
        ),
        record["agree"],
    ]
    for record in peers
]
header = ("work", "ours, s", "others, times as long", "how they agree")
Markdown(markdown(header, rows))

# %% tags=["nbval-check-output"]
where = peers[0]["provenance"]
packages = ", ".join(
    f"{k} {v}" for k, v in peers[0]["config"]["packages"].items()
)
print(f"{where['date']}, commit {where['commit']}, {where['device']}")
print(f"Python {where['versions']['python']}, {packages}")

# %% tags=["hide-cell"]
assert set(ahead) == {FLOOR, "DataLoader, 2 workers, decode_jpeg"}

# %% [markdown]
# One way is ahead by more than one part in twenty: torchvision's `decode_jpeg`, in the first pass over photographs; the
# later passes read what the first one stored. On many lines the difference is small: uncertainty scores are as fast in
# scikit-activeml. Where it is large, the reason is an algorithm. HSFM's derivative is worked out once (chapter
# [11](11_hypergradients.ipynb)) in place of being recorded; ONNX Runtime fuses the layers of a network that no longer
# trains; k-centre greedy and BADGE need one product of a matrix and a vector a step. CAML's step costs about a quarter
# more than its gradients alone; beyond that quarter only fewer gradients could win anything.

# %% [markdown]
# ## What we saw
#
# - A sweep is a list that people can read; all of it is checked before anything runs.
# - A run is known by its settings, its data, the revision of the code and the run whose labels it buys.
# - A sweep that was killed in the middle went on, and its records equal those of one that was left in peace.
# - By the durations of a stored table, two workers would be nearly twice as fast; many wait for the longest chain.
# - For hundreds of runs the overhead is nothing. For a million, one folder and one driver are what we would watch first,
#   and short runs make both worse.
# - Beside maintained packages, authors' loops and, for HSFM, a plain script of our own, a step of a run is as fast, or
#   faster by its algorithm; decoding photographs for the first time is not.
#
# Turn these knobs: kill the sweep in its first run, or twice. Leave out `--address serial`. Raise the revision of
# `birdscapes` in place of that of `caml`.
#
# ## Two quick questions
#
# **1.** You correct three labels of your own data and start the sweep again. What is made again?
#
# <details><summary>Nothing, the settings are the same</summary>
#
# No. What counts is the content of your data.
#
# </details>
#
# <details><summary>All runs on these data</summary>
#
# Yes. A run is known by its settings, its data and the revision of its method.
#
# </details>
#
# <details><summary>All runs of the list</summary>
#
# No. Runs on other data keep their records.
#
# </details>
#
# **2.** A method is made faster, and its tiny runs give the same numbers bit for bit. Does its revision change?
#
# <details><summary>Yes, the code is new</summary>
#
# No. Then every change of a comment would cost hours.
#
# </details>
#
# <details><summary>No</summary>
#
# Yes, that is right: behaviour is the identity, not text.
#
# </details>
#
# <details><summary>Only for large runs</summary>
#
# No. The tiny runs stand for all.
#
# </details>
#
# ## Exercises
#
# **Exercise 1: one more value.** Write a list with three learning rates, two methods and five seeds. How many runs
# is that, and how many of them must be made again when you add a fourth learning rate?

# %% tags=["hide-cell", "solution"]
# @title Solution 1 { display-mode: "form" }
GRID = """
dataset = "birdscapes"
lr = [0.0003, 0.001, 0.003]
method = ["append", "balanced"]
seed = [0, 1, 2, 3, 4]
name = "{method} {lr}"
[[runs]]
"""
with tempfile.TemporaryDirectory() as place:
    file = Path(place) / "grid.toml"
    made = []
    for text in (GRID, GRID.replace("0.003]", "0.003, 0.01]")):
        file.write_text(text)
        made.append({run.identity for run in expand(file)})
print(f"{len(made[0])} runs; {len(made[0] - made[1])} to be made again,")
print(f"{len(made[1] - made[0])} new ones")
assert len(made[0]) == 3 * 2 * 5
assert made[0] < made[1]

# %% [markdown]
# **Exercise 2: the seller's identity.** Why does a run that buys labels carry the identity of its seller in its own, and
# not only the seller's name?
#
# <details><summary>Solution 2</summary>
#
# A name survives when the seller's settings change, and then the labels are others.
#
# </details>
#
# **Exercise 3: bundles.** Your cluster has a thousand workers, and a run takes five seconds. From the rate measured
# above: what share of the cluster works, and how many seeds would a task have to hold if each adds five seconds?
#
# <details><summary>Solution 3</summary>
#
# At most $\min(1, r s / W)$ with $s = 5$ and $W = 1000$; a task of $k$ seeds lasts $k$ times as long, so $k \ge \max(1,
# W / (r s))$: one seed is enough at a rate above 200 tasks a second.
#
# </details>

# %% tags=["hide-cell", "solution"]
# @title Solution 3 { display-mode: "form" }
k = max(1, math.ceil(1000 / (RATE * 5)))
for seeds in sorted({1, k}):
    share = busy(RATE, 5 * seeds, 1000)
    print(f"{seeds} seeds a task: {100 * share:.0f}% of the cluster works")
    assert share <= min(1, RATE * 5 * seeds / 1000) + 0.01

# %% [markdown]
# ## References
#
# - P. Moritz et al., [Ray: a distributed framework for emerging AI applications](https://arxiv.org/abs/1712.05889),
#   2018.
# - [Ray documentation: fault tolerance of tasks](https://docs.ray.io/en/latest/ray-core/fault_tolerance/tasks.html).
# - R. L. Graham, [Bounds on multiprocessing timing anomalies](https://doi.org/10.1137/0117039), 1969: what one can
#   expect when free workers take the next task.
# - [TOML](https://toml.io), the format of the lists.
