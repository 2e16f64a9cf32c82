"""The list of the app's tabs: this is the one place that names them all."""

from __future__ import annotations

from functools import partial
from pathlib import Path

from alpaca_rlhf.app.chat_tab import chat_tab
from alpaca_rlhf.app.compare_tab import compare_tab
from alpaca_rlhf.app.data_tab import Exports, data_tab
from alpaca_rlhf.app.data_view import Rounds
from alpaca_rlhf.app.page_layout import Tab
from alpaca_rlhf.app.prefetch import keep_filled
from alpaca_rlhf.app.rank_tab import rank_tab
from alpaca_rlhf.app.worker import Worker
from alpaca_rlhf.preferences.store import Store
from alpaca_rlhf.sources.standing import standing_by_round


def tabs(
    store: Store, run: Path | None, exports: Exports, *, refill: str
) -> tuple[Worker | None, list[Tab]]:
    """The worker that owns the model, None without a run; and the tabs in their order.

    Args:
        store: The preferences.
        run: Run folder to take base and adapters from.
        exports: Where snapshots go.
        refill: The command that fills the queue, which only admins are shown.
    """
    rank = Tab("rank", partial(rank_tab, refill=refill))
    if run is None:
        return None, [rank, Tab("data", partial(data_tab, exports=exports), admin=True)]
    worker = Worker(run)
    rounds = Rounds(partial(standing_by_round, run, store), worker.settings.rank.at_least)
    data = Tab("data", partial(data_tab, exports=exports, rounds=rounds), admin=True)
    keep_filled(store, worker)
    chat = Tab("chat", partial(chat_tab, worker=worker))
    compare = Tab("compare", partial(compare_tab, worker=worker))
    return worker, [rank, chat, compare, data]
