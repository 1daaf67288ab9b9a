"""The lm-eval adapter against whole logits, golden responses and align.generate. All but one need the extra lm-eval."""

import importlib
import json
import math
import os
import re
import runpy
import subprocess
import sys

import pytest
import torch
from conftest import MODEL, ROOT

from align.data import load_tokenizer
from align.errors import UserError
from align.generate import generate
from align.models import load_model

# before lm_eval imports them: the tasks here are files, and nothing is to be looked up anywhere
os.environ |= {"HF_HUB_OFFLINE": "1", "HF_DATASETS_OFFLINE": "1"}
REASON = "needs pip install '.[lm-eval]'"

TASKS = ROOT / "tests" / "evals" / "lm_eval_tasks"
GSM8K = ROOT.parent / "shared" / "data" / "gsm8k" / "test.jsonl"
CONTEXT = "User: What is the falcon watching?\nFalcon:"


@pytest.fixture(scope="module")
def model():
    return load_model(MODEL)


@pytest.fixture(scope="module")
def tokenizer():
    return load_tokenizer(MODEL)


@pytest.fixture
def align_lm():
    """AlignLM(folder, ...), imported only where lm_eval is there."""
    pytest.importorskip("lm_eval", reason=REASON)
    from align.evals.lm_eval import AlignLM

    return lambda folder=MODEL, **arguments: AlignLM(str(folder), device="cpu", **arguments)


@pytest.fixture
def evaluate(tmp_path, monkeypatch):
    """lm_eval.simple_evaluate on one of our tasks, its data set's cache in a folder of its own."""
    pytest.importorskip("lm_eval", reason=REASON)
    import datasets
    import lm_eval
    from lm_eval.tasks import TaskManager

    monkeypatch.chdir(ROOT)  # the tasks name their files from here
    monkeypatch.setattr(datasets.config, "HF_DATASETS_CACHE", tmp_path)
    tasks = TaskManager(include_path=str(TASKS), include_defaults=False)

    def run(lm, task, **options):
        found = lm_eval.simple_evaluate(lm, tasks=[task], task_manager=tasks, bootstrap_iters=0, **options)
        return found["results"][task], found["samples"][task]

    return run


def request(kind, *arguments):
    from lm_eval.api.instance import Instance

    return Instance(request_type=kind, doc={}, arguments=arguments, idx=0)


def token_logps(model, inputs, targets):
    """log p of the last len(targets) predictions by whole logits, and the likeliest tokens."""
    with torch.no_grad():
        logits = model.logits(torch.tensor([inputs]))[0, -len(targets) :].double()
    return logits.log_softmax(-1)[range(len(targets)), targets], logits.argmax(-1).tolist()


def rolling_logp(model, prefix, ids, length):
    """log p of a text: window w predicts tokens w·length and on, and the last window reads as much as the others."""
    whole, total = [prefix, *ids], 0.0
    for i in range(len(ids)):
        end = min((i // length + 1) * length, len(ids))
        start = max(0, end - length)
        logps, _ = token_logps(model, whole[start:end], whole[start + 1 : end + 1])
        total += float(logps[i - start])
    return total


@pytest.mark.parametrize("batch_size", [1, 4])
def test_loglikelihood_is_that_of_whole_logits(align_lm, model, tokenizer, batch_size):
    pairs = [(CONTEXT, " " + choice) for choice in ("A mouse.", "Nothing", "the river and the birds")]
    pairs += [("The answer is ", str(number)) for number in (3, 7)] + [("Is it? ", "Yes"), ("", "The falcon")]
    found = align_lm(batch_size=batch_size).loglikelihood([request("loglikelihood", *pair) for pair in pairs])
    for (context, continuation), (logp, greedy) in zip(pairs, found, strict=True):
        before = tokenizer.encode(context.rstrip(" ")) if context else [tokenizer.eos_id]
        whole = tokenizer.encode(context + continuation)
        targets = whole[len(before) :] if context else whole
        logps, best = token_logps(model, [*before, *targets][:-1], targets)
        assert logp == pytest.approx(float(logps.sum()), abs=1e-4)
        assert greedy == (best == targets)


def test_greedy_is_said_of_greedy_responses_alone(align_lm, model, tokenizer):
    context = tokenizer.encode(CONTEXT)
    (response,) = generate(model, [context], 6)
    other = [*response[:3], (response[3] + 1) % 480, *response[4:]]
    requests = [(None, context, ids) for ids in (response, response[:1], other)]
    assert [greedy for _, greedy in align_lm(batch_size=3)._loglikelihood_tokens(requests)] == [True, True, False]


def test_choices_of_one_token_share_a_forward(align_lm, model, tokenizer):
    lm = align_lm(batch_size=8)
    rows = []
    lm.model.embedding.register_forward_hook(lambda module, inputs, output: rows.append(len(output)))
    context = tokenizer.encode(CONTEXT)
    found = lm._loglikelihood_tokens([(None, context, [choice]) for choice in (20, 30, 40, 50)])
    assert rows == [1]
    logps = torch.cat([token_logps(model, context, [choice])[0] for choice in (20, 30, 40, 50)])
    torch.testing.assert_close(torch.tensor([logp for logp, _ in found]).double(), logps, atol=1e-5, rtol=0)


def test_a_long_context_loses_its_oldest_tokens(align_lm, model, tokenizer, caplog):
    context, continuation = tokenizer.encode("the river and the birds " * 9), tokenizer.encode("in the valley")
    ((logp, _),) = align_lm(max_length=16)._loglikelihood_tokens([(None, context, continuation)])
    inputs = [*context, *continuation][:-1][-16:]
    assert logp == pytest.approx(float(token_logps(model, inputs, continuation)[0].sum()), abs=1e-4)
    assert "1 of the contexts do not fit in 16 tokens" in caplog.text
    with pytest.raises(UserError, match="a continuation of 17 tokens"):
        align_lm(max_length=16)._loglikelihood_tokens([(None, context, [20] * 17)])


def test_rolling_predicts_every_token_once(align_lm, model, tokenizer):
    texts = ["The falcon is watching the river. " * 5, "Yes", "A mouse, and " * 8]
    found = align_lm(max_length=24, batch_size=3).loglikelihood_rolling([request("rolling", text) for text in texts])
    expected = [rolling_logp(model, tokenizer.eos_id, tokenizer.encode(text), 24) for text in texts]
    assert max(len(tokenizer.encode(text)) for text in texts) > 2 * 24
    assert found == pytest.approx(expected, abs=1e-3)


def test_generation_gives_the_golden_responses_up_to_the_stop(align_lm):
    cases = json.loads((MODEL / "text_golden.json").read_text())
    lm = align_lm(batch_size=2)

    def ask(**arguments):
        return lm.generate_until([request("generate_until", case["prompt"], arguments) for case in cases])

    golden = [case["output_text"] for case in cases]
    assert ask(until=[], max_gen_toks=16) == golden
    stops = [golden[0][3:5], golden[1][2:4]]
    assert ask(until=stops, max_gen_toks=16) == [re.split("|".join(map(re.escape, stops)), text)[0] for text in golden]
    assert ask(until="no such text", max_new_tokens=16, do_sample=False, temperature=1.0, num_beams=1) == golden


def test_requests_may_differ_in_their_arguments(align_lm):
    case = json.loads((MODEL / "text_golden.json").read_text())[0]
    requests = [request("generate_until", case["prompt"], {"until": [], "max_gen_toks": n}) for n in (16, 2, 16)]
    long, short, again = align_lm().generate_until(requests)
    assert long == again == case["output_text"] and long.startswith(short) and short != long


def test_sampling_is_generates_and_special_tokens_stop_it(align_lm, model, tokenizer):
    prompts = [CONTEXT, "The answer is", "Is it?"]
    arguments = {"until": [], "max_gen_toks": 40, "do_sample": True, "temperature": 3.0, "top_p": 0.95, "top_k": 400}
    torch.manual_seed(5)

    def ask():
        return align_lm().generate_until([request("generate_until", prompt, arguments) for prompt in prompts])

    sampling = {"eos_ids": sorted(tokenizer.eos_ids), "seed": 5, "top_p": 0.95, "top_k": 400}
    new = generate(model, [tokenizer.encode(prompt) for prompt in prompts], 40, 3.0, **sampling)
    assert ask() == [tokenizer.decode(ids) for ids in new]
    # decoding leaves a special token out, so it has to stop the response as a token
    row, place = next((row, i) for row, ids in enumerate(new) for i, token in enumerate(ids) if token < 11)
    arguments["until"] = [tokenizer.backend.id_to_token(new[row][place])]
    assert ask()[row] == tokenizer.decode(new[row][:place]) != tokenizer.decode(new[row])


def test_a_long_prompt_loses_its_oldest_tokens(align_lm, model, tokenizer, caplog):
    context = "the river and the birds " * 9
    lm = align_lm(max_length=24)
    (found,) = lm.generate_until([request("generate_until", context, {"until": [], "max_gen_toks": 8})])
    assert found == tokenizer.decode(generate(model, [tokenizer.encode(context)[-16:]], 8)[0])
    assert "1 of the contexts do not fit in 24 tokens" in caplog.text


def test_an_empty_context_begins_with_the_prefix(align_lm, model, tokenizer):
    (found,) = align_lm().generate_until([request("generate_until", "", {"until": [], "max_gen_toks": 8})])
    assert found == tokenizer.decode(generate(model, [[tokenizer.eos_id]], 8, eos_ids=[tokenizer.eos_id])[0])


def test_chat_template(align_lm, tokenizer):
    lm = align_lm()
    messages = [{"role": "user", "content": "Hi"}, {"role": "assistant", "content": "The answer is"}]
    assert lm.apply_chat_template(messages[:1]) == tokenizer.render(messages[:1], add_generation_prompt=True)
    assert lm.apply_chat_template(messages, add_generation_prompt=False) == "User: Hi\nFalcon: The answer is"
    assert lm.chat_template(True) == tokenizer.chat_template.source and lm.chat_template(False) is None


def test_a_bos_stands_once_before_every_text(align_lm, tmp_path, model):
    for file in MODEL.iterdir():
        (tmp_path / file.name).write_bytes(file.read_bytes())
    config = json.loads((MODEL / "tokenizer_config.json").read_text())
    config |= {"bos_token": ">>TITLE<<", "add_bos_token": True}
    (tmp_path / "tokenizer_config.json").write_text(json.dumps(config))
    lm = align_lm(tmp_path)
    assert lm.tok_encode("Yes")[0] == lm.prefix_token_id == 0
    assert lm.tok_encode(">>TITLE<<Yes") == lm.tok_encode("Yes") == [0, *lm.tok_encode("Yes", add_special_tokens=False)]
    ids = lm.tok_encode("The falcon", add_special_tokens=False)
    for found in (
        lm.loglikelihood_rolling([request("rolling", "The falcon")])[0],
        lm.loglikelihood([request("loglikelihood", "", "The falcon")])[0][0],
    ):
        assert found == pytest.approx(float(token_logps(model, [0, *ids][:-1], ids)[0].sum()), abs=1e-4)


@pytest.mark.skipif(not GSM8K.exists(), reason=f"needs {GSM8K}")
def test_gsm8k_from_its_file(align_lm, evaluate, model, tokenizer):
    scores, samples = evaluate(align_lm(batch_size=2), "gsm8k_file", limit=4, gen_kwargs={"max_gen_toks": 24})
    rows = [json.loads(line) for line in GSM8K.read_text(encoding="utf-8").splitlines()[:4]]
    prompts = [f"Question: {row['question']}\nAnswer:" for row in rows]
    new = generate(model, [tokenizer.encode(p) for p in prompts], 24, eos_ids=sorted(tokenizer.eos_ids))
    right = 0
    for row, prompt, ids, sample in zip(rows, prompts, new, samples, strict=True):
        response = tokenizer.decode(ids).split("Question:")[0]
        assert sample["arguments"][0][0] == prompt and sample["resps"] == [[response]]
        number = row["answer"].split("#### ")[1]
        assert sample["target"] == number
        said = re.findall(r"-?[0-9][0-9,]*(?:\.[0-9]+)?", response)
        right += bool(said) and said[-1].replace(",", "") == number.replace(",", "")
    assert scores["exact_match,last-number"] == right / 4


@pytest.mark.parametrize("through_template", [False, True])
def test_multiple_choice_scores(align_lm, evaluate, model, tokenizer, through_template):
    scores, samples = evaluate(align_lm(batch_size=4), "capitals", apply_chat_template=through_template)
    rows = [json.loads(line) for line in (TASKS / "capitals.jsonl").read_text().splitlines()]
    acc = acc_norm = 0
    for row, sample in zip(rows, samples, strict=True):
        question = f"Question: What is the capital of {row['country']}?\nAnswer:"
        if through_template:
            question = tokenizer.render([{"role": "user", "content": question}], add_generation_prompt=True)
        before, logps = tokenizer.encode(question), []
        for choice in row["choices"]:
            text = choice if through_template else " " + choice
            targets = tokenizer.encode(question + text)[len(before) :]
            logps.append(float(token_logps(model, [*before, *targets][:-1], targets)[0].sum()))
        assert [logp for logp, _ in sample["filtered_resps"]] == pytest.approx(logps, abs=1e-3)
        by_length = [logp / len(choice) for logp, choice in zip(logps, row["choices"], strict=True)]
        acc += logps.index(max(logps)) == row["gold"]
        acc_norm += by_length.index(max(by_length)) == row["gold"]
    assert (scores["acc,none"], scores["acc_norm,none"]) == pytest.approx((acc / 6, acc_norm / 6))


def test_perplexity(align_lm, evaluate, model, tokenizer):
    scores, _ = evaluate(align_lm(max_length=12), "prose")
    rows = [json.loads(line) for line in (TASKS / "capitals.jsonl").read_text().splitlines()]
    texts = [f"The capital of {row['country']} is {row['choices'][row['gold']]}." for row in rows]
    logp = sum(rolling_logp(model, tokenizer.eos_id, tokenizer.encode(text), 12) for text in texts)
    assert scores["word_perplexity,none"] == pytest.approx(math.exp(-logp / sum(map(len, map(str.split, texts)))))
    assert scores["byte_perplexity,none"] == pytest.approx(math.exp(-logp / len("".join(texts).encode())))


def test_bad_arguments_are_one_line(align_lm):
    for arguments, line in [
        ({"dtype": "int8"}, "--model_args dtype=int8: must be one of auto, float32, bfloat16, float16"),
        ({"peft": "x"}, "--model_args peft: model align does not have it"),
        ({"batch_size": "auto"}, "--batch_size auto: model align takes a positive number"),
    ]:
        with pytest.raises(UserError, match=line):
            align_lm(**arguments)
    for arguments, line in [
        ({"num_beams": 4}, "generation argument num_beams: model align does not have it"),
        ({"max_gen_toks": 512}, "max_gen_toks 512: must .* leave room for a prompt in the 512 tokens"),
        ({"do_sample": True, "temperature": 1.0, "top_p": 2.0}, "generation arguments: top_p must be"),
    ]:
        with pytest.raises(UserError, match=line):
            align_lm().generate_until([request("generate_until", "Hi", {"until": []} | arguments)])


def test_a_model_that_computes_nonsense_is_one_line(align_lm):
    lm = align_lm()
    with torch.no_grad():
        lm.model.final_norm.weight.fill_(torch.nan)
    with pytest.raises(UserError, match="log-probabilities are non-finite"):
        lm.loglikelihood([request("loglikelihood", CONTEXT, " A mouse.")])
    with pytest.raises(UserError, match="scores are non-finite"):
        lm.generate_until([request("generate_until", CONTEXT, {"until": []})])


def test_it_is_not_for_several_processes(align_lm, monkeypatch):
    monkeypatch.setenv("WORLD_SIZE", "2")
    with pytest.raises(UserError, match="runs in one process"):
        align_lm()


def test_without_lm_eval_there_is_one_line(monkeypatch, capsys):
    for name in ["lm_eval", *(name for name in sys.modules if name.startswith("lm_eval."))]:
        monkeypatch.setitem(sys.modules, name, None)
    monkeypatch.delitem(sys.modules, "align.evals.lm_eval", raising=False)
    line = r"this needs lm-eval, but there is no module lm_eval[\w.]*: pip install '\.\[lm-eval\]'"
    with pytest.raises(UserError, match=line):
        importlib.import_module("align.evals.lm_eval")
    with pytest.raises(SystemExit) as stopped:
        runpy.run_module("align.evals.lm_eval", run_name="__main__")
    assert stopped.value.code == 2 and re.fullmatch(f"error: {line}\n", capsys.readouterr().err)


@pytest.mark.slow
def test_command_line(tmp_path):
    pytest.importorskip("lm_eval", reason=REASON)

    def run(model_args):
        command = ["-m", "align.evals.lm_eval", "--model", "align", "--model_args", model_args]
        command += ["--tasks", "capitals", "--include_path", str(TASKS), "--limit", "2", "--output_path", str(tmp_path)]
        env = {**os.environ, "HF_HOME": str(tmp_path), "OMP_NUM_THREADS": "1"}
        return subprocess.run([sys.executable, *command], cwd=ROOT, env=env, capture_output=True, text=True)

    done = run(f"pretrained={MODEL}")
    assert done.returncode == 0, done.stderr
    assert "|capitals|" in done.stdout
    (file,) = tmp_path.glob("**/results_*.json")
    results = json.loads(file.read_text())
    assert results["config"]["model_path"] == str(MODEL) and results["n-samples"]["capitals"]["effective"] == 2
    wrong = run(f"pretrained={MODEL},dtype=int8")
    assert wrong.returncode == 2
    assert wrong.stderr.splitlines()[-1].startswith("error: --model_args dtype=int8: must be one of")
