"""`mount.juicefs` as mount(8), fstab and Kubernetes call it."""

import pytest

from jfs.commands.mount_helper import translate
from jfs.errors import UserError
from jfs.fuse.mounting import LEAST_READ, kernel_options, reads_up_to

URL = "sqlite3:///x.db"


@pytest.mark.parametrize(
    ("line", "expected"),
    [
        (f"{URL} /mnt", ["mount", "--background", URL, "/mnt"]),
        (
            f"{URL} /mnt -o rw,_netdev,nofail,cache-size=100,read-only",
            ["mount", "--cache-size=100", "--read-only", "--background", URL, "/mnt"],
        ),
        (f"{URL} /mnt -n -v -o noatime", ["mount", "--background", "-o", "noatime", URL, "/mnt"]),
        (
            f"{URL} /mnt -oattrcacheto=2 -o verbose",
            ["mount", "--attr-cache=2", "--verbose", "--background", URL, "/mnt"],
        ),
        (f"{URL} /mnt -o x-systemd.requires=a,user", ["mount", "--background", "-o", "user", URL, "/mnt"]),
        (URL, ["mount", "--help"]),
    ],
)
def test_words_become_flags(line: str, expected: list[str]) -> None:
    assert translate(line.split()) == expected


def test_foreground_by_the_environment(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("JFS_FOREGROUND", "1")
    assert translate([URL, "/mnt"]) == ["mount", URL, "/mnt"]


def test_a_flag_without_its_value_is_refused() -> None:
    with pytest.raises(UserError, match="option cache-size requires a value"):
        translate([URL, "/mnt", "-o", "cache-size"])


@pytest.mark.parametrize(
    ("word", "message"),
    [
        ("writebak", 'unknown mount option: "writebak"; is "writeback" meant?'),
        ("cache-sizes=10", 'unknown mount option: "cache-sizes=10"; is "cache-size" meant?'),
        ("qqq=1", 'unknown mount option: "qqq=1"$'),
    ],
)
def test_words_that_nobody_knows_are_refused(word: str, message: str) -> None:
    with pytest.raises(UserError, match=message.replace("?", "[?]")):
        translate([URL, "/mnt", "-o", f"_netdev,{word}"])


def test_words_of_fstab_are_accepted() -> None:
    words = "defaults,rw,_netdev,noauto,auto,user,users,nouser,owner,group,nofail,x-systemd.automount,X-mount.mkdir,lazytime"
    left = translate([URL, "/mnt", "-o", f"{words},comment=a"])[3].split(",")
    assert kernel_options(left, name="v", read_only=False) == kernel_options([], name="v", read_only=False)


def test_kernel_options() -> None:
    options = kernel_options(["noatime", "user", "x-gvfs-hide", "max_read=65536"], name="vol", read_only=True)
    assert options >= {
        "noatime",
        "max_read=65536",
        "ro",
        "fsname=JuiceFS:vol",
        "subtype=juicefs",
        "default_permissions",
    }
    assert not options & {"user", "x-gvfs-hide"}


@pytest.mark.parametrize("word", ["foo=bar", "auto_unmount", "writeback_cache", "context=x"])
def test_kernel_options_that_are_refused(word: str) -> None:
    with pytest.raises(UserError, match=word):
        kernel_options([word], name="vol", read_only=False)


def test_reads_are_bounded_only_where_they_have_to_be() -> None:
    assert reads_up_to(1 << 20, {"ro"}) == {"ro"}
    assert reads_up_to(254 << 12, {"ro"}) == {"ro", "max_read=983040"}
    assert reads_up_to(LEAST_READ, set()) == {"max_read=524288"}
    assert reads_up_to(254 << 12, {"max_read=65536"}) == {"max_read=65536"}
