"""A user's loss: outside the tree by module:Class, inside it as a file and a line. docs/extending.md, carried out."""

import re
import shlex
import shutil
import subprocess
import sys
import tomllib
from pathlib import Path

import pytest
import torch
from loss_checks import check_loss, inputs
from test_training import tiny  # noqa: F401, a fixture

import train
from align.config import load_config
from align.errors import UserError
from align.files import to_toml
from align.losses import build_loss, loss_parameters
from align.losses.__main__ import main

ROOT = Path(__file__).resolve().parents[2]
WALK = (ROOT / "docs" / "extending.md").read_text(encoding="utf-8").split("\n## A loss\n")[1].split("\n## ")[0]
CODE, LINE = re.findall(r"^```python\n(.*?)^```", WALK, flags=re.MULTILINE | re.DOTALL)
COMMANDS = [
    command for block in re.findall(r"^```sh\n(.*?)^```", WALK, flags=re.M | re.S) for command in block.splitlines()
]
NAME = "squared_hinge:SquaredHinge"


@pytest.fixture
def here(tmp_path, monkeypatch):
    """A folder with squared_hinge.py, from which commands run."""
    (tmp_path / "squared_hinge.py").write_text(CODE, encoding="utf-8")
    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr(sys, "path", list(sys.path))
    yield tmp_path
    sys.modules.pop("squared_hinge", None)


def test_a_loss_outside_the_tree_is_a_loss_like_any_other(here, capsys):
    loss, x = build_loss(NAME, goal=2.0), inputs()
    z = 0.1 * (x.ratios[:, 0] - x.ratios[:, 1])
    torch.testing.assert_close(loss(x), (2 - z).clamp(min=0) ** 2, rtol=1e-14, atol=0)
    check_loss(NAME)
    assert loss_parameters(NAME) == {"beta": 0.1, "goal": 1.0}
    assert main([NAME]) == 0
    said = capsys.readouterr().out
    assert "Squared hinge" in said and "--loss.goal 1" in said and "dL/dℓ_w = -2 β" in said
    both = build_loss(f"{NAME}+sft", weights=[1.0, 0.5], **{f"{NAME}.goal": 2.0})
    torch.testing.assert_close(both(x), loss(x) + 0.5 * build_loss("sft")(x), rtol=1e-14, atol=0)


@pytest.mark.parametrize("name", [NAME, f"{NAME}+sft", f"nca+{NAME}"])
def test_its_parameters_go_through_flags_and_files(here, name):
    config = load_config(["--loss", name, f"--loss.{NAME}.goal", "2", "--loss.beta", "0.3"])
    goal = "goal" if name == NAME else f"{NAME}.goal"
    assert config.loss.parameters[goal] == 2.0 and ":" not in config.output
    (here / "run.toml").write_text(to_toml(config.to_dict()), encoding="utf-8")
    assert load_config(["--config", "run.toml"]).loss == config.loss
    (here / "table.toml").write_text(f'[loss]\nname = "{name}"\n[loss."{NAME}"]\ngoal = 2\n', encoding="utf-8")
    assert load_config(["--config", "table.toml", "--model", "m", "--data", "d"]).loss.parameters[goal] == 2.0
    # a table of a loss that does not run is not imported
    (here / "other.toml").write_text('[loss]\nname = "nca"\n[loss."nowhere:Loss"]\ngoal = 2\n', encoding="utf-8")
    assert load_config(["--config", "other.toml", "--model", "m", "--data", "d"]).loss.name == "nca"


BAD = {
    "nowhere:Loss": "no module nowhere in .* or installed",
    "squared_hinge:Nothing": "squared_hinge.py has no Nothing",
    "squared_hinge:torch": "is not a class made from align.losses.Loss",
    "squared_hinge.py:SquaredHinge": r"must be module:Class, as in my_losses:MyLoss \(without .py\)",
    "squared_hinge:": "must be module:Class",
    "broken:Loss": r"importing broken failed \(ZeroDivisionError: division by zero\); fix the module",
    "bad:NoCall": "it has no __call__",
    "bad:Undecorated": "put @dataclass above the class, or goal cannot be set",
    "bad:NoDefault": "parameter goal needs a default",
    "bad:Scalar": r"must return the loss of each prompt, \(N,\): for 2 prompts it returned \(\)",
    "bad:Fails": "it failed on two prompts: KeyError: 'nothing'",
    "bad:Kind": "responses must be one of 'one', 'pair'",
}
BAD_LOSSES = """
from dataclasses import dataclass
from align.losses import Loss
@dataclass
class NoCall(Loss): pass
class Undecorated(Loss):
    goal: float = 1.0
    def __call__(self, x): return x.logps[:, 0]
@dataclass
class NoDefault(Loss):
    goal: float
    def __call__(self, x): return x.logps[:, 0]
@dataclass
class Scalar(Loss):
    def __call__(self, x): return x.logps.mean()
@dataclass
class Fails(Loss):
    def __call__(self, x): return {}["nothing"]
@dataclass
class Kind(Loss):
    responses = "two"
    def __call__(self, x): return x.logps[:, 0]
"""


@pytest.mark.parametrize("spec", BAD)
def test_what_is_wrong_with_it_is_said_in_one_line(here, spec, capsys):
    (here / "broken.py").write_text("1 / 0\n")
    (here / "bad.py").write_text(BAD_LOSSES)
    with pytest.raises(UserError, match=BAD[spec]) as caught:
        load_config(["--loss", f"{spec}+sft"])
    assert f"loss {spec}: " in str(caught.value) and "\n" not in str(caught.value)
    assert main([spec]) == 2
    sys.modules.pop("bad", None)


@pytest.mark.slow
def test_the_walk_outside_the_tree(here, tiny, monkeypatch):  # noqa: F811
    """The commands of docs/extending.md, on the toy world; a resumed run finds the loss again."""
    monkeypatch.setenv("PYTHONPATH", str(ROOT))
    given = ["--model", str(tiny / "init"), "--data", str(tiny / "pairs.jsonl"), "--train.batch_size", "6"]
    assert len(COMMANDS) == 4
    for command in COMMANDS:
        program, *words = shlex.split(command)
        assert program == "python"
        words = [str(ROOT / word) if (ROOT / word).is_file() else word for word in words]
        words += given if str(ROOT / "train.py") in words else []
        subprocess.run([sys.executable, *words], check=True, timeout=300)
    assert tomllib.loads((here / "runs" / "sum" / "config.toml").read_text())["loss"][NAME]["goal"] == 1.0
    shutil.rmtree(here / "runs" / "sum" / "model")
    again = ["--loss", f"{NAME}+sft", "--loss.weights", "1,0.5", "--train.steps", "2", "--output", "runs/sum"]
    assert train.main([*again, *given, "--resume"]) == 0 and (here / "runs" / "sum" / "model").is_dir()


@pytest.mark.slow
def test_a_new_loss_is_a_file_and_a_line(tmp_path):
    """In a copy of the tree: the file, the line, and every test of losses and docs passes, some of them on the new loss."""
    tree = tmp_path / "tree"
    left_out = shutil.ignore_patterns(".git", ".venv", "runs", "*.egg-info", "__pycache__", ".*_cache")
    shutil.copytree(ROOT, tree, ignore=left_out)
    (tree / "align" / "losses" / "squared_hinge.py").write_text(CODE, encoding="utf-8")
    table = tree / "align" / "losses" / "__init__.py"
    before, after = table.read_text(encoding="utf-8").split("    # sums with a name of their own\n")
    table.write_text(f"{before}    # sums with a name of their own\n{LINE}{after}", encoding="utf-8")
    # of the tests of each loss, the new one's; of those that look at all losses together, every one
    files = [f"tests/losses/test_{name}.py" for name in ("losses", "golden", "table", "training")]
    files += ["tests/test_docs.py"]
    chosen = "squared_hinge or test_golden or test_table or test_docs"
    run = [sys.executable, "-m", "pytest", "-v", "-x", "-m", "not slow", "-k", chosen, *files]
    done = subprocess.run(run, cwd=tree, capture_output=True, text=True, timeout=900)
    assert done.returncode == 0, done.stdout[-3000:] + done.stderr[-3000:]
    passed = [line for line in done.stdout.splitlines() if "squared_hinge" in line and "PASSED" in line]
    assert len(passed) >= 8, passed  # autograd, differences, float32, the golden table, the tables
    collected = [sys.executable, "-m", "pytest", "-q", "--collect-only", "tests/test_config.py", "tests/losses"]
    assert subprocess.run(collected, cwd=tree, capture_output=True, timeout=300).returncode == 0
    shown = [sys.executable, "tests/losses/golden_table.py"]
    table = subprocess.run(shown, cwd=tree, capture_output=True, text=True, check=True, timeout=300).stdout
    assert re.search(r"^squared_hinge +0 +not recorded; held by its closed form against autograd", table, flags=re.M)
    said = [sys.executable, "-m", "align.losses", "squared_hinge"]
    assert "--loss.goal 1" in subprocess.run(said, cwd=tree, capture_output=True, text=True, check=True).stdout
