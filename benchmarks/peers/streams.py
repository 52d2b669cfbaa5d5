"""Kafka Streams: java/Streams.java, compiled and run against jars resolved as the broker's are.

The Java that pip brings is a runtime without javac, so Eclipse's compiler comes with the jars.
"""

from __future__ import annotations

import functools
import hashlib
import os
import subprocess
import tempfile
from pathlib import Path
from typing import Final

from benchmarks.job import Job
from effectonce.testing.servers import ServerError
from effectonce.testing.servers.jars import KAFKA_VERSION, OLDEST_JAVA, cache_dir, class_path, java

SOURCE: Final = Path(__file__).parents[1] / "java" / "Streams.java"
COORDINATES: Final = "+".join(
    (
        f"org.apache.kafka:kafka-streams:{KAFKA_VERSION}",  # its POM brings rocksdbjni 10.1.3
        "org.slf4j:slf4j-simple:1.7.36",
        "org.eclipse.jdt:ecj:3.44.0",
    )
)
# The heap holds neither keys nor the topic; G1 and all compilers are what Java takes by itself.
_JVM: Final = ("-Xms1g", "-Xmx1g", "-XX:+UseG1GC", "--enable-native-access=ALL-UNNAMED")
_QUIET: Final = "-Dorg.slf4j.simpleLogger.defaultLogLevel=warn"

_GUARANTEES: Final = {"eos": "exactly_once_v2", "alo": "at_least_once"}


def command(job: Job) -> list[str]:
    """`job.contender` is kafka_streams_(eos|alo)_(number of stream threads)."""
    _, _, guarantee, threads = job.contender.split("_")
    settings = (job.bootstrap, job.topic, job.messages, job.warm_up, _GUARANTEES[guarantee])
    return [
        *(java(), *_JVM, _QUIET, "-cp", f"{classes()}{os.pathsep}{class_path(COORDINATES)}"),
        *("Streams", *map(str, settings), threads, job.state),
    ]


@functools.cache
def classes() -> Path:
    """Where the compiled program is.

    Raises:
        ServerUnavailable: no Java, or no jars.
        ServerError: it does not compile; with what the compiler said.
    """
    made_of = COORDINATES.encode() + SOURCE.read_bytes()
    home = cache_dir() / f"streams-{hashlib.sha256(made_of).hexdigest()[:8]}"
    if home.exists():
        return home
    jars = class_path(COORDINATES)
    with tempfile.TemporaryDirectory(dir=cache_dir()) as unfinished:
        into = Path(unfinished) / "classes"
        _compile(jars, into)
        if not home.exists():  # another process may have been first
            into.rename(home)
    return home


def _compile(jars: str, into: Path) -> None:
    release = str(OLDEST_JAVA)
    done = subprocess.run(
        [
            *(java(), "-cp", jars, "org.eclipse.jdt.internal.compiler.batch.Main"),
            *("-source", release, "-target", release, "-cp", jars, "-d", str(into), str(SOURCE)),
        ],
        capture_output=True,
        text=True,
        check=False,
    )
    if done.returncode:
        raise ServerError(f"{SOURCE.name} does not compile:\n{done.stdout}{done.stderr}")
