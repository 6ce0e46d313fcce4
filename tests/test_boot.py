"""Debian's unmodified kernel under the software engine: several vCPUs, a clean log, both entries."""
import json
import os
import re
import subprocess

import pytest

ENGINE = os.environ.get("LODGE_TEST_ENGINE", "soft")

# No complaints, though a word in them looks like one.
HARMLESS = [
    "use \"pci=nocrs\" and report a bug",  # offered by the kernel on every PC
    "DMI not present or invalid",  # there is no firmware that would describe itself
    "DMA domain TLB invalidation policy",
]
SUSPICIOUS = re.compile(
    r"warn|error|bug|unchecked|call trace|stall|lockup|fail|oops|panic|invalid|bad |unexpected",
    re.IGNORECASE)


def guest(lodge, command, *options, timeout=240):
    return subprocess.run([lodge, "run", "--engine", ENGINE, *options, "default",
                           "--", "sh", "-c", command], stdin=subprocess.DEVNULL,
                          capture_output=True, text=True, errors="replace", timeout=timeout)


@pytest.mark.parametrize("cpus", [1, 2, 4])
def test_the_kernel_log_is_clean(lodge, cpus):
    result = guest(lodge, "dmesg; echo CPUS $(nproc)", "--cpus", str(cpus))
    assert result.returncode == 0, result.stderr
    assert f"CPUS {cpus}" in result.stdout
    lines = [line for line in result.stdout.splitlines()
             if SUSPICIOUS.search(line) and "Command line" not in line
             and "command line" not in line and not any(known in line for known in HARMLESS)]
    assert not lines, "\n".join(lines)
    # One bus: of more, the kernel would read each slot's identity at every boot.
    for wanted in ("Hypervisor detected: KVM", "kvm-clock", "x2apic", "Run /init",
                   "MMCONFIG for domain 0000 [bus 00-00]"):
        assert wanted in result.stdout, wanted


@pytest.mark.parametrize("cpus", [1, 2])
def test_work_comes_out_right(lodge, cpus):
    """A known answer from many processes: hashing, sorting, pipes, several at once."""
    script = ("for i in 1 2 3 4; do (seq 1 20000 | sha256sum) & done; wait; "
              "seq 1 5000 | sort -r | sort -n | md5sum; "
              "i=0; while [ $i -lt 300 ]; do (exit 7); [ $? = 7 ] || echo wrong; i=$((i+1)); done")
    result = guest(lodge, script, "--cpus", str(cpus))
    here = subprocess.run(["sh", "-c", "seq 1 20000 | sha256sum; seq 1 5000 | md5sum"],
                          capture_output=True, text=True, check=True).stdout.splitlines()
    assert result.stdout.splitlines() == [here[0]] * 4 + [here[1]], result.stdout + result.stderr


def test_memory_is_what_was_asked_for(lodge):
    for megabytes in (128, 1536, 5000):  # the last one reaches above the PCI hole
        result = guest(lodge, "grep MemTotal /proc/meminfo", "--memory", f"{megabytes}M")
        total = int(re.search(r"(\d+) kB", result.stdout).group(1)) / 1024
        assert megabytes * 0.97 - 90 < total < megabytes, result.stdout + result.stderr


def test_time_goes_at_the_right_pace(lodge):
    result = guest(lodge, "a=$(cut -d' ' -f1 /proc/uptime); sleep 2; "
                               "b=$(cut -d' ' -f1 /proc/uptime); echo $a $b; date +%s", "--cpus",
                   "2")
    first, second = map(float, result.stdout.split()[:2])
    assert 1.9 < second - first < 3.5, result.stdout
    now = int(subprocess.run(["date", "+%s"], capture_output=True, text=True).stdout)
    assert abs(int(result.stdout.split()[2]) - now) < 10


@pytest.mark.plain_only
def test_pvh_and_compressed_kernels_boot(lodge, tmp_path):
    """The same kernel as Debian ships it: a bzImage, unpacked by the loader."""
    rows = json.loads(subprocess.run([lodge, "image", "ls", "--format", "json"],
                                     capture_output=True, check=True).stdout)
    row = next(row for row in rows if row["name"] == "default")
    packages = subprocess.run(["apt-get", "download", f"linux-image-{row['release']}"],
                              cwd=tmp_path, capture_output=True)
    if packages.returncode:
        pytest.skip("Debian's packages cannot be reached")
    package = next(name for name in os.listdir(tmp_path) if name.endswith(".deb"))
    subprocess.run(["dpkg-deb", "-x", package, "."], cwd=tmp_path, check=True)
    kernel = f"{tmp_path}/boot/vmlinuz-{row['release']}"
    result = subprocess.run([lodge, "run", "--engine", "soft", "--kernel", kernel,
                             "--append", "console=ttyS0 panic=-1"], stdin=subprocess.DEVNULL,
                            capture_output=True, text=True, errors="replace", timeout=240)
    # No root file system: the kernel comes up, finds none, and panics, which is a failure's status.
    assert "Linux version" in result.stdout
    assert "Unable to mount root fs" in result.stdout
    assert result.returncode not in (0, 1), result.stderr
