"""An internet of its own: a network namespace with a name server and web servers, for one command.

`python internet.py SPEC CMD…`: SPEC (JSON) has names (name → list of answers, one for each query
in turn, the last one for ever), log (a file: one JSON line for each query and connection), root
(a folder that the servers serve) and certificate (PEM with the key). Every server listens on
every address, loopback, private and metadata ones included, so that reaching one proves itself.
Nothing leaves the machine: the namespace has no interface but its own loopback.
"""

import functools
import http.server
import json
import os
import socket
import socketserver
import ssl
import struct
import subprocess
import sys
import threading
from typing import Any

from vsm.linux import mounts, namespaces

PUBLIC = ("93.184.215.14", "104.18.1.1", "2606:2800:21f::1")
PRIVATE = (
    *("169.254.169.254", "10.0.0.5", "100.100.100.200", "168.63.129.16"),
    *("fd00:ec2::254", "64:ff9b::7f00:1", "2002:7f00:1::"),
)
PLAIN, SECURE = (80, 8080), (443,)
TYPES = {1: socket.AF_INET, 28: socket.AF_INET6}
lock = threading.Lock()


def main() -> int:
    spec = json.loads(sys.argv[1])
    enter()
    for path, text in {
        "/etc/resolv.conf": "nameserver 127.0.0.1\noptions timeout:2 attempts:1\n",
        "/etc/hosts": "127.0.0.1 localhost\n",
        "/etc/nsswitch.conf": "passwd: files\ngroup: files\nhosts: files dns\n",
    }.items():
        replace(path, text, spec["root"])
    ready, started = os.pipe()
    servers = os.fork()
    if servers == 0:
        try:
            serve(spec, started)
        finally:
            os._exit(1)
    os.close(started)
    try:
        assert os.read(ready, 1) == b"+", "the servers did not start"
        return subprocess.call(sys.argv[2:])
    finally:
        os.kill(servers, 9)
        os.waitpid(servers, 0)


def enter() -> None:
    uid, gid = os.geteuid(), os.getegid()
    own = namespaces.NEWUSER if uid else 0
    namespaces.unshare(own | namespaces.NEWNET | namespaces.NEWNS)
    if own:
        namespaces.map_own_ids(uid, gid)
    namespaces.raise_loopback()
    for index, address in enumerate((*PUBLIC, *PRIVATE)):
        namespaces.add_loopback_address(address, index + 1)
    mounts.make_private()


def replace(path: str, text: str, folder: str) -> None:
    """Show another file at `path`, in this mount namespace only."""
    source = os.path.join(folder, os.path.basename(path))
    with open(source, "w") as file:
        file.write(text)
    os.chmod(source, 0o644)
    opened = mounts.open_path(source)
    tree = mounts.clone_tree(opened, path=source)
    place = mounts.open_path(os.path.realpath(path))
    mounts.attach(tree, place, path=path)
    for fd in (opened, tree, place):
        os.close(fd)


def serve(spec: dict[str, Any], started: int) -> None:
    log = open(spec["log"], "a", buffering=1)  # noqa: SIM115 - until the process is killed
    note = functools.partial(write, log)
    names = socket.socket(socket.AF_INET, socket.SOCK_DGRAM)
    names.bind(("127.0.0.1", 53))
    handler = functools.partial(Handler, note, spec["root"])
    for port in (*PLAIN, *SECURE):
        server = Server(("::", port), handler)
        if port in SECURE:
            context = ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER)
            context.load_cert_chain(spec["certificate"])
            server.socket = context.wrap_socket(
                server.socket, server_side=True, do_handshake_on_connect=False
            )
        threading.Thread(target=server.serve_forever, daemon=True).start()
    os.write(started, b"+")
    answer_names(names, spec["names"], note)


def write(log: Any, **line: Any) -> None:
    with lock:
        log.write(json.dumps(line) + "\n")


class Server(http.server.ThreadingHTTPServer):
    address_family = socket.AF_INET6
    daemon_threads = True

    def server_bind(self) -> None:
        socketserver.TCPServer.server_bind(self)  # HTTPServer's asks for its own name

    def handle_error(self, *_: Any) -> None:
        pass  # clients that go away are what is tested


class Handler(http.server.SimpleHTTPRequestHandler):
    """Says who it is reached as, or serves files below /files/."""

    def __init__(self, note: Any, root: str, *arguments: Any) -> None:
        self.note = note
        super().__init__(*arguments, directory=root)

    def setup(self) -> None:
        self.own, port = self.request.getsockname()[:2]
        self.own = self.own.removeprefix("::ffff:")
        self.note(reached=self.own, port=port)
        super().setup()

    def do_GET(self) -> None:
        if self.path.startswith("/files/"):
            super().do_GET()
            return
        body = f"{self.own} {self.headers.get('Host')}".encode()
        self.send_response(200)
        self.send_header("Content-Length", str(len(body)))
        self.end_headers()
        self.wfile.write(body)

    def do_POST(self) -> None:
        size = int(self.headers["Content-Length"])
        taken = 0
        while taken < size:
            taken += len(self.rfile.read(min(65536, size - taken)))
        self.send_response(200)
        self.send_header("Content-Length", str(len(str(taken))))
        self.end_headers()
        self.wfile.write(str(taken).encode())

    def log_message(self, *_: Any) -> None:
        pass


def answer_names(sock: socket.socket, names: dict[str, list[list[str]]], note: Any) -> None:
    """RFC 1035, as much of it as a stub resolver asks."""
    asked: dict[tuple[str, int], int] = {}
    while True:
        query, client = sock.recvfrom(512)
        labels, at = [], 12
        while size := query[at]:
            labels.append(query[at + 1 : at + 1 + size].decode().lower())
            at += size + 1
        name, question = ".".join(labels), query[12 : at + 5]
        kind = struct.unpack("!H", query[at + 1 : at + 3])[0]
        turn = asked[name, kind] = asked.get((name, kind), -1) + 1
        note(asked=name, kind=kind)
        answers = names.get(name)
        found = answers[min(turn, len(answers) - 1)] if answers else []
        family = TYPES.get(kind)
        packed = [socket.inet_pton(family, a) for a in found if family and fits(a, family)]
        head = struct.pack(
            "!2sHHHHH", query[:2], 0x8180 if answers else 0x8183, 1, len(packed), 0, 0
        )
        rows = b"".join(struct.pack("!HHHIH", 0xC00C, kind, 1, 0, len(p)) + p for p in packed)
        sock.sendto(head + question + rows, client)


def fits(address: str, family: int) -> bool:
    return (":" in address) == (family == socket.AF_INET6)


if __name__ == "__main__":
    sys.exit(main())
