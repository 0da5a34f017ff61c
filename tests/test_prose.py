"""What a program can see in prose: dead references, unexplained acronyms, claims without an assert, missing parts.

Every finding names file and line and says what to do. There is no taste in here: what would nag is not checked.
"""

from __future__ import annotations

import re
from collections.abc import Iterator
from pathlib import Path

import pytest
from sample_book import ROOT

from book import pairs

CHAPTERS = pairs.sources(ROOT)
PAGES = sorted((ROOT / "book").glob("*.md"))
LINK = re.compile(r"\[([^\]]*)\]\(([^)\s]*)\)")
#: What is said with an acronym that the glossary does not list by itself.
SPELLED = {
    "ACE": "adaptive cosine estimator",
    "BADGE": "batch active learning by diverse gradient embeddings",
    "BALD": "Bayesian active learning by disagreement",
    "BERT": "bidirectional encoder representations from transformers",
    "CE": "cross-entropy",
    "CEM": "constrained energy minimisation",
    "CG": "conjugate gradients",
    "CLIP": "contrastive language-image pre-training",
    "CNN": "convolutional neural network",
    "CRT": "classifier retraining",
    "DCT": "discrete cosine transform",
    "DDIM": "denoising diffusion implicit model",
    "DRO": "distributionally robust optimisation",
    "EIIL": "environment inference for invariant learning",
    "EM": "expectation-maximisation",
    "GroupDRO": "group distributionally robust optimisation",
    "KFAC": "Kronecker-factored approximate curvature",
    "LEIA": "low-rank error-informed adaptation",
    "LQR": "linear-quadratic regulator",
    "LUMA": "tractable uncertainty-aware meta-learning",
    "MAP": "maximum a posteriori",
    "MCC": "Matthews correlation coefficient",
    "MLP": "multilayer perceptron",
    "ONNX": "Open Neural Network Exchange",
    "ORCA": "online reasoning calibration",
    "PASM": "population adaptive symbolic mixture of experts",
    "PCA": "principal component analysis",
    "PTA": "purify-then-align",
    "QR": "QR decomposition",
    "RBF": "squared exponential kernel",
    "SELF": "selective last-layer finetuning",
    "SGD": "stochastic gradient descent",
    "VAE": "variational autoencoder",
    "WGA": "worst-group accuracy",
}
#: Everyday words, names of datasets and licences, and numbers of parts.
KNOWN = set(
    re.findall(
        r"\w+",
        "AI API CPU CSV CUDA FAQ GB GPU HTML HTTP ID JSON KB MB OK PDF PNG RAM RGB SSD TPU URL US "
        "CIFAR COCO CUB GPT MM MNIST RAIL SUN WILDS BSD CC MIT II III IV VI VII",
    )
)
AMERICAN = {
    r"colou?r(?<!colour)\w*": "colour",
    r"behavior\w*": "behaviour",
    r"neighbor\w*": "neighbour",
    r"favor\w*": "favour",
    r"(?:cente)r(?:ed|s)?": "centre",
    r"gray\w*": "grey",
    r"(?:un)?label(?:ed|ing|er)": "labelled, labelling",
    r"model(?:ed|ing)": "modelled, modelling",
    r"analyz\w+": "analyse",
    r"(?:optim|general|regular|normal|minim|maxim|initial|summar|visual|memor|standard|penal|recogn)iz\w+": "-ise",
}
PARTS = (
    "**Question.**",
    "**You will be able to**",
    "**Before you start.**",
    "## What we saw",
    "## Exercises",
    "## References",
)

chapters = pytest.mark.parametrize("chapter", CHAPTERS, ids=lambda chapter: chapter.stem)
texts = pytest.mark.parametrize("file", [*CHAPTERS, *PAGES], ids=lambda file: file.name)


class Text:
    """Prose and code of a chapter or page as two strings with the line numbers of the file."""

    def __init__(self, file: Path) -> None:
        self.file = file
        self.cells: list[tuple[int, str]] = []  # line and marker of each cell of a chapter
        prose, code, inside = [], [], file.suffix == ".md"
        for number, line in enumerate(file.read_text("utf-8").splitlines(), 1):
            if file.suffix == ".py" and line.startswith("# %%"):
                inside = "[markdown]" in line
                self.cells.append((number, line))
                line = ""
            prose.append(line.removeprefix("#").removeprefix(" ") if inside and file.suffix == ".py" else line * inside)
            code.append("" if inside else line)
        self.prose, self.code = "\n".join(prose), "\n".join(code)

    @property
    def words(self) -> str:
        """The prose without code, formulas, addresses and other people's titles, which keep their places as blanks."""
        text = self.prose.split("\n## References")[0]
        for other in (r"```.*?(?:```|\Z)", r"\$\$.*?\$\$", r"`[^`\n]*`", r"\$[^$]*\$", r"<[^>]*>",
                      r"\[[^\]]*\]\(http[^)]*\)", r"(?<=\])\([^)]*\)", r"https?://\S+"):  # fmt: skip
            text = re.sub(other, lambda found: re.sub(r"[^\n]", " ", found[0]), text, flags=re.DOTALL)
        return text

    def at(self, offset: int) -> str:
        """Place of an offset for a message."""
        return f"{self.file.relative_to(ROOT)}, line {self.prose.count(chr(10), 0, offset) + 1}"

    def tagged(self, tag: str) -> list[int]:
        """Lines of the cells with a tag."""
        return [line for line, marker in self.cells if re.search(rf'tags=\[[^\]]*"{tag}"', marker)]


def glossary() -> dict[str, str]:
    """Terms and what stands below them."""
    body = (ROOT / "book" / "glossary.md").read_text("utf-8").split("```{glossary}\n")[1].split("\n```")[0]
    entries = re.findall(r"^(\S.*)\n((?:[ ]+\S.*\n?)+)", body, re.MULTILINE)
    return {term.strip(): " ".join(text.split()) for terms, text in entries for term in terms.split(",")}


def acronyms() -> dict[str, str]:
    """Acronym to its spelling: `SPELLED`, and terms of the glossary whose entries begin with its words."""
    found = dict(SPELLED)
    for term, text in glossary().items():
        spelling = re.split(r" \{|[:,.]", text)[0]
        initials = iter(word[0].lower() for word in re.findall(r"\w+", spelling))
        if len(re.findall("[A-Z]", term)) > 1 and all(letter in initials for letter in term.lower()):
            found.setdefault(term, spelling)
    return found


def test_the_glossary_is_read() -> None:
    assert acronyms()["ERM"] == "Empirical risk minimisation"
    assert acronyms()["MLDG"] == "Meta-learning for domain generalisation"
    assert acronyms()["HSFM"] == "Hard-set-guided feature-space meta-learning"
    assert "minority" not in acronyms()
    assert {"minority", "support set"} <= glossary().keys()


@texts
def test_references_lead_somewhere(file: Path) -> None:
    text = Text(file)
    dead = []
    for found in LINK.finditer(text.prose):
        target, _, anchor = found[2].partition("#")
        if re.match(r"[a-z]+:", target) or not found[2]:
            continue
        goal = (file.parent / target) if target else file
        source = goal.with_suffix(".py") if goal.suffix == ".ipynb" else goal
        if not source.exists():
            dead.append(f"{text.at(found.start())}: there is no {found[2]}; correct or remove the link")
        elif anchor and anchor not in anchors(source):
            dead.append(f"{text.at(found.start())}: {target or file.name} has no heading #{anchor}; correct the anchor")
    for found in re.finditer(r"\{cite(?::\w+)?\}`([^`]+)`", text.prose):
        missing = [key.strip() for key in found[1].split(",") if key.strip() not in bibliography()]
        dead += [f"{text.at(found.start())}: book/references.bib has no {key}; add the entry" for key in missing]
    terms = {term.lower() for term in glossary()}
    for found in re.finditer(r"\{term\}`(?:[^`<]*<)?([^`>]+)>?`", text.prose):
        if found[1].strip().lower() not in terms:
            dead.append(f"{text.at(found.start())}: the glossary has no {found[1]!r}; add it to book/glossary.md")
    assert not dead, "\n".join(dead)


def anchors(file: Path) -> set[str]:
    """Names of the headings of a file as GitHub and MyST make them, and its own labels."""
    prose = Text(file).prose
    titles = re.findall(r"^#+ (.+)$", prose, re.MULTILINE)
    slugs = {re.sub(r"[^\w\- ]", "", title.strip().lower()).replace(" ", "-") for title in titles}
    return slugs | set(re.findall(r"^\(([\w-]+)\)=$", prose, re.MULTILINE))


def bibliography() -> dict[str, str]:
    """Entries of references.bib by key."""
    text = (ROOT / "book" / "references.bib").read_text("utf-8")
    return {found[1]: found[0] for found in re.finditer(r"^@\w+\{([^,\s]+),.*?^\}", text, re.MULTILINE | re.DOTALL)}


def test_every_entry_of_the_bibliography_is_used() -> None:
    """By key on a page; by arXiv number, DOI or title in a chapter or in the code that implements it."""
    sources = [
        *CHAPTERS,
        *PAGES,
        *sorted((ROOT / "caml_core").rglob("*.py")),
        *sorted((ROOT / "benchmarks").glob("*.py")),
        *sorted((ROOT / "results" / "studies").glob("*.py")),
    ]
    everything = plain(" ".join(source.read_text("utf-8") for source in sources))
    unused = []
    for key, entry in bibliography().items():
        fields = {
            name.lower(): value for name, value in re.findall(r"^\s*(\w+)\s*=\s*\{(.*)\},?$", entry, re.MULTILINE)
        }
        names = [key, *(fields[name] for name in ("eprint", "doi", "url", "title") if name in fields)]
        if not any(plain(name) in everything for name in names):
            unused.append(f"book/references.bib: nothing cites {key}; link it where it is used, or remove the entry")
    assert not unused, "\n".join(unused)


def plain(text: str) -> str:
    """Lower case, words and numbers only, so that hyphens, braces and line ends do not matter."""
    return " ".join(re.findall(r"[\w.]+", re.sub(r"[{}]", "", text.lower())))


@chapters
def test_acronyms_are_explained_at_first_use(chapter: Path) -> None:
    text, found = Text(chapter), []
    words = re.sub(r"^#+ .*$", lambda heading: " " * len(heading[0]), text.words, flags=re.MULTILINE)
    spelled = acronyms()
    used = {use[0].removesuffix("s") for use in re.finditer(r"\b[A-Z]{2,}s?\b", words)} | (spelled.keys() - KNOWN)
    for name in sorted(used - KNOWN):
        use = re.search(rf"\b{name}s?\b", words)
        if use is None:
            continue
        if name not in spelled:
            found.append(
                f"{text.at(use.start())}: what is {name}? Spell it out, and add it to book/glossary.md or SPELLED"
            )
        elif not explained(text.prose, use.start(), spelled[name]):
            remedy = f"write {spelled[name]!r} beside it, or link the chapter or the glossary"
            found.append(f"{text.at(use.start())}: first use of {name}; {remedy}")
    assert not found, "\n".join(found)


def explained(prose: str, use: int, spelling: str) -> bool:
    """Whether the spelling stands before the end of the paragraph, or the paragraph links a page of the book."""
    end = prose.find("\n\n", use) % (len(prose) + 1)
    paragraph = prose[prose.rfind("\n\n", 0, use) + 1 : end]
    links = any(re.search(r"\.(ipynb|md)(#|$)", link[2]) for link in LINK.finditer(paragraph))
    return links or plain(spelling).replace("-", " ") in plain(prose[:end])


def test_the_rule_for_acronyms_sees_both_ways() -> None:
    rule = "Empirical risk minimisation"
    assert explained("# ERM\n\nBy ERM (empirical risk\nminimisation) we mean", 10, rule)
    assert explained("ERM is explained in [01](01_shortcuts.ipynb).", 0, rule)
    assert not explained("First ERM.\n\nThen empirical risk minimisation.", 6, rule)
    assert not explained("ERM is [there](https://example.org).", 0, rule)


@chapters
def test_parts_of_a_chapter(chapter: Path) -> None:
    text = Text(chapter)
    places = [text.prose.find(part) for part in PARTS]
    missing = [f"{chapter.name}: there is no {part!r}" for part, place in zip(PARTS, places) if place < 0]
    if not missing and places != sorted(places):
        missing.append(f"{chapter.name}: the parts do not come in the order {', '.join(PARTS)}")
    if len(opening := text.tagged("opening")) != 1:
        missing.append(f"{chapter.name}: {len(opening)} cells {opening} are tagged 'opening'; tag one, the best figure")
    solutions = text.tagged("solution")
    lines = text.code.split("\n")
    if not solutions:
        missing.append(f"{chapter.name}: no solution runs; put one in a cell with the tags hide-cell and solution")
    for line in solutions:
        if not re.match(r'# @title Solution \d+ \{ display-mode: "form" \}$', lines[line]) or line not in text.tagged(
            "hide-cell"
        ):
            missing.append(
                f"{chapter.name}, line {line}: a solution has the tag hide-cell and begins '# @title Solution N'"
            )
    assert not missing, "\n".join(missing)


@chapters
def test_cost_is_stated(chapter: Path) -> None:
    text = Text(chapter).prose
    start = text.find("**Before you start.**")
    box = " ".join(text[start : text.find("\n\n", start)].replace(">", " ").split())
    assert re.search(r"\b(seconds?|minutes?)\b", box), f"{chapter.name}: 'Before you start' gives no time"
    assert re.search(r"\b[GM]B of memory\b", box), (
        f"{chapter.name}: 'Before you start' gives no memory ('1 GB of memory')"
    )


@chapters
def test_claims_are_asserted(chapter: Path) -> None:
    text = Text(chapter)
    claims = re.search(r"^## What we saw\n(.*?)(?=^## )", text.prose, re.MULTILINE | re.DOTALL)
    assert claims, f"{chapter.name}: there is no '## What we saw'"
    before = "\n".join(text.code.split("\n")[: text.prose.count("\n", 0, claims.start())])
    asserts = len(re.findall(r"^\s*assert\b", before, re.MULTILINE))
    bullets = len(re.findall(r"^- ", claims[1], re.MULTILINE))
    assert asserts >= max(1, bullets), (
        f"{text.at(claims.start())}: {bullets} claims and {asserts} asserts above them; assert the rest, as ranges"
    )


@texts
def test_spelling_is_british(file: Path) -> None:
    text = Text(file)
    wrong = list(american(text))
    assert not wrong, "\n".join(wrong)


def american(text: Text) -> Iterator[str]:
    for pattern, british in AMERICAN.items():
        for found in re.finditer(rf"\b{pattern}\b", text.words, re.IGNORECASE):
            yield f"{text.at(found.start())}: {found[0]!r}; write {british!r}"


BAD = """\
# %% [markdown]
# **Question.** What of JTT and the ABC? See [that](https://example.org).
#
# See [gone](99_gone.ipynb) and [here](#nowhere).
#
# **You will be able to** see the color of labeled `color` {cite:p}`nobody2020`, a {term}`nothing`.
#
# **Before you start.** Nothing.

# %% tags=["opening", "hide-input"]
assert 1

# %% [markdown]
# ## What we saw
#
# - one
# - two
#
# ## Exercises

# %% tags=["solution"]
x = 1

# %% [markdown]
# ## References
#
# - [Colors](https://example.org) of labeled things
"""


def test_the_checks_see_what_is_wrong(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    (tmp_path / "book").mkdir()
    for name in ("glossary.md", "references.bib"):
        (tmp_path / "book" / name).write_bytes((ROOT / "book" / name).read_bytes())
    monkeypatch.setitem(globals(), "ROOT", tmp_path)
    chapter = tmp_path / "chapter.py"
    chapter.write_text(BAD, "utf-8")
    found = {
        test_references_lead_somewhere: (
            "line 4: there is no 99_gone",
            "#nowhere",
            "line 6: .* nobody2020",
            "'nothing'",
        ),
        test_acronyms_are_explained_at_first_use: ("line 2: what is ABC", "first use of JTT"),
        test_parts_of_a_chapter: ("line 21: a solution has",),
        test_cost_is_stated: ("no time",),
        test_claims_are_asserted: ("line 14: 2 claims and 1 asserts",),
        test_spelling_is_british: ("line 6: 'color'; write 'colour'", "'labeled'"),
    }
    for check, messages in found.items():
        with pytest.raises(AssertionError) as error:
            check(chapter)
        told = str(error.value).split("\nassert ")[0]
        assert len(told.splitlines()) == len(messages), told
        assert all(re.search(message, told) for message in messages), told
