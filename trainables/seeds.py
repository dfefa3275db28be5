"""Seeds that are derived, never drawn."""

import hashlib


def derive_seed(*parts: int | str) -> int:
    """A seed of 63 bits from anything that names it; the same on every machine."""
    return int.from_bytes(hashlib.blake2b(repr(parts).encode(), digest_size=8).digest()) >> 1


def small_seed(*parts: int | str) -> int:
    """A seed of 31 bits: exact in every reader of JSON."""
    return derive_seed(*parts) % 2**31
