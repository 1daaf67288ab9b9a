"""The key/value cache of generation: what the model has read, allocated once, one row per prompt."""

import torch
from torch import Tensor


class KVCache:
    """Keys and values of the tokens read so far, so that generation computes each once.

    `rows` rows of `capacity` columns for every layer, allocated once. The rows in use are the first len(lengths); row b
    holds lengths[b] tokens from column 0 on, and behind them leftovers, masked until they are overwritten. A call
    of the model reads prompts, right-padded, into the rows behind those in use if it is the first or follows `enter`;
    any other appends its columns to all rows in use, each at its own length.

    lengths: (B,) of the prompts that enter first. rows: B if not given.
    """

    def __init__(self, lengths: Tensor, capacity: int, rows: int | None = None):
        self.rows, self.capacity = len(lengths) if rows is None else rows, capacity
        self.lengths = torch.empty(0, dtype=torch.long)  # on the CPU: finding a row must not wait for a GPU
        self.prefix = 0  # columns that all prompts have in common (`share`)
        self.columns = 0  # what the tokens being read attend to
        self.keys: list[Tensor] = []  # one (rows, kv_heads, capacity, d) per layer: no head is ever repeated
        self.values: list[Tensor] = []
        self.read = slice(0)  # the rows that take part in a call, and where in them its tokens go
        self.write: tuple[slice | Tensor, slice | Tensor] = (self.read, slice(0))
        self.enter(lengths)

    def enter(self, lengths: Tensor) -> None:
        """The next call reads prompts of these lengths (B,), the common prefix not counted."""
        self.entering = lengths.cpu()

    def share(self) -> None:
        """Make the content of the one row in use the prefix of every row, and free it. Prompts go on from there."""
        self.prefix, self.lengths = int(self.lengths), self.lengths[:0]
        for store in (*self.keys, *self.values):
            store[1:, :, : self.prefix] = store[:1, :, : self.prefix]

    def start(self, columns: int, device: torch.device) -> Tensor:
        """Prepare a call that reads this many columns; return their positions, (T,) for prompts, else (B, 1, T)."""
        used, here = len(self.lengths), torch.arange(columns)
        if len(self.entering):
            self.lengths, self.columns = torch.cat((self.lengths, self.prefix + self.entering)), self.prefix + columns
            self.entering = self.entering[:0]
            self.read = slice(used, len(self.lengths))
            self.write = (self.read, slice(self.prefix, self.columns))
            return (self.prefix + here).to(device)
        positions = (self.lengths[:, None] + here).to(device)  # (B, T)
        self.lengths = self.lengths + columns
        self.columns = int(self.lengths.max())
        self.read, self.write = slice(used), (torch.arange(used, device=device)[:, None], positions)
        return positions[:, None]

    def extend(self, layer: int, k: Tensor, v: Tensor) -> tuple[Tensor, Tensor]:
        """Store k, v (B, kv_heads, T, d); return what the new tokens attend to, (B, kv_heads, S, d)."""
        if layer == len(self.keys):
            for stores, new in ((self.keys, k), (self.values, v)):
                # zeros, not empty: unwritten columns are masked, but 0 * NaN would still be NaN
                stores.append(new.new_zeros(self.rows, new.shape[1], self.capacity, new.shape[3]))
        keys, values = self.keys[layer], self.values[layer]
        for store, new in ((keys, k), (values, v)):
            store.transpose(1, 2)[self.write] = new.transpose(1, 2)  # (B, T, kv_heads, d)
        return keys[self.read, :, : self.columns], values[self.read, :, : self.columns]

    def drop(self, row: int, non_finite: bool = False) -> None:
        """Free a row in use. The last one takes its place, so that those in use stay together.

        non_finite: the row holds non-finite numbers, which would reach the next prompt in spite of its mask.
        """
        last = len(self.lengths) - 1
        length = int(self.lengths[last])
        for store in (*self.keys, *self.values):
            if non_finite:
                store[row, :, self.prefix :] = 0
            if row < last:
                store[row, :, self.prefix : length] = store[last, :, self.prefix : length]
        self.lengths = torch.cat((self.lengths[:row], self.lengths[last:], self.lengths[row + 1 : last]))[:last]
