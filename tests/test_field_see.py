"""Letter strings against strings written out, the network against its definition, and the bad inputs."""

from __future__ import annotations

import math

import numpy as np
import pytest
import torch

from caml_core.errors import CamlError
from caml_core.field.see import Transformer, attention, correct, fit, matching
from caml_core.field.strings import (
    COMPOSED,
    EOS,
    LETTER,
    NOVEL,
    PAD,
    SIZE,
    TRAINED,
    Rows,
    derange,
    draw_alphabets,
    draw_rows,
    problems,
)  # fmt: skip

LETTERS = "abcdefgh"
WRITTEN = {
    "extend": ("abc", "abcd"), "succ": ("abc", "abd"), "pred": ("bcd", "acd"), "sort": ("cba", "abc"),
    "extend+pred": ("bcd", "acde"), "sort+succ": ("acb", "abd"), "sort+extend": ("ba", "abc"),
    "reverse": ("abc", "cba"), "shift": ("fg", "gh"), "replicate": ("ab", "aabb"),
}  # fmt: skip


@pytest.mark.parametrize("rule", TRAINED + COMPOSED + NOVEL)
def test_transformations_are_those_of_the_examples(rule: str) -> None:
    told = [tuple("".join(LETTERS[c] for c in part) for part in pair) for pair in problems(rule, SIZE)]
    assert WRITTEN[rule] in told
    assert len(set(told)) == len(told)
    room = {"extend": 1, "succ": 1, "pred": 1, "extend+pred": 2, "sort+succ": 1, "sort+extend": 1, "shift": 1}
    each = {n: math.comb(n, 2) if "sort" in rule else 1 for n in (2, 3, 4)}
    assert len(told) == sum((SIZE - n + 1 - room.get(rule, 0)) * each[n] for n in each)


@pytest.mark.parametrize("k", [0, 2, 3, 7, 8])
def test_as_many_letters_are_out_of_place_as_asked(k: int) -> None:
    for seed in range(20):
        alphabet = np.array(derange(8, k, np.random.default_rng(seed)))
        assert sorted(alphabet) == list(range(8))
        assert (alphabet != np.arange(8)).sum() == k


def test_alphabets_differ_and_their_levels_take_turns() -> None:
    found = draw_alphabets(20, 0)
    assert len({*found, tuple(range(8))}) == 21
    moved = [sum(letter != place for place, letter in enumerate(one)) for one in found]
    assert moved[:4] == [2, 4, 6, 8]


def parts(rows: Rows, n: int) -> tuple[str, ...]:
    """Alphabet, study, solution, query and answer of a row, read off its tokens."""
    text = "".join({0: "", 1: "", 2: "|", 3: ">"}.get(t, chr(ord("a") + t - LETTER)) for t in rows.source[n].tolist())
    alphabet, study, query = text.split("|")
    answer = [t for t in rows.target[n].tolist() if t > EOS]
    assert rows.target[n, len(answer)] == EOS
    assert rows.query[n] == len(text) - len(query)
    return (alphabet, *study.split(">"), query, "".join(chr(ord("a") + t - LETTER) for t in answer))


def test_rows_are_episodes_and_a_copy_can_be_read_off() -> None:
    alphabets = draw_alphabets(5, 0)
    plain, rows = draw_rows(alphabets, TRAINED, 200, 1), draw_rows(alphabets, TRAINED, 200, 1, copy=True)
    for n in range(200):
        alphabet, *shown, query, answer = parts(rows, n)
        assert alphabet == "".join(LETTERS[c] for c in alphabets[rows.alphabet[n]])
        every = [tuple("".join(alphabet[c] for c in p) for p in pair) for pair in problems(TRAINED[rows.rule[n]], SIZE)]
        assert tuple(shown) in every
        assert (query, answer) in every
        assert shown[0] != query
        assert parts(rows, 200 + n) == (alphabet, query, answer, query, answer)
        assert parts(plain, n) == parts(rows, n)


def test_what_is_held_out_is_never_trained_on() -> None:
    alphabets = draw_alphabets(3, 0)
    train, test = draw_rows(alphabets, TRAINED, 1500, 1), draw_rows(alphabets, TRAINED, 150, 2, held_out=True)
    met = {(t[0], int(train.rule[n]), p) for n in range(1500) for t in [parts(train, n)] for p in (t[1], t[3])}
    asked = {(t[0], int(test.rule[n]), t[3]) for n in range(150) for t in [parts(test, n)]}
    studied = {(t[0], int(test.rule[n]), t[1]) for n in range(150) for t in [parts(test, n)]}
    assert not met & asked
    assert studied <= met


@pytest.fixture(scope="module")
def model() -> Transformer:
    torch.manual_seed(0)
    return Transformer()


def test_an_answer_sees_no_later_token_and_no_padding(model: Transformer) -> None:
    rows = draw_rows(draw_alphabets(2, 0), TRAINED, 8, 1)
    changed = rows.target.clone()
    changed[:, 2:] = LETTER
    torch.testing.assert_close(model(rows.source, changed)[:, :3], model(rows.source, rows.target)[:, :3])
    longer = torch.cat([rows.source, torch.full((8, 3), PAD)], dim=1)
    torch.testing.assert_close(model(longer, rows.target), model(rows.source, rows.target), atol=1e-5, rtol=1e-4)


def test_attention_is_the_softmax_of_queries_and_keys_that_start_alike(model: Transformer) -> None:
    rows = draw_rows(draw_alphabets(2, 0), TRAINED, 3, 1)
    layer, found = model.encoder.layers[0], attention(model, rows.source)
    W, b = layer.self_attn.in_proj_weight.detach(), layer.self_attn.in_proj_bias.detach()
    torch.testing.assert_close(W[:32], W[32:64])
    y = layer.norm1(model.at(rows.source)).detach()
    for n, h in ((0, 0), (2, 1)):
        part = slice(16 * h, 16 * h + 16)
        q, k = y[n] @ W[:32][part].T + b[:32][part], y[n] @ W[32:64][part].T + b[32:64][part]
        scores = (q @ k.T / 4).masked_fill(rows.source[n] == PAD, -torch.inf)
        torch.testing.assert_close(found[0, n, h], scores.softmax(dim=1), atol=1e-5, rtol=1e-4)


def test_matching_is_the_share_that_goes_to_the_same_letter(model: Transformer) -> None:
    rows = draw_rows(draw_alphabets(2, 0), TRAINED, 5, 1)
    weights, paid = attention(model, rows.source), []
    for n in range(5):
        tokens = rows.source[n].tolist()
        for place in range(int(rows.query[n]), len(tokens)):
            if tokens[place] != PAD:
                paid.append(weights[:, n, :, place, tokens[:SIZE].index(tokens[place])])
    torch.testing.assert_close(matching(model, rows), torch.stack(paid).mean(0))


def test_a_network_learns_its_rows_by_heart_and_then_knows_no_others() -> None:
    alphabets = draw_alphabets(4, 0)
    rows, others = draw_rows(alphabets, TRAINED, 32, 1), draw_rows(alphabets, TRAINED, 200, 2, held_out=True)
    model = fit(rows, 200)
    assert correct(model, rows).double().mean() > 0.9
    assert correct(model, others).double().mean() < 0.5
    forced = (model(rows.source, rows.target).argmax(-1) == rows.target) | (rows.target == PAD)
    assert torch.equal(forced.all(dim=1), correct(model, rows))


@pytest.mark.parametrize("k", [1, 9, -1])
def test_a_derangement_that_cannot_exist_is_one_message(k: int) -> None:
    with pytest.raises(CamlError, match=rf"^an alphabet of 8 letters with {k} out of place\n.*2 to 8"):
        derange(8, k, np.random.default_rng(0))


def test_other_bad_inputs_are_one_message(model: Transformer) -> None:
    with pytest.raises(CamlError, match=r"^windows of 2 to 9 letters\n.*2 to 8"):
        problems("extend", 8, (2, 9))
    with pytest.raises(CamlError, match=r"^an empty list of alphabets\n.*at least one"):
        draw_rows([], TRAINED, 10, 0)
    with pytest.raises(CamlError, match=r"^900 different rows\n.*at most"):
        draw_rows([tuple(range(8))], ["extend"], 900, 0)
    with pytest.raises(CamlError, match=r"^a sequence of 33 tokens\n.*at most 32"):
        model.encode(torch.full((1, 33), LETTER))
