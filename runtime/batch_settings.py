"""The second part of the settings: stored files and batches."""

from __future__ import annotations

from pydantic import Field

from runtime.serving_settings import ServingSettings
from runtime.setting_types import OptionalPath


class BatchSettings(ServingSettings):
    """The part of ``runtime.settings.Settings`` about files and batches."""

    files_dir: OptionalPath = Field(
        None, description="Folder of /v1/files and /v1/batches, on a local disk; without it both are off."
    )
    files_max_bytes: int = Field(104_857_600, ge=1024, le=2**40, description="Maximum size of an uploaded file.")
    files_total_bytes: int = Field(
        10_737_418_240, ge=1024, le=2**60, description="Size of all files together above which uploads are refused."
    )
    files_ttl_seconds: int = Field(
        2_592_000,
        ge=3600,
        le=315_360_000,
        description="Lifetime of a file that is uploaded without expires_after, of a batch's output, and of the record "
        "of a batch that has ended.",
    )
    batch_max_rows: int = Field(50_000, ge=1, le=10_000_000, description="Maximum rows of a batch's input file.")
    batch_concurrency: int = Field(
        32,
        ge=1,
        le=1024,
        description="Rows of batches that run concurrently, behind interactive requests; with BATCH_STREAM, that are "
        "in the queue.",
    )
    batch_stream: str = Field(
        "",
        max_length=200,
        description="Stream, queue or topic of EVENTS_URL to which rows of batches are sent; warmstart consume with "
        "the same --stream answers them. Without it they run in this process.",
    )
