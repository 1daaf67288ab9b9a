"""Watches which addresses each program of a kernel touches in Triton's interpreter."""

import numpy as np


class Addresses:
    """Every address that the interpreter loads from or stores to, and the tensors that each launch was given."""

    def __init__(self, monkeypatch):
        from triton.runtime import interpreter

        self.launches = []  # [{address: program that stored there}, {address allowed}, stray addresses]
        builder, call = interpreter.interpreter_builder, interpreter.GridExecutor.__call__
        load, store = builder.create_masked_load, builder.create_masked_store

        def extent(x):
            x = getattr(x, "base", x)
            steps = [np.arange(size) * stride for size, stride in zip(x.shape, x.stride(), strict=True)]
            offsets = sum(np.ix_(*steps)) if steps else np.zeros(1, int)
            return set((x.data_ptr() + x.element_size() * offsets).ravel().tolist())

        def launch(executor, *args, **kwargs):
            tensors = [x for x in args if hasattr(x, "data_ptr") or hasattr(x, "base")]
            self.launches.append(({}, set().union(*map(extent, tensors)), set()))
            return call(executor, *args, **kwargs)

        def watched_load(ptrs, mask, *rest):
            self.launches[-1][2].update(set(ptrs.data[mask.data].tolist()) - self.launches[-1][1])
            return load(ptrs, mask, *rest)

        def watched_store(ptrs, value, mask, *rest):
            written, allowed, stray = self.launches[-1]
            for address in np.broadcast_to(ptrs.data, mask.data.shape)[mask.data].tolist():
                owner = written.setdefault(address, builder.grid_idx)
                assert owner == builder.grid_idx, f"programs {owner} and {builder.grid_idx} both store to one address"
                if address not in allowed:
                    stray.add(address)
            return store(ptrs, value, mask, *rest)

        monkeypatch.setattr(interpreter.GridExecutor, "__call__", launch)
        monkeypatch.setattr(builder, "create_masked_load", watched_load)
        monkeypatch.setattr(builder, "create_masked_store", watched_store)
