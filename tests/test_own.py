"""Your own model: slices that hold the minority, answers in a csv, the repaired head back in the model, bad input."""

from __future__ import annotations

import base64
import csv
import json
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from browsing import Browser
from conftest import toy_split
from PIL import Image
from test_heads import features
from torch import Tensor, nn

from caml_core.__main__ import main
from caml_core.data import load
from caml_core.errors import CamlError
from caml_core.features import standardise
from caml_core.groups import GroupDataset
from caml_core.last_layer import Head, erm_head
from caml_core.metrics import group_metrics
from caml_core.own import ask, audit, models, repair
from caml_core.own.label import SCRIPT, labeller
from caml_core.own.slices import ALARM, Slice, find_slices
from caml_core.own.words import words
from caml_core.pictures.clip import load_clip

pytest_plugins = ["book_fixtures"]


@pytest.fixture(scope="module")
def splits() -> tuple[GroupDataset, ...]:
    return standardise(features(4000, 0.97, 0), features(800, 0.5, 1), features(2000, 0.5, 2))


@pytest.fixture(scope="module")
def erm(splits: tuple[GroupDataset, ...]) -> Head:
    return erm_head(*splits[:2])


@pytest.fixture(scope="module")
def slices(splits: tuple[GroupDataset, ...], erm: Head) -> list[Slice]:
    return find_slices(splits[1].x, splits[1].y, erm.logits(splits[1].x))


# ---- search -------------------------------------------------------------------------------------------------


def test_the_worst_slice_is_the_minority(splits: tuple[GroupDataset, ...], slices: list[Slice]) -> None:
    """Though nobody said what the attribute is."""
    val, worst = splits[1], slices[0]
    assert worst.alarm
    assert worst.low > ALARM
    assert set(val.y[worst.rows].tolist()) == {worst.label}
    assert val.is_minority[worst.rows].double().mean() > 0.8
    assert worst.low < worst.gap < worst.high


def test_its_error_is_that_of_the_half_it_was_not_learned_from() -> None:
    """On noise, mistakes can be learned by heart on one half; on the other the slice is no worse than the rest."""
    g = torch.Generator().manual_seed(0)
    z, y = torch.randn(600, 40, generator=g), torch.arange(600) % 2
    logits = torch.nn.functional.one_hot(torch.where(torch.rand(600, generator=g) < 0.3, 1 - y, y), 2).double()
    found = find_slices(z, y, logits)
    assert found
    assert not any(one.alarm for one in found)
    assert all(one.low < 0 for one in found if one.way == "mistakes")


def test_mistakes_that_confidence_announces_raise_no_alarm(splits: tuple[GroupDataset, ...], erm: Head) -> None:
    """The same answers: a model that is unsure of what it gets wrong is no surprise, one that is sure is."""
    val, logits = splits[1], erm.logits(splits[1].x)
    unsure, sure = (find_slices(val.x, val.y, factor * logits)[0] for factor in (0.1, 10))
    assert sure.low == pytest.approx(unsure.low)
    assert sure.announced != pytest.approx(unsure.announced)
    assert not unsure._replace(low=40.0, announced=20.0).alarm
    assert unsure._replace(low=40.0, announced=10.0).alarm


def test_search_does_not_look_at_the_attribute(splits: tuple[GroupDataset, ...]) -> None:
    train, val, test = splits
    hidden = [
        GroupDataset(s.x, s.y, torch.zeros_like(s.y), class_names=s.class_names, attribute_names=["unknown"],
                     majority=[[1], [1]])
        for s in (train, val, test)
    ]  # fmt: skip
    known, unknown = audit.audit((train, val, test)), audit.audit((hidden[0], hidden[1], hidden[2]))
    assert [one.rows.tolist() for one in known.slices] == [one.rows.tolist() for one in unknown.slices]
    assert "fails" in audit.verdict(unknown)
    record = audit.record_of(unknown, "audit", 1.0)
    assert set(record["metrics"]) == {"average"}
    assert set(audit.record_of(known, "audit", 1.0)["metrics"]) > {"worst_group", "adjusted"}
    json.dumps(record)


def test_too_few_mistakes_are_said(splits: tuple[GroupDataset, ...], erm: Head) -> None:
    val = splits[1]
    assert find_slices(val.x, val.y, 9 * torch.nn.functional.one_hot(val.y, 2).double()) == []


# ---- questions and answers ----------------------------------------------------------------------------------


def test_questions_by_slices_are_nearly_balanced(
    splits: tuple[GroupDataset, ...], erm: Head, slices: list[Slice]
) -> None:
    val = splits[1]
    rows = {
        rule: ask.queue(val.y, erm.logits(val.x), slices, 60, rule=rule) for rule in ("slices", "hardest", "random")
    }  # type: ignore[arg-type]
    assert all(len(set(chosen.tolist())) == 60 for chosen in rows.values())
    counts = val.subset(rows["slices"]).group_counts
    assert int(counts.min()) >= 9
    losses = torch.nn.functional.cross_entropy(erm.logits(val.x), val.y, reduction="none")
    mine = losses[rows["hardest"]]
    assert mine[:4].max() == losses.max()
    assert mine[:4].min() == losses.min()


def test_answers_are_kept_and_read(tmp_path: Path) -> None:
    split = toy_split(40)
    file = ask.write_folder(tmp_path / "ask", split, torch.tensor([5, 2, 9]))
    lines = list(csv.reader(file.open()))
    assert lines[0] == list(ask.HEADER)
    assert [line[1] for line in lines[1:]] == ["5", "2", "9"]
    assert Image.open(file.parent / lines[1][0]).size == (16, 16)
    lines[1][3], lines[2][3] = "land", "Water "
    ask.save(file, lines[1:])
    ask.write_folder(tmp_path / "ask", split, torch.tensor([9, 7]))
    known = ask.read_answers(file, split)
    assert known.index.tolist() == [5, 2]
    assert [known.attribute_names[a] for a in known.a] == ["land", "water"]
    assert torch.equal(known.x, split.x[[5, 2]])
    assert [line[1] for line in csv.reader(file.open())][1:] == ["5", "2", "9", "7"]


@pytest.mark.parametrize(
    ("change", "said"),
    [
        (lambda line: [*line[:3], ""], "no answer"),
        (lambda line: [*line[:3], "land"], "every answer is 'land'"),
        (lambda line: [line[0], "39", line[2], "land"], "not written for these pictures"),
        (lambda line: [line[0], line[1], "blue", "land"], "'blue'"),
    ],
)
def test_bad_answers(change: Any, said: str, tmp_path: Path) -> None:
    split = toy_split(40)
    file = ask.write_folder(tmp_path, split, torch.tensor([2, 4]))
    ask.save(file, [change(line) for line in list(csv.reader(file.open()))[1:]])
    with pytest.raises(CamlError, match=said):
        ask.read_answers(file, split)


def test_the_widget_writes_each_answer_takes_back_and_goes_on(tmp_path: Path) -> None:
    file = ask.write_folder(tmp_path, toy_split(40), torch.arange(5))
    told: list[int] = []

    def tell() -> str:
        told.append(sum(line[3] != "" for line in ask.read_lines(file)))
        return f"{told[-1]} answers"

    widget = labeller(file, ["land", "water"], told=tell, every=2)

    def say(**message: Any) -> list[str]:
        widget._handle_custom_msg(message, [])
        return [line[3] for line in ask.read_lines(file)]

    assert widget.state["picture"].startswith("data:image/jpeg;base64,")
    assert say(answer="land") == ["land", "", "", "", ""]
    assert say(answer="no option") == ["land", "", "", "", ""]
    assert say(answer="water")[:2] == ["land", "water"]
    assert widget.state["note"] == "2 answers"
    assert say(undo=True)[:2] == ["land", ""]
    assert say(answer=ask.UNSURE)[:2] == ["land", ask.UNSURE]
    again = labeller(file, ["land", "water"])
    assert (again.state["done"], again.state["total"]) == (2, 5)
    for _ in range(3):
        say(answer="water")
    assert widget.state["done"] == 5
    assert "picture" not in widget.state
    assert told == [2, 2, 4, 5]
    assert ask.read_answers(file, toy_split(40)).index.tolist() == [0, 2, 3, 4]  # who cannot tell does not count
    with pytest.raises(CamlError, match="two to nine different words"):
        labeller(file, ["land", "Land"])


PAGE = """<div id="here"></div><script type="module">
import made from "data:text/javascript;base64,SCRIPT";
globalThis.sent = [];
const state = {options: ["land", "water", "?"], done: 1, total: 3, y: "bird", note: "", picture: "data:,"};
const model = {get: () => state, send: (message) => sent.push(message), on: () => {}, off: () => {}};
made.render({model, el: document.getElementById("here")});
</script>"""


def new_page(browser: Browser, **how: Any) -> Any:
    """A page of the session's browser, apart from the one that looks at the book."""
    return browser.page.context.browser.new_page(**how)


def test_keys_and_buttons_of_the_widget(browser: Browser) -> None:
    script = base64.b64encode(SCRIPT.read_bytes()).decode()
    page = new_page(browser)
    page.set_content(PAGE.replace("SCRIPT", script))
    page.locator(".ask").focus()
    for key in ("1", "w", "?", "x", "Backspace"):
        page.keyboard.press(key)
    page.get_by_role("button", name="land").click()
    sent = page.evaluate("sent")
    page.close()
    assert sent == [{"answer": "land"}, {"answer": "water"}, {"answer": "?"}, {"undo": True}, {"answer": "land"}]


# ---- repair -------------------------------------------------------------------------------------------------


def test_a_hundred_answers_repair_the_head(splits: tuple[GroupDataset, ...], erm: Head, slices: list[Slice]) -> None:
    train, val, test = splits
    known = val.subset(ask.queue(val.y, erm.logits(val.x), slices, 100))
    done = repair.repair(train, known, erm, val, ways=("leave alone", "dfr", "hsfm", "dfr, groups guessed"))
    before, after = (group_metrics(h.logits(test.x), test)["worst_group"]["value"] for h in (erm, done.head))
    assert after > before + 20
    assert done.way in done.advice
    scores = {one.name: one for one in done.ways}
    assert scores["leave alone"].gain == (0.0, 0.0, 0.0)
    assert scores[done.way].gain[1] > 0
    assert scores["dfr, groups guessed"].gain[1] > 0


def test_a_fair_model_is_left_alone() -> None:
    train, val, _ = standardise(features(4000, 0.5, 0), features(800, 0.5, 1), features(100, 0.5, 2))
    head = erm_head(train, val)
    done = repair.repair(train, val.subset(torch.arange(100)), head, val, ways=("leave alone", "dfr"))
    assert done.way == "leave alone"
    assert torch.equal(done.head.weight, head.weight)
    assert "alone" in done.advice


def test_a_way_is_scored_on_answers_it_has_not_seen(splits: tuple[GroupDataset, ...], erm: Head) -> None:
    train, val, _ = splits
    known = val.subset(torch.arange(80))
    whole, seen = set(known.index.tolist()), list[set[int]]()

    def way(train: GroupDataset, given: GroupDataset, rest: GroupDataset, head: Head, seed: int) -> Head:
        assert not set(rest.index.tolist()) & whole
        seen.append(set(given.index.tolist()))
        return head

    with pytest.MonkeyPatch.context() as patch:
        patch.setitem(repair.WAYS, "mine", way)
        repair.repair(train, known, erm, val, ways=("leave alone", "mine"))
    folds = [whole - given for given in seen[:-1]]
    assert seen[-1] == whole
    assert set.union(*folds) == whole
    assert sum(map(len, folds)) == len(whole)
    with pytest.raises(CamlError, match="too few answers"):
        repair.repair(train, known.subset(torch.arange(12)), erm, val)


def test_every_way_gives_a_head(splits: tuple[GroupDataset, ...], erm: Head) -> None:
    train, val, _ = splits
    known = val.subset(torch.arange(120))
    for name, way in repair.WAYS.items():
        assert way(train, known, val.subset(torch.arange(120, 400)), erm, 0).weight.shape == erm.weight.shape, name


def test_words_tell_the_slice() -> None:
    val = load("birdscapes", rho=0.95, seed=0, size=32, n_train=40, n_val=200, n_test=40, progress=False)[1]
    rows = ((val.y == 0) & (val.a == 1)).nonzero().flatten()
    one = Slice("by hand", 0, rows, len(rows), 90, 10, 60, 95)
    texts = ["a red landbird on land", "a red landbird on water"]
    assert words(load_clip("tiny", device="cpu"), val, one, texts)[0][0] == texts[1]


# ---- models -------------------------------------------------------------------------------------------------


class Net(nn.Module):
    def __init__(self, classes: int = 2) -> None:
        super().__init__()
        self.body = nn.Sequential(
            nn.Conv2d(3, 4, 3, stride=2), nn.ReLU(), nn.Flatten(), nn.Linear(4 * 49, 8), nn.ReLU()
        )
        self.classifier = nn.Linear(8, classes)

    def forward(self, x: Tensor) -> Tensor:
        return self.classifier(self.body(x))


def net() -> nn.Module:
    torch.manual_seed(0)
    return Net().eval()


def three() -> nn.Module:
    return Net(3)


def no_linear() -> nn.Module:
    return nn.Sequential(nn.Conv2d(3, 2, 16), nn.Flatten())


def bent() -> nn.Module:
    return nn.Sequential(nn.Flatten(), nn.Linear(768, 2), nn.ReLU())


def given(kind: str, folder: Path, classes: int = 2) -> tuple[str, Path | None, nn.Module]:
    """A model in one of the forms: its name or file, its weights, and the module itself."""
    x = toy_split(2).x.float() / 255
    if kind == "timm":
        import timm
        from safetensors.torch import save_file

        torch.manual_seed(0)
        module = timm.create_model("resnet10t", num_classes=classes).eval()
        save_file(module.state_dict(), folder / "w.safetensors")
        return "timm:resnet10t", folder / "w.safetensors", module
    module = net()
    if kind == "onnx":
        torch.onnx.export(
            module, (x,), folder / "n.onnx", dynamo=False, dynamic_axes={"x": {0: "n"}}, input_names=["x"]
        )
        return str(folder / "n.onnx"), None, module
    if kind == "pt2":
        batch = torch.export.Dim("batch")
        torch.export.save(torch.export.export(module, (x,), dynamic_shapes=({0: batch},)), folder / "n.pt2")
        return str(folder / "n.pt2"), None, module
    return "test_own:net", None, module


@pytest.mark.parametrize("kind", ["timm", "onnx", "pt2", "function"])
@pytest.mark.filterwarnings("ignore")
def test_a_model_comes_apart_and_together(kind: str, tmp_path: Path) -> None:
    """Features and head answer as the model does; a new head goes back into it."""
    x = toy_split(12).x
    spec, weights, module = given(kind, tmp_path)
    network = models.load_model(spec, 2, x[:4], weights=weights)
    scale = models.IMAGENET if kind == "timm" else models.AS_IT_IS
    pixels = models._scaled(x, scale)
    with torch.no_grad():
        torch.testing.assert_close(network(x), module(pixels), atol=1e-3, rtol=1e-3)
        z = network.features(x)
        new = Head(torch.randn(2, z.shape[1]), torch.randn(2), {})
        if kind == "onnx":
            repair.put_head_onnx(Path(spec), new, tmp_path / "mended.onnx")
            answers = models.load_model(str(tmp_path / "mended.onnx"), 2, x[:4])(x)
        else:
            name = "fc" if kind == "timm" else "classifier"
            repair.put_head(module, name, new)
            answers = module(pixels)
        torch.testing.assert_close(answers, new.logits(z), atol=1e-3, rtol=1e-3)


def test_the_tower_of_a_clip_gives_features_for_a_new_head(tmp_path: Path) -> None:
    import open_clip
    from safetensors.torch import save_file

    tower = {"image_size": 16, "layers": 1, "width": 64, "patch_size": 8}
    reader = {"context_length": 8, "vocab_size": 50, "width": 32, "heads": 2, "layers": 1}
    config = {"embed_dim": 12, "vision_cfg": tower, "text_cfg": reader}
    (tmp_path / "book-test.json").write_text(json.dumps(config))
    open_clip.add_model_config(tmp_path)
    clip = open_clip.create_model("book-test").eval()
    save_file(clip.state_dict(), tmp_path / "w.safetensors")
    x = toy_split(6).x
    network = models.load_model("open_clip:book-test", 2, x, weights=tmp_path / "w.safetensors")
    pixels = models._scaled(x, (clip.visual.image_mean, clip.visual.image_std))
    with torch.no_grad():
        torch.testing.assert_close(network.features(x), clip.visual(pixels))
    assert network.head.out_features == 2
    with pytest.raises(CamlError, match="without weights"):
        models.load_model("open_clip:book-test", 2, x)


@pytest.mark.parametrize(
    ("spec", "said"),
    [
        ("timm:resnet10t", "without weights"),
        ("timm:no_such_net", "no model"),
        ("test_own:nothing", "no model"),
        ("test_own:no_linear", "calls 0 linear layers"),
        ("test_own:bent", "do not give the model's own answers"),
        ("missing.onnx", "cannot read"),
        ("missing.pt2", "cannot read"),
    ],
)
def test_models_that_cannot_be_used(spec: str, said: str) -> None:
    with pytest.raises(CamlError, match=said):
        models.load_model(spec, 2, toy_split(4).x)


@pytest.mark.filterwarnings("ignore")
def test_an_onnx_file_of_other_classes_or_without_a_last_layer(tmp_path: Path) -> None:
    x = toy_split(4).x
    spec, _, _ = given("onnx", tmp_path)
    with pytest.raises(CamlError, match="2 outputs for 5 classes"):
        models.load_model(spec, 5, x)
    torch.onnx.export(no_linear(), (x.float(),), tmp_path / "c.onnx", dynamo=False)
    with pytest.raises(CamlError, match="no Gemm or MatMul"):
        models.load_model(str(tmp_path / "c.onnx"), 2, x)


def test_weights_of_another_network(tmp_path: Path) -> None:
    from safetensors.torch import save_file

    save_file({"a": torch.zeros(1)}, tmp_path / "w.safetensors")
    with pytest.raises(CamlError, match="does not fit"):
        models.load_model("timm:resnet10t", 2, toy_split(4).x, weights=tmp_path / "w.safetensors")


@pytest.mark.parametrize(
    ("change", "said"),
    [
        (lambda s: s.subset(torch.arange(10)), "10 validation pictures"),
        (lambda s: s.with_x(torch.zeros_like(s.x)), "features all alike: True"),
        (lambda s: s.subset(s.y == 0), "1 classes"),
    ],
)
def test_data_in_which_nothing_can_be_found(change: Any, said: str, splits: tuple[GroupDataset, ...]) -> None:
    train, val, test = splits
    with pytest.raises(CamlError, match=said):
        audit.audit((train, change(val), test))


def test_a_model_of_other_classes() -> None:
    splits = toy_split(80), toy_split(80, 1), toy_split(10, 2)
    with pytest.raises(CamlError, match="3 classes for dark, bright"):
        audit.audit(splits, models.split_model(three(), splits[0].x))


# ---- the whole way ------------------------------------------------------------------------------------------


def drawn(folder: Path, n: int = 1200) -> tuple[Path, Path]:
    """Pictures whose left half says the class softly, and whose right half agrees in nearly all of training; a csv
    without the attribute, and the attributes."""
    folder.mkdir()
    lines, known = ["path,y,split"], {}
    for i in range(n):
        rng, split = np.random.default_rng(i), ("train", "val", "test")[0 if i < n // 2 else 1 + i % 2]
        y = i // 2 % 2
        a = y if rng.random() < (0.95 if split == "train" else 0.5) else 1 - y
        pixels = rng.integers(0, 120, (16, 16, 3), dtype=np.uint8)
        pixels[:, :8] += np.uint8(6 * y)
        pixels[:, 8:] += np.uint8(120 * a)
        Image.fromarray(pixels).save(folder / f"{i}.png")
        lines.append(f"{i}.png,{('cat', 'dog')[y]},{split}")
        known[f"{i}.png"] = ("indoor", "outdoor")[a]
    (folder / "pets.csv").write_text("\n".join(lines))
    (folder / "known.json").write_text(json.dumps(known))
    return folder / "pets.csv", folder / "known.json"


def looked_at(browser: Browser, file: Path, axe: str) -> list[str]:
    """What keeps people out of a page, light and dark, and whether it is wider than a telephone."""
    found, page = [], new_page(browser, viewport={"width": 390, "height": 800})
    for scheme in ("light", "dark"):
        page.emulate_media(color_scheme=scheme)
        page.goto(file.as_uri())
        page.evaluate(axe)
        tags = {"runOnly": ["wcag2a", "wcag2aa", "wcag21a", "wcag21aa"]}
        result = page.evaluate("tags => axe.run(document, tags)", tags)
        found += [f"{scheme}: {one['id']}, {one['nodes'][0]['html'][:80]}" for one in result["violations"]]
    if page.evaluate("document.documentElement.scrollWidth > innerWidth"):
        found.append("it is wider than 390 pixels")
    page.close()
    return found


def test_commands_lead_from_a_folder_to_a_head(
    tmp_path: Path, cache: Path, browser: Browser, axe: str, capsys: pytest.CaptureFixture[str]
) -> None:
    table, known = drawn(tmp_path / "pets")
    how = [str(table), "--size", "16", "--seed", "3"]
    assert main(["audit", *how, "--model", "test_own:net", "--out", str(tmp_path / "untrained")]) == 0
    assert "Too few mistakes" in capsys.readouterr().out
    assert main(["audit", *how, "--out", str(tmp_path / "report")]) == 0
    page = (tmp_path / "report" / "report.html").read_text("utf-8")
    assert page.count("<img ") > 30
    assert "<script" not in page
    assert "http" not in page
    assert looked_at(browser, tmp_path / "report" / "report.html", axe) == []
    (record,) = json.loads((tmp_path / "report" / "record.json").read_text())
    assert record["verdict"] in capsys.readouterr().out
    assert record["slices"][0]["alarm"]
    assert record["seed"] == 3
    assert main(["ask", *how, "-n", "80", "--out", str(tmp_path / "ask")]) == 0
    file = tmp_path / "ask" / "labels.csv"
    lines = list(csv.reader(file.open()))[1:]
    assert len(lines) == 80
    truth = json.loads(known.read_text())
    names = [line.split(",")[0] for line in table.read_text().splitlines()[1:] if line.endswith(",val")]
    ask.save(file, [[*line[:3], truth[names[int(line[1])]]] for line in lines])
    more = ["--answers", str(file), "--out", str(tmp_path / "repaired")]
    assert main(["repair", *how, *more]) == 0
    said = capsys.readouterr().out
    assert "| leave alone |" in said
    assert "load_file" in said
    assert (tmp_path / "repaired" / "head.safetensors").exists()
    assert main(["repair", *how, "--answers", str(tmp_path / "no.csv"), "--out", str(tmp_path / "x")]) == 2
    assert "no answer" in capsys.readouterr().err


def test_a_tree_without_attributes(tmp_path: Path) -> None:
    from caml_core.data import folder

    for i in range(24):
        place = tmp_path / "pets" / ("cat", "dog")[i % 2]
        place.mkdir(parents=True, exist_ok=True)
        Image.fromarray(np.full((8, 8, 3), i, dtype=np.uint8)).save(place / f"{i}.png")
    train, val, test = folder.load(path=tmp_path / "pets", size=8, known=False, progress=False)
    assert train.attribute_names == ("unknown",)
    assert len(train) + len(val) + len(test) == 24
    with pytest.raises(CamlError, match="in no folder of y/a"):
        folder.load(path=tmp_path / "pets", size=8, progress=False)
