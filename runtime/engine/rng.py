"""Random numbers for sampling: counter-based, so that a seed gives the same tokens in any batch.

The number drawn for a token depends on the request's seed, the sequence's index within its prompt and the token's
position alone, never on what else runs.
"""

from __future__ import annotations

import hashlib
import struct


def uniform(seed: int, sequence: int, position: int) -> float:
    """A number in [0, 1) fixed by its arguments (53 bits of BLAKE2b, RFC 7693).

    Args:
        seed: any integer of 64 bits, signed or not.
        sequence: index of the sequence within its prompt.
        position: index of the token within the sequence's new tokens.
    """
    packed = struct.pack("<QQQ", seed & (2**64 - 1), sequence, position)
    return (int.from_bytes(hashlib.blake2b(packed, digest_size=8).digest(), "little") >> 11) * 2.0**-53
