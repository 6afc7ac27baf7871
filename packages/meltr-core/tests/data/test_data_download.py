"""Downloads from a local server: whole and verified, or not there at all."""

from __future__ import annotations

import hashlib
import io
import tarfile
import threading
from collections.abc import Iterator
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path

import pytest

from meltr.data.download import download, extract_tar
from meltr.errors import UserError

BODY = bytes(range(256)) * 5000
MD5 = hashlib.md5(BODY).hexdigest()
SHA256 = hashlib.sha256(BODY).hexdigest()


class Handler(BaseHTTPRequestHandler):
    requests = 0

    def do_GET(self) -> None:
        Handler.requests += 1
        if self.path == "/missing":
            self.send_error(404)
            return
        self.send_response(200)
        self.send_header("Content-Length", str(len(BODY) * (2 if self.path == "/broken" else 1)))
        self.end_headers()
        self.wfile.write(BODY)

    def log_message(self, *args: object) -> None:
        pass


@pytest.fixture
def server() -> Iterator[str]:
    with ThreadingHTTPServer(("127.0.0.1", 0), Handler) as running:
        thread = threading.Thread(target=running.serve_forever)
        thread.start()
        Handler.requests = 0
        yield f"http://127.0.0.1:{running.server_port}"
        running.shutdown()
        thread.join()


def test_right_checksum(server: str, tmp_path: Path) -> None:
    steps: list[tuple[int, int | None]] = []
    file = download(
        f"{server}/file", tmp_path / "new" / "file", md5=MD5, progress=lambda done, total: steps.append((done, total))
    )
    assert file.read_bytes() == BODY
    assert steps[-1] == (len(BODY), len(BODY))
    assert [entry.name for entry in file.parent.iterdir()] == ["file"]
    download(f"{server}/file", file, sha256=SHA256)
    assert Handler.requests == 1


def test_wrong_checksum_keeps_nothing(server: str, tmp_path: Path) -> None:
    with pytest.raises(UserError, match=f"came with md5 {MD5}, but {'0' * 32} was expected"):
        download(f"{server}/file", tmp_path / "file", md5="0" * 32)
    assert list(tmp_path.iterdir()) == []


def test_a_broken_file_is_replaced(server: str, tmp_path: Path) -> None:
    (tmp_path / "file").write_bytes(BODY[:10])
    assert download(f"{server}/file", tmp_path / "file", md5=MD5).read_bytes() == BODY


@pytest.mark.parametrize(("path", "problem"), [("/missing", "answered 404"), ("/broken", "broke off|IncompleteRead")])
def test_server_trouble(server: str, tmp_path: Path, path: str, problem: str) -> None:
    with pytest.raises(UserError, match=problem) as caught:
        download(server + path, tmp_path / "file", md5=MD5)
    assert server + path in str(caught.value)
    assert list(tmp_path.iterdir()) == []


def test_unreachable_server_and_unwritable_folder(tmp_path: Path) -> None:
    with pytest.raises(UserError, match="cannot be fetched"):
        download("http://127.0.0.1:9/file", tmp_path / "file", md5=MD5, timeout=2)
    (tmp_path / "plain").write_text("a file, no folder")
    with pytest.raises(UserError, match="Cannot write"):
        download("http://127.0.0.1:9/file", tmp_path / "plain" / "file", md5=MD5)


def test_a_digest_is_needed(tmp_path: Path) -> None:
    with pytest.raises(ValueError, match="exactly one"):
        download("http://127.0.0.1:9/file", tmp_path / "file")


def archive(file: Path, *members: tuple[str, bytes]) -> Path:
    with tarfile.open(file, "w:gz") as tar:
        for name, content in members:
            entry = tarfile.TarInfo(name)
            entry.size = len(content)
            tar.addfile(entry, io.BytesIO(content))
    return file


def test_extraction_replaces_files_and_leaves_others(tmp_path: Path) -> None:
    target = tmp_path / "out"
    (target / "set").mkdir(parents=True)
    (target / "set" / "train").write_text("half")
    (target / "set" / "mine").write_text("keep")
    files = extract_tar(archive(tmp_path / "a.tar.gz", ("set/train", b"whole"), ("set/test", b"t")), target)
    assert [file.relative_to(target).as_posix() for file in files] == ["set/test", "set/train"]
    assert (target / "set" / "train").read_text() == "whole"
    assert (target / "set" / "mine").read_text() == "keep"
    assert [entry.name for entry in target.iterdir()] == ["set"]


def test_hostile_and_broken_archives(tmp_path: Path) -> None:
    target = tmp_path / "out" / "deep"
    with pytest.raises(UserError, match="cannot be unpacked"):
        extract_tar(archive(tmp_path / "a.tar.gz", ("../escaped", b"x")), target)
    assert not (tmp_path / "out" / "escaped").exists()
    whole = archive(tmp_path / "b.tar.gz", ("set/train", BODY)).read_bytes()
    (tmp_path / "b.tar.gz").write_bytes(whole[: len(whole) // 2])
    with pytest.raises(UserError, match="cannot be unpacked"):
        extract_tar(tmp_path / "b.tar.gz", target)
    assert list(target.iterdir()) == []
