"""Disks that bring a boot loader: a GPT with one EFI system partition, made with mtools."""
import binascii
import os
import struct
import subprocess
import uuid

SECTOR = 512
FIRST = 2048  # of the partition
ESP = uuid.UUID("c12a7328-f81f-11d2-ba4b-00a0c93ec93b")
LINUX = uuid.UUID("0fc63daf-8483-4772-8e79-3d69d8477de4")


def header(at, other, entries_at, entries, sectors):
    """UEFI 2.10, 5.3.2."""
    disk = uuid.UUID(int=1)

    def pack(crc):
        return struct.pack("<8sIIIIQQQQ16sQIII", b"EFI PART", 0x10000, 92, crc, 0, at, other, 34,
                           sectors - 34, disk.bytes_le, entries_at, 128, 128,
                           binascii.crc32(entries))
    return pack(binascii.crc32(pack(0))).ljust(SECTOR, b"\0")


def entry(kind, number, first, last, name):
    return struct.pack("<16s16sQQQ72s", kind.bytes_le, uuid.UUID(int=number).bytes_le, first, last,
                       0, name.encode("utf-16-le"))


def partition(path, megabytes, root=None):
    """An empty disk with a partition table; behind its ESP a partition with what `root` holds."""
    more = os.path.getsize(root) // SECTOR if root else 0
    sectors = (megabytes << 11) + more
    last = sectors - 34 - more
    entries = entry(ESP, 2, FIRST, last, "ESP")
    if root:
        entries += entry(LINUX, 3, last + 1, last + more, "root")
    entries = entries.ljust(128 * 128, b"\0")
    protective = bytes(446) + struct.pack("<B3sB3sII", 0, b"\0\2\0", 0xee, b"\xff\xff\xff", 1,
                                          sectors - 1)
    with open(path, "wb") as disk:
        disk.truncate(sectors * SECTOR)
        disk.write(protective.ljust(510, b"\0") + b"\x55\xaa")
        disk.write(header(1, sectors - 1, 2, entries, sectors) + entries)
        disk.seek((sectors - 33) * SECTOR)
        disk.write(entries + header(sectors - 1, 1, sectors - 33, entries, sectors))
    if root:
        put(path, root, last + 1)
    return (last - FIRST + 1) // 2  # KiB


def put(path, image, first):
    subprocess.run(["dd", f"if={image}", f"of={path}", "bs=64K", "conv=notrunc,sparse",
                    "oflag=seek_bytes", f"seek={first * SECTOR}", "status=none"], check=True)


def make(path, files, megabytes=64, root=None):
    """`files`: names in the ESP and what they hold, as paths here or as bytes."""
    kibibytes = partition(path, megabytes, root)
    make_fat(f"{path}.esp", files, kibibytes)
    put(path, f"{path}.esp", FIRST)
    os.unlink(f"{path}.esp")


def make_fat(path, files, kibibytes):
    """The file system alone."""
    with open(path, "wb") as disk:
        disk.truncate(kibibytes << 10)
    subprocess.run(["/usr/sbin/mkfs.vfat", path], check=True, capture_output=True)
    fill(path, files)


def fill(image, files):
    env = {**os.environ, "MTOOLSRC": "/dev/null", "MTOOLS_SKIP_CHECK": "1"}
    folders = {f"::{part[0]}" for name in files if (part := name.rpartition("/"))[1]}
    subprocess.run(["mmd", "-i", image, "::EFI", *sorted(folders)], check=True, env=env)
    for name, source in files.items():
        text = source if isinstance(source, bytes) else None
        subprocess.run(["mcopy", "-i", image, "-" if text is not None else source, f"::{name}"],
                       input=text, check=True, env=env)


def grub(path, modules, config):
    """GRUB as one EFI program, with its configuration inside."""
    loaded = f"{path}.cfg"
    with open(loaded, "w", encoding="ascii") as file:
        file.write(config)
    subprocess.run(["grub-mkimage", "-O", "x86_64-efi", "-p", "/EFI/BOOT", "-o", path,
                    "-c", loaded, *modules], check=True)
