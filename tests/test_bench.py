"""The benchmarks measure something: the figures themselves are nobody's promise."""
import json
import os
import re
import subprocess

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
