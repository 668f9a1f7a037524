"""A pretended CUDA device: tensors report `cuda:0` and are computed on the CPU.

Within `pretended_cuda()`, `.to("cuda")` and `device="cuda"` return tensors that Python sees on
`cuda:0`. PyTorch's C++ code still sees CPU tensors, so autograd, optimisers and views work as
usual, in any build of PyTorch.

What CUDA would refuse raises `Refused`: operands on two devices, a CPU generator, `numpy()`, a
non-blocking copy that is read too early. A `Log` records every wait of the host and every operator
that would launch a kernel, with the line of the project that caused it. Values are real and can be
compared with the CPU's.

The device does not model time, streams or precision: autocast follows the CPU's list of operators,
and a kernel is an ATen operator on the CPU's path; CUDA may launch more or fewer.
"""

from tests.support.pretended_cuda.device import pretended_cuda
from tests.support.pretended_cuda.log import Log, Refused, counting
from tests.support.pretended_cuda.tensor import PretendedTensor

__all__ = ["Log", "PretendedTensor", "Refused", "counting", "pretended_cuda"]
