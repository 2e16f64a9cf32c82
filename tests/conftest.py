"""Random little LLaMAs for the model and training rooms; and the real data, where it is present."""

import gc
import os
import re
import signal
import socket
import sys
import tempfile
import time
from functools import cache
from pathlib import Path
from types import ModuleType

import hypothesis
import pytest

# No test asserts on time, and Hypothesis's deadline of 200 ms an example does.
hypothesis.settings.register_profile("kit", deadline=None)
hypothesis.settings.load_profile("kit")
os.environ["HF_HUB_OFFLINE"] = "1"  # whatever the shell has: no test goes to the hub
BESIDE = int(os.environ.get("PYTEST_XDIST_WORKER_COUNT", "1"))
# The models are so small that more threads cost more than they compute, most of all beside others;
# the commands that tests start inherit both.
os.environ.setdefault("OMP_NUM_THREADS", "1")
os.environ.setdefault("OMP_WAIT_POLICY", "PASSIVE")
os.environ["ALPACA_RLHF_CARD"] = tempfile.mkdtemp(prefix="card-")  # nobody else's
if signal.getsignal(signal.SIGINT) is signal.SIG_IGN:  # a shell starts what it puts aside so
    signal.signal(signal.SIGINT, signal.default_int_handler)


def pytest_addoption(parser: pytest.Parser) -> None:
    """Add the flag that writes `docs/mistakes.md` from what the commands say."""
    parser.addoption("--write-mistakes", action="store_true")


def pytest_sessionstart(session: pytest.Session) -> None:
    """Send what pytest-rerunfailures asks its server before and after each test at once.

    Its messages are small, and Nagle's algorithm holds each back for up to 40 ms.
    """
    line = getattr(getattr(session.config, "failures_db", None), "sock", None)
    if line is not None:
        line.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)


def pytest_collection_modifyitems(items: list[pytest.Item]) -> None:
    """Mark tests of files that open a browser to be tried again, and put the longest files first.

    Then both workers end at about the same time. The seconds are those of the table in
    `tests/README.md`; other files keep their order.
    """
    for item in items:
        if _opens_a_browser(item.module):
            item.add_marker(pytest.mark.flaky(reruns=2, only_rerun=["."]))
    table = (Path(__file__).parent / "README.md").read_text(encoding="utf-8")
    seconds = {path: int(n) for path, n in re.findall(r"^\| `(tests/\S+)` \| (\d+) ", table, re.M)}
    items.sort(key=lambda item: -seconds.get(item.nodeid.partition("::")[0], 0))


@cache
def _opens_a_browser(module: ModuleType) -> bool:
    """True if a test file imports `tests.browser`, or what it opens a browser or a page with."""
    return any(
        getattr(value, "__name__", "") == "tests.browser"
        or (getattr(value, "__module__", "") == "tests.browser" and name in ("browser", "visit"))
        for name, value in vars(module).items()
    )


def pytest_collection_finish() -> None:
    """Spare the collector what the test files have loaded: the kit calls it at every stage."""
    gc.collect()
    gc.freeze()
    if "alpaca_rlhf.preferences.database" in sys.modules:
        from tests.databases import copy_what_was_migrated

        copy_what_was_migrated()
    if "alpaca_rlhf.preferences.passwords" in sys.modules:
        from alpaca_rlhf.preferences import passwords

        passwords.LOG_N = 4  # the full cost is an eighth of a second for each password


SHARED = Path(__file__).resolve().parent.parent.parent / "shared"

TEXTS = [
    "Below is an instruction that describes a task.\n\n"
    "### Instruction:\nName a colour.\n\n### Response:\nBlue.",
    "The lemon is yellow. The dog says woof. 12 + 3 = 15.\n### Input:\nred, green, blue\n",
] * 20


@pytest.fixture(scope="session")
def shared() -> Path:
    """The folder of real data and weights; skips where it is absent."""
    if not SHARED.is_dir():
        pytest.skip(
            f"needs the real data and weights in {SHARED.parent.name}/shared, which are not here"
        )
    return SHARED


@pytest.fixture(scope="session")
def tiny_folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A random two-layer LLaMA of width 128 with a byte-fallback tokenizer, as a checkpoint."""
    import torch
    from transformers import GenerationConfig, LlamaConfig, LlamaForCausalLM

    from recipes.pretrain_cria import train_tokenizer

    folder = tmp_path_factory.mktemp("tiny")
    tokenizer = train_tokenizer(iter(TEXTS), 400)
    torch.manual_seed(0)
    config = LlamaConfig(
        vocab_size=len(tokenizer),
        hidden_size=128,
        intermediate_size=192,
        num_hidden_layers=2,
        num_attention_heads=4,
        num_key_value_heads=2,
        max_position_embeddings=256,
        pad_token_id=0,
        bos_token_id=1,
        eos_token_id=2,
    )
    model = LlamaForCausalLM(config)
    with torch.no_grad():  # sharper than LLaMA's own initialisation, so that differences show
        for parameter in model.parameters():
            if parameter.ndim == 2:
                parameter.mul_(4)
    model.generation_config = GenerationConfig(pad_token_id=0, bos_token_id=1, eos_token_id=2)
    model.save_pretrained(folder)
    tokenizer.save_pretrained(folder)
    return folder


@pytest.fixture(scope="session")
def tiny_base(tiny_folder):
    """The tiny LLaMA in NF4 and fp32, without adapters; nobody changes it."""
    import torch

    from alpaca_rlhf.models.base import load_base

    return load_base(str(tiny_folder), dtype=torch.float32)


@pytest.fixture
def tiny(tiny_folder):
    """Makes adapters on a fresh copy of the tiny LLaMA (fp32 unless told otherwise)."""
    import torch

    from alpaca_rlhf.models.base import load_base

    def make(*names, trained=True, **options):
        base = load_base(str(tiny_folder), **{"dtype": torch.float32, **options})
        return with_adapters(base, *names, trained=trained)

    return make


@pytest.fixture(params=["float32 on nf4", "float64 unquantised"])
def precision(request):
    """Dtype, quantisation, and how far two ways to the same gradient may lie apart in it."""
    import torch

    if request.param == "float32 on nf4":
        return torch.float32, "nf4", 1e-5
    return torch.float64, "none", 1e-12


@pytest.fixture
def toy():
    """Makes adapters on a one-layer LLaMA of 16 tokens, unquantised, whose every token is a stop.

    So every completion is one finished token, and expectations are sums over 16 terms.
    """
    import torch
    from transformers import LlamaConfig, LlamaForCausalLM

    from alpaca_rlhf.models.base import Base

    def make(*names, trained=True, weights=0):
        torch.manual_seed(weights)
        config = LlamaConfig(
            vocab_size=16,
            hidden_size=64,
            intermediate_size=64,
            num_hidden_layers=1,
            num_attention_heads=2,
            num_key_value_heads=2,
            max_position_embeddings=16,
            pad_token_id=0,
            bos_token_id=1,
            eos_token_id=2,
        )
        model = LlamaForCausalLM(config).eval().requires_grad_(False)
        for parameter in model.parameters():
            if parameter.ndim == 2:
                parameter.mul_(10)
        base = Base(
            name="toy",
            model=model,
            tokenizer=None,
            quantization="none",
            dtype=torch.float32,
            pad_id=0,
            eos_id=2,
            stop_ids=frozenset(range(16)),
            fingerprint="toy",
        )
        return with_adapters(base, *names, trained=trained)

    return make


def with_adapters(base, *names, trained):
    """Adapters of rank 4; `trained` gives each a B of its own instead of 0."""
    import torch

    from alpaca_rlhf.models.adapters import Adapters
    from alpaca_rlhf.settings import Lora

    adapters = Adapters(base, Lora(r=4, alpha=8), template="brief")
    for i, name in enumerate(names):
        adapters.add(name, seed=i)
        generator = torch.Generator().manual_seed(100 + i)
        with torch.no_grad():
            for key, p in sorted(adapters.parameters(name).items()):
                if trained and "lora_B" in key:
                    p.copy_(torch.randn(p.shape, generator=generator) * 0.05)
    return adapters


@pytest.fixture
def gradients(monkeypatch):
    """The gradient of every optimiser step from now on, flat and in double."""
    import torch

    from alpaca_rlhf.training.loop import Learner

    seen = []
    step = Learner.step

    def spy(learner):
        own = sorted(learner.parameters.items())
        seen.append(torch.cat([p.grad.flatten().double() for _, p in own]))
        return step(learner)

    monkeypatch.setattr(Learner, "step", spy)
    return seen


@pytest.fixture
def scaled(monkeypatch):
    """Within it every loss is scaled by so much, whatever the precision."""
    from contextlib import contextmanager

    from alpaca_rlhf.training.loss_scale import LossScale

    @contextmanager
    def by(value):
        def fixed(self, dtype):
            self.value, self._dynamic, self._clean_backwards = value, False, 0

        with monkeypatch.context() as patch:
            patch.setattr(LossScale, "__init__", fixed)
            yield

    return by


@pytest.fixture(scope="session")
def whole_run(tmp_path_factory):
    """A small quickstart that nobody disturbed, made once for all workers; copy to change it."""
    from tests.whole_run import make_once

    folder = tmp_path_factory.getbasetemp()
    return make_once(folder.parent if BESIDE > 1 else folder)


@pytest.fixture(scope="session")
def server():
    from tests.databases import postgres

    with postgres() as url:
        yield url


@pytest.fixture(scope="session")
def migrated(server):
    """The name of a migrated database on the PostgreSQL server, to be copied; None without one."""
    if server is None:
        return None
    from sqlalchemy import create_engine, text

    from alpaca_rlhf.preferences.database import Database

    engine = create_engine(server, isolation_level="AUTOCOMMIT")
    with engine.connect() as connection:
        connection.execute(text("CREATE DATABASE migrated"))
    engine.dispose()
    Database(server.replace("/postgres?", "/migrated?")).close()
    return "migrated"


@pytest.fixture(params=["sqlite", "postgresql"])
def where(request, tmp_path, monkeypatch):
    """Address of an empty preference database; the same tests run on both kinds."""
    from alpaca_rlhf.preferences import passwords

    monkeypatch.setattr(passwords, "LOG_N", 4)
    if request.param == "sqlite":
        yield str(tmp_path / "preferences.db")
        return
    url = request.getfixturevalue("server")
    if url is None:
        from tests.databases import NO_POSTGRES

        pytest.skip(NO_POSTGRES)
    from sqlalchemy import create_engine, text

    name = f"t{time.time_ns()}"
    engine = create_engine(url, isolation_level="AUTOCOMMIT")
    with engine.connect() as connection:
        template = request.getfixturevalue("migrated")
        connection.execute(text(f"CREATE DATABASE {name} TEMPLATE {template}"))
    yield url.replace("/postgres?", f"/{name}?")
    with engine.connect() as connection:
        connection.execute(text(f"DROP DATABASE {name} WITH (FORCE)"))
    engine.dispose()


class Clock:
    """A clock that stands still until a test turns it."""

    def __init__(self):
        self.now = 1_790_000_000.0

    def __call__(self):
        return self.now


@pytest.fixture
def clock():
    return Clock()


@pytest.fixture
def store(where, clock):
    """An empty preference store without gold questions and repeats."""
    from alpaca_rlhf.preferences.assignment import Rules
    from alpaca_rlhf.preferences.store import Store

    plain = Rules(gold_rate=0, repeat_rate=0)
    with Store(where, rules=plain, seed=0, clock=clock) as opened:
        yield opened
