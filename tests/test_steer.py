"""The control socket of `lodge run`, and what a guest sees of what comes through it."""
import json
import os
import socket
import stat
import subprocess
import time

import pytest

from steering import ENGINE, PATIENCE, Steered


@pytest.fixture
def guest(lodge, tmp_path):
    with Steered(lodge, tmp_path, "echo up; read x; echo $x") as guest:
        assert guest.line() == "up"
        yield guest


def test_every_line_gets_one_line_in_order(guest):
    lines = ['{"stats": true}', '{"nonsense": 1}', "", '{"memory": true}', "[1]", "{", '{"pause": 1}',
             '{"a": 1, "b": 2}', '{"reset": true}', '{"balloon": -1}', '{"stats": true}',
             '{"nics": true}', '{"link": {"nic": 0, "up": false}}', '{"link": true}']
    guest.file.write("\n".join(lines) + "\n")
    guest.file.flush()
    answers = [json.loads(guest.file.readline()) for line in lines if line]
    assert answers[0]["stats"]["resident"] > answers[0]["stats"]["guest_resident"] > 1 << 20
    assert answers[1]["error"].startswith("'nonsense' is no verb; there are balloon, memory, ")
    assert "target" in answers[2]["memory"]
    for answer, message in zip(answers[3:9], [
            "a request is an object with one verb", "this is no JSON", "pause: takes true",
            "a request is an object with one verb", "reset: only with --on-reset reboot",
            "balloon: takes bytes, or a size like"]):
        assert answer["error"].startswith(message), answer
    assert "stats" in answers[9]
    assert answers[10] == {"nics": []}
    assert answers[11]["error"].startswith("link: the guest has 0 network cards")
    assert answers[12]["error"].startswith("link: takes ")
    guest.say("still here")
    assert guest.line() == "still here"
    assert guest.process.wait(PATIENCE) == 0
    assert not os.path.exists(guest.path)


def test_clients_do_not_disturb_each_other(guest):
    others = [guest.connect() for _ in range(7)]
    for other in others:
        other.send(b'{"stats": true}\n{"memory"')
    others[0].close() # with an answer on its way
    others[1].send(b"x" * 50000 + b"\n{\"memory\"")
    for i, other in enumerate(others[1:]):
        other.send(b": true}\n")
        file = other.makefile()
        assert "stats" in json.loads(file.readline())
        if i == 0:
            assert json.loads(file.readline()) == {"error": "this line is too long"}
        assert "memory" in json.loads(file.readline())
        file.close()
    assert guest.ask(stats=True)
    for other in others:
        other.close()
    # Who never reads is dropped, and nobody else waits.
    rude = guest.connect()
    rude.setblocking(False)
    try:
        for _ in range(20000):
            rude.send(b'{"nonsense": true}\n')
    except (BlockingIOError, ConnectionError):
        pass
    assert guest.ask(stats=True)
    rude.close()
    guest.say("fine")
    assert guest.line() == "fine"


def test_the_socket_is_the_owners_alone(guest):
    status = os.stat(guest.path)
    assert stat.S_ISSOCK(status.st_mode) and stat.S_IMODE(status.st_mode) == 0o600


def run(lodge, path, *options):
    return subprocess.run([lodge, "run", "--engine", ENGINE, "--control", path, *options, "--", "true"],
                          stdin=subprocess.DEVNULL, capture_output=True, text=True, timeout=PATIENCE)


def test_a_socket_in_use_and_other_files_are_left_alone(guest, lodge, tmp_path):
    result = run(lodge, guest.path)
    assert result.returncode == 125
    assert result.stderr == (f"lodge: control socket '{guest.path}' is in use: another guest has it, "
                             "or a file is there\n")
    assert guest.ask(stats=True)
    (tmp_path / "file").write_text("kept")
    assert run(lodge, str(tmp_path / "file")).returncode == 125
    assert (tmp_path / "file").read_text() == "kept"
    assert "a path has 1 to 107 bytes" in run(lodge, "x" * 108).stderr
    assert "No such file" in run(lodge, f"{tmp_path}/none/x").stderr


def test_what_a_killed_one_left_is_no_obstacle(lodge, tmp_path):
    path = str(tmp_path / "left")
    with socket.socket(socket.AF_UNIX) as left:
        left.bind(path)
    assert run(lodge, path).returncode == 0
    assert not os.path.exists(path)


def test_a_new_generation_reaches_the_guest(lodge, tmp_path):
    script = ("show() { dd if=/dev/mem bs=4096 skip=255 count=1 2>/dev/null | head -c 16 | hexdump -e "
              "'16/1 \"%02x\"' -e '\"\\n\"'; set -- $(cat /sys/firmware/acpi/interrupts/gpe00); echo $1; }; "
              "cat /sys/bus/acpi/devices/LODG0001:00/path; show; read x; show")
    with Steered(lodge, tmp_path, script) as guest:
        assert guest.line() == "\\_SB_.VGEN"
        first, events = guest.line(), guest.line()
        assert len(first) == 32 and first != "0" * 32 and events == "0"
        assert guest.ask(new_generation=True) is True
        time.sleep(0.5)
        guest.say()
        second, events = guest.line(), guest.line()
        assert len(second) == 32 and second != first and events == "1"


def watched(lodge, action, script):
    return subprocess.run([lodge, "run", "--engine", ENGINE, "--watchdog", action, "--", "sh", "-c",
                           script], stdin=subprocess.DEVNULL, capture_output=True, text=True,
                          timeout=PATIENCE)


@pytest.mark.parametrize("action", ["reset", "poweroff"])
def test_a_watchdog_ends_a_guest_that_hangs(lodge, action):
    result = watched(lodge, action, "cat /sys/class/watchdog/watchdog0/identity; "
                     "watchdog -T 2 -t 100 -F /dev/watchdog")
    assert result.returncode == 125
    assert result.stdout == "wdat_wdt\n"
    assert result.stderr.startswith("lodge: the guest hung: its watchdog expired\n")


def test_a_watchdog_that_is_fed_is_quiet(lodge):
    result = watched(lodge, "reset", "watchdog -T 2 -t 1 /dev/watchdog; sleep 5; echo alive")
    assert (result.returncode, result.stdout, result.stderr) == (0, "alive\n", "")


def test_a_watchdog_may_only_tell(lodge):
    result = watched(lodge, "event", "watchdog -T 1 -t 100 /dev/watchdog; sleep 3; echo alive")
    assert (result.returncode, result.stdout) == (0, "alive\n")
    assert result.stderr == "lodge: the guest's watchdog expired\n"


def test_after_a_watchdogs_reset_the_guest_knows_why(lodge, tmp_path):
    with subprocess.Popen([lodge, "run", "--engine", ENGINE, "--watchdog", "reset", "--on-reset",
                           "reboot", "--append", "lodge.console=ttyS0"], stdin=subprocess.PIPE,
                          stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True) as process:
        def until(word):
            text = ""
            while word not in text:
                piece = process.stdout.read(1)
                assert piece, text
                text += piece
        until("lodge:~#")
        process.stdin.write("cat /sys/class/watchdog/watchdog0/bootstatus; "
                            "watchdog -T 1 -t 100 -F /dev/watchdog\n")
        process.stdin.flush()
        until("\n0\n")
        until("lodge:~#")
        process.stdin.write("echo status $(cat /sys/class/watchdog/watchdog0/bootstatus); poweroff\n")
        process.stdin.flush()
        until("\nstatus 32")
        assert process.stdout.read() is not None
        process.stdin.close()
        assert process.wait(60) == 0
        assert process.stderr.read() == "lodge: the guest's watchdog expired\n"
