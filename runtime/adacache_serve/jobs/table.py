"""The table of jobs."""

from sqlalchemy import (
    BigInteger,
    Column,
    Float,
    Index,
    Integer,
    MetaData,
    String,
    Table,
    Text,
    UniqueConstraint,
)

metadata = MetaData()
jobs = Table(
    "jobs",
    metadata,
    # in the order of arrival
    Column("number", BigInteger().with_variant(Integer, "sqlite"), primary_key=True, autoincrement=True),
    Column("id", String(64), nullable=False, unique=True),
    Column("client", String(200), nullable=False),
    Column("idempotency_key", String(200)),
    Column("fingerprint", String(64), nullable=False),  # hash of the request
    Column("order", Text, nullable=False),
    Column("image", Text),
    Column("model", String(200), nullable=False),
    Column("status", String(16), nullable=False),
    Column("priority", Integer, nullable=False),
    Column("attempts", Integer, nullable=False),
    Column("deaths", Integer, nullable=False),  # deaths of workers in a step of this job
    Column("created", Float, nullable=False),
    Column("deadline", Float),
    Column("started", Float),
    Column("ended", Float),
    Column("error", Text),
    Column("trace", Text),
    Column("calls", Text),  # records of the calls; read only where they are needed
    Column("made", Text),  # file of a finished video that is not among the results yet
    Column("content", Text),  # name of the result; None = there is none, or it was deleted
    Column("nbytes", BigInteger),
    Column("traceparent", Text),  # see adacache_serve.jobs.tracing
    UniqueConstraint("client", "idempotency_key"),
    Index("jobs_next", "status", "priority", "number"),
    Index("jobs_of_client", "client", "number"),
    Index("jobs_ended", "ended"),
)
