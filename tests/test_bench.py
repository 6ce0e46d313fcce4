"""The benchmarks measure something: the figures themselves are nobody's promise."""
import importlib.machinery
import importlib.util
import json
import os
import re
import subprocess
import sys

import pytest

TOP = os.path.dirname(os.path.dirname(os.path.abspath(__file__)))
pytestmark = pytest.mark.plain_only


@pytest.fixture(scope="module")
def guestbench(tmp_path_factory):
    path = tmp_path_factory.mktemp("bench") / "guestbench"
    subprocess.run(["gcc", "-O2", "-static", "-Wall", "-Wextra", "-Werror", "-o", path,
                    f"{TOP}/bench/guestbench.c"], check=True)
    return path


def rows(output):
    return [(name, float(cost)) for name, cost in re.findall(r"^ROW (\S+) (\S+)$", output,
                                                             re.MULTILINE)]


def test_every_row_costs_something(guestbench):
    result = subprocess.run([guestbench], capture_output=True, text=True, timeout=120, check=True)
    found = rows(result.stdout)
    assert [name for name, _ in found] == [
        "int", "sieve", "sort", "fp", "copy", "chase", "calls", "syscall", "pagefault", "fork",
        "exec", "pipe"]
    assert all(cost > 0 for _, cost in found)
    assert re.search(r"^TOTAL \d", result.stdout, re.MULTILINE)


def test_rows_can_be_chosen(guestbench):
    result = subprocess.run([guestbench, "bench.rows=pipe,int"], capture_output=True, text=True,
                            timeout=120, check=True)
    assert [name for name, _ in rows(result.stdout)] == ["int", "pipe"]


@pytest.mark.skipif(len(os.sched_getaffinity(0)) < 2, reason="needs two CPUs")
def test_two_at_once_are_reported_once(guestbench):
    result = subprocess.run([guestbench, "bench.threads=2", "bench.rows=int"], capture_output=True,
                            text=True, timeout=120, check=True)
    assert [name for name, _ in rows(result.stdout)] == ["int"]


def test_more_threads_than_cpus_are_refused(guestbench):
    cpu = min(os.sched_getaffinity(0))
    result = subprocess.run(["taskset", "-c", str(cpu), guestbench, "bench.threads=2"],
                            capture_output=True, text=True, timeout=120, check=False)
    assert result.returncode == 1
    assert "FAILED a CPU for each process" in result.stdout


def test_engine_measures_host_and_guest(lodge, tmp_path):
    build = os.path.dirname(os.path.dirname(lodge))
    result = subprocess.run(
        [f"{TOP}/bench/engine", build, "--no-peer", "--no-boot", "--no-two", "--rounds", "1",
         "--rows", "int,pipe", "--json", tmp_path / "figures"],
        capture_output=True, text=True, timeout=300, check=False)
    assert result.returncode == 0, result.stderr
    figures = json.loads((tmp_path / "figures").read_text())
    for who in ("native", "ours"):
        assert sorted(figures["values"][who]) == ["int", "pipe", "total"]
        assert all(len(values) == 1 for values in figures["values"][who].values())
    assert re.search(r"^\| int \| [\d.]+ \|  \| [\d.]+ \|", result.stdout, re.MULTILINE)


# ---- what the other benchmarks make of what they hear ----

sys.path.insert(0, f"{TOP}/bench")
table = importlib.import_module("table")


def program(name):
    loader = importlib.machinery.SourceFileLoader(f"bench_{name}", f"{TOP}/bench/{name}")
    module = importlib.util.module_from_spec(importlib.util.spec_from_loader(loader.name, loader))
    loader.exec_module(module)
    return module


def terse(job, error=0, read=(0, 0), write=(0, 0)):
    """A line of fio --output-format=terse --terse-version=3: KiB/s and operations a second."""
    words = ["0"] * 130
    words[:5] = ["3", "fio-3.33", job, "0", str(error)]
    words[6:8], words[47:49] = map(str, read), map(str, write)
    return ";".join(words)


def test_rows_are_chosen_by_their_beginnings():
    assert table.wanted("disk.raw.read-1m", [])
    assert table.wanted("disk.raw.read-1m", ["net", "disk.raw"])
    assert table.wanted("disk", ["disk.raw"])  # something inside of it is asked for
    assert not table.wanted("disk.raw2.read-1m", ["disk.raw"])
    assert not table.wanted("disk.qcow2", ["disk.raw"])


def test_ratios_are_those_of_rounds():
    assert table.ratio([10, 100, 4], [5, 50, 1]) == 2  # a slow round was slow for both
    assert table.ratio([10, None, 9], [5, 50, None]) == 2  # a round that failed counts for nothing
    assert table.ratio([None], [5]) is None


def test_a_row_shows_failure_and_shortness(capsys):
    figures = table.Table("net", ["net.tap"])
    for round_ in ((300, 200), (330, 220)):
        figures.add("tap.in", "lodge", round_[0])
        figures.add("tap.in", "qemu", round_[1])
    figures.add("tap.out", "lodge", None)
    figures.add("user.in", "lodge", 1)
    for row in ("tap.in", "tap.out", "user.in"):
        figures.show(row, "Mbit/s", bar=2)
    assert capsys.readouterr().out.splitlines() == [
        "| net.tap.in | 315 Mbit/s | 210 Mbit/s | 1.50 x short | 2 x |",
        "| net.tap.out | failed |  |  | 2 x |"]


def test_fio_results():
    said = "\n".join(["Linux speaks; of 3; things",
                      terse("raw.randread-qd1", read=(4000, 1000), write=(1, 2)),
                      terse("qcow2.write-1m", read=(1, 2), write=(2048, 2)),
                      terse("raw.read-1m", error=5, read=(2048, 2)),
                      terse("raw.randwrite-qd32", write=(8000, 2000))[:100]])
    assert program("disk").results(said) == {"raw.randread-qd1": 1000, "qcow2.write-1m": 2}


def test_fio_jobs_of_both_formats_follow_each_other():
    work = program("disk").work(["raw.read-1m", "qcow2.read-1m", "qcow2.write-1m"], 2)
    assert re.findall(r"--name=(\S+) --stonewall --filename=(\S+)", work) == [
        ("raw.read-1m", "/dev/vda"), ("qcow2.read-1m", "/dev/vdb"), ("qcow2.write-1m", "/dev/vdb")]


def test_iperf3_results():
    sums = {"sum_sent": {"bits_per_second": 9e9}, "sum_received": {"bits_per_second": 2.5e8}}
    said = "\n".join(["round-trip min/avg/max = 0.301/0.450/9.001 ms",
                      "OUT", json.dumps({"start": {}, "end": sums}, indent="\t"),
                      "IN", json.dumps({"end": {}, "error": "no route"}, indent="\t"), "END"])
    assert program("net").results(said) == {"ping": 450, "out": 250}
