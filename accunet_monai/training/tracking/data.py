"""The data of a training in MLflow: a dataset for each part of the split, with its digest, and who is in which part."""

from __future__ import annotations

import hashlib
import json
from collections.abc import Mapping, Sequence

from mlflow import MlflowClient
from mlflow.entities import Dataset, DatasetInput, InputTag

from accunet_monai.datasets import Case, dataset_digest
from accunet_monai.training.tracking.identity import Identities

SPLIT = "split.json"
_LONGEST_DIGEST = 36  # characters: MLflow's limit; the whole one is a tag


def log_datasets(
    client: MlflowClient,
    run_id: str,
    parts: Mapping[str, Sequence[Case]],
    identities: Identities,
    resumed: bool = False,
) -> str | None:
    """Log the parts as inputs of a run, and the split by the logged names; returns one digest for all parts.

    Args:
        client: of the tracking store.
        run_id: of the run.
        parts: part → its cases; nothing is logged without any.
        identities: under which names cases are logged.
        resumed: the run has them already.
    """
    if not parts:
        return None
    digests = {part: dataset_digest(cases) for part, cases in parts.items()}
    whole = hashlib.sha256("".join(f"{part} {digests[part]}\n" for part in sorted(digests)).encode()).hexdigest()
    if resumed:
        return whole
    inputs = []
    for part, cases in parts.items():
        names = [identities.case(str(case["case"])) for case in cases]
        subjects = {identities.subject(str(case.get("subject", case["case"]))) for case in cases}
        about = Dataset(
            name=part,
            digest=digests[part][:_LONGEST_DIGEST],
            source_type="local",
            source=json.dumps({"sha256": digests[part]}),
            profile=json.dumps({"cases": len(names), "subjects": len(subjects)}),
        )
        inputs.append(DatasetInput(about, [InputTag("mlflow.data.context", part)]))
        client.set_tag(run_id, f"dataset.{part}", digests[part])
    client.log_inputs(run_id, inputs)
    client.set_tag(run_id, "dataset", whole)
    split = {
        "subjects": {
            identities.case(str(case["case"])): identities.subject(str(case.get("subject", case["case"])))
            for cases in parts.values()
            for case in cases
        },
        "parts": {part: [identities.case(str(case["case"])) for case in cases] for part, cases in parts.items()},
    }
    client.log_text(run_id, json.dumps(split, indent=1, ensure_ascii=False), SPLIT)
    return whole
