"""The published numbers: spot values typed by hand, strict loading, and a planted change that is caught."""

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from places import ROOT

from ifap.errors import ResultsError
from ifap.study import paths
from ifap.study.paper import published

CLAIMS = ROOT / paths.published_claims()
HTML = (ROOT / paths.published_tables()).read_text("utf-8")

SPOT_VALUES = {
    "T1/CIFAR-10/DenseNet-121/Baseline/metric": "94.2",
    "T1/CIFAR-100/DenseNet-121/LTH/metric": "65.1",
    "T1/ImageNet/DenseNet-121/Ours/metric": "74.1",
    "T1/CIFAR-10/ResNet-50/PDP/metric": "95.4",
    "T1/CIFAR-100/ResNet-50/RigL/metric": "77.2",
    "T1/ImageNet/ViT-Base/16/Baseline/metric": "81.1",
    "T1/CIFAR-10/ViT-Base/16/GraNet/metric": "96.3",
    "T1/QQP/BERT/Baseline/metric": "91.2",
    "T1/SST-2/BERT/RFP/metric": "91.5",
    "T1/MNLI-m/GPT-2/MvP/metric": "79.2",
    "T1/SST-2/T5/Ours/metric": "93.9",
    "T2/CIFAR-10/DenseNet-121/gmacs_base": "2.8",
    "T2/CIFAR-10/DenseNet-121/metric_base": "94.20",
    "T2/CIFAR-10/DenseNet-121/metric_delta": "-0.18",
    "T2/CIFAR-10/ResNet-50/gmacs_delta": "-71",
    "T2/CIFAR-100/EfficientNet V2-S/metric_pruned": "87.13",
    "T2/Fashion MNIST/ConvNeXt-Small/metric_delta": "-0.90",
    "T2/Fashion MNIST/ResNet-50/gmacs_pruned": "1.1",
    "T2/ImageNet/ViT-Base/16/metric_base": "80.17",
    "T2/ImageNet/MobileNetV3-L/gmacs_delta": "-53",
    "T2/Stanford Cars/ConvNeXt-Small/metric_pruned": "81.21",
    "T2/iNaturalist/EfficientNet-B4/metric_delta": "-1.28",
    "T2/Food101/VGG19 (BN)/gmacs_pruned": "6.3",
    "T2/Food101/MobileNetV3-L/metric_delta": "-2.30",
    "T2/Oxford-IIIT Pet/VGG19 (BN)/metric_pruned": "85.20",
    "T2/FER2013/ViT-Base/16/metric_delta": "-1.76",
    "T2/FER2013/ShuffleNetV2 x2.0/gmacs_base": "0.5",
    "T3/CIFAR-100/ResNet-50/metric_delta": "-1.8",
    "T3/Food101/EfficientNet-B4/metric_base": "91.2",
    "T3/Pascal VOC/Faster R-CNN (ResNet-50)/gmacs_base": "150.2",
    "T3/Objects365/DETR (ViT-Base/16)/metric_pruned": "45.3",
    "T3/Pascal VOC/FCN (VGG19-BN)/gmacs_pruned": "75.1",
    "T3/ADE20K/SegFormer (ViT-Base/16)/gmacs_delta": "-66",
    "T3/COCO 2017/U-Net (ResNet-50)/metric_base": "44.8",
    "T3/CIFAR-10/DCGAN/metric_delta": "+6.9",
    "T3/COCO 2017/Stable Diffusion v1.5/metric_delta": "+8.9",
    "T4/Cifar-10/ResNet-50/1/params": "23.53",
    "T4/Cifar-10/ResNet-50/1/top5": "99.86",
    "T4/Cifar-10/ResNet-50/15/gmacs": "1.98",
    "T4/Cifar-10/ResNet-50/23/gmacs": "1.49",
    "T4/Cifar-10/ResNet-50/30/params": "7.57",
    "T4/Cifar-10/ResNet-50/30/top1": "97.63",
    "T5/SST-2/BERT Base/params_pruned": "35",
    "T5/CoLA/BERT Base/metric_delta": "-9.9",
    "T5/STS-B/T5 Base/metric_pruned": "87.01",
    "T5/ReCoRD/T5 Base/params_delta": "-64",
    "T5/QQP/GPT-2 Base/metric_base": "90.04",
    "T5/SST-2/GPT-2 Base/params_base": "117",
    "T5/ReCoRD/GPT-2 Base/params_delta": "-64",
}
UNITS = {
    "T1/QQP/BERT/Ours/metric": "%",
    "T2/CIFAR-10/ResNet-50/metric_base": "%",
    "T3/Food101/ResNet-50/metric_base": "%",
    "T3/Pascal VOC/DETR (ViT-Base/16)/metric_base": "mAP",
    "T3/Pascal VOC/FCN (VGG19-BN)/metric_pruned": "mIoU",
    "T3/COCO-Stuff/VQGAN/metric_base": "FID",
    "T3/COCO-Stuff/VQGAN/metric_delta": "%",
    "T4/Cifar-10/ResNet-50/2/gmacs": "GMACs",
    "T5/CoLA/T5 Base/metric_base": "MCC",
    "T5/STS-B/T5 Base/metric_pruned": "Pearson",
    "T5/MRPC/T5 Base/params_base": "M",
}


@pytest.fixture(scope="module")
def claims():
    return published.load_claims(CLAIMS)


@pytest.fixture(scope="module")
def fresh():
    return published.transcribe(HTML)


@pytest.mark.parametrize(("claim", "value"), SPOT_VALUES.items())
def test_spot_value(claims, claim, value):
    found = claims[claims["id"] == claim]
    assert list(found["value"]) == [value]
    assert list(found["number"]) == [float(value)]


@pytest.mark.parametrize(("claim", "unit"), UNITS.items())
def test_unit(claims, claim, unit):
    assert list(claims.loc[claims["id"] == claim, "unit"]) == [unit]


def test_counts_and_unique_ids(claims):
    assert dict(claims.groupby("table").size()) == {1: 108, 2: 540, 3: 258, 4: 120, 5: 180}
    assert len(claims) == 1206
    assert claims["id"].is_unique


def test_columns_have_types(claims):
    assert str(claims["table"].dtype) == "int64"
    assert str(claims["step"].dtype) == "Int64"
    assert str(claims["number"].dtype) == "float64"
    assert (claims["method"] != "").equals(claims["table"] == 1)
    assert claims["step"].notna().equals(claims["table"] == 4)


def test_every_cell_has_all_its_quantities(claims):
    for table, quantities in published.QUANTITIES.items():
        of_table = claims[claims["table"] == table]
        cells = of_table.groupby(["dataset", "model", "method", "step"], dropna=False)["quantity"].agg(tuple)
        assert set(cells) == {quantities}


def test_committed_file_is_the_fresh_transcription(fresh):
    assert CLAIMS.read_text("utf-8") == published.claims_table(fresh)
    assert published.first_change(CLAIMS, fresh) is None


@settings(max_examples=40, deadline=None)
@given(st.data())
def test_any_changed_digit_is_caught(tmp_path_factory, fresh, data):
    text = CLAIMS.read_text("utf-8")
    lines = text.splitlines()
    row = data.draw(st.integers(1, len(lines) - 1))
    places = [i for i in range(lines[row].rindex(",") + 1, len(lines[row])) if lines[row][i].isdigit()]
    place = data.draw(st.sampled_from(places))
    digit = data.draw(st.sampled_from([d for d in "0123456789" if d != lines[row][place]]))
    lines[row] = lines[row][:place] + digit + lines[row][place + 1 :]
    changed = tmp_path_factory.mktemp("claims") / "claims.csv"
    changed.write_text("\n".join(lines) + "\n", "utf-8")
    assert f"row {row + 1}, column value" in published.first_change(changed, fresh)


def test_first_change_sees_a_missing_row(tmp_path, fresh):
    short = tmp_path / "claims.csv"
    short.write_text("\n".join(CLAIMS.read_text("utf-8").splitlines()[:-1]) + "\n", "utf-8")
    assert "1205 rows" in published.first_change(short, fresh)


def with_row(row, line):
    lines = CLAIMS.read_text("utf-8").splitlines()
    lines[row - 1] = line
    return "\n".join(lines) + "\n"


FIRST = "1,CIFAR-10,DenseNet-121,Baseline,,metric,%,94.2"


@pytest.mark.parametrize(
    ("content", "message"),
    [
        ("", "row 1: the columns must be table,dataset"),
        (with_row(1, "table,dataset"), "row 1: the columns must be table,dataset"),
        (with_row(2, "1,CIFAR-10"), "row 2: 2 columns, not 8"),
        (with_row(2, FIRST + ",x"), "row 2: 9 columns, not 8"),
        (with_row(2, FIRST.replace("94.2", "94,2")), "row 2: 9 columns, not 8"),
        (with_row(2, FIRST.replace("94.2", "n/a")), "row 2, column value: 'n/a'"),
        (with_row(2, FIRST.replace("94.2", "nan")), "row 2, column value: 'nan'"),
        (with_row(2, FIRST.replace("94.2", "1e5")), "row 2, column value: '1e5'"),
        (with_row(2, FIRST.replace("94.2", "")), "row 2, column value: ''"),
        (with_row(2, FIRST.replace("94.2", "\u0669\u0664.2")), "row 2, column value"),
        (with_row(2, "6" + FIRST[1:]), "row 2, column table: '6'"),
        (with_row(2, "one" + FIRST[1:]), "row 2, column table: 'one'"),
        (with_row(2, FIRST.replace("CIFAR-10", "")), "row 2, column dataset: ''"),
        (with_row(2, FIRST.replace("CIFAR-10", "`rm`")), "row 2, column dataset: '`rm`'"),
        (with_row(2, FIRST.replace("metric", "top1")), "row 2, column quantity: table 1 has no 'top1'; valid: metric"),
        (with_row(2, FIRST.replace("%", "M")), "row 2, column unit: metric is not in 'M'"),
        (with_row(2, FIRST.replace("Baseline", "")), "row 2, column method: filled in in table 1"),
        (with_row(2, FIRST.replace("Baseline,", "Baseline,3")), "row 2, column step: filled in in table 4"),
        (with_row(3, FIRST), "row 3 repeats row 2"),
        (with_row(2, '"' + FIRST), "cannot be read as CSV"),
        ("\n".join(CLAIMS.read_text("utf-8").splitlines()[:-1]), "column table: 179 rows of table 5, not 180"),
    ],
)
def test_loading_names_file_row_and_column(tmp_path, content, message):
    path = tmp_path / "claims.csv"
    path.write_text(content, "utf-8")
    with pytest.raises(ResultsError) as raised:
        published.load_claims(path)
    assert str(path) in str(raised.value)
    assert message in str(raised.value)
    assert "\n" not in str(raised.value)


def test_unreadable_file(tmp_path):
    path = tmp_path / "claims.csv"
    with pytest.raises(ResultsError, match="file not found"):
        published.load_claims(path)
    path.write_bytes(b"\xff\xfe\x00")
    with pytest.raises(ResultsError, match="cannot be read as CSV"):
        published.load_claims(path)


@pytest.mark.parametrize(
    ("old", "new", "message"),
    [
        ("<td>PDP</td>\n      <td>93.0</td>", "<td>PDP</td>", "Table I: row 3 has 9 columns, not 10"),
        ("<td>93.0</td>", "<td>93.O</td>", "Table I: column value: '93.O'"),
        ("<tr><td>30</td><td>7.57</td><td>1.19</td><td>97.63</td><td>99.81</td></tr>", "", "Table IV has 116 values"),
        ("Pruning Step", "Step", "Table IV: the headings are"),
        ("Table V.", "Table VI.", "table 5 of the page is not Table V"),
        ("applied to ResNet-50 on Cifar-10 over", "applied over", "no network and data set in the caption"),
        (
            "<td>MRPC</td><td>F1</td>",
            "<td>MRPC</td><td>BLEU</td>",
            "Table V: column unit: metric_base is not in 'BLEU'",
        ),
        ("</thead>", "</thead><table></table>", "10 tables, not 5"),
        ("<td>MRPC</td>", "<td>SST-2</td>", "repeats row"),
    ],
)
def test_transcription_fails_on_a_changed_page(old, new, message):
    assert old in HTML
    with pytest.raises(ResultsError) as raised:
        published.transcribe(HTML.replace(old, new))
    assert message in str(raised.value)


@pytest.mark.parametrize("html", ["<td>1</td>", "<table><td>1</td></table>", "<table><tr><td colspan='x'>1</td>", ""])
def test_transcription_of_no_table(html):
    with pytest.raises(ResultsError):
        published.transcribe(html)


def test_stage_writes_and_checks(tmp_path, capsys):
    from stages import transcribe

    source, out = ROOT / paths.published_tables(), tmp_path / "claims.csv"
    transcribe.main(source, out)
    assert capsys.readouterr().out == f"wrote {out}: 1206 published values\n"
    assert out.read_bytes() == CLAIMS.read_bytes()
    out.write_text(out.read_text("utf-8").replace(",94.03\n", ",94.30\n"), "utf-8")
    with pytest.raises(ResultsError) as raised:
        transcribe.main(source, out, check=True)
    assert str(raised.value) == (
        f"{out}: row 114, column value: '94.30', but the published table has '94.03' "
        "(T2/CIFAR-10/DenseNet-121/metric_pruned)"
    )
    with pytest.raises(ResultsError, match="cannot be read"):
        transcribe.main(tmp_path / "none.html", out)
