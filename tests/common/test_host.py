"""Memory and cores that a process may use: limits of cgroups and SLURM, not only what is built in."""

import os

import pytest

from lit_extract.common.host import (
    cgroup_cores,
    cgroup_limits,
    cores_of_rank,
    host_memory,
    slurm_job,
    slurm_limits,
    usable_cores,
)


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


def test_the_time_that_a_group_may_use_counts_as_cores(tmp_path):
    write(tmp_path / "own", "3:cpu,cpuacct:/docker/7\n0::/slurm/job_7\n")
    write(tmp_path / "fs" / "slurm" / "job_7" / "cpu.max", "650000 100000\n")
    write(tmp_path / "fs" / "slurm" / "cpu.max", "max 100000\n")
    write(tmp_path / "fs" / "cpu" / "docker" / "7" / "cpu.cfs_quota_us", "50000\n")
    write(tmp_path / "fs" / "cpu" / "docker" / "7" / "cpu.cfs_period_us", "100000\n")
    write(tmp_path / "fs" / "cpu" / "docker" / "cpu.cfs_quota_us", "-1\n")
    write(tmp_path / "fs" / "cpu" / "docker" / "cpu.cfs_period_us", "100000\n")
    assert list(cgroup_cores(tmp_path / "fs", tmp_path / "own")) == [1, 6]
    assert list(cgroup_cores(tmp_path / "fs", tmp_path / "none")) == []


def test_a_job_uses_no_more_cores_than_it_has(monkeypatch):
    monkeypatch.setattr(os, "sched_getaffinity", lambda _: set(range(16)))
    monkeypatch.setattr("lit_extract.common.host.cgroup_cores", lambda: iter([12]))
    assert usable_cores({}) == 12
    assert usable_cores({"SLURM_CPUS_ON_NODE": "8"}) == 8
    assert usable_cores({"SLURM_CPUS_ON_NODE": "96"}) == 12


TASK = {"SLURM_STEP_ID": "0"}


@pytest.mark.parametrize(
    ("ranks", "cores", "variables", "expected"),
    [
        (4, 32, {}, 8),  # one machine, ranks started by Lightning or torchrun
        (3, 8, {}, 2),
        (8, 4, {}, 1),
        # the issue's: 2 machines with 4 tasks of 8 cores, whether SLURM binds them to their cores or not
        (4, 32, {**TASK, "CPUS_PER_TASK": "8", "NTASKS_PER_NODE": "4", "CPUS_ON_NODE": "32"}, 8),
        (4, 8, {**TASK, "CPUS_PER_TASK": "8", "NTASKS_PER_NODE": "4", "CPUS_ON_NODE": "32"}, 8),
        (4, 8, {**TASK, "NTASKS_PER_NODE": "4", "CPUS_ON_NODE": "32"}, 8),  # bound, without --cpus-per-task
        (4, 32, {**TASK, "NTASKS_PER_NODE": "4", "CPUS_ON_NODE": "32"}, 8),  # not bound
        (1, 4, {**TASK, "CPUS_PER_TASK": "8", "CPUS_ON_NODE": "8"}, 4),  # a cgroup allows less
        # a task a machine, which torchrun divides
        (4, 32, {**TASK, "CPUS_PER_TASK": "32", "NTASKS_PER_NODE": "1", "CPUS_ON_NODE": "32"}, 8),
        # in a batch script that was to start 4 tasks, but no srun
        (2, 32, {"CPUS_PER_TASK": "8", "NTASKS_PER_NODE": "4", "CPUS_ON_NODE": "32"}, 16),
    ],
)
def test_cores_of_a_rank(ranks, cores, variables, expected):
    environment = {f"SLURM_{name.removeprefix('SLURM_')}": value for name, value in variables.items()}
    assert cores_of_rank(ranks, cores, environment) == expected


def test_systems_without_affinity_have_cores_too(monkeypatch):
    monkeypatch.setattr("lit_extract.common.host.cgroup_cores", lambda: iter([]))
    assert usable_cores({}) == len(os.sched_getaffinity(0))
    monkeypatch.delattr(os, "sched_getaffinity")
    assert usable_cores({}) == os.cpu_count()


@pytest.mark.parametrize(
    ("environment", "job"),
    [
        ({}, None),
        ({"SLURM_JOB_ID": "12"}, "12"),
        ({"SLURM_JOB_ID": "14", "SLURM_ARRAY_JOB_ID": "12", "SLURM_ARRAY_TASK_ID": "3"}, "12_3"),
    ],
)
def test_a_job_is_called_as_squeue_calls_it(environment, job):
    assert slurm_job(environment) == job
