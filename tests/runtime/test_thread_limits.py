"""How many threads: what a container grants, and what the system lets start."""

import math
import os
import subprocess
import sys

import pytest

from fusedstep import _core

V2 = "29 23 0:26 / /sys/fs/cgroup rw,nosuid - cgroup2 cgroup2 rw,nsdelegate\n"
V1 = "31 30 0:28 / /sys/fs/cgroup/cpu,cpuacct rw - cgroup cgroup rw,cpu,cpuacct\n"
V1_DIRECTORY = "sys/fs/cgroup/cpu,cpuacct"


def tree(root, mountinfo, cgroup, files):
    """A machine's files below `root`."""
    for path, text in {"proc/self/mountinfo": mountinfo, "proc/self/cgroup": cgroup, **files}.items():
        if text is not None:
            (root / path).parent.mkdir(parents=True, exist_ok=True)
            (root / path).write_text(text)
    return str(root)


class TestQuota:
    @pytest.mark.parametrize(
        ("text", "quota"),
        [
            ("200000 100000\n", 2.0),
            ("50000 100000\n", 0.5),
            ("150000 100000\n", 1.5),
            ("max 100000\n", math.inf),
            ("max\n", math.inf),
            ("300000\n", 3.0),
            ("30000 10000", 3.0),
            ("1000 1000000", 0.001),
            ("", math.inf),
            ("0 100000", math.inf),
            ("100000 0", math.inf),
            ("-5 100000", math.inf),
            ("1e5 nan", math.inf),
            ("two 100000", math.inf),
            ("200000x 100000", math.inf),
            (None, math.inf),
        ],
    )
    def test_version_2(self, tmp_path, text, quota):
        root = tree(tmp_path, V2, "0::/docker/a\n", {"sys/fs/cgroup/docker/a/cpu.max": text})
        assert _core.testing.processor_quota(root) == quota
        assert _core.testing.usable_processors(root) == min(
            len(os.sched_getaffinity(0)), max(1, math.ceil(min(quota, 1e9)))
        )

    @pytest.mark.parametrize(
        ("quota_text", "period_text", "quota"),
        [
            ("200000\n", "100000\n", 2.0),
            ("-1\n", "100000\n", math.inf),
            ("25000\n", "50000\n", 0.5),
            ("300000\n", None, 3.0),
            (None, "100000\n", math.inf),
            ("", "", math.inf),
            ("100000", "0", math.inf),
        ],
    )
    def test_version_1(self, tmp_path, quota_text, period_text, quota):
        files = {
            f"{V1_DIRECTORY}/docker/a/cpu.cfs_quota_us": quota_text,
            f"{V1_DIRECTORY}/docker/a/cpu.cfs_period_us": period_text,
        }
        cgroup = "12:pids:/docker/b\n4:cpu,cpuacct:/docker/a\n1:name=systemd:/x:y\n"
        assert _core.testing.processor_quota(tree(tmp_path, V1, cgroup, files)) == quota

    @pytest.mark.parametrize("least", ["", "/a", "/a/b", "/a/b/c"])
    def test_the_least_of_the_groups_on_the_path(self, tmp_path, least):
        limits = {"": "max 100000", "/a": "800000 100000", "/a/b": "600000 100000", "/a/b/c": "max 100000"}
        limits[least] = "300000 200000"
        beside = {"/a/x": "1000 100000", "/a/b/c/d": "1000 100000"}
        files = {f"sys/fs/cgroup{group}/cpu.max": text for group, text in (limits | beside).items()}
        assert _core.testing.processor_quota(tree(tmp_path, V2, "0::/a/b/c\n", files)) == 1.5

    def test_groups_on_the_path_of_version_1(self, tmp_path):
        files = {f"{V1_DIRECTORY}{group}/cpu.cfs_period_us": "100000" for group in ("", "/a", "/a/b")}
        for group, quota in (("", "-1"), ("/a", "250000"), ("/a/b", "-1")):
            files[f"{V1_DIRECTORY}{group}/cpu.cfs_quota_us"] = quota
        assert _core.testing.processor_quota(tree(tmp_path, V1, "4:cpu,cpuacct:/a/b\n", files)) == 2.5

    @pytest.mark.parametrize(
        ("mounted", "group", "directory"),
        [
            # A container whose own group is mounted as the root, with and without a namespace of groups.
            ("/docker/a", "/docker/a", ""),
            ("/docker/a", "/docker/a/inner", "/inner"),
            ("/", "/", ""),
            # Names that only begin alike, and ways that leave what is mounted.
            ("/docker/a", "/docker/abc", ""),
            ("/..", "/docker", ""),
            ("/", "/../../other", ""),
        ],
    )
    def test_what_is_mounted(self, tmp_path, mounted, group, directory):
        mount = f"29 23 0:26 {mounted} /sys/fs/cgroup rw shared:4 master:1 - cgroup2 cgroup rw\n"
        files = {f"sys/fs/cgroup{directory}/cpu.max": "200000 100000"}
        assert _core.testing.processor_quota(tree(tmp_path, mount, f"0::{group}\n", files)) == 2.0

    def test_a_mount_point_with_a_blank(self, tmp_path):
        mount = r"29 23 0:26 / /my\040groups rw - cgroup2 cgroup rw" + "\n"
        assert (
            _core.testing.processor_quota(tree(tmp_path, mount, "0::/\n", {"my groups/cpu.max": "200000 100000"}))
            == 2.0
        )

    def test_both_versions(self, tmp_path):
        """Version 1 limits the processor while version 2 is there for the rest."""
        unified = V2.replace("/sys/fs/cgroup ", "/sys/fs/cgroup/unified ")
        files = {f"{V1_DIRECTORY}/cpu.cfs_quota_us": "150000", f"{V1_DIRECTORY}/cpu.cfs_period_us": "100000"}
        assert _core.testing.processor_quota(tree(tmp_path, unified + V1, "4:cpu,cpuacct:/\n0::/\n", files)) == 1.5

    @pytest.mark.parametrize(
        ("mountinfo", "cgroup"),
        [
            (None, None),
            ("", ""),
            (V2, None),
            (V2, "garbage\n::\n0:\n"),
            ("29 23\n - cgroup2\n- - - -\n", "0::/\n"),
            (V1.replace("cpu,cpuacct\n", "cpuset\n"), "4:cpuset:/\n"),
            (V2, "0::a/b\n"),
        ],
    )
    def test_no_groups(self, tmp_path, mountinfo, cgroup):
        files = {"sys/fs/cgroup/x/cpu.max": "1000 100000"}
        assert _core.testing.processor_quota(tree(tmp_path, mountinfo, cgroup, files)) == math.inf

    def test_never_less_than_one_thread(self, tmp_path):
        root = tree(tmp_path, V2, "0::/\n", {"sys/fs/cgroup/cpu.max": "1000 100000"})
        assert _core.testing.usable_processors(root) == 1

    def test_affinity_holds_too(self, tmp_path):
        root = tree(tmp_path, V2, "0::/\n", {"sys/fs/cgroup/cpu.max": "99900000 100000"})
        assert _core.testing.usable_processors(root) == len(os.sched_getaffinity(0))


LIMITED = """
import os, resource, sys, threading, warnings
import numpy as np, fusedstep as fs
from fusedstep import _core

_core.testing.force_parallel(True)
p, g = np.ones(300_000, np.float32), np.ones(300_000, np.float32)
opt = fs.SGD(p, lr=0.5, momentum=0.5)

def limit_memory(megabytes):
    pages = int(open("/proc/self/statm").read().split()[0])
    resource.setrlimit(resource.RLIMIT_AS, [pages * resource.getpagesize() + (megabytes << 20)] * 2)

def limit_processes(number):
    os.setuid(60_000 + os.getpid() % 5000)  # the limit counts all processes of a user: nobody else's test is this one
    resource.setrlimit(resource.RLIMIT_NPROC, (number, number))
"""


def python(code, *options, **environment):
    # The stacks of threads follow from the limit of the main one's.
    command = ["bash", "-c", 'ulimit -s 8192; exec "$@"', "bash", sys.executable, *options, "-c", LIMITED + code]
    environment = {**os.environ, "OPENBLAS_NUM_THREADS": "1", "PYTHONPATH": os.pathsep.join(sys.path), **environment}
    return subprocess.run(command, capture_output=True, text=True, timeout=120, check=False, env=environment)


LIMITS = [
    "limit_memory(100)",
    pytest.param(
        "limit_processes(20)", marks=pytest.mark.skipif(os.geteuid() != 0, reason="only root can become another user")
    ),
]


class TestShortage:
    @pytest.mark.parametrize("limit", LIMITS)
    def test_fewer_threads_compute_and_say_so_once(self, limit):
        """OpenMP would end the process."""
        done = python(
            limit
            + """
fs.runtime.set_num_threads(64)
with warnings.catch_warnings(record=True) as seen:
    warnings.simplefilter("always")
    for _ in range(3):
        opt.step(g)
    fs.softmax(np.ones((3000, 100), np.float32))
print([str(w.message) for w in seen], [w.category.__name__ for w in seen], fs.runtime.num_threads(), p[0], p[-1])
"""
        )
        assert done.returncode == 0, done.stderr
        left = int(done.stdout.split()[-3])
        assert 1 < left < 30
        message = f"num_threads: 64 threads cannot be started under the limits of this process, {left} compute"
        # p = 1 − ½(1) − ½(1 + ½) − ½(1 + ½ + ¼)
        assert done.stdout == f"[{message!r}] ['RuntimeWarning'] {left} -1.125 -1.125\n"

    @pytest.mark.parametrize("limit", LIMITS)
    def test_where_warnings_are_errors_nothing_is_written(self, limit):
        done = python(
            limit
            + """
fs.runtime.set_num_threads(64)
try:
    opt.step(g)
except RuntimeWarning as warning:
    print(str(warning)[:30], (p == 1).all(), opt.state, opt.state_dict()["step"])
print(opt.step(g).step, p[0])
""",
            "-Werror",
        )
        assert (done.returncode, done.stdout) == (0, "num_threads: 64 threads cannot True {} 0\n1 0.5\n"), done.stderr

    def test_every_thread_that_calls(self):
        """Each has a team of its own, and keeps it. The callers themselves start before memory is short."""
        done = python(
            """
fs.runtime.set_num_threads(6)
warnings.simplefilter("ignore")
arrays = [np.ones(100_000, np.float32) for _ in range(8)]
turns = [threading.Event() for _ in arrays]
worked, leave = threading.Semaphore(0), threading.Event()
def work(a, turn):
    turn.wait()
    try:
        fs.SGD(a, lr=0.5).step(g[:100_000])
    finally:
        worked.release()
    leave.wait()
callers = [threading.Thread(target=work, args=pair) for pair in zip(arrays, turns)]
for each in callers:
    each.start()
opt.step(g)
limit_memory(60)
for turn in turns:
    turn.set()
    worked.acquire()
leave.set()
for each in callers:
    each.join()
print({float(a[0]) for a in arrays}, fs.runtime.num_threads())
"""
        )
        assert (done.returncode, done.stdout) == (0, "{0.5} 1\n"), done.stderr

    def test_stacks_of_the_size_that_openmp_gives_its_threads(self):
        code = "limit_memory(300)\nfs.runtime.set_num_threads(16)\nopt.step(g)\nprint(fs.runtime.num_threads())"
        for size, expected in (("64M", {1, 2, 3, 4}), ("64 m", {1, 2, 3, 4}), ("512", {16}), ("512k", {16})):
            done = python(code, "-Wignore", OMP_STACKSIZE=size)
            assert done.returncode == 0, done.stderr
            assert int(done.stdout) in expected, size

    def test_threads_that_can_be_started_are(self):
        done = python("fs.runtime.set_num_threads(9)\nopt.step(g)\nprint(fs.runtime.num_threads())", "-Werror")
        assert (done.returncode, done.stdout) == (0, "9\n"), done.stderr
