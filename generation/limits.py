"""The limits of machines in one place: time-outs, pauses and sizes that no recipe needs to set."""

# Seconds, of requests
SIDE_S = 10.0  # for a reply of any route but generation, whose time-out is the recipe's
CONNECT_S = 10.0  # for a new connection
KEEP_ALIVE_S = 4.0  # uvicorn closes idle connections after 5 s
BACKOFF_S = (0.1, 10.0)  # of a request that failed: first and longest, jittered
FULL_S = 1.0  # pause after a refusal with nothing else in flight
BURST_S = 60.0  # refusals that are closer together are logged once
LOOK_S = 5.0  # between looks at an endpoint that is up
PROBE_S = (0.5, 15.0)  # shortest and longest pause between looks at an endpoint that is away
STALL_S = 60.0  # requests in flight and no sign of life: connect anew; twice as long, and away: ask elsewhere
SLOW_S = 10.0  # a warm-up that takes longer is explained
TEST_AFTER_S = 60.0  # a row that failed is tested at the latest after so long
POLL_S = 0.1  # between looks of a test
TICK_S = 0.005  # what is due so soon is due now: timers may fire early, under uvloop by more than 1 ms
START_S = 60.0  # for the embedded server

# Seconds, of commands
GRACE_S = 10.0  # for what is in flight after the first signal
REFRESH_S = 0.5  # between looks at the figures and at the number of workers
SYNC_S = 1.0  # between syncs of a journal to the disk
LOCK_WAIT_S = 60.0  # for another process that holds a shard
EVENT_S = 5.0  # between two progress events of a bar
DELAY_S = 2.0  # work that is usually shorter shows a bar only after so long

# Requests
REPLY_BYTES = 32 << 20  # longest reply: a wrong URL may serve a file
START_LIMIT = 8  # in flight, where the server publishes no limit
EMBEDDED_SLOTS = 8  # requests that the embedded server decodes together
SLOT_TOKENS = 2048  # context of one slot, prompt and answer

# Rows
SHARD_ROWS = 10_000  # of a shard of seeds, where the recipe sets none
READ_ROWS = 4_096  # of a Parquet file at a time
SEED_ROWS = 1_000  # of a file of seeds at a time
TRANSFER_ROWS = 256  # moved at a time: small buffers, used again and again, make the transfer as fast as the disk
IMAGE_ROWS = 1_024  # vectors of images read at a time
BATCH_IMAGES = 32  # pictures encoded at a time
TOKENISE_TEXTS = 1_024  # at a time: ids as Python integers take nine times the memory
TAR_ROWS = 10_000  # of a WebDataset shard: 60 MB at d = 1280

# Files of a built data set
FILE_BYTES = 200_000_000  # about; a file holds whole shards
WRITERS = 2  # files written at once; more only hold more rows in memory
