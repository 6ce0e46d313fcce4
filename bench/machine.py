"""Machines for benchmarks: ours and QEMU's, with the same kernel and initial file system."""
import collections
import json
import os
import re
import select
import shutil
import socket
import struct
import subprocess
import sys
import time

APPEND = "console=ttyS0 quiet panic=-1 mitigations=off"
PEER = ["qemu-system-x86_64", "-M", "q35", "-accel", "tcg,thread=multi", "-cpu", "max",
        "-nodefaults", "-display", "none", "-serial", "stdio", "-no-reboot"]
READY, POWER_OFF, STATS, STATS_ASK = 1, 4, 9, 70
HEADER = struct.Struct("<IHH")


def cpio(entries):
    """A newc archive: (name, mode, bytes) in order."""
    archive = bytearray()

    def add(name, mode, data, inode):
        header = "070701" + "".join(f"{value:08x}" for value in (
            inode, mode, 0, 0, 1, 0, len(data), 0, 0, 0, 0, len(name) + 1, 0))
        archive.extend(header.encode() + name.encode() + b"\0")
        archive.extend(b"\0" * (-len(archive) % 4))
        archive.extend(data + b"\0" * (-len(data) % 4))

    for number, (name, mode, data) in enumerate(entries, 1):
        add(name, mode, data, number)
    add("TRAILER!!!", 0, b"", 0)
    return bytes(archive)


def build_initrd(source, folder):
    """Compiles `source` static and packs it as /init; returns the archive's path."""
    program = f"{folder}/init"
    subprocess.run(["gcc", "-O2", "-static", "-o", program, source, "-lm"], check=True)
    with open(program, "rb") as file:
        data = file.read()
    path = f"{folder}/initrd.cpio"
    with open(path, "wb") as file:
        file.write(cpio([("dev", 0o40755, b""), ("init", 0o100755, data)]))
    return path


# PID 1 of what with_programs() packs: `{work}` is what it is for.
SCRIPT = """#!/bin/sh
mount -t proc proc /proc; mount -t sysfs sysfs /sys; mount -t devtmpfs dev /dev
mount -t tmpfs tmpfs /tmp
while read -r name rest; do [ -z "$name" ] || insmod "/lib/modules/$name"; done \\
    </lib/modules/lodge.list 2>/dev/null
{work}
echo FINISHED
poweroff -f
"""


def with_programs(kernel, folder, programs, work):
    """The default image's initrd, this host's `programs` with the libraries they load, and a script
    as PID 1 that does `work`; returns the archive's path."""
    files = set(map(shutil.which, programs))
    for program in programs:
        loaded = subprocess.run(["ldd", shutil.which(program)], check=True, capture_output=True,
                                text=True).stdout
        files |= set(re.findall(r"(/\S+) \(0x", loaded))
    folders = {os.path.dirname(file[:i + 1]) for file in files
               for i, letter in enumerate(file) if letter == "/"} - {"/"}
    entries = [(name[1:], 0o40755, b"") for name in sorted(folders)]
    for name in sorted(files):
        with open(name, "rb") as file:
            entries.append((name[1:], 0o100755, file.read()))
    entries.append(("init", 0o100755, SCRIPT.format(work=work).encode()))
    path = f"{folder}/{'-'.join(programs) or 'script'}.cpio"
    with open(path, "wb") as archive, open(f"{os.path.dirname(kernel)}/initrd.img", "rb") as base:
        data = base.read()
        archive.write(data + b"\0" * (-len(data) % 4) + cpio(entries))
    return path


Talk = collections.namedtuple("Talk", "said seconds")


def converse(command, limit, end=r"^FINISHED$", heard=None):
    """Runs a machine until its console says `end`; what it said until then, and how long that took,
    or None. `heard` is called with the process and all that it said whenever it says more."""
    started = time.monotonic()
    process = subprocess.Popen(command, stdin=subprocess.DEVNULL, stdout=subprocess.PIPE,
                               stderr=subprocess.STDOUT)
    console, said, talk = process.stdout, "", None
    while not talk:
        left = started + limit - time.monotonic()
        if left <= 0 or not select.select([console], [], [], left)[0]:
            break
        data = os.read(console.fileno(), 65536)
        if not data:
            break
        said += data.decode(errors="replace").replace("\r", "")
        if heard:
            heard(process, said)
        if re.search(end, said, re.MULTILINE):
            talk = Talk(said, time.monotonic() - started)
    process.terminate()
    process.wait()
    console.close()
    if not talk:
        print(f"{command[0]} came to no end:\n{said[-2000:]}", file=sys.stderr)
    return talk


def default_kernel(lodge):
    """The uncompressed kernel of the default image, built if need be."""
    return image(lodge, "default")["kernel"]


def image(lodge, name):
    """What `lodge image ls` says of it; it is built if it is not there."""
    def find():
        rows = json.loads(subprocess.run([lodge, "image", "ls", "--format", "json"], check=True,
                                         capture_output=True, text=True).stdout)
        return next((row for row in rows if row["name"].partition(":")[0] == name), None)
    if not find():
        print(f"making the image '{name}'", file=sys.stderr)
        subprocess.run([lodge, "image", "build", name], check=True, stdout=subprocess.DEVNULL)
    return find()


class Result:
    def __init__(self):
        self.wall = self.pid1 = self.first = self.resident = self.beyond = None
        self.instructions = self.status = None
        self.output = ""
        self.heard = []  # (seconds since the start, console line)


class Unfinished(TimeoutError):
    """A machine that did not end in time; what it said until then is in `result`."""

    def __init__(self, result, limit):
        super().__init__(f"no end after {limit} s:\n{result.output[-2000:]}")
        self.result = result


def watch(process, descriptor, result, started, limit, on_pid1=None):
    """Reads a machine's console until it ends; notes when PID 1 spoke."""
    deadline = started + limit
    line = ""
    while True:
        left = deadline - time.monotonic()
        if left <= 0:
            process.kill()
            process.wait()
            raise Unfinished(result, limit)
        if not select.select([descriptor], [], [], left)[0]:
            continue
        data = os.read(descriptor, 65536)
        if not data:
            break
        text = data.decode(errors="replace")
        result.output += text
        *whole, line = (line + text).split("\n")
        result.heard += [(time.monotonic() - started, each.rstrip("\r")) for each in whole]
        if result.pid1 is None and re.search(r"^PID1", result.output, re.MULTILINE):
            result.pid1 = time.monotonic() - started
            if on_pid1:
                on_pid1()
    result.status = process.wait()
    result.wall = time.monotonic() - started
    return result


def beyond_guest_memory(pid):
    """Resident bytes of a lodge-vmm but for guest memory, whose mappings are the ones left out of
    core dumps (dd) and writable, a mapped kernel's pages among them."""
    total = resident = 0
    guest = False
    with open(f"/proc/{pid}/smaps", encoding="ascii", errors="replace") as maps:
        for line in maps:
            words = line.split()
            if re.match(r"[0-9a-f]+-[0-9a-f]+ ", line):
                resident, guest = 0, "vmlinux" in line
            elif words[0] == "Rss:":
                resident = int(words[1]) * 1024
            elif words[0] == "VmFlags:":
                total += 0 if guest or "dd" in words else resident
    return total


def run_qemu(kernel, initrd, append, memory=512, cpus=1, limit=120):
    result = Result()
    started = time.monotonic()
    process = subprocess.Popen(
        [*PEER, "-m", str(memory), "-smp", str(cpus), "-kernel", kernel, "-initrd", initrd,
         "-append", append],
        stdin=subprocess.DEVNULL, stdout=subprocess.PIPE, stderr=subprocess.STDOUT)

    def at_pid1():
        with open(f"/proc/{process.pid}/status", encoding="ascii") as status:
            result.resident = int(re.search(r"VmRSS:\s+(\d+)", status.read()).group(1)) * 1024
    return watch(process, process.stdout.fileno(), result, started, limit, at_pid1)


def run_lodge(vmm, kernel, initrd, append, engine="soft", memory=512, cpus=1, limit=120,
              stats=True):
    """Starts lodge-vmm as `lodge run` does, and keeps its side of the control socket. Asking for
    `stats` disturbs the guest a little just after PID 1 spoke."""
    result = Result()
    ours, theirs = socket.socketpair(socket.AF_UNIX, socket.SOCK_SEQPACKET)
    read_end, write_end = os.pipe()
    kernel_fd = os.open(kernel, os.O_RDONLY)
    initrd_fd = os.open(initrd, os.O_RDONLY)
    definition = os.memfd_create("definition", 0)
    os.write(definition, json.dumps({
        "engine": engine, "memory": memory << 20, "cpus": cpus, "append": append,
        "kernel_fd": kernel_fd, "initrd_fd": initrd_fd, "serial_out_fd": write_end,
        "control_fd": theirs.fileno(), "on_reset": "exit"}).encode())
    os.lseek(definition, 0, os.SEEK_SET)
    descriptors = [kernel_fd, initrd_fd, write_end, theirs.fileno(), definition]
    started = time.monotonic()
    process = subprocess.Popen([vmm, "--definition-fd", str(definition)], pass_fds=descriptors,
                               stdin=subprocess.DEVNULL)
    for descriptor in descriptors:
        if descriptor != theirs.fileno():
            os.close(descriptor)
    theirs.close()
    ours.settimeout(limit)
    try:
        ready = ours.recv(8192)
    except TimeoutError:
        process.kill()
        raise RuntimeError(f"lodge-vmm was not ready after {limit} s") from None
    if not ready:
        raise RuntimeError(f"lodge-vmm ended before it was ready, status {process.wait()}")
    length, kind, _ = HEADER.unpack_from(ready)
    if kind != READY:
        raise RuntimeError(ready[8:8 + length].decode(errors="replace"))
    result.first = struct.unpack_from("<Q", ready, 8)[0] / 1e9 - started

    def ask():
        ours.send(HEADER.pack(0, STATS_ASK, 0))
        answer = ours.recv(8192)
        result.instructions, result.resident, _ = struct.unpack_from("<QQQ", answer, 8)
        result.beyond = beyond_guest_memory(process.pid)
    watch(process, read_end, result, started, limit, ask if stats else None)
    os.close(read_end)
    ours.close()
    return result
