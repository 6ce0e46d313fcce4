"""Clients of lodge-vmm's socket (wire/control.h): many, rude, silent, and such as bring files."""
import array
import fcntl
import json
import os
import random
import resource
import select
import socket
import struct
import subprocess
import time

import pytest
from test_vmm import kernel

STATS, DONE, FAILED = 9, 10, 11
POWER_BUTTON, RESET_NOW, PAUSE, RESUME, QUIT, CONSOLE_SIZE, STATS_ASK, SAVE = range(64, 72)
LINK, HOLD, RELEASE, DISK, STACK = range(75, 80)
CLIENTS_MAX = 16
TIMEOUT = 30
# Says '.' again and again: mov dx, 0x3f8; mov al, '.'; out dx, al; jmp back.
TALKS = b"\x66\xba\xf8\x03\xb0.\xee\xeb\xfd"


def message(kind, payload=b""):
    return struct.pack("<IHH", len(payload), kind, 0) + payload


def save_message(number=1, parent=None):
    return message(SAVE, bytes([number]) * 16 + bytes([parent or 0]) * 16 + bytes([parent is not None]))


class Vmm:
    """A machine with a socket that clients come to."""

    def __init__(self, program, folder, **definition):
        self.path = os.path.join(folder, "vmm.sock")
        listener = socket.socket(socket.AF_UNIX, socket.SOCK_SEQPACKET)
        if os.path.exists(self.path):
            os.unlink(self.path)
        listener.bind(self.path)
        listener.listen(64)
        self.control, theirs = socket.socketpair(socket.AF_UNIX, socket.SOCK_SEQPACKET)
        self.serial, serial_out = os.pipe()
        image = os.memfd_create("kernel")
        os.write(image, kernel(TALKS))
        definition = {"memory": 32 << 20, "cpus": 1, "engine": "soft", "kernel_fd": image,
                      "control_fd": theirs.fileno(), "listen_fd": listener.fileno(),
                      "serial_out_fd": serial_out, **definition}
        source, sink = os.pipe()
        os.write(sink, json.dumps(definition).encode())
        os.close(sink)
        fds = [theirs.fileno(), listener.fileno(), serial_out, image, source]
        for layer in definition.get("restore", {}).get("layers", []):
            fds += layer.values()
        for disk in definition.get("disks", []):
            fds += [image["fd"] for image in disk["images"]]
        self.process = subprocess.Popen([program, "--definition-fd", str(source)], pass_fds=fds,
                                        stderr=subprocess.PIPE)
        for fd in (serial_out, image, source):
            os.close(fd)
        theirs.close()
        listener.close()
        self.clients = []

    def __enter__(self):
        return self

    def __exit__(self, *_):
        self.process.kill()
        self.process.wait()
        self.process.stderr.close()
        self.control.close()
        os.close(self.serial)
        for client in self.clients:
            client.close()

    def client(self):
        client = socket.socket(socket.AF_UNIX, socket.SOCK_SEQPACKET)
        client.connect(self.path)  # without a timeout: else a full backlog is an error
        client.settimeout(TIMEOUT)
        self.clients.append(client)
        return client

    def drain(self):
        while select.select([self.serial], [], [], 0)[0]:
            os.read(self.serial, 1 << 16)

    def talks(self):
        """It runs: what it has said before is thrown away, and then there is more."""
        self.drain()
        for _ in range(20):
            if not select.select([self.serial], [], [], TIMEOUT)[0]:
                return False
            os.read(self.serial, 1 << 16)
        return True

    def is_silent(self):
        for _ in range(50):
            self.drain()
            if not select.select([self.serial], [], [], 0.3)[0]:
                return True
        return False

    def cpu_seconds(self):
        with open(f"/proc/{self.process.pid}/stat", encoding="ascii") as file:
            words = file.read().rsplit(")", 1)[1].split()
        return (int(words[11]) + int(words[12])) / os.sysconf("SC_CLK_TCK")

    def descriptors(self):
        return len(os.listdir(f"/proc/{self.process.pid}/fd"))


def ask(client, packet, fds=()):
    """The answer as (type, payload); None where the VMM has closed."""
    rights = [(socket.SOL_SOCKET, socket.SCM_RIGHTS, array.array("i", fds))] if fds else []
    client.sendmsg([packet], rights)
    return answer(client)


def answer(client):
    reply = client.recv(16384)
    if not reply:
        return None
    length, kind, zero = struct.unpack("<IHH", reply[:8])
    assert zero == 0 and length == len(reply) - 8
    return kind, reply[8:]


@pytest.fixture
def vmm(bin_folder, tmp_path):
    with Vmm(f"{bin_folder}/lodge-vmm", tmp_path) as machine:
        assert machine.talks()
        yield machine


def memory_files():
    return [os.memfd_create("state"), os.memfd_create("memory")]


def close_all(fds):
    for fd in fds:
        os.close(fd)


def test_requests_are_answered(vmm):
    client = vmm.client()
    assert ask(client, message(PAUSE)) == (DONE, bytes(9))
    assert vmm.is_silent()
    assert ask(client, message(PAUSE)) == (DONE, bytes(8) + b"\1")  # it stood already
    assert ask(client, message(RESUME))[0] == DONE
    assert vmm.talks()
    kind, payload = ask(client, message(STATS_ASK))
    assert kind == STATS and struct.unpack("<3QB", payload)[1] > 1 << 20
    assert ask(client, message(CONSOLE_SIZE, struct.pack("<IHH", 77, 80, 25)))[0] == DONE
    assert ask(client, message(LINK, struct.pack("<IB", 0, 0)))[0] == FAILED  # it has no card
    assert ask(client, message(RESET_NOW))[0] == DONE
    assert vmm.talks()
    assert ask(client, message(QUIT))[0] == DONE
    assert vmm.process.wait(TIMEOUT) == 0


def test_as_many_clients_as_fit_and_no_more(vmm):
    clients = [vmm.client() for _ in range(CLIENTS_MAX)]
    for client in clients:
        assert ask(client, message(STATS_ASK))[0] == STATS
    for _ in range(10):
        one_more = vmm.client()
        kind, payload = answer(one_more)
        assert (kind, payload) == (FAILED, b"too many clients")
        assert one_more.recv(100) == b""
    for client in clients:
        assert ask(client, message(STATS_ASK))[0] == STATS
    clients[3].close()
    clients[9].close()
    for client in clients:
        if client.fileno() >= 0:
            assert ask(client, message(STATS_ASK))[0] == STATS
    for _ in range(2):
        assert ask(vmm.client(), message(STATS_ASK))[0] == STATS
    assert vmm.talks()


def test_garbage_costs_its_sender_the_connection(vmm):
    polite = vmm.client()
    assert ask(polite, message(STATS_ASK))[0] == STATS
    before = vmm.descriptors()
    noise = random.Random(5)
    packets = [b"\0", b"\0" * 8, message(STATS_ASK)[:7], message(STATS_ASK) + b"x",
               message(STATS_ASK) * 2, message(0), message(200), message(STATS_ASK, b"more"),
               struct.pack("<IHH", 0, STATS_ASK, 1), struct.pack("<IHH", 0xffffffff, STATS_ASK, 0),
               struct.pack("<IHH", 9, SAVE, 0) + bytes(9), save_message()[:-1] + b"\2",
               noise.randbytes(100000), bytes(60000)]
    packets += [noise.randbytes(noise.randrange(1, 300)) for _ in range(100)]
    for packet in packets:
        rude = vmm.client()
        kind, _ = ask(rude, packet)
        assert kind == FAILED
        assert rude.recv(100) == b""
        rude.close()
    assert ask(polite, message(STATS_ASK))[0] == STATS
    assert vmm.descriptors() == before
    assert vmm.talks()


def test_events_are_no_requests(vmm):
    """They are well-formed, so whoever sends one may stay."""
    client = vmm.client()
    events = [message(2, bytes(5)), message(3), message(4), message(6, bytes(4)), message(7),
              message(8, b"text"), message(STATS, bytes(25)), message(15, bytes(8)),
              message(DONE, bytes(9)), message(FAILED, b"x")]
    for event in events:
        assert ask(client, event) == (FAILED, b"that is no request")
    assert ask(client, message(STATS_ASK))[0] == STATS
    assert vmm.talks()


def test_a_client_that_does_not_read_holds_nobody_up(vmm):
    deaf = vmm.client()
    deaf.setblocking(False)
    sent = 0
    end = time.monotonic() + 2
    while time.monotonic() < end:
        try:
            deaf.send(message(STATS_ASK))
            sent += 1
        except BlockingIOError:
            select.select([], [deaf], [], 0.1)
    assert sent > 1000
    start = time.monotonic()
    assert ask(vmm.client(), message(STATS_ASK))[0] == STATS
    assert time.monotonic() - start < 5
    assert vmm.talks()
    # It gets what was kept for it, and is heard again.
    deaf.setblocking(True)
    deaf.settimeout(1)
    answers = 0
    try:
        while answer(deaf)[0] == STATS:
            answers += 1
    except TimeoutError:
        pass
    assert 0 < answers < sent
    deaf.settimeout(TIMEOUT)
    assert ask(deaf, message(STATS_ASK))[0] == STATS


def test_clients_that_come_and_go(vmm):
    before = vmm.descriptors()
    for turn in range(300):
        client = vmm.client()
        if turn % 3:
            client.send(message(STATS_ASK))
        if turn % 5 == 4:
            client.send(b"xx")
        client.close()
    polite = vmm.client()
    assert ask(polite, message(STATS_ASK))[0] == STATS
    polite.close()
    for _ in range(100):
        if vmm.descriptors() == before:
            break
        time.sleep(0.05)
    assert vmm.descriptors() == before
    assert vmm.talks()


def test_a_machine_that_is_paused_stays_so_through_a_reset(vmm):
    client = vmm.client()
    assert ask(client, message(PAUSE))[0] == DONE
    assert ask(client, message(RESET_NOW))[0] == DONE
    assert vmm.is_silent()
    state, memory = memory_files()
    assert ask(client, save_message(), [state, memory])[0] == DONE
    close_all([state, memory])
    assert vmm.is_silent()
    assert ask(client, message(RESUME))[0] == DONE
    assert vmm.talks()


def test_no_descriptors_for_clients_is_no_reason_to_spin(vmm):
    client = vmm.client()
    assert ask(client, message(PAUSE))[0] == DONE
    limits = resource.prlimit(vmm.process.pid, resource.RLIMIT_NOFILE)
    resource.prlimit(vmm.process.pid, resource.RLIMIT_NOFILE, (vmm.descriptors(), limits[1]))
    waiting = [vmm.client() for _ in range(3)]
    before = vmm.cpu_seconds()
    time.sleep(1.5)
    assert vmm.cpu_seconds() - before < 0.5
    resource.prlimit(vmm.process.pid, resource.RLIMIT_NOFILE, limits)
    for one in waiting:
        assert ask(one, message(STATS_ASK))[0] == STATS


def test_files_that_nobody_asked_for_are_closed(vmm):
    client = vmm.client()
    assert ask(client, message(STATS_ASK))[0] == STATS
    before = vmm.descriptors()
    files = memory_files()
    for _ in range(50):
        assert ask(client, message(STATS_ASK), files)[0] == STATS
        assert ask(client, message(RESUME), files[:1])[0] == DONE
        assert ask(client, message(STATS_ASK), files * 20)[0] == STATS
        assert ask(client, message(DONE, bytes(9)), files)[0] == FAILED
        rude = vmm.client()
        assert ask(rude, b"garbage", files)[0] == FAILED
        silent = vmm.client()
        assert ask(silent, b"", files) is None  # a packet of nothing, with files
        rude.close()
    assert ask(client, message(STATS_ASK))[0] == STATS
    assert vmm.descriptors() == before
    assert all(os.fstat(fd).st_size == 0 for fd in files)
    close_all(files)
    assert vmm.talks()


@pytest.mark.parametrize("paused", [False, True])
def test_files_that_cannot_be_written_to(vmm, paused):
    """SAVE without files, with one, with such as take nothing: an answer, and the guest goes on."""
    client = vmm.client()
    assert ask(client, message(PAUSE if paused else RESUME))[0] == DONE
    before = vmm.descriptors()
    state, memory = memory_files()
    read_only = os.open(f"/proc/self/fd/{state}", os.O_RDONLY)
    pipe = os.pipe()
    null, full = os.open("/dev/null", os.O_RDWR), os.open("/dev/full", os.O_RDWR)
    sealed = os.memfd_create("sealed", os.MFD_ALLOW_SEALING)
    fcntl.fcntl(sealed, fcntl.F_ADD_SEALS, fcntl.F_SEAL_GROW)
    cases = [[], [state], [state, read_only], [read_only, memory], [state, pipe[1]],
             [pipe[1], memory], [state, null], [full, memory], [state, full], [state, sealed],
             [client.fileno(), client.fileno()]]
    for fds in cases:
        kind, payload = ask(client, save_message(), fds)
        assert kind == FAILED and payload, fds
        assert vmm.is_silent() if paused else vmm.talks()
    assert vmm.descriptors() == before
    # After all that a good one is good.
    assert ask(client, save_message(), [state, memory])[0] == DONE
    assert os.fstat(memory).st_size > 31 << 20 and os.fstat(state).st_size > 1000
    close_all([state, memory, read_only, *pipe, null, full, sealed])
    assert vmm.is_silent() if paused else vmm.talks()


def test_a_guest_that_was_saved_goes_on(vmm, bin_folder, tmp_path):
    client = vmm.client()
    whole, changes = memory_files(), memory_files()
    assert ask(client, save_message(1, 1), changes)[0] == FAILED  # they stand on nothing yet
    close_all(changes)
    changes = memory_files()
    kind, payload = ask(client, save_message(1), whole)
    assert kind == DONE
    assert struct.unpack("<QB", payload)[0] > 0
    kind, payload = ask(client, save_message(2, 3), changes)
    assert kind == FAILED and b"is not the snapshot" in payload
    assert ask(client, save_message(2, 1), changes)[0] == DONE  # which that has not spoilt
    layers = [{"state_fd": fds[0], "memory_fd": fds[1]} for fds in (changes, whole)]
    for chain, good in ((layers, True), (layers[1:], True), (layers[:1], False)):
        folder = tmp_path / str(len(chain)) / str(good)
        folder.mkdir(parents=True)
        restore = {"layers": chain, "same_host": True, "verify": "before"}
        with Vmm(f"{bin_folder}/lodge-vmm", folder, restore=restore) as again:
            if good:
                assert again.talks()
                assert ask(again.client(), message(PAUSE))[0] == DONE
            else:
                assert again.process.wait(TIMEOUT) == 125
    close_all(whole + changes)
    assert vmm.talks()


def test_whoever_leaves_during_a_save_disturbs_nobody(vmm):
    polite = vmm.client()
    for _ in range(20):
        files = memory_files()
        hasty = vmm.client()
        hasty.sendmsg([save_message()], [(socket.SOL_SOCKET, socket.SCM_RIGHTS,
                                          array.array("i", files))])
        hasty.close()
        for _ in range(500):
            assert ask(polite, message(STATS_ASK))[0] == STATS
            if os.fstat(files[0]).st_size > 1000:
                break
            time.sleep(0.01)
        assert os.fstat(files[0]).st_size > 1000
        close_all(files)
    assert vmm.talks()


@pytest.fixture
def with_disk(bin_folder, tmp_path):
    """A machine with a qcow2, and another image that stands on that."""
    old, new = tmp_path / "old.qcow2", tmp_path / "new.qcow2"
    for words in ([old, "8M"], ["-b", old, "-F", "qcow2", new]):
        subprocess.run(["qemu-img", "create", "-q", "-f", "qcow2", *map(str, words)], check=True)
    fd = os.open(old, os.O_RDWR)
    disk = {"path": str(old), "format": "qcow2", "images": [{"name": str(old), "fd": fd}]}
    with Vmm(f"{bin_folder}/lodge-vmm", tmp_path, disks=[disk]) as machine:
        os.close(fd)
        assert machine.talks()
        machine.old, machine.new = str(old), str(new)
        yield machine


def disk_message(kind, index=0, name=""):
    return message(kind, struct.pack("<I", index) + name.encode())


def stack(machine, client, path=None):
    fd = os.open(path or machine.new, os.O_RDWR)
    try:
        return ask(client, disk_message(STACK, name=machine.new), [fd])
    finally:
        os.close(fd)


def has_open(machine, path):
    folder = f"/proc/{machine.process.pid}/fd"
    return path in (os.readlink(f"{folder}/{fd}") for fd in os.listdir(folder))


def test_one_client_holds_the_machine(with_disk):
    machine = with_disk
    holder, other = machine.client(), machine.client()
    for packet in (disk_message(DISK), disk_message(STACK), message(RELEASE)):
        assert ask(holder, packet) == (FAILED, b"the guest is not held any more")
    before = machine.descriptors()
    assert ask(holder, message(HOLD))[0] == DONE
    assert machine.is_silent()
    files = memory_files()
    for packet in (message(HOLD), save_message()):
        assert ask(other, packet, files) == (FAILED, b"it is being saved already")
    for packet in (disk_message(DISK), disk_message(STACK), message(RELEASE)):
        assert ask(other, packet)[0] == FAILED
    assert ask(other, message(RESUME))[0] == DONE  # once it is let go
    assert ask(holder, save_message(), files)[0] == DONE
    close_all(files)
    assert machine.is_silent()
    # The disk's file, and no other.
    holder.send(disk_message(DISK))
    _, fds, _, _ = socket.recv_fds(holder, 16384, 4)
    assert len(fds) == 1 and os.fstat(fds[0]).st_ino == os.stat(machine.old).st_ino
    close_all(fds)
    assert ask(holder, disk_message(DISK, 1)) == (FAILED, b"it has no disk 1")
    assert ask(holder, disk_message(DISK, 0xffffffff))[0] == FAILED
    # A new image that fits; others are closed.
    assert ask(holder, disk_message(STACK)) == (FAILED, b"no image came with the request")
    for path in (machine.old, "/dev/null", "/dev/zero"):
        assert stack(machine, holder, path)[0] == FAILED
    assert machine.descriptors() == before
    assert stack(machine, holder)[0] == DONE
    assert stack(machine, holder) == (FAILED, b"disk 0 has a new image already")
    assert has_open(machine, machine.new) and machine.is_silent()
    # It leaves without a word: all is as it was.
    holder.close()
    assert machine.talks() and not has_open(machine, machine.new)


def test_what_was_released_stays(with_disk):
    machine = with_disk
    holder = machine.client()
    assert ask(holder, message(PAUSE))[0] == DONE
    assert ask(holder, message(HOLD))[0] == DONE
    assert stack(machine, holder)[0] == DONE
    assert ask(holder, message(RELEASE))[0] == DONE
    assert machine.is_silent()  # as it was
    assert has_open(machine, machine.new) and has_open(machine, machine.old)
    assert ask(holder, message(RESUME))[0] == DONE
    assert machine.talks()
    # A reset takes the machine from whoever holds it.
    assert ask(holder, message(HOLD))[0] == DONE
    assert ask(machine.client(), message(RESET_NOW))[0] == DONE
    assert machine.talks()
    assert ask(holder, message(RELEASE)) == (FAILED, b"the guest is not held any more")
    holder.close()
    assert machine.talks()
    assert ask(machine.client(), message(QUIT))[0] == DONE
    assert machine.process.wait(TIMEOUT) == 0
    assert not machine.process.stderr.read()
    subprocess.run(["qemu-img", "check", "-q", machine.new], check=True)


def test_the_owner_is_still_the_owner(vmm):
    """Clients or none: when its control socket is closed, the machine ends."""
    clients = [vmm.client() for _ in range(CLIENTS_MAX)]
    for client in clients:
        assert ask(client, message(STATS_ASK))[0] == STATS
    vmm.control.close()
    assert vmm.process.wait(TIMEOUT) == 125
    for client in clients:
        assert client.recv(100) == b""


def test_a_guest_that_has_ended_takes_its_clients_along(bin_folder, tmp_path):
    with Vmm(f"{bin_folder}/lodge-vmm", tmp_path) as machine:
        client = machine.client()
        assert ask(client, message(STATS_ASK))[0] == STATS
        machine.control.send(message(QUIT))
        assert machine.process.wait(TIMEOUT) == 0
        assert client.recv(100) == b""
