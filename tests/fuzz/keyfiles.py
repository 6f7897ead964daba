"""A file of keys: whatever it holds, reading it ends, raises nothing, and says nothing of what may be a key."""

from typing import Final

from dgproxy.access import keyfiles
from dgproxy.access.keyfiles import EXPORT_COLUMNS, Format, read, with_plans
from tests.fuzz.harness import Harness

_KEY: Final = "apikey1234abcdefghij0123456789"


def check(data: bytes) -> None:
    """The whole property."""
    found = read(data)
    for form in Format:
        file = with_plans(read(data, form), {}, None, ())
        assert len(file.entries) <= keyfiles.MAX_ENTRIES
        for finding in file.findings:
            assert _KEY not in finding.message
        for entry in file.entries:
            assert (entry.key is None) != (entry.moved is None)
            assert entry.place > 0
        if form is found.format and not found.fatal():
            assert {entry.place for entry in file.entries} <= {entry.place for entry in found.entries}


HARNESS: Final = Harness(
    check,
    seeds=(
        f"Name,key,description,Enabled,usageplanIds\r\nApp,{_KEY},An imported key,TRUE,'a,b'\r\n".encode(),
        f'\ufeffsep=;\nname;key;expires;streams\n"a\nb";{_KEY};2027-01-31;5\n'.encode(),
        f'{{"items": [{{"id": "a", "value": "{_KEY}", "name": "n", "enabled": true}}]}}'.encode(),
        f'map $http_authorization $c {{ default ""; "~*^Token {_KEY}$" app; {_KEY} 1; # x\n include y; }}'.encode(),
        f"{','.join(EXPORT_COLUMNS)}\n0123456789,'=n,p,active,2026-01-01,,never,no,,{'ab' * 32},00c0ffee\n".encode(),
    ),
    words=(b",", b";", b"\t", b"\r\n", b'"', b"'", b"\\", b"{", b"}", b"#", b"~^", b"$", _KEY.encode(), b"\0"),
    longest=1024,
)
