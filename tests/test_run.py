"""lodge run with a real guest: the default image under the software engine."""
import fcntl
import hashlib
import os
import pty
import random
import select
import signal
import struct
import subprocess
import termios
import time

import pytest

ENGINE = os.environ.get("LODGE_TEST_ENGINE", "soft")
TIMEOUT = int(os.environ.get("LODGE_TEST_TIMEOUT", "240"))


@pytest.fixture
def run(lodge):
    def run(*arguments, options=(), stdin=subprocess.DEVNULL, **how):
        if "input" in how:
            stdin = None
        command = ["--", *arguments] if arguments else []
        return subprocess.run([lodge, "run", "--engine", ENGINE, *options, *command],
                              capture_output=True, timeout=TIMEOUT,
                              **({} if "input" in how else {"stdin": stdin}), **how)
    return run


@pytest.fixture
def start(lodge):
    """A lodge in the background; none is left behind."""
    started = []

    def start(*arguments, options=(), **how):
        how = {"stdin": subprocess.DEVNULL, "stdout": subprocess.PIPE, "stderr": subprocess.PIPE,
               **how}
        process = subprocess.Popen([lodge, "run", "--engine", ENGINE, *options, "--", *arguments],
                                   **how)
        started.append(process)
        return process
    yield start
    for process in started:
        if process.poll() is None:
            process.kill()
        process.wait()


def children(pid):
    found = []
    for entry in os.listdir("/proc"):
        if entry.isdigit():
            try:
                with open(f"/proc/{entry}/stat", encoding="ascii", errors="replace") as stat:
                    fields = stat.read().rsplit(")", 1)[1].split()
            except (FileNotFoundError, ProcessLookupError):
                continue
            if int(fields[1]) == pid and fields[0] != "Z":
                found.append(int(entry))
    return found


def alive(pid):
    try:
        with open(f"/proc/{pid}/stat", encoding="ascii", errors="replace") as stat:
            return stat.read().rsplit(")", 1)[1].split()[0] != "Z"
    except (FileNotFoundError, ProcessLookupError):
        return False


def wait_until(condition, seconds):
    end = time.monotonic() + seconds
    while time.monotonic() < end and not condition():
        time.sleep(0.02)
    return condition()


# --- a command's output, input and status ---

def test_output_status_and_no_noise(run):
    result = run("sh", "-c", "echo out; echo err >&2; exit 7")
    assert (result.returncode, result.stdout, result.stderr) == (7, b"out\n", b"err\n")


def test_megabytes_both_ways_are_the_same(run):
    data = random.Random(3).randbytes(4 << 20)
    result = run("cat", input=data)
    assert result.returncode == 0 and result.stderr == b""
    assert hashlib.sha256(result.stdout).digest() == hashlib.sha256(data).digest()


def test_input_reaches_the_command_whole(run):
    data = random.Random(4).randbytes(2 << 20)
    result = run("sha256sum", input=data)
    assert result.stdout.split()[0].decode() == hashlib.sha256(data).hexdigest()


def test_large_standard_error_apart_from_output(run):
    result = run("sh", "-c", "head -c 2000000 /dev/zero >&2; echo done")
    assert (result.returncode, result.stdout, len(result.stderr)) == (0, b"done\n", 2000000)


def test_input_that_nobody_reads(run):
    assert run("true", input=bytes(3 << 20)).returncode == 0


@pytest.mark.parametrize("command, status, words", [
    (["sh", "-c", "kill -TERM $$"], 143, b""),
    (["no-such-program"], 127, b"lodge: 'no-such-program': No such file or directory\n"),
    (["/etc/passwd"], 126, b"lodge: '/etc/passwd': Permission denied\n"),
])
def test_exit_status_as_a_shell_counts(run, command, status, words):
    result = run(*command)
    assert (result.returncode, result.stdout, result.stderr) == (status, b"", words)


def test_the_guest_is_as_asked(run):
    """Kernel, environment, folder, name, arguments, no terminal, and input that ends at once."""
    result = run("sh", "-c", "uname -sn; cat; tty; echo \"$A|$PWD|$1|$2\"", "-", "a b", "é",
                 options=["--env", "A=x y", "--workdir", "/etc", "--name", "web"])
    assert result.stdout.decode() == "Linux web\nnot a tty\nx y|/etc|a b|é\n"
    assert result.returncode == 0 and result.stderr == b""


def test_memory_and_cpus_are_what_was_asked(run):
    result = run("sh", "-c", "nproc; grep MemTotal /proc/meminfo; dmesg -r | grep '^<[0-4]>'",
                 options=["--memory", "256M", "--cpus", "2"])
    cpus, memory, *warnings = result.stdout.decode().splitlines()
    assert cpus == "2"
    assert 180 << 10 < int(memory.split()[1]) < 256 << 10
    assert warnings == []


def test_a_reader_that_leaves_ends_the_guest(start):
    process = start("yes")
    assert process.stdout.read(100) == b"y\n" * 50
    process.stdout.close()
    assert process.wait(timeout=30) == 128 + signal.SIGPIPE


def test_a_slow_reader_loses_nothing(start):
    process = start("sh", "-c", "head -c 1500000 /dev/zero; echo end")
    seen = b""
    while piece := os.read(process.stdout.fileno(), 65536):
        seen += piece
        time.sleep(0.02)
    assert len(seen) == 1500004 and seen.endswith(b"end\n")
    assert process.wait(timeout=30) == 0


# --- signals ---

def ready(process, word=b"ready\n"):
    assert process.stdout.readline() == word, process.stderr.read()


def test_interrupt_reaches_the_command(start):
    process = start("sh", "-c",
                    "trap 'echo got; exit 5' INT; echo ready; while :; do sleep 0.1; done")
    ready(process)
    process.send_signal(signal.SIGINT)
    assert process.stdout.read() == b"got\n"
    assert process.wait(timeout=30) == 5


def test_a_second_interrupt_ends_the_guest(start):
    process = start("sh", "-c", "trap '' INT; echo ready; sleep 600")
    ready(process)
    vmm = children(process.pid)
    process.send_signal(signal.SIGINT)
    time.sleep(0.1)
    process.send_signal(signal.SIGINT)
    assert process.wait(timeout=10) == 130
    assert not any(alive(pid) for pid in vmm)


def test_sigterm_leaves_nothing_running(start):
    process = start("sh", "-c", "echo ready; sleep 600")
    ready(process)
    vmm = children(process.pid)
    assert vmm
    process.terminate()
    assert process.wait(timeout=10) == 143
    assert not any(alive(pid) for pid in vmm)


def test_sigterm_while_it_boots(start):
    process = start("true")
    assert wait_until(lambda: children(process.pid), 10)
    vmm = children(process.pid)
    process.terminate()
    assert process.wait(timeout=10) == 143
    assert not any(alive(pid) for pid in vmm)


def test_a_killed_lodge_takes_its_guest_along(start):
    process = start("sh", "-c", "echo ready; sleep 600")
    ready(process)
    vmm = children(process.pid)
    process.kill()
    process.wait()
    assert wait_until(lambda: not any(alive(pid) for pid in vmm), 5)


def test_a_killed_vmm_is_reported(start):
    process = start("sh", "-c", "echo ready; sleep 600")
    ready(process)
    for pid in children(process.pid):
        os.kill(pid, signal.SIGKILL)
    assert process.wait(timeout=10) == 125
    assert b"lodge: lodge-vmm ended: killed by signal 9" in process.stderr.read()


# --- guests that fail ---

def test_a_panic_is_told_with_the_guest_s_last_words(run):
    result = run("sh", "-c", "echo c >/proc/sysrq-trigger")
    assert result.returncode == 125
    lines = result.stderr.decode().splitlines()
    assert lines[0] == "lodge: the guest's kernel panicked: sysrq triggered crash"
    assert all(line.startswith("lodge: guest: ") for line in lines[1:]) and len(lines) > 3


def test_a_triple_fault_is_told_with_registers(run):
    result = run("sh", "-c", "echo b >/proc/sysrq-trigger", options=["--append", "reboot=t"])
    assert result.returncode == 125
    lines = result.stderr.decode().splitlines()
    assert lines[0].startswith("lodge: the guest died: ") and "triple fault" in lines[0]
    assert any(line.startswith("rip ") for line in lines[1:4])


def test_power_off_before_the_command_ended(run):
    result = run("sh", "-c", "poweroff; sleep 600")
    assert result.returncode == 125
    assert b"lodge: the guest powered off before the command ended" in result.stderr


def test_a_guest_without_agent(run, tmp_path):
    initrd = tmp_path / "initrd"
    initrd.write_bytes(b"no archive, but a file" * 100)
    result = run("true", options=["--initrd", str(initrd), "default"])
    assert result.returncode == 125
    assert b"lodge: the guest's kernel panicked: VFS: Unable to mount root fs" in result.stderr


def test_an_agent_that_does_not_answer(run):
    result = run("true", options=["--agent-timeout", "3", "--append", "rdinit=/bin/busybox"])
    assert result.returncode == 125
    assert (b"no answer within 3 s; does its initrd start lodge-agent?" in result.stderr or
            b"panicked" in result.stderr)


# --- the serial console ---

def test_without_terminal_the_console_goes_to_output(run):
    result = run()
    assert result.returncode == 0
    assert b"BusyBox" in result.stdout and b"reboot: Power down" in result.stdout


def test_commands_piped_into_the_console(run):
    result = run(input=b"echo hello $((6 * 7))\n")
    assert result.returncode == 0
    assert b"\nhello 42\r\n" in result.stdout


# --- a terminal ---

class Terminal:
    """lodge with a pseudo terminal as its controlling one."""

    def __init__(self, command, columns=101, rows=37):
        self.master, slave = pty.openpty()
        self.resize(columns, rows)
        self.before = termios.tcgetattr(slave)
        self.slave = slave
        self.process = subprocess.Popen(
            command, stdin=slave, stdout=slave, stderr=slave, start_new_session=True,
            preexec_fn=lambda: fcntl.ioctl(0, termios.TIOCSCTTY, 0))
        self.seen = b""

    def resize(self, columns, rows):
        fcntl.ioctl(self.master, termios.TIOCSWINSZ, struct.pack("HHHH", rows, columns, 0, 0))

    def type(self, keys):
        os.write(self.master, keys)

    def expect(self, words, seconds=TIMEOUT):
        end = time.monotonic() + seconds
        while words not in self.seen:
            left = end - time.monotonic()
            assert left > 0, f"no {words!r} in {self.seen!r}"
            if select.select([self.master], [], [], left)[0]:
                self.seen += os.read(self.master, 65536)
        before, self.seen = self.seen.split(words, 1)
        return before

    def restored(self):
        return termios.tcgetattr(self.slave) == self.before

    def raw(self):
        return not termios.tcgetattr(self.slave)[3] & termios.ICANON

    def close(self):
        if self.process.poll() is None:
            self.process.kill()
        self.process.wait()
        os.close(self.master)
        os.close(self.slave)


@pytest.fixture
def terminal(lodge):
    opened = []

    def terminal(*arguments, options=()):
        command = ["--", *arguments] if arguments else []
        opened.append(Terminal([lodge, "run", "--engine", ENGINE, *options, *command]))
        return opened[-1]
    yield terminal
    for one in opened:
        one.close()


def test_a_shell_at_a_terminal(terminal):
    console = terminal()
    console.expect(b"Ctrl-] then q leaves")
    console.expect(b"lodge:~# ")
    assert console.raw()
    console.type(b"stty size; tty; echo $TERM-$((40 + 2))\r")
    console.expect(b"37 101\r\n/dev/pts/0\r\n")
    console.expect(b"-42\r\n")
    console.type(b"exit 3\r")
    assert console.process.wait(timeout=60) == 3
    assert console.restored()


def test_ctrl_c_and_window_size_in_a_shell(terminal):
    console = terminal()
    console.expect(b"lodge:~# ")
    # The word comes from the process that Ctrl-C is meant for, when that is in the foreground.
    console.type(b"sh -c 'echo st\"\"art; exec sleep 600'\r")
    console.expect(b"start\r\n")
    console.resize(66, 22)
    console.process.send_signal(signal.SIGWINCH)
    console.type(b"\x03")
    console.expect(b"lodge:~# ")
    console.type(b"stty size\r")
    console.expect(b"22 66\r\n")
    console.expect(b"lodge:~# ")
    console.type(b"\x04")  # end of file: the status of the last command
    assert console.process.wait(timeout=60) == 0
    assert console.restored()


def test_leaving_with_the_escape(terminal):
    console = terminal()
    console.expect(b"lodge:~# ")
    vmm = children(console.process.pid)
    console.type(b"\x1d?")
    console.expect(b"Ctrl-] q  end the guest")
    console.type(b"\x1dq")
    assert console.process.wait(timeout=10) == 0
    assert console.restored()
    assert not any(alive(pid) for pid in vmm)


def test_leaving_while_it_boots(terminal):
    console = terminal()
    console.expect(b"Ctrl-] then q leaves")
    assert wait_until(console.raw, 10)
    console.type(b"\x1dq")
    assert console.process.wait(timeout=10) == 0
    assert console.restored()


def test_powering_off_from_the_shell_is_a_good_end(terminal):
    console = terminal()
    console.expect(b"lodge:~# ")
    console.type(b"poweroff\r")
    assert console.process.wait(timeout=60) == 0
    assert console.restored()


@pytest.mark.parametrize("number", [signal.SIGHUP, signal.SIGINT])
def test_signals_restore_the_terminal(terminal, number):
    console = terminal("sh", "-c", "trap '' INT; echo read''y; sleep 600")
    console.expect(b"ready\r\n")
    assert console.raw()
    console.process.send_signal(number)
    if number == signal.SIGINT:  # the first is the command's
        time.sleep(0.1)
        console.process.send_signal(number)
    assert console.process.wait(timeout=10) == 128 + number
    assert console.restored()


def test_a_vmm_that_crashes_restores_the_terminal(terminal):
    console = terminal()
    console.expect(b"lodge:~# ")
    for pid in children(console.process.pid):
        os.kill(pid, signal.SIGKILL)
    assert console.process.wait(timeout=10) == 125
    assert console.restored()
    console.expect(b"lodge-vmm ended: killed by signal 9")


def test_a_command_at_a_terminal_has_one(terminal):
    console = terminal("sh", "-c", "tty; exit 9")
    console.expect(b"/dev/pts/0\r\n")
    assert console.process.wait(timeout=60) == 9


def test_no_terminal_for_a_command_when_told_so(terminal):
    console = terminal("tty", options=["--no-tty"])
    console.expect(b"not a tty\r\n")
    assert console.process.wait(timeout=60) == 1
    assert console.restored()
