"""Parquet files to rows, a few hundred at a time.

    for item in read_parquet(file, name): ...      # Row or Rejected; a row's line is its number

Columns of text, numbers, booleans, lists, structs, maps with text as keys, and nulls are read;
another type (dates, binary, decimals) has no one form in JSON, and its rows are rejected by column
and type. Arrow gives all structs of a column the same fields, so a field that one row lacks comes
back as a null from another row's type: **fields of structs that are null are left out**, at every
depth. A null in a column, a list or a map is kept.
"""

from __future__ import annotations

import shutil
import tempfile
from collections import Counter
from collections.abc import Callable, Iterator
from contextlib import ExitStack, contextmanager
from io import BufferedReader
from typing import TYPE_CHECKING, BinaryIO, TypeAlias

from duiti.data.reading.strict_json import fault_of
from duiti.errors import DataError, RowError, UsageError, shown_name
from duiti.types import Json, Origin, Rejected, Row

if TYPE_CHECKING:
    import pyarrow as pa
    import pyarrow.parquet as pq

_BATCH_ROWS = 256
"""Few, since a short file can mean long rows: a dictionary's text counts once in it."""

_Converter: TypeAlias = "Callable[[object], Json]"


def read_parquet(file: BufferedReader, name: str) -> Iterator[Row | Rejected]:
    """The rows of all row groups, in order.

    Raises:
        UsageError: pyarrow is not installed, or two columns have one name.
        DataError: (here or while reading) the file is damaged.
    """
    with _opened(file, name) as parquet:
        names = parquet.schema_arrow.names
        if len(set(names)) < len(names):
            twice = Counter(names).most_common(1)[0][0]
            raise UsageError(f"{name}: the column {shown_name(twice)} is there twice")
        columns = [_column(field) for field in parquet.schema_arrow]
        number = 0
        for batch in _batches(parquet, name):
            values = [column(batch.column(index)) for index, column in enumerate(columns)]
            for index in range(batch.num_rows):
                number += 1
                fields = {key: column[index] for key, column in zip(names, values, strict=True)}
                yield _row(fields, Origin(name, number))


def count_parquet(file: BufferedReader, name: str) -> int:
    """The number of rows, as the file states it."""
    with _opened(file, name) as parquet:
        return int(parquet.metadata.num_rows)


@contextmanager
def _opened(file: BufferedReader, name: str) -> Iterator[pq.ParquetFile]:
    try:
        import pyarrow as pa
        import pyarrow.parquet as pq
    except ImportError:
        raise UsageError(
            f"{name}: reading Parquet needs the package pyarrow", fix="pip install 'duiti[parquet]'"
        ) from None
    with ExitStack() as stack:
        source: BinaryIO = file
        if not file.seekable():  # Parquet is read from its end: what is packed goes to disk first
            source = stack.enter_context(tempfile.TemporaryFile())
            shutil.copyfileobj(file, source)
        try:
            parquet = pq.ParquetFile(
                source,
                buffer_size=2**20,
                pre_buffer=False,
                page_checksum_verification=True,
                arrow_extensions_enabled=False,
            )
            # Names that are no text show only when they are asked for.
            parquet.schema_arrow.to_string(show_field_metadata=False, show_schema_metadata=False)
        except (pa.ArrowException, OSError, ValueError, MemoryError):
            raise _damage(name) from None
        yield parquet


def _batches(parquet: pq.ParquetFile, name: str) -> Iterator[pa.RecordBatch]:
    import pyarrow as pa

    num_rows = 0
    try:
        # One thread: the processes that prepare rows have the other cores.
        for batch in parquet.iter_batches(_BATCH_ROWS, use_threads=False):
            num_rows += batch.num_rows
            yield batch
    except (pa.ArrowException, OSError, ValueError, MemoryError):
        raise _damage(f"{name}:{num_rows + 1}") from None
    if num_rows != parquet.metadata.num_rows:
        raise _damage(f"{name}:{num_rows + 1}")


def _damage(where: str) -> DataError:
    return DataError(
        f"{where}: the Parquet data is damaged, or was not copied whole",
        fix="fetch or write the file again",
    )


def _row(fields: dict[str, Json | RowError], origin: Origin) -> Row | Rejected:
    for key, value in fields.items():
        if isinstance(value, RowError):
            return Rejected(origin, f"the column {shown_name(key)}: {value}")
    fault = fault_of(fields)
    return Rejected(origin, fault) if fault else Row(fields, origin)  # type: ignore[arg-type]


def _column(field: pa.Field) -> Callable[[pa.Array], list[Json | RowError]]:
    """A function that makes Python values of a part of the column, or the reasons why they are no
    JSON."""
    try:
        fault = _type_fault(field.type)
        convert = None if fault else _converter(field.type)
    except RecursionError:
        fault, convert = "nested too deeply", None

    def values(array: pa.Array) -> list[Json | RowError]:
        if fault:
            return [None if is_null else RowError(fault) for is_null in array.is_null().to_pylist()]
        try:
            found = array.to_pylist()
            return found if convert is None else [convert(value) for value in found]
        except ValueError:
            return [_value(scalar, convert) for scalar in array]

    return values


def _value(scalar: pa.Scalar, convert: _Converter | None) -> Json | RowError:
    try:
        value: Json = scalar.as_py()
        return value if convert is None else convert(value)
    except UnicodeDecodeError:
        return RowError("not UTF-8")
    except RowError as error:
        return error
    except ValueError:
        return RowError("a struct has two fields of one name")


def _type_fault(kind: pa.DataType) -> str:
    """Why values of a type are no JSON, or an empty string."""
    import pyarrow as pa

    is_type = pa.types
    if is_type.is_dictionary(kind):
        return _type_fault(kind.value_type)
    if is_type.is_map(kind):
        key = kind.key_type
        if not (is_type.is_string(key) or is_type.is_large_string(key)):
            return f'a map whose keys are "{key}" is not JSON'
        return _type_fault(kind.item_type)
    if _is_list(kind):
        return _type_fault(kind.value_type)
    if is_type.is_struct(kind):
        return next(filter(None, (_type_fault(field.type) for field in kind)), "")
    plain = (
        is_type.is_string,
        is_type.is_large_string,
        is_type.is_string_view,
        is_type.is_integer,
        is_type.is_floating,
        is_type.is_boolean,
        is_type.is_null,
    )
    return "" if any(test(kind) for test in plain) else f'"{kind}" is not JSON'


def _is_list(kind: pa.DataType) -> bool:
    import pyarrow as pa

    tests = (
        pa.types.is_list,
        pa.types.is_large_list,
        pa.types.is_fixed_size_list,
        pa.types.is_list_view,
        pa.types.is_large_list_view,
    )
    return any(test(kind) for test in tests)


def _converter(kind: pa.DataType) -> _Converter | None:
    """A function from what pyarrow gives for a type to what JSON would give; None: they agree."""
    import pyarrow as pa

    if _is_list(kind):
        inner = _converter(kind.value_type)
        return None if inner is None else lambda value: _list(value, inner)
    if pa.types.is_struct(kind):
        fields = {field.name: _converter(field.type) for field in kind}
        return lambda value: _struct(value, fields)
    if pa.types.is_map(kind):
        item = _converter(kind.item_type)
        return lambda value: _map(value, item)
    return None


def _list(value: object, inner: _Converter) -> Json:
    return [inner(item) for item in value] if isinstance(value, list) else None


def _struct(value: object, fields: dict[str, _Converter | None]) -> Json:
    if not isinstance(value, dict):
        return None
    kept = {key: item for key, item in value.items() if item is not None}
    return {key: item if (to := fields[key]) is None else to(item) for key, item in kept.items()}


def _map(value: object, item: _Converter | None) -> Json:
    if not isinstance(value, list):
        return None
    found = {key: inner if item is None else item(inner) for key, inner in value}
    if len(found) < len(value):
        raise RowError("a map has a key twice")
    return found
