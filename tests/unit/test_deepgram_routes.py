"""Which requests are served, as what; and that nothing else is (spec part 5)."""

from typing import Final

import pytest
from hypothesis import given, strategies as st

from dgproxy import config
from dgproxy.wire.deepgram import ROUTES, Class, route
from dgproxy.wire.refusals import NOT_SERVED, Refusal

GET, HEAD, POST = b"GET", b"HEAD", b"POST"
UUID: Final = b"/v1/models/7f3a9c0d-5e1b-4264-a7f3-c09d5e1b8264"

HTTP: Final = {
    (POST, b"/v1/listen"): Class.BATCH,
    (POST, b"/v1/speak"): Class.SPEAK,
    (POST, b"/v2/speak"): Class.SPEAK,
    (POST, b"/v1/read"): Class.READ,
    (GET, b"/v1/agent/settings/think/models"): Class.AGENT,
    (HEAD, b"/v1/agent/settings/think/models"): Class.AGENT,
    (GET, b"/v1/models"): Class.MODELS,
    (HEAD, b"/v1/models"): Class.MODELS,
    (GET, UUID): Class.MODELS,
    (HEAD, UUID): Class.MODELS,
}
WEBSOCKET: Final = {
    b"/v1/listen": Class.STREAM,
    b"/v1/listen/stream": Class.STREAM,
    b"/v2/listen": Class.FLUX,
    b"/v1/speak": Class.SPEAK,
    b"/v2/speak": Class.SPEAK,
    b"/v1/agent/converse": Class.AGENT,
}
PATHS: Final = sorted({path for _, path in HTTP} | set(WEBSOCKET))
METHODS: Final = [GET, HEAD, POST, b"PUT", b"PATCH", b"DELETE", b"OPTIONS", b"PROPFIND", b"POSTS", b"post", b""]


@pytest.mark.parametrize(("asked", "cls"), HTTP.items(), ids=repr)
def test_a_request_belongs_to_its_class(asked: tuple[bytes, bytes], cls: Class) -> None:
    method, path = asked
    assert route(method, path, websocket=False) is cls


@pytest.mark.parametrize(("path", "cls"), WEBSOCKET.items())
def test_a_websocket_belongs_to_its_class(path: bytes, cls: Class) -> None:
    assert route(GET, path, websocket=True) is cls


@pytest.mark.parametrize("path", PATHS)
@pytest.mark.parametrize("method", METHODS)
def test_no_other_method_of_a_path_is_served(method: bytes, path: bytes) -> None:
    verdict = route(method, path, websocket=False)
    if (method, path) in HTTP:
        assert verdict is HTTP[method, path]
    else:
        assert isinstance(verdict, Refusal)
        assert verdict.status in {404, 405, 426}


@pytest.mark.parametrize("path", [path for path in PATHS if path not in WEBSOCKET])
def test_no_other_path_takes_a_websocket(path: bytes) -> None:
    verdict = route(GET, path, websocket=True)
    assert isinstance(verdict, Refusal)
    assert verdict.status == 404


UNKNOWN: Final = [
    b"/",
    b"",
    b"/v1",
    b"/v1/",
    b"/v1/status",
    b"/v1/status/engine",
    b"/v1/auth/grant",
    b"/v1/projects",
    b"/metrics",
    b"/v3/listen",
    b"/v1/listen/",
    b"/v1/listen/stream/",
    b"/v1/listen/other",
    b"//v1/listen",
    b"/v1//listen",
    b"/v1/./listen",
    b"/v1/listen/../status",
    b"/V1/LISTEN",
    b"/v1/Listen",
    b"/v1/listen;x",
    b"/v1/listen%2f..",
    b"/v1/listen%00",
    b"/%76%31/listen",
    b"/v1\\listen",
    b"v1/listen",
    b"/v1/listen ",
    b"/v1/listen\n",
    b"/v1/listen.",
    b"/v1/models/",
    b"/v1/models/a/b",
    b"/v1/models/..",
    b"/v1/models/.",
    b"/v1/models/a.b",
    b"/v1/models/%2e%2e",
    b"/v1/models/..%5cstatus",
    b"/v1/models/a\n",
    b"/v1/models/{id}",
    b"/v1/models/" + b"a" * 129,
]


@pytest.mark.parametrize("path", UNKNOWN)
@pytest.mark.parametrize("websocket", [False, True])
def test_a_path_that_no_row_names_is_not_served(path: bytes, *, websocket: bool) -> None:
    for method in (GET, POST):
        assert route(method, path, websocket=websocket) is NOT_SERVED


changes = st.tuples(st.integers(0, 40), st.binary(max_size=3), st.integers(0, 3))


@given(st.sampled_from(PATHS), changes, st.booleans())
def test_a_path_is_matched_as_bytes(path: bytes, change: tuple[int, bytes, int], websocket: bool) -> None:  # noqa: FBT001
    at, put, taken = change
    other = path[:at] + put + path[at + taken :]
    for method in (GET, POST):
        if isinstance(route(method, other, websocket=websocket), Class):
            alike = other.startswith(b"/v1/models/") and other[11:].replace(b"-", b"").replace(b"_", b"").isalnum()
            assert other in PATHS or alike


def test_every_row_is_reached_and_every_class_is_one_that_plans_may_name() -> None:
    reached = {(path, cls) for (_, path), cls in HTTP.items()} | set(WEBSOCKET.items())
    assert {(row.path.replace("{id}", UUID.decode()[11:]).encode(), row.cls) for row in ROUTES} == reached
    assert {cls.value for cls in Class} == set(config.CLASSES)
