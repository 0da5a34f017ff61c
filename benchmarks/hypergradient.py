"""What a hypergradient costs: by hand against autograd, alone and side by side, exact and approximate; and a whole fit.

python benchmarks/hypergradient.py [--device cuda] [--problems 16]

Prints, from one run: the adjoint against unrolled autograd for one problem (its hard set as wide as it comes); the cost
of one problem among B solved side by side, with a hard set for all and with B separate ones, against a Python loop of B
unrolled ones; the approximations against the adjoint; on CUDA the share of the memory floor, the time that reading the
hard set twice must take; the fit of `caml_core.hsfm` with the published Dominoes settings, for one seed and for B; and
the same hypergradient by the libraries torchopt and higher, where they are installed (`--libraries`: only this).
"""

from __future__ import annotations

import argparse
import functools
import importlib.metadata
import statistics
import time
from collections.abc import Callable

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from caml_core.device import device_name, pick_device
from caml_core.features import standardise
from caml_core.groups import GroupDataset
from caml_core.hsfm import hsfm
from caml_core.hsfm_settings import PUBLISHED, scaled
from caml_core.hypergradients import Problem
from caml_core.implicit import hypergradient

S, D, K, C, T, ALPHA = 32, 2048, 512, 2, 10, 1e-4  # Dominoes with a ResNet-50; K counts both classes
REPEATS, CALLS, FITS = 21, 5, 3
Jobs = dict[str, Callable[[], object]]


def problems(b: int, device: torch.device, *, shared: bool) -> Problem:
    """B random problems of the published size."""
    g = torch.Generator().manual_seed(0)
    hard = (K,) if shared else (b, K)
    parts = (
        torch.randn(b, S, D, generator=g),
        torch.randint(0, C, (b, S), generator=g),
        torch.randn(*hard, D, generator=g),
        torch.randint(0, C, hard, generator=g),
        0.02 * torch.randn(b, C, D, generator=g),
        torch.zeros(b, C),
    )
    return Problem(*(part.to(device) for part in parts))


def alone(problem: Problem, i: int = 0) -> Problem:
    """Problem i, without the dimension B."""
    hard, hard_y = problem.hard, problem.hard_y
    if hard.ndim == 3:
        hard, hard_y = hard[i], hard_y[i]
    return Problem(problem.support[i], problem.support_y[i], hard, hard_y, problem.weight[i], problem.bias[i])


def seconds(jobs: Jobs, device: torch.device, repeats: int = REPEATS, calls: int = CALLS) -> dict[str, float]:
    """Median time of a call of each job. They take turns, so that a busy moment hits all.

    In a turn a job is called once to fetch its data, then `calls` times by the clock: HSFM, too, asks hundreds of times
    in a row about one hard set. The first turn warms up.
    """
    wait = torch.cuda.synchronize if device.type == "cuda" else lambda: None
    taken: dict[str, list[float]] = {name: [] for name in jobs}
    for turn in range(repeats + 1):
        for name, job in jobs.items():
            if calls > 1:
                job()
            wait()
            start = time.perf_counter()
            for _ in range(calls):
                job()
            wait()
            if turn:
                taken[name].append((time.perf_counter() - start) / calls)
    return {name: statistics.median(times) for name, times in taken.items()}


def by_name(problem: Problem, how: str = "adjoint") -> Callable[[], object]:
    return lambda: hypergradient(problem, how, alpha=ALPHA, steps=T)  # type: ignore[arg-type]


def split(n: int, rho: float, seed: int, width: int = 1280) -> GroupDataset:
    """Random features, some of which say the label and more of which say the attribute."""
    g = torch.Generator().manual_seed(seed)
    y = torch.arange(n) % 2
    a = torch.where(torch.rand(n, generator=g) < rho, y, 1 - y)
    x = torch.randn(n, width, generator=g)
    x[:, : width // 8] += 0.4 * (2 * a - 1)[:, None]
    x[:, width // 8 : width // 4] += 0.2 * (2 * y - 1)[:, None]
    return GroupDataset(x, y, a, class_names=("0", "1"), attribute_names=("0", "1"))


def bandwidth(device: torch.device) -> float:
    """Bytes a second that a large copy reads and writes."""
    source = torch.ones(2**28, device=device)  # 1 GiB
    target = torch.empty_like(source)
    job: Jobs = {"copy": lambda: target.copy_(source)}
    return 2 * source.numel() * source.element_size() / seconds(job, device)["copy"]


def by_torchopt(problem: Problem) -> Tensor:
    """TorchOpt (Ren et al., arXiv 2211.06934): an optimiser whose steps autograd sees through."""
    import torchopt

    head, h = head_of(problem), problem.support.clone().requires_grad_()
    opt = torchopt.MetaSGD(head, lr=ALPHA)
    for _ in range(T):
        opt.step(F.cross_entropy(head(h), problem.support_y))
    return torch.autograd.grad(F.cross_entropy(head(problem.hard), problem.hard_y), h)[0]


def by_higher(problem: Problem) -> Tensor:
    """higher (Grefenstette et al., arXiv 1910.01727): a copy of the module that takes its weights as arguments."""
    import higher

    head, h = head_of(problem), problem.support.clone().requires_grad_()
    with higher.innerloop_ctx(head, torch.optim.SGD(head.parameters(), lr=ALPHA)) as (copy, opt):
        for _ in range(T):
            opt.step(F.cross_entropy(copy(h), problem.support_y))
        return torch.autograd.grad(F.cross_entropy(copy(problem.hard), problem.hard_y), h)[0]


def by_betty(problem: Problem) -> Tensor:
    import betty

    raise NotImplementedError(f"{betty.__name__} has no unrolled derivative (0.2.1), only implicit ones")


def head_of(problem: Problem) -> nn.Linear:
    c, d = problem.weight.shape
    head = nn.utils.skip_init(nn.Linear, d, c, device=problem.weight.device, dtype=problem.weight.dtype)
    head.load_state_dict({"weight": problem.weight, "bias": problem.bias})
    return head


def libraries(device: torch.device, width: int = 256, k: int = 64) -> None:
    """Agreement with the adjoint, and time, of each library that is installed, on a smaller problem in float64."""
    one = alone(problems(1, device, shared=True))
    hard, hard_y = one.hard[:k, :width].double(), one.hard_y[:k]
    weight, bias = one.weight[:, :width].double(), one.bias.double()
    single = Problem(one.support[:, :width].double(), one.support_y, hard, hard_y, weight, bias)
    print(f"libraries, S = {S}, D = {width}, K = {k}, C = {C}, T = {T}, float64, {device_name(device)}:")
    jobs: Jobs = {"adjoint": by_name(single), "unrolled": by_name(single, "unrolled")}
    exact = hypergradient(single, alpha=ALPHA, steps=T).gradient
    named = {"torchopt": by_torchopt, "higher": by_higher, "betty-ml": by_betty}
    for name, gradient in named.items():
        try:
            off = float((gradient(single) - exact).norm() / exact.norm())
        except (ImportError, NotImplementedError) as error:
            print(f"  {name:12} not run: {error}")
            continue
        print(f"  {name:12} {importlib.metadata.version(name)}, relative difference from the adjoint: {off:.1e}")
        jobs[name] = functools.partial(gradient, single)
    taken = seconds(jobs, device)
    for name, value in taken.items():
        print(f"  {name:12} {1000 * value:8.3f} ms, over the adjoint, ratio: {value / taken['adjoint']:.2f}")


def main() -> None:
    parser = argparse.ArgumentParser()
    parser.add_argument("--device", default="auto")
    parser.add_argument("--problems", type=int, default=16)
    parser.add_argument("--libraries", action="store_true", help="only the comparison with torchopt and higher")
    arguments = parser.parse_args()
    if arguments.libraries:
        return libraries(pick_device(arguments.device))
    device, b = pick_device(arguments.device), arguments.problems
    shared, separate = (problems(b, device, shared=kind) for kind in (True, False))
    single = alone(shared)
    singles = [alone(separate, i) for i in range(b)]

    jobs: Jobs = {
        "unrolled": by_name(single, "unrolled"),
        "adjoint": by_name(single),
        "first_order": by_name(single, "first_order"),
        "implicit": by_name(single, "implicit"),
        "neumann": by_name(single, "neumann"),
        "kfac": by_name(single, "kfac"),
    }
    print(f"S = {S}, D = {D:,}, K = {K}, C = {C}, T = {T}, float32, {device_name(device)}, torch {torch.__version__}")
    taken = seconds(jobs, device)
    print(f"median of {REPEATS} turns, one problem:")
    for name, value in taken.items():
        print(f"  {name:12} {1000 * value:8.3f} ms, over the adjoint, ratio: {value / taken['adjoint']:.2f}")
    print(f"unrolled / adjoint, ratio: {taken['unrolled'] / taken['adjoint']:.2f}")

    together: Jobs = {
        "a loop of unrolled": lambda: [hypergradient(one, "unrolled", alpha=ALPHA, steps=T) for one in singles],
        "a loop of adjoint": lambda: [hypergradient(one, alpha=ALPHA, steps=T) for one in singles],
        "one hard set": by_name(shared),
        "separate hard sets": by_name(separate),
    }
    many = seconds(together, device)
    print(f"{b} problems:")
    for name, value in many.items():
        print(f"  {name:24} {1000 * value / b:8.3f} ms a problem")
    for name in ("one hard set", "separate hard sets"):
        print(
            f"a loop of unrolled / adjoint side by side, {name}, ratio: {many['a loop of unrolled'] / many[name]:.2f}"
        )
        print(f"unrolled alone / a problem side by side, {name}, ratio: {taken['unrolled'] * b / many[name]:.2f}")

    if device.type == "cuda":
        rate = bandwidth(device)
        print(f"a large copy: {rate / 1e9:,.0f} GB/s")
        passes = {"one problem": (single, taken["adjoint"])}
        passes |= {"one hard set": (shared, many["one hard set"])}
        passes |= {"separate hard sets": (separate, many["separate hard sets"])}
        for name, (problem, value) in passes.items():
            floor = 2 * problem.hard.numel() * problem.hard.element_size() / rate
            print(f"memory floor of two passes / adjoint, {name}: {1e6 * floor:.1f} us, share: {floor / value:.3f}")

    train, val = standardise(split(8000, 0.9, 0), split(2000, 0.5, 1))
    weight = torch.randn(2, train.x.shape[1], generator=torch.Generator().manual_seed(0)) * 0.02
    settings = scaled(PUBLISHED["dominoes"], train.x)

    def fit(seeds: int) -> Callable[[], object]:
        return lambda: hsfm(train, val, weight, torch.zeros(2), settings, seeds=range(seeds), device=device)

    fits = seconds({"one": fit(1), "many": fit(b)}, device, FITS, calls=1)
    print(
        f"hsfm(), {settings.epochs} epochs of {settings.edits} edits, {train.x.shape[1]:,} features, {len(val):,} val:"
    )
    print(f"  1 seed: {fits['one']:.2f} s; {b} seeds: {fits['many']:.2f} s, {fits['many'] / b:.2f} s a seed")
    libraries(device)


if __name__ == "__main__":
    main()
