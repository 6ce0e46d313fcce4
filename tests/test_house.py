"""The house stands as docs/architecture.md draws it: arrows, formats, lists."""
import glob
import os
import re
import subprocess

import pytest

TOP = os.path.dirname(os.path.dirname(os.path.abspath(__file__)))
pytestmark = pytest.mark.plain_only

# docs/architecture.md, "Who may include whom": a folder may include itself and its row.
MAY_INCLUDE = {
    "base": [],
    "conf": ["base"],
    "wire": ["base"],
    "mem": ["base"],
    "cpu": ["base", "mem"],
    "cpu/kvm": ["cpu", "mem", "chip/state", "base"],
    "cpu/soft": ["cpu", "mem", "base"],
    "bus": ["base"],
    "chip/state": ["base"],
    "chip": ["bus", "chip/state", "base"],
    "disk": ["base"],
    "share": ["base"],
    "nic": ["base"],
    "virtio": ["bus", "mem", "disk", "nic", "base"],
    "board": ["base", "conf", "wire", "mem", "cpu", "cpu/kvm", "cpu/soft", "bus", "chip", "chip/state",
              "disk", "nic", "virtio"],
    "image": ["base"],
    "place": ["base"],
    "host": ["conf", "wire", "image", "place", "base"],
}
LIBRARIES = {  # what one folder may use that no other may
    "Zydis/": ["cpu/soft"],
    "linux/kvm.h": ["cpu/kvm"],
    "liburing.h": ["virtio"],
    "linux/fuse.h": ["share"],
    "sqlite3.h": ["host"],
    "libxml/": ["conf"],
    "jansson.h": ["conf", "disk", "image", "host"],
}


def sources(folder):
    return sorted(glob.glob(f"{TOP}/src/{folder}/*.[ch]"))


def house_folders():
    found = set()
    for path in glob.glob(f"{TOP}/src/**/*.[ch]", recursive=True):
        found.add(os.path.relpath(os.path.dirname(path), f"{TOP}/src"))
    return sorted(found)


def includes(path):
    with open(path, encoding="utf-8") as text:
        return re.findall(r'^\s*#\s*include\s+["<]([^">]+)[">]', text.read(), re.MULTILINE)


def wrong_arrows(folder, path, named):
    inside = os.path.dirname(named)
    if inside == folder or inside not in MAY_INCLUDE:
        return []
    if inside in MAY_INCLUDE.get(folder, []):
        return []
    return [f"{os.path.relpath(path, TOP)} includes {named}: {folder} may not include {inside}"]


@pytest.mark.parametrize("folder", house_folders())
def test_arrows_go_down_only(folder):
    assert folder in MAY_INCLUDE, f"src/{folder} has no row in the table of includes"
    wrong = []
    for path in sources(folder):
        for named in includes(path):
            wrong += wrong_arrows(folder, path, named)
            for library, owners in LIBRARIES.items():
                if named.startswith(library) and folder not in owners:
                    wrong.append(f"{path} includes {named}: only {owners} may")
    assert not wrong, "\n".join(wrong)


def test_the_arrow_check_can_fail():
    assert wrong_arrows("cpu", "x.c", "bus/bus.h")
    assert not wrong_arrows("chip", "x.c", "bus/bus.h")


def test_architecture_has_the_same_table():
    with open(f"{TOP}/docs/architecture.md", encoding="utf-8") as text:
        rows = re.findall(r"^\| `src/([a-z/]+)` \|[^|]*\| ([^|]*) \|$", text.read(), re.MULTILINE)
    drawn = {folder: sorted(re.findall(r"[a-z]+(?:/[a-z]+)?", row)) for folder, row in rows}
    for folder in house_folders():
        assert folder in drawn, f"docs/architecture.md has no row for src/{folder}"
        assert drawn[folder] == sorted(MAY_INCLUDE[folder]), folder


def test_only_programs_print_or_exit():
    wrong = []
    for folder in house_folders():
        for path in sources(folder):
            if path.endswith(("_test.c", "_harness.c")):
                continue
            with open(path, encoding="utf-8") as text:
                body = re.sub(r"/\*.*?\*/|//[^\n]*", "", text.read(), flags=re.DOTALL)
            for call in re.findall(r"(?<![>.])\b(?:printf|puts|perror|exit|_exit|abort)\s*\(", body):
                wrong.append(f"{os.path.relpath(path, TOP)}: {call}")
            if re.search(r"\bstd(?:err|out)\b", body):
                wrong.append(f"{os.path.relpath(path, TOP)}: stdout or stderr")
    assert not wrong, "\n".join(wrong)


# What belongs to the process and not to any object, each with its reason.
PROCESS_WIDE = {
    "native_once": "the SIGFPE handler is installed once a process",
    "native_previous": "and hands on what is not ours to whoever had it before",
    "known.0": "the host's TSC frequency is measured once a process (cpuid.c)",
    "crypto_library": "a shared library is loaded once a process, when it is needed (base/library.h)",
    "archive_library": "the same",
    "argon2_library": "the same",
    "xml_library": "the same",
}


def test_no_mutable_state_at_file_scope():
    """Rule 7: a library of src/ holds no variable of its own but constants and thread-locals."""
    build = os.environ.get("LODGE_BUILD", f"{TOP}/build")
    archives = glob.glob(f"{build}/src/**/lib*.a", recursive=True)
    assert archives
    wrong = []
    for archive in archives:
        symbols = subprocess.run(["nm", "-A", archive], capture_output=True, text=True).stdout
        for line in symbols.splitlines():
            found = re.search(r" [dDbBC] (\S+)$", line)
            # sym_ are what those libraries export. .data.rel.ro holds constant tables of pointers; nm files it under d as well.
            if (found and found.group(1) not in PROCESS_WIDE
                    and not found.group(1).startswith((".", "__", "DW.ref", "sym_"))):
                wrong.append((archive, line.split(":")[1], found.group(1)))
    really = []
    for archive, member, symbol in wrong:
        sections = subprocess.run(["objdump", "-t", archive], capture_output=True, text=True).stdout
        for line in sections.splitlines():
            if line.endswith(f" {symbol}") and re.search(r"\s\.(data|bss)(\.[^r]\S*)?\s", line):
                really.append(f"{os.path.relpath(archive, TOP)} {member} {symbol}")
    assert not really, "\n".join(sorted(set(really)))


def test_sources_are_laid_out():
    result = subprocess.run([f"{TOP}/tools/format", "--check"], capture_output=True, text=True)
    assert result.returncode == 0, result.stderr[:3000]


def test_nothing_is_left_open():
    paths = subprocess.run(["git", "ls-files", "-co", "--exclude-standard", "src", "prog"], cwd=TOP,
                           capture_output=True, text=True, check=True).stdout.split()
    words = re.compile(r"\b(?:TODO|FIXME|XXX|not implemented|unimplemented)\b")
    wrong = []
    for path in paths:
        with open(f"{TOP}/{path}", encoding="utf-8") as text:
            wrong += [f"{path}:{number}" for number, line in enumerate(text, 1)
                      if words.search(line)]
    assert not wrong, "\n".join(wrong)


def test_every_package_is_listed_once():
    packages = subprocess.run([f"{TOP}/tools/list-deps"], capture_output=True, text=True,
                              check=True).stdout.split()
    assert len(packages) == len(set(packages))
    assert "gcc" in packages
