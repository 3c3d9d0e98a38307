"""What a server accepts, and how it puts requests together."""

from __future__ import annotations

from dataclasses import dataclass, fields

from transformers_litelvlm.utils.image_io import MAX_PIXELS


@dataclass(frozen=True)
class Limits:
    """Limits of a server. Raises ValueError for what they cannot be.

    Attributes:
        max_request_mb: megabytes (2**20 bytes) of the body of a request.
        max_pixels: pixels of a picture; at most [`MAX_PIXELS`].
        max_sentences: sentences of a request.
        max_queue: requests that are being read, wait, or are answered at a time.
        max_batch: requests in one call of the model; 1 puts none together.
        batch_wait_ms: milliseconds that a request waits for others.
        cache_mb: megabytes of encoded pictures that are kept; 0 keeps none.
        read_seconds: until the body of a request must have arrived.
    """

    max_request_mb: int = 20
    max_pixels: int = 16_000_000
    max_sentences: int = 16
    max_queue: int = 64
    max_batch: int = 16
    batch_wait_ms: float = 2
    cache_mb: int = 512
    read_seconds: float = 30

    def __post_init__(self) -> None:
        for field in fields(self):
            value, lowest = getattr(self, field.name), 0 if field.name in ("batch_wait_ms", "cache_mb") else 1
            if not value >= lowest:  # NaN neither
                raise ValueError(f"`{field.name}` must be at least {lowest}, got {value}.")
        if self.max_pixels > MAX_PIXELS:
            raise ValueError(f"`max_pixels` must be at most {MAX_PIXELS}, got {self.max_pixels}.")

    @property
    def max_request_bytes(self) -> int:
        return self.max_request_mb * 2**20
