"""Guests on networks: passt and tap, in a network namespace of each test's own. Nothing leaves it."""
import hashlib
import json
import os
import re
import shutil
import subprocess
import sys

import pytest

from net_peer import pattern

TOP = os.path.dirname(os.path.dirname(os.path.abspath(__file__)))
ENGINE = os.environ.get("LODGE_TEST_ENGINE", "soft")
TIMEOUT = int(os.environ.get("LODGE_TEST_TIMEOUT", "240"))
MIB = 1 << 20
UNSHARE = ["unshare", "--net"] if os.getuid() == 0 else ["unshare", "--user", "--map-root-user",
                                                           "--net"]
# Debian 12's passt does not hand a FIN back after one of the guest's, so nc does not end by itself.
SEND = "nc 10.99.0.1 5001 </tmp/f >/tmp/answer & until [ -s /tmp/answer ]; do sleep 0.1; done"
STATIC = "ip addr add 10.99.0.2/24 dev eth0; ip link set eth0 up; "


def why_not():
    if not shutil.which("ip"):
        return "no ip: apt install iproute2"
    if subprocess.run([*UNSHARE, "true"], capture_output=True).returncode:
        return "no network namespace can be made here"
    if subprocess.run([*UNSHARE, "ip", "tuntap", "add", "t0", "mode", "tap"],
                      capture_output=True).returncode:
        return "no tap can be made here"
    return None


WHY_NOT = why_not()
pytestmark = pytest.mark.skipif(WHY_NOT is not None, reason=str(WHY_NOT))
needs_passt = pytest.mark.skipif(not shutil.which("passt"), reason="no passt: apt install passt")


def sha256(size):
    return hashlib.sha256(pattern(size)).hexdigest()


@pytest.fixture
def inside(lodge):
    """Runs something in a namespace beside net_peer.py's servers."""
    def inside(kind, *command):
        return subprocess.run([*UNSHARE, sys.executable, f"{TOP}/tests/net_peer.py", kind,
                               *command], capture_output=True, text=True, timeout=TIMEOUT,
                              errors="replace")
    return inside


@pytest.fixture
def guest(lodge, inside):
    """A guest in a namespace; its script's output and status."""
    def guest(kind, options, script, after="wait $guest", stdin="/dev/null"):
        words = " ".join(f"'{word}'" for word in
                         [lodge, "run", "--engine", ENGINE, "--memory", "512M", *options, "default",
                          "--", "sh", "-c", script.replace("'", "'\\''")])
        return inside(kind, "sh", "-c", f"{words} <{stdin} & guest=$!\n{after}")
    return guest


@needs_passt
def test_a_user_network_works_at_once(guest):
    result = guest("user", ["--net", "user", "--name", "web"],
                   "ip -o -4 addr show eth0; ip route; cat /sys/class/net/eth0/address "
                   "/sys/class/net/eth0/mtu")
    assert result.returncode == 0, result.stderr
    assert "inet 10.99.0.2/24" in result.stdout, result.stdout
    assert "default via 10.99.0.1" in result.stdout
    assert "96:4e:bb:6c:76:1d\n65520" in result.stdout  # the name's MAC, passt's MTU
    assert result.stderr == ""


@needs_passt
@pytest.mark.parametrize("cpus", [1, 2])
def test_tcp_both_ways_over_passt(guest, cpus):
    size = 32 * MIB
    result = guest("user", ["--net", "user,host-loopback", "--cpus", str(cpus)],
                   f"wget -q -O /tmp/f http://10.99.0.1:5000/{size} && sha256sum </tmp/f; "
                   + SEND)
    assert result.returncode == 0, result.stderr
    assert result.stdout.startswith(sha256(size)), result.stdout
    assert f"sink {size} {sha256(size)}" in result.stdout


@needs_passt
def test_passt_has_room_for_what_it_sends_at_once(guest):
    """It drops what its socket does not take, and waits for seconds before it sends it again: then
    frames came out of order here, or twice."""
    with open("/proc/sys/net/core/wmem_max", encoding="ascii") as file:
        usual = int(file.read())
    result = guest("user", ["--net", "user,host-loopback"],
                   f"for i in 1 2; do wget -q -O /dev/null http://10.99.0.1:5000/{64 * MIB}; done; "
                   "grep ^TcpExt /proc/net/netstat; sleep 1",
                   after="sleep 0.5; ss -xmH; wait $guest")
    assert result.returncode == 0, result.stderr
    assert max(map(int, re.findall(r"tb(\d+)", result.stdout))) >= 2 * usual, result.stdout
    names, values = (line.split() for line in re.findall(r"^TcpExt: (.*)", result.stdout, re.M))
    lost = dict(zip(names, map(int, values)))
    if os.getuid() == 0:  # else the machine's limit decides
        assert lost["TCPOFOQueue"] == lost["TCPDSACKOldSent"] == 0, lost


@needs_passt
def test_the_hosts_loopback_is_out_of_reach_unless_asked_for(guest):
    result = guest("user", ["--net", "user"],
                   "wget -q -T 2 -O - http://10.99.0.1:5000/10 && echo REACHED")
    assert "REACHED" not in result.stdout


CLIENT = """
import socket, sys, time, urllib.request

def again(what):
    deadline = time.monotonic() + 120
    while True:
        try:
            return what()
        except OSError as error:
            if time.monotonic() > deadline:
                sys.exit(f"no answer: {error}")
            time.sleep(0.1)

def fetch(path):
    return urllib.request.urlopen(f"http://127.0.0.1:8080/{path}", timeout=5).read()

def ask():
    udp = socket.socket(socket.AF_INET, socket.SOCK_DGRAM)
    udp.settimeout(1)
    udp.sendto(b"hello", ("127.0.0.1", 5353))
    return udp.recv(100)

print("tcp", again(lambda: fetch("f")))
if "udp" in sys.argv:
    print("udp", again(ask))
try:
    socket.create_connection(("10.99.0.2", 8080), timeout=2)
    print("REACHED")
except OSError:
    print("only on loopback")
print("stop", fetch("cgi-bin/stop"))
"""


@needs_passt
@pytest.mark.parametrize("udp", [False, True])
def test_ports_are_forwarded(guest, tmp_path, udp):
    """-p alone is a user network, too. For UDP from this machine Debian 12's passt wants the gateway
    to lead here, or it sends the answers out."""
    options = ["--net", "user,host-loopback", "-p", "5353:53/udp"] if udp else []
    echo, client = f"{tmp_path}/udp_echo", f"{tmp_path}/client.py"
    subprocess.run(["gcc", "-O1", "-static", "-o", echo, f"{TOP}/tests/programs/udp_echo.c"],
                   check=True)
    with open(client, "w", encoding="ascii") as file:
        file.write(CLIENT)
    script = ("cat >/tmp/echo; chmod +x /tmp/echo; /tmp/echo 53 & "
              "mkdir -p /srv/cgi-bin; echo fine >/srv/f; "
              "printf '#!/bin/sh\\necho; echo bye; touch /tmp/stop\\n' >/srv/cgi-bin/stop; "
              "chmod +x /srv/cgi-bin/stop; httpd -p 80 -h /srv; "
              "while [ ! -e /tmp/stop ]; do sleep 0.1; done; sleep 0.5")
    result = guest("user", ["-p", "127.0.0.1:8080:80", *options], script, stdin=echo,
                   after=f"{sys.executable} {client} {'udp' if udp else ''}; wait $guest")
    assert "tcp b'fine\\n'" in result.stdout, result.stdout + result.stderr
    assert not udp or "udp b'hello'" in result.stdout, result.stdout + result.stderr
    assert "only on loopback" in result.stdout
    assert "stop b'bye\\n'" in result.stdout


@pytest.mark.parametrize("kind, cpus", [("tap", 1), ("tap-mq", 2)])
def test_tcp_both_ways_over_a_tap(guest, kind, cpus):
    size = 64 * MIB
    net = "tap=t0" if kind == "tap" else "tap=t0,queues=2"
    result = guest(kind, ["--net", net, "--cpus", str(cpus)],
                   STATIC + "ls -d /sys/class/net/eth0/queues/rx-* | wc -l; "
                   f"wget -q -O /tmp/f http://10.99.0.1:5000/{size} && sha256sum </tmp/f; "
                   "grep eth0 /proc/net/dev; "
                   "for i in 1 2 3; do nc 10.99.0.1 5001 </tmp/f & done; wait; "
                   "ping -c 2 10.99.0.1 | grep received")
    assert result.returncode == 0, result.stderr
    assert sha256(size) in result.stdout, result.stdout
    assert result.stdout.count(f"sink {size} {sha256(size)}") == 3, result.stdout
    assert "2 packets received" in result.stdout
    assert result.stdout.startswith("2\n" if kind == "tap-mq" else "1\n")
    # The kernel cuts and sums: what the guest fetched came in far fewer frames than on a wire. (What it
    # sends is acknowledged as its sender's pace wants it, and says nothing of this.)
    received = int(re.search(r"eth0:\s*\d+\s+(\d+)", result.stdout).group(1))
    assert received < size / 1448


def test_small_frames_without_offloads_are_right_too(guest):
    result = guest("tap", ["--net", "tap=t0,mtu=1000"],
                   STATIC + "cat /sys/class/net/eth0/mtu; "
                   f"wget -q -O /tmp/f http://10.99.0.1:5000/{2 * MIB}; sha256sum </tmp/f; "
                   "nc 10.99.0.1 5001 </tmp/f")
    assert result.stdout.startswith(f"1000\n{sha256(2 * MIB)}"), result.stdout + result.stderr
    assert f"sink {2 * MIB} {sha256(2 * MIB)}" in result.stdout


def test_a_guest_cannot_speak_for_another(guest):
    """Its own MAC may not be changed, and a bridge's port in the guest gets nothing out."""
    result = guest("tap", ["--net", "tap=t0,anti-spoof"],
                   STATIC + "ping -c 1 -W 5 10.99.0.1 | grep received; "
                   "ip link add link eth0 name spoof type macvlan 2>&1; ip link set eth0 down; "
                   "ip link set eth0 address 02:00:00:00:00:66 && echo CHANGED; "
                   "ip link set eth0 up; ping -c 1 -W 2 10.99.0.1 | grep received")
    assert "1 packets received" in result.stdout, result.stdout + result.stderr
    if "CHANGED" in result.stdout:
        assert "0 packets received" in result.stdout, result.stdout


def test_the_cable_can_be_pulled(guest, lodge, tmp_path, monkeypatch):
    monkeypatch.setenv("XDG_RUNTIME_DIR", str(tmp_path))
    carrier = "until [ $(cat /sys/class/net/eth0/carrier) = {} ]; do sleep 0.1; done; echo {}; "
    ask = tmp_path / "ask.py"
    ask.write_text("import socket, sys; s = socket.socket(socket.AF_UNIX); s.connect(sys.argv[1])\n"
                   "s.send(b'{\"nics\": true}\\n'); print('nics', s.recv(4096).decode())\n")
    result = guest("tap", ["--net", "tap=t0", "--name", "cable", "--control", f"{tmp_path}/control"],
                   STATIC + carrier.format(0, "down") + carrier.format(1, "up") +
                   "until ping -c 1 -W 1 10.99.0.1 | grep received; do sleep 0.1; done",
                   after="while kill -0 $guest 2>/dev/null; do sleep 1; "
                   f"'{lodge}' link cable 0 down && '{sys.executable}' '{ask}' "
                   f"'{tmp_path}/control' >&2; '{lodge}' link cable 1 up; sleep 1; "
                   f"'{lodge}' link cable 0 up; sleep 2; done; wait $guest")
    assert result.returncode == 0, result.stderr
    assert result.stdout.startswith("down\nup\n") and "1 packets received" in result.stdout
    assert "it has no such network card" in result.stderr
    nics = [json.loads(line)["nics"] for line in re.findall("^nics (.*)", result.stderr, re.M)]
    assert nics and all(len(row) == 1 and not row[0]["up"] for row in nics)
    assert set(nics[0][0]) == {"up", *(f"{way}_{what}" for way in ("in", "out")
                                       for what in ("frames", "bytes", "dropped"))}


def test_rates_are_kept(guest):
    result = guest("tap", ["--net", "tap=t0,rate-in=1M,rate-out=1M"],
                   STATIC + f"t() {{ cut -d. -f1 /proc/uptime; }}; a=$(t); "
                   f"wget -q -O /tmp/f http://10.99.0.1:5000/{3 * MIB}; b=$(t); "
                   "nc 10.99.0.1 5001 </tmp/f; c=$(t); echo $((b - a)) $((c - b)); "
                   "sha256sum </tmp/f")
    assert result.returncode == 0, result.stderr
    into, out = map(int, re.search(r"^(\d+) (\d+)$", result.stdout, re.MULTILINE).groups())
    assert 2 <= into <= 20 and 2 <= out <= 20, result.stdout
    assert sha256(3 * MIB) in result.stdout


@needs_passt
def test_passt_ends_with_its_guest(guest):
    for after in ("wait $guest", "sleep 1; kill -KILL $guest"):
        result = guest("user", ["--net", "user"], "true", after=after + """
            for i in 1 2 3 4 5 6 7 8 9 10; do
                left=0
                for link in /proc/[0-9]*/ns/net; do
                    [ "$(readlink $link)" = "$(readlink /proc/self/ns/net)" ] || continue
                    case $(cat ${link%/ns/net}/comm) in passt*) left=1 ;; esac
                done
                [ $left = 0 ] && break
                sleep 0.3
            done
            echo left $left""")
        assert "left 0" in result.stdout, result.stdout + result.stderr


@needs_passt
def test_what_keeps_a_network_from_working_is_said(guest, inside, lodge):
    taken = inside("user", lodge, "run", "--engine", ENGINE, "-p", "127.0.0.1:5000:80", "default",
                   "--", "true")
    assert taken.returncode == 125
    assert re.search(r"lodge: user network: passt: .*5000", taken.stderr), taken.stderr
    nowhere = subprocess.run([*UNSHARE, lodge, "run", "--engine", ENGINE, "--net", "user",
                              "default", "--", "true"], capture_output=True, text=True,
                             timeout=TIMEOUT, stdin=subprocess.DEVNULL)
    assert nowhere.returncode == 125
    assert re.search(r"lodge: user network: passt: .*not usable", nowhere.stderr), nowhere.stderr


def test_what_is_not_there_is_said(lodge):
    def run(*options, env=None):
        return subprocess.run([lodge, "run", "--engine", ENGINE, *options, "default", "--", "true"],
                              capture_output=True, text=True, timeout=TIMEOUT,
                              stdin=subprocess.DEVNULL, env={**os.environ, **(env or {})})
    missing = run("--net", "tap=lodge-not-here")
    assert missing.returncode == 125
    assert "there is no interface 'lodge-not-here'" in missing.stderr
    passt = run("--net", "user", env={"PATH": "/nowhere"})
    assert passt.returncode == 125
    assert "apt install passt" in passt.stderr
    for options, words in ((("-p", "22"), "no port to forward"),
                           (("--net", "tap=t0", "-p", "22:22"), "user network"),
                           (("--net", "wifi"), "no kind of network")):
        result = run(*options)
        assert result.returncode == 125 and words in result.stderr, result.stderr


def test_without_asking_there_is_no_network(lodge):
    result = subprocess.run([lodge, "run", "--engine", ENGINE, "default", "--", "ls",
                             "/sys/class/net"], capture_output=True, text=True, timeout=TIMEOUT,
                            stdin=subprocess.DEVNULL)
    assert result.stdout == "lo\n"
