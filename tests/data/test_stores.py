"""Pictures in stores and in parquet files, labelled by the command, against the same pictures as files."""

import json
from pathlib import Path

import pytest

pytest.importorskip("pyarrow")
import pyarrow as pa
import pyarrow.parquet as pq

from hcast_zoo.cli import main
from hcast_zoo.data.pictures import PictureError, open_picture
from hcast_zoo.data.stores import Unreadable, find_stored, plain_name, read_container
from tests.archives import write_tar


def label(capsys, model, *sources):
    """Return the answers of `predict --json` for some sources, by name."""
    code = main(["predict", *map(str, sources), "--model", str(model), "--json"])
    rows = [json.loads(line) for line in capsys.readouterr().out.splitlines()]
    assert code == any("error" in row for row in rows)
    return {row.pop("file"): row for row in rows}


def encoded(files):
    """Return the bytes of some pictures, by new names."""
    return {f"{number:03}.png": Path(file).read_bytes() for number, file in enumerate(files)}


def test_a_store_is_searched_as_a_folder_is(val_files, picture_folder, tiny_weights, capsys):
    plain = label(capsys, tiny_weights, picture_folder / "val")
    stored = label(capsys, tiny_weights, f"file://{picture_folder}/val")
    assert stored == {f"file://{name}": row for name, row in plain.items()} and len(stored) == 12


def test_pictures_of_an_fsspec_store_get_the_same_answers(val_files, tiny_weights, capsys):
    fsspec = pytest.importorskip("fsspec")
    store = fsspec.filesystem("memory")
    store.pipe({f"/birds/deep/{name}": data for name, data in encoded(val_files).items()})
    try:
        stored = label(capsys, tiny_weights, "memory://birds", "memory://none/1.jpg")
    finally:
        store.rm("/birds", recursive=True)
    plain = label(capsys, tiny_weights, *val_files)
    assert "error" in stored.pop("memory://none/1.jpg")
    assert list(stored) == [f"memory://birds/deep/{name}" for name in encoded(val_files)]
    assert list(stored.values()) == list(plain.values())


@pytest.mark.parametrize("kind", ["struct", "bytes", "names"])
def test_rows_of_a_parquet_file_get_the_same_answers(kind, val_files, tiny_weights, tmp_path, capsys):
    cells = {
        "struct": [{"bytes": data, "path": name} for name, data in encoded(val_files).items()],
        "bytes": list(encoded(val_files).values()),
        "names": val_files,
    }[kind]
    pq.write_table(pa.table({"label": range(12), "image": cells}), tmp_path / "birds.parquet")
    plain = list(label(capsys, tiny_weights, *val_files).values())
    for source in (tmp_path / "birds.parquet", f"file://{tmp_path}/birds.parquet"):
        answers = label(capsys, tiny_weights, source)
        assert list(answers.values()) == plain
        assert list(answers) == (val_files if kind == "names" else [f"{source}/{row}" for row in range(12)])


def test_shards_in_a_store_get_the_same_answers(val_files, tiny_weights, tmp_path, capsys):
    inside = {f"./{name}": data for name, data in encoded(val_files).items()}
    shard = write_tar(tmp_path / "birds-0000.tar", {**inside, "./000.json": b"{}"})

    plain = label(capsys, tiny_weights, *val_files)
    answers = label(capsys, tiny_weights, f"file://{tmp_path}/birds-0000.tar")
    assert list(answers) == [f"file://{shard}/{name}" for name in encoded(val_files)]
    assert list(answers.values()) == list(plain.values())

    names = find_stored(f"file://{tmp_path}")
    assert f"file://{shard}" in names and len(names) == 25 and names == sorted(names)


def test_a_damaged_container_is_reported_and_the_rest_is_labelled(val_files, tiny_weights, tmp_path, capsys):
    shard = write_tar(tmp_path / "birds.tar", encoded(val_files))
    data = shard.read_bytes()
    shard.write_bytes(data[: len(data) // 2])
    (tmp_path / "no.parquet").write_bytes(b"PAR1")
    pq.write_table(pa.table({"label": [1]}), tmp_path / "other.parquet")
    sources = [f"file://{shard}", str(tmp_path / "no.parquet"), str(tmp_path / "other.parquet"), val_files[0]]

    answers = label(capsys, tiny_weights, *sources)

    assert "error" not in answers[val_files[0]]
    assert "complete tar file" in answers[sources[0]]["error"]
    assert "complete parquet file" in answers[sources[1]]["error"]
    assert "no column image" in answers[sources[2]]["error"]
    assert sum("error" not in row for row in answers.values()) >= 2


def test_passwords_stay_out_of_names_and_messages(tiny_weights, capsys):
    assert plain_name("s3://key:secret@birds/1.jpg?region=eu-west-1") == "s3://birds/1.jpg"
    assert main(["predict", "nostore://key:secret@birds/1.jpg", "--model", str(tiny_weights)]) == 2
    error = capsys.readouterr().err
    assert "nostore://birds/1.jpg" in error and "secret" not in error

    with pytest.raises(PictureError, match="too long"):
        open_picture(Unreadable("1.jpg", "too long"))
    assert [picture.name for picture in read_container("file:///none.tar")] == ["file:///none.tar"]


def test_parts_never_mix_containers(val_files, tiny_weights, tmp_path, capsys):
    shard = write_tar(tmp_path / "birds.tar", encoded(val_files))
    pq.write_table(pa.table({"image": list(encoded(val_files).values())}), tmp_path / "birds.parquet")
    out = tmp_path / "out"
    sources = [f"file://{shard}", *val_files[:5], str(tmp_path / "birds.parquet")]
    assert main(["predict", *sources, "--model", str(tiny_weights), "--output", str(out), "--part-size", "4"]) == 0
    assert json.loads(capsys.readouterr().out)["pictures"] == 29

    assert [pq.read_metadata(part).num_rows for part in sorted(out.glob("*.parquet"))] == [4, 1, 12, 12]
    rows = {row["file"]: row for row in pq.read_table(out).to_pylist()}
    assert len(rows) == 29

    for number in range(5):
        same = [rows[val_files[number]], rows[f"file://{shard}/{number:03}.png"], rows[f"{sources[-1]}/{number}"]]
        assert len({tuple(row["path"]) for row in same}) == len({row["path_probability"] for row in same}) == 1
