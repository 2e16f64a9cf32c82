"""The teacher on this machine: the bare base, or an adapter on it."""

from dataclasses import replace
from types import SimpleNamespace

import pytest

from alpaca_rlhf.core.errors import UserError
from alpaca_rlhf.settings import Generate
from alpaca_rlhf.stages.teachers import teacher_of

SETTINGS = Generate(batch_size=4, max_new_tokens=12, temperature=1.0)
PROMPTS = [f"1. Instruction: Name number {i}.\n" for i in range(6)]


def replies(adapters, **given):
    settings = replace(SETTINGS, **given)
    ctx = SimpleNamespace(settings=SimpleNamespace(generate=settings), adapters=adapters)
    with teacher_of(ctx, {}) as teacher:
        first_replies = teacher.complete(PROMPTS, seed=1, first=0)
        assert teacher.complete(PROMPTS[2:4], seed=1, first=2) == first_replies[2:4]
        return [reply.text for reply in first_replies], teacher.name


def test_an_adapter_writes_instead_of_the_base(tiny, tmp_path):
    maker = tiny("zero", trained=False)
    maker.save("zero", tmp_path / "zero")
    tiny("other").save("other", tmp_path / "other")
    bare, name = replies(tiny())
    assert len(set(bare)) > 1 and str(tmp_path) not in name
    same, _ = replies(tiny(), adapter=str(tmp_path / "zero"))
    assert same == bare, "an adapter that has learned nothing is the base"
    adapted, name = replies(tiny(), adapter=str(tmp_path / "other"))
    assert adapted != bare
    assert str(tmp_path / "other") in name, "the data card says who wrote"


def test_an_adapter_that_is_not_there_is_one_line(tiny, tmp_path):
    with pytest.raises(UserError, match=r"no adapter_config\.json"):
        replies(tiny(), adapter=str(tmp_path))
