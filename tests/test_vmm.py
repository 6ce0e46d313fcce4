"""lodge-vmm as its owner sees it: one definition in, events out, and how it ends."""
import json
import os
import select
import socket
import struct
import subprocess
import time

import pytest

EVENTS = {1: "READY", 2: "CONSOLE_OPENED", 3: "RESET", 4: "POWER_OFF", 5: "TRIPLE_FAULT",
          6: "DEBUG_EXIT", 7: "PANICKED", 8: "ERROR", 9: "STATS", 10: "DONE", 11: "FAILED",
          12: "CRASH_LOADED", 13: "WATCHDOG", 14: "BALLOON", 15: "FULL"}
POWER_BUTTON, RESET_NOW, PAUSE, RESUME, QUIT, CONSOLE_SIZE, STATS_ASK = range(64, 71)
BALLOON_TARGET, BALLOON_ASK, NEW_GENERATION = range(72, 75)
CODE_AT = 0x200000
HALT = b"\xf4\xeb\xfd"


def out(port, value):
    return b"\x66\xba" + struct.pack("<H", port) + b"\xb0" + bytes([value]) + b"\xee"


def out16(port, value):
    return b"\x66\xba" + struct.pack("<H", port) + b"\x66\xb8" + struct.pack("<H", value) + b"\x66\xef"


def out32(port, value):
    return b"\x66\xba" + struct.pack("<H", port) + b"\xb8" + struct.pack("<I", value) + b"\xef"


def say(text):
    return b"".join(out(0x3F8, byte) for byte in text)


def kernel(code):
    """A multiboot image that needs no ELF: the header's own addresses (flag 16)."""
    flags = 1 << 16
    return struct.pack("<8I", 0x1BADB002, flags, -(0x1BADB002 + flags) & 0xFFFFFFFF, CODE_AT, CODE_AT,
                       0, CODE_AT + 65536, CODE_AT + 32) + code


EXIT_16 = out(0xF4, 16) + HALT  # exit status 16 << 1 | 1
POWER_OFF = out16(0x604, 5 << 10 | 1 << 13) + HALT
RESET = out(0xCF9, 6) + HALT


class Machine:
    def __init__(self, program, image, stream=False, **definition):
        kind = socket.SOCK_STREAM if stream else socket.SOCK_SEQPACKET
        self.control, theirs = socket.socketpair(socket.AF_UNIX, kind)
        self.serial, serial_out = os.pipe()
        fds = [theirs.fileno(), serial_out]
        definition = {"memory": 32 << 20, "cpus": 1, "control_fd": fds[0], "serial_out_fd": fds[1],
                      **definition}
        if image is not None:
            fds.append(os.memfd_create("kernel"))
            os.write(fds[-1], image)
            definition["kernel_fd"] = fds[-1]
        if definition.get("engine") == "kvm" and "kvm_fd" not in definition:
            fds.append(os.open("/dev/kvm", os.O_RDWR))
            definition["kvm_fd"] = fds[-1]
        source, sink = os.pipe()
        os.write(sink, json.dumps(definition).encode())
        os.close(sink)
        self.process = subprocess.Popen([program, "--definition-fd", str(source)],
                                        pass_fds=[*fds, source], stderr=subprocess.PIPE)
        for fd in [*fds[1:], source]:
            os.close(fd)
        theirs.close()
        self.pending = b""

    def __enter__(self):
        return self

    def __exit__(self, *_):
        self.process.kill()
        self.process.wait()
        self.process.stderr.close()
        self.control.close()
        os.close(self.serial)

    def send(self, kind, payload=b""):
        self.control.send(struct.pack("<IHH", len(payload), kind, 0) + payload)

    def event(self, timeout=30):
        """The next event as (name, payload), or None when the other end is closed."""
        deadline = time.monotonic() + timeout
        while True:
            if len(self.pending) >= 8:
                length, kind, zero = struct.unpack("<IHH", self.pending[:8])
                assert zero == 0
                if len(self.pending) >= 8 + length:
                    payload = self.pending[8:8 + length]
                    self.pending = self.pending[8 + length:]
                    return EVENTS[kind], payload
            ready, _, _ = select.select([self.control], [], [], deadline - time.monotonic())
            assert ready, "no event in time"
            piece = self.control.recv(16384)
            if not piece:
                return None
            self.pending += piece

    def expect(self, name):
        event = self.event()
        assert event and event[0] == name, event
        return event[1]

    def status(self):
        return self.process.wait(30)

    def output(self):
        text = b""
        while piece := os.read(self.serial, 65536):
            text += piece
        return text


def engines():
    yield "soft"
    if os.access("/dev/kvm", os.R_OK | os.W_OK):
        yield "kvm"


@pytest.fixture(params=engines())
def engine(request):
    return request.param


@pytest.fixture
def vmm(bin_folder):
    return f"{bin_folder}/lodge-vmm"


@pytest.mark.parametrize("stream", [False, True])
def test_debug_exit_and_output(vmm, engine, stream):
    with Machine(vmm, kernel(say(b"hello\n") + EXIT_16), stream, engine=engine) as machine:
        ready = machine.expect("READY")
        assert ready[8:24].rstrip(b"\0").decode() == engine
        assert machine.expect("DEBUG_EXIT") == struct.pack("<I", 33)
        assert machine.status() == 33
        assert machine.output() == b"hello\n"


@pytest.mark.parametrize("settings", [{"translate": "never"}, {"translate": "always"},
                                      {"translate": "always", "code_cache": "1M"},
                                      {"translate": "hot", "code_cache": 256 << 20}])
def test_translator_settings(vmm, engine, settings):
    with Machine(vmm, kernel(say(b"x" * 1000) + EXIT_16), engine=engine, **settings) as machine:
        machine.expect("READY")
        assert machine.expect("DEBUG_EXIT") == struct.pack("<I", 33)
        assert machine.output() == b"x" * 1000


def test_power_off_is_status_0(vmm, engine):
    with Machine(vmm, kernel(POWER_OFF), engine=engine) as machine:
        machine.expect("READY")
        machine.expect("POWER_OFF")
        assert machine.status() == 0


def test_power_off_after_panic_is_not(vmm, engine):
    with Machine(vmm, kernel(out(0x505, 1) + POWER_OFF), engine=engine) as machine:
        machine.expect("READY")
        machine.expect("PANICKED")
        machine.expect("POWER_OFF")
        assert machine.status() == 124


def test_a_panic_with_a_second_kernel_is_another_event(vmm, engine):
    with Machine(vmm, kernel(out(0x505, 2) + POWER_OFF), engine=engine) as machine:
        machine.expect("READY")
        machine.expect("CRASH_LOADED")
        machine.expect("POWER_OFF")
        assert machine.status() == 0


# A period of 300 ms, and off.
WATCHDOG = out32(0x624, 3) + out32(0x620, 1) + HALT


@pytest.mark.parametrize("action, end", [("reset", "RESET"), ("poweroff", "POWER_OFF"),
                                         ("event", None)])
def test_a_watchdog_that_expires_is_told_and_acts(vmm, engine, action, end):
    with Machine(vmm, kernel(WATCHDOG), engine=engine, watchdog=action, on_reset="exit") as machine:
        machine.expect("READY")
        begin = time.monotonic()
        machine.expect("WATCHDOG")
        assert time.monotonic() - begin > 0.2
        if end:
            machine.expect(end)
        else:
            machine.send(STATS_ASK)
            machine.expect("STATS")
            machine.send(QUIT)
        assert machine.status() == 0


def test_a_watchdog_survives_resets_and_stands_in_pauses(vmm, engine):
    with Machine(vmm, kernel(say(b"x") + WATCHDOG), engine=engine, watchdog="reset") as machine:
        machine.expect("READY")
        for _ in range(3):
            machine.expect("WATCHDOG")
            machine.expect("RESET")
        machine.send(PAUSE)
        machine.send(STATS_ASK)
        machine.expect("STATS")
        ready, _, _ = select.select([machine.control], [], [], 1)
        assert not ready, "the guest's clock runs in a pause"
        machine.send(RESUME)
        machine.expect("WATCHDOG")
        machine.send(QUIT)
        assert machine.status() == 0


def test_without_a_watchdog_its_ports_are_nothing(vmm, engine):
    with Machine(vmm, kernel(WATCHDOG), engine=engine) as machine:
        machine.expect("READY")
        ready, _, _ = select.select([machine.control], [], [], 1)
        assert not ready


def test_a_balloon_without_a_driver_is_asked_in_vain(vmm, engine):
    for balloon in (True, False):
        with Machine(vmm, kernel(HALT), engine=engine, balloon=balloon) as machine:
            machine.expect("READY")
            machine.send(BALLOON_ASK)
            machine.send(BALLOON_TARGET, struct.pack("<Q", 5 << 20))
            machine.send(BALLOON_TARGET, struct.pack("<Q", 1 << 60))
            machine.send(NEW_GENERATION)
            answers = [struct.unpack_from("<IQQQ", machine.expect("BALLOON")) for _ in range(3)]
            targets = (0, 5 << 20, (32 << 20) - (128 << 10)) if balloon else (0, 0, 0)
            assert answers == [(int(balloon), target, 0, 0) for target in targets]
            machine.send(QUIT)
            assert machine.status() == 0


def test_reset_reboots_or_exits(vmm, engine):
    with Machine(vmm, kernel(say(b"x") + RESET), engine=engine, on_reset="reboot") as machine:
        machine.expect("READY")
        for _ in range(10):
            machine.expect("RESET")
        machine.send(QUIT)
        assert machine.status() == 0
        assert machine.output().startswith(b"x" * 10)
    with Machine(vmm, kernel(RESET), engine=engine, on_reset="exit") as machine:
        machine.expect("READY")
        machine.expect("RESET")
        assert machine.status() == 0


def test_triple_fault_shows_registers(vmm, engine):
    # lidt with a limit of 0, then an undefined instruction.
    code = b"\xbc" + struct.pack("<I", CODE_AT + 60000) + b"\x6a\0\x6a\0\x0f\x01\x1c\x24\x0f\x0b"
    with Machine(vmm, kernel(code), engine=engine) as machine:
        machine.expect("READY")
        text = machine.expect("TRIPLE_FAULT").decode()
        assert text.startswith("vCPU 0: triple fault\n") and "\nrax " in text
        assert machine.status() == 125


def test_owner_that_leaves_ends_the_machine(vmm, engine):
    with Machine(vmm, kernel(HALT), engine=engine) as machine:
        machine.expect("READY")
        machine.control.shutdown(socket.SHUT_RDWR)
        assert machine.status() == 125


def test_owner_may_leave_while_output_waits(vmm, engine):
    # A loop that writes for ever to a pipe that nobody reads.
    code = b"\x66\xba\xf8\x03\xee\xeb\xfd"
    with Machine(vmm, kernel(code), engine=engine) as machine:
        machine.expect("READY")
        time.sleep(0.3)
        machine.send(QUIT)
        assert machine.status() == 0


# Writes to the panic port for ever: an event at every turn of a loop.
NOISE = b"\x66\xba\x05\x05\xb0\x01\xee\xeb\xfd"


def test_a_noisy_guest_does_not_drown_its_owner(vmm, engine):
    with Machine(vmm, kernel(NOISE), stream=True, engine=engine) as machine:
        machine.expect("READY")
        machine.expect("PANICKED")
        machine.send(QUIT)
        deadline = time.monotonic() + 10
        while machine.event():
            assert time.monotonic() < deadline, "the request is not heard"
        assert machine.status() == 0


def test_a_noisy_guest_does_not_outlive_its_owner(vmm, engine):
    with Machine(vmm, kernel(NOISE), engine=engine) as machine:
        machine.expect("READY")
        machine.expect("PANICKED")
        machine.control.shutdown(socket.SHUT_RDWR)
        assert machine.process.wait(10) == 125


def test_a_panic_is_told_once(vmm, engine):
    with Machine(vmm, kernel(NOISE), engine=engine) as machine:
        machine.expect("READY")
        machine.expect("PANICKED")
        time.sleep(0.2)
        machine.send(STATS_ASK)
        machine.expect("STATS")
        machine.send(QUIT)
        assert machine.status() == 0


def test_requests(vmm, engine):
    with Machine(vmm, kernel(HALT), engine=engine) as machine:
        machine.expect("READY")
        for request in (PAUSE, PAUSE, RESUME, RESUME, POWER_BUTTON, PAUSE, RESET_NOW):
            machine.send(request)
        machine.send(CONSOLE_SIZE, struct.pack("<IHH", 0, 80, 25))
        machine.send(STATS_ASK)
        _, resident, guest, state = struct.unpack("<QQQB", machine.expect("STATS"))
        assert 0 < guest < resident
        assert state == 1  # the reset has kept the pause
        machine.send(QUIT)
        assert machine.status() == 0


@pytest.mark.plain_only
def test_memory_beyond_the_guests_own(vmm, engine):
    with Machine(vmm, kernel(HALT), engine=engine) as machine:
        machine.expect("READY")
        machine.send(STATS_ASK)
        _, resident, guest, _ = struct.unpack("<QQQB", machine.expect("STATS"))
        assert resident - guest < 8 << 20


@pytest.mark.parametrize("garbage", [
    b"\0" * 8, b"\xff" * 64, struct.pack("<IHH", 0, 3, 0), struct.pack("<IHH", 5, QUIT, 0) + b"12345",
    struct.pack("<IHH", 0, QUIT, 1)], ids=["zeros", "ones", "an event", "too long", "reserved"])
def test_garbage_from_the_owner_is_an_error(vmm, garbage):
    with Machine(vmm, kernel(HALT), engine="soft") as machine:
        machine.expect("READY")
        machine.control.send(garbage)
        assert b"control message" in machine.expect("ERROR")
        assert machine.status() == 125


@pytest.mark.parametrize("image,words", [
    (None, "kernel"), (b"", "empty"), (b"#!/bin/sh\n", "no kernel"), (b"\x7fELF", "truncated"),
    (b"\0" * 510 + b"\x55\xaa" + b"\xeb\x6aHdrS\x0f\x02" + b"\0" * 200, "kernel")])
def test_what_is_no_kernel(vmm, image, words):
    with Machine(vmm, image, engine="soft") as machine:
        assert words in machine.expect("ERROR").decode()
        assert machine.status() == 125


def test_kvm_without_a_descriptor_says_what_to_do(vmm):
    with Machine(vmm, kernel(HALT), engine="kvm", kvm_fd=-1) as machine:
        assert "--engine soft" in machine.expect("ERROR").decode()
        assert machine.status() == 125


@pytest.mark.parametrize("text", ["", "{", "[]", '{"memory": 3}', '{"cpus": 300}', '{"nothing": 1}'])
def test_malformed_definition(vmm, text):
    source, sink = os.pipe()
    os.write(sink, text.encode())
    os.close(sink)
    result = subprocess.run([vmm, "--definition-fd", str(source)], pass_fds=[source],
                            capture_output=True, text=True, timeout=30)
    os.close(source)
    assert result.returncode == 125
    assert result.stderr.startswith("lodge-vmm: ") and result.stderr.count("\n") == 1


def test_usage(vmm):
    result = subprocess.run([vmm, "--help"], capture_output=True, text=True, timeout=30)
    assert result.returncode == 125 and "usage" in result.stderr


def test_nothing_is_left_when_it_is_killed(vmm, engine):
    with Machine(vmm, kernel(HALT), engine=engine) as machine:
        machine.expect("READY")
        machine.process.terminate()
        assert machine.status() == -15
        assert machine.event() is None


def test_unpack_refuses_what_is_no_kernel(vmm, tmp_path):
    with open(tmp_path / "in", "w+b") as source, open(tmp_path / "out", "w+b") as sink:
        source.write(b"no kernel at all" * 100)
        source.flush()
        fds = [source.fileno(), sink.fileno()]
        result = subprocess.run([vmm, "--unpack-kernel", *map(str, fds)], pass_fds=fds,
                                capture_output=True, text=True, timeout=30)
    assert result.returncode == 125 and "no kernel" in result.stderr
    assert os.path.getsize(tmp_path / "out") == 0
