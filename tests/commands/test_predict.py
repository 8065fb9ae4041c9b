"""How much predict prints."""

from helpers import runs


def test_quiet_has_the_result_and_warnings_alone(cli, image_folder, tmp_path):
    predict = [*runs.predict_arguments(image_folder, tmp_path / "out"), "--data.num_workers", "0"]
    (image_folder / "3.png").write_bytes(b"no image")
    code, out, err = cli(*predict, "--quiet", "--data.on_bad_image", "skip")
    assert code == 3
    assert out.splitlines()[0] == str(runs.features_file(tmp_path / "out"))
    assert "warning: 1 row could not be decoded" in out
    assert "3.png" in err
    assert {line.partition(": ")[0] for line in err.splitlines()} == {"lit-extract"}
    code, out, _ = cli(*predict, "--data.on_bad_image", "skip", "--overwrite", "true")
    assert code == 3
    assert "7 of 7 images" in out, "without --quiet it is back"
