"""Every tuned number: what a result depends on (BITS), and what only time and memory depend on (SPEED).

A number of BITS is part of the contract: another value gives other last bits. A number of SPEED may take any value; the tests
try others. What was measured, on which machine, is in docs/performance/decisions.md, by the name of the number.
"""

# ---- BITS: how the reduction of a cell is cut into blocks, which are summed and merged in one order.

# Values of a block of a run: 64 KiB of float32, so that a second sweep over it finds it in the L2 cache.
RUN_BLOCK = 16384

# Values of a block of rows: fewer, larger blocks, since every block costs a merge for each cell; and its least rows.
LANE_BLOCK, LANE_ROWS = 131072, 256

# Lanes that few channels are folded to: a multiple of every vector length with 3 channels.
FOLDED = 192

# A reduced innermost axis shorter than this goes side by side with the kept axis before it.
SHORT_RUN = 128

# ---- SPEED, of the plan: which cells go together.

# Lanes side by side, at most: their accumulators stay in the L1 cache.
LANES = 1024

# Bytes of x of one group of cells, so that the affine step finds it in the L2 cache.
GROUP_BYTES = 524288

# Rows of which a group of cells takes only a part, at most: parts of many rows are as many short streams in as many pages.
PARTED_ROWS = 256

# Lanes of a task, at least, where rows are shared out among the cores.
FEW_LANES = 64

# Values that chunks come in multiples of: a cache line of float32, to which no two threads write.
LINE_VALUES = 16

# Bytes of x of neighbouring cells side by side: shorter pieces of memory are read at half the speed.
PIECE_BYTES = 65536

# Bytes of x of all those cells, at most, where a core has a large L2 cache, in which they stay for the second sweep, and where
# it has a small one.
NEIGHBOUR_BYTES_LARGE_L2, NEIGHBOUR_BYTES_SMALL_L2 = 262144, 4194304

# The same where cells are single runs, which stay in the L1 cache for the affine step; and bytes of an x that the L2 cache
# holds from before, of which more together hide each other's divisions.
SINGLE_BYTES, CACHED, SINGLE_BYTES_OF_CACHED = 8192, 1 << 20, 24576

# Neighbouring cells that go together, at most.
NEIGHBOURS = 256

# Rows in which the gradients of weights inside cells are summed, at most: no two threads share one.
GRADIENT_ROWS = 64

# ---- SPEED, of threads and caches.

# Bytes of an L2 cache from which on it is large: what is behind it is then shared by many cores and slow.
LARGE_L2 = 1 << 21

# Values that take less time on one thread than a second one takes to wake, and the values that a cell counts for.
SERIAL, CELL = 32768, 64

# Bytes of a group of cells, at most, whose successor is prefetched where the L2 cache is small, and of an array, at least.
PREFETCHED_GROUP, PREFETCHED_ARRAY = 1 << 17, 1 << 21

# ---- SPEED, of memory.

# Bytes of a result from which on it comes from the pool; smaller ones are mostly in the allocator's heap.
POOLED = 1 << 22

# Bytes that the pool keeps as they are, at most, and the share of the machine's memory for them; bytes marked as free.
POOL_WARM, POOL_SHARE, POOL_FREE = 1 << 27, 64, 1 << 28

# Cells whose states are held at once: 224 MiB.
STATES = 1 << 22

# Cells up to which arrays for states are kept for the next call.
SPARE_CELLS = 1024

# Values of the ones and zeros that all calls with a missing weight or bias share.
SHARED = 1 << 20

# Calls that are remembered: what is known of each, and its fast path.
REMEMBERED = 4096

# ---- SPEED, of loads and stores in the kernels.

# Bytes of a result from which on it is written past the caches: it would be gone again before anyone reads it.
STREAM = 24 << 20

# Bytes of a row, at least, for that: where rows are whole cache lines, and where they are not.
STREAM_ROW, STREAM_ROW_UNALIGNED = 512, 1 << 10

# Bytes of an array from which on rows are prefetched.
PREFETCH = 1 << 21

# Lanes of a tile, lanes up to which a row is cut into tiles, and bytes by which a tile prefetches, at least.
TILE, TILED, TILE_DISTANCE = 32, 512, 4096

# Values of the line in which a result is made: 4 KiB of float32, so that it stays in the L1 cache.
LINE = 1024

# Bytes by which a long run prefetches, and bytes of an array from which on it does: the memory answers later than the
# processor looks ahead by itself.
RUN_DISTANCE, RUN_ARRAY = 4096, 1 << 25

# Bytes of an array and of its runs from which on sums prefetch beyond the end of a run.
BEYOND_ARRAY, BEYOND_RUN = 1 << 22, 512

# Bytes by which a result is prefetched for writing, and bytes of a result from which on it is.
WRITE_AHEAD, WRITE_ARRAY = 4096, 1 << 20

# Values of a run from which on its steps begin where the memory of the result has a multiple of one: a store across two cache
# lines costs as much as two.
ALIGNED_RUN = 128
