"""Keys and values with room to grow: a new token is written into its place, and those before it are not copied anew."""

from __future__ import annotations

from typing import Any

import torch
from transformers import DynamicCache, PretrainedConfig
from transformers.cache_utils import DynamicLayer

ROOM = 32  # tokens that a layer is made longer by than it must be


class RoomyLayer(DynamicLayer):
    """transformers' growing layer; `keys` and `values` [B, heads, T, width] are views of longer buffers."""

    keys: torch.Tensor
    values: torch.Tensor
    _held: tuple[torch.Tensor, torch.Tensor]

    def update(
        self, key_states: torch.Tensor, value_states: torch.Tensor, *args: Any, **kwargs: Any
    ) -> tuple[torch.Tensor, torch.Tensor]:
        """Append the new tokens' keys and values; gives all of them."""
        before = self.get_seq_length()
        after = before + key_states.shape[-2]
        if not before:
            self.lazy_initialization(key_states, value_states)
        if not before or after > self._held[0].shape[-2]:
            self._held = longer(self.keys, key_states, ROOM), longer(self.values, value_states, ROOM)
        for buffer, new in zip(self._held, (key_states, value_states), strict=True):
            buffer[:, :, before:after] = new
        self.keys, self.values = (buffer[:, :, :after] for buffer in self._held)
        return self.keys, self.values

    def batch_select_indices(self, indices: torch.Tensor) -> None:
        """Keep these rows."""
        length = self.get_seq_length()
        if length:
            self._held = self._held[0][indices], self._held[1][indices]
            self.keys, self.values = (buffer[:, :, :length] for buffer in self._held)


def longer(old: torch.Tensor, new: torch.Tensor, room: int) -> torch.Tensor:
    """A buffer for both and `room` tokens more, filled with the old; an empty old one has no shape yet."""
    before = old.shape[-2] if old.numel() else 0
    buffer = new.new_empty(*new.shape[:2], before + new.shape[2] + room, new.shape[3])
    if before:
        buffer[:, :, :before] = old
    return buffer


def new_cache(config: PretrainedConfig) -> DynamicCache:
    """An empty cache for a model; layers that keep more than all keys and values stay as transformers has them."""
    cache = DynamicCache(config=config)
    cache.layers = [RoomyLayer() if type(layer) is DynamicLayer else layer for layer in cache.layers]
    return cache
