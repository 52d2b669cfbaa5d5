"""How every database of a store is opened: many small ones that share one budget of memory.

The options are passed again at each open, because RocksDB does not keep all of them and rocksdict
drops in silence what is not passed.
"""

from __future__ import annotations

from pathlib import Path
from typing import Final

from rocksdict import (
    BlockBasedOptions,
    Cache,
    DBCompressionType,
    Options,
    Rdict,
    WriteBufferManager,
)

MIB: Final = 1024 * 1024

CACHE_BYTES: Final = 32 * MIB
"""For all databases of the store together. Look-ups never read the disk; this serves `tx` reads."""

WRITE_BUFFERS_BYTES: Final = 64 * MIB
"""For all databases together: the fullest is written out when the sum is reached. Kafka Streams'
advice for many stores in one process is the same: one cache and one write buffer manager."""

WRITE_BUFFER_BYTES: Final = 16 * MIB
"""Of one database: some 1,300 commits of 500 markers, so that files are few and compaction rare."""

OPEN_FILES: Final = 128
"""Of one database. A billion markers are about 250 files, opened again as needed."""

INFO_LOG_BYTES: Final = 1 * MIB
INFO_LOGS_KEPT: Final = 3


class Shared:
    """What the databases of one store share."""

    def __init__(self) -> None:
        self._cache = Cache(CACHE_BYTES)
        self._write_buffers = WriteBufferManager(WRITE_BUFFERS_BYTES, allow_stall=False)

    def options(self) -> Options:
        table = BlockBasedOptions()
        table.set_block_cache(self._cache)
        options = Options(raw_mode=True)
        options.set_block_based_table_factory(table)
        options.set_write_buffer_manager(self._write_buffers)
        options.set_write_buffer_size(WRITE_BUFFER_BYTES)
        options.set_compression_type(DBCompressionType.lz4())
        options.set_max_open_files(OPEN_FILES)
        options.set_max_log_file_size(INFO_LOG_BYTES)
        options.set_keep_log_file_num(INFO_LOGS_KEPT)
        options.set_stats_dump_period_sec(0)
        options.set_stats_persist_period_sec(0)
        options.set_max_manifest_file_size(4 * MIB)
        options.set_skip_stats_update_on_db_open(True)
        return options


def open_database(path: Path, shared: Shared) -> Rdict:
    """Open for reading and writing, or raise rocksdict's bare Exception."""
    return Rdict(str(path), shared.options())
