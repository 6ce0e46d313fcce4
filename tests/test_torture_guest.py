"""Whole programs in a guest of the software engine, compared with this machine: stress-ng, a
compiler, Python's own tests, cryptography, two languages that compile while they run.

The guest runs the very files of this machine (tests/guest_root.py), so what comes out is the same.
"""
import base64
import glob
import os
import re
import shutil
import subprocess

import pytest
from guest_root import Machine, Root

pytestmark = [pytest.mark.torture, pytest.mark.plain_only]
HERE = os.path.dirname(os.path.abspath(__file__))
STRESS_SECONDS = int(os.environ.get("LODGE_STRESS_SECONDS", "2"))  # for each of about 150 stressors


def program(name):
    with open(f"{HERE}/programs/{name}", encoding="utf-8") as text:
        return text.read()


def need(*programs):
    for name in programs:
        if not shutil.which(name):
            pytest.skip(f"{name} is not installed")


def here(script, folder, **environment):
    """The script on this machine, as Machine.shell() runs it in the guest."""
    return subprocess.run(["/bin/sh", "-c", script], cwd=folder, capture_output=True, text=True,
                          errors="replace", timeout=1200,
                          env={"PATH": "/usr/sbin:/usr/bin:/sbin:/bin", "HOME": "/root",
                               "TMPDIR": str(folder), "LC_ALL": "C.UTF-8", **environment})


# --- stress-ng ---

# "resources" removes semaphore 0, whoever made it, and in a fresh system that is the one of
# "sem-sysv"; here it comes to light under `unshare -i`. So it has a run of its own.
STRESS = ("cd /tmp; for what in '--class cpu,cpu-cache,memory,vm,scheduler --exclude resources' "
          "'--class memory --exclude {others}'; do stress-ng --sequential 2 --verify --oomable "
          "--no-rand-seed --metrics-brief --vm-bytes 64M --timeout {seconds}s $what 2>&1; done")


def stress_ran(output):
    """The stressors that did something, and those that found something wrong."""
    did = re.findall(r"metrc: \[\d+\] ([\w-]+) +[1-9]\d* +[\d.]+ ", output)
    wrong = re.findall(r"fail: +\[\d+\] ([\w-]+):", output)
    wrong += re.findall(r"process \[\d+\] \(([\w-]+)\) terminated", output)
    return set(did), set(wrong)


def test_stress_ng_verifies(lodge, tmp_path):
    need("stress-ng")
    root = Root()
    root.program("stress-ng")
    machine = Machine(lodge, tmp_path, root)
    names = subprocess.run(["stress-ng", "--class", "memory?"], capture_output=True,
                           text=True).stdout.split(":", 1)[1].split()
    script = STRESS.format(others=",".join(name for name in names if name != "resources"),
                           seconds=STRESS_SECONDS)
    result = machine.shell(script, "--cpus", "2", "--memory", "2G", timeout=5400)
    did, wrong = stress_ran(result.stdout)
    assert result.stdout.count("successful run completed") == 2, result.stdout[-5000:]
    assert len(did) > 110, f"{sorted(did)}\n{result.stdout[-3000:]}"
    # What goes wrong on this machine as well is no fault of ours.
    for name in sorted(wrong):
        again = here(f"stress-ng --{name} 2 --verify --timeout 2s 2>&1", tmp_path)
        if name in stress_ran(again.stdout)[1]:
            wrong.discard(name)
    lines = [line for line in result.stdout.splitlines() if "fail:" in line or "error:" in line]
    assert not wrong, f"{sorted(wrong)}\n" + "\n".join(lines)


# --- a compiler ---



def zlib_source(folder):
    """The original source that Debian builds its zlib from, by apt, or None."""
    for name in ("lists/partial", "cache/archives/partial"):
        os.makedirs(f"{folder}/{name}")
    # Where this machine has its packages from, the sources are too.
    places = subprocess.run(["apt-get", "indextargets", "--format",
                             "deb-src $(REPO_URI) $(RELEASE) $(COMPONENT)",
                             "Created-By: Packages"], capture_output=True, text=True)
    with open(f"{folder}/sources", "w", encoding="utf-8") as sources:
        sources.write("\n".join(sorted(set(places.stdout.splitlines()))) + "\n")
    apt = ["apt-get", "-q", "-o", f"Dir::Etc::SourceList={folder}/sources",
           "-o", "Dir::Etc::SourceParts=/dev/null", "-o", f"Dir::State::Lists={folder}/lists",
           "-o", f"Dir::Cache={folder}/cache", "-o", "APT::Sandbox::User=root"]
    for arguments in (["update"], ["source", "--download-only", "zlib"]):
        if subprocess.run([*apt, *arguments], cwd=folder, capture_output=True).returncode:
            return None
    found = [name for name in os.listdir(folder) if ".orig.tar." in name]
    with open(f"{folder}/{found[0]}", "rb") as packed:
        program = {"bz2": "bzip2", "xz": "xz", "gz": "gzip"}[found[0].rsplit(".", 1)[1]]
        return subprocess.run([program, "-dc"], stdin=packed, capture_output=True,
                              check=True).stdout


def test_a_compiler_builds_what_it_builds_here(lodge, tmp_path):
    need("gcc", "make")
    source = zlib_source(tmp_path / "apt")
    if not source:
        pytest.skip("Debian's sources cannot be reached")
    compiler = os.path.basename(os.path.realpath(shutil.which("gcc")))
    version = re.search(r"gcc-(\d+)$", compiler).group(1)
    root = Root()
    root.package(f"gcc-{version}", f"cpp-{version}", f"libgcc-{version}-dev", "gcc", "binutils",
                 "binutils-x86-64-linux-gnu", "libc6-dev", "linux-libc-dev", "make")
    root.text("tmp/zlib.tar", source)
    machine = Machine(lodge, tmp_path, root)
    (tmp_path / "work").mkdir()
    (tmp_path / "work" / "zlib.tar").write_bytes(source)
    wanted = here(program("zlib.sh"), tmp_path / "work")
    assert wanted.returncode == 0 and wanted.stdout.count("test OK") == 3, wanted.stdout
    result = machine.shell("cd /tmp\n" + program("zlib.sh"), "--cpus", "2", "--memory", "1536M")
    assert result.stdout == wanted.stdout, result.stdout + result.stderr[-3000:]


# --- Python ---

PYTHON_TESTS = ["test_struct", "test_math", "test_decimal", "test_json", "test_zlib",
                "test_threading"]


def python_results(output):
    return {name: result for name, result in re.findall(
        r"^(\w+ \([\w.]+\))(?:\n.*)? \.\.\. (?:.*\n)*?.*?(ok|skipped|FAIL|ERROR|expected failure)",
        output, re.MULTILINE)}


@pytest.mark.parametrize("name", PYTHON_TESTS)
def test_python_passes_its_own_tests(lodge, tmp_path, name):
    if not os.path.exists(f"/usr/lib/python3.11/test/{name}.py") and not os.path.exists(
            f"/usr/lib/python3.11/test/{name}"):
        pytest.skip("libpython3.11-testsuite is not installed")
    root = Root()
    root.program("/usr/bin/python3.11")
    root.tree("/usr/lib/python3.11", skip="/(idlelib|lib2to3|tkinter|turtledemo|site-packages)")
    machine = Machine(lodge, tmp_path, root)
    command = f"cd /tmp && /usr/bin/python3.11 -m test -v {name} 2>&1"
    wanted = python_results(here(command.replace("/tmp", str(tmp_path)), tmp_path).stdout)
    assert list(wanted.values()).count("ok") > 20
    result = machine.shell(command, "--cpus", "2", "--memory", "1G")
    found = python_results(result.stdout)
    wrong = [f"{test}: {found.get(test)}" for test, word in wanted.items()
             if word == "ok" and found.get(test) != "ok"]
    assert not wrong, "\n".join(wrong) + "\n" + result.stdout[-6000:] + result.stderr[-1000:]
    assert result.returncode == 0, result.stdout[-3000:]


# --- cryptography ---

KEYS = {"rsa2048": "RSA -pkeyopt rsa_keygen_bits:2048",
        "rsa3072": "RSA -pkeyopt rsa_keygen_bits:3072",
        "p256": "EC -pkeyopt ec_paramgen_curve:P-256",
        "p384": "EC -pkeyopt ec_paramgen_curve:P-384",
        "p521": "EC -pkeyopt ec_paramgen_curve:P-521",
        "k256": "EC -pkeyopt ec_paramgen_curve:secp256k1", "ed25519": "ED25519", "ed448": "ED448",
        "x25519": "X25519", "x448": "X448"}


def split_random(output):
    lines = output.splitlines()
    return ([line for line in lines if not line.startswith("RANDOM")],
            [line.split()[1:] for line in lines if line.startswith("RANDOM")])


def test_cryptography_agrees(lodge, tmp_path):
    need("openssl")
    folder = tmp_path / "work"
    folder.mkdir()
    for name, how in KEYS.items():
        made = here(f"openssl genpkey -algorithm {how} -out {name} && "
                    f"openssl pkey -in {name} -pubout -out {name}.pub", folder)
        assert made.returncode == 0, made.stderr
    (folder / "data").write_bytes(bytes(i * i % 251 for i in range(40007)))
    (folder / "small").write_bytes(b"a few words that fit into one block of RSA")
    root = Root()
    root.program("openssl", "base64")
    root.tree("/usr/lib/x86_64-linux-gnu/ossl-modules")
    root.add("/usr/lib/ssl/openssl.cnf")
    for name in os.listdir(folder):
        root.text(f"tmp/w/{name}", (folder / name).read_bytes())
    machine = Machine(lodge, tmp_path, root)
    wanted = here(program("crypto.sh"), folder)
    assert wanted.returncode == 0, wanted.stderr
    result = machine.shell("cd /tmp/w\n" + program("crypto.sh"), "--memory", "512M")
    assert result.returncode == 0, result.stderr[-3000:]
    lines, signatures = split_random(result.stdout)
    assert lines == split_random(wanted.stdout)[0]
    assert len(lines) > 100 and len(signatures) == 15
    for key, text in signatures:  # signed there, verified here
        (folder / "sig").write_bytes(base64.b64decode(text))
        option = "-sigopt rsa_padding_mode:pss" if key == "pss" else ""
        key = "rsa2048" if key == "pss" else key
        verified = here(f"openssl dgst -sha256 {option} -verify {key}.pub -signature sig data",
                        folder)
        assert verified.returncode == 0, f"{key}: {verified.stdout}"


# --- compilers at run time ---



@pytest.mark.parametrize("language, name, lines",
                         [("node", "jit.js", 13), ("luajit", "jit.lua", 7)])
def test_code_made_at_run_time_computes_the_same(lodge, tmp_path, language, name, lines):
    need(language)
    root = Root()
    root.program(language)
    for folder in glob.glob("/usr/share/nodejs") + glob.glob("/usr/share/luajit-*"):
        root.tree(folder)
    root.text(f"tmp/{name}", program(name))
    machine = Machine(lodge, tmp_path, root)
    wanted = here(f"{language} {HERE}/programs/{name}", tmp_path)
    assert wanted.returncode == 0 and len(wanted.stdout.splitlines()) == lines, wanted.stderr
    for cpus in ("1", "2"):
        result = machine.shell(f"cd /tmp && {language} {name}", "--cpus", cpus, "--memory", "1536M")
        assert result.stdout == wanted.stdout, result.stdout + result.stderr[-3000:]
        assert result.returncode == 0, result.stderr
