"""What a step cost: tokens, time, memory, and how much of the machine it used."""

from collections.abc import Sequence

from align.data.batches import Dataset
from align.metrics import peak_memory_mib
from align.parallel import World
from align.plan.devices import peak_flops
from align.plan.flops import model_flops
from align.plan.setup import Setup
from align.plan.shape import Work


class Speed:
    """The metrics of a step's cost, by the names of metrics.jsonl, of all sources together.

    tokens: of the batches' rows, a prompt counted with each of its responses and padding not at all, so that it does not
    depend on how a step is computed, and compares with other trainers. mfu: the FLOPs that the method needs
    (align.plan.flops) over what the ranks' devices can do in that time; left out where their peak is not known.
    """

    def __init__(self, setups: Sequence[Setup], data: Sequence[Dataset], world: World):
        self.sources, self.world = list(zip(setups, data, strict=True)), world
        self.peak = peak_flops(world.device, setups[0].dtype)

    def __call__(self, batches: Sequence[Sequence[int]], seconds: float) -> dict[str, float]:
        """batches: the prompts of a step, of each source."""
        work = [(setup, data, indices) for (setup, data), indices in zip(self.sources, batches, strict=True)]
        tokens = sum(data.n_tokens(indices) for _, data, indices in work)
        metrics = {"tokens": tokens, "tokens_per_second": tokens / seconds}
        if self.peak:
            flops = sum(model_flops(s, Work.of([data.groups[i] for i in batch], data.share)) for s, data, batch in work)
            metrics["mfu"] = flops / seconds / (self.peak * self.world.size)
        return {**metrics, "seconds": seconds, "peak_memory_mib": peak_memory_mib(self.world.device)}
