"""The kernel's own x86 self-tests: what passes on this host passes in a guest of the software engine.

Built static from Debian's linux-source, 64-bit and 32-bit, and run in one guest.
"""
import glob
import io
import os
import re
import subprocess
import tarfile

import pytest

SOURCE = "/usr/src/linux-source-6.1.tar.xz"
pytestmark = [pytest.mark.torture, pytest.mark.plain_only]


@pytest.fixture(scope="module")
def programs(tmp_path_factory):
    if not os.path.exists(SOURCE):
        pytest.skip(f"{SOURCE} is not installed")
    top = tmp_path_factory.mktemp("selftests")
    subprocess.run(["tar", "-C", top, "-xf", SOURCE, "--strip-components=1", "--wildcards",
                    "*/tools/testing/selftests/x86/*", "*/tools/testing/selftests/*.h",
                    "*/tools/testing/selftests/lib.mk", "*/tools/include/*", "*/scripts/Makefile*",
                    "*/arch/x86/include/*"], check=True)
    folder = f"{top}/tools/testing/selftests/x86"
    # -k: a self-test that this compiler cannot build is no test of ours.
    subprocess.run(["make", "-k", "-s", "-j2",
                    f"CFLAGS=-O2 -std=gnu99 -pthread -w -static -no-pie -I{top}/tools/include/uapi"],
                   cwd=folder, capture_output=True)
    found = sorted(path for path in glob.glob(f"{folder}/*_64") + glob.glob(f"{folder}/*_32")
                   if os.access(path, os.X_OK))
    assert len(found) > 30, "most self-tests did not build"
    return found


@pytest.fixture(scope="module")
def on_host(programs):
    results = {}
    for path in programs:
        try:
            code = subprocess.run([path], capture_output=True, stdin=subprocess.DEVNULL,
                                  timeout=20).returncode
        except subprocess.TimeoutExpired:
            code = "timeout"
        except OSError as error:  # 32-bit programs, where the kernel knows none
            code = error.strerror
        results[os.path.basename(path)] = code
    return results


@pytest.fixture(scope="module")
def in_guest(programs, on_host, lodge):
    packed = io.BytesIO()
    with tarfile.open(fileobj=packed, mode="w") as tar:
        for path in programs:
            if on_host[os.path.basename(path)] != 0:
                continue  # nothing to compare with
            tar.add(path, arcname=os.path.basename(path))
    script = ("cd /tmp && mkdir s && cd s && tar x && for t in *; do timeout 120 ./$t >log 2>&1 "
              "</dev/null; echo RESULT $t $?; grep -a FAIL log; done")
    result = subprocess.run([lodge, "run", "--engine", "soft", "--memory", "1G",
                             "--cpus", "2", "default", "--", "sh", "-c", script],
                            input=packed.getvalue(), capture_output=True, timeout=1500)
    output = result.stdout.decode(errors="replace")
    return {name: int(code) for name, code in re.findall(r"RESULT (\S+) (\d+)", output)}, output


def test_what_passes_on_the_host_passes_in_the_guest(on_host, in_guest):
    codes, output = in_guest
    wrong = [f"{name}: guest {codes.get(name)}" for name, code in on_host.items()
             if code == 0 and codes.get(name) != 0]
    passed = sum(code == 0 for code in on_host.values())
    assert len(codes) == passed, output[-3000:]
    assert passed > 5, on_host
    assert not wrong, "\n".join(wrong) + "\n" + output[-6000:]
