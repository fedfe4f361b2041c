"""How many bytes of tensors are alive at once: the peak of memory of a run, on any device, the meta device too."""

import weakref

import torch
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils._pytree import tree_iter
from transformers import AttentionInterface


class LiveBytes(TorchDispatchMode):
    """Counts the storages of all tensors that are made inside, and of those given as `held`, until they are freed.

    Those of `model`'s weights and buffers are left out.
    """

    def __init__(self, model: torch.nn.Module, held=()):
        super().__init__()
        self.live = self.peak = 0
        self.weights = {id(tensor.untyped_storage()) for tensor in (*model.parameters(), *model.buffers())}
        self.storages = {}
        for tensor in held:
            self._add(tensor)

    def __torch_dispatch__(self, func, types, args=(), kwargs=None):
        result = func(*args, **(kwargs or {}))
        for value in tree_iter(result):
            if isinstance(value, torch.Tensor):
                self._add(value)
        return result

    def _add(self, tensor: torch.Tensor):
        storage = tensor.untyped_storage()
        key = id(storage)
        if key not in self.storages and key not in self.weights:
            size = storage.nbytes()
            self.live += size
            self.peak = max(self.peak, self.live)
            self.storages[key] = weakref.finalize(storage, self._remove, key, size)

    def _remove(self, key: int, size: int):
        self.live -= size
        del self.storages[key]


def attention_without_scores(module, query, key, value, attention_mask, **kwargs):
    """The shape and the memory of a fused attention kernel, which never holds the (L, L) scores."""
    return torch.empty_like(query).transpose(1, 2).contiguous(), None


AttentionInterface.register("without_scores", attention_without_scores)
