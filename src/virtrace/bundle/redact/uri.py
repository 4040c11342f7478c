"""Redact a URI: ``nbd+unix:///export?socket=/path``, ``qemu+ssh://user@host/system``."""

from __future__ import annotations

import re
from urllib.parse import quote, unquote

from virtrace.bundle import words
from virtrace.bundle.redact.context import Context, TextRedactor
from virtrace.bundle.redact.paths import redact_path

_DAEMONS = ("system", "session")


def redact_uri(redactor: TextRedactor, text: str, context: Context) -> str:
    scheme, _, rest = text.partition("://")
    if not all(words.is_word(part) for part in re.split("[+.-]", scheme)):
        scheme = redactor.names.add("text", scheme)
    rest, question, query = rest.partition("?")
    authority, slash, path = rest.partition("/")
    account, at, places = authority.rpartition("@")
    if account:
        user, colon, password = account.partition(":")
        account = _decoded(redactor, user, "user", context) + colon
        account += _decoded(redactor, password, "secret", context)
    # A cluster has several hosts, with commas between them.
    host = ",".join(_host(redactor, place, context) for place in places.split(","))
    path = _from_url(path)
    folders = "" if path in _DAEMONS else redact_path(redactor.names, slash + path)[1:]
    pairs = []
    for pair in query.split("&") if query else []:
        name, equals, value = pair.partition("=")
        inner = context.keys(of_c=False)
        pairs.append(redactor.key(name, inner) + equals + _decoded(redactor, value, name, inner))
    path = _for_url(folders or path)
    return f"{scheme}://{account}{at}{host}{slash}{path}{question}" + "&".join(pairs)


def _host(redactor: TextRedactor, text: str, context: Context) -> str:
    """A host, with its port if it has one."""
    parts = re.fullmatch(r"(\[.*\]|[^:]*)(:[0-9]{0,5})?", text)
    host, port = (parts[1], parts[2] or "") if parts else (text, "")
    if host.startswith("["):
        return f"[{_decoded(redactor, host[1:-1], 'host', context)}]{port}"
    return _decoded(redactor, host, "host", context) + port


def _decoded(redactor: TextRedactor, text: str, key: str, context: Context) -> str:
    """Redact what a URL has encoded."""
    return _for_url(redactor.text(_from_url(text), key, context), "/:@") if text else text


def _from_url(text: str) -> str:
    return unquote(text, errors="surrogateescape")


def _for_url(text: str, safe: str = "/") -> str:
    """JSON can hold halves of characters, and a URL bytes that are not text."""
    try:
        return quote(text, safe, errors="surrogateescape")
    except UnicodeEncodeError:
        return quote(text, safe, errors="surrogatepass")
