"""The host's end of the exec channel (docs/exec-channel.md), and of a guest's vsock
(docs/vsock.md), written from the documents alone."""
import os
import socket
import struct
import subprocess
import time

(HELLO, WELCOME, EXEC, STARTED, FAILED, STDIN, STDOUT, STDERR, WINDOW, SIGNAL, RESIZE, EXIT,
 SHUTDOWN, PING, PONG, PUSH, PULL, FILE, CLOCK, ASK, INFO, IDENTITY) = range(1, 23)
MAGIC = b"\xf7Lag"
GREETING = b"lodge\r\n\x1a"
TTY = 1


def frame(kind, stream, payload=b""):
    return MAGIC + struct.pack("<HHII", kind, 0, stream, len(payload)) + payload


class Channel:
    """One channel to an agent, over a connected socket."""

    def __init__(self, connected):
        self.socket = connected
        self.socket.settimeout(int(os.environ.get("LODGE_TEST_TIMEOUT", "60")))
        self.buffer = b""

    def close(self):
        self.socket.close()

    def send(self, kind, stream=0, payload=b""):
        self.socket.sendall(frame(kind, stream, payload))

    def hello(self, nonce=7, version=3):
        self.send(HELLO, 0, GREETING + struct.pack("<IQ", version, nonce))

    def greet(self, nonce=7, asked=3):
        self.hello(nonce, asked)
        kind, stream, payload = self.receive()
        assert (kind, stream) == (WELCOME, 0)
        assert payload[:8] == GREETING
        version, back, _uptime = struct.unpack("<IQQ", payload[8:28])
        assert (version, back) == (max(min(asked, 3), 2), nonce)
        return payload[28:].split(b"\0")

    def receive(self):
        while True:
            if len(self.buffer) >= 16:
                assert self.buffer[:4] == MAGIC
                kind, zero, stream, length = struct.unpack("<HHII", self.buffer[4:16])
                assert zero == 0 and length <= 65520
                if len(self.buffer) >= 16 + length:
                    payload = self.buffer[16:16 + length]
                    self.buffer = self.buffer[16 + length:]
                    return kind, stream, payload
            more = self.socket.recv(65536)
            if not more:
                raise EOFError
            self.buffer += more

    def exec(self, argv, stream=1, env=(), cwd="", tty=False, size=(0, 0), window=1 << 20):
        words = [word.encode() if isinstance(word, str) else word for word in argv]
        env = [word.encode() for word in env]
        payload = struct.pack("<IHHIII", TTY if tty else 0, size[0], size[1], window, len(words),
                              len(env))
        payload += cwd.encode() + b"\0" + b"".join(word + b"\0" for word in words + env)
        self.send(EXEC, stream, payload)

    def signal(self, number, stream=1):
        self.send(SIGNAL, stream, struct.pack("<I", number))

    def grant(self, flow, length, stream=1):
        self.send(WINDOW, stream, struct.pack("<II", flow, length))

    def finish(self, stream=1):
        """Everything until EXIT: (status, out, errors), a signal as -number."""
        out, errors = b"", b""
        while True:
            kind, which, payload = self.receive()
            assert which == stream
            if kind == STDOUT:
                out += payload
                self.grant(1, len(payload), stream)
            elif kind == STDERR:
                errors += payload
                self.grant(2, len(payload), stream)
            elif kind == EXIT:
                signaled, value = struct.unpack("<II", payload)
                return (-value if signaled else value), out, errors

    def run(self, argv, stdin=b"", **how):
        self.exec(argv, **how)
        kind, _, payload = self.receive()
        if kind == FAILED:
            return struct.unpack("<I", payload[:4])[0], payload[4:-1].decode()
        assert kind == STARTED
        assert len(stdin) <= struct.unpack("<II", payload)[1]
        if stdin:
            self.send(STDIN, 1, stdin)
        self.send(STDIN, 1)
        return self.finish()

    def push(self, path, data, mode=0o644, stream=1):
        """None, or (errno, text)."""
        self.send(PUSH, stream, struct.pack("<I", mode) + path.encode() + b"\0")
        window = at = 0
        ended = False
        while True:
            while at < len(data) and window > 0:
                piece = data[at:at + min(window, 32752)]
                self.send(STDIN, stream, piece)
                at += len(piece)
                window -= len(piece)
            if at == len(data) and not ended and window >= 0 and self.started:
                self.send(STDIN, stream)
                ended = True
            kind, which, payload = self.receive()
            assert which == stream
            if kind == STARTED:
                self.started = True
                window += struct.unpack("<II", payload)[1]
            elif kind == WINDOW:
                window += struct.unpack("<II", payload)[1]
            else:
                self.started = False
                return self.ended(kind, payload)

    started = False

    def ended(self, kind, payload):
        if kind == FAILED:
            return struct.unpack("<I", payload[:4])[0], payload[4:-1].decode()
        assert (kind, payload) == (EXIT, struct.pack("<II", 0, 0))
        return None

    def pull(self, path, stream=1, window=65536):
        """(mode, size, bytes), or (errno, text)."""
        self.send(PULL, stream, struct.pack("<I", window) + path.encode() + b"\0")
        kind, which, payload = self.receive()
        assert which == stream
        if kind == FAILED:
            return self.ended(kind, payload)
        assert kind == FILE
        mode, size = struct.unpack("<IQ", payload)
        data = []
        while True:
            kind, which, payload = self.receive()
            assert which == stream
            if kind != STDOUT:
                failed = self.ended(kind, payload)
                return failed or (mode, size, b"".join(data))
            data.append(payload)
            self.grant(1, len(payload), stream)

    def identity(self, stream=1, flags=3, time_ns=0, cards=(), hostname="web", more=b""):
        payload = struct.pack("<IQ64sI", flags, time_ns, os.urandom(64), len(cards))
        payload += b"".join(cards) + hostname.encode() + b"\0" + more
        self.send(IDENTITY, stream, payload)

    def set_clock(self, time_ns, stream=1):
        self.send(CLOCK, stream, struct.pack("<Q", time_ns))
        kind, which, payload = self.receive()
        assert which == stream
        return self.ended(kind, payload)

    def ask(self, stream=1):
        """What the guest is: a list of (name, value)."""
        self.send(ASK, stream)
        kind, which, payload = self.receive()
        assert (kind, which) == (INFO, stream)
        words = payload[4:].decode().split("\0")
        assert struct.unpack("<I", payload[:4])[0] == len(words) - 1 and words[-1] == ""
        return [tuple(word.split("=", 1)) for word in words[:-1]]


class Agent(Channel):
    """lodge-agent as an ordinary process, its channel a socket pair."""

    def __init__(self, bin_folder):
        ours, theirs = socket.socketpair()
        super().__init__(ours)
        self.process = subprocess.Popen(
            [f"{bin_folder}/lodge-agent", "--port-fd", str(theirs.fileno())],
            pass_fds=[theirs.fileno()], stdin=subprocess.DEVNULL)
        theirs.close()
        self.socket.settimeout(20)

    def close(self):
        self.socket.close()
        status = self.process.wait(timeout=10)
        return status


class Refused(Exception):
    """Nobody in the guest listens at that port."""


def vsock_connect(path, port):
    """A connection to a port of the guest, as docs/vsock.md says."""
    connected = socket.socket(socket.AF_UNIX, socket.SOCK_STREAM)
    connected.settimeout(60)
    try:
        connected.connect(path)
        connected.sendall(f"CONNECT {port}\n".encode())
        line = b""
        while not line.endswith(b"\n"):
            byte = connected.recv(1)
            if not byte:
                raise Refused
            line += byte
    except BaseException as error:
        connected.close()
        if isinstance(error, ConnectionError):
            raise Refused from error
        raise
    word, number = line.decode().split()
    assert word == "OK" and int(number) >= 1 << 30
    return connected


def eventually(condition, seconds=10):
    end = time.monotonic() + seconds
    while time.monotonic() < end:
        if condition():
            return True
        time.sleep(0.01)
    return condition()
