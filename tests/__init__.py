"""Tests of cnnexp; the folders are those of the package."""

# Its import resets all logging: the handler of absl, if it exists by then, closes the streams of pytest.
import submitit.core.logger  # noqa: F401
