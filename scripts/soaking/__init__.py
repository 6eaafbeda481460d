"""The soak behind `scripts/soak`, layer by layer; each module imports only those above it.

things    what is in the bucket, and what it holds; pure
reader    child process: reads a mount in one way, checks every byte, tells what it is doing
weather   what goes wrong at the store, and for which waits that is an excuse
driver    a mount of bffs: its life, and what its process holds
main      options; mounts, readers, weather and changes, one after the other; the verdict
"""
