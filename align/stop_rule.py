"""train.stop_when: a rule on the held-out measurements that ends a run, such as "eval/rewards/accuracy >= 0.98"."""

import operator
import re
from collections.abc import Iterable, Mapping
from dataclasses import dataclass

from align.errors import UserError, nearest
from align.sections import DataSection, TrainSection

COMPARE = {"<": operator.lt, "<=": operator.le, ">": operator.gt, ">=": operator.ge}
RULE = re.compile(r"\s*eval/(\S+?)\s*(<=|>=|<|>)\s*([-+]?(?:[0-9]+\.?[0-9]*|\.[0-9]+)(?:[eE][-+]?[0-9]+)?)\s*")


@dataclass(frozen=True)
class StopRule:
    metric: str  # without eval/
    compare: str  # of COMPARE
    bound: float

    def met(self, metrics: Mapping[str, float]) -> bool:
        """Whether measurements fulfil it; those of a step without any do not."""
        name = f"eval/{self.metric}"
        return name in metrics and COMPARE[self.compare](metrics[name], self.bound)

    def check(self, known: Iterable[str]) -> None:
        """Raise UserError where the metric is none of those that will be measured."""
        known = list(known)
        if self.metric not in known:
            near = nearest(self.metric, known)
            raise UserError(
                f"train.stop_when: eval/{self.metric} is not measured here{near} There are: {', '.join(known)}"
            )


def read_rule(train: TrainSection, data: DataSection) -> StopRule | None:
    """The rule of a configuration, None where it has none. Raises UserError for one that could never be looked at."""
    if not train.stop_when:
        return None
    match = RULE.fullmatch(train.stop_when)
    if match is None:
        raise UserError(f'train.stop_when {train.stop_when!r}: write it as "eval/METRIC < NUMBER", with <, <=, > or >=')
    if not data.eval_path:
        raise UserError("train.stop_when is a rule on held-out rows; name their file with --data.eval_path FILE")
    if not train.eval_every:
        raise UserError("train.stop_when is looked at when held-out rows are measured; set --train.eval_every STEPS")
    return StopRule(match[1], match[2], float(match[3]))
