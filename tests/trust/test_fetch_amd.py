"""AMD's collateral: what a report needs, the cache's rules, throttling, lies, crowds of threads and processes."""

from __future__ import annotations

import contextlib
import dataclasses
import subprocess
import sys
import threading
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from datetime import timedelta
from pathlib import Path

import pytest
from tests.tee.snp import signer
from tests.trust.services import QUICK, Call, Kds, Reply, Service, Time, fetcher, pem, serving

from cloister.errors import MalformedError, NotGenuineError, UndecidedError, UsageError
from cloister.tee.snp.evidence import Report
from cloister.tee.snp.needs import needs
from cloister.trust import crl
from cloister.trust.chain import P384
from cloister.trust.fetch.cache import Cache
from cloister.trust.fetch.fetcher import Fetcher
from cloister.trust.fetch.http import Http, Limits
from cloister.trust.need import Need

DAY = timedelta(days=1)


@pytest.fixture
def kds() -> Kds:
    return Kds()


@pytest.fixture
def service(kds: Kds) -> Iterator[Service]:
    with serving(kds) as running:
        yield running


@pytest.fixture
def time() -> Time:
    return Time()


def _need(kind: str, product: str = "Genoa", **changes: int | bytes) -> Need:
    """What a report of that product needs of that kind."""
    return next(need for need in needs(signer.report(product, **changes)) if need.kind == kind)


def _only(folder: Path) -> Path:
    """The cache's one file."""
    (found,) = folder.glob("*.item")
    return found


@pytest.mark.parametrize("product", ["Milan", "Genoa", "Turin"])
def test_what_is_fetched_verifies(service: Service, time: Time, tmp_path: Path, product: str) -> None:
    report = signer.report(product)
    get = fetcher(tmp_path, time, base=service.url).get
    items = tuple(get(need) for need in needs(report))
    assert [item.kind for item in items] == ["amd-vcek", "amd-ask", "amd-crl"]
    claims = signer.Setting(items=items, anchors=(signer.root(product),)).verify(report)
    assert claims.details.revocation_until is not None
    assert len(service.calls) == 3


def test_a_report_that_does_not_name_its_product(service: Service, time: Time, tmp_path: Path) -> None:
    report = signer.report("Genoa", 2)
    fetching = fetcher(tmp_path, time, base=service.url)
    items = tuple(fetching.get(need) for need in needs(report))
    assert [item.kind for item in items] == ["amd-vcek", "amd-ask", "amd-ask", "amd-crl", "amd-crl"]
    signer.Setting(items=items, anchors=(signer.root("Genoa"),)).verify(report)
    assert [call.route.split("/")[3] for call in service.calls[:2]] == ["Milan", "Genoa"]
    before = len(service.calls)
    assert fetching.get(needs(report)[0]) == items[0]
    assert fetcher(tmp_path, time, base=service.url, offline=True).get(needs(report)[0]) == items[0]
    assert len(service.calls) == before


def test_a_vlek_and_a_hidden_chip_are_not_asked_for(service: Service, time: Time, tmp_path: Path) -> None:
    get = fetcher(tmp_path, time, base=service.url).get
    found = needs(signer.report("Genoa", vlek=True))
    with pytest.raises(UndecidedError, match="VLEK"):
        get(found[0])
    masked = needs(signer.report("Genoa", chip_id=bytes(64), flags=2))
    with pytest.raises(UndecidedError, match="hides"):
        get(masked[0])
    assert service.calls == []
    get(found[1])
    assert [call.route for call in service.calls] == ["/vlek/v1/Genoa/cert_chain"]


def test_hits_ask_nothing_and_survive_the_process(service: Service, time: Time, tmp_path: Path) -> None:
    items = [fetcher(tmp_path, time, base=service.url).get(need) for need in needs(signer.report())]
    asked = len(service.calls)
    time.now += timedelta(hours=23)
    for offline in (False, True):
        again = fetcher(tmp_path, time, base=service.url, offline=offline)
        assert [again.get(need) for need in needs(signer.report())] == items
    assert len(service.calls) == asked


def test_another_chip_or_tcb_is_another_question(service: Service, kds: Kds, time: Time, tmp_path: Path) -> None:
    fetching = fetcher(tmp_path, time, base=service.url)
    fetching.get(_need("amd-vcek"))
    for changes in ({"chip_id": b"\x77" * 64}, {"reported_tcb": signer.tcb_bytes("Genoa", (0, 10, 1, 22, 84))}):
        with pytest.raises(UndecidedError, match="404"):
            fetching.get(_need("amd-vcek", **changes))
        with pytest.raises(UndecidedError, match="offline"):
            fetcher(tmp_path, time, base=service.url, offline=True).get(_need("amd-vcek", **changes))
    assert len(service.calls) == 3


def test_offline_opens_no_socket(time: Time, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def none(*_: object, **__: object) -> None:
        raise AssertionError("a socket")

    monkeypatch.setattr("socket.socket.__init__", none)
    monkeypatch.setattr("socket.getaddrinfo", none)
    for need in needs(signer.report()):
        with pytest.raises(UndecidedError, match="offline"):
            fetcher(tmp_path, time, base="http://127.0.0.1:1", offline=True).get(need)


def test_throttled_then_answered(service: Service, kds: Kds, time: Time, tmp_path: Path) -> None:
    kds.busy = [Reply(429, headers={"Retry-After": "10"})]
    fetcher(tmp_path, time, base=service.url).get(_need("amd-vcek"))
    assert time.slept == [10.0]
    assert len(service.calls) == 2


def test_a_list_is_asked_for_again_each_day(service: Service, kds: Kds, time: Time, tmp_path: Path) -> None:
    fetching, need = fetcher(tmp_path, time, base=service.url), _need("amd-crl")
    first = fetching.get(need)
    newer = signer.revocations("Genoa", (0x10001,), start=signer.NOW + DAY, end=signer.NOW + 40 * DAY)
    kds.crl = lambda product: newer
    assert fetching.get(need) == first
    time.now += DAY
    assert fetching.get(need).data == newer
    assert len(service.calls) == 2


@pytest.mark.parametrize(
    "failing",
    [
        lambda call: Reply(503),
        lambda call: Reply(404),
        lambda call: Reply(429, headers={"Retry-After": "9999"}),
        lambda call: Reply(body=b"<html>login</html>"),
        lambda call: Reply(body=signer.revocations("Milan")),
        # Expired already; and one that is older than what is known.
        lambda call: Reply(body=signer.revocations("Genoa", end=signer.NOW - DAY)),
        lambda call: Reply(body=signer.revocations("Genoa", start=signer.NOW - 31 * DAY)),
        lambda call: Reply(body=signer.revocations("Genoa", start=signer.NOW + 20 * DAY)),
    ],
)
def test_an_old_list_is_used_while_it_holds_and_never_longer(
    service: Service, time: Time, tmp_path: Path, failing: object
) -> None:
    fetching, need = fetcher(tmp_path, time, base=service.url), _need("amd-crl")
    first = fetching.get(need)
    service.answer = failing  # type: ignore[assignment]
    time.now = signer.NOW + 10 * DAY
    assert fetching.get(need) == first
    assert len(service.calls) > 1
    time.now = signer.NOW + 10 * DAY
    assert fetcher(tmp_path, time, base=service.url, offline=True).get(need) == first
    time.now = signer.NOW + 30 * DAY + timedelta(seconds=1)
    for offline in (True, False):
        with pytest.raises(UndecidedError):
            fetcher(tmp_path, time, base=service.url, offline=offline).get(need)
    assert list(tmp_path.glob("*.item")) == []


_LIES = {
    "a page with status 200": Reply(body=b"<!doctype html><p>Sign in"),
    "nothing": Reply(body=b""),
    "a certificate and more": Reply(body=signer.endorsement("Genoa") + b"\x00"),
    "the VCEK of another product": Reply(body=signer.endorsement("Milan")),
    "the VCEK of another chip": Reply(
        body=signer.endorsement("Genoa", amd=signer.extensions("Genoa", x4=b"\x01" * 64))
    ),
    "another TCB's": Reply(body=signer.endorsement("Genoa", amd=signer.extensions("Genoa", tcb=(0, 10, 1, 23, 83)))),
    "a VLEK": Reply(body=signer.endorsement("Genoa", vlek=True)),
    "one that has ended": Reply(body=signer.endorsement("Genoa", end=signer.NOW - DAY)),
    "one of the future": Reply(body=signer.endorsement("Genoa", start=signer.NOW + DAY)),
    "a flood": Reply(body=b"0" * 5_000_000),
}


@pytest.mark.parametrize("lie", _LIES)
def test_no_lie_enters_the_cache(service: Service, kds: Kds, time: Time, tmp_path: Path, lie: str) -> None:
    fetching = fetcher(tmp_path, time, base=service.url)
    service.answer = lambda call: _LIES[lie]
    with pytest.raises(UndecidedError) as caught:
        fetching.get(_need("amd-vcek"))
    assert caught.value.hint
    assert signer.CHIP["Genoa"].hex() not in str(caught.value)
    assert list(tmp_path.glob("*.item")) == []
    service.answer = kds
    fetching.get(_need("amd-vcek"))
    assert _only(tmp_path)


@pytest.mark.parametrize(
    "body", [b"", b"garbage", signer.intermediate("Milan"), signer.intermediate("Genoa", vlek=True)]
)
def test_no_lie_about_the_chain_enters_the_cache(service: Service, time: Time, tmp_path: Path, body: bytes) -> None:
    whole = pem(body, signer._root("ARK-Genoa")) if body[:1] == b"\x30" else body
    service.answer = lambda call: Reply(body=whole)
    with pytest.raises(UndecidedError):
        fetcher(tmp_path, time, base=service.url).get(_need("amd-ask"))
    assert list(tmp_path.glob("*.item")) == []


@pytest.mark.parametrize(
    "damage",
    [
        lambda data: b"",
        lambda data: data[:-1],
        lambda data: data + b"\x00",
        lambda data: data[:-1] + bytes((data[-1] ^ 1,)),
        lambda data: data.replace(b'"fetched": 1', b'"fetched": 9', 1),
        lambda data: data.replace(b"amd-vcek", b"amd-none", 1),
        lambda data: b"\x00" * 3_000_000,
        lambda data: b"[" * 100_000,
    ],
)
def test_a_damaged_file_is_dropped_and_asked_for_again(
    service: Service, time: Time, tmp_path: Path, damage: object
) -> None:
    fetching, need = fetcher(tmp_path, time, base=service.url), _need("amd-vcek")
    first = fetching.get(need)
    path = _only(tmp_path)
    path.write_bytes(damage(path.read_bytes()))  # type: ignore[operator]
    with pytest.raises(UndecidedError, match="offline"):
        fetcher(tmp_path, time, base=service.url, offline=True).get(need)
    assert not path.exists()
    assert fetching.get(need).kind == first.kind
    assert len(service.calls) == 2


def test_a_poisoned_file_whose_checksum_fits_is_dropped(service: Service, time: Time, tmp_path: Path) -> None:
    """Whatever stands in the cache is checked as if it had just come."""
    fetching, need = fetcher(tmp_path, time, base=service.url), _need("amd-vcek")
    fetching.get(need)
    cache = Cache(tmp_path)
    (entry,) = cache.entries()
    for data in (b"garbage", signer.endorsement("Milan"), signer.endorsement("Genoa", end=signer.NOW - DAY)):
        cache.store(dataclasses.replace(entry, data=data))
        before = len(service.calls)
        assert fetching.get(need).data not in (b"garbage", data)
        assert len(service.calls) == before + 1
    # A good answer to another question under this one's name.
    other = dataclasses.replace(entry, key="another question")
    _only(tmp_path).write_bytes(other.to_bytes())
    assert cache.load(entry.key) is None


def test_a_list_of_no_known_version(service: Service, time: Time, tmp_path: Path) -> None:
    """The library has an exception of its own for that: found by fuzzing."""
    good = signer.revocations("Genoa")
    at = good.index(b"\x02\x01\x01")
    bad = good[: at + 2] + b"\x03" + good[at + 3 :]
    service.answer = lambda call: Reply(body=bad)
    with pytest.raises(UndecidedError, match="not an X.509 certificate revocation list"):
        fetcher(tmp_path, time, base=service.url).get(_need("amd-crl"))
    for read in (crl.issuer, lambda der: crl.load(der, "", signer.leaf_key().public_key(), P384, now=signer.NOW)):
        with pytest.raises(MalformedError):
            read(bad)


def test_refresh_asks_whatever_is_kept(service: Service, kds: Kds, time: Time, tmp_path: Path) -> None:
    need, old = _need("amd-crl"), signer.revocations("Genoa", start=signer.NOW - 31 * DAY)
    first = fetcher(tmp_path, time, base=service.url).get(need)
    kds.crl = lambda product: old
    assert fetcher(tmp_path, time, base=service.url, refresh=True).get(need).data == old != first.data
    service.answer = lambda call: Reply(503)
    assert fetcher(tmp_path, time, base=service.url, refresh=True).get(need).data == old
    with pytest.raises(UsageError):
        fetcher(tmp_path, time, offline=True, refresh=True)


def test_a_strangers_questions_leave_few_files(service: Service, time: Time, tmp_path: Path) -> None:
    service.answer = lambda call: Reply(404)
    fetching = fetcher(tmp_path, time, base=service.url, limits=Limits(tries=1))
    for number in range(40):
        with pytest.raises(UndecidedError):
            fetching.get(Need(kind="nvidia-rim", parameters={"id": f"A{number}"}))
    assert {path.name.partition("-")[0] for path in tmp_path.iterdir()} == {"item"}
    assert all(len(path.name) == len("item-00.lock") for path in tmp_path.iterdir())


def test_a_clock_that_went_back_makes_the_cache_stale(service: Service, time: Time, tmp_path: Path) -> None:
    fetching, need = fetcher(tmp_path, time, base=service.url), _need("amd-crl")
    time.now += 5 * DAY
    fetching.get(need)
    time.now -= 5 * DAY
    fetching.get(need)
    assert len(service.calls) == 2


def test_the_cache_is_private(service: Service, time: Time, tmp_path: Path) -> None:
    folder = tmp_path / "cache"
    folder.mkdir(mode=0o755)
    fetcher(folder, time, base=service.url).get(_need("amd-vcek"))
    assert folder.stat().st_mode & 0o777 == 0o700
    assert {path.stat().st_mode & 0o077 for path in folder.glob("*.item")} == {0}
    assert not list(folder.glob(".incoming*"))
    assert signer.CHIP["Genoa"].hex() not in "".join(path.name for path in folder.iterdir())


def test_threads_that_miss_at_once_ask_once(service: Service, kds: Kds, time: Time, tmp_path: Path) -> None:
    fetching, entered, go = fetcher(tmp_path, time, base=service.url), threading.Event(), threading.Event()

    def slow(call: Call) -> Reply:
        entered.set()
        go.wait(20)
        return kds(call)

    service.answer = slow
    with ThreadPoolExecutor(8) as pool:
        running = [pool.submit(fetching.get, _need("amd-vcek")) for _ in range(8)]
        assert entered.wait(20)
        go.set()
        found = {future.result().data for future in running}
    assert len(found) == 1
    assert len(service.calls) == 1


class _Watched(Cache):
    """Lets a test wait until so many threads have come to a lock."""

    def __init__(self, folder: Path, threads: int) -> None:
        super().__init__(folder)
        self.threads, self.seen, self.all_came = threads, set[int](), threading.Event()

    @contextlib.contextmanager
    def lock(self, name: str, kind: str = "item") -> Iterator[None]:
        self.seen.add(threading.get_ident())
        if len(self.seen) == self.threads:
            self.all_came.set()
        with super().lock(name, kind):
            yield


def test_threads_that_miss_at_once_fail_once(service: Service, time: Time, tmp_path: Path) -> None:
    cache, go = _Watched(tmp_path, 8), threading.Event()
    fetching = Fetcher(
        cache, http=Http(clock=time.clock, limits=QUICK), clock=time.clock, bases={"amd-vcek": service.url}
    )

    def down(call: Call) -> Reply:
        go.wait(20)
        return Reply(503)

    def one() -> None:
        with pytest.raises(UndecidedError, match="503"):
            fetching.get(_need("amd-vcek"))

    service.answer = down
    with ThreadPoolExecutor(8) as pool:
        running = [pool.submit(one) for _ in range(8)]
        assert cache.all_came.wait(20)
        go.set()
        for future in running:
            future.result()
    assert len(service.calls) == QUICK.tries
    # Whoever comes later asks again.
    one()
    assert len(service.calls) == 2 * QUICK.tries


def test_kds_is_asked_one_thing_at_a_time(service: Service, kds: Kds, time: Time, tmp_path: Path) -> None:
    at_once, most, guard = [0], [0], threading.Lock()

    def watch(call: Call) -> Reply:
        with guard:
            at_once[0] += 1
            most[0] = max(most[0], at_once[0])
        threading.Event().wait(0.05)
        with guard:
            at_once[0] -= 1
        return kds(call)

    service.answer = watch
    fetching = fetcher(tmp_path, time, base=service.url)
    wanted = [need for product in ("Milan", "Genoa", "Turin") for need in needs(signer.report(product))]
    with ThreadPoolExecutor(9) as pool:
        assert len(list(pool.map(fetching.get, wanted))) == 9
    assert (len(service.calls), most[0]) == (9, 1)


_PROCESS = """
import sys
from pathlib import Path
from tests.trust.services import Time, fetcher
from cloister.tee.snp.needs import needs
print("ready", flush=True)
sys.stdin.readline()
need = needs(Path(sys.argv[3]).read_bytes())[0]
print(fetcher(Path(sys.argv[1]), Time(), base=sys.argv[2]).get(need).data.hex())
"""


def test_two_processes_at_once_ask_once(service: Service, kds: Kds, tmp_path: Path) -> None:
    report, entered, go = tmp_path / "report.bin", threading.Event(), threading.Event()
    report.write_bytes(signer.report())

    def slow(call: Call) -> Reply:
        entered.set()
        go.wait(20)
        return kds(call)

    service.answer = slow
    command = [sys.executable, "-c", _PROCESS, str(tmp_path / "cache"), service.url, str(report)]
    pipes = {"stdin": subprocess.PIPE, "stdout": subprocess.PIPE, "text": True}
    root = Path(__file__).parents[2]
    running = [subprocess.Popen(command, cwd=root, **pipes) for _ in range(2)]  # type: ignore[call-overload]
    try:
        for process in running:
            assert process.stdout.readline() == "ready\n"
        for process in running:
            process.stdin.write("\n")
            process.stdin.flush()
        assert entered.wait(20)
        go.set()
        outputs = [process.communicate(timeout=30)[0] for process in running]
    finally:
        for process in running:
            process.kill()
            process.wait()
    assert outputs[0] == outputs[1] != ""
    assert len(service.calls) == 1


def test_parameters_of_a_stranger_do_not_reach_an_address(service: Service, time: Time, tmp_path: Path) -> None:
    get = fetcher(tmp_path, time, base=service.url).get
    good = _need("amd-vcek").parameters
    check = _need("amd-vcek").check
    for name, value in (
        ("product", "../../x"), ("product", "Genoa\n"), ("product", ""), ("chip_id", "5b" * 63 + "/."), ("chip_id", "5B" * 64),
        ("chip_id", "5b" * 8), ("snp", "1&x=2"), ("snp", "256"), ("snp", "-1"), ("snp", "٣"), ("snp", ""),
    ):  # fmt: skip
        with pytest.raises((MalformedError, UndecidedError)):
            get(Need(kind="amd-vcek", parameters={**good, name: value}, check=check))
    assert service.calls == []


def test_an_unchecked_vcek_cannot_be_asked_for(time: Time, tmp_path: Path) -> None:
    with pytest.raises(ValueError, match="check"):
        fetcher(tmp_path, time).get(Need(kind="amd-vcek", parameters=_need("amd-vcek").parameters))


def test_the_addresses_are_amds(tmp_path: Path, time: Time) -> None:
    """Without a base the requests go to AMD; the address is what the specification says."""
    asked: list[str] = []

    class Recording:
        def get(self, url: str, *, limit: int) -> None:
            asked.append(url)
            raise UndecidedError("not from here")

    for product in ("Milan", "Turin"):
        report = signer.report(product)
        assert Report.parse(report).product == product
        for need in needs(report):
            with pytest.raises(UndecidedError):
                Fetcher(Cache(tmp_path), http=Recording(), clock=time.clock).get(need)  # type: ignore[arg-type]
    chip = signer.CHIP["Milan"].hex()
    assert asked == [
        f"https://kdsintf.amd.com/vcek/v1/Milan/{chip}?blSPL=10&teeSPL=01&snpSPL=23&ucodeSPL=84",
        "https://kdsintf.amd.com/vcek/v1/Milan/cert_chain",
        "https://kdsintf.amd.com/vcek/v1/Milan/crl",
        f"https://kdsintf.amd.com/vcek/v1/Turin/{'5c' * 8}?fmcSPL=00&blSPL=10&teeSPL=01&snpSPL=23&ucodeSPL=84",
        "https://kdsintf.amd.com/vcek/v1/Turin/cert_chain",
        "https://kdsintf.amd.com/vcek/v1/Turin/crl",
    ]


def test_a_needs_check_names_what_differs() -> None:
    check = _need("amd-vcek").check
    assert check is not None
    check(signer.endorsement("Genoa"))
    with pytest.raises(NotGenuineError, match="another chip"):
        check(signer.endorsement("Genoa", amd=signer.extensions("Genoa", x4=b"\x01" * 64)))
