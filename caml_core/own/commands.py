"""`python -m caml_core audit`, `ask` and `repair`: three steps over the same folder and the same model."""

from __future__ import annotations

import functools
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

from caml_core.runs.commands import Flags


def own_flags(command: str, purpose: str) -> Flags:
    flags = Flags(command, purpose)
    flags.add_argument("path", type=Path, help="a folder or a csv of pictures, as in Bring your own data")
    flags.add_argument("--model", help="timm:NAME, torchvision:NAME, FILE.onnx, FILE.pt2 or package.module:function")
    flags.add_argument("--weights", type=Path, metavar="FILE.safetensors", help="of timm: and torchvision:")
    flags.add_argument("--size", type=int, default=224, help="side of a picture in pixels")
    flags.add_argument("--seed", type=int, default=0)
    flags.add_argument("--out", type=Path, required=True, metavar="DIR")
    return flags


def go_own(command: str, argv: Sequence[str]) -> None:
    """`audit`, `ask` and `repair` look at the same data and model in the same way."""
    purpose = {
        "audit": "What does your model lean on? A page and a record.",
        "ask": "Which pictures to look at: a folder of them and a csv to fill in.",
        "repair": "Which last layer does best with the answers at hand?",
    }[command]
    flags = own_flags(command, purpose)
    if command == "ask":
        flags.add_argument("-n", type=int, default=100, help="pictures")
    if command == "repair":
        flags.add_argument("--answers", type=Path, required=True, metavar="labels.csv")
    given = flags.parse_args(argv)
    from caml_core.own import ask, audit, models
    from caml_core.own import repair as mend

    def make(train: Any) -> Any:
        return models.load_model(given.model, len(train.class_names), train.x[:4], weights=given.weights)

    said = f"python -m caml_core {command} {' '.join(argv)}"
    how = {"size": given.size, "seed": given.seed, "command": said}
    found = audit.audit_path(given.path, make if given.model else None, given.out, **how)
    print(audit.verdict(found))
    if command == "ask":
        rows = ask.queue(found.pictures[1].y, found.logits, found.slices, given.n, seed=given.seed)
        print(f"fill in the column `a` of {ask.write_folder(given.out, found.pictures[1], rows)}, then run repair")
    if command == "repair":
        train, val, _ = found.features
        known = ask.read_answers(given.answers, val)
        done = mend.repair(train, known, found.head, val, seed=given.seed)
        mend.save_head(given.out / "head.safetensors", mend.unscaled(done.head, found.mean, found.std))
        print(mend.told(done, given.out / "head.safetensors"))


OWN: dict[str, Callable[[Sequence[str]], None]] = {
    name: functools.partial(go_own, name) for name in ("audit", "ask", "repair")
}
