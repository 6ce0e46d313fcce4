"""Memory that a guest does not need goes back to the host, and comes again."""
import time

import pytest

from steering import Steered

MIB = 1 << 20
WAIT_FOR_DRIVER = "until [ -d /sys/bus/virtio/drivers/virtio_balloon ]; do sleep 0.1; done; "


@pytest.fixture
def steered(lodge, tmp_path):
    def steered(script, *options):
        return Steered(lodge, tmp_path, WAIT_FOR_DRIVER + script, *options)
    return steered


def has_driver(guest):
    return lambda: guest.ask(memory=True)["driver"]


def test_what_the_guest_frees_comes_back_by_itself(steered):
    with steered("echo up; read x; dd if=/dev/urandom of=/tmp/a bs=1M count=150 2>/dev/null; "
                 "sha256sum /tmp/a; read x; rm /tmp/a; echo freed; read x; "
                 "dd if=/dev/zero of=/tmp/b bs=1M count=150 2>/dev/null; tr -d '\\0' </tmp/b | wc -c; "
                 "read x") as guest:
        assert guest.line() == "up"
        guest.until(has_driver(guest))
        before = guest.resident()
        guest.say()
        assert guest.line().endswith("/tmp/a")
        full = guest.resident()
        assert full > before + 140 * MIB
        guest.say()
        assert guest.line() == "freed"
        # Linux reports free blocks every two seconds.
        guest.until(lambda: guest.resident() < full - 120 * MIB)
        assert guest.ask(memory=True)["reported"] > 120 * MIB
        guest.say()
        assert guest.line() == "0" # it can use them again, and they hold nothing
        assert guest.resident() > before + 140 * MIB


def test_a_balloon_takes_what_the_guest_only_caches(steered, tmp_path):
    with open(tmp_path / "disk", "wb") as file:
        file.truncate(250 * MIB)
    with steered("echo up; read x; exec 3</dev/vda; cat <&3 >/dev/null; echo read; read x; echo alive; read x; "
                 "dd if=/dev/urandom of=/tmp/a bs=1M count=200 2>/dev/null && echo again",
                 "--disk", f"{tmp_path}/disk,ro") as guest:
        assert guest.line() == "up"
        guest.until(has_driver(guest))
        guest.say()
        assert guest.line() == "read"
        full = guest.resident()
        memory = guest.ask(memory=True)["guest"]
        assert memory["caches"] > 240 * MIB
        assert guest.ask(balloon="380M")["target"] == 380 * MIB
        guest.until(lambda: guest.ask(memory=True)["actual"] == 380 * MIB)
        after = guest.ask(memory=True)["guest"]
        assert after["caches"] < memory["caches"] - 100 * MIB
        guest.until(lambda: guest.resident() < full - 100 * MIB)
        guest.say()
        assert guest.line() == "alive"
        # The guest has its memory again when the host says so.
        assert guest.ask(balloon=0)["target"] == 0
        guest.until(lambda: guest.ask(memory=True)["actual"] == 0)
        assert guest.ask(memory=True)["guest"]["free"] > after["free"] + 300 * MIB
        guest.say()
        assert guest.line() == "again"


def test_a_guest_in_need_takes_its_memory_back(steered):
    with steered("echo up; read x; dd if=/dev/urandom of=/tmp/a bs=1M count=200 2>/dev/null && "
                 "stat -c %s /tmp/a; read x") as guest:
        assert guest.line() == "up"
        guest.until(has_driver(guest))
        guest.ask(balloon="380M")
        guest.until(lambda: guest.ask(memory=True)["actual"] == 380 * MIB)
        guest.say()
        assert guest.line() == str(200 * MIB)
        assert guest.ask(memory=True)["actual"] < 300 * MIB
        guest.say()
        assert guest.process.wait(30) == 0


def test_a_paused_guest_gives_no_fresh_statistics(steered):
    with steered("echo up; read x") as guest:
        assert guest.line() == "up"
        guest.until(has_driver(guest))
        guest.until(lambda: guest.ask(memory=True)["age_ms"] < 1000)
        assert guest.ask(pause=True) is True
        begin = time.monotonic()
        answer = guest.ask(memory=True)
        assert 0.9 < time.monotonic() - begin < 10
        assert answer["age_ms"] >= 900 and answer["guest"]["total"] > 400 * MIB
        assert guest.ask(resume=True) is True
        guest.until(lambda: guest.ask(memory=True)["age_ms"] < 900)


def test_without_a_balloon_there_is_none(lodge, tmp_path):
    with Steered(lodge, tmp_path, "echo up; read x; ls /sys/bus/virtio/devices | wc -l",
                 "--balloon", "off") as guest:
        assert guest.line() == "up"
        assert guest.ask(balloon="1M") == {"error": "the guest has no balloon"}
        assert guest.ask(memory=True) == {"error": "the guest has no balloon"}
        guest.say()
        assert guest.line() == "2" # console and random numbers
