"""The training step of steps.py by others, where they are installed: TRL's DPOTrainer, and a plain transformers loop.

The same model, pairs, loss (TRL's nca_pair), cached reference, float32 parameters with bfloat16 by autocast, fused AdamW.
"""

import importlib.util
import statistics
import time
from pathlib import Path
from typing import Any

import torch
import torch.nn.functional as F

from align import command
from benchmarks.gpu import models
from benchmarks.gpu.part import CUDA, DEVICE, DRY, ROWS, Part, milliseconds, peak_gib, synchronise

part = Part("peers")
PROMPTS, LENGTH, BETA = models.PROMPTS, models.LENGTH, 0.01
STEPS = 3 if DRY else 8


def load(folder: Path) -> Any:
    from transformers import AutoModelForCausalLM

    model = AutoModelForCausalLM.from_pretrained(folder, dtype=torch.float32, attn_implementation="sdpa").to(DEVICE)
    model.config.use_cache = False
    return model.train()


def rates(ms: float, peak: float | None) -> dict[str, float | None]:
    return {"ms": ms, "tokens_s": 1e3 * 2 * PROMPTS * (LENGTH - 1) / ms, "peak_gib": peak}


def plain_loop(name: str, folder: Path, checkpointing: bool) -> None:
    model = load(folder)
    if checkpointing:
        model.gradient_checkpointing_enable()
    optimizer = torch.optim.AdamW(model.parameters(), lr=5e-7, fused=CUDA)
    ids = models.pair_rows(model.config.vocab_size).to(DEVICE)  # (2 N, T)
    ref = torch.zeros(PROMPTS, 2, device=DEVICE)

    def step() -> None:
        with torch.autocast(DEVICE.type, torch.bfloat16, enabled=CUDA):
            logits = model(ids[:, :-1]).logits
        logp = F.log_softmax(logits.float(), dim=-1).gather(-1, ids[:, 1:, None])[..., 0]
        r = BETA * (logp[:, LENGTH // 2 - 1 :].sum(dim=1).view(PROMPTS, 2) - ref)
        (-F.logsigmoid(r[:, 0]) - 0.5 * F.logsigmoid(-r).sum(dim=1)).mean().backward()
        torch.nn.utils.clip_grad_norm_(model.parameters(), 1.0)
        optimizer.step()
        optimizer.zero_grad()

    step()
    peak, _ = peak_gib(step)
    part.row(name, **rates(milliseconds(step, rounds=4, warm=1), peak))


def trl(name: str, folder: Path, checkpointing: bool) -> None:
    from datasets import Dataset
    from transformers import AutoTokenizer, TrainerCallback
    from trl import DPOConfig, DPOTrainer

    tokenizer = AutoTokenizer.from_pretrained(folder)
    tokenizer.pad_token = tokenizer.pad_token or tokenizer.eos_token
    half = LENGTH // 2
    rows = [
        {"prompt_ids": a[:half], "chosen_ids": a[half:], "rejected_ids": b[half:]}
        for a, b in models.pair_rows(400).view(PROMPTS, 2, LENGTH).tolist()
    ]
    taken: list[float] = []

    class Clock(TrainerCallback):
        def on_step_begin(self, *args: Any, **kwargs: Any) -> None:
            synchronise()
            self.start = time.perf_counter()

        def on_step_end(self, *args: Any, **kwargs: Any) -> None:
            synchronise()
            taken.append(1e3 * (time.perf_counter() - self.start))
            if CUDA and len(taken) == 2:
                torch.cuda.reset_peak_memory_stats()

    class Encoded(DPOTrainer):
        def _prepare_dataset(self, dataset: Any, *args: Any, **kwargs: Any) -> Any:
            return dataset  # token ids already, of the lengths that steps.py has

    args = DPOConfig(
        output_dir=str(ROWS.parent / "trl"),
        per_device_train_batch_size=PROMPTS,
        max_steps=STEPS,
        loss_type=["nca_pair"],
        beta=BETA,
        max_length=LENGTH,
        learning_rate=5e-7,
        bf16=CUDA,
        use_cpu=not CUDA,
        gradient_checkpointing=checkpointing,
        precompute_ref_log_probs=True,
        precompute_ref_batch_size=PROMPTS,
        optim="adamw_torch_fused" if CUDA else "adamw_torch",
        report_to="none",
        save_strategy="no",
        disable_tqdm=True,
    )
    data = Dataset.from_list(rows * STEPS)
    trainer = Encoded(
        model=load(folder), args=args, train_dataset=data, processing_class=tokenizer, callbacks=[Clock()]
    )
    trainer.train()
    peak = torch.cuda.max_memory_allocated() / 2**30 if CUDA else None
    part.row(name, **rates(statistics.median(taken[2:]), peak), steps=len(taken))


def main(argv: list[str]) -> None:
    cases = {"transformers": ("transformers loop", plain_loop), "trl": ("TRL DPOTrainer", trl)}
    for package, (label, run) in cases.items():
        if not importlib.util.find_spec(package):
            part.row(label, skipped=f"{package} is not installed")
            continue
        folder = models.folder("1.3B")
        for checkpointing in (False, True):
            name = label + ", checkpointing" * checkpointing
            part.attempt(name, run, name, folder, checkpointing, need=12)


if __name__ == "__main__":
    command.run(main)
