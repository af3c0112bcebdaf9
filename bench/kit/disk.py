"""What reaches the disk: the sectors that the kernel wrote to the block device under a folder, whoever wrote.

`write_bytes` in /proc/PID/io would tell processes apart, but it counts what a write makes dirty, and a page cache that
keeps a file in large pieces counts a whole piece for a few bytes in it: up to ten times of what the disk is told,
where a file is written in small steps. So these figures are the machine's: of one program an upper bound, which is
tight where nothing else writes. What the file system writes for itself is among them.
"""

from __future__ import annotations

import os
from pathlib import Path

SECTOR_BYTES = 512  # of the kernel's counters, whatever the device's own are
SECTORS_WRITTEN = 9  # the place of that field in a line, which begins with the device's major and minor number


def device_written_bytes(folder: Path) -> int | None:
    """Bytes that were ever written to the device of a folder, when everything that is on its way there has arrived:
    the machine's dirty pages are waited for. None where no block device is told of: file systems in memory, overlays,
    networks, volumes of btrfs.
    """
    os.sync()
    device = folder.stat().st_dev
    wanted = [str(os.major(device)), str(os.minor(device))]
    lines = [line.split() for line in Path("/proc/diskstats").read_text().splitlines()]
    return next((int(line[SECTORS_WRITTEN]) * SECTOR_BYTES for line in lines if line[:2] == wanted), None)
