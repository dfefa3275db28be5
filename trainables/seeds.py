"""Seeds that are derived from what they are for, never drawn."""

import hashlib


def derive_seed(*parts: int | str) -> int:
    """A seed of 63 bits from the parts that identify its use; the same on every machine."""
    return int.from_bytes(hashlib.blake2b(repr(parts).encode(), digest_size=8).digest()) >> 1


def small_seed(*parts: int | str) -> int:
    """A seed of 31 bits, which every JSON reader keeps exact."""
    return derive_seed(*parts) % 2**31
