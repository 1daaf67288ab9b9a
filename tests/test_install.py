"""An install: the wheel in an environment of its own, used from another folder, beside a package called kernels.

The environment sees the packages of the interpreter that runs the tests, but not the checkout.
"""

import os
import subprocess
import sys
import sysconfig
import zipfile
from pathlib import Path

import pytest
from conftest import ROOT


def call(*command: object, cwd: Path, env: dict[str, str] | None = None) -> str:
    """Standard output of a command that succeeds."""
    env = {**os.environ, "OMP_NUM_THREADS": "1", **(env or {})}
    env.pop("PYTHONPATH", None)
    done = subprocess.run(
        [str(word) for word in command], cwd=cwd, env=env, capture_output=True, text=True, timeout=900
    )
    assert done.returncode == 0, done.stderr
    return done.stdout


@pytest.fixture(scope="module")
def wheel(tmp_path_factory) -> Path:
    """Built by the hatchling of the test extra, without a network."""
    folder = tmp_path_factory.mktemp("wheel")
    pip = [sys.executable, "-m", "pip", "--disable-pip-version-check", "wheel", "--quiet"]
    call(*pip, "--no-deps", "--no-build-isolation", "--wheel-dir", folder, ROOT, cwd=folder)
    (file,) = folder.glob("*.whl")
    return file


@pytest.fixture(scope="module")
def bin(wheel, tmp_path_factory) -> Path:
    """Where the commands are of an environment with the wheel, and with a `kernels` that is not ours."""
    venv = tmp_path_factory.mktemp("environment") / "venv"
    call(sys.executable, "-m", "venv", "--without-pip", venv, cwd=venv.parent)
    site = Path(sysconfig.get_path("purelib", vars={"base": str(venv)}))
    # a folder named in a .pth is searched, but its own .pth files, an editable install's among them, are not
    packages = [path for path in sys.path if Path(path).name in ("site-packages", "dist-packages")]
    (site / "packages.pth").write_text("\n".join(packages))
    (site / "kernels").mkdir()
    (site / "kernels" / "__init__.py").write_text("def get_kernel(): return 'from the Hub'\n")
    pip = [sys.executable, "-m", "pip", "--disable-pip-version-check", "--python", venv / "bin" / "python"]
    call(*pip, "install", "--quiet", "--no-deps", wheel, cwd=venv.parent)
    return venv / "bin"


@pytest.mark.slow
def test_a_wheel_has_one_top_level_name_and_every_file(wheel):
    names = zipfile.ZipFile(wheel).namelist()
    assert {name.partition("/")[0] for name in names} == {"align", wheel.name.rpartition("-py3")[0] + ".dist-info"}
    files = [
        file for folder in ("align", "kernels", "configs") for file in (ROOT / folder).rglob("*") if file.is_file()
    ]
    wanted = {file.relative_to(ROOT).as_posix() for file in files if "__pycache__" not in file.parts}
    wanted = {name if name.startswith("align/") else f"align/{name}" for name in wanted} - {"align/kernels.py"}
    wanted = {name for name in wanted if not name.startswith("align/kernels/tools/")}  # for a checkout
    assert {name for name in names if name.startswith("align/")} == wanted
    assert zipfile.ZipFile(wheel).read("align/train.py") == (ROOT / "train.py").read_bytes()


@pytest.mark.slow
def test_an_install_stands_beside_another_kernels(bin, tmp_path):
    site = Path(call(bin / "python", "-c", "import align; print(align.__path__[0])", cwd=tmp_path).strip()).parent
    assert site.is_relative_to(bin.parent)
    assert {"train.py", "eval.py"}.isdisjoint(path.name for path in site.iterdir())
    program = """
import importlib.util, torch
from align.kernels import linear_logp
from align.models.layers import linear_logp as used
import kernels
from align.evals.suites import suite_names
assert kernels.get_kernel() == "from the Hub" and not hasattr(kernels, "linear_logp")
assert used is linear_logp and linear_logp.__module__ == "align.kernels"
assert linear_logp(torch.zeros(1, 2), torch.zeros(4, 2), torch.tensor([3])).item() == -torch.tensor(4.0).log().item()
assert importlib.util.find_spec("train") is None and importlib.util.find_spec("eval") is None
print(*suite_names())
"""
    names = call(bin / "python", "-c", program, cwd=tmp_path).split()
    assert names == sorted(file.stem for file in (ROOT / "configs" / "eval").glob("*.toml")) and names
    assert "--loss nca" in call(bin / "python", "-m", "align.losses", "nca", cwd=tmp_path)


@pytest.mark.slow
def test_the_commands_of_an_install_align_and_measure_a_model(bin, toy_world, tmp_path):
    toy_world(tmp_path)
    assert "the aligned model is in" in call(bin / "align-train", "--loss", "nca", "--train.steps", 2, cwd=tmp_path)
    flags = ("--model", "runs/tiny-nca", "--suite", "tiny", "--limit", 8)
    assert "global safety score" in call(bin / "align-eval", *flags, cwd=tmp_path)
    assert (tmp_path / "runs" / "eval-tiny" / "report.html").exists()
    torchrun = (
        bin / "python",
        "-m",
        "torch.distributed.run",
        "--standalone",
        "--nproc-per-node",
        2,
        "-m",
        "align.train",
    )
    call(*torchrun, "--config", "tiny", "--loss", "dpo", "--train.steps", 1, cwd=tmp_path)
    assert (tmp_path / "runs" / "tiny-dpo" / "model").is_dir()


def test_in_a_checkout_there_is_one_copy_of_each():
    program = """
import align.eval, align.kernels, align.train, eval, kernels, train
from align.models import layers
from kernels import linear_logp
assert align.kernels.linear_logp is layers.linear_logp is linear_logp
assert align.train.train is train.train and align.eval.cli is eval.cli and eval.train is train.train
"""
    call(sys.executable, "-c", program, cwd=ROOT)


def test_the_kernels_never_name_themselves():
    """`import kernels` within kernels/ would be somebody else's package in an install."""
    files = [*(ROOT / "kernels").rglob("*.py")]
    assert files
    for file in files:
        lines = file.read_text(encoding="utf-8").splitlines()
        assert not [line for line in lines if line.lstrip().startswith(("from kernels", "import kernels"))], file
