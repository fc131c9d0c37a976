"""Ranking: names before descriptions, rare words before common ones, nothing for nothing."""

from hypothesis import given
from hypothesis import strategies as st

from vsm.core import search

DOCUMENTS = {
    "files__read_file": "Read the complete contents of a file from the file system",
    "files__write_file": "Create a new file or overwrite an existing one",
    "git__git_log": "Shows the commit logs of a repository",
    "git__git_commit": "Records changes to the repository",
    "time__convertTime": "Convert a time between timezones",
}


def names(query: str) -> list[str]:
    return [hit.name for hit in search.Index(DOCUMENTS).find(query, 10)]


def test_the_tool_that_is_meant_comes_first() -> None:
    assert names("read files")[0] == "files__read_file"
    assert names("convert time")[0] == "time__convertTime"
    assert names("commit changes")[0] == "git__git_commit"
    assert names("commit log")[0] == "git__git_log"
    assert names("teleportation") == []
    assert names("") == []


@given(st.dictionaries(st.text(max_size=20), st.text(max_size=100), max_size=8), st.text())
def test_hits_are_ranked_bounded_and_have_a_word_of_the_query(
    documents: dict[str, str], query: str
) -> None:
    hits = search.Index(documents).find(query, 3)
    assert len(hits) <= 3
    assert [hit.score for hit in hits] == sorted((hit.score for hit in hits), reverse=True)
    for hit in hits:
        assert hit.words
        assert set(hit.words) <= set(search.words(hit.name + " " + documents[hit.name]))
