"""The viewer's server: this machine alone, the right token, the right host, nothing but what the page asks for."""

import http.client
import json
import threading
from collections.abc import Callable, Iterator

import pytest

from dino_path.errors import ConfigError
from dino_path.viewing.server import ViewerServer
from dino_path.viewing.viewer import Viewer

Ask = Callable[..., tuple[int, bytes, dict[str, str]]]


@pytest.fixture
def server(viewer: Viewer) -> Iterator[ViewerServer]:
    with ViewerServer(viewer.answer) as server:
        thread = threading.Thread(target=server.serve_forever, args=(0.01,))
        thread.start()
        yield server
        server.shutdown()
        thread.join()
    viewer.close()


@pytest.fixture
def ask(server: ViewerServer) -> Ask:
    """Status, body and headers of a request; `{token}` in the path is the right one."""

    def call(path: str, method: str = "GET", host: str = "127.0.0.1") -> tuple[int, bytes, dict[str, str]]:
        connection = http.client.HTTPConnection("127.0.0.1", server.server_port, timeout=30)
        path = path.replace("{token}", server.token)
        connection.request(method, path, headers={"Host": f"{host}:{server.server_port}"})
        answer = connection.getresponse()
        body = answer.read()
        connection.close()
        return answer.status, body, dict(answer.getheaders())

    return call


def test_it_listens_on_this_machine_alone_at_an_address_with_a_token(server: ViewerServer) -> None:
    assert server.server_address[0] == "127.0.0.1"
    assert len(server.token) >= 32
    assert server.address == f"http://127.0.0.1:{server.server_port}/{server.token}/"
    with pytest.raises(ConfigError, match=f"--port {server.server_port}: is not available"):
        ViewerServer(server.answer, server.server_port)


@pytest.mark.parametrize("path", ["/", "/slides.json", "/wrong/slides.json", "//slides.json", "/%7Btoken%7D/"])
def test_without_the_token_there_is_nothing(ask: Ask, path: str) -> None:
    status, body, _ = ask(path)
    assert status == 403
    assert json.loads(body) == {"error": "the token in the address is missing or wrong"}


@pytest.mark.parametrize("host", ["evil.example", "127.0.0.1.evil.example", "192.168.0.1", ""])
def test_another_host_is_refused_whatever_it_knows(ask: Ask, host: str) -> None:
    assert ask("/{token}/slides.json", host=host)[0] == 403


def test_behind_a_tunnel_it_may_be_called_localhost(ask: Ask) -> None:
    assert ask("/{token}/slides.json", host="localhost")[0] == 200


@pytest.mark.parametrize("method", ["POST", "PUT", "DELETE", "PATCH", "OPTIONS"])
def test_it_is_read_only(ask: Ask, method: str) -> None:
    assert ask("/{token}/slides.json", method)[0] == 501


@pytest.mark.parametrize(
    "path",
    [
        "../../etc/passwd", "..%2f..%2fetc/passwd", "viewer.py", "page/viewer.js", "slide/3/about.json",
        "slide/-1/about.json", "slide/0/../1/about.json", "slide/a/about.json", "slide/0/tile/9999.json",
        "slide/0/square/0/0/0.png", "slide/9999999999/about.json", "picture/0.jpg", "slide/0/tokens/0.png",
        "slide/0/attention/10/10/1.json",
    ],
)  # fmt: skip
def test_nothing_else_is_there(ask: Ask, path: str) -> None:
    assert ask(f"/{{token}}/{path}")[0] == 404


def test_what_cannot_be_read_is_told_in_words(ask: Ask) -> None:
    status, body, _ = ask("/{token}/slide/0/square/0/99/0.jpg")
    assert status == 422
    assert "has no image square in column 99" in json.loads(body)["error"]


def test_pages_and_pixels_are_kept_by_nobody_and_run_nothing_foreign(ask: Ask) -> None:
    for path, kind in (
        ("", "text/html; charset=utf-8"), ("viewer.js", "text/javascript; charset=utf-8"),
        ("viewer.css", "text/css; charset=utf-8"), ("slide/0/square/1/0/0.jpg", "image/jpeg"),
        ("slide/0/thumbnail.jpg", "image/jpeg"), ("state.json", "application/json"),
    ):  # fmt: skip
        status, body, headers = ask(f"/{{token}}/{path}")
        assert (status, headers["Content-Type"]) == (200, kind)
        assert len(body) == int(headers["Content-Length"]) > 0
        assert headers["Cache-Control"] == "no-store"
        assert headers["Referrer-Policy"] == "no-referrer"
        assert "default-src 'none'" in headers["Content-Security-Policy"]


def test_the_page_is_told_of_slides_tiles_and_reasons(ask: Ask, viewer: Viewer) -> None:
    slides = json.loads(ask("/{token}/slides.json")[1])
    assert [(one["id"], one["status"]) for one in slides] == [("a", "done"), ("b", "done"), ("glass", "empty")]
    about = json.loads(ask("/{token}/slide/0/about.json")[1])
    assert (about["width"], about["height"], about["coarsest"], about["problem"]) == (1024, 768, 1, "")
    assert ["Refused", "3 pen ink"] in about["facts"]
    xs, ys = zip(*(point for ring in about["contours"] for point in ring), strict=True)
    assert (min(xs), max(xs), min(ys), max(ys)) == pytest.approx((256, 768, 128, 640), abs=16)
    layer = json.loads(ask("/{token}/slide/0/layers.json")[1])[0]
    row = layer["groups"][1]["rows"][0]
    tile = json.loads(ask(f"/{{token}}/slide/0/tile/{row}.json")[1])
    assert tile["facts"][0] == ["Tile", "refused: pen ink"]
    assert json.loads(ask("/{token}/slide/2/layers.json")[1])[0]["groups"][0]["boxes"] == []


def test_a_slide_that_is_gone_leaves_its_thumbnail(ask: Ask, viewer: Viewer, tmp_path: object) -> None:
    from dataclasses import replace

    viewer.records[0] = replace(viewer.records[0], path=f"{tmp_path}/gone.tif")
    about = json.loads(ask("/{token}/slide/0/about.json")[1])
    assert about["coarsest"] == -1
    assert "gone.tif: no such file" in about["problem"]
    assert ask("/{token}/slide/0/thumbnail.jpg")[0] == 200
