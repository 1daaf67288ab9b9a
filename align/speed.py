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
    """The metrics of a step's cost, by the names of metrics.jsonl.

    tokens: of the batch's rows, a prompt counted with each of its responses and padding not at all, so that it does not
    depend on how a step is computed, and compares with other trainers. mfu: the FLOPs that the method needs
    (align.plan.flops) over what the ranks' devices can do in that time; left out where their peak is not known.
    """

    def __init__(self, setup: Setup, data: Dataset, world: World):
        self.setup, self.data, self.world = setup, data, world
        self.peak = peak_flops(world.device, setup.dtype)

    def __call__(self, indices: Sequence[int], seconds: float) -> dict[str, float]:
        tokens = self.data.n_tokens(indices)
        metrics = {"tokens": tokens, "tokens_per_second": tokens / seconds}
        if self.peak:
            flops = model_flops(self.setup, Work.of([self.data.groups[i] for i in indices], self.data.share))
            metrics["mfu"] = flops / seconds / (self.peak * self.world.size)
        return {**metrics, "seconds": seconds, "peak_memory_mib": peak_memory_mib(self.world.device)}
