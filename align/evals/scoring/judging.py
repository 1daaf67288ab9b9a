"""From the judges that a suite names to judges in memory, and their verdicts on records.

A judge is an object with a name, called with records and giving one verdict per record, a JSON object (align/judges).
"""

import argparse
import hashlib
import sys
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from align.config import PACKAGE
from align.data.messages import is_begun
from align.errors import UserError
from align.evals.run import Task, spread
from align.evals.store import digest, folder_digest
from align.evals.suites import Benchmark
from align.judges.custom import load_judge
from align.judges.exact import EXACT_JUDGES, ExactJudge
from align.judges.guard import LlamaGuard
from align.judges.refusal import RefusalJudge
from align.judges.toxicity import ToxicityJudge
from align.models import read_any_config, resolve_model
from align.parallel import World, compute_dtype
from align.tiny.judge import Rules

Judge = Callable[[list[dict]], list[dict]]
TEXT = ("judges/thinking.py", "judges/degenerate.py")  # what every judge takes for the text of a response


@dataclass(frozen=True)
class JudgeSpec:
    """A judge that is not yet in memory. id is a hash of what its verdicts depend on."""

    name: str
    id: str
    load: Callable[[], Judge]

    def key(self, task: Task) -> str:
        """A hash of what the verdicts on a task's records depend on."""
        return digest(task.key, self.id)


def judge_specs(benchmarks: Sequence[Benchmark], options: argparse.Namespace, world: World) -> list[JudgeSpec]:
    """Every judge that the benchmarks name, in order. Raises UserError for one that cannot be found."""
    names = dict.fromkeys(name for benchmark in benchmarks for name in benchmark.judges)
    return [judge_spec(name, benchmarks, options, world) for name in names]


def judge_spec(name: str, benchmarks: Sequence[Benchmark], options: argparse.Namespace, world: World) -> JudgeSpec:
    if name == "refusal":
        return JudgeSpec(name, source_digest("judges/refusal*.py", *TEXT), RefusalJudge)
    if name == "rules":
        return JudgeSpec(name, source_digest(*TEXT, "tiny/*.py"), Rules)
    if name in EXACT_JUDGES:
        return JudgeSpec(name, source_digest("judges/exact.py", "judges/numbers.py", *TEXT), lambda: ExactJudge(name))
    if name in ("guard", "toxicity"):
        path = getattr(options, name)
        suites = ", ".join(dict.fromkeys(b.suite for b in benchmarks if name in b.judges))
        if not path:
            what = {
                "guard": "--guard DIR, a Llama Guard 3 checkpoint, or --judge NAME for another judge of safety",
                "toxicity": "--toxicity DIR, a BERT or RoBERTa classifier of toxicity",
            }
            raise UserError(f"--suite {suites} is judged by {name}; give {what[name]}")
        folder = resolve_model(path)
        read_any_config(folder)  # now: a folder that is no model should not be found out after hours of generation
        dtype = compute_dtype(options.dtype, world.device)
        kind: type[LlamaGuard] | type[ToxicityJudge] = LlamaGuard if name == "guard" else ToxicityJudge
        extra: dict[str, Any] = {} if name == "guard" else {"label": options.toxicity_label or None}
        return JudgeSpec(
            name,
            digest(folder_digest(folder), source_digest(f"judges/{name}.py", *TEXT), str(dtype), extra),
            lambda: kind(folder, dtype=dtype, device=world.device, batch_size=options.batch_size, **extra),
        )
    if ":" in name:
        judge = load_judge(name)
        return JudgeSpec(name, digest(name, module_digest(name), source_digest(*TEXT)), lambda: judge)
    known = ["guard", "refusal", "toxicity", *EXACT_JUDGES]
    raise UserError(f"judge {name}: there is no such judge; there are {', '.join(known)} and your own MODULE:FUNCTION")


def source_digest(*patterns: str) -> str:
    """A hash of modules of this package: a judge whose source has changed judges again."""
    files = sorted(file for pattern in patterns for file in PACKAGE.glob(pattern))
    return hashlib.sha256(b"".join(file.read_bytes() for file in files)).hexdigest()


def module_digest(name: str) -> str:
    """A hash of the module of module:function; the hash of nothing for one without a file, such as a built-in."""
    file = getattr(sys.modules[name.partition(":")[0]], "__file__", None)
    return hashlib.sha256(Path(file).read_bytes() if file else b"").hexdigest()


def whole(record: dict) -> dict:
    """The record as a judge reads it: a response that was begun for the model has that beginning."""
    if not is_begun(record.get("prompt", "")):
        return record
    *asked, begun = record["prompt"]
    return record | {"prompt": asked, "response": begun["content"] + record["response"]}


def judge_records(judge: Judge, records: list[dict], world: World) -> list[dict]:
    """A verdict for each record, and {} for one that failed and has no response. Each process judges its share."""
    judged = [whole(record) for record in records if "error" not in record]
    verdicts = iter(spread(judged, judge, world))
    return [{} if "error" in record else next(verdicts) for record in records]
