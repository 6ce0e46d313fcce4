"""What Debian hands out, booted as it is: its installer from a CD, and a cloud image with its own
boot loader. Both are put together here from the packages that the real ones are made of, and laid out
as those are: shim and GRUB as Debian signs them, the installer's own kernel and initrd.

Nothing is drawn without a screen, so the kernel's command line names the serial port, as that of a
cloud image does.
"""
import os
import select
import subprocess
import time
import uuid

import pytest

import uefi_disk

pytestmark = [pytest.mark.torture, pytest.mark.plain_only]
INSTALLER = "/usr/lib/debian-installer/images/12/amd64/text/debian-installer/amd64"
SHIM = "/usr/lib/shim/shimx64.efi.signed"
GRUB = "/usr/lib/grub/x86_64-efi-signed"
ROOT = uuid.UUID(int=0x10d6e)


def need(*paths):
    for path in paths:
        if not os.path.exists(path):
            pytest.skip(f"{path} is not installed")


def watch(command, words, seconds):
    """The guest's output until all of the words are in it."""
    output, limit = "", time.monotonic() + seconds
    with subprocess.Popen(command, stdin=subprocess.DEVNULL, stdout=subprocess.PIPE,
                          stderr=subprocess.STDOUT) as guest:
        try:
            while not all(word in output for word in words):
                if not select.select([guest.stdout], [], [], limit - time.monotonic())[0]:
                    pytest.fail(f"{seconds} s, and not there yet:\n{output[-3000:]}")
                some = os.read(guest.stdout.fileno(), 65536)
                assert some, f"it ended:\n{output[-3000:]}"
                output += some.decode(errors="replace")
        finally:
            guest.terminate()
            guest.wait(timeout=60)
    return output


def test_the_installer_boots_from_its_cd(lodge, tmp_path):
    """As on Debian's CDs: El Torito with an EFI system partition, shim, GRUB for CDs, a menu."""
    need(INSTALLER, SHIM, f"{GRUB}/gcdx64.efi.signed")
    cd, disc = tmp_path / "cd", str(tmp_path / "cd.iso")
    for folder in (".disk", "boot/grub", "install.amd"):
        (cd / folder).mkdir(parents=True)
    (cd / ".disk/info").write_text("Debian GNU/Linux 12 as a test", encoding="ascii")
    os.symlink(f"{INSTALLER}/linux", cd / "install.amd/vmlinuz")
    os.symlink(f"{INSTALLER}/initrd.gz", cd / "install.amd/initrd.gz")
    (cd / "boot/grub/grub.cfg").write_text(
        "set timeout=1\nserial --unit=0\nterminal_output serial\nmenuentry 'Install' {\n"
        "    linux /install.amd/vmlinuz console=ttyS0 --- quiet\n"
        "    initrd /install.amd/initrd.gz\n}\n", encoding="ascii")
    uefi_disk.make_fat(f"{cd}/boot/grub/efi.img", {
        "EFI/BOOT/BOOTX64.EFI": SHIM, "EFI/BOOT/grubx64.efi": f"{GRUB}/gcdx64.efi.signed",
        "EFI/debian/grub.cfg": b"search --file --set=root /.disk/info\n"
                               b"set prefix=($root)/boot/grub\nsource $prefix/grub.cfg\n"}, 12 << 10)
    subprocess.run(["xorriso", "-as", "mkisofs", "-quiet", "-r", "-f", "-V", "Debian 12", "-o",
                    disc, "-e", "boot/grub/efi.img", "-no-emul-boot", str(cd)], check=True,
                   capture_output=True)
    subprocess.run([lodge, "disk", "create", str(tmp_path / "target.qcow2"), "4G"], check=True)
    output = watch([lodge, "run", "--engine", "soft", "--firmware", "--memory", "1G", "--disk",
                    str(tmp_path / "target.qcow2"), "--disk", f"{disc},ro"],
                   ["Select a language", "English"], 600)
    assert "Choose the language" in output


PACKAGES = ("linux-image-cloud-amd64,initramfs-tools,systemd-sysv,udev,dbus,cloud-init,"
            "openssh-server,sudo,ca-certificates,netbase,ifupdown,grub-efi-amd64-signed,shim-signed")


FINISH = """set -eu
cd "$1"
chroot . passwd -q -d root
mkdir -p boot/grub
cat >boot/grub/grub.cfg <<END
set timeout=1
serial --unit=0
terminal_output serial
search --no-floppy --fs-uuid --set=root {uuid}
menuentry Debian {{
    linux /vmlinuz root=UUID={uuid} ro console=ttyS0,115200
    initrd /initrd.img
}}
END
echo cloud >etc/hostname
echo "UUID={uuid} / ext4 defaults 0 1" >etc/fstab
: >etc/machine-id
rm -rf var/lib/apt/lists/*
exec unshare --mount sh -euc 'mount --bind . mnt
    exec mke2fs -q -F -t ext4 -U {uuid} -d mnt {root} 1500M'
"""


def cloud_image(path, tmp_path):
    """An EFI system partition and a root file system in a GPT, with Debian's boot loaders."""
    root = str(tmp_path / "root.ext4")
    script = tmp_path / "finish"
    script.write_text(FINISH.format(uuid=ROOT, root=root), encoding="ascii")
    made = subprocess.run(["mmdebstrap", "--quiet", "--variant=minbase", f"--include={PACKAGES}",
                           f"--customize-hook=sh {script} \"$1\"", "bookworm", "/dev/null"],
                          capture_output=True, text=True)
    if made.returncode:
        pytest.skip(f"Debian's packages cannot be reached: {made.stderr[-300:]}")
    uefi_disk.make(path, {
        "EFI/BOOT/BOOTX64.EFI": SHIM, "EFI/BOOT/grubx64.efi": f"{GRUB}/grubx64.efi.signed",
        "EFI/debian/grub.cfg": f"search.fs_uuid {ROOT} root\nset prefix=($root)/boot/grub\n"
                               "configfile $prefix/grub.cfg\n".encode()}, root=root)


def test_a_cloud_image_boots_with_its_own_boot_loader(lodge, tmp_path):
    """shim, GRUB, the kernel of its root file system, systemd, cloud-init with our seed."""
    need(SHIM, f"{GRUB}/grubx64.efi.signed")
    raw, image = str(tmp_path / "disk.img"), str(tmp_path / "disk.qcow2")
    cloud_image(raw, tmp_path)
    subprocess.run([lodge, "disk", "convert", raw, image], check=True)
    data = tmp_path / "user-data"
    data.write_text("#cloud-config\nruncmd:\n- [sh, -c, 'echo seed-was-$((6*7)) >/dev/ttyS0']\n",
                    encoding="ascii")
    output = watch([lodge, "run", "--engine", "soft", "--firmware", "--memory", "1G", "--disk",
                    image, "--user-data", str(data)], ["login:", "seed-was-42"], 600)
    assert "cloud login:" in output
