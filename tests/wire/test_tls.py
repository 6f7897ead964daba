"""Handshakes with other people's clients: what is spoken, what is refused, and which sessions resume where."""

import re
import socket
import ssl
import subprocess
import threading
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import Final

import pytest

from dgproxy.net import libssl, tls
from dgproxy.net.libssl import TICKET_KEYS_LENGTH
from tests.support.peers import certificates

PATIENCE: Final = 10.0
KEYS: Final = bytes(range(TICKET_KEYS_LENGTH))
OTHER_KEYS: Final = bytes(reversed(range(TICKET_KEYS_LENGTH)))


class Server:
    """Echoes what each client says, one client after the other, under one context; the sessions and errors it saw."""

    def __init__(self, context: ssl.SSLContext) -> None:
        self.resumed: list[bool] = []
        self.errors: list[BaseException] = []
        self._context = context
        self._listener = socket.create_server(("127.0.0.1", 0))
        self._listener.settimeout(PATIENCE)
        self.port = int(self._listener.getsockname()[1])
        self._thread = threading.Thread(target=self._serve, daemon=True)
        self._thread.start()

    def _serve(self) -> None:
        while True:
            try:
                sock, _ = self._listener.accept()
            except OSError:
                return
            sock.settimeout(PATIENCE)
            try:
                with tls.wrap(sock, self._context, server_side=True) as wrapped:
                    wrapped.do_handshake()
                    self.resumed.append(bool(wrapped.session_reused))
                    while said := wrapped.recv(1000):
                        wrapped.sendall(said)
            except OSError as error:
                self.errors.append(error)

    def close(self) -> None:
        """Once it is through with its client; may be called twice."""
        if self._listener.fileno() >= 0:
            self._listener.shutdown(socket.SHUT_RDWR)
            self._listener.close()
        self._thread.join(PATIENCE)
        assert not self._thread.is_alive()


@contextmanager
def serving(context: ssl.SSLContext) -> Iterator[Server]:
    server = Server(context)
    try:
        yield server
    finally:
        server.close()


@contextmanager
def client(
    server: Server, context: ssl.SSLContext | None = None, session: ssl.SSLSession | None = None
) -> Iterator[ssl.SSLSocket]:
    context = context or certificates().client()
    with (
        socket.create_connection(("127.0.0.1", server.port), timeout=PATIENCE) as sock,
        context.wrap_socket(sock, server_hostname="127.0.0.1", session=session) as wrapped,
    ):
        yield wrapped


def echo(sock: ssl.SSLSocket, said: bytes = b"hello") -> bytes:
    """An exchange of bytes; a TLS 1.3 client has its tickets after it."""
    sock.sendall(said)
    return sock.recv(1000)


def openssl(server: Server, *options: str, said: str = "") -> "subprocess.CompletedProcess[str]":
    """`openssl s_client`, an implementation of the other side that Python has no hand in."""
    return subprocess.run(
        [
            "openssl",
            "s_client",
            "-connect",
            f"127.0.0.1:{server.port}",
            "-CAfile",
            certificates().ca,
            "-verify_return_error",
            *options,
        ],
        input=said,
        capture_output=True,
        text=True,
        timeout=PATIENCE,
        check=False,
    )


# --- what is spoken --------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("version", [ssl.TLSVersion.TLSv1_2, ssl.TLSVersion.TLSv1_3])
def test_both_modern_versions_are_spoken_with_forward_secrecy(version: ssl.TLSVersion) -> None:
    with serving(certificates().server()) as server:
        context = certificates().client()
        context.minimum_version = context.maximum_version = version
        with client(server, context) as sock:
            assert echo(sock) == b"hello"
            cipher = sock.cipher()
            assert cipher is not None
            assert re.match(r"TLS_|ECDHE-", cipher[0])
            assert sock.compression() is None


@pytest.mark.parametrize(
    ("offered", "agreed"),
    [
        (["http/1.1"], "http/1.1"),
        (["h2", "http/1.1"], "http/1.1"),
        (["http/1.1", "h2"], "http/1.1"),
        (["h2"], None),
        ([], None),
    ],
)
def test_alpn_is_http_1_1_or_nothing(offered: list[str], agreed: str | None) -> None:
    with serving(certificates().server()) as server:
        context = certificates().client()
        if offered:
            context.set_alpn_protocols(offered)
        with client(server, context) as sock:
            assert sock.selected_alpn_protocol() == agreed
            assert echo(sock) == b"hello"


def test_openssl_takes_the_chain_and_the_protocol() -> None:
    with serving(certificates().server()) as server:
        said = openssl(server, "-alpn", "h2,http/1.1", "-verify_ip", "127.0.0.1", "-x509_strict")
        assert "Verify return code: 0 (ok)" in said.stdout
        assert "ALPN protocol: http/1.1" in said.stdout
        assert "Secure Renegotiation IS supported" in said.stdout or "TLSv1.3" in said.stdout
        assert "Early data was not sent" in said.stdout


# --- what is refused -------------------------------------------------------------------------------------------------

WEAK: Final = {
    "TLS 1.0": ["-tls1", "-cipher", "ALL:@SECLEVEL=0"],
    "TLS 1.1": ["-tls1_1", "-cipher", "ALL:@SECLEVEL=0"],
    "no forward secrecy": ["-tls1_2", "-cipher", "kRSA:@SECLEVEL=0"],
    "CBC": ["-tls1_2", "-cipher", "ECDHE-ECDSA-AES128-SHA:ECDHE-ECDSA-AES256-SHA384"],
    "anonymous": ["-tls1_2", "-cipher", "aNULL:eNULL:@SECLEVEL=0"],
}


@pytest.mark.parametrize("options", WEAK.values(), ids=WEAK)
def test_what_is_old_or_weak_is_refused(options: list[str]) -> None:
    with serving(certificates().server()) as server:
        said = openssl(server, *options)
        assert said.returncode != 0
        assert re.search(r"alert (handshake failure|protocol version)|no protocols available", said.stderr), said.stderr
        assert openssl(server).returncode == 0  # and who comes as others do is served
        assert server.resumed == [False]


def test_a_minimum_of_1_3_refuses_1_2() -> None:
    with serving(certificates().server("1.3")) as server:
        context = certificates().client()
        context.maximum_version = ssl.TLSVersion.TLSv1_2
        with pytest.raises(ssl.SSLError), client(server, context):
            pass
        with client(server) as sock:
            assert sock.version() == "TLSv1.3"


def test_a_client_cannot_make_us_renegotiate() -> None:
    with serving(certificates().server()) as server:
        asking = subprocess.Popen(
            ["openssl", "s_client", "-connect", f"127.0.0.1:{server.port}", "-tls1_2"],
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            stderr=subprocess.STDOUT,
        )
        assert asking.stdin is not None
        assert asking.stdout is not None
        with asking:
            asking.stdin.write(b"R\n")  # its order to ask; it is not told the end of its input, so it has time to
            asking.stdin.flush()
            said = asking.stdout.read()
        assert b"RENEGOTIATING" in said
        assert b"no renegotiation" in said
        assert asking.returncode != 0
        assert server.resumed == [False]


def test_a_certificate_without_its_own_key_is_refused_at_once() -> None:
    ours = certificates()
    with pytest.raises(ssl.SSLError):
        tls.server_context(ours.ca, ours.private_key, "1.2")
    with pytest.raises(OSError, match="No such file"):
        tls.server_context(ours.certificate, ours.private_key + ".none", "1.2")


def test_a_client_of_ours_believes_no_stranger_and_no_other_name(monkeypatch: pytest.MonkeyPatch) -> None:
    with serving(certificates().server()) as server:
        with pytest.raises(ssl.SSLCertVerificationError), client(server, tls.client_context()):
            pass
        monkeypatch.setenv("SSL_CERT_FILE", certificates().ca)
        context = tls.client_context()
        with client(server, context) as sock:
            assert echo(sock) == b"hello"
        with (
            socket.create_connection(("127.0.0.1", server.port), timeout=PATIENCE) as sock,
            pytest.raises(ssl.SSLCertVerificationError),
        ):
            context.wrap_socket(sock, server_hostname="elsewhere.example")


# --- resumption ------------------------------------------------------------------------------------------------------


def resumes(
    version: ssl.TLSVersion, first: ssl.SSLContext, second: ssl.SSLContext, between: Callable[[], None] = lambda: None
) -> bool:
    """Whether a session that the first context began goes on with the second."""
    context = certificates().client()
    context.minimum_version = context.maximum_version = version
    with serving(first) as one, client(one, context) as sock:
        assert echo(sock) == b"hello"
        session = sock.session
        assert session is not None
        assert session.has_ticket
    between()
    with serving(second) as other, client(other, context, session) as sock:
        assert echo(sock) == b"hello"  # resumed or not, it is served
        assert bool(sock.session_reused) is other.resumed[0]
        return other.resumed[0]


versions = pytest.mark.parametrize("version", [ssl.TLSVersion.TLSv1_2, ssl.TLSVersion.TLSv1_3])


@versions
def test_a_session_resumes_on_another_worker_with_the_same_ticket_keys(version: ssl.TLSVersion) -> None:
    server = certificates().server
    assert resumes(version, server(ticket_keys=KEYS), server(ticket_keys=KEYS))


@versions
def test_a_session_does_not_resume_where_the_ticket_keys_differ(version: ssl.TLSVersion) -> None:
    server = certificates().server
    assert not resumes(version, server(ticket_keys=KEYS), server(ticket_keys=OTHER_KEYS))
    assert not resumes(version, server(), server())  # so that it is the keys that make the difference above


def test_openssl_resumes_across_contexts_too(tmp_path_factory: pytest.TempPathFactory) -> None:
    session = str(tmp_path_factory.mktemp("session") / "session.pem")
    with serving(certificates().server(ticket_keys=KEYS)) as server:
        assert "New, TLSv1.2" in openssl(server, "-tls1_2", "-sess_out", session).stdout
    with serving(certificates().server(ticket_keys=KEYS)) as server:
        assert "Reused, TLSv1.2" in openssl(server, "-tls1_2", "-sess_in", session).stdout
    with serving(certificates().server(ticket_keys=OTHER_KEYS)) as server:
        assert "New, TLSv1.2" in openssl(server, "-tls1_2", "-sess_in", session).stdout


# --- OpenSSL beyond Python's ssl -------------------------------------------------------------------------------------


def test_openssl_is_reached_on_this_python() -> None:
    """Without it tickets do not resume across workers, and a half-closed TLS stream can't be read."""
    found = libssl.probe()
    assert found is not None
    assert found.proves()
    assert libssl.probe() is found


def test_ticket_keys_of_another_length_are_an_error() -> None:
    found = libssl.probe()
    assert found is not None
    assert found.set_ticket_keys(certificates().server(), KEYS)
    with pytest.raises(ValueError, match="80 bytes"):
        found.set_ticket_keys(certificates().server(), KEYS[1:])


def test_a_python_that_is_not_known_is_left_alone(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(libssl, "_TESTED", frozenset())
    assert libssl.probe.__wrapped__() is None


def test_a_layout_that_does_not_prove_itself_is_not_used(monkeypatch: pytest.MonkeyPatch) -> None:
    found = libssl.probe()
    assert found is not None
    blank = certificates().server()
    pointer = libssl._context_pointer(blank)
    monkeypatch.setattr(libssl, "_context_pointer", lambda _: pointer)  # a valid one, but always the same
    assert not found.proves()


def test_close_notify_leaves_the_other_direction_readable() -> None:
    with serving(certificates().server()) as server, client(server) as sock:
        assert echo(sock) == b"hello"
        sock.sendall(b"last")
        assert tls.close_notify(tls.connection(sock)) is True
        assert sock.recv(1000) == b"last"
        with pytest.raises(ssl.SSLError):
            sock.sendall(b"more")


def test_a_stream_that_ends_without_close_notify_is_an_error() -> None:
    with serving(certificates().server()) as server:
        with client(server) as sock:
            assert echo(sock) == b"hello"
        server.close()  # the client closed its socket without a word
        (error,) = server.errors
        assert isinstance(error, ssl.SSLError)
        assert error.reason == "UNEXPECTED_EOF_WHILE_READING" or isinstance(error, ssl.SSLEOFError)
