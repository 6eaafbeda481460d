"""bffs: an S3 bucket of neuron image stacks as local files, read lazily.

The map: a module imports only from lines below its own, and modules that share a line do not import each other.
import-linter holds the direction (setup.cfg)::

    __main__                       `python -m bffs`
    cli                            commands, options, messages, exit codes
    demo                           a made-up dataset on a local S3 server, mounted
    mount                          composition root: build, mount, signal ready, serve, unmount, stop in reverse
    fuse | layout | tables         requests in, stat, bytes and errnos out | specimens to folders | what commands print
    tree                           nodes, path resolution, the FileSystem protocol
    readahead | tiff               what the Predictor wishes for, asked of the blocks | the only import of tifffile
    content | predictor            immutable bytes of any make | pure: what will be read next
    blocks                         single-flight, prioritised fetching within one memory budget
    cache | link                   the disk cache: a sparse file per object version | the measured speed of the store
    index | manifest               the cache's book of what is where | the published manifest and one per specimen
    catalog | s3                   a listing as specimens | the only import of boto3
    drawing | logs | mountpoint    the demo's neurons | where messages go | folders that are mounted on, unmounting
    private                        folders of this user alone
    store                          ObjectInfo, ByteRange, ObjectStore: the value types everyone speaks
    settings                       options and dataset profiles
    errors | units                 the exception tree and the one errno table | sizes, names, times
"""

__version__ = "0.1.0"
