"""Everyday programs on a mount leave there what they leave on the local disk."""

import shutil
import sqlite3
import sysconfig
from pathlib import Path

import pytest

from tests.fs.conftest import Places
from tests.trees import sh, snapshot

GIT = {
    "GIT_AUTHOR_NAME": "a",
    "GIT_AUTHOR_EMAIL": "a@example.org",
    "GIT_AUTHOR_DATE": "2024-01-01T00:00:00Z",
    "GIT_COMMITTER_NAME": "c",
    "GIT_COMMITTER_EMAIL": "c@example.org",
    "GIT_COMMITTER_DATE": "2024-01-01T00:00:00Z",
    "GIT_CONFIG_NOSYSTEM": "1",
    "HOME": "/nonexistent",
}


@pytest.fixture(scope="session")
def source_tree(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Real files: a part of Python's standard library, with links and an executable beside it."""
    tree = tmp_path_factory.mktemp("source") / "tree"
    library = Path(sysconfig.get_path("stdlib"))
    for name in ("asyncio", "email", "json", "unittest", "xml"):
        shutil.copytree(library / name, tree / name, ignore=shutil.ignore_patterns("__pycache__", "test"))
    sh(
        "ln json/decoder.py hard-link; ln -s ../email/message.py xml/soft-link; ln -s nowhere dangling; mkdir -p empty/dir;"
        "printf '#!/bin/sh\necho ran \"$1\"\n' >run; chmod 755 run; mkfifo pipe; chmod 640 json/tool.py; touch -d 2001-02-03 run",
        tree,
    )
    sh("find . -mmin -1 -exec touch -h -d '1 hour ago' {} +", tree)  # rsync takes times of the same second for equal
    return tree


def test_tar(places: Places, source_tree: Path) -> None:
    archive = source_tree.parent / "tree.tar"
    sh(f"tar cf {archive} tree", source_tree.parent)
    for place in places:
        sh(f"tar xpf {archive}", place)
        sh("tar cf ../again.tar tree" if place == places.local else f"tar cf {archive}.again tree", place)
    assert snapshot(places.mounted) == snapshot(places.local)
    sh(f"tar df {archive}.again", places.local)


def test_cp_and_mv(places: Places, source_tree: Path) -> None:
    for place in places:
        sh(
            f"cp -a {source_tree} one; cp -a one two; mv two/json three; rm -r two/xml; ./one/run x >ran; rmdir two/empty/dir",
            place,
        )
    assert snapshot(places.mounted / "one") == snapshot(places.local / "one")
    assert snapshot(places.mounted / "three") == snapshot(places.local / "three")
    assert snapshot(places.mounted, times=False) == snapshot(places.local, times=False)


def test_rsync(places: Places, source_tree: Path) -> None:
    for place in places:
        sh(f"rsync -aHX {source_tree}/ copy/", place)
    assert snapshot(places.mounted) | {"copy": None} == snapshot(places.local) | {"copy": None}
    again = sh(f"rsync -aHXi --delete {source_tree}/ copy/", places.mounted)
    assert again == ""
    sh("echo changed >>copy/json/decoder.py; rm copy/run; echo new >copy/new", places.mounted)
    sh(f"rsync -aHX --checksum --inplace --delete {source_tree}/ copy/", places.mounted)
    assert snapshot(places.mounted / "copy") == snapshot(places.local / "copy")


def test_git(places: Places, source_tree: Path) -> None:
    heads = []
    for place in places:
        sh(f"git init -q repo; cp -a {source_tree}/json {source_tree}/email repo", place)
        repo = place / "repo"
        sh("git add .; git commit -qm first; git tag one", repo, **GIT)
        sh(
            "git mv json JSON; echo more >>email/message.py; git rm -q email/charset.py; git commit -qam second",
            repo,
            **GIT,
        )
        sh("git checkout -q one; git checkout -q -; git gc -q --aggressive --prune=now; git fsck --strict", repo, **GIT)
        assert sh("git status --porcelain", repo, **GIT) == ""
        sh("git clone -q repo clone; git -C clone log --stat >log", place, **GIT)
        heads.append(sh("git rev-parse HEAD HEAD^{tree}", repo, **GIT) + sh("cat log", place))
    assert heads[0] == heads[1]
    content = [{name: node.content for name, node in snapshot(place / "clone" / "JSON").items()} for place in places]
    assert content[0] == content[1]


@pytest.mark.parametrize("journal", ["delete", "persist", "wal"])
def test_sqlite_database(places: Places, journal: str) -> None:
    dumps = []
    for place in places:
        database = sqlite3.connect(place / "t.db", isolation_level=None)
        assert database.execute(f"pragma journal_mode={journal}").fetchone() == (journal,)
        database.execute("create table t(k integer primary key, v blob)")
        for turn in range(4):
            database.execute("begin")
            database.executemany("insert into t(v) values (?)", [(f"{turn}-{i}" * 50,) for i in range(300)])
            database.execute("rollback" if turn == 2 else "commit")
        database.execute("update t set v = v || k where k % 3 = 0")
        database.execute("delete from t where k % 7 = 0")
        database.execute("vacuum")
        database.close()
        again = sqlite3.connect(place / "t.db")
        assert again.execute("pragma integrity_check").fetchall() == [("ok",)]
        dumps.append(list(again.iterdump()))
        again.close()
    assert dumps[0] == dumps[1]
    assert len(dumps[0]) > 700


def test_fio_verifies_what_it_wrote(room: Path) -> None:
    sh(
        "fio --name=v --directory=. --size=24M --bs=4k-64k --rw=randrw --verify=crc32c --verify_fatal=1 --ioengine=psync "
        "--fallocate=none --randseed=7 --output=fio.log",
        room,
    )


def test_find_and_du(places: Places, source_tree: Path) -> None:
    lists = []
    for place in places:
        sh(f"cp -a {source_tree} tree; dd if=/dev/zero of=zeros bs=1M count=5 status=none", place)
        lists.append(sh("find . -printf '%P %y %m %n %U %G\n' | sort; find . -type f -printf '%P %s\n' | sort", place))
    assert lists[0] == lists[1]
    assert int(sh("du -s --apparent-size -BM zeros", places.mounted).split("M")[0]) == 5
