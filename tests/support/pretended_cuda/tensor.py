"""PretendedTensor: reports `cuda:0` to Python and is a CPU tensor to PyTorch's C++ code."""

import threading
from typing import Any

import torch
from torch import Tensor

from tests.support.pretended_cuda.host_memory import arrive
from tests.support.pretended_cuda.log import Refused, note_kernel, note_wait, project_line

CUDA, CPU = torch.device("cuda", 0), torch.device("cpu")


class _Thread(threading.local):
    """Flags of one thread.

    Attributes:
        leaving: Python asked for a copy to the CPU. C++ asks for one too when it derives a tensor
            from a pretended one, which it takes for a CPU tensor; that one must stay.
        composing: a composite C++ function runs, which creates tensors on the device it sees.
    """

    leaving = False
    composing = False


thread = _Thread()


class PretendedTensor(Tensor):
    """A tensor on `cuda:0`; `inner` holds its values."""

    inner: Tensor  # type: ignore[assignment]
    __torch_function__ = torch._C._disabled_torch_function_impl  # type: ignore[assignment]

    @staticmethod
    def __new__(cls, inner: Tensor, requires_grad: bool = False) -> "PretendedTensor":
        made = Tensor._make_wrapper_subclass(
            cls,
            inner.size(),
            strides=inner.stride(),
            storage_offset=inner.storage_offset(),
            dtype=inner.dtype,
            layout=inner.layout,
            device=inner.device,
            requires_grad=requires_grad,
        )
        made.inner = inner
        return made

    device = property(lambda self: CUDA)
    is_cuda = property(lambda self: True)
    is_cpu = property(lambda self: False)

    def get_device(self) -> int:
        return 0

    def __repr__(self, *, tensor_contents: Any = None) -> str:  # type: ignore[override]
        return f"PretendedTensor({self.inner!r}, device='cuda:0')"

    # `nn.Module.to` swaps parameters whose class has these two methods.
    def __tensor_flatten__(self) -> tuple[list[str], None]:
        return ["inner"], None

    @staticmethod
    def __tensor_unflatten__(
        inner: dict[str, Tensor], meta: Any, size: Any, stride: Any
    ) -> "PretendedTensor":
        return PretendedTensor(inner["inner"])

    def data_ptr(self) -> int:
        return self.inner.data_ptr()

    def untyped_storage(self) -> torch.UntypedStorage:
        return self.inner.untyped_storage()

    def to(self, *args: Any, **kwargs: Any) -> Any:
        copy = kwargs.pop("copy", False)
        if args and isinstance(args[0], Tensor):
            device, dtype = args[0].device, args[0].dtype
            non_blocking = kwargs.get("non_blocking", False)
        else:
            device, dtype, non_blocking, _ = torch._C._nn._parse_to(*args, **kwargs)
        if device is None or device.type == "cuda":
            if dtype is None or dtype == self.dtype:
                return self.clone() if copy else self
            return torch.ops.aten._to_copy(self, dtype=dtype)
        thread.leaving = True
        try:
            found = torch.ops.aten._to_copy(self, device=CPU, non_blocking=non_blocking)
        finally:
            thread.leaving = False
        return found if dtype is None else found.to(dtype)

    def cpu(self, *args: Any, **kwargs: Any) -> Any:
        return self.to("cpu")

    def cuda(self, *args: Any, **kwargs: Any) -> Any:
        return self

    def numpy(self, *, force: bool = False) -> Any:
        if not force:
            raise Refused(f"can't convert a cuda:0 tensor to numpy, at {project_line()}")
        return self.cpu().numpy()

    def __array__(self, *args: Any, **kwargs: Any) -> Any:
        raise Refused(f"can't convert a cuda:0 tensor to numpy, at {project_line()}")

    def tolist(self) -> Any:
        note_wait("tolist")
        arrive()
        return self.inner.tolist()

    def quantile(self, *args: Any, **kwargs: Any) -> "PretendedTensor":
        # A composite whose parts C++ would create on the CPU.
        note_kernel("quantile", 8)
        return PretendedTensor(self.inner.detach().quantile(*args, **kwargs))

    def __deepcopy__(self, memo: dict[int, Any]) -> "PretendedTensor":
        if id(self) not in memo:
            made = PretendedTensor(self.inner.detach().clone(), requires_grad=self.requires_grad)
            if getattr(self, "_is_param", False):
                made._is_param = True
            memo[id(self)] = made
        return memo[id(self)]

    def __reduce_ex__(self, protocol: Any) -> Any:
        raise Refused(f"a cuda:0 tensor is pickled by torch.save alone, at {project_line()}")

    @classmethod
    def __torch_dispatch__(  # type: ignore[override]
        cls, func: Any, types: Any, args: Any = (), kwargs: Any = None
    ) -> Any:
        from tests.support.pretended_cuda.operators import run

        return run(func, args, kwargs or {})
