"""Definitions as libvirt writes them, in and out; its own schema is the judge of the latter."""
import json
import os
import shutil
import subprocess
import sys

import pytest

import uefi_disk

TOP = os.path.dirname(os.path.dirname(os.path.abspath(__file__)))
SCHEMA = "/usr/share/libvirt/schemas/domain.rng"
UNSHARE = ["unshare", "--net"] if os.getuid() == 0 else ["unshare", "--user", "--map-root-user",
                                                           "--net"]
# As people have them, devices right below the domain.
CENTOS = """\
<domain type='kvm'><name>centos7</name><memory unit='MB'>2048</memory><cpu mode='host-passthrough'/>
<disk type='network' device='cdrom'><source protocol='http' name='/centos7.iso'>\
<host name='127.0.0.1' port='8000'/></source><target dev='sda' bus='virtio'/><readonly/></disk>
<interface type='network'><source network='default'/><model type='virtio'/></interface>
<graphics type='vnc' port='5900' listen='127.0.0.1'/></domain>
"""
# Runs a command beside a web server with one file, and says what the server was asked for.
BESIDE = """
import subprocess, sys
from test_disk_http import Server
with open(sys.argv[1], "rb") as file:
    server = Server(file.read())
with open(sys.argv[2]) as file:
    text = file.read().replace("'8000'", f"'{server.server_address[1]}'")
with open(sys.argv[2], "w") as file:
    file.write(text)
status = subprocess.run(sys.argv[3:]).returncode
print("asked for", *sorted(set(server.paths)))
sys.exit(status)
"""


@pytest.fixture
def convert(bin_folder, tmp_path):
    def convert(text, *options):
        file = tmp_path / "definition"
        file.write_text(text)
        return subprocess.run([f"{bin_folder}/lodge", "convert", str(file), *options],
                              capture_output=True, text=True, timeout=60, cwd=tmp_path)
    return convert


def check_schema(tmp_path, text):
    if not os.path.exists(SCHEMA) or not shutil.which("xmllint"):
        pytest.skip("no schema: apt install libvirt0 libxml2-utils")
    file = tmp_path / "written.xml"
    file.write_text(text)
    result = subprocess.run(["xmllint", "--noout", "--relaxng", SCHEMA, str(file)],
                            capture_output=True, text=True, timeout=60)
    assert result.returncode == 0, result.stderr + text


DEFINITIONS = [
    CENTOS,
    '# nothing of its own\nname = "a"',
    'kernel = "k"\ninitrd = "/i"\nappended = "a=<b> & \'c\'"\nwatchdog = "event"\nballoon = "off"\n'
    'disk = "a b.img,ro,cache=unsafe,serial=s,iops=5,iops_burst=7,bps=1K,bps_burst=2K,on_full=error"\n'
    'disk = "http://h.example:80/x?y=1"\nshare = "s,tag=t,ro"\nvsock = "a.vsock,cid=5"\n'
    'net = "user,mac=52:54:00:12:34:56,mtu=1400,rate-in=1500,rate-out=1K tap=tap0,queues=4,anti-spoof"\n'
    'publish = "127.0.0.1:1:2 [::1]:3:4/udp"\nengine = "soft"\ncpu = "portable"\nvcpus = "3"',
    '{"firmware": "code.fd", "nvram": "/n.fd", "watchdog": "poweroff", "memory": "1.5G"}',
    '{"firmware": "uefi", "nvram": "n.fd", "watchdog": "reset", "cpu": "host"}',
]


@pytest.mark.plain_only
@pytest.mark.parametrize("text", DEFINITIONS)
def test_libvirts_schema_accepts_what_is_written(convert, tmp_path, text):
    first = convert(text, "--format", "libvirt-xml")
    assert first.returncode == 0, first.stderr
    check_schema(tmp_path, first.stdout)
    again = convert(first.stdout, "--format", "libvirt-xml")
    if "it is an image's" not in first.stderr:
        assert again.stdout == first.stdout, again.stderr


def test_a_disks_format_is_found_before_it_is_written(convert, tmp_path):
    """libvirt takes a disk without a format for raw; one with a header would be destroyed."""
    (tmp_path / "q.img").write_bytes(b"QFI\xfb" + bytes(512))
    (tmp_path / "r.img").write_bytes(bytes(512))
    result = convert('disk = "q.img"\ndisk = "r.img"\nkernel = "/k"\nname = "a"',
                     "--format", "libvirt-xml")
    assert result.stderr == ""
    assert result.stdout.index("type='qcow2'") < result.stdout.index(f"{tmp_path}/q.img")
    assert result.stdout.index("type='raw'") < result.stdout.index(f"{tmp_path}/r.img")


def test_every_part_that_is_not_taken_has_a_line(convert, tmp_path):
    result = convert(CENTOS)
    assert result.returncode == 0
    assert json.loads(result.stdout)["disks"][0]["path"] == "http://127.0.0.1:8000/centos7.iso"
    lines = [line.replace(f"{tmp_path}/", "") for line in result.stderr.splitlines()]
    assert "definition:4: /domain/graphics: ignored: there is no screen yet; the console is the " \
           "serial port" in lines
    assert len(lines) == 5
    # JSON as we write it is a definition again.
    again = convert(result.stdout)
    assert (again.stdout, again.stderr) == (result.stdout, "")


def test_what_is_refused_is_an_error(convert, bin_folder, tmp_path):
    text = CENTOS.replace("<readonly/>", "<read only='yes'/>").replace("<graphics", "<tpm/><graphics")
    result = convert(text)
    assert (result.returncode, result.stdout) == (1, "")
    assert "/domain/disk/read: refused: write <readonly/>\n" in result.stderr
    assert "/domain/tpm: refused: there is no TPM" in result.stderr
    assert result.stderr.splitlines()[-1].startswith("lodge: ")
    run = subprocess.run([f"{bin_folder}/lodge", "run", "-f", str(tmp_path / "definition")],
                         capture_output=True, text=True, timeout=60)
    assert (run.returncode, run.stderr) == (125, result.stderr)


@pytest.mark.plain_only
def test_the_example_boots_its_iso(bin_folder, tmp_path):
    """Firmware, a CD on a web server, a user network: in a namespace of its own."""
    if not shutil.which("passt"):
        pytest.skip("no passt: apt install passt")
    if subprocess.run([*UNSHARE, "true"], capture_output=True).returncode:
        pytest.skip("no network namespace can be made here")
    grub, folder, disc = (str(tmp_path / name) for name in ("grub.efi", "cd", "cd.iso"))
    os.mkdir(folder)
    uefi_disk.grub(grub, ["iso9660", "serial", "echo", "terminal", "halt"],
                   "serial --unit=0\nterminal_output serial\necho from the web\nhalt\n")
    uefi_disk.make_fat(f"{folder}/efi.img", {"EFI/BOOT/BOOTX64.EFI": grub}, 4 << 10)
    subprocess.run(["xorriso", "-as", "mkisofs", "-quiet", "-o", disc, "-e", "efi.img",
                    "-no-emul-boot", folder], check=True, capture_output=True)
    file = tmp_path / "centos7.xml"
    file.write_text(CENTOS)
    env = dict(os.environ, PYTHONPATH=f"{TOP}/tests", XDG_STATE_HOME=str(tmp_path / "state"),
               XDG_RUNTIME_DIR=str(tmp_path), XDG_CACHE_HOME=str(tmp_path / "cache"))
    result = subprocess.run([*UNSHARE, sys.executable, f"{TOP}/tests/net_peer.py", "user",
                             sys.executable, "-c", BESIDE, disc, str(file), f"{bin_folder}/lodge",
                             "run", "--engine", "soft", "--file", str(file)],
                            stdin=subprocess.DEVNULL, capture_output=True, text=True,
                            errors="replace", timeout=240, env=env)
    assert result.returncode == 0, result.stderr + result.stdout
    assert "from the web" in result.stdout
    assert "asked for /centos7.iso" in result.stdout
    assert (tmp_path / "state/lodge/nvram/centos7.fd").exists()


def test_a_kernel_that_is_named_wins_over_firmware_that_is_not(lodge, tmp_path):
    """An image's; the definition begins with firmware only where there is nothing else."""
    file = tmp_path / "d.xml"
    file.write_text("<domain type='qemu'><memory unit='MiB'>256</memory></domain>")
    result = subprocess.run([lodge, "run", "-f", str(file), "default", "--", "grep", "-c",
                             "processor", "/proc/cpuinfo"], stdin=subprocess.DEVNULL,
                            capture_output=True, text=True, timeout=240)
    assert (result.returncode, result.stdout) == (0, "1\n"), result.stderr
