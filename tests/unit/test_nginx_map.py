"""Keys in nginx's maps: what is taken, what is reported, and that nothing is guessed."""

import pytest

from dgproxy.access.nginx_map import Broken, read

KEY = "abcdefghijklmnopqrstuvwxyz"
OTHER = "zyxwvutsrqponmlkjihgfedcba"


def keys(entries: str, source: str = "$http_x_api_key") -> list[tuple[str, str | None]]:
    """What is taken of a map with these entries, of which nothing bad is to be said."""
    found = read(f"map {source} $client {{ {entries} }}")
    assert not [finding for finding in found.findings if finding[2]]
    return [(key, name) for _, key, name in found.keys]


def left_out(entries: str, source: str = "$http_x_api_key") -> str:
    """Why none is taken of a map with this entry."""
    found = read(f"map {source} $client {{ {entries} }}")
    assert not found.keys
    ((line, message, bad),) = found.findings
    assert line == 1
    assert KEY not in message
    return f"{'bad: ' if bad else ''}{message}"


WRITTEN = {
    "bare": f"{KEY} mobile;",
    "quoted": f'"{KEY}" "mobile";',
    "single quotes": f"'{KEY}' 'mobile';",
    "escaped bare": rf"\{KEY} mobile;",
    "on lines": f'"{KEY}"\n\tmobile\n;',
    "a regular expression of one text": f'"~^{KEY}$" mobile;',
    "without regard to case": f"~*^{KEY}$ mobile;",
    "parameters": f'default ""; hostnames; volatile; {KEY} mobile;',
    "comments": f"# {OTHER} old;\n{KEY} mobile; # {OTHER}\n#}}\n",
}


@pytest.mark.parametrize("entries", WRITTEN.values(), ids=WRITTEN)
def test_a_key_is_taken_however_it_is_written(entries: str) -> None:
    assert keys(entries) == [(KEY, "mobile")]


@pytest.mark.parametrize(
    ("source", "value"),
    [
        ("$http_authorization", "Token {}"),
        ("$http_authorization", "bearer {}"),
        ("$HTTP_Authorization", "Token  {}"),
        ("$http_sec_websocket_protocol", "token, {}"),
        ("$http_sec_websocket_protocol", "Bearer,{}"),
        ("$http_x_api_key", "{}"),
    ],
)
def test_each_header_has_its_form(source: str, value: str) -> None:
    assert keys(f'"{value.format(KEY)}" n;', source) == [(KEY, "n")]
    assert keys(f'"~*^{value.format(KEY)}$" n;', source) == [(KEY, "n")]


def test_escapes_are_nginxs() -> None:
    """ngx_conf_read_token: a backslash goes before a quote, a backslash, t, r and n, and stays before all else."""
    assert keys(rf'"{KEY}\"\\\t" n;') == [(f'{KEY}"\\\t', "n")]
    assert keys(rf'"{KEY}\." n;') == [(rf"{KEY}\.", "n")]
    assert keys(rf'"~^{KEY}\.\-\$$" n;') == [(f"{KEY}.-$", "n")]
    assert keys(rf'\default n; "\~{KEY}" m;') == [("default", "n"), (f"~{KEY}", "m")]


@pytest.mark.parametrize("value", ["1", "true", "ok", '"yes"', "$remote_addr"])
def test_a_result_that_says_nothing_leaves_the_name_to_the_comment(value: str) -> None:
    assert keys(f"{KEY} {value}; # the app \n{OTHER} {value};") == [(KEY, "the app"), (OTHER, None)]


@pytest.mark.parametrize(
    "entries",
    [
        f'{KEY} "";',
        f"{KEY} 0;",
        f"default 0; {KEY} 0;",
        f'default 0; {KEY} "";',
        f"default denied; {KEY} denied;",
        f"{KEY} 1; default 1;",
    ],
)
def test_a_key_that_gets_what_strangers_get_is_not_taken(entries: str) -> None:
    assert left_out(entries) == "left out: it gets what an unknown key gets"


def test_a_map_may_say_who_is_denied() -> None:
    assert keys(f"default 1; {KEY} 0;") == [(KEY, None)]


@pytest.mark.parametrize(
    "pattern",
    [KEY, f"^{KEY}", f"{KEY}$", f"^{KEY[:-1]}.$", f"^{KEY}|x$", f"^({KEY})$", rf"^{KEY}\d$", f"^{KEY}\\$", ""],
)
def test_a_regular_expression_of_more_than_one_text_is_reported(pattern: str) -> None:
    assert left_out(f'"~{pattern}" n;') == "bad: a regular expression that may match more than one text is left out"


def test_other_schemes_and_other_forms_are_reported() -> None:
    basic = "bad: Basic and other schemes are left out: keys come with Token or Bearer"
    assert left_out(f'"Basic {KEY}" n;', "$http_authorization") == basic
    shape = "bad: left out: not the form in which this header carries a key"
    assert left_out(f"{KEY} n;", "$http_authorization") == shape
    assert left_out(f'"Token {KEY}" n;', "$http_sec_websocket_protocol") == shape
    assert left_out("include keys.map;").startswith("bad: include is not followed")
    assert left_out(f"{KEY} a b;") == "bad: an entry of a map has a value and a result"
    assert keys('"" n;') == []


def test_only_maps_of_headers_that_carry_keys_are_read() -> None:
    found = read(
        f"map $host $a {{ {KEY} x; }} map $http_apikey $b {{ {KEY} x; }} map $http_x_api_key$arg_key $c {{ {KEY} x; }}"
    )
    assert (found.maps, found.keys) == (0, [])
    assert [message.startswith("a map of another header") for _, message, _ in found.findings] == [True, True]


def test_a_whole_configuration_is_walked() -> None:
    found = read(
        f"""
        user www; include mime.types;
        http {{
            log_format main '$remote_addr "$request" {{}}';
            map $http_x_api_key $client {{
                default "";
                "{KEY}" mobile;
            }}
            server {{
                location ~ ^/v1/(listen|speak)$ {{
                    if ($client = "") {{ return 401 '{{"err_code":"INVALID_AUTH"}}'; }}
                    content_by_lua_block {{ ngx.say("it's {{}} fine") }}
                    proxy_set_header X-Name "${{client}}";
                    set $x ${{client}}y;
                }}
            }}
            map $http_authorization $by_scheme {{ "Token {OTHER}" web; }}
        }}
        """
    )
    assert found.keys == [(7, KEY, "mobile"), (17, OTHER, "web")]
    assert found.findings == [(2, "include is not followed; import that file too", False)]
    assert found.maps == 2


@pytest.mark.parametrize(
    ("text", "line"),
    [
        ('map $http_x_api_key $c {\n "a b;\n}', 2),
        ('map $http_x_api_key $c {\n "a"b c;\n}', 2),
        ("map $http_x_api_key $c {\n a b;\n", 3),
        ("map $http_x_api_key $c {\n a { b; }\n}", 2),
        ("map $http_x_api_key $c {\n a b\n}", 3),
        ("}\n", 1),
        ("http {", 1),
        ("user www", 1),
        ("a;\ncontent_by_lua_block {\n{}", 2),
    ],
)
def test_what_nginx_would_not_load_is_not_read(text: str, line: int) -> None:
    with pytest.raises(Broken) as caught:
        read(text)
    assert caught.value.line == line
