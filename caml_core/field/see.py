"""An encoder and decoder for letter strings, after Transformer See, Transformer Do (Hellwig et al., arXiv 2604.06501).

The data are in `caml_core.field.strings`; size, steps and the start of the weights are ours. Built in chapter 20.
"""

from __future__ import annotations

import torch
from torch import Tensor, nn
from torch.nn.functional import cross_entropy

from caml_core.device import seeded
from caml_core.errors import CamlError
from caml_core.field.strings import BAR, LETTER, PAD, SIZE, Rows


class Transformer(nn.Module):
    """Encoder and decoder. `alike`: encoder queries and keys start equal, so a letter leans to its equals."""

    def __init__(
        self, size: int = SIZE, width: int = 32, heads: int = 2, longest: int = 32, alike: bool = True
    ) -> None:
        super().__init__()
        self.embed, self.longest = nn.Embedding(LETTER + size, width), longest
        turn = torch.arange(longest)[:, None] / 1e4 ** (torch.arange(0, width, 2) / width)
        self.register_buffer("places", torch.stack([turn.sin(), turn.cos()], dim=-1).flatten(1), persistent=False)
        how = {"batch_first": True, "norm_first": True, "dropout": 0.0, "activation": "gelu"}
        layer = nn.TransformerEncoderLayer(width, heads, 4 * width, **how)  # type: ignore[arg-type]
        reader = nn.TransformerDecoderLayer(width, heads, 4 * width, **how)  # type: ignore[arg-type]
        self.encoder = nn.TransformerEncoder(layer, 2, nn.LayerNorm(width), enable_nested_tensor=False)
        self.decoder = nn.TransformerDecoder(reader, 1, nn.LayerNorm(width))
        for block in self.encoder.layers:
            nn.init.xavier_uniform_(block.self_attn.in_proj_weight)
            if alike:
                block.self_attn.in_proj_weight.data[width : 2 * width] = block.self_attn.in_proj_weight.data[:width]

    def at(self, tokens: Tensor) -> Tensor:
        """Token and place, (B, S, D)."""
        if tokens.shape[1] > self.longest:
            what = f"a sequence of {tokens.shape[1]} tokens"
            raise CamlError(what, f"at most {self.longest}", "use shorter windows, or a larger `longest`")
        return self.embed(tokens) + self.places[: tokens.shape[1]]  # type: ignore[index,no-any-return]

    def encode(self, source: Tensor) -> Tensor:
        return self.encoder(self.at(source), src_key_padding_mask=source == PAD)  # type: ignore[no-any-return]

    def decode(self, known: Tensor, source: Tensor, before: Tensor) -> Tensor:
        """Logits (B, T, tokens) of what follows each of the tokens before (B, T)."""
        later = torch.ones(before.shape[1], before.shape[1], dtype=torch.bool).triu(1)
        x = self.decoder(self.at(before), known, tgt_mask=later, memory_key_padding_mask=source == PAD)
        return x @ self.embed.weight.T / x.shape[-1] ** 0.5  # type: ignore[no-any-return]

    def forward(self, source: Tensor, target: Tensor) -> Tensor:
        """Logits (B, T, tokens) of the target (B, T), each token given those before."""
        before = torch.cat([torch.full_like(target[:, :1], BAR), target[:, :-1]], dim=1)
        return self.decode(self.encode(source), source, before)


@torch.no_grad()
def correct(model: Transformer, rows: Rows) -> Tensor:
    """bool (N,): is the whole answer right, decoded greedily?"""
    known, said = model.encode(rows.source), torch.full((len(rows.source), 1), BAR)
    for _ in range(rows.target.shape[1]):
        said = torch.cat([said, model.decode(known, rows.source, said)[:, -1].argmax(-1, keepdim=True)], dim=1)
    return ((said[:, 1:] == rows.target) | (rows.target == PAD)).all(dim=1)


def loss_of(logits: Tensor, target: Tensor) -> Tensor:
    return cross_entropy(logits.flatten(0, 1), target.flatten(), ignore_index=PAD)


def fit(rows: Rows, steps: int, seed: int = 0, alike: bool = True, batch: int = 32, lr: float = 4e-3) -> Transformer:
    """AdamW on shuffled passes over the rows, 5% of the steps to warm up, linear decay to 5% of the rate."""
    with seeded(seed):
        model, warm = Transformer(alike=alike), max(steps // 20, 1)
        opt = torch.optim.AdamW(model.parameters(), lr, betas=(0.9, 0.95), weight_decay=0.01)
        rate = torch.optim.lr_scheduler.LambdaLR(opt, lambda t: min((t + 1) / warm, 1 - 0.95 * t / steps))
        order = torch.cat([torch.randperm(len(rows.source)) for _ in range(steps * batch // len(rows.source) + 1)])
        for now in order[: steps * batch].view(steps, batch):
            opt.zero_grad()
            loss_of(model(rows.source[now], rows.target[now]), rows.target[now]).backward()
            opt.step()
            rate.step()
    return model


@torch.no_grad()
def attention(model: Transformer, source: Tensor) -> Tensor:
    """Weights of the encoder (layers, B, heads, S, S)."""
    x, found, unknown = model.at(source), [], source == PAD
    for layer in model.encoder.layers:
        y = layer.norm1(x)
        found.append(layer.self_attn(y, y, y, key_padding_mask=unknown, average_attn_weights=False)[1])
        x = layer(x, src_key_padding_mask=unknown)
    return torch.stack(found)


def matching(model: Transformer, rows: Rows, size: int = SIZE) -> Tensor:
    """Attention (layers, heads) that query letters pay, on average, to the same letter in the alphabet."""
    source = rows.source
    asks = (torch.arange(source.shape[1]) >= rows.query[:, None]) & (source != PAD)
    paid = attention(model, source)[..., :size] * (source[:, :, None] == source[:, None, :size])[:, None]
    return paid.sum(-1).transpose(2, 3)[:, asks].mean(1)
