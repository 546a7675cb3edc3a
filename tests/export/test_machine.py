"""What is said of the processor: from the files of other machines, laid out in a folder."""

import os
import platform
import sys

import pytest

from tutelage.export.machine import NO_INT8_INSTRUCTIONS, UNKNOWN_INSTRUCTIONS, cpu_facts, cpu_name, usable_cores

CORES = 64


@pytest.fixture(autouse=True)
def many_cores(monkeypatch):
    """The quotas under test, not the machine that runs the tests, decide."""
    if hasattr(os, "sched_getaffinity"):
        monkeypatch.setattr(os, "sched_getaffinity", lambda pid: set(range(CORES)))
    monkeypatch.setattr(os, "cpu_count", lambda: CORES)


def machine(root, **files):
    """A root folder with these files; two underscores stand for a slash."""
    for name, text in files.items():
        path = root / name.replace("__", "/")
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_text(text)
    return root


def cpuinfo(*lines):
    return "".join(f"{line}\n" for line in ("processor\t: 0", *lines, "", "processor\t: 1", *lines))


def with_flags(root, flags):
    return cpu_facts(
        machine(root, proc__cpuinfo=cpuinfo("model name\t: Test CPU: 9000", f"flags\t\t: fpu {flags} rdpid"))
    )


def test_flags_that_matter_are_named_and_others_left_out(tmp_path):
    facts = with_flags(tmp_path, "fma avx avx2 avx512f avx512_vnni amx_int8")
    assert facts.name == "Test CPU: 9000"
    assert facts.flags == ("avx2", "fma", "avx512f", "avx512_vnni", "amx_int8")
    assert facts.int8_note is None
    assert facts.to_json() == {
        "name": "Test CPU: 9000",
        "cores": CORES,
        "flags": ["avx2", "fma", "avx512f", "avx512_vnni", "amx_int8"],
        "int8_note": None,
    }


@pytest.mark.parametrize("flag", ["avx512_vnni", "avx_vnni", "amx_int8"])
def test_any_int8_instruction_will_do(tmp_path, flag):
    assert with_flags(tmp_path, f"avx2 {flag}").int8_note is None


@pytest.mark.parametrize("flags", ["avx2 fma", "avx2 avx512f", "avx2 amx_bf16", "avx512_vnni_of_another_name"])
def test_without_int8_instructions_it_says_so(tmp_path, flags):
    """A user would otherwise quantise for speed, get none, and look for the mistake in the model."""
    assert with_flags(tmp_path, flags).int8_note == NO_INT8_INSTRUCTIONS


def test_arm_calls_them_features(tmp_path):
    facts = cpu_facts(machine(tmp_path, proc__cpuinfo=cpuinfo("Features\t: fp asimd asimddp i8mm sve")))
    assert facts.flags == ("asimddp", "i8mm", "sve")
    assert facts.int8_note is None
    older = cpu_facts(machine(tmp_path, proc__cpuinfo=cpuinfo("Features\t: fp asimd")))
    assert older.int8_note == NO_INT8_INSTRUCTIONS


def test_what_is_not_told_is_unknown_and_not_guessed(tmp_path, monkeypatch):
    """Where there is no /proc/cpuinfo, "no VNNI" would be a claim about a machine that nobody has looked at."""
    facts = cpu_facts(tmp_path)
    assert facts.flags == ()
    assert facts.int8_note == UNKNOWN_INSTRUCTIONS
    monkeypatch.setattr(platform, "processor", lambda: "arm")
    assert cpu_name(tmp_path) == "arm"
    monkeypatch.setattr(platform, "processor", lambda: "")
    assert cpu_name(tmp_path) == f"{platform.machine()} ({sys.platform})"


@pytest.mark.parametrize(
    ("files", "cores"),
    [
        ({}, CORES),
        ({"sys__fs__cgroup__cpu.max": "max 100000\n"}, CORES),
        ({"sys__fs__cgroup__cpu.max": "400000 100000\n"}, 4),
        ({"sys__fs__cgroup__pod__box__cpu.max": "max 100000\n", "sys__fs__cgroup__pod__cpu.max": "250000 100000\n"}, 2),
        ({"sys__fs__cgroup__pod__box__cpu.max": "50000 100000\n"}, 1),
        ({"sys__fs__cgroup__other__cpu.max": "100000 100000\n"}, CORES),
    ],
    ids=["none", "max", "of the mount", "of the group above", "half a core", "of another group"],
)
def test_a_containers_quota_is_heeded(tmp_path, files, cores):
    """With a thread for each of the host's cores, most of them would be stopped for most of the time."""
    assert usable_cores(machine(tmp_path, proc__self__cgroup="0::/pod/box\n", **files)) == cores


@pytest.mark.parametrize(("quota", "cores"), [("300000", 3), ("-1", CORES)])
@pytest.mark.parametrize("controllers", ["cpu", "cpu,cpuacct"])
def test_quota_of_the_first_version(tmp_path, controllers, quota, cores):
    folder = f"sys__fs__cgroup__{controllers}__box__"
    files = {f"{folder}cpu.cfs_quota_us": quota, f"{folder}cpu.cfs_period_us": "100000"}
    groups = f"4:memory:/elsewhere\n3:{controllers}:/box\n2:cpuset:/\n0::/\n"
    assert usable_cores(machine(tmp_path, proc__self__cgroup=groups, **files)) == cores


@pytest.mark.skipif(not hasattr(os, "sched_getaffinity"), reason="this system has no affinity masks")
def test_an_affinity_mask_is_heeded(tmp_path, monkeypatch):
    """Two processes pinned to two cores each would otherwise start a thread for every core of the machine."""
    monkeypatch.setattr(os, "sched_getaffinity", lambda pid: {3, 5})
    assert usable_cores(tmp_path) == 2


def test_this_machine():
    facts = cpu_facts()
    assert facts.name
    assert 1 <= facts.cores <= CORES
