"""The store: every verdict on completions, by people and by judges, kept in a database.

Each method that changes something is one transaction, on the disk when the method returns. The
queries stand in the modules beside this one, and nowhere outside this room.
"""

from __future__ import annotations

from collections.abc import Collection, Iterable, Iterator, Mapping, Sequence
from datetime import UTC, datetime
from itertools import islice
from pathlib import Path
from typing import Any

from sqlalchemy.orm import Session

from alpaca_rlhf.core.records import Instruction, Ranking
from alpaca_rlhf.preferences import (
    added_prompts,
    battles,
    browsing,
    chats,
    claims,
    demonstrations,
    guidelines,
    handing_out,
    leaving_out,
    own_verdicts,
    queue,
    reading,
    snapshot,
    verdicts,
)
from alpaca_rlhf.preferences import figures as tab
from alpaca_rlhf.preferences.accounts import Accounts
from alpaca_rlhf.preferences.assignment import (
    Candidates,
    Overlap,
    Refused,
    Saved,
    Task,
    Tiers,
    Verdict,
)
from alpaca_rlhf.preferences.audit import note
from alpaca_rlhf.preferences.guidelines import Guidelines
from alpaca_rlhf.preferences.judges import JudgeIdentity
from alpaca_rlhf.preferences.schema import CandidateSet, Flag
from alpaca_rlhf.preferences.standing import Standing, Status
from alpaca_rlhf.preferences.stored_text import clean

BATCH_ROWS = 500
"""Sets or rankings added in one transaction, unless told otherwise."""


class Store(Accounts):
    """A preference database. Use it from any thread; close it at the end.

    Args:
        where: A file for SQLite, made if absent, or `postgresql+psycopg://user@host/name`.
        rules: How tasks are handed out.
        seed: Draws the order of the answers and the kind of a task. None is a fresh one.
        clock: Seconds since 1970.

    Raises:
        UserError: It cannot be opened, or was made by a newer version.
    """

    # --- the queue ----------------------------------------------------------------------------

    def add_sets(
        self,
        rows: Iterable[Candidates],
        *,
        origin: str,
        gold: Mapping[str, Tiers] | None = None,
    ) -> int:
        """Add prompts with their completions to the queue; what is there already stays as it is.

        Args:
            rows: Prompts, each with 2 to 9 completions.
            origin: Where they come from, e.g. `runs/mine/sample`.
            gold: Known orders by prompt id: their sets become gold questions.

        Returns:
            How many sets are new.

        Raises:
            ValueError: A set is too small or too large, or holds another prompt's completion.
        """
        remaining, added = iter(rows), 0
        while batch := list(islice(remaining, BATCH_ROWS)):

            def work(session: Session, batch: list[Candidates] = batch) -> int:
                return queue.add_sets(
                    session,
                    batch,
                    now_ms=self._now(),
                    origin=origin,
                    overlap=handing_out.overlap(session, self._default_overlap),
                    gold=gold or {},
                )

            added += self._write(work)
        return added

    def add_rankings(
        self,
        rankings: Iterable[Ranking],
        *,
        judge: JudgeIdentity | None = None,
        batch: int = BATCH_ROWS,
    ) -> int:
        """Keep rankings made outside the app, one transaction a batch; their sets are there.

        What came before an error of the iterable is kept, so a judge that is stopped loses nothing.

        Args:
            rankings: By judges, by people in the terminal, or from files.
            judge: Who made them, and under which settings: a set that this judge has ranked under
                these settings is passed over. None where people made them.
            batch: Rankings in one transaction.

        Returns:
            How many were added: the same ranking twice is one.

        Raises:
            ValueError: The completions of one are no candidate set.
        """
        added, pending = 0, list[Ranking]()
        settings = None if judge is None else judge.settings

        def flush() -> int:
            rows = pending.copy()  # a transaction may be done again
            pending.clear()
            return self._write(
                lambda session: verdicts.add(
                    session, rows, now_ms=self._now(), judge_settings=settings
                )
            )

        try:
            for ranking in rankings:
                pending.append(ranking)
                if len(pending) == batch:
                    added += flush()
        finally:
            if pending:
                added += flush()
        return added

    def add_completions(self, rows: Iterable[Candidates]) -> None:
        """Keep prompts with completions that nobody shall rank, e.g. for a battle.

        Raises:
            ValueError: A completion answers another prompt.
        """
        batch = list(rows)
        self._write(lambda session: queue.add_completions(session, batch, now_ms=self._now()))

    def add_prompts(
        self, prompts: Sequence[Instruction], *, actor: str, refused: Mapping[str, int]
    ) -> int:
        """Add prompts to those that are to be ranked; what is there already stays as it is.

        Args:
            prompts: Their outputs are not kept.
            actor: Who adds them, for the audit.
            refused: How many others were refused, by reason, for the audit.

        Returns:
            How many are new.
        """
        return self._write(
            lambda session: added_prompts.add(
                session, prompts, actor=actor, refused=refused, now_ms=self._now()
            )
        )

    def remove_prompts(self, prompts: Collection[str], *, actor: str) -> int:
        """Take prompts back that an admin has added and nobody has answered; returns how many.

        Args:
            prompts: Their ids; those that have a candidate set stay.
            actor: Who takes them back, for the audit.
        """
        return self._write(
            lambda session: added_prompts.remove(session, prompts, actor=actor, now_ms=self._now())
        )

    def added_prompts(self, *, unanswered: bool = False) -> list[Instruction]:
        """The prompts that admins have added, the newest last.

        Args:
            unanswered: Leave out those that have a candidate set.
        """
        with self.database.reading() as session:
            return added_prompts.newest_last(session, unanswered=unanswered)

    def answered(self, prompts: Collection[str], adapter: str) -> set[str]:
        """Those of these prompts that have a candidate set with an answer by this adapter.

        Args:
            prompts: Ids of prompts.
            adapter: `Completion.adapter`.
        """
        with self.database.reading() as session:
            return queue.answered(session, prompts, adapter)

    def retire(self, candidate_set: int, *, actor: str) -> None:
        """Close a candidate set: no further annotator receives it; existing verdicts are kept."""

        def work(session: Session) -> None:
            row = session.get(CandidateSet, candidate_set, with_for_update=True)
            if row is None:
                raise Refused("unknown", "there is no such set")
            row.retired = True
            note(session, self._now(), actor, "retire", f"candidate_set:{candidate_set}")

        self._write(work)

    def resolve(self, flag: int, *, actor: str) -> None:
        """Mark a flag as looked at by an admin; it is no longer listed.

        Raises:
            Refused: `unknown`: there is no such flag.
        """

        def work(session: Session) -> None:
            row = session.get(Flag, flag, with_for_update=True)
            if row is None:
                raise Refused("unknown", "there is no such flag")
            if row.resolved_ms is None:
                row.resolved_ms = self._now()
                note(session, self._now(), actor, "resolve", f"flag:{flag}")

        self._write(work)

    def leave_out_person(
        self, name: str, *, actor: str, reason: str = "", undo: bool = False
    ) -> leaving_out.Change:
        """Let nothing count that an annotator has ranked or will rank; they get no more tasks.

        Args:
            name: Name of the annotator, or `judge:<name>`.
            actor: Who does it, for the audit.
            reason: Why, for the audit.
            undo: True takes them in again.

        Raises:
            UserError: There is no annotator of this name.
        """

        def change(session: Session) -> leaving_out.Change:
            decision = leaving_out.Decision(not undo, actor, reason, self._now())
            return leaving_out.change_person(session, name, decision)

        return self._write(change)

    def leave_out_set(
        self, number: int, *, actor: str, reason: str = "", undo: bool = False
    ) -> leaving_out.Change:
        """Let no verdict on a candidate set count, and hand it to nobody.

        Args:
            number: Number of the set.
            actor: Who does it, for the audit.
            reason: Why, for the audit.
            undo: True takes it in again.

        Raises:
            UserError: There is no such set.
        """

        def change(session: Session) -> leaving_out.Change:
            decision = leaving_out.Decision(not undo, actor, reason, self._now())
            return leaving_out.change_set(session, number, decision)

        return self._write(change)

    def left_out(self) -> list[str]:
        """Everything that is left out: names of annotators, and keys of sets after `set:`."""
        with self.database.reading() as session:
            return leaving_out.left_out(session)

    def below_gold_rate(self, rate: float, *, min_asked: int) -> list[str]:
        """Names of the people who passed less than a share of at least so many gold questions."""
        with self.database.reading() as session:
            return leaving_out.below_gold_rate(session, rate, min_asked)

    def leave_out_below_gold(
        self, rate: float, *, min_asked: int, actor: str, reason: str = ""
    ) -> list[leaving_out.Change]:
        """Leave out everybody whom `below_gold_rate` names, each in a transaction of their own.

        Args:
            rate: The share of gold questions.
            min_asked: Gold questions that somebody must have been asked.
            actor: Who does it, for the audit.
            reason: Why, for the audit.
        """
        names = self.below_gold_rate(rate, min_asked=min_asked)
        return [self.leave_out_person(name, actor=actor, reason=reason) for name in names]

    def overlap(self) -> Overlap:
        """The share of the sets that several people rank, and how many people that is."""
        with self.database.reading() as session:
            return handing_out.overlap(session, self._default_overlap)

    def set_overlap(self, overlap: Overlap, *, actor: str) -> int:
        """Change the overlap of all sets, those of later included.

        Nobody who ranks a set, or has ranked it, loses a place.

        Args:
            overlap: The share, and the number of people.
            actor: Who does it, for the audit.

        Returns:
            How many sets have more or fewer places than before.

        Raises:
            UserError: The share is not within 0 and 1, or the number of people not within 2 and 9.
        """
        return self._write(
            lambda session: handing_out.set_overlap(
                session, overlap, default=self._default_overlap, actor=actor, now_ms=self._now()
            )
        )

    def origins(self) -> list[handing_out.Origin]:
        """The origins of the sets that people may receive, the largest first."""
        with self.database.reading() as session:
            return handing_out.origins(session)

    def limits(self) -> list[handing_out.Limit]:
        """Everybody who does not get tasks of all origins, by name."""
        with self.database.reading() as session:
            return handing_out.limits(session)

    def set_origins(self, name: str, origins: Sequence[str] | None, *, actor: str) -> None:
        """Let somebody get tasks of some origins alone.

        Args:
            name: Name of the annotator.
            origins: The origins; empty for no tasks at all, None for all.
            actor: Who does it, for the audit.

        Raises:
            UserError: There is no such annotator, or no set of such an origin.
        """
        self._write(
            lambda session: handing_out.set_origins(
                session, name, origins, actor=actor, now_ms=self._now()
            )
        )

    @property
    def _default_overlap(self) -> Overlap:
        return Overlap(self.rules.second_share)

    # --- tasks --------------------------------------------------------------------------------

    def claim(self, annotator: int, *, holding: Collection[int] = ()) -> Task | None:
        """The next task of an annotator; None if there is none.

        A task that is open already comes first, so a second browser tab, or a restart, shows the
        same one again.

        Args:
            annotator: Number.
            holding: Ids of tasks that are before the annotator already, to fetch one beyond them.

        Raises:
            Refused: `unknown`: the annotator is not there, or not any more.
        """

        def work(session: Session) -> Task | None:
            assignment_id = claims.claim(
                session,
                annotator,
                rules=self.rules,
                now_ms=self._now(),
                rng=self._rng,
                holding=holding,
            )
            if assignment_id is None:
                return None
            return claims.task(session, assignment_id, rules=self.rules)

        return self._write(work)

    def reserve(self, annotator: int, prompt: str, completions: Collection[str]) -> bool:
        """Open a set for an annotator: it is claimed next, after what is open already.

        Args:
            annotator: Number.
            prompt: Its id.
            completions: Ids of all completions of the set.

        Returns:
            False where the annotator has seen it, or others have all its places.
        """
        key = queue.set_key(prompt, completions)
        return self._write(
            lambda session: claims.reserve(
                session,
                annotator,
                key,
                now_ms=self._now(),
                until_ms=self._until(),
                rng=self._rng,
            )
        )

    def renew(self, annotator: int, task: int, *, shown: bool = False) -> None:
        """Keep a task for another lease.

        Args:
            annotator: Number.
            task: Its id.
            shown: True if it is shown to the annotator just now, so that its time begins.

        Raises:
            Refused: `done`: it is not open any more; `unknown`, `not_yours`.
        """

        def work(session: Session) -> None:
            assignment = claims.owned(session, task, annotator)
            claims.renew(session, assignment, until_ms=self._until())
            if shown:
                assignment.shown_ms = self._now()

        self._write(work)

    def submit(self, annotator: int, task: int, verdict: Verdict, *, revision: int = 0) -> Saved:
        """Keep a verdict. Sent again after a lost response, it reports that it was saved already.

        Args:
            annotator: Number.
            task: Its id.
            verdict: The annotator's order and remarks.
            revision: `Task.revision` of the task as it was shown.

        Raises:
            Refused: `unknown`, `not_yours`, `incomplete` or `bad_value`; nothing is changed.
        """
        return self._write(
            lambda session: verdicts.submit(
                session, task, annotator, verdict, revision=revision, now_ms=self._now()
            )
        )

    def undo(self, annotator: int, task: int | None = None) -> Task | None:
        """Take a verdict back; the task is open again, with the order that it had.

        Args:
            annotator: Number.
            task: Its id; by default the one that the annotator ranked last.

        Returns:
            The task, or None where nothing was ranked yet.

        Raises:
            Refused: `done`: there is nothing to take back; `unknown`, `not_yours`.
        """

        def work(session: Session) -> Task | None:
            assignment_id = verdicts.latest(session, annotator) if task is None else task
            if assignment_id is None:
                return None
            now_ms, until_ms = self._now(), self._until()
            verdicts.undo(session, assignment_id, annotator, now_ms=now_ms, until_ms=until_ms)
            session.flush()
            return claims.task(session, assignment_id, rules=self.rules)

        return self._write(work)

    def own_verdicts(
        self, annotator: int, *, before: int | None = None, n: int = 20
    ) -> list[own_verdicts.OwnVerdict]:
        """The newest verdicts of an annotator, or those before a number; `undo` opens one again.

        Of a set that was handed out again the first verdict is not listed: two alike would tell
        which one the repeat is.
        """
        with self.database.reading() as session:
            return own_verdicts.newest(session, annotator, before=before, n=n)

    def skip(self, annotator: int, task: int, reason: str = "") -> None:
        """Leave a task to others; the annotator is not shown it again.

        Raises:
            Refused: `done`: it is ranked already; `unknown`, `not_yours`.
        """

        def work(session: Session) -> None:
            claims.leave(session, claims.owned(session, task, annotator), "skipped")
            after = {"reason": clean(reason[:500])} if reason else None
            self._note(session, annotator, "skip", task, after)

        self._write(work)

    def skip_outside(self, annotator: str, candidates: Candidates, *, reason: str = "") -> None:
        """Keep that a person skipped a set outside the app, e.g. in the terminal.

        Args:
            annotator: Name.
            candidates: The prompt with its completions, which are a candidate set.
            reason: The person's own words.

        Raises:
            Refused: `done`: they have ranked it already.
            ValueError: There is no such set.
        """
        prompt, completions = candidates
        key = queue.set_key(prompt.id, [completion.id for completion in completions])
        self._write(
            lambda session: verdicts.skip(
                session, annotator, key, reason=reason[:500], now_ms=self._now()
            )
        )

    def flag(
        self, annotator: int, task: int, reason: str, text: str = "", *, completion: str = ""
    ) -> None:
        """Report a problem with a task, and leave it if it is open.

        Args:
            annotator: Number.
            task: Its id.
            reason: In a word, e.g. `spam`.
            text: The annotator's own description.
            completion: Id of the answer that is meant, if one is.

        Raises:
            Refused: `bad_value`, `unknown`, `not_yours`.
        """

        def work(session: Session) -> None:
            assignment = claims.owned(session, task, annotator)
            claims.add_flag(session, assignment, completion, reason, text[:2000], self._now())
            if assignment.state == "open":
                claims.leave(session, assignment, "flagged")
            self._note(session, annotator, "flag", task, {"reason": clean(reason)})

        self._write(work)

    # --- battles ------------------------------------------------------------------------------

    def battle(
        self, annotator: int, prompt: str, answers: tuple[tuple[str, str], tuple[str, str]]
    ) -> battles.Pairing:
        """Begin a battle: two answers side by side, the sides drawn here.

        Args:
            annotator: Number.
            prompt: Its id.
            answers: (policy, completion id) of each; both were added.

        Raises:
            Refused: `unknown`: they were not.
        """
        return self._write(
            lambda session: battles.begin(
                session, annotator, prompt, answers, now_ms=self._now(), rng=self._rng
            )
        )

    def vote(
        self, annotator: int, round_: str, given: battles.Vote, *, blind: bool = True
    ) -> battles.Revealed:
        """Keep a vote, which is final, and reveal who wrote which.

        Args:
            annotator: Number.
            round_: `Pairing.round`.
            given: The vote.
            blind: False if the texts themselves gave away who wrote them.

        Raises:
            Refused: `unknown`, `not_yours`, `bad_value`.
        """
        return self._write(
            lambda session: battles.vote(
                session, round_, annotator, given, blind=blind, now_ms=self._now()
            )
        )

    def scores(self) -> list[battles.VoteCounts]:
        """All blind votes, a row for each two policies."""
        with self.database.reading() as session:
            return battles.scores(session)

    # --- conversations ------------------------------------------------------------------------

    def chats(self, annotator: int, *, n: int = chats.MAX_LISTED) -> list[chats.ListedChat]:
        """The conversations of an account, the one that changed last first."""
        with self.database.reading() as session:
            return chats.listed(session, annotator, n=n)

    def save_chat(
        self,
        annotator: int,
        number: int | None,
        title: str,
        turns: Sequence[Any],
        *,
        before: str | None = None,
    ) -> int:
        """Keep a conversation, a new one where no number is given; returns its number.

        Args:
            annotator: Number.
            number: Number of the conversation.
            title: Name of a new one.
            turns: All of its turns.
            before: `chats.digest` of the turns that these replace: where others are kept by now,
                these become a conversation of their own.

        Raises:
            Refused: `unknown` or `not_yours`.
        """
        return self._write(
            lambda session: chats.save(
                session, annotator, number, title, turns, before=before, now_ms=self._now()
            )
        )

    def chat(self, annotator: int, number: int) -> tuple[str, list[Any]]:
        """Title and turns of a conversation.

        Raises:
            Refused: `unknown` or `not_yours`.
        """
        with self.database.reading() as session:
            return chats.opened(session, annotator, number)

    def rename_chat(self, annotator: int, number: int, title: str) -> None:
        """Give a conversation another name.

        Raises:
            Refused: `unknown`, `not_yours`, or `bad_value` where the name is empty.
        """
        self._write(lambda session: chats.rename(session, annotator, number, title))

    def delete_chat(self, annotator: int, number: int) -> None:
        """Delete a conversation.

        Raises:
            Refused: `unknown` or `not_yours`.
        """
        self._write(lambda session: chats.remove(session, annotator, number))

    def rate_reply(self, annotator: int, reply: Candidates, up: bool | None) -> None:
        """Keep an account's thumb on a reply of a chat; None takes it away.

        Args:
            annotator: Number.
            reply: The prompt, and the reply as its only completion.
            up: True for a thumb up, False for one down.
        """
        self._write(lambda session: chats.rate(session, annotator, reply, up, now_ms=self._now()))

    def keep_edited_reply(self, annotator: int, reply: Candidates, text: str | None) -> None:
        """Keep a reply of a chat as an account edited it, as a better answer; None takes it back.

        Args:
            annotator: Number.
            reply: The prompt, and the reply before it was edited as its only completion.
            text: The edited text.

        Raises:
            Refused: `bad_value` or `same_answer`.
        """
        self._write(
            lambda session: demonstrations.keep_edited(
                session, annotator, reply, text, now_ms=self._now()
            )
        )

    # --- figures ------------------------------------------------------------------------------

    def progress(self, annotator: int) -> tab.Progress:
        """The progress of an annotator, and of all."""
        with self.database.reading() as session:
            return tab.progress(session, annotator, self._now(), rules=self.rules)

    def figures(self) -> tab.Figures:
        """Everything that the Data tab shows, apart from the lists."""
        with self.database.reading() as session:
            return tab.figures(session, self._now())

    def flagged(self, *, before: int | None = None, n: int = 50) -> list[tab.OpenFlag]:
        """The newest flags, or those before a number."""
        with self.database.reading() as session:
            return tab.flagged(session, before=before, n=n)

    def comments(self, *, before: int | None = None, n: int = 50) -> list[tab.Remark]:
        """The newest comments on rankings, or those before a number."""
        with self.database.reading() as session:
            return tab.comments(session, before=before, n=n)

    def skips(self, *, before: int | None = None, n: int = 50) -> list[tab.Remark]:
        """The newest reasons for skips, or those before a number."""
        with self.database.reading() as session:
            return tab.skips(session, before=before, n=n)

    def sets(
        self, filter_: browsing.SetFilter, *, before: int | None = None, n: int = 20
    ) -> list[browsing.ListedSet]:
        """The newest sets that meet some conditions, or those before a number."""
        with self.database.reading() as session:
            return browsing.listed(session, filter_, before=before, n=n)

    def opened_set(self, number: int) -> browsing.OpenedSet:
        """One candidate set with all that was said of it.

        Raises:
            Refused: `unknown`: there is no such set.
        """
        with self.database.reading() as session:
            return browsing.opened(session, number)

    def statuses(self, prompts: Iterable[str]) -> dict[str, Status]:
        """The status of each of these prompts in the ranking, by their ids.

        A judge's verdict settles nothing: a person may still come.
        """
        with self.database.reading() as session:
            return reading.statuses(session, list(prompts), self._now())

    def standing(self) -> Standing:
        """The standing of all prompts that are there for people to rank."""
        with self.database.reading() as session:
            return reading.standing(session, self._now())

    def ranked(self, sets: Iterable[Candidates]) -> set[str]:
        """Ids of the prompts of those candidate sets that a person has ranked."""
        prompts = _prompts_by_key(sets)
        with self.database.reading() as session:
            return {prompts[key] for key in reading.ranked_sets(session, prompts)}

    def ranked_by(self, annotator: str, sets: Iterable[Candidates]) -> list[str]:
        """Ids of the prompts of those sets that an annotator has ranked, in that order.

        Args:
            annotator: Name.
            sets: Prompts with their completions.
        """
        prompts = _prompts_by_key(sets)
        with self.database.reading() as session:
            return [prompts[key] for key in reading.ranked_by(session, annotator, list(prompts))]

    def unjudged(self, judge: JudgeIdentity) -> Iterator[Candidates]:
        """The sets that no person has ranked, nor this judge under its settings; no gold ones."""
        after = 0
        # A transaction for each page: the caller takes long between two, and blocks no writer.
        while True:
            with self.database.reading() as session:
                rows = reading.unjudged(session, judge, after)
            if not rows:
                return
            after = rows[-1][0]
            yield from (candidates for _, candidates in rows)

    def export(self, folder: Path, *, judge: JudgeIdentity | None = None) -> snapshot.Manifest:
        """Write a snapshot to train from; claims and submits go on meanwhile.

        Args:
            folder: Where; nothing may be there.
            judge: Of this judge the rankings made under these settings are taken, where there are
                any; of everybody else, and by default, the newest.

        Raises:
            UserError: There is something in the folder already, or it cannot be written.
        """
        now_ms = self._now()
        # 1. Read everything in one transaction, so that the snapshot shows one moment.
        created = datetime.fromtimestamp(now_ms / 1000, UTC).strftime("%Y-%m-%dT%H:%M:%SZ")
        with self.database.reading() as session:
            manifest = snapshot.write(
                folder,
                reading.verdicts(session, judge),
                apart=snapshot.Apart(
                    demonstrations.counted(session),
                    chats.thumbs(session),
                    guidelines.newest_first(session)[::-1],
                ),
                max_ranking=reading.newest(session),
                created=created,
            )
        # 2. Note the export in another one, since a reading transaction may not write.
        self._write(
            lambda session: reading.note_snapshot(
                session,
                str(folder),
                manifest.max_ranking,
                manifest.rankings,
                manifest.sha256,
                now_ms,
            )
        )
        return manifest

    def guidelines(self) -> Guidelines | None:
        """The guidelines that hold now; None where there never were any."""
        with self.database.reading() as session:
            return guidelines.newest(session)

    def guideline_versions(self, *, n: int = 50) -> list[Guidelines]:
        """The newest versions of the guidelines, the one that holds now first."""
        with self.database.reading() as session:
            return guidelines.newest_first(session, n=n)

    def guideline_version(self) -> int:
        """The number of the guidelines that hold now; 0 where there never were any."""
        with self.database.reading() as session:
            return guidelines.version(session) or 0

    def set_guidelines(self, text: str, *, actor: str) -> Guidelines | None:
        """Add a version of the guidelines, unless nothing has changed; returns the one that holds.

        Args:
            text: Markdown; empty takes them away.
            actor: Who does it, for the audit.

        Raises:
            UserError: The text is too long.
        """
        return self._write(
            lambda session: guidelines.add(session, text, actor=actor, now_ms=self._now())
        )

    def note_training(self, action: str, run: str, *, actor: str) -> None:
        """Note in the audit what somebody did with the training of a run.

        Args:
            action: `start`, `start_failed`, `stop`, or `open` where the app goes on to the run.
            run: Name of the run.
            actor: Who does it.
        """
        self._write(lambda session: note(session, self._now(), actor, action, f"run:{run}"))

    def _note(
        self, session: Session, annotator: int, action: str, task: int, after: dict[str, str] | None
    ) -> None:
        session.flush()
        actor, entity = f"annotator:{annotator}", f"assignment:{task}"
        note(session, self._now(), actor, action, entity, after=after)


def _prompts_by_key(sets: Iterable[Candidates]) -> dict[str, str]:
    """The id of the prompt of each candidate set, by the key of the set."""
    return {
        queue.set_key(prompt.id, [completion.id for completion in completions]): prompt.id
        for prompt, completions in sets
    }
