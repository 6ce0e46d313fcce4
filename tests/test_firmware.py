"""Guests that begin with UEFI firmware and boot what their disks bring."""
import glob
import json
import os
import subprocess

import pytest

import uefi_disk

MODULES = ["part_gpt", "fat", "iso9660", "serial", "linux", "normal", "search", "search_fs_file",
           "echo", "terminal", "halt", "reboot", "loadenv", "test"]
SERIAL = "serial --unit=0\nterminal_output serial\n"
STORE = "/usr/share/OVMF/OVMF_VARS_4M.fd"


@pytest.fixture
def state(tmp_path, monkeypatch):
    """Where variable stores of guests with names go."""
    monkeypatch.setenv("XDG_STATE_HOME", str(tmp_path / "state"))
    return tmp_path / "state/lodge/nvram"


def run(lodge, *arguments, timeout=240):
    return subprocess.run([lodge, "run", "--engine", "soft", "--firmware", *arguments],
                          stdin=subprocess.DEVNULL, capture_output=True, text=True,
                          errors="replace", timeout=timeout)


def variable(name):
    return name.encode("utf-16-le")


@pytest.mark.plain_only
def test_a_disk_boots_twice(bin_folder, tmp_path, state):
    """GRUB writes to its disk, resets the machine, and finds what it wrote. What the firmware
    remembers is in the store."""
    grub, disk, store = (str(tmp_path / name) for name in ("grub.efi", "disk.img", "vars.fd"))
    uefi_disk.grub(grub, MODULES, SERIAL + "search --file --set=root /env\n"
                                           "normal /EFI/BOOT/grub.cfg\n")
    script = b"""
load_env --file /env
if [ "$seen" = yes ]; then
    echo second time
    halt
fi
echo first time
set seen=yes
save_env --file /env seen
reboot
"""
    environment = b"# GRUB Environment Block\n".ljust(1024, b"#")
    uefi_disk.make(disk, {"EFI/BOOT/BOOTX64.EFI": grub, "EFI/BOOT/grub.cfg": script,
                          "env": environment})
    file = tmp_path / "guest.json"
    file.write_text(json.dumps({"firmware": "uefi", "nvram": store, "on_reset": "reboot",
                                "disks": [{"path": disk}]}), encoding="ascii")
    result = run(f"{bin_folder}/lodge", "--file", str(file))
    assert result.returncode == 0, result.stderr
    first, second = result.stdout.find("first time"), result.stdout.find("second time")
    assert 0 < first < second, result.stdout
    with open(store, "rb") as found, open(STORE, "rb") as empty:
        bytes_found, bytes_empty = found.read(), empty.read()
    assert len(bytes_found) == len(bytes_empty)
    assert variable("Boot0001") in bytes_found and variable("Boot0001") not in bytes_empty
    assert not state.exists()  # the store that was named is the only one


def test_a_cd_boots(bin_folder, tmp_path, state):
    """El Torito, from a disk that cannot be written to; the first disk has nothing to boot."""
    grub, folder, disc = (str(tmp_path / name) for name in ("grub.efi", "cd", "cd.iso"))
    os.mkdir(folder)
    uefi_disk.grub(grub, MODULES, SERIAL + "search --file --set=root /medium\n"
                                           "echo from $root\nhalt\n")
    uefi_disk.make_fat(f"{folder}/efi.img", {"EFI/BOOT/BOOTX64.EFI": grub}, 4 << 10)
    with open(f"{folder}/medium", "w", encoding="ascii") as file:
        file.write("a CD")
    subprocess.run(["xorriso", "-as", "mkisofs", "-quiet", "-o", disc, "-e", "efi.img",
                    "-no-emul-boot", folder], check=True, capture_output=True)
    uefi_disk.partition(tmp_path / "empty.img", 8)
    result = run(f"{bin_folder}/lodge", "--disk", str(tmp_path / "empty.img"), "--disk",
                 f"{disc},ro")
    assert result.returncode == 0, result.stderr
    assert "from cd0" in result.stdout
    assert not state.exists()  # without a name it goes with the guest


def kernel(lodge, tmp_path):
    """Debian's kernel as its package has it, an EFI program itself."""
    rows = json.loads(subprocess.run([lodge, "image", "ls", "--format", "json"],
                                     capture_output=True, check=True).stdout)
    release = next(row for row in rows if row["name"] == "default")["release"]
    cache = os.environ.get("XDG_CACHE_HOME", os.path.expanduser("~/.cache"))
    packages = glob.glob(f"{cache}/lodge/debs/linux-image-{release}_*.deb")
    if not packages:
        if subprocess.run(["apt-get", "download", f"linux-image-{release}"], cwd=tmp_path,
                          capture_output=True).returncode:
            pytest.skip("Debian's packages cannot be reached")
        packages = glob.glob(f"{tmp_path}/linux-image-{release}_*.deb")
    subprocess.run(["dpkg-deb", "-x", packages[0], f"{tmp_path}/kernel"], check=True)
    return f"{tmp_path}/kernel/boot/vmlinuz-{release}"


@pytest.mark.plain_only
def test_linux_boots_and_is_saved(lodge, tmp_path, state, monkeypatch):
    """GRUB loads the kernel, which finds EFI and ACPI as on a PC; then a snapshot of it."""
    monkeypatch.setenv("XDG_RUNTIME_DIR", str(tmp_path))
    data = os.environ.get("XDG_DATA_HOME", os.path.expanduser("~/.local/share"))
    grub, disk, folder = (str(tmp_path / name) for name in ("grub.efi", "disk.img", "saved"))
    uefi_disk.grub(grub, MODULES, SERIAL + "search --file --set=root /vmlinuz\n"
                   "linux /vmlinuz console=ttyS0 quiet panic=-1\ninitrd /initrd.img\nboot\n")
    uefi_disk.make(disk, {"EFI/BOOT/BOOTX64.EFI": grub, "vmlinuz": kernel(lodge, tmp_path),
                          "initrd.img": f"{data}/lodge/images/default/current/initrd.img"})
    command = [lodge, "run", "--engine", "soft", "--firmware", "--name", "web", "--cpus", "2",
               "--memory", "3G", "--disk", f"{disk},ro", "--", "sh", "-c",
               "nproc; ls /sys/firmware/efi; dmesg | grep -c 'no compatible bridge window';"
               "echo end; cat"]
    with subprocess.Popen(command, stdin=subprocess.PIPE, stdout=subprocess.PIPE,
                          text=True) as guest:
        try:
            lines = []
            while not lines or lines[-1] not in ("end\n", ""):
                lines.append(guest.stdout.readline())
            assert lines[0] == "2\n" and "systab\n" in lines, lines
            assert lines[-2] == "0\n", lines  # the windows of the DSDT hold the BARs
            second = run(lodge, "--name", "web2", "--nvram", str(state / "web.fd"))
            assert second.returncode == 125
            assert "another guest's that runs" in second.stderr
            subprocess.run([lodge, "snapshot", "--stop", "web", folder], check=True, timeout=60)
            guest.communicate(timeout=60)
        finally:
            guest.kill()
    assert variable("Boot0001") in (state / "web.fd").read_bytes()
    os.unlink(state / "web.fd")  # its variables are in the snapshot
    restored = subprocess.run([lodge, "restore", "--engine", "soft", folder, "--", "nproc"],
                              stdin=subprocess.DEVNULL, capture_output=True, text=True, timeout=120)
    assert restored.stdout == "2\n", restored.stderr
    assert not (state / "web.fd").exists()


@pytest.mark.parametrize("arguments, message", [
    (["default"], "image 'default' brings its own kernel"),
    (["--kernel", "/bin/true"], "not both"),
    (["--append", "quiet"], "leave 'quiet' out"),
    (["--memory", "64M"], "128M"),
    (["--firmware=/nowhere"], "firmware '/nowhere'"),
    (["--firmware=/bin/true"], "cannot run the guest with firmware '/bin/true'"),
    (["--nvram", "/bin/true"], "has not the size"),
    (["--nvram", "/dev/null"], "no regular file"),
    (["--hostname", "web"], "by cloud-init only"),
])
def test_mistakes(lodge, state, arguments, message):
    result = run(lodge, *arguments, timeout=60)
    assert result.returncode == 125
    assert message in result.stderr
    assert not state.exists()
