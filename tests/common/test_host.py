"""Memory and cores that a process may use: limits of cgroups and SLURM, not only what is built in."""

import os

import pytest

from lit_extract.common.host import cgroup_limits, host_memory, slurm_limits, usable_cores


def write(path, text):
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text(text)


def test_version_2_limits_of_all_groups_on_the_way_up_count(tmp_path):
    write(tmp_path / "own", "0::/slurm/job_7/step_0\n")
    write(tmp_path / "fs" / "slurm" / "job_7" / "step_0" / "memory.max", "max\n")
    write(tmp_path / "fs" / "slurm" / "job_7" / "memory.max", "4000\n")
    write(tmp_path / "fs" / "slurm" / "memory.max", "9000\n")
    assert sorted(cgroup_limits(tmp_path / "fs", tmp_path / "own")) == [4000, 9000]


def test_version_1_has_a_hierarchy_of_its_own(tmp_path):
    write(tmp_path / "own", "5:cpu,cpuacct:/other\n4:memory:/slurm/uid_1\n0::/\n")
    write(tmp_path / "fs" / "memory" / "slurm" / "uid_1" / "memory.limit_in_bytes", "5000\n")
    write(tmp_path / "fs" / "memory" / "memory.limit_in_bytes", f"{2**63 - 4096}\n")
    assert list(cgroup_limits(tmp_path / "fs", tmp_path / "own")) == [5000]
    assert list(cgroup_limits(tmp_path / "fs", tmp_path / "none")) == []


@pytest.mark.parametrize(
    ("variables", "mebibytes"),
    [
        ({}, []),
        ({"SLURM_MEM_PER_NODE": "2000"}, [2000]),
        ({"SLURM_MEM_PER_NODE": "0"}, []),
        ({"SLURM_MEM_PER_CPU": "100"}, [300]),
        ({"SLURM_MEM_PER_CPU": "100", "SLURM_CPUS_ON_NODE": "8"}, [800]),
        ({"SLURM_MEM_PER_GPU": "1000", "SLURM_GPUS_ON_NODE": "2"}, [2000]),
    ],
)
def test_slurm_says_mebibytes(variables, mebibytes):
    assert list(slurm_limits(variables, cores=3)) == [size * 2**20 for size in mebibytes]


def test_the_smallest_limit_counts(monkeypatch):
    assert 0 < host_memory() <= os.sysconf("SC_PHYS_PAGES") * os.sysconf("SC_PAGE_SIZE")
    monkeypatch.setenv("SLURM_MEM_PER_NODE", "100")
    assert host_memory() == 100 * 2**20


def test_systems_without_affinity_have_cores_too(monkeypatch):
    assert usable_cores() == len(os.sched_getaffinity(0))
    monkeypatch.delattr(os, "sched_getaffinity")
    assert usable_cores() == os.cpu_count()
