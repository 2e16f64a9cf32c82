"""The list of the app's tabs: this is the one place that names them all."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from functools import partial
from pathlib import Path

from starlette.routing import BaseRoute

from alpaca_rlhf.app.added_answers import AddedAnswers
from alpaca_rlhf.app.chat_tab import chat_tab
from alpaca_rlhf.app.compare_tab import compare_tab
from alpaca_rlhf.app.data_tab import Exports, data_tab
from alpaca_rlhf.app.data_view import Rounds
from alpaca_rlhf.app.new_run_page import NewRuns
from alpaca_rlhf.app.page_layout import Tab
from alpaca_rlhf.app.prefetch import keep_filled
from alpaca_rlhf.app.prompt_upload import PromptUpload, contents_of
from alpaca_rlhf.app.rank_tab import rank_tab
from alpaca_rlhf.app.train_tab import TrainPage, train_tab
from alpaca_rlhf.app.training import Training, TrainingCommand
from alpaca_rlhf.app.worker import Worker
from alpaca_rlhf.preferences.store import Store
from alpaca_rlhf.serving.run_contents import reward_facts
from alpaca_rlhf.sources.standing import standing_by_round


@dataclass(frozen=True)
class AppTabs:
    """The tabs, and what works behind them."""

    tabs: Sequence[Tab]
    """The tabs in their order."""
    worker: Worker | None = None
    """Owns the model; None without a run."""
    train: TrainPage | None = None
    """The training of the run; None without a run."""
    new_runs: NewRuns | None = None
    """Begins runs; None where the app knows no folder of runs."""
    upload: PromptUpload | None = None
    """Adds prompts to rank; None without a run."""

    def routes(self) -> list[BaseRoute]:
        """Routes of the tabs, beside Gradio's."""
        pages = (self.train, self.new_runs, self.upload)
        return [route for page in pages if page is not None for route in page.routes()]

    def close(self) -> None:
        """Unload the model, and stop watching the training, which goes on."""
        if self.train is not None:
            self.train.training.close()
        if self.worker is not None:
            self.worker.close()


def tabs(
    store: Store,
    run: Path | None,
    exports: Exports,
    *,
    refill: str,
    command: TrainingCommand,
    new_runs: NewRuns | None = None,
) -> AppTabs:
    """The tabs of an app, and what works behind them.

    Args:
        store: The preferences.
        run: Run folder to take base and adapters from.
        exports: Where snapshots go.
        refill: The command that fills the queue, which only admins are shown.
        command: Trains the run.
        new_runs: Begins runs, and chooses the one that the app is on.
    """
    rank = Tab("rank", partial(rank_tab, refill=refill))
    train = partial(train_tab, new_runs=new_runs is not None)
    if run is None:
        data = Tab("data", partial(data_tab, exports=exports), admin=True)
        beginning = (
            [] if new_runs is None else [Tab("train", partial(train, page=None), admin=True)]
        )
        return AppTabs([rank, *beginning, data], new_runs=new_runs)
    # 1. The model's thread, and the training.
    worker = Worker(run)
    training = Training(run, store, command.words, allowed=command.closed is None)
    page = TrainPage(training, store, command)
    keep_filled(store, worker)
    training.watch()
    answers = AddedAnswers(store, worker)
    answers.start()  # those that an app which was ended has not come to
    # 2. The tabs.
    settings = worker.settings
    judge = None if settings.inputs.judge == "human" else settings.inputs.judge
    rounds = Rounds(
        partial(standing_by_round, run, store),
        settings.rank.at_least,
        judge,
        partial(reward_facts, run),
    )
    return AppTabs(
        [
            rank,
            Tab("chat", partial(chat_tab, worker=worker)),
            Tab("compare", partial(compare_tab, worker=worker)),
            Tab("train", partial(train, page=page), admin=True),
            Tab("data", partial(data_tab, exports=exports, rounds=rounds, upload=True), admin=True),
        ],
        worker,
        page,
        new_runs,
        PromptUpload(store, answers, partial(contents_of, worker.run)),
    )
