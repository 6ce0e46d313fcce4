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
          "compat"]
CPUS = {"smp": 2, "xmc": 2}


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


def run(bin_folder, engine, guest, timeout):
    append = "emulated" if engine == "kvm" and kvm_is_emulated(bin_folder) else "plain"
    command = [f"{bin_folder}/lodge", "run", "--engine", engine, "--memory", "64M",
               "--cpus", str(CPUS.get(guest, 1)), "--append", append, "--kernel", f"{BUILD}/tests/guest/{guest}_guest"]
    return subprocess.run(command, stdin=subprocess.DEVNULL, capture_output=True, text=True,
                          errors="replace", timeout=timeout)


@pytest.mark.parametrize("engine", ["soft", "kvm"])
@pytest.mark.parametrize("guest", GUESTS)
def test_guest(bin_folder, engine, guest):
    if engine == "kvm" and kvm_missing():
        pytest.skip(kvm_missing())
    result = run(bin_folder, engine, guest, 120)
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
