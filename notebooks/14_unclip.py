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
# # unCLIP: from an embedding back to a picture
#
# **Question.** If all you have is an embedding, what did the picture look like?
#
# **You will be able to** write the few formulas of diffusion beside the lines that compute them, decode an embedding
# step by step, tell what it says from what it leaves open, draw a move along a text direction, and say when a decoded
# picture must not be believed.
#
# > **Before you start.** Chapter [13](13_tiny_clip.ipynb) makes the embeddings and finds the direction "background". On
# > a laptop with two cores this takes about half a minute and 1 GB of memory; no GPU is needed. Nothing
# > is downloaded: both models (a few megabytes each) come with the package.

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
# ## There and back
#
# CLIP (contrastive language-image pre-training) turned a picture of nearly seven thousand numbers into 64. A *decoder*
# goes the other way. It cannot undo what was thrown away; it can only draw *a* picture that has this embedding. unCLIP
# (Ramesh et al., [arXiv 2204.06125](https://arxiv.org/abs/2204.06125)) does this with diffusion, and so does ours, in
# small.

# %%
import torch
from caml_core.data import load
from caml_core.pictures.clip import embed_images, load_clip, zero_shot
from caml_core.pictures.unclip import decode, embed, load_unclip

_, _, test = load("birdscapes", rho=0.5, n_train=2000, seed=0)
pipeline = load_unclip("tiny")
clip = load_clip(device=pipeline.device)
W = 3.0  # guidance, explained below
e = embed(pipeline, test.x[:8])
drawn = decode(pipeline, e, guidance=W, same_noise=False)
print(f"pictures {tuple(test.x[:8].shape)} → embeddings {tuple(e.shape)}")

# %% tags=["opening", "hide-input"]
from caml_core.pictures.figures import image_grid, use_book_style

use_book_style()
figure = image_grid(
    torch.cat([test.x[:8], drawn]),
    columns=8,
    labels=["scene", "decoded"],
    title="What comes back: land or water, colours, a bird; not the picture",
)
figure.update_layout(meta={"alt": "Eight scenes above, decoded ones below"})

# %% [markdown]
# Look at pairs. Land stays land, and a yellow bird stays yellow. But trees stand elsewhere, the weather differs, and so
# does the bird's place. Some birds are smudges. We come back to all of it.
#
# ## Diffusion in a page
#
# Take a picture $x$ and mix it with noise $\varepsilon$, more and more as the time $t$ goes from 0 to 1000:
#
# $$x_t = \sqrt{\bar\alpha_t}\; x + \sqrt{1 - \bar\alpha_t}\; \varepsilon, \qquad \varepsilon \sim \mathcal N(0, I).$$
#
# $\bar\alpha_t$ falls from 1 (only picture) to 0 (only noise). The squares of the two weights add up to one, so $x_t$
# moves along a quarter of a circle, from $x$ to $\varepsilon$. The network sees $x_t$ and is asked for the *velocity*
# on this circle (Salimans and Ho, [arXiv 2202.00512](https://arxiv.org/abs/2202.00512)):
#
# $$v = \sqrt{\bar\alpha_t}\; \varepsilon - \sqrt{1 - \bar\alpha_t}\; x.$$
#
# $x_t$ and $v$ together determine both ends: $x = \sqrt{\bar\alpha_t}\,x_t - \sqrt{1-\bar\alpha_t}\,v$ and
# $\varepsilon = \sqrt{1-\bar\alpha_t}\,x_t + \sqrt{\bar\alpha_t}\,v$. Why not predict $x$, or $\varepsilon$? With
# little noise $v$ is about $\varepsilon$, with much it is about $-x$: always the part that cannot be seen in $x_t$
# already.

# %%
import torch.nn.functional as F
from caml_core.pictures.tiny_unclip import FOLD

abar = pipeline.scheduler.alphas_cumprod


def fold(pictures):
    """uint8 (N, 3, 48, 48) to [-1, 1], 3 x 3 pixels in a channel's place."""
    return F.pixel_unshuffle(pictures.float() / 127.5 - 1, FOLD)


def unfold(x):
    """Back to uint8 (N, 3, 48, 48)."""
    x = F.pixel_shuffle(x.cpu(), FOLD).clamp(-1, 1)
    return ((x + 1) * 127.5).round().to(torch.uint8)


assert torch.equal(unfold(fold(test.x[:8])), test.x[:8])

# %%
TIMES = torch.tensor([50, 350, 650, 950])
x = fold(test.x[:1]).expand(len(TIMES), -1, -1, -1)
noise = torch.randn(x.shape, generator=torch.Generator().manual_seed(0))
signal = abar[TIMES].sqrt().view(-1, 1, 1, 1)
rest = (1 - abar[TIMES]).sqrt().view(-1, 1, 1, 1)

x_t = signal * x + rest * noise
v = signal * noise - rest * x
assert torch.allclose(v, pipeline.scheduler.get_velocity(x, noise, TIMES))
assert torch.allclose(signal * x_t - rest * v, x, atol=1e-5)
assert torch.allclose(rest * x_t + signal * v, noise, atol=1e-5)

# %% [markdown]
# The network gets three things: $x_t$, the time $t$, and a *condition* $c$, the embedding. In one training example out
# of ten the condition was blank, so it can also say what it would draw without any. **Guidance** exaggerates the
# difference,
#
# $$v = v_0 + w\,(v_c - v_0),$$
#
# with $w = 1$ for no exaggeration. Let us ask once at each time, without any, and draw the clean picture $\hat x$ that
# the answer implies.

# %%
from caml_core.pictures.tiny_unclip import condition


@torch.no_grad()
def velocity(x_t, t, embeds, w=W):
    """Guided prediction of v: (N, 27, 16, 16)."""
    n, device = len(x_t), pipeline.device
    told = pipeline.image_normalizer(embeds.to(device))
    level = torch.zeros(n, dtype=torch.long, device=device)
    c = condition(told, level, torch.zeros_like(told))
    c = torch.cat([torch.zeros_like(c), c])  # blank, then told
    both = pipeline.unet(
        torch.cat([x_t, x_t]).to(device),
        torch.as_tensor(t, device=device).expand(n).repeat(2),
        encoder_hidden_states=torch.zeros(2 * n, 1, 8, device=device),
        class_labels=c,
    )
    blank, given = both.sample.cpu().chunk(2)
    return blank + w * (given - blank)


told = e[:1].expand(len(TIMES), -1)
guess = signal * x_t - rest * velocity(x_t, TIMES, told, w=1)

# %% tags=["hide-input"]
figure = image_grid(
    torch.cat([unfold(x_t), unfold(guess)]),
    columns=len(TIMES),
    labels=["noised", "guess"],
    title="The more noise, the more the guess is an average of what could be",
)
figure.update_layout(
    meta={"alt": "One scene under growing noise; guesses below"}
)

# %%
errors = (guess - x).square().mean(dim=(1, 2, 3))
print("mean squared error:", [round(value, 3) for value in errors.tolist()])
assert errors[0] < errors[2] < errors[3]

# %% [markdown]
# With little noise the guess is the picture. With much, it is a blurred mean over all pictures that fit: that is what
# least squares (the loss of the training) does when it cannot know. So one does not jump. One goes a small way towards
# the guess, and asks again.
#
# ## Twenty steps
#
# The sampler (DDIM, *denoising diffusion implicit models*; Song et al., [arXiv
# 2010.02502](https://arxiv.org/abs/2010.02502)) starts from pure noise. In each step it works out both ends, $\hat x$
# and $\hat\varepsilon$, and mixes them again with a little less noise. No new noise is drawn: the result is a function
# of the first noise and the embedding.

# %%
two = embed(pipeline, test.x[[3, 4]])
shape = (2, 27, 16, 16)
start = torch.randn(shape, generator=torch.Generator().manual_seed(3))
pipeline.scheduler.set_timesteps(20)
times = pipeline.scheduler.timesteps.tolist()  # 999, 949, ..., 49

x_t, states = start, []
for t, later in zip(times, [*times[1:], None]):
    a, b = abar[t].sqrt(), (1 - abar[t]).sqrt()
    v = velocity(x_t, t, two)
    x_hat = (a * x_t - b * v).clamp(-1, 1)
    noise_hat = b * x_t + a * v
    states.append(unfold(torch.cat([x_t, x_hat])))
    left = abar[later] if later is not None else torch.tensor(1.0)
    x_t = left.sqrt() * x_hat + (1 - left).sqrt() * noise_hat

# %%
by_pipeline = pipeline(
    image_embeds=two, latents=start, guidance_scale=W, output_type="pt"
).images
by_hand = F.pixel_shuffle(x_t, FOLD) / 2 + 0.5
difference = (by_pipeline.cpu() - by_hand.clamp(0, 1)).abs().max().item()
print(f"largest difference to the package's own pipeline: {difference:.1e}")
assert difference < 1e-2

# %% [markdown]
# Move the slider from noise to pictures.

# %% tags=["hide-input"]
from caml_core.pictures.figures import contact_sheet, picture_slider

figure = picture_slider(
    [contact_sheet(state, columns=2) for state in states[1::3]],
    [str(i) for i in range(2, 21, 3)],
    prefix="step ",
    rows=["held", "guess"],
    title="Background first, then masses, then the bird",
    start=2,
)
figure.update_layout(meta={"alt": "Two scenes in twenty steps, with a slider"})

# %%
final = states[-1][2:].float()
gap = [(state[2:].float() - final).abs().mean().item() for state in states]
print("distance of the guess from the end:", [round(g, 1) for g in gap[::4]])
assert gap[0] > gap[8] > gap[16]

# %% [markdown]
# ## What an embedding says, and what it leaves open
#
# Noise and embedding go in, a picture comes out. Hold one of them and change the other.

# %%
one = embed(pipeline, test.x[3:4])
other_noise = decode(
    pipeline, one.expand(8, -1), guidance=W, same_noise=False, seed=5
)
other_embedding = decode(pipeline, e, guidance=W, seed=5)
figure = image_grid(
    torch.cat([other_noise, other_embedding]),
    columns=8,
    labels=["8 noises", "8 embeddings"],
    title="The noise arranges the scene; the embedding says what is in it",
)
alt = "Above one embedding with eight noises, below eight with one noise"
figure.update_layout(meta={"alt": alt})

# %%
from caml_core.data.scenery import Attributes


def readings(pictures):
    """What the tiny CLIP reads, by attribute."""
    embedded = embed_images(clip, pictures)
    return {
        name: zero_shot(clip, embedded, name) for name in Attributes._fields
    }


held = {
    name: (read == read.mode().values).double().mean().item()
    for name, read in readings(other_noise).items()
}
for name, share in held.items():
    print(f"eight noises, {name:10}: {100 * share:3.0f}% read alike")
assert held["background"] > 0.8
assert held["colour"] > 0.6

# %% [markdown]
# The first row is one embedding with eight noises: what it says is what the eight have in common. The second row is
# eight embeddings with one noise: the places of things hardly change. To see it in numbers, take away what is smooth
# and correlate the rest, pixel by pixel, between the pictures of a row.


# %%
def alike(pictures):
    """Mean correlation of the fine details of any two of N pictures."""
    gray = pictures.float().mean(dim=1, keepdim=True)
    smooth = F.avg_pool2d(gray, 9, 1, padding=4, count_include_pad=False)
    r = torch.corrcoef((gray - smooth).flatten(1))
    return ((r.sum() - len(r)) / (len(r) * (len(r) - 1))).item()


print(f"details, one embedding: r = {alike(other_noise):.2f}")
print(f"details, one noise:     r = {alike(other_embedding):.2f}")
assert alike(other_noise) < 0.15
assert alike(other_embedding) > 0.3

# %% [markdown]
# So with one noise pictures can be *compared*. From here on we do that, and remember where the arrangement comes from.
#
# ## Between two embeddings
#
# Embeddings lie on a sphere. The straight line between two of them runs inside it, where no embedding is; so go along
# the great circle. With $\tau$ the direction of $e_1$ at right angles to $e_0$,
#
# $$e(\varphi) = \cos\varphi\; e_0 + \sin\varphi\; \tau.$$

# %% tags=["hide-input"]
from caml_core.pictures.space import turn

whole = torch.acos(e[3] @ e[0])  # the angle between the two
between = turn(e[3], e[0], torch.linspace(0, 1, 8) * whole)
assert torch.allclose(between.norm(dim=1), torch.ones(8), atol=1e-5)
assert torch.allclose(between[-1], e[0], atol=1e-3)
print(f"length halfway along the straight line: {(e[3] + e[0]).norm() / 2:.2f}")
path = decode(pipeline, between, guidance=W, seed=5)
figure = image_grid(
    path,
    columns=4,
    title="Halfway between two scenes is no mixture of the two pictures",
)
figure.update_layout(meta={"alt": "Eight pictures from land to water"})

# %%
wet = readings(path)["background"]
print("read as water:", wet.tolist())
assert wet.diff().abs().sum() == 1  # it flips once

# %% [markdown]
# The picture does not fade. The background flips within a step or so: here a smooth path in the embedding is no
# smooth path of pictures.
#
# ## A text moves the picture
#
# Chapter 13 found a direction by words alone, $d = t(\text{water}) - t(\text{land})$. Move four scenes on land along
# it, with one noise for all amounts:
#
# $$e(m) = \frac{e + m\, d}{\lVert e + m\, d \rVert}, \qquad \lVert d \rVert = 1.$$

# %%
from caml_core.pictures.clip import prompts, text_centres

land, water = text_centres(clip, prompts("background")[0])
d = F.normalize(water - land, dim=0)
on_land = torch.cat(
    [torch.where(test.group == g)[0][[0, 1]] for g in (0, 2)]
)  # two landbirds, two waterbirds
AMOUNTS = [0, 0.2, 0.3, 0.4, 0.5, 0.7, 1.0]
before = embed(pipeline, test.x[on_land])
edited = [
    decode(pipeline, F.normalize(before + m * d, dim=1), guidance=W, seed=2)
    for m in AMOUNTS
]

# %% tags=["hide-input"]
figure = picture_slider(
    [contact_sheet(pictures, columns=4) for pictures in edited],
    [f"{m:.2f}" for m in AMOUNTS],
    prefix="moved by ",
    start=AMOUNTS.index(0.4),
    title="Two words, 'water' minus 'land', flood the meadow",
)
figure.update_layout(meta={"alt": "Four scenes, drawn at seven amounts"})

# %%
read = [readings(pictures) for pictures in edited]
wets = [now["background"].double().mean().item() for now in read]
for m, now, wet in zip(AMOUNTS, read, wets):
    line = f"moved {m:.2f}: water {100 * wet:3.0f}%"
    for name in ("colour", "bird"):
        same = (now[name] == read[0][name]).double().mean()
        line += f", {name} as at 0 {100 * same:3.0f}%"
    print(line)
    assert (now["colour"] == read[0]["colour"]).sum() >= 3
assert wets[0] == 0
assert wets[-1] > 0.7
assert torch.tensor(wets).diff().max() >= 0.5  # a jump

# %% [markdown]
# Compare an edited picture with the *decoded* one at 0, never with the scene: else you count the decoder's own losses
# as part of the edit. And note the jump between two neighbouring amounts (exercise 3 asks whose jump it is).
#
# Other words, other scenes, or a caption in place of a scene: with the two networks in the page you choose. (The edits
# of HSFM, hard-set-guided feature-space meta-learning, wait for chapter [15](15_seeing_edits.ipynb).)

# %%
from caml_core.pictures.explore import explore

words = {"scene": 0, "background": 0.6}
explore("see_the_edit", "Move an embedding by words, and see it", **words)

# %% [markdown]
# ## How far can it be trusted?
#
# Decode held-out scenes and read the pictures again. Do they agree with their sources?

# %%
rows = torch.arange(100, 132)
source = embed(pipeline, test.x[rows])
back = decode(pipeline, source, guidance=W, same_noise=False, seed=1)
truth, read = readings(test.x[rows]), readings(back)
agree = {
    name: 100 * (read[name] == truth[name]).double().mean().item()
    for name in truth
}
assert agree["background"] >= 90
assert agree["colour"] >= 70
assert agree["bird"] >= 60

# %%
import json

from caml_core.pictures.tiny_unclip import WEIGHTS
from IPython.display import Markdown

card = json.loads(WEIGHTS.with_suffix(".json").read_text())
found = card["metrics"]
lines = [
    f"| read like its source (%) | here, n = {len(rows)} "
    f"| card, n = {found['images']} | card, another judge |",
    "|:--|--:|--:|--:|",
]
for name, value in agree.items():
    judge = found["by_resnet"].get(name)
    judge = "" if judge is None else f"{judge:.1f}"
    on_card = found["zero_shot"][name]
    lines.append(f"| {name} | {value:.0f} | {on_card:.1f} | {judge} |")
Markdown("\n".join(lines))

# %% [markdown]
# The first judge is the tiny CLIP itself, for which the decoder was trained: it may be pleased by hints that no person
# would call a bird. So the card has *another judge*, a small ResNet trained on real scenes, which knows nothing of the
# CLIP. Where the two disagree, believe the second.

# %%
print(
    f"{found['images']} decoded scenes against real ones, 1000 MMD²: "
    f"{found['mmd2_decoded_real']:.2f}; real against real: "
    f"{found['mmd2_real_real']:.2f}"
)
assert found["by_resnet"]["bird"] < found["by_resnet"]["background"]
print(
    f"trained for {card['config']['steps']:,} steps, "
    f"{card['train_seconds'] / 3600:.1f} hours on "
    f"{card['provenance']['device']}; {card['licence']}"
)
assert found["mmd2_decoded_real"] > 2 * found["mmd2_real_real"]

# %% [markdown]
# The first line compares whole sets of pictures by the features of an ImageNet network: MMD², the squared *maximum
# mean discrepancy*, is 0 for two sets of one kind (printed times 1,000, and estimated from samples, so that it can
# fall a little below 0). Two sets of real scenes give the scale: they hardly differ. A set of decoded ones differs
# from them clearly: what CLIP reads is not all there is to see.
#
# ### Guidance and steps
#
# Two knobs remain. Guidance $w$ trades variety for clarity. Steps cost time.

# %% tags=["hide-input"]
GUIDANCES, COUNTS = (1, 2, 3), (3, 10, 50)
six = source[:6]
by_w = [decode(pipeline, six, guidance=w, seed=4) for w in GUIDANCES]
by_n = [decode(pipeline, six[:4], steps=n, guidance=W, seed=4) for n in COUNTS]
figure = image_grid(
    torch.cat([test.x[rows[:4]], *(pictures[:4] for pictures in by_w)]),
    columns=4,
    labels=["scene", *(f"w = {w}" for w in GUIDANCES)],
    title="More guidance says the same thing a little louder",
)
figure.update_layout(meta={"alt": "Four scenes, decoded with guidance 1, 2, 3"})

# %% tags=["hide-input"]
figure = image_grid(
    torch.cat(by_n),
    columns=4,
    labels=[f"{n} steps" for n in COUNTS],
    title="Three, ten and fifty steps: more steps are not always better",
)
figure.update_layout(meta={"alt": "Four scenes, decoded in 3, 10 and 50 steps"})


# %%
def echo(embeds, pictures):
    """Mean cosine of embeddings with those of the pictures drawn from them."""
    return (embeds * embed_images(clip, pictures)).sum(dim=1).mean().item()


for w, pictures in zip(GUIDANCES, by_w):
    print(f"w = {w}: echo {echo(six, pictures):.2f}")
for n, pictures in zip(COUNTS, by_n):
    print(f"{n:2d} steps: echo {echo(six[:4], pictures):.2f}")
assert echo(six, by_w[2]) > echo(six, by_w[0]) > 0.5
blur, close = ((p.float() - by_n[2]).abs().mean() for p in by_n[:2])
assert close < blur
heard = [echo(six[:4], pictures) for pictures in by_n]
assert max(heard) - min(heard) < 0.05  # blind to what the eye sees

# %% [markdown]
# The **echo**, the cosine between an embedding and the embedding of the picture drawn from it, needs no labels. One
# means: the picture says what the embedding said. Guidance pushes it up, which makes it a check and not a goal. And
# it sees only what CLIP can read: it is the same for three, ten and fifty steps, though three leave a scene soft, and
# fifty broke a bird or two that ten had drawn whole.
#
# ## What the decoder cannot draw
#
# **What nobody said.** The bird's place, the weather, wood or meadow: no caption named them, the embedding lost them,
# and the decoder makes them up from the noise. They look as real as the rest.
#
# **What no picture has.** An edit can leave the part of the sphere where pictures are. The decoder draws something all
# the same. Three kinds of embedding: those of pictures, those of their *captions* (which live elsewhere on the sphere,
# see chapter 13), and random directions.

# %%
from caml_core.data.birdscapes import captions
from caml_core.pictures.clip import embed_texts

draws = torch.randn(6, 64, generator=torch.Generator().manual_seed(0))
strange = {
    "pictures": six,
    "their captions": embed_texts(clip, captions(test.subset(rows[:6]))),
    "random": F.normalize(draws, dim=1),
}
made = {k: decode(pipeline, z, guidance=W, seed=4) for k, z in strange.items()}
echoes = {k: echo(z, made[k]) for k, z in strange.items()}
figure = image_grid(
    torch.cat(list(made.values())),
    columns=6,
    labels=["pictures", "captions", "random"],
    title="It never refuses: a picture is drawn of any vector",
)
figure.update_layout(
    meta={"alt": "Six decoded pictures of each of three kinds"}
)

# %%
truth = readings(test.x[rows[:6]])
for name, value in echoes.items():
    said = readings(made[name])
    right = sum((said[k] == truth[k]).sum() for k in ("colour", "background"))
    print(
        f"{name:14} echo {value:+.2f}, colour and background as in the scenes: "
        f"{right / 12:.0%}"
    )
assert echoes["pictures"] > echoes["their captions"] + 0.05
assert echoes["their captions"] > echoes["random"] + 0.2

# %% [markdown]
# The captions, all six of them, are a surprise: nobody trained the decoder on texts, and yet it draws what they say.
# Along the directions of the attributes, texts lie where their pictures lie (the map of chapter 13). Their echo is
# lower, and it should be: no picture is where a text is.
#
# The pictures of random directions look like bad scenes, and they say nothing about their embeddings. So a decoded
# picture alone proves nothing. Look at the echo, at the round trip of *unedited* embeddings, and at more than one
# noise.
#
# **What it never learned well.** A few pixels make the difference between a landbird and a waterbird. The table above
# says how often that goes wrong, even for embeddings of real scenes. An edit that changes the bird in a decoded picture
# may be the decoder's slip; chapter 15 therefore counts slips without any edit, too.
#
# > **One word to change.** `load_unclip("sd-unclip")` loads Stable Diffusion unCLIP (a GPU, and some four gigabytes to
# > download; chapter [15](15_seeing_edits.ipynb) says where from, and what else has to change), and `embed` and
# > `decode` work as here, on photographs. The cells that look inside (`velocity` and the loop) know only the tiny one.
#
# ## What we saw
#
# - Our diffusion model predicts a velocity; from it follow the clean picture and the noise, by one formula each.
# - Decoding is twenty small steps from noise towards a guess that becomes sharp on the way.
# - The embedding says what is in the scene, the noise how it is arranged. Comparisons hold the noise still.
# - Moving an embedding along a text direction turns land into water, rather suddenly, and leaves colours alone.
# - Backgrounds come back nearly always, birds less often, and decoded scenes can be told from real ones.
# - A decoder draws something for any vector. A low echo is a warning. A high one says only that CLIP reads back what
#   was asked for; it did not notice broken birds.
#
# ## Turn these knobs
#
# `seed` of any `decode` (which features stay?), `W` (what does 6 look like?), `d` (try
# `prompts("bird")`), `noise_level=` of `decode` (what does the picture keep when the embedding is
# noised?).
#
# ## Two quick questions
#
# **1.** Two decoded pictures are to differ by an edit alone. What must be the same?
#
# <details><summary>The embedding</summary>
#
# No. That is what the edit changes.
#
# </details>
#
# <details><summary>The noise</summary>
#
# Yes. It decides how a scene is arranged; another draw arranges it anew.
#
# </details>
#
# <details><summary>The guidance only</summary>
#
# It should be the same, but it is not enough.
#
# </details>
#
# **2.** The decoder draws a clear bird for a vector. Does the vector mean a bird?
#
# <details><summary>Yes, one sees it</summary>
#
# No. A decoder draws something for any vector.
#
# </details>
#
# <details><summary>Only if the picture, embedded again, comes back near it</summary>
#
# Needed, and not enough. That is the echo; it is CLIP's own reading, so ask another judge, too.
#
# </details>
#
# <details><summary>Only if the vector has length 1</summary>
#
# No. Nonsense can have length 1.
#
# </details>
#
# ## Exercises
#
# **Exercise 1: a rotation.** Show that $x_t$ and $v$ are $x$ and $\varepsilon$ turned by an angle. What is the angle at
# $\bar\alpha_t = \tfrac12$?
#
# <details><summary>Solution 1</summary>
#
# With $\cos\phi = \sqrt{\bar\alpha_t}$ and $\sin\phi = \sqrt{1-\bar\alpha_t}$,
# $x_t = \cos\phi\,x + \sin\phi\,\varepsilon$ and $v = -\sin\phi\,x + \cos\phi\,\varepsilon$: a rotation by $\phi$,
# which is why it can be undone. At one half, 45 degrees: picture and noise weigh the same.
#
# </details>
#
# **Exercise 2: no guidance at all.** With $w = 0$ the formula of guidance is still defined. What is drawn then? Ask
# `velocity` for eight embeddings and one noise.
#
# <details><summary>Solution 2</summary>
#
# The condition drops out: each is drawn as if nothing were known. With one noise, all eight are the same picture.
#
# </details>

# %% tags=["hide-cell", "solution"]
# @title Solution 2 { display-mode: "form" }
eight = start[:1].expand(8, -1, -1, -1)
for w in (0, 1):
    spread = velocity(eight, 999, e, w=w).std(dim=0).mean().item()
    print(f"w = {w}: spread over the eight embeddings {spread:.4f}")
    assert (spread < 1e-4) == (w == 0)

# %% [markdown]
# **Exercise 3: whose jump?** Is the jump between land and water the decoder's or the encoder's? Look at the coordinate
# along $d$ of the embeddings of *blended* pictures, $(1-s)\,x_0 + s\,x_1$, and compare with the great circle between
# the two embeddings.
#
# <details><summary>Solution 3</summary>
#
# Along the great circle the coordinate changes evenly, so a jump that you *see* between its decoded pictures is the
# decoder's. (The reading "water" cannot show it: with two values it must flip in one step, and it is the encoder's.)
# With blended pictures the encoder jumps, too: one step is about the whole change. It was trained on scenes that are
# one or the other.
#
# </details>

# %% tags=["hide-cell", "solution"]
# @title Solution 3 { display-mode: "form" }
s = torch.linspace(0, 1, 8)[:, None, None, None]
blends = ((1 - s) * test.x[3] + s * test.x[0]).round().to(torch.uint8)
largest = {}
for name, z in (("great circle", between), ("blends", embed(pipeline, blends))):
    steps = (z @ d).diff()
    largest[name] = (steps.max() / steps.sum()).item()
    print(f"{name}: largest of 7 steps, {largest[name]:.0%} of the whole")
assert largest["great circle"] < 0.25
assert largest["blends"] > 0.4

# %% [markdown]
# ## References
#
# - A. Ramesh et al., [Hierarchical text-conditional image generation with CLIP
#   latents](https://arxiv.org/abs/2204.06125), 2022: unCLIP.
# - J. Ho, A. Jain, P. Abbeel, [Denoising diffusion probabilistic models](https://arxiv.org/abs/2006.11239), 2020.
# - J. Song, C. Meng, S. Ermon, [Denoising diffusion implicit models](https://arxiv.org/abs/2010.02502), 2021: the
#   sampler.
# - T. Salimans, J. Ho, [Progressive distillation for fast sampling of diffusion
#   models](https://arxiv.org/abs/2202.00512), 2022: the velocity.
# - J. Ho, T. Salimans, [Classifier-free diffusion guidance](https://arxiv.org/abs/2207.12598), 2022.
