"""Lines of text: every kind of file, and what is no text."""

import gzip
import lzma

import pytest

from graphaug.errors import DataError
from graphaug.text.corpus.sentences import Corpus, decode_lines, fewer, read_corpus

TEXT = "One sentence .\n\n  Zwei Sätze…\u2028still the second \r\n\t\nthree"


@pytest.mark.parametrize("pack", [bytes, gzip.compress, lzma.compress], ids=["plain", "gz", "xz"])
@pytest.mark.parametrize("ending", ["", "\n", "\r\n"])
def test_every_kind_of_file_gives_the_same_lines(tmp_path, pack, ending):
    path = tmp_path / "text.of-no-known-ending"
    path.write_bytes(pack((TEXT + ending).encode()))
    corpus = read_corpus(path)
    # U+2028 is a character of the line, though str.splitlines would split there
    assert corpus.lines == ("One sentence .", "Zwei Sätze…\u2028still the second", "three")
    assert corpus.empty == 2
    assert len(corpus) == 3


def test_a_byte_order_mark_is_no_character(tmp_path):
    path = tmp_path / "text.txt"
    path.write_text("one\ntwo\n", encoding="utf-8-sig")
    assert read_corpus(path).lines == ("one", "two")


@pytest.mark.parametrize("pack", [bytes, gzip.compress, lzma.compress], ids=["plain", "gz", "xz"])
def test_another_encoding_is_named_with_line_and_byte(tmp_path, pack):
    path = tmp_path / "latin.txt"
    raw = b"first line\nsecond\n" + "der Käse\n".encode("latin-1")
    path.write_bytes(pack(raw))
    with pytest.raises(DataError, match=r"byte 0xe4 in line 3, at offset 23 .*iconv") as caught:
        read_corpus(path)
    assert raw.index(b"\xe4") == 23
    assert "latin.txt" in str(caught.value)


def test_the_offset_counts_the_byte_order_mark():
    raw = b"\xef\xbb\xbfone\n\xff"
    with pytest.raises(DataError, match=f"line 2, at offset {raw.index(bytes([255]))} "):
        decode_lines(raw, "text")


def test_utf_16_is_recognised(tmp_path):
    path = tmp_path / "text.txt"
    path.write_bytes("one\ntwo\n".encode("utf-16"))
    with pytest.raises(DataError, match="UTF-16"):
        read_corpus(path)


def test_missing_empty_and_damaged_files(tmp_path):
    (tmp_path / "sentences.txt").write_text("\n  \n")
    with pytest.raises(DataError, match=r"does not exist\. Did you mean 'sentences.txt'"):
        read_corpus(tmp_path / "sentence.txt")
    with pytest.raises(DataError, match="does not exist"):
        read_corpus(tmp_path / "no" / "sentence.txt")
    with pytest.raises(DataError, match=r"no text: 2 line\(s\)"):
        read_corpus(tmp_path / "sentences.txt")
    with pytest.raises(DataError, match="is a directory"):
        read_corpus(tmp_path)
    for pack in (gzip.compress, lzma.compress):
        (tmp_path / "cut").write_bytes(pack(b"a line\n" * 1000)[:-10])
        with pytest.raises(DataError, match=r"'.*cut' cannot be decompressed"):
            read_corpus(tmp_path / "cut")


def test_fewer_sentences_are_spread_over_the_file():
    whole = Corpus(tuple(f"line {i}" for i in range(10)), 2)
    assert fewer(whole, None) is fewer(whole, 10) is whole
    some = fewer(whole, 4)
    assert some == Corpus(("line 0", "line 2", "line 5", "line 7"), 2)
    assert fewer(some, 4) is some  # what was taken already is taken as it is
    with pytest.raises(DataError, match="the text has 10 sentences, not 11"):
        fewer(whole, 11)
