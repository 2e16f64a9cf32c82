"""Which tabs the app has. This is the one place where they are listed."""

from __future__ import annotations

from functools import partial
from pathlib import Path

from alpaca_rlhf.app.build import Tab
from alpaca_rlhf.app.chat import chat_tab
from alpaca_rlhf.app.compare import compare_tab
from alpaca_rlhf.app.data import Exports, data_tab
from alpaca_rlhf.app.prefetch import keep_filled
from alpaca_rlhf.app.rank import rank_tab
from alpaca_rlhf.app.worker import Worker
from alpaca_rlhf.preferences.store import Store


def tabs(
    store: Store, run: Path | None, exports: Exports, *, refill: str
) -> tuple[Worker | None, list[Tab]]:
    """The worker that owns the model, or None without a run; and the tabs in their order.

    Args:
        store: The preferences.
        run: Run folder to take base and adapters from.
        exports: Where snapshots go.
        refill: The command that fills the queue.
    """
    ranking, data = (
        Tab("rank", partial(rank_tab, refill=refill)),
        Tab("data", partial(data_tab, exports=exports), admin=True),
    )
    if run is None:
        return None, [ranking, data]
    worker = Worker(run)
    keep_filled(store, worker)
    talking = [
        Tab("chat", partial(chat_tab, worker=worker)),
        Tab("compare", partial(compare_tab, worker=worker)),
    ]
    return worker, [ranking, *talking, data]
