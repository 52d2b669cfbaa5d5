"""Apache Kafka, one KRaft broker, as a child process: ready in 2 to 4 seconds, no Docker.

    with KafkaServer.start() as kafka:
        kafka.create_topic("payments", partitions=4)
        consumer = Consumer({"bootstrap.servers": kafka.bootstrap, ...})

Groups are of the new kind (KIP-848) or classic, as the client asks; transactions are KIP-890's.
"""

import base64
import os
import shutil
import subprocess
import tempfile
import time
import uuid
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Self

from confluent_kafka import Consumer, KafkaException, TopicPartition
from confluent_kafka.admin import AdminClient, ClusterMetadata, NewTopic

from .jars import KAFKA_VERSION, class_path, java
from .process import Closing, ServerError, ServerProcess, free_port

# One broker, and small enough numbers that a test sees in a second what production sees in an hour.
_PROPERTIES: Mapping[str, str] = {
    "process.roles": "broker,controller",
    "node.id": "1",
    "controller.listener.names": "CONTROLLER",
    "listener.security.protocol.map": "PLAINTEXT:PLAINTEXT,CONTROLLER:PLAINTEXT",
    "auto.create.topics.enable": "false",
    # a single broker cannot replicate, and 50 partitions an internal topic only slow its start
    "offsets.topic.replication.factor": "1",
    "offsets.topic.num.partitions": "4",
    "transaction.state.log.replication.factor": "1",
    "transaction.state.log.min.isr": "1",
    "transaction.state.log.num.partitions": "4",
    "share.coordinator.state.topic.replication.factor": "1",
    "share.coordinator.state.topic.min.isr": "1",
    "share.coordinator.state.topic.num.partitions": "4",
    # a crashed broker may come back once its session with the controller is over (default: 9 s)
    "broker.session.timeout.ms": "2000",
    "broker.heartbeat.interval.ms": "200",
    # groups: no wait for more members, and a killed member is missed after a second. A KIP-848
    # group's session is the broker's to say (45 s by default), a classic one's is the client's
    "group.initial.rebalance.delay.ms": "0",
    "group.min.session.timeout.ms": "500",
    "group.consumer.min.session.timeout.ms": "1000",
    "group.consumer.session.timeout.ms": "1000",
    "group.consumer.min.heartbeat.interval.ms": "200",
    "group.consumer.heartbeat.interval.ms": "200",
    # retention and expired offsets are looked for at once (defaults: 5 and 10 minutes)
    "log.initial.task.delay.ms": "100",
    "log.retention.check.interval.ms": "200",
    "log.segment.delete.delay.ms": "200",
    "log.cleaner.backoff.ms": "200",
    "offsets.retention.check.interval.ms": "500",
}

# C1 alone and the serial collector start a JVM soonest, and leave a 2-core machine to the tests.
_QUICK_JVM = ("-Xmx512m", "-XX:+UseSerialGC", "-XX:TieredStopAtLevel=1")
# What kafka-server-start.sh and kafka-run-class.sh give a broker.
_BENCHMARK_JVM = (
    "-Xms1g",
    "-Xmx1g",
    "-XX:+UseG1GC",
    "-XX:MaxGCPauseMillis=20",
    "-XX:InitiatingHeapOccupancyPercent=35",
    "-XX:+ExplicitGCInvokesConcurrent",
)
_LOGGING = (
    "-Dorg.slf4j.simpleLogger.showDateTime=true",
    "-Dorg.slf4j.simpleLogger.dateTimeFormat=HH:mm:ss.SSS",
)

_PROBE_SECONDS = 0.3
_ADMIN_SECONDS = 10.0
_TOOL_SECONDS = 60.0


class KafkaServer(Closing):
    """A real broker: killed, restarted and administered from a test.

    If `KAFKA_BOOTSTRAP` is set, it stands for that running broker instead: topics and tools work on
    it; `pid`, `kill`, `stop`, `restart` and `log_tail` raise `ServerError`, since its process is
    not ours.
    """

    def __init__(
        self,
        bootstrap: str,
        process: ServerProcess | None = None,
        scratch: Path | None = None,
    ) -> None:
        """Use `start`."""
        self.bootstrap = bootstrap
        self._process = process
        self._scratch = scratch

    @classmethod
    def start(
        cls,
        data_dir: Path | str | None = None,
        properties: Mapping[str, str | int] | None = None,
        *,
        benchmark: bool = False,
        start_seconds: float = 60.0,
    ) -> Self:
        """Starts a broker on free ports of 127.0.0.1 and returns once it answers.

        Args:
            data_dir: where its log, properties and data live; kept, and taken up again by a later
                start. None: a temporary directory that goes with the broker.
            properties: broker properties on top of a test broker's own.
            benchmark: give the JVM the heap, collector and compiler that Kafka's own scripts do.
            start_seconds: how long it may take to answer.

        Raises:
            ServerUnavailable: a package or its jars are missing; says what to install.
            ServerError: it did not come up; with the end of its log.
        """
        if external := os.environ.get("KAFKA_BOOTSTRAP"):
            if data_dir is not None or properties or benchmark:
                raise ServerError(
                    f"KAFKA_BOOTSTRAP={external} names a broker that runs already, so it takes no "
                    "data_dir, properties or benchmark: unset KAFKA_BOOTSTRAP to start one"
                )
            return cls._external(external, start_seconds)
        scratch = None if data_dir else Path(tempfile.mkdtemp(prefix="effectonce-kafka-"))
        home = scratch or Path(data_dir or "")
        try:
            return cls._launch(home, scratch, properties or {}, benchmark, start_seconds)
        except BaseException:
            if scratch is not None:
                shutil.rmtree(scratch, ignore_errors=True)
            raise

    @classmethod
    def _external(cls, bootstrap: str, start_seconds: float) -> Self:
        deadline = time.monotonic() + start_seconds
        while not _ready(bootstrap):
            if time.monotonic() > deadline:
                raise ServerError(
                    f"no broker answered at KAFKA_BOOTSTRAP={bootstrap} within {start_seconds:g} s"
                )
        return cls(bootstrap)

    @classmethod
    def _launch(
        cls,
        home: Path,
        scratch: Path | None,
        properties: Mapping[str, str | int],
        benchmark: bool,
        start_seconds: float,
    ) -> Self:
        home.mkdir(parents=True, exist_ok=True)
        bootstrap = f"127.0.0.1:{free_port()}"
        settings = home / "server.properties"
        settings.write_text(_properties(bootstrap, home / "data", properties))
        if not (home / "data" / "meta.properties").exists():
            cluster = base64.urlsafe_b64encode(uuid.uuid4().bytes).decode().rstrip("=")
            _run_java(
                "kafka.tools.StorageTool",
                "format",
                f"--cluster-id={cluster}",  # with "=": one in 64 begins with a dash
                f"--config={settings}",
            )
        process = ServerProcess(
            f"Apache Kafka {KAFKA_VERSION}",
            [
                *(java(), *(_BENCHMARK_JVM if benchmark else _QUICK_JVM), *_LOGGING),
                *("-cp", class_path(), "kafka.Kafka", str(settings)),
            ],
            home / "server.log",
            answers=lambda: _ready(bootstrap),
            start_seconds=start_seconds,
        )
        process.start()
        return cls(bootstrap, process, scratch)

    def close(self) -> None:
        """Ends the broker if it is ours: cleanly if its data is kept, else at once."""
        if self._process is None:
            return
        if self._scratch is None:
            self._process.stop()
        else:
            self._process.kill()
            shutil.rmtree(self._scratch, ignore_errors=True)

    @property
    def pid(self) -> int | None:
        """The broker's process id, for signals such as SIGSTOP; None while it is down."""
        return self._ours("signal").pid

    def kill(self) -> None:
        """SIGKILL: the broker crashes; `restart` brings it back with what it had written."""
        self._ours("kill").kill()

    def stop(self) -> None:
        """SIGTERM: the broker shuts down cleanly."""
        self._ours("stop").stop()

    def restart(self) -> None:
        """Brings it back with its ports and data, after a clean stop if it still runs."""
        self._ours("restart").restart()

    def log_tail(self, lines: int = 40) -> str:
        """The last lines of the broker's log, over all its starts."""
        return self._ours("show the log of").log_tail(lines)

    def create_topic(
        self, name: str, partitions: int = 1, config: Mapping[str, str | int] | None = None
    ) -> None:
        """Creates a topic and returns once every partition has a leader.

        Raises:
            KafkaException: the broker refused, for example because it exists.
        """
        topic = NewTopic(
            name,
            num_partitions=partitions,
            replication_factor=-1,  # the broker's default
            config={key: str(value) for key, value in (config or {}).items()},
        )
        admin = self._admin()
        admin.create_topics([topic], operation_timeout=_ADMIN_SECONDS)[name].result()

        def led(metadata: ClusterMetadata) -> bool:
            topic = metadata.topics.get(name)
            return (
                topic is not None
                and len(topic.partitions) == partitions
                and all(partition.leader >= 0 for partition in topic.partitions.values())
            )

        _until(admin, led, f"topic {name} was created, but not each of {partitions} partitions led")

    def delete_topic(self, name: str) -> None:
        """Deletes a topic and returns once the broker no longer lists it."""
        admin = self._admin()
        admin.delete_topics([name], operation_timeout=_ADMIN_SECONDS)[name].result()
        _until(
            admin,
            lambda metadata: name not in metadata.topics,
            f"topic {name} was deleted, but is still listed",
        )

    def delete_records(self, topic: str, before: Mapping[int, int]) -> None:
        """Deletes the records below an offset, by partition: `{0: 100}`; -1 deletes them all."""
        admin = self._admin()
        below = [TopicPartition(topic, partition, offset) for partition, offset in before.items()]
        for future in admin.delete_records(below).values():
            future.result()

    def tool(self, main_class: str, *args: str) -> str:
        """Runs one of Kafka's own command line tools; returns what it printed.

            kafka.tool("org.apache.kafka.tools.consumer.group.ConsumerGroupCommand",
                       "--bootstrap-server", kafka.bootstrap, "--group", "billing", "--describe")

        Raises:
            ServerError: it failed or hung; with all that it printed.
        """
        return _run_java(main_class, *args)

    def _admin(self) -> AdminClient:
        """A fresh client, to be held until it has answered.

        One that lived through a restart may still believe that no partition has a leader; one that
        does not know the broker yet may lose its first request and repeat it 3 s later.
        """
        admin = AdminClient(_client(self.bootstrap))
        admin.list_topics(timeout=_ADMIN_SECONDS)
        return admin

    def _ours(self, verb: str) -> ServerProcess:
        if self._process is None:
            raise ServerError(
                f"cannot {verb} the broker at {self.bootstrap}: KAFKA_BOOTSTRAP names it, "
                "it was not started here; unset KAFKA_BOOTSTRAP to have one that can be"
            )
        return self._process


def _properties(bootstrap: str, data: Path, overrides: Mapping[str, str | int]) -> str:
    controller = f"127.0.0.1:{free_port()}"
    properties = {
        **_PROPERTIES,
        "listeners": f"PLAINTEXT://{bootstrap},CONTROLLER://{controller}",
        "advertised.listeners": f"PLAINTEXT://{bootstrap}",
        "controller.quorum.voters": f"1@{controller}",
        "log.dirs": str(data.absolute()),
        **{key: str(value) for key, value in overrides.items()},
    }
    lines = (f"{key}={value}".replace("\\", "\\\\") for key, value in properties.items())
    return "\n".join(lines) + "\n"


def _client(bootstrap: str) -> dict[str, str | int | float | bool]:
    return {
        "bootstrap.servers": bootstrap,
        # the default backs off to 10 s, which would be most of a start
        "reconnect.backoff.ms": 20,
        "reconnect.backoff.max.ms": 50,
        "log_level": 0,  # "connection refused" is what a broker that starts looks like
    }


def _ready(bootstrap: str) -> bool:
    """Whether a broker answers, leads every partition that it lists, and serves groups.

    The group coordinator makes its topic when it is first asked for. The consumer that asks first
    is told NOT_COORDINATOR and tries again 3 s later (librdkafka 2.16), so it is asked for here:
    0.3 s. Each call has a client of its own, since what one knew of a broker is wrong once that
    broker was down.
    """
    probe = Consumer({**_client(bootstrap), "group.id": "effectonce-start"})
    try:
        metadata = probe.list_topics(timeout=_PROBE_SECONDS)
        if not metadata.brokers or not all(
            partition.leader >= 0
            for topic in metadata.topics.values()
            for partition in topic.partitions.values()
        ):
            return False
        offsets = probe.committed([TopicPartition("__consumer_offsets", 0)], _PROBE_SECONDS)
        return all(offset.error is None for offset in offsets)
    except KafkaException:
        return False
    finally:
        probe.close()


def _until(admin: AdminClient, settled: Callable[[ClusterMetadata], bool], complaint: str) -> None:
    """Asks for the metadata until it shows what an admin request has already been promised."""
    deadline = time.monotonic() + _ADMIN_SECONDS
    while not settled(admin.list_topics(timeout=_ADMIN_SECONDS)):
        if time.monotonic() > deadline:
            raise ServerError(f"{complaint} after {_ADMIN_SECONDS:g} s")
        time.sleep(0.005)  # metadata has no event to wait for; a round trip takes about as long


def _run_java(main_class: str, *args: str) -> str:
    argv = [java(), *_QUICK_JVM, "-cp", class_path(), main_class, *args]
    try:
        done = subprocess.run(
            argv,
            check=False,
            stdin=subprocess.DEVNULL,
            capture_output=True,
            text=True,
            errors="replace",
            timeout=_TOOL_SECONDS,
        )
    except subprocess.TimeoutExpired:
        raise ServerError(f"{main_class} {' '.join(args)} hung for {_TOOL_SECONDS:g} s") from None
    if done.returncode:
        raise ServerError(
            f"{main_class} {' '.join(args)} ended with exit code {done.returncode}:\n"
            f"{done.stdout}{done.stderr}"
        )
    return done.stdout
