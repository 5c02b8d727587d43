"""Cross-validation: every case is predicted by a network that was not trained on it, nor on another of its subject."""

from __future__ import annotations

import json
import os
import shutil
import tempfile
from collections.abc import Iterable, Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np
from monai.bundle import ConfigParser
from rich.console import Console

from accunet_monai.bundle import (
    WEIGHTS,
    Prediction,
    find_bundle,
    label_names,
    load_bundle,
    read_plain,
    write_manifest,
)
from accunet_monai.datasets import (
    Case,
    Split,
    cases_for_folds,
    content_digest,
    dataset_digest,
    folds_by_subject,
    labelled_cases,
    read_split,
)
from accunet_monai.errors import DatasetError
from accunet_monai.evaluation import (
    Row,
    Summary,
    draw_case,
    measure_case,
    print_summary,
    worst_first,
    write_report,
    write_rows,
)
from accunet_monai.evaluation.report import MOST_CASES
from accunet_monai.training.bundle_copy import copy_bundle
from accunet_monai.training.cleaning_choice import choose_cleaning, cleaning_arguments, cleaning_scores
from accunet_monai.training.handlers import LAST_WEIGHTS
from accunet_monai.training.resume import (
    STATE_FILE,
    STATE_FOLDER,
    check_same,
    is_finished,
    resume_changed,
    state_path,
)
from accunet_monai.training.state_file import read_state
from accunet_monai.training.tracking import ParentRun
from accunet_monai.training.tracking.best import BEST_VALIDATION, BestValidation
from accunet_monai.volumes import atomic_output, read_first_channel, read_label_map, write_label_map
from accunet_monai.volumes.cleaning import clean_labels
from accunet_monai.workflow import config_files, run_config

Overrides = Mapping[str, Any]
PathLike = str | os.PathLike[str]


def cross_validate(
    bundle: PathLike,
    overrides: Overrides,
    overlays: Sequence[PathLike] = (),
    folds: int = 5,
    fold: int | None = None,
    network: str | None = None,
    resume: bool = False,
    overwrite: bool = False,
) -> Summary | None:
    """Train a network for each fold, predict each case with the one that has not seen its subject, and measure.

    ``output_dir`` gets ``fold_K`` with each training, its predictions (``predictions/CASE.nii.gz``) and ``cases.csv``;
    the table, summary and plots of all cases; and ``bundle``, which predicts with all folds' networks. The folds are
    those of the bundle's ``split.json``; where it has another number of them they are drawn by subject, from the cases
    of training and validation. A finished fold is taken only if it was trained on these very cases and settings.

    The number at the end is honest: a fold's last weights are taken, not those that its own cases would choose, and how
    its label maps are cleaned is chosen on the other folds' cases.

    Args:
        bundle: a shipped bundle's name or a bundle's folder.
        overrides: as of :func:`~accunet_monai.workflow.run_config`; ``output_dir`` is that of all folds.
        overlays: as there.
        folds: number of folds.
        fold: train this one alone (from 0), e.g. each on a machine of its own, and collect afterwards with ``resume``.
        network: another network to train on the same folds, ``"basic_unet"``.
        resume: go on: finished folds are not trained again.
        overwrite: begin anew.

    Returns:
        What the out-of-fold table comes to; ``None`` for one fold.

    Raises:
        DatasetError: ``RUN_UNFINISHED`` when there are trainings in ``output_dir``, ``FOLDS_TOO_MANY``,
            ``FOLDS_PROCESSES``, ``RESUME_CHANGED`` (a fold or the folds were others), ``DATASET_…``.
        BundleError: as ``config_files``.
    """
    if int(os.environ.get("WORLD_SIZE", "1")) > 1:
        hint = "Train each fold by torchrun with fold K and output_dir …/fold_K, then collect by --folds --resume."
        raise DatasetError("FOLDS_PROCESSES", "folds are trained by one process.", hint=hint)
    config_files(bundle, "train", overrides, overlays)  # a misspelt key is told before anything is written
    run = _CrossValidation(find_bundle(bundle), overrides, overlays, folds, network)
    wanted = range(folds) if fold is None else [fold]
    if not 0 <= wanted[0] < folds:
        raise DatasetError("SPLIT_INVALID", f"there is no fold {fold} of {folds}.", hint="They are counted from 0.")
    if overwrite and not resume:
        for number in wanted:
            shutil.rmtree(run.folder(number), ignore_errors=True)
    if not resume and any(state_path(run.folder(number)).exists() for number in wanted):
        hint = "Go on with them (--resume), begin anew (--overwrite), or give another output_dir."
        raise DatasetError("RUN_UNFINISHED", "trainings of folds lie here.", path=run.output_dir, hint=hint)
    run.prepare(wanted)
    if fold is not None:
        run.train(fold, None)
        return None
    name = f"{folds} folds"
    parent = ParentRun(run.experiment, name, run.runs_dir, run.output_dir, run.cases(), run.source, resume)
    try:
        parent.log_start(*run.configs())
        for number in wanted:
            run.train(number, parent.run_id)
        summary = run.collect(parent)
    except BaseException as error:
        parent.close("FAILED" if isinstance(error, Exception) else "KILLED")
        raise
    parent.close("FINISHED")
    return summary


class _CrossValidation:
    """Where things lie and what the config says."""

    def __init__(
        self, source: Path, overrides: Overrides, overlays: Sequence[PathLike], folds: int, network: str | None
    ) -> None:
        merged = dict(read_plain(source / "configs" / "train.yaml"))
        for overlay in overlays:
            merged |= read_plain(Path(overlay))
        merged |= overrides
        self.source, self.overlays, self.folds, self.network = source, tuple(overlays), folds, network
        self.experiment = str(read_plain(source / "configs" / "train.yaml")["train"]["tracker"]["experiment"])
        self.runs_dir = Path(str(merged["runs_dir"]))
        name = "_".join([source.name, *([network] if network else []), f"{folds}_folds"])
        self.output_dir = Path(str(overrides.get("output_dir", self.runs_dir / name)))
        self.overrides = {key: value for key, value in overrides.items() if key != "output_dir"}
        self.dataset_dir, self.seed = str(merged["dataset_dir"]), int(merged["seed"])
        self.limit, self.ignore_label = merged.get("limit_cases"), merged.get("ignore_label")
        self.device = str(overrides.get("device", "cpu"))
        self.split_file = str(overrides.get("split_file", source / "configs" / "split.json"))
        if "device" not in overrides:
            import torch

            self.device = "cuda" if torch.cuda.is_available() else "cpu"

    @property
    def title(self) -> str:
        return f"{self.folds} folds of {self.source.name}"

    @property
    def bundle(self) -> Path:
        return self.output_dir / "bundle"

    def folder(self, fold: int) -> Path:
        return self.output_dir / f"fold_{fold}"

    def prepare(self, wanted: Iterable[int] = ()) -> None:
        """The bundle that all folds train: with the folds in its split, and label maps not cleaned yet.

        Args:
            wanted: folds; what was trained of them must go with this bundle.

        Raises:
            DatasetError: ``RESUME_CHANGED`` where trainings lie here whose folds, cases or settings were others; then
                nothing is written.
        """
        split, earlier = self._split(), self.bundle / "configs" / "split.json"
        if earlier.is_file() and any(self.output_dir.glob(f"fold_*/{STATE_FOLDER}/{STATE_FILE}")):
            changed = _changed_folds(read_split(earlier), split)
            if changed:
                hint = f"Give split_file={earlier} to keep the earlier folds, or another output_dir."
                raise resume_changed(changed, self.output_dir, hint)
        with tempfile.TemporaryDirectory() as name:
            made = copy_bundle(self.source, Path(name), self.network, cleaning={}, split=split)
            for fold in wanted:
                self._check(fold, made)
        copy_bundle(self.source, self.bundle, self.network, cleaning={}, split=split)

    def _split(self) -> dict[str, Any]:
        """The content of the split file, with folds drawn where it has another number of them."""
        split = json.loads(Path(self.split_file).read_text(encoding="utf-8")) if Path(self.split_file).is_file() else {}
        if split:
            read_split(self.split_file)  # refuses what is none
        if len(split.get("folds", [])) != self.folds:
            cases = labelled_cases(self.dataset_dir, self.split_file if split else None)
            drawn = cases_for_folds(cases, split.get("parts", {}))
            split |= {"folds": folds_by_subject(drawn, self.folds, self.seed)}
            split |= {"subjects": {case["case"]: case["subject"] for case in cases}, "parts": split.get("parts", {})}
        return split

    def _check(self, fold: int, bundle: Path) -> None:
        """Refuse a training of a fold that lies here and was one of other cases or settings than the bundle's."""
        folder, path = self.folder(fold), state_path(self.folder(fold))
        if not path.is_file():
            return
        split, state = read_split(bundle / "configs" / "split.json"), read_state(path)
        cases = list(split.part("training", fold)[: self.limit])
        same = {"config": self._merged(self._values(fold), bundle), "cases": cases}
        kept = state.get("same", {})
        check_same(state, {key: value for key, value in same.items() if key in kept}, folder)
        if "cases" in kept:
            return
        validated = set(BestValidation(folder / BEST_VALIDATION).read())  # all that is left of an earlier version
        if not validated:
            told = f"fold {fold}: warning: its training did not keep which cases it was of; they are not checked"
            Console().print(told, highlight=False, soft_wrap=True)
        elif validated != set(split.part("validation", fold)[: self.limit]):
            raise resume_changed(["cases"], folder)

    def train(self, fold: int, parent: str | None) -> None:
        """Train a fold unless that is done."""
        if is_finished(self.folder(fold)):
            Console().print(f"fold {fold}: trained already", highlight=False)
            return
        Console().rule(f"fold {fold} of {self.folds}")
        values = self._values(fold) | ({} if parent is None else {"parent_run": parent})
        run_config(self.bundle, "train", values, self.overlays)

    def _values(self, fold: int) -> dict[str, Any]:
        """Overrides of a fold's training."""
        values = {**self.overrides, "output_dir": str(self.folder(fold)), "fold": fold, "resume": True}
        return values | {"split_file": str(self.bundle / "configs" / "split.json")}

    def cases(self) -> list[list[Case]]:
        """Of each fold those that its network does not see."""
        split = self.bundle / "configs" / "split.json"
        every = range(self.folds)
        return [labelled_cases(self.dataset_dir, split, "validation", self.limit, fold=fold) for fold in every]

    def configs(self) -> tuple[dict[str, Any], dict[str, Any]]:
        """What all folds are trained with, and the bundle's own."""
        original = self.source / "configs" / "train.yaml"
        config = self._merged(self.overrides, self.bundle)
        own = {"network": str(config["network_def"]["_target_"]).rpartition(".")[2], "folds": self.folds}
        return config | own, read_plain(original)

    def _merged(self, values: Overrides, bundle: Path) -> dict[str, Any]:
        """A bundle's training config with overlays and overrides."""
        parser = ConfigParser()
        parser.read_config([str(path) for path in (bundle / "configs" / "train.yaml", *self.overlays)])
        parser.update(dict(values))
        parser.parse()
        return {key: value for key, value in parser.get().items() if key != "_meta_"}

    def collect(self, parent: ParentRun) -> Summary:
        """Predict, choose how to clean, measure, and write the bundle that has all folds' networks."""
        labels = label_names(self.bundle)
        predicted = [self._predict(fold, cases) for fold, cases in enumerate(parent.folds)]
        scores = [
            [cleaning_scores(*case.maps(), list(labels), self.ignore_label) for case in cases] for cases in predicted
        ]
        rows: list[list[Row]] = []
        for fold, cases in enumerate(predicted):
            others = [score for other, found in enumerate(scores) if other != fold for score in found]
            chosen = choose_cleaning(others, list(labels))
            rows.append(
                [row for case in cases for row in case.measured(cleaning_arguments(chosen), labels, self.ignore_label)]
            )
            write_rows(rows[fold], self.folder(fold) / "cases.csv")
        chosen = choose_cleaning([score for found in scores for score in found], list(labels))
        about = {"cleaning": ", ".join(f"{labels[label]}: {way}" for label, way in chosen.items())}
        every = [case for cases in predicted for case in cases]
        summary = self._report(self.output_dir, every, [row for fold in rows for row in fold], about)
        print_summary(summary, f"{self.title}, each case predicted by a network that has not seen its subject")
        self._ensemble(cleaning_arguments(chosen))
        logged = [parent.named(fold) for fold in rows]
        with tempfile.TemporaryDirectory() as name:
            self._report(Path(name), every, [row for fold in logged for row in fold], about)
            parent.log_report(Path(name), logged, parent.adopt([self.folder(fold) for fold in range(self.folds)]))
        return summary

    def _report(self, folder: Path, cases: Sequence[_Case], rows: Sequence[Row], about: Mapping[str, str]) -> Summary:
        """Tables, plots and the page of the worst cases; rows may have other names than the cases."""
        labels = label_names(self.bundle)
        of_case = [list(rows[n : n + len(labels)]) for n in range(0, len(rows), len(labels))]
        worst = set(worst_first(rows)[:MOST_CASES])
        for case, mine in zip(cases, of_case, strict=True):
            if mine[0]["case"] in worst:
                image, found = read_first_channel(case.files["image"]), read_label_map(case.cleaned)
                reference = read_label_map(case.files["label"]).array
                draw_case(folder, Prediction(image, found.array), reference, mine, labels)
        return write_report(folder, rows, self.title, about=about)

    def _predict(self, fold: int, cases: Sequence[Case]) -> list[_Case]:
        """The fold's cases with label maps that are not cleaned; not made again of the same weights, config, images."""
        raw, weights = self.folder(fold) / "raw", self.folder(fold) / LAST_WEIGHTS
        config = self.bundle / "configs" / "inference.yaml"
        images = dataset_digest({"case": case["case"], "image": case["image"]} for case in cases)
        sources = f"weights {content_digest(weights)}\nconfig {content_digest(config)}\nimages {images}\n"
        made_of = raw / "made_of.sha256"
        if not made_of.is_file() or made_of.read_text(encoding="utf-8") != sources:
            shutil.rmtree(raw, ignore_errors=True)
            with atomic_output(made_of) as stream:
                stream.write(sources.encode())
        found = [_Case(case, self.folder(fold)) for case in cases]
        missing = [case for case in found if not case.raw.is_file()]
        if missing:
            predictor = load_bundle(self.bundle, weights, self.device)
            for case in missing:
                prediction: Any = predictor.predict(case.files["image"], ignore_contract=True)
                write_label_map(case.raw, prediction.label_map, prediction.image)
        return found

    def _ensemble(self, cleaning: Mapping[str, Any]) -> None:
        copy_bundle(
            self.source, self.bundle, self.network, cleaning, read_plain(self.bundle / "configs" / "split.json")
        )
        models = self.bundle / "models"
        models.mkdir(exist_ok=True)
        for fold in range(self.folds):
            shutil.copy2(self.folder(fold) / LAST_WEIGHTS, models / f"fold_{fold}.safetensors")
        shutil.copy2(
            models / "fold_0.safetensors", self.bundle / WEIGHTS
        )  # what it predicts with when asked for nothing
        write_manifest(self.bundle)
        weights = " ".join(f"--weights {models / f'fold_{fold}.safetensors'}" for fold in range(self.folds))
        command = f"accunet predict IMAGES --bundle {self.bundle} {weights}"
        Console().print(f"predict with all folds:\n  {command}", highlight=False, soft_wrap=True)


def _changed_folds(before: Split, now: Mapping[str, Any]) -> list[str]:
    """What of the folds is not as it was: their number, cases (with names), order of the cases, or subjects."""
    if len(before.folds) != len(now["folds"]):
        return [f"folds ({len(before.folds)})"]
    earlier = {case for fold in before.folds for case in fold}
    other = sorted(earlier.symmetric_difference(case for fold in now["folds"] for case in fold))
    if other:
        return [f"cases ({', '.join(other[:3])}{', …' if len(other) > 3 else ''})"]
    changed = [] if [list(fold) for fold in before.folds] == now["folds"] else ["which case is in which fold"]
    subjects = any(before.subject(case, case) != str(now["subjects"].get(case, case)) for case in earlier)
    return [*changed, *(["subjects"] if subjects else [])]


class _Case:
    """A case of a fold: its files, and its label map before it is cleaned."""

    def __init__(self, files: Case, folder: Path) -> None:
        self.files = files
        self.raw = folder / "raw" / f"{files['case']}.nii.gz"
        self.cleaned = folder / "predictions" / f"{files['case']}.nii.gz"

    def maps(self) -> tuple[Any, Any, float]:
        """Prediction, reference, volume of a voxel in mm³."""
        prediction = read_label_map(self.raw)
        return prediction.array, read_label_map(self.files["label"]).array, float(np.prod(prediction.spacing))

    def measured(self, cleaning: Mapping[str, Any], labels: Mapping[int, str], ignore_label: int | None) -> list[Row]:
        """Rows of the cleaned label map, which is written."""
        raw, reference, voxel = self.maps()
        like = read_label_map(self.raw)
        cleaned = clean_labels(raw, voxel, **cleaning)
        write_label_map(self.cleaned, cleaned, like)
        names = {"case": self.files["case"], "subject": self.files["subject"]}
        return measure_case(cleaned, reference, like.spacing, labels, ignore_label=ignore_label, **names)
