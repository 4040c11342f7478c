"""Servers of the daemon: their clients, their workers, and the calls that wait for one.

Offsets are searched for, as versions differ: virNetServer (src/rpc/virnetserver.c) has the number
of its clients in front of their array, and every one of that many must be a client; virThreadPool
(src/util/virthreadpool.c) has its limits, its counts and the array of its threads in one row;
virNetServerClient (src/rpc/virnetserverclient.c) has the identity of the client, when it connected,
how many calls it has in flight, how many it may have, and then the message that is being received.
virKeepAlive (src/rpc/virkeepalive.c) has its settings, what is left of them, two times and a timer,
in one row; it and its client have each other's address.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Mapping
from dataclasses import replace

from virtrace.snapshot.model import Connection, Keepalive, Pool, Queued, Server
from virtrace.snapshot.objects import Objects
from virtrace.snapshot.peek import Peek, is_pointer
from virtrace.snapshot.requests import request_at
from virtrace.snapshot.threads import IDENTITIES, identity_at, pid_of

# Words: of the server; where its name, its pool, and the count of its clients may be.
_SERVER_WORDS, _NAME, _POOL, _CLIENTS = 24, 8, 9, range(9, 21)
_MOST_CLIENTS = 100_000
# Clients of which the type is looked at.
_LOOKED_AT = 50
# Words of a client. Of a message that is being received (see layouts/virNetMessage.yaml): its
# buffer, how much belongs in it, and how much is there; then its header, where a reply has a type.
_CLIENT_WORDS, _IDENTITIES = 34, range(9, 26)
_BUFFER, _TYPE_AT, _CALL = slice(1, 4), 44, 0
_MOST_REQUESTS = 100_000
# Words of a client in which it may have its keepalive, and of that: where its settings may be, and
# its client.
_ALL_CLIENT_WORDS, _KEEPALIVE_WORDS, _SETTINGS = 64, 24, range(6, 14)
_LONGEST_INTERVAL, _YEAR, _INT = 1 << 20, 366 * 86400, 0xFFFFFFFF
# For how long a look may have lasted when this is read, s.
_LATER = 60
# Words: of the pool; its list of jobs, and how many wait in it; where its limits may be.
_POOL_WORDS, _JOBS, _DEPTH, _LIMITS = 34, 4, 7, range(8, 30)
# Of a pthread_t, which glibc has point to the thread's descriptor.
_THREAD_ALIGNMENT = 64
_MOST_WORKERS, _MOST_QUEUED = 100_000, 1000


Here = Callable[[int], "int | None"]


def server_at(
    peek: Peek,
    objects: Objects,
    address: int,
    here: Here,
    keepalives: Mapping[int, Keepalive],
) -> Server | None:
    """Return a server; None if its content does not prove it.

    here: of look.Around. keepalives: by the addresses of clients
    """
    words = peek.words(address, _SERVER_WORDS)
    if len(words) < _SERVER_WORDS:
        return None
    name = peek.text(words[_NAME], 40)
    if not name or not name.isprintable():
        return None
    pool = _pool_at(peek, objects, words[_POOL]) if is_pointer(words[_POOL]) else None
    for at in _CLIENTS:
        count, array = words[at], words[at + 1]
        clients = _clients(peek, objects, array, count)
        if clients is not None:
            most, unauthenticated, most_unauthenticated = words[at + 2 + 1 : at + 2 + 4]
            found = (_connection(peek, objects, client, here) for client in clients)
            connections = tuple(
                replace(connection, keepalive=keepalives.get(connection.address))
                for connection in found
                if connection is not None
            )
            return Server(
                name, clients, connections, most, unauthenticated, most_unauthenticated, pool
            )
    return Server(name, (), (), None, None, None, pool)


def _clients(peek: Peek, objects: Objects, array: int, count: int) -> tuple[int, ...] | None:
    if not 0 < count <= _MOST_CLIENTS or not is_pointer(array):
        return None
    clients = peek.words(array, count)
    if len(clients) < count:
        return None
    kinds = {objects.type_of(client) for client in clients[:_LOOKED_AT]}
    return clients if kinds == {"virNetServerClient"} else None


def _connection(peek: Peek, objects: Objects, address: int, here: Here) -> Connection | None:
    words = peek.words(address, _CLIENT_WORDS)
    for at in _IDENTITIES:
        if len(words) < _CLIENT_WORDS or objects.type_of(words[at]) not in IDENTITIES:
            continue
        # In between is when it connected, seconds since 1970: no number of calls.
        for requests, most, *nearby in (words[at + 1 : at + 5], words[at + 2 : at + 6]):
            # In between, newer versions note whether they have warned.
            is_read = any(_is_being_received(peek, message) for message in nearby)
            if 0 < most < _MOST_REQUESTS and is_read <= requests <= most:
                # What is being received is counted, too.
                return Connection(
                    address,
                    pid_of(identity_at(peek, words[at]) or {}, here),
                    requests - is_read,
                    most,
                    is_full=requests == most and not is_read,
                    keepalive=None,
                )
    return None


def keepalives_at(
    peek: Peek, addresses: Iterable[int], now: float, uptime: float | None
) -> Mapping[int, Keepalive]:
    """Return what is proven of virKeepAlive objects, by the addresses of their clients.

    now, uptime: of the look, seconds since 1970 and by CLOCK_MONOTONIC of the daemon
    """
    # Older versions count from 1970, newer ones by the other clock.
    clocks = [(now, 0.0)] if uptime is None else [(now, 0.0), (uptime, now - uptime)]
    found = {}
    for address in addresses:
        words = peek.words(address, _KEEPALIVE_WORDS)
        settings = [
            one
            for at in _SETTINGS
            for clock in clocks
            if (one := _keepalive(words[at : at + 5], *clock))
        ]
        clients = [
            word
            for word in words[_SETTINGS.start :]
            if is_pointer(word) and address in peek.words(word, _ALL_CLIENT_WORDS)
        ]
        if len(settings) == len(clients) == 1:
            found[clients[0]] = settings[0]
    return found


def _keepalive(words: tuple[int, ...], now: float, zero: float) -> Keepalive | None:
    """The settings in a row: the interval and the count, what is left of that, two times, a timer.

    now: by the clock of the times. zero: of that clock, seconds since 1970
    """
    if len(words) < 5:
        return None
    interval, most = words[0] & _INT, words[0] >> 32
    left, heard, began, timer = words[1] & _INT, words[2], words[3], words[4] & _INT
    # Without a timer, which is -1 then, the client is asked nothing.
    is_one = 0 < interval < _LONGEST_INTERVAL and left <= most and timer <= _INT >> 1
    # What is heard begins an interval, and so does what is sent.
    if not is_one or not max(0, now - _YEAR) < heard <= began <= now + _LATER:
        return None
    closes = began + interval * (left + 1)
    return Keepalive(interval, most, most - left, zero + heard, zero + closes)


def _is_being_received(peek: Peek, address: int) -> bool:
    words = peek.words(address, 4) if is_pointer(address) else ()
    if len(words) < 4 or peek.number(address + _TYPE_AT, 4) != _CALL:
        return False
    buffer, length, offset = words[_BUFFER]
    return is_pointer(buffer, 1) and offset < length


def _pool_at(peek: Peek, objects: Objects, address: int) -> Pool | None:
    words = peek.words(address, _POOL_WORDS)
    if len(words) < _POOL_WORDS:
        return None
    for at in _LIMITS:
        most, least, free, workers, threads = words[at : at + 5]
        is_pool = 0 < most < _MOST_WORKERS and least <= most and free <= workers <= most
        # The counts of the conditions in front of the limits may look like limits, too.
        if is_pool and workers > 0 and _are_threads(peek.words(threads, workers), workers):
            queued = tuple(_queued(peek, objects, words[_JOBS], words[_DEPTH]))
            return Pool(most, workers, free, queued)
    return None


def _are_threads(handles: tuple[int, ...], count: int) -> bool:
    return len(handles) == count and all(is_pointer(one, _THREAD_ALIGNMENT) for one in handles)


def _queued(peek: Peek, objects: Objects, job: int, depth: int) -> list[Queued]:
    """Return the calls in a pool's list. depth: how many the pool says there are."""
    found: list[Queued] = []
    seen: set[int] = set()
    while is_pointer(job) and job not in seen and len(found) < min(depth, _MOST_QUEUED):
        seen.add(job)
        words = peek.words(job, 4)
        if len(words) < 4:
            break
        _, following, priority, data = words
        parts = peek.words(data, 3) if is_pointer(data) else ()
        requests = (request_at(peek, part, None) for part in parts)
        request = next((one for one in requests if one is not None), None)
        clients = (part for part in parts if objects.type_of(part) == "virNetServerClient")
        found.append(Queued(request, next(clients, None), bool(priority & 0xFF)))
        job = following
    return found
