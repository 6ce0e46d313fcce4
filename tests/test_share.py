"""Shared folders, looked at from both sides."""
import contextlib
import hashlib
import os
import random
import shutil
import signal
import stat
import subprocess
import tempfile
import time

import pytest

ENGINE = os.environ.get("LODGE_TEST_ENGINE", "soft")
TIMEOUT = int(os.environ.get("LODGE_TEST_TIMEOUT", "240"))
MIB = 1 << 20
AS_ROOT = pytest.mark.skipif(os.getuid() != 0, reason="only root gives files to others")


@pytest.fixture
def folder(tmp_path):
    path = tmp_path / "shared"
    path.mkdir()
    return path


@pytest.fixture
def run(lodge):
    def run(script, *shares, options=(), before=(), **how):
        arguments = [word for share in shares for word in ("--share", str(share))]
        return subprocess.run([*before, lodge, "run", "--engine", ENGINE, *arguments, *options, "--",
                               "sh", "-c", script], stdin=subprocess.DEVNULL, capture_output=True,
                              text=True, timeout=TIMEOUT, **how)
    return run


@contextlib.contextmanager
def guest_of(lodge, script, *shares, **how):
    """One that runs, and does not when the block is left, however that is."""
    arguments = [word for share in shares for word in ("--share", str(share))]
    with subprocess.Popen([lodge, "run", "--engine", ENGINE, *arguments, "--", "sh", "-c", script],
                          stdout=subprocess.PIPE, text=True, **how) as guest:
        try:
            yield guest
        finally:
            guest.kill()


def children(pid, name):
    """Processes of that name whose parent is `pid`."""
    found = []
    for entry in filter(str.isdigit, os.listdir("/proc")):
        try:
            with open(f"/proc/{entry}/stat", encoding="utf-8") as file:
                text = file.read()
        except OSError:
            continue
        inside, after = text[text.index("(") + 1:text.rindex(")")], text[text.rindex(")") + 2:]
        if inside == name and int(after.split()[1]) == pid:
            found.append(int(entry))
    return found


def test_both_sides_see_what_the_other_does(run, folder):
    (folder / "from-host").write_text("hello guest\n")
    result = run("cat /mnt/share/from-host && echo hello host >/mnt/share/from-guest && "
                 "mkdir -p /mnt/share/a/b && mv /mnt/share/from-host /mnt/share/a/b/moved && "
                 "ln /mnt/share/from-guest /mnt/share/twice && chmod 640 /mnt/share/from-guest && "
                 "touch -d @1000000000 /mnt/share/a && rmdir /mnt/share/a && exit 9; "
                 "stat -c '%h %s' /mnt/share/twice; find /mnt/share | sort", folder)
    assert result.stderr == "rmdir: '/mnt/share/a': Directory not empty\n"
    assert result.stdout == ("hello guest\n2 11\n/mnt/share\n/mnt/share/a\n/mnt/share/a/b\n"
                             "/mnt/share/a/b/moved\n/mnt/share/from-guest\n/mnt/share/twice\n")
    assert (folder / "from-guest").read_text() == "hello host\n"
    assert (folder / "a/b/moved").read_text() == "hello guest\n"
    status = (folder / "twice").stat()
    assert (status.st_nlink, stat.S_IMODE(status.st_mode)) == (2, 0o640)
    assert (folder / "a").stat().st_mtime == 1000000000


def test_links_lead_through_the_guests_own_tree(run, folder, tmp_path):
    (tmp_path / "secret").write_text("secret\n")
    (folder / "absolute").symlink_to(tmp_path / "secret")
    (folder / "relative").symlink_to("../secret")
    (folder / "inside").symlink_to("file")
    (folder / "file").write_text("file\n")
    (folder / "way").symlink_to("..")
    result = run("cd /mnt/share; cat absolute; cat relative; cat inside; ls way; readlink relative; "
                 "ln -s /etc/hostname own; echo x >>absolute; ls -a ..", folder)
    assert "secret\n" not in result.stdout.replace("../secret", "")
    assert result.stdout == "file\nshare\n../secret\n.\n..\nshare\n"
    assert result.stderr.splitlines() == [
        "cat: can't open 'absolute': No such file or directory",
        "cat: can't open 'relative': No such file or directory",
        "sh: can't create absolute: nonexistent directory"]
    assert (tmp_path / "secret").read_text() == "secret\n"
    assert os.readlink(folder / "own") == "/etc/hostname"


def test_a_read_only_share_stays_as_it_is(run, folder):
    (folder / "a").write_text("a\n")
    result = run("cd /mnt/share; cat a; echo b >b; echo b >>a; rm a; mkdir d; chmod 777 a; mv a c; "
                 "mount -o remount,rw /mnt/share && echo b >b; rm a; echo $?", f"{folder},ro")
    assert result.stdout == "a\n1\n"
    assert result.stderr.count("Read-only file system") == 8, result.stderr
    assert (folder / "a").read_text() == "a\n" and os.listdir(folder) == ["a"]


def test_large_files_arrive_whole(run, folder):
    data = random.Random(5).randbytes(48 * MIB + 12345)
    (folder / "large").write_bytes(data)
    result = run("cd /mnt/share; sha256sum <large; cp large copy; dd if=large of=part bs=1000 skip=777 "
                 "count=5000 conv=fsync 2>/dev/null; echo -n tail >>copy; truncate -s 100000000 part",
                 folder)
    assert result.stdout.split()[0] == hashlib.sha256(data).hexdigest(), result.stderr
    assert (folder / "copy").read_bytes() == data + b"tail"
    part = (folder / "part").read_bytes()
    assert part[:5000000] == data[777000:5777000]
    assert len(part) == 100000000 and not any(part[5000000:])


def test_many_files(run, folder):
    for i in range(3000):
        (folder / f"host-{i:04}").write_text(str(i))
    result = run("cd /mnt/share; ls | wc -l; cat host-* | wc -c; ls -l | grep -c host; "
                 "i=0; while [ $i -lt 500 ]; do echo $i >guest-$i; i=$((i+1)); done; "
                 "rm host-1* host-2*; ls | wc -l", folder)
    digits = sum(len(str(i)) for i in range(3000))
    assert result.stdout.split() == ["3000", str(digits), "3000", "1500"], result.stderr
    assert len(os.listdir(folder)) == 1500
    assert (folder / "guest-499").read_text() == "499\n"


def test_programs_run_from_it(run, folder):
    result = run("cp /bin/busybox /mnt/share && /mnt/share/busybox echo it runs; "
                 "printf '#!/bin/sh\\necho a script\\n' >/mnt/share/script; "
                 "chmod +x /mnt/share/script; /mnt/share/script", folder)
    assert result.stdout == "it runs\na script\n", result.stderr


def test_only_files_folders_and_links_are_made(run, folder):
    os.mkfifo(folder / "fifo")
    result = run("cd /mnt/share; mknod zero c 1 5; mkfifo made; mknod disk b 254 0; ls; "
                 "cp /bin/busybox tool; chmod 6755 tool; stat -c %a tool", folder)
    assert result.stdout == "fifo\n755\n"
    assert result.stderr.count("Operation not permitted") == 3
    assert stat.S_IMODE((folder / "tool").stat().st_mode) == 0o755


@AS_ROOT
def test_files_belong_to_the_guests_users(run, folder):
    folder.chmod(0o777)
    (folder / "mine").write_text("x")
    (folder / "mine").chmod(0o600)
    result = run("cd /mnt/share; touch root; chown 1234:2345 mine; "
                 "su -s /bin/sh nobody -c 'touch user; mkdir d; cat mine; touch d/x'; "
                 "stat -c '%u %g' root user d mine", folder)
    assert result.stdout == "0 0\n65534 65534\n65534 65534\n1234 2345\n"
    assert "mine': Permission denied" in result.stderr
    for name, owner in (("root", 0), ("user", 65534), ("d/x", 65534), ("mine", 1234)):
        assert (folder / name).stat().st_uid == owner, name


@AS_ROOT
def test_an_ordinary_user_shares_what_is_his(run, lodge):
    """Without any privilege: what the guest's root makes is the user's, and what is not his stays."""
    top = tempfile.mkdtemp(prefix="lodge-share-", dir="/tmp")
    try:
        os.chmod(top, 0o755)
        home = f"{top}/home"
        os.mkdir(home)
        with open(f"{home}/roots", "w", encoding="utf-8") as file:
            file.write("x")
        os.chmod(f"{home}/roots", 0o600)
        os.chown(home, 65534, 65534)
        before = ["setpriv", "--reuid=65534", "--regid=65534", "--clear-groups"]
        if subprocess.run([*before, lodge, "help"], capture_output=True).returncode:
            pytest.skip("no other user can execute lodge here")
        result = run("cd /mnt/share; echo a >a; chown 5 a; cat roots; id -u", home, before=before)
        if "image" in result.stderr and result.returncode == 125:
            pytest.skip("no other user can read the image here")
        assert result.stdout == "0\n", result.stderr
        assert "roots': Permission denied" in result.stderr
        assert "a: Operation not permitted" in result.stderr
        assert os.stat(f"{home}/a").st_uid == 65534
    finally:
        shutil.rmtree(top)


def test_the_host_changes_what_the_guest_looks_at(lodge, folder):
    (folder / "word").write_text("one\n")
    with guest_of(lodge, "cd /mnt/share; cat word; until grep -q two word; do sleep 0.1; done; "
                  "until [ -e new ]; do sleep 0.1; done; cat new; "
                  "while [ -e gone ]; do sleep 0.1; done; ls", folder,
                  stdin=subprocess.DEVNULL) as guest:
        assert guest.stdout.readline() == "one\n"
        (folder / "gone").touch()
        (folder / "word").write_text("two\n")
        (folder / "fresh").write_text("new\n")
        (folder / "fresh").rename(folder / "new")
        assert guest.stdout.readline() == "new\n"
        (folder / "gone").unlink()
        assert guest.stdout.read() == "new\nword\n"
        assert guest.wait(TIMEOUT) == 0


def test_servers_are_confined_and_end_with_the_guest(lodge, folder):
    with guest_of(lodge, "echo up; sleep 1000", f"{folder},ro", folder,
                  stdin=subprocess.DEVNULL) as guest:
        assert guest.stdout.readline() == "up\n"
        servers = children(guest.pid, "lodge-share")
        assert len(servers) == 2
        for pid in servers:
            with open(f"/proc/{pid}/status", encoding="utf-8") as file:
                status = dict(line.split(":\t", 1) for line in file if ":\t" in line)
            with open(f"/proc/{pid}/cmdline", encoding="utf-8") as file:
                read_only = "--read-only" in file.read()
            assert (status["Seccomp"], status["NoNewPrivs"]) == ("2\n", "1\n")
            allowed = 1 << 2 if read_only else 1 << 0 | 1 << 1 | 1 << 3
            assert int(status["CapEff"], 16) & ~allowed == 0
            assert int(status["CapPrm"], 16) & ~allowed == 0
        guest.terminate()
        guest.wait(TIMEOUT)
    deadline = time.monotonic() + 20
    while any(os.path.exists(f"/proc/{pid}") for pid in servers):
        assert time.monotonic() < deadline
        time.sleep(0.05)


def test_without_its_server_a_share_gives_errors_and_the_guest_lives(lodge, folder):
    (folder / "a").write_text("a\n")
    with guest_of(lodge, "cd /mnt/share; cat a; read word; sleep 2; cat a; ls; echo b >b; echo alive",
                  folder, stdin=subprocess.PIPE, stderr=subprocess.PIPE) as guest:
        assert guest.stdout.readline() == "a\n"
        servers = children(guest.pid, "lodge-share")
        assert len(servers) == 1
        os.kill(servers[0], signal.SIGKILL)
        out, err = guest.communicate("go\n", timeout=TIMEOUT)
    assert out == "alive\n", (out, err)
    assert err.count("Input/output error") + err.count("I/O error") >= 3, err


def test_definitions_name_shares(lodge, folder, tmp_path):
    (folder / "a").write_text("a\n")
    other = tmp_path / "other,folder"
    other.mkdir()
    doubled = str(other).replace(",", ",,")
    (tmp_path / "vm.conf").write_text(f'share = "{folder},ro"\nshare = "{doubled},at=/srv/o"\n')
    (tmp_path / "vm.json").write_text('{"shares": [{"path": "%s", "tag": "x", "read_only": true}, '
                                      '{"path": "%s", "at": "/srv/o"}]}' % (folder, other))
    for file, wanted in (("vm.conf", ["share /mnt/share ro", "share2 /srv/o rw"]),
                         ("vm.json", ["x /mnt/x ro", "share /srv/o rw"])):
        result = subprocess.run([lodge, "run", "--engine", ENGINE, "--file", tmp_path / file, "--",
                                 "sh", "-c", f"echo {file} >/srv/o/{file}; "
                                 "awk '$3 == \"virtiofs\" {print $1, $2, substr($4, 1, 2)}' "
                                 "/proc/mounts"], stdin=subprocess.DEVNULL, capture_output=True,
                                text=True, timeout=TIMEOUT)
        assert result.stdout.splitlines() == wanted, result
        assert (other / file).read_text() == f"{file}\n"


@pytest.mark.parametrize("share, message", [
    ("/nonexistent/folder", "share '/nonexistent/folder': No such file or directory"),
    ("/etc/passwd", "share '/etc/passwd' is no folder"),
    ("/tmp,rw", "'rw' says nothing of a share; there are tag=, at= and ro"),
    ("/tmp,tag=a b", "a share's tag has 1 to 36 letters"),
    ("/tmp,at=mnt", "where a share is mounted is a path from /"),
    (",ro", "a share wants a path"),
])
def test_what_is_no_share_is_refused(run, share, message):
    result = run("true", share)
    assert (result.returncode, result.stdout) == (125, "")
    assert result.stderr.startswith(f"lodge: {message}"), result.stderr


def test_a_server_that_cannot_serve_stops_the_run(run, folder, tmp_path):
    fake = tmp_path / "fake"
    fake.write_text("#!/bin/sh\necho lodge-share: no >&2\nexit 1\n")
    fake.chmod(0o755)
    result = run("true", folder, env=dict(os.environ, LODGE_SHARE=str(fake)))
    assert result.returncode == 125
    assert result.stderr == (f"lodge-share: no\nlodge: the server of share '{folder}' has ended\n")


def test_lodge_share_says_how_it_is_started(bin_folder):
    for arguments in ([], ["--folder-fd", "x", "--socket-fd", "1"], ["--folder-fd", "1"],
                      ["--folder-fd"], ["--help"]):
        result = subprocess.run([f"{bin_folder}/lodge-share", *arguments], capture_output=True,
                                text=True)
        assert result.returncode == 125
        assert result.stderr.startswith("usage: lodge-share")


def test_a_message_that_is_none_ends_the_server(bin_folder, folder):
    """What the VMM sends is not believed either."""
    import socket
    import struct
    for message in (struct.pack("<IIQ", 39, 26, 1), struct.pack("<IIQ", 1 << 30, 26, 1), b"\0" * 8):
        ours, theirs = socket.socketpair()
        at = os.open(folder, os.O_PATH | os.O_DIRECTORY)
        with ours, subprocess.Popen([f"{bin_folder}/lodge-share", "--folder-fd", str(at),
                                     "--socket-fd", str(theirs.fileno())], pass_fds=[at, theirs.fileno()],
                                    stderr=subprocess.PIPE, text=True) as server:
            theirs.close()
            os.close(at)
            assert ours.recv(1) == b"R"
            ours.sendall(message)
            assert server.wait(20) == 125
            assert server.stderr.read() == "lodge-share: what came is no request\n"


def test_without_shares_their_driver_is_not_loaded(run, folder):
    script = "cut -d' ' -f1 /proc/modules"
    without, shared = run(script).stdout.split(), run(script, folder).stdout.split()
    assert "virtiofs" not in without and "fuse" not in without
    assert "virtiofs" in shared
