"""Every bound, time-out and size, each with its reason. Nothing else in the project holds a magic number of its own.

`Limits` is what an engine and its clients obey; it is frozen and travels to the engine at its start. The constants
below it stand by what they bound. The last ones are parts of formats on disk, in memory or on the wire: changing one
changes its format's version.
"""

from __future__ import annotations

from typing import Final

import msgspec

KIB = 1024
MIB = 1024 * KIB
GIB = 1024 * MIB
US_PER_S = 1_000_000


class Limits(msgspec.Struct, frozen=True, kw_only=True, forbid_unknown_fields=True):
    """The bounds of one engine. At each of them the caller is slowed or told; memory does not grow."""

    # --- requests -------------------------------------------------------------------------------------------------
    frame_bytes_max: int = 1 * MIB  # one frame on a lane; checked on its declared length, before anything is allocated
    frame_nodes_max: int = 100_000  # containers and leaves in a decoded frame, of which twice its bytes are always
    # taken: shared references can fold 2^25 of them into 260 bytes
    frame_depth_max: int = 32  # nesting of a decoded value; real metadata is nested three or four deep
    request_mutations_max: int = 1_000  # mutations and guards of one request: a turn must stay short for everybody else
    entity_bytes_max: int = 512 * KIB  # one stored payload; larger things belong in files, named by the entity
    text_bytes_max: int = 4 * KIB  # one reason; names are bounded by NAME_MAX
    window_max: int = 256  # requests of one session in flight; as many outcomes are remembered, so a resend is known
    window_bytes_max: int = 1 * MIB  # the same in bytes of frames, beyond which no further one is sent: the engine and
    # the pipe hold less of one lane, and what is more would only lie about in the client
    busy_above_s: float = 0.2  # a call that does not wait for room is told Busy where its reply would take longer, as
    # the engine answers just now: who stands in line behind an overload has gone when it is decided. Not while few are
    # in flight, see IN_FLIGHT_LEAST
    request_ids_max: int = 100_000  # user-given request ids remembered over all sessions, oldest forgotten first

    # --- the turn -------------------------------------------------------------------------------------------------
    batch_max: int = 128  # requests in one turn: amortises write and fsync (60 us: 0.5 us each), and is half of a
    # window: agents that get the replies to a part of theirs send more while the next part is decided
    spin_s: float = 0.0003  # look for the next request or reply so long before sleeping, while they come as quickly: a
    # processor that went idle costs 30 us to wake and half of its speed after that. 0: always sleep
    decide_timeout_s: float = 2.0  # for deciding one request, which takes ~15 us: a validator that loops or sleeps is
    # ended after this, at most half of it later; for making one stored entity anew, for another class, likewise. Far
    # below hang_timeout_s, as everybody else waits. 0: no bound
    turn_bytes_max: int = 4 * MIB  # records of one turn; the requests behind wait for the next one
    turn_max_s: float = 0.01  # of deciding in one turn, whatever the models cost: who was decided first waits as long
    # for its reply; and as long again of serving those who wait for something to be ready. A commit of 0.1 to 0.3 ms
    # behind it costs 1 to 3 %
    turn_slice_s: float = 0.00015  # what a session gets at once before others have theirs and lanes are read again:
    # some 12 requests, so that going round costs 1 %. A quiet agent waits for one, and at most one is added to its turn
    # (longer ones in a crowd, see CROWD_SLICES)
    lane_read_bytes: int = 32 * KIB  # what one wake-up takes from one lane, some 350 small requests: for the 0.6 ms of
    # decoding them everybody waits
    lane_requests_max: int = 512  # requests of one lane waiting for a turn; above it that lane is not read
    lane_bytes_max: int = 512 * KIB  # the same in bytes of frames: 1,024 lanes cannot hold more than 0.5 GiB
    reply_backlog_bytes_max: int = 1 * MIB  # that an agent did not read; beyond it its lane is closed (it can resend)

    # --- sessions -------------------------------------------------------------------------------------------------
    sessions_max: int = 1_024  # remembered sessions; the longest silent one is forgotten first
    handshake_timeout_s: float = 5.0  # a connecting process that stalls in its hello
    connect_timeout_s: float = 10.0  # a client's patience with a starting or restarting engine
    request_timeout_s: float = 30.0  # a client's patience for one reply; then OutcomeUnknown
    session_grace_s: float = 10.0  # a session that claimed tasks may be without a lane for so long, where its process
    # is not known to be dead, nor, after a start, to be there: as long as clients look for an engine that restarts

    # --- coordination ---------------------------------------------------------------------------------------------
    retry_backoff_s: float = 1.0  # before a failed task is tried again, where it does not say itself; doubled each time
    retry_backoff_max_s: float = 300.0
    making_slice_s: float = 0.005  # of looking at all tasks, where somebody claims for the first time, at once: half of
    # a turn at most. A million take some 10 s in all, which others do not feel. Likewise of all entities of a kind
    # whose class is replaced, between which the heart beats and lanes are read
    cascade_max: int = 10_000  # entities that one request may cancel with its own: each takes some 20 us of a turn

    # --- the engine's life ----------------------------------------------------------------------------------------
    start_timeout_s: float = 60.0  # from exec to ready, recovery of a large state included
    drain_timeout_s: float = 10.0  # finish what was accepted; leftovers are unapplied and say so
    hang_timeout_s: float = 10.0  # an engine silent for so long is said to hang; its longest honest pause is one turn
    heartbeat_s: float = 1.0  # how often an idle engine shows that it lives: 1 Hz costs no measurable CPU
    restart_backoff_s: float = 0.05  # before the first restart; doubled each time up to the maximum below
    restart_backoff_max_s: float = 5.0
    restarts_max: int = 30  # within restart_window_s, which lasts for 30 at the slowest back-off; then it is given up.
    # Starts that find no room on disk or in memory do not count
    restart_window_s: float = 300.0
    engine_headroom_bytes: int = 1 * GIB  # RLIMIT_DATA above what the engine uses: a hostile pickle meets MemoryError

    # --- memory ---------------------------------------------------------------------------------------------------
    memory_dir: str = "/dev/shm"
    heap_segment_bytes_first: int = 4 * MIB  # the first heap segment; later ones grow with what is live
    heap_segment_bytes_max: int = 64 * MIB  # making one takes 50 to 200 ms in a thread; few enough at 10^7 records
    reader_cache_max: int = 65_536  # decoded models in a reader, by key and by record address each; 0: it keeps none
    wait_backstop_s: float = 0.25  # a futex wait looks around this often: the engine may be gone or superseded
    snapshot_age_max_s: float = 600.0  # a held snapshot older than this may end with SnapshotExpired
    forgotten_keys_max: int = 65_536  # of a kind: deleted keys whose last version is remembered when their tombstones
    # left memory, 10 MB at 100-byte keys; at the bound the versions of all new keys begin above theirs

    # --- journal --------------------------------------------------------------------------------------------------
    journal_file_bytes: int = 32 * MIB  # one preallocated file; zero-filled ahead of need, in a thread
    history_bytes: int = 256 * MIB  # journal and checkpoints kept for looking back, besides those that a start needs
    history_s: float = 7 * 86_400.0  # and how old what they tell may be
    checkpoint_after_bytes: int = 16 * MIB  # of journal at least, before a checkpoint: replaying so much takes
    # 0.2 s, and making one 0.4 s of another processor
    recent_bytes: int = 2 * MIB  # of journal that a start puts back record by record, so that watches go on in memory;
    # of what is older, only the newest records

    def __post_init__(self) -> None:
        """Raises TypeError, ValueError, where a bound is none: an engine with such a one would serve nobody, or die of
        it in the middle of something.
        """
        for name, kind in Limits.__annotations__.items():
            value = getattr(self, name)
            if kind == "str":
                _check_folder(name, value)
            else:
                _check_number(name, kind, value)


def check_limits(limits: object) -> None:
    """Raises TypeError for what was given in place of Limits."""
    if not isinstance(limits, Limits):
        raise TypeError(f"limits are Limits(...), such as Limits(window_max=64), not {limits!r:.100}")


def _check_number(name: str, kind: str, value: object) -> None:
    if isinstance(value, bool) or not isinstance(value, int if kind == "int" else (int, float)):
        raise TypeError(f"{name} is {'a whole number' if kind == 'int' else 'a number'}, not {value!r}")
    if not value >= 0:  # nor nan
        raise ValueError(f"{name} must not be below 0, and is {value}")
    if value == 0 and name in _ABOVE_ZERO:
        raise ValueError(f"{name} must be more than 0")
    if kind == "int" and value >= 2**63:  # no file, nor what an engine is told, takes more
        raise ValueError(f"{name} must be below 2**63")
    if 0 < value < _LEAST.get(name, 0):
        zero = "" if name in _ABOVE_ZERO else "0 or "
        raise ValueError(f"{name} must be {zero}at least {_LEAST[name]:,}, and is {value}")
    if kind == "float" and value > SECONDS_MAX and name not in _ENDLESS:
        raise ValueError(f"{name} must be finite, {SECONDS_MAX:g} at most, and is {value}")


def _check_folder(name: str, value: object) -> None:
    if not isinstance(value, str):
        raise TypeError(f"{name} is the name of a folder, as a str, not {value!r}")
    try:
        named = bool(value) and b"\0" not in value.encode()
    except UnicodeEncodeError:  # JSON tells it to readers
        named = False
    if not named:
        raise ValueError(f"{name} is the name of a folder, in UTF-8, not {value!r}")


SECONDS_MAX = 1e9  # 31 years: timers take so much
_ABOVE_ZERO = frozenset(  # of the others 0 means: none of it, at once, or not at all
    (
        "frame_bytes_max", "frame_nodes_max", "frame_depth_max", "request_mutations_max", "entity_bytes_max",
        "window_max", "window_bytes_max", "batch_max", "turn_bytes_max", "turn_max_s", "lane_read_bytes",
        "sessions_max", "handshake_timeout_s", "start_timeout_s", "heartbeat_s", "hang_timeout_s",
        "engine_headroom_bytes", "heap_segment_bytes_first", "heap_segment_bytes_max", "wait_backstop_s",
        "journal_file_bytes",
    )
)  # fmt: skip
_LEAST = {
    "decide_timeout_s": 0.0001,  # whose timer, where it ticks faster, leaves no time for anything else
    "engine_headroom_bytes": 16 * MIB,  # with one an engine dies of a thousand tasks, and with less it hears nobody
}
_ENDLESS = frozenset(  # patience and times to look back on: no timer is set to them
    ("busy_above_s", "connect_timeout_s", "request_timeout_s", "hang_timeout_s", "restart_window_s",
     "snapshot_age_max_s")
)  # fmt: skip

DEFAULT_LIMITS = Limits()

# Of every process alike, because nobody has asked to choose them.

# --- a client and its lane ----------------------------------------------------------------------------------------
YIELDED_S = 0.00002  # that a processor was given up for: somebody else ran on it. Nobody there takes 1 us
CROWDED_LEAST_S, CROWDED_MOST_S = 0.001, 0.05  # without looking for replies before sleeping, once somebody else ran: it
# may have been the kernel for a moment, or another agent for long, so it doubles each time
READ_BYTES = 64 * KIB  # what one look takes from a pipe of replies or orders: its usual capacity
PIPE_BYTES = 256 * KIB  # of a lane; 64 pipes of 1 MiB would exhaust the kernel's per-user soft limit
RECONNECT_FIRST_S, RECONNECT_MAX_S = 0.005, 0.05  # between a client's tries while an engine restarts, which takes 0.3 s
ATTACH_RETRY_S = 0.005  # between looks for a memory that is just being handed over
IN_FLIGHT_LEAST = 64  # of a session that nobody is told Busy for, whatever the pace: two make a turn, also where it is
# a slow disk that takes the time
PACE_KEPT = 0.9  # of what was seen before, at each look that brought replies: the last ten or twenty make the pace
STEADY_LOOKS = 20  # without a pause in between, until the pace says how much the engine can do, not how much was asked
RETRY_LEAST_S, RETRY_MOST_S = 0.001, 1.0  # what Busy says: below the first, waiting for room is quicker; above the
# second, nobody knows
FRAME_BATCH = 32  # requests of `submit_many` in one frame: amortises the write; a turn begins before the window is full
FRAMES_KEPT_MAX = 65_536  # of a client, behind a claim that waits: the next lane counts them. 8 MB, 4 MB to be sent
CALLED_BACK_BEHIND = 32_768  # of those, at which such a claim is called back, and stands behind the others again
GIVE_BACK_S = 0.5  # for giving back what an interrupted claim was granted: whoever presses Ctrl-C, or closes a client,
# wants to go
HELD_MAX = 65_536  # tasks of which a client remembers that it claimed them, 10 MB: of more, writes to the oldest are
# refused as anybody else's
ASKED_MAX = 1_024  # claims and the like of a client whose answers nobody took so far: of those that came, the oldest
# are forgotten. A window is in flight, and whoever waits takes what comes in a moment

# --- readers ------------------------------------------------------------------------------------------------------
LOOKING_THREADS = 4  # of one reader for asyncio: a pass over the journal keeps one for seconds, others look meanwhile
WATCH_BATCH = 256  # changes that a watcher takes at once: it looks for the newest revision once for all of them
DECODED_AT_ONCE = 1_024  # entities of a scan, some 15 ms, while the search for garbage waits
EXPORT_ROWS = 32  # given to the file of an export at once, one look over the columns for all; each may be of 1 MiB, and
# some ten times that as Python's values
READY_PAGE = 32  # tasks that are looked at first for one that may be ready; then twice as many, and so on
WORK_PATIENCE_S = 1.0  # of `work` in one claim, before it looks whether anything is left: an idle agent asks so often
PIN_TRIES = 1_000  # a reader is lapped only if it sleeps through 15 publishes in mid-copy; so often is a broken root
STATUS_LOOKS_MAX = 5  # each further look means that yet another engine took over during the one before
STALE_BEATS = 5  # heartbeat periods of silence after which an engine that is there counts as hung: a turn takes 10 ms,
# and a machine that swaps or a disk that stalls can keep a healthy one from beating for a second or two

# --- who connects, and what they may send -------------------------------------------------------------------------
BACKLOG = 256  # processes that may be connecting at once: a farm starts all its agents in one moment
DESCRIPTORS_EACH = 4  # of an agent: three of its lane, one more while it is silent or connects
DESCRIPTORS_KEPT = 32  # that no agent gets: the journal's next file, memory and a checkpoint's process need ten at
# once, and each segment that only readers keep has one. Where the bound is below 256, an eighth of it
ACCEPT_PAUSE_S = 0.5  # after an accept that failed, for want of descriptors say
HANDSHAKE_BYTES_MAX = 64 * KIB  # of one hello or welcome; a few hundred bytes are usual
CAREFUL_NUMBERS = 2_000  # a frame that may hold more is unpickled key by key: as many colliding keys cost 15 ms
MEMO_BYTES_MAX = 64 * KIB  # of an unpickler, besides what a frame's bytes explain: nine of them can ask for a gigabyte
FOLDED_NODES_MAX = 800_000  # of what one lane brings in one wake-up, beyond what its bytes explain: 0.1 s for everybody

# --- what is remembered of a session ------------------------------------------------------------------------------
GAPS_MAX = 64  # of a session: how many of its takeovers it remembers what was never read for; before that: Forgotten
ASKED_AHEAD_MAX = 2**24  # numbers of a session ahead of its last one: about these one can be told that it never will be
# applied. More than its client can have on its way; who comes after it was forgotten begins behind what was told
RESULTS_UNPACKED = 16  # of one remembered request, as objects of 200 bytes each; more of them are kept packed, 40 bytes
SESSION_FRAMES_MAX = 2**40  # of one session: 34 years at a thousand a second

# --- what is said -------------------------------------------------------------------------------------------------
ANSWER_MAX = 15_000  # characters of what an engine says to its owner: a pipe holds it, where nobody reads just now
MESSAGE_MAX = 2_000  # characters of a refusal: it is journaled, and remembered for a whole window
MAPPING_SHOWN = 8  # processes that a start names which has no room for what they map: enough to begin with
PROBLEMS_MAX = 10  # failing fields that one refusal names
PROBLEM_MAX = 300  # characters of what is wrong with one of them: a validator may say anything
DEPENDENCIES_SHOWN = 20  # ids that one refusal names
MAKER_WORDS_MAX = 500  # characters of why a checkpoint was not made: they go to the log

# --- the turn, and who waits for it -------------------------------------------------------------------------------
CROWD_SESSIONS, CROWD_SLICES = 8, 4  # so many that wait are served for so many slices each: in a crowd everybody waits
# for many others anyway, and to wake each of them for the replies to a dozen requests costs a fifth of all
LONG_TURN_US = 50_000  # of a turn up to its commit, above which it asks once more whose folder it is before it replies:
# it may have been stopped, and another engine may have followed it. Starting one takes longer
SYNC_BESIDE_S = 0.002  # a sync that takes as long is done in a thread, while lanes are read. One of 0.1 to 0.3 ms costs
# as much again to hand over, and two more switches between threads
SYNC_KEPT = 0.9  # of the slowest sync, at each one behind it: after a stall of 0.1 s the next forty go beside the loop
HURRY = 20  # parts of decide_timeout_s: a task that a claim tries has one of them, 0.1 s, once another of its class did
# not come to an end. A thousand of those hold up everybody for two minutes in all then, and not for an hour
HURRY_TICK_S = 0.001  # between two looks at such a part at least, however short decide_timeout_s is: each takes 5 us
TIMER_RETRY_S = 0.5  # after a full disk kept the engine from doing what is due

# --- coordination -------------------------------------------------------------------------------------------------
REST_MOST_S = 1e9  # of a failed task, whatever it asks for: 31 years, and no year of more than four digits
LEASE_LEAST_S, LEASE_MOST_S = 0.001, 1e9  # of a lease that is bound: below, it ends before its claimer knows of it
VIEWS_MAX = 16  # of a kind: different sets of columns that claimers ask for, each with an order of its own; and as many
# that guards on emptiness ask for, each counted by itself
MISSED_MAX = 1_024  # of a kind: such sets of which others took the place before they were asked; as a request may name
VIEW_PIECE = 32  # candidates that a view takes between two looks at the clock, each some 1 us
RECENT_MAX = 1_024  # tasks of a kind that became ready last: who waits and looked before them all just looks again
DENIALS_MAX = 8  # assignees that are remembered of a task whose own rules kept it from them: who delegated thousands is
# kept from all of these, at each claim
LINE_VALUES_MAX = 64  # combinations of values by which a claim that waits is found: what one that asks for more waits
# for is compared with whatever becomes ready
STALE_MAX = 1_024  # times of what is over already, beyond twice of what is not, in whatever is ordered by time or rank:
# then they are swept out, which costs each of them once more what it cost to come in

# --- the journal's files ------------------------------------------------------------------------------------------
RESERVE_BYTES = 1 * MIB  # of disk, for what tidies up when it is full: most often less than 64 KiB
SPARE_FILES_MAX = 8  # trimmed journal files kept to be written again: as many as are trimmed at once, mostly
JOURNAL_FILE_BYTES_FIRST = 1 * MIB  # of the first file: filling it with zeros must not be felt at start

# --- checkpoints --------------------------------------------------------------------------------------------------
CHECKPOINT_RATIO = 1.4  # bytes of journal for each one of the last checkpoint, before the next: what is written stays
# below twice the journal, and a replay behind a large state below its half
CHECKPOINT_LIVE_MOST = 64 * MIB  # of journal at most that one waits for because of its records' bytes in memory, by
# which it takes a processor: as many bytes of updates, of 400 bytes each, are four times as much work for the engine. A
# replay of so much takes 0.8 s
CHECKPOINT_NICE = 5  # of the process that makes one: on busy processors it still has a fifth of one
CHECKPOINT_LATE = 2  # times the journal that one waits for, from which on it is made at everybody's priority: engines
# died before theirs were done
CHECKPOINT_SLOW = 0.3  # of that journal, written while the last one was made, from which on the next one is, too: the
# longest replay is behind an engine that dies when one is nearly done
CHECKPOINT_PIECE_SLOTS = 4_096  # put into one at once, between two looks whether its engine still lives: a chunk is 16
CHECKPOINT_LEVEL = 1  # of Zstandard: the next ones take half as long again, and make records of tasks no smaller
CHECKPOINT_THREADS = 2  # that compress one, or decompress it, and let go of the interpreter: while one is made the
# journal grows, and few machines have more to spare at a start
FIRST_LOOK_S = 2.0  # behind a start, until a checkpoint is made that nobody's request has begun: whoever waited for the
# start is served first, and one long replay is not followed by the next
MAKER_IDLE_S = 60.0  # without a checkpoint to make, until the process that makes them gives back its 40 MB

# --- a start ------------------------------------------------------------------------------------------------------
HEAP_RUN_BYTES = 256 * KIB  # of records that a start joins and copies at once: they are still in the processor's cache
FILLING_SWITCH_S = 0.0002  # a start's threads that fill memory ask for the interpreter thrice a block, which takes them
# 2 ms: beside a thread that computes, each time would last Python's own 5 ms
INSTALLED_AT_ONCE = 4_096  # newest records that a start puts back together: enough to store columns at a time

# --- memory: segments and their indexes ---------------------------------------------------------------------------
HEAP_SEGMENT_SHARE = 8  # a heap segment is at most this part of the live bytes: an open one is no large overhead
HEAP_LAST_BYTES = 256 * KIB  # a heap segment where no larger one fits, for what makes room again
HEAP_LAST_SHARE = 8  # besides a segment for copies, this part of it is spared for tombstones until copying has begun
HEAP_AHEAD = 0.5  # a heap segment filled so far has its successor reserved, beside the loop
SEGMENT_AHEAD = 0.75  # the same of an index's segment and a table's chunk, which keys fill, and not every write
POPULATED_AT_ONCE = 2 * MIB  # of a new segment: 1 to 4 ms, while no other thread can change what is mapped
INDEX_ARENA_BYTES_FIRST, INDEX_ARENA_BYTES_MAX = 64 * KIB, 64 * MIB  # of an index's segments: half of what it holds
INDEX_AHEAD, INDEX_AHEAD_LEAST = 0.6, 1_024  # of so many entries of a region in use, from which on one is refilled at
# each turn, and not all by a few: keys that are numbered fill the regions evenly. A smaller one takes 0.1 ms
INDEX_TIDY_ABOVE = 3  # arena entries for each one that is in use, above which old segments are emptied: an index that
# only grows leaves half of its arena behind

# --- memory: what is given back -----------------------------------------------------------------------------------
RECLAIM_ABOVE = 1.6  # heap bytes for each live one, above which the oldest segment is emptied: below it, copying costs
# more than it frees; above it, memory does. With the segments' own granularity the whole stays below 2.2
RECLAIM_SPARE = 4 * MIB  # besides, as many as are live, and so many at most: where that is no matter, a third of the
# copying is left. 8 MiB would bring 100,000 tasks to the 2.2
RECLAIM_LOOK, RECLAIM_LOOK_LEAST = 3, 64 * KIB  # heap bytes looked at for each byte that a turn wrote, and at least
RECLAIM_SHORT_ABOVE = 1.1  # in place of 1.6 and 4 MiB where memory is short: ten bytes are copied to free one, and a
# state may be as large as nine tenths of what there is for its heap
RECLAIM_SHORT_LOOK, RECLAIM_SHORT_LEAST = 16, MIB  # likewise: where a tenth is dead, more is freed than written
EXPIRY_GRACE_S = 0.05  # from saying that a segment is not readable to taking its bytes away: a look takes microseconds

# --- an engine and its owner --------------------------------------------------------------------------------------
DOUBLINGS_MAX = 64  # of a back-off: any maximum is reached by then, and 1,024 of them are no number any more
STOP_MARGIN_S = 5.0  # an owner's patience beyond the drain time-out: closing files and giving back memory
POLL_MS_MAX = 2**31 - 1  # that poll takes: 24 days
QUARANTINE_DEATHS = 2  # of engines in a row, in one request: one may be chance, and meet whatever was just decided
QUARANTINED_MAX = 1_024  # such requests remembered, the oldest forgotten first; one costs two deaths of the engine

# --- parts of formats ---------------------------------------------------------------------------------------------
WIRE_VERSION = 1  # hello, frames, replies
MEMORY_VERSION = 2  # layout of all segments
JOURNAL_VERSION = 2  # journal files and entries; 1 had no checkpoints, and zeros behind every file's last entry
CHECKPOINT_VERSION = 2  # 1 was compressed by zlib
BLOCK_BYTES = 1 * MIB  # of a checkpoint's section, which are compressed together

FRAME_REQUESTS_MAX: Final = 256  # requests in one frame: sequence = frame number * 256 + index in the frame
KEY_BYTES_MAX: Final = 255  # UTF-8 bytes of an entity's id: its length is one byte in the record
REQUEST_ID_MAX: Final = 60  # characters of a user-given request id: its UTF-8 length is one byte in the record
NAME_MAX: Final = 255  # characters of a client id, an agent's, a kind's or a field's name: they are in records
DURABILITIES = ("memory", "process", "power")  # in the order of their codes in the root
KINDS_MAX: Final = 64  # kinds in one state: the root lists the slots of each
SCHEMAS_MAX = 65_535  # shapes that the classes of one state ever had: a record names its own in two bytes
COLUMNS_MAX = 32  # declared columns of a kind
ROOT_RING: Final = 16  # roots in the ring: 15 publishes during a reader's copy of 640 bytes make it retry
CHUNK_SLOTS: Final = 65_536  # slots of one table chunk: 512 KiB of heads
INDEX_WORDS: Final = 256  # regions of one index: refilling one region of a million keys moves 4,096 entries, ~1 ms
ALIGNMENT: Final = 8  # of records and entries: a visible word never spans two cache lines
REVISION_LOG_SEGMENT_BYTES = 64 * KIB  # 4,096 points: 16 MiB of heap
REVISION_LOG_STRIDE = 4 * KIB  # heap bytes between two points of the revision log: it stays below 0.4 % of the heap
