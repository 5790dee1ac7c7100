"""Batch inference on Ray Data, on one machine or many.

In a pipeline of your own, :class:`PredictBatch` labels what Ray Data reads::

    import ray
    from hcast_zoo.inference.ray import PredictBatch

    data = ray.data.read_binary_files("s3://birds/2026", include_paths=True)
    data = data.map_batches(
        PredictBatch,
        fn_constructor_kwargs={"source": "hcast_lite.in1k", "engine": "openvino"},
        batch_format="pyarrow",
        batch_size=64,
        compute=ray.data.ActorPoolStrategy(size=8),
    )
    data.write_parquet("s3://birds/labels")

``hcast-zoo predict --on ADDRESS --output DIR`` is :func:`predict_on_ray`: it writes the parts of
:mod:`.parquet_job`, each completely or not at all. So if a worker dies, no picture is lost or repeated, and a stopped
job can be resumed with or without Ray.
"""

import logging
import os
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any

import pyarrow as pa

from ..common.choices import DEFAULT_MODEL
from ..common.claim import own_folder
from ..common.extras import needs_extra
from ..data.stores import from_cell, picture_column
from .parquet_job import claim_folder, compute_part, make_parts, part_file, schema_of, to_table
from .predictor import Predictor

NAMES = ("file", "path", "__key__")  # columns that name a row's picture


class PredictBatch:
    """A class for ``map_batches`` of Ray Data: tables of pictures in, tables of predictions out.

    The picture is in the first of the columns ``bytes``, ``image``, ``jpg``, ``file`` ... that the table has: encoded
    bytes, ``struct<bytes, path>``, a file's name or a URI. That column is dropped; the others stay, unless a column of
    the answer has the same name. The picture's name is in ``file``, ``path`` or ``__key__``.

    Args:
        source: Weights, on every machine of the cluster.
        batch_size: Pictures per forward pass.
        options: Arguments of :class:`.predictor.Predictor`.
    """

    def __init__(self, source: str | Path = DEFAULT_MODEL, batch_size: int = 16, **options: Any):
        self.predictor, self.batch_size = Predictor(source, **options), batch_size

    def __call__(self, table: pa.Table) -> pa.Table:
        """Return the table with answers; see :data:`.parquet_job.SCHEMA`."""
        column = picture_column(table.column_names)
        name_column = next((name for name in NAMES if name in table.column_names), None)
        names = range(table.num_rows) if name_column is None else table.column(name_column).to_pylist()
        pictures = [from_cell(cell, str(name)) for cell, name in zip(table.column(column).to_pylist(), names)]
        predictions = list(self.predictor.predict(pictures, batch_size=self.batch_size))
        answers = to_table(predictions, schema_of(self.predictor))

        for name in table.column_names:
            if name not in (column, *answers.column_names):
                answers = answers.append_column(name, table.column(name))

        return answers


class PartMaker:
    """Writes parts of a job; each worker has one.

    Args:
        source: Weights.
        options: Arguments of :class:`.predictor.Predictor`.
        folder: Folder of the parts.
        count: Number of parts.
        batch_size: Pictures per forward pass.
        directory: Working directory, which file names are relative to.
    """

    def __init__(
        self, source: str | Path, options: dict, folder: str, count: int, batch_size: int, working_folder: str
    ):
        if os.path.isdir(working_folder):
            os.chdir(working_folder)

        self.predictor = Predictor(source, **options)
        self.folder, self.count, self.batch_size = Path(folder), count, batch_size

    def __call__(self, table: pa.Table) -> pa.Table:
        """Write the parts that rows of ``number`` and ``names`` describe; return their pictures and failures."""
        rows = []
        for row in table.to_pylist():
            file = part_file(self.folder, row["number"], self.count)
            pictures, failed = compute_part(self.predictor, row["names"], file, batch_size=self.batch_size)
            rows.append({"pictures": pictures, "failed": failed})

        return pa.Table.from_pylist(rows)


def predict_on_ray(
    address: str,
    source: str | Path,
    files: Sequence[str],
    folder: str | Path,
    settings: dict,
    *,
    options: dict,
    part_size: int = 4096,
    batch_size: int = 16,
    workers: int | None = None,
) -> Iterator[tuple[int, int]]:
    """Do what :func:`.parquet_job.predict_parts` does on a Ray cluster; either can resume the other's folder.

    Args:
        address: Address of the cluster, ``ray://HOST:10001``; ``local`` starts one on this machine for the job.
        source: Weights; a file must be on every machine, at the same place.
        files: See :func:`.parquet_job.predict_parts`.
        folder: Folder of the parts, on a disk that all machines see.
        settings: See :func:`.parquet_job.predict_parts`.
        options: Arguments of :class:`.predictor.Predictor`; with ``device`` ``cuda``, or ``auto`` where the cluster has
            GPUs, each worker gets a GPU.
        part_size: Pictures per part.
        batch_size: Pictures per forward pass.
        workers: Number of workers; by default one for each GPU, or for each processor.

    Yields:
        (pictures, failures) of each part.

    Raises:
        ImportError: if Ray is missing.
        ValueError: as in :func:`.parquet_job.predict_parts`.
    """
    with needs_extra("ray", "jobs on Ray"):
        import ray
        import ray.data

    parts, folder = make_parts(files, part_size), Path(folder).absolute()
    with own_folder(folder):
        claim_folder(folder, files, {**settings, "part_size": part_size})
        logging.getLogger("ray.data").setLevel(logging.WARNING)
        ray.init(None if address == "local" else address, log_to_driver=False, include_dashboard=False)
        try:
            resources = ray.cluster_resources()
            device = str(options.get("device", "cpu"))
            gpus = device.startswith("cuda") or (device == "auto" and "GPU" in resources)
            available = int(resources.get("GPU" if gpus else "CPU", 1))
            workers = min(workers or max(1, available), len(parts))

            context = ray.data.DataContext.get_current()
            context.enable_progress_bars = False
            rows = [{"number": number, "names": list(map(str, names))} for number, names in enumerate(parts)]
            results = ray.data.from_items(rows, override_num_blocks=len(rows)).map_batches(
                PartMaker,
                fn_constructor_args=(source, options, str(folder), len(parts), batch_size, os.getcwd()),
                batch_format="pyarrow",
                batch_size=1,
                compute=ray.data.ActorPoolStrategy(size=workers),
                num_cpus=0 if gpus else 1,
                num_gpus=1 if gpus else 0,
            )
            for row in results.iter_rows():
                yield row["pictures"], row["failed"]
        finally:
            ray.shutdown()
