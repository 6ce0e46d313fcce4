"""The command line without a running guest: help, mistakes, bad input, lodge host, images."""
import glob
import json
import os
import struct
import subprocess

import pytest

VMLINUZ = sorted(glob.glob("/boot/vmlinuz-*"))


@pytest.fixture
def home(tmp_path):
    return dict(os.environ, HOME=str(tmp_path), XDG_DATA_HOME=str(tmp_path / "data"),
                XDG_CACHE_HOME=str(tmp_path / "cache"))


@pytest.fixture
def lodge(bin_folder, home, tmp_path):
    def run(*arguments, **how):
        how.setdefault("stdin", subprocess.DEVNULL)
        return subprocess.run([f"{bin_folder}/lodge", *map(str, arguments)], capture_output=True,
                              text=True, timeout=60, env=home, cwd=tmp_path, **how)
    return run


@pytest.fixture
def kernel(tmp_path):
    path = tmp_path / "kernel"
    path.write_bytes(b"no kernel, but a file" * 1000)
    return path


def one_line(result, status, *words):
    """A clear error: one line on standard error that names the thing, and no output."""
    assert result.returncode == status, result.stderr
    assert result.stdout == ""
    lines = result.stderr.splitlines()
    assert len(lines) == 1, result.stderr
    assert lines[0].startswith("lodge: ")
    for word in words:
        assert word in lines[0], lines[0]


# --- help and mistakes ---

def test_help_lists_every_command(lodge):
    result = lodge("--help")
    assert result.returncode == 0 and result.stderr == ""
    for verb in ("run", "host", "image", "disk", "help", "version"):
        assert f"\n  {verb} " in result.stdout
    assert lodge("help").stdout == result.stdout
    assert lodge("help", "help").returncode == 0


@pytest.mark.parametrize("verb", [["run"], ["host"], ["disk"], ["disk", "convert"], ["image"], ["image", "build"], ["image", "ls"],
                                  ["help"], ["version"]])
def test_help_of_a_command(lodge, verb):
    result = lodge(*verb, "--help")
    assert result.returncode == 0
    assert result.stdout.startswith("Usage: lodge " + " ".join(verb))
    assert lodge("help", *verb).stdout == result.stdout


def test_every_option_of_the_manual_is_in_the_help(lodge, request):
    manual = (request.config.rootpath / "docs" / "cli.md").read_text(encoding="utf-8")
    help_text = lodge("help", "run").stdout
    options = [word for word in help_text.split() if word.startswith("--") and word != "--"]
    assert len(options) >= 15
    for option in options:
        assert f"`{option}" in manual or f"{option}`" in manual or f"{option} " in manual, option


def test_version(lodge):
    result = lodge("version")
    assert result.stdout.startswith("lodge ") and result.stdout.count(".") == 2


def test_no_command_is_a_mistake(lodge):
    for arguments in ([], ["image"]):
        result = lodge(*arguments)
        assert result.returncode == 2 and result.stdout == ""
        assert result.stderr.startswith("Usage: lodge")


@pytest.mark.parametrize("arguments, status, words", [
    (["rum"], 2, "did you mean lodge run?"),
    (["help", "rum"], 2, "'rum' is no command"),
    (["--colour"], 2, "unknown option '--colour'"),
    (["run", "--memry", "1G"], 125, "did you mean --memory?"),
    (["run", "--colour"], 125, "see lodge run --help"),
    (["run", "--memory"], 125, "option '--memory' needs a SIZE"),
    (["run", "--verbose=1"], 125, "takes no value"),
    (["run", "default", "uname"], 125, "a command comes after --"),
    (["run", "--"], 125, "a command must follow"),
    (["host", "--format", "xml"], 2, "--format is table or json, not 'xml'"),
    (["image", "ls", "--format", "xml"], 2, "--format is table or json"),
    (["image", "build"], 2, "which image?"),
    (["image", "build", "fedora"], 2, "no recipe for image 'fedora'"),
])
def test_mistakes(lodge, arguments, status, words):
    one_line(lodge(*arguments), status, words)


# --- lodge run: bad input ---

@pytest.mark.parametrize("options, words", [
    (["--memory", "0"], ["memory of 0 bytes is too little"]),
    (["--memory", "3"], ["memory of 3 bytes is too little", "16M"]),
    (["--memory", "lots"], ["'lots' is no size", "512M"]),
    (["--memory", "-1G"], ["'-1G' is no size"]),
    (["--memory", "512G"], ["memory of 512.0 GiB is more than this machine has ("]),
    (["--memory", "99999999999G"], ["memory", "64 bits"]),
    (["--cpus", "0"], ["0 CPUs", "1 to 64"]),
    (["--cpus", "300"], ["300 CPUs", "1 to 64"]),
    (["--cpus", "two"], ["'two' is no number of CPUs"]),
    (["--engine", "qemu"], ["engine 'qemu' is unknown", "auto, kvm and soft"]),
    (["--translate", "often"], ["translate 'often' is unknown", "hot, never and always"]),
    (["--code-cache", "1K"], ["a code cache of 1024 bytes is too little", "1M to 512M"]),
    (["--code-cache", "5G"], ["a code cache of 5368709120 bytes is too much", "1M to 512M"]),
    (["--code-cache", "big"], ["code cache: 'big' is no size"]),
    (["--on-reset", "explode"], ["--on-reset is exit or reboot"]),
    (["--name", "a b"], ["'a b' is no name"]),
    (["--initrd", "/no/such/file"], ["initrd '/no/such/file'", "No such file"]),
    (["--initrd", "/"], ["initrd '/' is no regular file"]),
    (["--env", "A", "--", "true"], ["--env takes NAME=VALUE, not 'A'"]),
    (["--agent-timeout", "soon", "--", "true"], ["--agent-timeout takes seconds, not 'soon'"]),
    (["-f", "/no/such/vm.conf"], ["definition '/no/such/vm.conf'", "No such file"]),
    (["-f", "/"], ["definition '/'"]),
])
def test_bad_options(lodge, kernel, options, words):
    # 512G is refused on a machine that has less; one that has more is not a test machine.
    one_line(lodge("run", "--kernel", kernel, *options), 125, *words)


def test_missing_and_unreadable_kernel(lodge, tmp_path, kernel):
    one_line(lodge("run", "--kernel", "/no/such/kernel"), 125, "kernel '/no/such/kernel'",
             "No such file")
    one_line(lodge("run", "--kernel", tmp_path), 125, "is no regular file")
    empty = tmp_path / "empty"
    empty.write_bytes(b"")
    one_line(lodge("run", "--kernel", empty), 125, "kernel", "is empty")
    if os.geteuid() != 0:
        kernel.chmod(0)
        one_line(lodge("run", "--kernel", kernel), 125, "kernel", "Permission denied")


@pytest.mark.parametrize("engine", ["soft", "auto"])
def test_a_file_that_is_no_kernel(lodge, kernel, engine):
    one_line(lodge("run", "--engine", engine, "--kernel", kernel), 125, "kernel")


def vmlinuz(tmp_path):
    """The first kilobytes of a bzImage: setup header and a payload that is not all there."""
    if VMLINUZ and os.access(VMLINUZ[-1], os.R_OK):
        with open(VMLINUZ[-1], "rb") as file:
            return file.read(300000)
    header = bytearray(300000)
    header[0x1f1] = 4
    struct.pack_into("<H", header, 0x1fe, 0xaa55)
    header[0x202 - 2:0x202] = b"\xeb\x66"
    header[0x202:0x206] = b"HdrS"
    struct.pack_into("<H", header, 0x206, 0x020f)
    header[0x211] = 1
    struct.pack_into("<I", header, 0x1f4, 8000000 // 16)
    struct.pack_into("<II", header, 0x248, 1000, 7000000)
    return bytes(header)


def test_a_truncated_kernel(lodge, tmp_path):
    path = tmp_path / "vmlinuz"
    path.write_bytes(vmlinuz(tmp_path))
    one_line(lodge("run", "--engine", "soft", "--kernel", path), 125, "kernel")


def test_an_initrd_larger_than_memory(lodge, tmp_path):
    image = os.environ.get("LODGE_TEST_KERNEL") or default_kernel()
    if not image:
        pytest.skip("the default image is not built")
    initrd = tmp_path / "initrd"
    with open(initrd, "wb") as file:
        file.truncate(1 << 30)
    one_line(lodge("run", "--engine", "soft", "--memory", "256M", "--kernel", image, "--initrd",
                   initrd), 125, "initrd", "memory")


def default_kernel():
    data = os.environ.get("XDG_DATA_HOME") or os.path.expanduser("~/.local/share")
    path = f"{data}/lodge/images/default/current/vmlinux"
    return path if os.path.exists(path) else None


@pytest.mark.parametrize("text, place, words", [
    ('kernel = "/k"\nmemory = "1G"\n', "2:1", "unknown key 'memory'"),
    ('kernel = "/k"\nmem = "3"\n', "2:8", "memory of 3 bytes is too little"),
    ('kernel = "/k"\nvcpus = "300"\n', "2:10", "300 CPUs"),
    ('kernel = /k\n', "1:10", "double quotes"),
    ('kernel = "/k\n', "1:10", "closing quote"),
    ('kernel = "/k"\nkernel = "/j"\n', "2:1", "set on line 1"),
    ('kernel = "\0"\n', "1:11", "NUL"),
    ('{"kernel": "/k",\n "mem": 1}', "2:2", "unknown field 'mem'"),
    ('{"kernel": "/k"', "1:15", ""),
    ('{"kernel": "/k", "cpus": 0}', "1:18", "0 CPUs"),
])
def test_malformed_definitions_name_the_place(lodge, tmp_path, text, place, words):
    path = tmp_path / "vm.conf"
    path.write_text(text)
    one_line(lodge("run", "-f", path), 125, f"{path}:{place}: ", words)


def test_a_definition_without_kernel_takes_the_default_image(lodge, tmp_path):
    path = tmp_path / "vm.conf"
    path.write_text('mem = "64M"\n')
    one_line(lodge("run", "-f", path), 125, "image 'default' does not exist",
             "lodge image build default")


@pytest.mark.parametrize("more", [
    '"kernel_fd": 0', '"listen_fd": 5',
    '"restore": {"layers": [{"state_fd": 4, "memory_fd": 5}], "same_host": true, "verify": "never"}',
])
def test_descriptors_in_a_definition_are_refused(lodge, tmp_path, more):
    path = tmp_path / "vm.json"
    path.write_text('{"kernel": "/k", %s}' % more)
    one_line(lodge("run", "-f", path), 125, "descriptors")


def test_options_override_the_definition(lodge, tmp_path):
    path = tmp_path / "vm.conf"
    path.write_text('kernel = "/no/such/a"\n')
    one_line(lodge("run", "-f", path, "--kernel", "/no/such/b"), 125, "kernel '/no/such/b'")


def test_kvm_where_there_is_none_says_what_to_do(lodge, kernel):
    try:
        os.close(os.open("/dev/kvm", os.O_RDWR))
    except OSError:
        one_line(lodge("run", "--engine", "kvm", "--kernel", kernel), 125, "/dev/kvm",
                 "--engine soft")
    else:
        pytest.skip("this machine has /dev/kvm")


def test_a_missing_vmm_is_named(lodge, kernel, home):
    home["LODGE_VMM"] = "/no/such/vmm"
    one_line(lodge("run", "--kernel", kernel), 125, "lodge-vmm", "LODGE_VMM", "/no/such/vmm")


@pytest.mark.parametrize("script, words", [
    ("exit 3", "lodge-vmm ended: exit status 3"),
    ("kill -SEGV $$", "lodge-vmm ended: killed by signal 11"),
])
def test_a_vmm_that_ends_without_a_word(lodge, kernel, home, tmp_path, script, words):
    vmm = tmp_path / "vmm"
    vmm.write_text(f"#!/bin/sh\n{script}\n")
    vmm.chmod(0o755)
    home["LODGE_VMM"] = str(vmm)
    one_line(lodge("run", "--kernel", kernel), 125, words)


# --- images ---

def make_image(home, name="web", **changes):
    folder = f"{home['XDG_DATA_HOME']}/lodge/images/{name}"
    os.makedirs(f"{folder}/abc123")
    os.symlink("abc123", f"{folder}/current")
    about = {"name": name, "hash": "abc123", "created": "2025-01-01T00:00:00Z", "release": "6.1.0",
             "append": "quiet", "agent": True, "kernel": {"file": "vmlinux", "size": 1 << 20},
             "initrd": {"file": "initrd.img", "size": 1 << 20}}
    about.update(changes)
    with open(f"{folder}/abc123/image.json", "w", encoding="utf-8") as file:
        json.dump(about, file)
    return folder


def test_no_images(lodge):
    result = lodge("image", "ls")
    assert result.returncode == 0
    assert result.stdout.split() == ["NAME", "HASH", "KERNEL", "SIZE", "CREATED"]
    assert json.loads(lodge("image", "ls", "--format", "json").stdout) == []


def test_images_are_listed(lodge, home):
    make_image(home, "web")
    make_image(home, "db")
    lines = lodge("image", "ls").stdout.splitlines()
    assert [line.split()[0] for line in lines] == ["NAME", "db", "web"]
    assert "2.0 MiB" in lines[1]
    images = json.loads(lodge("image", "ls", "--format", "json").stdout)
    assert [image["name"] for image in images] == ["db", "web"]
    assert images[0]["size"] == 2 << 20 and images[0]["agent"] is True


def test_an_image_that_does_not_exist(lodge, home):
    one_line(lodge("run", "web"), 125, "image 'web' does not exist", "lodge image build default")
    make_image(home, "db")
    one_line(lodge("run", "web"), 125, "image 'web' does not exist; there are: db")
    one_line(lodge("run", "../db"), 125, "'../db' is no image name")


def test_a_damaged_image(lodge, home):
    make_image(home, "a", kernel={"file": "../../../etc/passwd"})
    one_line(lodge("run", "a"), 125, "image 'a' is damaged")
    make_image(home, "b")
    one_line(lodge("run", "b"), 125, "kernel", "vmlinux", "No such file")
    folder = make_image(home, "c")
    with open(f"{folder}/current/image.json", "w", encoding="utf-8") as file:
        file.write("{\n]")
    one_line(lodge("run", "c"), 125, "image.json:2:1: ")


def test_nowhere_to_put_images(lodge, home):
    for name in ("HOME", "XDG_DATA_HOME"):
        del home[name]
    one_line(lodge("run"), 125, "neither XDG_DATA_HOME nor HOME is set")
    one_line(lodge("image", "ls"), 1, "neither XDG_DATA_HOME nor HOME is set")


# --- lodge host ---

def test_host_as_a_table(lodge):
    result = lodge("host")
    assert result.returncode == 0 and result.stderr == ""
    for name in ("CPU", "virtualization", "/dev/kvm", "engine auto", "cores", "memory",
                 "huge pages", "KSM", "cgroup"):
        assert any(line.startswith(name) for line in result.stdout.splitlines()), name


def test_host_as_json_agrees_with_the_machine(lodge):
    host = json.loads(lodge("host", "--format", "json").stdout)
    with open("/proc/meminfo", encoding="ascii") as file:
        total = next(int(line.split()[1]) for line in file if line.startswith("MemTotal"))
    assert host["memory"]["total"] == total * 1024
    assert host["cpu"]["cores"] == os.sysconf("SC_NPROCESSORS_ONLN")
    assert host["kernel"] == os.uname().release
    assert host["cgroup"] in (0, 1, 2)
    assert host["kvm"]["opens"] == os.access("/dev/kvm", os.R_OK | os.W_OK)
    assert host["engine"]["auto"] == ("kvm" if host["kvm"]["fast"] else "soft")
    assert host["engine"]["why"]
    if host["kvm"]["works"]:
        assert host["kvm"]["fast"] == (host["kvm"]["instruction_ns"] <= 200)
    else:
        assert host["kvm"]["instruction_ns"] is None


def test_output_that_cannot_be_written_is_an_error(lodge, bin_folder, home):
    with open("/dev/full", "w", encoding="ascii") as full:
        result = subprocess.run([f"{bin_folder}/lodge", "version"], stdout=full,
                                stderr=subprocess.PIPE, text=True, env=home, timeout=20)
    assert result.returncode == 1
    assert "cannot write to standard output" in result.stderr


def test_what_is_no_kernel_is_named(lodge, kernel):
    result = lodge("run", "--engine", "soft", "--kernel", kernel, stdin=subprocess.DEVNULL)
    one_line(result, 125, str(kernel), "no kernel")
