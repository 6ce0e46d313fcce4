"""Disks in a real guest, seen from both sides."""
import hashlib
import os
import random
import re
import shutil
import subprocess
import time

import pytest

ENGINE = os.environ.get("LODGE_TEST_ENGINE", "soft")
TIMEOUT = int(os.environ.get("LODGE_TEST_TIMEOUT", "240"))
TOP = os.path.dirname(os.path.dirname(os.path.abspath(__file__)))
MIB = 1 << 20


@pytest.fixture
def run(lodge):
    def run(script, *disks, data=b"", options=()):
        words = [word for disk in disks for word in ("--disk", str(disk))]
        return subprocess.run([lodge, "run", "--engine", ENGINE, *words, *options, "--", "sh", "-c",
                               script], input=data, capture_output=True, timeout=TIMEOUT)
    return run


@pytest.fixture
def disk(tmp_path):
    """A raw disk of 16 MiB of noise."""
    path = tmp_path / "disk.img"
    path.write_bytes(random.Random(5).randbytes(16 * MIB))
    return path


def good(result):
    assert result.returncode == 0, result.stderr
    return result.stdout


@pytest.mark.parametrize("options", ["", ",cache=none", ",cache=unsafe", ",format=raw"])
def test_what_is_written_on_one_side_is_read_on_the_other(run, disk, options):
    noise = random.Random(6).randbytes(3 * MIB + 512)
    before = disk.read_bytes()
    seen = good(run("dd of=/dev/vda bs=64k seek=5 iflag=fullblock conv=fsync,notrunc 2>/dev/null;"
                    "echo 3 >/proc/sys/vm/drop_caches; cat /dev/vda", f"{disk}{options}",
                    data=noise))
    after = before[:5 << 16] + noise + before[(5 << 16) + len(noise):]
    assert hashlib.sha256(seen).digest() == hashlib.sha256(after).digest()
    assert disk.read_bytes() == after


@pytest.mark.parametrize("cpus", [1, 2, 4])
def test_many_processes_at_once(run, disk, tmp_path, cpus):
    """Reads and writes of all sizes, checked by the program that makes them."""
    program = tmp_path / "mix"
    subprocess.run(["gcc", "-O2", "-static", "-o", program, f"{TOP}/tests/programs/diskmix.c"],
                   check=True)
    result = run("cat >/tmp/mix; chmod +x /tmp/mix; grep -c virtio.*req /proc/interrupts; /tmp/mix "
                 "/dev/vda 300", disk, data=program.read_bytes(), options=["--cpus", str(cpus)])
    assert good(result).split() == [str(cpus).encode(), b"OK"]


def test_a_read_only_disk_stays_as_it_was(run, disk):
    before = disk.read_bytes()
    disk.chmod(0o444)
    result = run("cat /sys/block/vda/ro; dd if=/dev/zero of=/dev/vda count=1; "
                 "dd if=/dev/vda bs=1M | sha256sum", f"{disk},ro")
    lines = good(result).splitlines()
    assert lines == [b"1", hashlib.sha256(before).hexdigest().encode() + b"  -"]
    assert disk.read_bytes() == before


def test_disks_come_in_order_with_size_and_serial(run, disk, tmp_path):
    other = tmp_path / "other, with a comma.img"
    other.write_bytes(b"x" * 5120)
    escaped = str(other).replace(",", ",,")
    script = "cd /sys/block; for d in vda vdb; do cat $d/size $d/serial; echo; done; head -c 3 /dev/vdb"
    result = run(script, f"{disk},serial=first", f"{escaped},serial=12345678901234567890")
    assert good(result).split() == [b"32768", b"first", b"10", b"12345678901234567890", b"xxx"]


def test_discard_gives_space_back(run, disk):
    before = disk.stat().st_blocks
    good(run("blkdiscard -o 4194304 -l 8388608 /dev/vda", disk))
    assert disk.stat().st_blocks <= before - 8 * MIB // 512
    assert disk.stat().st_size == 16 * MIB
    assert disk.read_bytes()[4 * MIB:12 * MIB] == bytes(8 * MIB)


def test_flush_is_answered(run, disk):
    script = ("i=0; while [ $i -lt 20 ]; do echo $i | dd of=/dev/vda bs=512 seek=$i conv=sync,fsync "
              "2>/dev/null || echo failed; i=$((i+1)); done; cat /sys/block/vda/queue/write_cache; "
              "echo 'write through' >/sys/block/vda/cache_type; cat /sys/block/vda/cache_type; "
              "echo hello | dd of=/dev/vda bs=512 seek=100 conv=sync oflag=direct 2>/dev/null; sync")
    assert good(run(script, disk)) == b"write back\nwrite through\n"
    for i in range(20):
        assert disk.read_bytes()[i * 512:].startswith(f"{i}\n".encode())
    assert disk.read_bytes()[100 * 512:].startswith(b"hello\n")


def test_limits_hold(run, disk):
    def seconds(options, reads):
        script = f"time dd if=/dev/vda of=/dev/null {reads} iflag=direct"
        result = run(script, f"{disk}{options}")
        good(result)
        found = re.search(rb"real\s+(\d+)m ([\d.]+)s", result.stderr)
        return int(found.group(1)) * 60 + float(found.group(2))
    assert seconds("", "bs=4k count=60") < 1
    assert 1.3 < seconds(",iops=40", "bs=4k count=60") < 10
    assert 1.3 < seconds(",bps=4M", "bs=64k count=128") < 10


def test_a_qcow2_disk_and_what_it_stands_on(run, lodge, disk, tmp_path):
    top = tmp_path / "top.qcow2"
    create = [lodge, "disk", "create", "--backing", disk.name, "--backing-format", "raw",
              "--format", "qcow2", top]
    if subprocess.run(create, capture_output=True).returncode:
        if not shutil.which("qemu-img"):
            pytest.skip("nothing here makes a qcow2 image")
        subprocess.run(["qemu-img", "create", "-q", "-f", "qcow2", "-b", disk.name, "-F", "raw",
                        top], check=True)
    before = disk.read_bytes()
    noise = random.Random(7).randbytes(MIB)
    script = ("dd of=/dev/vda bs=4k seek=1001 iflag=fullblock conv=fsync,notrunc 2>/dev/null;"
              "sha256sum /dev/vda")
    seen = good(run(script, top, data=noise)).split()[0].decode()
    at = 1001 * 4096
    after = before[:at] + noise + before[at + len(noise):]
    assert seen == hashlib.sha256(after).hexdigest()
    assert disk.read_bytes() == before
    assert good(run("sha256sum /dev/vda", f"{top},ro")).split()[0].decode() == seen
    if shutil.which("qemu-img"):
        subprocess.run(["qemu-img", "check", "-q", top], check=True)
        flat = tmp_path / "flat"
        subprocess.run(["qemu-img", "convert", "-O", "raw", top, flat], check=True)
        assert flat.read_bytes() == after


def test_two_guests_cannot_have_one_disk(run, lodge, disk):
    first = subprocess.Popen([lodge, "run", "--engine", ENGINE, "--disk", str(disk), "--", "sh",
                              "-c", "echo up; sleep 100"], stdin=subprocess.DEVNULL,
                             stdout=subprocess.PIPE)
    try:
        assert first.stdout.readline() == b"up\n"
        for options in ("", ",ro"):
            result = run("true", f"{disk}{options}")
            assert result.returncode == 125
            assert result.stderr.decode() == f"lodge: disk '{disk}' is in use, or an image that it stands on\n"
        disks = [lodge, "disk"]
        resize = subprocess.run([*disks, "resize", disk, "+1M"], capture_output=True, text=True)
        assert resize.returncode != 0 and "is in use by a guest or another program" in resize.stderr
        assert subprocess.run([*disks, "info", disk], capture_output=True).returncode == 0
        if shutil.which("qemu-img"):  # QEMU's tools see it, too
            copy = ["qemu-img", "convert", "-f", "raw", "-O", "raw", disk, f"{disk}.copy"]
            result = subprocess.run(copy, capture_output=True, text=True)
            assert result.returncode != 0 and "Is another process using the image" in result.stderr
            subprocess.run([*copy[:2], "-U", *copy[2:]], check=True)
    finally:
        first.kill()
        first.wait()
    time.sleep(0.5)  # its lodge-vmm dies with it, a moment later
    good(run("true", f"{disk},ro"))


@pytest.mark.parametrize("value, words", [
    ("{tmp}/none.img", "disk '{tmp}/none.img': No such file or directory"),
    ("{tmp}", "disk '{tmp}'"),
    ("{tmp}/disk.img,format=qcow2", "disk '{tmp}/disk.img'"),
    ("{tmp}/disk.img,colour=red", "'colour' is no property of a disk"),
    ("{tmp}/disk.img,serial=123456789012345678901", "longer than 20 bytes"),
    (",ro", "a disk wants a path"),
])
def test_mistakes_are_one_clear_line(run, disk, tmp_path, value, words):
    result = run("true", value.format(tmp=tmp_path))
    assert result.returncode == 125
    lines = result.stderr.decode().splitlines()
    assert len(lines) == 1 and lines[0].startswith("lodge: "), lines
    assert words.format(tmp=tmp_path) in lines[0]


def test_a_definition_has_disks(lodge, disk, tmp_path):
    definition = tmp_path / "vm.conf"
    definition.write_text(f'disk = "{disk},ro,serial=conf"\n')
    result = subprocess.run([lodge, "run", "--engine", ENGINE, "-f", definition, "--disk",
                             f"{tmp_path}/second", "default", "--", "sh", "-c",
                             "cat /sys/block/vda/serial; ls /dev/vd*"],
                            stdin=subprocess.DEVNULL, capture_output=True, timeout=TIMEOUT)
    assert b"second" in result.stderr
    (tmp_path / "second").write_bytes(bytes(MIB))
    result = subprocess.run([lodge, "run", "--engine", ENGINE, "-f", definition, "--disk",
                             f"{tmp_path}/second", "default", "--", "sh", "-c",
                             "cat /sys/block/vda/serial; ls /dev/vd*"],
                            stdin=subprocess.DEVNULL, capture_output=True, timeout=TIMEOUT)
    assert good(result).split() == [b"conf/dev/vda", b"/dev/vdb"]


def test_the_guest_may_reset_with_a_disk(run, lodge, disk):
    """Nothing is left of the first life's requests in the second's memory."""
    result = subprocess.run(
        [lodge, "run", "--engine", ENGINE, "--on-reset", "reboot", "--disk", str(disk)],
        input=b"cat /dev/vda >/dev/null & n=$(head -c 1 /dev/vda | tr 012 123); "
              b"case $n in [123]) ;; *) n=1;; esac; echo life $n; "
              b"echo $n | dd of=/dev/vda bs=512 conv=sync,fsync,notrunc 2>/dev/null; "
              b"[ $n = 3 ] && poweroff || reboot\n" * 3,
        capture_output=True, timeout=TIMEOUT)
    assert result.returncode == 0, result.stderr
    assert b"life 1" in result.stdout
    assert disk.read_bytes()[:2] in (b"1\n", b"2\n", b"3\n")
