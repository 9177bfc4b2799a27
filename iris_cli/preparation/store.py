"""The preprocessed store: `preprocessed/<set>/<key>/<view>.{image.b2nd,label.b2nd,json}`.

A *view* is one channel of one case: `<case>` for channel 0, `<case>@<c>` for channel c. The image
is float16 and normalised, the label map holds the raw label values (ignore value included) in the
smallest integer type; both lie on the working grid, (z, y, x). `<view>.json` is written last and
is the receipt: a view exists when its receipt does. Its `content` has

    inputs    what the result depends on: content hashes and parameters (compared by a rerun)
    stored    the description of the view (`StoredCase`)
    outputs   content hashes of the stored arrays

An unlabelled case has no label file.
"""

from __future__ import annotations

import hashlib
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path
from typing import Any, Literal

import numpy as np
import numpy.typing as npt

from iris_cli.errors import DataRefused
from iris_cli.execution.receipts import Receipt, read_receipt, write_receipt
from iris_cli.files.hashing import hash_array, hash_json
from iris_cli.files.publish import publish
from iris_cli.files.schema import Record, parse_record
from iris_cli.volume.reading import smallest_label_type

STORE_VERSION = 1
RECEIPT_FORMAT = "iris-store-1"
MAX_COORDINATES = 256
SLAB_VOXELS = 1 << 18

# A 64-patch touches at most 8 chunks, and of each only the blocks it needs are decompressed. Read
# once and again by every episode, a store is made for reading: against zstd-1 images take a third
# to twice as much disk and a third of the time (benchmarks/results/loader.md).
CHUNK_EDGE = 64
COMPRESSION_LEVEL = 1


@dataclass(frozen=True)
class _Layout:
    """How an array is cut and packed: edge of its blocks in voxels, and what goes before lz4."""

    block_edge: int
    filter: Literal["BITSHUFFLE", "NOFILTER"]


_IMAGE = _Layout(16, "BITSHUFFLE")
# Label maps are runs of equal bytes already.
_LABEL = _Layout(32, "NOFILTER")

Region = tuple[slice, slice, slice]
Role = Literal["train", "validate", "test", "unlabelled"]


class StoredClass(Record):
    """One class of one view: raw label values, size, and places in it (zyx, working grid)."""

    values: tuple[int, ...]
    voxels: int
    coordinates: tuple[tuple[int, int, int], ...]


class StoredCase(Record):
    """What training needs to know of a view without touching its arrays."""

    case: str
    set: str
    subject: str
    role: Role
    channel: int
    modality: str
    spacing_mm: float
    grid: dict[str, Any]
    shape: tuple[int, int, int]
    fill: float
    nonfinite: int
    statistics: dict[str, float]
    classes: dict[str, StoredClass]
    not_annotated: tuple[str, ...]
    ignore_value: int | None
    labelled: bool

    @property
    def name(self) -> str:
        return view_name(self.case, self.channel)


class StoredVolume:
    """A view opened for reading; arrays are opened at the first crop and read crop by crop."""

    def __init__(
        self,
        folder: Path,
        stored: StoredCase,
        outputs: Mapping[str, str | None],
        parameters: Mapping[str, Any],
    ) -> None:
        self.folder = folder
        self.stored = stored
        self.outputs = dict(outputs)
        self.parameters = dict(parameters)

    @property
    def name(self) -> str:
        return self.stored.name

    @property
    def shape(self) -> tuple[int, int, int]:
        return self.stored.shape

    def image(self, region: Region | None = None) -> npt.NDArray[np.float16]:
        """Normalised image in `region` (zyx slices inside the shape; None: all), float16."""
        crop: npt.NDArray[np.float16] = self._image[_slices(region)]
        return crop

    def label(self, region: Region | None = None) -> npt.NDArray[np.integer[Any]]:
        """Raw label values in `region`; raises DataRefused for an unlabelled view."""
        if not self.stored.labelled:
            raise DataRefused(
                f"{self.name} has no label map: it is an unlabelled case",
                file=self.folder / f"{self.name}.json",
            )
        crop: npt.NDArray[np.integer[Any]] = self._label[_slices(region)]
        return crop

    @cached_property
    def _image(self) -> Any:
        return _open_array(image_path(self.folder, self.name))

    @cached_property
    def _label(self) -> Any:
        return _open_array(label_path(self.folder, self.name))

    def __reduce__(self) -> tuple[Any, ...]:
        # Open arrays stay with the process that opened them.
        return (StoredVolume, (self.folder, self.stored, self.outputs, self.parameters))


def store_key(spacing_mm: float, profile: str, store_version: int = STORE_VERSION) -> str:
    """Name of the folder for everything prepared with the same recipe: 12 hex digits."""
    recipe = {"spacing_mm": round(float(spacing_mm), 6), "profile": profile, "store": store_version}
    return hash_json(recipe)[:12]


def view_name(case: str, channel: int) -> str:
    return case if channel == 0 else f"{case}@{channel}"


def image_path(folder: Path, name: str) -> Path:
    return folder / f"{name}.image.b2nd"


def label_path(folder: Path, name: str) -> Path:
    return folder / f"{name}.label.b2nd"


def receipt_path(folder: Path, name: str) -> Path:
    return folder / f"{name}.json"


def write_case(
    folder: Path,
    stored: StoredCase,
    image: npt.NDArray[np.floating[Any]],
    label: npt.NDArray[np.integer[Any]] | None,
    *,
    inputs: Mapping[str, Any],
    run: Mapping[str, Any],
) -> Receipt:
    """Write arrays, then the receipt; each file appears under its name whole and read back.

    image, label: (z, y, x) on the working grid; the image is stored as float16.
    """
    folder.mkdir(parents=True, exist_ok=True)
    # A receipt of an earlier recipe must not vouch for the arrays that are about to be replaced.
    receipt_path(folder, stored.name).unlink(missing_ok=True)
    image16 = np.ascontiguousarray(image, dtype=np.float16)
    outputs: dict[str, str | None] = {"image": hash_array(image16), "label": None}
    sizes = {"image": _publish_array(image_path(folder, stored.name), image16, _IMAGE)}
    if label is None:
        label_path(folder, stored.name).unlink(missing_ok=True)
    else:
        dtype = smallest_label_type(int(label.min()), int(label.max()))
        small = np.ascontiguousarray(label, dtype=dtype)
        outputs["label"] = hash_array(small)
        sizes["label"] = _publish_array(label_path(folder, stored.name), small, _LABEL)
    receipt = Receipt(
        format=RECEIPT_FORMAT,
        case=stored.name,
        content={
            "inputs": dict(inputs),
            "stored": stored.model_dump(mode="json"),
            "outputs": outputs,
        },
        run={**run, "bytes": sizes},
    )
    write_receipt(receipt_path(folder, stored.name), receipt, indent=None)
    return receipt


def read_stored_receipt(folder: Path, name: str) -> Receipt | None:
    """The receipt of a view whose arrays are all there with the size they were written with."""
    receipt = read_receipt(receipt_path(folder, name))
    if receipt is None or receipt.format != RECEIPT_FORMAT:
        return None
    paths = {"image": image_path(folder, name), "label": label_path(folder, name)}
    sizes = receipt.run.get("bytes", {})
    whole = all(
        paths[kind].is_file() and paths[kind].stat().st_size == size for kind, size in sizes.items()
    )
    return receipt if whole and "image" in sizes else None


def open_case(folder: Path, name: str) -> StoredVolume:
    """Open one view of the store; raises DataRefused where it is not (completely) there."""
    file = receipt_path(folder, name)
    receipt = read_stored_receipt(folder, name)
    if receipt is None:
        raise DataRefused(
            f"{name} is not in the preprocessed store, or only in part",
            file=file,
            fix="run `iris preprocess`; it writes what is missing and keeps the rest",
        )
    stored = parse_record(receipt.content["stored"], StoredCase, file=file)
    parameters = receipt.content["inputs"].get("parameters", {})
    return StoredVolume(folder, stored, receipt.content["outputs"], parameters)


def list_cases(folder: Path) -> tuple[str, ...]:
    """Names of the views with a receipt, sorted (an absent folder has none)."""
    if not folder.is_dir():
        return ()
    files = (f for f in folder.iterdir() if f.suffix == ".json" and not f.name.startswith("."))
    names = (f.name.removesuffix(".json") for f in files)
    return tuple(sorted(n for n in names if image_path(folder, n).is_file()))


def remove_view(folder: Path, name: str) -> None:
    """Remove a view, its receipt first: a view without receipt does not exist."""
    for path in (receipt_path(folder, name), image_path(folder, name), label_path(folder, name)):
        path.unlink(missing_ok=True)


def slabs_of(array: npt.NDArray[Any]) -> list[npt.NDArray[Any]]:
    """A volume (z, y, x) as views of some planes each, SLAB_VOXELS or one plane.

    Of large volumes what is made of a slab stays small; small ones are one slab, as calls for every
    plane would take most of their time.
    """
    step = max(1, SLAB_VOXELS // max(1, array[0].size))
    return [array[z : z + step] for z in range(0, len(array), step)]


def describe_classes(
    label: npt.NDArray[np.integer[Any]], classes: Mapping[str, tuple[int, ...]], *, seed: str
) -> dict[str, StoredClass]:
    """Count every class and choose up to 256 of its voxels, spread over it.

    label: (z, y, x). classes: name -> raw values (several for a region).
    The voxels of a class in scan order are cut into 256 equal runs and one voxel is drawn from
    each, by a generator seeded from `seed` and the class name: the same for any machine and order.
    """
    slabs = slabs_of(label)
    counts = [_count_values(slab) for slab in slabs]
    wanted = {
        name: _Wanted.of_class(counts, values, seed=f"{seed}/{name}")
        for name, values in classes.items()
    }
    # Slab by slab: the indices of all labelled voxels at once would be 24 bytes for each.
    first = 0
    for number, slab in enumerate(slabs):
        asked = [one for one in wanted.values() if one.ranks_by_slab[number].size]
        grouped = _group_by_value(slab) if asked else None
        for one in asked:
            assert grouped is not None
            one.take(number, (first, *slab.shape[1:]), *grouped)
        first += len(slab)
    return {
        name: StoredClass(
            values=tuple(classes[name]), voxels=one.voxels, coordinates=tuple(one.places)
        )
        for name, one in wanted.items()
    }


@dataclass(frozen=True)
class _Wanted:
    """Which voxels of a class are wanted, and where they were found.

    ranks_by_slab: per slab, the wanted ones by their number among its voxels of the class.
    """

    values: tuple[int, ...]
    voxels: int
    ranks_by_slab: list[npt.NDArray[np.intp]]
    places: list[tuple[int, int, int]]

    @classmethod
    def of_class(
        cls, counts: Sequence[Mapping[int, int]], values: tuple[int, ...], *, seed: str
    ) -> _Wanted:
        distinct = tuple(dict.fromkeys(values))
        by_slab = [sum(slab.get(value, 0) for value in distinct) for slab in counts]
        edges = np.cumsum([0, *by_slab])
        ranks = _spread(int(edges[-1]), seed=seed)
        cuts = np.searchsorted(ranks, edges)
        split = [
            ranks[a:b] - edge for a, b, edge in zip(cuts[:-1], cuts[1:], edges[:-1], strict=True)
        ]
        return cls(distinct, int(edges[-1]), split, [])

    def take(
        self,
        number: int,
        place: tuple[int, int, int],
        values: npt.NDArray[Any],
        order: npt.NDArray[np.intp],
        starts: npt.NDArray[np.intp],
    ) -> None:
        """Find the wanted voxels of a slab among its voxels, grouped by value.

        place: its first plane, and its height and width.
        """
        runs = [
            order[starts[i] : starts[i + 1]] for i in np.flatnonzero(np.isin(values, self.values))
        ]
        flat = np.sort(np.concatenate(runs))[self.ranks_by_slab[number]]
        first, height, width = place
        z, yx = divmod(flat, height * width)
        self.places.extend(zip((z + first).tolist(), *_rows(yx, width), strict=True))


def _rows(flat: npt.NDArray[np.intp], width: int) -> tuple[list[int], list[int]]:
    y, x = divmod(flat, width)
    return y.tolist(), x.tolist()


def _count_values(slab: npt.NDArray[np.integer[Any]]) -> dict[int, int]:
    """Voxels of every value."""
    flat = slab.reshape(-1)
    if flat.dtype.kind == "u" and flat.dtype.itemsize <= 2:
        table = np.bincount(flat)
        values = np.flatnonzero(table)
        return dict(zip(values.tolist(), table[values].tolist(), strict=True))
    values, counts = np.unique(flat, return_counts=True)
    return dict(zip(values.tolist(), counts.tolist(), strict=True))


def _group_by_value(
    slab: npt.NDArray[np.integer[Any]],
) -> tuple[npt.NDArray[Any], npt.NDArray[np.intp], npt.NDArray[np.intp]]:
    """Flat indices of the labelled voxels of a slab, sorted by value: once for all classes."""
    flat = slab.reshape(-1)
    filled = np.flatnonzero(flat)
    found = flat[filled]
    order = filled[np.argsort(found, kind="stable")]
    values, counts = np.unique(found, return_counts=True)
    return values, order, np.concatenate([[0], np.cumsum(counts)]).astype(np.intp)


def _spread(size: int, *, seed: str) -> npt.NDArray[np.intp]:
    if size <= MAX_COORDINATES:
        return np.arange(size)
    generator = np.random.default_rng(
        int.from_bytes(hashlib.sha256(seed.encode()).digest()[:8], "little")
    )
    edges = np.arange(MAX_COORDINATES + 1, dtype=np.int64) * size // MAX_COORDINATES
    return (edges[:-1] + generator.integers(0, np.diff(edges))).astype(np.intp)


def _slices(region: Region | None) -> Region:
    return (slice(None), slice(None), slice(None)) if region is None else region


def _open_array(path: Path) -> Any:
    import blosc2  # 0.2 CPU s, for those only who open arrays

    try:
        return blosc2.open(str(path), mode="r", dparams={"nthreads": 1})
    except (RuntimeError, OSError, ValueError) as error:
        raise DataRefused(
            "a preprocessed array cannot be opened",
            file=path,
            found=error,
            fix="delete the .json beside it and run `iris preprocess` again",
        ) from error


def _publish_array(path: Path, array: npt.NDArray[Any], layout: _Layout) -> int:
    import blosc2

    chunks = tuple(min(CHUNK_EDGE, max(n, 1)) for n in array.shape)
    blocks = tuple(min(layout.block_edge, n) for n in chunks)

    def write(temporary: Path) -> None:
        blosc2.asarray(
            array,
            urlpath=str(temporary),
            mode="w",
            chunks=chunks,
            blocks=blocks,
            cparams={
                "codec": blosc2.Codec.LZ4,
                "clevel": COMPRESSION_LEVEL,
                "filters": [blosc2.Filter[layout.filter]],
                "nthreads": 1,
            },
        )

    def verify(temporary: Path) -> None:
        stored = _open_array(temporary)
        same = stored.dtype == array.dtype and stored.shape == array.shape
        for z in range(0, array.shape[0] if same else 0, CHUNK_EDGE):
            read = np.ascontiguousarray(stored[z : z + CHUNK_EDGE])
            same &= np.array_equal(read.view(np.uint8), array[z : z + CHUNK_EDGE].view(np.uint8))
        if not same:
            raise OSError(f"{path.name} reads back different from what was written")

    publish(path, write, verify=verify, needs=array.nbytes)
    return path.stat().st_size
