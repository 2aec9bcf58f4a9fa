"""Memory and cores within the limits of control groups, and runs that are too large for them."""

from functools import partial
from pathlib import Path

import psutil
import pytest

from cnnexp.core.errors import UsageError
from cnnexp.core.machine import available_memory, cores, machine_memory_text, total_memory
from cnnexp.sweep.cost import largest_stack, memory_warning, refuse_too_large
from tests.conftest import Configure

GB = 10**9
CGROUP_2 = "31 23 0:28 / /sys/fs/cgroup rw,relatime shared:4 - cgroup2 cgroup2 rw\n"
CGROUP_1 = """\
22 1 8:1 / / rw,relatime - ext4 /dev/sda1 rw
32 31 0:29 {0} /sys/fs/cgroup/cpu,cpuacct rw - cgroup cgroup rw,cpu,cpuacct
35 31 0:32 {0} /sys/fs/cgroup/memory rw,relatime shared:7 master:2 - cgroup cgroup rw,memory
"""
UNLIMITED = "9223372036854771712\n"  # no limit, in version 1


def make_root(root: Path, groups: str, mounts: str, files: dict[str, str]) -> Path:
    """Write the files of control groups that are read, and return their root."""
    for name, text in {"proc/self/cgroup": groups, "proc/self/mountinfo": mounts, **files}.items():
        path = root / (name if name.startswith("proc") else f"sys/fs/cgroup/{name}")
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_text(text)
    return root


def test_version_2_limits_are_the_smallest_of_all_enclosing_groups(tmp_path: Path) -> None:
    files = {
        "a/b/memory.max": "max\n",
        "a/b/memory.current": "400000000\n",
        "a/b/cpu.max": "max 100000\n",
        "a/memory.max": "2000000000\n",
        "a/memory.current": "1500000000\n",
        "a/memory.stat": "anon 1\ninactive_file 300000000\nactive_file 5\n",
        "a/cpu.max": "150000 100000\n",
        "memory.max": "3000000000\n",
        "memory.current": "1600000000\n",
        "other/memory.max": "1\n",
    }
    root = make_root(tmp_path, "0::/a/b\n", CGROUP_2, files)
    assert total_memory(root) == 2 * GB
    assert available_memory(root) == 2 * GB - (1_500_000_000 - 300_000_000)
    assert cores(root) == 1
    assert machine_memory_text(root) == "this machine has 2GB (a limit of its control group)"
    high = make_root(
        tmp_path / "high", "0::/a\n", CGROUP_2, {"a/memory.high": f"{GB}\n", "a/memory.max": "max\n"}
    )
    assert total_memory(high) == GB  # above that the kernel slows a process down to a crawl


@pytest.mark.parametrize("mounted", ["/", "/docker", "/docker/0a1b"])  # on the host, and within the container
def test_version_1_limits_are_read_in_a_container(tmp_path: Path, mounted: str) -> None:
    group = {"/": "docker/0a1b/", "/docker": "0a1b/", "/docker/0a1b": ""}[mounted]
    files = {
        f"memory/{group}memory.limit_in_bytes": "1300000000\n",
        f"memory/{group}memory.usage_in_bytes": "900000000\n",
        f"memory/{group}memory.stat": "inactive_file 7\ntotal_inactive_file 100000000\n",
        f"cpu,cpuacct/{group}cpu.cfs_quota_us": "50000\n",
        f"cpu,cpuacct/{group}cpu.cfs_period_us": "100000\n",
    }
    if group:
        files |= {"memory/memory.limit_in_bytes": UNLIMITED, "cpu,cpuacct/cpu.cfs_quota_us": "-1\n"}
    groups = "4:memory:/docker/0a1b\n1:cpu,cpuacct:/docker/0a1b\n0::/\n"
    root = make_root(tmp_path, groups, CGROUP_1.format(mounted), files)
    assert total_memory(root) == 1_300_000_000
    assert available_memory(root) == 500_000_000
    assert cores(root) == 1


def test_a_group_outside_the_mount_has_the_limits_of_the_mount(tmp_path: Path) -> None:
    root = make_root(
        tmp_path, "0::/../../pods/x\n", CGROUP_2, {"memory.max": f"{GB}\n", "cpu.max": "100000 50000\n"}
    )
    assert total_memory(root) == GB
    assert cores(root) == min(2, cores(tmp_path / "nothing"))


def test_without_limits_the_memory_is_that_of_the_machine(tmp_path: Path) -> None:
    unlimited = {"memory/memory.limit_in_bytes": UNLIMITED, "cpu,cpuacct/cpu.cfs_quota_us": "-1\n"}
    for root in (
        tmp_path / "none",
        make_root(tmp_path / "1", "4:memory:/\n", CGROUP_1.format("/"), unlimited),
    ):
        assert total_memory(root) == psutil.virtual_memory().total
        assert machine_memory_text(root).endswith("B")
        assert cores(root) >= 1


def test_a_stack_fits_in_the_free_memory_of_its_control_group(
    configure: Configure, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """7.5 MB of state each, in 1.3 GB, of which 300 MB are in use before the first stack."""
    config = configure(
        model={"tying": "local", "features": [512], "pool": "none"}, data={"scatter": False, "batch_size": 32}
    )
    without_limit = largest_stack(config)
    files = {"memory.max": "1300000000\n", "memory.current": "300000000\n"}
    root = make_root(tmp_path, "0::/\n", CGROUP_2, files)
    monkeypatch.setattr("cnnexp.sweep.cost.available_memory", partial(available_memory, root))
    # Measured with 60 runs: 4.3 times their state at most, beside 450 MB.
    assert 5 <= largest_stack(config) <= (1300 - 450) / (4.3 * 7.5) < without_limit


def test_the_error_of_a_run_too_large_for_memory_names_its_largest_part(
    configure: Configure, monkeypatch: pytest.MonkeyPatch
) -> None:
    fits = configure()
    refuse_too_large([fits])
    for section, values, message in (
        (
            "model",
            {"features": [10**9]},
            r"model: one run needs about [\d.]+TB .*most of it for layer conv_0",
        ),
        (
            "model",
            {"hidden": [10**12]},
            r"model: one run needs about [\d.]+PB .*most of it for layer dense_0",
        ),
        ("model", {"features": [10**9], "match": "params"}, r"model: one run needs about [\d.]+TB"),
        ("data", {"batch_size": 10**10}, r"data\.batch_size=10000000000: one run needs about [\d.]+TB"),
    ):
        with pytest.raises(UsageError, match=f"^{message}.*; this machine has ") as refused:
            refuse_too_large([fits, configure(**{section: values})])
        assert "\n" not in str(refused.value)
    slurm = {"name": "slurm"} | dict.fromkeys(("partition", "account", "qos", "constraint", "modules"))
    on_cluster = fits.model_copy(
        update={"launcher": slurm, "model": configure(model={"features": [10**9]}).model}
    )
    refuse_too_large([on_cluster])  # the memory of its machines is unknown
    assert memory_warning(fits) is None
    monkeypatch.setattr("cnnexp.sweep.cost.free_device_memory", lambda: 1000)
    assert (memory_warning(fits) or "").endswith("B of memory, but only 1kB is free")
    monkeypatch.setattr("cnnexp.sweep.cost.device_memory", lambda: 1000)
    with pytest.raises(
        UsageError, match=r"^data: the images alone need about [\d.]+kB of memory; this machine has"
    ):
        refuse_too_large([fits])
