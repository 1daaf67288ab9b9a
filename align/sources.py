"""What a run learns from: data.path, and any number of [sources.NAME], each a file under a loss of its own.

A source is the run's configuration with a few keys replaced (Config.each), so that data, loss, batches and reference are
made for it as they are for data.path, which is itself the first of them. Every step takes a global batch of each; each
loss is divided by its own source's prompts, so that none depends on what another has, and is multiplied by its weight.
data.path decides how many steps there are; the others go round.
"""

import hashlib
from pathlib import Path

import torch

from align import stopping
from align.config import Config
from align.data.batches import Dataset
from align.data.tokenizer import Tokenizer
from align.dataset import load_dataset
from align.losses import Loss
from align.metrics import StepSums, metric_names, step_metrics
from align.models import Decoder
from align.parallel import World
from align.reference import CachedReference, LiveReference, Reference, cache_file, cached_sums, load_frozen
from align.stop_rule import read_rule


class Source:
    """A file and how it is learnt from, and the step that it is in."""

    def __init__(self, config: Config, loss: Loss, data: Dataset):
        self.config, self.loss, self.data = config, loss, data
        self.reference: Reference | None = None
        self.totals: dict[str, float] = {}

    @property
    def name(self) -> str:
        """Empty: data.path."""
        return self.config.source

    @property
    def prefix(self) -> str:
        """Of what it is called beside others' of the same name: those of data.path have their plain names."""
        return f"{self.name}/" if self.name else ""

    @property
    def weight(self) -> float:
        return self.config.sources[self.name].weight if self.name else 1.0

    @property
    def projects(self) -> bool:
        """Whether the others' gradients are taken off the direction of its own; it is then the last one."""
        return self.name != "" and self.name == self.config.optim.project

    def begin(self, step: int, device: torch.device) -> None:
        self.indices = self.data.global_batch(step)
        self.sums, self.before = StepSums(device, at_reference=step == 0), self.loss.state()


class Sources(list[Source]):
    """All of a run's, that of data.path first: every rank has the same order."""

    @property
    def id(self) -> str:
        """A hash of all that the run learns from."""
        own, *others = self
        parts = [own.data.id, *(f"{source.name} {source.data.id}" for source in others)]
        return hashlib.sha256("\n".join(parts).encode()).hexdigest() if others else own.data.id

    @property
    def template(self) -> str | None:
        """The chat template that prompts went through, None if none of any source did."""
        return next((source.data.template for source in self if source.data.template), None)

    def end(self, world: World) -> dict[str, float]:
        """The step's means over each global batch, by their names in metrics.jsonl. The first's totals hold `stop`."""
        self[0].sums.add(stop=float(stopping.asked()))
        metrics: dict[str, float] = {}
        for source in self:
            source.totals = source.sums.reduce(world)
            metrics |= {source.prefix + name: value for name, value in step_metrics(source.totals).items()}
        return metrics

    def state(self) -> dict[str, float]:
        """The running statistics of the losses, for checkpoints."""
        return {source.prefix + key: value for source in self for key, value in source.loss.state().items()}

    def load_state(self, state: dict[str, float]) -> None:
        rest = dict(state)
        for source in reversed(self):  # data.path's has no prefix, and what is left
            own = [key for key in rest if key.startswith(source.prefix)]
            source.loss.load_state({key.removeprefix(source.prefix): rest.pop(key) for key in own})


def load_sources(config: Config, tokenizer: Tokenizer, world: World) -> Sources:
    """Read every file that a run learns from, and check it against its loss and the ranks. Raises UserError."""
    sources = Sources()
    for each in config.each():
        if sources:
            each.train.steps = sources[0].data.steps
        loss = each.loss.build()
        sources.append(Source(each, loss, load_dataset(each, loss, tokenizer, world)))
    if rule := read_rule(config.train, config.data):
        rule.check(metric_names(sources[0].loss, sources[0].data))
    return sources


def build_references(
    sources: Sources, model_folder: Path, model_id: str, policy: Decoder, world: World
) -> LiveReference | None:
    """Give each source the reference that its loss needs; all live ones are one, which is returned if there is any.

    model_id: of the folder. policy: what is about to be trained, before its first step or the checkpoint that it goes on
    from: the reference itself, which fills a cache. With adapters it is the reference for good, with these off. Raises
    Stopped where a signal asked for it.
    """
    compared = [source for source in sources if source.loss.needs_reference]
    live = None
    if watched := [source for source in compared if source.config.reference.mode != "cached"]:
        model = policy if watched[0].config.lora.rank else load_frozen(watched[0].config, model_folder, world)
        live = LiveReference(model, any(source.loss.needs_distributions for source in watched))
    for source in compared:
        if source in watched:
            source.reference = live
        else:
            file = cache_file(source.config, model_id, source.data, world)
            source.reference = CachedReference(cached_sums(file, policy, source.data, world))
    return live
