"""Which Triton kernels have passed their tests on which card: what `auto` follows.

evidence.json has an entry for each card on which every kernel test passed, written from the records in benchmarks/ by
`python -m benchmarks.evidence`. An entry speaks for one text of the kernels, by its hash, and for one release of Triton,
which makes the machine code: another text or another compiler has passed nothing yet.
"""

import functools
import hashlib
import json
from importlib.util import find_spec
from pathlib import Path

import torch

ROOM = Path(__file__).resolve().parent
FILE = ROOM / "evidence.json"
DTYPES = (torch.float32, torch.bfloat16, torch.float16)  # that the kernels know
SOURCES = {  # what decides the machine code of each kind of kernel
    "logp": ("triton/logp.py", "triton/logp_kernels.py", "triton/tiles.py"),
    "pointwise": ("triton/pointwise.py", "triton/logp_kernels.py"),
}


def source_hash(kind: str) -> str:
    """SHA-256 of the text of one kind of kernel, a key of SOURCES."""
    return hashlib.sha256(b"\0".join((ROOM / name).read_bytes() for name in SOURCES[kind])).hexdigest()


def read() -> list[dict[str, str]]:
    """The entries: kind, card, triton, source (a source_hash), record (the file in benchmarks/)."""
    return json.loads(FILE.read_text(encoding="utf-8"))


def missing(kind: str, card: str, triton: str, entries: list[dict[str, str]]) -> str:
    """Why no entry vouches for this kind of kernel on this card under this Triton; the empty string where one does."""
    entries = [entry for entry in entries if (entry["kind"], entry["card"]) == (kind, card)]
    if not entries:
        return f"no record of the Triton kernels' tests on {card}"
    entries = [entry for entry in entries if entry["source"] == source_hash(kind)]
    if not entries:
        return f"the Triton kernels have changed since their tests passed on {card}"
    if triton not in {entry["triton"] for entry in entries}:
        return f"the Triton kernels' tests passed on {card} under Triton {entries[0]['triton']}, not {triton}"
    return ""


def serve(kind: str, dtype: torch.dtype, device: torch.device) -> bool:
    """Whether `auto` takes the Triton kernels of a kind for tensors of this dtype on this device."""
    return dtype in DTYPES and not why_not(kind, device)


@functools.cache
def why_not(kind: str, device: torch.device) -> str:
    """Why `auto` does not take the kernels of a kind on a device, for a person; the empty string where it does."""
    if device.type != "cuda":
        return "the Triton kernels need a GPU"
    if not find_spec("triton"):
        return "the Triton kernels need the package triton"
    import triton

    return missing(kind, torch.cuda.get_device_name(device), triton.__version__, read())
