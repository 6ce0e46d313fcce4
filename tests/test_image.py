"""lodge image build: reproducible, cached, whole or absent. Downloads use the usual cache."""
import json
import os
import shutil
import signal
import subprocess
import time

import pytest

pytestmark = pytest.mark.plain_only


@pytest.fixture
def build(bin_folder, tmp_path):
    def build(name, wait=True, **environment):
        data = tmp_path / name
        process = subprocess.Popen(
            [f"{bin_folder}/lodge", "image", "build", "default"], stdin=subprocess.DEVNULL,
            stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True,
            env=dict(os.environ, XDG_DATA_HOME=str(data), **environment))
        process.folder = data / "lodge" / "images" / "default"
        if wait:
            process.out, process.err = process.communicate(timeout=600)
        return process
    return build


def about(folder):
    with open(folder / "current" / "image.json", encoding="utf-8") as file:
        return json.load(file)


def kept(folder):
    return sorted(name for name in os.listdir(folder) if name not in (".lock", "current"))


def test_equal_inputs_give_equal_images_and_are_built_once(build):
    one, two = build("one", SOURCE_DATE_EPOCH="0"), build("two", SOURCE_DATE_EPOCH="0")
    assert one.returncode == 0, one.err
    assert "is built" in one.out
    assert about(one.folder) == about(two.folder)
    assert about(one.folder)["created"] == "1970-01-01T00:00:00Z"
    before = os.stat(one.folder / "current" / "initrd.img")
    begin = time.monotonic()
    again = build("one")
    assert again.returncode == 0 and "is up to date" in again.out and again.err == ""
    assert time.monotonic() - begin < 2
    after = os.stat(one.folder / "current" / "initrd.img")
    assert (before.st_ino, before.st_mtime_ns) == (after.st_ino, after.st_mtime_ns)


def test_another_agent_makes_another_image_and_the_old_one_goes(build, bin_folder, tmp_path):
    first = build("one")
    old = about(first.folder)["hash"]
    agent = tmp_path / "agent"
    shutil.copy(f"{bin_folder}/lodge-agent", agent)
    with open(agent, "ab") as file:
        file.write(b"\0")
    second = build("one", LODGE_AGENT=str(agent))
    assert second.returncode == 0 and "is built" in second.out
    new = about(second.folder)["hash"]
    assert new != old
    assert kept(second.folder) == [new]


def test_a_damaged_image_is_made_anew(build):
    first = build("one")
    os.unlink(first.folder / "current" / "vmlinux")
    second = build("one")
    assert second.returncode == 0 and "is built" in second.out
    assert os.path.getsize(second.folder / "current" / "vmlinux") > 1 << 20


@pytest.mark.parametrize("after", ["unpacking the packages", "unpacking the kernel"])
def test_an_interrupted_build_leaves_nothing(build, after):
    process = build("one", wait=False)
    while after not in process.stderr.readline():
        assert process.poll() is None
    process.send_signal(signal.SIGTERM)
    _, errors = process.communicate(timeout=60)
    assert process.returncode == 143, errors
    assert errors.splitlines()[-1].startswith("lodge: cannot build image 'default': ")
    assert kept(process.folder) == []
    assert not os.path.lexists(process.folder / "current")


def test_a_killed_build_is_cleaned_up_by_the_next(build):
    process = build("one", wait=False)
    while "unpacking the kernel" not in process.stderr.readline():
        assert process.poll() is None
    process.kill()
    process.wait()
    second = build("one")
    assert second.returncode == 0, second.err
    assert kept(second.folder) == [about(second.folder)["hash"]]


def test_a_vmm_that_cannot_unpack_is_named(build, tmp_path):
    vmm = tmp_path / "vmm"
    vmm.write_text("#!/bin/sh\necho no such format >&2\nexit 125\n")
    vmm.chmod(0o755)
    process = build("one", LODGE_VMM=str(vmm))
    assert process.returncode == 1
    assert "no such format" in process.err.splitlines()[-1]
    assert kept(process.folder) == []
