"""Disks of guests that are written to folders and go on: docs/snapshot.md, "Disks"."""
import contextlib
import json
import os
import random
import signal
import subprocess
import time
from concurrent.futures import ThreadPoolExecutor

import pytest
from test_snapshot import ENGINE, MIB, TIMEOUT, rows, tools  # noqa: F401: a fixture

# Counts on each disk, in a ring of eight places of 8 bytes; what it says is on the disks.
COUNTER = """
echo $$ >/tmp/pid
write() { printf %08d $1 | dd of=/dev/$2 bs=8 seek=$(($1 % 8)) conv=notrunc,fsync 2>/dev/null; }
i=0
echo ready
while :; do
    i=$((i + 1)); for disk in DISKS; do write $i $disk; done; echo $i >/tmp/count; echo $i; sleep 0.01
done
"""
# What the disks hold by themselves, and what the guest remembers.
LOOK = """
kill -STOP $(cat /tmp/pid) 2>/dev/null; echo 3 >/proc/sys/vm/drop_caches
for disk in DISKS; do head -c 64 /dev/$disk; echo; done; cat /tmp/count
"""


def script(text, *disks):
    return text.replace("DISKS", " ".join(disks))


def newest(text):
    return max(int(text[i:i + 8].strip("\0") or 0) for i in range(0, len(text), 8))


def wait_for(guest, number):
    """The guest's count, once it is so high."""
    while True:
        line = guest.stdout.readline()
        assert line, "the guest has ended"
        if int(line) >= number:
            return int(line)


def go_on(guest, more=5):
    """It counts on, beyond what it may have said before."""
    os.set_blocking(guest.stdout.fileno(), False)
    last = 0
    while line := guest.stdout.readline():
        last = int(line)
    os.set_blocking(guest.stdout.fileno(), True)
    return wait_for(guest, last + more)


def check_look(text, disks):
    """Each disk has what the guest had written when it was saved, and nothing later."""
    words = rows(text)
    count = int(words[-1])
    for word in words[:-1]:
        assert newest(word) in (count, count + 1), text
    assert len(words) == disks + 1
    return count


def vmm_of(guest):
    with open(f"/proc/{guest.pid}/task/{guest.pid}/children", encoding="ascii") as children:
        for child in children.read().split():
            with open(f"/proc/{child}/comm", encoding="ascii") as name:
                if name.read() == "lodge-vmm\n":
                    return int(child)
    raise AssertionError("no lodge-vmm among its children")


def end(guest):
    """The VMM goes with it, and its locks with that."""
    vmm = vmm_of(guest)
    guest.kill()
    guest.wait()
    while os.path.exists(f"/proc/{vmm}"):
        time.sleep(0.01)


def img(*words):
    subprocess.run(["qemu-img", *map(str, words)], check=True, capture_output=True)


def backing(path):
    info = subprocess.run(["qemu-img", "info", "-U", "--output=json", path], check=True,
                          capture_output=True).stdout
    return json.loads(info).get("backing-filename")


def own_disks(folder):
    return sorted(name for name in os.listdir(folder) if name.startswith("disk"))


@pytest.fixture
def disks(tools, tmp_path):  # noqa: F811
    """One of each kind that is kept in its own way."""
    (tmp_path / "key").write_bytes(b"open sesame")
    img("create", "-f", "raw", tmp_path / "base.img", "4M")
    img("create", "-f", "qcow2", "-b", "base.img", "-F", "raw", tmp_path / "web.qcow2")
    img("create", "-f", "raw", tmp_path / "raw.img", "3M")
    tools.run("disk", "create", "--type", "raw", "--encrypt", "--key-file", "key", "--kdf", "pbkdf2",
              "--iter-time", "10", "enc.img", "1M")
    return ["--disk", "web.qcow2", "--disk", "raw.img", "--disk", "enc.img,key_file=key"]


def interrupt(tools, guest, folder):  # noqa: F811
    """Ctrl-C while the VMM is slow: no folder, no file beside the disks, and the guest goes on."""
    vmm = vmm_of(guest)
    before = sorted(os.listdir(folder))
    for number in (signal.SIGINT, signal.SIGTERM):
        os.kill(vmm, signal.SIGSTOP)
        taking = subprocess.Popen([tools.lodge, "snapshot", "web", "snap"], cwd=folder,
                                  stderr=subprocess.PIPE)
        try:
            while not (folder / "snap" / "memory").exists():
                time.sleep(0.01)
            time.sleep(0.3)
            taking.send_signal(number)
            assert taking.wait(TIMEOUT) == 128 + number
        finally:
            os.kill(vmm, signal.SIGCONT)
        assert taking.stderr.read() == b"" and sorted(os.listdir(folder)) == before
        go_on(guest)


def test_a_guest_that_writes_goes_on(tools, disks, tmp_path):  # noqa: F811
    """Each snapshot keeps the disks of its moment; the guest goes on in the files that it had."""
    names = ("vda", "vdb", "vdc")
    guest = tools.start("web", script(COUNTER, *names), *disks)
    wait_for(guest, 3)
    interrupt(tools, guest, tmp_path)
    said = tools.run("snapshot", "web", "monday").stderr.decode()
    go_on(guest, 100)  # restored guests count on, too, until they are looked at
    tools.run("snapshot", "--base", "monday", "web", "tuesday")
    go_on(guest)

    clones = own_disks(tmp_path / "monday") == ["disk0.qcow2", "disk1.img", "disk2.luks"]
    if not clones:  # a file system without reflinks
        assert own_disks(tmp_path / "monday") == ["disk1.img", "disk2.luks"]
        assert f"'{tmp_path}/web.qcow2' stands on '{tmp_path}/web.1.qcow2'" in said
        assert [backing(tmp_path / name) for name in ("web.qcow2", "web.2.qcow2", "web.1.qcow2")] == \
            ["web.2.qcow2", "web.1.qcow2", "base.img"]
    look = script(LOOK, *names)
    with ThreadPoolExecutor() as pool:  # beside each other, and beside the first
        texts = list(pool.map(lambda name: tools.restored(name, look),
                              ("monday", "tuesday", "monday")))
    counts = [check_look(text, 3) for text in texts]
    assert abs(counts[0] - counts[2]) < 50 and max(counts[0], counts[2]) < counts[1]
    end(guest)
    with open(tmp_path / "raw.img", "rb") as file:
        assert newest(file.read(64).decode()) > counts[1]
    img("convert", "-O", "raw", tmp_path / "web.qcow2", tmp_path / "flat")
    assert newest((tmp_path / "flat").read_bytes()[:64].decode()) > counts[1]
    for path in tmp_path.glob("**/*.qcow2"):
        img("check", path)
    # The guest's disks are the user's own as before: without the snapshots nothing is missing.
    tools.run("run", "--engine", ENGINE, *disks, "--", "sh", "-c",
              "for d in a b c; do [ $(head -c 8 /dev/vd$d | tr -d 0) -gt 0 ] || exit 1; done")
    assert abs(check_look(tools.restored("monday", look), 3) - counts[0]) < 50


def test_a_restored_guest_is_saved_with_its_disks(tools, tmp_path):  # noqa: F811
    """And restored, and saved again; the folders may be moved together."""
    img("create", "-f", "qcow2", tmp_path / "web.qcow2", "4M")
    guest = tools.start("web", script(COUNTER, "vda"), "--disk", "web.qcow2")
    wait_for(guest, 3)
    (tmp_path / "all").mkdir()
    tools.run("snapshot", "--stop", "web", "all/one")
    guest.wait(timeout=TIMEOUT)
    before = "one"
    for name in ("two", "three"):
        again = subprocess.Popen(
            [tools.lodge, "restore", "--engine", ENGINE, "--name", name, f"all/{before}", "--", "sh",
             "-c", f"echo {name} | dd of=/dev/vda bs=512 seek={len(name)} conv=notrunc,fsync;"
             "echo ready; sleep 1000"],
            stdin=subprocess.DEVNULL, stdout=subprocess.PIPE, stderr=subprocess.DEVNULL, cwd=tmp_path)
        try:
            assert again.stdout.readline() == b"ready\n"
            tools.run("snapshot", "--base", f"all/{before}", name, f"all/{name}")
        finally:
            again.kill()
            again.wait()
        assert own_disks(tmp_path / "all" / name) == ["disk0.qcow2"]
        before = name
    assert backing(tmp_path / "all" / "three" / "disk0.qcow2") == "../two/disk0.qcow2"
    (tmp_path / "all").rename(tmp_path / "moved")
    look = script(LOOK, "vda") + ("for s in 3 5; do dd if=/dev/vda bs=512 skip=$s count=1 "
                                  "2>/dev/null | tr -d '\\0'; done")
    words = rows(tools.restored("moved/three", look))
    assert words[-2:] == ["two", "three"] and newest(words[0]) >= 3
    words = rows(tools.restored("moved/two", look))
    assert words[-1] == "two"


@pytest.fixture
def image(lodge, tmp_path, monkeypatch):
    """An image with a disk of its own, which each run throws away."""
    store = os.path.join(os.environ.get("XDG_DATA_HOME",
                                        os.path.expanduser("~/.local/share")), "lodge", "images")
    default = os.path.join(store, "default", os.readlink(os.path.join(store, "default", "current")))
    folder = tmp_path / "data" / "lodge" / "images" / "tiny" / "1"
    folder.mkdir(parents=True)
    with open(os.path.join(default, "image.json"), encoding="utf-8") as file:
        about = json.load(file)
    for key in ("kernel", "initrd"):
        os.symlink(os.path.join(default, about[key]["file"]), folder / about[key]["file"])
    img("create", "-f", "qcow2", folder / "disk.qcow2", "4M")
    about.update(name="tiny", disk={"file": "disk.qcow2", "size": 1}, seed=True)
    (folder / "image.json").write_text(json.dumps(about))
    os.symlink("1", folder.parent / "current")
    monkeypatch.setenv("XDG_DATA_HOME", str(tmp_path / "data"))
    return folder


def test_an_images_run_is_saved_with_its_disk(tools, image, tmp_path):  # noqa: F811
    """As lodge run debian: the disk and the seed go with the run, but not those of a snapshot."""
    (tmp_path / "user-data").write_text("#cloud-config\nfinal_message: hello\n")
    scratch = tmp_path / "scratch"
    scratch.mkdir()
    os.environ["TMPDIR"] = str(scratch)
    try:
        guest = tools.start("tiny", script(COUNTER, "vda"), "--user-data", "user-data", image="tiny")
        assert os.listdir(scratch) == []
        wait_for(guest, 3)
        tools.run("snapshot", "tiny", "one")
        go_on(guest, 100)  # restored guests count on, too, until they are looked at
        tools.run("snapshot", "tiny", "two")
        end(guest)
        look = script(LOOK, "vda") + "grep -c hello /dev/vdb"
        counts = []
        for name in ("one", "two", "one"):
            text, found = tools.restored(name, look).rstrip().rsplit("\n", 1)
            counts.append(check_look(text, 1))
            assert int(found) > 0
        assert os.listdir(scratch) == []
    finally:
        del os.environ["TMPDIR"]
    assert abs(counts[0] - counts[2]) < 50 and max(counts[0], counts[2]) < counts[1]
    assert own_disks(tmp_path / "one") == ["disk0.qcow2", "disk1.img"]
    assert backing(tmp_path / "one" / "disk0.qcow2") == str(image / "disk.qcow2")


def check_after_kill(tools, tmp_path, said):  # noqa: F811
    """Nothing that the guest was told is on its disk is lost, and no image has errors."""
    for path in tmp_path.glob("*.qcow2"):
        result = subprocess.run(["qemu-img", "check", path], capture_output=True, text=True,
                                check=False)
        # 3: leaks. One that names itself was begun and got no further.
        assert result.returncode in (0, 3) or backing(path) == path.name, result.stdout
    img("convert", "-O", "raw", tmp_path / "web.qcow2", tmp_path / "flat")
    assert newest((tmp_path / "flat").read_bytes()[:64].decode()) >= said
    for folder in tmp_path.glob("s[0-9]*"):
        if (folder / "guest.json").exists():
            check_look(tools.restored(folder, script(LOOK, "vda")), 1)


def killed(tools, tmp_path, noise, rounds, whom):  # noqa: F811
    img("create", "-f", "qcow2", tmp_path / "web.qcow2", "4M")
    guest = tools.start("web", script(COUNTER, "vda"), "--disk", "web.qcow2", "--memory", "128M")
    said = go_on(guest)
    for turn in range(rounds):
        taking = subprocess.Popen([tools.lodge, "snapshot", "web", f"s{turn}"], cwd=tmp_path,
                                  stderr=subprocess.DEVNULL)
        time.sleep(noise.random() * 0.4)
        with contextlib.suppress(ProcessLookupError):
            os.kill(taking.pid if whom == "lodge" else vmm_of(guest), signal.SIGKILL)
        taking.wait(TIMEOUT)
        if whom == "vmm":
            for line in guest.stdout:
                said = int(line)
            guest.wait(TIMEOUT)
            break
        said = go_on(guest)
    else:
        end(guest)
    check_after_kill(tools, tmp_path, said)


def test_a_killed_snapshot_loses_nothing(tools, tmp_path):  # noqa: F811
    killed(tools, tmp_path, random.Random(1), 3, "lodge")


@pytest.mark.torture
@pytest.mark.parametrize("seed", range(12))
@pytest.mark.parametrize("whom", ["lodge", "vmm"])
def test_kills_at_any_instant(tools, tmp_path, seed, whom):  # noqa: F811
    killed(tools, tmp_path, random.Random(seed), 20, whom)
