"""Arrays that a Python function of the user returns."""

import traceback
from collections.abc import Callable, Hashable, Mapping
from pathlib import Path
from typing import Any

from cnnexp.config.datasets import CustomData
from cnnexp.core.errors import UsageError, describe_exception, shorten_value
from cnnexp.core.plugins import check_options, checksum_source, load_function
from cnnexp.data.array_set import ArraySet
from cnnexp.data.arrays import ArrayRecords, open_arrays
from cnnexp.data.registry import register_dataset


@register_dataset(CustomData)
class CustomSet(ArraySet[CustomData]):
    """The arrays that a function returns for the arguments `data.options`."""

    is_cached = False  # the function may read files that have changed

    @property
    def origin(self) -> str:
        """The key that names the function, with its value."""
        key, value = self._source
        return f"{key}={shorten_value(value)}"

    @property
    def _source(self) -> tuple[str, str]:
        """The key that names the function, and its value."""
        data = self.data
        return ("data.file", data.file) if data.file is not None else ("data.target", data.target or "")

    def make_stamp(self) -> Hashable:
        """Return the checksum of the file that defines the function."""
        return checksum_source(self._load_function())

    def open_records(self) -> Mapping[str, ArrayRecords]:
        """Call the function, and open the arrays that it returns: they may be mapped from files."""
        return open_arrays(self._call_function(), self.origin)

    def _call_function(self) -> Mapping[str, Any]:
        """Call the function.

        Raises:
            UsageError: There is no such function, it does not take these options, it raises, or it does not
                return arrays by their names.
        """
        function = self._load_function()
        check_options("data.options", function, self.data.options, ())
        try:
            arrays = function(**self.data.options)
        except UsageError:
            raise
        except Exception as error:
            frame = traceback.extract_tb(error.__traceback__)[-1]
            place = f"{Path(frame.filename).name}, line {frame.lineno}"
            raise UsageError(
                f"{self.origin}: {place}: {type(error).__name__}: {describe_exception(error)}"
            ) from error
        if isinstance(arrays, Mapping):
            return arrays
        if isinstance(arrays, tuple) and hasattr(arrays, "_asdict"):
            return arrays._asdict()  # pyright: ignore[reportAttributeAccessIssue]
        raise UsageError(
            f"{self.origin}: {function.__name__}() must return a dictionary or NamedTuple of arrays "
            f"(got {type(arrays).__name__})"
        )

    def _load_function(self) -> Callable[..., Any]:
        return load_function(*self._source, default="load")
