"""Registries of a test's own on loopback: an npm registry, a simple index, wheels and tarballs."""

import base64
import contextlib
import hashlib
import io
import json
import tarfile
import threading
import zipfile
from collections.abc import Iterator
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from typing import Any
from urllib.parse import unquote


def write_wheel(
    folder: Path,
    name: str,
    version: str,
    *,
    content: str = "",
    requires: tuple[str, ...] = (),
    scripts: tuple[str, ...] = (),
    more: dict[str, str] | None = None,
) -> Path:
    """A pure wheel with one module, whose `main` is each script.

    Args:
        folder: where to put it.
        name: of the project and the module.
        version: as the file's name has it.
        content: of the module.
        requires: what METADATA says.
        scripts: console scripts.
        more: further files of the archive.
    """
    info = f"{name}-{version}.dist-info"
    metadata = f"Metadata-Version: 2.1\nName: {name}\nVersion: {version}\n"
    files = {
        f"{name}.py": content or f"def main():\n    print('{name} {version}')\n",
        f"{info}/METADATA": metadata + "".join(f"Requires-Dist: {one}\n" for one in requires),
        f"{info}/WHEEL": "Wheel-Version: 1.0\nRoot-Is-Purelib: true\nTag: py3-none-any\n",
        f"{info}/entry_points.txt": "[console_scripts]\n"
        + "".join(f"{script} = {name}:main\n" for script in scripts),
    }
    files |= more or {}
    files[f"{info}/RECORD"] = "".join(f"{path},,\n" for path in files) + f"{info}/RECORD,,\n"
    path = folder / f"{name}-{version}-py3-none-any.whl"
    with zipfile.ZipFile(path, "w", zipfile.ZIP_DEFLATED) as archive:
        for inner, text in files.items():
            archive.writestr(zipfile.ZipInfo(inner), text, zipfile.ZIP_DEFLATED)
    return path


def write_sdist(folder: Path, name: str, version: str, setup: str) -> Path:
    """A source distribution, whose set-up would run."""
    path = folder / f"{name}-{version}.tar.gz"
    root = f"{name}-{version}"
    path.write_bytes(
        tarball(
            {f"{root}/setup.py": setup, f"{root}/PKG-INFO": f"Name: {name}\nVersion: {version}\n"}
        )
    )
    return path


def tarball(files: dict[str, str], links: dict[str, str] | None = None) -> bytes:
    """A .tgz."""
    packed = io.BytesIO()
    with tarfile.open(fileobj=packed, mode="w:gz") as archive:
        for path, text in files.items():
            entry = tarfile.TarInfo(path)
            entry.size, entry.mode = len(text.encode()), 0o755
            archive.addfile(entry, io.BytesIO(text.encode()))
        for path, target in (links or {}).items():
            entry = tarfile.TarInfo(path)
            entry.type, entry.linkname = tarfile.SYMTYPE, target
            archive.addfile(entry)
    return packed.getvalue()


class NpmRegistry:
    """An npm registry; `asked` lists the paths that were asked for, with their Authorization."""

    def __init__(self) -> None:
        self.packages: dict[str, dict[str, tuple[dict[str, Any], bytes]]] = {}
        self.asked: list[tuple[str, str]] = []
        self.tarball_base = ""  # elsewhere
        self.broken = ""  # what it answers instead: "garbage", "silence"
        self.release = threading.Event()

    def add(self, name: str, version: str, files: dict[str, str], **manifest: Any) -> None:
        document = {"name": name, "version": version, **manifest}
        inner = {f"package/{path}": text for path, text in files.items()}
        inner["package/package.json"] = json.dumps(document)
        packed = tarball(inner, {"package/link": "/etc/passwd"})
        self.packages.setdefault(name, {})[version] = (document, packed)

    def answer(self, path: str, base: str) -> tuple[int, bytes]:
        if self.broken == "garbage":
            return 200, b"<html>not a registry</html>"
        name, _, file = path.partition("/-/")
        if name not in self.packages:
            return 404, b'{"error": "not found"}'
        if file:
            return 200, self.packages[name][file.rpartition("-")[2].removesuffix(".tgz")][1]
        versions = {
            version: self._version(name, version, self.tarball_base or base)
            for version in self.packages[name]
        }
        latest = {"latest": list(versions)[-1]}
        return 200, json.dumps({"name": name, "dist-tags": latest, "versions": versions}).encode()

    def _version(self, name: str, version: str, base: str) -> dict[str, Any]:
        document, packed = self.packages[name][version]
        short = name.rpartition("/")[2]
        digest = base64.b64encode(hashlib.sha512(packed).digest()).decode()
        tarball = f"{base}/{name}/-/{short}-{version}.tgz"
        dist = {"tarball": tarball, "integrity": f"sha512-{digest}"}
        return {**document, "dist": dist, "hasInstallScript": "scripts" in document}


@contextlib.contextmanager
def serve(registry: Any) -> Iterator[str]:
    """Its URL, for as long as the block runs; `registry.answer(path, base)` answers."""

    class Handler(BaseHTTPRequestHandler):
        protocol_version = "HTTP/1.1"

        def do_GET(self) -> None:
            base = f"http://{self.headers['Host']}"
            path = unquote(self.path).strip("/")
            registry.asked.append((path, self.headers.get("Authorization", "")))
            if registry.broken == "silence":
                registry.release.wait(60)
            status, body = registry.answer(path, base)
            kind = "application/octet-stream" if path.endswith((".tgz", ".whl")) else "text/html"
            self.send_response(status)
            self.send_header("Content-Type", kind)
            self.send_header("Content-Length", str(len(body)))
            self.end_headers()
            with contextlib.suppress(OSError):
                self.wfile.write(body)

        def log_message(self, *_: Any) -> None:
            pass

    with ThreadingHTTPServer(("127.0.0.1", 0), Handler) as server:
        server.daemon_threads = True
        server.handle_error = lambda *_: None  # type: ignore[method-assign]
        thread = threading.Thread(target=server.serve_forever)
        thread.start()
        try:
            yield f"http://127.0.0.1:{server.server_address[1]}"
        finally:
            registry.release.set()
            server.shutdown()
            thread.join()


class SimpleIndex:
    """A PEP 503 index of the wheels in a folder."""

    def __init__(self, folder: Path) -> None:
        self.folder = folder
        self.asked: list[tuple[str, str]] = []
        self.broken = ""
        self.release = threading.Event()

    def answer(self, path: str, base: str) -> tuple[int, bytes]:
        del base
        if path.startswith("files/"):
            return 200, (self.folder / path.removeprefix("files/")).read_bytes()
        wanted = path.rpartition("/")[2]
        rows = ""
        for file in sorted(self.folder.iterdir()):
            digest = hashlib.sha256(file.read_bytes()).hexdigest()
            if file.name.partition("-")[0].replace("_", "-") == wanted:
                rows += f'<a href="/files/{file.name}#sha256={digest}">{file.name}</a>\n'
        return (
            (200, f"<!DOCTYPE html><html><body>{rows}</body></html>".encode())
            if rows
            else (404, b"")
        )
