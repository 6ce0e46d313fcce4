"""lodge-agent over a socket pair, as an ordinary process: no guest is needed."""
import errno
import hashlib
import os
import random
import signal
import struct
import subprocess
import time

import pytest

from agent_channel import (EXEC, EXIT, FAILED, FILE, MAGIC, PING, PONG, PULL, PUSH, RESIZE, SHUTDOWN,
                           STARTED, STDERR, STDIN, STDOUT, WELCOME, WINDOW, Agent, eventually, frame)


@pytest.fixture
def agent(bin_folder):
    one = Agent(bin_folder)
    yield one
    one.socket.close()
    try:
        one.process.wait(timeout=5)
    except subprocess.TimeoutExpired:
        one.process.kill()
        one.process.wait()
        raise


@pytest.fixture
def greeted(agent):
    agent.greet()
    return agent


def alive(pid):
    try:
        with open(f"/proc/{pid}/stat", encoding="ascii") as stat:
            return stat.read().rsplit(")", 1)[1].split()[0] != "Z"
    except (FileNotFoundError, ProcessLookupError):
        return False


def test_welcome_tells_versions(agent):
    version, release, rest = agent.greet(nonce=2**64 - 1)
    assert version.count(b".") == 2
    assert release.decode() == os.uname().release
    assert rest == b""


def test_output_and_status(greeted):
    assert greeted.run(["sh", "-c", "echo out; echo err >&2; exit 7"]) == (7, b"out\n", b"err\n")


def test_death_by_signal(greeted):
    assert greeted.run(["sh", "-c", "kill -9 $$"])[0] == -9


def test_binary_both_ways(greeted):
    data = random.Random(1).randbytes(32000)
    assert greeted.run(["cat"], stdin=data) == (0, data, b"")


def test_arguments_are_not_touched(greeted):
    words = ["", "a b", "$HOME", "*", "\n", "é", "--"]
    status, out, _ = greeted.run(["printf", "%s|", *words])
    assert status == 0
    assert out.decode() == "".join(word + "|" for word in words)


def test_environment_and_folder(greeted):
    status, out, _ = greeted.run(["sh", "-c", "echo $A-$PATH-$PWD"],
                                 env=["A=1", "PATH=/bin:/usr/bin"], cwd="/usr")
    assert (status, out) == (0, b"1-/bin:/usr/bin-/usr\n")
    status, out, _ = greeted.run(["sh", "-c", "echo $PATH; env | wc -l"])
    assert out.splitlines()[0].startswith(b"/usr/local/sbin:")


@pytest.mark.parametrize("argv, how, code, words", [
    (["no-such-program"], {}, errno.ENOENT, "'no-such-program': No such file"),
    (["/no/such/program"], {}, errno.ENOENT, "No such file"),
    ([""], {}, errno.ENOENT, "No such file"),
    (["/etc/passwd"], {}, errno.EACCES, "'/etc/passwd': Permission denied"),
    (["/etc"], {}, errno.EACCES, "'/etc': Permission denied"),
    (["true"], {"cwd": "/no/such/folder"}, errno.ENOTDIR, "directory '/no/such/folder': No such"),
    (["true"], {"cwd": "/etc/passwd"}, errno.ENOTDIR, "'/etc/passwd': Not a directory"),
])
def test_what_cannot_start_says_why(greeted, argv, how, code, words):
    error, text = greeted.run(argv, **how)
    assert error == code
    assert words in text
    assert greeted.run(["true"])[0] == 0


def test_signals_reach_the_whole_session(greeted):
    greeted.exec(["sh", "-c", "trap 'echo got; exit 3' INT; echo ready; sleep 60 & wait"])
    assert greeted.receive()[0] == STARTED
    assert greeted.receive() == (STDOUT, 1, b"ready\n")
    greeted.signal(signal.SIGINT)
    assert greeted.finish()[:2] == (3, b"got\n")


def test_a_signal_overtakes_input_that_nobody_reads(greeted):
    greeted.exec(["sleep", "60"])
    _, _, payload = greeted.receive()
    window = struct.unpack("<II", payload)[1]
    for _ in range(window // 32000):
        greeted.send(STDIN, 1, bytes(32000))
    greeted.signal(signal.SIGTERM)
    assert greeted.finish()[0] == -signal.SIGTERM


def test_output_stays_within_the_window(greeted):
    greeted.exec(["sh", "-c", "head -c 500000 /dev/zero; echo end >&2"], window=100000)
    assert greeted.receive()[0] == STARTED
    seen = 0
    while seen < 100000:
        kind, _, payload = greeted.receive()
        assert kind == STDOUT
        seen += len(payload)
    assert seen == 100000
    # The other flow has a window of its own, and a ping is answered meanwhile.
    greeted.send(PING, 0, struct.pack("<Q", 5))
    assert greeted.receive() == (PONG, 0, struct.pack("<Q", 5))
    greeted.grant(1, 400000)
    status, out, errors = greeted.finish()
    assert (status, len(out), errors) == (0, 400000, b"end\n")


def test_input_beyond_the_window_ends_the_session(greeted):
    greeted.exec(["sleep", "60"])
    _, _, payload = greeted.receive()
    pid, window = struct.unpack("<II", payload)
    # What the pipe to the command swallows is granted again.
    for _ in range((window + (1 << 16)) // 32000 + 2):
        greeted.send(STDIN, 1, bytes(32000))
    assert eventually(lambda: not alive(pid))
    greeted.greet(nonce=8)


def test_megabytes_both_ways_with_credit(greeted):
    data = random.Random(2).randbytes(3 << 20)
    greeted.exec(["cat"])
    _, _, payload = greeted.receive()
    credit, sent, out = struct.unpack("<II", payload)[1], 0, b""
    while True:
        while credit and sent < len(data):
            piece = data[sent:sent + min(credit, 32000)]
            greeted.send(STDIN, 1, piece)
            sent += len(piece)
            credit -= len(piece)
            if sent == len(data):
                greeted.send(STDIN, 1)
            if len(piece) == 32000 and sent % 64000 == 0:
                break
        kind, _, payload = greeted.receive()
        if kind == STDOUT:
            out += payload
            greeted.grant(1, len(payload))
        elif kind == WINDOW:
            flow, length = struct.unpack("<II", payload)
            assert flow == 0
            credit += length
        else:
            assert kind == EXIT
            break
    assert hashlib.sha256(out).digest() == hashlib.sha256(data).digest()


def test_a_background_process_does_not_hold_the_command(greeted):
    status, out, _ = greeted.run(["sh", "-c", "sleep 60 & echo $!"])
    assert status == 0
    os.kill(int(out), signal.SIGKILL)


def test_all_output_comes_before_exit(greeted):
    for _ in range(20):
        status, out, _ = greeted.run(["sh", "-c", "head -c 100000 /dev/zero"], window=1000)
        assert (status, len(out)) == (0, 100000)


def test_several_commands_at_once(greeted):
    for stream in (1, 2, 3):
        greeted.exec(["sh", "-c", "read line; echo $line"], stream=stream)
    started = sorted(greeted.receive()[:2] for _ in range(3))
    assert started == [(STARTED, 1), (STARTED, 2), (STARTED, 3)]
    for stream in (3, 1, 2):
        greeted.send(STDIN, stream, b"to %d\n" % stream)
        assert greeted.finish(stream)[:2] == (0, b"to %d\n" % stream)
    greeted.exec(["sleep", "60"], stream=4)
    greeted.exec(["true"], stream=4)
    assert greeted.receive()[0] == STARTED
    kind, stream, payload = greeted.receive()
    assert (kind, stream, payload[:4]) == (FAILED, 4, struct.pack("<I", errno.EEXIST))


def test_a_terminal(greeted):
    greeted.exec(["sh", "-c", "tty; stty size; read line; stty size; echo got:$line; exit 4"],
                 tty=True, size=(91, 33))
    assert greeted.receive()[0] == STARTED
    out = b""
    while out.count(b"\n") < 2:
        out += greeted.receive()[2]
    assert out.startswith(b"/dev/pts/") and b"\r\n33 91\r\n" in out
    greeted.send(RESIZE, 1, struct.pack("<HH", 132, 50))
    greeted.send(STDIN, 1, b"yes\r")
    status, out, errors = greeted.finish()
    assert status == 4
    assert b"50 132\r\ngot:yes\r\n" in out
    assert errors == b""


def test_end_of_input_and_interrupt_at_a_terminal(greeted):
    status, out, _ = greeted.run(["cat"], stdin=b"line\n", tty=True)
    assert status == 0 and out.count(b"line\r\n") == 2  # the echo and the output
    greeted.exec(["sleep", "60"], tty=True)
    assert greeted.receive()[0] == STARTED
    greeted.send(STDIN, 1, b"\x03")
    assert greeted.finish()[0] == -signal.SIGINT


def test_no_terminal_without_asking(greeted):
    assert greeted.run(["sh", "-c", "tty; exec 3</dev/tty"])[1] == b"not a tty\n"


def test_a_new_session_ends_the_old_one(greeted):
    greeted.exec(["sh", "-c", "sleep 60; true"])
    pid = struct.unpack("<II", greeted.receive()[2])[0]
    # The old host died in the middle of a frame.
    greeted.socket.sendall(frame(STDIN, 1, bytes(60000))[:30000])
    greeted.socket.sendall(bytes(65536))
    greeted.greet(nonce=99)
    assert eventually(lambda: not alive(pid))
    assert greeted.run(["echo", "new"]) == (0, b"new\n", b"")


JUNK = {
    "words": b"junk", "magics": MAGIC * 100, "zeros": bytes(100000), "no type": frame(0, 0),
    "unknown type": frame(77, 0), "agent's own": frame(EXIT, 1, bytes(8)),
    "short exec": frame(EXEC, 1, b"short"),
    "huge": MAGIC + struct.pack("<HHII", STDIN, 0, 1, 1 << 31),
    "absent strings": frame(EXEC, 1, struct.pack("<IHHIII", 0, 0, 0, 0, 4096, 0) + b"\0a\0"),
    "bad welcome": frame(WELCOME, 0, bytes(64)), "stderr": frame(STDERR, 1, b"x"),
}


@pytest.mark.parametrize("junk", JUNK.values(), ids=JUNK.keys())
def test_junk_is_survived(greeted, junk):
    greeted.socket.sendall(junk)
    greeted.socket.sendall(bytes(65536))
    greeted.greet(nonce=3)
    assert greeted.run(["true"])[0] == 0


def test_files_go_in(greeted, tmp_path):
    data = random.Random(2).randbytes(3_000_000)
    path = str(tmp_path / "in")
    assert greeted.push(path, data, mode=0o751) is None
    with open(path, "rb") as file:
        assert file.read() == data
    assert os.stat(path).st_mode & 0o7777 == 0o751
    assert greeted.push(path, b"") is None  # instead of what was there
    assert os.stat(path).st_size == 0 and os.stat(path).st_mode & 0o7777 == 0o644
    os.symlink(path, tmp_path / "link")
    assert greeted.push(str(tmp_path / "link"), b"through") is None
    assert os.path.islink(tmp_path / "link")
    with open(path, "rb") as file:
        assert file.read() == b"through"
    assert sorted(os.listdir(tmp_path)) == ["in", "link"]


def test_files_come_out(greeted, tmp_path):
    data = random.Random(3).randbytes(3_000_000)
    path = tmp_path / "out"
    path.write_bytes(data)
    os.chmod(path, 0o640)
    assert greeted.pull(str(path)) == (0o640, len(data), data)
    path.write_bytes(data[:2000])
    assert greeted.pull(str(path), window=1) == (0o640, 2000, data[:2000])
    path.write_bytes(b"")
    assert greeted.pull(str(path)) == (0o640, 0, b"")
    mode, _, release = greeted.pull("/proc/version")
    assert mode == 0o444 and release.startswith(b"Linux version")


def test_a_file_with_no_window_waits(greeted, tmp_path):
    path = tmp_path / "out"
    path.write_bytes(b"0123456789")
    greeted.send(PULL, 9, struct.pack("<I", 4) + bytes(path) + b"\0")
    assert greeted.receive()[0] == FILE
    assert greeted.receive() == (STDOUT, 9, b"0123")
    greeted.send(PING, 0, struct.pack("<Q", 1))
    assert greeted.receive()[0] == PONG  # nothing came before it
    greeted.grant(1, 100, 9)
    assert greeted.receive() == (STDOUT, 9, b"456789")
    assert greeted.receive()[0] == EXIT


def test_what_is_no_file_is_refused(greeted, tmp_path):
    os.mkfifo(tmp_path / "fifo")
    folder = str(tmp_path)
    for path, number in ((folder, errno.EISDIR), ("/nowhere/x", errno.ENOENT),
                         (f"{folder}/fifo", errno.EINVAL), ("/dev/null", errno.EINVAL)):
        got, text = greeted.pull(path)
        assert (got, path in text) == (number, True), (path, text)
        got, text = greeted.push(path, b"x")
        assert (got, path in text) == (number, True), (path, text)
    got, text = greeted.push(f"{folder}/{'n' * 300}", b"x")
    assert got == errno.ENAMETOOLONG
    assert os.listdir(tmp_path) == ["fifo"]


def test_an_unfinished_file_leaves_nothing(greeted, tmp_path):
    path = tmp_path / "half"
    greeted.send(PUSH, 1, struct.pack("<I", 0o600) + bytes(path) + b"\0")
    assert greeted.receive()[0] == STARTED
    greeted.send(STDIN, 1, b"half of it")
    assert eventually(lambda: len(os.listdir(tmp_path)) == 1 and not path.exists())
    assert greeted.close() == 0
    assert os.listdir(tmp_path) == []


def test_files_and_commands_at_once(greeted, tmp_path):
    data = random.Random(4).randbytes(200_000)
    path = tmp_path / "x"
    path.write_bytes(data)
    greeted.exec(["cat"], stream=5)
    assert greeted.receive()[0] == STARTED
    assert greeted.pull(str(path), stream=6)[2] == data
    greeted.send(STDIN, 5, b"still here")
    greeted.send(STDIN, 5)
    assert greeted.finish(5) == (0, b"still here", b"")


def test_a_stream_in_use_is_refused(greeted, tmp_path):
    greeted.exec(["sleep", "60"], stream=5)
    assert greeted.receive()[0] == STARTED
    assert greeted.push(str(tmp_path / "x"), b"", stream=5)[0] == errno.EEXIST
    assert greeted.pull("/proc/version", stream=5)[0] == errno.EEXIST


def test_the_guest_describes_itself(greeted):
    facts = dict(greeted.ask())
    assert facts["kernel"] == os.uname().release and facts["hostname"] == os.uname().nodename
    assert int(facts["cpus"]) == os.sysconf("SC_NPROCESSORS_ONLN")
    assert int(facts["memory"]) > int(facts["memory_free"]) > 0
    assert abs(int(facts["time_ns"]) / 1e9 - time.time()) < 10
    assert facts["init"] == "0" and facts["agent"].count(".") == 2


def test_a_clock_that_is_not_the_guests_is_left_alone(greeted):
    assert greeted.set_clock(1) == (errno.EPERM, "this agent does not serve a guest")
    assert time.time() > 1


def test_an_identity_that_is_not_the_guests_is_left_alone(greeted):
    name = os.uname().nodename
    greeted.identity(hostname="not-" + name[:50])
    kind, _, payload = greeted.receive()
    assert (kind, payload[:4]) == (FAILED, struct.pack("<I", errno.EPERM))
    assert os.uname().nodename == name


@pytest.mark.parametrize("wrong", [{"hostname": "a b"}, {"flags": 4}, {"more": b"x"},
                                   {"cards": [bytes(14)]}, {"cards": [bytes(13)]}])
def test_a_malformed_identity_ends_the_session(greeted, wrong):
    greeted.identity(**wrong)
    greeted.greet(nonce=8)  # what came before it is forgotten, and no answer to it is there


def test_an_older_host_is_spoken_to_as_it_speaks(agent):
    agent.greet(asked=2)
    assert agent.run(["true"]) == (0, b"", b"")
    agent.greet(nonce=9, asked=77)
    agent.greet(nonce=10, asked=1)  # it has nothing older, and says so


def test_only_pid_1_shuts_down(greeted):
    greeted.send(SHUTDOWN, 0, struct.pack("<I", 0))
    kind, _, payload = greeted.receive()
    assert (kind, payload[:4]) == (FAILED, struct.pack("<I", errno.EPERM))


def test_the_host_leaving_ends_everything(greeted):
    greeted.exec(["sleep", "60"])
    pid = struct.unpack("<II", greeted.receive()[2])[0]
    assert greeted.close() == 0
    assert eventually(lambda: not alive(pid))


def test_sigterm_ends_the_agent(greeted):
    greeted.exec(["sleep", "60"])
    pid = struct.unpack("<II", greeted.receive()[2])[0]
    greeted.process.terminate()
    assert greeted.process.wait(timeout=5) == 0
    assert eventually(lambda: not alive(pid))


def test_wrong_arguments(bin_folder):
    for arguments in (["--port-fd"], ["--port-fd", "x"], ["--port-fd", "99"], ["--help"],
                      ["--vsock-port", "0"], ["--vsock-port", "x"], ["--vsock-port"]):
        result = subprocess.run([f"{bin_folder}/lodge-agent", *arguments], capture_output=True,
                                timeout=5)
        assert result.returncode == 2
        assert b"usage: lodge-agent" in result.stderr
