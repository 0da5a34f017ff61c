"""A second device without hardware, to test on any machine that code puts its tensors where it says.

`DEVICE` is a device of its own for PyTorch, and computes on the CPU: each of its tensors wraps one of the CPU. Results
are therefore the CPU's to the last bits, while forgotten `.to(device)`s raise as they would on a GPU:

- an operation on tensors of both devices raises, except for copies, for numbers (tensors without dimension) of the CPU,
  and for rows of this device picked by indices of the CPU;
- a random draw for this device from a generator of the CPU raises;
- `numpy()` is not to be had.

What it cannot show is what code does for CUDA only: mixed precision, pinned memory, how much is free; and speed.

    with second_device():
        train(network.to(DEVICE), ...)
"""

from __future__ import annotations

import contextlib
from collections.abc import Callable, Iterator, Sequence
from typing import Any

import torch
from torch import Tensor
from torch.overrides import TorchFunctionMode
from torch.utils import backend_registration
from torch.utils._python_dispatch import TorchDispatchMode

NAME = "elsewhere"
COPIES = {"aten::copy_", "aten::_to_copy"}
PICKS = {"aten::index", "aten::index_put", "aten::index_put_", "aten::_index_put_impl_"}


class _Backend(backend_registration._DummyBackendModule):
    """What `torch.elsewhere` offers: the random state, which is the CPU's."""

    def get_rng_state(self, device: Any = None) -> Tensor:
        return torch.get_rng_state()

    def set_rng_state(self, state: Tensor, device: Any = None) -> None:
        torch.set_rng_state(state)


backend_registration._setup_privateuseone_for_python_backend(NAME, backend_module=_Backend())
DEVICE = torch.device(NAME, 0)


class Elsewhere(torch.Tensor):
    """A tensor of `DEVICE`; `here` has its numbers."""

    here: Tensor
    __torch_function__ = torch._C._disabled_torch_function_impl  # type: ignore[assignment]

    @staticmethod
    def __new__(cls, here: Tensor) -> Elsewhere:
        new = torch.Tensor._make_wrapper_subclass(  # type: ignore[attr-defined]
            cls, here.size(), strides=here.stride(), storage_offset=here.storage_offset(), dtype=here.dtype,
            layout=here.layout, device=DEVICE,
        )  # fmt: skip
        new.here = here
        return new

    def __repr__(self, **_: Any) -> str:  # type: ignore[override]
        return f"Elsewhere({self.here})"

    @classmethod
    def __torch_dispatch__(cls, op: Any, types: Any, args: Sequence[Any] = (), kwargs: Any = None) -> Any:  # type: ignore[override]
        return _compute(op, args, kwargs or {})


def _is_there(device: Any) -> bool:
    return device is not None and torch.device(device).type == NAME


def _each(value: Any, change: Callable[[Any], Any]) -> Any:
    """`value` with everything in its lists and tuples changed."""
    if isinstance(value, list | tuple):
        return type(value)([_each(part, change) for part in value])
    return change(value)


def _compute(op: Any, args: Sequence[Any], kwargs: dict[str, Any]) -> Any:
    """Do an operation on the CPU and say that its results are where its inputs were, or where `device=` asks for."""
    there: list[Elsewhere] = []
    here: list[Tensor] = []

    def unwrap(value: Any) -> Any:
        if isinstance(value, Elsewhere):
            there.append(value)
            return value.here
        if isinstance(value, Tensor):
            here.append(value)
        return value

    cpu_args, cpu_kwargs = _each(tuple(args), unwrap), {key: _each(value, unwrap) for key, value in kwargs.items()}
    device = kwargs.get("device")
    goes_there = bool(there) if device is None else _is_there(device)
    if not there and not goes_there:
        return op(*args, **kwargs)
    name = op._schema.name
    _refuse_mixing(name, args, bool(there), here)
    generator = kwargs.get("generator")
    if goes_there and generator is not None and generator.device.type == "cpu":
        raise RuntimeError(f"{name}: a generator of the cpu draws for {NAME}")
    if device is not None:
        cpu_kwargs["device"] = torch.device("cpu")
    known = {id(t.here): t for t in there}  # an operation in place gives back the tensor that it was given

    def wrap(value: Any) -> Any:
        if not isinstance(value, Tensor):
            return value
        return known[id(value)] if id(value) in known else Elsewhere(value)

    results = op(*cpu_args, **cpu_kwargs)
    return _each(results, wrap) if goes_there else results


def _refuse_mixing(name: str, args: Sequence[Any], any_there: bool, here: list[Tensor]) -> None:
    shaped = [tuple(t.shape) for t in here if t.dim() > 0]
    if not any_there or not shaped or name in COPIES:
        return
    picked = name in PICKS and isinstance(args[0], Elsewhere)
    if picked and not any(isinstance(value, Tensor) and not isinstance(value, Elsewhere) for value in args[2:]):
        return
    raise RuntimeError(f"{name}: tensors on {NAME} meet tensors on the cpu of shape {shaped}")


class _Operations(TorchDispatchMode):
    """Catches what makes a tensor of the device out of none, too, such as `torch.zeros(2, device=DEVICE)`."""

    def __torch_dispatch__(self, op: Any, types: Any, args: Sequence[Any] = (), kwargs: Any = None) -> Any:
        return _compute(op, args, kwargs or {})


class _Functions(TorchFunctionMode):
    """What copies past the dispatcher: `torch.tensor([...], device=DEVICE)` and `tolist()`, each done in two steps."""

    def __torch_function__(self, f: Callable[..., Any], types: Any, args: Any = (), kwargs: Any = None) -> Any:
        kwargs = dict(kwargs or {})
        if f is Tensor.tolist and isinstance(args[0], Elsewhere):
            return args[0].here.tolist()
        if f in (torch.tensor, torch.as_tensor) and _is_there(kwargs.get("device")):
            if isinstance(args[0], Elsewhere):
                return args[0].to(dtype=kwargs.get("dtype"))
            needs = kwargs.pop("requires_grad", False)
            return f(*args, **{**kwargs, "device": "cpu"}).to(DEVICE).requires_grad_(needs)
        return f(*args, **kwargs)


@contextlib.contextmanager
def second_device() -> Iterator[None]:
    """Within, tensors of `DEVICE` can be made and computed with."""
    with _Functions(), _Operations():
        yield
