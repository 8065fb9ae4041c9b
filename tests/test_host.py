"""Cores and memory within the limits of containers and schedulers."""

import os

import pytest

from lit_extract import host
from lit_extract.host import cgroup_limits, slurm_limits

GB = 10**9


def test_groups_within_groups_each_have_a_limit(tmp_path):
    (tmp_path / "cgroup").write_text("0::/slurm/job_7/step_0\n")
    root = tmp_path / "fs"
    (root / "slurm/job_7/step_0").mkdir(parents=True)
    (root / "slurm/job_7/step_0/memory.max").write_text("max\n")
    (root / "slurm/job_7/memory.max").write_text(f"{8 * GB}\n")
    (root / "slurm/memory.max").write_text(f"{64 * GB}\n")
    (tmp_path / "memory.max").write_text("1\n")  # above the mount: none of ours
    assert list(cgroup_limits(tmp_path / "cgroup", root)) == [8 * GB, 64 * GB]


def test_the_older_groups_have_a_tree_for_memory(tmp_path):
    (tmp_path / "cgroup").write_text("11:cpu,cpuacct:/job\n10:memory:/job\n1:name=systemd:/x:y\n")
    root = tmp_path / "fs"
    (root / "memory/job").mkdir(parents=True)
    (root / "memory/job/memory.limit_in_bytes").write_text(f"{3 * GB}\n")
    assert list(cgroup_limits(tmp_path / "cgroup", root)) == [3 * GB]


def test_without_groups_there_is_no_limit(tmp_path):
    assert list(cgroup_limits(tmp_path / "none", tmp_path)) == []


@pytest.mark.parametrize(
    ("environment", "limits"),
    [
        ({}, []),
        ({"SLURM_MEM_PER_NODE": "1000"}, [1000 * 2**20]),
        ({"SLURM_MEM_PER_NODE": "0"}, []),
        ({"SLURM_MEM_PER_CPU": "2000", "SLURM_CPUS_ON_NODE": "4"}, [8000 * 2**20]),
        ({"SLURM_MEM_PER_CPU": "2000"}, [2000 * 2**20]),
        ({"SLURM_MEM_PER_NODE": "lots"}, []),
    ],
)
def test_limits_of_slurm(environment, limits):
    assert list(slurm_limits(environment)) == limits


def test_the_smallest_limit_counts(monkeypatch):
    monkeypatch.setenv("SLURM_MEM_PER_NODE", "100")
    assert host.usable_memory() == 100 * 2**20
    assert host.free_memory() <= 100 * 2**20


def test_cores_where_the_system_has_no_affinity(monkeypatch):
    assert host.usable_cores() == len(os.sched_getaffinity(0))
    monkeypatch.delattr(os, "sched_getaffinity")
    assert host.usable_cores() == os.cpu_count()
