"""bffs: an S3 bucket of neuron image stacks as local files, read lazily.

The map: a module imports only from lines below its own, and modules that share a line do not import each other
(import-linter holds them to it, see setup.cfg)::

    __main__                      `python -m bffs`
    cli                           `bffs` itself: where its commands are, how each ends, exit codes
    cli_cache | cli_config | cli_dataset | cli_doctor | cli_mount | cli_plot | cli_status  commands, each of its kind
    cli_options                   the options of all commands
    dataset                       `bffs.open_dataset`: the dataset as arrays, without a mount
    completing | manpage          what a shell offers for a word | the manual page, from the help
    demo                          a made-up dataset on a local S3 server, mounted
    mount                         composition root: build, mount, signal ready, serve, unmount, stop in reverse
    saving                        the scratch layer of a mount, kept coherent with other mounts
    fuse | layout | scratch | status    mounting | specimens to folders | changes to what was saved | live figures
    metrics                       live figures for Prometheus
    engine                        what reading needs, without a mount
    writing                       requests that change something
    overlay | views               tree and scratch folder as one | folders and files of stacks
    check_content | check_disk | check_fuse | check_store  checks of `bffs doctor`
    findings                      what is wrong
    advice                        options that fit what was measured
    dashboard | plots | regions    figures of a mount for people | pictures | regions of stacks as reads
    adapter | inventory | linking    requests that read | what is cached of each specimen | a folder of links
    loop                          libfuse's loop, with a step after its end
    outside | progress | saved    a mount asked from outside | how far a long command is | what was saved
    unlisted                      `stacks` as a link, which programs that look at everything do not follow
    manifest | tables | tree      published, and one a specimen | what commands print | nodes, the FileSystem protocol
    passthrough | pixels          what the kernel reads by itself | where the pixels of slices lie, and the proof
    readahead | kernelahead       what the Predictor wishes for, fetched | what the kernel reads ahead
    shapes | stacks               what first slices look like, kept | pure: byte layouts of whole-stack files
    tiffhead                      what stands before the pixels of a TIFF that bffs makes
    tiff                          the only import of tifffile: what a slice's header says
    content | expectation         immutable bytes, whatever their make | whether slices are read whole
    predictor                     pure: what will be read next
    tracks                        what was read of a specimen: streams, visits, tracks
    blocks                        what is read: from memory, from the disk cache, or fetched
    fetching                      blocks that are not here, fetched once by threads
    keeping                       what was fetched, written to the disk cache
    schedule                      what is fetched next, and what has to give way
    checking | verify | warm      whole objects, checked before the kernel reads them | all that is cached | what is not
    cache | parts                 the disk cache, shared and bounded | parts of objects in memory, within one budget
    link                          the measured speed of the store
    refresh                       the catalog of a command or a mount: kept, listed anew, compared
    cachefile | index | snapshot  a cached object: sparse file, checksums | the cache's ledger | a catalog, kept
    pins                          which specimens stay in the cache
    kept | late                   small files beside the cache, whole or not at all | the store, connected when needed
    catalog | s3                  a listing as specimens | listings and ranges of a bucket, tried again where it helps
    deadlines                     until when a read waits
    body | client | patience      an answer's body, received | the only import of boto3 | pauses, and what is a stall
    explain | unlinked            what went wrong with the store, in our words | files deleted while open
    versions                      of bffs and of what it stands on
    beneath | binding | company   a folder that nothing leads out of | the only import of mfusepy | who else has it
    daemon | traces               work in the background that the shell waits for | where each thread is
    drawing | logs | mountpoint   the demo's neurons | where messages go | what is mounted where, and unmounting
    asking | receiver             who asks a mount, never for long | bodies of many answers, received by one thread
    private                       folders of this user alone
    store                         ObjectInfo, ByteRange, ObjectStore: the value types everyone speaks
    precedence                    who wins: flags, environment, file, profile, defaults
    profiles                      the files that options stand in
    options                       the table of options
    settings                      what was chosen, as values
    fstab | notify                what mount(8) says | telling systemd how far we are
    errors | units                the exception tree and the one errno table | sizes, names, times
"""

from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from bffs.dataset import open_dataset as open_dataset

__version__ = "0.1.0"


def __getattr__(name: str) -> Any:
    """`open_dataset` comes with its module when it is first asked for: commands are quick without."""
    if name == "open_dataset":
        from bffs.dataset import open_dataset

        return open_dataset
    raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
