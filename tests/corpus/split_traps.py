"""Traps in what belongs together: several series, time points, echoes and whatever shares a SeriesInstanceUID."""

from __future__ import annotations

from collections.abc import Callable, Mapping

from pydicom.dataset import Dataset
from pydicom.sequence import Sequence as Items

from tests.corpus.classic import classic, decimal
from tests.corpus.encoding import change, named, to_bytes
from tests.corpus.enhanced import enhanced, mosaic, vframe
from tests.corpus.phantom import Stack, phantom
from tests.corpus.trap import BOTH, Case, Made, trap

Values = Mapping[str, object]


def _stacks(count: int = 2, **options: object) -> list[Stack]:
    return [phantom(lowest=0, seed=seed, **options) for seed in range(count)]  # type: ignore[arg-type]


def _shared_series(*marks: Values, modality: str = "MR", interleaved: bool = False) -> Made:
    """Stacks at the same places in one classic series, the datasets of each with its own attributes."""
    stacks = [phantom(lowest=0 if modality != "CT" else -1024, seed=seed) for seed in range(len(marks))]
    groups = [
        [change(ds, **marks[s]) for ds in classic(stack, modality, first=1 + 8 * s)] for s, stack in enumerate(stacks)
    ]
    datasets = (
        [group[k] for k in range(8) for group in groups] if interleaved else [ds for group in groups for ds in group]
    )
    return Made(named([to_bytes(ds) for ds in datasets]), tuple(stacks))


def _either(case: Case, classic_marks: list[Values], mark: Callable[[Dataset, int], None], dimension: str) -> Made:
    if case.form == "classic":
        return _shared_series(*classic_marks)
    stacks = _stacks(len(classic_marks))
    return Made({"enhanced.dcm": to_bytes(enhanced(stacks, mark=mark, dimension=dimension))}, tuple(stacks))


def _group(**values: object) -> Items:
    return Items([change(Dataset(), **values)])


@trap("Two series lie in one folder.", forms=BOTH, valid=True)
def two_series(case: Case) -> Made:
    first, second = _stacks()
    if case.form == "enhanced":
        objects = [enhanced(first), enhanced(second, series="second")]
    else:
        objects = [*classic(first, "MR"), *classic(second, "MR", series="second")]
    return Made(named([to_bytes(ds) for ds in objects]), (first, second))


@trap("Two series whose slices together would make one regular stack.")
def two_series_end_to_end(case: Case) -> Made:
    whole = phantom()
    first, second = whole.take(range(4)), whole.take(range(4, 8))
    objects = [*classic(first), *classic(second, series="second")]
    return Made(named([to_bytes(ds) for ds in objects]), (first, second))


@trap("Two series with the same file names in two folders.")
def two_series_in_two_folders(case: Case) -> Made:
    first, second = _stacks()
    files = {f"a/{name}": content for name, content in named([to_bytes(ds) for ds in classic(first, "MR")]).items()}
    other = named([to_bytes(ds) for ds in classic(second, "MR", series="second")])
    return Made({**files, **{f"b/{name}": content for name, content in other.items()}}, (first, second))


@trap("Two studies lie in one folder.")
def two_studies(case: Case) -> Made:
    first, second = _stacks()
    objects = [*classic(first, "MR"), *classic(second, "MR", study="second", series="second")]
    return Made(named([to_bytes(ds) for ds in objects]), (first, second))


@trap(
    "Two studies share a SeriesInstanceUID (a broken anonymiser), and their slices would interleave.",
    *("SERIES_AMBIGUOUS", "SERIES_MIXED_TYPES", "GEOM_DUPLICATE"),
)
def two_studies_with_one_series_uid(case: Case) -> Made:
    first, second = _stacks()
    shifted = second.moved(0.5 * second.step)
    objects = [*classic(first, "MR"), *classic(shifted, "MR", study="second")]
    return Made(named([to_bytes(ds) for ds in objects]), (first, shifted))


@trap("Two modalities share a SeriesInstanceUID.", "SERIES_MIXED_TYPES", "SERIES_AMBIGUOUS")
def two_modalities_in_one_series(case: Case) -> Made:
    whole = phantom(slices=8, lowest=0)
    objects = [*classic(whole.take(range(4)), "MR"), *classic(whole.take(range(4, 8)), "CT", first=5)]
    return Made(named([to_bytes(ds) for ds in objects]), (whole.take(range(4)), whole.take(range(4, 8))))


@trap(
    "A localizer in another orientation has the series' own UID. To take the volume or to ask are both right.",
    "SERIES_AMBIGUOUS",
    or_right=True,
    valid=True,
)
def localizer_within_the_series(case: Case) -> Made:
    return _with_localizer("series")


@trap(
    "A localizer lies beside the series. To take the volume or to ask are both right.",
    "SERIES_AMBIGUOUS",
    or_right=True,
    valid=True,
)
def localizer_beside(case: Case) -> Made:
    return _with_localizer("localizer")


@trap("Three orthogonal stacks share a SeriesInstanceUID, as of a survey.", forms=BOTH)
def three_orientations(case: Case) -> Made:
    names = ("axial-LP", "sagittal-PI", "coronal-LI")
    stacks = [phantom(name, lowest=0, seed=seed, slices=5) for seed, name in enumerate(names)]
    if case.form == "enhanced":
        return Made({"enhanced.dcm": to_bytes(enhanced(stacks, one_stack=False))}, tuple(stacks))
    objects = [ds for s, stack in enumerate(stacks) for ds in classic(stack, "MR", first=1 + 5 * s)]
    return Made(named([to_bytes(ds) for ds in objects]), tuple(stacks))


@trap("Two time points.", forms=BOTH)
def time_points(case: Case) -> Made:
    def mark(group: Dataset, s: int) -> None:
        group.FrameContentSequence[0].TemporalPositionIndex = s + 1

    marks: list[Values] = [
        {"TemporalPositionIdentifier": s + 1, "NumberOfTemporalPositions": 2, "AcquisitionTime": f"03040{s}"}
        for s in range(2)
    ]
    return _either(case, marks, mark, "TemporalPositionIndex")


@trap("Two time points told apart by AcquisitionNumber alone.")
def acquisition_numbers(case: Case) -> Made:
    return _shared_series({"AcquisitionNumber": 1}, {"AcquisitionNumber": 2})


@trap("Two time points told apart by AcquisitionTime alone, slice by slice interleaved.")
def acquisition_times(case: Case) -> Made:
    return _shared_series({"AcquisitionTime": "030405"}, {"AcquisitionTime": "030505"}, interleaved=True)


@trap("Four time points of which each slice has a time of its own: time differs within a volume, too.")
def four_time_points_with_slice_times(case: Case) -> Made:
    stacks = _stacks(4)
    datasets = []
    for s, stack in enumerate(stacks):
        for k, ds in enumerate(classic(stack, "MR", first=1 + 8 * s)):
            seconds = 3 * s + 0.25 * k
            change(ds, TemporalPositionIdentifier=s + 1, NumberOfTemporalPositions=4)
            datasets.append(change(ds, AcquisitionTime=f"0304{seconds:09.6f}"))
    return Made(named([to_bytes(ds) for ds in datasets]), tuple(stacks))


@trap("A single volume whose slices have times and acquisition numbers of their own: nothing to split.")
def one_volume_with_slice_times(case: Case) -> Made:
    stack = phantom()
    datasets = [
        change(ds, AcquisitionTime=f"0304{5 + k:02d}", AcquisitionNumber=1 + k // 3, ContentTime=f"0305{5 + k:02d}")
        for k, ds in enumerate(classic(stack))
    ]
    return Made(named([to_bytes(ds) for ds in datasets]), (stack,))


@trap("A single volume whose slices have trigger times of their own (multi-slice, multi-phase): nothing to split.")
def one_volume_with_trigger_times(case: Case) -> Made:
    stack = phantom(lowest=0)
    datasets = [change(ds, TriggerTime=decimal(13.5 * k)) for k, ds in enumerate(classic(stack, "MR"))]
    return Made(named([to_bytes(ds) for ds in datasets]), (stack,))


@trap("Two echoes.", forms=BOTH)
def echoes(case: Case) -> Made:
    times = (4.92, 9.84)

    def mark(group: Dataset, s: int) -> None:
        group.MREchoSequence = _group(EffectiveEchoTime=times[s])

    marks: list[Values] = [{"EchoTime": str(time), "EchoNumbers": s + 1} for s, time in enumerate(times)]
    return _either(case, marks, mark, "EffectiveEchoTime")


@trap("Two echoes told apart by EchoTime alone, slice by slice interleaved.")
def echo_times_interleaved(case: Case) -> Made:
    return _shared_series({"EchoTime": "4.92"}, {"EchoTime": "9.84"}, interleaved=True)


@trap("Two b-values.", forms=BOTH)
def b_values(case: Case) -> Made:
    def mark(group: Dataset, s: int) -> None:
        group.MRDiffusionSequence = _group(
            DiffusionBValue=1000.0 * s, DiffusionDirectionality="ISOTROPIC" if s else "NONE"
        )

    return _either(case, [{"DiffusionBValue": 0.0}, {"DiffusionBValue": 1000.0}], mark, "DiffusionBValue")


@trap("Three gradient directions of one b-value.", forms=BOTH)
def gradient_directions(case: Case) -> Made:
    directions = [[1.0, 0.0, 0.0], [0.0, 1.0, 0.0], [0.0, 0.0, 1.0]]

    def mark(group: Dataset, s: int) -> None:
        direction = _group(DiffusionGradientOrientation=directions[s])
        group.MRDiffusionSequence = _group(
            DiffusionBValue=1000.0, DiffusionDirectionality="DIRECTIONAL", DiffusionGradientDirectionSequence=direction
        )

    marks: list[Values] = [{"DiffusionBValue": 1000.0, "DiffusionGradientOrientation": value} for value in directions]
    return _either(case, marks, mark, "DiffusionGradientOrientation")


@trap("Two cardiac phases.", forms=BOTH)
def cardiac_phases(case: Case) -> Made:
    def mark(group: Dataset, s: int) -> None:
        group.CardiacSynchronizationSequence = _group(
            NominalCardiacTriggerDelayTime=30.0 + 40.0 * s, NominalPercentageOfCardiacPhase=5.0 + 40 * s
        )

    marks: list[Values] = [
        {"TriggerTime": "30", "CardiacNumberOfImages": 2},
        {"TriggerTime": "70", "CardiacNumberOfImages": 2},
    ]
    return _either(case, marks, mark, "NominalCardiacTriggerDelayTime")


@trap("Magnitude and phase.", forms=BOTH)
def magnitude_and_phase(case: Case) -> Made:
    components = ("MAGNITUDE", "PHASE")

    def mark(group: Dataset, s: int) -> None:
        group.MRImageFrameTypeSequence[0].ComplexImageComponent = components[s]

    marks: list[Values] = [{"ImageType": ["ORIGINAL", "PRIMARY", kind, "SE"]} for kind in ("M", "P")]
    return _either(case, marks, mark, "ComplexImageComponent")


@trap("Water and fat of a Dixon sequence, told apart by ImageType.")
def water_and_fat(case: Case) -> Made:
    return _shared_series(*({"ImageType": ["DERIVED", "PRIMARY", "DIXON", kind]} for kind in ("WATER", "FAT")))


@trap(
    "Two inversion times. To split them or to refuse two images at one place are both right.",
    *("GEOM_DUPLICATE", "SERIES_AMBIGUOUS"),
    or_right=True,
)
def inversion_times(case: Case) -> Made:
    return _shared_series({"InversionTime": "150"}, {"InversionTime": "900"})


@trap(
    "Two flip angles, for T1 mapping. To split them or to refuse two images at one place are both right.",
    *("GEOM_DUPLICATE", "SERIES_AMBIGUOUS"),
    or_right=True,
)
def flip_angles(case: Case) -> Made:
    return _shared_series({"FlipAngle": "4"}, {"FlipAngle": "24"})


@trap(
    "Two convolution kernels of one CT. To split them or to refuse two images at one place are both right.",
    *("GEOM_DUPLICATE", "SERIES_AMBIGUOUS"),
    or_right=True,
)
def kernels(case: Case) -> Made:
    return _shared_series({"ConvolutionKernel": "B30f"}, {"ConvolutionKernel": "B70f"}, modality="CT")


@trap(
    "Two tube voltages (dual energy). To split them or to refuse two images at one place are both right.",
    *("GEOM_DUPLICATE", "SERIES_AMBIGUOUS"),
    or_right=True,
)
def tube_voltages(case: Case) -> Made:
    return _shared_series({"KVP": "80"}, {"KVP": "140"}, modality="CT")


@trap("Two time frames of a dynamic PET.")
def dynamic_PET(case: Case) -> Made:  # noqa: N802
    return _shared_series(
        *(
            {"FrameReferenceTime": str(time), "SeriesType": ["DYNAMIC", "IMAGE"], "NumberOfTimeSlices": 2}
            for time in (0, 60000)
        ),
        modality="PT",
    )


@trap(
    "Of two time points the second lacks a slice: the first is whole, the second must be refused, nothing be mixed.",
    *("SERIES_AMBIGUOUS", "GEOM_MISSING_SLICE"),
)
def time_point_incomplete(case: Case) -> Made:
    first, second = _stacks()
    datasets = [
        change(ds, TemporalPositionIdentifier=s + 1, NumberOfTemporalPositions=2)
        for s, stack in enumerate((first, second))
        for ds in classic(stack, "MR", first=1 + 8 * s)
    ]
    del datasets[11]
    return Made(named([to_bytes(ds) for ds in datasets]), (first, second.without(3)))


@trap(
    "A Siemens mosaic: one image holds the volume as tiles.",
    orientations=("axial-LP", "sagittal-PI", "coronal-LI", "oblique", "double-oblique"),
    valid=True,
)
def siemens_mosaic(case: Case) -> Made:
    stack = phantom(case.orientation, lowest=0)
    return Made({"mosaic.dcm": to_bytes(mosaic(stack))}, (stack,))


@trap("A mosaic whose slices run against the normal of rows and columns.", orientations=("axial-LP", "oblique"))
def siemens_mosaic_reversed(case: Case) -> Made:
    stack = phantom(case.orientation, lowest=0)
    return Made({"mosaic.dcm": to_bytes(mosaic(stack.take(range(7, -1, -1))))}, (stack,))


@trap("Two time points of mosaics.")
def siemens_mosaic_time_points(case: Case) -> Made:
    stacks = _stacks()
    datasets = [
        change(mosaic(stack, instance=s + 1), AcquisitionNumber=s + 1, AcquisitionTime=f"03040{s}")
        for s, stack in enumerate(stacks)
    ]
    return Made(named([to_bytes(ds) for ds in datasets]), tuple(stacks))


@trap(
    "A mosaic without its private header: how many tiles there are and which way they stack cannot be known.",
    *("SERIES_NOT_IMAGE", "GEOM_NO_POSITION", "GEOM_NO_ORIENTATION", "GEOM_MOSAIC", "GEOM_NO_SPACING", "SERIES_MOSAIC"),
)
def siemens_mosaic_without_header(case: Case) -> Made:
    ds = mosaic(phantom(lowest=0), normal_known=False)
    del ds[0x0019, 0x100A]
    return Made({"mosaic.dcm": to_bytes(ds)})


@trap(
    "A mosaic whose header claims more tiles than the image has room for.",
    *(
        "SERIES_NOT_IMAGE",
        "GEOM_NO_POSITION",
        "GEOM_MOSAIC",
        "PIXEL_SIZE",
        "GEOM_SHAPE",
        "SERIES_MOSAIC",
        "PIXEL_TRUNCATED",
    ),
)
def siemens_mosaic_with_too_many_tiles(case: Case) -> Made:
    ds = mosaic(phantom(lowest=0))
    content = to_bytes(ds).replace(b"\x19\0\x0a\x10US\x02\0\x08\0", b"\x19\0\x0a\x10US\x02\0\x90\x01")
    head, name, tail = content.partition(b"NumberOfImagesInMosaic")
    return Made({"mosaic.dcm": head + name + tail.replace(b"8\0\0\0", b"400\0", 1)})


@trap("A UIH grid: one image holds the volume as tiles.", orientations=("axial-LP", "oblique"))
def uih_vframe(case: Case) -> Made:
    stack = phantom(case.orientation, lowest=0)
    return Made({"vframe.dcm": to_bytes(vframe(stack))}, (stack,))


def _with_localizer(series: str) -> Made:
    volume = phantom()
    scout = phantom("coronal-LI", slices=1, rows=30, columns=24, seed=1)
    localizer = classic(scout, series=series, first=99)[0]
    localizer.ImageType = ["ORIGINAL", "PRIMARY", "LOCALIZER"]
    return Made(named([to_bytes(ds) for ds in [localizer, *classic(volume)]]), (volume,), asides=(scout,))
