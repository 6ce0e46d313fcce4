"""The same history twice: one way to execute leads, the interpreter follows (board_lockstep.h)."""
import json
import os
import random
import re
import subprocess

import pytest

# What the guest does once the kernel is up: processes, pipes, sorting, hashing, a bit of waiting.
WORK = ("mount -t proc proc /proc; mount -t devtmpfs dev /dev; for i in 1 2 3; do (seq 1 3000 | sort -r | sha256sum) & done; wait; "
        "sleep 1; i=0; while [ $i -lt 40 ]; do (exit 7); i=$((i+1)); done; "
        "dd if=/bin/busybox bs=4k 2>/dev/null | gzip -1 | gunzip | md5sum; cat /proc/uptime; "
        "poweroff -f")


def image(lodge):
    rows = json.loads(subprocess.run([lodge, "image", "ls", "--format", "json"],
                                     capture_output=True, check=True).stdout)
    return next(row for row in rows if row["name"] == "default")


def run(lodge, role, trace, timeout, instructions=0, tlb_entries=0, **settings):
    """One machine with `trace` open; returns its status, what it printed, and its complaint."""
    row = image(lodge)
    with open(row["kernel"], "rb") as kernel, open(row["initrd"], "rb") as initrd:
        output, serial = os.pipe()
        source, sink = os.pipe()
        definition = {
            "engine": "soft", "memory": "128M", "on_reset": "exit",
            "kernel_fd": kernel.fileno(), "initrd_fd": initrd.fileno(), "serial_out_fd": serial,
            "append": f'{row["append"]} rdinit=/bin/busybox -- sh -c "{WORK}"',
            "lockstep": {"role": role, "fd": trace.fileno(), "instructions": instructions,
                         "tlb_entries": tlb_entries},
            **settings}
        os.write(sink, json.dumps(definition).encode())
        os.close(sink)
        process = subprocess.Popen(
            [f"{os.path.dirname(lodge)}/lodge-vmm", "--definition-fd", str(source)],
            pass_fds=[source, serial, trace.fileno(), kernel.fileno(), initrd.fileno()],
            stderr=subprocess.PIPE, text=True)
        os.close(source)
        os.close(serial)
    with open(output, "rb") as stream:
        text = stream.read().decode(errors="replace")
    try:
        complaint = process.communicate(timeout=timeout)[1]
    finally:
        process.kill()
    return process.returncode, text, complaint


def difference(complaint):
    """The fields in which the two lines of a complaint differ."""
    leader, here = (dict(re.findall(r"(\w+)[= ](\S+)", line)) for line in
                    re.findall(r"^(?:leader|here): +(.*)$", complaint, re.MULTILINE))
    return {key: (leader.get(key), here.get(key)) for key in leader | here
            if leader.get(key) != here.get(key)}


def in_step(lodge, path, timeout, instructions=0, **leader):
    with open(path, "wb") as trace:
        status, first, complaint = run(lodge, "lead", trace, timeout, instructions, **leader)
    assert status == 0, complaint + first
    with open(path, "rb") as trace:
        status, second, complaint = run(lodge, "follow", trace, timeout, translate="never")
    assert status == 0, f"{complaint}\n{difference(complaint)}"
    assert first == second
    with open(path, encoding="ascii") as trace:
        return first, sum(line.startswith("tick ") for line in trace)


def test_the_first_steps(lodge, tmp_path):
    _, ticks = in_step(lodge, tmp_path / "trace", 120, instructions=5_000_000, translate="always")
    assert ticks > 5


@pytest.mark.plain_only
@pytest.mark.parametrize("translate", ["hot", "always"])
def test_the_start_of_a_boot(lodge, tmp_path, translate):
    _, ticks = in_step(lodge, tmp_path / "trace", 120, instructions=200_000_000,
                       translate=translate)
    assert ticks > 100


@pytest.mark.plain_only
def test_a_boot_with_few_entries_of_the_tlb(lodge, tmp_path):
    _, ticks = in_step(lodge, tmp_path / "trace", 120, instructions=100_000_000,
                       translate="always", tlb_entries=random.choice([1, 2, 4, 16, 64]))
    assert ticks > 50


@pytest.mark.torture
@pytest.mark.plain_only
@pytest.mark.parametrize("turn", range(3))
@pytest.mark.parametrize("leader", [
    {"translate": "never"}, {"translate": "hot"}, {"translate": "always"},
    {"translate": "hot", "code_cache": "1M"}, {"translate": "always", "code_cache": "1M"},
    {"translate": "hot", "tlb_entries": 1}, {"translate": "always", "tlb_entries": 32},
    {"translate": "hot", "code_cache": "1M", "tlb_entries": 8}], ids=str)
def test_a_whole_boot(lodge, tmp_path, leader, turn):
    """Each turn has a history of its own: the leader's ticks come when they come."""
    text, ticks = in_step(lodge, tmp_path / "trace", 900, **leader)
    here = subprocess.run(["sh", "-c", "seq 1 3000 | sort -r | sha256sum"], capture_output=True,
                          text=True, check=True).stdout.strip()
    assert text.count(here) == 3 and "Power down" in text, text
    assert ticks > 1000


def test_a_difference_is_found(lodge, tmp_path):
    path = tmp_path / "trace"
    with open(path, "wb") as trace:
        run(lodge, "lead", trace, 120, 5_000_000, translate="never")
    lines = path.read_text(encoding="ascii").splitlines(keepends=True)
    changed = [re.sub(r" rdi=\w+", " rdi=4711", line) if number == 4 else line
               for number, line in enumerate(lines)]
    path.write_text("".join(changed), encoding="ascii")
    with open(path, "rb") as trace:
        status, _, complaint = run(lodge, "follow", trace, 120, translate="never")
    assert status == 125 and "differs from the leader's, at tick 4" in complaint
    assert difference(complaint)["rdi"][0] == "4711"

    path.write_text("".join(lines[:4]), encoding="ascii")
    with open(path, "rb") as trace:
        status, _, complaint = run(lodge, "follow", trace, 120, translate="never")
    assert status == 125 and "the trace ends too early" in complaint


@pytest.mark.parametrize("settings, words", [
    ({"cpus": 2}, "one CPU"),
    ({"translate": "always"}, "only the interpreter can follow"),
])
def test_what_cannot_be_repeated_is_refused(lodge, tmp_path, settings, words):
    path = tmp_path / "trace"
    path.touch()
    with open(path, "rb") as trace:
        status, _, complaint = run(lodge, "follow", trace, 120, **settings)
    assert status == 125 and words in complaint
