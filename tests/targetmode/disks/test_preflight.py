import fcntl
import os
import socket
import subprocess
import sys
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path

import pytest

from targetmode.disks import preflight
from targetmode.disks.preflight import CannotOpen, InUse, NotADisk, PreflightError, Use, claim


@contextmanager
def another_program(code: str, *arguments: str | Path) -> Iterator[int]:
    """Runs Python code that says when it is ready and then sleeps; yields its process number."""
    script = f"import fcntl, os, sys, time\n{code}\nprint('ready', flush=True)\ntime.sleep(600)\n"
    command = [sys.executable, "-c", script, *map(str, arguments)]
    with subprocess.Popen(command, stdout=subprocess.PIPE, text=True) as process:
        try:
            assert process.stdout is not None
            assert process.stdout.readline() == "ready\n"
            yield process.pid
        finally:
            process.kill()


EXCLUSIVE = "os.open(sys.argv[1], os.O_RDONLY | os.O_EXCL)"
LOCKED = "fcntl.flock(os.open(sys.argv[1], os.O_RDONLY), fcntl.LOCK_EX)"
LOCKED_SHARED = "fcntl.flock(os.open(sys.argv[1], os.O_RDONLY), fcntl.LOCK_SH)"
IMPORT = "from targetmode.disks.preflight import claim"


def refusal(path: Path, *, read_only: bool = False) -> PreflightError:
    with pytest.raises(PreflightError) as caught:
        claim(path, read_only=read_only).close()
    assert "\n" not in str(caught.value)
    assert caught.value.path == str(path)
    return caught.value


@pytest.fixture
def image(make_image: Callable[..., Path]) -> Path:
    return make_image(8 << 20)


@pytest.fixture
def ext4(run: Callable[..., str], make_image: Callable[..., Path]) -> Path:
    image = make_image(name="ext4.img")
    run("mkfs.ext4", "-q", image)
    return image


@pytest.mark.parametrize("read_only", [True, False])
def test_image_is_claimed(image: Path, read_only: bool) -> None:
    with claim(image, read_only=read_only) as claimed:
        assert (claimed.path, claimed.size, claimed.read_only, claimed.is_block) == (image, 8 << 20, read_only, False)
        assert os.pread(claimed.fd, 4, 0) == bytes(4)
        assert not os.get_inheritable(claimed.fd)
        if read_only:
            with pytest.raises(OSError, match="Bad file descriptor"):
                os.pwrite(claimed.fd, b"x", 0)
        else:
            os.pwrite(claimed.fd, b"x", 0)
    assert claimed.fd == -1
    claimed.close()
    claim(image, read_only=False).close()


@pytest.mark.parametrize("read_only", [True, False])
def test_device_is_claimed_by_its_link(
    image: Path, attach: Callable[..., Path], tmp_path: Path, read_only: bool
) -> None:
    device = attach(image)
    link = tmp_path / "by-id"
    link.symlink_to(device)
    with claim(link, read_only=read_only) as claimed:
        assert (claimed.path, claimed.size, claimed.is_block) == (device, 8 << 20, True)
        with pytest.raises(OSError, match="busy"):
            os.open(device, os.O_RDONLY | os.O_EXCL)
    claim(device, read_only=False).close()


def test_two_readers_share_an_image_but_a_writer_is_alone(image: Path) -> None:
    with claim(image, read_only=True), claim(image, read_only=True):
        error = refusal(image)
        assert isinstance(error, InUse)
        assert str(error).startswith(f"{image} is locked by process {os.getpid()} (")
    with claim(image, read_only=False):
        assert isinstance(refusal(image, read_only=True), InUse)
        assert isinstance(refusal(image), InUse)


def test_second_claim_of_a_device_names_the_first(image: Path, attach: Callable[..., Path]) -> None:
    device = attach(image)
    with another_program(f"{IMPORT}\nkept = claim(sys.argv[1], read_only=True)", device) as pid:
        error = refusal(device, read_only=True)
        assert isinstance(error, InUse)
        assert str(error).startswith(f"{device} is opened exclusively by another program (process {pid} (python")
    with another_program(f"{IMPORT}\nkept = claim(sys.argv[1], read_only=False)", device) as pid:
        assert str(refusal(device)).startswith(f"{device} is locked by process {pid} (python")


def test_claim_lasts_until_every_process_that_has_it_ends(image: Path) -> None:
    claimed = claim(image, read_only=False)
    ready, wake = os.pipe()
    child = os.fork()
    if child == 0:
        os.close(wake)
        os.read(ready, 1)
        os._exit(0)
    os.close(ready)
    claimed.close()
    assert isinstance(refusal(image), InUse)
    os.close(wake)
    os.waitpid(child, 0)
    claim(image, read_only=False).close()


def test_file_locked_by_another_program(image: Path) -> None:
    with another_program(LOCKED, image) as pid:
        error = refusal(image, read_only=True)
        assert str(error).startswith(f"{image} is locked by process {pid} (python")
        assert str(error).endswith("; stop what uses it first")
    with another_program(LOCKED_SHARED, image) as pid:
        assert str(refusal(image)).startswith(f"{image} is locked by process {pid} (python")
        claim(image, read_only=True).close()


def test_device_opened_exclusively_by_another_program(image: Path, attach: Callable[..., Path]) -> None:
    device = attach(image)
    with another_program(EXCLUSIVE, device) as pid:
        error = refusal(device)
        assert isinstance(error, InUse)
        assert error.uses[0].kind == "exclusive"
        assert str(error).startswith(f"{device} is opened exclusively by another program (process {pid} (python")


def test_passing_lock_on_a_device_is_waited_for(
    image: Path, attach: Callable[..., Path], monkeypatch: pytest.MonkeyPatch
) -> None:
    device = attach(image)
    code = "fd = os.open(sys.argv[1], os.O_RDONLY); fcntl.flock(fd, fcntl.LOCK_SH)\n"
    code += "os.fork() or (time.sleep(0.3), os._exit(0)); os.close(fd)"
    with another_program(code, device):
        claim(device, read_only=False).close()
    monkeypatch.setattr(preflight, "LOCK_PATIENCE", 0.1)
    with another_program(LOCKED_SHARED, device) as pid:
        assert f"is locked by process {pid}" in str(refusal(device))


def test_mounted_device(ext4: Path, attach: Callable[..., Path], mount: Callable[..., Path]) -> None:
    device = attach(ext4)
    directory = mount(device)
    error = refusal(device, read_only=True)
    assert isinstance(error, InUse)
    assert str(error) == f"{device} is mounted on {directory}; unmount it first: umount {directory}"


def test_image_behind_a_loop_device(ext4: Path, attach: Callable[..., Path]) -> None:
    device = attach(ext4)
    assert str(refusal(ext4)) == f"{ext4} is the backing file of {device}; free it first: losetup -d {device}"


def test_swap_device(
    image: Path, run: Callable[..., str], attach: Callable[..., Path], swapon: Callable[[Path], None]
) -> None:
    device = attach(image)
    run("mkswap", device)
    swapon(device)
    assert str(refusal(device)) == f"{device} is used as swap; free it first: swapoff {device}"


def test_swap_file(image: Path, run: Callable[..., str], swapon: Callable[[Path], None]) -> None:
    image.write_bytes(bytes(8 << 20))
    image.chmod(0o600)
    run("mkswap", image)
    swapon(image)
    assert str(refusal(image)) == f"{image} is used as swap; free it first: swapoff {image}"


@pytest.fixture
def partitions(
    run: Callable[..., str], make_image: Callable[..., Path], attach_partitioned: Callable[[Path], Path]
) -> tuple[Path, Path, Path]:
    """A disk and its two partitions."""
    image = make_image(name="partitioned.img")
    run("sgdisk", "-n1:1M:+20M", "-n2:0:0", image)
    disk = attach_partitioned(image)
    return disk, Path(f"{disk}p1"), Path(f"{disk}p2")


def test_disk_with_a_mounted_partition(
    run: Callable[..., str], mount: Callable[..., Path], partitions: tuple[Path, Path, Path]
) -> None:
    disk, first, second = partitions
    run("mkfs.ext4", "-q", first)
    directory = mount(first)
    assert str(refusal(disk)) == (
        f"{disk} is in use: partition {first.name}: mounted on {directory}; unmount it first: umount {directory}"
    )
    claim(second, read_only=False).close()


def test_disk_and_its_partition_exclude_each_other(partitions: tuple[Path, Path, Path]) -> None:
    disk, first, second = partitions
    with claim(disk, read_only=False):
        assert f"is in use: whole disk {disk.name}: locked by process {os.getpid()}" in str(refusal(first))
    with claim(disk, read_only=True):
        assert f"opened exclusively by another program (process {os.getpid()}" in str(refusal(first, read_only=True))
    with claim(first, read_only=False):
        assert f"is in use: partition {first.name}: locked by process {os.getpid()}" in str(refusal(disk))
        claim(second, read_only=False).close()


def test_write_protected_device(image: Path, attach: Callable[..., Path]) -> None:
    device = attach(image, "--read-only")
    error = refusal(device)
    assert isinstance(error, CannotOpen)
    assert str(error) == f"{device} is write-protected; it can only be read"
    claim(device, read_only=True).close()


def test_device_without_medium(requires_root: None) -> None:
    number = 100000 + os.getpid() % 100000
    with Path("/dev/loop-control").open("rb") as control:
        fcntl.ioctl(control, 0x4C80, number)  # LOOP_CTL_ADD
        try:
            assert str(refusal(Path(f"/dev/loop{number}"))) == f"/dev/loop{number} has no medium"
        finally:
            fcntl.ioctl(control, 0x4C81, number)  # LOOP_CTL_REMOVE


def test_what_is_no_disk(tmp_path: Path) -> None:
    os.mkfifo(tmp_path / "fifo")
    (tmp_path / "empty").touch()
    (tmp_path / "dangling").symlink_to("nowhere")
    (tmp_path / "circle").symlink_to("circle")
    with socket.socket(socket.AF_UNIX) as listener:
        listener.bind(os.path.relpath(tmp_path / "socket"))
        for path, why in (
            (tmp_path, "is a directory, not a block device or an image file"),
            (tmp_path / "fifo", "is a FIFO, not a block device or an image file"),
            (tmp_path / "socket", "is a socket, not a block device or an image file"),
            (Path("/dev/null"), "is a character device, not a block device or an image file"),
            (tmp_path / "empty", "is an empty file"),
            (tmp_path / "missing", "does not exist"),
            (tmp_path / "empty" / "below", "does not exist"),
            (tmp_path / "dangling", "does not exist"),
            (tmp_path / "circle", "is a symbolic link that leads nowhere"),
        ):
            error = refusal(path)
            assert isinstance(error, NotADisk)
            assert str(error) == f"{path} {why}"
            assert error.why == why


def test_no_permission(as_nobody: Callable[[str, str], str]) -> None:
    code = "try: claim(sys.argv[1], read_only=True)\nexcept Exception as e: print(type(e).__name__, e)"
    assert as_nobody(IMPORT, code) == "CannotOpen IMAGE may not be opened to read; this needs root\n"


def test_use_that_begins_while_the_device_is_opened_is_noticed(image: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    answers = iter([(), (Use("loop", "backing file of /dev/loop9"),)])
    monkeypatch.setattr("targetmode.disks.uses.Survey.of_path", lambda self, path: next(answers))
    before = len(list(Path("/proc/self/fd").iterdir()))
    assert str(refusal(image)) == f"{image} is the backing file of /dev/loop9; stop what uses it first"
    assert len(list(Path("/proc/self/fd").iterdir())) == before


def test_device_that_is_replaced_while_it_is_opened_is_noticed(
    image: Path, make_image: Callable[..., Path], monkeypatch: pytest.MonkeyPatch
) -> None:
    other = make_image(1 << 20, "other.img")
    real_open = os.open
    monkeypatch.setattr(os, "open", lambda path, flags: real_open(other, flags))
    error = refusal(image)
    monkeypatch.undo()
    assert str(error) == f"{image} was replaced while it was being opened; try again"


def test_refused_device_is_not_opened(
    ext4: Path, attach: Callable[..., Path], mount: Callable[..., Path], monkeypatch: pytest.MonkeyPatch
) -> None:
    device = attach(ext4)
    mount(device)
    opened = []
    real_open = os.open

    def spy(path: str | Path, flags: int, mode: int = 0o777) -> int:
        opened.append(str(path))
        return real_open(path, flags, mode)

    monkeypatch.setattr(os, "open", spy)
    refusal(device)
    monkeypatch.undo()
    assert set(opened) <= {f"/dev/{loop.name}" for loop in Path("/sys/block").glob("loop*")}, (
        "only asked what backs them"
    )


def test_many_uses_are_cut_short() -> None:
    uses = tuple(Use("mount", f"mounted on /{name}", f"partition sda{name}", (f"umount /{name}",)) for name in "12345")
    assert str(InUse("/dev/sda", uses)) == (
        "/dev/sda is in use: partition sda1: mounted on /1, partition sda2: mounted on /2, partition sda3: mounted on"
        " /3 and 2 more; unmount it first: umount /1 && umount /2 && umount /3 && umount /4 && umount /5"
    )


def test_running_system_is_not_to_be_unmounted() -> None:
    uses = (
        Use("mount", "mounted on /", "partition sda2"),
        Use("swap", "used as swap", remedies=("swapoff /dev/sda3",)),
    )
    assert str(InUse("/dev/sda", uses)).endswith("; it holds the running system")


def test_member_of_an_array_reads_well() -> None:
    error = InUse("/dev/sda", (Use("raid", "member of md0", remedies=("mdadm --stop /dev/md0",)),))
    assert str(error) == "/dev/sda is a member of md0; free it first: mdadm --stop /dev/md0"


def test_lock_is_let_go_with_the_descriptor(image: Path) -> None:
    with claim(image, read_only=False):
        pass
    with image.open("rb") as file:
        fcntl.flock(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
