"""Bare-metal guests (tests/guest), the same binaries under both engines."""
import json
import os
import re
import subprocess

import pytest

TOP = os.path.dirname(os.path.dirname(os.path.abspath(__file__)))
BUILD = os.environ.get("LODGE_BUILD", f"{TOP}/build")
GUESTS = ["exceptions", "paging", "interrupts", "smp", "devices", "user", "modes", "clock", "smc",
          "remap", "xmc", "pagegames", "pcid", "faults",
          "faultloops", "faultstrings", "step", "storm",
          "compat", "hostile"]
CPUS = {"smp": 2, "xmc": 2, "hostile": 2}
MIB = 1 << 20


def kvm_missing():
    try:
        os.close(os.open("/dev/kvm", os.O_RDWR))
    except OSError as error:
        return f"/dev/kvm: {error.strerror}"
    return None


def kvm_is_emulated(bin_folder):
    """No hardware under KVM: its emulator of ring 0 lacks what the guests then skip by name."""
    report = json.loads(subprocess.run([f"{bin_folder}/lodge", "host", "--format", "json"],
                                       capture_output=True, check=True).stdout)
    return report["kvm"]["instruction_ns"] > 200


def command(bin_folder, engine, guest, append):
    return [f"{bin_folder}/lodge", "run", "--engine", engine, "--memory", "64M",
            "--cpus", str(CPUS.get(guest, 1)), "--append", append,
            "--kernel", f"{BUILD}/tests/guest/{guest}_guest"]


def run(bin_folder, engine, guest, timeout):
    append = "emulated" if engine == "kvm" and kvm_is_emulated(bin_folder) else "plain"
    return subprocess.run(command(bin_folder, engine, guest, append), stdin=subprocess.DEVNULL,
                          capture_output=True, text=True, errors="replace", timeout=timeout)


@pytest.mark.parametrize("engine", ["soft", "kvm"])
@pytest.mark.parametrize("guest", GUESTS)
def test_guest(bin_folder, engine, guest):
    if engine == "kvm" and kvm_missing():
        pytest.skip(kvm_missing())
    result = run(bin_folder, engine, guest, 240)
    lines = result.stdout.splitlines()
    failed = [line for line in lines if line.startswith("FAIL")]
    passed = [line for line in lines if line.startswith("PASS")]
    assert not failed, "\n".join(failed)
    # A guest that dies early passes nothing: its sources say how many checks there are.
    with open(f"{TOP}/tests/guest/{guest}_guest.c", encoding="utf-8") as source:
        checks = len(re.findall(r"^\s+check(?:_equal)?\(", source.read(), re.MULTILINE))
    skipped = [line for line in lines if line.startswith("SKIP")]
    few = 1 if skipped else checks - 6
    assert len(passed) >= few, result.stdout + result.stderr
    assert result.returncode == 1, result.stderr  # debug-exit 0 becomes 1


@pytest.mark.parametrize("engine", ["soft", "kvm"])
@pytest.mark.parametrize("policy", ["reboot", "exit"])
def test_resets(bin_folder, engine, policy):
    if engine == "kvm" and kvm_missing():
        pytest.skip(kvm_missing())
    result = subprocess.run([f"{bin_folder}/lodge", "run", "--engine", engine, "--memory", "64M",
                             "--on-reset", policy, "--kernel", f"{BUILD}/tests/guest/reset_guest"],
                            stdin=subprocess.DEVNULL, capture_output=True, text=True, timeout=120)
    told = [line for line in result.stdout.splitlines() if line.startswith(("PASS", "FAIL"))]
    if policy == "exit":
        assert told == ["PASS memory is clean", "PASS first boot"], result.stderr
        return
    assert [line for line in told if "memory" not in line] == [
        "PASS first boot", "PASS back after the keyboard controller",
        "PASS back after the reset register", "PASS back after port 0x92"], result.stderr
    assert told.count("PASS memory is clean") == 4
    assert result.returncode == 1  # debug exit 0


def descendants(pid):
    parents = {}
    for entry in filter(str.isdigit, os.listdir("/proc")):
        try:
            with open(f"/proc/{entry}/stat", encoding="ascii", errors="replace") as stat:
                parents[int(entry)] = int(stat.read().rsplit(")", 1)[1].split()[1])
        except (FileNotFoundError, ProcessLookupError):
            continue
    found = {pid}
    while more := {child for child, parent in parents.items() if parent in found} - found:
        found |= more
    return found


def peak_memory(pid):
    """The most that any process of this guest has ever held, in bytes."""
    peak = 0
    for process in descendants(pid):
        try:
            with open(f"/proc/{process}/status", encoding="ascii", errors="replace") as status:
                peak = max([peak] + [int(line.split()[1]) * 1024 for line in status
                                     if line.startswith("VmHWM:")])
        except (FileNotFoundError, ProcessLookupError):
            continue
    return peak


@pytest.mark.plain_only
def test_a_hostile_guest_takes_no_more_memory_than_it_may(bin_folder):
    """Its own 64 MiB, the code cache's 64, and what the VMM needs."""
    amount = "long" if os.environ.get("LODGE_TORTURE") else "plain"
    peak = 0
    with subprocess.Popen(command(bin_folder, "soft", "hostile", amount), text=True,
                          stdin=subprocess.DEVNULL, stdout=subprocess.PIPE) as process:
        lines = []
        for line in process.stdout:
            lines.append(line)
            peak = max(peak, peak_memory(process.pid))
        assert process.wait(timeout=60) == 1, "".join(lines)
    assert not [line for line in lines if line.startswith("FAIL")], "".join(lines)
    assert 8 * MIB < peak < (64 + 64 + 64) * MIB, f"{peak / MIB:.0f} MiB"
