"""Which model and which data a run is made of, as digests: a path says neither."""

import hashlib
import json
from pathlib import Path

from align.models import model_files
from align.parallel import World


def model_id(folder: Path, world: World) -> str:
    """A hash of a model folder's config and weights. Every rank must call it, and reads its share of the files."""
    files = model_files(folder)
    mine = {file.name: file_digest(file) for file in files[world.rank :: world.size]}
    shares = map(json.loads, world.gather_texts(json.dumps(mine)))
    digests = {name: digest for share in shares for name, digest in share.items()}
    return hashlib.sha256(json.dumps(digests, sort_keys=True).encode()).hexdigest()


def file_digest(file: Path) -> str:
    with file.open("rb") as stream:
        return hashlib.file_digest(stream, "sha256").hexdigest()
