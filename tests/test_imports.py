"""Which module may import which, read from the source: nothing is imported here.

A module is known by the file it comes from, and `from package import name` is an import of the submodule if there is one.
Imports inside functions count as those at the top do; those under TYPE_CHECKING are never carried out, and do not.
"""

import ast
import sys
from functools import cache
from graphlib import CycleError, TopologicalSorter
from pathlib import Path

import pytest

ROOT = Path(__file__).resolve().parent.parent


def module_name(path: Path) -> str:
    return ".".join(path.relative_to(ROOT).with_suffix("").parts).removesuffix(".__init__")


FILES = {module_name(path): path for room in ("align", "kernels") for path in ROOT.glob(f"{room}/**/*.py")}
FILES |= {name: ROOT / f"{name}.py" for name in ("train", "eval") if (ROOT / f"{name}.py").exists()}


def statements(tree: ast.AST) -> list[ast.Import | ast.ImportFrom]:
    """Every import statement below a node, but for those that are there for a type checker."""
    found = []
    for node in ast.iter_child_nodes(tree):
        if isinstance(node, ast.If) and "TYPE_CHECKING" in ast.unparse(node.test):
            found += [statement for branch in node.orelse for statement in statements(ast.Module([branch], []))]
        elif isinstance(node, ast.Import | ast.ImportFrom):
            found.append(node)
        else:
            found += statements(node)
    return found


@cache
def imports(name: str) -> frozenset[str]:
    """The modules that a module of ours imports: ours by file, others by their full dotted name."""
    found = set()
    for node in statements(ast.parse(FILES[name].read_text(encoding="utf-8"))):
        if isinstance(node, ast.Import):
            found |= {alias.name for alias in node.names}
            continue
        base = node.module or ""
        if node.level:
            # the package that a relative import starts from
            parts = name.split(".") if FILES[name].name == "__init__.py" else name.split(".")[:-1]
            base = ".".join([*parts[: len(parts) - node.level + 1], *([base] if base else [])])
        for alias in node.names:
            submodule = f"{base}.{alias.name}"
            found.add(submodule if submodule in FILES else base)
    return frozenset(found)


def below(room: str) -> list[str]:
    found = [name for name in FILES if name == room or name.startswith(room + ".")]
    assert found, f"no module in {room}"
    return found


def within(module: str, *rooms: str) -> bool:
    return any(module == room or module.startswith(room + ".") for room in rooms)


def offences(room: str, allowed) -> list[str]:
    return [
        f"{name} imports {module}" for name in below(room) for module in sorted(imports(name)) if not allowed(module)
    ]


def is_ours(module: str) -> bool:
    return within(module, "align", "kernels", "train", "eval")


def test_the_reader_of_imports_sees_them():
    """Of every kind: at the top, in a function, of a package's submodule, of another project."""
    assert {"align.data", "align.generate", "pathlib"} <= imports("align.tiny.evaluate")
    assert "pyarrow.parquet" in imports("align.files") and "huggingface_hub" in imports("align.models.folder")
    assert all(name in FILES or not is_ours(name) for module in FILES for name in imports(module))


# the pages and figures of the losses are tools beside them, which nothing that trains imports
PAGES = ("align.losses.__main__", "align.losses.figures", "align.losses.pages")


def test_losses_import_only_torch():
    def allowed(module):
        return within(module, "torch", "align.losses") or module.partition(".")[0] in sys.stdlib_module_names

    assert [line for line in offences("align.losses", allowed) if not line.startswith(PAGES)] == []


def test_nothing_that_runs_imports_the_pages_of_the_losses():
    assert [(name, page) for name in FILES if name not in PAGES for page in PAGES if page in imports(name)] == []


def test_kernels_never_import_align():
    assert offences("kernels", lambda module: not is_ours(module) or within(module, "kernels")) == []


def test_models_know_of_nothing_but_kernels_and_files():
    rooms = ("align.models", "align.kernels", "align.errors", "align.files", "align.stream")
    assert offences("align.models", lambda module: not is_ours(module) or within(module, *rooms)) == []


def test_data_knows_of_nothing_that_trains():
    rooms = ("align.data", "align.errors", "align.files", "align.stream")
    assert offences("align.data", lambda module: not is_ours(module) or within(module, *rooms)) == []
    assert (
        offences("align.data", lambda module: not within(module, "torch.distributed", "torch.nn", "torch.optim")) == []
    )


def test_nothing_imports_what_runs():
    """train.py and eval.py are the top: what needs train is given it. Each has its name in align, which hands it on."""
    names = {"train": "align.train", "eval": "align.eval"}
    top = {*names, *names.values()}
    assert [name for name in FILES if name not in top and imports(name) & top] == []
    assert imports("align.train") == {"train"} and imports("align.eval") == {"eval"} and "train" not in imports("eval")


def test_align_takes_the_kernels_through_one_module():
    """An install has no `kernels`: the wheel puts that package in this module's place."""
    assert [name for name in below("align") if any(within(module, "kernels") for module in imports(name))] == [
        "align.kernels"
    ]


@pytest.mark.parametrize("part", ["align", "kernels"])
def test_no_module_imports_itself_in_a_circle(part):
    graph = {name: {module for module in imports(name) if module in FILES} for name in below(part)}
    try:
        TopologicalSorter(graph).prepare()
    except CycleError as error:
        pytest.fail(" <- ".join(error.args[1]))
