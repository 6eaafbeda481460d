"""The benchmark behind `scripts/bench`, layer by layer; each module imports only those above it.

plans     what is read: the made-up dataset and, case by case, the byte ranges; pure
reader    child process: reads a plan through a mount, and times it
ceiling   child process: fetches a plan by plain parallel GETs onto the cache disk
drivers   bffs and its peers: their commands, their mounts, their CPU time and memory
measure   one case with one driver: mount, run, count, check the bytes, unmount
figures   what is worth knowing of a measurement, and the targets; pure
report    the table, the JSON file and the picture
main      options, and all cases with all drivers in turns
"""
