"""Disks of a guest: raw images, looked at from both sides."""
import fcntl
import hashlib
import os
import random
import struct
import subprocess
import time

import pytest

ENGINE = os.environ.get("LODGE_TEST_ENGINE", "soft")
TIMEOUT = int(os.environ.get("LODGE_TEST_TIMEOUT", "240"))
MIB = 1 << 20


@pytest.fixture
def image(tmp_path):
    """Makes an image of random bytes; the path and the bytes."""
    def image(name="disk.img", size=4 * MIB, seed=1):
        data = random.Random(seed).randbytes(size)
        path = tmp_path / name
        path.write_bytes(data)
        return str(path), data
    return image


@pytest.fixture
def run(lodge):
    def run(script, *disks, options=(), **how):
        arguments = [word for disk in disks for word in ("--disk", disk)]
        return subprocess.run([lodge, "run", "--engine", ENGINE, *arguments, *options, "--", "sh",
                               "-c", script], stdin=subprocess.DEVNULL, capture_output=True,
                              text=True, timeout=TIMEOUT, **how)
    return run


def test_a_guest_reads_what_the_image_holds(run, image):
    path, data = image()
    result = run("sha256sum </dev/vda; cat /sys/block/vda/size; echo $(cat "
                 "/sys/block/vda/serial); cat /sys/block/vda/ro; ls /sys/block/vda/mq", f"{path},serial=web-1",
                 options=["--cpus", "2"])
    assert result.stderr == ""
    words = result.stdout.split()
    assert words[0] == hashlib.sha256(data).hexdigest()
    assert words[2:] == [str(len(data) // 512), "web-1", "0", "0", "1"]


def test_what_a_guest_writes_is_in_the_image(run, image):
    path, data = image()
    result = run("dd if=/dev/vda of=/dev/vda bs=4096 skip=10 seek=500 count=300 conv=fsync "
                 "2>/dev/null; echo -n end | dd of=/dev/vda bs=1 seek=4194301 conv=fsync "
                 "2>/dev/null; sha256sum </dev/vda", path)
    wanted = bytearray(data)
    wanted[500 * 4096:800 * 4096] = data[10 * 4096:310 * 4096]
    wanted[-3:] = b"end"
    with open(path, "rb") as file:
        assert file.read() == wanted
    assert result.stdout.split()[0] == hashlib.sha256(wanted).hexdigest()


def test_disks_come_in_their_order(run, image):
    paths = [image(f"{i}.img", (i + 1) * MIB, i)[0] for i in range(3)]
    result = run("cat /sys/block/vd[abc]/size; cat /sys/block/vdb/ro", *[f"{path},ro" for path in
                                                                       paths])
    assert result.stdout.split() == ["2048", "4096", "6144", "1"]


def test_a_read_only_disk_stays_as_it_is(run, image):
    path, data = image()
    os.chmod(path, 0o444)
    result = run("cat /sys/block/vda/ro; echo x >/dev/vda; sha256sum </dev/vda", f"{path},ro")
    assert result.stdout.split()[:2] == ["1", hashlib.sha256(data).hexdigest()]
    with open(path, "rb") as file:
        assert file.read() == data


def test_a_file_system_lives_on_it_and_discard_gives_space_back(run, tmp_path):
    path = str(tmp_path / "fs.img")
    with open(path, "wb") as file:
        file.truncate(64 * MIB)
    subprocess.run(["/sbin/mkfs.ext4", "-q", "-E", "nodiscard", path], check=True)
    result = run("mount -t ext4 /dev/vda /mnt && dd if=/dev/urandom of=/mnt/a bs=1M "
                 "count=40 2>/dev/null && echo kept >/mnt/b && sync && sha256sum /mnt/a && "
                 "umount /mnt", path)
    assert result.returncode == 0, result.stderr
    full = os.stat(path).st_blocks * 512
    assert full > 40 * MIB
    again = run("mount -t ext4 /dev/vda /mnt && sha256sum /mnt/a && cat /mnt/b && rm /mnt/a && "
                "sync && fstrim /mnt && umount /mnt", path)
    assert again.returncode == 0, again.stderr
    assert again.stdout.split()[0] == result.stdout.split()[0]
    assert again.stdout.split()[-1] == "kept"
    assert os.stat(path).st_blocks * 512 < full - 25 * MIB
    subprocess.run(["/sbin/fsck.ext4", "-fn", path], check=True, stdout=subprocess.DEVNULL)


def test_an_image_in_use_is_refused(run, image, lodge):
    path, _ = image()
    result = run("true", path, path)
    assert (result.returncode, result.stdout) == (125, "")
    assert result.stderr == f"lodge: disk '{path}' is in use, by another guest or by this one\n"
    with subprocess.Popen([lodge, "run", "--engine", ENGINE, "--disk", path, "--", "sh", "-c",
                           "echo up; sleep 100"], stdin=subprocess.DEVNULL,
                          stdout=subprocess.PIPE) as other:
        assert other.stdout.readline() == b"up\n"
        assert "is in use" in run("true", path).stderr
        assert "is in use" in run("true", f"{path},ro").stderr
        other.kill()
        other.wait()
    # Readers do not mind each other. The lock ends with the VMM, a moment behind its owner.
    for _ in range(100):
        with open(path, "rb") as file:
            try:
                fcntl.lockf(file, fcntl.LOCK_SH | fcntl.LOCK_NB)
                break
            except OSError:
                time.sleep(0.1)
    with open(path, "rb") as file:
        fcntl.fcntl(file, 37, struct.pack("hhqqi4x", fcntl.F_RDLCK, os.SEEK_SET, 0, 0, 0))
        assert run("true", f"{path},ro").returncode == 0
        assert "is in use" in run("true", path).stderr


@pytest.mark.parametrize("disk, message", [
    ("/nonexistent/disk", "disk '/nonexistent/disk': No such file or directory"),
    ("/", "disk '/': Is a directory"),
    ("/dev/null", "disk '/dev/null' is neither a file nor a block device"),
    ("x,rw", "'rw' says nothing of a disk; there are ro, cache=KIND and serial=TEXT"),
    (",ro", "a disk begins with the path of its image"),
])
def test_what_is_no_disk_is_refused(run, disk, message):
    result = run("true", disk)
    assert (result.returncode, result.stdout) == (125, "")
    assert result.stderr.startswith(f"lodge: {message}"), result.stderr


def test_an_empty_image_is_refused(run, tmp_path):
    (tmp_path / "empty").touch()
    result = run("true", str(tmp_path / "empty"))
    assert result.returncode == 125
    assert "a disk has at least 512 bytes" in result.stderr


def test_definitions_name_disks(lodge, image, tmp_path):
    path, data = image()
    (tmp_path / "vm.conf").write_text(f'disk = "{path},ro,serial=a"\ndisk = "{path},ro"\n')
    (tmp_path / "vm.json").write_text('{"disks": [{"path": "%s", "read_only": true}]}' % path)
    for file, count in (("vm.conf", 2), ("vm.json", 1)):
        result = subprocess.run([lodge, "run", "--engine", ENGINE, "--file", tmp_path / file, "--",
                                 "sh", "-c", "sha256sum </dev/vda; ls /sys/block | grep -c vd"],
                                stdin=subprocess.DEVNULL, capture_output=True, text=True,
                                timeout=TIMEOUT)
        assert result.stdout.split() == [hashlib.sha256(data).hexdigest(), "-", str(count)], result


def test_without_disks_their_driver_is_not_loaded(run, image):
    script = "sleep 1; cut -d' ' -f1 /proc/modules"
    without, with_disk = run(script).stdout.split(), run(script, image()[0]).stdout.split()
    assert "virtio_rng" in without and "virtio_blk" not in without
    assert "virtio_rng" in with_disk and "virtio_blk" in with_disk
