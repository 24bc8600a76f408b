"""Images, texts and pairs out of every kind of source: the same items in the same order, and errors that name them."""

import builtins
import io
import json
import tarfile

import pytest
from command import mir, refused
from PIL import Image

from mirlib import MirlibError
from mirlib.data import draw, load_image
from mirlib.readers import open_images, open_pairs, open_texts

COUNT = 6
COLOURS = [(40 * number, 255 - 30 * number, 7 * number) for number in range(COUNT)]
CAPTIONS = [f"Caption number {number}, with a word: été." for number in range(COUNT)]


def png(colour):
    stored = io.BytesIO()
    Image.new("RGB", (8, 6), colour).save(stored, "png")
    return stored.getvalue()


def colours_of(images):
    """The colour of the first pixel of each, after the way that `score` takes with it."""
    return [load_image(images[i]).getpixel((0, 0)) for i in range(len(images))]


def write_tar(path, members):
    with tarfile.open(path, "w") as archive:
        for name, data in members:
            info = tarfile.TarInfo(name)
            info.size = len(data)
            archive.addfile(info, io.BytesIO(data))
    return path


def sample(number, text="txt"):
    """The members of one key of a shard."""
    written = {"txt": CAPTIONS[number].encode(), "json": json.dumps({"id": 1, "caption": CAPTIONS[number]}).encode()}
    return [(f"./{number:03}.png", png(COLOURS[number])), (f"./{number:03}.{text}", written[text])]


def write_lines(path, records):
    path.write_text("\n".join(r if isinstance(r, str) else json.dumps(r) for r in records) + "\n", encoding="utf-8")
    return path


@pytest.fixture
def lines(tmp_path):
    """A JSON Lines file beside a folder of images."""
    (tmp_path / "pictures").mkdir()
    for number, colour in enumerate(COLOURS):
        (tmp_path / "pictures" / f"{number}.png").write_bytes(png(colour))
    records = [{"image": f"pictures/{number}.png", "text": CAPTIONS[number]} for number in range(COUNT)]
    return write_lines(tmp_path / "pairs.jsonl", records)


# ---------------------------------------------------------------------------------------------------------------------
# JSON Lines


def test_pairs_of_json_lines(lines, monkeypatch, tmp_path):
    monkeypatch.chdir("/")  # relative paths are those of the file
    pairs = open_pairs(lines)
    assert colours_of(pairs.images) == COLOURS and list(pairs.texts) == CAPTIONS
    assert colours_of(open_images(lines)) == COLOURS and list(open_texts(lines)) == CAPTIONS
    other = write_lines(tmp_path / "b.jsonl", [{"photo": str(p), "words": "  a b "} for p in pairs.images[:2]] + [""])
    pairs = open_pairs(other, image_field="photo", text_field="words")
    assert colours_of(pairs.images) == COLOURS[:2] and list(pairs.texts) == ["a b", "a b"]
    with pytest.raises(MirlibError, match=r"b\.jsonl, line 1: which field holds the images\? There is photo, words"):
        open_pairs(other)
    with pytest.raises(MirlibError, match=r"line 1: there is no field 'phot'; there is photo, words"):
        open_images(other, image_field="phot")


@pytest.mark.parametrize(
    ("line", "message"),
    [
        ("{", r"line 2: not JSON"),
        ("[1]", r"line 2: expected a JSON object, got list"),
        ({"text": "no image"}, r"line 2: there is no field 'image'; there is text"),
        ({"image": "x.png", "text": 3}, r"line 2, field 'text': expected a text, got int"),
        ({"image": None, "text": "x"}, r"line 2, field 'image': expected the path of an image, got NoneType"),
        ('{"image": "x", "text": "\udcff"}', r"line 2: not UTF-8 text"),
    ],
)
def test_lines_that_are_no_pairs_are_named_or_left_out(line, message, lines):
    good = lines.read_text(encoding="utf-8").splitlines()[:2]
    text = "\n".join([good[0], line if isinstance(line, str) else json.dumps(line), good[1]])
    lines.write_bytes(text.encode("utf-8", "surrogateescape"))
    with pytest.raises(MirlibError, match=message):
        open_pairs(lines)
    said = []
    pairs = open_pairs(lines, on_unreadable=said.append)
    assert colours_of(pairs.images) == COLOURS[:2] and list(pairs.texts) == CAPTIONS[:2], (
        "a text moved to another image"
    )
    assert len(said) == 1


def test_files_without_pairs(tmp_path):
    with pytest.raises(MirlibError, match="no pairs in .*empty.jsonl"):
        open_pairs(write_lines(tmp_path / "empty.jsonl", [""]))
    with pytest.raises(MirlibError, match="no such file: .*missing.jsonl"):
        open_pairs(tmp_path / "missing.jsonl")
    with pytest.raises(MirlibError, match="pairs are read from JSON Lines"):
        open_pairs(tmp_path)


# ---------------------------------------------------------------------------------------------------------------------
# WebDataset shards


@pytest.mark.parametrize("text", ["txt", "json"])
def test_shards(text, tmp_path):
    for shard in range(3):
        write_tar(tmp_path / f"s-{shard:02}.tar", [m for n in (2 * shard, 2 * shard + 1) for m in sample(n, text)])
    for source in (tmp_path, f"{tmp_path}/s-{{00..02}}.tar"):
        pairs = open_pairs(source)
        assert colours_of(pairs.images) == COLOURS and list(pairs.texts) == CAPTIONS
        assert colours_of(open_images([source])) == COLOURS and list(open_texts(source)) == CAPTIONS
    one = open_images(tmp_path / "s-01.tar")
    assert colours_of(one) == COLOURS[2:4]
    assert colours_of(one[1:]) == COLOURS[3:4] and load_image(one[-1]).getpixel((0, 0)) == COLOURS[3]
    with pytest.raises(IndexError):
        one[2]
    assert one[0].filename == f"{tmp_path}/s-01.tar/002.png", "what an error message calls it"
    with pytest.raises(MirlibError, match="no such file: .*s-03.tar"):
        open_images(f"{tmp_path}/s-{{00..03}}.tar")
    with pytest.raises(MirlibError, match="runs backwards"):
        open_images(f"{tmp_path}/s-{{02..00}}.tar")


def test_nothing_is_read_before_it_is_asked_for(tmp_path, monkeypatch):
    path = write_tar(tmp_path / "a.tar", [m for n in range(COUNT) for m in sample(n)])
    pairs = open_pairs(path)
    read = []
    monkeypatch.setattr("mirlib.readers._Member.read", lambda member, *_: read.append(member) or png(COLOURS[0]))
    assert len(pairs.images) == len(pairs.texts) == COUNT and not read
    load_image(pairs.images[4])
    assert len(read) == 1


def test_endings_and_fields_of_ones_own(tmp_path):
    path = write_tar(
        tmp_path / "a.tar",
        [
            ("a/0.left.png", png(COLOURS[0])), ("a/0.right.png", png(COLOURS[1])),
            ("a/0.json", json.dumps({"short": "few", "long": "many words"}).encode()),
            ("b/0.left.png", png(COLOURS[2])), ("b/0.json", json.dumps({"short": "x", "long": "y z"}).encode()),
            ("._hidden", b""), ("readme", b"no ending"),
        ],
    )  # fmt: skip
    pairs = open_pairs(path, image_field="left.png", text_field="long")
    assert colours_of(pairs.images) == [COLOURS[0], COLOURS[2]] and list(pairs.texts) == ["many words", "y z"]
    assert colours_of(open_images(path, image_field="right.png")) == [COLOURS[1]]
    with pytest.raises(MirlibError, match=r"no key has a member \.jpg; there is .*left\.png"):
        open_images(path, image_field="jpg")
    with pytest.raises(MirlibError, match=r"a/0\.json: which field holds the texts\? There is short, long"):
        open_texts(path)[0]


def test_damaged_members_and_keys_are_named(tmp_path):
    whole = png(COLOURS[0])
    path = write_tar(
        tmp_path / "a.tar",
        [("0.png", b"not an image"), ("0.txt", b"a"), ("1.png", whole[:50]), ("1.txt", b"caf\xe9"), ("2.png", whole),
         ("3.txt", b"alone"), ("4.png", whole), ("4.txt", b"fine")],
    )  # fmt: skip
    images = open_images(path)
    with pytest.raises(MirlibError, match=r"cannot read the image .*a\.tar/0\.png: it is no image"):
        images[0]
    with pytest.raises(MirlibError, match=r"cannot read the image .*a\.tar/1\.png: "):
        load_image(images[1])
    with pytest.raises(MirlibError, match=r"a\.tar/1\.txt: not UTF-8 text \(byte 3\)"):
        open_texts(path)[1]
    with pytest.raises(MirlibError, match=r"a\.tar/2: no text \(there is png\)"):
        open_pairs(path)
    said = []
    pairs = open_pairs(path, on_unreadable=said.append)
    assert len(pairs.images) == 3 and pairs.texts[2] == "fine"
    assert [sentence.split("a.tar/")[1] for sentence in said] == [
        "2: no text (there is png)",
        "3: no image (there is txt)",
    ]


def test_damaged_and_compressed_archives(tmp_path):
    path = write_tar(tmp_path / "cut.tar", [m for n in range(3) for m in sample(n)])
    data = path.read_bytes()
    path.write_bytes(data[: 512 * 9 + 30])  # within the third image
    with pytest.raises(MirlibError, match=r"cut\.tar: the archive is damaged .*keys stand before the damage"):
        open_images(path)
    said = []
    found = colours_of(open_images(path, on_unreadable=said.append))
    assert found == COLOURS[: len(found)] and len(found) == 2 and len(said) == 1
    (tmp_path / "no.tar").write_bytes(b"x" * 2000)
    with pytest.raises(MirlibError, match=r"no\.tar: the archive is damaged"):
        open_images(tmp_path / "no.tar")
    for name in ("a.tar.gz", "a.tgz", "a.TAR.xz"):
        with pytest.raises(MirlibError, match="compressed archive cannot be read key by key"):
            open_images(tmp_path / name)


# ---------------------------------------------------------------------------------------------------------------------
# Hugging Face datasets: local tables with the columns of those on the hub

WORDS = {"question_tokens": ["what", "is", "it"], "image_classes": ["Sign"], "ocr_tokens": ["STOP"]}


def textvqa(folder):
    """Parquet files laid out and typed as those of lmms-lab/textvqa: two questions about each image."""
    datasets = pytest.importorskip("datasets", reason="the package datasets is not installed: pip install it")
    rows = [
        {
            "image_id": f"id{number // 2}",
            "question_id": 100 + number,
            "question": f"What is number {number}?",
            "image": {"bytes": png(COLOURS[number // 2]), "path": None},
            "image_width": 8,
            "image_height": 6,
            "flickr_original_url": "",
            "flickr_300k_url": "",
            "answers": ["yes"] * 10,
            "set_name": "val",
            **WORDS,
        }
        for number in range(2 * COUNT)
    ]
    table = datasets.Dataset.from_list(rows).cast_column("image", datasets.Image())
    (folder / "data").mkdir(parents=True)
    table.select(range(8)).to_parquet(folder / "data" / "validation-00000-of-00002.parquet")
    table.select(range(8, 12)).to_parquet(folder / "data" / "validation-00001-of-00002.parquet")
    table.select(range(1)).to_parquet(folder / "data" / "train-00000-of-00001.parquet")
    return folder


def cnn_dailymail(folder):
    datasets = pytest.importorskip("datasets", reason="the package datasets is not installed: pip install it")
    (folder / "3.0.0").mkdir(parents=True)
    rows = [{"article": text, "highlights": "short", "id": str(i)} for i, text in enumerate(CAPTIONS)]
    datasets.Dataset.from_list(rows).to_parquet(folder / "3.0.0" / "validation-00000-of-00001.parquet")
    return folder


@pytest.fixture(scope="module")
def hub(tmp_path_factory):
    """Folders that hold what the two repositories on the hub hold, and a cache that is not the user's."""
    datasets = pytest.importorskip("datasets", reason="the package datasets is not installed: pip install it")
    root = tmp_path_factory.mktemp("hub")
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(datasets.config, "HF_DATASETS_CACHE", root / "cache")
        datasets.disable_progress_bars()
        yield textvqa(root / "textvqa"), cnn_dailymail(root / "cnn_dailymail")
        datasets.enable_progress_bars()


def test_textvqa_gives_each_image_once(hub):
    images = open_images(f"hf:{hub[0]}:validation")
    assert colours_of(images) == COLOURS, "in the order of the rows, each image_id once"
    assert images[1].filename == f"{hub[0]}/data/validation-00000-of-00002.parquet, row 2, column 'image'"
    questions = open_texts(f"hf:{hub[0]}:validation", text_field="question")
    assert len(questions) == 2 * COUNT and questions[3] == "What is number 3?"
    pairs = open_pairs(f"hf:{hub[0]}:validation")
    assert len(pairs.images) == len(pairs.texts) == 2 * COUNT
    assert load_image(pairs.images[5]).getpixel((0, 0)) == COLOURS[2] and pairs.texts[5] == "What is number 5?"
    assert draw(images, 3, 0, "images") == draw(images, 5, 0, "images")[:3]


def test_cnn_dailymail_gives_the_articles(hub):
    assert list(open_texts(f"hf:{hub[1]}")) == CAPTIONS, "one split, so none need be named"
    with pytest.raises(MirlibError, match=r"there is no field 'body'; there is article, highlights, id"):
        open_texts(f"hf:{hub[1]}", text_field="body")


def test_hub_names_stand_for_the_repositories_and_splits_of_the_paper(hub, monkeypatch):
    import datasets

    asked, load = [], datasets.load_dataset_builder
    folders = {"lmms-lab/textvqa": hub[0], "abisee/cnn_dailymail": hub[1]}

    def load_builder(name, config=None):
        asked.append((name, config))
        return load(str(folders[name]))

    monkeypatch.setattr(datasets, "load_dataset_builder", load_builder)
    for name in ("TextVQA", "lmms-lab/textvqa", "facebook/textvqa"):
        assert colours_of(open_images([f"hf:{name}"])) == COLOURS
    for name in ("cnn_dailymail", "CNN/DailyMail", "abisee/cnn_dailymail", "abisee/cnn_dailymail@3.0.0:validation"):
        assert list(open_texts(f"hf:{name}")) == CAPTIONS
    assert set(asked) == {("lmms-lab/textvqa", None), ("abisee/cnn_dailymail", "3.0.0")}
    assert len(open_texts("hf:textvqa:train", text_field="question")) == 1, "another split, if it is named"
    with pytest.raises(MirlibError, match=r"hf:textvqa:test: there is no split 'test'\? There is .*validation"):
        open_images("hf:textvqa:test")


def test_only_the_files_of_the_split_are_touched(hub):
    """The files of the other splits would be gigabytes from the hub: here they are damaged, and nobody notices."""
    train = next(hub[0].rglob("train-*.parquet"))
    whole = train.read_bytes()
    train.write_bytes(b"damaged")
    try:
        assert len(open_images(f"hf:{hub[0]}:validation")) == COUNT
    finally:
        train.write_bytes(whole)


def test_parquet_files_and_stored_datasets(hub, tmp_path):
    import datasets

    files = sorted((hub[0] / "data").glob("validation*"))
    assert colours_of(open_images(files[0])) == COLOURS[:4]
    assert list(open_texts(hub[1] / "3.0.0")) == CAPTIONS
    table = datasets.Dataset.from_dict({"caption": CAPTIONS[:2], "image": [str(tmp_path / "0.png"), ""]})
    table.save_to_disk(tmp_path / "stored")
    (tmp_path / "0.png").write_bytes(png(COLOURS[0]))
    pairs = open_pairs(f"hf:{tmp_path / 'stored'}")
    assert load_image(pairs.images[0]).getpixel((0, 0)) == COLOURS[0] and list(pairs.texts) == CAPTIONS[:2]
    with pytest.raises(MirlibError, match="row 1, column 'image': expected the path of an image, got an empty str"):
        pairs.images[1]
    (tmp_path / "bad.parquet").write_bytes(b"PAR1 not")
    with pytest.raises(MirlibError, match=r"cannot read .*bad\.parquet: "):
        open_texts(tmp_path / "bad.parquet")
    with pytest.raises(MirlibError, match=r"no such file: .*none\.parquet"):
        open_texts(tmp_path / "none.parquet")


def test_datasets_that_are_not_there(hub, tmp_path, monkeypatch):
    with pytest.raises(MirlibError, match=r"which split\? There is .*; write hf:.*:SPLIT"):
        open_images(f"hf:{hub[0]}")
    with pytest.raises(MirlibError, match=r"hf:/no/such/folder: it is no folder, and no name of a dataset"):
        open_images("hf:/no/such/folder")
    with pytest.raises(MirlibError, match="hf:: expected hf:NAME"):
        open_images("hf:")
    real = builtins.__import__

    def without(name, *arguments, **options):
        if name == "datasets":
            raise ImportError(name)
        return real(name, *arguments, **options)

    monkeypatch.setattr(builtins, "__import__", without)
    with pytest.raises(
        MirlibError, match=r"package datasets, which is not installed: pip install 'mirlib\[datasets\]'"
    ):
        open_images("hf:TextVQA")


# ---------------------------------------------------------------------------------------------------------------------
# Several sources, and the command


def test_sources_one_after_the_other(lines, tmp_path):
    shard = write_tar(tmp_path / "a.tar", sample(5))
    images = open_images([lines.parent / "pictures" / "1.png", shard, lines])
    assert colours_of(images) == [COLOURS[1], COLOURS[5], *COLOURS]
    assert colours_of(open_images(lines.parent / "pictures")) == COLOURS


def test_the_command_measures_pairs_and_shards(lines, tmp_path, capsys):
    with lines.open("a") as file:
        file.write('{"image": "pictures/gone.png", "text": "lost"}\n')
    arguments = ["score", "-n", COUNT, "--no-progress", "--json", "-"]
    found = mir(capsys, *arguments, "--pairs", lines, "--skip-unreadable")
    assert found.code == 0, found.err
    paired = json.loads(found.out)
    assert paired["settings"]["paired"] is True and paired["settings"]["samples"] == COUNT
    assert paired["settings"]["images"] == [str(lines)] and paired["settings"]["texts"] == str(lines)
    assert (
        f"mir: skipped: {lines}, line 7, field 'image': no such image: pictures/gone.png (looked" in found.err
        and "mir: skipped 1 in all" in found.err
    )
    shard = write_tar(tmp_path / "a.tar", [m for n in range(COUNT) for m in sample(n)])
    again = json.loads(mir(capsys, *arguments, "--pairs", shard, "--seed", 1).out)
    assert again["mir"] == pytest.approx(paired["mir"], rel=1e-5), "all pairs, in another order"
    apart = json.loads(mir(capsys, *arguments, "--images", shard, "--texts", lines, "--skip-unreadable").out)
    assert apart["settings"]["paired"] is False and apart["mir"] == pytest.approx(paired["mir"], abs=0.2)
    assert apart["mir"] != paired["mir"]


def test_the_command_refuses_sources_that_do_not_fit(lines, capsys):
    assert "no such image: " in refused(
        capsys, "score", "-n", 1, "--pairs", write_lines(lines, ['{"image":"x","text":"y"}'])
    )
    assert "--pairs brings its own" in refused(capsys, "score", "--pairs", lines, "--texts", lines)
    assert "--image-field means nothing without --images or --pairs" in refused(capsys, "score", "--image-field", "x")
    assert "which field holds the texts" in refused(capsys, "score", "--texts", write_lines(lines, ['{"image":"x"}']))
