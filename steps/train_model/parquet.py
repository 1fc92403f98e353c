"""Parquet files as rows. pyarrow is no part of the usual image: without it the answer says how to get it.

Texts stay encoded as the file has them, so that a short file of one long text repeated cannot fill the memory.
"""

from __future__ import annotations

import re
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
from numpy.typing import NDArray

from aegis.errors import Permanent
from train_model import readers
from train_model.readers import Rows, as_rows, columns_of

if TYPE_CHECKING:
    import pyarrow as pa

_INDEX = re.compile(r"__index_level_\d+__")  # pandas keeps its index among the columns
FOOTER = 16 << 20
"""Bytes that the description of a file may take, in memory; a thousand columns in a hundred row groups need six."""


def parquet(path: Path, name: str, numbers: bool) -> Rows:
    """The rows of one file; its footer is bounded before anything of it is unpacked. Errors as `readers.told` knows."""
    try:
        import pyarrow as pa
        from pyarrow.parquet import ParquetFile
    except ModuleNotFoundError as error:
        raise Permanent(
            f"{name} is Parquet, which this image cannot read: install the extra `parquet` (the image that is built "
            "with `--build-arg REQUIREMENTS=train-parquet` has it), or bring the data as CSV"
        ) from error
    try:
        limits = {"thrift_string_size_limit": FOOTER, "thrift_container_size_limit": FOOTER // 16}
        with ParquetFile(path, **limits) as plain:
            about, schema = plain.metadata, plain.schema_arrow
        names = [column for column in schema.names if not _INDEX.fullmatch(column)]
        label, group, features = columns_of(names, name)
        _bounded(about, len(features))
        kinds = {name: schema.field(name).type for name in names}
        special = [names[i] for i in (label, group) if i is not None]
        wrong = [names[i] for i in features if not _number(kinds[names[i]])]
        wrong += [name for name in special if not _number(kinds[name]) and not _text(kinds[name])]
        if wrong:
            named = ", ".join(f"{name} ({kinds[name]})" for name in wrong[:10])
            raise ValueError(f"these columns are no numbers: {named}")
        texts = [name for name in special if _text(kinds[name])]
        columns = [names[i] for i in features]
        table = np.empty((about.num_rows, len(features)), dtype=np.float64)
        labels, slices, row = list[NDArray[Any]](), list[NDArray[Any]](), 0
        with ParquetFile(path, read_dictionary=texts, **limits) as file:
            for batch in file.iter_batches(1 << 16, columns=names):
                for number, column in enumerate(columns):
                    table[row : row + len(batch), number] = _cells(batch.column(column))
                labels.append(_cells(batch.column(names[label])))
                if group is not None:
                    slices.append(_cells(batch.column(names[group])))
                row += len(batch)
    except pa.ArrowException as error:
        raise ValueError(str(error)) from error
    if row != about.num_rows or not row:
        raise ValueError(f"{row} rows where its footer says {about.num_rows}")
    groups = np.concatenate(slices) if group is not None else None
    return as_rows(table, np.concatenate(labels), groups, (len(columns),), tuple(columns), numbers=numbers)


def _bounded(about: Any, features: int) -> None:
    size = sum(about.row_group(group).total_byte_size for group in range(about.num_row_groups))
    size = max(size, about.num_rows * features * 8)
    if about.num_rows > readers.MAX_ROWS or size > readers.MAX_BYTES:
        raise ValueError(f"{about.num_rows:,} rows, {size:,} bytes unpacked")


def _number(kind: pa.DataType) -> bool:
    import pyarrow as pa

    return bool(pa.types.is_integer(kind) or pa.types.is_floating(kind) or pa.types.is_boolean(kind))


def _text(kind: pa.DataType) -> bool:
    import pyarrow as pa

    return bool(pa.types.is_string(kind) or pa.types.is_large_string(kind) or pa.types.is_dictionary(kind))


def _cells(column: pa.Array) -> NDArray[Any]:
    """Numbers, NaN where one is missing; or the texts of a dictionary, cut behind what a label may have, and empty."""
    import pyarrow as pa

    found: NDArray[Any]
    if not pa.types.is_dictionary(column.type):
        plain = column.cast(pa.int8()) if pa.types.is_boolean(column.type) else column
        found = plain.to_numpy(zero_copy_only=False)
        return found
    known = [str(text)[:65].strip() for text in column.dictionary.to_pylist()]
    found = column.indices.fill_null(len(known)).to_numpy(zero_copy_only=False)
    return np.asarray(np.array([*known, ""], dtype=np.str_)[found])
