"""lm-eval's tasks on models of this project, in process, beyond the suites here. Needs pip install '.[lm-eval]'.

    python -m align.evals.lm_eval --model align --model_args pretrained=DIR --tasks arc_easy --batch_size 8
    lm_eval.simple_evaluate(model=AlignLM("DIR", batch_size=8), tasks=["arc_easy"])

The first makes the model known as "align" and hands over to lm_eval's command line, with all of its flags.
Ids, truncation and the empty context are treated as by lm_eval's model "hf", so that scores compare with published
ones. One difference: where a tokenizer adds a BOS, "hf" also scores that BOS in loglikelihood_rolling; "align" does not.
"""

import json
import logging
import os
import sys
from collections import defaultdict
from typing import Any

import torch
from tqdm import tqdm

from align import command
from align.data import load_tokenizer
from align.data.tokenizer import check_fits
from align.errors import UserError
from align.generate import FAILURES, Settings, stream
from align.models import load_model, resolve_model
from align.parallel import compute_dtype

try:
    from lm_eval.__main__ import cli_evaluate
    from lm_eval.api.model import TemplateLM
    from lm_eval.api.registry import register_model
    from lm_eval.models.utils import normalize_gen_kwargs
    from lm_eval.utils import get_rolling_token_windows, make_disjoint_window
except ModuleNotFoundError as error:
    missing = f"this needs lm-eval, but there is no module {error.name}: pip install '.[lm-eval]'"
    if __name__ == "__main__":
        print(f"error: {missing}", file=sys.stderr)
        sys.exit(2)
    raise UserError(missing) from None

log = logging.getLogger("lm_eval.align")
DTYPES = ("auto", "float32", "bfloat16", "float16")
# where neither configuration nor tokenizer names one, as in lm_eval
CONTEXT = 2048
# positions whose full logits exist at a time, to find the likeliest token
SLICE = 256


@register_model("align")
class AlignLM(TemplateLM):
    """A model folder (or hub id) for lm_eval.

    pretrained, dtype (one of DTYPES; auto: bfloat16 on GPUs, else float32), max_length (tokens; default: the model's
    context) and max_gen_toks (new tokens where a task does not say) come from --model_args, device and batch_size from
    --device and --batch_size. A CUDA device where there is none means the CPU: lm_eval asks for cuda:0 by
    default. Samples are seeded by torch's seed, which --seed sets. Raises UserError for arguments it does not know.
    """

    def __init__(
        self,
        pretrained: str,
        dtype: str = "auto",
        device: str | None = None,
        batch_size: int | str = 1,
        max_length: int | None = None,
        max_gen_toks: int = 256,
        **unknown: Any,
    ):
        super().__init__()
        if unknown:
            known = "pretrained, dtype, max_length, max_gen_toks"
            raise UserError(f"--model_args {', '.join(unknown)}: model align does not have it; it has {known}")
        if dtype not in DTYPES:
            raise UserError(f"--model_args dtype={dtype}: must be one of {', '.join(DTYPES)}")
        if not str(batch_size).isdigit() or int(batch_size) < 1:
            raise UserError(f"--batch_size {batch_size}: model align takes a positive number")
        if int(os.environ.get("WORLD_SIZE", "1")) > 1:
            raise UserError("model align runs in one process: start it with python, not with torchrun")
        gpu = torch.cuda.is_available() and device != "cpu"
        self._device = torch.device(device or "cuda") if gpu else torch.device("cpu")
        folder = resolve_model(pretrained)
        self.pretrained, self.batch_size, self.max_gen_toks = pretrained, int(batch_size), int(max_gen_toks)
        self.model = load_model(folder, compute_dtype(dtype, self._device), self._device)
        self.tokenizer = load_tokenizer(folder)
        check_fits(self.tokenizer, self.model.config.vocab_size, str(folder))
        context = self.model.config.raw.get("max_position_embeddings") or self.tokenizer.model_max_length or CONTEXT
        self.max_length = int(max_length or context)

    @property
    def eot_token_id(self) -> int:
        return self.tokenizer.eos_id

    @property
    def prefix_token_id(self) -> int:
        """What precedes a text without context: BOS, also where prompts get none, else EOS."""
        bos = self.tokenizer.chat_template.special_tokens.get("bos_token")
        known = None if bos is None else self.tokenizer.backend.token_to_id(bos)
        return self.tokenizer.eos_id if known is None else known

    def tok_encode(self, string: str, add_special_tokens: bool | None = None, **kwargs: Any) -> list[int]:
        ids = self.tokenizer.encode(string)
        return ids if add_special_tokens is False else self.tokenizer.with_bos(ids)

    @torch.no_grad()
    def _loglikelihood_tokens(
        self, requests: list, disable_tqdm: bool = False, **kwargs: Any
    ) -> list[tuple[float, bool]]:
        """Of (texts, context ids, continuation ids) each: Σ log p(continuation), and whether greedy decoding would write it.

        A context that is too long loses its oldest tokens. The head runs on the continuations alone.
        """
        # what the model reads -> the requests it serves: the one-letter choices of a question share one
        readers = defaultdict(list)
        for i, (_, context, continuation) in enumerate(requests):
            if not 0 < len(continuation) <= self.max_length:
                raise UserError(
                    f"a continuation of {len(continuation)} tokens cannot be scored: {self.pretrained} reads 1 to "
                    f"{self.max_length}; choose another task, or another max_length in --model_args"
                )
            readers[tuple((context + continuation)[-(self.max_length + 1) : -1])].append(i)
        self._report_cut(sum(len(context + text) > self.max_length + 1 for _, context, text in requests))
        found: list[tuple[float, bool]] = [(0.0, False)] * len(requests)
        inputs = sorted(readers, key=len, reverse=True)
        with tqdm(total=len(requests), disable=disable_tqdm, desc="log-likelihoods") as progress:
            for start in range(0, len(inputs), self.batch_size):
                batch = inputs[start : start + self.batch_size]
                asked = [(row, i) for row, ids in enumerate(batch) for i in readers[ids]]
                scores = self._score(batch, [(row, requests[i][2]) for row, i in asked])
                for (_, i), found[i] in zip(asked, scores, strict=True):
                    # lm_eval's cache, where --use_cache asks for one; a window of a longer text has no text to be cached by
                    if requests[i][0] is not None:
                        self.cache_hook.add_partial("loglikelihood", requests[i][0], found[i])
                progress.update(len(asked))
        return found

    def _score(self, batch: list[tuple[int, ...]], endings: list[tuple[int, list[int]]]) -> list[tuple[float, bool]]:
        """(Σ log p, whether all of it is greedy) of each (row, continuation at its end). Longest rows come first."""
        rows = [row for row, targets in endings for _ in targets]
        columns = [len(batch[row]) - n for row, targets in endings for n in range(len(targets), 0, -1)]
        wanted = torch.tensor([token for _, targets in endings for token in targets], device=self._device)  # (n,)
        # padding on the right is never attended to
        padded = [[*ids, *[0] * (len(batch[0]) - len(ids))] for ids in batch]
        hidden = self.model.hidden(torch.tensor(padded, device=self._device))[rows, columns]  # (n, D)
        logp = self.model.lm_head(hidden, wanted).logp.double()  # (n,)
        if not logp.isfinite().all():
            raise UserError(f"{self.pretrained}: the model's log-probabilities are non-finite")
        best = torch.cat([self.model.lm_head(part).argmax(dim=-1) for part in hidden.split(SLICE)])  # (n,)
        sizes = [len(targets) for _, targets in endings]
        parts = zip(logp.cpu().split(sizes), (best == wanted).cpu().split(sizes), strict=True)
        return [(float(logps.sum()), bool(hits.all())) for logps, hits in parts]

    def _report_cut(self, count: int) -> None:
        if count:
            log.warning("%d of the contexts do not fit in %d tokens and lose their beginnings", count, self.max_length)

    def loglikelihood_rolling(self, requests: list, disable_tqdm: bool = False) -> list[float]:
        """log p of each whole text, in windows of the model's context, each token predicted once."""
        windows, owners = [], []
        for i, request in enumerate(requests):
            ids = self.tok_encode(request.args[0], add_special_tokens=False)
            rolling = get_rolling_token_windows(ids, self.prefix_token_id, self.max_length, context_len=1)
            parts = [(None, *make_disjoint_window(window)) for window in rolling]
            windows += parts
            owners += [i] * len(parts)
        totals = [0.0] * len(requests)
        for i, (logp, _) in zip(owners, self._loglikelihood_tokens(windows, disable_tqdm), strict=True):
            totals[i] += logp
        for request, total in zip(requests, totals, strict=True):
            self.cache_hook.add_partial("loglikelihood_rolling", request.args, total)
        return totals

    def generate_until(self, requests: list, disable_tqdm: bool = False) -> list[str]:
        """What the model writes after each context, up to the first of the request's `until` texts."""
        alike = defaultdict(list)  # requests that differ only in their context
        for i, request in enumerate(requests):
            alike[json.dumps(request.args[1], sort_keys=True)].append(i)
        jobs = [(members, self._settings(requests[members[0]].args[1])) for members in alike.values()]
        responses = [""] * len(requests)
        with tqdm(total=len(requests), disable=disable_tqdm, desc="responses") as progress:
            for members, settings in jobs:
                room = self.max_length - settings.max_new_tokens
                prompts = [self.tok_encode(requests[i].args[0]) or [self.prefix_token_id] for i in members]
                self._report_cut(sum(len(ids) > room for ids in prompts))
                for done in stream(self.model, [ids[-room:] for ids in prompts], settings):
                    if done.finish in FAILURES:
                        raise UserError(f"{self.pretrained}: {FAILURES[done.finish]}")
                    i = members[done.index]
                    responses[i] = done.text or ""
                    self.cache_hook.add_partial("generate_until", requests[i].args, done.text)
                    progress.update()
        return responses

    def _settings(self, gen_kwargs: dict) -> Settings:
        """How lm_eval wants a response written."""
        kwargs = normalize_gen_kwargs(
            gen_kwargs, self.max_gen_toks
        )  # one name for each argument; greedy: temperature 0
        new_tokens, until = kwargs.pop("max_gen_toks"), [text for text in kwargs.pop("until") if text]
        if not 0 < new_tokens < self.max_length:
            raise UserError(
                f"max_gen_toks {new_tokens}: must be at least 1, and leave room for a prompt in the {self.max_length} "
                f"tokens that {self.pretrained} reads; set --gen_kwargs max_gen_toks=N"
            )
        del kwargs["do_sample"]
        if kwargs.get("num_beams") == 1:
            del kwargs["num_beams"]
        if unknown := kwargs.keys() - {"temperature", "top_p", "top_k"}:
            raise UserError(
                f"generation argument {', '.join(sorted(unknown))}: model align does not have it; it has until, "
                "max_gen_toks, do_sample, temperature, top_p and top_k"
            )
        # an `until` that is a special token ends a response as a token: decoding leaves it out
        special = [text for text in until if self.tokenizer.special_text.fullmatch(text)]
        ends = {i for text in special if (i := self.tokenizer.backend.token_to_id(text)) is not None}
        try:
            return Settings(
                new_tokens,
                eos_ids=sorted(self.tokenizer.eos_ids | ends),
                seed=torch.initial_seed(),
                batch_size=self.batch_size,
                stop=until,
                decode=self.tokenizer.decode,
                context=self.max_length,
                **kwargs,
            )
        except (ValueError, TypeError) as error:
            raise UserError(f"generation arguments: {error}") from None

    @property
    def tokenizer_name(self) -> str:
        return self.tokenizer.folder.replace("/", "__")

    def chat_template(self, chat_template: bool | str = False) -> str | None:
        """The source of the template, for lm_eval's records."""
        return self.tokenizer.chat_template.source if chat_template else None

    def apply_chat_template(self, chat_history: list[dict[str, str]], add_generation_prompt: bool = True) -> str:
        """The messages as one text; without add_generation_prompt, up to the end of the last one, to be continued."""
        text = self.tokenizer.render(chat_history, add_generation_prompt)
        if add_generation_prompt:
            return text
        begun = chat_history[-1]["content"].lstrip()
        if begun not in text:  # a template may trim
            begun = begun.rstrip()
        return text[: text.rindex(begun) + len(begun)]

    def get_model_info(self) -> dict:
        """For lm_eval's results."""
        parameters = self.model.parameters()
        return {
            "model_path": self.pretrained,
            "model_num_parameters": sum(p.numel() for p in parameters),
            "model_dtype": str(self.model.embedding.weight.dtype),
        }


def main(argv: list[str]) -> int:
    """lm_eval's command line, which reads it by itself, with this project's errors as one line each and exit status 2."""
    try:
        cli_evaluate()
    except UserError as error:
        print(f"error: {error}", file=sys.stderr)
        return 2
    return 0


if __name__ == "__main__":
    command.run(main)
