"""Snapshots that are taken under one engine and go on under another."""
import os

import pytest
from test_guests import kvm_missing
from test_snapshot import COUNTER, rows, tools  # noqa: F401 (a fixture)

PAIRS = [("kvm", "soft"), ("soft", "kvm"), ("kvm", "kvm")]

# What a guest would notice of a bad move: a clock that jumps or runs at another pace, a sleep that
# does not end, CPUs that are gone, memory that is another's, a kernel that complains.
LOOK = """
sha256sum </tmp/noise; cat /tmp/sum /tmp/secret; echo
read up rest </proc/uptime; sleep 1; read later rest </proc/uptime
echo $up $later
for c in 0 1; do taskset $((1 << c)) sh -c 'i=0; while [ $i -lt 1000 ]; do i=$((i+1)); done; echo on'; done
cat /tmp/count
dmesg | grep -E 'stall|lockup|unstable|unchecked MSR|BUG:|Oops|Call Trace'; true
"""


def look(tools, folder, engine, *options):
    words = rows(tools.restored(folder, LOOK, "--verify", *options, engine=engine))
    assert words[0] == words[2] and len(words[4]) == 32
    before, after = float(words[5]), float(words[6])
    assert 0.9 < after - before < 30, words
    assert words[7:9] == ["on", "on"], words
    assert not words[10:], " ".join(words[10:])  # the kernel has nothing to complain about
    return words[4], before, int(words[9])


@pytest.mark.parametrize("saver,restorer", PAIRS)
def test_a_guest_goes_on_under_another_engine(tools, tmp_path, saver, restorer):
    if kvm_missing():
        pytest.skip(kvm_missing())
    started = tools.start("moves", "cat /proc/uptime >/tmp/up; " + COUNTER, "--cpus", 2, "--memory",
                          "128M", "--cpu", "portable", engine=saver)
    tools.run("snapshot", "moves", "whole")
    tools.run("snapshot", "--base", "whole", "moves", "changes")
    size = [os.stat(tmp_path / name / "memory").st_blocks * 512 for name in ("whole", "changes")]
    assert size[1] < size[0] / 3
    assert started.poll() is None
    one = look(tools, "whole", restorer)
    two = look(tools, "changes", restorer)
    assert one[0] == two[0]
    assert one[1] <= two[1] and one[2] <= two[2]  # neither clock nor count goes back


@pytest.mark.parametrize("saver,restorer", PAIRS[:2])
def test_there_and_back(tools, tmp_path, saver, restorer):
    """Saved under one, gone on and saved under the other as changes, and gone on under the first."""
    if kvm_missing():
        pytest.skip(kvm_missing())
    tools.start("first", COUNTER, "--cpus", 2, "--memory", "128M", "--cpu", "portable", engine=saver)
    tools.run("snapshot", "first", "one")
    again = tools.restore("again", "one", "cp /tmp/count /tmp/then; echo mark >/tmp/mark; echo ready;"
                          "sleep 1000", engine=restorer)
    tools.run("snapshot", "--base", "one", "again", "two")
    assert again.poll() is None
    look(tools, "two", saver)
    assert rows(tools.restored("two", "cat /tmp/mark", engine=saver)) == ["mark"]


def test_a_guest_that_only_one_engine_can_have(tools):
    """By default the software engine's is told more than KVM could keep."""
    if kvm_missing():
        pytest.skip(kvm_missing())
    tools.start("bound", "echo ready; sleep 1000", "--memory", "128M", engine="soft")
    tools.run("snapshot", "bound", "snap")
    refused = tools.run("restore", "--engine", "kvm", "snap", "--", "true", status=125).stderr
    assert b"was told that its processor has none of the known flaws" in refused
    assert b"--cpu portable" in refused
    assert rows(tools.restored("snap", "echo on", engine="auto")) == ["on"]


def test_a_portable_guest_under_the_software_engine(tools):
    """Its processor is a plainer one, and it is as good a guest."""
    tools.start("plain", COUNTER, "--memory", "128M", "--cpu", "portable", engine="soft")
    tools.run("snapshot", "plain", "snap")
    words = rows(tools.restored("snap", "sha256sum </tmp/noise; cat /tmp/sum", engine="soft"))
    assert words[0] == words[2]
