"""Counter-based random numbers for sampling, so that a seed gives the same tokens in any batch.

The number for a token depends only on the request's seed, the sequence's index within its prompt and the token's
position, never on other requests.
"""

from __future__ import annotations

import hashlib
import struct


def uniform(seed: int, sequence: int, position: int) -> float:
    """Return a number in [0, 1) that is determined by the arguments (53 bits of BLAKE2b, RFC 7693).

    Args:
        seed: any 64-bit integer, signed or unsigned.
        sequence: index of the sequence within its prompt.
        position: index of the token among the sequence's generated tokens.
    """
    packed = struct.pack("<QQQ", seed & (2**64 - 1), sequence, position)
    return (int.from_bytes(hashlib.blake2b(packed, digest_size=8).digest(), "little") >> 11) * 2.0**-53
