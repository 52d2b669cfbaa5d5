"""`effectonce schema`: what a server must be told before the first use."""

from __future__ import annotations

from hashlib import sha256
from urllib.parse import unquote, urlsplit

from effectonce.errors import ConfigError
from effectonce.stores import open_store
from effectonce.stores.redis import RedisStore

USER = "effectonce"


def schema(store: str) -> str:
    """A line of an ACL file: a user who may do what the store does, and nothing else.

    User and password are those of the URL; the password is printed as its SHA-256, as the server
    keeps it. Raises ConfigError for a store that needs nothing.
    """
    opened = open_store(store)  # its complaints about the URL
    url = urlsplit(store)
    if not isinstance(opened, RedisStore):
        raise ConfigError([f"store: {url.scheme}: makes by itself what it needs"])
    name = unquote(url.username or USER)
    if not name.isprintable() or any(letter.isspace() for letter in name):
        raise ConfigError(["store: the user in the URL cannot stand in an ACL file"])
    password = (
        f"#{sha256(unquote(url.password).encode()).hexdigest()}" if url.password else "nopass"
    )
    return " ".join(("user", name, "reset", "on", password, *opened.rights))
