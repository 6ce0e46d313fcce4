"""Debian as a guest: the image that mmdebstrap makes, its boot, and what a seed does to it.

The image is built once into the machine's store of images, as the default one is; later runs find it
up to date. That takes some minutes, and each boot some seconds."""
import hashlib
import json
import os
import pty
import re
import select
import shutil
import signal
import subprocess
import time

import pytest

ENGINE = os.environ.get("LODGE_TEST_ENGINE", "soft")
TIMEOUT = int(os.environ.get("LODGE_TEST_TIMEOUT", "240"))
# The agent is part of the image: another build's would make another image.
pytestmark = [pytest.mark.plain_only, pytest.mark.torture]  # six to ten minutes

KEY = "ssh-ed25519 AAAAC3NzaC1lZDI1NTE5AAAAIKlYRzVPrCYuwTRHp5kl4UUbJ1JQfGCRYzhWWMB6vKxw me@here"


@pytest.fixture(scope="session")
def debian(bin_folder):
    """The path of lodge, with the Debian image made."""
    if not shutil.which("mmdebstrap"):
        pytest.skip("mmdebstrap is not installed")
    lodge = f"{bin_folder}/lodge"
    made = subprocess.run([lodge, "image", "build", "debian"], capture_output=True, text=True,
                          timeout=1500)
    if made.returncode and re.search("download failed|update failed|Could not resolve|subuid|"
                                     "unshare", made.stderr):
        pytest.skip(f"no Debian to be had: {made.stderr.splitlines()[-1]}")
    assert made.returncode == 0, made.stderr
    return lodge


@pytest.fixture
def run(debian):
    def run(script, *options, timeout=TIMEOUT, **more):
        return subprocess.run([debian, "run", "--engine", ENGINE, *map(str, options), "debian", "--",
                               "sh", "-c", script], stdin=subprocess.DEVNULL, capture_output=True,
                              text=True, timeout=timeout, **more)
    return run


def image_of(lodge):
    images = json.loads(subprocess.run([lodge, "image", "ls", "--format", "json"], check=True,
                                       capture_output=True).stdout)
    return next(image for image in images if image["name"] == "debian:bookworm")


def test_the_image_is_whole_and_built_once(debian):
    image = image_of(debian)
    for name in ("kernel", "initrd", "disk"):
        assert os.path.getsize(image[name]) > 1 << 20
    assert image["agent"] is True
    info = json.loads(subprocess.run([debian, "disk", "info", "--format", "json", image["disk"]],
                                     check=True, capture_output=True).stdout)
    assert info["type"] == "qcow2" and info["size"] == 10 << 30
    subprocess.run([debian, "disk", "check", image["disk"]], check=True, stdout=subprocess.DEVNULL)
    begin = time.monotonic()
    again = subprocess.run([debian, "image", "build", "debian:bookworm"], capture_output=True,
                           text=True)
    assert again.returncode == 0 and "is up to date" in again.stdout and again.stderr == ""
    assert time.monotonic() - begin < 2


def test_systemd_is_content(run, debian):
    """One boot, many looks."""
    result = run("""
        systemctl is-system-running --wait
        echo failed: $(systemctl list-units --failed --no-legend --plain | wc -l)
        echo jobs: $(systemctl list-jobs --no-legend | wc -l)
        echo host: $(hostname) $(cat /etc/hostname)
        echo release: $(uname -r)
        echo inside: $(ls /boot/vmlinuz-* /boot/initrd.img-* | wc -l)
        echo root: $(getent shadow root | cut -d: -f2)
        echo users: $(awk -F: '$3 >= 1000 && $3 < 60000' /etc/passwd | wc -l)
        echo id: $(cat /etc/machine-id)
        echo keys: $(ls /etc/ssh/ssh_host_*_key)
        echo units: $(systemctl is-active ssh lodge-agent systemd-networkd systemd-resolved \
                      serial-getty@ttyS0)
        echo seed: $(cat /run/cloud-init/enabled 2>/dev/null || echo none)
        echo root on: $(findmnt -n -o SOURCE,FSTYPE /)
        echo memory: $(grep MemTotal /proc/meminfo)
        systemd-analyze
        systemd-analyze blame --no-pager | head -n 12
    """)
    assert result.returncode == 0, result.stderr
    lines = dict(line.split(": ", 1) for line in result.stdout.splitlines() if ": " in line)
    print(result.stdout)
    assert result.stdout.splitlines()[0] == "running"
    assert lines["failed"] == "0" and lines["jobs"] == "0"
    assert lines["host"] == "debian debian"
    assert lines["release"] == image_of(debian)["release"]
    assert lines["inside"] == "2"
    assert lines["root"] in ("*", "!", "!*")
    assert lines["users"] == "0"
    assert re.fullmatch("[0-9a-f]{32}", lines["id"])
    assert lines["keys"] == "/etc/ssh/ssh_host_ed25519_key"
    assert lines["units"] == "active active active active active"
    assert lines["seed"] == "none"
    assert lines["root on"] == "/dev/vda ext4"
    assert 900_000 < int(lines["memory"].split()[1]) < 1 << 20


def test_each_run_begins_anew_and_the_status_passes_through(run, debian, tmp_path):
    disk = image_of(debian)["disk"]
    before = hashlib.sha256(open(disk, "rb").read()).digest()
    ids = set()
    for _ in range(2):
        result = run("test ! -e /etc/mark && echo >/etc/mark && sync && cat /etc/machine-id; exit 7",
                     env=dict(os.environ, TMPDIR=str(tmp_path)))
        assert result.returncode == 7, result.stderr
        ids.add(result.stdout)
        assert os.listdir(tmp_path) == []
    assert len(ids) == 2 and "" not in ids
    assert hashlib.sha256(open(disk, "rb").read()).digest() == before


def test_a_seed_makes_users_and_runs_what_it_says(run, tmp_path):
    (tmp_path / "key.pub").write_text(KEY + "\n")
    (tmp_path / "data").write_text("#cloud-config\nwrite_files:\n- path: /etc/seeded\n"
                                   "  content: from the seed\nruncmd:\n- echo ran >/run/ran\n")
    result = run("""
        cloud-init status --wait --long
        echo file: $(cat /etc/seeded)
        echo ran: $(cat /run/ran)
        echo key: $(cat /home/debian/.ssh/authorized_keys)
        echo sudo: $(runuser -u debian -- sudo -n id -un)
        echo locked: $(getent shadow debian | cut -d: -f2)
        echo host: $(hostname) $(cat /etc/hostname)
        echo lookup: $(getent hosts $(hostname) | wc -l)
        echo failed: $(systemctl list-units --failed --no-legend --plain | wc -l)
        echo state: $(systemctl is-system-running --wait)
    """, "--ssh-key", tmp_path / "key.pub", "--user-data", tmp_path / "data", "--hostname", "web1")
    print(result.stdout)
    assert result.returncode == 0, result.stderr
    lines = dict(line.split(": ", 1) for line in result.stdout.splitlines() if ": " in line)
    assert lines["status"] == "done"
    assert lines["file"] == "from the seed" and lines["ran"] == "ran"
    assert lines["key"] == KEY
    assert lines["sudo"] == "root" and lines["locked"] in ("!", "*", "!*")
    assert lines["host"] == "web1 web1" and lines["lookup"] == "1"
    assert lines["failed"] == "0" and lines["state"] == "running"


def talk(master, process, dialogue, seconds):
    """Waits for each pattern in turn, and types what stands beside it."""
    seen = b""
    for pattern, answer in dialogue:
        end = time.monotonic() + seconds
        while not re.search(pattern, seen):
            assert process.poll() is None and time.monotonic() < end, seen.decode(errors="replace")
            if select.select([master], [], [], 0.5)[0]:
                seen += os.read(master, 65536)
        if answer is not None:
            seen = b""
            os.write(master, answer)
    return seen


def test_a_terminal_gets_a_login_prompt(debian, tmp_path):
    (tmp_path / "data").write_text("#cloud-config\nchpasswd:\n  expire: false\n  users:\n"
                                   "  - {name: debian, password: lodge, type: text}\n"
                                   "password: lodge\nssh_pwauth: false\n")
    master, slave = pty.openpty()
    process = subprocess.Popen([debian, "run", "--engine", ENGINE, "--user-data",
                                tmp_path / "data", "--name", "desk", "debian"],
                               stdin=slave, stdout=slave, stderr=slave, start_new_session=True)
    os.close(slave)
    try:
        talk(master, process, [
            # cloud-init sets the password before the last of it says so on the console.
            (rb"Cloud-init v. \S+ finished", b"\r"),
            (rb"desk login: ", b"debian\r"),
            (rb"Password: ", b"lodge\r"),
            (rb"\$ ", b"echo $((6*7)) $(id -un)\r"),
            (rb"42 debian", b"sudo systemctl poweroff\r"),
        ], TIMEOUT)
        end = time.monotonic() + TIMEOUT
        while process.poll() is None and time.monotonic() < end:
            if select.select([master], [], [], 0.5)[0]:
                try:
                    os.read(master, 65536)
                except OSError:
                    break
        assert process.wait(timeout=60) == 0
    finally:
        process.kill()
        process.wait()
        os.close(master)


@pytest.mark.parametrize("words, status, text", [
    (["run", "--ssh-key", "{tmp}/private", "debian"], 125, "is a private key"),
    (["run", "--ssh-key", "{tmp}/data", "debian"], 125, "no public SSH key"),
    (["run", "--ssh-key", "{tmp}/none", "debian"], 125, "No such file"),
    (["run", "--user-data", "{tmp}/none", "debian"], 125, "No such file"),
    (["run", "--user-data", "{tmp}/data", "debian"], 125, "cloud-init would ignore"),
    (["run", "--hostname", "a b", "debian"], 125, "is no name for a guest"),
    (["run", "debian:nosuch", "--", "true"], 125, "lodge image build debian:nosuch"),
    (["run", "debian:a/b", "--", "true"], 125, "is no image name"),
    (["image", "build", "debian:"], 1, "is no name of a Debian suite"),
    (["image", "build", "debian:a/b"], 1, "is no name of a Debian suite"),
    (["image", "build", "default:x"], 2, "lodge can build"),
])
def test_mistakes_are_one_clear_line(debian, tmp_path, words, status, text):
    (tmp_path / "private").write_text("-----BEGIN OPENSSH PRIVATE KEY-----\nx\n")
    (tmp_path / "data").write_text("packages: [vim]\n")
    result = subprocess.run([debian, *(word.format(tmp=tmp_path) for word in words)],
                            stdin=subprocess.DEVNULL, capture_output=True, text=True, timeout=60)
    assert result.returncode == status
    assert result.stderr.count("\n") == 1 and text in result.stderr, result.stderr


def test_the_default_image_has_no_cloud_init(lodge, tmp_path):
    (tmp_path / "data").write_text("#cloud-config\n")
    result = subprocess.run([lodge, "run", "--user-data", tmp_path / "data", "--", "true"],
                            stdin=subprocess.DEVNULL, capture_output=True, text=True, timeout=60)
    assert result.returncode == 125 and "has no cloud-init" in result.stderr


def build_elsewhere(debian, tmp_path, suite, **environment):
    folder = tmp_path / "tmp"
    folder.mkdir(exist_ok=True)
    return subprocess.Popen([debian, "image", "build", f"debian:{suite}"], stdin=subprocess.DEVNULL,
                            stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True,
                            env=dict(os.environ, XDG_DATA_HOME=str(tmp_path / "data"),
                                     TMPDIR=str(folder), **environment))


def left_behind(tmp_path, suite):
    images = tmp_path / "data" / "lodge" / "images" / f"debian:{suite}"
    return sorted(os.listdir(images)) + sorted(os.listdir(tmp_path / "tmp"))


def test_a_suite_that_does_not_exist_is_refused(debian, tmp_path):
    process = build_elsewhere(debian, tmp_path, "nosuch")
    _, errors = process.communicate(timeout=300)
    assert process.returncode == 1
    assert errors.splitlines()[-1].startswith("lodge: cannot build image 'debian:nosuch': ")
    assert "E: " in errors.splitlines()[-1]
    assert left_behind(tmp_path, "nosuch") == [".lock"]


def test_an_interrupted_build_leaves_nothing(debian, tmp_path):
    process = build_elsewhere(debian, tmp_path, "bookworm")
    while "installing" not in process.stderr.readline():
        assert process.poll() is None
    end = time.monotonic() + 60
    while not os.listdir(tmp_path / "tmp") and time.monotonic() < end:
        time.sleep(0.1)
    time.sleep(1)
    process.send_signal(signal.SIGTERM)
    _, errors = process.communicate(timeout=120)
    assert process.returncode == 143, errors
    assert left_behind(tmp_path, "bookworm") == [".lock"]


def test_without_mmdebstrap_the_way_out_is_named(debian, tmp_path):
    programs = tmp_path / "bin"
    programs.mkdir()
    for name in ("apt-get", "apt-cache", "apt-config", "dpkg"):
        if shutil.which(name):
            (programs / name).symlink_to(shutil.which(name))
    process = build_elsewhere(debian, tmp_path, "bookworm", PATH=str(programs))
    _, errors = process.communicate(timeout=120)
    assert process.returncode == 1
    assert "install the package" in errors.splitlines()[-1]
