"""A guest's vsock, from both ends: Unix sockets here, a small static program and the agent there."""
import errno
import hashlib
import os
import random
import signal
import socket
import stat
import struct
import subprocess
import threading
import time

import pytest

from agent_channel import FAILED, SHUTDOWN, Channel, Refused, eventually, vsock_connect

ENGINE = os.environ.get("LODGE_TEST_ENGINE", "soft")
TIMEOUT = int(os.environ.get("LODGE_TEST_TIMEOUT", "240"))
HERE = os.path.dirname(os.path.abspath(__file__))
AGENT_PORT = 1024


class Guest:
    """lodge run --vsock, up and with a command that lives as long as its standard input."""

    def __init__(self, lodge, path, *options, command=("sh", "-c", "echo up; cat >/dev/null")):
        self.path = str(path)
        self.process = subprocess.Popen(
            [lodge, "run", "--engine", ENGINE, "--vsock", self.path, *options, "--", *command],
            stdin=subprocess.PIPE, stdout=subprocess.PIPE, stderr=subprocess.PIPE)
        line = self.process.stdout.readline()
        assert line == b"up\n", (line, self.process.stderr.read())

    def agent(self, port=AGENT_PORT):
        channel = Channel(vsock_connect(self.path, port))
        channel.greet()
        return channel

    def exec(self, argv, stdin=b""):
        channel = self.agent()
        try:
            return channel.run(argv, stdin=stdin)
        finally:
            channel.close()

    def end(self):
        _, errors = self.process.communicate(timeout=TIMEOUT)  # closes standard input
        return self.process.returncode, errors.decode()

    def kill(self):
        if self.process.poll() is None:
            self.process.kill()
        self.process.communicate()


@pytest.fixture(scope="module")
def program(tmp_path_factory):
    path = str(tmp_path_factory.mktemp("program") / "vsock")
    subprocess.run(["gcc", "-O1", "-static", "-D_GNU_SOURCE", "-o", path,
                    f"{HERE}/programs/vsock.c"], check=True)
    with open(path, "rb") as file:
        return file.read()


@pytest.fixture(scope="module")
def guest(lodge, tmp_path_factory, program):
    one = Guest(lodge, tmp_path_factory.mktemp("v") / "g.vsock", "--cpus", "2")
    agent = one.agent()
    assert agent.push("/bin/vsock", program, mode=0o755) is None
    agent.close()
    yield one
    assert one.end() == (0, "")
    assert not os.path.exists(one.path)


class Server:
    """A Unix socket at PATH_PORT that one guest's connection comes to."""

    def __init__(self, guest, port):
        self.path = f"{guest.path}_{port}"
        self.listener = socket.socket(socket.AF_UNIX, socket.SOCK_STREAM)
        self.listener.bind(self.path)
        self.listener.listen(64)
        self.listener.settimeout(60)

    def accept(self):
        connected, _ = self.listener.accept()
        connected.settimeout(60)
        return connected

    def close(self):
        self.listener.close()
        os.unlink(self.path)


@pytest.fixture
def server(guest):
    one = Server(guest, 5000)
    yield one
    one.close()


def read_all(connected):
    pieces = []
    while piece := connected.recv(65536):
        pieces.append(piece)
    return b"".join(pieces)


def in_thread(function, *arguments):
    result = []
    thread = threading.Thread(target=lambda: result.append(function(*arguments)), daemon=True)
    thread.start()

    def join():
        thread.join(TIMEOUT)
        assert result, "it did not end"
        return result[0]
    return join


# --- the agent ---

def test_the_agent_runs_commands(guest):
    agent = guest.agent()
    assert agent.run(["sh", "-c", "cat; echo err >&2; exit 7"], stdin=b"in") == (7, b"in", b"err\n")
    assert agent.run(["no-such-program"])[0] == errno.ENOENT
    agent.close()


def test_several_hosts_at_once(guest):
    agents = [guest.agent() for _ in range(8)]
    for i, agent in enumerate(agents):
        agent.exec(["sh", "-c", f"read x; echo {i} $x"])
        assert struct.unpack("<II", agent.receive()[2])[0] > 0
    agents[0].exec(["sh", "-c", "sleep 1000"], stream=2)  # ends with its connection
    pid = struct.unpack("<II", agents[0].receive()[2])[0]
    for i, agent in reversed(list(enumerate(agents))):
        agent.send(6, 1, b"word\n")
        assert agent.finish() == (0, f"{i} word\n".encode(), b"")
        agent.close()
    assert eventually(lambda: guest.exec(["test", "-d", f"/proc/{pid}"])[0] == 1)


def test_files_go_in_and_come_out(guest):
    data = random.Random(5).randbytes(4_000_000)
    agent = guest.agent()
    assert agent.push("/tmp/file", data, mode=0o600) is None
    assert agent.run(["sha256sum", "/tmp/file"])[1].split()[0] == hashlib.sha256(
        data).hexdigest().encode()
    assert agent.pull("/tmp/file") == (0o600, len(data), data)
    assert agent.pull("/tmp/none")[0] == errno.ENOENT
    agent.close()


def test_a_full_disk_is_told_and_leaves_nothing(guest):
    agent = guest.agent()
    assert agent.run(["sh", "-c", "mount -t tmpfs -o size=1m none /mnt"])[0] == 0
    assert agent.push("/mnt/big", bytes(3_000_000))[0] == errno.ENOSPC
    assert agent.run(["sh", "-c", "ls -A /mnt; umount /mnt"]) == (0, b"", b"")
    agent.close()


def test_the_guest_says_what_it_is(guest):
    agent = guest.agent()
    facts = dict(agent.ask())
    assert facts["init"] == "1" and facts["cpus"] == "2" and facts["hostname"] == "lodge"
    assert facts["system"] == "Lodge default image"
    assert facts["kernel"] == agent.run(["uname", "-r"])[1].decode().strip()
    agent.close()


def test_the_clock_is_set(guest):
    agent = guest.agent()
    wanted = 1_900_000_000
    assert agent.set_clock(wanted * 10**9 + 5) is None
    assert wanted <= int(agent.run(["date", "+%s"])[1]) < wanted + 60
    now = time.time_ns()
    assert agent.set_clock(now) is None
    assert abs(int(dict(agent.ask())["time_ns"]) - now) < 60 * 10**9
    assert agent.set_clock(2**64 - 1)[0] == errno.EINVAL
    agent.close()


def test_a_connection_of_junk_harms_nobody_else(guest):
    good, bad = guest.agent(), vsock_connect(guest.path, AGENT_PORT)
    bad.sendall(b"\xf7Lag" + bytes(range(256)) * 1000)
    assert good.run(["echo", "fine"]) == (0, b"fine\n", b"")
    bad.close()
    good.close()


def test_only_the_host_is_listened_to(guest):
    """The guest's own programs cannot reach the agent, which is root."""
    for cid in ("3", "1"):
        status, _, errors = guest.exec(["vsock", "connect", cid, str(AGENT_PORT)])
        assert status == 1 and errors.startswith(b"connect: "), errors


# --- from the guest ---

def test_a_guest_connects_to_the_host(guest, server):
    data = random.Random(6).randbytes(30_000)
    done = in_thread(guest.exec, ["vsock", "connect", "2", "5000"], data)
    connected = server.accept()
    assert read_all(connected) == data  # its input has ended, and nothing else
    connected.sendall(data[::-1])
    connected.close()
    assert done() == (0, data[::-1], b"")


def test_megabytes_from_the_guest(guest, server):
    script = "seq 1 3000000 | tee /tmp/seq | vsock connect 2 5000; sha256sum </tmp/seq; rm /tmp/seq"
    done = in_thread(guest.exec, ["sh", "-c", script])
    connected = server.accept()
    digest = hashlib.sha256(read_all(connected)).hexdigest()
    connected.close()
    status, out, errors = done()
    assert (status, errors) == (0, b"")
    assert out.decode().split()[0] == digest


def test_nobody_listens_on_the_host(guest):
    status, _, errors = guest.exec(["vsock", "connect", "2", "5001"])
    assert (status, errors) == (1, b"connect: ECONNRESET\n")
    with open(f"{guest.path}_5002", "wb"):  # no socket
        status, _, errors = guest.exec(["vsock", "connect", "2", "5002"])
    os.unlink(f"{guest.path}_5002")
    assert (status, errors) == (1, b"connect: ECONNRESET\n")


def test_a_slow_reader_keeps_nobody_else_waiting(guest, server):
    done = in_thread(guest.exec, ["sh", "-c", "head -c 5000000 /dev/zero | vsock connect 2 5000"])
    slow = server.accept()
    assert slow.recv(1) == b"\0"
    for _ in range(3):
        assert guest.exec(["echo", "through"])[1] == b"through\n"
    assert len(read_all(slow)) == 4_999_999
    slow.close()
    assert done()[0] == 0


def test_the_last_bytes_of_a_program_that_is_gone_arrive(guest, server):
    assert guest.exec(["sh", "-c", "head -c 100000 /dev/zero | vsock connect 2 5000 & sleep 0.1; "
                       "exit 3"])[0] == 3
    connected = server.accept()
    time.sleep(0.5)
    assert len(read_all(connected)) == 100_000
    connected.close()


def test_the_host_hangs_up(guest, server):
    done = in_thread(guest.exec, ["sh", "-c", "yes | vsock send 2 5000"])
    connected = server.accept()
    assert connected.recv(2) == b"y\n"
    connected.close()
    status, _, errors = done()
    assert (status, errors) in ((1, b"write: EPIPE\n"), (1, b"write: ECONNRESET\n"))


# --- from the host ---

def test_a_program_of_the_guest_is_called(guest):
    agent = guest.agent()
    agent.exec(["sh", "-c", "echo to host | vsock listen 6000"])
    agent.receive()
    assert agent.receive()[2] == b"listening\n"
    connected = vsock_connect(guest.path, 6000)
    connected.sendall(b"from host")
    connected.shutdown(socket.SHUT_WR)
    assert read_all(connected) == b"to host\n"
    connected.close()
    assert agent.finish() == (0, b"from host", b"")
    agent.close()


def test_many_connections_at_once(guest):
    count = 100
    agent = guest.agent()
    agent.exec(["vsock", "echo", "6001", str(count)])
    agent.receive()
    assert agent.receive()[2] == b"listening\n"
    data = [random.Random(i).randbytes(20_000) for i in range(count)]
    connections = [vsock_connect(guest.path, 6001) for _ in range(count)]
    for connected, mine in zip(connections, data):
        connected.sendall(mine)
        connected.shutdown(socket.SHUT_WR)
    for connected, mine in zip(connections, data):
        assert read_all(connected) == mine
        connected.close()
    assert agent.finish() == (0, b"", b"")
    agent.close()


@pytest.mark.parametrize("said", [b"CONNECT 77\n", b"connect 1024\n", b"CONNECT\n", b"CONNECT x\n",
                                  b"CONNECT 4294967296\n", b"CONNECT 4294967295\n", b"\n",
                                  b"CONNECT  1024\n", b"x" * 1000, b""])
def test_a_client_that_says_anything_else_is_hung_up_on(guest, said):
    client = socket.socket(socket.AF_UNIX, socket.SOCK_STREAM)
    client.settimeout(60)
    client.connect(guest.path)
    client.sendall(said)
    if not said:
        client.shutdown(socket.SHUT_WR)
    try:
        assert client.recv(1) == b""
    except ConnectionResetError:
        pass
    client.close()
    assert guest.exec(["true"])[0] == 0


def test_a_line_may_come_in_pieces_and_clients_may_be_silent(guest):
    silent = []
    for _ in range(40):  # more than are waited for: the oldest make room
        silent.append(socket.socket(socket.AF_UNIX, socket.SOCK_STREAM))
        silent[-1].connect(guest.path)
    client = socket.socket(socket.AF_UNIX, socket.SOCK_STREAM)
    client.settimeout(60)
    client.connect(guest.path)
    for piece in (b"CONN", b"ECT 10", b"24\n"):
        client.sendall(piece)
        time.sleep(0.1)
    assert client.recv(3) == b"OK "
    client.close()
    silent[0].settimeout(60)
    assert silent[0].recv(1) == b""
    for one in silent:
        one.close()


# --- the socket's and the guest's life ---

def test_the_socket_is_for_its_owner(guest):
    status = os.stat(guest.path)
    assert stat.S_ISSOCK(status.st_mode) and stat.S_IMODE(status.st_mode) == 0o600


def test_a_path_in_use_is_refused_and_a_stale_one_taken(lodge, guest, tmp_path):
    def run(path):
        return subprocess.run([lodge, "run", "--engine", ENGINE, "--vsock", str(path), "--", "true"],
                              stdin=subprocess.DEVNULL, capture_output=True, text=True,
                              timeout=TIMEOUT)
    result = run(guest.path)
    assert (result.returncode, result.stdout) == (125, "")
    assert result.stderr == (f"lodge: vsock '{guest.path}' is in use: another guest has it, or a "
                             "file is there\n")
    (tmp_path / "file").touch()
    assert "is in use" in run(tmp_path / "file").stderr
    assert (tmp_path / "file").exists()
    assert "No such file" in run(tmp_path / "none" / "x").stderr
    killed = Guest(lodge, tmp_path / "stale")
    killed.kill()
    assert os.path.exists(killed.path)
    assert run(killed.path).returncode == 0
    assert not os.path.exists(killed.path)


@pytest.mark.parametrize("value, message", [
    ("x,cid=2", "a guest's CID is 3 to 4294967294, not 2"),
    ("x,port=1", "'port=1' says nothing of a vsock; there is cid=N"),
    ("", "vsock wants a path, as in web.vsock,cid=3"),
    ("p" * 97, "is longer than 96 bytes"),
])
def test_wrong_words_are_refused(lodge, value, message):
    result = subprocess.run([lodge, "run", "--vsock", value, "--", "true"], capture_output=True,
                            stdin=subprocess.DEVNULL, text=True, timeout=TIMEOUT)
    assert result.returncode == 125
    assert message in result.stderr


def test_definitions_name_it(lodge, tmp_path):
    path = tmp_path / "a.vsock"
    (tmp_path / "vm.conf").write_text(f'vsock = "{path},cid=77"\n')
    (tmp_path / "vm.json").write_text('{"vsock": {"path": "%s", "cid": 77}}' % path)
    (tmp_path / "fd.json").write_text('{"vsock": {"path": "%s", "fd": 3}}' % path)
    script = "cat /sys/bus/virtio/drivers/vmw_vsock_virtio_transport/virtio*/device; ls -l /dev/vsock"
    for name in ("vm.conf", "vm.json"):
        result = subprocess.run([lodge, "run", "--engine", ENGINE, "-f", tmp_path / name, "--", "sh",
                                 "-c", script], stdin=subprocess.DEVNULL, capture_output=True,
                                text=True, timeout=TIMEOUT)
        assert result.stdout.startswith("0x0013\nc"), result
    result = subprocess.run([lodge, "run", "-f", tmp_path / "fd.json", "--", "true"], text=True,
                            stdin=subprocess.DEVNULL, capture_output=True, timeout=TIMEOUT)
    assert "descriptors and consoles are for lodge to fill in" in result.stderr


def test_without_it_nothing_is_there(lodge):
    result = subprocess.run([lodge, "run", "--engine", ENGINE, "--", "sh", "-c",
                             "ls /dev/vsock; cut -d' ' -f1 /proc/modules"], text=True,
                            stdin=subprocess.DEVNULL, capture_output=True, timeout=TIMEOUT)
    assert "vsock" not in result.stdout and "virtio_console" in result.stdout


def test_the_agent_powers_the_guest_off(lodge, tmp_path):
    one = Guest(lodge, tmp_path / "off")
    agent = one.agent()
    agent.send(SHUTDOWN, 0, struct.pack("<I", 0))
    one.process.wait(timeout=TIMEOUT)
    assert "powered off before the command ended" in one.end()[1]
    agent.close()


def test_an_agent_that_is_not_init_asks_it(lodge, tmp_path):
    one = Guest(lodge, tmp_path / "off",
                command=("sh", "-c", "/init --vsock-port 2000 & echo up; cat >/dev/null"))
    assert eventually(lambda: reachable(one, 2000), 60)
    agent = one.agent(2000)
    facts = dict(agent.ask())
    assert facts["init"] == "0"
    assert agent.set_clock(time.time_ns()) is None
    agent.send(SHUTDOWN, 0, struct.pack("<I", 0))
    one.process.wait(timeout=TIMEOUT)
    assert "powered off before the command ended" in one.end()[1]
    agent.close()


def reachable(guest, port):
    try:
        vsock_connect(guest.path, port).close()
        return True
    except Refused:
        return False


def test_a_guest_that_starts_anew_has_it_again(lodge, tmp_path):
    path = str(tmp_path / "again")
    process = subprocess.Popen([lodge, "run", "--engine", ENGINE, "--vsock", path, "--on-reset",
                                "reboot"], stdin=subprocess.PIPE, stdout=subprocess.DEVNULL,
                               stderr=subprocess.PIPE)

    def boot_id():
        channel = Channel(vsock_connect(path, AGENT_PORT))
        channel.greet()
        answer = channel.pull("/proc/sys/kernel/random/boot_id")[2]
        return channel, answer

    ids = []

    def up():
        try:
            channel, answer = boot_id()
        except (Refused, FileNotFoundError, ConnectionError, EOFError):
            return False  # not yet, or on its way down
        channel.close()
        ids.append(answer)
        return ids[-1] != ids[0] or len(ids) == 1
    assert eventually(up, 60)
    channel, first = boot_id()
    channel.send(SHUTDOWN, 0, struct.pack("<I", 1))
    assert channel.socket.recv(1) == b""  # the guest's end of it is gone
    assert eventually(up, 60)
    assert first == ids[0] != ids[-1]
    process.send_signal(signal.SIGTERM)
    process.communicate(timeout=TIMEOUT)
    assert process.returncode == 143
    assert not os.path.exists(path)
