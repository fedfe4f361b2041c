"""How often a run waits for the device, counted on a CPU by the operations that would on a GPU."""

from contextlib import contextmanager

import torch
from torch.overrides import TorchFunctionMode
from torch.utils._python_dispatch import TorchDispatchMode

# reads a scalar, or makes a size that depends on values
READS = ("_local_scalar_dense", "nonzero", "masked_select", "unique", "is_nonzero", "item")
# copies to the host; on a CPU no operation of their own
COPIES = (torch.Tensor.tolist, torch.Tensor.numpy, torch.Tensor.cpu)


class _Operations(TorchDispatchMode):
    def __init__(self, reads):
        super().__init__()
        self.reads = reads

    def __torch_dispatch__(self, function, types, args=(), kwargs=None):
        name = function.overloadpacket.__name__
        indices = args[1] if name.startswith("index") and len(args) > 1 and isinstance(args[1], list | tuple) else ()
        if name.startswith(READS) or any(getattr(index, "dtype", None) == torch.bool for index in indices):
            self.reads.append(name)
        return function(*args, **(kwargs or {}))


class _Copies(TorchFunctionMode):
    def __init__(self, reads):
        super().__init__()
        self.reads = reads

    def __torch_function__(self, function, types, args=(), kwargs=None):
        if function in COPIES:
            self.reads.append(function.__name__)
        return function(*args, **(kwargs or {}))


@contextmanager
def host_reads():
    """The operations that waited, in order, by name."""
    reads: list[str] = []
    with _Operations(reads), _Copies(reads):
        yield reads
