"""Video and image files for tests, encoded on the spot: every picture shows its own number."""

from __future__ import annotations

from pathlib import Path

import numpy as np

BITS = 10


def picture(number: int, height: int = 48, width: int = 80) -> np.ndarray:
    """Return (H, W, 3): a column a bit of `number`, the upper half white for 1, the lower half for 0."""
    frame = np.zeros((height, width, 3), np.uint8)
    for bit in range(BITS):
        columns = slice(bit * width // BITS, (bit + 1) * width // BITS)
        rows = slice(0, height // 2) if number >> bit & 1 else slice(height // 2, height)
        frame[rows, columns] = 255
    return frame


def number_of(frame: np.ndarray) -> int:
    """Return the number that `frame` shows."""
    height, width, _ = frame.shape
    grey = frame.astype(int).mean(2)
    number = 0
    for bit in range(BITS):
        column = grey[:, bit * width // BITS : (bit + 1) * width // BITS]
        upper, lower = column[: height // 2].mean(), column[height // 2 :].mean()
        assert abs(upper - lower) > 100, "this frame shows no number"
        number |= int(upper > lower) << bit
    return number


def numbers_of(frames: np.ndarray) -> list[int]:
    return [number_of(frame) for frame in frames]


def write_video(
    path: Path,
    count: int,
    *,
    codec: str = "libx264",
    pixels: str = "yuv420p",
    options: dict[str, str] | None = None,
    container: dict[str, str] | None = None,
    rotation: int = 0,
    size: tuple[int, int] = (48, 80),
    first: int = 0,
) -> Path:
    """Write a video whose frame i shows `first` + i."""
    import av

    height, width = size
    with av.open(str(path), "w", container_options=container or {}) as output:
        stream = output.add_stream(codec, rate=10, options=options or {})
        stream.width, stream.height, stream.pix_fmt = width, height, pixels
        if rotation:
            stream.set_display_rotation(rotation)
        for number in range(first, first + count):
            frame = av.VideoFrame.from_ndarray(picture(number, height, width), "rgb24")
            output.mux(stream.encode(frame))
        output.mux(stream.encode())
    return path
