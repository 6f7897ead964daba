"""`dgproxy init` and `dgproxy check`, as an operator meets them: spec part 3, bad-inputs.md O1, O3, O9, O12."""

import contextlib
import datetime as dt
import ipaddress
import json
import os
import re
import shutil
import socket
import ssl
import stat
import subprocess
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
from cryptography import x509
from cryptography.hazmat.primitives import hashes, serialization
from cryptography.hazmat.primitives.asymmetric import rsa

from dgproxy import bootstrap
from tests.support.processes import free_port
from tests.support.proxy import DGPROXY, Proxy, dgproxy, edit


def init(directory: Path, *options: str) -> Path:
    dgproxy("init", str(directory), *options)
    return directory


@pytest.fixture
def made(tmp_path: Path) -> Path:
    """A directory as `init` makes it."""
    return init(tmp_path / "dg")


def findings(directory: Path, **env: str) -> list[dict[str, Any]]:
    """What `check --json` says, without what this release does not enforce and what is of this machine."""
    done = dgproxy("check", "--json", "-c", str(directory / "dgproxy.toml"), check=False, env=env)
    document = json.loads(done.stdout)
    assert set(document) == {"ok", "findings"}
    assert all(set(finding) == {"severity", "file", "key", "message", "line"} for finding in document["findings"])
    failed = any(finding["severity"] == "error" for finding in document["findings"])
    assert (done.returncode, document["ok"]) == ((1, False) if failed else (0, True))
    assert "Traceback" not in done.stderr
    return [
        finding
        for finding in document["findings"]
        if not finding["message"].startswith("not enforced yet") and not of_machine(finding)
    ]


def of_machine(finding: dict[str, Any]) -> bool:
    settings = ("limits.connections", "server.listen", "upstream.urls")
    return finding["severity"] == "warning" and str(finding["key"]).startswith(settings)


def the_finding(directory: Path, **env: str) -> tuple[str, str, str]:
    """Severity, place and message of the only finding."""
    (finding,) = findings(directory, **env)
    place = finding["key"] or str(Path(finding["file"]).relative_to(directory))
    return finding["severity"], place, finding["message"]


def modes(directory: Path) -> dict[str, str]:
    return {
        str(path.relative_to(directory)): f"{stat.S_IMODE(path.stat().st_mode):04o}"
        for path in sorted(directory.rglob("*"))
    }


# --- init -------------------------------------------------------------------------------------------------------------

MODES = {
    "certs": "0755",
    "certs/ca-key.pem": "0600",
    "certs/ca.pem": "0644",
    "certs/server-key.pem": "0600",
    "certs/server.pem": "0644",
    "dgproxy.toml": "0644",
    "state": "0700",
    "state/pepper": "0600",
}


def test_what_init_makes_passes_check(made: Path) -> None:
    assert findings(made) == []
    assert len((made / "state/pepper").read_bytes()) == 32


@pytest.mark.parametrize("umask", [0o000, 0o022])
def test_modes_are_right_whatever_the_umask(tmp_path: Path, umask: int) -> None:
    directory = tmp_path / "dg"
    subprocess.run([*DGPROXY, "init", str(directory)], check=True, umask=umask, stdout=subprocess.DEVNULL)
    assert modes(directory) == MODES
    assert stat.S_IMODE(directory.stat().st_mode) == 0o755


def test_init_says_in_json_what_it_made(tmp_path: Path) -> None:
    directory = tmp_path / "dg"
    paths = json.loads(dgproxy("init", str(directory), "--json").stdout)
    assert paths == {
        "directory": str(directory),
        "config": str(directory / "dgproxy.toml"),
        "ca": str(directory / "certs/ca.pem"),
        "ca_key": str(directory / "certs/ca-key.pem"),
        "certificate": str(directory / "certs/server.pem"),
        "private_key": str(directory / "certs/server-key.pem"),
        "state": str(directory / "state"),
        "pepper": str(directory / "state/pepper"),
    }
    assert all(Path(path).exists() for path in paths.values())


def test_init_says_what_to_do_next(tmp_path: Path) -> None:
    said = dgproxy("init", str(tmp_path / "dg")).stdout
    assert f"dgproxy keys create --name first -c {tmp_path}/dg/dgproxy.toml" in said
    assert f"dgproxy run -c {tmp_path}/dg/dgproxy.toml" in said


def test_init_writes_where_to_listen_and_whom_to_serve(tmp_path: Path) -> None:
    text = (
        init(tmp_path / "dg", "--listen", "[::1]:9443", "--upstream", "https://dg.internal") / "dgproxy.toml"
    ).read_text()
    assert 'listen = ["[::1]:9443"]' in text
    assert 'urls = ["https://dg.internal:443"]' in text


def test_init_makes_missing_parents_and_fills_a_directory_that_holds_other_things(tmp_path: Path) -> None:
    assert findings(init(tmp_path / "a/b/dg")) == []
    other = tmp_path / "other"
    other.mkdir()
    (other / "notes.txt").touch()
    assert findings(init(other)) == []
    assert sorted(path.name for path in other.iterdir()) == ["certs", "dgproxy.toml", "notes.txt", "state"]


@pytest.mark.parametrize("name", ["dgproxy.toml", "certs", "state"])
def test_init_writes_over_nothing(tmp_path: Path, name: str) -> None:
    directory = tmp_path / "dg"
    directory.mkdir()
    (directory / name).symlink_to("nowhere")  # not even what points to nothing
    done = dgproxy("init", str(directory), check=False)
    assert done.returncode == 1
    assert done.stderr == (
        f"dgproxy: {directory}: holds {name} already, and nothing is written over; choose another directory\n"
    )
    assert [path.name for path in directory.iterdir()] == [name]


def test_a_second_init_changes_nothing(made: Path) -> None:
    before = {path: path.read_bytes() for path in made.rglob("*") if path.is_file()}
    assert dgproxy("init", str(made), check=False).returncode == 1
    assert {path: path.read_bytes() for path in made.rglob("*") if path.is_file()} == before


def test_a_failed_init_leaves_nothing(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def full(*_: object) -> None:
        raise OSError(28, "No space left on device")

    existing = tmp_path / "existing"
    existing.mkdir()
    for failing in ("_write", "certificates"):
        with monkeypatch.context() as patch:
            patch.setattr(bootstrap, failing, full)
            for directory in (tmp_path / "a/b/dg", existing):
                with pytest.raises(bootstrap.BootstrapError, match="No space left on device; nothing was made"):
                    bootstrap.create(directory, "127.0.0.1:8443", "http://127.0.0.1:8080")
    assert [path.name for path in tmp_path.rglob("*")] == ["existing"]


def test_an_init_that_fails_while_it_moves_in_moves_out_again(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    rename = Path.rename

    def fails_last(path: Path, target: Path) -> Path:
        if target == tmp_path / "dgproxy.toml":
            raise PermissionError(13, "Permission denied", str(target))
        return rename(path, target)

    monkeypatch.setattr(Path, "rename", fails_last)
    with pytest.raises(bootstrap.BootstrapError, match=r"dgproxy.toml: Permission denied"):
        bootstrap.create(tmp_path, "127.0.0.1:8443", "http://127.0.0.1:8080")
    assert list(tmp_path.iterdir()) == []


@pytest.mark.parametrize(
    ("options", "code", "told"),
    [
        (("--listen", "8443"), 2, "names no port"),
        (("--upstream", "dg:8080"), 2, "is no URL"),
        (("--listen", "unix:/run/dg.sock"), 1, "is not supported yet by this release"),
        (("--listen", "127.0.0.1:9464"), 1, "admin.listen"),
    ],
)
def test_init_refuses_what_check_would(tmp_path: Path, options: tuple[str, ...], code: int, told: str) -> None:
    done = dgproxy("init", str(tmp_path / "dg"), *options, check=False, env={"COLUMNS": "200"})
    assert done.returncode == code
    assert told in done.stderr
    assert done.stdout == ""
    assert not (tmp_path / "dg").exists()


def test_a_file_is_no_place_for_init(tmp_path: Path) -> None:
    (tmp_path / "dg").touch()
    done = dgproxy("init", str(tmp_path / "dg"), check=False)
    assert (done.returncode, done.stderr) == (1, f"dgproxy: {tmp_path}/dg: is no directory; choose another\n")
    done = dgproxy("init", str(tmp_path / "dg/below"), check=False)
    assert done.returncode == 1
    assert "Not a directory; nothing was made" in done.stderr


# --- certificates -----------------------------------------------------------------------------------------------------


def handshake(directory: Path, name: str) -> None:
    """A whole TLS handshake in memory, with the strict checks of the client that is hardest to please."""
    server = ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER)
    server.load_cert_chain(directory / "certs/server.pem", directory / "certs/server-key.pem")
    client = ssl.create_default_context(cafile=str(directory / "certs/ca.pem"))
    client.verify_flags |= ssl.VERIFY_X509_STRICT
    to_server, to_client = ssl.MemoryBIO(), ssl.MemoryBIO()
    ends = [
        client.wrap_bio(to_client, to_server, server_hostname=name),
        server.wrap_bio(to_server, to_client, server_side=True),
    ]
    for _ in range(4):
        for end in list(ends):
            try:
                end.do_handshake()
            except ssl.SSLWantReadError:
                continue
            ends.remove(end)
    assert not ends


@pytest.mark.parametrize("name", ["localhost", "127.0.0.1", "::1"])
@pytest.mark.parametrize("listen", ["0.0.0.0:8443", "127.0.0.1:8443", "[::]:8443"])
def test_strict_clients_trust_the_server_by_this_machines_names(tmp_path: Path, listen: str, name: str) -> None:
    handshake(init(tmp_path / "dg", "--listen", listen), name)


@pytest.mark.parametrize(
    ("listen", "name"),
    [("Front.example:8443", "front.example"), ("192.0.2.7:8443", "192.0.2.7"), ("[2001:db8::7]:8443", "2001:db8::7")],
)
def test_strict_clients_trust_the_server_by_the_name_it_listens_on(tmp_path: Path, listen: str, name: str) -> None:
    directory = init(tmp_path / "dg", "--listen", listen)
    handshake(directory, name)
    with pytest.raises(ssl.SSLCertVerificationError):
        handshake(directory, "other.example")


def test_the_certificate_names_no_address_that_means_all(made: Path) -> None:
    certificate = x509.load_pem_x509_certificate((made / "certs/server.pem").read_bytes())
    names = certificate.extensions.get_extension_for_class(x509.SubjectAlternativeName).value
    assert names.get_values_for_type(x509.DNSName) == ["localhost"]
    assert names.get_values_for_type(x509.IPAddress) == [ipaddress.ip_address("127.0.0.1"), ipaddress.ip_address("::1")]


if OPENSSL := shutil.which("openssl"):

    def test_openssl_itself_finds_the_chain_strictly_valid(made: Path) -> None:
        command = [str(OPENSSL), "verify", "-x509_strict", "-purpose", "sslserver", "-CAfile"]
        done = subprocess.run(
            [*command, made / "certs/ca.pem", made / "certs/server.pem"], capture_output=True, text=True, check=False
        )
        assert (done.returncode, done.stderr) == (0, "")


def test_ca_pem_holds_the_ca_alone_and_no_two_are_alike(made: Path, tmp_path: Path) -> None:
    (ca,) = x509.load_pem_x509_certificates((made / "certs/ca.pem").read_bytes())
    (other,) = x509.load_pem_x509_certificates((init(tmp_path / "other") / "certs/ca.pem").read_bytes())
    assert ca.subject != other.subject
    assert ca.public_key() != other.public_key()


def renew(directory: Path, now: dt.datetime) -> dict[str, bytes]:
    """Certificates as `init` would have made them then."""
    made = bootstrap.certificates("127.0.0.1", now)
    for name, pem in made.items():
        (directory / "certs" / name).write_bytes(pem)
    return made


NOW = dt.datetime.now(dt.UTC)
LIFE = bootstrap.SERVER_LIFE


@pytest.mark.parametrize(
    ("then", "told"),
    [
        (NOW - LIFE + dt.timedelta(days=6, hours=6), "expires in 6 days; renew it"),
        (NOW - LIFE + dt.timedelta(days=1, hours=6), "expires in 1 day; renew it"),
        (NOW - LIFE - dt.timedelta(days=1), "expired on "),
        (NOW + dt.timedelta(days=1), "is not valid before "),
    ],
)
def test_a_certificate_out_of_its_time_is_worth_a_warning(made: Path, then: dt.datetime, told: str) -> None:
    renew(made, then)
    severity, place, message = the_finding(made)
    assert (severity, place) == ("warning", "certs/server.pem")
    assert message.startswith(told)


def test_a_certificate_that_lasts_is_worth_none(made: Path) -> None:
    renew(made, NOW - LIFE + dt.timedelta(days=15))
    assert findings(made) == []


def test_a_chain_is_leaf_first(made: Path) -> None:
    pem = renew(made, NOW)
    chain = made / "certs/server.pem"
    chain.write_bytes(pem["server.pem"] + pem["ca.pem"])
    assert findings(made) == []
    chain.write_bytes(pem["ca.pem"] + pem["server.pem"])
    said = {finding["key"] or "chain": finding["message"] for finding in findings(made)}
    assert "put that one first" in said["tls.private_key"]
    assert "order the chain leaf first, root last" in said["chain"]
    chain.write_bytes(pem["server.pem"] + bootstrap.certificates("x", NOW)["ca.pem"])
    severity, place, message = the_finding(made)
    assert (severity, place) == ("error", "certs/server.pem")
    assert message.startswith("what follows CN=dgproxy did not sign it")


def encrypted(directory: Path) -> None:
    path = directory / "certs/server-key.pem"
    key = serialization.load_pem_private_key(path.read_bytes(), None)
    path.write_bytes(
        key.private_bytes(
            serialization.Encoding.PEM,
            serialization.PrivateFormat.PKCS8,
            serialization.BestAvailableEncryption(b"passphrase"),
        )
    )


def weak(directory: Path) -> None:
    """An RSA key that OpenSSL's security level refuses, with a certificate of its own."""
    key = rsa.generate_private_key(public_exponent=65537, key_size=1024)  # noqa: S505 - that is the point
    name = x509.Name([])
    certificate = (
        x509.CertificateBuilder(
            name, name, key.public_key(), 1, NOW - dt.timedelta(days=1), NOW + dt.timedelta(days=99)
        )
        .add_extension(x509.SubjectAlternativeName([x509.DNSName("localhost")]), critical=False)
        .sign(key, hashes.SHA256())
    )
    pem, form = serialization.Encoding.PEM, serialization.PrivateFormat.PKCS8
    (directory / "certs/server.pem").write_bytes(certificate.public_bytes(pem))
    (directory / "certs/server-key.pem").write_bytes(key.private_bytes(pem, form, serialization.NoEncryption()))


def other_key(directory: Path) -> None:
    (directory / "certs/server-key.pem").write_bytes(bootstrap.certificates("x", NOW)["server-key.pem"])


def der(directory: Path) -> None:
    path = directory / "certs/server.pem"
    path.write_bytes(x509.load_pem_x509_certificate(path.read_bytes()).public_bytes(serialization.Encoding.DER))


def certificate_as_key(directory: Path) -> None:
    shutil.copy(directory / "certs/server.pem", directory / "certs/server-key.pem")  # with its mode 0644


def key_as_certificate(directory: Path) -> None:
    shutil.copy(directory / "certs/server-key.pem", directory / "certs/server.pem")


PAIRS: list[tuple[Any, str, str]] = [
    (lambda d: (d / "certs/server.pem").unlink(), "certs/server.pem", "no such file; tls.certificate names it"),
    (lambda d: (d / "certs/server.pem").write_bytes(b"\xff"), "certs/server.pem", "holds no certificate in PEM"),
    (lambda d: (d / "certs/server-key.pem").unlink(), "tls.private_key", '"{}" no such file'),
    (lambda d: (d / "certs/server-key.pem").write_bytes(b"\xff"), "tls.private_key", "holds no private key in PEM"),
    (lambda d: (d / "certs/server-key.pem").chmod(0o640), "tls.private_key", '"{}" has mode 0640'),
    (other_key, "tls.private_key", "does not belong to the first certificate in tls.certificate; name the key"),
    (encrypted, "tls.private_key", "is encrypted, and nobody is there to type its passphrase"),
    (weak, "certs/server.pem", "OpenSSL does not take it with its key"),
    (der, "certs/server.pem", "is not PEM, but DER; `openssl x509 -inform DER"),
    (certificate_as_key, "tls.private_key", "holds a certificate and no private key; that belongs in tls.certificate"),
    (key_as_certificate, "certs/server.pem", "holds a private key and no certificate; that belongs in tls.private_key"),
]


@pytest.mark.parametrize(("spoil", "place", "told"), PAIRS)
def test_a_certificate_or_key_that_cannot_serve_is_an_error(made: Path, spoil: Any, place: str, told: str) -> None:
    spoil(made)
    severity, where, message = the_finding(made)
    assert (severity, where) == ("error", place)
    assert message.startswith(told.format(made / "certs/server-key.pem"))


def test_a_plain_listener_needs_no_certificate(made: Path) -> None:
    shutil.rmtree(made / "certs")
    edit(made / "dgproxy.toml", {"server.tls": "false"})
    assert findings(made) == []


# --- check ------------------------------------------------------------------------------------------------------------


def check(*args: str, cwd: Path, **env: str) -> tuple[int, str, str]:
    """Exit code, stdout and stderr of `check` in this directory."""
    done = subprocess.run(
        [*DGPROXY, "check", *args], capture_output=True, text=True, check=False, cwd=cwd, env={**os.environ, **env}
    )
    assert "Traceback" not in done.stderr
    return done.returncode, done.stdout, done.stderr


def test_check_tells_every_finding_in_a_line_then_counts_them(made: Path) -> None:
    edit(
        made / "dgproxy.toml",
        {"plans.default.rate": '"20 per second"', "server.workers": "0", "limits.connections": "1"},
    )
    text = (made / "dgproxy.toml").read_text().replace("\ntls = ", "\ntsl = ")
    (made / "dgproxy.toml").write_text(text)
    line = {entry.split(" = ")[0]: number for number, entry in enumerate(text.splitlines(), 1)}
    code, said, _ = check(cwd=made)
    assert code == 1
    no_rate = '"20 per second" is no rate; write "20/s", "1200/min", "10/h" or "5/day"'
    assert said.splitlines() == [
        f"dgproxy.toml:{line['tsl']}: server.tsl: unknown key; did you mean server.tls?",
        f"dgproxy.toml:{line['workers']}: server.workers: found the number 0; it must be from 1 to 512",
        f"dgproxy.toml:{line['rate']}: plans.default.rate: {no_rate}",
        "3 errors",
    ]


def test_check_says_ok_with_what_is_worth_knowing(tmp_path: Path) -> None:
    with listening() as upstream:
        made = init(tmp_path / "dg", "--listen", f"127.0.0.1:{free_port()}", "--upstream", upstream)
        says_ok_with_what_is_worth_knowing(made)


def says_ok_with_what_is_worth_knowing(made: Path) -> None:
    renew(made, NOW - LIFE + dt.timedelta(days=6, hours=6))
    edit(made / "dgproxy.toml", {"plans.default.stream_max_life": '"1h"', "limits.connections": "1"})
    code, said, _ = check(cwd=made)
    assert code == 0
    lines = said.splitlines()
    assert lines[0] == "certs/server.pem: warning: expires in 6 days; renew it"
    assert re.fullmatch(
        r"dgproxy\.toml:[0-9]+: plans\.default\.stream_max_life: warning: parsed, but not enforced.*", lines[1]
    )
    assert lines[2].startswith("dgproxy.toml: warning: not enforced yet by this release, and at their defaults: ")
    assert lines[3:] == ["dgproxy.toml: ok (3 warnings)"]


@contextlib.contextmanager
def listening() -> Iterator[str]:
    """The URL of a port that takes connections."""
    with socket.create_server(("127.0.0.1", 0)) as server:
        yield f"http://127.0.0.1:{server.getsockname()[1]}"


def test_a_container_that_cannot_be_reached_is_worth_a_warning(made: Path) -> None:
    with listening() as answers, socket.socket() as deaf:
        deaf.bind(("127.0.0.1", 0))
        refuses = f"http://127.0.0.1:{deaf.getsockname()[1]}"
        urls = [answers, refuses, "https://no.such.name.invalid"]
        edit(made / "dgproxy.toml", {"upstream.urls": json.dumps(urls)})
        told = told_of(made, "upstream.urls")
    assert set(told) == {"upstream.urls[1]", "upstream.urls[2]"}
    assert told["upstream.urls[1]"] == f"{refuses} cannot be reached now: Connection refused; is the container up?"
    assert told["upstream.urls[2]"].startswith("https://no.such.name.invalid:443 cannot be reached now: ")


def test_a_container_that_says_nothing_is_waited_for_within_bounds(made: Path) -> None:
    with socket.create_server(("127.0.0.1", 0), backlog=0) as full, contextlib.ExitStack() as queued:
        for _ in range(8):  # what the kernel queues; the rest of them it leaves unanswered
            client = queued.enter_context(socket.socket())
            client.settimeout(0)
            client.connect_ex(full.getsockname())
        url = f"http://127.0.0.1:{full.getsockname()[1]}"
        edit(made / "dgproxy.toml", {"upstream.urls": f'["{url}"]', "upstream.connect_timeout": '"300ms"'})
        told = told_of(made, "upstream.urls")
    assert told == {"upstream.urls[0]": f"{url} cannot be reached now: no answer within 0.3 s; is a firewall between?"}


def test_an_address_that_cannot_be_listened_on_is_worth_a_warning(made: Path) -> None:
    with socket.create_server(("127.0.0.1", 0)) as other:
        taken, free = f"127.0.0.1:{other.getsockname()[1]}", f"127.0.0.1:{free_port()}"
        edit(made / "dgproxy.toml", {"server.listen": json.dumps([free, taken, "192.0.2.1:443"])})
        told = told_of(made, "server.listen")
    assert told == {
        "server.listen[1]": f"cannot listen on {taken}: another process listens there; end it, or choose another port",
        "server.listen[2]": "cannot listen on 192.0.2.1:443: this machine has no such address",
    }


def test_a_port_that_the_proxy_itself_holds_is_none(tmp_path: Path) -> None:
    with listening() as upstream, Proxy(tmp_path, upstream) as proxy:
        assert told_of(proxy.directory, "server.listen") == {}


def told_of(directory: Path, key: str) -> dict[str, str]:
    """The warnings of one setting, by key; nothing else is an error."""
    done = dgproxy("check", "--json", "-c", str(directory / "dgproxy.toml"))
    found = [finding for finding in json.loads(done.stdout)["findings"] if finding["key"].startswith(key)]
    assert all(finding["severity"] == "warning" and finding["line"] for finding in found)
    return {finding["key"]: finding["message"] for finding in found}


def test_check_finds_the_configuration_by_option_environment_or_directory(made: Path, tmp_path: Path) -> None:
    config = str(made / "dgproxy.toml")
    assert check("-c", config, cwd=tmp_path)[0] == 0
    assert check(cwd=tmp_path, DGPROXY_CONFIG=config)[0] == 0
    assert check(cwd=made, DGPROXY_CONFIG="")[0] == 0
    assert check("-c", "missing.toml", cwd=made) == (
        1,
        "missing.toml: no such file; `dgproxy init DIR` makes one\n1 error\n",
        "",
    )


@pytest.mark.parametrize("name", ["\udcff.toml", "a\x1b[31m.toml"])
def test_a_name_that_no_terminal_should_see_is_no_traceback(made: Path, name: str) -> None:
    assert check("-c", name, cwd=made)[0] == 1
    code, said, _ = check("-c", name, "--json", cwd=made)
    assert code == 1
    assert json.loads(said)["ok"] is False


def test_check_warns_of_a_limit_that_descriptors_do_not_reach(made: Path) -> None:
    edit(made / "dgproxy.toml", {"limits.connections": "5000000"})
    _, said, _ = check("--json", cwd=made)
    (finding,) = (each for each in json.loads(said)["findings"] if each["key"] == "limits.connections")
    assert finding["severity"] == "warning"
    assert finding["message"].startswith("5000000 need 10000100 file descriptors, and the hard limit is ")


# --- pepper, state and store: O3, O4, O9 ------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("spoil", "told"),
    [
        (lambda pepper: pepper.unlink(), "no such file; restore the one that the keys were made with"),
        (lambda pepper: pepper.write_bytes(b"x" * 31), "holds 31 bytes, and a pepper has 32; restore the one"),
        (lambda pepper: pepper.chmod(0o644), "has mode 0644, so that others than its owner can use it; chmod 600"),
    ],
)
def test_a_pepper_that_cannot_be_used_is_an_error(made: Path, spoil: Any, told: str) -> None:
    spoil(made / "state/pepper")
    severity, place, message = the_finding(made)
    assert (severity, place) == ("error", "keys.pepper_file")
    assert message.startswith(f'"{made}/state/pepper" {told}')


def test_a_pepper_of_the_environment_serves(made: Path) -> None:
    pepper = made / "state/pepper"
    text = pepper.read_bytes().hex()
    pepper.unlink()
    edit(made / "dgproxy.toml", {"keys.pepper_file": '"env:OWN_PEPPER"'})
    assert findings(made, OWN_PEPPER=text) == []
    assert the_finding(made)[2].startswith('"env:OWN_PEPPER" is not set in the environment')


@pytest.mark.parametrize(
    ("mode", "severity", "told"),
    [
        (0o777, "error", "has mode 0777, so others can replace its files; chmod 700"),
        (0o755, "warning", "has mode 0755, so that others can look into it; chmod 700"),
    ],
)
def test_a_state_directory_that_others_may_use_is_told(made: Path, mode: int, severity: str, told: str) -> None:
    (made / "state").chmod(mode)
    assert the_finding(made) == (severity, "state", told)


def test_a_missing_state_directory_is_an_error(made: Path) -> None:
    edit(made / "dgproxy.toml", {"state.directory": '"elsewhere"'})
    severity, place, message = the_finding(made)
    assert (severity, place) == ("error", "elsewhere")
    assert message.startswith("cannot be used as state directory (No such file or directory)")


def test_a_damaged_key_store_is_an_error_and_is_left_as_it_is(made: Path) -> None:
    store = made / "state/keys.db"
    store.write_bytes(b"this is not a database" * 100)
    store.chmod(0o600)
    severity, place, message = the_finding(made)
    assert (severity, place) == ("error", "state/keys.db")
    assert "is not a SQLite database" in message
    assert store.read_bytes() == b"this is not a database" * 100


def test_check_writes_nothing(made: Path) -> None:
    before = {path: path.stat().st_mtime_ns for path in made.rglob("*")}
    assert findings(made) == []
    assert {path: path.stat().st_mtime_ns for path in made.rglob("*")} == before
