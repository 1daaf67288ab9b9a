"""Loading loss classes by module:Class, from this package or from outside.

With these lines in my_losses.py, `--loss my_losses:Square` trains with it, and --loss.beta sets its parameter:

    @dataclass
    class Square(Loss):
        beta: float = 0.1

        def __call__(self, x):  # (N,)
            r = self.beta * x.ratios  # (N, 2)
            return (r[:, 0] - r[:, 1] - 1).square()

The module lies in the current directory or is installed. To load it is to run it: name no module that you do not trust.
"""

import dataclasses
import importlib
import inspect
import sys
from pathlib import Path

import torch

from align.losses.base import FITS, Loss, LossInputs

TYPES = (bool, int, float, str)  # what a flag and a TOML file can set


def outside(name: str) -> bool:
    """Whether this is a loss outside the package, module:Class."""
    return ":" in name


def load_class(spec: str) -> type[Loss]:
    """The class of a loss outside the package. Raises ValueError, in one line, if "module:Class" names none.

    The current directory joins the end of sys.path, where it hides no installed module.
    """
    module_name, _, class_name = spec.partition(":")
    if not all(part.isidentifier() for part in (*module_name.split("."), class_name)) or module_name.endswith(".py"):
        raise ValueError(f"loss {spec}: must be module:Class, as in my_losses:MyLoss (without .py)")
    here = str(Path.cwd())
    if here not in sys.path:
        sys.path.append(here)
        importlib.invalidate_caches()
    try:
        module = importlib.import_module(module_name)
    except (Exception, SystemExit) as error:
        # the module itself or a package on the way to it; not what it imports in turn
        if isinstance(error, ModuleNotFoundError) and f"{module_name}.".startswith(f"{error.name}."):
            raise ValueError(f"loss {spec}: no module {error.name} in {here} or installed") from error
        reason = f"{type(error).__name__}: {' '.join(str(error).split())}"
        raise ValueError(f"loss {spec}: importing {module_name} failed ({reason}); fix the module") from error
    cls = getattr(module, class_name, None)
    found = getattr(module, "__file__", None) or module_name
    if cls is None:
        raise ValueError(f"loss {spec}: {found} has no {class_name}; name a class of it")
    if not (inspect.isclass(cls) and issubclass(cls, Loss)):
        raise ValueError(f"loss {spec}: {class_name} in {found} is not a class made from align.losses.Loss")
    problem = shortcoming(cls)
    if problem:
        raise ValueError(f"loss {spec}: {problem}")
    return cls


def shortcoming(cls: type[Loss]) -> str | None:
    """What keeps a class from being a loss that flags can set, and how to fix it; None where all is well."""
    if cls.__call__ is Loss.__call__:
        return "it has no __call__(self, x), which returns the loss of each prompt, (N,)"
    annotated = [name for name, kind in inspect.get_annotations(cls).items() if "ClassVar" not in str(kind)]
    if annotated and "__dataclass_fields__" not in vars(cls):
        return f"put @dataclass above the class, or {', '.join(annotated)} cannot be set"
    for field in dataclasses.fields(cls):
        if type(field.default) not in TYPES:
            return f"parameter {field.name} needs a default that is a number, a string, true or false"
    if cls.responses not in FITS:
        return f"responses must be one of {', '.join(map(repr, FITS))}, not {cls.responses!r}"
    try:
        losses = cls()(example(cls))
    except (Exception, SystemExit) as error:
        return f"it failed on two prompts: {type(error).__name__}: {' '.join(str(error).split())}"
    if not isinstance(losses, torch.Tensor) or losses.shape != (2,):
        shape = tuple(losses.shape) if isinstance(losses, torch.Tensor) else type(losses).__name__
        return f"it must return the loss of each prompt, (N,): for 2 prompts it returned {shape}"
    return None


def example(cls: type[Loss]) -> LossInputs:
    """Two prompts with all that a loss of this kind is given."""
    k = 1 if cls.responses in ("one", "unpaired") and not cls.uses_mismatched_responses else 2
    logps = torch.full((2, k), -10.0)
    return LossInputs(
        logps=logps,
        ref_logps=logps if cls.needs_reference else None,
        n_tok=torch.full((2, k), 5),
        labels=torch.tensor([[True], [False]]) if cls.responses == "unpaired" else None,
        **{name: torch.full_like(logps, 0.5) for name in cls.token_inputs},
        ref_shared_logps=logps / 2 if "shared_logps" in cls.token_inputs else None,
    )


def loss_table(specs: dict[str, str]) -> dict[str, type[Loss]]:
    """{name: class} from {name: "module:Class"}, modules of this package."""
    classes = {}
    for name, spec in specs.items():
        module, _, cls = spec.partition(":")
        classes[name] = getattr(importlib.import_module(f"align.losses.{module}"), cls)
    return classes
