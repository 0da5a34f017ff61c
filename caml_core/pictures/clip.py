"""A CLIP of three megabytes that knows birdscapes: open_clip's own classes, a small configuration, weights of ours.

Contrastive language-image pretraining (Radford et al., arXiv 2103.00020) trains an image encoder f and a text encoder
t so that f(image_i) . t(caption_j) is large when i = j and small otherwise. `load_clip` returns the same four things
for this model and for every pretrained model of open_clip, so a chapter changes one word to use a real one.
"""

from __future__ import annotations

import itertools
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any, NamedTuple

import torch
import torch.nn.functional as F
from torch import Tensor

from caml_core.errors import CamlError
from caml_core.store import load_checkpoint

if TYPE_CHECKING:
    from open_clip.model import CLIP

WEIGHTS = Path(__file__).parent.parent / "weights" / "tiny_clip.safetensors"
WIDTH = 64
IMAGE_SIZE = 64  # birdscapes are 48 pixels wide; the ResNet halves five times and wants a multiple of 32
CONTEXT = 12  # words of a text, with its two marks
# open_clip reads a text at its highest id, so the mark of the end comes last.
VOCABULARY = (
    *("", "<start>", "a", "an", "small", "big", "white", "black", "grey", "red", "orange", "yellow", "pink", "purple"),
    *("bird", "landbird", "waterbird", "facing", "left", "right", "on", "land", "water", "<end>"),
)


class Clip(NamedTuple):
    """What `load_clip` returns."""

    model: CLIP  # encode_image and encode_text, each (N, ...) to float32 (N, width)
    preprocess: Callable[[Any], Tensor]  # PIL image, or uint8 (..., 3, H, W), to float32 at the model's own size
    tokenize: Callable[[Sequence[str]], Tensor]  # N texts to int64 (N, context)
    width: int


def tokenize(texts: Sequence[str]) -> Tensor:
    """Texts as int64 (N, CONTEXT): one id a word, between the marks of start and end; `CamlError` on other words."""
    tokens = torch.zeros(len(texts), CONTEXT, dtype=torch.long)
    for row, text in zip(tokens, texts):
        words = ["<start>", *text.lower().split(), "<end>"]
        if len(words) > CONTEXT or not set(words) <= set(VOCABULARY):
            expected = f"at most {CONTEXT - 2} words among: {' '.join(VOCABULARY[2:-1])}"
            raise CamlError(f"the tiny CLIP cannot read {text!r}", expected, "try 'a red waterbird on water'")
        row[: len(words)] = torch.tensor([VOCABULARY.index(word) for word in words])
    return tokens


def build_clip() -> CLIP:
    """The tiny model with fresh weights: a ResNet of width 16 and a text transformer of two layers."""
    from open_clip.model import CLIP, CLIPTextCfg, CLIPVisionCfg

    vision = CLIPVisionCfg(layers=(1, 1, 1, 1), width=16, head_width=32, image_size=IMAGE_SIZE)
    text = CLIPTextCfg(context_length=CONTEXT, vocab_size=len(VOCABULARY), width=64, heads=2, layers=2)
    return CLIP(WIDTH, vision, text).to(memory_format=torch.channels_last)


def preprocess(images: Any) -> Tensor:
    """uint8 (..., 3, H, W), or a PIL image, as the tiny model takes it: float32 (..., 3, 64, 64) in [-1, 1]."""
    from torchvision.transforms.v2.functional import pil_to_tensor

    x = images if isinstance(images, Tensor) else pil_to_tensor(images.convert("RGB"))
    if x.dtype != torch.uint8:
        raise CamlError(f"images of type {x.dtype}", "uint8, values 0 to 255", "pass the x of a dataset")
    batch = x.reshape(-1, *x.shape[-3:]).float() / 127.5 - 1
    batch = F.interpolate(batch, size=(IMAGE_SIZE, IMAGE_SIZE), mode="bilinear", align_corners=False)
    return batch.reshape(*x.shape[:-2], IMAGE_SIZE, IMAGE_SIZE)


def load_clip(
    name: str = "tiny", pretrained: str | None = None, device: str | torch.device = "cpu", weights: Path = WEIGHTS
) -> Clip:
    """The tiny CLIP (`weights`: another file of it), or a model of open_clip, such as ("ViT-L-14", "openai").

    `CamlError` or RuntimeError on weights that are missing, broken or of another model, or cannot be fetched.
    """
    if name == "tiny":
        model = build_clip()
        model.load_state_dict({key: value.float() for key, value in load_checkpoint(weights)[0].items()})
        return Clip(model.to(device).eval(), preprocess, tokenize, WIDTH)
    import open_clip
    from torchvision.transforms.v2.functional import to_pil_image

    real, transform = open_clip.create_model_from_pretrained(name, pretrained=pretrained, device=device)

    def prepare(images: Any) -> Tensor:
        if not isinstance(images, Tensor):
            return transform(images)  # type: ignore[operator]
        return torch.stack([prepare(image) for image in images]) if images.ndim > 3 else prepare(to_pil_image(images))

    return Clip(real.eval(), prepare, open_clip.get_tokenizer(name), int(real.text_projection.shape[1]))  # type: ignore[arg-type, union-attr, index]


@torch.no_grad()
def embed_images(clip: Clip, images: Tensor, batch_size: int = 256) -> Tensor:
    """Unit-length embeddings of uint8 images (N, 3, H, W): float32 (N, width)."""
    device = next(clip.model.parameters()).device
    batches = (clip.preprocess(part).to(device) for part in images.split(batch_size))
    return torch.cat([clip.model.encode_image(batch, normalize=True).float().cpu() for batch in batches])


@torch.no_grad()
def embed_texts(clip: Clip, texts: Sequence[str]) -> Tensor:
    """Unit-length embeddings of N texts: float32 (N, width)."""
    device = next(clip.model.parameters()).device
    return clip.model.encode_text(clip.tokenize(texts).to(device), normalize=True).float().cpu()


def prompts(attribute: str) -> tuple[list[list[str]], tuple[str, ...]]:
    """For each value of an attribute of birdscapes: texts that name it beside every value of the rest; and its names.

    Averaging over the other attributes leaves, to first order, only the direction of the one asked for.
    """
    from caml_core.data.birdscapes import BACKGROUNDS, BIRDS, FACINGS, SIZES, caption
    from caml_core.data.scenery import COLOURS, Attributes

    names = {"bird": BIRDS, "background": BACKGROUNDS, "colour": tuple(COLOURS), "facing": FACINGS, "size": SIZES}
    said = tuple(dict.fromkeys(("colour", "bird", "background", attribute)))  # what the texts mention
    texts = []
    for value in range(len(names[attribute])):
        ranges = [[value] if f == attribute else range(len(names[f])) if f in said else [0] for f in Attributes._fields]
        texts.append([caption(Attributes(*row), include=said) for row in itertools.product(*ranges)])
    return texts, names[attribute]


def text_centres(clip: Clip, texts: Sequence[Sequence[str]]) -> Tensor:
    """One unit vector for each list of texts, the direction of their mean: float32 (len(texts), width)."""
    return F.normalize(torch.stack([embed_texts(clip, group).mean(0) for group in texts]), dim=1)


def zero_shot(clip: Clip, embeddings: Tensor, attribute: str) -> Tensor:
    """The value of an attribute whose texts lie nearest, for unit embeddings (N, width): int64 (N,)."""
    return (embeddings @ text_centres(clip, prompts(attribute)[0]).T).argmax(1)
