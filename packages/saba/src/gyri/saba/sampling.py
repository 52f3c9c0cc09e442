"""Which block of samples comes next: pure samplers, whose state says already what the next draw gives.

A solver that knows the next block can read what it remembers of it after it has written to its memory, which spares a
copy of all of it (see `saga`); the shuffle below does the same with its own order of the blocks.
"""

from typing import NamedTuple

import jax
import jax.numpy as jnp
from jaxtyping import Array, Int, Key

SAMPLINGS = ("shuffle", "iid", "cyclic")


class Swap(NamedTuple):
    """An exchange of two entries of the order that is still to be written, and the order before it.

    Attributes
    ----------
    position, partner : Array of int32, shape ()
        Places that are exchanged; `position` is that of the next block.
    here : Array of int32, shape ()
        Entry at `position` before the exchange.
    order : Array of int32, shape (n_blocks,)
        A permutation of the blocks.
    """

    position: Int[Array, "*batch"]
    partner: Int[Array, "*batch"]
    here: Int[Array, "*batch"]
    order: Int[Array, "*batch n_blocks"]


class Sampler(NamedTuple):
    """State of a stream of blocks.

    Attributes
    ----------
    block : Array of int32, shape ()
        The block that the next draw gives.
    n_draws : Array of uint32, shape ()
        Draws so far.
    key : PRNG key
        Of this stream; never changes, draw t uses the key folded with t.
    swap : Swap or None
        Of ``"shuffle"``.
    """

    block: Int[Array, "*batch"]
    n_draws: Int[Array, "*batch"]
    key: Key[Array, "*batch"]
    swap: Swap | None


def count_blocks(n_samples: int, batch_size: int) -> int:
    """Number of blocks of consecutive samples, the last of which may be shorter."""
    return -(-n_samples // batch_size)


def _below(key: Array, count: Array, bound: Array | int) -> Array:
    """Draw a whole number below a bound; its bias is below the bound over 2^32."""
    # The folded key is itself the hash of (key, count): drawing from it would hash a second time.
    bits = jax.random.key_data(jax.random.fold_in(key, count))[-1]
    return (bits % jnp.asarray(bound, jnp.uint32)).astype(jnp.int32)


def start_sampler(key: Array, n_blocks: int, sampling: str) -> Sampler:
    """Start a stream of blocks.

    Parameters
    ----------
    key : PRNG key
        Of this stream.
    n_blocks : int
        Number of blocks.
    sampling : {"shuffle", "iid", "cyclic"}
        Each block once an epoch in a new uniform order; uniform with replacement; 0, 1, 2, ...

    Returns
    -------
    Sampler
        Its `block` is the first block.

    Examples
    --------
    >>> import jax
    >>> sampler = start_sampler(jax.random.key(0), 3, "shuffle")
    >>> epoch = []
    >>> for _ in range(3):
    ...     block, sampler = draw(sampler, 3, "shuffle")
    ...     epoch.append(int(block))
    >>> sorted(epoch)
    [0, 1, 2]
    """
    zero = jnp.zeros((), jnp.int32)
    sampler = Sampler(zero, jnp.zeros((), jnp.uint32), key, None)
    if n_blocks == 1 or sampling == "cyclic":
        return sampler
    if sampling == "iid":
        return sampler._replace(block=_below(key, sampler.n_draws, n_blocks))
    return _choose(sampler, zero, jnp.arange(n_blocks, dtype=jnp.int32))


def _choose(sampler: Sampler, position: Array, order: Array) -> Sampler:
    """Choose what comes to a position of the order: one of the blocks that this epoch has not seen (Fisher, Yates)."""
    partner = position + _below(sampler.key, sampler.n_draws, order.shape[0] - position)
    read = lambda i: jax.lax.dynamic_index_in_dim(order, i, keepdims=False)
    return sampler._replace(block=read(partner), swap=Swap(position, partner, read(position), order))


def draw(sampler: Sampler, n_blocks: int, sampling: str) -> tuple[Array, Sampler]:
    """Give the next block and move on.

    Returns
    -------
    index : Array of int32, shape ()
        The block.
    sampler : Sampler
        Whose `block` is the block after it.
    """
    index, moved = sampler.block, sampler._replace(n_draws=sampler.n_draws + 1)
    if n_blocks == 1:
        return index, moved
    following = jnp.where(index + 1 == n_blocks, 0, index + 1)
    if sampling == "cyclic":
        return index, moved._replace(block=following)
    if sampling == "iid":
        return index, moved._replace(block=_below(sampler.key, moved.n_draws, n_blocks))
    swap = sampler.swap
    assert swap is not None
    # Write first, read after: XLA would copy the order at every draw if it had to keep the old one for reading.
    write = lambda order, value, i: jax.lax.dynamic_update_index_in_dim(order, value, i, 0)
    order = write(write(swap.order, index, swap.position), swap.here, swap.partner)
    position = jnp.where(swap.position + 1 == n_blocks, 0, swap.position + 1)
    return index, _choose(moved, position, order)
