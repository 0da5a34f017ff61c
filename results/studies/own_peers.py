"""The search for slices beside cleanlab's Datalab and k-means, on the same heads: results/own_peers.json

pip install 'cleanlab[datalab]'; python results/studies/own_peers.py birdscapes dominoes madlibs

Datalab's check for an underperforming group, as it comes, on all labelled examples: clusters of features by DBSCAN, the
one with the worst self-confidence. As a control, the 100 highest losses. Purity: how much of what a way calls worst is
minority; found: examples in it.
"""

from __future__ import annotations

import sys
import time
from collections.abc import Callable
from importlib.metadata import version
from pathlib import Path
from typing import Any

import torch
from torch import Tensor
from torch.nn.functional import cross_entropy

from caml_core.groups import GroupDataset
from caml_core.last_layer import erm_head
from caml_core.own.slices import find_slices
from caml_core.runs.records import provenance, write_records
from results.studies.own_search import FAIR, RHO, SEEDS, by_k_means, features, purity


def by_datalab(val: GroupDataset, logits: Tensor) -> Tensor:
    """Rows of the group that Datalab calls underperforming, if any."""
    from cleanlab import Datalab  # type: ignore[import-not-found]

    lab = Datalab({"y": val.y.numpy()}, label_name="y", verbosity=0)
    lab.find_issues(
        pred_probs=logits.softmax(dim=1).numpy(), features=val.x.numpy(), issue_types={"underperforming_group": {}}
    )
    found = lab.get_issues("underperforming_group")["is_underperforming_group_issue"]
    return torch.from_numpy(found.to_numpy()).nonzero().flatten()


def one(name: str, seed: int) -> list[dict[str, Any]]:
    train, val, _ = features(name, RHO[name][0], seed, FAIR)
    logits = erm_head(train, val, seed=seed).logits(val.x).double()
    none = torch.empty(0, dtype=torch.long)
    ways: dict[str, Callable[[], Tensor]] = {
        "slices": lambda: next((one.rows for one in find_slices(val.x, val.y, logits, seed=seed)), none),
        "k-means": lambda: by_k_means(val, logits.argmax(dim=1) != val.y, seed),
        "datalab": lambda: by_datalab(val, logits),
        "highest losses": lambda: cross_entropy(logits, val.y, reduction="none").topk(100).indices,
    }
    records = []
    for way, look in ways.items():
        start = time.perf_counter()
        rows = look()
        seconds = time.perf_counter() - start
        metrics = {"found": float(len(rows)), "seconds": seconds}
        if len(rows):
            metrics["purity"] = purity(val, rows)
        records.append({
            "method": way,
            "dataset": name,
            "seed": seed,
            "config": {"rho": RHO[name][0], "n_labelled": len(val), "cleanlab": version("cleanlab")},
            "metrics": {key: {"value": round(value, 2)} for key, value in metrics.items()},
            "provenance": provenance(torch.device("cpu"), seconds, f"python results/studies/own_peers.py {name}"),
        })  # fmt: skip
    return records


if __name__ == "__main__":
    found = [record for name in sys.argv[1:] or list(RHO) for seed in SEEDS[True] for record in one(name, seed)]
    write_records(Path(__file__).parent.parent / "own_peers.json", found)
