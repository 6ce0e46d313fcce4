"""A guest that a test steers through its control socket."""
import json
import os
import socket
import subprocess
import time

ENGINE = os.environ.get("LODGE_TEST_ENGINE", "soft")
PATIENCE = int(os.environ.get("LODGE_TEST_TIMEOUT", "240"))


class Steered:
    """`lodge run --control` with a script in it, whose lines it reads and answers."""

    def __init__(self, lodge, folder, script, *options):
        self.path = f"{folder}/control"
        self.process = subprocess.Popen(
            [lodge, "run", "--engine", ENGINE, "--control", self.path, *options, "--", "sh", "-c",
             script], stdin=subprocess.PIPE, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True)
        self.socket = self.connect()
        self.file = self.socket.makefile("rw")

    def connect(self):
        deadline = time.monotonic() + PATIENCE
        while True:
            client = socket.socket(socket.AF_UNIX)
            client.settimeout(PATIENCE)
            try:
                client.connect(self.path)
                return client
            except (FileNotFoundError, ConnectionRefusedError):
                client.close()
                assert self.process.poll() is None, self.process.stderr.read()
                assert time.monotonic() < deadline
                time.sleep(0.02)

    def __enter__(self):
        return self

    def __exit__(self, *_):
        self.file.close()
        self.socket.close()
        if self.process.poll() is None:
            self.process.terminate()
        self.process.wait(30)
        for stream in (self.process.stdin, self.process.stdout, self.process.stderr):
            stream.close()

    def ask(self, **verb):
        """The answer's value; an error is {"error": ...} as it came."""
        self.file.write(json.dumps(verb) + "\n")
        self.file.flush()
        answer = json.loads(self.file.readline())
        assert list(answer) in ([*verb], ["error"]), answer
        return answer if "error" in answer else answer[[*verb][0]]

    def line(self):
        return self.process.stdout.readline().strip()

    def say(self, text=""):
        self.process.stdin.write(text + "\n")
        self.process.stdin.flush()

    def until(self, question, seconds=60):
        """Asks again and again until the answer is true, and returns it."""
        deadline = time.monotonic() + seconds
        while True:
            answer = question()
            if answer:
                return answer
            assert time.monotonic() < deadline
            time.sleep(0.1)

    def resident(self):
        """Of lodge-vmm, as the host counts it."""
        with open(f"/proc/{self.process.pid}/task/{self.process.pid}/children",
                  encoding="ascii") as file:
            vmm = file.read().split()[0]
        with open(f"/proc/{vmm}/statm", encoding="ascii") as file:
            return int(file.read().split()[1]) * os.sysconf("SC_PAGE_SIZE")
