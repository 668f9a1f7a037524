"""A CUDA device that is not there: tensors that report `cuda:0` and are computed on the CPU.

`pretended_cuda()` makes one. Within it, `.to("cuda")` and `device="cuda"` give tensors that Python
sees on `cuda:0`. torch's C++ still sees CPU tensors, so autograd, optimisers and views work as
ever, in any build of torch.

What a CUDA device would refuse raises `Refused`: operands on two devices, a generator of the CPU,
`numpy()`, a copy that is read before it has arrived. What would make the host wait for the device,
and every operator that would launch a kernel, goes to a `Log` with the line of the project that
asked for it. Values are real, so they can be compared with the CPU's.

It does not model time, streams or precision: autocast follows the CPU's list of operators, and a
kernel is an operator of ATen on the CPU's path, of which CUDA may need more or fewer.
"""

from tests.support.pretended_cuda.device import pretended_cuda
from tests.support.pretended_cuda.log import Log, counting
from tests.support.pretended_cuda.refusal import Refused
from tests.support.pretended_cuda.tensor import PretendedTensor

__all__ = ["Log", "PretendedTensor", "Refused", "counting", "pretended_cuda"]
