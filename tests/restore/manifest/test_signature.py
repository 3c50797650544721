"""A scan that is not signed by one of those who may is refused, and each reason has its own words.

Debian packages: openssh-client bmap-tools.
"""

from __future__ import annotations

import os
import shutil
from pathlib import Path

import pytest

from restore.errors import Refused, RestoreError
from restore.manifest import ManifestError, beside, signature
from restore.manifest.signature import check_key, sign, signature_path, verify
from tests.restore.engine import asr, failed
from tests.restore.manifest.images import scanned
from tests.serving import run


@pytest.fixture
def bmap(tmp_path: Path) -> Path:
    path = tmp_path / "disk.img.bmap"
    path.write_bytes(b"what is signed")
    return path


def make_key(path: Path) -> str:
    run("ssh-keygen", "-q", "-t", "ed25519", "-N", "", "-C", "", "-f", path)
    return str(path)


@pytest.fixture
def key(tmp_path: Path) -> str:
    return make_key(tmp_path / "key")


def allow(key: str, tmp_path: Path, options: str = "", name: str = "admin@example.org") -> str:
    path = tmp_path / "allowed"
    path.write_text(f"{name} {options} {Path(f'{key}.pub').read_text()}")
    return str(path)


def refusal(bmap: Path, allowed: str) -> str:
    with pytest.raises(ManifestError) as caught:
        verify(bmap, allowed)
    return str(caught.value)


@pytest.mark.parametrize("options", ["", 'namespaces="bmap"', 'namespaces="git,bmap"'])
def test_signed_and_verified(bmap: Path, key: str, tmp_path: Path, options: str) -> None:
    sign(bmap, key)
    assert verify(bmap, allow(key, tmp_path, options)) == "admin@example.org"
    run("ssh-keygen", "-Y", "check-novalidate", "-n", "bmap", "-s", f"{bmap}.sshsig", stdin=bmap.read_text())


@pytest.mark.parametrize("form", ["RFC4716", "PEM"])
@pytest.mark.parametrize("passphrase", ["", "secret"])
@pytest.mark.parametrize("public", [True, False])
def test_keys_that_are_taken(form: str, passphrase: str, tmp_path: Path, *, public: bool) -> None:
    """Also with a passphrase, which is not asked for yet, and without the public one beside."""
    key = tmp_path / "key"
    run("ssh-keygen", "-q", "-t", "ecdsa", "-m", form, "-N", passphrase, "-f", key)
    check_key(f"{key}.pub")  # whose private one an agent may have
    if not public:
        Path(f"{key}.pub").unlink()
    check_key(str(key))


def test_keys_that_are_none(tmp_path: Path) -> None:
    gone, text = tmp_path / "gone", tmp_path / "text"
    text.write_text("-----BEGIN CERTIFICATE-----\n")
    what = ", the key to sign with"
    lines = {
        gone: f"{gone}{what}: No such file or directory",
        tmp_path: f"{tmp_path}{what}: Is a directory",
        text: f"{text} is no SSH key to sign with; ssh-keygen -t ed25519 -f FILE makes one",
    }
    for path, line in lines.items():
        with pytest.raises(Refused) as caught:
            check_key(str(path))
        assert str(caught.value) == line


@pytest.mark.parametrize("verb", ["imagescan", "minimize", "capture"])
def test_no_key_for_an_image(verb: str, tmp_path: Path) -> None:
    """It is refused before the image is looked at; what was there stays."""
    image, small, gone = tmp_path / "disk.img", tmp_path / "small.img", tmp_path / "gone"
    old = [image, *(Path(f"{image}{suffix}") for suffix in (".bmap", ".bmap.sshsig", ".map"))]
    for path in old:
        path.write_bytes(b"old")
    words: dict[str, list[str | Path]] = {
        "imagescan": ["imagescan", image],
        "minimize": ["imagescan", image, "--minimize", small],
        "capture": ["capture", "--source", tmp_path / "disk", "--target", image, "--overwrite"],
    }
    message = failed(asr(*words[verb], "--sign", gone))
    assert message == f"{gone}, the key to sign with: No such file or directory"
    assert sorted(tmp_path.iterdir()) == sorted(old)
    assert all(path.read_bytes() == b"old" for path in old)


def test_signed_anew(bmap: Path, key: str, tmp_path: Path) -> None:
    """ssh-keygen by itself would ask whether to overwrite."""
    sign(bmap, key)
    bmap.write_bytes(b"another")
    sign(bmap, key)
    assert verify(bmap, allow(key, tmp_path))


def test_not_signed(bmap: Path, key: str, tmp_path: Path) -> None:
    assert refusal(bmap, allow(key, tmp_path)) == f"{bmap} is not signed: there is no {bmap}.sshsig"


def test_changed(bmap: Path, key: str, tmp_path: Path) -> None:
    sign(bmap, key)
    bmap.write_bytes(b"what is signeD")
    why = "one of them was changed, or it was signed for another purpose"
    assert refusal(bmap, allow(key, tmp_path)) == f"{bmap}.sshsig does not match {bmap}: {why}"


def test_signed_for_another_purpose(bmap: Path, key: str, tmp_path: Path) -> None:
    run("ssh-keygen", "-q", "-Y", "sign", "-n", "file", "-f", key, bmap)
    Path(f"{bmap}.sig").rename(f"{bmap}.sshsig")
    why = "one of them was changed, or it was signed for another purpose"
    assert refusal(bmap, allow(key, tmp_path)) == f"{bmap}.sshsig does not match {bmap}: {why}"


def test_another_signer(bmap: Path, key: str, tmp_path: Path) -> None:
    sign(bmap, key)
    allowed = allow(make_key(tmp_path / "other"), tmp_path)
    assert refusal(bmap, allowed) == f"{bmap}.sshsig is not from a signer that {allowed} allows"


def test_a_signer_who_may_not_sign_this(bmap: Path, key: str, tmp_path: Path) -> None:
    sign(bmap, key)
    allowed = allow(key, tmp_path, 'namespaces="git"')
    assert refusal(bmap, allowed) in (
        f"{bmap}.sshsig is from a key that {allowed} does not allow to sign this, or not any more",
        f"{bmap}.sshsig is not from a signer that {allowed} allows",
    )


def test_a_signer_who_may_not_sign_any_more(bmap: Path, key: str, tmp_path: Path) -> None:
    sign(bmap, key)
    allowed = allow(key, tmp_path, 'valid-before="20000101"')
    assert refusal(bmap, allowed) in (
        f"{bmap}.sshsig is from a key that {allowed} does not allow to sign this, or not any more",
        f"{bmap}.sshsig is not from a signer that {allowed} allows",
    )


def test_no_signature_at_all(bmap: Path, key: str, tmp_path: Path) -> None:
    signature_path(bmap).write_text("hello")
    assert refusal(bmap, allow(key, tmp_path)) == f"{bmap}.sshsig is not a signature"
    with signature_path(bmap).open("wb") as file:
        file.truncate(2 << 20)
    assert refusal(bmap, allow(key, tmp_path)) == f"{bmap}.sshsig is not a signature"


def test_no_list(bmap: Path, key: str, tmp_path: Path) -> None:
    sign(bmap, key)
    path = str(tmp_path / "nobody")
    assert refusal(bmap, path) == f"{path}, the list of allowed signers: No such file or directory"


def test_no_key(bmap: Path, tmp_path: Path) -> None:
    key = str(tmp_path / "key")
    with pytest.raises(RestoreError) as caught:
        sign(bmap, key)
    reason = f"Couldn't load public key {key}: No such file or directory"
    assert str(caught.value) == f"{bmap} could not be signed with {key}: {reason}"
    assert not signature_path(bmap).exists()


def test_no_openssh(bmap: Path, key: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    sign(bmap, key)
    monkeypatch.setenv("PATH", str(tmp_path))
    for attempt in (lambda: sign(bmap, key), lambda: verify(bmap, allow(key, tmp_path))):
        with pytest.raises(RestoreError) as caught:
            attempt()
        assert str(caught.value) == "signatures need ssh-keygen, which is not installed: apt install openssh-client"


def test_names_like_options(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Whatever a file or a signer is called, it is no option."""
    monkeypatch.chdir(tmp_path)
    Path("-r.bmap").write_bytes(b"what is signed")
    make_key(tmp_path / "-Overify-time")
    allowed = Path(allow(str(tmp_path / "-Overify-time"), tmp_path, name="-fother"))
    allowed.rename("-I")
    sign("-r.bmap", "-Overify-time")
    assert verify("-r.bmap", "-I") == "-fother"


def test_what_was_verified_is_what_is_used(
    image: Path, key: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Whoever replaces the scan in the moment after it was found to be signed does not get in."""
    bmap, _ = scanned(image, sign=key)
    path, allowed = beside.bmap_path(image), allow(key, tmp_path)

    def evil(*arguments: object) -> str:
        who = verify(*arguments)  # type: ignore[arg-type]
        path.write_text("another")
        return who

    monkeypatch.setattr(signature, "verify", evil)
    loaded = beside.load(image, allowed)
    assert loaded is not None
    assert list(loaded) == list(bmap)


def test_a_new_scan_has_no_old_signature(image: Path, key: str, tmp_path: Path) -> None:
    _, printed = scanned(image, sign=key)
    assert f"  signed: {image}.bmap.sshsig" in printed.splitlines()
    assert beside.load(image, allow(key, tmp_path)) is not None
    scanned(image)
    with pytest.raises(ManifestError, match="is not signed: there is no"):
        beside.load(image, allow(key, tmp_path))


def test_without_a_scan(image: Path, key: str, tmp_path: Path) -> None:
    assert beside.load(image) is None
    with pytest.raises(ManifestError) as caught:
        beside.load(image, allow(key, tmp_path))
    reason = f"scan it: asr imagescan --sign KEY {image}"
    assert str(caught.value) == f"{image} has no scan that could be signed; {reason}"


def test_ranges_that_no_signature_covers(image: Path, key: str, tmp_path: Path) -> None:
    run("bmaptool", "create", "--no-checksum", image, "-o", f"{image}.bmap")
    sign(f"{image}.bmap", key)
    assert beside.load(image) is not None
    with pytest.raises(ManifestError) as caught:
        beside.load(image, allow(key, tmp_path))
    reason = f"which no signature covers; scan it again: asr imagescan {image}"
    assert str(caught.value) == f"{image}.bmap has ranges without a checksum, {reason}"


def stale(image: Path) -> str:
    with pytest.raises(ManifestError) as caught:
        beside.load(image)
    return str(caught.value)


def test_older_than_the_image(image: Path) -> None:
    scanned(image)
    later = beside.bmap_path(image).stat().st_mtime_ns + 1
    os.utime(image, ns=(later, later))
    do = f"scan it again: asr imagescan {image}, or if the image was only copied: touch {image}.bmap"
    assert stale(image) == f"{image}.bmap is older than {image}; {do}"
    os.utime(beside.bmap_path(image))
    assert beside.load(image) is not None


def test_the_very_file_is_known_whatever_its_copy_s_time(image: Path) -> None:
    scanned(image)
    os.utime(beside.bmap_path(image), ns=(0, 0))
    assert beside.load(image) is not None


def test_copies_without_times(image: Path, tmp_path: Path) -> None:
    scanned(image)
    there = tmp_path / "there"
    there.mkdir()
    for name in (image.name, f"{image.name}.bmap"):
        shutil.copyfile(tmp_path / name, there / name)
    assert beside.load(there / image.name) is not None


def test_another_size(image: Path) -> None:
    scanned(image)
    size = image.stat().st_size
    with image.open("r+b") as file:
        file.truncate(size + 1)
    reason = f"{image} had {size} bytes when it was scanned, and has {size + 1}; scan it again: asr imagescan {image}"
    assert stale(image) == f"{image}.bmap does not match: {reason}"


def test_another_image_s_size(image: Path) -> None:
    bmap, _ = scanned(image)
    with pytest.raises(ManifestError) as caught:
        beside.check_size(bmap, image, 5)
    assert str(caught.value) == (
        f"{image}.bmap does not match: it is of an image of 9.0 MiB (9449529 bytes), and {image} has 5 bytes "
        f"(5 bytes); scan it again: asr imagescan {image}"
    )


def test_no_file(image: Path) -> None:
    os.mkfifo(beside.bmap_path(image))
    assert stale(image) == f"{image}.bmap is not a file"
