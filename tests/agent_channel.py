"""The host's end of the exec channel (docs/exec-channel.md), written from the document alone."""
import socket
import struct
import subprocess
import time

(HELLO, WELCOME, EXEC, STARTED, FAILED, STDIN, STDOUT, STDERR, WINDOW, SIGNAL, RESIZE, EXIT,
 SHUTDOWN, PING, PONG) = range(1, 16)
MAGIC = b"\xf7Lag"
GREETING = b"lodge\r\n\x1a"
TTY = 1


def frame(kind, stream, payload=b""):
    return MAGIC + struct.pack("<HHII", kind, 0, stream, len(payload)) + payload


class Agent:
    """lodge-agent as an ordinary process, its channel a socket pair."""

    def __init__(self, bin_folder):
        self.socket, theirs = socket.socketpair()
        self.process = subprocess.Popen(
            [f"{bin_folder}/lodge-agent", "--port-fd", str(theirs.fileno())],
            pass_fds=[theirs.fileno()], stdin=subprocess.DEVNULL)
        theirs.close()
        self.socket.settimeout(20)
        self.buffer = b""

    def close(self):
        self.socket.close()
        status = self.process.wait(timeout=10)
        return status

    def send(self, kind, stream=0, payload=b""):
        self.socket.sendall(frame(kind, stream, payload))

    def hello(self, nonce=7):
        self.send(HELLO, 0, GREETING + struct.pack("<IQ", 1, nonce))

    def greet(self, nonce=7):
        self.hello(nonce)
        kind, stream, payload = self.receive()
        assert (kind, stream) == (WELCOME, 0)
        assert payload[:8] == GREETING
        version, back, _uptime = struct.unpack("<IQQ", payload[8:28])
        assert (version, back) == (1, nonce)
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


def eventually(condition, seconds=10):
    end = time.monotonic() + seconds
    while time.monotonic() < end:
        if condition():
            return True
        time.sleep(0.01)
    return condition()
