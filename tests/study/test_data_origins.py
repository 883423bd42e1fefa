"""Where data are looked for, what is said when they are not there, and downloads from a server of this test."""

from __future__ import annotations

import functools
import hashlib
import http.server
import io
import subprocess
import sys
import tarfile
import threading
import zipfile
from pathlib import Path

import pytest

from ifap.errors import ConfigError, ResultsError
from ifap.study.config.data import DatasetOptions
from ifap.study.data import DATASETS
from ifap.study.data import origins as sources
from ifap.study.data.download import Archive, download, unpack
from ifap.study.data.origins import PLACES, Download, Manual, Place, SystemPackage, home, obtain, why_absent

OPTIONS = DatasetOptions(split_seed=0, validation=0.1)
DOWNLOAD = OPTIONS.model_copy(update={"download": True})


@pytest.fixture(autouse=True)
def no_system_package(monkeypatch, tmp_path):
    """Hide what happens to be installed on this machine."""
    for name, place in PLACES.items():
        hidden = tuple(
            SystemPackage(str(tmp_path / "system"), source.package) if isinstance(source, SystemPackage) else source
            for source in place.sources
        )
        monkeypatch.setitem(PLACES, name, Place(**{**vars(place), "sources": hidden}))


# --- looking --------------------------------------------------------------------------------------


def test_what_is_only_ever_generated_says_so(tmp_path):
    wanted = "data absent: subject-verb agreement is only ever generated: set datasets.agreement.synthetic"
    assert why_absent("agreement", OPTIONS, tmp_path) == wanted


@pytest.mark.parametrize("name", sorted(set(PLACES) - {"digits", "agreement"}))
def test_absent_data_are_said_to_be_absent_and_what_to_do_is_said_in_one_line(tmp_path, name):
    reason = why_absent(name, OPTIONS, tmp_path)
    assert reason.startswith(f"data absent: put {PLACES[name].layout} at data/raw/{name}")
    assert "\n" not in reason
    offered = bool(PLACES[name].offers())
    assert (f"or set datasets.{name}.download: true" in reason) == offered
    assert (why_absent(name, DOWNLOAD, tmp_path) is None) == offered
    manual = [source for source in PLACES[name].sources if isinstance(source, Manual)]
    assert all(source.steps in reason for source in manual)
    assert offered or manual
    with pytest.raises(ResultsError) as caught:
        obtain(name, OPTIONS, tmp_path)
    assert str(caught.value) == f"{name}: {reason}"
    assert not list(tmp_path.iterdir())  # looking leaves nothing behind


@pytest.mark.parametrize("name", sorted(set(PLACES) - {"digits", "agreement", "aerial_trees"}))
def test_present_data_are_found_at_their_place_and_where_the_options_say(tmp_path, name):
    folder = tmp_path / "data" / "raw" / name
    DATASETS.get(name).twin(folder, 2, 2, 0)
    assert "holds synthetic data (SYNTHETIC.txt)" in why_absent(name, OPTIONS, tmp_path)
    next(folder.rglob("SYNTHETIC.txt")).unlink()
    assert why_absent(name, OPTIONS, tmp_path) is None
    assert obtain(name, OPTIONS, tmp_path) == (folder, f"{PLACES[name].title} in data/raw/{name}")
    moved = folder.rename(tmp_path / "moved")
    assert why_absent(name, OPTIONS, tmp_path) is not None
    for root in ("moved", str(moved)):
        options = OPTIONS.model_copy(update={"root": root})
        assert obtain(name, options, tmp_path)[0] == moved
    (moved / "gone").mkdir()
    options = OPTIONS.model_copy(update={"root": "moved/gone"})
    assert f"put {PLACES[name].layout} at moved/gone" in why_absent(name, options, tmp_path)


def test_incomplete_data_are_said_to_be_incomplete(tmp_path):
    folder = tmp_path / "data" / "raw" / "cifar10"
    DATASETS.get("cifar10").twin(folder, 2, 5, 0)
    (folder / "cifar-10-batches-py" / "data_batch_4").unlink()
    reason = why_absent("cifar10", OPTIONS, tmp_path)
    assert reason.startswith(
        f"data incomplete: {folder}/cifar-10-batches-py lacks data_batch_4 or data_batch_4.png: put CIFAR-10"
    )
    with pytest.raises(ResultsError, match=r"cifar-10-batches-py lacks data_batch_4 or data_batch_4.png: put CIFAR-10"):
        home("cifar10", folder)


def test_data_of_a_system_package_are_second_choice(tmp_path):
    DATASETS.get("fashion_mnist").twin(tmp_path / "system", 2, 2, 0)
    folder, source = obtain("fashion_mnist", OPTIONS, tmp_path)
    assert folder == tmp_path / "system"
    assert source == "Fashion MNIST of the system package dataset-fashion-mnist"
    own = tmp_path / "data" / "raw" / "fashion_mnist"
    DATASETS.get("fashion_mnist").twin(own, 2, 2, 0)
    (own / "SYNTHETIC.txt").unlink()
    assert obtain("fashion_mnist", OPTIONS, tmp_path)[0] == own
    named = OPTIONS.model_copy(update={"root": "nowhere"})
    assert why_absent("fashion_mnist", named, tmp_path) is not None


def test_what_needs_no_folder_is_always_there(tmp_path):
    assert why_absent("digits", OPTIONS, tmp_path) is None
    assert obtain("digits", OPTIONS, tmp_path)[1].startswith("comes with scikit-learn")
    synthetic = DatasetOptions.model_validate(
        {"split_seed": 0, "validation": 0.1, "synthetic": {"classes": 2, "per_class": 4, "seed": 0}}
    )
    assert why_absent("imagenet", synthetic, tmp_path) is None


def test_every_image_set_is_in_the_table_and_takes_its_words_from_it():
    for name in PLACES:
        spec = DATASETS.get(name)
        place = sources.PLACES[name]
        assert (spec.place.title, spec.place.layout, spec.place.licence) == (place.title, place.layout, place.licence)
    with pytest.raises(ConfigError, match="did you mean 'cifar10'"):
        why_absent("cifar11", OPTIONS)


def test_downloads_have_checksums_and_manual_ones_say_where_to_go():
    for place in PLACES.values():
        for source in place.sources:
            if isinstance(source, Download):
                assert all(len(archive.checksum) == len("md5:") + 32 for archive in source.archives)
                assert all(archive.size > 1000 for archive in source.archives)
            if isinstance(source, Manual):
                assert "https://" in source.steps


def test_looking_for_data_loads_neither_torch_nor_torchvision():
    modules = "ifap.study.data.origins, ifap.study.paper.vocabulary"
    code = f"import sys, {modules}; sys.exit(bool({{'torch', 'numpy'}} & set(sys.modules)))"
    assert subprocess.run([sys.executable, "-c", code]).returncode == 0


# --- downloading ----------------------------------------------------------------------------------


@pytest.fixture
def server(tmp_path):
    """Serve a folder and yield it with its address."""
    folder = tmp_path / "served"
    folder.mkdir()

    class Quiet(http.server.SimpleHTTPRequestHandler):
        def log_message(self, *args):
            pass

    with http.server.ThreadingHTTPServer(("127.0.0.1", 0), functools.partial(Quiet, directory=folder)) as running:
        thread = threading.Thread(target=running.serve_forever)
        thread.start()
        yield folder, f"http://127.0.0.1:{running.server_port}"
        running.shutdown()
        thread.join()


def packed(members, kind="gz"):
    """Return a tar archive of (name, content or TarInfo fields)."""
    stream = io.BytesIO()
    with tarfile.open(fileobj=stream, mode=f"w:{kind}") as archive:
        for name, content in members.items():
            member = tarfile.TarInfo(name)
            if isinstance(content, bytes):
                member.size = len(content)
                archive.addfile(member, io.BytesIO(content))
            else:
                for key, value in content.items():
                    setattr(member, key, value)
                archive.addfile(member)
    return stream.getvalue()


def offer(folder, address, name, content, unpack=True, checksum=None):
    (folder / name).write_bytes(content)
    checksum = checksum or f"md5:{hashlib.md5(content).hexdigest()}"
    return Archive(f"{address}/{name}", checksum, len(content), unpack)


def test_archives_are_fetched_unpacked_and_put_in_place(server, tmp_path):
    served, address = server
    first = offer(served, address, "a.tar.gz", packed({"images/1.jpg": b"one", "images/2.jpg": b"two"}))
    content = packed({"lists/all.txt": b"1\n2\n"}, "xz")
    second = offer(served, address, "b.tar", content, checksum=f"sha256:{hashlib.sha256(content).hexdigest()}")
    third = offer(served, address, "c.gz", b"as it is", unpack=False)
    folder = tmp_path / "raw" / "pets"
    download([first, second, third], folder)
    found = {str(path.relative_to(folder)): path.read_bytes() for path in folder.rglob("*") if path.is_file()}
    assert found == {"images/1.jpg": b"one", "images/2.jpg": b"two", "lists/all.txt": b"1\n2\n", "c.gz": b"as it is"}
    assert [path.name for path in folder.parent.iterdir()] == ["pets"]


def test_a_data_set_is_downloaded_only_if_asked_and_only_once(server, tmp_path, monkeypatch):
    served, address = server
    DATASETS.get("cifar10").twin(tmp_path / "twin", 2, 5, 0)
    below = tmp_path / "twin" / "cifar-10-batches-py"
    files = {f"cifar-10-batches-py/{path.name}": path.read_bytes() for path in below.iterdir() if path.suffix != ".txt"}
    archive = offer(served, address, "cifar.tar.gz", packed(files))
    monkeypatch.setitem(PLACES, "cifar10", Place(**{**vars(PLACES["cifar10"]), "sources": (Download((archive,)),)}))
    with pytest.raises(ResultsError, match="data absent"):
        obtain("cifar10", OPTIONS, tmp_path)
    assert not (tmp_path / "data").exists()
    folder, source = obtain("cifar10", DOWNLOAD, tmp_path)
    assert folder == tmp_path / "data" / "raw" / "cifar10"
    assert source == "CIFAR-10 in data/raw/cifar10"
    assert {f"cifar-10-batches-py/{path.name}": path.read_bytes() for path in folder.glob("*/*")} == files
    (served / "cifar.tar.gz").unlink()
    assert obtain("cifar10", DOWNLOAD, tmp_path) == obtain("cifar10", OPTIONS, tmp_path) == (folder, source)


def test_an_archive_without_the_data_is_noticed(server, tmp_path, monkeypatch):
    archive = offer(*server, "cifar.tar.gz", packed({"cifar-10-batches-py/test_batch": b"x"}))
    monkeypatch.setitem(PLACES, "cifar10", Place(**{**vars(PLACES["cifar10"]), "sources": (Download((archive,)),)}))
    with pytest.raises(ResultsError, match=r"cifar10: downloaded, but data incomplete: .* lacks data_batch_1"):
        obtain("cifar10", DOWNLOAD, tmp_path)


def nothing_left(folder):
    return not folder.exists() or not list(folder.iterdir())


@pytest.mark.parametrize("kind", ["md5", "sha256"])
def test_a_wrong_checksum_is_named_and_the_file_removed(server, tmp_path, kind):
    content = packed({"images/1.jpg": b"one"})
    wanted = hashlib.new(kind, content).hexdigest()
    for wrong in (content[:-20], content + b"x", b"<html>moved</html>"):
        archive = offer(*server, "a.tar.gz", wrong, checksum=f"{kind}:{wanted}")
        found = hashlib.new(kind, wrong).hexdigest()
        with pytest.raises(ResultsError, match=rf"a\.tar\.gz is not the published file: {kind} {found} of .*{wanted}"):
            download([archive], tmp_path / "raw" / "set")
        assert nothing_left(tmp_path / "raw")


def test_a_second_archive_that_fails_leaves_nothing_of_the_first(server, tmp_path):
    good = offer(*server, "a.tar.gz", packed({"images/1.jpg": b"one"}))
    gone = Archive(f"{server[1]}/gone.tar.gz", "md5:" + "0" * 32, 10)
    with pytest.raises(ResultsError, match=r"gone\.tar\.gz cannot be fetched \(HTTP Error 404"):
        download([good, gone], tmp_path / "raw" / "set")
    assert nothing_left(tmp_path / "raw")


def test_a_server_that_breaks_off_or_is_not_there_is_one_clear_error(tmp_path):
    class Broken(http.server.BaseHTTPRequestHandler):
        def do_GET(self):
            self.send_response(200)
            self.send_header("Content-Length", "1000")
            self.end_headers()
            self.wfile.write(b"x" * 10)

        def log_message(self, *args):
            pass

    with http.server.HTTPServer(("127.0.0.1", 0), Broken) as running:
        thread = threading.Thread(target=running.handle_request)
        thread.start()
        address = f"http://127.0.0.1:{running.server_port}"
        with pytest.raises(ResultsError, match=r"a\.tar\.gz (cannot be fetched|is not the published .* 10 bytes)"):
            download([Archive(f"{address}/a.tar.gz", "md5:" + "0" * 32, 10)], tmp_path / "raw" / "set")
        thread.join()
    with pytest.raises(ResultsError, match=r"a\.tar\.gz cannot be fetched \(.*refused"):
        download([Archive(f"{address}/a.tar.gz", "md5:" + "0" * 32, 10)], tmp_path / "raw" / "set")
    assert nothing_left(tmp_path / "raw")


@pytest.mark.parametrize(
    ("members", "problem"),
    [
        ({"ok.txt": b"x", "../evil.txt": b"x"}, "member '../evil.txt' would leave the folder"),
        ({"a/../../evil.txt": b"x"}, "member 'a/../../evil.txt' would leave the folder"),
        ({"/evil.txt": b"x"}, "member '/evil.txt' would leave the folder"),
        ({"link": {"type": tarfile.SYMTYPE, "linkname": "/etc"}, "link/evil.txt": b"x"}, "member 'link' is neither"),
        ({"link": {"type": tarfile.LNKTYPE, "linkname": "../evil.txt"}}, "member 'link' is neither a file nor"),
        ({"pipe": {"type": tarfile.FIFOTYPE}}, "member 'pipe' is neither a file nor a folder"),
        ({"disk": {"type": tarfile.BLKTYPE}}, "member 'disk' is neither a file nor a folder"),
    ],
)
def test_members_that_would_leave_the_folder_are_refused(server, tmp_path, members, problem):
    archive = offer(*server, "a.tar.gz", packed(members))
    with pytest.raises(ResultsError) as caught:
        download([archive], tmp_path / "raw" / "set")
    assert f"a.tar.gz cannot be unpacked ({problem}" in str(caught.value)
    assert nothing_left(tmp_path / "raw")
    assert not list(tmp_path.rglob("evil.txt"))


def test_zip_archives_are_unpacked_under_the_same_rule(tmp_path):
    def zipped(name):
        with zipfile.ZipFile(tmp_path / "a.zip", "w") as archive:
            archive.writestr(name, "x")
        return tmp_path / "a.zip"

    unpack(zipped("images/1.jpg"), tmp_path / "out")
    assert (tmp_path / "out" / "images" / "1.jpg").read_text() == "x"
    for name in ("../evil.txt", "/evil.txt", "a\\..\\..\\evil.txt"):
        with pytest.raises(ResultsError, match=r"a\.zip cannot be unpacked \(member '.*evil\.txt' would leave"):
            unpack(zipped(name), tmp_path / "out")
    assert not list(tmp_path.rglob("*evil.txt"))


@pytest.mark.parametrize("content", [packed({"a.jpg": b"one" * 9999})[:-30], b"", b"no archive at all"])
def test_a_damaged_archive_leaves_nothing(server, tmp_path, content):
    archive = offer(*server, "a.tar.gz", content)
    with pytest.raises(ResultsError, match=r"a\.tar\.gz cannot be unpacked"):
        download([archive], tmp_path / "raw" / "set")
    assert nothing_left(tmp_path / "raw")


def test_what_is_in_the_way_is_named_and_kept(server, tmp_path):
    folder = tmp_path / "raw" / "set"
    (folder / "images").mkdir(parents=True)
    (folder / "images" / "mine.jpg").write_text("mine")
    archive = offer(*server, "a.tar.gz", packed({"images/1.jpg": b"one", "a.txt": b"x"}))
    with pytest.raises(ResultsError, match=r"set/images is in the way and incomplete: remove it"):
        download([archive], folder)
    assert [str(path.relative_to(folder)) for path in folder.rglob("*.*")] == ["images/mine.jpg"]


def test_a_full_disk_is_noticed_beforehand(server, tmp_path):
    archive = Archive(f"{server[1]}/never-asked-for.tar.gz", "md5:" + "0" * 32, 10**18)
    with pytest.raises(ResultsError, match=r"raw has .* GB free, the download needs 2000000000\.0 GB"):
        download([archive], tmp_path / "raw" / "set")
    assert Path(tmp_path / "raw").is_dir()
