"""A whole cluster in one process, from one seed: the real consumer over simulated ports.

    world       one seed's topics, members, operators and faults
    schedule    virtual time: one greenlet runs at a time, until it waits
    broker      logs with gaps, and the group's coordinator
    process     a member: the real `OnceConsumer`, its client, clock and keeper
    disk        the store: what is durable, and the four endings of a call
    judge       the invariants
    mutants     deliberate breakages, each of which must be caught
    coverage    which fault can fall upon which step, and what was reached
    shrink      the shortest schedule found that still breaks the same invariant
    sweep       many seeds and all mutants, on all cores

Needs the package `greenlet` (`effectonce[simulator]`).
"""
