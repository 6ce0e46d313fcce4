"""Many guests from one snapshot, each with an identity of its own."""
import json
import os
import re
import shutil
import signal
import subprocess
import sys
import time

import pytest
from test_run_net import UNSHARE, WHY_NOT
from test_snapshot import ENGINE, MIB, TIMEOUT, TOP, tools  # noqa: F401

PREPARE = """
echo first >/etc/hostname
printf '127.0.0.1 localhost\\n127.0.1.1 first.example first\\n' >/etc/hosts
echo 0123456789abcdef0123456789abcdef >/etc/machine-id
echo ready
sleep 1000
"""
WHO = """
hostname; cat /etc/hostname; tail -1 /etc/hosts; cat /etc/machine-id
head -c 16 /dev/urandom | hexdump -e '16/1 "%02x"'; echo
cat /sys/class/net/eth0/address 2>/dev/null; date +%s
"""


@pytest.fixture
def clones(tools, lodge, tmp_path):  # noqa: F811
    """Starts lodge clone --format json; next() is one of its lines."""
    started = []

    class Clones:
        def __init__(self, *words):
            self.process = subprocess.Popen(
                [lodge, "clone", "--engine", ENGINE, "--format", "json", *map(str, words)],
                stdout=subprocess.PIPE, stderr=subprocess.PIPE, cwd=tmp_path, text=True)
            started.append(self.process)

        def next(self):
            line = self.process.stdout.readline()
            assert line, self.process.stderr.read()
            return json.loads(line)

    yield Clones
    late = []
    for process in started:
        process.terminate()
        try:
            process.wait(timeout=20)
        except subprocess.TimeoutExpired:
            process.kill()
            late.append(process.args)
    assert not late


def mappings(pid, path):
    """KiB of the file's pages that a process has mapped: (shared or clean, its own)."""
    common = own = 0
    inside = False
    with open(f"/proc/{pid}/smaps", encoding="ascii") as file:
        for line in file:
            if re.match(r"[0-9a-f]+-[0-9a-f]+ ", line):
                inside = line.rstrip().endswith(str(path))
            elif inside and line.startswith(("Shared_", "Private_Clean")):
                common += int(line.split()[1])
            elif inside and line.startswith("Private_Dirty"):
                own += int(line.split()[1])
    return common, own


def test_clones_are_not_each_other(tools, clones, tmp_path):  # noqa: F811
    network = ["--net", "user"] if shutil.which("passt") else []
    tools.start("first", PREPARE, "--vsock", f"{tmp_path}/first.vsock", *network)
    tools.run("snapshot", "first", "snap")

    # While the first one runs: names, random numbers, addresses, the time, the exit status.
    result = tools.run("clone", "--engine", ENGINE, "snap", "one", "two", "three", "--", "sh", "-c",
                       WHO + "ls /nowhere; test $(hostname) != two || exit 7", status=7)
    said = {name: [] for name in ("one", "two", "three")}
    for line in result.stdout.decode().splitlines():
        name, text = line.split(" | ", 1)
        said[name].append(text)
    assert result.stderr.decode().count("/nowhere: No such file") == 3
    assert all(re.match(r"(one|two|three) \| ", line) for line in result.stderr.decode().splitlines())
    for name, lines in said.items():
        assert lines[:3] == [name, name, f"127.0.1.1 {name}.example {name}"]
        assert re.fullmatch("[0-9a-f]{12}4[0-9a-f]{19}", lines[3])
        assert abs(int(lines[-1]) - time.time()) < 60
    for row in range(3, 5 + bool(network)):
        assert len({lines[row] for lines in said.values()}) == 3

    # In the background: found by their names, sharing memory, and alone when they fall.
    herd = clones("--count", 3, "snap", "--vsock", "{name}.sock")
    ready = {about["name"]: about for about in (herd.next() for _ in range(3))}
    assert sorted(ready) == ["snap-1", "snap-2", "snap-3"]
    for name, about in ready.items():
        assert 0 < about["restore_ms"] < about["ready_ms"]
        common, own = mappings(about["pid"], tmp_path / "snap" / "memory")
        assert common > 4096 and own < 24 * 1024
        assert os.path.exists(tmp_path / f"{name}.sock")
    tools.run("pause", "snap-1")
    os.kill(ready["snap-2"]["pid"], signal.SIGKILL)
    while "status" not in (ended := herd.next()):
        assert ended["name"] == "snap-2" and "lodge-vmm ended: killed by signal 9" in ended["stderr"]
    assert ended == {"name": "snap-2", "status": 125}
    tools.run("resume", "snap-1")
    tools.run("snapshot", "snap-3", "again")
    assert "no guest named 'snap-2' runs" in tools.run("pause", "snap-2", status=1).stderr.decode()
    # A clone's clone is another one again.
    again = tools.run("clone", "--engine", ENGINE, "again", "--vsock", "x.sock", "--", "sh", "-c",
                      WHO).stdout.decode().splitlines()
    again = [line.removeprefix("again-1 | ") for line in again]
    assert again[0] == again[1] == "again-1" and again[2] == "127.0.1.1 again-1.example again-1"
    assert not {again[3], again[4]} & {line for lines in said.values() for line in lines}
    # Ctrl-C.
    herd.process.send_signal(signal.SIGINT)
    ends = [herd.next(), herd.next()]
    assert sorted((end["name"], end["status"]) for end in ends) == [("snap-1", 130), ("snap-3", 130)]
    assert herd.process.wait(timeout=20) == 130
    assert sorted(os.listdir(tmp_path / "lodge")) == ["first.json", "first.lock", "first.sock"]
    assert not list(tmp_path.glob("*.sock*"))


def test_what_cannot_be_cloned(tools, tmp_path):  # noqa: F811
    """Said once, before anything runs; no guest is needed for that."""
    snap = tmp_path / "snap"
    snap.mkdir()
    card = {"net": "tap", "tap": "tap0", "mac": "52:54:00:12:34:56"}

    def write(agent=True, **guest):
        (snap / "guest.json").write_text(json.dumps(
            {"format": 1, "lodge": "0", "id": "0" * 32, "boot": "x", "agent": agent,
             "guest": {"memory": 128 * MIB, "cpus": 1, "append": "", **guest}}))

    def refused(*words):
        result = tools.run("clone", *words, status=125)
        assert result.stdout == b"" and len(result.stderr.splitlines()) == 1, result.stderr
        return result.stderr.decode()

    write()
    assert "takes the folder of a snapshot" in refused()
    assert "'nowhere' is no snapshot" in refused("nowhere", "a")
    assert "two clones cannot both be called 'a'" in refused("snap", "a", "a")
    assert "'a/b' is no name for a guest" in refused("snap", "a/b")
    assert "--count is 1 to 256" in refused("snap", "-n", "0")
    assert "--count is 1 to 256" in refused("snap", "-n", "2x")
    assert "names are given, or counted" in refused("snap", "-n", "2", "a")
    assert "--format is text or json" in refused("snap", "--format", "xml")
    assert "has no network; leave --publish out" in refused("snap", "-p", "80:80")
    assert "has no vsock; leave --vsock out" in refused("snap", "--vsock", "x")
    assert "--control 'x' would be the same for all 2 clones" in refused("snap", "-n", "2",
                                                                         "--control", "x")
    write(nics=[card])
    assert "on tap 'tap0', which one guest can have" in refused("snap", "a")
    assert "--tap 'tap7' would be the same" in refused("snap", "a", "b", "--tap", "tap7")
    assert "has 1 cards on taps" in refused("snap", "a", "--tap", "tap7", "--tap", "tap8")
    write(nics=[{"net": "user"}])
    assert "can lead to one clone only" in refused("snap", "a", "b", "-p", "8080:80")
    assert "'8080-8081:80' are 2 ports, for 3 clones" in refused("snap", "-n", "3", "-p",
                                                                 "8080-8081:80")
    assert "is no range of ports" in refused("snap", "-n", "2", "-p", "9-8:80")
    write(vsock={"path": "/x", "cid": 3})
    assert "the guest's CID is 3" in refused("snap", "a", "--vsock", "{name},cid=9")
    write(vsock={"path": "/" + "x" * 95, "cid": 3})
    assert "is longer than" in refused("snap", "-n", "2", "--name", "a" * 20)
    write(agent=False)
    assert "has no agent that could give it an identity" in refused("snap", "a")


@pytest.mark.skipif(WHY_NOT is not None, reason=str(WHY_NOT))
def test_no_frame_of_the_first_guests_leaves_a_clone(lodge, tmp_path, monkeypatch):
    """On a network that they share: the cable is out until the clone has its address, and what it
    had as the first one is gone."""
    monkeypatch.setenv("XDG_RUNTIME_DIR", str(tmp_path))
    script = ("n=$(hostname | tr -d c); cat /sys/class/net/eth0/address; "
              "ip -4 addr show dev eth0 | grep -c inet; "
              "until ip -6 addr show dev eth0 | grep -q 'inet6 fe80'; do sleep 0.1; done; "
              "ip -6 addr show dev eth0 | grep -c 'inet6 fe80'; "
              "ip addr add 10.99.0.1$n/24 dev eth0; ping -c 3 10.99.0.1 | grep -c 'bytes from'")
    result = subprocess.run([*UNSHARE, sys.executable, f"{TOP}/tests/clone_peer.py", lodge, ENGINE,
                             tmp_path, script], capture_output=True, text=True, timeout=TIMEOUT)
    assert result.returncode == 0, result.stderr
    told = json.loads(result.stdout)
    assert told["status"] == 0, told
    for number in (1, 2):
        lines = [line.split(" | ")[1] for line in told["out"].splitlines()
                 if line.startswith(f"c{number} |")]
        assert lines[1:] in (["0", "1", "3"], ["0", "1", "2"]), told  # the first may be too early
        assert told["heard"][f"t{number}"] == [lines[0]], told
    assert told["again"] == "solo\n"  # a clone's snapshot is one like others
