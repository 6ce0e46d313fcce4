"""Disks: qemu-img and qemu-io judge what ours writes, and ours reads what they write."""
import json
import os
import random
import shutil
import signal
import struct
import subprocess
import time

import pytest

TOP = os.path.dirname(os.path.dirname(os.path.abspath(__file__)))
pytestmark = pytest.mark.skipif(not shutil.which("qemu-img"), reason="qemu-img is not installed")

OPTIONS = [
    "cluster_size=512", "cluster_size=4096", "cluster_size=65536", "cluster_size=2M",
    "compat=0.10", "compat=0.10,cluster_size=1024",
    "refcount_bits=1", "refcount_bits=2", "refcount_bits=4", "refcount_bits=8",
    "refcount_bits=32", "refcount_bits=64,cluster_size=512", "lazy_refcounts=on",
    "preallocation=metadata", "preallocation=falloc", "preallocation=full",
]


@pytest.fixture
def lodge(bin_folder, tmp_path):
    def run(*words, status=0):
        result = subprocess.run([f"{bin_folder}/lodge", "disk", *map(str, words)], cwd=tmp_path,
                                capture_output=True, text=True, timeout=120,
                                stdin=subprocess.DEVNULL)
        assert result.returncode == status, (words, result.stdout[-2000:], result.stderr)
        return result
    return run


@pytest.fixture
def harness(tmp_path):
    folder = os.environ.get("LODGE_BUILD", f"{TOP}/build")

    def run(*words):
        result = subprocess.run([f"{folder}/src/disk/disk_harness", *map(str, words)],
                                cwd=tmp_path, capture_output=True, text=True, timeout=300)
        assert result.returncode == 0, result.stderr
        return result.stdout
    run.program = f"{folder}/src/disk/disk_harness"
    return run


@pytest.fixture
def qemu(tmp_path):
    def run(*words, check=True):
        result = subprocess.run([f"qemu-{words[0]}", *map(str, words[1:])], cwd=tmp_path,
                                capture_output=True, text=True, timeout=120)
        assert not check or result.returncode == 0, (words, result.stdout, result.stderr)
        return result
    return run


def sound(qemu, lodge, image):
    """Both say that the image has neither errors nor leaks."""
    qemu("img", "check", "-q", image)
    assert lodge("check", image).stdout == "no errors\n"


def pattern(path, size, seed=1):
    """Bytes, zeros and text: something to compress and something to skip."""
    source = random.Random(seed)
    with open(path, "wb") as file:
        for at in range(0, size, 96 << 10):
            kind = source.randrange(3)
            length = min(96 << 10, size - at)
            file.seek(at)
            if kind == 0:
                file.write(source.randbytes(length))
            elif kind == 1:
                file.write((b"%d words " % at * length)[:length])
        file.truncate(size)


# --- random work, judged by qemu-img ---

@pytest.mark.parametrize("options", OPTIONS)
@pytest.mark.parametrize("cache", ["writeback", "none"])
def test_random_work_on_images_of_qemu(qemu, lodge, harness, options, cache):
    qemu("img", "create", "-q", "-f", "qcow2", "-o", options, "a.qcow2", "8M")
    harness("random", "a.qcow2", "qcow2", 7, 400, 3, cache, "model")
    sound(qemu, lodge, "a.qcow2")
    qemu("img", "compare", "-q", "-f", "qcow2", "-F", "raw", "a.qcow2", "model")


@pytest.mark.parametrize("size", ["512", "4K", "64K", "2M"])
def test_random_work_on_images_of_ours(qemu, lodge, harness, size):
    lodge("create", "--cluster-size", size, "a.qcow2", "16M")
    harness("random", "a.qcow2", "qcow2", 11, 800, 4, "writeback", "model")
    sound(qemu, lodge, "a.qcow2")
    qemu("img", "compare", "-q", "-f", "qcow2", "-F", "raw", "a.qcow2", "model")


@pytest.mark.parametrize("cache", ["writeback", "none", "unsafe"])
def test_random_work_on_raw(qemu, lodge, harness, cache):
    lodge("create", "--type", "raw", "a.raw", "16M")
    harness("random", "a.raw", "raw", 3, 800, 4, cache, "model")
    qemu("img", "compare", "-q", "-f", "raw", "-F", "raw", "a.raw", "model")


@pytest.mark.torture
@pytest.mark.parametrize("seed", range(40))
def test_much_random_work(qemu, lodge, harness, seed):
    options = OPTIONS[seed % len(OPTIONS)]
    qemu("img", "create", "-q", "-f", "qcow2", "-o", options, "a.qcow2", "64M")
    harness("random", "a.qcow2", "qcow2", seed, 6000, 1 + seed % 8, "writeback", "model")
    sound(qemu, lodge, "a.qcow2")
    qemu("img", "compare", "-q", "-f", "qcow2", "-F", "raw", "a.qcow2", "model")


@pytest.mark.parametrize("compression", ["zlib", "zstd"])
@pytest.mark.parametrize("cluster", ["4096", "65536"])
def test_compressed_images(qemu, lodge, harness, tmp_path, compression, cluster):
    pattern(tmp_path / "raw", 8 << 20)
    qemu("img", "convert", "-c", "-O", "qcow2", "-o",
         f"compression_type={compression},cluster_size={cluster}", "raw", "a.qcow2")
    lodge("convert", "--type", "raw", "a.qcow2", "back.raw")
    qemu("img", "compare", "-q", "-f", "raw", "-F", "raw", "raw", "back.raw")
    harness("random", "a.qcow2", "qcow2", 5, 800, 3, "writeback", "model")
    sound(qemu, lodge, "a.qcow2")
    qemu("img", "compare", "-q", "-f", "qcow2", "-F", "raw", "a.qcow2", "model")


@pytest.mark.parametrize("compat", ["0.10", "1.1"])
def test_a_chain_with_a_snapshot(qemu, lodge, harness, tmp_path, compat):
    """A longer disk over a shorter one; what the snapshot holds stays what it was."""
    pattern(tmp_path / "base.raw", 6 << 20)
    qemu("img", "convert", "-c", "-O", "qcow2", "base.raw", "base.qcow2")
    qemu("img", "create", "-q", "-f", "qcow2", "-F", "qcow2", "-b", "base.qcow2", "-o",
         f"compat={compat}", "a.qcow2", "8M")
    qemu("io", "-c", "write -P 7 100k 3M", "a.qcow2")
    qemu("img", "snapshot", "-c", "s", "a.qcow2")
    qemu("img", "convert", "-O", "raw", "a.qcow2", "before.raw")
    harness("random", "a.qcow2", "qcow2", 5, 800, 3, "writeback", "model")
    sound(qemu, lodge, "a.qcow2")
    qemu("img", "compare", "-q", "-f", "qcow2", "-F", "raw", "a.qcow2", "model")
    qemu("img", "snapshot", "-a", "s", "a.qcow2")
    qemu("img", "compare", "-q", "-f", "qcow2", "-F", "raw", "a.qcow2", "before.raw")
    qemu("img", "snapshot", "-d", "s", "a.qcow2")
    sound(qemu, lodge, "a.qcow2")


def test_discard_gives_space_back(qemu, lodge, tmp_path):
    """What qemu-io wrote is discarded by ours through a resize, and the file gets smaller."""
    lodge("create", "a.qcow2", "64M")
    qemu("io", "-c", "write -P 1 0 64M", "a.qcow2")
    before = os.stat(tmp_path / "a.qcow2").st_blocks
    lodge("resize", "--shrink", "a.qcow2", "8M")
    assert os.stat(tmp_path / "a.qcow2").st_blocks < before / 4
    sound(qemu, lodge, "a.qcow2")
    qemu("io", "-r", "-c", "read -P 1 0 8M", "a.qcow2")


# --- crashes ---

def crash(harness, qemu, tmp_path, image, rounds, seed, cache="writeback"):
    source = random.Random(seed)
    flushed = 0
    for i in range(rounds):
        writer = subprocess.Popen(
            [harness.program, "crash", image, "qcow2", "log", str(seed * 1000 + i), "3", cache],
            cwd=tmp_path, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True)
        assert writer.stdout.readline() == "writing\n", writer.stderr.read()
        time.sleep(source.random() * 0.25)
        assert writer.poll() is None, writer.stderr.read()
        writer.send_signal(signal.SIGKILL)
        writer.communicate()
        checked = qemu("img", "check", image, check=False)
        assert checked.returncode in (0, 3), checked.stdout + checked.stderr  # 3: leaks only
        flushed = int(harness("verify", image, "qcow2", "log").split()[0])
    assert flushed > 200, "hardly anything was flushed: this tested nothing"


@pytest.mark.parametrize("options", ["cluster_size=4096", "cluster_size=65536", "compat=0.10",
                                     "cluster_size=512,refcount_bits=64"])
def test_killed_at_any_instant(qemu, lodge, harness, tmp_path, options):
    qemu("img", "create", "-q", "-f", "qcow2", "-o", options, "a.qcow2", "8M")
    crash(harness, qemu, tmp_path, "a.qcow2", 8, 1)
    lodge("check", "--repair", "a.qcow2")
    sound(qemu, lodge, "a.qcow2")
    harness("verify", "a.qcow2", "qcow2", "log")


@pytest.mark.torture
@pytest.mark.parametrize("seed", range(8))
def test_killed_hundreds_of_times(qemu, lodge, harness, tmp_path, seed):
    size = ["4096", "65536", "512", "2M"][seed % 4]
    qemu("img", "create", "-q", "-f", "qcow2", "-o", f"cluster_size={size}", "a.qcow2", "16M")
    crash(harness, qemu, tmp_path, "a.qcow2", 60, seed, ["writeback", "none"][seed // 4])


def test_a_lost_write_would_be_noticed(qemu, lodge, harness, tmp_path):
    lodge("create", "a.qcow2", "8M")
    crash(harness, qemu, tmp_path, "a.qcow2", 3, 3)
    lodge("create", "other.qcow2", "8M")
    result = subprocess.run([harness.program, "verify", "other.qcow2", "qcow2", "log"],
                            cwd=tmp_path, capture_output=True, text=True)
    assert result.returncode == 1 and "flushed" in result.stderr


# --- damaged and hostile images ---

def patch(path, offset, data):
    with open(path, "r+b") as file:
        file.seek(offset)
        file.write(data)


def u32(value):
    return struct.pack(">I", value)


def u64(value):
    return struct.pack(">Q", value)


@pytest.mark.parametrize("offset, data, words", [
    (4, u32(1), "version 1"), (4, u32(9), "version"),
    (8, u64(1 << 40), "name of its backing"),
    (20, u32(5), "clusters"), (20, u32(40), "clusters"),
    (24, u64(1 << 63), "larger than any disk"), (24, u64(1 << 40), "L1 table is too small"),
    (32, u32(1), "AES"), (32, u32(2), "LUKS"),
    (36, u32(0xffffffff), "L1 table is too large"), (36, u32(1 << 22), "L1 table is not where"),
    (40, u64(0x30001), "L1 table is not where"), (40, u64(1 << 62), "L1 table is not where"),
    (48, u64(7), "refcount table is not where"), (48, u64(1 << 55), "refcount table is not where"),
    (56, u32(0), "refcount table has an impossible size"),
    (56, u32(0xffffffff), "refcount table has an impossible size"),
    (60, u32(1 << 30), "too many snapshots"), (60, u32(5), "table of snapshots"),
    (72, u64(4), "external data file"), (72, u64(16), "extended L2"),
    (72, u64(1 << 40), "incompatible feature 40"), (72, u64(8), "compression type"),
    (96, u32(7), "refcounts are wider"), (100, u32(1 << 20), "header has an impossible length"),
    (112, u32(0x6803f857) + u32(1 << 30), "extension is longer"),
])
def test_a_hostile_header_is_refused_and_named(lodge, tmp_path, offset, data, words):
    lodge("create", "a.qcow2", "1G")
    patch(tmp_path / "a.qcow2", offset, data)
    for verb in ("info", "check"):
        result = lodge(verb, "a.qcow2", status=1)
        assert result.stderr.count("\n") == 1 and "'a.qcow2'" in result.stderr
        assert words in result.stderr, result.stderr


def test_an_unknown_feature_is_named_by_the_image(lodge, tmp_path):
    lodge("create", "a.qcow2", "1G")
    patch(tmp_path / "a.qcow2", 112 + 8, bytes([0, 40]) + b"time travel".ljust(46, b"\0"))
    patch(tmp_path / "a.qcow2", 72, u64(1 << 40))
    assert "time travel" in lodge("info", "a.qcow2", status=1).stderr


def tables(path):
    """Offsets of the L1 table and of the first L2 table."""
    with open(path, "rb") as file:
        header = file.read(104)
        l1 = struct.unpack_from(">Q", header, 40)[0]
        file.seek(l1)
        return l1, struct.unpack(">Q", file.read(8))[0] & 0xfffffffffffe00


@pytest.mark.parametrize("entry", [
    (1 << 63) | 0x50200, (1 << 63) | (1 << 50), 1 << 63, (3 << 62) | 0x50000,
    (1 << 62) | (0x3fff << 48) | (1 << 47),
])
def test_an_entry_that_cannot_be_is_an_error(qemu, lodge, tmp_path, entry):
    lodge("create", "a.qcow2", "64M")
    qemu("io", "-c", "write -P 5 0 1M", "a.qcow2")
    _, l2 = tables(tmp_path / "a.qcow2")
    patch(tmp_path / "a.qcow2", l2 + 8, u64(entry))
    assert "Input/output error" in lodge("convert", "a.qcow2", "b.raw", status=1).stderr
    assert not os.path.exists(tmp_path / "b.raw")
    assert "errors" in lodge("check", "a.qcow2", status=1).stdout


@pytest.mark.parametrize("to", ["header", "l1", "l2", "refcounts"])
def test_the_guest_cannot_write_tables(qemu, lodge, harness, tmp_path, to):
    """An L2 entry that points at a table: no write of the guest's changes it."""
    image = tmp_path / "a.qcow2"
    lodge("create", image, "64M")
    qemu("io", "-c", "write -P 5 0 64M", "a.qcow2")
    l1, l2 = tables(image)
    there = {"header": 0, "l1": l1, "l2": l2, "refcounts": 2 << 16}[to]
    if there:
        for i in range(1024):
            patch(image, l2 + 8 * i, u64((1 << 63) | there))
    else:
        patch(image, l2, u64((1 << 63) | 512) * 1024)
    before = image.read_bytes()
    result = subprocess.run([harness.program, "speed", "a.qcow2", "qcow2", "1", "1", "unsafe"],
                            cwd=tmp_path, capture_output=True, text=True)
    assert result.returncode == 1 and "Input/output error" in result.stderr
    after = image.read_bytes()
    # But for the mark in the header that says so.
    assert before[:72] == after[:72] and before[80:] == after[80:]
    if to != "header":
        assert after[79] & 2
        assert "damaged" in lodge("info", "a.qcow2").stdout
        assert "marked as damaged" in lodge("resize", "a.qcow2", "1G", status=1).stderr


def test_tables_in_one_place_are_not_written(qemu, lodge, tmp_path):
    lodge("create", "a.qcow2", "2G")
    qemu("io", "-c", "write -P 5 0 64k", "a.qcow2")
    l1, l2 = tables(tmp_path / "a.qcow2")
    patch(tmp_path / "a.qcow2", l1 + 8, u64((1 << 63) | l2))
    assert "tables lie where they cannot" in lodge("resize", "a.qcow2", "3G", status=1).stderr


def test_a_name_that_json_cannot_hold(bin_folder, tmp_path):
    path = os.fsencode(tmp_path) + b"/\xff.img"
    with open(path, "wb") as file:
        file.truncate(1 << 20)
    result = subprocess.run([f"{bin_folder}/lodge", "disk", "info", "--format", "json", path],
                            capture_output=True, timeout=60, check=False)
    assert (result.returncode, result.stdout) == (1, b"") and b"names in UTF-8" in result.stderr


def test_a_chain_without_end(qemu, lodge, tmp_path):
    qemu("img", "create", "-q", "-f", "qcow2", "a.qcow2", "1M")
    qemu("img", "create", "-q", "-f", "qcow2", "-F", "qcow2", "-b", "a.qcow2", "b.qcow2")
    qemu("img", "rebase", "-u", "-F", "qcow2", "-b", "b.qcow2", "a.qcow2")
    assert "stands on itself" in lodge("convert", "a.qcow2", "c.raw", status=1).stderr


def test_a_chain_too_deep(lodge):
    lodge("create", "0.qcow2", "1M")
    for i in range(64):
        lodge("create", "--backing", f"{i}.qcow2", "--backing-type", "qcow2", f"{i + 1}.qcow2",
              "1M")
    lodge("convert", "64.qcow2", "deep.raw")
    lodge("create", "--backing", "64.qcow2", "--backing-type", "qcow2", "65.qcow2", "1M")
    assert "more than 64" in lodge("convert", "65.qcow2", "deeper.raw", status=1).stderr


def test_a_guest_cannot_name_a_file_of_the_host(qemu, lodge, tmp_path):
    """A raw disk whose guest wrote a qcow2 header into it is no reason to open what that names."""
    (tmp_path / "secret").write_bytes(b"secret!!" * 8192)
    qemu("img", "create", "-q", "-f", "qcow2", "-F", "raw", "-b", "secret", "disk.raw")
    lodge("create", "--backing", "disk.raw", "--backing-type", "raw", "over.qcow2", "1M")
    lodge("convert", "--type", "raw", "over.qcow2", "said.raw")
    assert b"secret!!" not in (tmp_path / "said.raw").read_bytes()
    # The same image, but without a word about the format of its backing.
    image = (tmp_path / "over.qcow2").read_bytes()
    at = image.index(u32(0xe2792aca) + u32(3))
    patch(tmp_path / "over.qcow2", at, u32(0x12345678))
    result = lodge("convert", "over.qcow2", "probed.raw", status=1)
    assert "does not say" in result.stderr and "rebase" in result.stderr


def test_lazy_refcounts_are_mended(qemu, lodge, harness, tmp_path):
    """A writer with lazy refcounts that did not live to write them: QEMU's, killed."""
    qemu("img", "create", "-q", "-f", "qcow2", "-o", "lazy_refcounts=on", "a.qcow2", "64M")
    qemu("io", "-c", "write -P 9 0 5M", "-c", "flush", "-c", "sigraise 9", "a.qcow2", check=False)
    assert json.loads(lodge("info", "--format", "json", "a.qcow2").stdout)["dirty"]
    harness("random", "a.qcow2", "qcow2", 5, 100, 2, "writeback", "model")
    assert not json.loads(lodge("info", "--format", "json", "a.qcow2").stdout)["dirty"]
    sound(qemu, lodge, "a.qcow2")


@pytest.mark.parametrize("offset, data", [
    (2 << 16, bytes(64)), (2 << 16, b"\xff" * 64), (1 << 16, bytes(8)), (1 << 16, u64(0x12345)),
    (1 << 16, u64(3 << 16)),
])
def test_lost_refcounts_are_mended(qemu, lodge, tmp_path, offset, data):
    lodge("create", "a.qcow2", "64M")
    qemu("io", "-c", "write -P 5 1M 2M", "-c", "write -z 2M 64k", "a.qcow2")
    qemu("img", "convert", "-O", "raw", "a.qcow2", "before.raw")
    patch(tmp_path / "a.qcow2", offset, data)
    assert "errors" in subprocess.run(["qemu-img", "check", "a.qcow2"], cwd=tmp_path, text=True,
                                      capture_output=True).stdout
    assert "mended" in lodge("check", "--repair", "a.qcow2").stdout
    sound(qemu, lodge, "a.qcow2")
    qemu("img", "compare", "-q", "-f", "qcow2", "-F", "raw", "a.qcow2", "before.raw")


def first_reftable_entry(path):
    with open(path, "rb") as file:
        return struct.unpack_from(">Q", file.read(104), 48)[0]


def test_a_mended_disk_is_no_damaged_one(qemu, lodge, tmp_path):
    """Refcounts that are built anew are the end of the mark."""
    qemu("img", "create", "-q", "-f", "qcow2", "a.qcow2", "8M")
    qemu("io", "-c", "write -P 7 0 1M", "a.qcow2")
    patch(tmp_path / "a.qcow2", first_reftable_entry(tmp_path / "a.qcow2"), bytes(8))
    patch(tmp_path / "a.qcow2", 72, u64(2))
    lodge("check", "--repair", "a.qcow2")
    lodge("resize", "a.qcow2", "+1M")
    sound(qemu, lodge, "a.qcow2")


def test_a_refcount_that_has_no_room_stays_an_error(qemu, lodge, tmp_path):
    """One bit cannot count to two: such a disk is not written to, whatever is mended."""
    qemu("img", "create", "-q", "-f", "qcow2", "-o", "refcount_bits=1", "a.qcow2", "8M")
    qemu("io", "-c", "write -P 7 0 128k", "a.qcow2")
    _, l2 = tables(tmp_path / "a.qcow2")
    with open(tmp_path / "a.qcow2", "rb") as file:
        file.seek(l2)
        entry = file.read(8)
    patch(tmp_path / "a.qcow2", l2 + 8, entry)
    patch(tmp_path / "a.qcow2", first_reftable_entry(tmp_path / "a.qcow2"), bytes(8))
    patch(tmp_path / "a.qcow2", 72, u64(1))  # dirty: whoever opens it for writing mends first
    assert "errors" in lodge("check", "--repair", "a.qcow2", status=1).stdout
    assert "can only be read" in lodge("resize", "a.qcow2", "+1M", status=1).stderr
    with open(tmp_path / "a.qcow2", "rb") as file:
        file.seek(72)
        assert file.read(8) == u64(1)


def test_a_table_that_stands_everywhere_is_no_endless_work(lodge, tmp_path):
    lodge("create", "--cluster-size", "64K", "a.qcow2", "4T")
    l1 = tables(tmp_path / "a.qcow2")[0]
    end = os.stat(tmp_path / "a.qcow2").st_size
    l2 = (end + 65535) // 65536 * 65536
    patch(tmp_path / "a.qcow2", l2, (u64(1 << 63 | l2 + 65536) * 8192)[:65536])
    patch(tmp_path / "a.qcow2", l2 + 65536, bytes(65536))
    patch(tmp_path / "a.qcow2", l1, u64(1 << 63 | l2) * 8192)
    patch(tmp_path / "a.qcow2", 72, u64(1))
    began = time.monotonic()
    result = lodge("check", "a.qcow2", status=1)
    assert "used more often than there are disks" in result.stdout
    assert time.monotonic() - began < 20


def test_bitmaps_are_not_believed_after_a_write(qemu, lodge, harness, tmp_path):
    qemu("img", "create", "-q", "-f", "qcow2", "a.qcow2", "8M")
    qemu("img", "bitmap", "--add", "a.qcow2", "b")
    assert "bitmaps" in qemu("img", "info", "a.qcow2").stdout
    harness("random", "a.qcow2", "qcow2", 5, 100, 2, "writeback", "model")
    with open(tmp_path / "a.qcow2", "rb") as file:
        assert file.read(96)[88:] == bytes(8)
    assert qemu("img", "check", "-q", "a.qcow2", check=False).returncode == 3
    lodge("check", "a.qcow2", status=3)
    lodge("check", "--repair", "a.qcow2")
    sound(qemu, lodge, "a.qcow2")


# --- the command ---

def test_create_and_info(qemu, lodge):
    lodge("create", "base.raw", "10M", "--type", "raw")
    lodge("create", "--backing", "base.raw", "--backing-type", "raw", "--cluster-size", "4K",
          "a.qcow2")
    about = json.loads(lodge("info", "--format", "json", "a.qcow2").stdout)
    assert about["size"] == 10 << 20 and about["cluster_size"] == 4096
    assert about["backing"] == "base.raw" and about["backing_type"] == "raw"
    theirs = json.loads(qemu("img", "info", "--output=json", "a.qcow2").stdout)
    assert theirs["virtual-size"] == 10 << 20 and theirs["cluster-size"] == 4096
    assert theirs["backing-filename-format"] == "raw"
    table = lodge("info", "a.qcow2").stdout
    assert "base.raw (raw)" in table and "10.0 MiB" in table


def test_a_disk_is_looked_at_without_its_backing(lodge, tmp_path):
    lodge("create", "base.raw", "10M", "--type", "raw")
    lodge("create", "--backing", "base.raw", "--backing-type", "raw", "a.qcow2")
    os.unlink(tmp_path / "base.raw")
    assert "base.raw" in lodge("info", "a.qcow2").stdout
    assert "'base.raw'" in lodge("convert", "a.qcow2", "b.qcow2", status=1).stderr


@pytest.mark.parametrize("kind", ["qcow2", "raw"])
def test_preallocation_takes_the_space(qemu, lodge, tmp_path, kind):
    lodge("create", "--preallocate", "--type", kind, "a", "20M")
    assert os.stat(tmp_path / "a").st_blocks * 512 >= 20 << 20
    qemu("io", "-r", "-f", kind, "-c", "read -P 0 0 20M", "a")
    if kind == "qcow2":
        sound(qemu, lodge, "a")


@pytest.mark.parametrize("cluster", ["512", "64K"])
def test_resize(qemu, lodge, tmp_path, cluster):
    lodge("create", "--cluster-size", cluster, "a.qcow2", "4M")
    qemu("io", "-c", "write -P 5 0 4M", "a.qcow2")
    lodge("resize", "a.qcow2", "+1G")
    assert json.loads(lodge("info", "--format", "json", "a.qcow2").stdout)["size"] == 1028 << 20
    qemu("io", "-r", "-c", "read -P 5 0 4M", "-c", "read -P 0 4M 8M",
         "-c", "read -P 0 1020M 8M", "a.qcow2")
    sound(qemu, lodge, "a.qcow2")
    assert "--shrink" in lodge("resize", "a.qcow2", "3M", status=1).stderr
    lodge("resize", "--shrink", "a.qcow2", "3584K")
    lodge("resize", "a.qcow2", "8M")
    qemu("io", "-r", "-c", "read -P 5 0 3584k", "-c", "read -P 0 3584k 512k", "a.qcow2")
    sound(qemu, lodge, "a.qcow2")


def test_growth_does_not_uncover_a_longer_backing(qemu, lodge, tmp_path):
    pattern(tmp_path / "base.raw", 4 << 20)
    lodge("create", "--backing", "base.raw", "--backing-type", "raw", "a.qcow2", "1M")
    lodge("resize", "a.qcow2", "8M")
    qemu("io", "-r", "-c", "read -P 0 1M 7M", "a.qcow2")
    sound(qemu, lodge, "a.qcow2")


@pytest.mark.parametrize("kind", ["qcow2", "raw"])
def test_convert(qemu, lodge, tmp_path, kind):
    pattern(tmp_path / "a.raw", (8 << 20) + 512)
    lodge("convert", "--type", kind, "a.raw", "b")
    qemu("img", "compare", "-q", "-f", "raw", "-F", kind, "a.raw", "b")
    assert os.stat(tmp_path / "b").st_blocks <= os.stat(tmp_path / "a.raw").st_blocks * 1.1 + 1024
    if kind == "qcow2":
        sound(qemu, lodge, "b")


def test_what_qemu_writes_to_is_kept_away_from(qemu, lodge, tmp_path):
    qemu("img", "create", "-q", "-f", "qcow2", "base.qcow2", "1M")
    lodge("create", "--backing", "base.qcow2", "--backing-type", "qcow2", "top.qcow2")
    io = subprocess.Popen(["qemu-io", "base.qcow2"], cwd=tmp_path, stdin=subprocess.PIPE,
                          stdout=subprocess.PIPE, text=True)
    try:
        io.stdin.write("read 0 512\n")
        io.stdin.flush()
        assert "read 512/512" in io.stdout.readline().replace("qemu-io> ", "")
        for words in (("resize", "base.qcow2", "2M"), ("check", "base.qcow2"),
                      ("convert", "top.qcow2", "copy.raw")):
            assert "is in use by a guest or another program" in lodge(*words, status=1).stderr
        assert "1.0 MiB" in lodge("info", "base.qcow2").stdout
    finally:
        io.stdin.close()
        assert io.wait(timeout=20) == 0
    lodge("convert", "top.qcow2", "copy2.raw")


def test_nothing_is_overwritten(lodge, tmp_path):
    (tmp_path / "a").write_text("precious")
    (tmp_path / "b").write_bytes(bytes(4096))
    assert "exists" in lodge("create", "a", "1M", status=1).stderr
    assert "nothing is overwritten" in lodge("convert", "b", "a", status=1).stderr
    assert (tmp_path / "a").read_text() == "precious"


@pytest.mark.parametrize("words", [
    ["create"], ["create", "a"], ["create", "a", "big"], ["create", "--type", "vmdk", "a", "1G"],
    ["create", "--cluster-size", "3K", "a", "1G"], ["create", "--backing", "b", "a"], ["info"],
    ["resize", "a"], ["convert", "a"], ["check"], ["info", "--format", "xml", "a"],
])
def test_mistakes(lodge, tmp_path, words):
    result = lodge(*words, status=2)
    assert result.stderr.startswith("lodge: ") and result.stderr.count("\n") == 1
    assert not os.listdir(tmp_path)


def test_leaks_have_a_status_of_their_own(lodge, tmp_path):
    lodge("create", "a.qcow2", "64M")
    patch(tmp_path / "a.qcow2", (2 << 16) + 2 * 100, b"\0\1")
    with open(tmp_path / "a.qcow2", "r+b") as file:
        file.truncate(101 << 16)
    result = lodge("check", "a.qcow2", status=3)
    assert "1 leaked" in result.stdout
    lodge("check", "--repair", "a.qcow2")
    lodge("check", "a.qcow2")
