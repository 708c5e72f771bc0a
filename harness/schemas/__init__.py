"""Published JSON Schemas of the files that a run writes, and the largest numbers in them."""

# A seed has 64 bits, and a loss that diverges is a float32. Larger ones are damage.
MAX_INTEGER = 2**64 - 1
MAX_NUMBER = 1e100
