"""Disks on web servers: good ones, slow ones, and ones that lie."""
import hashlib
import http.server
import os
import random
import re
import shutil
import socketserver
import ssl
import subprocess
import threading
import time

import pytest

ENGINE = os.environ.get("LODGE_TEST_ENGINE", "soft")
MIB = 1 << 20


class Server(socketserver.ThreadingMixIn, http.server.HTTPServer):
    """Serves self.data under any path; self.mood says how."""
    daemon_threads = True

    def __init__(self, data, mood=None):
        super().__init__(("127.0.0.1", 0), Handler)
        self.data, self.mood, self.etag = data, mood, '"one"'
        self.requests = self.bytes = 0
        self.paths = []
        threading.Thread(target=self.serve_forever, daemon=True).start()

    def handle_error(self, request, client_address):
        pass

    @property
    def url(self):
        return f"http://127.0.0.1:{self.server_address[1]}/disk.img"


class Handler(http.server.BaseHTTPRequestHandler):
    protocol_version = "HTTP/1.1"

    def log_message(self, *words):
        pass

    def send(self, status, body=b"", **headers):
        self.send_response(status)
        for name, value in headers.items():
            self.send_header(name.replace("_", "-"), value)
        self.send_header("Content-Length", str(len(body)))
        self.end_headers()
        self.wfile.write(body)

    def do_GET(self):
        server, mood = self.server, self.server.mood
        server.requests += 1
        server.paths.append(self.path)
        data = server.data
        first, last = map(int, re.fullmatch(r"bytes=(\d+)-(\d+)", self.headers["Range"]).groups())
        if callable(mood):
            mood = mood(server, self, first)
        if first >= len(data):
            return self.send(416, Content_Range=f"bytes */{len(data)}")
        last = min(last, len(data) - 1)
        part = data[first:last + 1]
        headers = {"Content_Range": f"bytes {first}-{last}/{len(data)}", "ETag": server.etag}
        if mood == "no ranges":
            return self.send(200, data)
        if isinstance(mood, int):
            return self.send(mood, b"sorry")
        if mood == "another range":
            return self.send(206, part, **dict(headers, Content_Range=f"bytes 7-{last}/{len(data)}"))
        if mood == "no word on the range":
            return self.send(206, part, ETag=server.etag)
        if mood == "too long":
            return self.send(206, part + b"more", **headers)
        if mood == "too short":
            return self.send(206, part[:-1], **headers)
        if mood == "compressed":
            return self.send(206, part, Content_Encoding="gzip", **headers)
        if mood == "hang up":
            self.close_connection = True
            self.send_response(206)
            self.send_header("Content-Range", headers["Content_Range"])
            self.send_header("ETag", server.etag)
            self.send_header("Content-Length", str(len(part)))
            self.end_headers()
            self.wfile.write(part[:len(part) // 2])
            return None
        if mood == "round and round":
            return self.send(302, Location=self.path + "x")
        if isinstance(mood, str) and "://" in mood:
            return self.send(302, Location=mood)
        server.bytes += len(part)
        return self.send(206, part, **headers)


@pytest.fixture
def data():
    return random.Random(11).randbytes(3 * MIB + 777 * 512)


@pytest.fixture
def serve():
    servers = []

    def start(*words):
        servers.append(Server(*words))
        return servers[-1]
    yield start
    for server in servers:
        server.shutdown()
        server.server_close()


@pytest.fixture
def disk(bin_folder, tmp_path):
    environment = {name: value for name, value in os.environ.items()
                   if not name.lower().endswith("_proxy")}

    def run(*words, status=0, cache="", **more):
        result = subprocess.run([f"{bin_folder}/lodge", "disk", *map(str, words)], cwd=tmp_path,
                                capture_output=True, text=True, timeout=120,
                                env=dict(environment, LODGE_HTTP_CACHE=cache, **more))
        assert result.returncode == status, (words, result.stdout, result.stderr)
        return result
    return run


def copy(disk, url, tmp_path, **more):
    disk("convert", "--from-type", "raw", "--type", "raw", url, "copy", **more)
    return (tmp_path / "copy").read_bytes()


def test_a_whole_disk_comes_over(serve, disk, data, tmp_path):
    server = serve(data)
    assert copy(disk, server.url, tmp_path) == data
    assert server.bytes <= len(data) + 1  # each block once, and one byte to ask
    assert server.requests < 20           # and many of them at once


def test_a_cache_that_is_too_small_for_all(serve, disk, data, tmp_path):
    assert copy(disk, serve(data * 3).url, tmp_path, cache="1M") == data * 3


def test_info_reads_no_more_than_it_needs(serve, disk, data):
    server = serve(data)
    text = disk("info", server.url).stdout
    assert re.search(rf"size +{len(data)} ", text) and "raw" in text
    assert server.bytes <= 256 << 10


def test_the_last_sector_may_be_cut(serve, disk, tmp_path):
    assert copy(disk, serve(b"x" * 700).url, tmp_path) == b"x" * 700 + bytes(324)


def test_a_qcow2_on_a_server(serve, disk, data, tmp_path):
    (tmp_path / "data").write_bytes(data)
    disk("convert", "--from-type", "raw", "data", "a.qcow2")
    server = serve((tmp_path / "a.qcow2").read_bytes())
    disk("convert", "--type", "raw", server.url, "copy")
    assert (tmp_path / "copy").read_bytes() == data


def test_one_on_a_server_gets_no_file_of_ours(serve, disk, tmp_path):
    (tmp_path / "secret").write_bytes(b"s" * 4096)
    disk("create", "--backing", tmp_path / "secret", "--backing-type", "raw", "a.qcow2")
    server = serve((tmp_path / "a.qcow2").read_bytes())
    result = disk("convert", "--type", "raw", server.url, "copy", status=1)
    assert "comes from a web server and names a file" in result.stderr
    assert not (tmp_path / "copy").exists()


@pytest.mark.parametrize("mood, why", [
    ("no ranges", "whole files only"),
    ("another range", "another range"),
    ("no word on the range", "another range"),
    ("compressed", "compressed"),
    (404, "answers 404"),
    (403, "answers 403"),
    ("round and round", "redirects"),
    ("file:///etc/passwd", "not supported"),
])
def test_servers_that_will_not_do(serve, disk, data, mood, why):
    started = time.monotonic()
    assert why in disk("info", serve(data, mood).url, status=1).stderr
    assert time.monotonic() - started < 3  # there is no sense in trying again


def test_an_empty_file_is_no_disk(serve, disk):
    assert "empty" in disk("info", serve(b"").url, status=1).stderr


@pytest.mark.parametrize("trouble", [500, 503, 429, "hang up", "too short"])
def test_what_fails_is_tried_again(serve, disk, data, tmp_path, trouble):
    server = serve(data, lambda server, request, first: trouble if server.requests % 3 == 2 else None)
    assert copy(disk, server.url, tmp_path) == data


def test_bytes_too_many_are_not_believed(serve, disk, data, tmp_path):
    """Those of the range are right; what is behind them is nobody's."""
    server = serve(data, lambda server, request, first: "too long" if first else None)
    result = disk("convert", "--from-type", "raw", "--type", "raw", server.url, "copy", status=1)
    assert "Input/output error" in result.stderr and not (tmp_path / "copy").exists()


@pytest.mark.parametrize("change", ["etag", "length", "shorter"])
def test_a_file_that_changes_is_never_mixed(serve, disk, data, tmp_path, change):
    def mood(server, request, first):
        if first > MIB:
            server.etag = '"two"' if change == "etag" else server.etag
            server.data = {"etag": data, "length": data + bytes(512), "shorter": data[:MIB]}[change]
    server = serve(data, mood)
    result = disk("convert", "--from-type", "raw", "--type", "raw", server.url, "copy", status=1)
    assert "changed" in result.stderr or "no such range" in result.stderr
    assert not (tmp_path / "copy").exists()


def test_redirects_are_followed_once(serve, disk, data, tmp_path):
    target = serve(data)
    server = serve(data, target.url)
    assert copy(disk, server.url, tmp_path) == data
    assert server.requests == 1  # then the blocks come from where it led to


def test_a_link_that_was_good_for_a_while(serve, disk, data, tmp_path):
    def tired(server, request, first):
        return 403 if first and request.path == "/one" else None
    target = serve(data, tired)
    base = target.url.rsplit("/", 1)[0]
    server = serve(data, lambda server, request, first:
                   f"{base}/one" if server.requests == 1 else f"{base}/two")
    assert copy(disk, server.url, tmp_path) == data
    assert "/two" in target.paths


def test_a_password_in_a_url_is_refused(disk):
    result = disk("info", "http://me:secret@127.0.0.1:1/x", status=1)
    assert "name or password" in result.stderr


def test_nobody_is_there(disk, serve, data):
    server = serve(data)
    url = server.url
    server.shutdown()
    server.server_close()
    assert "onnect" in disk("info", url, status=1).stderr


def test_the_cache_has_a_size(disk, serve, data):
    assert "LODGE_HTTP_CACHE" in disk("info", serve(data).url, status=1, cache="many").stderr


def test_https_is_checked(serve, disk, data, tmp_path):
    if not shutil.which("openssl"):
        pytest.skip("openssl is not installed")
    subprocess.run(["openssl", "req", "-x509", "-newkey", "rsa:2048", "-nodes", "-days", "2",
                    "-keyout", tmp_path / "tls.key", "-out", tmp_path / "tls.crt", "-subj", "/CN=x",
                    "-addext", "subjectAltName=IP:127.0.0.1"], check=True, capture_output=True)
    server = serve(data)
    context = ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER)
    context.load_cert_chain(tmp_path / "tls.crt", tmp_path / "tls.key")
    server.socket = context.wrap_socket(server.socket, server_side=True)
    url = server.url.replace("http:", "https:")
    assert "certificate" in disk("info", url, status=1).stderr
    disk("convert", "--from-type", "raw", "--type", "raw", "--cacert", "tls.crt", url, "copy")
    assert (tmp_path / "copy").read_bytes() == data
    # Once private, always private.
    server.mood = serve(data).url
    assert "not supported" in disk("info", "--cacert", "tls.crt", url, status=1).stderr


# --- in a guest ---

@pytest.fixture
def run(lodge):
    def run(script, url, **more):
        environment = {name: value for name, value in os.environ.items()
                       if not name.lower().endswith("_proxy")}
        return subprocess.run([lodge, "run", "--engine", ENGINE, "--disk", url, "--", "sh", "-c",
                               script], capture_output=True, timeout=240, env=environment, **more)
    return run


def helpers():
    """Those that still run, by command line."""
    found = []
    for number in filter(str.isdigit, os.listdir("/proc")):
        try:
            with open(f"/proc/{number}/cmdline", "rb") as file:
                words = file.read().split(b"\0")
        except OSError:
            continue
        if words[0].endswith(b"lodge-http"):
            found.append(b" ".join(words))
    return found


def test_a_guest_reads_it_and_leaves_nothing_behind(serve, run, data):
    server = serve(data)
    result = run("cat /sys/block/vda/ro; sha256sum </dev/vda; "
                 "dd if=/dev/zero of=/dev/vda count=1 2>/dev/null || echo refused", server.url)
    assert result.returncode == 0, result.stderr
    assert result.stdout.split() == [b"1", hashlib.sha256(data).hexdigest().encode(), b"-",
                                     b"refused"]
    until = time.monotonic() + 10
    while any(server.url.encode() in words for words in helpers()):
        assert time.monotonic() < until
        time.sleep(0.1)


def test_a_guest_hears_that_the_server_is_gone(serve, run, data):
    server = serve(data, lambda server, request, first: 404 if first > MIB else None)
    result = run("dd if=/dev/vda of=/dev/null bs=64k count=4 iflag=direct 2>&1 && echo begun; "
                 "dd if=/dev/vda of=/dev/null bs=64k skip=40 count=1 iflag=direct 2>&1 || echo over; "
                 "dd if=/dev/vda of=/dev/null bs=64k count=4 iflag=direct 2>&1 && echo still", server.url)
    assert result.returncode == 0, result.stderr
    assert b"begun" in result.stdout and b"over" in result.stdout and b"still" in result.stdout
    assert b"Input/output error" in result.stdout
    assert b"answers 404" in result.stderr
