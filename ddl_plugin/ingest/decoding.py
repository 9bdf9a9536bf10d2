"""Images decoded where a damaged one must be noticed: libjpeg says it on stderr alone."""

from __future__ import annotations

import contextlib
import os

import cv2
import numpy as np

#: Of libjpeg's warnings those that mean lost picture data; others, such as about colour profiles, are harmless.
_LOSSES = (b"Corrupt JPEG data", b"Premature end of JPEG")
_STDERR = 2


class Decoder:
    """decoder(bytes) -> (uint8 (H, W, 3) BGR or None, whether JPEG data was damaged).

    Takes over the stderr of its process, which must therefore be one that does nothing else.
    """

    def __init__(self):
        self._said = os.memfd_create("stderr")
        os.dup2(self._said, _STDERR)

    def __call__(self, data: bytes) -> tuple[np.ndarray | None, bool]:
        pixels = None
        # OpenCV raises for some of what it cannot decode (no data, too many pixels) and returns None for the rest.
        with contextlib.suppress(cv2.error):
            pixels = cv2.imdecode(np.frombuffer(data, np.uint8), cv2.IMREAD_COLOR)
        return pixels, self._damage_was_said()

    def _damage_was_said(self) -> bool:
        size = os.fstat(self._said).st_size
        if not size:
            return False
        text = os.pread(self._said, size, 0)
        os.ftruncate(self._said, 0)
        os.lseek(self._said, 0, os.SEEK_SET)
        return any(loss in text for loss in _LOSSES)
