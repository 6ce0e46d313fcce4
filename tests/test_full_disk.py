"""A host's disk that is full under a guest: it stands, says why, and goes on by itself."""
import os
import select
import shutil
import subprocess

import pytest
from steering import Steered

TIMEOUT = int(os.environ.get("LODGE_TEST_TIMEOUT", "240"))
MIB = 1 << 20
UNSHARE = "unshare --mount" if os.getuid() == 0 else "unshare --user --map-root-user --mount"

# lodge with a file system of 24 MiB, which only it sees, and disks on it.
WRAPPER = """#!/bin/sh
exec {unshare} sh -ec '
    mount -t tmpfs -o size=24m,mode=700 small {mount}
    {lodge} disk create {mount}/thin.qcow2 16M
    truncate -s 16M {mount}/sparse.img
    truncate -s 32M {mount}/strict.img
    exec {lodge} "$@"' "$0" "$@"
"""

# What the strict disk cannot take is an error; what the others cannot take waits.
SCRIPT = """
dd if=/dev/zero of=/dev/vdc bs=1M count=30 conv=fsync 2>/dev/null && echo 'no error' || echo error
read go
head -c 1048576 /dev/urandom >/tmp/noise
noise() { i=0; while [ $i -lt 7 ]; do cat /tmp/noise; i=$((i+1)); done; }
noise | dd of=/dev/vda bs=64k conv=fsync 2>/dev/null & one=$!
noise | dd of=/dev/vdb bs=64k conv=fsync 2>/dev/null & two=$!
wait $one && wait $two && echo written
echo 3 >/proc/sys/vm/drop_caches
noise | sha256sum
head -c 7340032 /dev/vda | sha256sum
head -c 7340032 /dev/vdb | sha256sum
dmesg | grep 'I/O error, dev vd[ab]' || echo 'no error'
read end
"""


@pytest.fixture
def small(lodge, tmp_path, monkeypatch):
    """A guest on that file system, and the folder by which we see it."""
    monkeypatch.setenv("XDG_RUNTIME_DIR", str(tmp_path))
    if subprocess.run([*UNSHARE.split(), "mount", "-t", "tmpfs", "small", tmp_path],
                      capture_output=True).returncode:
        pytest.skip("this user cannot mount a tmpfs")
    mount = tmp_path / "small"
    mount.mkdir()
    wrapper = tmp_path / "lodge-on-small"
    wrapper.write_text(WRAPPER.format(unshare=UNSHARE, mount=mount, lodge=lodge))
    wrapper.chmod(0o755)
    disks = [f"{mount}/thin.qcow2", f"{mount}/sparse.img", f"{mount}/strict.img,on_full=error"]
    options = [word for disk in disks for word in ("--disk", disk)]
    with Steered(str(wrapper), tmp_path, SCRIPT, "--name", "full", *options) as guest:
        guest.mount = mount
        guest.inside = f"/proc/{guest.process.pid}/root{mount}"
        yield guest


def fill(guest, leave):
    """All of the file system but `leave` bytes."""
    about = os.statvfs(guest.inside)
    with open(f"{guest.inside}/filler", "wb") as file:
        os.posix_fallocate(file.fileno(), 0, about.f_bavail * about.f_bsize - leave)


def test_a_guest_waits_for_space_and_loses_nothing(small, lodge, tmp_path):
    def run(*words, status):
        result = subprocess.run([lodge, *words], capture_output=True, timeout=TIMEOUT, text=True,
                                cwd=tmp_path)
        assert result.returncode == status, (words, result.stderr)
        return result.stderr

    def waits():
        return small.ask(stats=True)["state"] == "waits for space"

    assert small.line() == "error"
    assert "strict.img': a write failed: No space left" in small.process.stderr.readline()
    assert small.ask(stats=True)["state"] == "runs"
    os.truncate(f"{small.inside}/strict.img", 0)
    fill(small, leave=2 * MIB)
    small.say()
    said = small.process.stderr.readline()
    assert said.startswith("lodge: the guest stands still: there is no space for its disk '")
    assert f" on '{small.mount}'; it goes on by itself" in said
    small.until(waits)
    assert small.ask(stats=True)["full_disk"] in (f"{small.mount}/thin.qcow2",
                                                  f"{small.mount}/sparse.img")
    # Nobody can make it go on, or save it; it can be paused all the same.
    assert "waits for space for its disk" in run("resume", "full", status=1)
    assert "waits for space for its disk" in run("snapshot", "--stop", "full", "snap", status=1)
    assert not (tmp_path / "snap").exists()
    run("pause", "full", status=0)
    assert small.ask(stats=True)["state"] == "paused"
    # A paused guest stays so, with space too.
    os.unlink(f"{small.inside}/filler")
    small.until(lambda: "full_disk" not in small.ask(stats=True))
    assert small.ask(stats=True)["state"] == "paused"
    assert not select.select([small.process.stdout], [], [], 0.5)[0]
    run("resume", "full", status=0)
    assert small.line() == "written"
    assert len({small.line() for _ in range(3)}) == 1
    assert small.line() == "no error"
    shutil.copy(f"{small.inside}/thin.qcow2", tmp_path)
    with open(f"{small.inside}/sparse.img", "rb") as file:
        written = file.read()
    small.say()
    assert small.process.wait(TIMEOUT) == 0
    assert "there is space for disk" in small.process.stderr.read()
    run("disk", "check", "thin.qcow2", status=0)
    if shutil.which("qemu-img"):
        subprocess.run(["qemu-img", "check", "-q", "thin.qcow2"], check=True, cwd=tmp_path)
    run("disk", "convert", "--type", "raw", "thin.qcow2", "thin.img", status=0)
    assert (tmp_path / "thin.img").read_bytes() == written
