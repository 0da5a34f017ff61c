"""`python -m caml_core audit`, `ask` and `repair`: three steps over the same folder and the same model."""

from __future__ import annotations

import functools
import time
from collections.abc import Callable, Sequence
from pathlib import Path

from caml_core.runs.commands import Flags


def own_flags(command: str, purpose: str) -> Flags:
    flags = Flags(command, purpose)
    flags.add_argument("path", type=Path, help="a folder or a csv of pictures, as in Bring your own data")
    flags.add_argument(
        "--model", help="timm:, torchvision: or open_clip:NAME, FILE.onnx, FILE.pt2 or package.module:function"
    )
    flags.add_argument("--weights", type=Path, metavar="FILE.safetensors", help="of timm:, torchvision: and open_clip:")
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
    from caml_core.dac import put_head
    from caml_core.data.folder import load
    from caml_core.own import ask, audit, models, report
    from caml_core.own import repair as mend
    from caml_core.runs.records import write_records
    from caml_core.store import save_checkpoint

    start, network = time.perf_counter(), None
    train, val, test = load(path=given.path, seed=given.seed, size=given.size, known=False)
    if given.model:
        network = models.load_model(given.model, len(train.class_names), train.x[:4], weights=given.weights)
    own_head = not (given.model or "").startswith("open_clip:")
    found = audit.audit((train, val, test), network, own_head=own_head, seed=given.seed)
    print(audit.verdict(found))
    if command == "audit":
        said = f"python -m caml_core {command} {' '.join(argv)}"
        record = audit.record_of(found, said, time.perf_counter() - start)
        write_records(given.out / "record.json", [record])
        report.page(found, record, given.out / "report.html")
    if command == "ask":
        rows = ask.queue(val.y, found.logits, found.slices, given.n, seed=given.seed)
        print(f"fill in the column `a` of {ask.write_folder(given.out, val, rows)}, then run repair")
    if command == "repair":
        train_z, val_z = found.features
        known = ask.read_answers(given.answers, val_z)
        done = mend.repair(train_z, known, found.head, val_z, seed=given.seed)
        file, network = given.out / "head.safetensors", found.network
        assert network is not None  # pictures always have one
        put_head(done.head, network, found.raw)
        save_checkpoint(file, network.head.state_dict(), {})
        print(mend.told(done, file))


OWN: dict[str, Callable[[Sequence[str]], None]] = {
    name: functools.partial(go_own, name) for name in ("audit", "ask", "repair")
}
