"""Guests that are paused, written to a folder, and brought back."""
import json
import os
import random
import select
import shutil
import socket
import struct
import subprocess
import threading
import time

import pytest
from test_disk_http import Server

ENGINE = os.environ.get("LODGE_TEST_ENGINE", "soft")
TIMEOUT = int(os.environ.get("LODGE_TEST_TIMEOUT", "240"))
TOP = os.path.dirname(os.path.dirname(os.path.abspath(__file__)))
MIB = 1 << 20

# Counts, and keeps a secret that no other guest could know.
COUNTER = """
head -c 3000000 /dev/urandom >/tmp/noise
sha256sum </tmp/noise >/tmp/sum
head -c 16 /dev/urandom | hexdump -e '16/1 "%02x"' >/tmp/secret
i=0
echo 0 >/tmp/count
echo ready
while :; do i=$((i + 1)); echo $i >/tmp/count.new; mv /tmp/count.new /tmp/count; sleep 0.02; done
"""


@pytest.fixture
def tools(lodge, tmp_path, monkeypatch):
    """lodge with a folder of running guests of this test's own."""
    monkeypatch.setenv("XDG_RUNTIME_DIR", str(tmp_path))
    guests = []

    class Tools:
        def run(self, *words, status=0, data=b""):
            result = subprocess.run([lodge, *map(str, words)], input=data, capture_output=True,
                                    timeout=TIMEOUT, cwd=tmp_path)
            assert result.returncode == status, (words, result.stdout[-2000:], result.stderr)
            return result

        def start(self, name, script, *options, image=None, engine=ENGINE):
            """A guest in the background, once its script has said that it is ready."""
            guest = subprocess.Popen([lodge, "run", "--engine", engine, "--name", name,
                                      *map(str, options), *([image] if image else []), "--", "sh",
                                      "-c", script],
                                     stdin=subprocess.DEVNULL, stdout=subprocess.PIPE,
                                     stderr=subprocess.PIPE, cwd=tmp_path)
            guests.append(guest)
            line = guest.stdout.readline()
            assert line == b"ready\n", (line, guest.stderr.read() if not line else "")
            return guest

        def restore(self, name, folder, script, *options, engine=ENGINE):
            """The same of a restored one."""
            guest = subprocess.Popen([lodge, "restore", "--engine", engine, "--name", name,
                                      *map(str, options), folder, "--", "sh", "-c", script],
                                     stdin=subprocess.DEVNULL, stdout=subprocess.PIPE, cwd=tmp_path)
            guests.append(guest)
            assert guest.stdout.readline() == b"ready\n"
            return guest

        def restored(self, folder, script, *options, engine=ENGINE):
            return self.run("restore", "--engine", engine, *options, folder, "--", "sh", "-c",
                            script).stdout.decode()

    tools = Tools()
    tools.lodge = lodge
    yield tools
    for guest in guests:
        guest.kill()
        guest.wait()


def rows(text):
    return text.split()


def test_a_guest_goes_on_where_it_was(tools, tmp_path):
    guest = tools.start("one", COUNTER)
    tools.run("snapshot", "one", "snap")
    assert sorted(os.listdir(tmp_path / "snap")) == ["guest.json", "memory", "state"]
    about = json.loads((tmp_path / "snap" / "guest.json").read_text())
    assert about["format"] == 1 and about["guest"]["memory"] == 512 * MIB and about["agent"]
    memory = os.stat(tmp_path / "snap" / "memory")
    assert 511 * MIB < memory.st_size <= 512 * MIB and 8 * MIB < memory.st_blocks * 512 < 200 * MIB
    # The first one goes on.
    assert guest.poll() is None
    script = "sha256sum </tmp/noise; cat /tmp/sum /tmp/secret; echo; cat /tmp/count; dmesg | wc -l"
    seen = [rows(tools.restored("snap", script)) for _ in range(2)]
    for words in seen:
        assert words[0] == words[2]  # the noise is what was summed
    assert seen[0][4] == seen[1][4] and len(seen[0][4]) == 32
    assert 0 <= int(seen[0][5]) <= 2000


def test_a_paused_guest_stands_still(tools, tmp_path):
    """Output stops, and goes on; the guest's clock has not seen the pause."""
    guest = tools.start("still", "echo ready; while :; do cat /proc/uptime; sleep 0.1; done")
    before = float(guest.stdout.readline().split()[0])
    tools.run("pause", "still")
    tools.run("pause", "still")  # twice is once
    time.sleep(0.3)
    while select.select([guest.stdout], [], [], 0.2)[0]:
        before = float(guest.stdout.readline().split()[0])
    assert not select.select([guest.stdout], [], [], 1.5)[0]
    tools.run("resume", "still")
    after = float(guest.stdout.readline().split()[0])
    assert before <= after < before + 1.0
    # And timers keep their pace.
    lines = [float(guest.stdout.readline().split()[0]) for _ in range(5)]
    assert 0.3 < lines[-1] - lines[0] < 3


def test_a_paused_guest_is_written_and_stays_paused(tools):
    guest = tools.start("held", "echo ready; while :; do echo x; sleep 0.05; done")
    tools.run("pause", "held")
    tools.run("snapshot", "held", "snap")
    time.sleep(0.3)
    while select.select([guest.stdout], [], [], 0.2)[0]:
        os.read(guest.stdout.fileno(), 65536)
    assert not select.select([guest.stdout], [], [], 1)[0]
    assert rows(tools.restored("snap", "echo alive")) == ["alive"]
    tools.run("resume", "held")
    assert guest.stdout.read(1)


@pytest.mark.parametrize("cpus", [1, 2, 4])
def test_several_cpus_under_load(tools, cpus):
    """Every CPU works when the guest is written, and works on when it is back."""
    load = ("for c in $(seq %d); do (while :; do :; done) & done; "
            "i=0; echo ready; while :; do i=$((i+1)); echo $i >/tmp/count; done" % cpus)
    tools.start("busy", load, "--cpus", cpus)
    for turn in range(2):
        tools.run("snapshot", "busy", f"snap{turn}")
    check = ("nproc; a=$(grep -c ^cpu /proc/stat); "
             "for c in $(seq 0 $(($(nproc)-1))); do taskset -p $((1 << c)) $$ >/dev/null; echo on$c; done;"
             "sleep 0.3; dmesg | grep -iE 'stall|lockup|clocksource.*unstable'; echo end")
    words = rows(tools.run("restore", "--engine", ENGINE, "snap1", "--", "sh", "-c",
                           check).stdout.decode())
    assert words == [str(cpus), *(f"on{c}" for c in range(cpus)), "end"]


def test_chains_of_changes(tools, tmp_path):
    """Each link holds only what has changed; the last one is the whole guest."""
    fill = "head -c 20000000 /dev/urandom >/tmp/a; " + COUNTER
    tools.start("chain", fill)
    tools.run("snapshot", "chain", "whole")
    tools.run("snapshot", "--base", "whole", "chain", "second")
    tools.run("snapshot", "--base", "second", "chain", "third")
    size = [os.stat(tmp_path / name / "memory").st_blocks * 512 for name in
            ("whole", "second", "third")]
    assert size[0] > 30 * MIB and size[1] < size[0] / 3 and size[2] < size[0] / 3
    script = "sha256sum </tmp/noise; cat /tmp/sum /tmp/secret; echo; cat /tmp/count"
    seen = {name: rows(tools.restored(name, script)) for name in ("whole", "third", "second")}
    for words in seen.values():
        assert words[0] == words[2] and words[4] == seen["whole"][4]
    counts = [int(seen[name][5]) for name in ("whole", "second", "third")]
    assert counts == sorted(counts)
    # A base that is not the last one is refused, and nothing is left behind.
    result = tools.run("snapshot", "--base", "whole", "chain", "fourth", status=1)
    assert "the base is not the snapshot that this machine was last saved" in result.stderr.decode()
    assert not (tmp_path / "fourth").exists()
    # It has not spoilt the chain, and the guest, which was to end, goes on.
    tools.run("snapshot", "--stop", "--base", "whole", "chain", "fourth", status=1)
    tools.run("snapshot", "--base", "third", "chain", "fourth")
    tools.run("snapshot", "--base", "fourth", "chain", "fifth")
    count = [int(rows(tools.restored(name, script))[5]) for name in ("fourth", "fifth")]
    assert counts[-1] < count[0] < count[1]
    # A chain that has lost a link says which.
    shutil.rmtree(tmp_path / "second")
    assert "second" in tools.run("restore", "third", status=125).stderr.decode()


def test_a_restored_guest_is_saved_again(tools, lodge, tmp_path):
    """Whole, and as what it has changed since it came from the first."""
    tools.start("first", COUNTER)
    tools.run("snapshot", "first", "one")
    again = subprocess.Popen([lodge, "restore", "--engine", ENGINE, "--name", "again", "one", "--",
                              "sh", "-c", "echo mark >/tmp/mark; echo ready; sleep 1000"],
                             stdin=subprocess.DEVNULL, stdout=subprocess.PIPE, cwd=tmp_path)
    try:
        assert again.stdout.readline() == b"ready\n"
        tools.run("snapshot", "--base", "one", "again", "changes")
        tools.run("snapshot", "again", "whole")
        changes = os.stat(tmp_path / "changes" / "memory").st_blocks
        assert changes < os.stat(tmp_path / "whole" / "memory").st_blocks / 2
    finally:
        again.kill()
        again.wait()
    script = "cat /tmp/mark; sha256sum </tmp/noise; cat /tmp/sum"
    for name in ("changes", "whole"):
        words = rows(tools.restored(name, script, "--verify"))
        assert words[0] == "mark" and words[1] == words[3]
    assert "mark" not in tools.restored("one", "cat /tmp/mark 2>/dev/null; echo end")


def test_disks_go_with_the_snapshot(tools, tmp_path):
    """The memory's view of a disk and the disk fit; what a restored guest writes is its own."""
    disk = tmp_path / "disk.img"
    disk.write_bytes(random.Random(1).randbytes(8 * MIB))
    script = ("dd if=/dev/urandom of=/dev/vda bs=64k count=10 conv=notrunc 2>/dev/null; sync;"
              "sha256sum </dev/vda >/tmp/sum; echo ready; sleep 1000")
    # And an encrypted one, which stands on a name that is relative.
    (tmp_path / "key").write_bytes(b"open sesame")
    (tmp_path / "base.img").write_bytes(b"of the base".ljust(MIB, b"."))
    tools.run("disk", "create", "--backing", "base.img", "--backing-type", "raw", "--encrypt",
              "--key-file", "key", "--kdf", "pbkdf2", "--iter-time", "10", "top.luks")
    guest = tools.start("disk", script, "--disk", "disk.img,serial=abc", "--disk",
                        "top.luks,key_file=key")
    tools.run("snapshot", "--stop", "disk", "snap")
    guest.wait(timeout=20)
    before = disk.read_bytes()
    check = ("echo 3 >/proc/sys/vm/drop_caches; sha256sum </dev/vda; cat /tmp/sum;"
             "cat /sys/block/vda/serial; echo;"
             "dd if=/dev/zero of=/dev/vda bs=64k count=10 conv=notrunc 2>/dev/null; sync;"
             "echo 3 >/proc/sys/vm/drop_caches; head -c 655360 /dev/vda | tr -d '\\0' | wc -c;"
             "head -c 11 /dev/vdb | tr -d ' '; echo")
    for _ in range(2):
        words = rows(tools.restored("snap", check))
        assert words[0] == words[2] and words[4] == "abc"
        assert words[5:] == ["0", "ofthebase"]
    assert disk.read_bytes() == before
    # Another disk in its place would be a surprise for the guest's driver.
    disk.write_bytes(before[:4 * MIB])
    assert "another size" in tools.run("restore", "snap", status=125).stderr.decode()


def test_disks_that_only_look_like_gone(tools, lodge, tmp_path):
    """One on a web server, and one whose key lies in a relative path: both are found again, from
    another folder."""
    server = Server(b"of the web".ljust(MIB, b"."))
    (tmp_path / "key").write_bytes(b"open sesame")
    tools.run("disk", "create", "--type", "raw", "--encrypt", "--key-file", "key", "--kdf", "pbkdf2",
              "--iter-time", "10", "enc.img", "1M")
    tools.start("disk", "echo ready; sleep 1000", "--disk", server.url, "--disk",
                "enc.img,ro,format=raw,key_file=key")
    tools.run("snapshot", "disk", "snap")
    (tmp_path / "elsewhere").mkdir()
    result = subprocess.run([lodge, "restore", "--engine", ENGINE, "../snap", "--", "sh", "-c",
                             "head -c 10 /dev/vda; blockdev --getro /dev/vda; head -c 9 /dev/vdb | "
                             "hexdump -e '9/1 \"%d\"'"],
                            cwd=tmp_path / "elsewhere", capture_output=True, text=True,
                            stdin=subprocess.DEVNULL, timeout=TIMEOUT)
    assert (result.returncode, result.stdout) == (0, "of the web1\n000000000"), result.stderr


@pytest.fixture
def snap(tools, tmp_path):
    tools.start("whole", COUNTER, "--memory", "128M")
    tools.run("snapshot", "whole", "snap")
    return tmp_path / "snap"


def test_damage_is_noticed(tools, snap):
    """A bit anywhere in the state, a cut anywhere in either file: refused, with the reason."""
    state = (snap / "state").read_bytes()
    noise = random.Random(3)
    for at in [0, 9, 20, 25, 29, *(noise.randrange(32, len(state)) for _ in range(20))]:
        bad = bytearray(state)
        bad[at] ^= 1 << noise.randrange(8)
        (snap / "state").write_bytes(bad)
        result = tools.run("restore", snap, status=125)
        assert b"snapshot" in result.stderr and len(result.stderr.splitlines()) == 1
    for length in (0, 7, 31, 32, 100, len(state) - 1):
        (snap / "state").write_bytes(state[:length])
        assert b"snapshot" in tools.run("restore", snap, status=125).stderr
    (snap / "state").write_bytes(state + b"x")
    assert b"snapshot" in tools.run("restore", snap, status=125).stderr
    (snap / "state").write_bytes(state)
    assert rows(tools.restored(snap, "echo fine")) == ["fine"]
    with open(snap / "memory", "r+b") as memory:
        memory.truncate(100 * MIB)
    assert "cut off" in tools.run("restore", snap, status=125).stderr.decode()


@pytest.mark.parametrize("options", [[], ["--verify"]])
def test_damaged_memory_ends_the_guest(tools, snap, options):
    """A flipped bit in memory is found before the guest runs, or soon after."""
    with open(snap / "memory", "r+b") as memory:
        at = os.lseek(memory.fileno(), 64 * MIB, os.SEEK_DATA)
        memory.seek(at + 100)
        byte = memory.read(1)
        memory.seek(at + 100)
        memory.write(bytes([byte[0] ^ 4]))
    result = tools.run("restore", "--engine", ENGINE, *options, snap, "--", "sleep", "20",
                       status=125)
    assert "the snapshot's memory is damaged: bytes from" in result.stderr.decode()


def test_newer_versions_are_refused(tools, snap):
    about = json.loads((snap / "guest.json").read_text())
    (snap / "guest.json").write_text(json.dumps({**about, "format": 2}))
    assert "made by a newer version" in tools.run("restore", snap, status=125).stderr.decode()
    (snap / "guest.json").write_text("{")
    assert "guest.json is damaged" in tools.run("restore", snap, status=125).stderr.decode()
    os.unlink(snap / "guest.json")
    assert "is no snapshot" in tools.run("restore", snap, status=125).stderr.decode()


def crc32c(data):
    table = []
    for value in range(256):
        for _ in range(8):
            value = value >> 1 ^ (0x82f63b78 if value & 1 else 0)
        table.append(value)
    crc = 0xffffffff
    for byte in data:
        crc = crc >> 8 ^ table[(crc ^ byte) & 255]
    return crc ^ 0xffffffff


def with_section(state, wanted, version, change):
    """The state file with another version of one section, whose contents `change` makes of those that
    are there (docs/snapshot.md)."""
    body, at = b"", 32
    while at < len(state):
        name, old_version, _, size = struct.unpack_from("<24sIIQ", state, at)
        contents = state[at + 40:at + 40 + size]
        at += 40 + size + -size % 8
        if name.rstrip(b"\0") == wanted:
            old_version, contents = version, change(contents)
        body += struct.pack("<24sIIQ", name, old_version, 0, len(contents))
        body += contents + bytes(-len(contents) % 8)
    head = state[:16] + struct.pack("<QI", 32 + len(body), crc32c(body))
    return head + struct.pack("<I", crc32c(head)) + body


def test_versions_of_a_section(tools, snap):
    """One that was written before a field was added is read; a newer one is refused by name."""
    state = (snap / "state").read_bytes()
    assert with_section(state, b"machine", 2, lambda contents: contents) == state
    (snap / "state").write_bytes(with_section(state, b"machine", 1, lambda contents: contents[:-9]))
    if ENGINE == "soft":
        assert rows(tools.restored(snap, "echo fine")) == ["fine"]
    (snap / "state").write_bytes(with_section(state, b"rtc", 99, lambda contents: contents))
    assert "'rtc'" in tools.run("restore", snap, status=125).stderr.decode()


def test_another_machine_is_refused(tools, snap):
    about = json.loads((snap / "guest.json").read_text())
    about["guest"]["cpus"] = 2
    (snap / "guest.json").write_text(json.dumps(about))
    assert "with 1 CPUs" in tools.run("restore", snap, status=125).stderr.decode()


def test_names(tools, lodge, tmp_path):
    tools.start("web", "echo ready; sleep 1000")
    result = tools.run("run", "--name", "web", "--", "true", status=125)
    assert "a guest named 'web' runs already" in result.stderr.decode()
    for words in (("pause", "nobody"), ("resume", "nobody"), ("snapshot", "nobody", "x")):
        assert "no guest named 'nobody' runs" in tools.run(*words, status=1).stderr.decode()
    assert "no name for a guest" in tools.run("pause", "../web", status=1).stderr.decode()
    (tmp_path / "there").mkdir()
    assert "File exists" in tools.run("snapshot", "web", "there", status=1).stderr.decode()
    assert os.stat(tmp_path / "lodge").st_mode & 0o777 == 0o700


def test_a_name_is_free_again(tools, lodge, tmp_path):
    """Also after a kill: nothing of the first one is in the way."""
    first = tools.start("again", "echo ready; sleep 1000")
    first.kill()
    first.wait()
    assert sorted(os.listdir(tmp_path / "lodge")) == ["again.json", "again.lock", "again.sock"]
    tools.run("run", "--engine", ENGINE, "--name", "again", "--", "true")
    assert os.listdir(tmp_path / "lodge") == []


def free_port():
    with socket.create_server(("127.0.0.1", 0)) as server:
        return server.getsockname()[1]


def test_what_a_guest_has_not_cannot_be_given(tools):
    tools.start("bare", "echo ready; sleep 1000")
    tools.run("snapshot", "bare", "snap")
    for option, value, words in (("--vsock", "x.vsock", b"has no vsock"),
                                 ("--publish", "8080:80", b"has no network")):
        result = tools.run("restore", option, value, "snap", "--", "true", status=125)
        assert words in result.stderr


def test_devices_that_join_the_host_go_along(tools, tmp_path):
    """A network card, sockets and the balloon: the guest's side stays, the host's is made anew."""
    if not shutil.which("passt"):
        pytest.skip("no passt")
    server = socket.create_server(("127.0.0.1", 0))
    server.settimeout(TIMEOUT)
    port = server.getsockname()[1]
    mac = "52:54:00:12:34:56"
    tools.start("joined", "until ip route | grep -q default; do sleep 0.1; done; "
                "ip route | sed -n 's/default via \\([^ ]*\\).*/\\1/p' >/tmp/via; echo ready; while :; do sleep 1; done",
                "--net", f"user,host-loopback,mac={mac}", "-p", f"127.0.0.1:{free_port()}:80",
                "--vsock", f"{tmp_path}/a.vsock,cid=9")
    tools.run("snapshot", "joined", "snap")
    refused = tools.run("restore", "snap", "--", "true", status=125)
    assert b"a.vsock' is in use" in refused.stderr
    busy = tools.run("restore", "--vsock", "b.vsock", "snap", "--", "true", status=125)
    assert b"bind" in busy.stderr  # the port
    said = []

    def answer():
        peer, _ = server.accept()
        with peer:
            said.append(peer.recv(100))
            peer.sendall(b"from the host\n")

    thread = threading.Thread(target=answer, daemon=True)
    thread.start()
    out = tools.restored("snap", "cat /sys/class/net/eth0/address; "
                         f"echo from the guest | timeout 8 nc $(cat /tmp/via) {port}; grep MemFree /proc/meminfo",
                         "--vsock", tmp_path / "b.vsock", "--publish", "none",
                         "--control", tmp_path / "control")
    thread.join(TIMEOUT)
    assert said == [b"from the guest\n"]
    lines = out.splitlines()
    assert lines[0] == mac and lines[1] == "from the host" and int(lines[2].split()[1]) > 100000
    assert not os.path.exists(tmp_path / "b.vsock")
