"""What lies on the other side of a guest's network: run inside a network namespace of its own.

    unshare -n python3 net_peer.py user|tap|tap-mq COMMAND ARG...

Makes an interface, serves, and runs the command, with these on the namespace's addresses:
  port 5000  HTTP: GET /N gives N bytes, and X-Sha256
  port 5001  takes bytes to the end of the stream, and answers with their count and SHA-256
  port 5002  UDP echo
The kernel's side of the tap is 10.99.0.1. For a user network the tap stands for this machine's way
out: passt wants a default route, and takes its address, 10.99.0.2, for the guest.
"""
import hashlib
import http.server
import socket
import socketserver
import subprocess
import sys
import threading


def pattern(size):
    """The same bytes for the same size, and no two stretches alike."""
    block = b"".join(hashlib.sha256(b"%d" % i).digest() for i in range(32768))
    return (block * (size // len(block) + 1))[:size]


class Http(http.server.BaseHTTPRequestHandler):
    def do_GET(self):
        data = pattern(int(self.path[1:]))
        self.send_response(200)
        self.send_header("Content-Length", str(len(data)))
        self.end_headers()
        self.wfile.write(data)

    def log_message(self, *_):
        pass


class Sink(socketserver.BaseRequestHandler):
    def handle(self):
        digest, count = hashlib.sha256(), 0
        while data := self.request.recv(1 << 18):
            digest.update(data)
            count += len(data)
        print(f"sink {count} {digest.hexdigest()}", flush=True)
        try:
            self.request.sendall(f"{count} {digest.hexdigest()}\n".encode())
        except OSError:
            pass


class Echo(socketserver.BaseRequestHandler):
    def handle(self):
        data, sock = self.request
        sock.sendto(data, self.client_address)


def ip(*words):
    subprocess.run(["ip", *words], check=True)


def main():
    kind, *command = sys.argv[1:]
    ip("link", "set", "lo", "up")
    ip("tuntap", "add", "t0", "mode", "tap", *(["multi_queue"] if kind == "tap-mq" else []))
    ip("addr", "add", "10.99.0.2/24" if kind == "user" else "10.99.0.1/24", "dev", "t0")
    ip("link", "set", "t0", "up")
    if kind == "user":
        ip("route", "add", "default", "via", "10.99.0.1", "dev", "t0")
    socketserver.ThreadingTCPServer.allow_reuse_address = True
    for server in (http.server.ThreadingHTTPServer(("0.0.0.0", 5000), Http),
                   socketserver.ThreadingTCPServer(("0.0.0.0", 5001), Sink),
                   socketserver.ThreadingUDPServer(("0.0.0.0", 5002), Echo)):
        threading.Thread(target=server.serve_forever, daemon=True).start()
    sys.exit(subprocess.run(command, stdin=subprocess.DEVNULL).returncode)


if __name__ == "__main__":
    main()
