"""Columns of Parquet, Feather (Arrow) and CSV files, as a stream of (rows, columns); FILE:a,b names the columns."""

from collections.abc import Callable, Iterator
from contextlib import ExitStack
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np

from keepnorm.stats.options import Options
from keepnorm.stats.readers.source import Piece, Source, line
from keepnorm.stats.readers.table import need

_ROWS = 1 << 16


def _open(
    batches: Callable[[Path], Iterator[Any]], path: Path, member: str, options: Options, _cleanup: ExitStack
) -> list[Source]:
    need("pyarrow", "parquet", path)
    columns = tuple(filter(None, member.split(",")))
    return [Source(str(path), stream=partial(_stream, batches, path, columns, options))]


def _stream(
    batches: Callable[[Path], Iterator[Any]], path: Path, columns: tuple[str, ...], options: Options
) -> Iterator[Piece]:
    import pyarrow as pa

    try:
        for batch in batches(path):
            for name in columns or batch.schema.names:
                if name not in batch.schema.names:
                    raise ValueError(f"{path}: no column {name}; there are {', '.join(batch.schema.names[:9])}")
                kind = batch.schema.field(name).type
                if not (pa.types.is_integer(kind) or pa.types.is_floating(kind) or pa.types.is_boolean(kind)):
                    raise TypeError(f"{path}: column {name} holds {kind}, which has no moments; name others, as in {path}:a,b")
            if batch.num_rows:
                yield _piece([batch.column(batch.schema.names.index(n)) for n in columns or batch.schema.names], options)
    except (pa.ArrowException, OSError, ValueError) as error:
        if str(error).startswith(str(path)):
            raise
        raise ValueError(f"{path}: not a table that can be read: {line(error)}") from error


def _piece(columns: list[Any], options: Options) -> Piece:
    """Nulls take no part, as no value stands there."""
    import pyarrow as pa

    gaps = np.stack([np.asarray(c.is_valid()) for c in columns], 1) if any(c.null_count for c in columns) else None
    arrays = []
    for c in columns:
        plain = c.cast(pa.uint8()) if pa.types.is_boolean(c.type) else c
        arrays.append(plain.fill_null(0).to_numpy(zero_copy_only=False))
    if gaps is not None and options.nodata == "none":
        return np.where(gaps, np.stack(arrays, 1), np.nan), None
    return np.stack(arrays, 1), gaps


def _parquet(path: Path) -> Iterator[Any]:
    import pyarrow.parquet as pq

    with pq.ParquetFile(path) as file:
        yield from file.iter_batches(batch_size=_ROWS)


def _feather(path: Path) -> Iterator[Any]:
    import pyarrow as pa

    with pa.OSFile(str(path)) as raw, pa.ipc.open_file(raw) as file:
        for i in range(file.num_record_batches):
            yield file.get_batch(i)


def _csv(path: Path) -> Iterator[Any]:
    import pyarrow.csv

    with pyarrow.csv.open_csv(
        path, parse_options=pyarrow.csv.ParseOptions(delimiter="\t" if ".tsv" in path.name else ",")
    ) as file:
        yield from file


open_parquet, open_feather, open_csv = (partial(_open, batches) for batches in (_parquet, _feather, _csv))
