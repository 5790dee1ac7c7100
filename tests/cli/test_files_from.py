"""Lists of files as other programs write them."""

import json

from hcast_zoo.cli import main


def test_a_byte_order_mark_is_not_part_of_the_first_name(tiny_weights, picture_folder, tmp_path, capsys):
    picture = next((picture_folder / "val").rglob("*.png"))
    (tmp_path / "list.txt").write_text(f"{picture}\n", encoding="utf-8-sig")
    command = ["predict", "--model", str(tiny_weights), "--files-from", str(tmp_path / "list.txt"), "--json"]
    assert main(command) == 0
    assert json.loads(capsys.readouterr().out)["file"] == str(picture)
