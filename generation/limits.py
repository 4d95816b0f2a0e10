"""The limits of machines in one place: time-outs, pauses and sizes that no recipe needs to set."""

# Seconds
GRACE_S = 10.0  # for what is in flight after the first signal
EVENT_S = 5.0  # between two progress events of a bar
DELAY_S = 2.0  # work that is usually shorter shows a bar only after so long
LOCK_WAIT_S = 60.0  # for another process that holds a shard

# Rows
SHARD_ROWS = 10_000  # of a shard of seeds, where the recipe sets none
READ_ROWS = 4_096  # of a Parquet file at a time
SEED_ROWS = 1_000  # of a file of seeds at a time
TRANSFER_ROWS = 256  # moved at a time: small buffers, used again and again, make the transfer as fast as the disk
IMAGE_ROWS = 1_024  # vectors of images read at a time
BATCH_IMAGES = 32  # pictures encoded at a time
TAR_ROWS = 10_000  # of a WebDataset shard: 60 MB at d = 1280

# Sizes
FILE_BYTES = 200_000_000  # about, of a file of a built data set, which holds whole shards
WRITERS = 2  # files of a data set written at once; more only hold more rows in memory
