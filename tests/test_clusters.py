"""docs/clusters: the Slurm script starts what it says, the Kubernetes job parses, and the tables are the record's."""

import os
import subprocess

import pytest
from conftest import ROOT

from align.config import load_config
from benchmarks import collectives, records

CLUSTERS = ROOT / "docs" / "clusters"
RECORDS = sorted(records.FOLDER.glob("collectives-*.json"))


def test_the_slurm_script_starts_torchrun_on_every_node(tmp_path):
    for name, does in {"scontrol": 'printf "%s\\n" node-a node-b', "srun": 'printf "%s\\n" "$@"'}.items():
        (tmp_path / name).write_text(f"#!/bin/sh\n{does}\n")
        (tmp_path / name).chmod(0o755)
    slurm = {"SLURM_JOB_NODELIST": "node-[a-b]", "SLURM_NNODES": "2", "SLURM_GPUS_ON_NODE": "8", "SLURM_JOB_ID": "7"}
    env = {**os.environ, **slurm, "PATH": f"{tmp_path}:{os.environ['PATH']}"}
    command = ["bash", CLUSTERS / "slurm.sh", "--loss", "nca", "--data", "a file.jsonl"]
    words = subprocess.run(command, env=env, capture_output=True, text=True, check=True).stdout.splitlines()
    assert words[words.index("--nnodes") + 1] == "2" and words[words.index("--rdzv-endpoint") + 1] == "node-a:29500"
    config = load_config(words[words.index("train.py") + 1 :])
    assert (config.parallel.replicate, config.resume, config.data.path) == (2, True, "a file.jsonl")


def test_the_kubernetes_job_starts_torchrun_on_every_node():
    yaml = pytest.importorskip("yaml")
    service, job = yaml.safe_load_all((CLUSTERS / "kubernetes.yaml").read_text(encoding="utf-8"))
    spec = job["spec"]["template"]["spec"]
    (container,) = spec["containers"]
    args = container["args"]
    config = load_config(args[args.index("align.train") + 1 :])
    nodes = job["spec"]["completions"]
    assert config.parallel.replicate == nodes == job["spec"]["parallelism"] and f"--nnodes={nodes}" in args
    assert f"--nproc-per-node={container['resources']['limits']['nvidia.com/gpu']}" in args
    first = f"--master-addr={job['metadata']['name']}-0.{service['metadata']['name']}"
    assert first in args and spec["subdomain"] == service["metadata"]["name"]
    assert {v["name"] for v in spec["volumes"]} == {m["name"] for m in container["volumeMounts"]}


def test_what_was_counted_is_what_arithmetic_says():
    """To a part in a thousand: FSDP pads a tensor whose rows its shards do not divide."""
    record = records.read(RECORDS[-1])
    assert [(r["ranks"], r["replicate"], r["dtype"]) for r in record["numbers"]] == collectives.LAYOUTS
    for row in record["numbers"]:
        itemsize = {"float32": 4, "bfloat16": 2}[row["dtype"]]
        expected = collectives.predicted(collectives.small(), row["ranks"], row["replicate"], itemsize)
        assert row["counted"] == pytest.approx(expected, rel=1e-3), row["name"]


def test_the_docs_have_the_newest_record():
    page = (ROOT / "docs" / "clusters.md").read_text(encoding="utf-8")
    assert collectives.table(records.read(RECORDS[-1])) in page and collectives.planned() in page
