"""Encrypted disks: cryptsetup and QEMU judge what ours writes, and ours reads what they write."""
import json
import os
import random
import shutil
import subprocess

import pytest

TOP = os.path.dirname(os.path.dirname(os.path.abspath(__file__)))
ENGINE = os.environ.get("LODGE_TEST_ENGINE", "soft")
MIB = 1 << 20
needs_cryptsetup = pytest.mark.skipif(not shutil.which("cryptsetup"),
                                      reason="cryptsetup is not installed")
needs_qemu = pytest.mark.skipif(not shutil.which("qemu-img"), reason="qemu-img is not installed")


@pytest.fixture
def call(tmp_path):
    def run(*words, status=0, **more):
        result = subprocess.run([str(word) for word in words], cwd=tmp_path, capture_output=True,
                                timeout=240, stdin=subprocess.DEVNULL, **more)
        assert result.returncode == status, (words, result.stdout[-2000:], result.stderr)
        return result
    return run


@pytest.fixture
def disk(bin_folder, call):
    return lambda *words, **more: call(f"{bin_folder}/lodge", "disk", *words, **more)


@pytest.fixture
def keys(tmp_path):
    (tmp_path / "key").write_bytes(b"a passphrase, with its newline\n")
    (tmp_path / "other").write_bytes(bytes(range(1, 200)))


@pytest.fixture
def data(tmp_path):
    """Noise, then zeros, then noise."""
    noise = random.Random(7).randbytes(3 * MIB + 512)
    (tmp_path / "data").write_bytes(noise + bytes(2 * MIB) + noise[:MIB - 512] + bytes(2 * MIB))
    return (tmp_path / "data").read_bytes()


def create(disk, *words):
    disk("create", "--encrypt", "--key-file", "key", "--iter-time", "50", *words)


# --- ours, judged by cryptsetup ---

@needs_cryptsetup
@pytest.mark.parametrize("kdf", ["argon2id", "pbkdf2"])
def test_cryptsetup_opens_ours(disk, call, keys, kdf):
    create(disk, "--type", "raw", "--kdf", kdf, "a.luks", "4M")
    dump = call("cryptsetup", "luksDump", "a.luks").stdout.decode()
    for line in ("Version:       \t2", "cipher: aes-xts-plain64", f"PBKDF:      {kdf}",
                 "AF stripes: 4000", "Key:        512 bits"):
        assert line in dump, dump
    call("cryptsetup", "open", "--test-passphrase", "--key-file", "key", "a.luks")
    call("cryptsetup", "open", "--test-passphrase", "--key-file", "other", "a.luks", status=2)


@needs_cryptsetup
def test_cryptsetup_changes_keys_of_ours(disk, call, keys):
    create(disk, "--type", "raw", "a.luks", "4M")
    call("cryptsetup", "luksAddKey", "--iter-time", "50", "--key-file", "key", "a.luks", "other")
    assert b"slots 0 (argon2id) 1 (argon2id)" in disk("info", "a.luks").stdout
    disk("info", "--key-file", "other", "a.luks")
    call("cryptsetup", "luksRemoveKey", "-q", "a.luks", "key")
    disk("info", "--key-file", "other", "a.luks")
    assert b"no key slot opens" in disk("info", "--key-file", "key", "a.luks", status=1).stderr


def plaintext(call, tmp_path, image, key, offset, sector):
    """What a container holds, by cryptsetup's word on its key and Python's AES-XTS."""
    ciphers = pytest.importorskip("cryptography.hazmat.primitives.ciphers")
    call("cryptsetup", "luksDump", "-q", "--dump-volume-key", "--volume-key-file", "volume-key",
         "--key-file", key, image)
    volume_key = (tmp_path / "volume-key").read_bytes()
    bytes_in = (tmp_path / image).read_bytes()[offset:]
    out = []
    for at in range(0, len(bytes_in), sector):
        tweak = (at // 512).to_bytes(16, "little")
        cipher = ciphers.Cipher(ciphers.algorithms.AES(volume_key), ciphers.modes.XTS(tweak))
        out.append(cipher.decryptor().update(bytes_in[at:at + sector]))
    return b"".join(out)


@needs_cryptsetup
def test_what_ours_wrote_another_reads(disk, call, keys, data, tmp_path):
    disk("convert", "--from-type", "raw", "--type", "raw", "--preallocate", "--encrypt",
         "--key-file", "key", "--iter-time", "50", "data", "a.luks")
    assert plaintext(call, tmp_path, "a.luks", "key", 16 * MIB, 512) == data


@needs_cryptsetup
def test_sectors_of_4096(disk, call, keys, data, tmp_path):
    """cryptsetup makes the container, ours fills it, a third one reads it."""
    with open(tmp_path / "a.luks", "wb") as file:
        file.truncate(16 * MIB + len(data))
    call("cryptsetup", "luksFormat", "-q", "--type", "luks2", "--sector-size", "4096", "--pbkdf",
         "pbkdf2", "--iter-time", "50", "--key-file", "key", "a.luks")
    folder = os.environ.get("LODGE_BUILD", f"{TOP}/build")
    call(f"{folder}/src/disk/disk_harness", "random", "a.luks", "raw", 5, 600, 4, "writeback",
         "model", env=dict(os.environ, LODGE_DISK_KEY="key"))
    disk("convert", "--from-type", "raw", "--from-key-file", "key", "--type", "raw", "a.luks", "back")
    model = (tmp_path / "model").read_bytes()
    assert len(model) == len(data)
    assert (tmp_path / "back").read_bytes() == model
    read = plaintext(call, tmp_path, "a.luks", "key", 16 * MIB, 4096)
    raw = (tmp_path / "a.luks").read_bytes()[16 * MIB:]
    for at in range(0, len(model), 4096):  # what was never written is noise to others
        if raw[at:at + 4096] != bytes(4096):
            assert read[at:at + 4096] == model[at:at + 4096], at


# --- theirs, opened by ours ---

@needs_cryptsetup
@pytest.mark.parametrize("options", [
    "--type luks1", "--type luks1 --hash sha1 --key-size 256", "--type luks1 --hash sha512",
    "--type luks2 --pbkdf pbkdf2", "--type luks2 --pbkdf pbkdf2 --hash sha512",
    "--type luks2 --pbkdf argon2id", "--type luks2 --pbkdf argon2i --key-size 256",
    "--type luks2 --sector-size 512 --luks2-metadata-size 64k", "--type luks2 --key-slot 9",
])
def test_ours_opens_those_of_cryptsetup(disk, call, keys, tmp_path, options):
    with open(tmp_path / "c.luks", "wb") as file:
        file.truncate(24 * MIB)
    call("cryptsetup", "luksFormat", "-q", "--iter-time", "50", "--cipher", "aes-xts-plain64",
         *options.split(), "--key-file", "key", "c.luks")
    found = json.loads(disk("info", "--format", "json", "--key-file", "key", "c.luks").stdout)
    assert found["type"] == "raw" and 4 * MIB <= found["size"] < 24 * MIB
    assert found["encryption"].startswith("LUKS1" if "luks1" in options else "LUKS2")
    assert b"no key slot opens" in disk("info", "--key-file", "other", "c.luks", status=1).stderr


@needs_cryptsetup
def test_other_ciphers_are_refused_by_name(disk, call, keys, tmp_path):
    with open(tmp_path / "c.luks", "wb") as file:
        file.truncate(24 * MIB)
    call("cryptsetup", "luksFormat", "-q", "--iter-time", "50", "--cipher", "aes-cbc-essiv:sha256",
         "--key-size", "256", "--type", "luks1", "--key-file", "key", "c.luks")
    assert b"aes-cbc-essiv:sha256" in disk("info", "--key-file", "key", "c.luks", status=1).stderr


@needs_qemu
def test_images_of_qemu_hold_the_same(disk, call, keys, data, tmp_path):
    secret = ["--object", "secret,id=s,file=key"]
    call("qemu-img", "convert", *secret, "-O", "luks", "-o", "key-secret=s,iter-time=50", "data",
         "q.luks")
    disk("convert", "--from-type", "raw", "--from-key-file", "key", "--type", "raw", "q.luks", "back")
    assert (tmp_path / "back").read_bytes() == data
    # Written by ours, read by theirs.
    folder = os.environ.get("LODGE_BUILD", f"{TOP}/build")
    call(f"{folder}/src/disk/disk_harness", "random", "q.luks", "raw", 9, 500, 3, "writeback",
         "model", env=dict(os.environ, LODGE_DISK_KEY="key"))
    call("qemu-img", "convert", *secret, "--image-opts",
         "driver=luks,file.filename=q.luks,key-secret=s", "-O", "raw", "theirs")
    disk("convert", "--from-type", "raw", "--from-key-file", "key", "--type", "raw", "q.luks", "ours")
    model = (tmp_path / "model").read_bytes()
    assert (tmp_path / "ours").read_bytes() == model
    theirs = (tmp_path / "theirs").read_bytes()
    raw = (tmp_path / "q.luks").read_bytes()[-len(model):]
    for at in range(0, len(model), 512):
        if raw[at:at + 512] != bytes(512):
            assert theirs[at:at + 512] == model[at:at + 512], at


@needs_qemu
def test_qcow2_inside_is_sound(disk, call, keys, tmp_path):
    create(disk, "--type", "qcow2", "a.luks", "64M")
    folder = os.environ.get("LODGE_BUILD", f"{TOP}/build")
    call(f"{folder}/src/disk/disk_harness", "random", "a.luks", "qcow2", 4, 500, 4, "writeback",
         "model", env=dict(os.environ, LODGE_DISK_KEY="key"))
    assert disk("check", "--key-file", "key", "a.luks").stdout == b"no errors\n"
    disk("convert", "--from-key-file", "key", "--type", "raw", "a.luks", "back")
    call("qemu-img", "compare", "-q", "-f", "raw", "-F", "raw", "back", "model")
    # The image itself, once it is out of its container, is as good as any.
    disk("convert", "--from-type", "raw", "--from-key-file", "key", "--type", "raw", "a.luks",
         "inner.qcow2")
    call("qemu-img", "check", "-q", "-f", "qcow2", "inner.qcow2")
    call("qemu-img", "compare", "-q", "-f", "qcow2", "-F", "raw", "inner.qcow2", "model")


# --- the command ---

def test_the_key_comes_from_a_descriptor_too(disk, bin_folder, keys, tmp_path):
    create(disk, "--type", "raw", "a.luks", "1M")
    key = (tmp_path / "key").read_bytes()
    words = [f"{bin_folder}/lodge", "disk", "info", "--key-file"]
    good = subprocess.run([*words, "-", "a.luks"], cwd=tmp_path, input=key, capture_output=True)
    assert good.returncode == 0, good.stderr
    with open(tmp_path / "key", "rb") as file:
        good = subprocess.run([*words, f"/dev/fd/{file.fileno()}", "a.luks"], cwd=tmp_path,
                              pass_fds=[file.fileno()], capture_output=True)
    assert good.returncode == 0, good.stderr


def test_an_encrypted_disk_grows(disk, keys):
    create(disk, "--type", "raw", "a.luks", "1M")
    disk("resize", "--type", "raw", "--key-file", "key", "a.luks", "+3M")
    found = json.loads(disk("info", "--format", "json", "--key-file", "key", "a.luks").stdout)
    assert found["size"] == 4 * MIB


@pytest.mark.parametrize("words, why", [
    (["create", "--encrypt", "x", "1M"], b"--encrypt needs --key-file"),
    (["create", "--key-file", "key", "x", "1M"], b"--key-file is for --encrypt"),
    (["create", "--kdf", "pbkdf2", "x", "1M"], b"are for --encrypt"),
    (["create", "--encrypt", "--key-file", "key", "--kdf", "md5", "x", "1M"], b"--kdf is"),
    (["create", "--encrypt", "--key-file", "key", "--iter-time", "0", "x", "1M"], b"--iter-time"),
])
def test_mistakes(disk, keys, tmp_path, words, why):
    assert why in disk(*words, status=2).stderr
    assert not (tmp_path / "x").exists()


def test_a_key_for_a_plain_disk_is_an_error(disk, keys, tmp_path):
    disk("create", "--type", "raw", "plain", "1M")
    assert b"no LUKS container" in disk("info", "--key-file", "key", "plain", status=1).stderr


# --- in a guest ---

def test_a_guest_on_an_encrypted_disk(lodge, disk, keys, tmp_path):
    create(disk, "--type", "raw", "a.luks", "8M")
    noise = random.Random(3).randbytes(MIB)
    run = [lodge, "run", "--engine", ENGINE, "--disk", f"{tmp_path}/a.luks,key_file={tmp_path}/key"]
    result = subprocess.run([*run, "--", "sh", "-c",
                             "dd of=/dev/vda bs=64k seek=3 iflag=fullblock conv=fsync 2>/dev/null; "
                             "echo 3 >/proc/sys/vm/drop_caches; cat /dev/vda"],
                            input=noise, capture_output=True, timeout=240)
    assert result.returncode == 0, result.stderr
    want = bytes(3 << 16) + noise + bytes(7 * MIB - (3 << 16))
    assert result.stdout == want
    disk("convert", "--from-type", "raw", "--from-key-file", "key", "--type", "raw", "a.luks", "back")
    assert (tmp_path / "back").read_bytes() == want
    assert noise[:64] not in (tmp_path / "a.luks").read_bytes()


def test_a_guest_does_not_start_with_the_wrong_key(lodge, disk, keys, tmp_path):
    create(disk, "--type", "raw", "a.luks", "8M")
    result = subprocess.run([lodge, "run", "--engine", ENGINE, "--disk",
                             f"{tmp_path}/a.luks,key_file={tmp_path}/other", "--", "true"],
                            capture_output=True, timeout=240)
    assert result.returncode == 125 and b"no key slot opens" in result.stderr
