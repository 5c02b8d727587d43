"""Traps in what lies in the folder: names, numbers, junk, copies, damage."""

from __future__ import annotations

import io
import tempfile
from pathlib import Path

import numpy as np
import pydicom
from pydicom.dataset import Dataset
from pydicom.fileset import FileSet
from pydicom.sequence import Sequence as Items
from pydicom.uid import (
    BasicTextSRStorage,
    EncapsulatedPDFStorage,
    GrayscaleSoftcopyPresentationStateStorage,
    ImplicitVRLittleEndian,
    RTStructureSetStorage,
    SecondaryCaptureImageStorage,
)

from tests.corpus.classic import classic, code, patient
from tests.corpus.encoding import change, named, to_bytes, uid, without_preamble
from tests.corpus.phantom import Stack
from tests.corpus.trap import BOTH, EVERY, Case, Made, trap

SHUFFLED = (5, 2, 7, 0, 3, 6, 1, 4)


def slice_contents(stack: Stack) -> list[bytes]:
    """The files of a classic CT in order."""
    return [to_bytes(ds) for ds in classic(stack)]


@trap("File names say another order than the positions.", orientations=EVERY)
def file_names_in_wrong_order(case: Case) -> Made:
    stack = case.phantom()
    contents = slice_contents(stack)
    return Made(named([contents[k] for k in SHUFFLED]), (stack,))


@trap("File names without leading zeros: 10 sorts before 2.")
def file_names_without_leading_zeros(case: Case) -> Made:
    stack = case.phantom(slices=12)
    return Made(named(slice_contents(stack), "IM{}"), (stack,))


@trap("No file has an extension, and they lie in folders of three levels.")
def nested_without_extensions(case: Case) -> Made:
    stack = case.phantom()
    files = {f"PAT/{n % 2}/{n % 3}/I{n}": content for n, content in enumerate(slice_contents(stack))}
    return Made(files, (stack,))


@trap("Extensions that other programs use: .ima, .IMG, .1.")
def foreign_extensions(case: Case) -> Made:
    stack = case.phantom()
    files = {f"{n}{(('.ima', '.IMG', '.1')[n % 3])}": content for n, content in enumerate(slice_contents(stack))}
    return Made(files, (stack,))


@trap("File names with spaces, umlauts and brackets.")
def odd_file_names(case: Case) -> Made:
    stack = case.phantom()
    return Made({f"Bild für [Übung] {n} #.dcm": content for n, content in enumerate(slice_contents(stack))}, (stack,))


@trap("InstanceNumber runs against the positions.", orientations=EVERY)
def instance_numbers_reversed(case: Case) -> Made:
    stack = case.phantom()
    datasets = [change(ds, InstanceNumber=8 - k) for k, ds in enumerate(classic(stack))]
    return Made(named([to_bytes(ds) for ds in datasets]), (stack,))


@trap("InstanceNumber is in an order of its own.")
def instance_numbers_shuffled(case: Case) -> Made:
    stack = case.phantom()
    datasets = [change(ds, InstanceNumber=SHUFFLED[k] + 1) for k, ds in enumerate(classic(stack))]
    return Made(named([to_bytes(ds) for ds in datasets]), (stack,))


@trap("InstanceNumber is empty (it is of type 2).")
def instance_numbers_empty(case: Case) -> Made:
    stack = case.phantom()
    return Made(named([to_bytes(change(ds, InstanceNumber="")) for ds in classic(stack)]), (stack,))


@trap("No InstanceNumber at all.")
def instance_numbers_missing(case: Case) -> Made:
    stack = case.phantom()
    return Made(named([to_bytes(change(ds, InstanceNumber=None)) for ds in classic(stack)]), (stack,))


@trap("Every slice has InstanceNumber 1.")
def instance_numbers_duplicated(case: Case) -> Made:
    stack = case.phantom()
    return Made(named([to_bytes(change(ds, InstanceNumber=1)) for ds in classic(stack)]), (stack,))


@trap("InstanceNumber skips one although no slice is missing: the positions are complete.")
def instance_number_skipped(case: Case) -> Made:
    stack = case.phantom()
    datasets = [change(ds, InstanceNumber=k + 1 + (k > 3)) for k, ds in enumerate(classic(stack))]
    return Made(named([to_bytes(ds) for ds in datasets]), (stack,))


@trap("A media folder with DICOMDIR, read as a folder.", forms=BOTH)
def dicomdir_folder(case: Case) -> Made:
    return _with_dicomdir(case, entry=".")


@trap("A media folder with DICOMDIR, read by the DICOMDIR.", forms=BOTH)
def dicomdir_file(case: Case) -> Made:
    return _with_dicomdir(case, entry="DICOMDIR")


@trap(
    "The DICOMDIR names a slice that is not on the disc, and it is one inside.",
    "GEOM_MISSING_SLICE",
    "DICOM_UNREADABLE",
)
def dicomdir_names_missing_file(case: Case) -> Made:
    made = _with_dicomdir(case, entry="DICOMDIR")
    ds = pydicom.dcmread(io.BytesIO(made.files["DICOMDIR"]))
    images = [record for record in ds.DirectoryRecordSequence if record.DirectoryRecordType == "IMAGE"]
    gone = "/".join(images[3].ReferencedFileID)
    return Made({name: content for name, content in made.files.items() if name != gone}, entry="DICOMDIR")


@trap("No preamble, no DICM, no file meta information: a bare implicit VR dataset, as old archives keep it.")
def no_preamble(case: Case) -> Made:
    stack = case.phantom()
    contents = [without_preamble(to_bytes(ds, ImplicitVRLittleEndian)) for ds in classic(stack)]
    return Made(named(contents), (stack,))


@trap("No preamble, and the bare dataset is explicit VR.")
def no_preamble_explicit(case: Case) -> Made:
    stack = case.phantom()
    return Made(named([without_preamble(content) for content in slice_contents(stack)]), (stack,))


@trap("The preamble is a TIFF header, as dual-personality files have it.")
def tiff_preamble(case: Case) -> Made:
    stack = case.phantom()
    contents = [b"II*\0\x08\0\0\0" + content[8:] for content in slice_contents(stack)]
    return Made(named(contents), (stack,))


@trap("A text file, an empty file, a JPEG picture and a Mac's .DS_Store lie beside the slices.")
def junk_files(case: Case) -> Made:
    stack = case.phantom()
    junk = {
        "README.txt": b"Please find the images in this folder.\n",
        "empty": b"",
        "empty.dcm": b"",
        "photo.dcm": b"\xff\xd8\xff\xe0\0\x10JFIF\0\x01\x01\0\0\x01\0\x01\0\0\xff\xd9",
        ".DS_Store": b"\0\0\0\x01Bud1" + bytes(64),
        "random.bin": np.random.default_rng(5).bytes(3000),
    }
    return Made({**named(slice_contents(stack)), **junk}, (stack,), skipped=tuple(junk))


@trap("Only a text file and an empty file: nothing to read.", "SERIES_NONE", "NOT_DICOM")
def only_junk(case: Case) -> Made:
    return Made({"README.txt": b"nothing here\n", "empty.dcm": b""})


@trap("A file has preamble and DICM and then noise.")
def noise_after_dicm(case: Case) -> Made:
    stack = case.phantom()
    noise = bytes(128) + b"DICM" + np.random.default_rng(6).bytes(2000)
    return Made({**named(slice_contents(stack)), "noise.dcm": noise}, (stack,), skipped=("noise.dcm",))


@trap("A structured report of the same study lies beside the slices.")
def structured_report(case: Case) -> Made:
    return _beside(case, BasicTextSRStorage, "SR", ValueType="CONTAINER", ContinuityOfContent="SEPARATE")


@trap("A structure set of the same study lies beside the slices.")
def structure_set(case: Case) -> Made:
    return _beside(case, RTStructureSetStorage, "RTSTRUCT", StructureSetLabel="ORGANS")


@trap("A presentation state of the same study lies beside the slices.")
def presentation_state(case: Case) -> Made:
    return _beside(case, GrayscaleSoftcopyPresentationStateStorage, "PR", ContentLabel="VIEW")


@trap("A report as PDF in DICOM lies beside the slices.")
def encapsulated_pdf(case: Case) -> Made:
    return _beside(case, EncapsulatedPDFStorage, "DOC", EncapsulatedDocument=b"%PDF-1.4\n%%EOF\n")


@trap("A structured report carries the images' own SeriesInstanceUID (some systems do this).")
def report_within_the_series(case: Case) -> Made:
    return _beside(case, BasicTextSRStorage, "CT", SeriesInstanceUID=uid("series"), ValueType="CONTAINER")


@trap(
    "A vendor's object without SOPClassUID and pixels, with the images' own SeriesInstanceUID.",
)
def private_record_within_the_series(case: Case) -> Made:
    return _beside(case, None, "CT", SeriesInstanceUID=uid("series"))


@trap("Only a structured report: no image.", "SERIES_NONE", "SERIES_NOT_IMAGE")
def only_a_report(case: Case) -> Made:
    made = _beside(case, BasicTextSRStorage, "SR", ValueType="CONTAINER")
    return Made({"other.dcm": made.files["other.dcm"]})


@trap(
    "A colour screenshot (secondary capture) in a series of its own. It is no volume; to ask which series is meant, or "
    "to take the only volume, are both right.",
    "SERIES_AMBIGUOUS",
    or_right=True,
)
def screenshot_beside(case: Case) -> Made:
    stack = case.phantom()
    return Made({**named(slice_contents(stack)), "screen.dcm": to_bytes(_screenshot("screens"))}, (stack,))


@trap(
    "A colour screenshot with the images' own SeriesInstanceUID: to drop it with a report or to refuse are both right.",
    *("SERIES_AMBIGUOUS", "SERIES_MIXED_TYPES", "PIXEL_TYPE", "GEOM_NO_POSITION"),
    or_right=True,
)
def screenshot_within_the_series(case: Case) -> Made:
    stack = case.phantom()
    return Made({**named(slice_contents(stack)), "screen.dcm": to_bytes(_screenshot("series"))}, (stack,))


@trap("Only screenshots.", "PIXEL_TYPE", "SERIES_NOT_IMAGE", "SERIES_NONE", "GEOM_NO_POSITION", "GEOM_NO_SPACING")
def only_screenshots(case: Case) -> Made:
    return Made({"screen.dcm": to_bytes(_screenshot("screens"))})


def _with_dicomdir(case: Case, entry: str) -> Made:
    stack = case.phantom()
    files = FileSet()
    files.UID = uid("file set")
    for content in case.files(stack).values():
        files.add(pydicom.dcmread(io.BytesIO(content)))
    return Made(_written(files), (stack,), entry=entry)


def _written(files: FileSet) -> dict[str, bytes]:
    with tempfile.TemporaryDirectory() as folder:
        files.write(folder)
        files._stage["t"].cleanup()  # else it warns of it whenever it is collected
        root = Path(folder)
        return {str(path.relative_to(root)): path.read_bytes() for path in sorted(root.rglob("*")) if path.is_file()}


def _beside(case: Case, sop_class: str | None, modality: str, **values: object) -> Made:
    stack = case.phantom()
    ds = patient()
    ds.Modality, ds.SeriesInstanceUID, ds.SeriesNumber, ds.InstanceNumber = modality, uid("other"), 2, 1
    ds.SOPInstanceUID = uid("other", "instance")
    if sop_class:
        ds.SOPClassUID = sop_class
    if sop_class == BasicTextSRStorage:
        ds.ConceptNameCodeSequence = Items([code("18748-4", "LN", "Diagnostic imaging report")])
    change(ds, **values)
    return Made({**named(slice_contents(stack)), "other.dcm": to_bytes(ds)}, (stack,), skipped=("other.dcm",))


def _screenshot(series: str) -> Dataset:
    ds = patient()
    ds.Modality, ds.SeriesInstanceUID, ds.SeriesNumber, ds.InstanceNumber = "CT", uid(series), 1, 99
    ds.SOPClassUID, ds.SOPInstanceUID = SecondaryCaptureImageStorage, uid(series, "screen")
    ds.ConversionType, ds.ImageType = "WSD", ["DERIVED", "SECONDARY", "SCREEN SAVE"]
    ds.SamplesPerPixel, ds.PhotometricInterpretation, ds.PlanarConfiguration = 3, "RGB", 0
    ds.Rows, ds.Columns, ds.BitsAllocated, ds.BitsStored, ds.HighBit, ds.PixelRepresentation = 16, 20, 8, 8, 7, 0
    ds.PixelData = np.random.default_rng(7).bytes(16 * 20 * 3)
    return ds
