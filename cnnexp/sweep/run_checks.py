"""What is refused of a single run, from its configuration alone: nothing is allocated or read."""

from cnnexp.config import RunConfig
from cnnexp.config.launchers import LocalLauncher
from cnnexp.data.loading import check_prepared, check_size
from cnnexp.data.shapes import check_levels, shape_of
from cnnexp.errors import UsageError
from cnnexp.models.spec import spec_of
from cnnexp.training.schedule import duration_of


def check_images(config: RunConfig) -> None:
    """Refuse images that are not prepared, too large to be made here, or cannot be changed as asked.

    Raises:
        UsageError: with the first reason found.
    """
    shape_of(config.data)  # refuses images whose size is not known
    if isinstance(config.launcher, LocalLauncher):  # what other machines have is not known here
        check_size(config.data)
    check_prepared(config.data)
    check_levels(config.data)


def check_run(config: RunConfig) -> None:
    """Refuse a run whose network, length or batches are impossible, or whose values mean nothing.

    Raises:
        UsageError: with the first reason found.
    """
    spec_of(config)
    images, batch = shape_of(config.data).train_images, config.data.batch_size
    if batch > images:
        raise UsageError(
            f"data.batch_size={batch}: there are {images} training images; allowed: 1 to {images}"
        )
    steps = duration_of(config).steps
    for key in ("tied_steps", "share_every"):
        value = getattr(config.train, key)
        if value is not None and value > steps:
            raise UsageError(f"train.{key}={value}: there are {steps} steps; allowed: up to {steps}, or null")
