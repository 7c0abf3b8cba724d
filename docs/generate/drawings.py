"""The drawings in docs/pictures: `make reference` writes them."""

from docs.generate.svg import Drawing


def phases() -> Drawing:
    """The phases of a run, and what leads from one to the other."""
    d = Drawing("Phases of a run", 760, 275)
    for x, name, kind in ((20, "Pending", ""), (170, "Starting", ""), (320, "Running", "a")):
        d.box(x, 40, 110, 42, name, kind)
    d.arrow(130, 61, 170, 61)
    d.arrow(280, 61, 320, 61)
    d.text(150, 32, "all pods run", "middle", "soft", 12)
    d.text(300, 32, "all ranks joined", "middle", "soft", 12)
    d.box(560, 20, 120, 42, "Succeeded", "a")
    d.box(560, 82, 120, 42, "Failed", "bad")
    d.path("M430 54 L560 42")
    d.path("M430 66 L560 98")
    d.text(498, 34, "last step done", "middle", "soft", 12)
    d.text(540, 112, "no retry can help", "end", "soft", 12)
    d.box(320, 170, 110, 42, "Restarting", "c")
    d.arrow(375, 82, 375, 170)
    d.text(368, 122, "an attempt failed,", "end", "soft", 12)
    d.text(368, 138, "another may help", "end", "soft", 12)
    d.path("M320 191 L75 191 L75 82")
    d.text(150, 184, "after backoff", "start", "soft", 12)
    d.box(560, 170, 120, 42, "Suspended", "b")
    d.path("M415 82 L415 100 L540 191 L560 191")
    d.text(510, 150, "spec.suspend", "start", "soft", 12)
    d.path("M620 212 L620 232 L40 232 L40 82")
    d.text(440, 227, "resumed", "middle", "soft", 12)
    d.path("M680 103 L715 103 L715 257 L30 257 L30 82")
    d.text(440, 252, "spec changed, or trainyard retry", "middle", "soft", 12)
    return d


def data_parallel() -> Drawing:
    """One step of data parallelism with two ranks."""
    d = Drawing("One step of data-parallel training", 760, 300)
    d.box(20, 120, 100, 60, "batch of\n64 samples")
    for rank, y, kind in ((0, 30, "a"), (1, 210, "b")):
        d.text(150, y - 8, f"rank {rank}", "start", "soft", 12)
        d.box(150, y, 90, 60, "32\nsamples", kind)
        d.path(f"M120 150 L150 {y + 30}")
        d.box(270, y, 110, 60, "same model,\nforward", kind)
        d.arrow(240, y + 30, 270, y + 30)
        d.box(410, y, 100, 60, "its own\ngradients", kind)
        d.arrow(380, y + 30, 410, y + 30)
        d.box(640, y, 100, 60, "same step,\nsame model", kind)
    d.box(535, 110, 90, 80, "all-reduce:\nmean of the\ngradients", "c")
    d.path("M510 60 L560 108")
    d.path("M510 240 L560 192")
    d.path("M600 108 L640 62")
    d.path("M600 192 L640 238")
    return d


def ring() -> Drawing:
    """The ring all-reduce of four ranks: what each holds before, between and after."""
    d = Drawing("Ring all-reduce with four ranks", 760, 290)
    columns = (
        (95, "before", [[f"{r}{c}" for c in "abcd"] for r in "0123"]),
        (330, "after reduce-scatter", _scattered()),
        (565, "after all-gather", [[f"\u03a3{c}" for c in "abcd"]] * 4),
    )
    for x, title, rows in columns:
        d.text(x + 76, 30, title, "middle")
        for rank, row in enumerate(rows):
            y = 46 + 52 * rank
            for index, cell in enumerate(row):
                d.box(x + 38 * index, y, 36, 36, cell, "a" if cell[0] == "\u03a3" else "none")
    for rank in range(4):
        y = 46 + 52 * rank
        d.text(20, y + 23, f"rank {rank}", "start", "soft")
        if rank < 3:
            d.arrow(76, y + 30, 76, y + 56)
    d.path("M76 240 L76 252 L10 252 L10 40 L76 40 L76 48")
    d.arrow(256, 135, 320, 135)
    d.text(288, 125, "N - 1 steps", "middle", "soft", 12)
    d.arrow(491, 135, 555, 135)
    d.text(523, 125, "N - 1 steps", "middle", "soft", 12)
    d.text(
        380,
        280,
        "\u03a3a is the sum of 0a, 1a, 2a and 3a. Each rank sends to the next only.",
        "middle",
        "soft",
        12,
    )
    return d


def _scattered() -> list[list[str]]:
    """Rank r holds the finished chunk r + 1; the rest are parts on the way."""
    return [
        [f"\u03a3{c}" if index == (rank + 1) % 4 else "..." for index, c in enumerate("abcd")]
        for rank in range(4)
    ]


def overlap() -> Drawing:
    """Gradients exchanged after backward, and during it in buckets, as DDP does."""
    d = Drawing("DDP exchanges gradients while backward still runs", 760, 240)
    d.text(20, 30, "exchange after backward")
    d.box(20, 42, 150, 34, "forward", "a")
    d.box(170, 42, 300, 34, "backward", "b")
    d.box(470, 42, 180, 34, "all-reduce", "c")
    d.box(650, 42, 60, 34, "step", "d")
    d.text(20, 122, "DDP: each bucket is exchanged as soon as it is complete")
    d.box(20, 134, 150, 34, "forward", "a")
    for index, layer in enumerate(("layer 3", "layer 2", "layer 1")):
        d.box(170 + 100 * index, 134, 100, 34, layer, "b")
        d.box(270 + 100 * index, 174, 60, 30, f"bucket {3 - index}", "c")
    d.box(530, 134, 60, 34, "step", "d")
    d.path("M20 222 L730 222")
    d.text(725, 215, "time", "end", "soft", 12)
    return d


def sharding() -> Drawing:
    """What each of four ranks holds, per parameter: fp32 weights and AdamW."""
    d = Drawing("Bytes per parameter on each of four ranks", 760, 330)
    ways = (
        ("DDP", "everything everywhere", (4, 4, 8)),
        ("ZeRO-1", "optimizer state sharded", (4, 4, 2)),
        ("SHARD_GRAD_OP", "after backward: all sharded;\nweights whole during a step", (4, 1, 2)),
        ("FULL_SHARD", "all sharded; one layer's weights\nwhole at a time", (1, 1, 2)),
    )
    for index, (name, what, parts) in enumerate(ways):
        y = 30 + 68 * index
        d.text(20, y + 18, name)
        for line, text in enumerate(what.split("\n")):
            d.text(20, y + 34 + 15 * line, text, "start", "soft", 11)
        x = 230.0
        for size, kind in zip(parts, ("a", "b", "c"), strict=True):
            d.box(x, y, 26 * size, 38, str(size), kind)
            x += 26 * size
        d.text(x + 10, y + 24, f"{sum(parts)} bytes")
    for index, (name, kind) in enumerate(
        (("parameters", "a"), ("gradients", "b"), ("optimizer state", "c"))
    ):
        d.box(230 + 150 * index, 300, 18, 18, "", kind)
        d.text(254 + 150 * index, 314, name, "start", "soft", 12)
    return d


def fsdp() -> Drawing:
    """What FSDP does with one layer: gather, compute, free; and gradients scattered."""
    d = Drawing("FSDP: a layer is whole only while it runs", 760, 210)
    steps = (
        ("all-gather\nlayer 1", "c"),
        ("forward\nlayer 1", "a"),
        ("free\nlayer 1", "none"),
        ("...", "none"),
        ("all-gather\nlayer 1", "c"),
        ("backward\nlayer 1", "b"),
        ("scatter\ngradients", "c"),
    )
    for index, (text, kind) in enumerate(steps):
        x = 15 + 105 * index
        d.box(x, 60, 95, 52, text, kind)
        if index:
            d.arrow(x - 10, 86, x, 86)
    d.text(15, 40, "forward pass", "start", "soft", 12)
    d.text(435, 40, "backward pass", "start", "soft", 12)
    for index, (text, size) in enumerate(
        (
            ("its slice", 12),
            ("whole", 48),
            ("its slice", 12),
            ("", 0),
            ("whole", 48),
            ("whole", 48),
            ("its slice", 12),
        )
    ):
        x = 15 + 105 * index
        d.box(x, 190 - size, 95, size, "", "a") if size else None
        d.text(x + 47, 204, text, "middle", "soft", 11)
    return d


def checkpoint() -> Drawing:
    """Checkpoints are written beside training and renamed; a killed run resumes from the newest."""
    d = Drawing("Saving in the background, killed, resumed", 760, 240)
    d.text(20, 30, "attempt 1")
    for index, text in enumerate(("steps 1-10", "steps 11-20", "21-25")):
        d.box(20 + 150 * index, 40, 75 if index == 2 else 148, 34, text, "a")
    d.box(170, 80, 110, 28, "writing 10", "c")
    d.text(170, 126, "renamed: it exists", "start", "soft", 12)
    d.box(320, 80, 75, 28, "writing 20", "bad")
    d.text(320, 126, "never renamed: ignored", "start", "soft", 12)
    d.path("M396 20 L396 112", tip=False)
    d.text(404, 30, "kill -9")
    d.text(20, 176, "attempt 2")
    d.box(98, 186, 70, 34, "read 10", "c")
    for index, text in enumerate(("steps 11-20", "steps 21-30")):
        d.box(170 + 150 * index, 186, 148, 34, text, "b")
    d.path("M190 132 L135 184")
    d.text(485, 207, "the same bits as without the kill", "start", "soft", 12)
    return d


def hang() -> Drawing:
    """Three ranks wait in an all-reduce for the one that does not come."""
    d = Drawing("A hang: three ranks wait for the fourth", 760, 230)
    for rank in range(4):
        y = 30 + 44 * rank
        d.text(20, y + 20, f"rank {rank}", "start", "soft")
        d.box(80, y, 120, 32, "forward", "a")
        if rank == 2:
            d.box(202, y, 250, 32, "reading a file that never comes", "bad")
            d.path(f"M452 {y + 16} L730 {y + 16}", tip=False, kind="line")
        else:
            d.box(202, y, 110, 32, "backward", "b")
            d.box(314, y, 410, 32, "waiting in all-reduce", "c")
    d.text(
        80,
        218,
        "The time-out's message comes from ranks 0, 1 and 3. The cause is rank 2.",
        "start",
        "soft",
        12,
    )
    return d


def scaling() -> Drawing:
    """Speedup by number of processes: ideal, and Amdahl's law for three serial shares."""
    d = Drawing("Speedup and Amdahl's law", 760, 360)
    left, bottom, w, h = 70, 310, 520, 270
    d.path(f"M{left} {bottom - h} L{left} {bottom} L{left + w} {bottom}", tip=False)
    for n in (1, 8, 16, 24, 32):
        x = left + w * n / 32
        d.text(x, bottom + 20, str(n), "middle", "soft", 12)
        d.text(left - 10, bottom - h * n / 32 + 4, str(n), "end", "soft", 12)
    d.text(left + w / 2, bottom + 40, "processes", "middle", "soft", 12)
    d.text(left, 28, "speedup", "middle", "soft", 12)
    for sigma, kind, name in (
        (0.0, "ca", "ideal"),
        (0.01, "cb", "1% serial: 24 on 32"),
        (0.05, "cc", "5% serial: 13 on 32"),
        (0.2, "cd", "20% serial: 4 on 32"),
    ):
        points = [(n, n / (1 + sigma * (n - 1))) for n in range(1, 33)]
        line = " L".join(f"{left + w * n / 32:.1f} {bottom - h * s / 32:.1f}" for n, s in points)
        d.path(f"M{line}", tip=False, kind=f"curve {kind}")
        d.text(left + w + 10, bottom - h * points[-1][1] / 32 + 4, name, "start", "ink", 12)
    return d


ALL = (phases, data_parallel, ring, overlap, sharding, fsdp, checkpoint, hang, scaling)


def pictures() -> dict[str, str]:
    """File name in docs/pictures, and its SVG."""
    return {f"{each.__name__.replace('_', '-')}.svg": each().to_svg() for each in ALL}
