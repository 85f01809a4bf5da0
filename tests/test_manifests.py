from __future__ import annotations

import pyarrow as pa
import pyarrow.parquet as pq
import pytest

from twinlens.commands.training_table import split_table
from twinlens.config import Settings
from twinlens.data.folders import read_table
from twinlens.data.manifests import read_manifest
from twinlens.errors import DataError


def write(tmp_path, text, *, encoding="utf-8", name="list.csv"):
    file = tmp_path / name
    file.write_text(text, encoding=encoding)
    return file


def rows(table):
    return [
        (table.relative(row), table.identity[row], bool(table.forged[row]), table.split[row])
        for row in range(len(table))
    ]


EXPECTED = [
    ("a/1.png", "Zoë", False, "train"),
    ("a/2.png", "Zoë", True, "val"),
    ("b.png", "7", False, ""),
]


@pytest.mark.parametrize("encoding", ["utf-8", "utf-8-sig"])
@pytest.mark.parametrize("delimiter", [",", ";", "\t", ", "])
def test_csv_with_all_columns_in_any_order(tmp_path, encoding, delimiter):
    lines = [
        ("Split", "identity", "note", "path", "role"),
        ("train", "Zoë", "x", "a/1.png", "genuine"),
        ("validation", "Zoë", "", "./a/2.png", "Forged"),
        ("", "7", "", str(tmp_path / "b.png"), ""),
    ]
    text = "\n".join(delimiter.join(line) for line in lines)
    table = read_table(write(tmp_path, text, encoding=encoding))
    assert rows(table) == EXPECTED
    assert table.path[0] == str(tmp_path / "a/1.png")
    assert table.root == tmp_path


def test_parquet_gives_the_same(tmp_path):
    columns = {
        "path": ["a/1.png", "a/2.png", "b.png"],
        "identity": pa.array(["Zoë", "Zoë", "7"]).dictionary_encode(),
        "role": ["genuine", "forged", None],
        "split": ["train", "valid", None],
        "score": [1.0, 2.0, 3.0],
    }
    pq.write_table(pa.table(columns), tmp_path / "list.parquet")
    assert rows(read_table(tmp_path / "list.parquet")) == EXPECTED


def test_identities_in_parquet_may_be_numbers(tmp_path):
    file = tmp_path / "list.parquet"
    pq.write_table(pa.table({"path": ["a", "b"], "identity": [12, 7]}), file)
    assert read_manifest(file).identity.tolist() == ["12", "7"]
    pq.write_table(pa.table({"path": ["a", "b"], "identity": [float("nan"), None]}), file)
    with pytest.raises(DataError, match="row 1: no identity\n  row 2: no identity"):
        read_manifest(file)


def test_two_columns_are_enough_and_quotes_hold_commas(tmp_path):
    table = read_manifest(write(tmp_path, 'path,identity\n"a, b.png","Doe, Jane"\nc.png,d\n\n'))
    assert rows(table) == [("a, b.png", "Doe, Jane", False, ""), ("c.png", "d", False, "")]


def test_blanks_around_an_identity_are_stripped(tmp_path):
    table = read_manifest(write(tmp_path, "path,identity\na.png,anna \nb.png, anna\nc.png,anna\n"))
    assert table.identity.tolist() == ["anna"] * 3


def test_a_root_replaces_the_manifests_folder(tmp_path):
    file = write(tmp_path, "path,identity\na.png,x\n")
    table = read_table(file, root=tmp_path / "elsewhere")
    assert table.path.tolist() == [str(tmp_path / "elsewhere/a.png")]
    assert table.relative(0) == "a.png"


def test_a_row_that_is_repeated_counts_once(tmp_path):
    table = read_manifest(
        write(tmp_path, "path,identity\na.png,x\n./a.png,x\nb/../b.png,y\nb.png,y\n")
    )
    assert table.path.tolist() == [str(tmp_path / name) for name in ("a.png", "b.png")]


def test_invalid_rows_are_reported_together(tmp_path):
    text = "path,identity,role,split\na,x,,\n,x,,\nb,,fake,dev\na,y,,\nb,x,genuine,train\n"
    with pytest.raises(DataError) as caught:
        read_manifest(write(tmp_path, text))
    assert str(caught.value).splitlines()[1:] == [
        "  line 3: no path",
        "  line 4: no identity",
        "  line 4: role is genuine, forged or empty, found 'fake'",
        "  line 4: split is train, val, test or empty, found 'dev'",
        "  line 5: contradicts line 2 about 'a'",
    ]


def test_the_first_ten_problems_are_reported(tmp_path):
    with pytest.raises(DataError) as caught:
        read_manifest(write(tmp_path, "path,identity\n" + ",x\n" * 25))
    lines = str(caught.value).splitlines()
    assert len(lines) == 12
    assert lines[-1] == "  and 15 more"


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("", "no column path and no column identity, found nothing"),
        ("file,identity\na,b\n", "no column path, found file, identity: it needs path and"),
        ("path,identity\n", "has no rows"),
        ("path,identity\na,b,c\n", "3 cells in line 2 and 2 columns"),
        ('path,identity\n"a,b\n', "cannot read the manifest"),
    ],
)
def test_invalid_manifests(tmp_path, text, message):
    with pytest.raises(DataError, match=message):
        read_manifest(write(tmp_path, text))


def test_other_encodings_and_damaged_files(tmp_path):
    file = write(tmp_path, "path,identity\na.png,Zoë\n", encoding="latin-1")
    with pytest.raises(DataError, match="is not UTF-8"):
        read_manifest(file)
    with pytest.raises(DataError, match="cannot read the manifest"):
        read_manifest(write(tmp_path, "no parquet", name="list.parquet"))
    with pytest.raises(DataError, match="cannot read the manifest"):
        read_manifest(tmp_path / "gone.csv")


def test_a_parquet_file_without_required_columns(tmp_path):
    pq.write_table(pa.table({"path": ["a"]}), tmp_path / "list.parquet")
    with pytest.raises(DataError, match="no column identity, found path"):
        read_manifest(tmp_path / "list.parquet")


@pytest.mark.parametrize(
    ("split", "fractions", "message"),
    [
        ("test", (0.7, 0.15, 0.15), "its pictures are marked test: mark some as train"),
        ("", (0, 0, 1), r"data.fractions is \[0.0, 0.0, 1.0\]: the first number is the share"),
    ],
)
def test_no_pictures_for_training(tmp_path, split, fractions, message):
    lines = [f"{name}/{number}.png,{name},{split}" for name in "abcdef" for number in range(4)]
    table = read_manifest(write(tmp_path, "path,identity,split\n" + "\n".join(lines)))
    settings = Settings.model_validate({"data": {"fractions": fractions}})
    with pytest.raises(DataError, match=f"has no pictures for training, since {message}"):
        split_table(table, settings)


@pytest.mark.parametrize("fractions", [(-1, 1, 1), (float("nan"), 1, 1), (0, 0, 0), (1, 1)])
def test_fractions_that_are_none(tmp_path, fractions):
    table = read_manifest(write(tmp_path, "path,identity\na.png,a\nb.png,b\n"))
    with pytest.raises(ValueError, match=r"fractions|greater than or equal to 0|finite|required"):
        split_table(table, Settings.model_validate({"data": {"fractions": fractions}}))


def test_paths_of_windows(tmp_path):
    (tmp_path / "a").mkdir()
    (tmp_path / "a" / "1.png").touch()
    table = read_manifest(write(tmp_path, "path,identity\na\\1.png,x\na/1.png,x\n"))
    assert table.path.tolist() == [str(tmp_path / "a/1.png")]


def test_columns_of_parquet_are_read_as_those_of_csv(tmp_path):
    file = tmp_path / "list.parquet"
    pq.write_table(pa.table({" Path": ["a"], "IDENTITY": ["x"], "Camera": ["north"]}), file)
    table = read_manifest(file)
    assert rows(table) == [("a", "x", False, "")]
    assert table.metadata.tolist() == [{"Camera": "north"}]
    pq.write_table(pa.table([["a"], ["b"], ["x"]], names=["path", "Path", "identity"]), file)
    with pytest.raises(DataError, match="the column path twice"):
        read_manifest(file)


def test_parquet_that_claims_more_than_it_holds(tmp_path):
    file = tmp_path / "list.parquet"

    def refused(columns, message, **options):
        pq.write_table(pa.table(columns), file, **options)
        assert file.stat().st_size < 200_000
        with pytest.raises(DataError, match=message):
            read_manifest(file)

    nothing = pa.nulls(3_000_000, pa.string())
    refused({"path": nothing, "identity": nothing}, "claims 3,000,000 rows in .* do not fit")
    long = ["x" * 10_000_000] * 20
    refused({"path": long, "identity": long}, "200,000,.* when unpacked",
            compression="zstd", use_dictionary=False)  # fmt: skip
    refused({"path": long, "identity": long}, "a cell of 10,000,000 bytes in the column path",
            compression="zstd")  # fmt: skip
    refused({"path": ["a\0"], "identity": ["x"]}, "row 1: path holds a NUL")
    broken = pa.array([b"\xff"], pa.binary()).view(pa.string())
    refused({"path": broken, "identity": ["x"]}, "cannot read the manifest")


def test_problems_are_counted_and_shown_on_one_line_each(tmp_path):
    text = 'path,identity,role\na,x,"\x1b[31m\nfake"\n' + ",x,\n" * 5000
    with pytest.raises(DataError) as caught:
        read_manifest(write(tmp_path, text))
    assert len(str(caught.value).splitlines()) == 12
    assert "found '\\x1b[31m\\nfake'" in str(caught.value)
    assert str(caught.value).endswith("and 4991 more")


def test_further_columns_are_metadata_of_their_rows(tmp_path):
    text = "path,identity,Camera,year\nb.png,7,,2021\na/1.png,Zoë,north,2020\n"
    table = read_manifest(write(tmp_path, text))
    assert [table.relative(row) for row in range(2)] == ["a/1.png", "b.png"]
    assert table.metadata.tolist() == [{"camera": "north", "year": "2020"}, {"year": "2021"}]
    assert table.select([1]).metadata.tolist() == [{"year": "2021"}]
    assert table.of_split("train").metadata.tolist() == []
    assert read_manifest(write(tmp_path, "path,identity\na,b\n")).metadata is None


def test_metadata_of_parquet_keeps_numbers_and_leaves_vectors_out(tmp_path):
    columns = {
        "path": ["a.png", "b.png"], "identity": ["x", "y"], "year": [2020, None],
        "share": [0.5, float("nan")], "ok": [True, False], "embedding": [[1.0], [2.0]],
    }  # fmt: skip
    pq.write_table(pa.table(columns), tmp_path / "list.parquet")
    table = read_manifest(tmp_path / "list.parquet")
    assert table.metadata.tolist() == [{"year": 2020, "share": 0.5, "ok": True}, {"ok": False}]


def test_metadata_changes_no_fingerprint(tmp_path):
    plain = read_manifest(write(tmp_path, "path,identity\na.png,x\n"))
    more = read_manifest(write(tmp_path, "path,identity,camera\na.png,x,north\n"))
    assert more.metadata is not None
    assert plain.fingerprint() == more.fingerprint()
