"""The shared store: Redis or Valkey, where every member of a group sees the same markers.

layout="scope": all of a scope in one slot, so an event ID is caught in whatever partition it comes.
layout="partition": a slot a partition, which spreads a scope over a Cluster; an event ID is then
caught in its own partition only, and producers must be keyed by it. With index="local" its owner
answers look-ups from memory (redis_index.py).

One script call a commit, and one a look-up (redis_scripts.py); redis_rows.py has the keys.
"""

from __future__ import annotations

import os
import time
from collections.abc import Callable, Sequence
from dataclasses import replace
from functools import partial
from threading import Lock
from typing import Any

from effectonce.errors import ConfigError, StoreError, StoreUnavailable
from effectonce.model import (
    UNSET,
    Already,
    Applied,
    Commit,
    CommitResult,
    Known,
    Marker,
    Opened,
    Partition,
    Query,
    Stale,
    Unknown,
)
from effectonce.ports import Durability, Traits
from effectonce.stores.commits import are_facts
from effectonce.stores.redis_ahead import Ahead
from effectonce.stores.redis_checks import RIGHTS, ask, explained, problems_of, try_scripts
from effectonce.stores.redis_commit import (
    Call,
    commit_call,
    found_in,
    known,
    lookup_call,
    packed_lookups,
    result,
)
from effectonce.stores.redis_index import (
    NO_KEYS,
    Image,
    LocalIndex,
    problem_of,
)
from effectonce.stores.redis_index import RIGHTS as LOCAL_RIGHTS
from effectonce.stores.redis_link import Arguments, Client, link_to, own_link
from effectonce.stores.redis_rows import (
    MARK_BYTES,
    Ownership,
    Space,
    pairs_of,
    partition_name,
    quoted,
    topic_name,
)
from effectonce.stores.redis_scripts import (
    COMMIT,
    COMMIT_PACKED,
    LOOKUP,
    LOOKUP_PACKED,
    OPEN,
    Script,
)
from effectonce.stores.redis_sent import MOST_QUESTIONS, Question, Sent
from effectonce.stores.redis_shared import (
    ATTEMPTS,
    CHECK_SECONDS,
    ID_KEY,
    PROBED,
    Evictions,
    Index,
    Layout,
    Rows,
    checked_id,
    has_pinned,
    index_key,
    newest_ms,
    opened_too_fast,
    opening,
    owned_in,
    settings_of,
    turned_too_fast,
)
from effectonce.stores.redis_tx import PartitionRows, RedisTransaction
from effectonce.stores.redis_view import View, find, look
from effectonce.stores.redis_wait import (
    Look,
    Wait,
    hold,
    hold_all,
    markers_of_commit,
    row_of_commit,
)


class RedisStore:
    """Positions, markers and rows in Redis; a URL, or a client of redis-py's that stays yours.

    layout: "scope" or "partition". index: "server" or "local". durability: what a commit must
    survive: "host" (appendfsync always, or wait_aof), "process" (an append-only file; a crash of
    the server itself may lose seconds, which Kafka's witness finds) or "none". replicas: how many
    must have a commit before it is answered. wait_aof: wait until it is synced, there and on those
    replicas. timeout_seconds: of one call, for a URL. cluster: the URL is of a node of a Cluster.

    Raises ConfigError. Nothing is asked before `prepare`.
    """

    def __init__(
        self,
        url_or_client: str | Client,
        *,
        layout: Layout | str = Layout.SCOPE,
        index: Index | str = Index.SERVER,
        durability: Durability | str = Durability.PROCESS,
        replicas: int = 0,
        wait_aof: bool = False,
        timeout_seconds: float = 5.0,
        cluster: bool = False,
    ) -> None:
        self._settings = settings_of(
            layout, durability, timeout_seconds, Wait(replicas, wait_aof), index
        )
        self._link = (
            own_link(url_or_client, cluster=cluster, timeout_seconds=timeout_seconds)
            if isinstance(url_or_client, str)
            else link_to(url_or_client)
        )
        self._lock = Lock()
        self._ahead = Ahead()
        self._sent: set[Sent] = set()
        """The commits that are on their way, one a consumer, until they are asked for."""
        self._questions: list[Question] = []
        self._id: bytes | None = None
        self._owned: dict[Partition, Ownership] = {}
        self._generations: dict[str, bytes] = {}
        self._evictions = Evictions()
        self._checked = 0.0
        self._local = LocalIndex(self._link, self._ask_packed, self._generations)
        self._commit_script = COMMIT_PACKED if self._settings.is_local else COMMIT

    @property
    def traits(self) -> Traits:
        return self._settings.traits

    @property
    def rights(self) -> tuple[str, ...]:
        """All that its user needs, as `ACL SETUSER` wants it."""
        of_index = LOCAL_RIGHTS if self._settings.is_local else ()
        return (*RIGHTS, *self.wait.rights, *of_index)

    @property
    def wait(self) -> Wait:
        """What a write must have reached before it is answered."""
        return self._settings.wait

    def prepare(self) -> bytes:
        if self._id is None:
            problems = self._check()
            try:
                tried = [try_scripts(self._link, PROBED)]
                tried += [problem_of(self._link, PROBED)] if self._settings.is_local else []
                problems += [problem for problem in tried if problem]
            except StoreUnavailable:
                if not problems:  # else it is what they say
                    raise
            if problems:
                raise ConfigError(problems)
            self._checked = time.monotonic()
            self._link.call("SET", ID_KEY, os.urandom(16), "NX")
            found = checked_id(self._link.read("GET", ID_KEY))
            if self.wait and hold(self._link, self.wait, ID_KEY, [["GET", ID_KEY]]) != [found]:
                raise StoreUnavailable(f"a failover lost the key {ID_KEY}; trying again")
            self._id = found
        return self._id

    def open(self, at: Partition, topic_id: bytes, *, above: int = 0) -> Opened:
        identity, space, name = self.prepare(), self._space(at), partition_name(at)
        if self._settings.layout is Layout.PARTITION:
            self._index(at.scope, name)
        found: bytes = self._link.read("HGET", space.positions, name) or b""
        for _ in range(ATTEMPTS):
            attempt = opening(at, found, identity, topic_id, above)
            answer = self._link.run(OPEN, [space.scope, space.positions], attempt.args)
            if answer == [b"opened"]:
                self._hold_row(at, space, attempt.row)
                self._owned[at] = attempt.owned
                if self._settings.is_local:  # what stands against it the first look-up says
                    self._lookup(Query(at, NO_KEYS, was.run if (was := attempt.opened.row) else 0))
                return attempt.opened
            found = answer[1]
        raise opened_too_fast(at)

    def has_positions(self, scope: str, group: str, topic: str) -> bool:
        name = topic_name(group, topic)
        return has_pinned(self._rows_of(scope, name), name)

    def newest_ms(self, scope: str) -> int:
        if self._settings.layout is Layout.PARTITION:
            return UNSET
        return newest_ms(self._rows_of(scope, ""))

    def lookup(self, queries: Sequence[Query]) -> list[Known | StoreError]:
        error = self._look_around() if queries else None
        return [error or self._lookup(query) for query in queries]

    def commit(self, commits: Sequence[Commit]) -> list[CommitResult]:
        results = [self._commit(commit, self._local.take(commit.at)) for commit in commits]
        return self._held(commits, results) if self.wait else results

    def send(self, commit: Commit) -> Callable[[], CommitResult]:
        """Over a client of the user's, in a Cluster, or with a wait, it is answered at once."""
        client = self._link.own_client()
        if client is None or self.wait:
            (result,) = self.commit([commit])
            return lambda: result
        space = self._space(commit.at)
        ours = owned_in(commit, self._owned)
        generations = self._generations.get(space.tag, b"")
        mark, image = os.urandom(MARK_BYTES), self._local.take(commit.at)
        commit = self._local.as_of(image, commit)
        call = commit_call(space, commit, generations, ours, mark)
        sent = Sent(commit, space, self._ahead.send(client, self._commit_script, call), mark)
        self._sent.add(sent)
        with self._lock:
            for question in self._questions:
                question.behind.append(sent)
        self._follow(commit, ours, commit.position.commit_id)
        # cut off in there, it would not be exact
        sent.image = self._local.expect(image, commit, call.packed_rows)
        return partial(self._answer_to, sent)

    def ask(self, query: Query) -> Callable[[], Known | StoreError] | None:
        """None where nothing is sent ahead, and where memory answers."""
        client = self._link.own_client()
        if client is None or self.wait or self._settings.is_local:
            return None
        space = self._space(query.at)
        generations = self._generations.get(space.tag, b"")
        no_keys = replace(query, keys=query.keys[:0])
        try:
            call = lookup_call(space, no_keys, generations, self._fence(query.at))
            packed = packed_lookups(space, query, generations)
        except StoreError:  # what is damaged is told on the ordinary way
            return None
        in_front = list(self._sent)
        answer = self._ahead.send_together(client, LOOKUP, call, packed)
        question = Question(query, space, answer, in_front)
        with self._lock:
            self._void(self._questions[: 1 - MOST_QUESTIONS])
            self._questions = [*self._questions[1 - MOST_QUESTIONS :], question]
        return partial(self._told, question)

    def find(self, at: Partition, key: bytes) -> Marker | None:
        return find(self._link, self._space(at), key)

    def look(self, key: bytes | None = None) -> list[View]:
        """All that is there, and the markers of `key`: for people. Nothing is opened or written."""
        return look(self._link, key)

    def transaction(self, at: Partition) -> RedisTransaction:
        space = self._space(at)
        rows = PartitionRows(self._link, space.rows(at))
        return RedisTransaction(rows, space, is_cluster=self._link.is_cluster)

    def release(self, at: Partition) -> None:
        """Our epoch is forgotten, so that whatever comes late from here is refused."""
        self._owned.pop(at, None)
        self._local.forget(at)

    def close(self) -> None:
        self._owned.clear()
        self._local.clear()
        self._ahead.close()
        self._link.close()

    # -- calls ---------------------------------------------------------------------------------

    def _lookup(self, query: Query) -> Known | StoreError:
        sent = list(self._sent)
        if self._settings.is_local:
            try:
                return self._look_up_locally(query, sent)
            except StoreError as error:
                return error
        asked = self.ask(query) if sent else None
        return asked() if asked else self._ask_alone(query)

    def _look_up_locally(self, query: Query, sent: Sequence[Sent]) -> Known:
        """Raises StoreError."""
        early = None
        for each in sent:
            if each.commit.at == query.at:
                early = self._local.look_up_early(each.image, each.commit, query)
                self._answer_to(each)
        ours = self._owned.get(query.at)
        return self._local.look_up(query, self._space(query.at), ours, early)

    def _ask_packed(self, query: Query, fence: bytes) -> list[Any]:
        """Raises StoreError."""
        return self._run(
            LOOKUP_PACKED,
            space := self._space(query.at),
            lambda generations: lookup_call(space, query, generations, fence),
        )

    def _ask_alone(self, query: Query) -> Known | StoreError:
        """On the ordinary way."""
        space, fence = self._space(query.at), self._fence(query.at)
        try:
            answer = self._run(
                LOOKUP, space, lambda generations: lookup_call(space, query, generations, fence)
            )
        except StoreError as error:
            return error
        return known(query, answer)

    def _fence(self, at: Partition) -> bytes:
        owned = self._owned.get(at)
        return owned.whole_fence if owned else b""

    def _told(self, question: Question) -> Known | StoreError:
        """It is asked again where it failed, or a commit was not where it was taken to be."""
        for sent in question.in_front:
            self._answer_to(sent)
        found = self._ahead.read(question.answer)
        # another consumer's thread may have sent one again, alone, before we were noted
        in_order = all(sent.found is not None for sent in question.in_front)
        known = found_in(question.query, found) if found and in_order else None
        for sent in question.behind:
            self._answer_to(sent)
            known = question.after(known, sent)
        with self._lock:
            self._questions = [each for each in self._questions if each is not question]
        known = None if question.void else known
        return self._look_around() or known or self._ask_alone(question.query)

    @staticmethod
    def _void(questions: Sequence[Question]) -> None:
        for question in questions:
            question.void = True

    def _answer_to(self, sent: Sent) -> CommitResult:
        """What a commit that was sent ahead was answered; on the ordinary way if it was not."""
        try:
            if sent.result is None:
                sent.result = self._answered(sent)
            return sent.result
        finally:
            self._sent.discard(sent)

    def _answered(self, sent: Sent) -> CommitResult:
        commit, found = sent.commit, self._ahead.read(sent.answer)
        if found is None or found[0] in (b"generations", b"marked"):
            self._follow(commit, owned_in(commit, self._owned), commit.follows)
            return self._commit(commit, None)
        sent.found, answered = found, self._result_of(commit, sent.space, found)
        ours = owned_in(commit, self._owned)
        self._local.follow(sent.image, commit, ours, sent.mark, found)
        if not isinstance(answered, Applied | Already):
            self._follow(commit, ours, commit.follows)
        return answered

    def _commit(self, commit: Commit, image: Image | None) -> CommitResult:
        self._void(self._questions)  # what it marks, they would call new
        space = self._space(commit.at)
        ours = owned_in(commit, self._owned)
        mark = os.urandom(MARK_BYTES)
        try:
            sent, image, answer = self._local.deliver(
                commit, space, image, lambda each: self._put(each, space, ours, mark)
            )
        except StoreError as error:
            self._follow(commit, ours, None)
            return Unknown(explained(self._link, commit, space, error))
        found = self._result_of(commit, space, answer)
        self._local.follow(image, sent, ours, mark, answer)
        if isinstance(found, Applied | Already):
            self._follow(commit, ours, commit.position.commit_id)
        return found

    def _put(self, commit: Commit, space: Space, ours: Ownership | None, mark: bytes) -> list[Any]:
        """The script's answer. Raises StoreError."""
        return self._run(
            self._commit_script,
            space,
            lambda generations: commit_call(space, commit, generations, ours, mark),
        )

    def _result_of(self, commit: Commit, space: Space, answer: Sequence[Any]) -> CommitResult:
        if answer[0] == b"applied":
            self._generations[space.tag] = answer[2]
        return result(commit, answer)

    def _held(
        self, commits: Sequence[Commit], results: Sequence[CommitResult]
    ) -> list[CommitResult]:
        """The results; Unknown for what is there, and not yet where it was asked to be."""
        held, looks = list(results), dict[str, dict[int, Look]]()
        for number, (commit, answer) in enumerate(zip(commits, results, strict=True)):
            space = self._space(commit.at)
            if isinstance(answer, Applied | Already):
                found = row_of_commit(space, commit, owned_in(commit, self._owned))
            elif isinstance(answer, Stale) and are_facts(commit):
                found = markers_of_commit(space, commit, self._generations.get(space.tag, b""))
            else:
                continue  # it has left nothing
            looks.setdefault(space.tag, {})[number] = found
        for tag, of_tag in looks.items():
            errors = hold_all(self._link, self.wait, tag, list(of_tag.values()))
            for number, error in zip(of_tag, errors, strict=True):
                if error is not None:
                    self._follow(commits[number], owned_in(commits[number], self._owned), None)
                    held[number] = Unknown(error)
        return held

    def _hold_row(self, at: Partition, space: Space, row: bytes) -> None:
        """Raises StoreUnavailable where what was opened may be lost."""
        command: Arguments = ["HGET", space.positions, partition_name(at)]
        if self.wait and hold(self._link, self.wait, space.tag, [command]) != [row]:
            raise StoreUnavailable(f"{at}: somebody else, or a failover, undid its open")

    def _index(self, scope: str, name: str) -> None:
        """Note a partition among those of its scope."""
        add: Arguments = ["SADD", index_key(scope), name]
        if self.wait:
            hold(self._link, self.wait, quoted(scope), [add])
        else:
            self._link.call(*add)

    def _follow(self, commit: Commit, ours: Ownership | None, to: bytes | None) -> None:
        """Note where the row stands now, unless it was released or opened meanwhile."""
        with self._lock:
            if ours is not None and self._owned.get(commit.at) is ours:
                self._owned[commit.at] = replace(ours, commit_id=to)

    def _run(self, script: Script, space: Space, call_for: Callable[[bytes], Call]) -> list[Any]:
        """The script's answer, once it was called with the generations that there are."""
        for _ in range(ATTEMPTS):
            call = call_for(self._generations.get(space.tag, b""))
            answer: list[Any] = self._link.run(script, call.keys, call.args)
            if answer[0] != b"generations":
                return answer
            self._generations[space.tag] = answer[1]
        raise turned_too_fast(space)

    def _rows_of(self, scope: str, topic: str) -> Rows:
        """The rows of a scope, or at least those of the topic's partitions."""
        if self._settings.layout is Layout.SCOPE:
            space = self._settings.space_of(scope, "")
            return pairs_of(self._link.read("HGETALL", space.positions)).items()
        names: list[bytes] = self._link.read("SMEMBERS", index_key(scope))
        return (
            (name, self._row(scope, name.decode()))
            for name in names
            if name.decode().startswith(topic)
        )

    def _row(self, scope: str, name: str) -> bytes | None:
        positions = self._settings.space_of(scope, name).positions
        value: bytes | None = self._link.read("HGET", positions, name)
        return value

    def _space(self, at: Partition) -> Space:
        return self._settings.space(at)

    # -- an honest start, and after it ---------------------------------------------------------

    def _check(self) -> list[str]:
        durability = self._settings.durability
        settings = durability is Durability.HOST or self.wait.replicas > 0
        servers = ask(self._link, settings=settings)
        self._evictions.note(servers)
        return problems_of(servers, self._link, durability, self.wait)

    def _look_around(self) -> StoreError | None:
        """What has changed since the start and would break the promise, asked now and then."""
        now = time.monotonic()
        if now - self._checked < CHECK_SECONDS:
            return None
        try:
            problems = self._check()
        except (StoreUnavailable, ConfigError):
            problems = []  # whom this concerns, their own calls will tell
        except StoreError as error:
            return error
        if problems:
            return StoreUnavailable("; ".join(problems))
        self._checked = now
        return None
