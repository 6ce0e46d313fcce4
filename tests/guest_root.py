"""A guest whose root holds programs of this machine, so that their results can be compared.

    root = Root()
    root.program("openssl")
    root.text("tmp/data", "...")
    machine = Machine(lodge, folder, root)
    print(machine.shell("openssl sha256 /tmp/data", "--cpus", "2").stdout)

The files lie in /r of an initial RAM disk, beside those of the default image; shell() runs a script
with that folder as its root.
"""
import json
import os
import re
import shutil
import stat
import subprocess

SHELL = ["sh", "bash", "[", "awk", "basename", "cat", "chmod", "cmp", "cp", "cut", "date", "diff",
         "dirname", "echo", "env", "expr", "false", "grep", "head", "ln", "ls", "mkdir", "mv",
         "nproc", "od", "printf", "pwd", "rm", "rmdir", "sed", "seq", "sha256sum", "sleep", "sort",
         "tail", "tar", "tee", "test", "timeout", "touch", "tr", "true", "uname", "uniq", "wc", "which",
         "xargs"]
FOLDERS = ["dev", "etc", "proc", "root", "run", "sys", "tmp", "usr", "usr/bin", "usr/lib",
           "usr/lib64", "usr/sbin", "var", "var/tmp"]
MERGED = {"bin": "usr/bin", "lib": "usr/lib", "lib64": "usr/lib64", "sbin": "usr/sbin"}
ENTER = """
mount -t proc proc /r/proc && mount -t sysfs sys /r/sys && mount -o bind /dev /r/dev || exit 99
mkdir -p /dev/shm && mount -t tmpfs shm /dev/shm
ip link set lo up 2>/dev/null || ifconfig lo 127.0.0.1 up
chmod 1777 /r/tmp /r/var/tmp
exec env -i PATH=/usr/sbin:/usr/bin HOME=/root TMPDIR=/tmp LC_ALL=C.UTF-8 "$@" \\
    chroot /r /bin/sh -c "$SCRIPT"
"""


class Root:
    def __init__(self):
        # By path, without a leading slash: mode, time, and bytes, or None for a file of ours.
        self.nodes = {}
        for folder in FOLDERS:
            self._put(folder, stat.S_IFDIR | 0o755)
        for name, target in MERGED.items():
            self._put(name, stat.S_IFLNK | 0o777, target.encode())
        self.text("etc/passwd", "root:x:0:0:root:/root:/bin/sh\n"
                                "nobody:x:65534:65534::/:/bin/false\n")
        self.text("etc/group", "root:x:0:\nnogroup:x:65534:\n")
        self.text("etc/hosts", "127.0.0.1 localhost\n")
        self.program(*SHELL)
        self.package("libgcc-s1")  # pthread_exit() loads it
        self.tree("/usr/lib/locale/C.utf8")

    def _put(self, name, mode, data=b"", time=0):
        self.nodes[name] = (mode, int(time), data)

    def text(self, path, text, mode=0o644):
        self._folders(path)
        self._put(path.lstrip("/"), stat.S_IFREG | mode,
                  text if isinstance(text, bytes) else text.encode())

    def _folders(self, path):
        parent = os.path.dirname(path.strip("/"))
        while parent and parent not in self.nodes:
            self._put(parent, stat.S_IFDIR | 0o755)
            parent = os.path.dirname(parent)

    def add(self, path):
        """One file of this machine where it is, and what it links to."""
        path = f"{os.path.realpath(os.path.dirname(path))}/{os.path.basename(path)}"
        name = path.lstrip("/")
        if name in self.nodes:
            return
        about = os.lstat(path)
        self._folders(name)
        if stat.S_ISLNK(about.st_mode):
            target = os.readlink(path)
            self._put(name, about.st_mode, target.encode())
            there = os.path.join(os.path.dirname(path), target)
            if os.path.lexists(there):
                self.add(there)
        elif stat.S_ISREG(about.st_mode):
            self._put(name, about.st_mode, None, about.st_mtime)  # Python's caches look at it
        elif stat.S_ISDIR(about.st_mode):
            self._put(name, about.st_mode)

    def tree(self, top, skip=r"(?!)"):
        found = []
        for folder, _, files in os.walk(top):
            if not re.search(skip, folder):
                found += [f"{folder}/{name}" for name in files]
        for path in found:
            self.add(path)
        self._libraries(path for path in found if ".so" in path or os.access(path, os.X_OK))

    def package(self, *names):
        """The files of Debian packages that are installed here, but what is only read by people."""
        found = []
        for name in names:
            listed = subprocess.run(["dpkg", "-L", name], capture_output=True, text=True,
                                    check=True)
            found += [path for path in listed.stdout.splitlines()
                      if os.path.lexists(path) and not os.path.isdir(path)
                      and not re.match(r"/usr/share/(doc|man|locale|info|lintian|bug)/", path)]
        for path in found:
            self.add(path)
        self._libraries(path for path in found if os.access(path, os.X_OK) or ".so" in path)

    def program(self, *names):
        paths = [shutil.which(name) for name in names]
        assert all(paths), f"missing: {[n for n, p in zip(names, paths) if not p]}"
        for path in paths:
            self.add(path)
        self._libraries(paths)

    def _libraries(self, paths):
        programs = []
        for path in map(os.path.realpath, paths):
            if os.path.isfile(path):
                with open(path, "rb") as file:
                    if file.read(4) == b"\x7fELF":
                        programs.append(path)
        for begin in range(0, len(programs), 100):
            listed = subprocess.run(["ldd", *programs[begin:begin + 100]], capture_output=True,
                                    text=True)
            for library in set(re.findall(r"(?:=> |^\s+)(/\S+) \(0x", listed.stdout, re.MULTILINE)):
                self.add(library)

    def write(self, path, initrd):
        """The cpio archive, after the image's own."""
        with open(path, "wb") as out:
            with open(initrd, "rb") as base:
                shutil.copyfileobj(base, out)
            out.write(b"\0" * (-out.tell() % 512))
            number = 1
            nodes = [("r", (stat.S_IFDIR | 0o755, 0, b""))]
            nodes += [(f"r/{name}", self.nodes[name]) for name in sorted(self.nodes)]
            for name, (mode, time, data) in [*nodes, ("TRAILER!!!", (0, 0, b""))]:
                if data is None:
                    with open(f"/{name[2:]}", "rb") as file:
                        data = file.read()
                encoded = name.encode() + b"\0"
                fields = (number, mode, 0, 0, 1, time, len(data), 0, 0, 0, 0, len(encoded), 0)
                header = b"070701" + b"".join(b"%08X" % field for field in fields) + encoded
                out.write(header + b"\0" * (-len(header) % 4) + data + b"\0" * (-len(data) % 4))
                number += 1


class Machine:
    """The default image's kernel, with a root of ours beside its own."""

    def __init__(self, lodge, folder, root):
        rows = json.loads(subprocess.run([lodge, "image", "ls", "--format", "json"],
                                         capture_output=True, check=True).stdout)
        row = next(row for row in rows if row["name"] == "default")
        self.lodge, self.append = lodge, row["append"]
        self.kernel, self.initrd = f"{folder}/vmlinux", f"{folder}/initrd.img"
        shutil.copyfile(row["kernel"], self.kernel)  # whoever builds the image anew takes it away
        root.write(self.initrd, row["initrd"])

    def shell(self, script, *options, environment=(), timeout=3600):
        """Runs a script in /r; its output and status."""
        return subprocess.run(
            [self.lodge, "run", "--engine", "soft", "--kernel", self.kernel,
             "--initrd", self.initrd, "--append", self.append, "--env", f"SCRIPT={script}",
             *options, "--", "sh", "-c", ENTER, "-", *environment],
            stdin=subprocess.DEVNULL, capture_output=True, text=True, errors="replace",
            timeout=timeout)

