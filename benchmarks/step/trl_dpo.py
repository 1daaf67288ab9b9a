"""The same run by TRL's DPOTrainer: `PYTHON trl_dpo.py SETTINGS.json`, where PYTHON has trl and nothing of ours.

Its fastest documented settings for a CPU: no gradient checkpointing (on by default), no pinned memory, SDPA, and the
optimizer that it takes by itself. padding_free is not available there: TRL warns and pads. A step's time is what
its callbacks see from on_step_begin to on_step_end, so that collating a batch, which ours counts, is not in it.
"""

import json
import resource
import sys
import time
from pathlib import Path
from typing import Any

import torch
from datasets import Dataset
from transformers import AutoModelForCausalLM, AutoTokenizer, TrainerCallback, set_seed
from trl import DPOConfig, DPOTrainer


def resident_mib() -> float:
    """What this process holds now."""
    status = Path("/proc/self/status").read_text()
    return float(status.partition("VmRSS:")[2].split()[0]) / 2**10


class Watch(TrainerCallback):
    def __init__(self) -> None:
        self.seconds: list[float] = []
        self.logged: list[dict[str, float]] = []
        self.peak_mib = 0.0

    def on_step_begin(self, *args: Any, **kwargs: Any) -> None:
        self.began = time.perf_counter()

    def on_step_end(self, *args: Any, **kwargs: Any) -> None:
        self.seconds.append(time.perf_counter() - self.began)
        self.peak_mib = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 2**10

    def on_log(self, args: Any, state: Any, control: Any, logs: dict[str, float], **kwargs: Any) -> None:
        if "loss" in logs:
            self.logged.append(logs)


def main(settings: dict[str, Any]) -> None:
    baseline = resident_mib()
    set_seed(0)
    folder = Path(settings["folder"])
    model = AutoModelForCausalLM.from_pretrained(folder / "model", dtype=torch.float32, attn_implementation="sdpa")
    rows = [json.loads(line) for line in (folder / "trl.jsonl").read_text(encoding="utf-8").splitlines()]
    watch = Watch()
    config = DPOConfig(
        output_dir=settings["output"],
        per_device_train_batch_size=settings["micro_batch"],
        gradient_accumulation_steps=settings["batch"] // settings["micro_batch"],
        max_steps=settings["steps"],
        beta=settings["beta"],
        learning_rate=settings["lr"],
        adam_beta2=settings["beta2"],
        max_length=settings["max_length"],
        precompute_ref_log_probs=settings["reference"] == "cached",
        lr_scheduler_type="constant",
        warmup_steps=0,
        weight_decay=0.0,
        max_grad_norm=1.0,
        bf16=False,
        use_cpu=True,
        gradient_checkpointing=False,
        dataloader_pin_memory=False,
        train_sampling_strategy="sequential",
        logging_steps=1,
        logging_first_step=True,
        save_strategy="no",
        report_to="none",
        disable_tqdm=True,
    )
    DPOTrainer(
        model=model,
        args=config,
        train_dataset=Dataset.from_list(rows),
        processing_class=AutoTokenizer.from_pretrained(folder / "model"),
        callbacks=[watch],
    ).train()
    numbers = {key: [float(logs[key]) for logs in watch.logged] for key in ("loss", "logps/chosen")}
    result = {"baseline_mib": baseline, "peak_mib": watch.peak_mib, "seconds": watch.seconds, **numbers}
    Path(settings["result"]).write_text(json.dumps(result))


if __name__ == "__main__":
    main(json.loads(Path(sys.argv[1]).read_text()))
