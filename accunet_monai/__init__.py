"""ACC-UNet as a MONAI network in MONAI bundles, from NIfTI and DICOM to MLflow and the PACS."""

__version__ = "0.1.0"
